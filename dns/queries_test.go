package dns

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// Who is connected is told of queries; while nobody is they cost nothing, and one who does not read holds up nobody.
func TestQueriesAreTold(t *testing.T) {
	s := newServer(t, newRecords(t, objects()...), resolvConf(t, "127.0.0.1:1"), at)
	run(t, s)
	socket := filepath.Join(t.TempDir(), "dns.sock")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	changed := func() time.Time {
		t.Helper()
		info, err := os.Stat(filepath.Dir(socket))
		must(t, err)
		return info.ModTime()
	}
	must(t, os.MkdirAll(filepath.Join(socket, "in the way"), 0o700))
	before := changed()
	go func() { defer close(done); s.ServeQueries(ctx, socket) }()
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
	// Without a socket all goes on; once there can be one there is.
	await(t, "a socket that can't get its name", func() bool { return changed() != before })
	must(t, os.RemoveAll(socket))
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
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", info, err)
	}
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
	<-done
	watching(0)
	left, err := filepath.Glob(socket + "*")
	if must(t, err); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
