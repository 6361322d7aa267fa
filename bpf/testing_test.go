package bpf

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/strake-io/strake/tests/netns"
)

func cgroupRoot(t testing.TB) string {
	for _, dir := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		if ok, err := isFS(dir, cgroup2Magic); err == nil && ok {
			return dir
		}
	}
	t.Fatal("no cgroup2 mount")
	return ""
}

// testConfig makes a bpffs and a cgroup that go with the test.
func testConfig(t testing.TB) Config {
	t.Helper()
	netns.Enter(t)
	pins := filepath.Join(t.TempDir(), "bpf")
	if err := MountBPFFS(pins); err != nil {
		t.Fatal(err)
	}
	var id [4]byte
	rand.Read(id[:])
	root := cgroupRoot(t)
	group := filepath.Join(root, "strake-test-"+hex.EncodeToString(id[:]))
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Fatal(err)
	}
	var lent []*loaded
	t.Cleanup(func() { // when nothing is attached any more
		for _, l := range lent {
			if err := l.handBack(); err != nil {
				t.Error(err)
			}
		}
	})
	t.Cleanup(func() {
		if err := Remove(pins); err != nil {
			t.Error(err)
		}
		if err := UnmountBPFFS(pins); err != nil {
			t.Error(err)
		}
		if err := os.Remove(group); err != nil {
			t.Error(err)
		}
	})
	return Config{
		PinDir: pins, CgroupRoot: root, NodeCgroup: group, DNSAddrs: []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:10:96::a")}, Zone: "cluster.local", DNSTTL: 30,
		newCollection: func(spec *ebpf.CollectionSpec, options ebpf.CollectionOptions) (*ebpf.Collection, error) {
			coll, l, err := lend(spec, options)
			if l != nil {
				lent = append(lent, l)
			}
			return coll, err
		},
	}
}

// loaded are programs at interfaces, and their maps, that were loaded once for many tests: the verifier's work is nearly all that Open does. A test
// has them for itself, below the pins of its own, until it ends; then the maps are emptied for the next one whose programs are told the same
// constants and have maps of the same sizes. What a test opens at pins that are there, as an agent that starts again does, is loaded anew, always.
type loaded struct {
	told string
	lent bool
	coll *ebpf.Collection
}

// kept are those that the last tests had. Each takes some 150 MB of kernel memory, which an emulated machine is short of.
var kept []*loaded

const keptAtMost = 3

// lend gives a test programs and maps as ebpf.NewCollectionWithOptions does; those that are to be handed back are told.
func lend(spec *ebpf.CollectionSpec, options ebpf.CollectionOptions) (*ebpf.Collection, *loaded, error) {
	share := spec.Programs[podProgram] != nil
	for name, m := range spec.Maps {
		if m.Pinning != ebpf.PinByName {
			continue
		}
		if _, err := os.Stat(filepath.Join(options.Maps.PinPath, name)); err == nil {
			share = false
		} else if !errors.Is(err, os.ErrNotExist) {
			return nil, nil, err
		}
	}
	if !share {
		coll, err := ebpf.NewCollectionWithOptions(spec, options)
		return coll, nil, err
	}
	told := toldTo(spec)
	i := slices.IndexFunc(kept, func(l *loaded) bool { return !l.lent && l.told == told })
	if i < 0 {
		coll, err := ebpf.NewCollectionWithOptions(spec, options)
		if err != nil {
			return nil, nil, err
		}
		l := &loaded{told: told, lent: true}
		if l.coll, err = cloned(coll); err != nil {
			return nil, nil, errors.Join(err, l.handBack())
		}
		kept = append(kept, l)
		return coll, l, nil
	}
	l := kept[i]
	kept = append(slices.Delete(kept, i, i+1), l)
	l.lent = true
	coll, err := cloned(l.coll)
	for name, m := range spec.Maps {
		if err == nil && m.Pinning == ebpf.PinByName {
			err = coll.Maps[name].Pin(filepath.Join(options.Maps.PinPath, name))
		}
	}
	return coll, l, err
}

