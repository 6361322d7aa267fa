package bpf

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
)

// Layout 1 had IPv4 addresses of four bytes; layout 2 has those of both families, of 16. Layout 3 has two sets of backends for each service, and
// a table of them by their addresses.

// piece is a part of a row: bytes that stay, that go, zeroes that are new, or an address that grows.
type piece struct {
	keep, gone, zero int
	addr             bool
}

func keep(n int) piece    { return piece{keep: n} }
func without(n int) piece { return piece{gone: n} }
func zero(n int) piece    { return piece{zero: n} }

var grown = piece{addr: true}

// shape tells how the key and value of a row are brought to the next layout.
type shape struct{ key, value []piece }

// nextLayout tells how the rows of a layout become those of the next one. Maps that are not there are the same, or their rows do not outlive
// the change (masq_fragments of layout 1).
var nextLayout = map[uint32]map[string]shape{
	1: {
		"endpoints":    {[]piece{grown}, []piece{keep(16), zero(4), keep(64)}},
		"lb_frontends": {[]piece{grown, keep(4), zero(4)}, []piece{keep(8)}},
		"lb_backends":  {[]piece{keep(8)}, []piece{grown, keep(4), zero(4)}},
		"names":        {[]piece{keep(256)}, []piece{keep(4), zero(4), keep(32), zero(128), keep(64)}},
		"sock_reverse": {[]piece{keep(8), grown, keep(4), zero(4)}, []piece{grown, keep(4), zero(4)}},
	},
	2: {
		"lb_frontends": {[]piece{keep(24)}, []piece{keep(8), zero(20)}},
		"sock_reverse": {[]piece{keep(32)}, []piece{keep(18), without(6), zero(14)}},
	},
}

// oldSize is how many bytes pieces had, and newSize how many they have.
func oldSize(pieces []piece) (n int) {
	for _, p := range pieces {
		n += p.keep + p.gone
		if p.addr {
			n += 4
		}
	}
	return n
}

func newSize(pieces []piece) (n int) {
	for _, p := range pieces {
		n += p.keep + p.zero
		if p.addr {
			n += 16
		}
	}
	return n
}

func converted(pieces []piece, old []byte) []byte {
	var out []byte
	for _, p := range pieces {
		if p.addr {
			out = append(append(out, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff), old[:4]...)
			old = old[4:]
		}
		out = append(append(out, old[:p.keep]...), make([]byte, p.zero)...)
		old = old[p.keep+p.gone:]
	}
	return out
}

// migrate writes the rows of a release with an older layout into maps of this one, each of which takes the old one's pin at once. Its programs
// go on with the old maps until they are replaced. If it is killed, the next start does what is left.
func migrate(pinDir string, have uint32) error {
	specs, err := mapSpecs()
	if err != nil {
		return err
	}
	steps := map[string][]shape{}
	for layout := have; layout < layoutVersion; layout++ {
		for name, s := range nextLayout[layout] {
			steps[name] = append(steps[name], s)
		}
	}
	for name, s := range steps {
		if err := migrateMap(pinDir, specs[name], s); err != nil {
			return fmt.Errorf("bpf: bring %s of layout %d to layout %d: %w", name, have, layoutVersion, err)
		}
	}
	if have == 1 {
		if err := os.Remove(filepath.Join(pinDir, "masq_fragments")); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("bpf: %w", err)
		}
	}
	if have < 3 {
		if err := addMembers(pinDir, specs); err != nil {
			return fmt.Errorf("bpf: bring backends of layout %d to layout %d: %w", have, layoutVersion, err)
		}
	}
	return nil
}

// mapSpecs are all maps of this release; the caller may change them.
func mapSpecs() (map[string]*ebpf.MapSpec, error) {
	read, err := readMapSpecs()
	specs := map[string]*ebpf.MapSpec{}
	for name, s := range read {
		specs[name] = s.Copy()
	}
	return specs, err
}

// readMapSpecs goes through both objects, once: a start wants the maps several times.
var readMapSpecs = sync.OnceValues(func() (map[string]*ebpf.MapSpec, error) {
	specs := map[string]*ebpf.MapSpec{}
	for _, load := range []func() (*ebpf.CollectionSpec, error){loadNet, loadSock} {
		s, err := load()
		if err != nil {
			return nil, fmt.Errorf("bpf: object: %w", err)
		}
		maps.Copy(specs, s.Maps)
	}
	return specs, nil
})

