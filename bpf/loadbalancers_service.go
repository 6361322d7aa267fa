package bpf

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// service is a LoadBalancer as the kernel holds it.
type service struct {
	id          uint32
	owner, name string
	protocol    uint8
	torn        bool       // it was not written to its end: what the kernel holds may be anything of this and of left
	left        []*service // of a torn one: what else it was to become
	affinity    uint32     // seconds
	frontends   []frontendRow
	sources     []netip.Prefix
	members     []memberRow
	slots       [sets]uint32 // how many each set has
	maglev      [sets]uint32 // sizes of their Maglev tables
}

// The two sets of backends, in the order of Scope.
const sets = 2

// frontendRow is a frontend. Those of a service are sorted by address and port.
type frontendRow struct {
	addr  [16]byte
	port  uint16
	kind  FrontendKind
	flags uint8
}

// memberRow is a backend. Those of a service are sorted by address and port.
type memberRow struct {
	addr   [16]byte
	port   uint16
	weight uint16
	slot   [sets]uint16 // in each set, or noSlot
	flags  uint8
}

const (
	noSlot      = 0xffff
	maxBackends = noSlot
	maxAffinity = 24 * time.Hour // Service.spec.sessionAffinityConfig.clientIP.timeoutSeconds
)

// Flags as in lib/lb.h.
const (
	flagInsideLocal, flagOutsideLocal, flagSources = 1, 2, 4

	memberAll, memberLocal = 1, 2

	localSlot = 1 << 31
)

// slotBit is of the slots of a set, and memberBit of its members.
var (
	slotBit   = [sets]uint32{0, localSlot}
	memberBit = [sets]uint8{memberAll, memberLocal}
)

func (m memberRow) compare(o memberRow) int {
	return cmp.Or(bytes.Compare(m.addr[:], o.addr[:]), cmp.Compare(m.port, o.port))
}

func (f frontendRow) compare(o frontendRow) int {
	return cmp.Or(bytes.Compare(f.addr[:], o.addr[:]), cmp.Compare(f.port, o.port))
}

func (s *service) key(f frontendRow) netFrontendKey {
	return netFrontendKey{Addr: netAddr{B: f.addr}, Port: port16(f.port), Proto: s.protocol}
}

func (s *service) memberKey(m memberRow) netMemberKey {
	return netMemberKey{Service: s.id, Port: port16(m.port), Addr: netAddr{B: m.addr}}
}

func (s *service) frontend(f frontendRow) netFrontend {
	return netFrontend{
		Service: s.id, All: s.slots[All], Local: s.slots[Local], Affinity: s.affinity, Flags: uint16(f.flags), Kind: uint16(f.kind),
		MaglevAll: s.maglev[All], MaglevLocal: s.maglev[Local],
	}
}

func (m memberRow) backend() netBackend {
	return netBackend{Addr: netAddr{B: m.addr}, Port: port16(m.port)}
}

func (s *service) source(p netip.Prefix) netSourceKey {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return netSourceKey{Prefixlen: uint32(32 + bits), Service: s.id, Addr: addr16(p.Addr())}
}

func frontendOf(k netFrontendKey) netip.AddrPort {
	return netip.AddrPortFrom(addrOf(k.Addr), port16(k.Port))
}

// normal brings a row into the one form that equal wishes have: sorted, each backend once. Slots are not given yet.
func normal(owner string, lb LoadBalancer) (*service, error) {
	bad := func(format string, args ...any) (*service, error) {
		return nil, fmt.Errorf("bpf: service %s: "+format, append([]any{lb.Name}, args...)...)
	}
	var info netService
	if err := errors.Join(text(info.Owner[:], owner, "owner"), text(info.Name[:], lb.Name, "service name")); err != nil {
		return nil, err
	}
	switch lb.Protocol {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP:
	default:
		return bad("protocol %d is none of TCP, UDP and SCTP", lb.Protocol)
	}
	if lb.Affinity < 0 || lb.Affinity > maxAffinity || lb.Affinity%time.Second != 0 {
		return bad("affinity of %v is not whole seconds up to a day", lb.Affinity)
	}
	if len(lb.Backends) > maxBackends {
		return bad("%d backends are more than %d", len(lb.Backends), maxBackends)
	}
	s := &service{owner: owner, name: lb.Name, protocol: lb.Protocol, affinity: uint32(lb.Affinity / time.Second)}
	var first netip.Addr
	usable := func(a netip.Addr) error {
		if !first.IsValid() {
			first = a
		}
		if !plain(a) {
			return fmt.Errorf("bpf: service %s: %s is not an address", lb.Name, a)
		}
		if a.Is4() != first.Is4() {
			return fmt.Errorf("bpf: service %s: %s and %s are of two families; each has rows of its own", lb.Name, first, a)
		}
		return nil
	}
	for _, f := range lb.Frontends {
		if err := usable(f.Addr.Addr()); err != nil {
			return nil, err
		}
		if f.Addr.Port() == 0 || int(f.Kind) >= len(kinds) {
			return bad("frontend %s (%s) has no port, or is of no known kind", f.Addr, f.Kind)
		}
		row := frontendRow{addr: f.Addr.Addr().As16(), port: f.Addr.Port(), kind: f.Kind}
		if f.Inside == Local {
			row.flags |= flagInsideLocal
		}
		if f.Outside == Local {
			row.flags |= flagOutsideLocal
		}
		if len(f.Sources) > 0 {
			row.flags |= flagSources
			list := make([]netip.Prefix, 0, len(f.Sources))
			for _, p := range f.Sources {
				if !p.IsValid() {
					return bad("frontend %s: a source is no range of addresses", f.Addr)
				}
				if err := usable(p.Addr()); err != nil {
					return nil, err
				}
				list = append(list, p.Masked())
			}
			slices.SortFunc(list, netip.Prefix.Compare)
			list = slices.Compact(list)
			if s.sources != nil && !slices.Equal(s.sources, list) {
				return bad("its frontends have different sources, %v and %v", s.sources, list)
			}
			s.sources = list
		}
		s.frontends = append(s.frontends, row)
	}
	slices.SortStableFunc(s.frontends, frontendRow.compare)
	s.frontends = slices.CompactFunc(s.frontends, func(a, b frontendRow) bool { return a.compare(b) == 0 })
	for _, b := range lb.Backends {
		if err := usable(b.Addr.Addr()); err != nil {
			return nil, err
		}
		if b.Addr.Port() == 0 {
			return bad("backend %s has no port", b.Addr)
		}
		m := memberRow{addr: b.Addr.Addr().As16(), port: b.Addr.Port(), weight: max(b.Weight, 1), slot: [sets]uint16{noSlot, noSlot}}
		if b.All {
			m.flags |= memberAll
		}
		if b.Local {
			m.flags |= memberLocal
		}
		s.members = append(s.members, m)
	}
	slices.SortStableFunc(s.members, memberRow.compare)
	s.members = merged(s.members)
	return s, nil
}

