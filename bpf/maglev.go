package bpf

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
)

// Consistent hashing by "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016), section 3.4: a table whose entries name
// backends, in which each backend has its share and few entries change when one comes or goes. Nodes that know the same backends make the same
// table, whatever slots these have on each.

// maglevSizes are primes. The smallest one is taken that gives each backend 50 entries: shares differ by 2 % at most.
var maglevSizes = []uint32{251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521}

const (
	maglevShare = 50
	maglevChunk = 64 // MAGLEV_CHUNK of lib/lb.h
)

// maglevSize is the size of the table of a set; 0 if it needs none: nobody outside asks for it, or there is no choice.
func (s *service) maglevSize(set Scope) uint32 {
	if s.slots[set] < 2 || !slices.ContainsFunc(s.frontends, func(f frontendRow) bool {
		return f.kind != ClusterIP && (f.flags&flagOutsideLocal != 0) == (set == Local)
	}) {
		return 0
	}
	for _, size := range maglevSizes {
		if size >= s.slots[set]*maglevShare {
			return size
		}
	}
	return maglevSizes[len(maglevSizes)-1]
}

// MaglevEntry is the entry of a table of some size by which a client from outside gets its backend, the same on every node: lb_choose of lib/lb.h
// in other words. With affinity the client's address alone counts. port is the frontend's.
func MaglevEntry(client netip.AddrPort, port uint16, protocol uint8, affinity bool, size int) int {
	mix := func(h, v uint32) uint32 {
		h = (h ^ v) * 0x9e3779b1
		return h ^ h>>15
	}
	h := uint32(protocol)
	if affinity {
		h = 0
	}
	b := client.Addr().As16()
	for i := 0; i < len(b); i += 4 {
		h = mix(h, binary.NativeEndian.Uint32(b[i:]))
	}
	if !affinity {
		h = mix(h, uint32(port16(client.Port()))<<16|uint32(port16(port)))
	}
	return int(mix(h, 0x85ebca6b) % uint32(size))
}

// maglevTable is the table of a set: each entry is a slot.
func (s *service) maglevTable(set Scope) []uint16 {
	size := s.maglev[set]
	if size == 0 {
		return nil
	}
	type turn struct {
		next, skip     uint32
		weight, credit uint32
		slot           uint16
	}
	var turns []turn
	var heaviest uint32
	for _, m := range s.members { // in the order of their addresses
		if m.flags&memberBit[set] == 0 {
			continue
		}
		offset, skip := maglevHashes(m)
		turns = append(turns, turn{next: uint32(offset % uint64(size)), skip: uint32(skip%uint64(size-1)) + 1, weight: uint32(m.weight), slot: m.slot[set]})
		heaviest = max(heaviest, uint32(m.weight))
	}
	table := make([]uint16, size)
	for i := range table {
		table[i] = noSlot
	}
	for filled := uint32(0); filled < size; {
		for i := range turns {
			t := &turns[i]
			if t.credit += t.weight; t.credit < heaviest {
				continue
			}
			t.credit -= heaviest
			for table[t.next] != noSlot {
				t.next = (t.next + t.skip) % size
			}
			table[t.next] = t.slot
			if filled++; filled == size {
				break
			}
		}
	}
	return table
}

// maglevHashes are two numbers of a backend that have nothing to do with each other.
func maglevHashes(m memberRow) (uint64, uint64) {
	h := fnv.New128a()
	h.Write(m.addr[:])
	h.Write(binary.BigEndian.AppendUint16(nil, m.port))
	sum := h.Sum(nil)
	return mixed(binary.BigEndian.Uint64(sum)), mixed(binary.BigEndian.Uint64(sum[8:]))
}

// mixed spreads what differs in a few bits over all of them (the finalizer of MurmurHash3).
func mixed(x uint64) uint64 {
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

// chunksOf cuts a table into rows; what is beyond its end is 0.
func (s *service) chunksOf(set Scope, do func(netMaglevKey, netMaglev)) {
	n := uint32(0)
	for part := range slices.Chunk(s.maglevTable(set), maglevChunk) {
		var row netMaglev
		copy(row.Slots[:], part)
		do(netMaglevKey{Service: s.id, Chunk: slotBit[set] | s.maglev[set]<<10 | n}, row)
		n++
	}
}

// putMaglev writes the chunks that differ. If there is no room for them the service is served all the same, each node choosing by itself.
func (t *loadBalancers) putMaglev(all []*change) {
	b := batch[netMaglevKey, netMaglev]{m: t.maglev, flag: FlagMaxBackends}
	for _, c := range all {
		if c.want == nil {
			continue
		}
		for set := range Scope(sets) {
			had := map[netMaglevKey]netMaglev{}
			if !c.fresh() && c.want.maglev[set] == c.have.maglev[set] {
				c.have.chunksOf(set, func(k netMaglevKey, row netMaglev) { had[k] = row })
			}
			c.want.chunksOf(set, func(k netMaglevKey, row netMaglev) {
				if was, ok := had[k]; !ok || was != row {
					b.put(c, k, row)
				}
			})
		}
	}
	b.write(func(c *change, k netMaglevKey, err error) {
		c.partly = fmt.Errorf("bpf: service %s: each node chooses backends by itself, consistent hashing has no room: %w", c.want.name, err)
		whole := *c.want
		c.want.left = append(c.want.left, &whole) // of which rows may be there
		c.want.maglev[k.Chunk>>31] = 0
	})
}

// deleteMaglev deletes tables of sizes that are not those any more.
func (t *loadBalancers) deleteMaglev(all []*change) {
	b := batch[netMaglevKey, netMaglev]{m: t.maglev, flag: FlagMaxBackends}
	for _, c := range all {
		for set := range Scope(sets) {
			var gone []uint32
			for _, s := range c.forms() {
				if size := s.maglev[set]; size != 0 && (c.want == nil || c.want.maglev[set] != size) && !slices.Contains(gone, size) {
					gone = append(gone, size)
				}
			}
			for _, size := range gone {
				for n := uint32(0); n*maglevChunk < size; n++ {
					b.remove(c, netMaglevKey{Service: c.have.id, Chunk: slotBit[set] | size<<10 | n})
				}
			}
		}
	}
	b.delete("the hash table")
}
