package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// OldestLayout is the oldest layout that Downgrade knows the way back to.
const OldestLayout uint32 = 2

// layout2 are the pinned maps of layout 2.
var layout2 = map[string]ebpf.MapSpec{
	"counters":       {Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 8}, // of any length
	"endpoints":      {Type: ebpf.Hash, KeySize: 16, ValueSize: 84, MaxEntries: 8192, Flags: unix.BPF_F_NO_PREALLOC},
	"events":         {Type: ebpf.RingBuf, MaxEntries: 1 << 19},
	"events_lost":    {Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1},
	oldFlows:         {Type: ebpf.LRUHash, KeySize: 40, ValueSize: 24, MaxEntries: 262144},
	"lb_backends":    {Type: ebpf.Hash, KeySize: 8, ValueSize: 24, MaxEntries: 262144, Flags: unix.BPF_F_NO_PREALLOC},
	"lb_frontends":   {Type: ebpf.Hash, KeySize: 24, ValueSize: 8, MaxEntries: 65536, Flags: unix.BPF_F_NO_PREALLOC},
	"lb_services":    {Type: ebpf.Hash, KeySize: 4, ValueSize: 264, MaxEntries: 65536, Flags: unix.BPF_F_NO_PREALLOC},
	oldMasq:          {Type: ebpf.LRUHash, KeySize: 40, ValueSize: 24, MaxEntries: 262144},
	"masq_fragments": {Type: ebpf.LRUHash, KeySize: 40, ValueSize: 16, MaxEntries: 8192},
	"monitor":        {Type: ebpf.Array, KeySize: 4, ValueSize: 16, MaxEntries: 1},
	"names":          {Type: ebpf.Hash, KeySize: 256, ValueSize: 232, MaxEntries: 65536, Flags: unix.BPF_F_NO_PREALLOC},
	"path":           {Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1},
	"remotes":        {Type: ebpf.LPMTrie, KeySize: 20, ValueSize: 88, MaxEntries: 65536, Flags: unix.BPF_F_NO_PREALLOC},
	"sock_reverse":   {Type: ebpf.LRUHash, KeySize: 32, ValueSize: 24, MaxEntries: 262144},
}

// programs2 are the programs of layout 2.
var programs2 = map[string]bool{
	podProgram: true, uplinkProgram: true, egressProgram: true, tunnelIn: true, tunnelOut: true,
	"strake_connect4": true, "strake_sendmsg4": true, "strake_recvmsg4": true, "strake_getpeername4": true,
	"strake_connect6": true, "strake_sendmsg6": true, "strake_recvmsg6": true, "strake_getpeername6": true,
}

// Downgrade writes what is pinned below pinDir as releases with an older layout want it, so that one of them can go on with it: Services, endpoints and
// the flows that it can follow. The programs go on with the maps that they have until that release replaces them; flows that begin after this call
// are not known to it. Programs that it has not are detached. If it is killed, call it again, or start this release again: nothing is lost.
func Downgrade(pinDir string, layout uint32) error {
	if layout != OldestLayout {
		return fmt.Errorf("bpf: downgrade to layout %d: only layout %d is known", layout, OldestLayout)
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		return fmt.Errorf("bpf: locked memory limit: %w", err)
	}
	version, have, err := readVersion(pinDir)
	if err != nil {
		return err
	}
	defer version.Close()
	if have == layout { // a call that was killed, or nothing is to be done
		done, err := isLayout2(pinDir)
		if err == nil && done {
			return unpinNewer(pinDir)
		}
		if err = errors.Join(err, migrate(pinDir, have)); err != nil {
			return err
		}
	} else if have != layoutVersion {
		return &LayoutError{PinDir: pinDir, Have: have, Want: layoutVersion}
	}
	if err := resizeTables(pinDir, lbPins, nil); err != nil { // that release knows no policies
		return err
	}
	maps, err := mapsOfLayout2(pinDir)
	defer func() {
		for _, m := range maps {
			m.Close()
		}
	}()
	if err != nil {
		return err
	}
	if err := version.Put(uint32(0), layout); err != nil {
		return fmt.Errorf("bpf: %s: %w", versionPin, err)
	}
	for name, m := range maps {
		if err := pinOver(m, filepath.Join(pinDir, name)); err != nil {
			return fmt.Errorf("bpf: downgrade: %s: %w", name, err)
		}
	}
	return unpinNewer(pinDir)
}

// readVersion opens the map that tells the layout.
func readVersion(pinDir string) (*ebpf.Map, uint32, error) {
	pin := filepath.Join(pinDir, versionPin)
	m, err := ebpf.LoadPinnedMap(pin, nil)
	if err != nil {
		return nil, 0, fmt.Errorf("bpf: %s (no release of Strake has run here?): %w", pin, err)
	}
	var have uint32
	if err := m.Lookup(uint32(0), &have); err != nil {
		m.Close()
		return nil, 0, fmt.Errorf("bpf: %s: %w", pin, err)
	}
	return m, have, nil
}

