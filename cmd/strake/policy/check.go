package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/strake-io/strake/netpol/analysis"
	"github.com/strake-io/strake/netpol/reference"
)

func checkCommand(s *source) *cobra.Command {
	var output string
	var exprs []string
	cmd := &cobra.Command{
		Use:   "check [ASSERTIONS.yaml ...]",
		Short: "Tell whether policies serve what they are meant to",
		Long: `Judges assertions on all pairs of ends and all ports that they are about, and gives a counterexample for each that does not hold. A file is a list of them:

  assertions:
  - deny ns:cde <- * except ns:cde
  - allow default/web -> default/db:5432/TCP
  - assert: deny [app=web] -> world
    name: the web tier reaches nothing outside
    because: PCI DSS 1.4

Ends: NAMESPACE/NAME of a workload or a pod, ns:NAME (both with * and ?), [labels] of pods, ns[labels] of namespaces, ns[labels][labels],
a block or an address (of what is neither pod nor node), pods, nodes, world (all of that), * (everybody). Several with commas, less some with except. Those that are asked may
have ports: :443/TCP, :80,8000-8100/TCP, :UDP. Without a protocol a port is TCP's in allow, and of every protocol in deny. Without
ports, everything must be allowed, or nothing.

What is about nobody fails: it would hold whatever the policies were. A node's traffic to its own pods, and a pod's to itself, are always
allowed and not looked at.

Exit code: 0 if all hold, 1 if one does not, 2 if that can't be told.`,
		Example: `  strake policy check intents.yaml -f manifests/
  strake policy check -e 'deny ns:cde <- world' -e 'allow ns:shop -> cde/api:443/TCP'
  strake policy check intents.yaml -o junit > junit.xml`,
		RunE: func(cmd *cobra.Command, args []string) error {
			list, err := s.assertions(cmd, args, exprs)
			if err != nil {
				return err
			}
			state, err := s.load(cmd)
			if err != nil {
				return err
			}
			evaluator, err := reference.New(state)
			if err != nil {
				return err
			}
			results, err := analysis.CheckAll(state, list, evaluator)
			if err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			switch output {
			case "json":
				e := json.NewEncoder(w)
				e.SetIndent("", "  ")
				err = e.Encode(results)
			case "junit":
				err = analysis.WriteResultsJUnit(w, results)
			default:
				err = analysis.WriteResults(w, results)
			}
			if err == nil && slices.ContainsFunc(results, func(r analysis.Result) bool { return !r.Holds }) {
				return Exit{Code: differs}
			}
			return err
		},
	}
	s.flags(cmd)
	cmd.Flags().StringArrayVarP(&exprs, "assert", "e", nil, "an assertion, beside those of files; repeatable")
	formats(cmd, &output, "text", "json", "junit")
	return cmd
}

// assertions reads those of files and flags. All that is wrong with them is told.
func (s *source) assertions(cmd *cobra.Command, files, exprs []string) ([]analysis.Assertion, error) {
	if err := once(slices.Concat(s.files, files)...); err != nil {
		return nil, err
	}
	var out []analysis.Assertion
	var errs []error
	for _, e := range exprs {
		a, err := analysis.ParseAssertion(e)
		if err != nil {
			errs = append(errs, fmt.Errorf("--assert: %w", err))
		}
		out = append(out, a)
	}
	for _, name := range files {
		read := func() ([]byte, error) { return os.ReadFile(name) }
		if name == "-" {
			read = func() ([]byte, error) { return io.ReadAll(cmd.InOrStdin()) }
		}
		text, err := read()
		if err != nil {
			return nil, Exit{broken, err}
		}
		list, bad := analysis.ParseAssertions(name, text)
		out, errs = append(out, list...), append(errs, bad...)
	}
	if len(errs) > 0 {
		return nil, Exit{broken, errors.Join(errs...)}
	}
	if len(out) == 0 {
		return nil, Exit{broken, errors.New("no assertions: name a file of them, or one with --assert")}
	}
	return out, nil
}
