package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cilium/ebpf"
)

// ServiceRows is a LoadBalancer with what the programs choose by, and what they have noted.
type ServiceRows struct {
	LoadBalancer
	ID    uint32                    // by which the other tables know it
	Hits  map[netip.AddrPort]uint64 // by backend: how often it was chosen
	Slots [sets][]netip.AddrPort    // the backends of each Scope, where the programs draw one of
	// Maglev are the tables of each Scope: entries are indices of Slots. None: whoever asks from outside draws too.
	Maglev [sets][]uint16
}

// AffinityRow is a client that chose a backend.
type AffinityRow struct {
	Service uint32
	Client  netip.Addr // of packets; not valid for sockets
	Netns   uint64     // cookie of the network namespace, of sockets
	Backend netip.AddrPort
	Ago     time.Duration // since the last choice
}

// affinityNetns reads what lib/lb.h makes of a network namespace's cookie.
func affinityNetns(a netAddr) (cookie uint64, ok bool) {
	return binary.NativeEndian.Uint64(a.B[:8]), binary.NativeEndian.Uint64(a.B[8:]) == 1<<64-1
}

// isOfNewer tells whether a pin is not there because an older release runs, which has no such table.
func isOfNewer(name string, err error) bool {
	return errors.Is(err, os.ErrNotExist) && (strings.HasSuffix(name, moreSuffix) || name == outsideLongPin)
}

// openPins opens tables to be read, but for those that older releases have not.
func openPins(pinDir string, names []string) (map[string]*ebpf.Map, func(), error) {
	maps := map[string]*ebpf.Map{}
	closeAll := func() {
		for _, m := range maps {
			m.Close()
		}
	}
	for _, name := range names {
		m, err := ebpf.LoadPinnedMap(filepath.Join(pinDir, name), &ebpf.LoadPinOptions{ReadOnly: true})
		if isOfNewer(name, err) {
			continue
		}
		if err != nil {
			closeAll()
			return nil, nil, fmt.Errorf("bpf: table %s: %w", name, err)
		}
		maps[name] = m
	}
	return maps, closeAll, nil
}

// ReadServices reads the load balancer's tables pinned below pinDir and changes nothing; no agent need run. A row that is being written
// meanwhile may show half a change.
func ReadServices(pinDir string) ([]ServiceRows, error) {
	maps, done, err := openPins(pinDir, lbPins)
	if err != nil {
		return nil, err
	}
	defer done()
	t := &loadBalancers{lbMaps: lbMapsOf(maps)}
	if _, err := t.read(); err != nil {
		return nil, err
	}
	byID := map[uint32]*ServiceRows{}
	out := make([]ServiceRows, 0, len(t.byID))
	for id, s := range t.byID {
		r := ServiceRows{LoadBalancer: s.row(), ID: id, Hits: map[netip.AddrPort]uint64{}}
		for set := range sets {
			r.Slots[set] = make([]netip.AddrPort, s.slots[set])
			for _, m := range s.members {
				if at := m.slot[set]; at != noSlot && int(at) < len(r.Slots[set]) {
					r.Slots[set][at] = netip.AddrPortFrom(netip.AddrFrom16(m.addr).Unmap(), m.port)
				}
			}
			r.Maglev[set] = make([]uint16, s.maglev[set])
		}
		out = append(out, r)
		byID[id] = &out[len(out)-1]
	}
	err = errors.Join(
		eachRow(t.lbMaps.members, "backends", func(k netMemberKey, m netMember) {
			if r := byID[k.Service]; r != nil {
				r.Hits[netip.AddrPortFrom(addrOf(k.Addr), port16(k.Port))] = m.Hits
			}
		}),
		eachRow(t.lbMaps.maglev, "hash tables", func(k netMaglevKey, row netMaglev) {
			r, set, size, chunk := byID[k.Service], k.Chunk>>31, k.Chunk&^localSlot>>10, k.Chunk&(1<<10-1)
			if r == nil || int(size) != len(r.Maglev[set]) || chunk*maglevChunk >= size {
				return
			}
			copy(r.Maglev[set][chunk*maglevChunk:], row.Slots[:])
		}),
	)
	return out, err
}

// ReadAffinity reads who keeps a backend.
func ReadAffinity(pinDir string) ([]AffinityRow, error) {
	maps, done, err := openPins(pinDir, []string{"lb_affinity"})
	if err != nil {
		return nil, err
	}
	defer done()
	now := Monotonic()
	var out []AffinityRow
	err = eachRow(maps["lb_affinity"], "affinities", func(k netAffinityKey, a netAffinity) {
		r := AffinityRow{Service: k.Service, Backend: netip.AddrPortFrom(addrOf(a.Addr), port16(a.Port)), Ago: now - time.Duration(a.Last)}
		if cookie, ok := affinityNetns(k.Client); ok {
			r.Netns = cookie
		} else {
			r.Client = addrOf(k.Client)
		}
		out = append(out, r)
	})
	return out, err
}

// ReadSocketsOff reads the cookies of the network namespaces whose sockets are left alone.
func ReadSocketsOff(pinDir string) ([]uint64, error) {
	maps, done, err := openPins(pinDir, []string{"sockets_off"})
	if err != nil {
		return nil, err
	}
	defer done()
	t, err := openSocketsOff(maps)
	if err != nil {
		return nil, err
	}
	rows, err := t.Dump()
	var out []uint64
	for _, r := range rows {
		out = append(out, r.Netns)
	}
	return out, err
}
