package bpf

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Outside is the kernel's cache of what servers outside have answered. It is bounded: what was given least recently makes room.
type Outside struct {
	m  *ebpf.Map
	mu sync.Mutex // of who makes room
}

// outsidePin is the pin of the map, by its name.
const outsidePin = "name_outside"

// ErrTooLarge says that an answer has no place in the kernel: user space gives it.
var ErrTooLarge = errors.New("bpf: the answer is larger than the kernel stores")

// Keep makes the kernel give a response (wire format, one question, no OPT record) to who asks the same with the same bits, until a time. Its
// records count down from the TTL that is left then, all from the same: what goes by the least of them.
func (o *Outside) Keep(msg []byte, bits uint8, until time.Time) error {
	s, err := storedOf(msg)
	if err != nil {
		return fmt.Errorf("bpf: answer from outside: %w", err)
	}
	var v netOutside
	if len(s.body) > len(v.Body) || len(s.ttlAt) > len(v.TtlAt) {
		return ErrTooLarge
	}
	left := time.Until(until)
	if left <= 0 {
		return nil
	}
	now, err := bootTime()
	if err != nil {
		return err
	}
	s.key.Bits = bits
	k := s.key
	v.Head, v.Used = s.head(uint64(now+left)), uint64(now)
	v.Head.Ttl = ^uint32(0) // of none: each answer is written the TTL that is left
	copy(v.Body[:], s.body)
	v.Ttls, v.Tag = uint32(copy(v.TtlAt[:], s.ttlAt)), v.Head.Tag
	err = o.m.Put(k, v)
	if isFull(err) {
		if err = o.makeRoom(uint64(now)); err == nil {
			err = o.m.Put(k, v)
		}
	}
	if isFull(err) {
		return nil // others were quicker
	}
	if err != nil {
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
	k := s.key
	k.Bits = bits
	return o.drop(k)
}

func (o *Outside) drop(k netAsked) error {
	if err := o.m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("bpf: answer from outside for %s: %w", showAsked(k), err)
	}
	return nil
}

// makeRoom deletes what has expired, and of the rest the eighth that was not given for the longest time.
func (o *Outside) makeRoom(now uint64) error {
	if !o.mu.TryLock() {
		return nil
	}
	defer o.mu.Unlock()
	type row struct {
		key  netAsked
		used uint64
	}
	var rows []row
	var k netAsked
	var v netOutside
	it := o.m.Iterate()
	for it.Next(&k, &v) {
		used := v.Used
		if v.Head.Expires <= now {
			used = 0
		}
		rows = append(rows, row{k, used})
	}
	if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) { // others add and delete
		return fmt.Errorf("bpf: answers from outside: %w", err)
	}
	slices.SortFunc(rows, func(a, b row) int { return cmp.Compare(a.used, b.used) })
	for i, r := range rows {
		if r.used > 0 && i > len(rows)/8 {
			break
		}
		if err := o.drop(r.key); err != nil {
			return err
		}
	}
	return nil
}

// Flush takes all away that there is now.
func (o *Outside) Flush() error {
	for {
		var keys []netAsked
		var k netAsked
		var v netOutside
		it := o.m.Iterate()
		for it.Next(&k, &v) {
			keys = append(keys, k)
		}
		for _, k := range keys {
			if err := o.drop(k); err != nil {
				return err
			}
		}
		if err := it.Err(); err == nil {
			return nil
		} else if !errors.Is(err, ebpf.ErrIterationAborted) { // by who adds and deletes: again
			return fmt.Errorf("bpf: answers from outside: %w", err)
		}
	}
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
	var k netAsked
	var v netOutside
	it := o.m.Iterate()
	for it.Next(&k, &v) {
		out = append(out, OutsideAnswer{askedOf(k), max(0, time.Duration(v.Head.Expires)-now), int(v.Head.Len)})
	}
	if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return nil, fmt.Errorf("bpf: answers from outside: %w", err)
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
