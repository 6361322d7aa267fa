package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// PolicyChange is a step from one state of the tables to the next. Its rows are written in the order of the fields: the names, lists and answers that
// new subjects need are there before them. Then the revision grows, and what is gone goes.
type PolicyChange struct {
	Names    []PolicyName
	Ports    []PolicyPort
	Answers  []PolicyAnswer
	Peers    []PolicyPeer
	Subjects []PolicySubject
	Reborn   []netip.Addr // of Subjects: those that are another pod's from now on, which has no part in the flows of the one before

	GoneSubjects []netip.Addr
	GonePeers    []netip.Prefix
	GoneAnswers  []PolicyAnswer // by RuleSet and Identity
	GonePorts    []uint32       // whole lists
	GoneNames    []uint32
}

// PolicyRows are what the tables of policies hold, sorted.
type PolicyRows struct {
	Subjects []PolicySubject
	Peers    []PolicyPeer
	Answers  []PolicyAnswer
	Ports    []PolicyPort
	Names    []PolicyName
}

// policyTables are the tables that Apply writes.
var policyTables = []string{"policy_subjects", "policy_peers", "policy_blocks", "policy_answers", "policy_ports", "policy_names", "policy_revision", "policy_hits"}

// What the tables of policies hold unless Config says otherwise (POLICY_PEERS, POLICY_ANSWERS, POLICY_PORTS of lib/policy.h).
const (
	DefaultMaxPolicyPeers = 131072
	DefaultMaxPolicyRules = 262144
)

// Flags of the agent that make these tables larger: errors name them.
const (
	FlagMaxPolicyPeers = "max-policy-peers"
	FlagMaxPolicyRules = "max-policy-rules"
)

// policySizes are those of the tables of policies. While no policy is followed those that take their memory at once have next to none.
func (c Config) policySizes(sizes map[string]uint32) {
	peers, rules := uint32(c.MaxPolicyPeers), uint32(c.MaxPolicyRules)
	if peers == 0 {
		peers = DefaultMaxPolicyPeers
	}
	if rules == 0 {
		rules = DefaultMaxPolicyRules
	}
	sizes["policy_peers"], sizes["policy_blocks"] = peers, peers
	sizes["policy_answers"], sizes["policy_ports"] = rules, rules
	for _, name := range policyFlowTables {
		sizes[name] = 1
		if c.Policy {
			sizes[name] = c.flowRows() / 2 // a row for a flow
		}
	}
	sizes[policyNewest] = c.policyNewest()
	if !c.Policy {
		sizes["policy_fragments"] = 1
	}
	c.recordSizes(sizes)
}

// policyNewest is how many places policy_places has, a power of two.
func (c Config) policyNewest() uint32 {
	switch {
	case !c.Policy:
		return 1
	case c.newestRows > 0:
		return c.newestRows
	}
	return 4096 // POLICY_NEWEST of lib/policytrack.h
}

// Flags of a subject's row, as in lib/policy.h.
const (
	subjectFollowed = 1
	subjectKeeps    = 2
)

// adoptFor is for how many seconds behind the beginning of a pod's isolation its older connections are adopted, whoever of both ends sends first. What a
// pod could make of it, by packets that look as if they answered somebody, it could do before.
const adoptFor = 300

// PolicyTables are the rows by which the programs judge, see PolicySubject. All methods may be called at any time from anywhere.
type PolicyTables struct {
	m map[string]*ebpf.Map

	mu       sync.Mutex
	subjects map[netAddr]netPolicySubject
	lists    map[uint32]map[portRow]bool
}

// portRow is a row of a known list of ports.
type portRow struct {
	port     uint16
	protocol uint8
	bits     uint8
}

// openPolicies takes over the rows that the maps hold, in which programs look if judged.
func openPolicies(m map[string]*ebpf.Map, judged bool) (*PolicyTables, error) {
	t := &PolicyTables{m: map[string]*ebpf.Map{}, subjects: map[netAddr]netPolicySubject{}, lists: map[uint32]map[portRow]bool{}}
	for _, name := range policyTables {
		t.m[name] = m[name]
	}
	err := errors.Join(
		eachPolicyRow(t.m["policy_subjects"], func(k netAddr, v netPolicySubject) { t.subjects[k] = v }),
		eachPolicyRow(t.m["policy_ports"], func(k netPolicyPortKey, _ netPolicyVerdict) { t.listed(k) }),
	)
	if err == nil && judged { // who was killed may have written subjects, and not the revision
		var revision uint32
		if revision, err = t.revision(); err == nil {
			err = t.m["policy_revision"].Put(uint32(0), revision+1)
		}
	}
	return t, err
}

// listed notes that a list has a row.
func (t *PolicyTables) listed(k netPolicyPortKey) {
	if t.lists[k.Ports] == nil {
		t.lists[k.Ports] = map[portRow]bool{}
	}
	t.lists[k.Ports][portRow{protocol: k.Proto, port: uint16(k.Port[0])<<8 | uint16(k.Port[1]), bits: uint8(k.Len - 32)}] = true
}