// toldTo is what makes loaded programs differ from others of the same object: a test may change them, too.
func toldTo(spec *ebpf.CollectionSpec) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(spec.Programs)) {
		h := fnv.New64a()
		for _, in := range spec.Programs[name].Instructions {
			h.Write(binary.LittleEndian.AppendUint64([]byte{byte(in.OpCode), byte(in.OpCode >> 8), byte(in.OpCode >> 16), byte(in.OpCode >> 24), byte(in.Dst), byte(in.Src), byte(in.Offset), byte(in.Offset >> 8)}, uint64(in.Constant)))
			h.Write([]byte(in.Reference()))
		}
		fmt.Fprintf(&b, "%s %x\n", name, h.Sum64())
	}
	for _, name := range slices.Sorted(maps.Keys(spec.Maps)) {
		m := spec.Maps[name]
		fmt.Fprintln(&b, name, m.Type, m.KeySize, m.ValueSize, m.MaxEntries, m.Flags)
	}
	for _, name := range slices.Sorted(maps.Keys(spec.Variables)) {
		fmt.Fprintf(&b, "%s %x\n", name, spec.Variables[name].Value)
	}
	return b.String()
}

func cloned(coll *ebpf.Collection) (*ebpf.Collection, error) {
	out := &ebpf.Collection{Programs: map[string]*ebpf.Program{}, Maps: map[string]*ebpf.Map{}}
	for name, p := range coll.Programs {
		var err error
		if out.Programs[name], err = p.Clone(); err != nil {
			return nil, err
		}
	}
	for name, m := range coll.Maps {
		var err error
		if out.Maps[name], err = m.Clone(); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// handBack empties the maps, and fails where it can't.
func (l *loaded) handBack() error {
	l.lent = false
	for name, m := range l.coll.Maps {
		if err := emptyMap(m); err != nil {
			kept = slices.DeleteFunc(kept, func(k *loaded) bool { return k == l })
			l.coll.Close()
			return fmt.Errorf("map %s can't be had by another test: %w", name, err)
		}
	}
	for len(kept) > keptAtMost && !kept[0].lent {
		kept[0].coll.Close()
		kept = kept[1:]
	}
	return nil
}

// emptyMap makes a map as it was when it was made.
func emptyMap(m *ebpf.Map) error {
	switch m.Type() {
	case ebpf.Array, ebpf.PerCPUArray:
		if m.Flags()&unix.BPF_F_RDONLY_PROG != 0 { // constants
			return nil
		}
		var zero any = make([]byte, m.ValueSize())
		if m.Type() == ebpf.PerCPUArray {
			processors, err := ebpf.PossibleCPU()
			if err != nil {
				return err
			}
			zero = slices.Repeat([][]byte{zero.([]byte)}, processors)
		}
		for i := range m.MaxEntries() {
			if err := m.Put(i, zero); err != nil {
				return err
			}
		}
		return nil
	case ebpf.ArrayOfMaps:
		for i := range m.MaxEntries() {
			if err := m.Delete(i); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				return err
			}
		}
		return nil
	case ebpf.Hash, ebpf.LRUHash, ebpf.PerCPUHash, ebpf.LPMTrie:
		first, err := m.NextKeyBytes(nil)
		if err != nil || first == nil {
			return err
		}
		for k := first; k != nil && err == nil; {
			this := k
			if k, err = m.NextKeyBytes(this); err == nil {
				err = m.Delete(this)
			}
		}
		if err == nil {
			first, err = m.NextKeyBytes(nil)
		}
		if err == nil && first != nil {
			err = fmt.Errorf("it still has the row %x: somebody writes it", first)
		}
		return err
	case ebpf.RingBuf:
		r, err := ringbuf.NewReader(m)
		if err != nil {
			return err
		}
		defer r.Close()
		r.SetDeadline(time.Unix(1, 0))
		for err == nil {
			_, err = r.Read()
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		return err
	}
	return fmt.Errorf("nothing here empties one of type %s", m.Type())
}

// tablesConfig is testConfig without the programs of packets, for tests of tables alone: it opens in a tenth of the time.
func tablesConfig(t testing.TB) Config {
	c := testConfig(t)
	c.noPackets = true
	return c
}

func open(t testing.TB, c Config) *Datapath {
	t.Helper()
	d, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// fronts are frontends of a kind, for all backends.
func fronts(kind FrontendKind, addrs ...netip.AddrPort) []Frontend {
	var out []Frontend
	for _, a := range addrs {
		out = append(out, Frontend{Addr: a, Kind: kind})
	}
	return out
}

// backs are backends that take what there is.
func backs(addrs ...netip.AddrPort) []Backend {
	var out []Backend
	for _, a := range addrs {
		out = append(out, Backend{Addr: a, All: true, Weight: 1})
	}
	return out
}

// Programs are told from others that differ in anything at all.
func TestProgramsThatDifferAreNotLent(t *testing.T) {
	spec, err := loadNet()
	must(t, err)
	in, m := &spec.Programs[podProgram].Instructions[0], spec.Maps["endpoints"]
	for what, change := range map[string]func(by int){
		"constant": func(by int) { in.Constant += int64(by) },
		"register": func(by int) { in.Dst += asm.Register(by) },
		"size":     func(by int) { m.MaxEntries += uint32(by) },
		"flags":    func(by int) { m.Flags += uint32(by) },
	} {
		was := toldTo(spec)
		change(1)
		if toldTo(spec) == was {
			t.Errorf("another %s makes no difference", what)
		}
		change(-1)
		if toldTo(spec) != was {
			t.Errorf("the same %s makes a difference", what)
		}
	}
}

// The tests' time hangs on it that one has the programs of the one before.
func TestProgramsAreLentAgain(t *testing.T) {
	var ids []ebpf.ProgramID
	for range 2 {
		t.Run("a test", func(t *testing.T) {
			info, err := open(t, testConfig(t)).net.Programs[podProgram].Info()
			must(t, err)
			id, _ := info.ID()
			ids = append(ids, id)
		})
	}
	if len(ids) != 2 || ids[0] != ids[1] {
		t.Errorf("programs %v: the second test loaded its own", ids)
	}
}

// What a test leaves in any map is gone when the next one has it. Only TestMonitor and its like leave anything in a ring.
func TestMapsAreHandedBackEmpty(t *testing.T) {
	t.Run("a test", func(t *testing.T) {
		spec, err := loadNet()
		must(t, err)
		perCPU := func(value []byte) [][]byte { return slices.Repeat([][]byte{value}, ebpf.MustPossibleCPU()) }
		d := open(t, testConfig(t))
		addPods(t, d)
		for name, m := range d.net.Maps {
			key, value := bytes.Repeat([]byte{1}, int(m.KeySize())), bytes.Repeat([]byte{1}, int(m.ValueSize()))
			switch m.Type() {
			case ebpf.Hash, ebpf.LRUHash:
				must(t, m.Put(key, value))
			case ebpf.LPMTrie:
				must(t, m.Put(append([]byte{32, 0, 0, 0}, key[4:]...), value))
			case ebpf.Array:
				for i := range m.MaxEntries() {
					if m.Flags()&unix.BPF_F_RDONLY_PROG == 0 {
						must(t, m.Put(i, value))
					}
				}
			case ebpf.PerCPUArray:
				for i := range m.MaxEntries() {
					must(t, m.Put(i, perCPU(value)))
				}
			case ebpf.PerCPUHash:
				must(t, m.Put(key, perCPU(value)))
			case ebpf.ArrayOfMaps:
				s := spec.Maps[name].InnerMap
				s.Key, s.Value = nil, nil
				inner, err := ebpf.NewMap(s)
				must(t, err)
				defer inner.Close()
				for i := range m.MaxEntries() {
					must(t, m.Put(i, inner))
				}
			case ebpf.RingBuf:
			default:
				t.Errorf("map %s is of type %s", name, m.Type())
			}
		}
	})
	if len(kept) == 0 || kept[len(kept)-1].lent {
		t.Fatal("nothing was handed back")
	}
	last := kept[len(kept)-1]
	for name, m := range last.coll.Maps {
		switch m.Type() {
		case ebpf.Hash, ebpf.LRUHash, ebpf.PerCPUHash, ebpf.LPMTrie, ebpf.ArrayOfMaps:
			var k, v []byte
			if it := m.Iterate(); it.Next(&k, &v) {
				t.Errorf("map %s: row %x", name, k)
			}
		case ebpf.Array:
			for i := range m.MaxEntries() {
				v, err := m.LookupBytes(i)
				must(t, err)
				if m.Flags()&unix.BPF_F_RDONLY_PROG == 0 && len(bytes.Trim(v, "\x00")) > 0 {
					t.Fatalf("map %s: row %d is %x", name, i, v)
				}
			}
		case ebpf.PerCPUArray:
			for i := range m.MaxEntries() {
				var per [][]byte
				must(t, m.Lookup(i, &per))
				if len(bytes.Trim(bytes.Join(per, nil), "\x00")) > 0 {
					t.Fatalf("map %s: row %d is %x", name, i, per)
				}
			}
		}
	}
}
