package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
)

// DefaultFlows is Config.Flows unless it says otherwise.
const DefaultFlows = 131072

// The tables of lib/conntrack.h, by their pins.
const (
	flowsOpen    = "flows_open"
	flowsPassing = "flows_passing"
)

var flowTables = []string{flowsOpen, flowsPassing}

// beforeSuffix is of the pins of tables whose rows others take over.
const beforeSuffix = "_before"

// States of a flow, as in lib/conntrack.h.
const (
	flowReplied = 1 << iota
	flowFinOut
	flowFinIn
	flowReset
	flowAgreed
)

// Flags of a flow, as in lib/conntrack.h.
const (
	flowMasqueraded = 1
	flowHere        = 2
	flowAway        = 8
	flowDirect      = 16
)

// CheckFlows tells whether Config.Flows can be n.
func CheckFlows(n int) error {
	const least, most = 16, 16 << 20
	if n != 0 && (n < least || n > most) {
		return fmt.Errorf("%d flows: there can be %d to %d", n, least, most)
	}
	return nil
}

// flowRows is how many rows each table of flows has: two for a flow.
func (c Config) flowRows() uint32 {
	if c.Flows == 0 {
		return 2 * DefaultFlows
	}
	return uint32(2 * c.Flows)
}

// growFlows gives the tables of flows the size that they are to have, under the traffic that passes: new tables get the rows of the old ones, then
// each program is replaced by one that knows both, then what rows came meanwhile follow. If it is killed, the next start goes on with it.
func (c Config) growFlows() error {
	before := map[string]*ebpf.Map{}
	defer func() {
		for _, m := range before {
			m.Close()
		}
	}()
	since := map[string]uint32{} // when the first copy of each began: seconds of the monotonic clock; 0: somebody before us made it
	for _, name := range flowTables {
		began := uint32(Monotonic().Seconds())
		old, copied, err := c.growTable(name)
		if copied {
			since[name] = began
		}
		if err != nil {
			return fmt.Errorf("bpf: make %s one of %d rows: %w", name, c.flowRows(), err)
		}
		if old != nil {
			before[name] = old
		}
	}
	if len(before) == 0 {
		return nil
	}
	both := &Datapath{pinDir: c.PinDir}
	err := both.load(c, before)
	if err == nil {
		err = both.switchLinks()
	}
	for _, name := range flowTables {
		if err == nil && before[name] != nil {
			err = followRows(before[name], both.net.Maps[name], both.net.Maps[flowsPassing], since[name])
		}
	}
	return errors.Join(err, both.Close())
}

// growTable puts a table of another size at a pin, with its rows, and returns the one before, which gets a pin of its own; nil if nothing is to
// be taken over. copied tells whether it did so now: somebody who was killed may have done it before.
func (c Config) growTable(name string) (before *ebpf.Map, copied bool, err error) {
	pin := filepath.Join(c.PinDir, name)
	now, err := ebpf.LoadPinnedMap(pin, nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	before, err = ebpf.LoadPinnedMap(pin+beforeSuffix, nil)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, false, errors.Join(err, now.Close())
	}
	if now.MaxEntries() == c.flowRows() {
		return before, false, now.Close() // one that was killed left it
	}
	if before != nil { // so, and its size is no more the right one
		_, err := copyRows(before, now)
		if err = errors.Join(err, before.Close(), os.Remove(pin+beforeSuffix)); err != nil {
			return nil, false, errors.Join(err, now.Close())
		}
	}
	if err := c.replaceTable(name, now); err != nil {
		return nil, false, errors.Join(err, now.Close())
	}
	return now, true, nil
}

func (c Config) replaceTable(name string, old *ebpf.Map) error {
	pin := filepath.Join(c.PinDir, name)
	spec, err := loadNet()
	if err != nil {
		return err
	}
	fresh, err := ebpf.NewMap(flowSpec(spec, name, c.flowRows()))
	if err != nil {
		return err
	}
	defer fresh.Close()
	n, err := copyRows(old, fresh)
	if err != nil {
		return err
	}
	if name == flowsOpen && n > int(c.flowRows())/4*3 && c.flowRows() < old.MaxEntries() {
		return fmt.Errorf("%d rows are in use and there must be room for more: let there be at least %d flows", n, n*2/3)
	}
	again, err := old.Clone() // to pin it again would move the pin
	if err != nil {
		return err
	}
	defer again.Close()
	if err := again.Pin(pin + beforeSuffix); err != nil {
		return err
	}
	return pinOver(fresh, pin)
}

// flowSpec is a table of flows without a pin.
func flowSpec(spec *ebpf.CollectionSpec, name string, rows uint32) *ebpf.MapSpec {
	s := spec.Maps[name].Copy()
	s.Pinning, s.MaxEntries = ebpf.PinNone, rows
	return s
}

// pinOver puts a map in the place of the pinned one, at once.
func pinOver(m *ebpf.Map, pin string) error {
	next := pin + "_next"
	if err := os.Remove(next); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := m.Pin(next); err != nil {
		return err
	}
	return os.Rename(next, pin)
}

// copyRows puts the rows of one table of flows into another, but for those that are there. It tells how many there were.
func copyRows(from, to *ebpf.Map) (int, error) {
	n := 0
	var failed error
	err := eachRow(from, "flows", func(k netFlowKey, v netFlow) {
		n++
		if failed == nil {
			failed = putNew(to, k, v)
		}
	})
	return n, errors.Join(err, failed)
}

// followRows puts the rows into a table that came into the one before while programs that knew only that were at work. A row that is not in the
// new table may also be of a flow that has ended meanwhile: it had no packet since the first copy, or stands in passing.
func followRows(from, to, passing *ebpf.Map, since uint32) error {
	var failed error
	err := eachRow(from, "flows", func(k netFlowKey, v netFlow) {
		var other netFlow
		if failed != nil || int32(v.Seen-since)+1 < 0 && since != 0 || passing.Lookup(k, &other) == nil {
			return
		}
		failed = putNew(to, k, v)
	})
	return errors.Join(err, failed)
}

// putNew writes a row unless there is one.
func putNew(to *ebpf.Map, k netFlowKey, v netFlow) error {
	if err := to.Update(k, v, ebpf.UpdateNoExist); err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
		return explain(err)
	}
	return nil
}

// takeOldFlows lets the programs on interfaces be these, where tables of before are left, and takes over what those have: before, and then
// what came meanwhile. Then they go.
func (d *Datapath) takeOldFlows() error {
	var old []string
	for _, name := range []string{flowsOpen + beforeSuffix, flowsPassing + beforeSuffix, oldFlows, oldMasq} {
		if _, err := os.Stat(filepath.Join(d.pinDir, name)); err == nil {
			old = append(old, name)
		}
	}
	if len(old) == 0 {
		return nil
	}
	if err := d.addOldFlows(); err != nil {
		return err
	}
	if err := d.switchLinks(); err != nil {
		return err
	}
	if err := d.addOldFlows(); err != nil {
		return err
	}
	for _, name := range old {
		if err := os.Remove(filepath.Join(d.pinDir, name)); err != nil {
			return fmt.Errorf("bpf: unpin %s: %w", name, err)
		}
	}
	return nil
}