func (r portRow) key(list uint32) netPolicyPortKey {
	return netPolicyPortKey{Len: 32 + uint32(r.bits), Ports: list, Proto: r.protocol, Port: [2]uint8{uint8(r.port >> 8), uint8(r.port)}}
}

// Apply writes a change. After an error everything that was live is as it was, but that subjects written before the error may be live already: call it
// again with the same change, or with a smaller one; rows that are there may be written again. A full table is an error that tells what makes it larger.
func (t *PolicyTables) Apply(c PolicyChange) error {
	err := t.apply(c)
	if len(c.GoneNames) > 0 { // with no lock held: it reads all that was counted
		err = errors.Join(err, t.forgetHits(c.GoneNames))
	}
	return err
}

func (t *PolicyTables) apply(c PolicyChange) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	revision, err := t.revision()
	if err != nil {
		return err
	}
	if err := t.write(c, revision+1); err != nil {
		return err
	}
	if err := t.m["policy_revision"].Put(uint32(0), revision+1); err != nil {
		return fmt.Errorf("bpf: policy revision: %w", err)
	}
	err = t.delete(c)
	if len(c.GoneSubjects)+len(c.GonePeers) > 0 { // for what programs noted of them meanwhile
		if failed := t.m["policy_revision"].Put(uint32(0), revision+2); failed != nil {
			err = errors.Join(err, fmt.Errorf("bpf: policy revision: %w", failed))
		}
	}
	return err
}

func (t *PolicyTables) revision() (uint32, error) {
	var n uint32
	if err := t.m["policy_revision"].Lookup(uint32(0), &n); err != nil {
		return 0, fmt.Errorf("bpf: policy revision: %w", err)
	}
	return n, nil
}

// write puts the new rows of a change into the tables, in the order in which each finds what it names.
func (t *PolicyTables) write(c PolicyChange, revision uint32) error {
	var names rowsOf[uint32, netPolicyName]
	for _, n := range c.Names {
		v, err := policyNameRow(n)
		if err != nil {
			return err
		}
		names.add(n.Policy, v)
	}
	var ports rowsOf[netPolicyPortKey, netPolicyVerdict]
	for _, p := range c.Ports {
		k, v, err := policyPortRow(p)
		if err != nil {
			return err
		}
		ports.add(k, v)
	}
	var answers rowsOf[netPolicyAnswerKey, uint32]
	for _, a := range c.Answers {
		if a.RuleSet == 0 {
			return fmt.Errorf("bpf: policy answer %+v: rule set 0 is none", a)
		}
		answers.add(netPolicyAnswerKey{Rules: a.RuleSet, Identity: a.Identity}, a.Ports)
	}
	var peers rowsOf[netAddr, uint32]
	var blocks rowsOf[netPrefix, netPolicyBlock]
	for _, p := range c.Peers {
		if !plain(p.Prefix.Addr()) || !p.Prefix.IsValid() {
			return fmt.Errorf("bpf: policy peer %v is no range of addresses", p.Prefix)
		}
		if p.Prefix.IsSingleIP() {
			peers.add(addr16(p.Prefix.Addr()), p.Identity)
		} else {
			blocks.add(prefixOf(p.Prefix), netPolicyBlock{Identity: p.Identity, V6: uint32(flag(p.Prefix.Addr().Is6()))})
		}
	}
	subjects, err := t.subjectRows(c.Subjects, c.Reborn, revision)
	if err != nil {
		return err
	}
	if err := names.put(t.m["policy_names"], "names of policies", FlagMaxPolicyRules); err != nil {
		return err
	}
	for _, k := range ports.keys { // before they are there: some may be when others find no room
		t.listed(k)
	}
	if err := ports.put(t.m["policy_ports"], "ports of policies", FlagMaxPolicyRules); err != nil {
		return err
	}
	if err := answers.put(t.m["policy_answers"], "answers of policies", FlagMaxPolicyRules); err != nil {
		return err
	}
	if err := blocks.put(t.m["policy_blocks"], "blocks of policies", FlagMaxPolicyPeers); err != nil {
		return err
	}
	if err := peers.put(t.m["policy_peers"], "peers of policies", FlagMaxPolicyPeers); err != nil {
		return err
	}
	if err := subjects.put(t.m["policy_subjects"], "subjects of policies", ""); err != nil {
		return err
	}
	for i, k := range subjects.keys {
		t.subjects[k] = subjects.values[i]
	}
	return nil
}

// subjectRows are the rows of subjects from a revision on, of which those with reborn addresses are others than before.
func (t *PolicyTables) subjectRows(subjects []PolicySubject, reborn []netip.Addr, revision uint32) (rowsOf[netAddr, netPolicySubject], error) {
	var out rowsOf[netAddr, netPolicySubject]
	now := uint32(Monotonic().Seconds())
	for _, s := range subjects {
		if !plain(s.Addr) {
			return out, fmt.Errorf("bpf: policy subject %+v is no address", s)
		}
		k := addr16(s.Addr)
		v := netPolicySubject{Identity: s.Identity, Rules: [2]uint32{s.Egress, s.Ingress}, Shadow: [2]uint32{s.ShadowEgress, s.ShadowIngress}, Born: revision}
		if v.Rules != [2]uint32{} || v.Shadow != [2]uint32{} || s.KeepFlows {
			v.Flags |= subjectFollowed
		}
		if s.KeepFlows {
			v.Flags |= subjectKeeps
		}
		if had, is := t.subjects[k]; is && !slices.Contains(reborn, s.Addr) {
			v.Born, v.Adopts = had.Born, had.Adopts
			if v.Flags&subjectFollowed != 0 && had.Flags&subjectFollowed == 0 {
				v.Adopts = now + adoptFor
			}
		}
		out.add(k, v)
	}
	return out, nil
}