// merged makes one of those that are there twice.
func merged(l []memberRow) []memberRow {
	out := l[:0]
	for _, m := range l {
		if n := len(out); n > 0 && out[n-1].compare(m) == 0 {
			out[n-1].flags |= m.flags
			out[n-1].weight = max(out[n-1].weight, m.weight)
			continue
		}
		out = append(out, m)
	}
	return slices.Clip(out)
}

// same tells whether s is what want asks for, whatever slots its backends have.
func (s *service) same(want *service) bool {
	return s.affinity == want.affinity && slices.Equal(s.frontends, want.frontends) && slices.Equal(s.sources, want.sources) &&
		slices.EqualFunc(s.members, want.members, func(a, b memberRow) bool {
			return a.compare(b) == 0 && a.flags == b.flags && a.weight == b.weight
		})
}

// settle gives slots to the members of each set. Those of have keep theirs where they can: a backend that goes moves one other at most.
func (s *service) settle(have *service) {
	for set := range sets {
		var n uint32
		for _, m := range s.members {
			if m.flags&memberBit[set] != 0 {
				n++
			}
		}
		s.slots[set] = n
		used := make([]bool, n)
		if have != nil {
			s.eachCommon(have, func(m, was *memberRow) {
				if at := was.slot[set]; m.flags&memberBit[set] != 0 && uint32(at) < n && !used[at] {
					m.slot[set], used[at] = at, true
				}
			})
		}
		free := 0
		for i := range s.members {
			m := &s.members[i]
			if m.flags&memberBit[set] == 0 || m.slot[set] != noSlot {
				continue
			}
			for used[free] {
				free++
			}
			m.slot[set], used[free] = uint16(free), true
		}
		s.maglev[set] = s.maglevSize(Scope(set))
	}
}

// eachCommon calls do for each member that is in have as well.
func (s *service) eachCommon(have *service, do func(m, was *memberRow)) {
	for i, k := 0, 0; i < len(s.members) && k < len(have.members); {
		switch c := s.members[i].compare(have.members[k]); {
		case c < 0:
			i++
		case c > 0:
			k++
		default:
			do(&s.members[i], &have.members[k])
			i++
			k++
		}
	}
}

// row is the LoadBalancer that s stands for.
func (s *service) row() LoadBalancer {
	lb := LoadBalancer{Owner: s.owner, Name: s.name, Protocol: s.protocol, Affinity: time.Duration(s.affinity) * time.Second}
	for _, f := range s.frontends {
		row := Frontend{Addr: frontendOf(s.key(f)), Kind: f.kind}
		if f.flags&flagInsideLocal != 0 {
			row.Inside = Local
		}
		if f.flags&flagOutsideLocal != 0 {
			row.Outside = Local
		}
		if f.flags&flagSources != 0 {
			row.Sources = s.sources
		}
		lb.Frontends = append(lb.Frontends, row)
	}
	for _, m := range s.members {
		lb.Backends = append(lb.Backends, Backend{
			Addr: netip.AddrPortFrom(netip.AddrFrom16(m.addr).Unmap(), m.port), Weight: m.weight, All: m.flags&memberAll != 0, Local: m.flags&memberLocal != 0,
		})
	}
	return lb
}

// NormalLoadBalancer returns a row as Dump would return it after it was written, so that two can be compared.
func NormalLoadBalancer(lb LoadBalancer) (LoadBalancer, error) {
	s, err := normal(lb.Owner, lb)
	if err != nil {
		return lb, err
	}
	if len(s.frontends) == 0 {
		s.members, s.affinity = nil, 0
	}
	return s.row(), nil
}
