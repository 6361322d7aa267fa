package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

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
type Monitor struct{ *leasedBuffer }

// ErrMonitored says that another Monitor of the node is open: its buffer has one reader.
var ErrMonitored = errors.New("another `strake monitor` watches this node: end it first")

// OpenMonitor watches drops, or with all every verdict that is counted, on the node whose maps are pinned below pinDir. Close it: until
// then, and for leaseTime after a process that was killed, the programs pay for events.
func OpenMonitor(pinDir string, all bool) (*Monitor, error) {
	w := netWatch{All: uint32(flag(all))}
	b, err := openLeased(pinDir, leaseOf{
		what: "monitor", folder: pinDir, busy: ErrMonitored, events: "events", watch: "monitor", lost: "events_lost",
		row: func(until uint64) any { w.Until = until; return w },
	})
	if err != nil {
		return nil, err
	}
	return &Monitor{b}, nil
}

// Read waits for the next event. After Close, and when deadline has passed, it returns os.ErrClosed and os.ErrDeadlineExceeded.
func (m *Monitor) Read(deadline time.Time) (Event, error) {
	b, err := m.read(deadline)
	if err != nil {
		return Event{}, err
	}
	return decodeEvent(b)
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
