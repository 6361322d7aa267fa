package dnstop

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/dns"
)

// Source is where the kernel tells of questions.
type Source interface {
	Read(deadline time.Time) (bpf.Question, error)
	Lost() (uint64, error)
}

// Config of Run.
type Config struct {
	Kernel   Source
	Resolver net.Conn // the agent's socket of queries; nil: who answers what the kernel passes on is not known
	Client   func(bpf.Question) string
	Resolved func(dns.Query) string // the client's name
	Clock    func() (wall time.Time, monotonic time.Duration)
	Takes    func(Question) bool // nil: all

	Interval time.Duration // of reports
	For      time.Duration // one report of this time, and the end; 0: until ctx ends
	Rows     int
	Order    string // a key of Orders
	JSON     bool
	Log      bool // a line for each question, and no reports
	Clear    bool // the screen, before each report
}

// Run shows what is asked until ctx ends.
func Run(ctx context.Context, c Config, out io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	questions, failed := make(chan Question, 1024), make(chan error, 2)
	lost := make(chan uint64, 16)
	go func() { failed <- c.readKernel(ctx, questions) }()
	if c.Resolver != nil {
		defer context.AfterFunc(ctx, func() { c.Resolver.Close() })()
		go func() { failed <- c.readResolver(ctx, questions, lost) }()
	}
	interval := c.Interval
	if c.For > 0 {
		interval = c.For
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	begun, now := time.Now(), newCounts()
	var told, missing uint64 // lost in the kernel before this report; and in the resolver since
	encode := json.NewEncoder(out)
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			if ctx.Err() != nil {
				return nil
			}
			return err
		case n := <-lost:
			missing += n
		case q := <-questions:
			if c.Takes != nil && !c.Takes(q) {
				continue
			}
			if !c.Log {
				now.add(q)
				continue
			}
			var err error
			if c.JSON {
				err = encode.Encode(q)
			} else {
				_, err = fmt.Fprintln(out, q)
			}
			if err != nil {
				return err
			}
		case at := <-tick.C:
			all, err := c.Kernel.Lost()
			if err != nil {
				return err
			}
			r := now.report(at, time.Since(begun), all-told+missing, c.Rows, c.Order)
			told, missing, begun, now = all, 0, time.Now(), newCounts()
			switch {
			case c.Log && r.Lost == 0:
			case c.Log && !c.JSON:
				_, err = fmt.Fprintf(out, "%d questions are not shown: they came faster than they were read\n", r.Lost)
			case c.Log:
				err = encode.Encode(map[string]uint64{"lost": r.Lost})
			case c.JSON:
				err = encode.Encode(r)
			default:
				err = r.Print(out, c.Clear)
			}
			if err != nil || c.For > 0 {
				return err
			}
		}
	}
}

// readKernel ends when ctx does, or the source fails.
func (c Config) readKernel(ctx context.Context, to chan<- Question) error {
	for ctx.Err() == nil {
		k, err := c.Kernel.Read(time.Now().Add(200 * time.Millisecond))
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if err != nil {
			return err
		}
		if !k.Answered && c.Resolver != nil { // the resolver tells of it
			continue
		}
		q, ok := questionOf(k.Message)
		if !ok {
			continue
		}
		wall, mono := c.Clock()
		q.Time, q.Client, q.Layer, q.Took = wall.Add(k.Time-mono), c.Client(k), Kernel, k.Took
		if !k.Answered {
			q.Layer, q.Code = Passed, ""
		}
		select {
		case to <- q:
		case <-ctx.Done():
		}
	}
	return nil
}

func (c Config) readResolver(ctx context.Context, to chan<- Question, lost chan<- uint64) error {
	for in := json.NewDecoder(c.Resolver); ; {
		var r dns.Query
		if err := in.Decode(&r); err != nil {
			return fmt.Errorf("the agent has ended, or is not of this release: %w", err)
		}
		if r.Lost > 0 {
			select {
			case lost <- r.Lost:
			case <-ctx.Done():
			}
		}
		select {
		case to <- Question{Time: r.Time, Client: c.Resolved(r), Name: strings.ToLower(r.Name), Type: r.Type, Layer: Resolver, Code: r.Code, By: r.By, Took: r.Took}:
		case <-ctx.Done():
			return nil
		}
	}
}

// questionOf reads the header of a message and the question behind it; the rest may be cut off.
func questionOf(message []byte) (Question, bool) {
	const header = 12
	if len(message) < header {
		return Question{}, false
	}
	// The question alone, as a message.
	alone := slices.Clone(message)
	copy(alone[4:header], []byte{0, 1, 0, 0, 0, 0, 0, 0})
	var m mdns.Msg
	if err := m.Unpack(alone); len(m.Question) != 1 || err != nil {
		return Question{}, false
	}
	return Question{Name: strings.ToLower(m.Question[0].Name), Type: mdns.Type(m.Question[0].Qtype).String(), Code: mdns.RcodeToString[m.Rcode]}, true
}
