package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// moreSuffix is of the pins of arrays of maps that hold what a table has no room for (dns_more in lib/dns.h).
const moreSuffix = "_more"

// overflow holds the rows that find no room in a table: programs look there after the table itself. It is made when the first such row comes, and
// a bigger one with all its rows takes its place when it is full: so at any time each row is in one that programs look into.
type overflow struct {
	outer *ebpf.Map
	m     *ebpf.Map // nil: there is none
}

// openOverflow finds what there is.
func openOverflow(outer *ebpf.Map) (*overflow, error) {
	o := &overflow{outer: outer}
	err := outer.Lookup(uint32(0), &o.m)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, fmt.Errorf("bpf: overflow of a table: %w", err)
	}
	return o, nil
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
		err = o.outer.Put(uint32(0), fresh)
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
	if err := o.outer.Delete(uint32(0)); err != nil {
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
