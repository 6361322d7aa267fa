package bpf

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"

	"github.com/cilium/ebpf"
)

// portRange is from the first to the last port, both included.
type portRange struct{ first, last uint32 }

// localPortRange has what the kernel chooses ports of the node's own clients from; it belongs to the network namespace.
const localPortRange = "/proc/sys/net/ipv4/ip_local_port_range"

// minMasqPorts is how many ports pods have at least for one destination.
const minMasqPorts = 1024

// masqRange is where pods' flows get ports: above the kernel's range, where neither side can take the other's. If that leaves too few,
// the uppermost are shared with the node, whose sockets are looked up for each flow that begins.
func masqRange(local portRange) portRange {
	return portRange{min(local.last+1, 65536-minMasqPorts), 65535}
}

// spareRange are the ports below the kernel's that need no privilege; none if there are none.
func spareRange(local portRange) portRange {
	if local.first <= 1024 {
		return portRange{}
	}
	return portRange{1024, local.first - 1}
}

func readLocalPorts() (portRange, error) {
	var r portRange
	b, err := os.ReadFile(localPortRange)
	if err == nil {
		_, err = fmt.Sscan(string(b), &r.first, &r.last)
	}
	if err != nil {
		return r, fmt.Errorf("bpf: %s: %w", localPortRange, err)
	}
	return r, nil
}

// masquerade adds the constants of lib/masq.h.
func (c Config) masquerade(constants map[string]any) error {
	local, err := readLocalPorts()
	if err != nil {
		return err
	}
	ports, spare := c.masqPorts, portRange{}
	if ports == (portRange{}) {
		ports, spare = masqRange(local), spareRange(local)
	}
	constants["node_addr4"], constants["node_addr6"] = constantsOf(c.NodeAddrs)
	constants["masq_first"], constants["masq_last"] = ports.first, ports.last
	constants["spare_first"], constants["spare_last"] = spare.first, spare.last
	constants["local_first"], constants["local_last"] = local.first, local.last
	return nil
}

// LeaveAs says at which links pods' packets leave with an address of the link's own, by index, at most one of each family. Elsewhere, and in a family
// that is not named, they have the node's. What fails for one link leaves the others as they are to be.
func (d *Datapath) LeaveAs(links map[int][]netip.Addr) error {
	const what = "addresses of uplinks"
	m := d.net.Maps["uplink_addrs"]
	var gone []uint32
	if err := eachRow(m, what, func(index uint32, _ netLinkAddrs) {
		if _, ok := links[int(index)]; !ok {
			gone = append(gone, index)
		}
	}); err != nil {
		return err
	}
	failed := deleteStrays(m, what, gone) // first: the others may need their room
	for _, index := range slices.Sorted(maps.Keys(links)) {
		var row netLinkAddrs
		row.V4, row.V6 = constantsOf(links[index])
		if err := m.Put(uint32(index), row); err != nil {
			failed = errors.Join(failed, fmt.Errorf("bpf: address of uplink %d: %w", index, explain(err)))
		}
	}
	return failed
}

// ReadLinks reads what LeaveAs wrote, from the tables pinned below pinDir.
func ReadLinks(pinDir string) (map[int][]netip.Addr, error) {
	pinned, done, err := openPins(pinDir, []string{"uplink_addrs"})
	if err != nil {
		return nil, err
	}
	defer done()
	out := map[int][]netip.Addr{}
	m := pinned["uplink_addrs"]
	if m == nil {
		return out, nil
	}
	err = eachRow(m, "addresses of uplinks", func(index uint32, row netLinkAddrs) {
		for _, a := range []netAddr{row.V4, row.V6} {
			if a != (netAddr{}) {
				out[int(index)] = append(out[int(index)], addrOf(a))
			}
		}
	})
	return out, err
}

// fillRanges puts ranges into a table that goes with the programs.
func fillRanges(m *ebpf.Map, what string, ranges []netip.Prefix) error {
	for _, r := range ranges {
		if !r.IsValid() || !plain(r.Addr()) {
			return fmt.Errorf("bpf: %s, %s, is not a range of addresses", r, what)
		}
		if err := m.Put(prefixOf(r), uint32(1)); err != nil {
			return fmt.Errorf("bpf: range %s %s: %w", r, what, explain(err))
		}
	}
	return nil
}

// constantsOf are the addresses of each family as the programs' constants have them; zero stands for none.
func constantsOf(addrs []netip.Addr) (v4, v6 netAddr) {
	for _, a := range addrs {
		if a.Is4() {
			v4 = addr16(a)
		} else {
			v6 = addr16(a)
		}
	}
	return v4, v6
}

// prefixOf is a range as a key of a table of ranges.
func prefixOf(r netip.Prefix) netPrefix {
	r = r.Masked()
	bits := r.Bits()
	if r.Addr().Is4() {
		bits += 96
	}
	return netPrefix{Len: uint32(bits), Addr: r.Addr().As16()}
}
