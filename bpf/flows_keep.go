package bpf

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"
)

// How long flows live without a packet, as flow_life in lib/conntrack.h says, in seconds.
const (
	lifeOfOpen    = 86400
	lifeOfEnding  = 3600
	lifeOfOpening = 240
	lifeOfClosed  = 10
	lifeOfReplied = 180
	lifeOfOther   = 60
	lifeOfDenied  = 240 // at most, of a flow that policies deny (DENIED_LIFE in lib/policytrack.h)

	// lifeInNeed is that of an open connection while flows_open is full: the shortest that RFC 5382 allows.
	lifeInNeed = 7440
)

// flowLife is how many seconds a flow lives without a packet.
func flowLife(state, protocol uint8) uint32 {
	switch {
	case protocol != unix.IPPROTO_TCP && protocol != unix.IPPROTO_SCTP:
		if protocol == unix.IPPROTO_UDP && state&flowReplied != 0 {
			return lifeOfReplied
		}
		return lifeOfOther
	case flowIsOver(state):
		return lifeOfClosed
	case state&flowAgreed == 0:
		return lifeOfOpening
	case state&(flowFinOut|flowFinIn) != 0:
		return lifeOfEnding
	}
	return lifeOfOpen
}

func flowIsOver(state uint8) bool {
	return state&flowReset != 0 || state&(flowFinOut|flowFinIn) == flowFinOut|flowFinIn
}

// sweepEvery is how often connections that are over by time are looked for while there is room.
const sweepEvery = 10 * time.Minute

// SweptFlows is what came of a search for rows that the tables of open connections could do without.
type SweptFlows struct {
	Full    bool // one was full: of flows that are translated no more could begin, those that policies judged were kept where others push them out
	Deleted int  // rows
	Left    int
	Took    time.Duration
}

// KeepFlows takes rows out of flows_open and policy_flows_open that are over: at once when it is full, else every ten minutes. tell gets what came of each search;
// an error is of that alone, and the next one follows. It returns when ctx ends.
func (d *Datapath) KeepFlows(ctx context.Context, tell func(SweptFlows, error)) error {
	r, err := ringbuf.NewReader(d.net.Maps["flows_events"])
	if err != nil {
		return fmt.Errorf("bpf: flows: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { r.Close() })
	defer stop()
	defer r.Close()
	for {
		r.SetDeadline(time.Now().Add(sweepEvery))
		_, err := r.Read()
		full := err == nil
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("bpf: flows: %w", err)
		}
		swept, err := d.sweepFlows(full)
		tell(swept, err)
		// A table that stays full is not read all the time. What came meanwhile has been seen to.
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(max(time.Second, 20*swept.Took)):
		}
	}
}

// sweepFlows deletes the rows of connections that had no packet for longer than they live, and of pods that are gone. It does so the
// more eagerly in tables that had no room.
func (d *Datapath) sweepFlows(told bool) (SweptFlows, error) {
	began := time.Now()
	out := SweptFlows{Full: told}
	now := uint32(Monotonic().Seconds())
	pods := d.endpoints.addrs()
	full := func(table string) (bool, error) {
		var since uint32
		if err := d.net.Maps[table].Lookup(uint32(0), &since); err != nil {
			return false, fmt.Errorf("bpf: %s: %w", table, err)
		}
		return told && since != 0, nil
	}
	ofFlows, err := full("flows_full")
	if err != nil {
		return out, err
	}
	ofPolicies, err := full("policy_flows_full")
	if err != nil {
		return out, err
	}
	deleted, err := sweepTable(d.net.Maps[flowsOpen], &out, func(k netFlowKey, f netFlow) bool { return d.isOver(k, f, now, ofFlows, pods) })
	if err == nil && ofFlows && deleted > 0 {
		err = d.net.Maps["flows_full"].Put(uint32(0), uint32(0))
	}
	if err == nil {
		_, err = sweepTable(d.net.Maps[policyFlowsOpen], &out, func(k netPolicyKey, f netPolicyFlow) bool { return isOverPolicy(k, f, now, ofPolicies, pods) })
	}
	if err == nil && ofPolicies {
		err = d.net.Maps["policy_flows_full"].Put(uint32(0), uint32(0))
	}
	if err != nil {
		return out, fmt.Errorf("bpf: flows: %w", err)
	}
	out.Took = time.Since(began)
	return out, nil
}

