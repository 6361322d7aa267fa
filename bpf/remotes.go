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
	Behind bool         // this node passes on what comes for it through the tunnel from nodes that are not behind, and the other way round
}

// remoteTable implements Table[Remote].
type remoteTable struct {
	*ownedMap[netPrefix, netRemote]
}

func openRemotes(maps map[string]*ebpf.Map) (*remoteTable, error) {
	t, err := openOwned[netPrefix](maps["remotes"], "remote", func(v netRemote) string { return textOf(v.Owner[:]) })
	return &remoteTable{t}, err
}

// rangeOf undoes prefixOf.
func rangeOf(k netPrefix) netip.Prefix {
	a, bits := netip.AddrFrom16(k.Addr), int(k.Len)
	if a.Is4In6() && bits >= 96 {
		a, bits = a.Unmap(), bits-96
	}
	return netip.PrefixFrom(a, bits)
}

func showRemote(k netPrefix) string { return rangeOf(k).String() }

// Replace implements Table.
func (t *remoteTable) Replace(owner string, want []Remote) (Changes, error) {
	rows := map[netPrefix]netRemote{}
	for _, r := range want {
		if !r.Prefix.IsValid() || r.Prefix.Addr().Is4In6() || r.Prefix.Bits() == 0 {
			return Changes{}, fmt.Errorf("bpf: %v of node %s is no range of addresses", r.Prefix, owner)
		}
		var v netRemote
		if r.Prefix.IsSingleIP() {
			v.IsNode = 1
		}
		if r.Behind {
			v.Behind = 1
		}
		if r.Node.IsValid() {
			v.Node = addr16(r.Node)
		}
		if err := text(v.Owner[:], owner, "owner"); err != nil {
			return Changes{}, err
		}
		rows[prefixOf(r.Prefix)] = v
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
	var k netPrefix
	var v netRemote
	it := t.m.Iterate()
	for it.Next(&k, &v) {
		r := Remote{Owner: textOf(v.Owner[:]), Prefix: rangeOf(k), Behind: v.Behind != 0}
		if v.Node != (netAddr{}) {
			r.Node = addrOf(v.Node)
		}
		out = append(out, r)
	}
	return out, it.Err()
}