// mapsOfLayout2 makes the maps whose rows have another form in layout 2, with their rows.
func mapsOfLayout2(pinDir string) (map[string]*ebpf.Map, error) {
	out := map[string]*ebpf.Map{}
	rows, err := ReadRows(pinDir)
	if err != nil {
		return out, err
	}
	flows := flowsIn(pinDir)
	for _, name := range converted2 {
		if flows == nil && (name == oldFlows || name == oldMasq) {
			continue
		}
		spec := layout2[name]
		spec.Name = name
		if out[name], err = ebpf.NewMap(&spec); err != nil {
			return out, fmt.Errorf("bpf: downgrade: %s: %w", name, err)
		}
	}
	if err := services2(out, rows.LoadBalancers); err != nil {
		return out, fmt.Errorf("bpf: downgrade: services: %w", err)
	}
	for _, e := range rows.Endpoints {
		row := netEndpoint{Ifindex: uint32(e.Ifindex), PodMac: [6]byte(e.PodMAC), HostMac: [6]byte(e.HostMAC)}
		if e.Queued {
			row.Flags = 1
		}
		err := text(row.Owner[:], e.Owner, "owner")
		if err == nil {
			err = out["endpoints"].Put(addr16(e.Addr), row)
		}
		if err != nil {
			return out, fmt.Errorf("bpf: downgrade: endpoint %s: %w", e.Addr, err)
		}
	}
	for _, name := range flows {
		m, err := ebpf.LoadPinnedMap(filepath.Join(pinDir, name), &ebpf.LoadPinOptions{ReadOnly: true})
		if err != nil {
			return out, fmt.Errorf("bpf: downgrade: %s: %w", name, err)
		}
		var failed error
		err = eachRow(m, name, func(k netFlowKey, f netFlow) {
			if err := flow2(out, k, f); err != nil {
				failed = fmt.Errorf("bpf: downgrade: %s: %w", name, err)
			}
		})
		if err = errors.Join(err, failed, m.Close()); err != nil {
			return out, err
		}
	}
	return out, nil
}

// flowsIn are the tables of flows that are there, in the order in which a flow that moves between them while they are read is met: it passes, is
// open, and passes again when it ends.
func flowsIn(pinDir string) (names []string) {
	for _, name := range []string{flowsPassing + beforeSuffix, flowsOpen + beforeSuffix, flowsPassing, flowsOpen, flowsPassing} {
		if _, err := os.Stat(filepath.Join(pinDir, name)); err == nil {
			names = append(names, name)
		}
	}
	return names
}

// services2 writes Services. A frontend that spreads over backends of this node alone has a service of its own there.
func services2(maps map[string]*ebpf.Map, rows []LoadBalancer) error {
	id := uint32(0)
	for _, lb := range rows {
		if lb.Protocol != unix.IPPROTO_TCP && lb.Protocol != unix.IPPROTO_UDP {
			continue // others were unknown
		}
		for _, local := range []bool{false, true} {
			var fronts []netFrontendKey
			for _, f := range lb.Frontends {
				scope := f.Outside
				if f.Kind == ClusterIP {
					scope = f.Inside
				}
				if (scope == Local) == local {
					fronts = append(fronts, netFrontendKey{Addr: addr16(f.Addr.Addr()), Port: port16(f.Addr.Port()), Proto: lb.Protocol})
				}
			}
			if len(fronts) == 0 {
				continue
			}
			id++
			slot := uint32(0)
			for _, b := range lb.Backends {
				if local && !b.Local || !local && !b.All {
					continue
				}
				if err := maps["lb_backends"].Put(netSlotKey{Service: id, Slot: slot}, netBackend{Addr: addr16(b.Addr.Addr()), Port: port16(b.Addr.Port())}); err != nil {
					return explain(err)
				}
				slot++
			}
			for _, key := range fronts {
				if err := maps["lb_frontends"].Put(key, [2]uint32{id, slot}); err != nil {
					return explain(err)
				}
			}
			s := netService{Proto: lb.Protocol}
			name := lb.Name
			if local {
				// As they were told from each other. The longest names leave no room: such a one is no service's of that release, which writes
				// its own beside it, and then takes this one away.
				if name += "*"; len(name) > len(s.Name) {
					name = lb.Name[:len(s.Name)-1] + "+"
				}
			}
			if err := errors.Join(text(s.Owner[:], lb.Owner, "owner"), text(s.Name[:], name, "name")); err != nil {
				return err
			}
			if err := maps["lb_services"].Put(id, s); err != nil {
				return explain(err)
			}
		}
	}
	return nil
}

