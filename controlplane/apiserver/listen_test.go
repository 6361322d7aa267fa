package apiserver

import (
	"errors"
	"io"
	"net"
	"strconv"
	"testing"
)

// Who asks one of the addresses is heard, nobody else; also by an address that is nobody's yet the port is taken.
func TestListen(t *testing.T) {
	a, b := net.IPv4(127, 0, 0, 1), net.IPv4(127, 0, 0, 2)
	first, err := net.Listen("tcp", "127.0.0.3:0") // a port that is free
	if err != nil {
		t.Fatal(err)
	}
	port := first.Addr().(*net.TCPAddr).Port
	defer first.Close()
	l, err := listen([]net.IP{a, b, net.IPv4(192, 0, 2, 99), net.ParseIP("2001:db8::99")}, port)
	if err != nil {
		t.Fatal(err)
	}
	if l.Addr().String() != net.JoinHostPort(a.String(), strconv.Itoa(port)) {
		t.Errorf("its address is %s", l.Addr())
	}
	for _, to := range []net.IP{a, b} {
		c, err := net.DialTCP("tcp", nil, &net.TCPAddr{IP: to, Port: port})
		if err != nil {
			t.Fatal(err)
		}
		got, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if !got.LocalAddr().(*net.TCPAddr).IP.Equal(to) {
			t.Errorf("asked at %s, and heard at %s", to, got.LocalAddr())
		}
		c.Close()
		got.Close()
	}
	if c, err := net.DialTCP("tcp", nil, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 4), Port: port}); err == nil {
		c.Close()
		t.Error("it listens on an address that was not named")
	}
	if l, err := listen([]net.IP{net.IPv4(127, 0, 0, 5), b}, port); err == nil {
		l.Close()
		t.Error("two listen on one port")
	} else if c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.5", strconv.Itoa(port))); err == nil {
		c.Close()
		t.Error("half of a listener that failed is left")
	}
	waits := make(chan error)
	go func() {
		_, err := l.Accept()
		waits <- err
	}()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := <-waits; !errors.Is(err, net.ErrClosed) {
		t.Errorf("who waits for a connection when it closes gets %v", err)
	}
	if err := l.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed twice: %v", err)
	}
	if c, err := net.DialTCP("tcp", nil, &net.TCPAddr{IP: a, Port: port}); err == nil {
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
			t.Error("it is closed, and hears")
		}
		c.Close()
	}
}
