package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cmd/strake/cluster"
	"github.com/strake-io/strake/cmd/strake/kubeproxy"
)

// roleProxy is the one part of the agent that runs alone.
const roleProxy = "proxy"

func agentCommand(place places) *cobra.Command {
	var only []string
	var cleanup bool
	var answer bool
	var names kubeproxy.Names
	c := kubeproxy.Config{Cgroup: "/"}
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run a node: kubelet and network; or its Services alone",
		Long: `Runs this node in the foreground. Pods and their network go on when it ends. It wants ` + "`strake containerd`" + ` beside it.

With --only proxy it serves Services alone, in kube-proxy's place: with any API server, kubelet and CNI plugin. It attaches to
the sockets of all processes of the machine, and to the devices where packets from outside come in; what it has loaded goes on
when it ends, and --cleanup takes it away. With --dns it answers names besides, before the cluster's own DNS (docs/dns.md). Flags that kube-proxy has too are called as there. docs/kube-proxy.md tells more.`,
		Example: `  strake agent --data-dir /var/lib/strake
  strake agent --only proxy --kubeconfig /etc/kubernetes/kube-proxy.kubeconfig
  strake agent --only proxy --kubeconfig proxy.kubeconfig --devices 'eth0,en*' --hostname-override node-1
  strake agent --only proxy --kubeconfig proxy.kubeconfig --clean-kube-proxy
  strake agent --only proxy --kubeconfig proxy.kubeconfig --dns
  strake agent --only proxy --cleanup`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, role := range only {
				if role != roleProxy {
					return fmt.Errorf("--only %s: the part that runs alone is %s", role, roleProxy)
				}
			}
			if len(only) == 0 {
				var stray []string
				cmd.Flags().VisitAll(func(f *pflag.Flag) {
					if f.Changed && f.Annotations[roleProxy] != nil {
						stray = append(stray, "--"+f.Name)
					}
				})
				if len(stray) > 0 {
					return fmt.Errorf("%s is for --only proxy: the whole agent has its settings in the data folder", strings.Join(stray, ", "))
				}
				l, s, err := cluster.Open(place, "agent")
				if err != nil {
					return err
				}
				return cluster.RunAgent(cmd.Context(), l, s)
			}
			l, err := place()
			if err != nil {
				return err
			}
			if cleanup {
				return kubeproxy.Cleanup(l)
			}
			if c.NodeName == "" {
				host, err := os.Hostname()
				if err != nil {
					return fmt.Errorf("the host's name: %w; give one with --hostname-override", err)
				}
				c.NodeName = strings.ToLower(host)
			}
			if c.Kubeconfig != "" {
				if c.Kubeconfig, err = filepath.Abs(c.Kubeconfig); err != nil {
					return err
				}
			}
			if answer {
				c.Names = names
			}
			if err := c.Names.Check(); err != nil {
				return err
			}
			return kubeproxy.Run(cmd.Context(), l, c)
		},
	}
	cmd.Flags().StringSliceVar(&only, "only", nil, "run these parts alone: proxy")
	fixed(cmd, "only", roleProxy)
	f := pflag.NewFlagSet("proxy", pflag.ContinueOnError)
	f.StringVar(&c.Kubeconfig, "kubeconfig", "", "way to the API server (in a pod: its ServiceAccount's)")
	f.StringVar(&c.NodeName, "hostname-override", "", "name of the node (the host's, in lower case)")
	f.Func("bind-address", "address of the node, or two of different families with a comma between (the InternalIPs of the Node object)", func(v string) (err error) {
		c.Addrs, err = nodeAddrs(v)
		return err
	})
	f.StringSliceVar(&c.Devices, "devices", nil, "devices where packets for Services come in, by name or shell pattern (those that have an address and are no pod's)")
	f.StringVar(&c.Cgroup, "cgroup", c.Cgroup, "folder of the cgroup2 tree, below its mount, whose processes are served besides those in the node's network namespace: pods' and the node's")
	f.Func(cluster.FlagNodePorts, "ranges of the node's addresses where NodePorts answer, with commas between, such as 0.0.0.0/0 for all but loopback (the node's InternalIPs)", ranges(&c.NodePorts))
	sizeFlags(f, &c.MaxFrontends, &c.MaxBackends, "")
	f.StringVar(&c.Healthz, cluster.FlagHealthz, "", "where load balancers ask for the node's health: IP:port, :port, or none (port 10256 of the node's addresses and of loopback)")
	f.IntVar(&c.Flows, cluster.FlagFlows, 0, fmt.Sprintf("how many connections the node can follow at a time, and as many other flows (%d)", bpf.DefaultFlows))
	xdpFlag(f, &c.XDP, "")
	f.StringVar(&c.Metrics, cluster.FlagMetrics, "", "where metrics are served: IP:port, :port for loopback, or none (port 10249 of loopback)")
	f.BoolVar(&answer, "dns", false, "answer names of the cluster that pods ask its DNS for in the kernel, at the pods' own veths; what the kernel does not know goes to that DNS, as before")
	f.StringVar(&names.Zone, "dns-zone", "cluster.local", "with --dns: zone of the cluster")
	f.StringVar(&names.Service, "dns-service", "kube-system/kube-dns", "with --dns: Service of the cluster's DNS, NAMESPACE/NAME")
	f.StringVar(&names.Config, "dns-config", "kube-system/coredns", "with --dns: ConfigMap with that DNS's Corefile, NAMESPACE/NAME: what it says of names in the zone is left to it")
	f.BoolVar(&c.Clean, "clean-kube-proxy", false, "remove the rules that kube-proxy has left, once Services are served: its own and nobody else's. Connections that they have translated go on if there is nft; those of mode ipvs end")
	f.BoolVar(&cleanup, "cleanup", false, "take away what --only proxy has loaded, and end")
	f.VisitAll(func(flag *pflag.Flag) { flag.Annotations = map[string][]string{roleProxy: {"true"}} })
	cmd.Flags().AddFlagSet(f)
	fixed(cmd, cluster.FlagXDP, xdpModes...)
	return cmd
}

// nodeAddrs reads kube-proxy's --bind-address: its default, the unspecified address, leaves the choice to us.
func nodeAddrs(v string) ([]netip.Addr, error) {
	addrs, err := cluster.ParseAddrs(v)
	if err != nil {
		return nil, err
	}
	if len(addrs) == 1 && addrs[0].IsUnspecified() {
		return nil, nil
	}
	if len(addrs) > 2 || len(addrs) == 2 && addrs[0].Is4() == addrs[1].Is4() {
		return nil, errors.New("a node has one address of each family")
	}
	return addrs, nil
}
