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

	mu   sync.Mutex
	rows map[K]V
	by   map[string]map[K]bool
}

// openOwned reads the rows that a pinned map holds.
func openOwned[K comparable, V comparable](m *ebpf.Map, what string, ownerOf func(V) string) (*ownedMap[K, V], error) {
	t := &ownedMap[K, V]{m: m, what: what, ownerOf: ownerOf, rows: map[K]V{}, by: map[string]map[K]bool{}}
	var k K
	var v V
	it := m.Iterate()
	for it.Next(&k, &v) {
		t.note(k, v)
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("bpf: read %s: %w", what, err)
	}
	return t, nil
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
		if err := t.m.Put(k, row); err != nil {
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
	if err := t.m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
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
