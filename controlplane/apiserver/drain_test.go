package apiserver

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
)

// fakeConn is a connection of which only the addresses count.
type fakeConn struct {
	net.Conn
	local, remote *net.TCPAddr
}

func (c fakeConn) LocalAddr() net.Addr  { return c.local }
func (c fakeConn) RemoteAddr() net.Addr { return c.remote }
func (c fakeConn) Close() error         { return nil }

type fakeListener struct {
	net.Listener
	conns chan net.Conn
}

func (l fakeListener) Accept() (net.Conn, error) { return <-l.conns, nil }

// A client may come from one port to two addresses of the server: what one of the connections does says nothing of the other.
func TestDrainTellsConnectionsApart(t *testing.T) {
	client := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 9), Port: 40000}
	l := fakeListener{conns: make(chan net.Conn, 2)}
	d := newDrain(l)
	var conns [2]net.Conn
	for i := range conns {
		l.conns <- fakeConn{local: &net.TCPAddr{IP: net.IPv4(192, 0, 2, byte(1+i)), Port: 6443}, remote: client}
		var err error
		if conns[i], err = d.Accept(); err != nil {
			t.Fatal(err)
		}
	}
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.ProtoMajor, r.RemoteAddr = 2, client.String()
	r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, conns[0].LocalAddr()))
	d.handler(http.NotFoundHandler()).ServeHTTP(httptest.NewRecorder(), r)
	want := func(first, second string) {
		t.Helper()
		for i, want := range []string{first, second} {
			got := "gone"
			if http2, ok := d.conns[endsOf(conns[i])]; http2 {
				got = "HTTP/2"
			} else if ok {
				got = "HTTP/1.1"
			}
			if got != want {
				t.Errorf("connection %d is %s, want %s", i, got, want)
			}
		}
	}
	want("HTTP/2", "HTTP/1.1")
	if err := conns[0].Close(); err != nil {
		t.Fatal(err)
	}
	want("gone", "HTTP/1.1")
}

// Once the server ends, a connection by HTTP/1.1 is closed behind its next answer; by HTTP/2 its end is told otherwise.
func TestDrainClosesBehindAnswers(t *testing.T) {
	for _, test := range []struct {
		ending bool
		proto  int
		want   string
	}{{false, 1, ""}, {true, 1, "close"}, {true, 2, ""}} {
		d := newDrain(fakeListener{})
		d.ending.Store(test.ending)
		r, answer := httptest.NewRequest(http.MethodGet, "/", nil), httptest.NewRecorder()
		r.ProtoMajor = test.proto
		d.handler(http.NotFoundHandler()).ServeHTTP(answer, r)
		if got := answer.Header().Get("Connection"); got != test.want {
			t.Errorf("ending %v, HTTP/%d: Connection %q, want %q", test.ending, test.proto, got, test.want)
		}
	}
}
