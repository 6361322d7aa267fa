package bpf

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
)

// eachPolicyRow is eachRow, also where the kernel reads no ranges in one call (before Linux 5.13).
func eachPolicyRow[K, V any](m *ebpf.Map, do func(K, V)) error {
	if m.Type() != ebpf.LPMTrie {
		return eachRow(m, "policies", do)
	}
	var k K
	var v V
	it := m.Iterate()
	for it.Next(&k, &v) {
		do(k, v)
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("bpf: read policies: %w", err)
	}
	return nil
}

// Dump returns all rows, sorted. What is being written meanwhile may be half there.
func (t *PolicyTables) Dump() (PolicyRows, error) { return policyRows(t.m) }

// ReadPolicyNames tells what the numbers of policies stand for in the tables that are pinned below pinDir; no agent need run.
func ReadPolicyNames(pinDir string) (map[uint32]PolicyName, error) {
	maps, done, err := openPins(pinDir, []string{"policy_names"})
	if err != nil {
		return nil, err
	}
	defer done()
	out := map[uint32]PolicyName{}
	err = eachPolicyRow(maps["policy_names"], func(k uint32, v netPolicyName) { out[k] = policyNameOf(k, v) })
	return out, err
}

func policyNameOf(k uint32, v netPolicyName) PolicyName {
	return PolicyName{Policy: k, UID: textOf(v.Uid[:]), Kind: textOf(v.Kind[:]), Namespace: textOf(v.Namespace[:]), Name: textOf(v.Name[:])}
}

// Usage is how full the tables are.
func (t *PolicyTables) Usage() ([]MapStatus, error) {
	r, err := t.Dump()
	if err != nil {
		return nil, err
	}
	single := 0
	for _, p := range r.Peers {
		if p.Prefix.IsSingleIP() {
			single++
		}
	}
	var out []MapStatus
	for _, u := range []struct {
		name string
		rows int
	}{
		{"policy_subjects", len(r.Subjects)}, {"policy_peers", single}, {"policy_blocks", len(r.Peers) - single}, {"policy_answers", len(r.Answers)},
		{"policy_ports", len(r.Ports)}, {"policy_names", len(r.Names)},
	} {
		out = append(out, MapStatus{Name: u.name, Rows: u.rows, Max: t.m[u.name].MaxEntries()})
	}
	return out, nil
}

// ReadPolicies reads the tables of policies that are pinned below pinDir and changes nothing; no agent need run.
func ReadPolicies(pinDir string) (PolicyRows, error) {
	maps, done, err := openPins(pinDir, policyTables)
	if err != nil {
		return PolicyRows{}, err
	}
	defer done()
	return policyRows(maps)
}

func policyRows(m map[string]*ebpf.Map) (PolicyRows, error) {
	var r PolicyRows
	err := errors.Join(
		eachPolicyRow(m["policy_subjects"], func(k netAddr, v netPolicySubject) { r.Subjects = append(r.Subjects, policySubjectOf(k, v)) }),
		eachPolicyRow(m["policy_peers"], func(k netAddr, v uint32) {
			a := addrOf(k)
			r.Peers = append(r.Peers, PolicyPeer{Prefix: netip.PrefixFrom(a, a.BitLen()), Identity: v})
		}),
		eachPolicyRow(m["policy_blocks"], func(k netPrefix, v netPolicyBlock) {
			r.Peers = append(r.Peers, PolicyPeer{Prefix: rangeOf(k), Identity: v.Identity})
		}),
		eachPolicyRow(m["policy_answers"], func(k netPolicyAnswerKey, v uint32) {
			r.Answers = append(r.Answers, PolicyAnswer{RuleSet: k.Rules, Identity: k.Identity, Ports: v})
		}),
		eachPolicyRow(m["policy_ports"], func(k netPolicyPortKey, v netPolicyVerdict) { r.Ports = append(r.Ports, policyPortOf(k, v)) }),
		eachPolicyRow(m["policy_names"], func(k uint32, v netPolicyName) { r.Names = append(r.Names, policyNameOf(k, v)) }),
	)
	slices.SortFunc(r.Subjects, func(a, b PolicySubject) int { return a.Addr.Compare(b.Addr) })
	slices.SortFunc(r.Peers, func(a, b PolicyPeer) int {
		return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()))
	})
	slices.SortFunc(r.Answers, func(a, b PolicyAnswer) int {
		return cmp.Or(cmp.Compare(a.RuleSet, b.RuleSet), cmp.Compare(a.Identity, b.Identity))
	})
	slices.SortFunc(r.Ports, func(a, b PolicyPort) int {
		return cmp.Or(cmp.Compare(a.Ports, b.Ports), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Bits, b.Bits))
	})
	slices.SortFunc(r.Names, func(a, b PolicyName) int { return cmp.Compare(a.Policy, b.Policy) })
	return r, err
}

