// Package abac decides requests by a policy file: one JSON object of kind Policy, version abac.authorization.kubernetes.io/v1beta1, in each
// line ("Using ABAC Authorization" of the Kubernetes documentation). A request is allowed if one line allows it.
package abac

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
)

const (
	apiVersion = "abac.authorization.kubernetes.io/v1beta1"
	all        = "*"
)

var reading = []string{"get", "list", "watch"}

// policy is one line's spec. What is empty matches nothing but what is empty too.
type policy struct {
	User            string `json:"user"`
	Group           string `json:"group"`
	ReadOnly        bool   `json:"readonly"`
	APIGroup        string `json:"apiGroup"`
	Resource        string `json:"resource"`
	Namespace       string `json:"namespace"`
	NonResourcePath string `json:"nonResourcePath"`
}

// Policies are those of a file.
type Policies []policy

var (
	_ authorizer.Authorizer   = Policies(nil)
	_ authorizer.RuleResolver = Policies(nil)
)

// Parse reads a policy file. Empty lines and those that begin with "#" say nothing. Errors name the line; a field that is not known is one, for
// a misspelt limit would allow more than was meant.
func Parse(content []byte) (Policies, error) {
	var policies Policies
	var errs []error
	n := 0
	for line := range bytes.Lines(content) {
		n++
		if line = bytes.TrimSpace(line); len(line) == 0 || line[0] == '#' {
			continue
		}
		p, err := parseLine(line)
		if err != nil {
			errs = append(errs, fmt.Errorf("line %d: %w", n, err))
			continue
		}
		policies = append(policies, p)
	}
	return policies, errors.Join(errs...)
}

func parseLine(line []byte) (policy, error) {
	var l struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Spec       policy `json:"spec"`
	}
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&l); err != nil {
		return policy{}, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return policy{}, errors.New("there is more than one object")
	}
	if l.APIVersion != apiVersion || l.Kind != "Policy" {
		return policy{}, fmt.Errorf("it is a %q of %q, must be a Policy of %s", l.Kind, l.APIVersion, apiVersion)
	}
	if l.Spec.User == "" && l.Spec.Group == "" {
		return policy{}, errors.New("spec: it must name a user or a group")
	}
	return l.Spec, nil
}

// is tells whether the policy is about a user: where it names user and group, both must fit.
func (p *policy) is(u user.Info) bool {
	return u != nil && (p.User != "" || p.Group != "") &&
		(p.User == "" || p.User == all || p.User == u.GetName()) &&
		(p.Group == "" || p.Group == all || slices.Contains(u.GetGroups(), p.Group))
}

func (p *policy) allows(a authorizer.Attributes) bool {
	if !p.is(a.GetUser()) || p.ReadOnly && !slices.Contains(reading, a.GetVerb()) {
		return false
	}
	if !a.IsResourceRequest() {
		prefix, open := strings.CutSuffix(p.NonResourcePath, all)
		return p.NonResourcePath == a.GetPath() || open && strings.HasPrefix(a.GetPath(), prefix)
	}
	fits := func(want, have string) bool { return want == all || want == have }
	return fits(p.Namespace, a.GetNamespace()) && fits(p.Resource, a.GetResource()) && fits(p.APIGroup, a.GetAPIGroup())
}

// Authorize implements authorizer.Authorizer.
func (ps Policies) Authorize(_ context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	for i := range ps {
		if ps[i].allows(a) {
			return authorizer.DecisionAllow, "", nil
		}
	}
	return authorizer.DecisionNoOpinion, "No policy matched.", nil
}

// ConditionsAwareAuthorize implements authorizer.Authorizer; policies know no conditions.
func (ps Policies) ConditionsAwareAuthorize(ctx context.Context, a authorizer.Attributes) authorizer.ConditionsAwareDecision {
	return authorizer.ConditionsAwareDecisionFromParts(ps.Authorize(ctx, a))
}

// EvaluateConditions implements authorizer.Authorizer; policies know no conditions.
func (ps Policies) EvaluateConditions(context.Context, authorizer.ConditionsAwareDecision, authorizer.ConditionsData) (authorizer.Decision, string, error) {
	return authorizer.DecisionDeny, "", authorizer.ErrorConditionEvaluationNotSupported
}

// RulesFor implements authorizer.RuleResolver, for `kubectl auth can-i --list`.
func (ps Policies) RulesFor(_ context.Context, u user.Info, namespace string) (resources []authorizer.ResourceRuleInfo, urls []authorizer.NonResourceRuleInfo, incomplete bool, err error) {
	for i := range ps {
		p := &ps[i]
		if !p.is(u) {
			continue
		}
		verbs := []string{all}
		if p.ReadOnly {
			verbs = reading
		}
		if p.Resource != "" && (p.Namespace == all || p.Namespace == namespace) {
			resources = append(resources, &authorizer.DefaultResourceRuleInfo{Verbs: verbs, APIGroups: []string{p.APIGroup}, Resources: []string{p.Resource}})
		}
		if p.NonResourcePath != "" {
			urls = append(urls, &authorizer.DefaultNonResourceRuleInfo{Verbs: verbs, NonResourceURLs: []string{p.NonResourcePath}})
		}
	}
	return resources, urls, false, nil
}
