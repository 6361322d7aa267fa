package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"
)

// The lease: how long the programs write events after the last sign of life, and how often there is one.
const (
	leaseTime  = 3 * time.Second
	leaseRenew = time.Second
)

// leaseOf names a ring buffer that programs fill while somebody has a lease of it.
type leaseOf struct {
	what                string // it is, in errors
	folder              string // who has its lock is the one reader
	busy                error  // if another one has
	events, watch, lost string // pins: the buffer, whose events begin with their time; the table of the lease, row 0; that of what found no room
	lostRow             uint32
	row                 func(until uint64) any // of the lease; 0 ends it
}

// leasedBuffer is a ring buffer that programs fill while this process lives.
type leasedBuffer struct {
	of          leaseOf
	lock        *os.File
	watch, lost *ebpf.Map
	before      uint64 // lost to former readers
	reader      *ringbuf.Reader
	began       time.Duration
	stop        chan struct{}
	once        sync.Once
	done        sync.WaitGroup
}

// openLeased takes the lease of a buffer pinned below pinDir; Close it.
func openLeased(pinDir string, of leaseOf) (*leasedBuffer, error) {
	b := &leasedBuffer{of: of, stop: make(chan struct{}), began: Monotonic()}
	if err := b.open(pinDir); err != nil {
		return nil, errors.Join(err, b.release())
	}
	b.done.Go(func() {
		if b.keep() != nil {
			b.reader.Close() // read tells
		}
	})
	return b, nil
}

func (b *leasedBuffer) open(pinDir string) error {
	var err error
	if b.lock, err = os.Open(b.of.folder); err != nil {
		return fmt.Errorf("bpf: %s: %w", b.of.what, err)
	}
	if err := unix.Flock(int(b.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return b.of.busy
	} else if err != nil {
		return fmt.Errorf("bpf: %s: lock %s: %w", b.of.what, b.of.folder, err)
	}
	var events *ebpf.Map
	defer func() { events.Close() }() // of nil, too
	for _, m := range []struct {
		name string
		to   **ebpf.Map
	}{{b.of.watch, &b.watch}, {b.of.lost, &b.lost}, {b.of.events, &events}} {
		if *m.to, err = ebpf.LoadPinnedMap(filepath.Join(pinDir, m.name), nil); err != nil {
			return fmt.Errorf("bpf: %s: is the agent of this release running? %w", b.of.what, err)
		}
	}
	if b.before, err = b.losses(); err != nil {
		return err
	}
	if b.reader, err = ringbuf.NewReader(events); err != nil {
		return fmt.Errorf("bpf: %s: %w", b.of.what, err)
	}
	return b.renew(leaseTime)
}

// keep renews the lease until Close.
func (b *leasedBuffer) keep() error {
	tick := time.NewTicker(leaseRenew)
	defer tick.Stop()
	for {
		select {
		case <-b.stop:
			return nil
		case <-tick.C:
			if err := b.renew(leaseTime); err != nil {
				return err
			}
		}
	}
}

// renew sets when the lease ends; zero ends it.
func (b *leasedBuffer) renew(lease time.Duration) error {
	var until uint64
	if lease > 0 {
		until = uint64(Monotonic() + lease)
	}
	if err := b.watch.Put(uint32(0), b.of.row(until)); err != nil {
		return fmt.Errorf("bpf: %s: %w", b.of.what, err)
	}
	return nil
}

// Lost counts the events since this one was opened that there was no room for, because they were not read fast enough.
func (b *leasedBuffer) Lost() (uint64, error) {
	n, err := b.losses()
	return n - b.before, err
}

func (b *leasedBuffer) losses() (uint64, error) {
	var n uint64
	if err := b.lost.Lookup(b.of.lostRow, &n); err != nil {
		return 0, fmt.Errorf("bpf: %s: %w", b.of.what, err)
	}
	return n, nil
}

// read waits for the next event. After Close, and when deadline has passed, it returns os.ErrClosed and os.ErrDeadlineExceeded.
func (b *leasedBuffer) read(deadline time.Time) ([]byte, error) {
	b.reader.SetDeadline(deadline)
	for {
		r, err := b.reader.Read()
		if err != nil {
			return nil, err
		}
		if len(r.RawSample) < 8 || time.Duration(binary.NativeEndian.Uint64(r.RawSample)) >= b.began { // else a former reader left it
			return r.RawSample, nil
		}
	}
}

// Close ends the events.
func (b *leasedBuffer) Close() error {
	var err error
	b.once.Do(func() {
		close(b.stop)
		b.done.Wait()
		err = errors.Join(b.renew(0), b.release())
	})
	return err
}

func (b *leasedBuffer) release() error {
	var errs []error
	if b.reader != nil {
		errs = append(errs, b.reader.Close())
	}
	errs = append(errs, b.watch.Close(), b.lost.Close()) // of nil, too
	if b.lock != nil {
		errs = append(errs, b.lock.Close())
	}
	return errors.Join(errs...)
}
