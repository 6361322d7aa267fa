package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
)

// loadBalancers implements Table[LoadBalancer] over three maps: who asked for a service, its frontends, its backends.
type loadBalancers struct {
	services, frontends, backends *ebpf.Map

	mu     sync.Mutex
	byID   map[uint32]*service
	byName map[string]map[portKey]*service // by owner
	owner  map[netFrontendKey]*service
	nextID uint32
}

// portKey tells the rows of one owner apart.
type portKey struct {
	name     string
	protocol uint8
}

func keyOf(lb LoadBalancer) portKey { return portKey{lb.Name, lb.Protocol} }

// service is what the kernel holds of one LoadBalancer.
type service struct {
	id   uint32
	row  LoadBalancer
	torn bool // an agent was killed while it wrote this one
}

// openLoadBalancers takes over what an agent before us left. One that was killed between two writes may have left rows that
// nothing names, or frontends of one service that disagree: the former are deleted, the latter are written anew by the next Replace.
func openLoadBalancers(maps map[string]*ebpf.Map) (*loadBalancers, error) {
	t := &loadBalancers{services: maps["lb_services"], frontends: maps["lb_frontends"], backends: maps["lb_backends"], nextID: 1}
	strays, err := t.read()
	if err != nil {
		return nil, err
	}
	for _, k := range strays.frontends {
		if err := t.frontends.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil, fmt.Errorf("bpf: delete stray frontend %s: %w", frontendOf(k), err)
		}
	}
	for _, k := range strays.backends {
		if err := t.backends.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil, fmt.Errorf("bpf: delete stray backend %d of service %d: %w", k.Slot, k.Service, err)
		}
	}
	return t, nil
}

// strays are rows that no service accounts for.
type strays struct {
	frontends []netFrontendKey
	backends  []netSlotKey
}

// read fills the table from its maps and changes none of them.
func (t *loadBalancers) read() (strays, error) {
	t.byID, t.byName, t.owner = map[uint32]*service{}, map[string]map[portKey]*service{}, map[netFrontendKey]*service{}
	var lost strays
	var id uint32
	var info netService
	it := t.services.Iterate()
	for it.Next(&id, &info) {
		t.add(&service{id: id, row: LoadBalancer{Owner: textOf(info.Owner[:]), Name: textOf(info.Name[:]), Protocol: info.Proto}})
	}
	if err := it.Err(); err != nil {
		return lost, fmt.Errorf("bpf: read services: %w", err)
	}
	var fk netFrontendKey
	var fe netFrontend
	counts := map[uint32]uint32{} // service, backends that its frontends spread over
	it = t.frontends.Iterate()
	for it.Next(&fk, &fe) {
		s := t.byID[fe.Service]
		if s == nil {
			lost.frontends = append(lost.frontends, fk)
			continue
		}
		if n, ok := counts[s.id]; ok && n != fe.Backends {
			s.torn = true
		}
		counts[s.id] = max(counts[s.id], fe.Backends)
		s.row.Frontends = append(s.row.Frontends, frontendOf(fk))
		t.owner[fk] = s
	}
	if err := it.Err(); err != nil {
		return lost, fmt.Errorf("bpf: read frontends: %w", err)
	}
	var sk netSlotKey
	var be netBackend
	slots := map[uint32]map[uint32]netip.AddrPort{}
	it = t.backends.Iterate()
	for it.Next(&sk, &be) {
		if sk.Slot >= counts[sk.Service] {
			lost.backends = append(lost.backends, sk)
			continue
		}
		if slots[sk.Service] == nil {
			slots[sk.Service] = map[uint32]netip.AddrPort{}
		}
		slots[sk.Service][sk.Slot] = netip.AddrPortFrom(addrOf(be.Addr), port16(be.Port))
	}
	if err := it.Err(); err != nil {
		return lost, fmt.Errorf("bpf: read backends: %w", err)
	}
	for _, s := range t.byID {
		slices.SortFunc(s.row.Frontends, netip.AddrPort.Compare)
		for slot := range counts[s.id] {
			b, ok := slots[s.id][slot]
			s.torn = s.torn || !ok
			s.row.Backends = append(s.row.Backends, b) // a hole stays in place: slots are told by their index
		}
	}
	return lost, nil
}

func (t *loadBalancers) add(s *service) {
	t.byID[s.id] = s
	if t.byName[s.row.Owner] == nil {
		t.byName[s.row.Owner] = map[portKey]*service{}
	}
	t.byName[s.row.Owner][keyOf(s.row)] = s
	t.nextID = max(t.nextID, s.id+1)
}

func (t *loadBalancers) drop(s *service) {
	delete(t.byID, s.id)
	delete(t.byName[s.row.Owner], keyOf(s.row))
	if len(t.byName[s.row.Owner]) == 0 {
		delete(t.byName, s.row.Owner)
	}
}

