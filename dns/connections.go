package dns

import (
	"net"
	"net/netip"
	"sync"
)

// How many TCP connections there may be. A client that has as many as it may gets no more until it ends some.
const (
	maxConnections = 4000
	maxOfClient    = 200
)

// connections is a listener that bounds them.
type connections struct {
	net.Listener

	mu  sync.Mutex
	all int
	of  map[netip.Addr]int
}

func newConnections(l net.Listener) *connections {
	return &connections{Listener: l, of: map[netip.Addr]int{}}
}

// Accept implements net.Listener. What is too many is closed at once, so that its client asks elsewhere or again.
func (c *connections) Accept() (net.Conn, error) {
	for {
		conn, err := c.Listener.Accept()
		if err != nil {
			return nil, err
		}
		client := netip.Addr{}
		if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
			client = a.AddrPort().Addr().Unmap()
		}
		if c.enter(client) {
			return &counted{Conn: conn, end: sync.OnceFunc(func() { c.leave(client) })}, nil
		}
		conn.Close()
	}
}

func (c *connections) enter(client netip.Addr) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all >= maxConnections || c.of[client] >= maxOfClient {
		return false
	}
	c.all++
	c.of[client]++
	return true
}

func (c *connections) leave(client netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all--
	if c.of[client]--; c.of[client] == 0 {
		delete(c.of, client)
	}
}

// counted is a connection that gives its place back when it is closed.
type counted struct {
	net.Conn
	end func()
}

// Close implements net.Conn.
func (c *counted) Close() error {
	c.end()
	return c.Conn.Close()
}
