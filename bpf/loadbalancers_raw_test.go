package bpf

import (
	"fmt"
	"testing"

	"github.com/cilium/ebpf"
)

// raw is what the maps hold, as the programs read it.
type raw struct {
	services  map[uint32]netService
	frontends map[netFrontendKey]netFrontend
	slots     map[netSlotKey]netBackend
	members   map[netMemberKey]netMember
	maglev    map[netMaglevKey]netMaglev
	sources   map[netSourceKey]uint8
}

func rawOf(t testing.TB, m lbMaps) raw {
	t.Helper()
	r := raw{map[uint32]netService{}, map[netFrontendKey]netFrontend{}, map[netSlotKey]netBackend{}, map[netMemberKey]netMember{}, map[netMaglevKey]netMaglev{}, map[netSourceKey]uint8{}}
	fill(t, m.services, r.services)
	fill(t, m.frontends, r.frontends)
	fill(t, m.backends, r.slots)
	fill(t, m.members, r.members)
	fill(t, m.maglev, r.maglev)
	fill(t, m.sources, r.sources)
	return r
}

func fill[K comparable, V any](t testing.TB, m *ebpf.Map, into map[K]V) {
	t.Helper()
	var k K
	var v V
	it := m.Iterate()
	for it.Next(&k, &v) {
		into[k] = v
	}
	must(t, it.Err())
}

// choices are the backends that lb_choose can come to, of a hash too. A hole is the zero address.
func (r raw) choices(fe netFrontend, outside bool) map[netBackend]bool {
	n, set, size := fe.All, uint32(0), fe.MaglevAll
	if (outside && fe.Flags&flagOutsideLocal != 0) || (!outside && fe.Flags&flagInsideLocal != 0) {
		n, set, size = fe.Local, localSlot, fe.MaglevLocal
	}
	out := map[netBackend]bool{}
	slot := func(i uint32) {
		b, ok := r.slots[netSlotKey{Service: fe.Service, Slot: set | i}]
		if !ok {
			b = r.slots[netSlotKey{Service: fe.Service, Slot: set}]
		}
		out[b] = true
	}
	if n == 0 {
		return out
	}
	if !outside || size == 0 {
		for i := range n {
			slot(i)
		}
		return out
	}
	for at := range size {
		chunk, ok := r.maglev[netMaglevKey{Service: fe.Service, Chunk: set | size<<10 | at/maglevChunk}]
		if !ok {
			for i := range n { // hash % n
				slot(i)
			}
			continue
		}
		slot(uint32(chunk.Slots[at%maglevChunk]))
	}
	return out
}

// seen is what a packet to a frontend may come to.
type seen struct {
	service         uint32
	flags           uint16
	inside, outside map[netBackend]bool
	affinity        uint32
	sources         string
}

// rounded checks that no row is there that no service needs, and none missing.
func (r raw) rounded() error {
	members, slots, chunks := 0, 0, 0
	byService := map[uint32]netFrontend{}
	for k, fe := range r.frontends {
		if other, ok := byService[fe.Service]; ok && (other.All != fe.All || other.Local != fe.Local || other.MaglevAll != fe.MaglevAll || other.MaglevLocal != fe.MaglevLocal) {
			return fmt.Errorf("frontends of service %d disagree: %v", fe.Service, frontendOf(k))
		}
		byService[fe.Service] = fe
	}
	for id, fe := range byService {
		if _, ok := r.services[id]; !ok {
			return fmt.Errorf("service %d has no name", id)
		}
		slots += int(fe.All + fe.Local)
		for _, size := range []uint32{fe.MaglevAll, fe.MaglevLocal} {
			chunks += int(size+maglevChunk-1) / maglevChunk
		}
	}
	for k, m := range r.members {
		if _, ok := byService[k.Service]; !ok {
			return fmt.Errorf("a backend of service %d, which has no frontend", k.Service)
		}
		members++
		held := map[uint32]int{}
		for s, b := range r.slots {
			if s.Service == k.Service && b.Addr == k.Addr && b.Port == k.Port {
				held[s.Slot>>31]++
			}
		}
		for set := range uint32(sets) {
			want := 0
			if uint8(m.Flags)&memberBit[set] != 0 {
				want = 1
			}
			if held[set] != want {
				return fmt.Errorf("%v of service %d has %d slots of set %d, want %d", addrOf(k.Addr), k.Service, held[set], set, want)
			}
		}
	}
	if len(r.slots) != slots || len(r.maglev) != chunks {
		return fmt.Errorf("%d slots and %d chunks, want %d and %d", len(r.slots), len(r.maglev), slots, chunks)
	}
	return nil
}

// between tells whether what is seen on the way can be of what was and what will be.
func between(s, was, will seen, other map[netBackend]bool) error {
	for name, sets := range map[string][3]map[netBackend]bool{"inside": {s.inside, was.inside, will.inside}, "outside": {s.outside, was.outside, will.outside}} {
		now, before, after := sets[0], sets[1], sets[2]
		for b := range now {
			if !before[b] && !after[b] && !other[b] && b != (netBackend{}) {
				return fmt.Errorf("%s: %v is neither a former nor a coming backend", name, addrOf(b.Addr))
			}
		}
		if len(before) > 0 && len(after) > 0 && (len(now) == 0 || now[netBackend{}]) {
			return fmt.Errorf("%s: no backend", name)
		}
	}
	return nil
}

// of are all backends of a service.
func (r raw) of(service uint32) map[netBackend]bool {
	out := map[netBackend]bool{}
	for k, b := range r.slots {
		if k.Service == service {
			out[b] = true
		}
	}
	return out
}
