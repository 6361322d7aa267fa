package bpf

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
)

// loadBalancers implements Table[LoadBalancer]. What the kernel holds is written down here in a short form: a quarter of a million backends
// are some megabytes.
type loadBalancers struct {
	lbMaps

	mu      sync.Mutex
	byID    map[uint32]*service
	byOwner map[string][]*service
	owner   map[netFrontendKey]uint32 // frontend → service that has it
	kept    map[netPortKey]int        // ports of the node → how many frontends have them
	unkept  map[netPortKey]bool       // those of them that could not be written
	nextID  uint32
	onGone  func() // called after backends went
}

// lbMaps are the maps of the load balancer.
type lbMaps struct{ services, frontends, backends, members, maglev, sources, changes, ports *ebpf.Map }

// lbPins are their pins.
var lbPins = []string{"lb_services", "lb_frontends", "lb_backends", "lb_members", "lb_maglev", "lb_sources", "lb_changes", "lb_ports"}

func lbMapsOf(m map[string]*ebpf.Map) lbMaps {
	return lbMaps{m["lb_services"], m["lb_frontends"], m["lb_backends"], m["lb_members"], m["lb_maglev"], m["lb_sources"], m["lb_changes"], m["lb_ports"]}
}

// What the tables of Services hold unless Config says otherwise (LB_FRONTENDS and LB_BACKENDS of lib/lb.h).
const (
	DefaultMaxFrontends = 262144
	DefaultMaxBackends  = 524288

	maxRows = 1 << 24
)

// Flags of the agent that make tables larger: errors name them.
const (
	FlagMaxFrontends = "max-service-frontends"
	FlagMaxBackends  = "max-service-backends"
)

// sizes are those of the tables that Config sizes.
func (c Config) sizes() map[string]uint32 {
	frontends, backends := uint32(c.MaxFrontends), uint32(c.MaxBackends)
	if frontends == 0 {
		frontends = DefaultMaxFrontends
	}
	if backends == 0 {
		backends = DefaultMaxBackends
	}
	sizes := map[string]uint32{"lb_frontends": frontends, "lb_services": frontends, "lb_backends": backends, "lb_members": backends, "lb_maglev": max(backends/2, 1)}
	c.policySizes(sizes)
	return sizes
}

// roomier says which flag makes room in a full table.
func roomier(m *ebpf.Map, flag string, err error) error {
	if !isFull(err) {
		return err
	}
	return fmt.Errorf("the table of %d rows is full, a larger --%s makes room: %w", m.MaxEntries(), flag, err)
}

// openLoadBalancers takes over what an agent before us left. One that was killed between two writes may have left rows that nothing names,
// or a service that is half one thing and half another: the former are deleted, the latter is written anew by the next Replace.
func openLoadBalancers(maps map[string]*ebpf.Map) (*loadBalancers, error) {
	t := &loadBalancers{lbMaps: lbMapsOf(maps)}
	lost, err := t.read()
	if err != nil {
		return nil, err
	}
	t.nextID = rand.Uint32() // sockets and flows remember services by their numbers, also deleted ones
	if err := lost.delete(t.lbMaps); err != nil {
		return nil, err
	}
	if err := t.keepPorts(); err != nil {
		return nil, err
	}
	return t, t.backendsWent() // it may have been killed between the two
}

// find returns the service that holds the rows of one port.
func (t *loadBalancers) find(owner, name string, protocol uint8) *service {
	for _, s := range t.byOwner[owner] {
		if s.name == name && s.protocol == protocol {
			return s
		}
	}
	return nil
}

// nameAt is the name of the load balancer that has a frontend, as LoadBalancer.Name; empty: none has.
func (t *loadBalancers) nameAt(frontend netip.AddrPort, protocol uint8) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.byID[t.owner[netFrontendKey{Addr: addr16(frontend.Addr()), Port: port16(frontend.Port()), Proto: protocol}]]; s != nil {
		return s.name
	}
	return ""
}

func (t *loadBalancers) add(s *service) {
	t.byID[s.id] = s
	t.byOwner[s.owner] = append(t.byOwner[s.owner], s)
}

func (t *loadBalancers) drop(s *service) {
	delete(t.byID, s.id)
	t.byOwner[s.owner] = slices.DeleteFunc(t.byOwner[s.owner], func(o *service) bool { return o == s })
	if len(t.byOwner[s.owner]) == 0 {
		delete(t.byOwner, s.owner)
	}
}

func (t *loadBalancers) freeID() uint32 {
	for t.byID[t.nextID] != nil || t.nextID == 0 {
		t.nextID++
	}
	id := t.nextID
	t.nextID++
	return id
}

// Replace implements Table. Nothing is written if a row is bad. A frontend that another owner has is left out and told in the error, the
// rest is written: two owners that swap frontends would else wait for each other for ever.
func (t *loadBalancers) Replace(owner string, want []LoadBalancer) (Changes, error) {
	c, errs := t.ReplaceAll(map[string][]LoadBalancer{owner: want})
	return c, errs[owner]
}

// ownersAtOnce bounds what one batch of writes holds in memory.
const ownersAtOnce = 1024

