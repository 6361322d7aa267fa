package analysis

import (
	"io"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// The parts of openreports.io/v1alpha1 that a Report needs.
type (
	openReport struct {
		metav1.TypeMeta `json:",inline"`
		Metadata        openMeta     `json:"metadata"`
		Source          string       `json:"source"`
		Summary         openSummary  `json:"summary"`
		Results         []openResult `json:"results,omitempty"`
	}
	openMeta struct {
		Name        string            `json:"name"`
		Namespace   string            `json:"namespace,omitempty"`
		Labels      map[string]string `json:"labels,omitempty"`
		Annotations map[string]string `json:"annotations,omitempty"`
	}
	openSummary struct {
		Pass  int `json:"pass"`
		Fail  int `json:"fail"`
		Warn  int `json:"warn"`
		Error int `json:"error"`
		Skip  int `json:"skip"`
	}
	openResult struct {
		Source     string                   `json:"source"`
		Policy     string                   `json:"policy"`
		Rule       string                   `json:"rule,omitempty"`
		Category   string                   `json:"category,omitempty"`
		Severity   string                   `json:"severity,omitempty"`
		Timestamp  metav1.Timestamp         `json:"timestamp"`
		Result     string                   `json:"result"`
		Scored     bool                     `json:"scored,omitempty"`
		Resources  []corev1.ObjectReference `json:"resources,omitempty"`
		Message    string                   `json:"message,omitempty"`
		Properties map[string]string        `json:"properties,omitempty"`
	}
)

const reportName = "strake-network-policy"

// WriteOpenReports writes a report as objects of openreports.io/v1alpha1, to be applied to a cluster: a Report of the findings in each namespace that has
// some, and a ClusterReport of the assertions, the evidence and of findings about what is in no namespace.
func (r *Report) WriteOpenReports(w io.Writer) error {
	at := metav1.Timestamp{Seconds: r.Time.Unix()}
	names, findings := r.byNamespace()
	whole := r.openReport("")
	for _, c := range r.claims() {
		one := openResult{Source: whole.Source, Policy: c.part, Rule: c.name, Category: "network policy", Severity: "high", Timestamp: at, Result: "pass", Scored: true, Message: c.text}
		if !c.holds {
			one.Result = "fail"
			one.Message, _, _ = strings.Cut(c.text, "\n")
		}
		whole.add(one)
	}
	reports := []*openReport{whole}
	for _, ns := range names {
		to := whole
		if ns != "" {
			to = r.openReport(ns)
			reports = append(reports, to)
		}
		for _, f := range findings[ns] {
			one := openResult{
				Source: whole.Source, Policy: "lint", Rule: f.Check, Category: "network policy", Timestamp: at, Message: f.Message,
				Result:    map[Severity]string{Error: "fail", Warning: "warn", Info: "warn"}[f.Severity],
				Severity:  map[Severity]string{Error: "high", Warning: "medium", Info: "info"}[f.Severity],
				Scored:    f.Severity == Error,
				Resources: []corev1.ObjectReference{{Kind: f.Object.Kind, Namespace: f.Object.Namespace, Name: f.Object.Name, FieldPath: f.Field}},
			}
			to.add(one)
		}
	}
	for _, one := range reports {
		text, err := yaml.Marshal(one)
		if err != nil {
			return err
		}
		if _, err := w.Write(append([]byte("---\n"), text...)); err != nil {
			return err
		}
	}
	return nil
}

func (r *Report) openReport(namespace string) *openReport {
	out := &openReport{TypeMeta: metav1.TypeMeta{APIVersion: "openreports.io/v1alpha1", Kind: "Report"}, Source: "strake policy"}
	if namespace == "" {
		out.Kind = "ClusterReport"
	}
	out.Metadata = openMeta{Name: reportName, Namespace: namespace, Labels: map[string]string{"app.kubernetes.io/managed-by": "strake"}, Annotations: map[string]string{"strake.io/policies": r.Fingerprint()}}
	return out
}

func (o *openReport) add(one openResult) {
	o.Results = append(o.Results, one)
	switch one.Result {
	case "pass":
		o.Summary.Pass++
	case "fail":
		o.Summary.Fail++
	default:
		o.Summary.Warn++
	}
}
