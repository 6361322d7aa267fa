package dns

import (
	"context"
	"encoding/json"
	"net"
	"path/filepath"
	"testing"

	"github.com/miekg/dns"
)

// Who is connected is told of queries; while nobody is they cost nothing, and one who does not read holds up nobody.
func TestQueriesAreTold(t *testing.T) {
	s := newServer(t, newRecords(t, objects()...), resolvConf(t, "127.0.0.1:1"), at)
	run(t, s)
	socket := filepath.Join(t.TempDir(), "dns.sock")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.ServeQueries(ctx, socket) }()
	connect := func() net.Conn {
		t.Helper()
		var c net.Conn
		await(t, "the socket", func() (ok bool) {
			var err error
			c, err = net.Dial("unix", socket)
			return err == nil
		})
		return c
	}
	watching := func(n int32) { t.Helper(); await(t, "watchers", func() bool { return s.watchers.n.Load() == n }) }
	ask := func() {
		t.Helper()
		if _, err := dns.Exchange(new(dns.Msg).SetQuestion("Gone.default.svc.cluster.local.", dns.TypeAAAA), at.String()); err != nil {
			t.Fatal(err)
		}
	}
	ask() // nobody is told
	reader, idle := connect(), connect()
	defer idle.Close()
	watching(2)
	ask()
	var q Query
	must(t, json.NewDecoder(reader).Decode(&q))
	if q.Name != "Gone.default.svc.cluster.local." || q.Type != "AAAA" || q.Code != "NXDOMAIN" || q.By != ByCluster || q.Proto != "udp" || q.Took <= 0 || q.Client != self || q.Lost != 0 {
		t.Errorf("told %+v", q)
	}
	reader.Close()
	watching(1)
	w := s.watchers.add()
	for range waitingQueries + 3 {
		s.watchers.tell(q)
	}
	if w.lost.Load() != 3 {
		t.Errorf("lost %d", w.lost.Load())
	}
	s.watchers.remove(w)
	cancel()
	must(t, <-done)
	watching(0)
}
