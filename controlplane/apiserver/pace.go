package apiserver

import (
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/httpstream/wsstream"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/endpoints/responsewriter"
)

const (
	// flushesPerCPU is how many times a second events are sent to watchers, all together, for each CPU. A time costs some 10 µs here, in TLS and in
	// the kernel, and the watcher as much.
	flushesPerCPU = 25_000
	// flushRoom is how much of a second's times may be used at once, so that what was gathered reaches a thousand watchers without a wait.
	flushRoom = 50 * time.Millisecond
)

// pace keeps many watchers of what changes often from taking all CPUs with a system call for each event and watcher. Up to the rate it sends at once.
// Beyond, a watcher waits for its turn, first come, first served, and has all events then that have come meanwhile. So the lag grows evenly with the
// number of busy watchers, by 20 ms for each thousand of them on two CPUs.
type pace struct {
	cost, room time.Duration
	since      time.Time
	next       atomic.Int64 // when the next turn is, since then
	crowds     crowds
}

func newPace() *pace {
	cpus := min(runtime.NumCPU(), runtime.GOMAXPROCS(0)) // there may be more threads than CPUs
	return &pace{cost: time.Second / time.Duration(flushesPerCPU*cpus), room: flushRoom, since: time.Now(), crowds: crowds{cpus: cpus}}
}

// turn books the next turn, and returns how long it is until then.
func (p *pace) turn() time.Duration {
	now := time.Since(p.since)
	for {
		next := p.next.Load()
		at := max(time.Duration(next), now-p.room)
		if p.next.CompareAndSwap(next, int64(at+p.cost)) {
			return max(0, at-now)
		}
	}
}

// handler paces watches.
func (p *pace) handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		info, ok := request.RequestInfoFrom(r.Context())
		flusher, flushes := w.(http.Flusher)
		if !ok || !flushes || info.Verb != "watch" || wsstream.IsWebSocketRequest(r) {
			next.ServeHTTP(w, r)
			return
		}
		if info.FieldSelector == "" && info.Name == "" { // others get few events
			if crowd := p.crowds.crowd(schema.GroupResource{Group: info.APIGroup, Resource: info.Resource}); crowd != nil {
				defer crowd.joins(info.Namespace)()
			}
		}
		paced := &pacedWriter{ResponseWriter: w, flusher: flusher, pace: p}
		defer paced.end()
		next.ServeHTTP(responsewriter.WrapForHTTP1Or2(paced), r)
	})
}

// pacedWriter sends what is written when it is the writer's turn.
type pacedWriter struct {
	http.ResponseWriter
	flusher http.Flusher
	pace    *pace

	mu     sync.Mutex // a ResponseWriter may be used by one at a time: the handler, or the timer
	timer  *time.Timer
	begun  bool // the header is sent
	booked bool // the timer runs
}

// Unwrap implements responsewriter.UserProvidedDecorator.
func (w *pacedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (w *pacedWriter) WriteHeader(code int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ResponseWriter.WriteHeader(code)
}

// Write implements http.ResponseWriter.
func (w *pacedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ResponseWriter.Write(p)
}

// Flush implements http.Flusher. The header goes at once.
func (w *pacedWriter) Flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.booked {
		return
	}
	wait := w.pace.turn()
	switch {
	case wait == 0, !w.begun:
		w.begun = true
		w.flusher.Flush()
		return
	case w.timer == nil:
		w.timer = time.AfterFunc(wait, w.due)
	default:
		w.timer.Reset(wait)
	}
	w.booked = true
}

func (w *pacedWriter) due() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.booked { // else the handler has ended, and the server sends what is left
		w.booked = false
		w.flusher.Flush()
	}
}

func (w *pacedWriter) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.booked = false
	if w.timer != nil {
		w.timer.Stop()
	}
}
