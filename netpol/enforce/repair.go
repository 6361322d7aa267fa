package enforce

import (
	"net/netip"
	"slices"

	"github.com/strake-io/strake/bpf"
)

// keyed are rows by what is theirs alone.
func keyed[K comparable, R any](rows []R, key func(R) K) map[K]R {
	out := make(map[K]R, len(rows))
	for _, r := range rows {
		out[key(r)] = r
	}
	return out
}

// different are the rows of want that have does not have just so.
func different[K comparable, R comparable](want []R, have map[K]R, key func(R) K) []R {
	var out []R
	for _, r := range want {
		if h, ok := have[key(r)]; !ok || h != r {
			out = append(out, r)
		}
	}
	return out
}

// gone are the rows of have of which want has none.
func gone[K comparable, R any](have []R, want map[K]R, key func(R) K) []R {
	var out []R
	for _, r := range have {
		if _, ok := want[key(r)]; !ok {
			out = append(out, r)
		}
	}
	return out
}

type answerKey struct{ set, identity uint32 }

func subjectOf(s bpf.PolicySubject) netip.Addr { return s.Addr }
func peerOf(p bpf.PolicyPeer) netip.Prefix     { return p.Prefix }
func answerOf(a bpf.PolicyAnswer) answerKey    { return answerKey{a.RuleSet, a.Identity} }
func nameOf(n bpf.PolicyName) uint32           { return n.Policy }

// lists are the rows of ports by their list.
func lists(rows []bpf.PolicyPort) map[uint32]map[bpf.PolicyPort]bool {
	out := map[uint32]map[bpf.PolicyPort]bool{}
	for _, r := range rows {
		if out[r.Ports] == nil {
			out[r.Ports] = map[bpf.PolicyPort]bool{}
		}
		out[r.Ports][r] = true
	}
	return out
}

// repair gives the writes that make tables what they should be, whatever they hold. The first frees what no row in force leads to, as the
// second may want the room. The rows of reborn addresses, which are another pod's now, are written whatever they hold.
func repair(have, want bpf.PolicyRows, reborn []netip.Addr) []bpf.PolicyChange {
	havePorts, wantPorts := lists(have.Ports), lists(want.Ports)
	c := bpf.PolicyChange{
		Names:    different(want.Names, keyed(have.Names, nameOf), nameOf),
		Answers:  different(want.Answers, keyed(have.Answers, answerOf), answerOf),
		Peers:    different(want.Peers, keyed(have.Peers, peerOf), peerOf),
		Subjects: different(want.Subjects, keyed(have.Subjects, subjectOf), subjectOf),
	}
	for _, s := range want.Subjects {
		if slices.Contains(reborn, s.Addr) {
			c.Subjects, c.Reborn = append(c.Subjects, s), append(c.Reborn, s.Addr)
		}
	}
	for _, p := range want.Ports {
		if !havePorts[p.Ports][p] {
			c.Ports = append(c.Ports, p)
		}
	}
	for _, p := range have.Ports {
		if list := wantPorts[p.Ports]; list != nil && !list[p] {
			c.Ports = append(c.Ports, neutral(p, list)...)
		}
	}
	for _, s := range gone(have.Subjects, keyed(want.Subjects, subjectOf), subjectOf) {
		c.GoneSubjects = append(c.GoneSubjects, s.Addr)
	}
	for _, p := range gone(have.Peers, keyed(want.Peers, peerOf), peerOf) {
		c.GonePeers = append(c.GonePeers, p.Prefix)
	}
	inForce, asked := map[uint32]bool{}, map[uint32]bool{}
	for _, s := range have.Subjects {
		for _, set := range []uint32{s.Ingress, s.Egress, s.ShadowIngress, s.ShadowEgress} {
			inForce[set] = true
		}
	}
	for _, a := range have.Answers {
		if inForce[a.RuleSet] {
			asked[a.Ports] = true
		}
	}
	var free bpf.PolicyChange
	for _, a := range gone(have.Answers, keyed(want.Answers, answerOf), answerOf) {
		if inForce[a.RuleSet] {
			c.GoneAnswers = append(c.GoneAnswers, a)
		} else {
			free.GoneAnswers = append(free.GoneAnswers, a)
		}
	}
	for list := range havePorts {
		switch {
		case wantPorts[list] != nil:
		case asked[list]:
			c.GonePorts = append(c.GonePorts, list)
		default:
			free.GonePorts = append(free.GonePorts, list)
		}
	}
	for _, n := range gone(have.Names, keyed(want.Names, nameOf), nameOf) {
		c.GoneNames = append(c.GoneNames, n.Policy)
	}
	var out []bpf.PolicyChange
	for _, change := range []bpf.PolicyChange{free, c} {
		if !emptyChange(change) {
			out = append(out, change)
		}
	}
	return out
}

// neutral gives a row that a list should not have the verdict that the list gives without it: single rows of lists don't go.
func neutral(row bpf.PolicyPort, list map[bpf.PolicyPort]bool) []bpf.PolicyPort {
	var best *bpf.PolicyPort
	for p := range list {
		if p.Protocol == row.Protocol && p.Port == row.Port && p.Bits == row.Bits {
			return nil // another verdict, which is written as the list's own row
		}
		covers := p.Protocol == 0 || p.Protocol == row.Protocol && p.Bits <= row.Bits && p.Port == row.Port&^uint16(1<<(16-p.Bits)-1)
		if covers && (best == nil || p.Protocol != 0 && (best.Protocol == 0 || p.Bits > best.Bits)) {
			best = &p
		}
	}
	if best == nil || row.Verdict == best.Verdict {
		return nil
	}
	row.Verdict = best.Verdict
	return []bpf.PolicyPort{row}
}

func emptyChange(c bpf.PolicyChange) bool {
	return len(c.Names)+len(c.Ports)+len(c.Answers)+len(c.Peers)+len(c.Subjects)+
		len(c.GoneSubjects)+len(c.GonePeers)+len(c.GoneAnswers)+len(c.GonePorts)+len(c.GoneNames) == 0
}
