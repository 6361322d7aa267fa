package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/strake-io/strake/cmd/strake/proof"
	"github.com/strake-io/strake/netpol/verify"
)

// policyGroup is the workbench with what looks at this node.
func policyGroup(place places) *cobra.Command {
	group := policyCommand()
	group.AddCommand(policyVerifyCommand(place))
	return group
}

func policyVerifyCommand(place places) *cobra.Command {
	var output string
	var questions int
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Prove that this node's kernel judges as the policies say",
		Long: `Reads the rows by which the kernel judges packets, and asks them and the reference evaluator, which knows nothing of rows but only what the API
has, the same questions: every class of pods of this node with every class of other ends, both ways, on every port at which a verdict may
change, the ends of blocks and ranges and what is beside them. It changes nothing, and the agent need not run.

Exit code: 0 if they agree, 1 if not, 2 if there is no answer.`,
		Example: "  strake policy verify\n  strake policy verify --data-dir /var/lib/strake/nodes/2\n  strake policy verify --questions 10000 -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := place()
			if err != nil {
				return exitError{2, err}
			}
			n, err := examined(l)
			if err != nil {
				return exitError{2, err}
			}
			if err := enterNode(l); err != nil {
				return exitError{2, err}
			}
			rc, err := n.REST()
			if err != nil {
				return exitError{2, err}
			}
			r, err := proof.Verify(cmd.Context(), proof.Node{Layout: l, Name: n.Name, DNSAddrs: n.DNSAddrs, REST: rc, Questions: questions})
			if err != nil {
				return exitError{2, err}
			}
			if err := show(cmd.OutOrStdout(), output, r, func(w io.Writer) { printProof(w, r) }); err != nil {
				return err
			}
			if r.Drifts > 0 {
				return exitError{code: 1}
			}
			return nil
		},
	}
	outputFlag(cmd, &output)
	cmd.Flags().IntVar(&questions, "questions", 0, "how many questions to ask, drawn by lot (0: all)")
	return cmd
}

func printProof(w io.Writer, r verify.Report) {
	fmt.Fprintln(w, proof.Line(r))
	for _, d := range r.Examples {
		fmt.Fprintln(w, " ", d)
	}
	if more := r.Drifts - len(r.Examples); more > 0 {
		fmt.Fprintf(w, "  and %d more\n", more)
	}
}
