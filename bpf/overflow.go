package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
)

// moreSuffix is of the pins of arrays of maps that hold what a table has no room for (dns_more in lib/dns.h).
const moreSuffix = "_more"

// overflowSuffix is of the pins of what such an array holds: to get it from there takes CAP_SYS_ADMIN, and from a pin it does not.
const overflowSuffix = "_overflow"

// overflow holds the rows that find no room in a table: programs look there after the table itself. It is made when the first such row comes, and
// a bigger one with all its rows takes its place when it is full: so at any time each row is in one that programs look into.
type overflow struct {
	outer *ebpf.Map
	pin   string
	m     *ebpf.Map // nil: there is none
}

// openOverflow finds what there is of a table. A pin is there before programs look into what it holds, so it is asked first.
func openOverflow(maps map[string]*ebpf.Map, pinDir, table string) (*overflow, error) {
	o := &overflow{outer: maps[table+moreSuffix], pin: filepath.Join(pinDir, table+overflowSuffix)}
	var err error
	if o.m, err = ebpf.LoadPinnedMap(o.pin, nil); errors.Is(err, os.ErrNotExist) {
		err = o.outer.Lookup(uint32(0), &o.m)
	}
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, fmt.Errorf("bpf: overflow of table %s: %w", table, err)
	}
	return o, nil
}

// takeOver makes the pin and what programs look into the same, which they are not if an agent was killed between them, and takes one without rows away.
func (o *overflow) takeOver() error {
	if o.m == nil {
		return nil
	}
	err := o.repin()
	if err == nil {
		err = o.outer.Put(uint32(0), o.m)
	}
	if err != nil {
		return fmt.Errorf("bpf: overflow of a table: %w", err)
	}
	return o.tidy()
}

// repin makes the pin that of what there is.
func (o *overflow) repin() error {
	if o.m == nil {
		return os.Remove(o.pin)
	}
	again, err := o.m.Clone() // to pin it again would move the pin
	if err != nil {
		return err
	}
	return errors.Join(pinOver(again, o.pin), again.Close())
}

// update writes a row that is there, and tells whether it is.
func (o *overflow) update(k, v any) (there bool, err error) {
	if o.m == nil {
		return false, nil
	}
	err = o.m.Update(k, v, ebpf.UpdateExist)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, nil
	}
	return err == nil, err
}

// put writes a row that has no room in the table.
func (o *overflow) put(table *ebpf.Map, k, v any) error {
	if o.m == nil {
		if err := o.grow(table, 2*table.MaxEntries()); err != nil {
			return err
		}
	}
	err := o.m.Put(k, v)
	if !isFull(err) {
		return err
	}
	if err := o.grow(table, 2*o.m.MaxEntries()); err != nil {
		return err
	}
	return o.m.Put(k, v)
}

// grow puts a bigger one in the place of what there is, at once for programs.
func (o *overflow) grow(table *ebpf.Map, rows uint32) error {
	fresh, err := ebpf.NewMap(&ebpf.MapSpec{Name: "overflow", Type: table.Type(), KeySize: table.KeySize(), ValueSize: table.ValueSize(), MaxEntries: rows, Flags: table.Flags()})
	if err != nil {
		return fmt.Errorf("a table of %d more rows: %w", rows, err)
	}
	if o.m != nil {
		var k, v []byte
		it := o.m.Iterate()
		for it.Next(&k, &v) && err == nil {
			err = fresh.Put(k, v)
		}
		err = errors.Join(err, it.Err())
	}
	if err == nil {
		err = pinOver(fresh, o.pin)
	}
	if err == nil {
		if err = o.outer.Put(uint32(0), fresh); err != nil {
			err = errors.Join(err, o.repin())
		}
	}
	if err != nil {
		return errors.Join(fmt.Errorf("a table of %d more rows: %w", rows, err), fresh.Close())
	}
	former := o.m
	if o.m = fresh; former != nil {
		return former.Close()
	}
	return nil
}

// remove takes a row away, if it is there.
func (o *overflow) remove(k any) error {
	if o.m == nil {
		return nil
	}
	if err := o.m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	return nil
}

// tidy takes one without rows away.
func (o *overflow) tidy() error {
	if o == nil || o.m == nil || rows(o.m) > 0 {
		return nil
	}
	if err := errors.Join(o.outer.Delete(uint32(0)), os.Remove(o.pin)); err != nil {
		return fmt.Errorf("bpf: overflow of a table: %w", err)
	}
	err := o.m.Close()
	o.m = nil
	return err
}

// close closes file descriptors only.
func (o *overflow) close() error {
	if o == nil || o.m == nil {
		return nil
	}
	return o.m.Close()
}
