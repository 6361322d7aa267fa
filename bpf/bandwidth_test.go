package bpf

import (
	"net/netip"
	"reflect"
	"testing"
	"time"
)

// A limit is one for all that an interface sends, in either family, goes on over a restart, and is nobody else's.
func TestEgressLimit(t *testing.T) {
	c := testConfig(t)
	d := open(t, c)
	addPods(t, d)
	limited := func(l Limit) {
		t.Helper()
		var rows []Endpoint
		for _, a := range []string{pod, pod6} {
			rows = append(rows, Endpoint{Owner: pod, Addr: netip.MustParseAddr(a), Ifindex: 1, PodMAC: podMAC, HostMAC: hostMAC, Queued: true, Egress: l})
		}
		_, err := d.Endpoints().Replace(pod, rows)
		must(t, err)
		have := dumped(t, d.Endpoints(), func(e Endpoint) string { return e.Addr.String() })
		for _, row := range rows {
			if !reflect.DeepEqual(have[row.Addr.String()], row) {
				t.Fatalf("%+v is written, %+v read", row, have[row.Addr.String()])
			}
		}
	}
	// passes counts what is let through of 20 packets of 100 bytes.
	passes := func() (n int) {
		t.Helper()
		for i := range 20 {
			f := families[i%2]
			in := frame(17, at(f.pod, 1000), at(f.far, 80), nil)
			in = frame(17, at(f.pod, 1000), at(f.far, 80), make([]byte, 100-len(in)))
			switch verdict, _, counted := fate(t, d, d.net.Programs[podProgram], in); {
			case verdict == actOK && counted == "":
				n++
			case verdict != actShot || counted != "drop_bandwidth":
				t.Fatalf("verdict %d, %s", verdict, counted)
			}
		}
		return n
	}
	want := func(when string, want int) {
		t.Helper()
		if n := passes(); n != want {
			t.Errorf("%s: %d packets pass, want %d", when, n, want)
		}
	}
	want("without a limit", 20)
	slow := Limit{Rate: 1, Ahead: 1000 * time.Second} // so slow that the test is over before a byte comes free
	limited(slow)
	want("with a limit", 11)
	limited(slow)
	want("written again", 0)
	must(t, d.Close())
	d = open(t, c)
	limited(slow)
	want("after a restart", 0)
	limited(Limit{Rate: 1, Ahead: 500 * time.Second})
	want("with another limit", 6)
	limited(Limit{Rate: 1e15, Ahead: time.Millisecond})
	want("with a limit that nothing reaches", 20)
	limited(Limit{})
	want("without one again", 20)
	rows := func(when string, want int) {
		t.Helper()
		st, err := d.Status()
		must(t, err)
		for _, m := range st.Maps {
			if m.Name == "limits" && m.Rows != want {
				t.Errorf("%s: %d limits, want %d", when, m.Rows, want)
			}
		}
	}
	rows("without one", 0)
	limited(slow)
	must(t, d.net.Maps["limits"].Put(uint32(77), netLimit{Rate: 1}))
	rows("with a stray one", 2)
	_, err := d.Endpoints().Prune(func(string) bool { return true })
	must(t, err)
	rows("pruned", 1)
	_, err = d.Endpoints().Prune(func(string) bool { return false })
	must(t, err)
	rows("without pods", 0)
}