// flow2 writes a flow by its row of the direction in which it began. Layout 2 knows no direct server return: it would take the one node's row for a flow
// to a backend of its own, and the other's answers would leave as a pod's.
func flow2(maps map[string]*ebpf.Map, key netFlowKey, f netFlow) error {
	if key.Reply != 0 || f.Flags&(flowAway|flowDirect) != 0 {
		return nil
	}
	back, answer := turned(key, f)
	state := f.State & (flowReplied | flowFinOut | flowFinIn | flowReset)
	straight := key.Saddr == f.Saddr && key.Sport == f.Sport
	var err error
	put := func(name string, key netFlowKey, value any) {
		if err == nil {
			err = maps[name].Put(key, value)
		}
	}
	switch {
	case straight && key.Daddr == f.Daddr && key.Dport == f.Dport: // the outside called a pod, or the node's echo
		if key.Proto == unix.IPPROTO_ICMP || key.Proto == unix.IPPROTO_ICMPV6 {
			put(oldMasq, back, oldMasqFlow{Addr: key.Saddr, Port: key.Sport, State: state, Seen: f.Seen})
		}
		back.Reply = 0
		put(oldMasq, back, oldMasqFlow{Addr: key.Daddr, Port: key.Dport, State: state, Seen: f.Seen})
	case f.Flags&flowMasqueraded != 0 && f.Service == 0: // a pod's way outside
		put(oldMasq, back, oldMasqFlow{Addr: key.Saddr, Port: key.Sport, State: state, Seen: f.Seen})
		put(oldMasq, key, oldMasqFlow{Addr: f.Saddr, Port: f.Sport, State: state, Seen: f.Seen})
	case f.Flags&flowMasqueraded != 0: // to a backend on another node
		put(oldMasq, back, oldMasqFlow{Addr: key.Saddr, Port: key.Sport, State: state | oldForwarded, Seen: f.Seen})
		put(oldFlows, key, oldFlow{Addr: f.Daddr, Port: f.Dport, Via: f.Sport})
		put(oldFlows, back, oldFlow{Addr: answer.Saddr, Port: answer.Sport, Ifindex: f.Ifindex})
	case straight: // to a backend on this node
		put(oldFlows, key, oldFlow{Addr: f.Daddr, Port: f.Dport})
		put(oldFlows, back, oldFlow{Addr: answer.Saddr, Port: answer.Sport, Ifindex: f.Ifindex})
	}
	return err
}

// unpinNewer takes away what releases of layout 2 don't know, or would find in another form.
func unpinNewer(pinDir string) error {
	specs, err := mapSpecs()
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(pinDir)
	if err != nil {
		return fmt.Errorf("bpf: downgrade: %w", err)
	}
	for _, e := range entries {
		name := e.Name()
		pin := filepath.Join(pinDir, name)
		if program, ifindex, ok := filterOf(name); ok {
			if !programs2[program] {
				err = detachClsact(pinDir, ifindex, program)
			}
		} else if rest, ok := strings.CutPrefix(name, linkPrefix); ok {
			if !programs2[rest] && !programs2[rest[:max(0, strings.LastIndexByte(rest, '_'))]] {
				err = detachPinned(pin)
			}
		} else if want, ok := layout2[name]; ok {
			err = unpinUnless(pin, want)
		} else if specs[name] != nil || specs[strings.TrimSuffix(name, beforeSuffix)] != nil || specs[strings.TrimSuffix(name, overflowSuffix)] != nil {
			err = os.Remove(pin)
		}
		if err != nil {
			return fmt.Errorf("bpf: downgrade: %s: %w", pin, err)
		}
	}
	return nil
}

// converted2 are the maps whose rows have another form in layout 2.
var converted2 = []string{"lb_services", "lb_frontends", "lb_backends", "endpoints", oldFlows, oldMasq}

// isLayout2 tells whether all of them have that form.
func isLayout2(pinDir string) (bool, error) {
	for _, name := range converted2 {
		m, err := ebpf.LoadPinnedMap(filepath.Join(pinDir, name), nil)
		if errors.Is(err, os.ErrNotExist) {
			if flowsIn(pinDir) != nil {
				return false, nil
			}
			continue
		}
		if err != nil {
			return false, fmt.Errorf("bpf: %s: %w", name, err)
		}
		is := hasForm(m, layout2[name])
		m.Close()
		if !is {
			return false, nil
		}
	}
	return true, nil
}

func hasForm(m *ebpf.Map, want ebpf.MapSpec) bool {
	return m.Type() == want.Type && m.KeySize() == want.KeySize && m.ValueSize() == want.ValueSize && (want.MaxEntries == 0 || m.MaxEntries() == want.MaxEntries)
}

// unpinUnless unpins a map of another form than that wanted. Its rows are no loss: those that matter have been written anew.
func unpinUnless(pin string, want ebpf.MapSpec) error {
	m, err := ebpf.LoadPinnedMap(pin, nil)
	if err != nil {
		return err
	}
	defer m.Close()
	if hasForm(m, want) {
		return nil
	}
	return os.Remove(pin)
}
