// Package policy is the workbench of network policies: `strake policy …`, on a cluster or on a folder of manifests.
package policy

import (
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"
)

// Exit ends a command with an exit code of its own. Without Err nothing more is said.
type Exit struct {
	Code int
	Err  error
}

func (e Exit) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit code %d", e.Code)
	}
	return e.Err.Error()
}

func (e Exit) Unwrap() error { return e.Err }

// Exit codes, as diff(1) has them.
const (
	differs = 1 // the answer is no: differences, findings, assertions that fail
	broken  = 2 // no answer
)

// Command is the group. kubeconfig is the way to the cluster unless --kubeconfig names another; empty: what kubectl would take. look looks at
// this node, records finds what its flows are recorded in, dns the cluster's DNS.
func Command(kubeconfig string, look Look, records Records, dns DNS) *cobra.Command {
	policy := &cobra.Command{
		Use:   "policy",
		Short: "Judge network policies: of the cluster, or of a folder of manifests",
		Long: `Tells what network policies (NetworkPolicy and ClusterNetworkPolicy) allow, what changes of them would, and what is wrong with them.
With -f it works on manifests, in folders and files, without any cluster: Namespaces, Pods, workloads (a few pods stand for each), Nodes,
Services and policies; other kinds are skipped. Without -f it asks the cluster.

Exit code: 0 if all is as asked, 1 if not (differences, findings, an assertion that fails), 2 if there is no answer. eval has its own, see there.`,
		Example: "  strake policy eval -f manifests/ --from default/web --to default/db --port 5432/TCP",
	}
	s := &source{fallback: kubeconfig, look: look, dns: dns}
	policy.AddCommand(evalCommand(s), matrixCommand(s), lintCommand(s), diffCommand(s), checkCommand(s), reportCommand(s), uiCommand(s, records), flowsCommand(records), replayCommand(s, records), recommendCommand(s, records))
	return policy
}

// formats is the flag -o of a command, the first is the default.
func formats(cmd *cobra.Command, to *string, known ...string) {
	cmd.Flags().StringVarP(to, "output", "o", known[0], "format: "+list(known))
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(known, cobra.ShellCompDirectiveNoFileComp)) // fails for unknown flags only
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !slices.Contains(known, *to) {
			return Exit{broken, fmt.Errorf("-o %s: this command knows %s", *to, list(known))}
		}
		return run(cmd, args)
	}
}

func list(words []string) string {
	out := ""
	for i, w := range words {
		switch {
		case i == 0:
		case i == len(words)-1:
			out += " or "
		default:
			out += ", "
		}
		out += w
	}
	return out
}

var errProblems = errors.New("the manifests have problems (above): what they would allow can't be told; --ignore-problems judges what can be read")
