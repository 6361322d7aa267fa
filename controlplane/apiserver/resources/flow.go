package resources

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/apis/flowcontrol/bootstrap"
	"k8s.io/apiserver/pkg/util/shufflesharding"

	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
)

func flowControl() []*descriptor.Resource {
	gv := flowcontrolv1.SchemeGroupVersion
	return []*descriptor.Resource{
		kind[flowcontrolv1.FlowSchema, flowcontrolv1.FlowSchemaList]("FlowSchema", descriptor.Resource{
			GroupVersion: gv, Generation: true, Status: true,
			Default:  descriptor.Each(func(f *flowcontrolv1.FlowSchema) { fill(&f.Spec.MatchingPrecedence, 1000) }),
			Validate: descriptor.Check(validateFlowSchema),
			Order: func(a, b runtime.Object) int { // the one that is looked at first comes first
				return cmp.Compare(a.(*flowcontrolv1.FlowSchema).Spec.MatchingPrecedence, b.(*flowcontrolv1.FlowSchema).Spec.MatchingPrecedence)
			},
			Columns: []descriptor.Column{
				{Name: "PriorityLevel", Cell: descriptor.Cell(func(f *flowcontrolv1.FlowSchema) string { return f.Spec.PriorityLevelConfiguration.Name })},
				{Name: "MatchingPrecedence", Type: "integer", Cell: descriptor.Cell(func(f *flowcontrolv1.FlowSchema) int64 { return int64(f.Spec.MatchingPrecedence) })},
				{Name: "DistinguisherMethod", Cell: descriptor.Cell(func(f *flowcontrolv1.FlowSchema) string {
					if f.Spec.DistinguisherMethod == nil {
						return "<none>"
					}
					return string(f.Spec.DistinguisherMethod.Type)
				})},
				descriptor.Age,
				{Name: "MissingPL", Cell: descriptor.Cell(func(f *flowcontrolv1.FlowSchema) string {
					for _, c := range f.Status.Conditions {
						if c.Type == flowcontrolv1.FlowSchemaConditionDangling {
							return string(c.Status)
						}
					}
					return "?"
				})},
			},
		}),
		kind[flowcontrolv1.PriorityLevelConfiguration, flowcontrolv1.PriorityLevelConfigurationList]("PriorityLevelConfiguration", descriptor.Resource{
			GroupVersion: gv, Generation: true, Status: true,
			Default: descriptor.Each(func(c *flowcontrolv1.PriorityLevelConfiguration) {
				if l := c.Spec.Limited; l != nil {
					set(&l.NominalConcurrencyShares, int32(30))
					set(&l.LendablePercent, int32(0))
					if q := l.LimitResponse.Queuing; q != nil {
						fill(&q.Queues, 64)
						fill(&q.HandSize, 8)
						fill(&q.QueueLengthLimit, 50)
					}
				}
				if e := c.Spec.Exempt; e != nil {
					set(&e.NominalConcurrencyShares, int32(0))
					set(&e.LendablePercent, int32(0))
				}
			}),
			Validate: descriptor.Check(validatePriorityLevel),
			Columns: []descriptor.Column{
				{Name: "Type", Cell: descriptor.Cell(func(c *flowcontrolv1.PriorityLevelConfiguration) string { return string(c.Spec.Type) })},
				{Name: "NominalConcurrencyShares", Cell: descriptor.Cell(func(c *flowcontrolv1.PriorityLevelConfiguration) string {
					if c.Spec.Limited == nil {
						return "<none>"
					}
					return valueOr(c.Spec.Limited.NominalConcurrencyShares, "<none>")
				})},
				queueColumn("Queues", func(q *flowcontrolv1.QueuingConfiguration) int32 { return q.Queues }),
				queueColumn("HandSize", func(q *flowcontrolv1.QueuingConfiguration) int32 { return q.HandSize }),
				queueColumn("QueueLengthLimit", func(q *flowcontrolv1.QueuingConfiguration) int32 { return q.QueueLengthLimit }),
				descriptor.Age,
			},
		}),
	}
}

