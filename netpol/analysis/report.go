package analysis

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/strake-io/strake/netpol"
)

// Report is evidence for an auditor: of what the policies of a State are, what they allow, what is wrong with them, and whether they serve what they are meant to.
type Report struct {
	Time       time.Time // when the State was read
	Source     string    // where it was read
	Tool       string    // name and version of what judged it
	Policies   []ReportPolicy
	Matrix     *Matrix
	Findings   []Finding
	Assertions []Result
	Exceptions []Exception
	Evidence   Evidence // what was seen of enforcement, beside what policies say
}

// ReportPolicy is a policy as it was judged.
type ReportPolicy struct {
	Policy   netpol.PolicyRef `json:"policy"`
	Tier     netpol.Tier      `json:"tier"`
	Priority *int32           `json:"priority,omitempty"`
	Hash     string           `json:"hash"` // sha256 of what it says, see PolicyHashes
	Shadow   bool             `json:"shadow,omitempty"`
	Selects  int              `json:"selects"` // how many pods
	// Of the API's object, where there is one: when it was made, how often its spec has changed since, and who wrote it last.
	Created    *time.Time `json:"created,omitempty"`
	Generation int64      `json:"generation,omitempty"`
	Writers    []Writer   `json:"writers,omitempty"`
}

// Writer is who wrote a policy, as its managedFields tell: each by its last write.
type Writer struct {
	Name string     `json:"name"`
	How  string     `json:"how"` // Apply or Update
	Time *time.Time `json:"time,omitempty"`
}

// written notes what an object tells of its own past.
func (p *ReportPolicy) written(o metav1.Object) {
	if at := o.GetCreationTimestamp(); !at.IsZero() {
		p.Created = &at.Time
	}
	p.Generation = o.GetGeneration()
	for _, f := range o.GetManagedFields() {
		if f.Subresource != "" {
			continue // its status
		}
		w := Writer{Name: f.Manager, How: string(f.Operation)}
		if f.Time != nil {
			w.Time = &f.Time.Time
		}
		p.Writers = append(p.Writers, w)
	}
}

// Exception is what is not as the matrix alone would have it believed.
type Exception struct {
	What string   `json:"what"`
	Who  []string `json:"who,omitempty"`
}

// NewReport judges a State. Problems are those of manifests that were judged in spite of them.
func NewReport(s netpol.State, assertions []Assertion, e Evaluator, problems []string) (*Report, error) {
	a := New(s, Options{})
	r := &Report{Matrix: a.Matrix(nil, nil), Findings: Lint(s), Policies: []ReportPolicy{}}
	results, err := CheckAll(s, assertions, e)
	if err != nil {
		return nil, err
	}
	r.Assertions = results
	known := netpol.Hashes(s)
	objects := map[netpol.PolicyRef]metav1.Object{}
	for _, o := range s.NetworkPolicies {
		objects[netpol.PolicyRef{Kind: "NetworkPolicy", Namespace: o.Namespace, Name: o.Name}] = o
	}
	for _, o := range s.ClusterNetworkPolicies {
		objects[netpol.PolicyRef{Kind: "ClusterNetworkPolicy", Name: o.Name}] = o
	}
	for _, p := range append(slices.Clone(a.policies), a.shadow...) {
		one := ReportPolicy{Policy: p.ref, Tier: p.tier, Shadow: p.shadow}
		bare := netpol.PolicyRef{Kind: p.ref.Kind, Namespace: p.ref.Namespace, Name: p.ref.Name}
		one.Hash = known[bare]
		if o := objects[bare]; o != nil {
			one.written(o)
		}
		if p.cnp != nil {
			one.Priority = &p.cnp.Spec.Priority
		}
		for _, m := range a.members {
			if slices.ContainsFunc(m.classes[:], func(c int) bool { return c >= 0 && p.subjects.has(c) }) && !m.dns {
				one.Selects++
			}
		}
		r.Policies = append(r.Policies, one)
	}
	r.exceptions(a, problems)
	return r, nil
}

func (r *Report) exceptions(a *Analysis, problems []string) {
	add := func(what string, who []string) {
		if len(who) > 0 {
			r.Exceptions = append(r.Exceptions, Exception{what, who})
		}
	}
	var shadow, host, free, silent []string
	for _, p := range a.shadow {
		shadow = append(shadow, p.ref.Kind+" "+p.ref.String())
	}
	for _, e := range r.Matrix.Ends {
		if e.HostNetwork {
			host = append(host, e.Name)
		}
		guarded := false
		for _, c := range e.classes {
			guarded = guarded || c >= 0 && (a.classes[c].sets[0] != nil || a.classes[c].sets[1] != nil)
		}
		if e.subject && !guarded {
			free = append(free, e.Name)
		}
	}
	for _, p := range a.state.Pods {
		if addrs := podAddrs(p); alive(p) && !addrs[0].IsValid() && !addrs[1].IsValid() {
			silent = append(silent, p.Namespace+"/"+p.Name)
		}
	}
	add("Manifests have problems: what can't be read of them is not judged", problems)
	add("Policies in shadow are not enforced", shadow)
	add("Pods in their node's network are guarded by no policy", host)
	add("No policy guards these workloads", free)
	add("Pods have no address yet, and are not judged", silent)
	add("Connections of these go on when policies forbid them, or end, as their annotation "+netpol.FlowsAnnotation+" says", r.flowsAnnotated(a))
	for _, what := range []string{
		"What a node's own stack sends to its own pods is always allowed (probes of the kubelet)",
		"What a pod sends to its own address is always allowed",
		"ICMP errors and what IPv6 does not work without (RFC 4890) are always allowed",
		"A flow that was allowed is answered",
	} {
		r.Exceptions = append(r.Exceptions, Exception{What: what})
	}
}