// ReplaceAll is Replace for many owners, and quicker than one by one. It returns the errors by owner: what one of them meets does not stop
// the others.
func (t *loadBalancers) ReplaceAll(want map[string][]LoadBalancer) (Changes, map[string]error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var c Changes
	errs := map[string]error{}
	owners := slices.Sorted(maps.Keys(want))
	for list := range slices.Chunk(owners, ownersAtOnce) {
		t.replace(list, want, &c, errs)
	}
	// A frontend may have been taken when it was asked for, and free now.
	if len(errs) > 0 && len(owners) > 1 {
		var again []string
		for _, o := range owners {
			var taken *TakenError
			if errors.As(errs[o], &taken) {
				delete(errs, o)
				again = append(again, o)
			}
		}
		t.replace(again, want, &c, errs)
	}
	return c, errs
}

func (t *loadBalancers) replace(owners []string, want map[string][]LoadBalancer, c *Changes, errs map[string]error) {
	var all []*change
	claimed := map[netFrontendKey]*service{}
	for _, owner := range owners {
		rows, err := t.check(owner, want[owner], claimed)
		if err != nil {
			errs[owner] = err
			if rows == nil {
				continue
			}
		}
		all = append(all, t.plan(owner, rows)...)
	}
	for owner, err := range t.write(all, c) {
		errs[owner] = errors.Join(errs[owner], err)
	}
}

// plan tells what is to become of each service of an owner, of those that are not yet what they should be.
func (t *loadBalancers) plan(owner string, rows []*service) []*change {
	var list []*change
	keep := map[*service]bool{}
	for _, want := range rows {
		have := t.find(owner, want.name, want.protocol)
		if have != nil {
			keep[have] = true
			if !have.torn && have.same(want) {
				continue
			}
			want.id = have.id
		} else {
			want.id = t.freeID()
		}
		want.settle(have)
		list = append(list, &change{have: have, want: want})
	}
	for _, have := range t.byOwner[owner] {
		if !keep[have] {
			list = append(list, &change{have: have})
		}
	}
	return list
}

// Prune implements Table.
func (t *loadBalancers) Prune(keep func(string) bool) (Changes, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var c Changes
	var all []*change
	for owner, list := range t.byOwner {
		if keep(owner) {
			continue
		}
		for _, s := range list {
			all = append(all, &change{have: s})
		}
	}
	var errs []error
	for _, err := range t.write(all, &c) {
		errs = append(errs, err)
	}
	return c, errors.Join(errs...)
}

// Dump implements Table; it reads the maps, not what we believe of them, and changes nothing.
func (t *loadBalancers) Dump() ([]LoadBalancer, error) {
	t.mu.Lock() // a Replace half done is no answer
	defer t.mu.Unlock()
	fresh := &loadBalancers{lbMaps: t.lbMaps}
	if _, err := fresh.read(); err != nil {
		return nil, err
	}
	out := make([]LoadBalancer, 0, len(fresh.byID))
	for _, s := range fresh.byID {
		out = append(out, s.row())
	}
	return out, nil
}

// TakenError says that a frontend is another owner's.
type TakenError struct {
	frontend    netFrontendKey
	name, owner string
	by          *service
}

func (e *TakenError) Error() string {
	return fmt.Sprintf("bpf: frontend %s of service %s (owner %s) belongs to service %s (owner %s)", frontendOf(e.frontend), e.name, e.owner, e.by.name, e.by.owner)
}

// check returns the rows in their normal form, without the frontends that other owners have or claim at the same time, which err names then. Without rows err tells
// of one that can't be written at all.
func (t *loadBalancers) check(owner string, want []LoadBalancer, claimed map[netFrontendKey]*service) ([]*service, error) {
	rows := make([]*service, 0, len(want))
	wanted := map[netFrontendKey]string{}
	var taken []error
	for _, lb := range want {
		s, err := normal(owner, lb)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(rows, func(o *service) bool { return o.name == s.name && o.protocol == s.protocol }) {
			return nil, fmt.Errorf("bpf: service %s of %s is there twice", lb.Name, owner)
		}
		for _, f := range s.frontends {
			k := s.key(f)
			if other, ok := wanted[k]; ok {
				return nil, fmt.Errorf("bpf: frontend %s is wanted by services %s and %s of %s", frontendOf(k), other, lb.Name, owner)
			}
			wanted[k] = lb.Name
		}
		s.frontends = slices.DeleteFunc(s.frontends, func(f frontendRow) bool {
			k := s.key(f)
			by := t.byID[t.owner[k]]
			if by == nil {
				by = claimed[k]
			}
			if by == nil || by.owner == owner {
				claimed[k] = s
				return false
			}
			taken = append(taken, &TakenError{k, lb.Name, owner, by})
			return true
		})
		if len(s.frontends) == 0 { // a service that nobody can ask holds nothing
			s.members, s.sources, s.affinity = nil, nil, 0
		}
		rows = append(rows, s)
	}
	return rows, errors.Join(taken...)
}

// backendsWent tells the programs that a backend may have gone, so that they look whether theirs is there.
func (t *loadBalancers) backendsWent() error {
	var n uint32
	err := t.changes.Lookup(uint32(0), &n)
	if err == nil {
		err = t.changes.Put(uint32(0), n+1)
	}
	if err != nil {
		return fmt.Errorf("bpf: tell that backends went: %w", err)
	}
	if t.onGone != nil {
		t.onGone()
	}
	return nil
}

// went has do called whenever backends went. It must not wait.
func (t *loadBalancers) went(do func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.onGone = do
}
