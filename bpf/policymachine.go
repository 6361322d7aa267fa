package bpf

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
)

// PolicyMachine is the programs' judge with tables of its own, which no packet sees. It needs the right to load programs, and no network.
type PolicyMachine struct {
	*PolicyTables
	coll *ebpf.Collection
	mu   sync.Mutex // of in and out
	in   []byte
	out  []byte
}

// PolicyQuery asks whether a flow may begin. An address with a PolicySubject's row is a pod of this node: its direction is judged. Where both are the same
// pod, it gets itself by a Service.
type PolicyQuery struct {
	From, To netip.Addr
	Protocol uint8
	Port     uint16 // of To; protocols other than TCP, UDP and SCTP have none
	Node     bool   // the node's own stack sends: ingress is not judged
}

// PolicyDecision answers a PolicyQuery.
type PolicyDecision struct {
	Allowed bool
	// NoVerdict: rows are missing; that denies.
	NoVerdict bool
	// By direction, nil where nothing judges it: no rule set, or no pod of this node.
	Egress, Ingress             *PolicyVerdict
	ShadowEgress, ShadowIngress *PolicyVerdict
}

// questionSize and questions are struct question and QUESTIONS of judge.c.
const (
	questionSize = 40
	questions    = 64
	noVerdict    = 3
)

// OpenPolicyMachine loads the programs' judge.
func OpenPolicyMachine() (*PolicyMachine, error) {
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("bpf: locked memory limit: %w", err)
	}
	spec, err := loadJudge()
	if err != nil {
		return nil, fmt.Errorf("bpf: object: %w", err)
	}
	if spec.Maps["policy_hits"], err = hitsSpec(); err != nil {
		return nil, err
	}
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinNone
	}
	// Offline, all pods of a cluster are of this node.
	for _, name := range []string{"policy_subjects", "policy_peers", "policy_blocks", "policy_answers", "policy_ports", "policy_names"} {
		spec.Maps[name].MaxEntries = 1 << 20
	}
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		return nil, fmt.Errorf("bpf: load (the kernel must be Linux 5.10 or newer, with BPF, and this process root): %w", err)
	}
	tables, err := openPolicies(coll.Maps, true)
	if err != nil {
		coll.Close()
		return nil, err
	}
	return &PolicyMachine{PolicyTables: tables, coll: coll, in: make([]byte, 14+questions*questionSize), out: make([]byte, 14+questions*questionSize)}, nil
}

// hitsSpec is the table that Apply tidies up. The judge does not count.
func hitsSpec() (*ebpf.MapSpec, error) {
	net, err := loadNet()
	if err != nil {
		return nil, fmt.Errorf("bpf: object: %w", err)
	}
	return net.Maps["policy_hits"], nil
}

// Close gives the programs and tables back.
func (m *PolicyMachine) Close() error {
	m.coll.Close()
	return nil
}

// Judge answers queries in their order.
func (m *PolicyMachine) Judge(queries []PolicyQuery) ([]PolicyDecision, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]PolicyDecision, 0, len(queries))
	for some := range slices.Chunk(queries, questions) {
		n := 14 + len(some)*questionSize
		for i, q := range some {
			if !plain(q.From) || !plain(q.To) {
				return nil, fmt.Errorf("bpf: policy query from %v to %v: both are to be addresses", q.From, q.To)
			}
			b := m.in[14+i*questionSize:][:questionSize]
			clear(b)
			from, to := q.From.As16(), q.To.As16()
			copy(b, from[:])
			copy(b[16:], to[:])
			binary.BigEndian.PutUint16(b[32:], q.Port)
			b[34], b[35] = q.Protocol, uint8(flag(q.Node))
		}
		ret, err := m.coll.Programs["strake_judge"].Run(&ebpf.RunOptions{Data: m.in[:n], DataOut: m.out[:n]})
		if err != nil || ret != 0 {
			return nil, fmt.Errorf("bpf: run the judge: verdict %d: %w", ret, err)
		}
		for i := range some {
			out = append(out, decisionOf(m.out[14+i*questionSize:][:questionSize]))
		}
	}
	return out, nil
}

// decisionOf reads what became of a question.
func decisionOf(b []byte) PolicyDecision {
	result, asked := b[36], b[37]
	verdict := func(slot int) *PolicyVerdict {
		if asked>>slot&1 == 0 {
			return nil
		}
		v := b[slot*8:]
		return &PolicyVerdict{Policy: binary.NativeEndian.Uint32(v), Rule: binary.NativeEndian.Uint16(v[4:]), Allow: v[6] != 0, Tier: PolicyTier(v[7])}
	}
	return PolicyDecision{
		Allowed: result == 0, NoVerdict: result == noVerdict, Egress: verdict(0), Ingress: verdict(1), ShadowEgress: verdict(2), ShadowIngress: verdict(3),
	}
}