// delete takes the rows of a change away that nothing names any more.
func (t *PolicyTables) delete(c PolicyChange) error {
	var errs []error
	gone := func(table string, k any) bool {
		err := t.m[table].Delete(k)
		if err == nil || errors.Is(err, ebpf.ErrKeyNotExist) {
			return true
		}
		errs = append(errs, fmt.Errorf("bpf: delete a row of %s: %w", table, err))
		return false
	}
	for _, a := range c.GoneSubjects {
		gone("policy_subjects", addr16(a))
		delete(t.subjects, addr16(a))
	}
	for _, p := range c.GonePeers {
		if p.IsSingleIP() {
			gone("policy_peers", addr16(p.Addr()))
		} else {
			gone("policy_blocks", prefixOf(p))
		}
	}
	for _, a := range c.GoneAnswers {
		gone("policy_answers", netPolicyAnswerKey{Rules: a.RuleSet, Identity: a.Identity})
	}
	for _, list := range c.GonePorts {
		for r := range t.lists[list] {
			if gone("policy_ports", r.key(list)) {
				delete(t.lists[list], r)
			}
		}
		if len(t.lists[list]) == 0 {
			delete(t.lists, list)
		}
	}
	for _, n := range c.GoneNames {
		gone("policy_names", n)
	}
	return errors.Join(errs...)
}

// policyPortRow is a row of a list of ports. Bits behind those that count are 0.
func policyPortRow(p PolicyPort) (k netPolicyPortKey, v netPolicyVerdict, err error) {
	if p.Bits > 16 || p.Ports == 0 || p.Protocol == 0 && (p.Port != 0 || p.Bits != 0) || uint32(p.Port)<<p.Bits&0xffff != 0 {
		return k, v, fmt.Errorf("bpf: policy port %+v is no range of ports of a list", p)
	}
	r := portRow{protocol: p.Protocol, port: p.Port}
	if p.Protocol != 0 {
		r.bits = 8 + p.Bits
	}
	v = netPolicyVerdict{Policy: p.Verdict.Policy, Rule: p.Verdict.Rule, Tier: uint8(p.Verdict.Tier)}
	if p.Verdict.Allow {
		v.Allow = 1
	}
	return r.key(p.Ports), v, nil
}

func policyPortOf(k netPolicyPortKey, v netPolicyVerdict) PolicyPort {
	p := PolicyPort{Ports: k.Ports, Protocol: k.Proto, Port: uint16(k.Port[0])<<8 | uint16(k.Port[1])}
	if k.Len > 40 {
		p.Bits = uint8(k.Len - 40)
	}
	p.Verdict = PolicyVerdict{Allow: v.Allow != 0, Policy: v.Policy, Rule: v.Rule, Tier: PolicyTier(v.Tier)}
	return p
}

func policyNameRow(n PolicyName) (v netPolicyName, err error) {
	return v, errors.Join(text(v.Uid[:], n.UID, "UID"), text(v.Kind[:], n.Kind, "kind"), text(v.Namespace[:], n.Namespace, "namespace"), text(v.Name[:], n.Name, "policy"))
}

// rowsOf are rows to be written together.
type rowsOf[K comparable, V any] struct {
	keys   []K
	values []V
}

func (r *rowsOf[K, V]) add(k K, v V) {
	r.keys = append(r.keys, k)
	r.values = append(r.values, v)
}

// writeAtOnce is how many rows one call writes, and fewAtOnce for how many no such call is worth its while.
const (
	writeAtOnce = 4096
	fewAtOnce   = 4
)

// put writes the rows, many with one call where the kernel can (of ranges since Linux 5.13). flag is what makes room.
func (r *rowsOf[K, V]) put(m *ebpf.Map, what, flag string) error {
	for from := 0; from < len(r.keys); from += writeAtOnce {
		to := min(from+writeAtOnce, len(r.keys))
		keys, values := r.keys[from:to], r.values[from:to]
		if len(keys) > fewAtOnce {
			if _, err := m.BatchUpdate(keys, values, nil); err == nil {
				continue
			}
		}
		for i, k := range keys {
			err := m.Put(k, values[i])
			if isFull(err) || errors.Is(err, unix.ENOMEM) {
				err = fmt.Errorf("the table of %d rows has no room: %w", m.MaxEntries(), err)
				if flag != "" {
					err = fmt.Errorf("%w; --%s makes it larger", err, flag)
				}
			}
			if err != nil {
				return fmt.Errorf("bpf: write %s: %w", what, err)
			}
		}
	}
	return nil
}