func queueColumn(name string, of func(*flowcontrolv1.QueuingConfiguration) int32) descriptor.Column {
	return descriptor.Column{Name: name, Cell: descriptor.Cell(func(c *flowcontrolv1.PriorityLevelConfiguration) string {
		if c.Spec.Limited == nil || c.Spec.Limited.LimitResponse.Queuing == nil {
			return "<none>"
		}
		return fmt.Sprint(of(c.Spec.Limited.LimitResponse.Queuing))
	})}
}

func validateFlowSchema(f *flowcontrolv1.FlowSchema) field.ErrorList {
	p := field.NewPath("spec")
	var errs field.ErrorList
	// The mandatory ones may be shown, never changed: without them nobody could repair anything.
	for _, m := range bootstrap.MandatoryFlowSchemas {
		if m.Name == f.Name && !apiequality.Semantic.DeepEqual(m.Spec, f.Spec) {
			errs = append(errs, field.Invalid(p, f.Spec, fmt.Sprintf("spec of '%s' must equal the fixed value", f.Name)))
		}
	}
	const last = 10000
	switch n := f.Spec.MatchingPrecedence; {
	case n < 1:
		errs = append(errs, field.Invalid(p.Child("matchingPrecedence"), n, "must be a positive value"))
	case n > last:
		errs = append(errs, field.Invalid(p.Child("matchingPrecedence"), n, fmt.Sprintf("must not be greater than %v", last)))
	case n == 1 && f.Name != flowcontrolv1.FlowSchemaNameExempt:
		errs = append(errs, field.Invalid(p.Child("matchingPrecedence"), n, "only the schema named 'exempt' may have matchingPrecedence 1"))
	}
	if d := f.Spec.DistinguisherMethod; d != nil {
		errs = append(errs, oneOf(d.Type, p.Child("distinguisherMethod", "type"), flowcontrolv1.FlowDistinguisherMethodByNamespaceType, flowcontrolv1.FlowDistinguisherMethodByUserType)...)
	}
	if name, np := f.Spec.PriorityLevelConfiguration.Name, p.Child("priorityLevelConfiguration", "name"); name == "" {
		errs = append(errs, field.Required(np, "must reference a priority level"))
	} else {
		errs = append(errs, invalidIf(subdomain(name), np, name)...)
	}
	for i, r := range f.Spec.Rules {
		errs = append(errs, validateFlowRule(r, p.Child("rules").Index(i))...)
	}
	return errs
}

