package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
)

// Layout 1 had IPv4 addresses of four bytes; layout 2 has those of both families, of 16.

// piece is a part of a row: bytes that stay, zeroes that are new, or an address that grows.
type piece struct {
	keep, zero int
	addr       bool
}

func keep(n int) piece { return piece{keep: n} }
func zero(n int) piece { return piece{zero: n} }

var grown = piece{addr: true}

// rowsOfLayout1 tells how keys and values of layout 1 become those of layout 2. Maps that are not here are the same, or their rows do not
// outlive the change (masq_fragments).
var rowsOfLayout1 = map[string]struct{ key, value []piece }{
	"endpoints":    {[]piece{grown}, []piece{keep(16), zero(4), keep(64)}},
	"lb_frontends": {[]piece{grown, keep(4), zero(4)}, []piece{keep(8)}},
	"lb_backends":  {[]piece{keep(8)}, []piece{grown, keep(4), zero(4)}},
	"names":        {[]piece{keep(256)}, []piece{keep(4), zero(4), keep(32), zero(128), keep(64)}},
	"masq_flows":   {[]piece{grown, grown, keep(8)}, []piece{grown, keep(8)}},
	"sock_reverse": {[]piece{keep(8), grown, keep(4), zero(4)}, []piece{grown, keep(4), zero(4)}},
}

// oldSize is how many bytes pieces had, and newSize how many they have.
func oldSize(pieces []piece) (n int) {
	for _, p := range pieces {
		n += p.keep
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
		old = old[p.keep:]
	}
	return out
}

// migrateLayout1 writes the rows of a release with layout 1 into maps of layout 2, each of which takes the old one's pin at once. Its programs
// go on with the old maps until they are replaced. If it is killed, the next start does what is left.
func migrateLayout1(pinDir string) error {
	specs := map[string]*ebpf.MapSpec{}
	for _, load := range []func() (*ebpf.CollectionSpec, error){loadNet, loadSock} {
		s, err := load()
		if err != nil {
			return fmt.Errorf("bpf: object: %w", err)
		}
		for name, m := range s.Maps {
			specs[name] = m
		}
	}
	for name, rows := range rowsOfLayout1 {
		if err := migrateMap(pinDir, specs[name], rows.key, rows.value); err != nil {
			return fmt.Errorf("bpf: bring %s of layout 1 to layout 2: %w", name, err)
		}
	}
	if err := os.Remove(filepath.Join(pinDir, "masq_fragments")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("bpf: %w", err)
	}
	return nil
}

func migrateMap(pinDir string, spec *ebpf.MapSpec, key, value []piece) error {
	pin := filepath.Join(pinDir, spec.Name)
	old, err := ebpf.LoadPinnedMap(pin, nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer old.Close()
	if int(old.KeySize()) == newSize(key) && int(old.ValueSize()) == newSize(value) {
		return nil // the one before was killed behind it
	}
	if int(old.KeySize()) != oldSize(key) || int(old.ValueSize()) != oldSize(value) {
		return fmt.Errorf("its rows have %d and %d bytes, those of layout 1 have %d and %d", old.KeySize(), old.ValueSize(), oldSize(key), oldSize(value))
	}
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
		if err := fresh.Put(converted(key, k), converted(value, slices.Clone(v))); err != nil {
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
