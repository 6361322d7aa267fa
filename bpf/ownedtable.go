package bpf

import (
	"errors"
	"fmt"
	"sync"

	"github.com/cilium/ebpf"
)

// ownedMap is a map whose rows each belong to one owner, told in the value. It keeps a copy of what the kernel holds, so that a
// change costs what it changes.
type ownedMap[K comparable, V comparable] struct {
	m       *ebpf.Map
	what    string
	ownerOf func(V) string
	living  func(K, V) V // puts what the programs themselves keep in a row into it; nil: they keep nothing
	more    *overflow    // for rows that find no room; nil: they get none

	mu   sync.Mutex
	rows map[K]V
	by   map[string]map[K]bool
}

// openOwned reads the rows that a pinned map holds.
func openOwned[K comparable, V comparable](m *ebpf.Map, what string, ownerOf func(V) string) (*ownedMap[K, V], error) {
	return readOwned[K](m, nil, what, ownerOf)
}

// openOverflowing is openOwned of a table that never is full, by the name of its pin. Releases before there were overflows have none.
func openOverflowing[K comparable, V comparable](maps map[string]*ebpf.Map, pinDir, table, what string, ownerOf func(V) string) (*ownedMap[K, V], error) {
	var more *overflow
	if maps[table+moreSuffix] != nil {
		var err error
		if more, err = openOverflow(maps, pinDir, table); err != nil {
			return nil, err
		}
	}
	t, err := readOwned[K](maps[table], more, what, ownerOf)
	if err != nil {
		return nil, errors.Join(err, more.close())
	}
	return t, nil
}

func readOwned[K comparable, V comparable](m *ebpf.Map, more *overflow, what string, ownerOf func(V) string) (*ownedMap[K, V], error) {
	t := &ownedMap[K, V]{m: m, what: what, ownerOf: ownerOf, more: more, rows: map[K]V{}, by: map[string]map[K]bool{}}
	if err := t.each(t.note); err != nil {
		return nil, fmt.Errorf("bpf: read %s: %w", what, err)
	}
	return t, nil
}

// each reads the rows from the kernel. Of those that are in both the table and its overflow, programs see the table's.
func (t *ownedMap[K, V]) each(f func(K, V)) error {
	var k K
	var v V
	it := t.m.Iterate()
	for it.Next(&k, &v) {
		f(k, v)
	}
	if err := it.Err(); err != nil || t.more == nil || t.more.m == nil {
		return err
	}
	it = t.more.m.Iterate()
	for it.Next(&k, &v) {
		if !t.inTable(k) {
			f(k, v)
		}
	}
	return it.Err()
}

// inTable tells whether the table has a row itself.
func (t *ownedMap[K, V]) inTable(k K) bool {
	var v V
	return t.m.Lookup(k, &v) == nil
}

// takeOver is to be called before the first change. A release that knows no overflow may have run, and have written rows into the table that are in
// its overflow, too: there they go.
func (t *ownedMap[K, V]) takeOver() error {
	if t.more == nil {
		return nil
	}
	if t.more.m != nil {
		var twice []K
		var k K
		var v V
		it := t.more.m.Iterate()
		for it.Next(&k, &v) {
			if t.inTable(k) {
				twice = append(twice, k)
			}
		}
		err := it.Err()
		for _, k := range twice {
			err = errors.Join(err, t.more.remove(k))
		}
		if err != nil {
			return fmt.Errorf("bpf: %s in two tables: %w", t.what, err)
		}
	}
	return t.more.takeOver()
}

// put writes a row where it is, or where there is room. None ever goes from one place to another: whoever looks into them one after the other
// would miss it.
func (t *ownedMap[K, V]) put(k K, v V) error {
	if t.more != nil {
		if there, err := t.more.update(k, v); there || err != nil {
			return err
		}
	}
	err := t.m.Put(k, v)
	if isFull(err) && t.more != nil {
		return t.more.put(t.m, k, v)
	}
	return err
}

func (t *ownedMap[K, V]) note(k K, v V) {
	o := t.ownerOf(v)
	t.rows[k] = v
	if t.by[o] == nil {
		t.by[o] = map[K]bool{}
	}
	t.by[o][k] = true
}

func (t *ownedMap[K, V]) forget(k K) {
	o := t.ownerOf(t.rows[k])
	delete(t.rows, k)
	delete(t.by[o], k)
	if len(t.by[o]) == 0 {
		delete(t.by, o)
	}
}

// replace makes the owner's rows exactly want: new and changed rows first, then the old ones away.
func (t *ownedMap[K, V]) replace(owner string, want map[K]V, show func(K) string) (Changes, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var c Changes
	for k := range want {
		if have, ok := t.rows[k]; ok && t.ownerOf(have) != owner {
			return c, fmt.Errorf("bpf: %s %s of %s belongs to %s", t.what, show(k), owner, t.ownerOf(have))
		}
	}
	for k, v := range want {
		have, ok := t.rows[k]
		if ok && have == v {
			continue
		}
		row := v
		if t.living != nil {
			row = t.living(k, v)
		}
		if err := t.put(k, row); err != nil {
			return c, fmt.Errorf("bpf: write %s %s of %s: %w", t.what, show(k), owner, explain(err))
		}
		t.note(k, v)
		if ok {
			c.Updated++
		} else {
			c.Added++
		}
	}
	for k := range t.by[owner] {
		if _, ok := want[k]; ok {
			continue
		}
		if err := t.remove(k, show); err != nil {
			return c, err
		}
		c.Deleted++
	}
	return c, nil
}

func (t *ownedMap[K, V]) remove(k K, show func(K) string) error {
	err := t.m.Delete(k)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		err = nil
	}
	if t.more != nil {
		err = errors.Join(err, t.more.remove(k))
	}
	if err != nil {
		return fmt.Errorf("bpf: delete %s %s: %w", t.what, show(k), err)
	}
	t.forget(k)
	return nil
}

func (t *ownedMap[K, V]) prune(keep func(string) bool, show func(K) string) (Changes, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var c Changes
	for owner, keys := range t.by {
		if keep(owner) {
			continue
		}
		for k := range keys {
			if err := t.remove(k, show); err != nil {
				return c, err
			}
			c.Deleted++
		}
	}
	return c, nil
}

// explain says what a full map means.
func explain(err error) error {
	if errors.Is(err, ebpf.ErrKeyExist) || err == nil {
		return err
	}
	if isFull(err) {
		return fmt.Errorf("the table is full: %w", err)
	}
	return err
}
