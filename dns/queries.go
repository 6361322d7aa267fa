package dns

import (
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"
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

// ServeQueries writes queries, as they are answered, as JSON to who connects to a unix socket, until ctx ends. The socket is its user's alone.
func (s *Server) ServeQueries(ctx context.Context, path string) {
	serve(ctx, path, s.writeQueries)
}

// serve hands over who connects to a unix socket, until ctx ends. Names are answered without it, too: what goes wrong with it is told in the log,
// and tried again.
func serve(ctx context.Context, path string, use func(net.Conn)) {
	var serving sync.WaitGroup
	defer serving.Wait()
	backoff := newBackoff()
	for ctx.Err() == nil {
		err := accept(ctx, path, func(conn net.Conn) {
			backoff = newBackoff()
			serving.Go(func() {
				defer conn.Close()
				defer context.AfterFunc(ctx, func() { conn.Close() })()
				use(conn)
			})
		})
		if ctx.Err() != nil {
			return
		}
		klog.ErrorS(err, "Nobody can connect to the resolver's socket, trying again", "socket", path)
		select {
		case <-ctx.Done():
		case <-time.After(backoff.Step()):
		}
	}
}

// accept hands over who connects to a unix socket, until ctx ends or something goes wrong.
func accept(ctx context.Context, path string, use func(net.Conn)) error {
	l, err := listen(ctx, path)
	if err != nil {
		return err
	}
	defer os.Remove(path)
	defer context.AfterFunc(ctx, func() { l.Close() })()
	defer l.Close()
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		use(conn)
	}
}

// listen makes a unix socket to which only its user connects, in the place of what is left of a former one. It is made in a folder that nobody else
// enters, as the mode of a new socket follows from the umask of the process.
func listen(ctx context.Context, path string) (net.Listener, error) {
	folder := path + ".new"
	if err := os.RemoveAll(folder); err != nil { // of one that was killed
		return nil, err
	}
	if err := os.Mkdir(folder, 0o700); err != nil {
		return nil, err
	}
	defer os.RemoveAll(folder)
	made := filepath.Join(folder, "s") // short: a socket's path has 107 bytes at most
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", made)
	if err != nil {
		return nil, err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // it will have another name
	if err = os.Chmod(made, 0o600); err == nil {
		err = os.Rename(made, path)
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
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
