package cni

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// grace is how long a released address rests while others are free, so that nobody who still remembers the old pod
// meets a new one.
const grace = time.Minute

var errFull = errors.New("no address is free")

// lastFile holds the latest address of each family that was given.
const lastFile = "last"

// ipam hands out the addresses of the node's ranges. What is given is what the files say.
type ipam struct {
	dir string
	now func() time.Time

	mu      sync.Mutex
	byKey   map[string]Allocation
	taken   map[netip.Addr]string
	resting map[netip.Addr]time.Time // since when
	queue   []rest                   // the same, oldest first; an entry that the map does not confirm is void
	last    map[bool]netip.Addr      // by "is IPv4": the latest given, also in lastFile: a restart goes on behind it
}

type rest struct {
	addr  netip.Addr
	since time.Time
}

// openIPAM reads the allocations of a former run.
func openIPAM(dir string) (*ipam, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cni: allocations: %w", err)
	}
	if err := errors.Join(removeUnfinished(dir), removeTorn(dir)); err != nil {
		return nil, fmt.Errorf("cni: allocations: %w", err)
	}
	p := &ipam{dir: dir, now: time.Now, byKey: map[string]Allocation{}, taken: map[netip.Addr]string{}, resting: map[netip.Addr]time.Time{}, last: map[bool]netip.Addr{}}
	list, err := readAllocations(dir)
	if err != nil {
		return nil, err
	}
	for _, a := range list {
		for _, addr := range a.Addrs {
			if other, ok := p.taken[addr]; ok {
				return nil, fmt.Errorf("cni: %s is allocated twice in %s, to %s and to %s; remove the file of the one that does not run", addr, dir, other, a.key())
			}
			p.taken[addr] = a.key()
		}
		p.byKey[a.key()] = a
	}
	if text, err := os.ReadFile(filepath.Join(dir, lastFile)); err == nil {
		for _, field := range strings.Fields(string(text)) {
			if addr, err := netip.ParseAddr(field); err == nil { // only a hint: without it addresses begin anew
				p.last[addr.Is4()] = addr
			}
		}
	}
	return p, nil
}

// get returns an existing allocation.
func (p *ipam) get(container, ifname string) (Allocation, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	a, ok := p.byKey[key(container, ifname)]
	return a, ok
}

func (p *ipam) list() []Allocation {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []Allocation
	for _, a := range p.byKey {
		out = append(out, a)
	}
	return out
}

