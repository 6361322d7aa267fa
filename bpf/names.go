package bpf

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
)

// maxAddrs is how many addresses the kernel answers for one name (NAME_ADDRS in lib/dns.h).
const maxAddrs = 8

// nameTable implements Table[Name].
type nameTable struct{ *ownedMap[netNameKey, netName] }

func openNames(maps map[string]*ebpf.Map) (*nameTable, error) {
	t, err := openOwned[netNameKey](maps["names"], "name", func(v netName) string { return textOf(v.Owner[:]) })
	return &nameTable{t}, err
}

func showName(k netNameKey) string { return nameOf(k.Name[:]) }

// Replace implements Table. A name has one to eight addresses.
func (t *nameTable) Replace(owner string, want []Name) (Changes, error) {
	rows := map[netNameKey]netName{}
	for _, n := range want {
		wire, _, err := wireName(n.Name)
		if err != nil {
			return Changes{}, fmt.Errorf("bpf: name %q: %w", n.Name, err)
		}
		if len(n.Addrs) == 0 || len(n.Addrs) > maxAddrs {
			return Changes{}, fmt.Errorf("bpf: name %s has %d addresses, want 1 to %d", n.Name, len(n.Addrs), maxAddrs)
		}
		var k netNameKey
		copy(k.Name[:], wire)
		v := netName{N: uint32(len(n.Addrs))}
		sorted := slices.SortedFunc(slices.Values(n.Addrs), netip.Addr.Compare)
		for i, a := range sorted {
			if !a.Is4() {
				return Changes{}, fmt.Errorf("bpf: name %s: %s is not an IPv4 address", n.Name, a)
			}
			v.Addrs[i] = addr4(a)
		}
		if err := text(v.Owner[:], owner, "owner"); err != nil {
			return Changes{}, err
		}
		rows[k] = v
	}
	return t.replace(owner, rows, showName)
}

// Prune implements Table.
func (t *nameTable) Prune(keep func(string) bool) (Changes, error) { return t.prune(keep, showName) }

// Dump implements Table.
func (t *nameTable) Dump() ([]Name, error) {
	var out []Name
	var k netNameKey
	var v netName
	it := t.m.Iterate()
	for it.Next(&k, &v) {
		n := Name{Owner: textOf(v.Owner[:]), Name: showName(k)}
		for i := range min(v.N, maxAddrs) {
			n.Addrs = append(n.Addrs, addrOf(v.Addrs[i]))
		}
		out = append(out, n)
	}
	return out, it.Err()
}
