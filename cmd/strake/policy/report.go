package policy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-base/version"

	"github.com/strake-io/strake/netpol/analysis"
	"github.com/strake-io/strake/netpol/enforce"
	"github.com/strake-io/strake/netpol/reference"
)

func reportCommand(s *source) *cobra.Command {
	var output string
	var exprs []string
	var probes int
	cmd := &cobra.Command{
		Use:   "report [ASSERTIONS.yaml ...]",
		Short: "Write evidence of what policies allow, for an auditor",
		Long: `Writes all at once: what was judged, when and by what; the policies with their hashes and who wrote them last; who can reach whom on what (matrix);
what is wrong with the policies (lint); whether they serve what they are meant to (check); and what is an exception. As a page that is whole in itself, as
JSON or CSV, as SARIF or JUnit's XML for CI, or as objects of openreports.io/v1alpha1 to be applied to a cluster.

On a node, and about its own cluster, it has also the proof that the node's kernel judges so (verify), the drift that agents of all nodes have found, as
long as the API keeps their Events, and the node's history: what its agent has enforced since when, and what its own proofs found, each
line with the digest of the one before it. --probes sends real packets besides.

A policy's hash is the sha256 of what it judges by (apiVersion, kind, namespace, name, whether it is in shadow, spec) as JSON with sorted keys: where and when
it was read makes no difference.

Exit code: 0 if all assertions hold, no finding is an error, and nothing that was seen is otherwise than the policies say; 1 if not; 2 if that can't be told.`,
		Example: `  strake policy report intents.yaml > report.html
  strake policy report intents.yaml --probes 100 -o json > report.json
  strake policy report intents.yaml -f manifests/ -o junit > junit.xml
  strake policy report intents.yaml -o openreports | kubectl apply -f -`,
		RunE: func(cmd *cobra.Command, args []string) error {
			evidence, err := s.seen(cmd.Context(), probes)
			if err != nil {
				return Exit{broken, err}
			}
			var intents []analysis.Assertion
			if len(args)+len(exprs) > 0 {
				if intents, err = s.assertions(cmd, args, exprs); err != nil {
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
			if r.Evidence = evidence; len(s.files) == 0 {
				if err := s.drifts(cmd.Context(), &r.Evidence); err != nil {
					r.Evidence.Limits = append(r.Evidence.Limits, fmt.Sprintf("Events of nodes could not be read: %v", err))
				}
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
			case "sarif":
				err = r.WriteSARIF(w)
			case "junit":
				err = r.WriteJUnit(w)
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
	cmd.Flags().IntVar(&probes, "probes", 0, "how many real packets to send from this node's pods, as `strake policy probe` does")
	formats(cmd, &output, "html", "json", "csv", "sarif", "junit", "openreports")
	return cmd
}

// Look is a look at this node: whether its kernel judges as the policies say, by questions and by probes, and its history. It may run the whole
// command again elsewhere, and then does not return.
type Look func(ctx context.Context, probes int) (analysis.Evidence, error)

// seen is what can be seen of enforcement from here. That there is no node to look at is told in it, and is an error only if probes are wanted.
func (s *source) seen(ctx context.Context, probes int) (analysis.Evidence, error) {
	why := errors.New("they are judged from manifests, which no kernel has")
	if len(s.files) == 0 {
		why = errors.New("the report is of another cluster, by --kubeconfig or --context")
		if s.kubeconfig == "" && s.context == "" {
			e, err := s.look(ctx, probes)
			if err == nil {
				return e, nil
			}
			why = err
		}
	}
	if probes > 0 {
		return analysis.Evidence{}, fmt.Errorf("--probes: %w", why)
	}
	return analysis.Evidence{Limits: []string{fmt.Sprintf("No node was looked at: %v", why)}}, nil
}

// drifts adds the Events about drift that the cluster has of its nodes.
func (s *source) drifts(ctx context.Context, to *analysis.Evidence) error {
	list, err := s.kube.CoreV1().Events(metav1.NamespaceDefault).List(ctx, metav1.ListOptions{FieldSelector: "reason=" + enforce.ReasonDrift})
	if err != nil {
		return err
	}
	for _, e := range list.Items {
		to.Drifts = append(to.Drifts, analysis.DriftEvent{Node: e.InvolvedObject.Name, Time: e.LastTimestamp.Time, Count: max(e.Count, 1), Message: e.Message})
	}
	return nil
}