// resizeTables gives these tables, of the load balancer or of policies, the sizes that they are to have, with their rows. No program writes them, but
// hits of policies, so none is lost.
func resizeTables(pinDir string, tables []string, sizes map[string]uint32) error {
	specs, err := mapSpecs()
	if err != nil {
		return err
	}
	for _, name := range tables {
		spec := specs[name]
		if n := sizes[name]; n != 0 {
			spec.MaxEntries = n
		}
		if err := resizeMap(filepath.Join(pinDir, name), spec); err != nil {
			return fmt.Errorf("bpf: make %s one of %d rows: %w", name, spec.MaxEntries, err)
		}
	}
	return nil
}

func resizeMap(pin string, spec *ebpf.MapSpec) error {
	old, err := ofAnotherSize(pin, spec.MaxEntries)
	if old == nil || err != nil {
		return err
	}
	defer old.Close()
	return copyMap(pin, old, spec, func(k, v []byte) ([]byte, []byte) { return k, v })
}

// ofAnotherSize opens the map that is pinned there; nil: none is, or it has so many rows already.
func ofAnotherSize(pin string, rows uint32) (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(pin, nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err == nil && m.MaxEntries() == rows {
		return nil, m.Close()
	}
	return m, err
}

func migrateMap(pinDir string, spec *ebpf.MapSpec, steps []shape) error {
	pin := filepath.Join(pinDir, spec.Name)
	old, err := ebpf.LoadPinnedMap(pin, nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer old.Close()
	first, last := steps[0], steps[len(steps)-1]
	if int(old.KeySize()) == newSize(last.key) && int(old.ValueSize()) == newSize(last.value) {
		return nil // the one before was killed behind it
	}
	if int(old.KeySize()) != oldSize(first.key) || int(old.ValueSize()) != oldSize(first.value) {
		return fmt.Errorf("its rows have %d and %d bytes, those of that layout have %d and %d", old.KeySize(), old.ValueSize(), oldSize(first.key), oldSize(first.value))
	}
	return copyMap(pin, old, spec, func(k, v []byte) ([]byte, []byte) {
		for _, s := range steps {
			k, v = converted(s.key, k), converted(s.value, v)
		}
		return k, v
	})
}

// copyMap writes the rows of a pinned map into a new one, which takes its pin.
func copyMap(pin string, old *ebpf.Map, spec *ebpf.MapSpec, as func(k, v []byte) ([]byte, []byte)) error {
	spec = spec.Copy()
	spec.Pinning = ebpf.PinNone
	fresh, err := ebpf.NewMap(spec)
	if err != nil {
		return err
	}
	defer fresh.Close()
	var k, v []byte
	it := old.Iterate()
	for it.Next(&k, &v) {
		newKey, newValue := as(k, slices.Clone(v))
		if err := fresh.Put(newKey, newValue); err != nil {
			return explain(err)
		}
	}
	// A map of flows changes while it is read; who is missed then begins anew.
	if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return err
	}
	next := pin + "_next"
	if err := os.Remove(next); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := fresh.Pin(next); err != nil {
		return err
	}
	return os.Rename(next, pin)
}

// addMembers writes down the backends that the slots hold, which layouts before 3 did not.
func addMembers(pinDir string, specs map[string]*ebpf.MapSpec) error {
	old, err := ebpf.LoadPinnedMap(filepath.Join(pinDir, "lb_backends"), nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer old.Close()
	members, err := ebpf.NewMapWithOptions(specs["lb_members"], ebpf.MapOptions{PinPath: pinDir})
	if err != nil {
		return err
	}
	defer members.Close()
	var k netSlotKey
	var b netBackend
	it := old.Iterate()
	for it.Next(&k, &b) {
		if err := members.Put(netMemberKey{Service: k.Service, Port: b.Port, Addr: b.Addr}, netMember{Flags: memberAll, Weight: 1}); err != nil {
			return explain(err)
		}
	}
	return it.Err()
}
