package compiler

import (
	"net/netip"

	"k8s.io/apimachinery/pkg/types"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/netpol"
)

// Tables judge by rows as the programs in the kernel do: by the same three looks.
type Tables struct {
	subjects map[netip.Addr]bpf.PolicySubject
	peers    map[netip.Prefix]uint32
	lengths  [2][129]int // of the peers' prefixes, how many there are
	answers  map[answerKey]uint32
	ports    map[portKey]bpf.PolicyVerdict
	names    map[uint32]netpol.PolicyRef
}

type answerKey struct{ set, identity uint32 }

type portKey struct {
	list     uint32
	protocol uint8
	port     uint16
	bits     uint8
}

// Interpret reads rows.
func Interpret(rows bpf.PolicyRows) *Tables {
	t := &Tables{
		subjects: make(map[netip.Addr]bpf.PolicySubject, len(rows.Subjects)), peers: make(map[netip.Prefix]uint32, len(rows.Peers)),
		answers: make(map[answerKey]uint32, len(rows.Answers)), ports: make(map[portKey]bpf.PolicyVerdict, len(rows.Ports)),
		names: make(map[uint32]netpol.PolicyRef, len(rows.Names)),
	}
	t.write(bpf.PolicyChange{Names: rows.Names, Ports: rows.Ports, Answers: rows.Answers, Peers: rows.Peers, Subjects: rows.Subjects})
	return t
}

// Apply makes a change as the kernel's tables take it.
func (t *Tables) Apply(c bpf.PolicyChange) {
	t.write(c)
	for _, a := range c.GoneSubjects {
		delete(t.subjects, a)
	}
	for _, p := range c.GonePeers {
		if _, there := t.peers[p]; there {
			delete(t.peers, p)
			t.lengths[family(p.Addr())][p.Bits()]--
		}
	}
	for _, a := range c.GoneAnswers {
		delete(t.answers, answerKey{a.RuleSet, a.Identity})
	}
	gone := map[uint32]bool{}
	for _, list := range c.GonePorts {
		gone[list] = true
	}
	if len(gone) > 0 {
		for k := range t.ports {
			if gone[k.list] {
				delete(t.ports, k)
			}
		}
	}
	for _, n := range c.GoneNames {
		delete(t.names, n)
	}
}

func (t *Tables) write(c bpf.PolicyChange) {
	for _, n := range c.Names {
		t.names[n.Policy] = policyRef(n)
	}
	for _, p := range c.Ports {
		t.ports[portKey{p.Ports, p.Protocol, p.Port, p.Bits}] = p.Verdict
	}
	for _, a := range c.Answers {
		t.answers[answerKey{a.RuleSet, a.Identity}] = a.Ports
	}
	for _, p := range c.Peers {
		if _, there := t.peers[p.Prefix]; !there {
			t.lengths[family(p.Prefix.Addr())][p.Prefix.Bits()]++
		}
		t.peers[p.Prefix] = p.Identity
	}
	for _, s := range c.Subjects {
		t.subjects[s.Addr] = s
	}
}

// identity is what an address is to others.
func (t *Tables) identity(a netip.Addr) uint32 {
	if s, is := t.subjects[a]; is {
		return s.Identity
	}
	return t.blockIdentity(netip.PrefixFrom(a, a.BitLen()))
}

// blockIdentity is that of a range's addresses that no smaller range holds.
func (t *Tables) blockIdentity(of netip.Prefix) uint32 {
	a := of.Addr()
	for bits := of.Bits(); bits >= 0; bits-- {
		if t.lengths[family(a)][bits] == 0 {
			continue
		}
		p, _ := a.Prefix(bits)
		if identity, is := t.peers[p]; is {
			return identity
		}
	}
	return 0
}

// Identity is what an address is to others; 0: one that no policy tells apart.
func (t *Tables) Identity(a netip.Addr) uint32 { return t.identity(a) }

// ask is what a rule set says; false: rows are missing.
func (t *Tables) ask(set, identity uint32, protocol uint8, port uint16) (bpf.PolicyVerdict, bool) {
	list, there := t.answers[answerKey{set, identity}]
	if !there {
		list, there = t.answers[answerKey{set, 0}]
	}
	if !there {
		return bpf.PolicyVerdict{}, false
	}
	if protocol == netpol.TCP || protocol == netpol.UDP || protocol == netpol.SCTP {
		for bits := 16; bits >= 0; bits-- {
			if v, is := t.ports[portKey{list, protocol, port &^ uint16(1<<(16-bits)-1), uint8(bits)}]; is {
				return v, true
			}
		}
	}
	v, is := t.ports[portKey{list: list}]
	return v, is
}

// Judge answers as bpf.PolicyMachine's does: an address with a subject's row is a pod of this node, and its direction is judged.
func (t *Tables) Judge(q bpf.PolicyQuery) bpf.PolicyDecision {
	out := bpf.PolicyDecision{Allowed: true}
	side := func(set uint32, other netip.Addr, to, shadow **bpf.PolicyVerdict, shadowSet uint32) {
		identity := t.identity(other)
		if set != 0 {
			v, there := t.ask(set, identity, q.Protocol, q.Port)
			*to = &v
			if !there {
				out.Allowed, out.NoVerdict = false, true
			} else if !v.Allow && !(v.Tier == bpf.PolicyTierNetworkPolicy && q.From == q.To) {
				out.Allowed = false
			}
		}
		if shadowSet != 0 {
			v, _ := t.ask(shadowSet, identity, q.Protocol, q.Port)
			*shadow = &v
		}
	}
	if s, is := t.subjects[q.From]; is {
		side(s.Egress, q.To, &out.Egress, &out.ShadowEgress, s.ShadowEgress)
	}
	if s, is := t.subjects[q.To]; is && !q.Node {
		side(s.Ingress, q.From, &out.Ingress, &out.ShadowIngress, s.ShadowIngress)
	}
	return out
}

// Policy tells whose number it is.
func (t *Tables) Policy(number uint32) (netpol.PolicyRef, bool) {
	ref, is := t.names[number]
	return ref, is
}

// policyRef is the policy that a row names.
func policyRef(n bpf.PolicyName) netpol.PolicyRef {
	return netpol.PolicyRef{Kind: n.Kind, Namespace: n.Namespace, Name: n.Name, UID: types.UID(n.UID)}
}
