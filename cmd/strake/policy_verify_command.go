package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/strake-io/strake/cmd/strake/proof"
	"github.com/strake-io/strake/netpol/analysis"
	"github.com/strake-io/strake/netpol/verify"
)

func policyVerifyCommand(place places) *cobra.Command {
	var output string
	var questions int
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Prove that this node's kernel judges as the policies say",
		Long: `Reads the rows by which the kernel judges packets, and asks them and the reference evaluator, which knows nothing of rows but only what the API
has, the same questions: every class of pods of this node with every class of other ends, both ways, on every port at which a verdict may
change, the ends of blocks and ranges and what is beside them; beyond --questions those that the lot draws. It changes nothing, and the agent need not run. What policies deny beyond what they say, as
the tables have no room for them, is no difference: those policies are told.

Exit code: 0 if they agree, 1 if not, 2 if there is no answer.`,
		Example: "  strake policy verify\n  strake policy verify --data-dir /var/lib/strake/nodes/2\n  strake policy verify --questions 0 -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			n, err := provenNode(place)
			if err != nil {
				return exitError{2, err}
			}
			n.Questions = questions
			r, err := proof.Verify(cmd.Context(), n)
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
	cmd.Flags().IntVar(&questions, "questions", 1_000_000, "how many questions to ask at most, drawn by lot (0: all that there are: with thousands of policies billions)")
	return cmd
}

// provenNode is the node that commands look at. They go on in its network namespace.
func provenNode(place places) (proof.Node, error) {
	n, err := entered(place)
	if err != nil {
		return proof.Node{}, err
	}
	if n.ProxyOnly {
		return proof.Node{}, errors.New("this node serves Services alone: its network policies are another plugin's")
	}
	rc, err := n.REST()
	return proof.Node{Layout: n.Layout, Name: n.Name, DNSAddrs: n.DNSAddrs, REST: rc}, err
}

// lookAtNode is what a report says of this node.
func lookAtNode(ctx context.Context, place places, probes int) (analysis.Evidence, error) {
	n, err := provenNode(place)
	if err != nil {
		return analysis.Evidence{}, err
	}
	return proof.Look(ctx, n, probes)
}

func policyProbeCommand(place places) *cobra.Command {
	var output string
	most := 100
	cmd := &cobra.Command{
		Use:   "probe",
		Short: "Send real packets along paths that policies allow, and along others",
		Long: `Opens TCP connections from pods of this node to pods of any node, as the pods themselves would, on paths drawn by lot: half of them allowed by the
policies, half not, on the ports that pods and policies name and on another one. A packet that is allowed gets an answer, a refusal too; one that
is not gets none. Connections are closed at once; servers may log them.

Exit code: 0 if all went as the policies say, 1 if not, 2 if there is no answer.`,
		Example: "  strake policy probe\n  strake policy probe --count 1000 -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			n, err := provenNode(place)
			if err != nil {
				return exitError{2, err}
			}
			probes, err := proof.Send(cmd.Context(), n, most)
			if err != nil {
				return exitError{2, err}
			}
			if err := show(cmd.OutOrStdout(), output, probes, func(w io.Writer) { printProbes(w, n.Name, probes) }); err != nil {
				return err
			}
			if slices.ContainsFunc(probes, func(p proof.Probe) bool { return !p.OK }) {
				return exitError{code: 1}
			}
			return nil
		},
	}
	outputFlag(cmd, &output)
	cmd.Flags().IntVar(&most, "count", most, "how many probes to send (0: all that there are)")
	return cmd
}

func printProbes(w io.Writer, node string, probes []proof.Probe) {
	counts := map[string]int{}
	wrong := 0
	for _, p := range probes {
		counts[p.Expected]++
		if !p.OK {
			wrong++
			fmt.Fprintln(w, " ", p)
		}
	}
	fmt.Fprintf(w, "node %s: %d probes, of which %d were to pass; %d went otherwise than the policies say\n", node, len(probes), counts[proof.Passes], wrong)
}

func printProof(w io.Writer, r verify.Report) {
	fmt.Fprintln(w, proof.Line(r))
	for _, d := range r.Examples {
		fmt.Fprintln(w, " ", d)
	}
	if more := r.Drifts - len(r.Examples); more > 0 {
		fmt.Fprintf(w, "  and %d more\n", more)
	}
	if crowded := r.Crowded(); crowded != "" {
		fmt.Fprintln(w, " ", crowded)
	}
}
