package main

import (
	"net"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/strake-io/strake/tests/bench/turns"
)

// listen finds a free address and serves on it for as long as the test binary runs.
func listen(t *testing.T) string {
	t.Helper()
	probe, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := probe.Addr().String()
	probe.Close()
	go serve(addr)
	for {
		c, err := net.DialTimeout("tcp4", addr, timeout)
		if err == nil {
			c.Close()
			return addr
		}
	}
}

func TestModes(t *testing.T) {
	addr := listen(t)
	for _, mode := range []string{"connect", "keepalive", "stream", "udp", "udp-connected"} {
		open, err := opener(mode, "")
		if err != nil {
			t.Fatal(err)
		}
		r, err := turns.Compare([2]string{addr, addr}, open, 2, 5*time.Millisecond, 3)
		if err != nil {
			t.Errorf("%s: %v", mode, err)
			continue
		}
		if r.A.Asked == 0 || r.B.Asked == 0 || r.A.Rate <= 0 || r.Ratio <= 0 || r.Low > r.Ratio || r.High < r.Ratio || r.A.Median <= 0 || r.A.P95 < r.A.Median {
			t.Errorf("%s: %+v", mode, r)
		}
	}
}

// TestQuery asks a server of another's making: what it reads is what was meant.
func TestQuery(t *testing.T) {
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan *dns.Msg, 8)
	srv := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		asked <- q
		m := new(dns.Msg).SetReply(q)
		if q.Question[0].Name == "web.default.svc.cluster.local." {
			rr, _ := dns.NewRR(q.Question[0].Name + " 30 IN A 10.96.0.7")
			m.Answer = []dns.RR{rr}
		}
		w.WriteMsg(m)
	})}
	go srv.ActivateAndServe()
	t.Cleanup(func() { srv.Shutdown() })
	for _, aa := range []bool{false, true} {
		q, err := newQuery(conn.LocalAddr().String(), "web.default.svc.cluster.local", aa)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := q.Ask(); err != nil {
				t.Fatal(err)
			}
		}
	}
	empty, err := newQuery(conn.LocalAddr().String(), "nobody.default.svc.cluster.local", false)
	if err != nil {
		t.Fatal(err)
	}
	if err := empty.Ask(); err == nil {
		t.Error("a reply without an answer passed for one")
	}
	for i := range 4 {
		if m := <-asked; !m.RecursionDesired || m.Authoritative != (i >= 2) || m.Question[0].Qtype != dns.TypeA || m.Id != uint16(i%2+1) {
			t.Errorf("query %d was read as %v", i, m)
		}
	}
}
