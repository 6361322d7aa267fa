package bpf

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Outside is the kernel's cache of what servers outside have answered, in two tables: of short answers, as most are, and of the others. It is
// bounded: what was given least recently makes room.
type Outside struct {
	short, long *ebpf.Map  // long is nil where an older release runs, and this only reads and forgets
	mu          sync.Mutex // of who makes room
}

// outsidePin and outsideLongPin are the pins of the tables, by their names.
const (
	outsidePin     = "name_outside"
	outsideLongPin = "name_outside_long"
)

func openOutside(maps map[string]*ebpf.Map) *Outside {
	return &Outside{short: maps[outsidePin], long: maps[outsideLongPin]}
}

// ErrTooLarge says that an answer has no place in the kernel: user space gives it.
var ErrTooLarge = errors.New("bpf: the answer is larger than the kernel stores")

// Keep makes the kernel give a response (wire format, one question, no OPT record) to who asks the same with the same bits, until a time. Its
// records count down from the TTL that is left then, all from the same: what goes by the least of them.
func (o *Outside) Keep(msg []byte, bits uint8, until time.Time) error {
	s, err := storedOf(msg)
	if err != nil {
		return fmt.Errorf("bpf: answer from outside: %w", err)
	}
	s.key.Bits = bits
	left := time.Until(until)
	if left <= 0 {
		return nil
	}
	now, err := bootTime()
	if err != nil {
		return err
	}
	head := s.head(uint64(now + left))
	head.Ttl = ^uint32(0) // of none: each answer is written the TTL that is left
	var short netOutside
	if len(s.body) <= len(short.Body) && len(s.ttlAt) <= len(short.TtlAt) {
		short.Head, short.Used, short.Ttls, short.Tag = head, uint64(now), uint32(copy(short.TtlAt[:], s.ttlAt)), head.Tag
		copy(short.Body[:], s.body)
		return o.put(o.short, o.long, s.key, short, uint64(now))
	}
	var long netOutsideLong
	if len(s.body) > len(long.Body) || len(s.ttlAt) > len(long.TtlAt) {
		return ErrTooLarge
	}
	long.Head, long.Used, long.Ttls, long.Tag = head, uint64(now), uint32(copy(long.TtlAt[:], s.ttlAt)), head.Tag
	copy(long.Body[:], s.body)
	return o.put(o.long, o.short, s.key, long, uint64(now))
}

// put writes a row into one of the tables, and takes what the other has of it.
func (o *Outside) put(to, other *ebpf.Map, k netAsked, v any, now uint64) error {
	err := to.Put(k, v)
	if isFull(err) {
		if err = o.makeRoom(to, now); err == nil {
			err = to.Put(k, v)
		}
	}
	if isFull(err) {
		err = nil // others were quicker
	}
	if err == nil {
		err = other.Delete(k)
	}
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("bpf: answer from outside for %s: %w", showAsked(k), err)
	}
	return nil
}

// Drop takes the answer to a question away.
func (o *Outside) Drop(msg []byte, bits uint8) error {
	s, err := storedOf(msg)
	if err != nil {
		return fmt.Errorf("bpf: answer from outside: %w", err)
	}
	s.key.Bits = bits
	return errors.Join(dropOutside(o.short, s.key), dropOutside(o.long, s.key))
}

func dropOutside(m *ebpf.Map, k netAsked) error {
	if err := m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("bpf: answer from outside for %s: %w", showAsked(k), err)
	}
	return nil
}

// eachOutside reads a table: what both kinds of rows begin with. Rows that others add and delete meanwhile may be missed: whole tells whether none
// was.
func eachOutside(m *ebpf.Map, f func(k netAsked, head netStored, used uint64)) (whole bool, err error) {
	var k netAsked
	var v []byte
	var row struct {
		Head netStored
		Used uint64
	}
	it := m.Iterate()
	for it.Next(&k, &v) {
		if _, err := binary.Decode(v, binary.NativeEndian, &row); err != nil {
			return false, fmt.Errorf("bpf: answers from outside: %w", err)
		}
		f(k, row.Head, row.Used)
	}
	if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return false, fmt.Errorf("bpf: answers from outside: %w", err)
	}
	return it.Err() == nil, nil
}

