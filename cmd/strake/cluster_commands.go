package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cmd/strake/cluster"
	"github.com/strake-io/strake/cmd/strake/containerd"
	"github.com/strake-io/strake/cmd/strake/demo"
	"github.com/strake-io/strake/controlplane/apiserver"
	"github.com/strake-io/strake/netpol/flows"
)

func upCommand(place places) *cobra.Command {
	var wait time.Duration
	var nodes int
	flags := cluster.Defaults()
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Bring up a cluster with a demo on this machine",
		Long: `Brings up a cluster on this machine, in the background: containerd of its own, server and agent, and a demo. Repeating it
starts what does not run. The node is the network namespace that the command is started in; with --nodes, further nodes run
beside it in namespaces of their own, and a higher number adds some. What the other flags say of the cluster is settled when it
first comes up. In the folder of a node that has joined a cluster, it starts the node.`,
		Example: "  strake up\n  strake up --nodes 3\n  strake up --data-dir /tmp/lab --wait 5m",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := place()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), wait)
			defer cancel()
			out := cmd.OutOrStdout()
			if err := cluster.Up(ctx, l, flags, cmd.Flags().Changed, nodes, out); err != nil {
				return err
			}
			at := ""
			if cmd.Flags().Changed("data-dir") {
				at = " --data-dir " + l.Data
			}
			settings, _, err := cluster.Load(l)
			if err != nil {
				return err
			}
			fmt.Fprintf(out, `
The cluster is up. Try:
  %[1]s kubectl%[2]s get pods -A -o wide
  %[1]s kubectl%[2]s logs -n demo deploy/client -f
  curl http://%[3]s/
  %[1]s down%[2]s    (--purge removes its data too)
`, os.Args[0], at, netip.AddrPortFrom(settings.NodeAddrs[0], uint16(settings.DemoPort())))
			return nil
		},
	}
	f := cmd.Flags()
	f.DurationVar(&wait, "wait", 120*time.Second, "how long to wait for the cluster")
	f.IntVar(&nodes, cluster.FlagNodes, 0, "how many nodes the cluster has on this machine (those that there are, or one)")
	nodeFlags(f, &flags)
	f.TextVar(&flags.IPFamily, cluster.FlagIPFamily, flags.IPFamily, "ipv4, ipv6 or dual: the families of the default ranges (ipv4)")
	f.Func(cluster.FlagPodCIDR, "range of pods, or two of different families, the primary one first (10.244.0.0/16, fd00:10:244::/56)", into(&flags.PodCIDRs, cluster.ParsePrefixes))
	f.Func(cluster.FlagServiceCIDR, "range of Services, likewise (10.96.0.0/16, fd00:10:96::/112)", into(&flags.ServiceCIDRs, cluster.ParsePrefixes))
	f.StringVar(&flags.Routing, cluster.FlagRouting, flags.Routing, "how packets come to another node's pods: vxlan, or native where routes lead to them; may change at every start, and packets between nodes are lost until all have followed")
	f.IntVar(&flags.TunnelPort, cluster.FlagTunnelPort, flags.TunnelPort, "UDP port of VXLAN; may change likewise")
	f.Func(cluster.FlagNoMasquerade, "range that gets pods' packets with the pods' own addresses, as the pod ranges do; repeatable, may change at every start", func(v string) error {
		r, err := netip.ParsePrefix(v)
		flags.NoMasquerade = append(flags.NoMasquerade, r)
		return err
	})
	f.Func(cluster.FlagLinkLocal, "link-local range of the nodes that pods may reach, such as 169.254.169.254/32 for a cloud's metadata; none by default; repeatable, may change at every start", func(v string) error {
		r, err := netip.ParsePrefix(v)
		flags.AllowLinkLocal = append(flags.AllowLinkLocal, r)
		return err
	})
	f.Func(cluster.FlagNodePorts, "ranges of the nodes' addresses where NodePorts answer, with commas between, such as 0.0.0.0/0 for all but loopback, which 127.0.0.0/8 adds (the nodes' InternalIPs); may change at every start", ranges(&flags.NodePortAddrs))
	f.StringVar(&flags.NodePortRange, cluster.FlagNodePortRange, "", "ports of which Services get their NodePorts (30000-32767), outside of those that the node's own clients get (sysctl net.ipv4.ip_local_port_range); may change at every start, and Services keep what they have")
	f.StringVar(&flags.PolicyEstablished, cluster.FlagPolicyEstablished, "", "what becomes of established flows when network policies change: judge (they are judged anew; the default) or keep (they go on); annotations of namespaces and pods go before it; may change at every start")
	f.StringVar(&flags.LBMode, cluster.FlagLBMode, "", "how clients outside, who ask a Service at one node, reach a pod of another: snat (in the node's name, answers come back by it; the default) or dsr (as themselves, and the pod's node answers them directly); all nodes must be of a release that has this flag; may change at every start")
	f.IntVar(&flags.Port, cluster.FlagPort, flags.Port, "port of the API server")
	f.IntVar(&flags.EtcdPort, cluster.FlagEtcdPort, flags.EtcdPort, "port of etcd on loopback; the next one is its peers'")
	fixed(cmd, cluster.FlagLBMode, cluster.LBModeSNAT, cluster.LBModeDSR)
	fixed(cmd, cluster.FlagIPFamily, "ipv4", "ipv6", "dual")
	fixed(cmd, cluster.FlagRouting, cluster.RoutingVXLAN, cluster.RoutingNative)
	fixed(cmd, cluster.FlagPolicyEstablished, cluster.PolicyJudge, cluster.PolicyKeep)
	fixed(cmd, cluster.FlagXDP, xdpModes...)
	return cmd
}