// sweepTable deletes the rows that are over, and adds to what came of it. It tells how many they were.
func sweepTable[K, V any](table *ebpf.Map, out *SweptFlows, isOver func(K, V) bool) (deleted int, err error) {
	var over []K
	err = eachRow(table, "flows", func(k K, f V) {
		if isOver(k, f) {
			over = append(over, k)
		} else {
			out.Left++
		}
	})
	if err != nil {
		return 0, err
	}
	for _, k := range over {
		var f V
		if err := table.Lookup(k, &f); errors.Is(err, ebpf.ErrKeyNotExist) {
			continue
		} else if err == nil && !isOver(k, f) { // a packet came
			out.Left++
			continue
		}
		if err := table.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return deleted, err
		}
		deleted++
		out.Deleted++
	}
	return deleted, nil
}

// idleTooLong tells whether a flow had no packet for longer than it lives, in seconds; full: or than it must.
func idleTooLong(state, protocol uint8, idle uint32, full bool) bool {
	life := flowLife(state, protocol)
	if full {
		life = min(life, lifeInNeed)
	}
	return int32(idle) > int32(life)
}

func (d *Datapath) isOver(k netFlowKey, f netFlow, now uint32, full bool, pods map[netAddr]bool) bool {
	if idleTooLong(f.State, k.Proto, now-f.Seen, full) {
		return true
	}
	pod := f.Daddr // what answers a pod goes to it
	if k.Reply == 0 {
		pod = k.Saddr
	}
	return f.Flags&flowMasqueraded != 0 && f.Service == 0 && !pods[pod] && !d.isSource(pod)
}

func (d *Datapath) isSource(a netAddr) bool {
	for _, r := range d.sources {
		if r.Contains(addrOf(a)) {
			return true
		}
	}
	return false
}

// FlowCount is how many flows of a kind there are.
type FlowCount struct {
	Protocol uint8
	State    string // TCP, SCTP: opening, open, ending, closed; others: unreplied, replied
	Flows    int
}

// FlowStats are the tables of flows.
type FlowStats struct {
	Open    MapStatus // connections that both sides agreed on
	Passing MapStatus // all other flows
	// Those that policies judged, in the same order, a row for a flow.
	PolicyOpen, PolicyPassing MapStatus
	Counts                    []FlowCount
	Full                      bool // a connection found no room in the last seconds
}

// FlowStats is ReadFlowStats of this datapath.
func (d *Datapath) FlowStats() (FlowStats, error) { return ReadFlowStats(d.pinDir) }

// flowState names a state.
func flowState(protocol, state uint8) string {
	switch {
	case protocol != unix.IPPROTO_TCP && protocol != unix.IPPROTO_SCTP:
		if state&flowReplied != 0 {
			return "replied"
		}
		return "unreplied"
	case flowIsOver(state):
		return "closed"
	case state&flowAgreed == 0:
		return "opening"
	case state&(flowFinOut|flowFinIn) != 0:
		return "ending"
	}
	return "open"
}

