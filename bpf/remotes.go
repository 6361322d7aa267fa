package bpf

import (
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
)

// Remote is a range of addresses that another node has: its pods', or one of its own.
type Remote struct {
	Owner  string       // Node UID
	Prefix netip.Prefix // pod range, or a node's own address as /32 or /128
	Node   netip.Addr   // underlay address of the node, the tunnel's other end; the zero value with native routing
}

// remoteTable implements Table[Remote].
type remoteTable struct {
	*ownedMap[netRemoteKey, netRemote]
}

func openRemotes(maps map[string]*ebpf.Map) (*remoteTable, error) {
	t, err := openOwned[netRemoteKey](maps["remotes"], "remote", func(v netRemote) string { return textOf(v.Owner[:]) })
	return &remoteTable{t}, err
}

// remoteKey is a prefix as the trie holds it: IPv4 as IPv4-mapped IPv6.
func remoteKey(p netip.Prefix) netRemoteKey {
	p = p.Masked()
	k := netRemoteKey{Len: uint32(p.Bits()), Addr: p.Addr().As16()}
	if p.Addr().Is4() {
		k.Len += 96
	}
	return k
}

func (k netRemoteKey) prefix() netip.Prefix {
	a, bits := netip.AddrFrom16(k.Addr), int(k.Len)
	if a.Is4In6() && bits >= 96 {
		a, bits = a.Unmap(), bits-96
	}
	return netip.PrefixFrom(a, bits)
}

func showRemote(k netRemoteKey) string { return k.prefix().String() }

// Replace implements Table.
func (t *remoteTable) Replace(owner string, want []Remote) (Changes, error) {
	rows := map[netRemoteKey]netRemote{}
	for _, r := range want {
		if !r.Prefix.IsValid() || r.Prefix.Addr().Is4In6() || r.Prefix.Bits() == 0 {
			return Changes{}, fmt.Errorf("bpf: %v of node %s is no range of addresses", r.Prefix, owner)
		}
		var v netRemote
		if r.Node.IsValid() {
			v.Node = r.Node.As16()
		}
		if err := text(v.Owner[:], owner, "owner"); err != nil {
			return Changes{}, err
		}
		rows[remoteKey(r.Prefix)] = v
	}
	return t.replace(owner, rows, showRemote)
}

// Prune implements Table.
func (t *remoteTable) Prune(keep func(string) bool) (Changes, error) {
	return t.prune(keep, showRemote)
}

// Dump implements Table.
func (t *remoteTable) Dump() ([]Remote, error) {
	var out []Remote
	var k netRemoteKey
	var v netRemote
	it := t.m.Iterate()
	for it.Next(&k, &v) {
		r := Remote{Owner: textOf(v.Owner[:]), Prefix: k.prefix()}
		if v.Node != [16]byte{} {
			r.Node = netip.AddrFrom16(v.Node).Unmap()
		}
		out = append(out, r)
	}
	return out, it.Err()
}
