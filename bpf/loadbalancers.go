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
	byName map[string]map[string]*service // owner, name
	owner  map[netFrontendKey]*service
	nextID uint32
}

// service is what the kernel holds of one LoadBalancer.
type service struct {
	id  uint32
	row LoadBalancer
}

func openLoadBalancers(maps map[string]*ebpf.Map) (*loadBalancers, error) {
	t := &loadBalancers{
		services: maps["lb_services"], frontends: maps["lb_frontends"], backends: maps["lb_backends"],
		byID: map[uint32]*service{}, byName: map[string]map[string]*service{}, owner: map[netFrontendKey]*service{}, nextID: 1,
	}
	var id uint32
	var info netService
	it := t.services.Iterate()
	for it.Next(&id, &info) {
		t.add(&service{id: id, row: LoadBalancer{Owner: textOf(info.Owner[:]), Name: textOf(info.Name[:]), Protocol: info.Proto}})
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("bpf: read services: %w", err)
	}
	var fk netFrontendKey
	var fe netFrontend
	var strays []netFrontendKey
	it = t.frontends.Iterate()
	for it.Next(&fk, &fe) {
		s := t.byID[fe.Service]
		if s == nil {
			strays = append(strays, fk)
			continue
		}
		s.row.Frontends = append(s.row.Frontends, frontendOf(fk))
		t.owner[fk] = s
		if len(s.row.Backends) == 0 {
			for slot := range fe.Backends {
				var be netBackend
				if err := t.backends.Lookup(netSlotKey{Service: s.id, Slot: slot}, &be); err == nil {
					s.row.Backends = append(s.row.Backends, netip.AddrPortFrom(addrOf(be.Addr), port16(be.Port)))
				}
			}
		}
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("bpf: read frontends: %w", err)
	}
	for _, s := range t.byID {
		slices.SortFunc(s.row.Frontends, netip.AddrPort.Compare)
	}
	// An agent that was killed between two writes may have left a frontend whose service row is gone.
	for _, k := range strays {
		if err := t.frontends.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil, fmt.Errorf("bpf: delete stray frontend %s: %w", frontendOf(k), err)
		}
	}
	return t, nil
}

func (t *loadBalancers) add(s *service) {
	t.byID[s.id] = s
	if t.byName[s.row.Owner] == nil {
		t.byName[s.row.Owner] = map[string]*service{}
	}
	t.byName[s.row.Owner][s.row.Name] = s
	t.nextID = max(t.nextID, s.id+1)
}

func (t *loadBalancers) drop(s *service) {
	delete(t.byID, s.id)
	delete(t.byName[s.row.Owner], s.row.Name)
	if len(t.byName[s.row.Owner]) == 0 {
		delete(t.byName, s.row.Owner)
	}
}

func frontendKey(f netip.AddrPort, proto uint8) netFrontendKey {
	return netFrontendKey{Addr: addr4(f.Addr()), Port: port16(f.Port()), Proto: proto}
}

func frontendOf(k netFrontendKey) netip.AddrPort {
	return netip.AddrPortFrom(addrOf(k.Addr), port16(k.Port))
}

// Replace implements Table. The order of the writes keeps every packet on a whole service: new backends before the frontends
// that count them, old frontends before the backends that they count.
func (t *loadBalancers) Replace(owner string, want []LoadBalancer) (Changes, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var c Changes
	names := map[string]bool{}
	for i := range want {
		lb := normal(want[i])
		lb.Owner = owner
		if err := t.check(lb); err != nil {
			return c, err
		}
		names[lb.Name] = true
		have := t.byName[owner][lb.Name]
		if have != nil && have.row.Protocol != lb.Protocol {
			if err := t.delete(have); err != nil {
				return c, err
			}
			have = nil
		}
		switch {
		case have == nil:
			have = &service{id: t.freeID(), row: LoadBalancer{Owner: owner, Name: lb.Name, Protocol: lb.Protocol}}
			if err := t.create(have); err != nil {
				return c, err
			}
			if err := t.write(have, lb); err != nil {
				return c, err
			}
			c.Added++
		case slices.Equal(have.row.Frontends, lb.Frontends) && slices.Equal(have.row.Backends, lb.Backends):
		default:
			if err := t.write(have, lb); err != nil {
				return c, err
			}
			c.Updated++
		}
	}
	for name, s := range t.byName[owner] {
		if !names[name] {
			if err := t.delete(s); err != nil {
				return c, err
			}
			c.Deleted++
		}
	}
	return c, nil
}

