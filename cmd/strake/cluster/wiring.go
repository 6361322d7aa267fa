package cluster

import (
	"net/netip"
	"slices"

	"github.com/strake-io/strake/cmd/strake/agent"
	"github.com/strake-io/strake/cmd/strake/lab"
	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/cmd/strake/server"
	"github.com/strake-io/strake/controlplane/pki"
	"github.com/strake-io/strake/kubelet/certificates"
)

// Server returns the configuration of `strake server`, with all its files in place.
func (s Settings) Server(l layout.Layout) (server.Config, error) {
	files, err := s.certificates(l)
	if err != nil {
		return server.Config{}, err
	}
	cfg := s.server()
	cfg.PKI, cfg.EtcdDir = files, l.Etcd()
	if cfg.NodeSettings, err = s.ConfigMap(); err != nil {
		return cfg, err
	}
	cfg.AdminKubeconfig = l.AdminKubeconfig()
	cfg.ControllerKubeconfig, cfg.SchedulerKubeconfig = l.Kubeconfig("controller-manager"), l.Kubeconfig("scheduler")
	return cfg, nil
}

func (s Settings) server() server.Config {
	return server.Config{Addr: s.NodeAddrs[0], Port: s.Port, EtcdPort: s.EtcdPort, ServiceCIDRs: s.ServiceCIDRs, PodCIDRs: s.PodCIDRs, NodeBits: NodeBits}
}

// URL is where the API server is reached.
func (s Settings) URL() string {
	if s.Joined() {
		return s.APIServer
	}
	return s.server().URL()
}

// certificates makes what is missing of certificates and kubeconfigs.
func (s Settings) certificates(l layout.Layout) (pki.Files, error) {
	files, err := pki.Ensure(pki.Config{Dir: l.PKI(), ServerAddrs: s.NodeAddrs, ServiceIPs: nthOfEach(s.ServiceCIDRs, 1), Zone: s.Zone, Hostname: s.NodeName})
	if err != nil {
		return files, err
	}
	for path, id := range map[string]pki.Identity{
		l.AdminKubeconfig(): pki.Admin, l.Kubeconfig("controller-manager"): pki.ControllerManager, l.Kubeconfig("scheduler"): pki.Scheduler,
		l.Kubeconfig("node-network"): pki.NodeNetwork(s.NodeName), l.Kubeconfig("kubelet"): pki.Node(s.NodeName),
	} {
		if err := pki.EnsureKubeconfig(files, path, s.URL(), id); err != nil {
			return files, err
		}
	}
	_, err = pki.EnsureKubelet(files, s.NodeName, s.NodeAddrs)
	return files, err
}

// Agent returns the configuration of `strake agent`.
func (s Settings) Agent(l layout.Layout) agent.Config {
	files := pki.Files{Dir: l.PKI()}
	cfg := agent.Config{
		Layout: l, NodeName: s.NodeName, NodeAddrs: s.NodeAddrs, DNSAddrs: s.DNSAddrs, Zone: s.Zone, ResolvConf: s.ResolvConf,
		PodCIDRs: s.PodCIDRs, NoMasquerade: slices.Concat(s.PodCIDRs, s.NoMasquerade), AllowLinkLocal: s.AllowLinkLocal,
		Native: s.Routing == RoutingNative, TunnelPort: s.TunnelPort,
		KubeletKubeconfig: l.Kubeconfig("kubelet"), NetworkKubeconfig: l.Kubeconfig("node-network"),
		ClientCAFile: files.CA().Cert,
	}
	if s.Joined() {
		own := s.certificateConfig(l)
		cfg.Certificates = &own
	} else {
		pair := files.Kubelet(s.NodeName)
		cfg.CertFile, cfg.KeyFile = pair.Cert, pair.Key
		cfg.Uplinks = []string{lab.Bridge(l)}
	}
	return cfg
}

// certificateConfig is for a node that has joined: it keeps its certificates itself.
func (s Settings) certificateConfig(l layout.Layout) certificates.Config {
	return certificates.Config{
		Dir: l.PKI(), NodeName: s.NodeName, Addrs: func() []netip.Addr { return s.NodeAddrs }, Server: s.APIServer, CAFile: pki.Files{Dir: l.PKI()}.CA().Cert,
		KubeletKubeconfig: l.Kubeconfig("kubelet"), NetworkKubeconfig: l.Kubeconfig("node-network"),
	}
}
