package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cmd/strake/doctor"
	"github.com/strake-io/strake/cmd/strake/monitor"
)

func monitorCommand(place places) *cobra.Command {
	var all, drops bool
	var output string
	c := monitor.Config{Names: monitor.NewNames()}
	cmd := &cobra.Command{
		Use:   "monitor",
		Short: "Show what becomes of this node's packets: drops, or every verdict",
		Long: `Shows packets as the programs in the kernel judge them, with the names of pods, Services and nodes: those that are dropped, and
connections that are refused; with --all every verdict that is counted (see ` + "`strake status`" + `). A packet is shown as it is after the verdict.

While nobody watches the programs write nothing. One monitor at a time can watch a node. Events that come faster than they are
read are lost; how many is said.`,
		Example: "  strake monitor\n  strake monitor --pod demo/client --all\n  strake monitor --reason drop_spoofed --count 1 -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c.JSON = output == "json"
			if err := monitor.CheckReasons(c.Filter.Reasons); err != nil {
				return err
			}
			if c.Filter.Pod != "" && strings.Count(c.Filter.Pod, "/") != 1 {
				return fmt.Errorf("--pod %s is not NAMESPACE/NAME", c.Filter.Pod)
			}
			for _, r := range c.Filter.Reasons {
				all = all || !strings.HasPrefix(r, "drop_")
			}
			if os.Geteuid() != 0 {
				return errors.New("strake monitor needs root: run it with sudo")
			}
			l, err := place()
			if err != nil {
				return err
			}
			if err := enterNode(l); err != nil {
				return err
			}
			ctx := cmd.Context()
			path, err := doctor.Kubeconfig([]string{l.AdminKubeconfig(), l.Kubeconfig("node-network")})
			if err != nil {
				return err
			}
			klog.SetOutput(cmd.ErrOrStderr())
			rc, err := clientcmd.BuildConfigFromFlags("", path)
			if err == nil {
				var client kubernetes.Interface
				if client, err = kubernetes.NewForConfig(rc); err == nil {
					err = c.Names.Follow(ctx, client, 5*time.Second)
				}
			}
			if err != nil {
				fmt.Fprintln(cmd.ErrOrStderr(), "strake:", err)
			}
			interfaces := &monitor.Interfaces{Read: func() ([]bpf.Endpoint, error) {
				rows, err := bpf.ReadRows(l.BPF())
				return rows.Endpoints, err
			}}
			c.PodAt = func(ifindex int) string {
				if a, ok := interfaces.Addr(ifindex); ok {
					return c.Names.Of(a, 0).Pod
				}
				return ""
			}
			var names map[uint32]bpf.PolicyName
			var read time.Time
			c.PolicyNames = func() map[uint32]bpf.PolicyName {
				if time.Since(read) > time.Second {
					if now, err := bpf.ReadPolicyNames(l.BPF()); err == nil { // else the ones of before, or none
						names = now
					}
					read = time.Now()
				}
				return names
			}
			c.Clock = func() (time.Time, time.Duration) { return time.Now(), bpf.Monotonic() }
			m, err := bpf.OpenMonitor(l.BPF(), all)
			if err != nil {
				return err
			}
			c.Source = m
			fmt.Fprintln(cmd.ErrOrStderr(), "watching; Ctrl-C ends it")
			return errors.Join(monitor.Run(ctx, c, cmd.OutOrStdout(), cmd.ErrOrStderr()), m.Close())
		},
	}
	f := cmd.Flags()
	f.BoolVar(&all, "all", false, "every verdict, not drops alone")
	f.BoolVar(&drops, "drops", false, "drops alone (the default)")
	f.IntVarP(&c.Count, "count", "n", 0, "end after so many events (0: not before Ctrl-C)")
	f.StringVar(&c.Filter.Pod, "pod", "", "only packets to, from or at this pod, or, if none is called so, this workload's pods: NAMESPACE/NAME")
	f.StringSliceVar(&c.Filter.Reasons, "reason", nil, "only events of this reason; repeatable")
	cmd.MarkFlagsMutuallyExclusive("all", "drops")
	fixed(cmd, "reason", bpf.Reasons()...)
	completed(cmd, "pod", podNames(place))
	outputFlag(cmd, &output)
	return cmd
}
