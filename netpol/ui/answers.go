package ui

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/strake-io/strake/netpol"
	"github.com/strake-io/strake/netpol/analysis"
	"github.com/strake-io/strake/netpol/manifests"
)

// known is a policy that the page can show.
type known struct {
	netpol.PolicyRef
	Shadow bool `json:"shadow,omitempty"`
}

func policiesOf(s netpol.State) []known {
	list := []known{}
	for _, n := range s.NetworkPolicies {
		list = append(list, known{netpol.PolicyRef{Kind: kindNetworkPolicy, Namespace: n.Namespace, Name: n.Name}, netpol.InShadow(n)})
	}
	for _, c := range s.ClusterNetworkPolicies {
		list = append(list, known{netpol.PolicyRef{Kind: kindClusterNetworkPolicy, Name: c.Name}, netpol.InShadow(c)})
	}
	return list
}

func (s *Server) matrix(*http.Request) (any, error) { return s.current().matrix, nil }

func (s *Server) reload(r *http.Request) (any, error) {
	n, err := s.read(r.Context())
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", s.config.Source, err)
	}
	return n.matrix, nil
}

func (s *Server) findings(*http.Request) (any, error) {
	now := s.current()
	list := analysis.Lint(now.State)
	if now.Where != nil {
		for i, f := range list {
			list[i].File, list[i].Line = now.Where(f.Object.Kind, f.Object.Namespace, f.Object.Name)
		}
	}
	if list == nil {
		list = []analysis.Finding{}
	}
	return list, nil
}

// policyAnswer is a policy as it is read and written.
type policyAnswer struct {
	YAML string `json:"yaml"`
	// First and Last are the lines of the rule that was asked for, from 0; -1: there is none.
	First int    `json:"first"`
	Last  int    `json:"last"`
	File  string `json:"file,omitempty"`
	Line  int    `json:"line,omitempty"`
}

func (s *Server) policy(r *http.Request) (any, error) {
	q := r.URL.Query()
	kind, namespace, name := q.Get("kind"), q.Get("namespace"), q.Get("name")
	now := s.current()
	object := find(now.State, kind, namespace, name)
	if object == nil {
		return nil, badRequest{http.StatusNotFound, fmt.Errorf("no %s %s: it may be gone since the page was read", kind, netpol.PolicyRef{Namespace: namespace, Name: name})}
	}
	text, err := write(object)
	if err != nil {
		return nil, err
	}
	out := policyAnswer{YAML: text, First: -1, Last: -1}
	if now.Where != nil {
		out.File, out.Line = now.Where(kind, namespace, name)
	}
	if d := q.Get("direction"); d != "" {
		rule, err := strconv.Atoi(q.Get("rule"))
		if err != nil || d != netpol.Egress.String() && d != netpol.Ingress.String() {
			return nil, badRequest{http.StatusBadRequest, errors.New("direction is egress or ingress, rule a number")}
		}
		out.First, out.Last = ruleLines(text, d, rule)
	}
	return out, nil
}

func find(s netpol.State, kind, namespace, name string) runtime.Object {
	switch kind {
	case kindNetworkPolicy:
		for _, n := range s.NetworkPolicies {
			if n.Namespace == namespace && n.Name == name {
				return n
			}
		}
	case kindClusterNetworkPolicy:
		for _, c := range s.ClusterNetworkPolicies {
			if c.Name == name {
				return c
			}
		}
	}
	return nil
}

// tried is what the page sends to try.
type tried struct {
	YAML    string             `json:"yaml"`
	Without []netpol.PolicyRef `json:"without"`
}

// outcome is what would come of it.
type outcome struct {
	Problems []string       `json:"problems"` // then there are no differences
	Diff     *analysis.Diff `json:"diff,omitempty"`
}

func (s *Server) try(r *http.Request) (any, error) {
	var t tried
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(&t); err != nil {
		code := http.StatusBadRequest
		if tooBig := (*http.MaxBytesError)(nil); errors.As(err, &tooBig) {
			code = http.StatusRequestEntityTooLarge
		}
		return nil, badRequest{code, fmt.Errorf("what is to be tried: %w", err)}
	}
	was := s.current().State
	given, problems := manifests.Parse("editor", []byte(t.YAML))
	out := outcome{Problems: []string{}}
	for _, p := range problems {
		out.Problems = append(out.Problems, p.String())
	}
	if len(given.Pods) > 0 || len(given.Nodes) > 0 || len(given.Services) > 0 {
		out.Problems = append(out.Problems, "editor: policies alone can be tried here; for other objects there is `strake policy diff`")
	}
	if len(out.Problems) > 0 {
		return out, nil
	}
	is := was
	is.NetworkPolicies = changed(was.NetworkPolicies, given.NetworkPolicies, t.Without, kindNetworkPolicy)
	is.ClusterNetworkPolicies = changed(was.ClusterNetworkPolicies, given.ClusterNetworkPolicies, t.Without, kindClusterNetworkPolicy)
	out.Diff = analysis.Compare(was, is)
	return out, nil
}

// changed is a list with policies replaced, added, and taken away.
func changed[P metav1.Object](list, given []P, without []netpol.PolicyRef, kind string) []P {
	gone := map[netpol.PolicyRef]bool{}
	for _, ref := range without {
		gone[netpol.PolicyRef{Kind: ref.Kind, Namespace: ref.Namespace, Name: ref.Name}] = true
	}
	for _, p := range given {
		gone[netpol.PolicyRef{Kind: kind, Namespace: p.GetNamespace(), Name: p.GetName()}] = true
	}
	out := slices.DeleteFunc(slices.Clone(list), func(p P) bool {
		return gone[netpol.PolicyRef{Kind: kind, Namespace: p.GetNamespace(), Name: p.GetName()}]
	})
	return append(out, given...)
}
