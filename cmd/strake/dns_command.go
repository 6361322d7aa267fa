package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/strake-io/strake/cmd/strake/dnsserve"
	"github.com/strake-io/strake/dns"
)

func dnsCommand(place places) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dns",
		Short: "Cluster DNS: serve it alone, look at what answers",
	}
	cmd.AddCommand(dnsServeCommand(), dnsTranslateCommand(), dnsLookupCommand(place), dnsTopCommand(place), dnsFlushCommand(place))
	return cmd
}

func dnsServeCommand() *cobra.Command {
	var c dnsserve.Config
	var file, core string
	var partly bool
	listen := []string{":53"}
	flags := dns.Config{}
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Answer DNS for a cluster, as a process without rights, with any API server",
		Long: `Answers names of a cluster's Services, endpoints and pods, over UDP and TCP, from what its API server says, and asks upstream servers for all
other names. It needs no root, but for ports below 1024, and no kernel's help: a plain cluster DNS. While the API server is away it answers from what
it has seen.

It reads Services, EndpointSlices and Namespaces (and Pods with --pods verified). The configuration is flags, or a file as docs/dns.md has it,
or a Corefile, or a ConfigMap with one of both that is followed. Flags count before files.`,
		Example: `  strake dns serve --kubeconfig ~/.kube/config --listen 127.0.0.1:1053
  strake dns serve --kubeconfig admin.conf --listen 10.0.0.2:53 --listen '[fd00::2]:53' --zone cluster.local --zone old.example
  strake dns serve --kubeconfig admin.conf --listen :1053 --upstream 192.0.2.53 --upstream 192.0.2.54:5353
  strake dns serve --kubeconfig admin.conf --listen :1053 --stub corp.example=192.0.2.7,192.0.2.8 --host 192.0.2.9=registry.example,git.example
  strake dns serve --kubeconfig admin.conf --listen :1053 --corefile Corefile
  strake dns serve --config-map kube-system/coredns --health :8080 --ready :8181 --metrics :9153 --lameduck 5s`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, text := range listen {
				a, err := listenAddr(text)
				if err != nil {
					return err
				}
				c.Listen = append(c.Listen, a)
			}
			if file != "" && core != "" {
				return errors.New("--config and --corefile: one is to be given")
			}
			cfg, err := readDNSConfig(cmd, file, core, partly)
			if err != nil {
				return err
			}
			c.DNS = flags.Over(cfg)
			if err := c.DNS.Check(); err != nil {
				return err
			}
			if namespace, name, ok := strings.Cut(c.ConfigMap, "/"); c.ConfigMap != "" && (!ok || namespace == "" || name == "") {
				return fmt.Errorf("--config-map %s is not NAMESPACE/NAME", c.ConfigMap)
			}
			return dnsserve.Run(cmd.Context(), c)
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.Kubeconfig, "kubeconfig", "", "way to the API server (in a pod: its ServiceAccount's)")
	f.StringSliceVar(&listen, "listen", listen, "address to answer at: IP:port, IP, or :port for all addresses; repeatable")
	f.StringSliceVar(&flags.Zones, "zone", nil, "zone of the cluster; repeatable: addresses have their names in the first (cluster.local)")
	f.StringSliceVar(&flags.Upstream.Servers, "upstream", nil, "who is asked for other names: IP, IP:port, or the path of a resolv.conf, which is followed; repeatable (/etc/resolv.conf)")
	f.StringVar(&flags.Upstream.Policy, "upstream-policy", "", "in which order: sequential, random or round_robin (sequential)")
	f.Func("stub", "ZONE=SERVER[,SERVER]: servers of a zone of their own; repeatable", func(v string) error {
		zone, servers, ok := strings.Cut(v, "=")
		if !ok {
			return errors.New("want ZONE=SERVER[,SERVER]")
		}
		flags.Stubs = append(flags.Stubs, dns.Stub{Zone: zone, Upstream: dns.Upstream{Servers: strings.Split(servers, ",")}})
		return nil
	})
	f.Func("host", "IP=NAME[,NAME]: names of an address; repeatable", func(v string) error {
		ip, names, ok := strings.Cut(v, "=")
		if !ok {
			return errors.New("want IP=NAME[,NAME]")
		}
		flags.Hosts = append(flags.Hosts, dns.Host{IP: ip, Names: strings.Split(names, ",")})
		return nil
	})
	f.Func("rewrite", "NAME=NAME: the first is answered as the second; repeatable", func(v string) error {
		from, to, ok := strings.Cut(v, "=")
		if !ok {
			return errors.New("want NAME=NAME")
		}
		flags.Rewrites = append(flags.Rewrites, dns.Rewrite{From: from, To: to})
		return nil
	})
	f.Uint32Var(&flags.TTL, "ttl", 0, "seconds that the cluster's records live (30)")
	f.StringVar(&flags.Pods, "pods", "", "names of pods' addresses: insecure (their namespace exists), verified (and a pod has the address) or disabled (insecure)")
	f.BoolVar(&flags.Log, "log", false, "a line for each query")
	f.StringVar(&file, "config", "", "file with the configuration (docs/dns.md)")
	f.StringVar(&core, "corefile", "", "Corefile with the configuration")
	f.BoolVar(&partly, "corefile-partly", false, "go on if something of the Corefile is not done, and tell it")
	f.StringVar(&c.ConfigMap, "config-map", "", "NAMESPACE/NAME of a ConfigMap with config.yaml or Corefile, which is followed")
	f.StringVar(&c.Health, "health", "", "where /health is served: IP:port or :port (nowhere)")
	f.StringVar(&c.Ready, "ready", "", "where /ready is served: 200 once all of the cluster was seen (nowhere)")
	f.StringVar(&c.Metrics, "metrics", "", "where /metrics is served (nowhere)")
	f.DurationVar(&c.Lameduck, "lameduck", 0, "how long it goes on answering when it is told to end (SIGTERM), not ready any more")
	fixed(cmd, "pods", dns.PodsInsecure, dns.PodsVerified, dns.PodsDisabled)
	fixed(cmd, "upstream-policy", dns.PolicySequential, dns.PolicyRandom, dns.PolicyRoundRobin)
	return cmd
}

