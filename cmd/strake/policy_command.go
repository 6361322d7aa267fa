package main

import (
	"context"
	"errors"
	"os"

	"github.com/spf13/cobra"

	"github.com/strake-io/strake/cmd/strake/policy"
	"github.com/strake-io/strake/netpol/analysis"
)

// policyCommand is the workbench of network policies. How it is asked wrongly is no answer either: exit code 2, as diff(1) has it.
func policyCommand(place places) *cobra.Command {
	group := policy.Command(adminKubeconfig(os.Args[1:]), func(ctx context.Context, probes int) (analysis.Evidence, error) {
		return lookAtNode(ctx, place, probes)
	})
	group.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return exitError{2, err} })
	for _, cmd := range group.Commands() {
		if args := cmd.Args; args != nil {
			cmd.Args = func(cmd *cobra.Command, a []string) error {
				if err := args(cmd, a); err != nil {
					return exitError{2, err}
				}
				return nil
			}
		}
		if run := cmd.RunE; run != nil {
			cmd.RunE = func(cmd *cobra.Command, a []string) error {
				err := run(cmd, a)
				if e := (policy.Exit{}); errors.As(err, &e) {
					return exitError{e.Code, e.Err}
				}
				if err != nil {
					return exitError{2, err}
				}
				return nil
			}
		}
	}
	return group
}
