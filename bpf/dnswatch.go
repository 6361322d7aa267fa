package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"time"
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
type Questions struct{ *leasedBuffer }

// ErrQuestionsWatched says that another Questions of the node is open: its buffer has one reader.
var ErrQuestionsWatched = errors.New("another `strake dns top` watches this node: end it first")

// OpenQuestions watches what pods of the node ask whose maps are pinned below pinDir. Close it: until then, and for leaseTime after a
// process that was killed, the programs pay for it.
func OpenQuestions(pinDir string) (*Questions, error) {
	folder, err := filepath.Abs(filepath.Join(pinDir, "..")) // the lock of pinDir is the monitor's
	if err != nil {
		return nil, fmt.Errorf("bpf: questions: %w", err)
	}
	b, err := openLeased(pinDir, leaseOf{
		what: "questions", folder: folder, busy: ErrQuestionsWatched, events: "dns_events", watch: "dns_watch", lost: "dns_watch", lostRow: 1,
		row: func(until uint64) any { return until },
	})
	if err != nil {
		return nil, err
	}
	return &Questions{b}, nil
}

// Read waits for the next question. After Close, and when deadline has passed, it returns os.ErrClosed and os.ErrDeadlineExceeded.
func (q *Questions) Read(deadline time.Time) (Question, error) {
	b, err := q.read(deadline)
	if err != nil {
		return Question{}, err
	}
	return decodeQuestion(b)
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
