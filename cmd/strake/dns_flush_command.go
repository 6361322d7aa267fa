package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/dns"
)

// flushed is what came of a flush.
type flushed struct {
	Name string `json:"name"` // "." for all
	dns.Forgotten
	Agent bool `json:"agent"` // it runs; without it there is the kernel's part alone
}

func dnsFlushCommand(place places) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "flush [NAME]",
		Short: "Forget what servers outside have said of names, on this node",
		Long: `Makes the kernel and the resolver of this node forget what servers outside of the cluster have said: of NAME and of all names below it, or of all
names. Who asks next is answered by those servers. Names of the cluster are not remembered but known, and follow the API by themselves.

Other servers in the node's resolv.conf, or another configuration, flush by themselves. What pods remember themselves stays.`,
		Example:           "  strake dns flush\n  strake dns flush example.com\n  strake dns flush www.example.com -o json",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: once(named(func(context.Context) ([]string, error) { return rememberedNames(place) })),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := "."
			if len(args) > 0 {
				var err error
				if name, err = dns.Forgettable(args[0]); err != nil {
					return err
				}
			}
			l, err := place()
			if err != nil {
				return err
			}
			node, err := examined(l)
			if err != nil {
				return err
			}
			if node.ProxyOnly {
				return errors.New("this node answers names beside another cluster DNS, and remembers nothing of outside: flush that DNS")
			}
			out, err := flush(cmd.Context(), l, name)
			if err != nil {
				return err
			}
			return show(cmd.OutOrStdout(), output, out, func(w io.Writer) { printFlushed(w, out) })
		},
	}
	outputFlag(cmd, &output)
	return cmd
}

// flush asks the agent; while none runs, the kernel still answers by what the last one has left there.
func flush(ctx context.Context, l layout.Layout, name string) (flushed, error) {
	out := flushed{Name: name, Agent: true}
	var err error
	out.Forgotten, err = dns.AskToForget(ctx, l.DNSForgetSocket(), name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		out.Agent = false
		out.Kernel, err = bpf.ForgetOutside(l.BPF(), name)
	}
	return out, err
}

func printFlushed(w io.Writer, f flushed) {
	of := "all names"
	if f.Name != "." {
		of = f.Name + " and names below it"
	}
	fmt.Fprintf(w, "forgotten of %s: %d answers in the kernel, %d in the resolver\n", of, f.Kernel, f.Resolver)
	if !f.Agent {
		fmt.Fprintln(w, "the agent does not run: the kernel's part is all that there is")
	}
}

// rememberedNames are those that the kernel has answers of.
func rememberedNames(place places) ([]string, error) {
	l, err := place()
	if err != nil {
		return nil, err
	}
	held, err := bpf.ReadOutside(l.BPF())
	var out []string
	for _, o := range held {
		out = append(out, o.Name)
	}
	return out, err
}
