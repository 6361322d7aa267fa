package bpf

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
)

// maxAddrs is how many addresses of a family the kernel answers for one name (NAME_ADDRS in lib/dns.h).
const maxAddrs = 8

// nameTable implements Table[Name].
type nameTable struct{ *ownedMap[netNameKey, netName] }

func openNames(maps map[string]*ebpf.Map) (*nameTable, error) {
	t, err := openOwned[netNameKey](maps["names"], "name", func(v netName) string { return textOf(v.Owner[:]) })
	return &nameTable{t}, err
}

func showName(k netNameKey) string { return nameOf(k.Name[:]) }

// Replace implements Table. A name has one to eight addresses of a family, or of each.
func (t *nameTable) Replace(owner string, want []Name) (Changes, error) {
	rows := map[netNameKey]netName{}
	for _, n := range want {
		wire, _, err := wireName(n.Name)
		if err != nil {
			return Changes{}, fmt.Errorf("bpf: name %q: %w", n.Name, err)
		}
		var k netNameKey
		copy(k.Name[:], wire)
		v, err := addrsOf(n)
		if err != nil {
			return Changes{}, err
		}
		if err := text(v.Owner[:], owner, "owner"); err != nil {
			return Changes{}, err
		}
		rows[k] = v
	}
	return t.replace(owner, rows, showName)
}

// addrsOf fills the addresses of a row.
func addrsOf(n Name) (v netName, err error) {
	for _, a := range slices.SortedFunc(slices.Values(n.Addrs), netip.Addr.Compare) {
		switch {
		case !plain(a):
			return v, fmt.Errorf("bpf: name %s: %s is not an address", n.Name, a)
		case a.Is4() && v.N4 < maxAddrs:
			v.Addrs4[v.N4].B = a.As4()
			v.N4++
		case a.Is6() && v.N6 < maxAddrs:
			v.Addrs6[v.N6] = addr16(a)
			v.N6++
		default:
			return v, fmt.Errorf("bpf: name %s has %d addresses, want at most %d of a family", n.Name, len(n.Addrs), maxAddrs)
		}
	}
	if v.N4+v.N6 == 0 {
		return v, fmt.Errorf("bpf: name %s has no address", n.Name)
	}
	return v, nil
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
		for i := range min(v.N4, maxAddrs) {
			n.Addrs = append(n.Addrs, netip.AddrFrom4(v.Addrs4[i].B))
		}
		for i := range min(v.N6, maxAddrs) {
			n.Addrs = append(n.Addrs, addrOf(v.Addrs6[i]))
		}
		out = append(out, n)
	}
	return out, it.Err()
}