func validateFlowRule(r flowcontrolv1.PolicyRulesWithSubjects, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	if len(r.Subjects) == 0 {
		errs = append(errs, field.Required(p.Child("subjects"), "subjects must contain at least one value"))
	}
	for i, s := range r.Subjects {
		sp := p.Child("subjects").Index(i)
		errs = append(errs, oneOf(s.Kind, sp.Child("kind"), flowcontrolv1.SubjectKindGroup, flowcontrolv1.SubjectKindServiceAccount, flowcontrolv1.SubjectKindUser)...)
		for _, m := range []struct {
			kind  flowcontrolv1.SubjectKind
			child string
			set   bool
			named bool
		}{
			{flowcontrolv1.SubjectKindUser, "user", s.User != nil, s.User != nil && s.User.Name != ""},
			{flowcontrolv1.SubjectKindGroup, "group", s.Group != nil, s.Group != nil && s.Group.Name != ""},
			{flowcontrolv1.SubjectKindServiceAccount, "serviceAccount", s.ServiceAccount != nil, s.ServiceAccount != nil && s.ServiceAccount.Name != ""},
		} {
			if m.kind == s.Kind && s.Kind == flowcontrolv1.SubjectKindServiceAccount && m.set && s.ServiceAccount.Namespace == "" {
				errs = append(errs, field.Required(sp.Child(m.child, "namespace"), "must specify namespace for service account"))
			}
			switch {
			case m.kind == s.Kind && !m.set:
				errs = append(errs, field.Required(sp.Child(m.child), fmt.Sprintf("%s is required when subject kind is '%s'", m.child, m.kind)))
			case m.kind == s.Kind && !m.named:
				errs = append(errs, field.Required(sp.Child(m.child, "name"), ""))
			case m.kind != s.Kind && m.set:
				errs = append(errs, field.Forbidden(sp.Child(m.child), fmt.Sprintf("%s is forbidden when subject kind is not '%s'", m.child, m.kind)))
			}
		}
	}
	if len(r.ResourceRules)+len(r.NonResourceRules) == 0 {
		errs = append(errs, field.Required(p, "at least one of resourceRules and nonResourceRules has to be non-empty"))
	}
	list := func(items []string, lp *field.Path) {
		if len(items) == 0 {
			errs = append(errs, field.Required(lp, ""))
		}
		if len(items) > 1 && slices.Contains(items, "*") {
			errs = append(errs, field.Invalid(lp, items, "if '*' is present, must not specify other items"))
		}
	}
	verbs := func(items []string, lp *field.Path) {
		list(items, lp)
		known := sets.New("*", "get", "list", "watch", "create", "update", "delete", "deletecollection", "patch", "proxy", "head", "post", "put", "options", "connect", "impersonate", "bind", "escalate")
		for i, v := range items {
			if !known.Has(v) {
				errs = append(errs, field.NotSupported(lp.Index(i), v, sets.List(known)))
			}
		}
	}
	for i, rr := range r.ResourceRules {
		rp := p.Child("resourceRules").Index(i)
		verbs(rr.Verbs, rp.Child("verbs"))
		list(rr.APIGroups, rp.Child("apiGroups"))
		list(rr.Resources, rp.Child("resources"))
		if len(rr.Namespaces) == 0 && !rr.ClusterScope {
			errs = append(errs, field.Required(rp.Child("namespaces"), "resource rules that are not cluster scoped must supply at least one namespace"))
		} else if len(rr.Namespaces) > 0 {
			list(rr.Namespaces, rp.Child("namespaces"))
		}
	}
	for i, nr := range r.NonResourceRules {
		np := p.Child("nonResourceRules").Index(i)
		verbs(nr.Verbs, np.Child("verbs"))
		list(nr.NonResourceURLs, np.Child("nonResourceURLs"))
		for j, u := range nr.NonResourceURLs {
			if u != "*" && (!strings.HasPrefix(u, "/") || strings.Contains(strings.TrimSuffix(u, "*"), "*") || strings.ContainsAny(u, " ?#")) {
				errs = append(errs, field.Invalid(np.Child("nonResourceURLs").Index(j), u, "must be a path that begins with a slash; a wildcard can only be its end"))
			}
		}
	}
	return errs
}

