package bpf

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cilium/ebpf"
)

// change is what is to become of one service.
type change struct {
	have, want *service // nil: none
	err        error    // what has gone wrong
	partly     error    // what of it was left out
}

func (c *change) either() *service {
	if c.want != nil {
		return c.want
	}
	return c.have
}

// write carries out the changes, all of each kind at a time. The order keeps every packet on a whole service: backends before the slots that
// hold them, slots before the Maglev tables and frontends that count them, all new frontends before any old one goes (a renamed port takes its
// frontend along without a gap); old frontends before the slots that they count, slots before their services, and these before their backends, so that a
// backend that is missing from a service that is there is one that went. What an owner meets with
// stops the changes of that owner alone, half way; its services are written whole by the next call. It returns the errors by owner.
func (t *loadBalancers) write(all []*change, n *Changes) map[string]error {
	errs := map[string]error{}
	stop := func() {
		for _, c := range all {
			if o := c.either().owner; c.err != nil && errs[o] == nil {
				errs[o] = c.err
			}
		}
		all = slices.DeleteFunc(all, func(c *change) bool {
			failed := errs[c.either().owner] != nil
			if failed {
				t.tear(c)
			}
			return failed
		})
	}
	for _, phase := range []func([]*change){
		t.putServices, t.putMembers, t.putSources, t.putSlots, t.putMaglev, t.putFrontends,
		t.deleteFrontends, t.deleteMaglev, t.deleteSlots, t.deleteSources, t.deleteServices, t.deleteMembers,
	} {
		phase(all)
		stop()
	}
	for _, c := range all {
		if err := t.movePorts(c); err != nil && c.partly == nil {
			c.partly = err
		}
		switch {
		case c.want == nil:
			n.Deleted++
			t.drop(c.have)
			continue
		case c.have == nil:
			n.Added++
		default:
			n.Updated++
		}
		t.settled(c)
		if c.partly != nil {
			errs[c.want.owner] = errors.Join(errs[c.want.owner], c.partly)
			c.want.torn = true
		}
	}
	return errs
}

// settled notes that a service is what it was to become.
func (t *loadBalancers) settled(c *change) {
	if c.have == nil {
		t.add(c.want)
		return
	}
	*c.have = *c.want // keeps its place among the owner's
	c.want = c.have
}

// tear notes that a change stopped half way: all that may be in the kernel is to be written anew, or deleted.
func (t *loadBalancers) tear(c *change) {
	s := c.have
	if s == nil {
		s = &service{id: c.want.id, owner: c.want.owner, name: c.want.name, protocol: c.want.protocol}
		t.add(s)
	}
	s.torn = true
	if c.want != nil && !slices.ContainsFunc(s.left, func(o *service) bool { return o.same(c.want) && o.slots == c.want.slots }) {
		s.left = append(s.left, c.want)
	}
}

// forms are all that the kernel may hold of a service.
func (c *change) forms() []*service {
	if c.have == nil {
		return nil
	}
	return append([]*service{c.have}, c.have.left...)
}

// fresh tells whether nothing of the service can be relied on to be in the kernel.
func (c *change) fresh() bool { return c.have == nil || c.have.torn }

// beforeWrite is called before each row is written or deleted, and there is one at a time then. Tests set it.
var beforeWrite func()

// batch collects rows of one map, of many changes.
type batch[K comparable, V any] struct {
	m      *ebpf.Map
	flag   string // that makes the map larger
	keys   []K
	values []V
	of     []*change
	done   []bool // of those that are written
}

func (b *batch[K, V]) put(c *change, k K, v V) {
	b.keys, b.values, b.of = append(b.keys, k), append(b.values, v), append(b.of, c)
}

func (b *batch[K, V]) remove(c *change, k K) {
	b.keys, b.of = append(b.keys, k), append(b.of, c)
}

// write writes the rows. If one of a change can't be, failed is told once, and the rest of the change need not be written.
func (b *batch[K, V]) write(failed func(c *change, k K, err error)) {
	b.done = make([]bool, len(b.keys))
	bad := map[*change]bool{}
	b.each(func(i int) (int, error) {
		if len(b.keys)-i == 1 || beforeWrite != nil {
			return one(b.m.Put(b.keys[i], b.values[i]))
		}
		return b.m.BatchUpdate(b.keys[i:], b.values[i:], nil)
	}, func(i int) bool { return bad[b.of[i]] }, func(i int, err error) {
		if !bad[b.of[i]] {
			bad[b.of[i]] = true
			failed(b.of[i], b.keys[i], roomier(b.m, b.flag, err))
		}
	})
}