func frontendKey(f netip.AddrPort, proto uint8) netFrontendKey {
	return netFrontendKey{Addr: addr16(f.Addr()), Port: port16(f.Port()), Proto: proto}
}

func frontendOf(k netFrontendKey) netip.AddrPort {
	return netip.AddrPortFrom(addrOf(k.Addr), port16(k.Port))
}

// Replace implements Table. Nothing is written if a row is bad. A frontend that another owner has is left out and told in the
// error, the rest is written: two owners that swap frontends would else wait for each other for ever. The order of the writes keeps every packet on a whole service: new
// backends before the frontends that count them, all new frontends before any old one goes (a renamed port takes its frontend
// along without a gap), old frontends before the backends that they count. A service with no frontend holds no backend.
func (t *loadBalancers) Replace(owner string, want []LoadBalancer) (Changes, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var c Changes
	rows, taken, err := t.check(owner, want)
	if err != nil {
		return c, err
	}
	keep := map[portKey]bool{}
	type write struct {
		s  *service
		lb LoadBalancer
	}
	var writes []write
	for _, lb := range rows {
		keep[keyOf(lb)] = true
		have := t.byName[owner][keyOf(lb)]
		switch {
		case have == nil:
			have = &service{id: t.freeID(), row: LoadBalancer{Owner: owner, Name: lb.Name, Protocol: lb.Protocol}}
			if err := t.create(have); err != nil {
				return c, err
			}
			c.Added++
		case !have.torn && slices.Equal(have.row.Frontends, lb.Frontends) && slices.Equal(have.row.Backends, lb.Backends):
			continue
		default:
			c.Updated++
		}
		writes = append(writes, write{have, lb})
		if err := t.grow(have, lb); err != nil {
			t.tear(have, lb)
			return c, err
		}
	}
	for _, w := range writes {
		if err := t.shrink(w.s, w.lb); err != nil {
			w.s.torn = true
			return c, err
		}
	}
	for k, s := range t.byName[owner] {
		if keep[k] {
			continue
		}
		if err := t.delete(s); err != nil {
			return c, err
		}
		c.Deleted++
	}
	return c, taken
}

// normal sorts and removes doubles, so that equal wishes are equal rows.
func normal(lb LoadBalancer) LoadBalancer {
	for _, l := range []*[]netip.AddrPort{&lb.Frontends, &lb.Backends} {
		*l = slices.Compact(slices.SortedFunc(slices.Values(*l), netip.AddrPort.Compare))
	}
	return lb
}

// check returns the rows in their normal form, without the frontends that other owners have, which taken names. err tells of a
// row that can't be written at all.
func (t *loadBalancers) check(owner string, want []LoadBalancer) (rows []LoadBalancer, taken, err error) {
	names, wanted := map[portKey]bool{}, map[netFrontendKey]string{}
	var conflicts []error
	for _, lb := range want {
		lb = normal(lb)
		lb.Owner = owner
		if names[keyOf(lb)] {
			return nil, nil, fmt.Errorf("bpf: service %s of %s is there twice", lb.Name, owner)
		}
		names[keyOf(lb)] = true
		if lb.Protocol != 6 && lb.Protocol != 17 {
			return nil, nil, fmt.Errorf("bpf: service %s: protocol %d is neither TCP nor UDP", lb.Name, lb.Protocol)
		}
		var info netService
		if err := errors.Join(text(info.Owner[:], owner, "owner"), text(info.Name[:], lb.Name, "service name")); err != nil {
			return nil, nil, err
		}
		all := slices.Concat(lb.Frontends, lb.Backends)
		for _, a := range all {
			if !plain(a.Addr()) || a.Port() == 0 {
				return nil, nil, fmt.Errorf("bpf: service %s: %s is not an address with a port", lb.Name, a)
			}
			if a.Addr().Is4() != all[0].Addr().Is4() {
				return nil, nil, fmt.Errorf("bpf: service %s: %s and %s are of two families; each has rows of its own", lb.Name, all[0], a)
			}
		}
		for _, f := range lb.Frontends {
			k := frontendKey(f, lb.Protocol)
			if other, ok := wanted[k]; ok {
				return nil, nil, fmt.Errorf("bpf: frontend %s is wanted by services %s and %s of %s", f, other, lb.Name, owner)
			}
			wanted[k] = lb.Name
		}
		lb.Frontends = slices.DeleteFunc(lb.Frontends, func(f netip.AddrPort) bool {
			other := t.owner[frontendKey(f, lb.Protocol)]
			if other == nil || other.row.Owner == owner {
				return false
			}
			conflicts = append(conflicts, fmt.Errorf("bpf: frontend %s of service %s (owner %s) belongs to service %s (owner %s)", f, lb.Name, owner, other.row.Name, other.row.Owner))
			return true
		})
		if len(lb.Frontends) == 0 {
			lb.Backends = nil
		}
		rows = append(rows, lb)
	}
	return rows, errors.Join(conflicts...), nil
}