// sizeFlags are those of the tables of Services.
func sizeFlags(f *pflag.FlagSet, frontends, backends *int, more string) {
	f.IntVar(frontends, bpf.FlagMaxFrontends, 0, fmt.Sprintf("how many addresses and ports of Services a node holds: each ClusterIP, NodePort and external one of each Service port (%d)%s", bpf.DefaultMaxFrontends, more))
	f.IntVar(backends, bpf.FlagMaxBackends, 0, fmt.Sprintf("how many backends of Services a node holds; those of its own pods count twice (%d)%s", bpf.DefaultMaxBackends, more))
}

// xdpFlag is that of the uplinks' drivers.
func xdpFlag(f *pflag.FlagSet, mode *bpf.XDPMode, more string) {
	f.Func(cluster.FlagXDP, "where packets for backends of other nodes, and their answers, go on at the driver of the interface, with native routing: off, auto (drivers that can, but no veth), or native (all but bridges, which have none; one of the node's that can't is an error) (off)"+more, func(v string) error {
		*mode = bpf.XDPMode(v)
		return mode.Check()
	})
}

// xdpModes are what that flag may say.
var xdpModes = []string{string(bpf.XDPOff), string(bpf.XDPAuto), string(bpf.XDPNative)}

// nodeFlags are those of a single node.
func nodeFlags(f *pflag.FlagSet, flags *cluster.Settings) {
	f.StringVar(&flags.NodeName, cluster.FlagNodeName, "", "name of the node (the host's)")
	f.Func(cluster.FlagNodeIP, "address of the node, or two of different families with a comma between (those of the way to the default route, or to the API server)", into(&flags.NodeAddrs, cluster.ParseAddrs))
	f.StringVar(&flags.ResolvConf, cluster.FlagResolvConf, flags.ResolvConf, "the node's resolv.conf: who is asked for names outside of the cluster; may change at every start")
	sizeFlags(f, &flags.MaxFrontends, &flags.MaxBackends, "; may change at every start")
	f.IntVar(&flags.MaxPolicyPeers, bpf.FlagMaxPolicyPeers, 0, fmt.Sprintf("how many addresses, and how many blocks, a node's network policies tell apart (%d); may change at every start", bpf.DefaultMaxPolicyPeers))
	f.IntVar(&flags.MaxPolicyRules, bpf.FlagMaxPolicyRules, 0, fmt.Sprintf("how many answers, and how many ranges of ports, the rules of a node's network policies come to (%d); may change at every start", bpf.DefaultMaxPolicyRules))
	f.StringVar(&flags.Healthz, cluster.FlagHealthz, "", "where load balancers ask for the node's health: IP:port, :port, or none (port 10256 of the node's addresses and of loopback); may change at every start")
	f.IntVar(&flags.Flows, cluster.FlagFlows, 0, fmt.Sprintf("how many connections the node can follow at a time, such as 500000, and as many other flows; some 300 bytes of kernel memory each (%d); may change at every start, and those that there are live on", bpf.DefaultFlows))
	f.BoolVar(&flags.Recording.On, cluster.FlagRecordFlows, false, "record the flows of the node's pods, for `strake policy flows`; may change at every start")
	f.Int64Var(&flags.Recording.Size, cluster.FlagRecordSize, 0, fmt.Sprintf("MiB that the record of flows may take of the disk (%d); may change at every start", flows.DefaultSize>>20))
	f.DurationVar(&flags.Recording.Age, cluster.FlagRecordAge, 0, fmt.Sprintf("how long the record of flows goes back, where its size lets it (%v); may change at every start", flows.DefaultAge))
	xdpFlag(f, &flags.XDP, "; may change at every start")
	f.StringVar(&flags.Metrics, cluster.FlagMetrics, "", "where metrics of the node's network are served: IP:port, :port for loopback, or none (port 10249 of loopback); may change at every start")
}