// normal sorts and removes doubles, so that equal wishes are equal rows.
func normal(lb LoadBalancer) LoadBalancer {
	for _, l := range []*[]netip.AddrPort{&lb.Frontends, &lb.Backends} {
		*l = slices.Compact(slices.SortedFunc(slices.Values(*l), netip.AddrPort.Compare))
	}
	return lb
}

func (t *loadBalancers) check(lb LoadBalancer) error {
	for _, a := range slices.Concat(lb.Frontends, lb.Backends) {
		if !a.Addr().Is4() || a.Port() == 0 {
			return fmt.Errorf("bpf: service %s: %s is not an IPv4 address with a port", lb.Name, a)
		}
	}
	for _, f := range lb.Frontends {
		if other := t.owner[frontendKey(f, lb.Protocol)]; other != nil && (other.row.Owner != lb.Owner || other.row.Name != lb.Name) {
			return fmt.Errorf("bpf: frontend %s of service %s belongs to service %s", f, lb.Name, other.row.Name)
		}
	}
	return nil
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

// write brings an existing service to lb.
func (t *loadBalancers) write(s *service, lb LoadBalancer) error {
	before := len(s.row.Backends)
	for i, b := range lb.Backends {
		if i < before && s.row.Backends[i] == b {
			continue
		}
		if err := t.backends.Put(netSlotKey{Service: s.id, Slot: uint32(i)}, netBackend{Addr: addr4(b.Addr()), Port: port16(b.Port())}); err != nil {
			return fmt.Errorf("bpf: write backend %s of service %s: %w", b, s.row.Name, explain(err))
		}
	}
	fe := netFrontend{Service: s.id, Backends: uint32(len(lb.Backends))}
	for _, f := range lb.Frontends {
		k := frontendKey(f, lb.Protocol)
		if err := t.frontends.Put(k, fe); err != nil {
			return fmt.Errorf("bpf: write frontend %s of service %s: %w", f, s.row.Name, explain(err))
		}
		t.owner[k] = s
	}
	for _, f := range s.row.Frontends {
		if !slices.Contains(lb.Frontends, f) {
			if err := t.deleteFrontend(f, lb.Protocol); err != nil {
				return fmt.Errorf("bpf: delete frontend %s of service %s: %w", f, s.row.Name, err)
			}
		}
	}
	for i := before - 1; i >= len(lb.Backends); i-- {
		if err := t.backends.Delete(netSlotKey{Service: s.id, Slot: uint32(i)}); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("bpf: delete backend of service %s: %w", s.row.Name, err)
		}
	}
	s.row.Frontends, s.row.Backends = lb.Frontends, lb.Backends
	return nil
}

func (t *loadBalancers) deleteFrontend(f netip.AddrPort, proto uint8) error {
	k := frontendKey(f, proto)
	delete(t.owner, k)
	if err := t.frontends.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	return nil
}

func (t *loadBalancers) delete(s *service) error {
	if err := t.write(s, LoadBalancer{Owner: s.row.Owner, Name: s.row.Name, Protocol: s.row.Protocol}); err != nil {
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

// Dump implements Table; it reads the maps, not what we believe of them.
func (t *loadBalancers) Dump() ([]LoadBalancer, error) {
	fresh, err := openLoadBalancers(map[string]*ebpf.Map{"lb_services": t.services, "lb_frontends": t.frontends, "lb_backends": t.backends})
	if err != nil {
		return nil, err
	}
	var out []LoadBalancer
	for _, s := range fresh.byID {
		out = append(out, s.row)
	}
	return out, nil
}