func (t *loadBalancers) freeID() uint32 {
	for t.byID[t.nextID] != nil || t.nextID == 0 {
		t.nextID++
	}
	id := t.nextID
	t.nextID++
	return id
}

func (t *loadBalancers) create(s *service) error {
	info := netService{Proto: s.row.Protocol}
	if err := text(info.Owner[:], s.row.Owner, "owner"); err != nil {
		return err
	}
	if err := text(info.Name[:], s.row.Name, "service name"); err != nil {
		return err
	}
	if err := t.services.Put(s.id, info); err != nil {
		return fmt.Errorf("bpf: write service %s: %w", s.row.Name, explain(err))
	}
	t.add(s)
	return nil
}

// grow writes what lb has and the kernel has not: backends, then the frontends that count them.
func (t *loadBalancers) grow(s *service, lb LoadBalancer) error {
	for i, b := range lb.Backends {
		if !s.torn && i < len(s.row.Backends) && s.row.Backends[i] == b {
			continue
		}
		if err := t.backends.Put(netSlotKey{Service: s.id, Slot: uint32(i)}, netBackend{Addr: addr16(b.Addr()), Port: port16(b.Port())}); err != nil {
			return fmt.Errorf("bpf: write backend %s of service %s: %w", b, s.row.Name, explain(err))
		}
	}
	same := !s.torn && len(lb.Backends) == len(s.row.Backends)
	for _, f := range lb.Frontends {
		k := frontendKey(f, lb.Protocol)
		if same && t.owner[k] == s {
			continue
		}
		if err := t.frontends.Put(k, netFrontend{Service: s.id, Backends: uint32(len(lb.Backends))}); err != nil {
			return fmt.Errorf("bpf: write frontend %s of service %s: %w", f, s.row.Name, explain(err))
		}
		t.owner[k] = s
	}
	return nil
}

// tear notes that a write of lb stopped half way: all that may be in the kernel is to be written anew, or deleted.
func (t *loadBalancers) tear(s *service, lb LoadBalancer) {
	s.torn = true
	for _, f := range lb.Frontends {
		if t.owner[frontendKey(f, lb.Protocol)] == s && !slices.Contains(s.row.Frontends, f) {
			s.row.Frontends = append(slices.Clone(s.row.Frontends), f)
		}
	}
	if len(lb.Backends) > len(s.row.Backends) {
		s.row.Backends = lb.Backends
	}
}

// shrink deletes what the kernel has and lb has not: frontends that no other service took over, then backends.
func (t *loadBalancers) shrink(s *service, lb LoadBalancer) error {
	for _, f := range s.row.Frontends {
		k := frontendKey(f, lb.Protocol)
		if slices.Contains(lb.Frontends, f) || t.owner[k] != s {
			continue
		}
		if err := t.frontends.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("bpf: delete frontend %s of service %s: %w", f, s.row.Name, err)
		}
		delete(t.owner, k)
	}
	for i := len(s.row.Backends) - 1; i >= len(lb.Backends); i-- {
		if err := t.backends.Delete(netSlotKey{Service: s.id, Slot: uint32(i)}); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("bpf: delete backend of service %s: %w", s.row.Name, err)
		}
	}
	s.row.Frontends, s.row.Backends, s.torn = lb.Frontends, lb.Backends, false
	return nil
}

func (t *loadBalancers) delete(s *service) error {
	if err := t.shrink(s, LoadBalancer{Protocol: s.row.Protocol}); err != nil {
		return err
	}
	if err := t.services.Delete(s.id); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("bpf: delete service %s: %w", s.row.Name, err)
	}
	t.drop(s)
	return nil
}

// Prune implements Table.
func (t *loadBalancers) Prune(keep func(string) bool) (Changes, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var c Changes
	for owner, list := range t.byName {
		if keep(owner) {
			continue
		}
		for _, s := range list {
			if err := t.delete(s); err != nil {
				return c, err
			}
			c.Deleted++
		}
	}
	return c, nil
}

// Dump implements Table; it reads the maps, not what we believe of them, and changes nothing.
func (t *loadBalancers) Dump() ([]LoadBalancer, error) {
	t.mu.Lock() // a Replace half done is no answer
	defer t.mu.Unlock()
	fresh := &loadBalancers{services: t.services, frontends: t.frontends, backends: t.backends}
	if _, err := fresh.read(); err != nil {
		return nil, err
	}
	var out []LoadBalancer
	for _, s := range fresh.byID {
		out = append(out, s.row)
	}
	return out, nil
}