// ReadFlowStats counts the rows of the tables pinned below pinDir; no agent need run. With 100 000 flows it takes some 50 ms of a processor.
func ReadFlowStats(pinDir string) (FlowStats, error) {
	var out FlowStats
	counts := map[FlowCount]int{}
	for _, table := range []struct {
		name string
		to   *MapStatus
	}{{flowsOpen, &out.Open}, {flowsPassing, &out.Passing}} {
		m, err := ebpf.LoadPinnedMap(filepath.Join(pinDir, table.name), &ebpf.LoadPinOptions{ReadOnly: true})
		if err != nil {
			return out, fmt.Errorf("bpf: %s: %w", table.name, err)
		}
		*table.to = MapStatus{Name: table.name, Max: m.MaxEntries()}
		err = eachRow(m, table.name, func(k netFlowKey, f netFlow) {
			table.to.Rows++
			if k.Reply == 0 {
				counts[FlowCount{Protocol: k.Proto, State: flowState(k.Proto, f.State)}]++
			}
		})
		if err = errors.Join(err, m.Close()); err != nil {
			return out, err
		}
	}
	for c, n := range counts {
		c.Flows = n
		out.Counts = append(out.Counts, c)
	}
	slices.SortFunc(out.Counts, func(a, b FlowCount) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.State, b.State))
	})
	for name, to := range map[string]*MapStatus{policyFlowsOpen: &out.PolicyOpen, policyFlowsPassing: &out.PolicyPassing} {
		m, err := ebpf.LoadPinnedMap(filepath.Join(pinDir, name), &ebpf.LoadPinOptions{ReadOnly: true})
		if errors.Is(err, os.ErrNotExist) { // of a release that knows none
			continue
		}
		if err != nil {
			return out, fmt.Errorf("bpf: %s: %w", name, err)
		}
		*to = MapStatus{Name: name, Max: m.MaxEntries()}
		err = eachRow(m, name, func(netPolicyKey, netPolicyFlow) { to.Rows++ })
		if err = errors.Join(err, m.Close()); err != nil {
			return out, err
		}
	}
	m, err := ebpf.LoadPinnedMap(filepath.Join(pinDir, "flows_full"), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return out, fmt.Errorf("bpf: flows_full: %w", err)
	}
	defer m.Close()
	var since uint32
	if err := m.Lookup(uint32(0), &since); err != nil {
		return out, fmt.Errorf("bpf: flows_full: %w", err)
	}
	out.Full = since != 0 && uint32(Monotonic().Seconds())-since < 10
	return out, nil
}

// Flow is one flow, as who began it sees it and as its packets go on.
type Flow struct {
	Protocol   uint8
	From, To   netip.AddrPort // as it was sent
	AsFrom, As netip.AddrPort // what it became
	Service    uint32         // its number in the tables of Services; 0: none
	State      string         // as in FlowCount
	Table      string
	Idle       time.Duration
}

// ReadFlow finds the flow of a packet in the direction in which the flow began, in what is pinned below pinDir. It tells whether there is one.
func ReadFlow(pinDir string, protocol uint8, from, to netip.AddrPort) (Flow, bool, error) {
	key := netFlowKey{Saddr: addr16(from.Addr()), Daddr: addr16(to.Addr()), Sport: port16(from.Port()), Dport: port16(to.Port()), Proto: protocol}
	for _, name := range flowTables {
		m, err := ebpf.LoadPinnedMap(filepath.Join(pinDir, name), &ebpf.LoadPinOptions{ReadOnly: true})
		if err != nil {
			return Flow{}, false, fmt.Errorf("bpf: %s: %w", name, err)
		}
		var f netFlow
		err = m.Lookup(key, &f)
		m.Close()
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			continue
		}
		if err != nil {
			return Flow{}, false, fmt.Errorf("bpf: %s: %w", name, err)
		}
		idle := time.Duration(int32(uint32(Monotonic().Seconds())-f.Seen)) * time.Second
		if idle > time.Duration(flowLife(f.State, protocol))*time.Second {
			continue
		}
		return Flow{
			Protocol: protocol, From: from, To: to, Service: f.Service, State: flowState(protocol, f.State), Table: name, Idle: max(0, idle),
			AsFrom: netip.AddrPortFrom(addrOf(f.Saddr), port16(f.Sport)), As: netip.AddrPortFrom(addrOf(f.Daddr), port16(f.Dport)),
		}, true, nil
	}
	return Flow{}, false, nil
}
