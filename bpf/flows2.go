package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Before layout 3, flows to frontends and pods' ways outside had tables of their own, and no common state. Their keys are the same.
const (
	oldFlows = "flows"
	oldMasq  = "masq_flows"
)

// oldFlow is a row of flows. reply 0: the backend, with the port of this node if it is on another one (the reply's key has the address then). reply 1:
// the frontend, and the interface that the client is behind.
type oldFlow struct {
	Addr      netAddr
	Port, Via uint16
	Ifindex   uint32
}

// oldMasqFlow is a row of masq_flows. reply 0: what the source becomes, or the pod itself if the outside began the flow by its address. reply 1: the
// pod, or the node for its own echo, or, with oldForwarded, a client outside.
type oldMasqFlow struct {
	Addr       netAddr
	Port       uint16
	State, Pad uint8
	Seen       uint32
}

const oldForwarded = 16

// grownFlows tells how rows of layout 1 become those of layout 2.
var grownFlows = shape{[]piece{grown, grown, keep(8)}, []piece{grown, keep(8)}}

// addOldFlows puts the flows of layouts 1 and 2 into the tables of this one. Those stay for programs that still know them.
func (d *Datapath) addOldFlows() error {
	maps := map[string]*ebpf.Map{}
	defer func() {
		for _, m := range maps {
			m.Close()
		}
	}()
	for _, name := range []string{oldFlows, oldMasq} {
		m, err := ebpf.LoadPinnedMap(filepath.Join(d.pinDir, name), nil)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("bpf: %s: %w", name, err)
		}
		maps[name] = m
	}
	if len(maps) == 0 {
		return nil
	}
	masq, err := oldRows[oldMasqFlow](maps[oldMasq])
	if err != nil {
		return fmt.Errorf("bpf: bring %s to layout 3: %w", oldMasq, err)
	}
	flows, err := oldRows[oldFlow](maps[oldFlows])
	if err != nil {
		return fmt.Errorf("bpf: bring %s to layout 3: %w", oldFlows, err)
	}
	service := func(key netFlowKey) uint32 {
		var fe netFrontend
		if d.net.Maps["lb_frontends"].Lookup(netFrontendKey{Addr: key.Daddr, Port: key.Dport, Proto: key.Proto}, &fe) != nil {
			return 0 // the frontend went
		}
		return fe.Service
	}
	for key, row := range newFlows(flows, masq, service) {
		if err := putNew(d.net.Maps[flowsPassing], key, row); err != nil {
			return fmt.Errorf("bpf: bring flows to layout 3: %w", err)
		}
	}
	return nil
}

// oldRows reads a table of layout 1 or 2; nil has no rows.
func oldRows[V any](m *ebpf.Map) (map[netFlowKey]V, error) {
	out := map[netFlowKey]V{}
	switch {
	case m == nil:
		return out, nil
	case int(m.KeySize()) == newSize(grownFlows.key) && int(m.ValueSize()) == newSize(grownFlows.value):
		return out, eachRow(m, "flows of layout 2", func(k netFlowKey, v V) { out[k] = v })
	case int(m.KeySize()) == oldSize(grownFlows.key) && int(m.ValueSize()) == oldSize(grownFlows.value):
		var failed error
		err := eachRow(m, "flows of layout 1", func(k [16]byte, v [12]byte) {
			var key netFlowKey
			var value V
			_, keyErr := binary.Decode(converted(grownFlows.key, k[:]), binary.NativeEndian, &key)
			_, valueErr := binary.Decode(converted(grownFlows.value, v[:]), binary.NativeEndian, &value)
			out[key] = value
			failed = errors.Join(failed, keyErr, valueErr)
		})
		return out, errors.Join(err, failed)
	}
	return nil, fmt.Errorf("its rows have %d and %d bytes, which no layout has", m.KeySize(), m.ValueSize())
}

// newFlows are the rows of this layout for flows of layout 2. What is not known of a flow to a frontend is its state: it is taken for one that is
// open, and used now. All of them begin in flows_passing; the next packet of a connection brings it to where it belongs.
func newFlows(flows map[netFlowKey]oldFlow, masq map[netFlowKey]oldMasqFlow, service func(netFlowKey) uint32) map[netFlowKey]netFlow {
	out := map[netFlowKey]netFlow{}
	now := uint32(Monotonic().Seconds())
	add := func(key netFlowKey, f netFlow) {
		if key.Proto == unix.IPPROTO_TCP && f.State&flowReplied != 0 {
			f.State |= flowAgreed
		}
		back, answer := turned(key, f)
		out[key], out[back] = f, answer
	}
	for back, f := range flows {
		if back.Reply == 0 {
			continue
		}
		// The answer goes from the backend to the client, or to this node if the backend is on another one.
		key := netFlowKey{Saddr: back.Daddr, Sport: back.Dport, Daddr: f.Addr, Dport: f.Port, Proto: back.Proto}
		row := netFlow{Saddr: back.Daddr, Sport: back.Dport, Daddr: back.Saddr, Dport: back.Sport, Ifindex: f.Ifindex, State: flowReplied, Flags: flowHere, Seen: now}
		if m, ok := masq[back]; ok && m.State&oldForwarded != 0 {
			key.Saddr, key.Sport = m.Addr, m.Port
			row.Flags, row.State, row.Seen = flowMasqueraded, m.State&^oldForwarded, m.Seen
		}
		row.Service = service(key)
		add(key, row)
	}
	for key, m := range masq {
		switch {
		case key.Reply == 1 && m.State&oldForwarded != 0: // it is among flows
		case key.Reply == 1: // what answers a pod, or the node's own echo
			from := netFlowKey{Saddr: m.Addr, Sport: m.Port, Daddr: key.Saddr, Dport: key.Sport, Proto: key.Proto}
			row := netFlow{Saddr: key.Daddr, Sport: key.Dport, Daddr: key.Saddr, Dport: key.Sport, State: m.State, Seen: m.Seen}
			if m.Addr != key.Daddr {
				row.Flags = flowMasqueraded
			}
			add(from, row)
		case m.Addr == key.Saddr: // as a pod answers who called it by its own address
			from := netFlowKey{Saddr: key.Daddr, Sport: key.Dport, Daddr: key.Saddr, Dport: key.Sport, Proto: key.Proto}
			add(from, netFlow{Saddr: from.Saddr, Sport: from.Sport, Daddr: from.Daddr, Dport: from.Dport, State: m.State, Seen: m.Seen})
		}
	}
	return out
}

// turned is the other row of a flow, as flow_turn in lib/conntrack.h makes it.
func turned(key netFlowKey, f netFlow) (netFlowKey, netFlow) {
	back := netFlowKey{Saddr: f.Daddr, Daddr: f.Saddr, Sport: f.Dport, Dport: f.Sport, Proto: key.Proto, Reply: 1 - key.Reply}
	other := f
	other.Saddr, other.Sport, other.Daddr, other.Dport = key.Daddr, key.Dport, key.Saddr, key.Sport
	return back, other
}
