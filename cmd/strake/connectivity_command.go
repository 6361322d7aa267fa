package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/cmd/strake/connectivity"
	"github.com/strake-io/strake/cmd/strake/demo"
)

func connectivityCommand(place places) *cobra.Command {
	cmd := &cobra.Command{Use: "connectivity", Short: "Test the cluster's network"}
	cmd.AddCommand(connectivityTestCommand(place), serveCommand(), answerCommand())
	return cmd
}

func connectivityTestCommand(place places) *cobra.Command {
	var output string
	var timeout time.Duration
	c := connectivity.Config{Image: demo.Image}
	cmd := &cobra.Command{
		Use:   "test",
		Short: "Test every path between pods, nodes, Services and names, in each family",
		Long: `Deploys pods on every node, in a namespace of their own, and tests every path: between pods and nodes, by Services, NodePorts and
names, a pod to itself, with packets of full size and with larger ones, in each family that the cluster has. It prints a matrix and removes
its pods again, also on Ctrl-C.

Exit code: 0 if every path works, 1 if one does not or the test could not be made.`,
		Example: "  strake connectivity test\n  strake connectivity test --perf\n  strake connectivity test --outside example.com:443 -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for i, f := range c.Families {
				switch strings.ToLower(f) {
				case "ipv4":
					c.Families[i] = "IPv4"
				case "ipv6":
					c.Families[i] = "IPv6"
				default:
					return fmt.Errorf("--families %s: there are ipv4 and ipv6", f)
				}
			}
			if c.Outside != "" {
				if host, port, err := net.SplitHostPort(c.Outside); err != nil || host == "" || !isPort(port) {
					return fmt.Errorf("--outside %s: name a host and a port, such as example.com:443 or [2001:db8::1]:443", c.Outside)
				}
			}
			l, err := place()
			if err != nil {
				return err
			}
			c.REST, err = clientcmd.BuildConfigFromFlags("", l.AdminKubeconfig())
			if errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("%s is not there: run the test on the machine of the control plane, where `strake up` was run", l.AdminKubeconfig())
			}
			if err != nil {
				return err
			}
			c.REST.QPS, c.REST.Burst = -1, -1
			if err := enterNode(l); err != nil {
				return err
			}
			c.Progress = cmd.ErrOrStderr()
			klog.LogToStderr(false) // what libraries say of connections that are ended
			klog.SetOutput(io.Discard)
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			r, err := connectivity.Run(ctx, c)
			if r.Checks != nil {
				err = errors.Join(err, show(cmd.OutOrStdout(), output, r, r.Print))
			}
			if err == nil && !r.OK {
				return exitError{code: 1}
			}
			return err
		},
	}
	f := cmd.Flags()
	f.BoolVar(&c.Perf, "perf", false, "measure throughput and round trips too, beside the path from node to node")
	f.BoolVar(&c.Keep, "keep", false, "leave the pods for a look at them")
	f.StringSliceVar(&c.Families, "families", nil, "test these alone: ipv4, ipv6 (those that all pods have)")
	f.StringVar(&c.Outside, "outside", "", "HOST:PORT outside of the cluster that is to be reached by TCP as well")
	f.DurationVar(&timeout, "timeout", 5*time.Minute, "how long all of it may take")
	fixed(cmd, "families", "ipv4", "ipv6")
	outputFlag(cmd, &output)
	return cmd
}

func isPort(text string) bool {
	n, err := strconv.ParseUint(text, 10, 16)
	return err == nil && n > 0
}

func serveCommand() *cobra.Command {
	var pod string
	var port int
	cmd := &cobra.Command{Use: "serve", Short: "Answer the test's probes, in a pod of the test", Hidden: true, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return connectivity.Serve(cmd.Context(), pod, port)
	}}
	cmd.Flags().StringVar(&pod, "pod", "", "the pod's name")
	cmd.Flags().IntVar(&port, "port", 0, "the port; the next one is used too")
	return cmd
}

func answerCommand() *cobra.Command {
	return &cobra.Command{Use: "answer", Short: "Carry out probes that come on the standard input, in a pod of the test", Hidden: true, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return connectivity.Answer(cmd.Context(), os.Stdin, os.Stdout)
	}}
}