// flowsAnnotated are the pods and namespaces that choose what becomes of established connections.
func (r *Report) flowsAnnotated(a *Analysis) (who []string) {
	for _, n := range a.state.Namespaces {
		if v := n.Annotations[netpol.FlowsAnnotation]; v != "" {
			who = append(who, fmt.Sprintf("namespace %s (%s)", n.Name, v))
		}
	}
	for _, p := range a.state.Pods {
		if v := p.Annotations[netpol.FlowsAnnotation]; v != "" && alive(p) {
			who = append(who, fmt.Sprintf("%s/%s (%s)", p.Namespace, p.Name, v))
		}
	}
	return who
}

// Fingerprint is the sha256 of the policies' hashes, in the order of their kinds and names: it is equal if, and only if, the policies are.
func (r *Report) Fingerprint() string {
	var lines []string
	for _, p := range r.Policies {
		lines = append(lines, p.Policy.Kind+" "+p.Policy.String()+" "+p.Hash+"\n")
	}
	slices.Sort(lines)
	sum := sha256.Sum256([]byte(strings.Join(lines, "")))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Fails tells whether an assertion does not hold, a finding is an error, or enforcement is not what policies say.
func (r *Report) Fails() bool {
	return r.Evidence.fails() || slices.ContainsFunc(r.Assertions, func(x Result) bool { return !x.Holds }) || slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Severity == Error })
}

// WriteJSON writes a report for machines.
func (r *Report) WriteJSON(w io.Writer) error {
	var m bytes.Buffer
	if err := r.Matrix.WriteJSON(&m); err != nil {
		return err
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(map[string]any{
		"time": r.Time.UTC().Format(time.RFC3339), "source": r.Source, "tool": r.Tool, "fingerprint": r.Fingerprint(), "policies": r.Policies,
		"matrix": json.RawMessage(m.Bytes()), "findings": append([]Finding{}, r.Findings...), "assertions": append([]Result{}, r.Assertions...), "exceptions": r.Exceptions,
		"evidence": r.Evidence,
	})
}

// WriteCSV writes all of a report as one table; the first column tells of which part a line is.
func (r *Report) WriteCSV(w io.Writer) error {
	c := csv.NewWriter(w)
	line := func(fields ...string) { _ = c.Write(fields) } // Flush keeps its error
	line("part", "subject", "object", "result", "detail", "reason")
	line("report", r.Source, r.Tool, r.Time.UTC().Format(time.RFC3339), r.Fingerprint(), "")
	for _, p := range r.Policies {
		state := "enforced"
		if p.Shadow {
			state = "shadow"
		}
		line("policy", p.Policy.Kind, p.Policy.String(), state, p.Hash, fmt.Sprintf("tier %s, selects %s", p.Tier, count(p.Selects, "pod")))
	}
	for _, x := range r.Assertions {
		result, reason := "holds", ""
		if !x.Holds {
			result, reason = "fails", strings.Join(x.lines(), "; ")
		}
		line("assertion", x.Name, x.Text, result, x.Because, reason)
	}
	for _, f := range r.Findings {
		line("finding", f.Object.Kind, f.Object.String(), string(f.Severity), f.Check, strings.TrimPrefix(f.Field+": "+f.Message, ": "))
	}
	for _, x := range r.Exceptions {
		line("exception", "", strings.Join(x.Who, " "), "", x.What, "")
	}
	r.Evidence.lines(line)
	for i, row := range r.Matrix.Rows {
		for j, id := range row {
			if id < 0 {
				continue
			}
			x := r.Matrix.Answers[id]
			egress, ingress := x.reasons()
			line("pair", r.Matrix.Ends[i].Name, r.Matrix.Ends[j].Name, x.Verdict, x.Allowed, strings.Join(append(egress, ingress...), "; "))
		}
	}
	c.Flush()
	return c.Error()
}

// byNamespace groups findings by the namespace of what they are about.
func (r *Report) byNamespace() ([]string, map[string][]Finding) {
	out := map[string][]Finding{}
	var names []string
	for _, f := range r.Findings {
		if out[f.Object.Namespace] == nil {
			names = append(names, f.Object.Namespace)
		}
		out[f.Object.Namespace] = append(out[f.Object.Namespace], f)
	}
	slices.SortFunc(names, cmp.Compare[string])
	return names, out
}