// ranges is a flag of prefixes with commas between. None, or kube-proxy's word primary, stands for the primary addresses.
func ranges(to *[]netip.Prefix) func(string) error {
	return func(v string) error {
		if v == "" || v == "primary" {
			*to = nil
			return nil
		}
		for text := range strings.SplitSeq(v, ",") {
			r, err := netip.ParsePrefix(strings.TrimSpace(text))
			if err != nil {
				return err
			}
			*to = append(*to, r.Masked())
		}
		return nil
	}
}

// into is a flag whose value a parser reads.
func into[T any](to *T, parse func(string) (T, error)) func(string) error {
	return func(v string) (err error) {
		*to, err = parse(v)
		return err
	}
}

func downCommand(place places) *cobra.Command {
	var purge bool
	cmd := &cobra.Command{
		Use:     "down",
		Short:   "Stop the cluster on this machine, or the node that has joined one",
		Example: "  strake down\n  strake down --purge",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := place()
			if err != nil {
				return err
			}
			return cluster.Down(cmd.Context(), l, purge, cmd.OutOrStdout())
		},
	}
	cmd.Flags().BoolVar(&purge, "purge", false, "remove all data as well")
	return cmd
}

func statusCommand(place places) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Show how the cluster on this machine is",
		Long:    "Shows processes, nodes, pods and what the datapath has loaded. Exit code: 0, or 1 if the cluster is not ready, or not there.",
		Example: "  strake status\n  strake status -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := place()
			if err != nil {
				return err
			}
			s, err := cluster.Inspect(cmd.Context(), l)
			if err != nil {
				return err
			}
			if err := show(cmd.OutOrStdout(), output, s, s.Print); err != nil || s.Ready {
				return err
			}
			return exitError{code: 1}
		},
	}
	outputFlag(cmd, &output)
	return cmd
}

func imageCommand(place places) *cobra.Command {
	var output string
	image := &cobra.Command{Use: "image", Short: "Images of the node"}
	load := &cobra.Command{
		Use:     "import FILE.tar",
		Short:   "Load an OCI or docker image archive into every node on this machine",
		Example: "  strake image import app.tar\n  strake image import app.tar -o json",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := place()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), 5*time.Minute)
			defer cancel()
			names, elsewhere, err := cluster.ImportImage(ctx, l, args[0])
			if err != nil {
				return err
			}
			for _, n := range elsewhere {
				fmt.Fprintf(cmd.ErrOrStderr(), "node %s is on another machine: import the image there as well\n", n)
			}
			return show(cmd.OutOrStdout(), output, map[string]any{"images": names}, func(w io.Writer) {
				for _, n := range names {
					fmt.Fprintln(w, n)
				}
			})
		},
	}
	outputFlag(load, &output)
	image.AddCommand(load)
	return image
}

