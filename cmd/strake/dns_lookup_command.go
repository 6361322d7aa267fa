package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	mdns "github.com/miekg/dns"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cmd/strake/cluster"
	"github.com/strake-io/strake/cmd/strake/dnstop"
	"github.com/strake-io/strake/cmd/strake/doctor"
	"github.com/strake-io/strake/cmd/strake/kubeproxy"
	"github.com/strake-io/strake/dns"
	"github.com/strake-io/strake/kubelet/podnet"
)

// lookedUp is one question, who answers it, and what.
type lookedUp struct {
	Name    string   `json:"name"`
	Type    string   `json:"type"`
	Layer   string   `json:"layer"` // kernel or resolver; cluster DNS where another one runs
	Why     string   `json:"why"`
	Code    string   `json:"code"`
	Records []string `json:"records,omitempty"`
	Micros  int64    `json:"resolverMicroseconds"`
}

func dnsLookupCommand(place places) *cobra.Command {
	var from, output string
	var types []string
	cmd := &cobra.Command{
		Use:   "lookup NAME",
		Short: "Tell who answers for a name on this node, why, and what",
		Long: `Tells for each question that a pod's resolver would ask whether the kernel of this node answers it or leaves it to the resolver in user
space, and by which rule; then what the resolver says. With --from the pod's search list and ndots are used as its resolv.conf has them; without
it the name is asked as it is.`,
		Example:           "  strake dns lookup web.default.svc.cluster.local\n  strake dns lookup example.com --from demo/client\n  strake dns lookup _http._tcp.web.default.svc.cluster.local --type SRV -o json",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: once(named(func(context.Context) ([]string, error) { return clusterNames(place) })),
		RunE: func(cmd *cobra.Command, args []string) error {
			for i, t := range types {
				if types[i] = strings.ToUpper(t); mdns.StringToType[types[i]] == 0 {
					return fmt.Errorf("--type %s is no type of records", t)
				}
			}
			if _, ok := mdns.IsDomainName(args[0]); !ok {
				return fmt.Errorf("%q is no domain name", args[0])
			}
			node, err := entered(place)
			if err != nil {
				return err
			}
			to, err := askedOn(node)
			if err != nil {
				return err
			}
			out, err := lookUp(cmd.Context(), node, to, args[0], types, from)
			if err != nil {
				return err
			}
			return show(cmd.OutOrStdout(), output, out, func(w io.Writer) { printLookups(w, out) })
		},
	}
	f := cmd.Flags()
	f.StringSliceVarP(&types, "type", "t", []string{"A", "AAAA"}, "types of records; repeatable")
	f.StringVar(&from, "from", "", "[NAMESPACE/]POD whose search list is used")
	fixed(cmd, "type", "A", "AAAA", "SRV", "PTR", "CNAME", "TXT")
	completed(cmd, "from", podNames(place))
	outputFlag(cmd, &output)
	return cmd
}

// clusterNames are those that the kernel has addresses of.
func clusterNames(place places) ([]string, error) {
	l, err := place()
	if err != nil {
		return nil, err
	}
	rows, err := bpf.ReadNames(l.BPF())
	var out []string
	for _, r := range rows.Names {
		out = append(out, r.Name)
	}
	return out, err
}

// asked is who is asked for names on a node if the kernel does not answer.
type asked struct {
	cluster.Settings
	server netip.AddrPort
	layer  string
}

func askedOn(node doctor.Node) (asked, error) {
	l := node.Layout
	if !node.ProxyOnly {
		s, _, err := cluster.Load(l)
		if err == nil && len(s.DNSAddrs) == 0 {
			err = errors.New("the node has no address of the cluster DNS")
		}
		if err != nil {
			return asked{}, err
		}
		return asked{s, netip.AddrPortFrom(s.DNSAddrs[0], 53), dnstop.Resolver}, nil
	}
	p, _, err := kubeproxy.Load(l)
	if err != nil {
		return asked{}, err
	}
	if p.Names.Zone == "" {
		return asked{}, errors.New("this node serves Services alone: `strake agent --only proxy --dns` answers names, too")
	}
	servers, err := bpf.ReadNameServers(l.BPF())
	if err == nil && len(servers) == 0 {
		err = fmt.Errorf("the cluster's DNS, Service %s, has no addresses", p.Names.Service)
	}
	if err != nil {
		return asked{}, err
	}
	out := asked{server: servers[0], layer: "cluster DNS"}
	out.Zone = p.Names.Zone
	return out, nil
}

