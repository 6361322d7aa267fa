package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
)

// strays are rows that no service accounts for.
type strays struct {
	frontends []netFrontendKey
	backends  []netSlotKey
	members   []netMemberKey
	maglev    []netMaglevKey
	sources   []netSourceKey
}

func (l strays) delete(m lbMaps) error {
	return errors.Join(
		deleteStrays(m.frontends, "frontend", l.frontends), deleteStrays(m.maglev, "hash table", l.maglev), deleteStrays(m.backends, "slot", l.backends),
		deleteStrays(m.sources, "source", l.sources), deleteStrays(m.members, "backend", l.members))
}

func deleteStrays[K any](m *ebpf.Map, what string, keys []K) error {
	for _, k := range keys {
		if err := m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("bpf: delete stray %s: %w", what, err)
		}
	}
	return nil
}

// readAtOnce is how many rows are read with one call: more than a bucket of a hash map ever holds.
const readAtOnce = 4096

// eachRow calls do with all rows of a hash map.
func eachRow[K, V any](m *ebpf.Map, what string, do func(K, V)) error {
	var cursor ebpf.MapBatchCursor
	keys, values := make([]K, readAtOnce), make([]V, readAtOnce)
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("bpf: read %s: %w", what, err)
		}
		for i := range n {
			do(keys[i], values[i])
		}
		if err != nil {
			return nil // that was the last
		}
	}
}

// found is what the maps hold of one service, beside what fits into service.
type found struct {
	slots  map[uint32]netBackend
	chunks map[uint32]netMaglev
	first  netFrontend
}

// read fills the table from its maps and changes none of them.
func (t *loadBalancers) read() (strays, error) {
	t.byID, t.byOwner, t.owner = map[uint32]*service{}, map[string][]*service{}, map[netFrontendKey]uint32{}
	t.kept, t.unkept = map[netPortKey]int{}, map[netPortKey]bool{}
	var lost strays
	more := map[uint32]*found{}
	err := errors.Join(
		eachRow(t.services, "services", func(id uint32, info netService) {
			t.add(&service{id: id, owner: textOf(info.Owner[:]), name: textOf(info.Name[:]), protocol: info.Proto})
			more[id] = &found{slots: map[uint32]netBackend{}, chunks: map[uint32]netMaglev{}}
		}),
		eachRow(t.frontends, "frontends", func(k netFrontendKey, fe netFrontend) {
			s := t.byID[fe.Service]
			if s == nil {
				lost.frontends = append(lost.frontends, k)
				return
			}
			t.owner[k] = s.id
			first := &more[s.id].first
			if len(s.frontends) == 0 {
				*first = fe
			}
			s.torn = s.torn || fe.All != first.All || fe.Local != first.Local || fe.Affinity != first.Affinity ||
				fe.MaglevAll != first.MaglevAll || fe.MaglevLocal != first.MaglevLocal
			s.frontends = append(s.frontends, frontendRow{addr: k.Addr.B, port: port16(k.Port), kind: FrontendKind(fe.Kind), flags: uint8(fe.Flags)})
			s.affinity = fe.Affinity
			s.slots = [sets]uint32{max(s.slots[All], fe.All), max(s.slots[Local], fe.Local)}
			s.maglev = [sets]uint32{fe.MaglevAll, fe.MaglevLocal}
		}),
		eachRow(t.members, "backends", func(k netMemberKey, m netMember) {
			s := t.byID[k.Service]
			if s == nil {
				lost.members = append(lost.members, k)
				return
			}
			s.members = append(s.members, memberRow{addr: k.Addr.B, port: port16(k.Port), weight: m.Weight, flags: uint8(m.Flags), slot: [sets]uint16{noSlot, noSlot}})
		}),
		eachRow(t.backends, "slots", func(k netSlotKey, b netBackend) {
			if f := more[k.Service]; f != nil && k.Slot&^localSlot < maxBackends {
				f.slots[k.Slot] = b
			} else {
				lost.backends = append(lost.backends, k)
			}
		}),
		eachRow(t.maglev, "hash tables", func(k netMaglevKey, row netMaglev) {
			if f := more[k.Service]; f != nil {
				f.chunks[k.Chunk] = row
			} else {
				lost.maglev = append(lost.maglev, k)
			}
		}),
		t.readSources(&lost),
	)
	if err != nil {
		return lost, err
	}
	for id, s := range t.byID {
		slices.SortFunc(s.frontends, frontendRow.compare)
		slices.SortFunc(s.members, memberRow.compare)
		slices.SortFunc(s.sources, netip.Prefix.Compare)
		s.hold(more[id], &lost)
	}
	return lost, nil
}