func serverCommand(place places) *cobra.Command {
	set := apiserver.NewSettings()
	cmd := &cobra.Command{
		Use:   "server",
		Short: "Run the control plane: etcd, API server, controllers, scheduler",
		Long: `Runs the control plane in the foreground, with the settings that strake up left in the data folder, or the defaults.

The API server's flags have the names that kube-apiserver's have. They can also stand in the file server.flags of the data folder, one in a line,
with or without the leading dashes; so they hold for strake up too. What the command line says comes after.`,
		Example: `  strake server --data-dir /var/lib/strake
  strake server --audit-policy-file /etc/strake/audit.yaml --audit-log-path /var/log/strake/audit.log
  echo encryption-provider-config=/etc/strake/encryption.yaml >> /var/lib/strake/server.flags`,
		Args: cobra.NoArgs,
	}
	set.AddFlags(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		l, s, err := cluster.Open(place, "server")
		if err != nil {
			return err
		}
		if err := fileFlags(cmd.Flags(), l.ServerFlags()); err != nil {
			return err
		}
		if err := set.Check(); err != nil {
			return err
		}
		return cluster.RunServer(cmd.Context(), l, s, set)
	}
	return cmd
}

// fileFlags sets the flags of a file, one in a line, that the command line does not set. A file that is not there has none.
func fileFlags(fs *pflag.FlagSet, path string) error {
	data, err := os.ReadFile(path)
	if errors.Is(err, iofs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	given := map[string]bool{}
	fs.Visit(func(f *pflag.Flag) { given[f.Name] = true })
	for i, line := range strings.Split(string(data), "\n") {
		line = strings.TrimLeft(strings.TrimSpace(line), "-")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if !ok {
			value = "true"
		}
		f := fs.Lookup(name)
		if f == nil || name == "data-dir" {
			return fmt.Errorf("%s, line %d: no flag of strake server is named %q; strake server --help lists them", path, i+1, name)
		}
		if given[name] {
			continue
		}
		if err := fs.Set(name, value); err != nil {
			return fmt.Errorf("%s, line %d: %w", path, i+1, err)
		}
	}
	return nil
}

func containerdCommand(place places) *cobra.Command {
	return &cobra.Command{
		Use:     "containerd",
		Short:   "Run the node's own containerd",
		Long:    "Writes the configuration of the node's containerd and becomes it. The machine's containerd is not touched.",
		Example: "  strake containerd --data-dir /var/lib/strake",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			l, _, err := cluster.Open(place, "containerd")
			if err != nil {
				return err
			}
			return containerd.Exec(l)
		},
	}
}

func demoCommand() *cobra.Command {
	var listen, url string
	var interval time.Duration
	var count int
	cmd := &cobra.Command{Use: "demo", Short: "The programs of the demo's containers", Hidden: true}
	echo := &cobra.Command{Use: "echo", Short: "Serve HTTP and tell the pod's name", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return demo.ServeEcho(cmd.Context(), listen)
	}}
	echo.Flags().StringVar(&listen, "listen", ":8080", "address to serve on")
	client := &cobra.Command{Use: "client", Short: "Call a URL in a loop", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return demo.Call(cmd.Context(), url, interval, count, cmd.OutOrStdout())
	}}
	client.Flags().StringVar(&url, "url", "http://echo/", "what to call")
	client.Flags().DurationVar(&interval, "interval", time.Second, "pause between calls")
	client.Flags().IntVar(&count, "count", 0, "calls to make (0: without an end)")
	cmd.AddCommand(echo, client)
	return cmd
}
