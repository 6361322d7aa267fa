package bpf

import (
	"fmt"

	"github.com/cilium/ebpf"
)

// socketsOffTable implements Table[SocketsOff].
type socketsOffTable struct {
	*ownedMap[uint64, sockSocketsOff]
}

func openSocketsOff(maps map[string]*ebpf.Map) (*socketsOffTable, error) {
	t, err := openOwned[uint64](maps["sockets_off"], "pod whose sockets are left alone", func(v sockSocketsOff) string { return textOf(v.Owner[:]) })
	return &socketsOffTable{t}, err
}

func showCookie(k uint64) string { return fmt.Sprint("namespace ", k) }

// Replace implements Table.
func (t *socketsOffTable) Replace(owner string, want []SocketsOff) (Changes, error) {
	rows := map[uint64]sockSocketsOff{}
	for _, w := range want {
		var v sockSocketsOff
		if err := text(v.Owner[:], owner, "owner"); err != nil {
			return Changes{}, err
		}
		rows[w.Netns] = v
	}
	return t.replace(owner, rows, showCookie)
}

// Prune implements Table.
func (t *socketsOffTable) Prune(keep func(string) bool) (Changes, error) {
	return t.prune(keep, showCookie)
}

// Dump implements Table.
func (t *socketsOffTable) Dump() ([]SocketsOff, error) {
	var out []SocketsOff
	var k uint64
	var v sockSocketsOff
	it := t.m.Iterate()
	for it.Next(&k, &v) {
		out = append(out, SocketsOff{Owner: textOf(v.Owner[:]), Netns: k})
	}
	return out, it.Err()
}

// SocketsOff is the table of pods whose sockets are left alone.
func (d *Datapath) SocketsOff() Table[SocketsOff] { return d.socketsOff }

// NetnsCookie names the network namespace at a path, as the rows of SocketsOff do.
func (d *Datapath) NetnsCookie(path string) (uint64, error) { return NetnsCookie(path, d.cgroupRoot) }