func policySubjectOf(k netAddr, v netPolicySubject) PolicySubject {
	return PolicySubject{
		Addr: addrOf(k), Identity: v.Identity, Egress: v.Rules[0], Ingress: v.Rules[1], ShadowEgress: v.Shadow[0], ShadowIngress: v.Shadow[1],
		KeepFlows: v.Flags&subjectKeeps != 0,
	}
}

// PolicyHit is how often a rule decided: each time that a flow was judged which it allows, and each packet that it denies.
type PolicyHit struct {
	Policy  uint32
	Rule    uint16 // PolicyNoRule: isolation; PolicyNoRoom: want of room
	Ingress bool   // its direction, else egress
	Allow   bool
	// Shadow: it is in a rule set that is asked but not followed, and would have done the other thing than what was done: Allow, what was denied;
	// else the reverse.
	Shadow         bool
	Packets, Bytes uint64
}

// Flags of a hit, as in lib/policyhits.h.
const (
	hitAllowed = 1
	hitShadow  = 2
)

// Hits returns what was counted since the policy got its number, sorted.
func (t *PolicyTables) Hits() ([]PolicyHit, error) { return policyHits(t.m["policy_hits"]) }

// ReadPolicyHits is Hits of what is pinned below pinDir; no agent need run.
func ReadPolicyHits(pinDir string) ([]PolicyHit, error) {
	maps, done, err := openPins(pinDir, []string{"policy_hits"})
	if err != nil {
		return nil, err
	}
	defer done()
	return policyHits(maps["policy_hits"])
}

func policyHits(m *ebpf.Map) ([]PolicyHit, error) {
	var out []PolicyHit
	var k netPolicyHitKey
	var per []netPolicyHit
	it := m.Iterate()
	for it.Next(&k, &per) {
		h := PolicyHit{Policy: k.Policy, Rule: k.Rule, Ingress: k.Direction != 0, Allow: k.Flags&hitAllowed != 0, Shadow: k.Flags&hitShadow != 0}
		for _, n := range per {
			h.Packets += n.Packets
			h.Bytes += n.Bytes
		}
		out = append(out, h)
	}
	slices.SortFunc(out, func(a, b PolicyHit) int {
		return cmp.Or(cmp.Compare(a.Policy, b.Policy), cmp.Compare(flag(a.Ingress), flag(b.Ingress)), cmp.Compare(a.Rule, b.Rule), cmp.Compare(flag(a.Shadow), flag(b.Shadow)),
			cmp.Compare(flag(a.Allow), flag(b.Allow)))
	})
	if err := it.Err(); err != nil {
		return out, fmt.Errorf("bpf: read what policies counted: %w", err)
	}
	return out, nil
}

func flag(b bool) int {
	if b {
		return 1
	}
	return 0
}

// forgetHits takes what was counted for policies away: their numbers may be given again.
func (t *PolicyTables) forgetHits(policies []uint32) error {
	gone := map[uint32]bool{}
	for _, p := range policies {
		gone[p] = true
	}
	var keys []netPolicyHitKey
	var errs []error
	m := t.m["policy_hits"]
	var at any // keys alone: of each the counts are as many as there are CPUs
	for range m.MaxEntries() {
		var k netPolicyHitKey
		if err := m.NextKey(at, &k); err != nil {
			if !errors.Is(err, ebpf.ErrKeyNotExist) {
				errs = append(errs, err)
			}
			break
		}
		if gone[k.Policy] {
			keys = append(keys, k)
		}
		at = k
	}
	for _, k := range keys {
		if err := t.m["policy_hits"].Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("bpf: forget what policies counted: %w", err)
	}
	return nil
}
