package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cmd/strake/dnstop"
	"github.com/strake-io/strake/cmd/strake/doctor"
	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/cmd/strake/monitor"
	"github.com/strake-io/strake/dns"
	"github.com/strake-io/strake/netpol/flows"
)

func dnsTopCommand(place places) *cobra.Command {
	var output, pod, name string
	c := dnstop.Config{}
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Show which names this node's pods ask for, who asks, and who answers",
		Long: `Shows, every --interval anew, what pods of this node ask the cluster DNS for: how many questions, how many of them the kernel answers and how
many are NXDOMAIN, how long answers take, and the names and the clients that ask most. With --log it is a line for each question.

The kernel's time is that of its program alone, the resolver's begins when it has read the question. What a node that runs beside another cluster DNS
(strake agent --only proxy --dns) passes on to that has no time and no code here: who answers does not tell.

Nothing is counted while nobody looks. One at a time can look at a node. Questions that come faster than they are read are in no
row; how many is said.`,
		Example: "  strake dns top\n  strake dns top --for 10s -o json\n  strake dns top --sort nxdomain --rows 50 --pod demo/client\n  strake dns top --log --name example.com",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dnstop.Orders[c.Order] == nil {
				return fmt.Errorf("--sort %s is none of %s", c.Order, strings.Join(slices.Sorted(maps.Keys(dnstop.Orders)), ", "))
			}
			if c.Interval <= 0 || c.For < 0 || c.Rows < 0 {
				return errors.New("--interval is longer than nothing, and --for and --rows are not negative")
			}
			if pod != "" && strings.Count(pod, "/") != 1 {
				return fmt.Errorf("--pod %s is not NAMESPACE/NAME", pod)
			}
			c.JSON = output == "json"
			node, err := entered(place)
			if err != nil {
				return err
			}
			klog.SetOutput(cmd.ErrOrStderr())
			names := monitor.NewNames()
			if err := namePods(cmd.Context(), node, names); err != nil {
				fmt.Fprintln(cmd.ErrOrStderr(), "strake:", err)
			}
			of := func(a netip.Addr) string {
				if p := names.Of(a, 0); p != nil && p.Pod != "" {
					return p.Pod
				}
				return a.String()
			}
			c.Client = func(q bpf.Question) string { return of(q.Client) }
			c.Resolved = func(q dns.Query) string { return of(q.Client) }
			c.Clock = func() (time.Time, time.Duration) { return time.Now(), bpf.Monotonic() }
			c.Takes = func(q dnstop.Question) bool {
				return (pod == "" || flows.OfPod(q.Client, pod, names.HasPod(pod))) && (name == "" || strings.Contains(q.Name, strings.ToLower(name)))
			}
			if info, err := os.Stdout.Stat(); err == nil && c.For == 0 {
				c.Clear = info.Mode()&fs.ModeCharDevice != 0
			}
			questions, err := bpf.OpenQuestions(node.Layout.BPF())
			if err != nil {
				return err
			}
			c.Kernel = questions
			if !node.ProxyOnly {
				if c.Resolver, err = resolverOf(node.Layout); err != nil {
					fmt.Fprintln(cmd.ErrOrStderr(), "strake:", err)
				}
			}
			return errors.Join(dnstop.Run(cmd.Context(), c, cmd.OutOrStdout()), questions.Close())
		},
	}
	f := cmd.Flags()
	f.DurationVar(&c.Interval, "interval", 2*time.Second, "time that each report is of")
	f.DurationVar(&c.For, "for", 0, "one report of this time, and the end (0: until Ctrl-C)")
	f.IntVar(&c.Rows, "rows", 20, "names, and clients, that are shown")
	f.StringVar(&c.Order, "sort", "queries", "which come first: "+strings.Join(slices.Sorted(maps.Keys(dnstop.Orders)), ", "))
	f.BoolVar(&c.Log, "log", false, "a line for each question, and no reports")
	f.StringVar(&pod, "pod", "", "only questions of this pod, or, if none is called so, of this workload's pods: NAMESPACE/NAME")
	f.StringVar(&name, "name", "", "only questions for names that this is part of")
	fixed(cmd, "sort", slices.Sorted(maps.Keys(dnstop.Orders))...)
	completed(cmd, "pod", podNames(place))
	outputFlag(cmd, &output)
	return cmd
}

// namePods learns who has which address; an agent beside another plugin may not list pods.
func namePods(ctx context.Context, node doctor.Node, names *monitor.Names) error {
	if node.ProxyOnly {
		return nil
	}
	client, err := clientOf(node)
	if err != nil {
		return err
	}
	return names.Follow(ctx, client, 5*time.Second)
}

// resolverOf connects to the resolver of a node's agent.
func resolverOf(l layout.Layout) (net.Conn, error) {
	conn, err := net.Dial("unix", l.DNSSocket())
	if err != nil {
		return nil, fmt.Errorf("the agent does not run: what the kernel does not answer, nobody does (%w)", err)
	}
	return conn, nil
}
