package main

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strake-io/strake/tests/podnet"
)

// Blocking sockets, as netperf's: Go's poller would add more to a round trip than the network takes.

const (
	requestSize = 1       // bytes of a request and of its answer, as TCP_RR's
	blockSize   = 4 << 20 // bytes of a stream that are acknowledged with one byte
	patience    = 10      // seconds that an answer may take; a lost packet fails the run: it is no slow sample
)

// conn is a connected TCP socket.
type conn int

// listen starts a server in the namespace: it answers every `ask` bytes of a connection with one. It ends when stop is called.
func listen(s podnet.Space, addr netip.Addr, ask int) (at netip.AddrPort, stop func(), err error) {
	var l int
	err = s.In(func() error {
		if l, err = unix.Socket(family(addr), unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if err := errors.Join(unix.Bind(l, sockaddr(netip.AddrPortFrom(addr, 0))), unix.Listen(l, 16)); err != nil {
			return err
		}
		name, err := unix.Getsockname(l)
		at = netip.AddrPortFrom(addr, port(name))
		return err
	})
	if err != nil {
		return at, nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	go func() {
		for {
			c, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				unix.Close(l)
				return
			}
			go func() {
				defer unix.Close(c)
				unix.SetsockoptInt(c, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
				in := make([]byte, min(ask, 1<<18))
				for conn(c).read(in, ask) == nil && conn(c).write(in[:1]) == nil {
				}
			}()
		}
	}()
	return at, func() { unix.Shutdown(l, unix.SHUT_RDWR) }, nil
}

func connect(s podnet.Space, to netip.AddrPort) (c conn, err error) {
	err = s.In(func() error {
		c, err = dial(to)
		return err
	})
	return c, err
}

// dial connects from this thread's namespace.
func dial(to netip.AddrPort) (conn, error) {
	fd, err := unix.Socket(family(to.Addr()), unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: patience}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: patience}),
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
		unix.Connect(fd, sockaddr(to)),
	); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("connect to %s: %w", to, err)
	}
	return conn(fd), nil
}

// read takes n bytes, into as much as there is of b.
func (c conn) read(b []byte, n int) error {
	for n > 0 {
		got, err := unix.Read(int(c), b[:min(n, len(b))])
		switch {
		case err == unix.EINTR: // a signal of Go's scheduler
		case err != nil:
			return err
		case got == 0:
			return errors.New("the other side closed the connection")
		}
		n -= max(got, 0)
	}
	return nil
}

func (c conn) write(b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(int(c), b)
		if err != nil && err != unix.EINTR {
			return err
		}
		b = b[max(n, 0):]
	}
	return nil
}

func (c conn) close() { unix.Close(int(c)) }

// asker sends what it is told and waits for one byte.
type asker struct {
	conn
	out []byte
	in  [1]byte
}

// Ask implements turns.Session.
func (a *asker) Ask() error {
	if err := a.write(a.out); err != nil {
		return err
	}
	return a.read(a.in[:], 1)
}

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

func port(s unix.Sockaddr) uint16 {
	switch s := s.(type) {
	case *unix.SockaddrInet4:
		return uint16(s.Port)
	case *unix.SockaddrInet6:
		return uint16(s.Port)
	}
	return 0
}

// datagrams opens a UDP socket in the namespace with room for all that a run sends.
func datagrams(s podnet.Space, addr netip.Addr) (fd int, at netip.AddrPort, err error) {
	err = s.In(func() error {
		if fd, err = unix.Socket(family(addr), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if err := errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 256<<20),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: int64(100 * time.Millisecond / time.Microsecond)}),
			unix.Bind(fd, sockaddr(netip.AddrPortFrom(addr, 0)))); err != nil {
			return err
		}
		name, err := unix.Getsockname(fd)
		at = netip.AddrPortFrom(addr, port(name))
		return err
	})
	return fd, at, err
}