// lookUp asks as a resolver does: one name of the search list after the other, until one has records.
func lookUp(ctx context.Context, node doctor.Node, s asked, name string, types []string, from string) ([]lookedUp, error) {
	rows, err := bpf.ReadNames(node.Layout.BPF())
	if err != nil {
		return nil, err
	}
	kernel := dns.NewKernelNames(s.Zone, rows)
	names := []string{mdns.Fqdn(name)}
	direct := "" // why the kernel is not asked at all
	if from != "" {
		if node.ProxyOnly {
			return nil, errors.New("--from: pods of this node have their search list of another kubelet; ask for whole names without it")
		}
		pod, err := podOf(ctx, node, from)
		if err != nil {
			return nil, err
		}
		var servers []string
		for _, a := range s.DNSAddrs {
			servers = append(servers, a.String())
		}
		conf, err := podnet.Config{ClusterDNS: servers, ClusterDomain: s.Zone, ResolvConf: s.ResolvConf}.DNSConfig(pod)
		if err != nil {
			return nil, err
		}
		names = searched(name, conf.Searches, conf.Options)
		switch {
		case pod.Spec.HostNetwork:
			direct = "the pod has the host's network, whose queries don't pass the kernel's answers"
		case len(conf.Servers) == 0 || !slices.Contains(servers, conf.Servers[0]):
			direct = "the pod asks " + strings.Join(conf.Servers, ", ") + " and not the cluster DNS; this is what the cluster DNS would say"
		}
	}
	client := &mdns.Client{Timeout: 5 * time.Second}
	server := s.server.String()
	var out []lookedUp
	for _, n := range names {
		found := false
		for _, t := range types {
			qtype := mdns.StringToType[t]
			one := lookedUp{Name: n, Type: t, Layer: s.layer}
			answers, why := kernel.Explain(n, qtype, 0)
			if one.Why = why; direct != "" {
				one.Why = direct
			} else if answers {
				one.Layer = dnstop.Kernel
			}
			m, took, err := client.ExchangeContext(ctx, new(mdns.Msg).SetQuestion(n, qtype), server)
			if err == nil && m.Truncated {
				m, took, err = (&mdns.Client{Net: "tcp", Timeout: client.Timeout}).ExchangeContext(ctx, new(mdns.Msg).SetQuestion(n, qtype), server)
			}
			if one.Micros = took.Microseconds(); err != nil {
				one.Code = "no answer: " + err.Error()
			} else {
				one.Code = mdns.RcodeToString[m.Rcode]
				for _, rr := range m.Answer {
					one.Records = append(one.Records, strings.Join(strings.Fields(strings.TrimPrefix(rr.String(), n)), " "))
				}
				found = found || len(m.Answer) > 0 && m.Rcode == mdns.RcodeSuccess
			}
			out = append(out, one)
		}
		if found {
			break
		}
	}
	return out, nil
}

// searched are the names that a resolver tries for a name (resolv.conf(5)).
func searched(name string, search, options []string) []string {
	if strings.HasSuffix(name, ".") {
		return []string{name}
	}
	dots := 1
	for _, o := range options {
		if text, ok := strings.CutPrefix(o, "ndots:"); ok {
			if n, err := strconv.Atoi(text); err == nil {
				dots = n
			}
		}
	}
	var out []string
	for _, s := range search {
		out = append(out, mdns.Fqdn(strings.TrimSuffix(name+"."+s, ".")))
	}
	if strings.Count(name, ".") >= dots {
		return append([]string{name + "."}, out...)
	}
	return append(out, name+".")
}

func podOf(ctx context.Context, node doctor.Node, from string) (*corev1.Pod, error) {
	namespace, name, ok := strings.Cut(from, "/")
	if !ok {
		namespace, name = "default", from
	}
	api, err := node.Services(ctx)
	if err != nil {
		return nil, err
	}
	for i := range api.Pods {
		if p := &api.Pods[i]; p.Namespace == namespace && p.Name == name {
			return p, nil
		}
	}
	return nil, fmt.Errorf("there is no pod %s/%s, or this node may not see it", namespace, name)
}

func printLookups(to io.Writer, list []lookedUp) {
	w := tabwriter.NewWriter(to, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tTYPE\tLAYER\tANSWER\tWHY")
	for _, l := range list {
		answer := l.Code
		if len(l.Records) > 0 {
			answer = l.Records[0]
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", l.Name, l.Type, l.Layer, answer, l.Why)
		for i := 1; i < len(l.Records); i++ {
			fmt.Fprintf(w, "\t\t\t%s\t\n", l.Records[i])
		}
	}
	w.Flush()
}
