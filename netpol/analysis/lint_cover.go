package analysis

import (
	"fmt"

	"github.com/strake-io/strake/netpol"
)

// situation is where rules are asked: a rule set, for one class of peers.
type situation struct {
	rules []*rule // that match, in order
	ports []PortSet
}

// situations of a direction, each once.
func (l *linter) situations(d netpol.Direction) []situation {
	a := l.a
	type variant struct {
		s      *ruleSet
		names  string
		family int
	}
	seen := map[variant]bool{}
	var out []situation
	for _, subject := range a.classes {
		s := subject.sets[d]
		if s == nil {
			continue
		}
		v := variant{s: s, family: subject.family}
		if d == netpol.Ingress && s.named {
			v.names = subject.names
		}
		if seen[v] {
			continue
		}
		seen[v] = true
		matching := make([][]int, len(a.classes))
		for i, r := range s.rules {
			r.classes.each(func(c int) bool { matching[c] = append(matching[c], i); return true })
		}
		known := map[string]bool{}
		for c, list := range matching {
			if len(list) == 0 || a.classes[c].family != subject.family {
				continue
			}
			dest := subject
			if d == netpol.Egress {
				dest = a.classes[c]
			}
			key := fmt.Sprint(list)
			if s.named {
				key += dest.names
			}
			if known[key] {
				continue
			}
			known[key] = true
			var one situation
			for _, i := range list {
				one.rules = append(one.rules, s.rules[i])
			}
			rules := one.rules
			for _, r := range rules {
				one.ports = append(one.ports, r.portsOf(dest))
			}
			out = append(out, one)
		}
	}
	return out
}

// cover looks for rules that make no difference: all that they would decide is decided without them.
func (l *linter) cover() {
	for _, d := range []netpol.Direction{netpol.Ingress, netpol.Egress} {
		all := l.situations(d)
		in := map[*rule][]int{} // situations of a rule
		for i, s := range all {
			for _, r := range s.rules {
				in[r] = append(in[r], i)
			}
		}
		gone := map[*rule]bool{}
		for i := len(l.a.policies) - 1; i >= 0; i-- {
			p := l.a.policies[i]
			for j := len(p.rules[d]) - 1; j >= 0; j-- {
				r := p.rules[d][j]
				if len(in[r]) == 0 || l.never[r] {
					continue
				}
				if p.np == nil {
					l.unreached(r, all, in[r])
				} else if !l.overridden(r, all, in[r]) {
					l.redundant(r, all, in[r], gone)
				}
			}
		}
	}
}

// mine gives the ports of a rule in a situation.
func (s situation) mine(r *rule) PortSet {
	for i, o := range s.rules {
		if o == r {
			return s.ports[i]
		}
	}
	return PortSet{}
}

// unreached looks at a rule of a ClusterNetworkPolicy: what rules before it in its tier leave of it.
func (l *linter) unreached(r *rule, all []situation, in []int) {
	only := newWitness()
	for _, n := range in {
		left := all[n].mine(r)
		if left.Empty() {
			continue
		}
		need := left
		for i, o := range all[n].rules {
			if o == r {
				break
			}
			if o.policy.tier == r.policy.tier {
				left = left.minus(all[n].ports[i])
			}
		}
		if !left.Empty() {
			return
		}
		only.keep(r, all[n], need, func(o *rule) bool { return o.policy.tier == r.policy.tier })
	}
	if only.asked {
		l.add("unreached-rule", Warning, r.policy.object(), r.path(), "%s", only.words("comes before it and decides all that it matches", "before it together decide all that it matches"))
	}
}

// overridden looks at a rule of a NetworkPolicy: what the Admin tier leaves of it.
func (l *linter) overridden(r *rule, all []situation, in []int) bool {
	only := newWitness()
	for _, n := range in {
		need := all[n].mine(r)
		if need.Empty() {
			continue
		}
		left, decided := need, PortSet{}
		for i, o := range all[n].rules {
			if o.policy.tier != netpol.TierAdmin {
				continue
			}
			hit := left.and(all[n].ports[i])
			left = left.minus(hit)
			if o.action != pass {
				decided = decided.or(hit)
			}
		}
		if !need.minus(decided).Empty() {
			return false
		}
		only.keep(r, all[n], need, func(o *rule) bool { return o.policy.tier == netpol.TierAdmin && o.action != pass })
	}
	if only.asked {
		l.add("overridden-rule", Info, r.policy.object(), r.path(), "%s", only.words("decides all that it would admit", "together decide all that it would admit"))
	}
	return only.asked
}

// redundant looks at a rule of a NetworkPolicy: what other rules that are not redundant themselves do not admit.
func (l *linter) redundant(r *rule, all []situation, in []int, gone map[*rule]bool) {
	only := newWitness()
	counts := func(o *rule) bool { return o.policy.np != nil && o != r && !gone[o] }
	for _, n := range in {
		need := all[n].mine(r)
		if need.Empty() {
			continue
		}
		left := need
		for i, o := range all[n].rules {
			if counts(o) && !left.Empty() {
				left = left.minus(all[n].ports[i])
			}
		}
		if !left.Empty() {
			return
		}
		only.keep(r, all[n], need, counts)
	}
	if only.asked {
		gone[r] = true
		l.add("redundant-rule", Info, r.policy.object(), r.path(), "%s", only.words("admits all that it admits", "together admit all that it admits"))
	}
}

// witness are the rules each of which alone does, in all situations so far, what another one does.
type witness struct {
	asked bool
	alone []*rule
}

func newWitness() *witness { return &witness{} }

// keep leaves those that do it in this situation too.
func (w *witness) keep(r *rule, s situation, need PortSet, counts func(*rule) bool) {
	var now []*rule
	for i, o := range s.rules {
		if o != r && counts(o) && need.minus(s.ports[i]).Empty() {
			now = append(now, o)
		}
		if o == r && r.policy.np == nil {
			break // later ones do not come before it
		}
	}
	if !w.asked {
		w.asked, w.alone = true, now
		return
	}
	var both []*rule
	for _, o := range w.alone {
		for _, x := range now {
			if o == x {
				both = append(both, o)
			}
		}
	}
	w.alone = both
}

func (w *witness) words(one, several string) string {
	if len(w.alone) > 0 {
		return w.alone[0].path().String() + " of " + w.alone[0].policy.ref.String() + " " + one
	}
	return "other rules " + several
}
