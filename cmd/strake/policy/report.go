package policy

import (
	"bufio"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/component-base/version"

	"github.com/strake-io/strake/netpol/analysis"
	"github.com/strake-io/strake/netpol/reference"
)

func reportCommand(s *source) *cobra.Command {
	var output string
	var exprs []string
	cmd := &cobra.Command{
		Use:   "report [ASSERTIONS.yaml ...]",
		Short: "Write evidence of what policies allow, for an auditor",
		Long: `Writes all at once: what was judged, when and by what; the policies with their hashes; who can reach whom on what (matrix); what is wrong with the
policies (lint); whether they serve what they are meant to (check); and what is an exception. As a page that is whole in itself, as JSON or CSV, or as
objects of openreports.io/v1alpha1 to be applied to a cluster.

A policy's hash is the sha256 of what it says (apiVersion, kind, name, labels, annotations, spec) as JSON with sorted keys: where and when it was read makes
no difference.

Exit code: 0 if all assertions hold and no finding is an error, 1 if not, 2 if that can't be told.`,
		Example: `  strake policy report intents.yaml > report.html
  strake policy report intents.yaml -f manifests/ -o json > report.json
  strake policy report intents.yaml -o openreports | kubectl apply -f -`,
		RunE: func(cmd *cobra.Command, args []string) error {
			var intents []analysis.Assertion
			if len(args)+len(exprs) > 0 {
				var err error
				if intents, err = assertions(cmd, args, exprs); err != nil {
					return err
				}
			}
			now := time.Now()
			state, err := s.load(cmd)
			if err != nil {
				return err
			}
			evaluator, err := reference.New(state)
			if err != nil {
				return err
			}
			var problems []string
			for _, p := range s.loaded.Problems {
				problems = append(problems, p.String())
			}
			r, err := analysis.NewReport(state, intents, evaluator, problems)
			if err != nil {
				return err
			}
			r.Time, r.Tool, r.Source = now, "strake "+version.Get().GitVersion, "the cluster at "+s.server
			if len(s.files) > 0 {
				r.Source = "manifests in " + strings.Join(s.files, ", ")
			}
			w := bufio.NewWriterSize(cmd.OutOrStdout(), 1<<16)
			switch output {
			case "json":
				err = r.WriteJSON(w)
			case "csv":
				err = r.WriteCSV(w)
			case "openreports":
				err = r.WriteOpenReports(w)
			default:
				err = r.WriteHTML(w, "Network policies")
			}
			if err == nil {
				err = w.Flush()
			}
			if err == nil && r.Fails() {
				return Exit{Code: differs}
			}
			return err
		},
	}
	s.flags(cmd)
	cmd.Flags().StringArrayVarP(&exprs, "assert", "e", nil, "an assertion, beside those of files; repeatable")
	formats(cmd, &output, "html", "json", "csv", "openreports")
	return cmd
}