func (t *loadBalancers) readSources(lost *strays) error {
	var k netSourceKey
	var v uint8
	it := t.sources.Iterate()
	for it.Next(&k, &v) {
		s := t.byID[k.Service]
		bits := int(k.Prefixlen) - 32
		if a := addrOf(k.Addr); a.Is4() {
			bits -= 96
		}
		p := netip.PrefixFrom(addrOf(k.Addr), bits)
		if s == nil || !p.IsValid() {
			lost.sources = append(lost.sources, k)
			continue
		}
		s.sources = append(s.sources, p)
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("bpf: read sources: %w", err)
	}
	return nil
}

// hold puts the slots to their members, and finds out whether all fits together. Slots and tables that the frontends don't count are lost.
func (s *service) hold(f *found, lost *strays) {
	for at, b := range f.slots {
		set := at >> 31
		slot := at &^ localSlot
		if slot >= s.slots[set] {
			lost.backends = append(lost.backends, netSlotKey{Service: s.id, Slot: at})
			continue
		}
		m := memberRow{addr: b.Addr.B, port: port16(b.Port)}
		i, ok := slices.BinarySearchFunc(s.members, m, memberRow.compare)
		if !ok || s.members[i].slot[set] != noSlot {
			s.torn = true
			continue
		}
		s.members[i].slot[set] = uint16(slot)
	}
	for set := range sets {
		var n uint32
		for i := range s.members {
			m := &s.members[i]
			held := m.slot[set] != noSlot
			s.torn = s.torn || held != (m.flags&memberBit[set] != 0)
			if held {
				n++
			}
			// What the programs choose by is what is told of it.
			if m.flags &^= memberBit[set]; held {
				m.flags |= memberBit[set]
			}
		}
		s.torn = s.torn || n != s.slots[set]
	}
	restricted := slices.ContainsFunc(s.frontends, func(f frontendRow) bool { return f.flags&flagSources != 0 })
	s.torn = s.torn || restricted != (len(s.sources) > 0) || (len(s.frontends) == 0 && len(s.members) > 0)
	for set := range Scope(sets) {
		s.torn = s.torn || (s.maglev[set] != 0 && s.maglev[set] != s.maglevSize(set))
	}
	s.holdMaglev(f, lost)
}

// holdMaglev compares the tables with what they should be.
func (s *service) holdMaglev(f *found, lost *strays) {
	known := map[uint32]bool{}
	if !s.torn {
		for set := range Scope(sets) {
			s.chunksOf(set, func(k netMaglevKey, row netMaglev) {
				was, ok := f.chunks[k.Chunk]
				s.torn = s.torn || !ok || was != row
				known[k.Chunk] = true
			})
		}
	}
	sizes := [sets]map[uint32]bool{{}, {}}
	for chunk := range f.chunks {
		if !s.torn && !known[chunk] {
			lost.maglev = append(lost.maglev, netMaglevKey{Service: s.id, Chunk: chunk})
		}
		sizes[chunk>>31][chunk&^localSlot>>10] = true
	}
	if !s.torn {
		return
	}
	for set := range sizes { // which of them the programs use is not certain: they go with the next write
		for size := range sizes[set] {
			form := &service{id: s.id}
			form.maglev[set] = size
			s.left = append(s.left, form)
		}
	}
}