func validatePriorityLevel(c *flowcontrolv1.PriorityLevelConfiguration) field.ErrorList {
	p := field.NewPath("spec")
	s := &c.Spec
	errs := oneOf(s.Type, p.Child("type"), flowcontrolv1.PriorityLevelEnablementExempt, flowcontrolv1.PriorityLevelEnablementLimited)
	for _, m := range bootstrap.MandatoryPriorityLevelConfigurations {
		exempt := m.Name == flowcontrolv1.PriorityLevelConfigurationNameExempt // its shares may be changed
		switch {
		case m.Name != c.Name:
		case exempt && s.Type != flowcontrolv1.PriorityLevelEnablementExempt, !exempt && !apiequality.Semantic.DeepEqual(m.Spec, c.Spec):
			errs = append(errs, field.Invalid(p, c.Spec, fmt.Sprintf("spec of '%s' must equal the fixed value", c.Name)))
		}
	}
	percent := func(n *int32, np *field.Path, most int32) {
		if n != nil && (*n < 0 || *n > most) {
			errs = append(errs, field.Invalid(np, *n, fmt.Sprintf("must be between 0 and %d, inclusive", most)))
		}
	}
	switch s.Type {
	case flowcontrolv1.PriorityLevelEnablementExempt:
		if s.Limited != nil {
			errs = append(errs, field.Forbidden(p.Child("limited"), "must be nil if the type is not Limited"))
		}
		if e := s.Exempt; e != nil {
			percent(e.LendablePercent, p.Child("exempt", "lendablePercent"), 100)
			if n := e.NominalConcurrencyShares; n != nil && *n < 0 {
				errs = append(errs, field.Invalid(p.Child("exempt", "nominalConcurrencyShares"), *n, "must be a non-negative integer"))
			}
		}
	case flowcontrolv1.PriorityLevelEnablementLimited:
		if s.Exempt != nil {
			errs = append(errs, field.Forbidden(p.Child("exempt"), "must be nil if the type is Limited"))
		}
		lp := p.Child("limited")
		l := s.Limited
		if l == nil {
			return append(errs, field.Required(lp, "must not be empty when type is Limited"))
		}
		if n := l.NominalConcurrencyShares; n != nil && *n < 0 {
			errs = append(errs, field.Invalid(lp.Child("nominalConcurrencyShares"), *n, "must be a non-negative integer"))
		}
		percent(l.LendablePercent, lp.Child("lendablePercent"), 100)
		if b := l.BorrowingLimitPercent; b != nil && *b < 0 {
			errs = append(errs, field.Invalid(lp.Child("borrowingLimitPercent"), *b, "if specified, must be a non-negative integer"))
		}
		rp := lp.Child("limitResponse")
		errs = append(errs, oneOf(l.LimitResponse.Type, rp.Child("type"), flowcontrolv1.LimitResponseTypeQueue, flowcontrolv1.LimitResponseTypeReject)...)
		switch q := l.LimitResponse.Queuing; {
		case l.LimitResponse.Type == flowcontrolv1.LimitResponseTypeReject && q != nil:
			errs = append(errs, field.Forbidden(rp.Child("queuing"), "must be nil if limited.limitResponse.type is not Limited"))
		case l.LimitResponse.Type == flowcontrolv1.LimitResponseTypeQueue && q == nil:
			errs = append(errs, field.Required(rp.Child("queuing"), "must not be empty if limited.limitResponse.type is Limited"))
		case q != nil:
			errs = append(errs, validateQueuing(q, rp.Child("queuing"))...)
		}
	}
	return errs
}

// maxQueues bounds the memory that one priority level takes.
const maxQueues = 10_000_000

func validateQueuing(q *flowcontrolv1.QueuingConfiguration, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	if q.QueueLengthLimit <= 0 {
		errs = append(errs, field.Invalid(p.Child("queueLengthLimit"), q.QueueLengthLimit, "must be positive"))
	}
	switch {
	case q.Queues <= 0:
		return append(errs, field.Invalid(p.Child("queues"), q.Queues, "must be positive"))
	case q.Queues > maxQueues:
		errs = append(errs, field.Invalid(p.Child("queues"), q.Queues, fmt.Sprintf("must not be greater than %d", maxQueues)))
	}
	switch {
	case q.HandSize <= 0:
		errs = append(errs, field.Invalid(p.Child("handSize"), q.HandSize, "must be positive"))
	case q.HandSize > q.Queues:
		errs = append(errs, field.Invalid(p.Child("handSize"), q.HandSize, fmt.Sprintf("should not be greater than queues (%d)", q.Queues)))
	case shufflesharding.RequiredEntropyBits(int(q.Queues), int(q.HandSize)) > shufflesharding.MaxHashBits:
		errs = append(errs, field.Invalid(p.Child("handSize"), q.HandSize, fmt.Sprintf("required entropy bits of deckSize %d and handSize %d should not be greater than %d", q.Queues, q.HandSize, shufflesharding.MaxHashBits)))
	}
	return errs
}
