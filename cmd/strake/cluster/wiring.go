package cluster

import (
	"context"
	"crypto/x509"
	"net/netip"
	"slices"

	certificatesv1 "k8s.io/api/certificates/v1"

	"github.com/strake-io/strake/cmd/strake/agent"
	"github.com/strake-io/strake/cmd/strake/lab"
	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/cmd/strake/server"
	"github.com/strake-io/strake/cni"
	"github.com/strake-io/strake/controlplane/pki"
	"github.com/strake-io/strake/controlplane/store"
	"github.com/strake-io/strake/kubelet/certificates"
)

// Server returns the configuration of `strake server`, with all its files in place.
func (s Settings) Server(l layout.Layout) (server.Config, error) {
	files, err := s.certificates(l)
	if err != nil {
		return server.Config{}, err
	}
	cfg := s.server()
	cfg.PKI, cfg.Certificates, cfg.EtcdDir = files, s.pki(l), l.Etcd()
	if cfg.NodeSettings, err = s.ConfigMap(); err != nil {
		return cfg, err
	}
	if cfg.NodePorts, err = s.nodePorts(); err != nil {
		return cfg, err
	}
	cfg.NodeName = s.NodeName
	cfg.ControllerKubeconfig, cfg.SchedulerKubeconfig = l.Kubeconfig("controller-manager"), l.Kubeconfig("scheduler")
	return cfg, nil
}

// Store returns where the control plane's store is, and with what it is reached.
func (s Settings) Store(l layout.Layout) store.Config {
	return server.StoreConfig(server.Config{PKI: pki.Files{Dir: l.PKI()}, EtcdDir: l.Etcd(), EtcdPort: s.EtcdPort})
}

func (s Settings) server() server.Config {
	addrs := slices.Concat(s.NodeAddrs, lab.Network{Ranges: s.LabCIDRs}.Addrs(1)) // nodes beside the first one ask by their bridge
	return server.Config{Addrs: addrs, Port: s.Port, EtcdPort: s.EtcdPort, ServiceCIDRs: s.ServiceCIDRs, PodCIDRs: s.PodCIDRs, NodeBits: NodeBits}
}

// URL is where the API server is reached.
func (s Settings) URL() string {
	if s.Joined() {
		return s.APIServer
	}
	return s.server().URL()
}

// pki is what the machine of the control plane keeps certificates for.
func (s Settings) pki(l layout.Layout) pki.Config {
	return pki.Config{
		Dir: l.PKI(), ServerAddrs: s.server().Addrs, ServiceIPs: nthOfEach(s.ServiceCIDRs, 1), Zone: s.Zone, Hostname: s.NodeName, Server: s.URL(),
		Kubeconfigs: []pki.Kubeconfig{
			{Path: l.AdminKubeconfig(), Identity: pki.Admin, Portable: true},
			{Path: l.Kubeconfig("controller-manager"), Identity: pki.ControllerManager}, {Path: l.Kubeconfig("scheduler"), Identity: pki.Scheduler},
		},
	}
}

// certificates makes what is missing of certificates and kubeconfigs. The node beside the control plane has its own signed here;
// it renews them as any node.
func (s Settings) certificates(l layout.Layout) (pki.Files, error) {
	files, err := pki.Ensure(s.pki(l))
	if err != nil {
		return files, err
	}
	node := s.certificateConfig(l)
	node.Sign = func(r *x509.CertificateRequest, usages []certificatesv1.KeyUsage) ([]byte, error) {
		return pki.Sign(files, r, slices.Contains(usages, certificatesv1.UsageServerAuth))
	}
	return files, certificates.Bootstrap(context.Background(), node) // asks nobody
}

// Agent returns the configuration of `strake agent`.
func (s Settings) Agent(l layout.Layout) agent.Config {
	cfg := agent.Config{
		Layout: l, NodeName: s.NodeName, NodeAddrs: s.NodeAddrs, DNSAddrs: s.DNSAddrs, Zone: s.Zone, ResolvConf: s.ResolvConf,
		PodCIDRs: s.PodCIDRs, NoMasquerade: slices.Concat(s.PodCIDRs, s.NoMasquerade), AllowLinkLocal: s.AllowLinkLocal,
		Native: s.Routing == RoutingNative, Relay: cni.Relay{Node: s.LabNode, Behind: s.LabCIDRs}, TunnelPort: s.TunnelPort, MaxFrontends: s.MaxFrontends, MaxBackends: s.MaxBackends, NodePortAddrs: s.NodePortAddrs, Healthz: s.Healthz, Metrics: s.Metrics, Flows: s.Flows,
		DSR: s.LBMode == LBModeDSR, XDP: s.XDP, KeepFlows: s.PolicyEstablished == PolicyKeep, MaxPolicyPeers: s.MaxPolicyPeers, MaxPolicyRules: s.MaxPolicyRules,
		Recording:    s.Recording,
		Certificates: s.certificateConfig(l),
	}
	if !s.Joined() {
		cfg.Uplinks, cfg.MasqueradeSources = []string{lab.Bridge(l)}, s.LabCIDRs
	}
	return cfg
}

// certificateConfig is what a node keeps certificates for.
func (s Settings) certificateConfig(l layout.Layout) certificates.Config {
	return certificates.Config{
		Dir: l.PKI(), NodeName: s.NodeName, Addrs: func() []netip.Addr { return s.NodeAddrs }, Server: s.URL(), CAFile: pki.Files{Dir: l.PKI()}.CA().Cert,
		KubeletKubeconfig: l.Kubeconfig("kubelet"), NetworkKubeconfig: l.Kubeconfig("node-network"),
	}
}