// makeRoom deletes what has expired, and of the rest the eighth that was not given for the longest time.
func (o *Outside) makeRoom(m *ebpf.Map, now uint64) error {
	if !o.mu.TryLock() {
		return nil
	}
	defer o.mu.Unlock()
	type row struct {
		key  netAsked
		used uint64
	}
	var rows []row
	_, err := eachOutside(m, func(k netAsked, head netStored, used uint64) {
		if head.Expires <= now {
			used = 0
		}
		rows = append(rows, row{k, used})
	})
	if err != nil {
		return err
	}
	slices.SortFunc(rows, func(a, b row) int { return cmp.Compare(a.used, b.used) })
	for i, r := range rows {
		if r.used > 0 && i > len(rows)/8 {
			break
		}
		if err := dropOutside(m, r.key); err != nil {
			return err
		}
	}
	return nil
}

// Forget takes away what there is now of a lower-case name and of all names below it, "." for all. It tells how many answers that were.
func (o *Outside) Forget(name string) (int, error) {
	wire := []byte{0}
	if name != "." {
		var err error
		if wire, _, err = wireName(name); err != nil {
			return 0, fmt.Errorf("bpf: answers from outside for %q: %w", name, err)
		}
	}
	forgotten := 0
	for _, m := range o.tables() {
		for whole := false; !whole; {
			var keys []netAsked
			var err error
			whole, err = eachOutside(m, func(k netAsked, _ netStored, _ uint64) {
				if isBelow(k.Key.Name[:], wire) {
					keys = append(keys, k)
				}
			})
			if err != nil {
				return forgotten, err
			}
			for _, k := range keys {
				if err := dropOutside(m, k); err != nil {
					return forgotten, err
				}
				forgotten++
			}
		}
	}
	return forgotten, nil
}

// tables are those that there are.
func (o *Outside) tables() []*ebpf.Map {
	if o.long == nil {
		return []*ebpf.Map{o.short}
	}
	return []*ebpf.Map{o.short, o.long}
}

// Flush takes all away that there is now.
func (o *Outside) Flush() error {
	_, err := o.Forget(".")
	return err
}

// isBelow tells whether a wire name, with anything behind it, is another one or ends in it, label by label.
func isBelow(name, zone []byte) bool {
	for at := 0; at+len(zone) <= len(name); at += 1 + int(name[at]) {
		if bytes.Equal(name[at:at+len(zone)], zone) {
			return true
		}
		if name[at] == 0 {
			break
		}
	}
	return false
}

// ReadOutside reads what is pinned below pinDir; no agent need run.
func ReadOutside(pinDir string) ([]OutsideAnswer, error) {
	maps, done, err := openPins(pinDir, []string{outsidePin, outsideLongPin})
	if err != nil {
		return nil, err
	}
	defer done()
	return openOutside(maps).Dump()
}

// ForgetOutside is Forget for what is pinned below pinDir; no agent need run.
func ForgetOutside(pinDir, name string) (int, error) {
	maps := map[string]*ebpf.Map{}
	for _, pin := range []string{outsidePin, outsideLongPin} {
		m, err := ebpf.LoadPinnedMap(filepath.Join(pinDir, pin), nil)
		if isOfNewer(pin, err) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("bpf: table %s: %w", pin, err)
		}
		defer m.Close()
		maps[pin] = m
	}
	return openOutside(maps).Forget(name)
}

// OutsideAnswer is one that the kernel holds.
type OutsideAnswer struct {
	Asked
	Left time.Duration // until it expires; none: it has
	Size int           // bytes behind the question
}

// Dump returns what the kernel holds.
func (o *Outside) Dump() ([]OutsideAnswer, error) {
	now, err := bootTime()
	if err != nil {
		return nil, err
	}
	var out []OutsideAnswer
	for _, m := range o.tables() {
		_, err := eachOutside(m, func(k netAsked, head netStored, _ uint64) {
			out = append(out, OutsideAnswer{askedOf(k), max(0, time.Duration(head.Expires)-now), int(head.Len)})
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// bootTime is the clock of bpf_ktime_get_boot_ns: it goes on while the machine sleeps.
func bootTime() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0, fmt.Errorf("bpf: clock: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}
