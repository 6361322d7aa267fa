package policy

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/strake-io/strake/netpol/analysis"
)

func lintCommand(s *source) *cobra.Command {
	var output, failOn string
	var skip []string
	limits := []string{"error", "warning", "info", "never"}
	var ids []string
	checks := ""
	for _, c := range analysis.Checks {
		ids = append(ids, c.ID)
		checks += fmt.Sprintf("  %-22s %s\n", c.ID, c.Title)
	}
	cmd := &cobra.Command{
		Use:   "lint",
		Short: "Tell what is wrong with policies, or surprising",
		Long: `Looks for policies and rules that do not do what they seem to: on the pods, namespaces and nodes that there are.
A policy in shadow is looked at by itself, as if it were enforced. The checks, by the IDs that
--skip takes, which stay as they are:

` + checks + `
Exit code: 0 if no finding is as grave as --fail-on, 1 if one is, 2 if nothing could be looked at.`,
		Example: `  strake policy lint -f manifests/
  strake policy lint --fail-on error --skip unguarded-workload
  strake policy lint -f manifests/ -o sarif > lint.sarif`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !slices.Contains(limits, failOn) {
				return Exit{broken, fmt.Errorf("--fail-on %s: this command knows %s", failOn, list(limits))}
			}
			for _, id := range skip {
				if !slices.Contains(ids, id) {
					return Exit{broken, fmt.Errorf("--skip %s: there is no such check", id)}
				}
			}
			state, err := s.load(cmd)
			if err != nil {
				return err
			}
			found := slices.DeleteFunc(analysis.Lint(state), func(f analysis.Finding) bool { return slices.Contains(skip, f.Check) })
			for i, f := range found {
				found[i].File, found[i].Line = s.where(f.Object.Kind, f.Object.Namespace, f.Object.Name)
			}
			w := cmd.OutOrStdout()
			switch output {
			case "json":
				e := json.NewEncoder(w)
				e.SetIndent("", "  ")
				err = e.Encode(map[string]any{"findings": append([]analysis.Finding{}, found...), "counts": analysis.CountFindings(found)})
			case "sarif":
				err = analysis.WriteSARIF(w, found)
			case "junit":
				err = analysis.WriteLintJUnit(w, found, analysis.Severity(failOn))
			default:
				err = analysis.WriteFindings(w, found)
			}
			if err == nil && slices.ContainsFunc(found, func(f analysis.Finding) bool { return f.Reaches(analysis.Severity(failOn)) }) {
				return Exit{Code: differs}
			}
			return err
		},
	}
	s.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&failOn, "fail-on", "warning", "the least severity that makes the exit code 1: "+list(limits))
	f.StringSliceVar(&skip, "skip", nil, "checks that are left out")
	_ = cmd.RegisterFlagCompletionFunc("fail-on", cobra.FixedCompletions(limits, cobra.ShellCompDirectiveNoFileComp)) // fails for unknown flags only
	_ = cmd.RegisterFlagCompletionFunc("skip", cobra.FixedCompletions(ids, cobra.ShellCompDirectiveNoFileComp))
	formats(cmd, &output, "text", "json", "sarif", "junit")
	return cmd
}
