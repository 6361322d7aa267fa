package analysis

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/strake-io/strake/netpol"
	"github.com/strake-io/strake/netpol/history"
	"github.com/strake-io/strake/netpol/reference"
)

func reported(t *testing.T, s netpol.State) *Report {
	t.Helper()
	list, errs := ParseAssertions("intents.yaml", []byte("- deny ns:shop <- * except ns:shop\n- {assert: \"allow shop/web -> shop/db:5432/TCP\", name: web asks its <database>, because: it has to}\n"))
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	e, err := reference.New(s)
	if err != nil {
		t.Fatal(err)
	}
	r, err := NewReport(s, list, e, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Time, r.Source, r.Tool = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), "manifests in testdata", "strake v0"
	ref := &netpol.PolicyRef{Kind: "NetworkPolicy", Namespace: "shop", Name: "db"}
	r.Evidence = Evidence{
		Proof:   &Proof{Node: "node-1", Time: r.Time, Questions: 10, Of: 200, Differences: 1, Examples: []string{"shop/web to shop/db, 5432/TCP: the kernel denies, the policies allow"}},
		Probes:  []ProbeSent{{"shop/web (10.0.0.1)", "shop/db (10.0.0.2)", "5432/TCP", "passes", "passes", "rule 0 of shop/db", true}, {"shop/web (10.0.0.1)", "shop/db (10.0.0.2)", "61/TCP", "no answer", "passes", "isolated by shop/db", false}},
		Drifts:  []DriftEvent{{"node-2", r.Time, 3, "the kernel does not judge as the policies say"}},
		History: []history.Entry{{Time: r.Time, What: history.Enforced, Policy: ref, Generation: 2, Hash: "sha256:1", Before: "sha256:0", Away: true}, {Time: r.Time, What: history.Proved, Count: 7}},
		Broken:  []string{"history:3 does not follow from the line before it"},
		Limits:  []string{"Proof and history are of node <node-1>"},
	}
	return r
}

func TestReportOutputs(t *testing.T) {
	r := reported(t, load(t, "shop.yaml"))
	var j, c, o, h bytes.Buffer
	if err := r.WriteJSON(&j); err != nil {
		t.Fatal(err)
	}
	golden(t, "shop.report.json", j.Bytes())
	var back struct {
		Policies []struct{ Hash string }
		Matrix   struct{ Pairs []any }
	}
	if err := json.Unmarshal(j.Bytes(), &back); err != nil || len(back.Policies) != 3 || len(back.Matrix.Pairs) != r.Matrix.Counts.Pairs || !strings.HasPrefix(back.Policies[0].Hash, "sha256:") {
		t.Errorf("%v, %+v", err, back)
	}
	if err := r.WriteCSV(&c); err != nil {
		t.Fatal(err)
	}
	golden(t, "shop.report.csv", c.Bytes())
	if _, err := csv.NewReader(&c).ReadAll(); err != nil {
		t.Error(err)
	}
	if err := r.WriteOpenReports(&o); err != nil {
		t.Fatal(err)
	}
	golden(t, "shop.openreports.yaml", o.Bytes())
	for _, doc := range strings.Split(o.String(), "---\n")[1:] {
		var one openReport
		if err := yaml.UnmarshalStrict([]byte(doc), &one); err != nil || len(one.Results) != one.Summary.Pass+one.Summary.Fail+one.Summary.Warn {
			t.Errorf("%v: %+v", err, one)
		}
		if (one.Kind == "Report") != (one.Metadata.Namespace != "") {
			t.Errorf("%s in namespace %q", one.Kind, one.Metadata.Namespace)
		}
	}
	if err := r.WriteHTML(&h, "Network policies"); err != nil {
		t.Fatal(err)
	}
	page := h.String()
	for _, word := range []string{"deny ns:shop &lt;- * except ns:shop", "monitoring/prober -&gt; shop/db-0, TCP 9187 is allowed", "web asks its &lt;database&gt;", r.Fingerprint(),
		"the kernel of node node-1 judges as the policies say", "10 of 200 questions", "61/TCP: no answer", "node &lt;node-1&gt;", "or before: no agent was looking", "history:3 does not follow", "2026-01-02T03:04:05Z", "const data = {"} {
		if !strings.Contains(page, word) {
			t.Errorf("the page does not have %q", word)
		}
	}
	for _, word := range []string{"http:", "https:", "src=\"", "href=", "@import", "url("} {
		if strings.Contains(page, word) {
			t.Errorf("the page asks for something: it has %q", word)
		}
	}
	var sarif, junit bytes.Buffer
	if err := r.WriteSARIF(&sarif); err != nil {
		t.Fatal(err)
	}
	golden(t, "shop.report.sarif", sarif.Bytes())
	var log sarifLog
	if err := json.Unmarshal(sarif.Bytes(), &log); err != nil {
		t.Fatal(err)
	}
	for _, x := range log.Runs[0].Results {
		if rules := log.Runs[0].Tool.Driver.Rules; rules[x.RuleIndex].ID != x.RuleID {
			t.Errorf("rule %d is %s, not %s", x.RuleIndex, rules[x.RuleIndex].ID, x.RuleID)
		}
	}
	if err := r.WriteJUnit(&junit); err != nil {
		t.Fatal(err)
	}
	golden(t, "shop.report.junit.xml", junit.Bytes())
	if !r.Fails() {
		t.Error("it does not fail although an assertion does")
	}
}

