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

// Question is what a pod asked the cluster DNS over UDP, and what the kernel did.
type Question struct {
	Time     time.Duration // monotonic clock
	Answered bool          // else it was passed on
	Took     time.Duration // of one that was answered: the time that the program needed
	Ifindex  int           // the pod's
	Client   netip.Addr
	Message  []byte // the answer, or the question if it was passed on: the header and at least the question section, if that is one question
}

// Questions receives what pods ask of names. While there is one the programs write it.
type Questions struct {
	lock   *os.File
	watch  *ebpf.Map
	before uint64 // lost to former ones
	reader *ringbuf.Reader
	began  time.Duration
	stop   chan struct{}
	once   sync.Once
	done   sync.WaitGroup
}

// Rows of the map dns_watch.
const (
	dnsWatchUntil uint32 = iota
	dnsWatchLost
)

// ErrQuestionsWatched says that another Questions of the node is open: its buffer has one reader.
var ErrQuestionsWatched = errors.New("another `strake dns top` watches this node: end it first")

// OpenQuestions watches what pods of the node ask whose maps are pinned below pinDir. Close it: until then, and for leaseTime after a
// process that was killed, the programs pay for it.
func OpenQuestions(pinDir string) (*Questions, error) {
	q := &Questions{stop: make(chan struct{}), began: Monotonic()}
	if err := q.open(pinDir); err != nil {
		return nil, errors.Join(err, q.release())
	}
	q.done.Go(func() {
		if keepLease(q.stop, q.renew) != nil {
			q.reader.Close() // Read tells
		}
	})
	return q, nil
}

func (q *Questions) open(pinDir string) error {
	// The lock of the directory itself is the monitor's.
	dir, err := filepath.Abs(filepath.Join(pinDir, ".."))
	if err == nil {
		q.lock, err = os.Open(dir)
	}
	if err != nil {
		return fmt.Errorf("bpf: questions: %w", err)
	}
	if err := unix.Flock(int(q.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return ErrQuestionsWatched
	} else if err != nil {
		return fmt.Errorf("bpf: questions: lock %s: %w", dir, err)
	}
	if q.watch, err = ebpf.LoadPinnedMap(filepath.Join(pinDir, "dns_watch"), nil); err != nil {
		return fmt.Errorf("bpf: questions: is the agent of this release running? %w", err)
	}
	if q.before, err = q.row(dnsWatchLost); err != nil {
		return err
	}
	events, err := ebpf.LoadPinnedMap(filepath.Join(pinDir, "dns_events"), nil)
	if err != nil {
		return fmt.Errorf("bpf: questions: %w", err)
	}
	defer events.Close()
	if q.reader, err = ringbuf.NewReader(events); err != nil {
		return fmt.Errorf("bpf: questions: %w", err)
	}
	return q.renew(leaseTime)
}

// renew sets when the lease ends; zero ends it.
func (q *Questions) renew(lease time.Duration) error {
	var until uint64
	if lease > 0 {
		until = uint64(Monotonic() + lease)
	}
	if err := q.watch.Put(dnsWatchUntil, until); err != nil {
		return fmt.Errorf("bpf: questions: %w", err)
	}
	return nil
}

func (q *Questions) row(row uint32) (uint64, error) {
	var v uint64
	if err := q.watch.Lookup(row, &v); err != nil {
		return 0, fmt.Errorf("bpf: questions: %w", err)
	}
	return v, nil
}

// Lost counts the questions since OpenQuestions that there was no room for, because they were not read fast enough.
func (q *Questions) Lost() (uint64, error) {
	n, err := q.row(dnsWatchLost)
	return n - q.before, err
}

// Read waits for the next question. After Close, and when deadline has passed, it returns os.ErrClosed and os.ErrDeadlineExceeded.
func (q *Questions) Read(deadline time.Time) (Question, error) {
	q.reader.SetDeadline(deadline)
	for {
		r, err := q.reader.Read()
		if err != nil {
			return Question{}, err
		}
		one, err := decodeQuestion(r.RawSample)
		if err != nil || one.Time >= q.began { // else it was left by a former one
			return one, err
		}
	}
}

// Close ends the events.
func (q *Questions) Close() error {
	var err error
	q.once.Do(func() {
		close(q.stop)
		q.done.Wait()
		err = errors.Join(q.renew(0), q.release())
	})
	return err
}

func (q *Questions) release() error {
	var err error
	if q.reader != nil {
		err = q.reader.Close()
	}
	err = errors.Join(err, q.watch.Close()) // of nil, too
	if q.lock != nil {
		err = errors.Join(err, q.lock.Close())
	}
	return err
}

// dnsEventHead is the size of struct dns_event of lib/dnswatch.h up to its data.
const dnsEventHead = 40

// decodeQuestion reads what a program wrote.
func decodeQuestion(b []byte) (Question, error) {
	if len(b) < dnsEventHead {
		return Question{}, fmt.Errorf("bpf: questions: an event of %d bytes", len(b))
	}
	word := func(at int) int { return int(binary.NativeEndian.Uint32(b[at:])) }
	took, captured := word(8), word(16)
	if captured > len(b)-dnsEventHead {
		return Question{}, fmt.Errorf("bpf: questions: an event with %d bytes of a message", captured)
	}
	return Question{
		Time: time.Duration(binary.NativeEndian.Uint64(b)), Answered: took > 0, Took: time.Duration(took), Ifindex: word(12),
		Client: netip.AddrFrom16([16]byte(b[24:40])).Unmap(), Message: append([]byte{}, b[dnsEventHead:dnsEventHead+captured]...),
	}, nil
}
