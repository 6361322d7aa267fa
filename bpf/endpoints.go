package bpf

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
)

func isFull(err error) bool { return errors.Is(err, syscall.E2BIG) || errors.Is(err, syscall.ENOSPC) } // the latter of tries

// endpointTable implements Table[Endpoint]. A limit is a row of its own, by the interface: it is there before an endpoint's row asks for
// it, and goes after. So an interface is to be of one owner.
type endpointTable struct {
	*ownedMap[netAddr, netEndpoint]
	limits *ebpf.Map
}

// Flags of a row, as in lib/endpoint.h.
const (
	endpointQueued  = 1
	endpointLimited = 2
	endpointAsks    = 4 // this one and the next are what the programs of earlier releases kept
	endpointQuiet   = 8
)

func openEndpoints(maps map[string]*ebpf.Map) (*endpointTable, error) {
	t, err := openOwned[netAddr](maps["endpoints"], "endpoint", func(v netEndpoint) string { return textOf(v.Owner[:]) })
	if err != nil {
		return nil, err
	}
	for k, v := range t.rows {
		t.rows[k] = v.told()
	}
	t.living = func(k netAddr, v netEndpoint) netEndpoint {
		var have netEndpoint
		if err := t.m.Lookup(k, &have); err == nil && have.Ifindex == v.Ifindex {
			// What a program notes between this and the write is lost; it notes it again with the next packet.
			v.Flags |= have.Flags & (endpointAsks | endpointQuiet)
			v.Asks, v.Asked = have.Asks, have.Asked
		} else {
			v.Flags |= endpointQuiet
		}
		return v
	}
	return &endpointTable{t, maps["limits"]}, nil
}

// told is a row without what the programs keep in it.
func (v netEndpoint) told() netEndpoint {
	v.Flags &^= endpointAsks | endpointQuiet
	v.Asks, v.Asked = 0, 0
	return v
}

func showAddr(k netAddr) string { return addrOf(k).String() }

// Replace implements Table.
func (t *endpointTable) Replace(owner string, want []Endpoint) (Changes, error) {
	rows := map[netAddr]netEndpoint{}
	limits := map[uint32]Limit{}
	for _, e := range want {
		if !plain(e.Addr) || len(e.PodMAC) != 6 || len(e.HostMAC) != 6 || e.Ifindex <= 0 {
			return Changes{}, fmt.Errorf("bpf: endpoint %+v is not an address behind an Ethernet interface", e)
		}
		v := netEndpoint{Ifindex: uint32(e.Ifindex), PodMac: [6]byte(e.PodMAC), HostMac: [6]byte(e.HostMAC)}
		if e.Queued {
			v.Flags |= endpointQueued
		}
		if e.Egress.Rate != 0 {
			v.Flags |= endpointLimited
			limits[v.Ifindex] = e.Egress
		}
		if err := text(v.Owner[:], owner, "owner"); err != nil {
			return Changes{}, err
		}
		rows[addr16(e.Addr)] = v
	}
	had := t.limited(owner)
	for ifindex, l := range limits {
		if err := t.limit(ifindex, l); err != nil {
			return Changes{}, err
		}
	}
	c, err := t.replace(owner, rows, showAddr)
	for ifindex := range had {
		if _, stays := limits[ifindex]; !stays && err == nil {
			err = t.unlimit(ifindex)
		}
	}
	return c, err
}

// addrs are all addresses that have a row.
func (t *endpointTable) addrs() map[netAddr]bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make(map[netAddr]bool, len(t.rows))
	for k := range t.rows {
		out[k] = true
	}
	return out
}

// limited are the interfaces of an owner that have a limit.
func (t *endpointTable) limited(owner string) map[uint32]bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := map[uint32]bool{}
	for k := range t.by[owner] {
		if row := t.rows[k]; row.Flags&endpointLimited != 0 {
			out[row.Ifindex] = true
		}
	}
	return out
}

// limit writes a limit, unless it is there: what was sent under it counts on.
func (t *endpointTable) limit(ifindex uint32, l Limit) error {
	var have netLimit
	if err := t.limits.Lookup(ifindex, &have); err == nil && limitOf(have) == l {
		return nil
	}
	if err := t.limits.Put(ifindex, netLimit{Rate: l.Rate, Ahead: uint64(l.Ahead)}); err != nil {
		return fmt.Errorf("bpf: limit of interface %d: %w", ifindex, explain(err))
	}
	return nil
}

func (t *endpointTable) unlimit(ifindex uint32) error {
	if err := t.limits.Delete(ifindex); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("bpf: limit of interface %d: %w", ifindex, err)
	}
	return nil
}

func limitOf(v netLimit) Limit { return Limit{Rate: v.Rate, Ahead: time.Duration(v.Ahead)} }

// Prune implements Table. No limit stays for which no endpoint asks.
func (t *endpointTable) Prune(keep func(string) bool) (Changes, error) {
	c, err := t.prune(keep, showAddr)
	if err != nil {
		return c, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	asked := map[uint32]bool{}
	for _, row := range t.rows {
		if row.Flags&endpointLimited != 0 {
			asked[row.Ifindex] = true
		}
	}
	var gone []uint32
	var ifindex uint32
	var v netLimit
	it := t.limits.Iterate()
	for it.Next(&ifindex, &v) {
		if !asked[ifindex] {
			gone = append(gone, ifindex)
		}
	}
	errs := []error{it.Err()}
	for _, ifindex := range gone {
		errs = append(errs, t.unlimit(ifindex))
	}
	return c, errors.Join(errs...)
}

// Dump implements Table.
func (t *endpointTable) Dump() ([]Endpoint, error) {
	var out []Endpoint
	var k netAddr
	var v netEndpoint
	it := t.m.Iterate()
	for it.Next(&k, &v) {
		e := Endpoint{Owner: textOf(v.Owner[:]), Addr: addrOf(k), Ifindex: int(v.Ifindex), PodMAC: slices.Clone(net.HardwareAddr(v.PodMac[:])), HostMAC: slices.Clone(net.HardwareAddr(v.HostMac[:])), Queued: v.Flags&endpointQueued != 0}
		if v.Flags&endpointLimited != 0 {
			var l netLimit
			if err := t.limits.Lookup(v.Ifindex, &l); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				return nil, fmt.Errorf("bpf: limit of interface %d: %w", v.Ifindex, err)
			}
			e.Egress = limitOf(l)
		}
		out = append(out, e)
	}
	return out, it.Err()
}