// delete deletes the rows; one that is not there is as good.
func (b *batch[K, V]) delete(what string) {
	b.done = make([]bool, len(b.keys))
	b.each(func(i int) (int, error) {
		if len(b.keys)-i == 1 || beforeWrite != nil {
			return one(b.m.Delete(b.keys[i]))
		}
		return b.m.BatchDelete(b.keys[i:], nil)
	}, func(int) bool { return false }, func(i int, err error) {
		if b.done[i] = errors.Is(err, ebpf.ErrKeyNotExist); !b.done[i] {
			b.of[i].err = fmt.Errorf("bpf: delete %s of service %s: %w", what, b.of[i].either().name, err)
		}
	})
}

// one is what an operation on a single row has done.
func one(err error) (int, error) {
	if err != nil {
		return 0, err
	}
	return 1, nil
}

// each carries out an operation on all rows from i on, again and again: it tells how many it has done before it met with an error.
func (b *batch[K, V]) each(do func(i int) (int, error), skip func(i int) bool, failed func(i int, err error)) {
	for i := 0; i < len(b.keys); {
		if skip(i) {
			i++
			continue
		}
		if beforeWrite != nil {
			beforeWrite()
		}
		n, err := do(i)
		for range n {
			b.done[i] = true
			i++
		}
		if err != nil && i < len(b.keys) {
			failed(i, err)
			i++
		}
	}
}

// unwritten is the error of a change that can't be written.
func unwritten[K any](what string) func(*change, K, error) {
	return func(c *change, _ K, err error) {
		c.err = fmt.Errorf("bpf: write %s of service %s: %w", what, c.want.name, err)
	}
}

func (t *loadBalancers) putServices(all []*change) {
	b := batch[uint32, netService]{m: t.services, flag: FlagMaxFrontends}
	for _, c := range all {
		if c.want == nil || !c.fresh() {
			continue
		}
		info := netService{Proto: c.want.protocol, Made: t.made(c)}
		copy(info.Owner[:], c.want.owner)
		copy(info.Name[:], c.want.name)
		b.put(c, c.want.id, info)
	}
	b.write(unwritten[uint32]("the name"))
}

// made is when the first service of the owner was written; 0: there were others before this one. What stopped half way keeps what its row says:
// it is as new as it was.
func (t *loadBalancers) made(c *change) uint32 {
	var row netService
	if c.have != nil && t.services.Lookup(c.have.id, &row) == nil {
		return row.Made
	}
	for _, s := range t.byOwner[c.want.owner] {
		if t.services.Lookup(s.id, &row) != nil {
			continue // there was no room for its row
		}
		if c.have == nil {
			return 0
		}
		return row.Made
	}
	return max(uint32(Monotonic()/time.Second), 1)
}

func (t *loadBalancers) putMembers(all []*change) {
	b := batch[netMemberKey, netMember]{m: t.members, flag: FlagMaxBackends}
	for _, c := range all {
		if c.want == nil {
			continue
		}
		same := map[int]bool{}
		if !c.fresh() {
			for i, k := 0, 0; i < len(c.want.members) && k < len(c.have.members); {
				switch d := c.want.members[i].compare(c.have.members[k]); {
				case d < 0:
					i++
				case d > 0:
					k++
				default:
					same[i] = c.want.members[i].flags == c.have.members[k].flags && c.want.members[i].weight == c.have.members[k].weight
					i++
					k++
				}
			}
		}
		for i, m := range c.want.members {
			if same[i] {
				continue
			}
			row := netMember{Flags: uint16(m.flags), Weight: m.weight}
			k := c.want.memberKey(m)
			if c.have != nil {
				var was netMember
				if t.members.Lookup(k, &was) == nil {
					row.Hits = was.Hits
				}
			}
			b.put(c, k, row)
		}
	}
	b.write(unwritten[netMemberKey]("a backend"))
}

// putSources writes those that are new. They are few, and a trie has batches on new kernels only.
func (t *loadBalancers) putSources(all []*change) {
	for _, c := range all {
		if c.want == nil || (!c.fresh() && slices.Equal(c.have.sources, c.want.sources)) {
			continue
		}
		for _, p := range c.want.sources {
			if beforeWrite != nil {
				beforeWrite()
			}
			if err := t.sources.Put(c.want.source(p), uint8(1)); err != nil {
				c.err = fmt.Errorf("bpf: write source %s of service %s: %w", p, c.want.name, explain(err))
				break
			}
		}
	}
}

// slotsOf calls do for each slot of s.
func (s *service) slotsOf(do func(k netSlotKey, m *memberRow)) {
	for i := range s.members {
		for set, at := range s.members[i].slot {
			if at != noSlot {
				do(netSlotKey{Service: s.id, Slot: slotBit[set] | uint32(at)}, &s.members[i])
			}
		}
	}
}