// listenAddr reads IP:port, IP (port 53), or :port.
func listenAddr(text string) (netip.AddrPort, error) {
	if port, ok := strings.CutPrefix(text, ":"); ok {
		text = "0.0.0.0:" + port // of both families where there are both
	}
	if a, err := netip.ParseAddr(text); err == nil {
		return netip.AddrPortFrom(a, 53), nil
	}
	a, err := netip.ParseAddrPort(text)
	if err != nil || a.Port() == 0 {
		return a, fmt.Errorf("--listen %s is none of IP:port, IP and :port", text)
	}
	return a, nil
}

// readDNSConfig reads a file, if one is named.
func readDNSConfig(cmd *cobra.Command, file, core string, partly bool) (dns.Config, error) {
	path := file + core
	if path == "" {
		return dns.Config{}, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return dns.Config{}, err
	}
	if file != "" {
		c, err := dns.ParseConfig(text)
		if err != nil {
			err = fmt.Errorf("%s: %w", path, err)
		}
		return c, err
	}
	c, skipped, err := dns.FromCorefile(string(text))
	if err != nil {
		return c, fmt.Errorf("%s: %w", path, err)
	}
	for _, s := range skipped {
		fmt.Fprintf(cmd.ErrOrStderr(), "not done: %s: %s\n", path, s)
	}
	if len(skipped) > 0 && !partly {
		return c, fmt.Errorf("%s: what is told above is not done; go on without it with --corefile-partly", path)
	}
	return c, nil
}

func dnsTranslateCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "translate COREFILE",
		Short: "Write a Corefile's configuration as config.yaml, and tell what of it is not done",
		Example: `  strake dns translate Corefile > config.yaml
  kubectl -n kube-system get cm coredns -o jsonpath='{.data.Corefile}' | strake dns translate /dev/stdin`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := readDNSConfig(cmd, "", args[0], true)
			if err != nil {
				return err
			}
			text, err := yaml.Marshal(c)
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(text)
			return err
		},
	}
}
