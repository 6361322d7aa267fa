package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cmd/strake/doctor"
	"github.com/strake-io/strake/cmd/strake/serviceview"
)

// drifting is the exit code of a Service that the kernel does not serve as the API says, as the doctor has it.
const drifting = 1

func serviceCommand(place places) *cobra.Command {
	service := &cobra.Command{
		Use:     "service",
		Aliases: []string{"services", "svc"},
		Short:   "Show what this node's kernel holds of Services, beside what the API says",
		Long: `Shows Services as the tables in this node's kernel have them: under which addresses they are asked, which backends they have, and how
often each was chosen. They are compared with what the API says: a difference that lasts is told. Where the API server does not answer, what the
kernel has is shown alone.

Exit code: 0 if all is as it should be, 1 if something differs, 2 if something could not be looked at.`,
	}
	var namespace, output string
	var all bool
	flags := func(cmd *cobra.Command) {
		f := cmd.Flags()
		f.StringVarP(&namespace, "namespace", "n", "", "of this namespace (default)")
		outputFlag(cmd, &output, outputWide)
		completed(cmd, "namespace", serviceNames(place, func(s serviceview.Service) string { return s.Namespace }))
	}
	list := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "A line for each Service",
		Long:    service.Long,
		Example: "  strake service list -A\n  strake service list -n demo -o wide\n  strake service list -A -o json | jq '.[] | select(.drift)'\n  strake service list -A --data-dir /var/lib/strake/nodes/2",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if namespace == "" {
				namespace = "default"
			}
			found, err := readServices(cmd.Context(), place, func(s serviceview.Service) bool { return all || s.Namespace == namespace })
			if err != nil && len(found) == 0 {
				return exitError{2, err}
			}
			return verdict(found, err, show(cmd.OutOrStdout(), output, found, func(w io.Writer) { serviceview.PrintList(w, found, output == outputWide) }))
		},
	}
	flags(list)
	list.Flags().BoolVarP(&all, "all-namespaces", "A", false, "of all namespaces")
	list.MarkFlagsMutuallyExclusive("all-namespaces", "namespace")
	get := &cobra.Command{
		Use:     "get [NAMESPACE/]NAME",
		Short:   "All of one Service: frontends, backends, choices",
		Long:    service.Long,
		Example: "  strake service get echo -n demo\n  strake service get demo/echo -o json",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			space, name, ok := strings.Cut(args[0], "/")
			if !ok {
				space, name = namespace, args[0]
				if space == "" {
					space = "default"
				}
			} else if namespace != "" && namespace != space {
				return fmt.Errorf("%s is not in namespace %s", args[0], namespace)
			}
			found, err := readServices(cmd.Context(), place, func(s serviceview.Service) bool { return s.Namespace == space && s.Name == name })
			if len(found) == 0 && err != nil {
				return exitError{2, err}
			}
			if len(found) == 0 {
				return exitError{2, fmt.Errorf("neither the API nor the kernel has a Service %s/%s", space, name)}
			}
			return verdict(found, err, show(cmd.OutOrStdout(), output, found[0], func(w io.Writer) {
				for _, s := range found { // more than one while a Service is deleted and made anew
					serviceview.PrintOne(w, s)
				}
			}))
		},
		ValidArgsFunction: once(serviceNames(place, func(s serviceview.Service) string {
			if s.Namespace == "default" {
				return s.Name
			}
			return s.Namespace + "/" + s.Name
		})),
	}
	flags(get)
	service.AddCommand(list, get)
	return service
}

func verdict(found []serviceview.Service, notLooked, notShown error) error {
	switch {
	case notShown != nil:
		return notShown
	case notLooked != nil:
		return exitError{2, notLooked}
	case serviceview.Drifted(found):
		return exitError{code: drifting}
	}
	return nil
}

// settle is how long a difference may last: the cluster changes while it is looked at.
const settle = 3 * time.Second

// readServices looks at the Services that are chosen until they are as they should be, or have differed for long enough. Without the API server it
// gives what the kernel has, and the error.
func readServices(ctx context.Context, place places, choose func(serviceview.Service) bool) ([]serviceview.Service, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("looking at a node needs root: run it with sudo")
	}
	node, err := entered(place)
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(settle); ; {
		found, err := lookAtServices(ctx, node)
		found = slices.DeleteFunc(found, func(s serviceview.Service) bool { return !choose(s) })
		if err != nil || !serviceview.Drifted(found) || time.Now().After(deadline) {
			return found, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(settle / 10):
		}
	}
}

func lookAtServices(ctx context.Context, node doctor.Node) ([]serviceview.Service, error) {
	rows, err := bpf.ReadServices(node.Layout.BPF())
	if err != nil {
		return nil, err
	}
	have := make([]bpf.LoadBalancer, len(rows))
	for i, r := range rows {
		have[i] = r.LoadBalancer
	}
	api, apart := node.Services(ctx)
	var found []serviceview.Service
	if apart != nil {
		found = serviceview.Alone(rows)
	} else {
		found = serviceview.Collect(rows, api.Services, api.Slices, api.Want(have))
	}
	held, err := bpf.HeldPorts(have)
	serviceview.AddHeld(found, held)
	serviceview.AddDSR(found, node.DSR)
	return found, errors.Join(apart, err)
}

// serviceNames offers what the API's and the kernel's Services say.
func serviceNames(place places, word func(serviceview.Service) string) cobra.CompletionFunc {
	return named(func(ctx context.Context) ([]string, error) {
		node, err := entered(place)
		if err != nil {
			return nil, err
		}
		found, err := lookAtServices(ctx, node)
		var out []string
		for _, s := range found {
			out = append(out, word(s))
		}
		return out, err
	})
}