func (t *loadBalancers) putSlots(all []*change) {
	b := batch[netSlotKey, netBackend]{m: t.backends, flag: FlagMaxBackends}
	for _, c := range all {
		if c.want == nil {
			continue
		}
		had := map[netSlotKey]*memberRow{}
		if !c.fresh() {
			c.have.slotsOf(func(k netSlotKey, m *memberRow) { had[k] = m })
		}
		c.want.slotsOf(func(k netSlotKey, m *memberRow) {
			if was := had[k]; was == nil || was.compare(*m) != 0 {
				b.put(c, k, m.backend())
			}
		})
	}
	b.write(unwritten[netSlotKey]("the slot of a backend"))
}

func (t *loadBalancers) putFrontends(all []*change) {
	b := batch[netFrontendKey, netFrontend]{m: t.frontends, flag: FlagMaxFrontends}
	for _, c := range all {
		if c.want == nil {
			continue
		}
		same := !c.fresh() && c.have.slots == c.want.slots && c.have.maglev == c.want.maglev && c.have.affinity == c.want.affinity
		for _, f := range c.want.frontends {
			k := c.want.key(f)
			if same && t.owner[k] == c.want.id && slices.Contains(c.have.frontends, f) {
				continue
			}
			b.put(c, k, c.want.frontend(f))
		}
	}
	b.write(func(c *change, k netFrontendKey, err error) {
		c.err = fmt.Errorf("bpf: write frontend %s of service %s: %w", frontendOf(k), c.want.name, err)
	})
	for i, k := range b.keys {
		if b.done[i] {
			t.owner[k] = b.of[i].want.id
		}
	}
}

// deleteFrontends deletes those that no other service took over.
func (t *loadBalancers) deleteFrontends(all []*change) {
	b := batch[netFrontendKey, netFrontend]{m: t.frontends, flag: FlagMaxFrontends}
	for _, c := range all {
		for _, s := range c.forms() {
			for _, f := range s.frontends {
				if k := s.key(f); t.owner[k] == s.id && !c.asks(f) {
					b.remove(c, k)
				}
			}
		}
	}
	b.delete("a frontend")
	for i, k := range b.keys {
		if b.done[i] {
			delete(t.owner, k)
		}
	}
}

// asks tells whether a service is to have a frontend, or to keep it.
func (c *change) asks(f frontendRow) bool {
	return c.want != nil && slices.ContainsFunc(c.want.frontends, func(o frontendRow) bool { return o.compare(f) == 0 })
}

func (t *loadBalancers) deleteSlots(all []*change) {
	b := batch[netSlotKey, netBackend]{m: t.backends, flag: FlagMaxBackends}
	for _, c := range all {
		var keep [sets]uint32
		if c.want != nil {
			keep = c.want.slots
		}
		for set := range sets {
			var n uint32
			for _, s := range c.forms() {
				n = max(n, s.slots[set])
			}
			for i := n; i > keep[set]; i-- { // the first is the last to go
				b.remove(c, netSlotKey{Service: c.have.id, Slot: slotBit[set] | (i - 1)})
			}
		}
	}
	b.delete("the slot of a backend")
}

func (t *loadBalancers) deleteSources(all []*change) {
	for _, c := range all {
		for _, s := range c.forms() {
			for _, p := range s.sources {
				if c.want != nil && slices.Contains(c.want.sources, p) {
					continue
				}
				if err := t.sources.Delete(s.source(p)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
					c.err = fmt.Errorf("bpf: delete source %s of service %s: %w", p, s.name, err)
				}
			}
		}
	}
}

func (t *loadBalancers) deleteMembers(all []*change) {
	b := batch[netMemberKey, netMember]{m: t.members, flag: FlagMaxBackends}
	for _, c := range all {
		for _, s := range c.forms() {
			for _, m := range s.members {
				if c.want != nil {
					if _, ok := slices.BinarySearchFunc(c.want.members, m, memberRow.compare); ok {
						continue
					}
				}
				b.remove(c, s.memberKey(m))
			}
		}
	}
	b.delete("a backend")
	if len(b.keys) == 0 {
		return
	}
	if err := t.backendsWent(); err != nil {
		for _, c := range b.of {
			c.err = err
		}
	}
}

func (t *loadBalancers) deleteServices(all []*change) {
	b := batch[uint32, netService]{m: t.services, flag: FlagMaxFrontends}
	for _, c := range all {
		if c.want == nil {
			b.remove(c, c.have.id)
		}
	}
	b.delete("the name")
}