func TestReportExceptions(t *testing.T) {
	s := parsed(t, `
{apiVersion: v1, kind: Pod, metadata: {name: free, namespace: a}}
---
{apiVersion: v1, kind: Pod, metadata: {name: host, namespace: a}, spec: {hostNetwork: true}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: s, namespace: a, annotations: {strake.io/policy-mode: shadow}}, spec: {podSelector: {}}}`).State
	s.Pods = append(s.Pods, s.Pods[0].DeepCopy())
	s.Pods[0].Annotations = map[string]string{netpol.FlowsAnnotation: netpol.FlowsKeep}
	last := s.Pods[len(s.Pods)-1]
	last.Name, last.Status.PodIP, last.Status.PodIPs = "new", "", nil
	r, err := NewReport(s, nil, nil, []string{"x.yaml:1: no valid YAML"})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, x := range r.Exceptions {
		if len(x.Who) > 0 {
			got = append(got, strings.Join(x.Who, " "))
		}
	}
	if want := "x.yaml:1: no valid YAML|NetworkPolicy a/s|a/host|a/free|a/new|a/free (keep)"; strings.Join(got, "|") != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// A report fails for what is not as it should be now, and not for what was mended.
func TestReportFails(t *testing.T) {
	for what, c := range map[string]struct {
		e    Evidence
		want bool
	}{
		"nothing was seen":      {Evidence{}, false},
		"all was right":         {Evidence{Proof: &Proof{}, Probes: []ProbeSent{{OK: true}}}, false},
		"it differs":            {Evidence{Proof: &Proof{Differences: 1}}, true},
		"a packet went astray":  {Evidence{Probes: []ProbeSent{{OK: true}, {}}}, true},
		"a history was altered": {Evidence{Broken: []string{"x"}}, true},
		"it differed once":      {Evidence{Drifts: []DriftEvent{{}}}, false},
	} {
		if r := (&Report{Evidence: c.e}); r.Fails() != c.want {
			t.Errorf("%s: it fails %v", what, r.Fails())
		}
	}
}

// What the API tells of a policy's past is in the report: who wrote it, but not who wrote its status.
func TestReportTellsWhoWrote(t *testing.T) {
	s := load(t, "shop.yaml")
	at := metav1.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	p := s.NetworkPolicies[0]
	p.CreationTimestamp, p.Generation = at, 4
	p.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubectl", Operation: "Apply", Time: &at}, {Manager: "agent", Operation: "Update", Subresource: "status"}}
	for _, got := range reported(t, s).Policies {
		if got.Policy.Name != p.Name || got.Policy.Namespace != p.Namespace {
			continue
		}
		if len(got.Writers) != 1 || got.Writers[0].Name != "kubectl" || got.Generation != 4 || got.Created == nil || !got.Created.Equal(at.Time) {
			t.Errorf("%+v", got)
		}
		return
	}
	t.Error("the policy is not in the report")
}

// TestFingerprint: it is of what the policies say, not of the pods, and not of the order.
func TestFingerprint(t *testing.T) {
	s := load(t, "shop.yaml")
	one := reported(t, s).Fingerprint()
	s.NetworkPolicies[0], s.NetworkPolicies[1] = s.NetworkPolicies[1], s.NetworkPolicies[0]
	s.Pods = slices.DeleteFunc(s.Pods, func(p *corev1.Pod) bool { return p.Name == "web-1" })
	if two := reported(t, s).Fingerprint(); one != two {
		t.Error("it is another for the same policies")
	}
	s.NetworkPolicies = s.NetworkPolicies[1:]
	e, err := reference.New(s)
	if err != nil {
		t.Fatal(err)
	}
	r, err := NewReport(s, nil, e, nil)
	if err != nil || r.Fingerprint() == one {
		t.Errorf("%v: it is the same without a policy", err)
	}
}
