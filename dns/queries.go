package dns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Query is a question that the resolver has answered.
type Query struct {
	Time   time.Time     `json:"time"` // when it came
	Client netip.Addr    `json:"client"`
	Name   string        `json:"name"` // as it was asked
	Type   string        `json:"type"`
	Proto  string        `json:"proto"` // udp or tcp
	Code   string        `json:"code"`  // such as NOERROR
	By     string        `json:"by"`    // such as ByCluster
	Took   time.Duration `json:"nanoseconds"`
	Lost   uint64        `json:"lost,omitempty"` // queries that were not told of before this one: they came faster than they were read
}

// watchers are told of queries. While there are none a query costs one look.
type watchers struct {
	n   atomic.Int32
	mu  sync.Mutex
	all map[*watcher]bool
}

type watcher struct {
	queries chan Query
	lost    atomic.Uint64
}

const waitingQueries = 8192 // of one watcher

func (w *watchers) add() *watcher {
	one := &watcher{queries: make(chan Query, waitingQueries)}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.all == nil {
		w.all = map[*watcher]bool{}
	}
	w.all[one] = true
	w.n.Add(1)
	return one
}

func (w *watchers) remove(one *watcher) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.all, one)
	w.n.Add(-1)
}

// tell never waits.
func (w *watchers) tell(q Query) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for one := range w.all {
		select {
		case one.queries <- q:
		default:
			one.lost.Add(1)
		}
	}
}

// ServeQueries writes queries, as they are answered, as JSON to who connects to a unix socket, until ctx ends. The socket is root's.
func (s *Server) ServeQueries(ctx context.Context, path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("dns: %w", err)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err == nil {
		err = os.Chmod(path, 0o600)
	}
	if err != nil {
		return fmt.Errorf("dns: socket of queries: %w", err)
	}
	var serving sync.WaitGroup
	defer serving.Wait()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	defer l.Close()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("dns: socket of queries: %w", err)
		}
		serving.Go(func() {
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			s.writeQueries(conn)
		})
	}
}

// writeQueries ends when the other side does.
func (s *Server) writeQueries(conn net.Conn) {
	w := s.watchers.add()
	defer s.watchers.remove(w)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		conn.Read(make([]byte, 1)) // nobody writes: this is its end
	}()
	for out := json.NewEncoder(conn); ; {
		select {
		case <-gone:
			return
		case q := <-w.queries:
			if q.Lost = w.lost.Swap(0); out.Encode(q) != nil {
				return
			}
		}
	}
}
