package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// listener is a listener on a port of several addresses. Its own address is that of the first.
type listener struct {
	sockets  []net.Listener
	accepted chan accepted
	once     sync.Once
	closed   chan struct{}
}

type accepted struct {
	conn net.Conn
	err  error
}

// listen listens on a port of these addresses and of no others, also of those that the machine does not have yet: the bridge of nodes beside this one may
// come later, and addresses come back.
func listen(addrs []net.IP, port int) (net.Listener, error) {
	l := &listener{accepted: make(chan accepted), closed: make(chan struct{})}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var set error
		// Of sockets of IPv6, too.
		err := c.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1) })
		return errors.Join(err, set)
	}}
	for _, a := range addrs {
		to := net.JoinHostPort(a.String(), strconv.Itoa(port))
		s, err := config.Listen(context.Background(), "tcp", to)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("listen on %s: %w", to, err), l.Close())
		}
		l.sockets = append(l.sockets, s)
	}
	for _, s := range l.sockets {
		go l.accept(s)
	}
	return l, nil
}

func (l *listener) accept(s net.Listener) {
	for {
		conn, err := s.Accept()
		select {
		case l.accepted <- accepted{conn, err}:
		case <-l.closed:
			if conn != nil {
				conn.Close()
			}
			return
		}
	}
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case a := <-l.accepted:
		return a.conn, a.err
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr { return l.sockets[0].Addr() }

// Close implements net.Listener.
func (l *listener) Close() error {
	err := net.ErrClosed
	l.once.Do(func() {
		close(l.closed)
		err = nil
		for _, s := range l.sockets {
			err = errors.Join(err, s.Close())
		}
	})
	return err
}
