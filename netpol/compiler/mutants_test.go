package compiler

import (
	"testing"

	"github.com/strake-io/strake/netpol/mutants"
)

// seeded are faults of the compiler, each of which the comparison with the evaluator must notice.
var seeded = [][3]string{
	{"parse.go", "known[netpol.Egress] = len(p.Spec.Egress) > 0", "known[netpol.Egress] = true"},
	{"parse.go", "directions = [2]bool{true, true}", "_ = directions"},
	{"parse.go", "protocol := uint8(netpol.TCP)", "protocol := uint8(netpol.UDP)"},
	{"places.go", "if except == nil || !except.holds(p) {", "if except == nil || true {"},
	{"places.go", "for bits := p.Bits(); bits >= 0; bits-- {\n		if s.lengths", "for bits := p.Bits() - 1; bits >= 0; bits-- {\n		if s.lengths"},
	{"ports.go", "if pieces[i].last >= s.last {", "if true {"},
	{"parse.go", "span{uint16(p.Port.IntVal), uint16(end)}", "span{uint16(p.Port.IntVal), uint16(p.Port.IntVal)}"},
	{"parse.go", "s.namespace, ok = \"\", s.namespaces != nil", "s.namespaces, ok = nil, s.namespaces != nil"},
	{"parse.go", "ports := []port{}", "var ports []port"},
	{"parse.go", "		if broken {\n			rule.action = deny", "		if broken {\n			rule.action = pass"},
	{"parse.go", "		if rule.action == pass {\n			rule.action = deny", "		if rule.action == pass {\n			rule.action = pass"},
	{"parse.go", "rule.action != accept || valid && !broken", "rule.action != accept || valid"},
	{"policies.go", "cmp.Compare(p.priority, q.priority)", "cmp.Compare(q.priority, p.priority)"},
	{"policies.go", "strings.Compare(p.ref.Name, q.ref.Name))", "0)"},
	{"policies.go", "a.index == b.index && a.action == b.action", "a.index == b.index"},
	{"policies.go", "slices.EqualFunc(p.spans[:], q.spans[:], slices.Equal)", "true"},
	{"policies.go", "has := p != nil && p.selects(k)", "has := p != nil"},
	{"sets.go", "if !p.shadow {", "if true {"},
	{"sets.go", "state, v = passed, bpf.PolicyVerdict{}", "state, v = decided, bpf.PolicyVerdict{Allow: true}"},
	{"sets.go", "		out.nextTier()\n", ""},
	{"sets.go", "if side.isolates && (isolating == nil || side.crowded && !isolating.crowded) {", "if side.isolates {"},
	{"sets.go", "key = append(append(key, 0), kindContent(nil, named)...)", "_ = key"},
	{"sets.go", "return s.names[a.port.name] != nil", "return false"},
	{"sets.go", "(n.protocol == 0 || n.protocol == p.protocol) {\n				of :=", "true {\n				of :="},
	{"sets.go", "				c.answer(s, id, out)\n", ""},
	{"sets.go", "if max(c.answerRows, c.portRows) >= c.most() {", "if false {"},
	{"room.go", "	out.paintAll(decided, bpf.PolicyVerdict{Policy: first", "	out.paintAll(decided, bpf.PolicyVerdict{Allow: true, Policy: first"},
	{"atoms.go", "if at >= 0 && !k.identities[at].identity.gone {", "if at >= 0 {"},
	{"atoms.go", "for n := range c.nodeAtoms {", "for n := range map[*atom]struct{}{} {"},
	{"atoms.go", "for _, l := range k.namespace.labels {", "for _, l := range k.labels {"},
	{"pods.go", "return p.created > q.created", "return p.created < q.created"},
	{"addresses.go", "return !o.Spec.HostNetwork && o.Status.Phase", "return o.Status.Phase"},
	{"addresses.go", "o.Status.Phase != corev1.PodSucceeded && ", ""},
	{"pods.go", "c.RestartPolicy != nil && ", "c.RestartPolicy == nil || "},
	{"places.go", "at.cover = above.cover", "_ = above.cover"},
	{"ports.go", "uint32(s.first) <= uint32(l.last)+1", "uint32(s.first) <= uint32(l.last)+2"},
	{"ports.go", "port+1<<(15-bits), bits+1, above", "port, bits+1, above"},
	{"flush.go", "	c.touchPlaces(c.places.cover(a))", "	c.places.cover(a)"},
	{"flush.go", "	if c.retire() {", "	if false {"},
	{"flush.go", "return id.number, id != outer", "return id.number, id != c.stranger || outer == nil"},
	{"flush.go", "row.keep = said == keepYes", "_ = row"},
	{"flush.go", "			row.identity = id.number\n", ""},
	{"transition.go", "if steps[0] == nil || steps[1] == nil {", "if true {"},
	{"transition.go", "if len(was) == 0 || !local {", "if true {"},
	{"transition.go", "case loosens | tightens:", "case 0xff:"},
	{"continue.go", "if got != want {", "if got != want && p.was != p.is {"},
	{"continue.go", "		sets[key.set] = before", "		sets[key.set] = now"},
	{"continue.go", "if !taken[v.number] && !given[v.id] {", "if !given[v.id] {"},
	{"pods.go", "return order < 0", "return order > 0"},
	{"ports.go", "		if x.Allow {\n			return y", "		if x.Allow {\n			return x"},
	{"ports.go", "	if c.other.state == passed {", "	if false {"},
	{"ports.go", "for len(spans) > 0 && uint32(spans[0].last) < first {", "for false {"},
	{"ports.go", "l.last = max(l.last, s.last)", "l.last = s.last"},
	{"flush.go", "	if said == keepUnsaid {\n", "	if true {\n"},
	{"flush.go", "p.local && (p.kind.namespace.known || c.options.NodeName == \"\")", "p.local"},
	{"flush.go", "				was[k] = k.atoms\n", ""},
	{"sets.go", "		delete(c.lists, l.key)\n", ""},
	{"sets.go", "		for _, a := range n.atoms {\n			some(a)\n		}", "		_ = n"},
	{"sets.go", "	if s.both[0] != nil && id.was != nil {", "	if false {"},
	{"atoms.go", "		was = []*atom{}", "		was = nil"},
	{"interpret.go", "!(v.Tier == bpf.PolicyTierNetworkPolicy && q.From == q.To)", "true"},
}

func TestMutants(t *testing.T) {
	mutants.Try(t, seeded, "-run", "TestRows|TestPod|TestKeep|TestNoRoom|TestChanges|TestTwo|TestName", ".")
}
