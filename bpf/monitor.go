package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"
)

// Event is what became of a packet, or of a socket's wish to connect or send.
type Event struct {
	Time    time.Duration // monotonic clock
	Reason  string        // a name of Status.Counters
	Length  int           // of the packet with its Ethernet header
	Ifindex int           // where the program stood
	From    int           // the interface that the packet came in by; 0: the node sends it
	Packet  []byte        // its first bytes, the Ethernet header before all; nil for a socket
	Socket  *Socket       // nil for a packet
	Policy  uint32        // number of the policy that denies it, see PolicyName; 0: none
	Rule    uint16        // of that policy, as in PolicyVerdict
}

// Socket says who wanted to reach what.
type Socket struct {
	PID      int // in the initial PID namespace
	Command  string
	To       netip.AddrPort
	Protocol uint8
}

// Monitor receives events. While there is one the programs write them.
type Monitor struct {
	lock   *os.File
	watch  *ebpf.Map
	lost   *ebpf.Map
	before uint64 // lost to former monitors
	reader *ringbuf.Reader
	all    uint32
	began  time.Duration
	stop   chan struct{}
	once   sync.Once
	done   sync.WaitGroup
}

// The lease: how long the programs write events after the last sign of life, and how often there is one.
const (
	leaseTime  = 3 * time.Second
	leaseRenew = time.Second
)

// ErrMonitored says that another Monitor of the node is open: its buffer has one reader.
var ErrMonitored = errors.New("another `strake monitor` watches this node: end it first")

// OpenMonitor watches drops, or with all every verdict that is counted, on the node whose maps are pinned below pinDir. Close it: until
// then, and for leaseTime after a process that was killed, the programs pay for events.
func OpenMonitor(pinDir string, all bool) (*Monitor, error) {
	m := &Monitor{stop: make(chan struct{}), began: Monotonic()}
	if all {
		m.all = 1
	}
	if err := m.open(pinDir); err != nil {
		return nil, errors.Join(err, m.release())
	}
	m.done.Go(func() {
		if keepLease(m.stop, m.renew) != nil {
			m.reader.Close() // Read tells
		}
	})
	return m, nil
}

// keepLease renews a lease until stop is closed.
func keepLease(stop <-chan struct{}, renew func(time.Duration) error) error {
	tick := time.NewTicker(leaseRenew)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return nil
		case <-tick.C:
			if err := renew(leaseTime); err != nil {
				return err
			}
		}
	}
}

func (m *Monitor) open(pinDir string) error {
	var err error
	if m.lock, err = os.Open(pinDir); err != nil {
		return fmt.Errorf("bpf: monitor: %w", err)
	}
	if err := unix.Flock(int(m.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return ErrMonitored
	} else if err != nil {
		return fmt.Errorf("bpf: monitor: lock %s: %w", pinDir, err)
	}
	var events *ebpf.Map
	defer func() { events.Close() }() // of nil, too
	for name, to := range map[string]**ebpf.Map{"monitor": &m.watch, "events_lost": &m.lost, "events": &events} {
		if *to, err = ebpf.LoadPinnedMap(filepath.Join(pinDir, name), nil); err != nil {
			return fmt.Errorf("bpf: monitor: is the agent of this release running? %w", err)
		}
	}
	if m.before, err = m.losses(); err != nil {
		return err
	}
	if m.reader, err = ringbuf.NewReader(events); err != nil {
		return fmt.Errorf("bpf: monitor: %w", err)
	}
	return m.renew(leaseTime)
}

// renew sets when the lease ends; zero ends it.
func (m *Monitor) renew(lease time.Duration) error {
	w := netWatch{All: m.all}
	if lease > 0 {
		w.Until = uint64(Monotonic() + lease)
	}
	if err := m.watch.Put(uint32(0), w); err != nil {
		return fmt.Errorf("bpf: monitor: %w", err)
	}
	return nil
}

// Lost counts the events since OpenMonitor that there was no room for, because they were not read fast enough.
func (m *Monitor) Lost() (uint64, error) {
	n, err := m.losses()
	return n - m.before, err
}

func (m *Monitor) losses() (uint64, error) {
	var n uint64
	if err := m.lost.Lookup(uint32(0), &n); err != nil {
		return 0, fmt.Errorf("bpf: monitor: %w", err)
	}
	return n, nil
}

// Read waits for the next event. After Close, and when deadline has passed, it returns os.ErrClosed and os.ErrDeadlineExceeded.
func (m *Monitor) Read(deadline time.Time) (Event, error) {
	m.reader.SetDeadline(deadline)
	for {
		r, err := m.reader.Read()
		if err != nil {
			return Event{}, err
		}
		e, err := decodeEvent(r.RawSample)
		if err != nil {
			return e, err
		}
		if e.Time >= m.began { // else a former monitor left it
			return e, nil
		}
	}
}

// Close ends the events.
func (m *Monitor) Close() error {
	var err error
	m.once.Do(func() {
		close(m.stop)
		m.done.Wait()
		err = errors.Join(m.renew(0), m.release())
	})
	return err
}

func (m *Monitor) release() error {
	var errs []error
	if m.reader != nil {
		errs = append(errs, m.reader.Close())
	}
	for _, table := range []*ebpf.Map{m.watch, m.lost} {
		errs = append(errs, table.Close()) // of nil, too
	}
	if m.lock != nil {
		errs = append(errs, m.lock.Close())
	}
	return errors.Join(errs...)
}

// Monotonic is the clock of Event.Time, and of the programs (bpf_ktime_get_ns).
func Monotonic() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0 // the clock is always there
	}
	return time.Duration(ts.Nano())
}

// struct event of lib/monitor.h up to its data, and struct socket_event.
const (
	eventHead   = 40
	eventData   = 128
	socketEvent = 16 + 4 + 16
)

// decodeEvent reads what a program wrote.
func decodeEvent(b []byte) (Event, error) {
	if len(b) < eventHead+eventData {
		return Event{}, fmt.Errorf("bpf: monitor: an event of %d bytes", len(b))
	}
	word := func(at int) int { return int(binary.NativeEndian.Uint32(b[at:])) }
	e := Event{Time: time.Duration(binary.NativeEndian.Uint64(b)), Length: word(12), Ifindex: word(16), From: word(20), Policy: uint32(word(32)), Rule: uint16(word(36))}
	if reason := word(8); reason < len(reasons) {
		e.Reason = reasons[reason]
	} else {
		e.Reason = fmt.Sprintf("reason %d", reason) // of a newer release
	}
	captured, pid := word(24), word(28)
	if captured < 0 || captured > eventData {
		return e, fmt.Errorf("bpf: monitor: an event with %d bytes of a packet", captured)
	}
	data := b[eventHead : eventHead+captured]
	if pid == 0 {
		e.Packet = append([]byte{}, data...)
		return e, nil
	}
	if len(data) < socketEvent {
		return e, fmt.Errorf("bpf: monitor: an event of a socket with %d bytes", len(data))
	}
	e.Socket = &Socket{
		PID: pid, Protocol: data[18], Command: textOf(data[20:36]),
		To: netip.AddrPortFrom(netip.AddrFrom16([16]byte(data[:16])).Unmap(), binary.BigEndian.Uint16(data[16:])),
	}
	return e, nil
}
