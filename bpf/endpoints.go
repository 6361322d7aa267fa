package bpf

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"syscall"

	"github.com/cilium/ebpf"
)

func isFull(err error) bool { return errors.Is(err, syscall.E2BIG) }

// endpointTable implements Table[Endpoint].
type endpointTable struct {
	*ownedMap[netAddr, netEndpoint]
}

func openEndpoints(maps map[string]*ebpf.Map) (*endpointTable, error) {
	t, err := openOwned[netAddr](maps["endpoints"], "endpoint", func(v netEndpoint) string { return textOf(v.Owner[:]) })
	return &endpointTable{t}, err
}

func showAddr(k netAddr) string { return addrOf(k).String() }

// Replace implements Table.
func (t *endpointTable) Replace(owner string, want []Endpoint) (Changes, error) {
	rows := map[netAddr]netEndpoint{}
	for _, e := range want {
		if !plain(e.Addr) || len(e.PodMAC) != 6 || len(e.HostMAC) != 6 || e.Ifindex <= 0 {
			return Changes{}, fmt.Errorf("bpf: endpoint %+v is not an address behind an Ethernet interface", e)
		}
		v := netEndpoint{Ifindex: uint32(e.Ifindex), PodMac: [6]byte(e.PodMAC), HostMac: [6]byte(e.HostMAC)}
		if e.Queued {
			v.Queued = 1
		}
		if err := text(v.Owner[:], owner, "owner"); err != nil {
			return Changes{}, err
		}
		rows[addr16(e.Addr)] = v
	}
	return t.replace(owner, rows, showAddr)
}

// Prune implements Table.
func (t *endpointTable) Prune(keep func(string) bool) (Changes, error) {
	return t.prune(keep, showAddr)
}

// Dump implements Table.
func (t *endpointTable) Dump() ([]Endpoint, error) {
	var out []Endpoint
	var k netAddr
	var v netEndpoint
	it := t.m.Iterate()
	for it.Next(&k, &v) {
		out = append(out, Endpoint{Owner: textOf(v.Owner[:]), Addr: addrOf(k), Ifindex: int(v.Ifindex), PodMAC: slices.Clone(net.HardwareAddr(v.PodMac[:])), HostMAC: slices.Clone(net.HardwareAddr(v.HostMac[:])), Queued: v.Queued != 0})
	}
	return out, it.Err()
}