// allocate completes an allocation with an address of each range and notes it. Ranges are one, or two of different families. It is on disk
// when the function that comes with it has returned, which is to be called.
func (p *ipam) allocate(ranges []netip.Prefix, a Allocation) (Allocation, func() error, error) {
	if len(ranges) == 0 || len(ranges) > 2 || len(ranges) == 2 && ranges[0].Addr().Is4() == ranges[1].Addr().Is4() {
		return a, nil, fmt.Errorf("the node's pod ranges %s are not one, or two of different families", ranges)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	a.Addrs = nil
	for _, r := range ranges {
		addr, err := p.next(r.Masked())
		if err != nil {
			return a, nil, err
		}
		a.Addrs = append(a.Addrs, addr)
	}
	return p.take(a)
}

// firstHost is the offset of the first address that a pod may have. Before it are the network's own (RFC 919), in IPv6 that of all
// routers (RFC 4291, 2.6.1), and the first host's, by which others expect a gateway.
const firstHost = 2

// hosts counts the addresses for pods, from firstHost on. Of IPv4 the last is the broadcast's (RFC 919). Of IPv6 no more are used than
// IPv4 has, which also leaves out those at the end of a /64 that RFC 2526 reserves.
func hosts(p netip.Prefix) uint64 {
	bits := p.Addr().BitLen() - p.Bits()
	switch {
	case bits < 2:
		return 0
	case p.Addr().Is4():
		return 1<<bits - firstHost - 1
	}
	return 1<<min(bits, 32) - firstHost
}

// next finds the first free address behind the last one given, or, if all are in use or rest, the one that rests longest.
func (p *ipam) next(r netip.Prefix) (netip.Addr, error) {
	count := hosts(r)
	if count == 0 {
		return netip.Addr{}, fmt.Errorf("the node's pod range %s has no address for a pod", r)
	}
	p.wake()
	start := uint64(0)
	if last, ok := p.last[r.Addr().Is4()]; ok {
		if i, ok := index(r, last); ok && i >= firstHost {
			start = i - firstHost + 1
		}
	}
	for i := range count { // ends soon: what is in the way is in one of the two maps
		addr := nth(r, firstHost+(start+i)%count)
		if _, used := p.taken[addr]; used {
			continue
		}
		if _, rests := p.resting[addr]; !rests {
			return addr, nil
		}
	}
	for _, q := range p.queue {
		if i, ok := index(r, q.addr); ok && i >= firstHost && i < firstHost+count && p.resting[q.addr].Equal(q.since) {
			return q.addr, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("%w: all %d of the node's pod range %s are in use", errFull, count, r)
}

// wake ends the rest of addresses whose time is over.
func (p *ipam) wake() {
	now := p.now()
	for len(p.queue) > 0 && now.Sub(p.queue[0].since) >= grace {
		if q := p.queue[0]; p.resting[q.addr].Equal(q.since) {
			delete(p.resting, q.addr)
		}
		p.queue = p.queue[1:]
	}
}

// split gives an address as two numbers; IPv4 is within the second.
func split(a netip.Addr) (high, low uint64) {
	b := a.As16()
	return binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
}

// index is the offset of an address within a range, if it has one below 2^64.
func index(p netip.Prefix, a netip.Addr) (uint64, bool) {
	baseHigh, base := split(p.Addr())
	high, low := split(a)
	return low - base, p.Contains(a) && high == baseHigh
}

// nth is the address at an offset. The range's own bits from there on are zero, so nothing is carried over.
func nth(p netip.Prefix, n uint64) netip.Addr {
	b := p.Addr().As16()
	binary.BigEndian.PutUint64(b[8:], binary.BigEndian.Uint64(b[8:])+n)
	a := netip.AddrFrom16(b)
	if p.Addr().Is4() {
		a = a.Unmap()
	}
	return a
}

func (p *ipam) take(a Allocation) (Allocation, func() error, error) {
	data, err := json.Marshal(a)
	if err != nil {
		return a, nil, err
	}
	durable, err := placeFile(allocationFile(p.dir, a), data)
	if err != nil {
		return a, nil, fmt.Errorf("allocation of %s: %w", a.Addrs, err)
	}
	p.byKey[a.key()] = a
	for _, addr := range a.Addrs {
		p.taken[addr], p.last[addr.Is4()] = a.key(), addr
		delete(p.resting, addr)
	}
	var last []string
	for _, addr := range p.last {
		last = append(last, addr.String())
	}
	if err := os.WriteFile(filepath.Join(p.dir, lastFile), []byte(strings.Join(last, "\n")), 0o600); err != nil {
		return a, nil, errors.Join(fmt.Errorf("allocation of %s: %w", a.Addrs, err), durable(), p.drop(a))
	}
	return a, func() error {
		if err := durable(); err != nil {
			return fmt.Errorf("allocation of %s: %w", a.Addrs, err)
		}
		return nil
	}, nil
}

// release gives addresses back; what is not held is no error.
func (p *ipam) release(container, ifname string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	a, ok := p.byKey[key(container, ifname)]
	if !ok {
		return nil
	}
	return p.drop(a)
}

func (p *ipam) drop(a Allocation) error {
	if err := os.Remove(allocationFile(p.dir, a)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("release of %s: %w", a.Addrs, err)
	}
	delete(p.byKey, a.key())
	p.wake()
	now := p.now()
	for _, addr := range a.Addrs {
		delete(p.taken, addr)
		p.resting[addr] = now
		p.queue = append(p.queue, rest{addr, now})
	}
	return nil
}
