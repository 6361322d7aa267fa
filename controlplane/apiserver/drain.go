package apiserver

import (
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// drainTime is how long connections that may still bring a request are waited for, since the last one of them has gone: where many end, the machine may be
// too busy to end them all in that time.
const drainTime = 2 * time.Second

// drain lets an end of the server lose no request. Go's HTTP server closes a connection without an answer if a request by HTTP/1.1 comes over it
// once it shuts down; so before it is told to, no more connections are accepted, and those that are there are led to their end.
type drain struct {
	net.Listener
	closed chan struct{} // by the server
	ending atomic.Bool

	mu    sync.Mutex
	conns map[ends]bool // it speaks HTTP/2, where the end of a connection is told before
	fewer chan struct{} // closed when one of the others is gone
}

// ends are the addresses of a connection. A client may come from one port of its own to several addresses of the server.
type ends struct{ server, client string }

func endsOf(c net.Conn) ends { return ends{c.LocalAddr().String(), c.RemoteAddr().String()} }

func newDrain(l net.Listener) *drain {
	return &drain{Listener: l, closed: make(chan struct{}), conns: map[ends]bool{}, fewer: make(chan struct{})}
}

// Accept implements net.Listener. Between the end of listening and Close it blocks.
func (d *drain) Accept() (net.Conn, error) {
	c, err := d.Listener.Accept()
	if err != nil {
		if d.ending.Load() {
			<-d.closed
		}
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.conns[endsOf(c)] = false
	return &drainedConn{Conn: c, drain: d}, nil
}

// Close implements net.Listener.
func (d *drain) Close() error {
	close(d.closed)
	if d.ending.Load() {
		return nil
	}
	return d.Listener.Close()
}

// known removes a connection from those that are waited for.
func (d *drain) known(c ends, gone bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if http2, ok := d.conns[c]; !ok || http2 && !gone {
		return
	}
	d.conns[c] = true
	if gone {
		delete(d.conns, c)
	}
	close(d.fewer)
	d.fewer = make(chan struct{})
}

// handler learns which connections speak HTTP/2, and closes others with their next answer once the server ends.
func (d *drain) handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor > 1 {
			if at, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
				d.known(ends{at.String(), r.RemoteAddr}, false)
			}
		} else if d.ending.Load() {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

// run ends listening after a delay, and returns when no connection is left over which a request could come that would be lost, or none has gone for drainTime.
func (d *drain) run(delay time.Duration) error {
	time.Sleep(delay)
	d.ending.Store(true)
	err := d.Listener.Close()
	late := time.After(drainTime)
	for {
		d.mu.Lock()
		open, fewer := 0, d.fewer
		for _, http2 := range d.conns {
			if !http2 {
				open++
			}
		}
		d.mu.Unlock()
		if open == 0 {
			return err
		}
		select {
		case <-fewer:
			late = time.After(drainTime)
		case <-late:
			return err
		}
	}
}

type drainedConn struct {
	net.Conn
	drain *drain
}

// Close implements net.Conn.
func (c *drainedConn) Close() error {
	c.drain.known(endsOf(c.Conn), true)
	return c.Conn.Close()
}
