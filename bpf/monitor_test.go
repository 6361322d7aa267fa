package bpf

import (
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// next reads the next event of a reason, and skips others.
func next(t *testing.T, m *Monitor, reason string) Event {
	t.Helper()
	for {
		e, err := m.Read(time.Now().Add(20 * time.Second))
		if err != nil {
			t.Fatalf("waiting for %s: %v", reason, err)
		}
		if e.Reason == reason {
			return e
		}
	}
}

// none fails if an event comes.
func none(t *testing.T, m *Monitor) {
	t.Helper()
	if e, err := m.Read(time.Now().Add(-time.Second)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %+v, %v; want nothing", e, err)
	}
}

func openMonitor(t *testing.T, c Config, all bool) *Monitor {
	t.Helper()
	m, err := OpenMonitor(c.PinDir, all)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// watchRow is what the programs read.
func watchRow(t *testing.T, d *Datapath) netWatch {
	t.Helper()
	var w netWatch
	if err := d.net.Maps["monitor"].Lookup(uint32(0), &w); err != nil {
		t.Fatal(err)
	}
	return w
}

func TestMonitor(t *testing.T) {
	c := testConfig(t)
	d := open(t, c)
	spoofed := frame(17, netip.MustParseAddrPort("10.1.1.1:1000"), netip.MustParseAddrPort("10.1.1.2:53"), make([]byte, 300))
	small := frame(17, netip.MustParseAddrPort("10.1.1.1:1000"), netip.MustParseAddrPort("10.1.1.2:53"), nil)
	drop := func(p []byte) {
		t.Helper()
		if ret, _, err := d.net.Programs[podProgram].Test(p); err != nil || ret != actShot {
			t.Fatalf("verdict %d, %v", ret, err)
		}
	}
	drop(spoofed) // before anybody watches
	m := openMonitor(t, c, false)
	none(t, m)
	before := Monotonic()
	drop(spoofed)
	e := next(t, m, "drop_spoofed")
	if e.Length != len(spoofed) || len(e.Packet) != 128 || string(e.Packet) != string(spoofed[:128]) || e.Socket != nil || e.Time < before || e.Time > Monotonic() {
		t.Errorf("got %+v", e)
	}
	drop(small)
	if e := next(t, m, "drop_spoofed"); string(e.Packet) != string(small) || e.Length != len(small) {
		t.Errorf("a small packet: %+v", e)
	}
	if _, err := OpenMonitor(c.PinDir, false); !errors.Is(err, ErrMonitored) {
		t.Errorf("a second monitor: %v", err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if w := watchRow(t, d); w.Until != 0 {
		t.Errorf("after the end the programs go on: %+v", w)
	}
	drop(spoofed)
	m = openMonitor(t, c, false)
	none(t, m)
}

// TestMonitorOfVerdicts sees what is no drop, if asked for.
func TestMonitorOfVerdicts(t *testing.T) {
	c := testConfig(t)
	d := open(t, c)
	query := frame(17, netip.MustParseAddrPort("10.1.1.1:1000"), netip.AddrPortFrom(c.DNSAddrs[0], 53), []byte("no question"))
	if _, err := d.Endpoints().Replace("pod", []Endpoint{{Addr: netip.MustParseAddr("10.1.1.1"), Ifindex: 1, PodMAC: podMAC, HostMAC: hostMAC}}); err != nil {
		t.Fatal(err)
	}
	for _, all := range []bool{false, true} {
		m := openMonitor(t, c, all)
		if ret, _, err := d.net.Programs[podProgram].Test(query); err != nil || ret != actOK {
			t.Fatalf("verdict %d, %v", ret, err)
		}
		if all {
			next(t, m, "dns_passed")
		} else {
			none(t, m)
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestMonitorIsKilled: a lease that nobody renews is ended by the first program that meets it.
func TestMonitorIsKilled(t *testing.T) {
	c := testConfig(t)
	d := open(t, c)
	if err := d.net.Maps["monitor"].Put(uint32(0), netWatch{Until: uint64(Monotonic())}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.net.Programs[podProgram].Test(frame(17, netip.MustParseAddrPort("10.1.1.1:1"), netip.MustParseAddrPort("10.1.1.2:2"), nil)); err != nil {
		t.Fatal(err)
	}
	if w := watchRow(t, d); w.Until != 0 {
		t.Errorf("the lease goes on: %+v", w)
	}
	m := openMonitor(t, c, false)
	none(t, m)
}

// TestMonitorLosses: what does not fit is counted, and nothing else is lost.
func TestMonitorLosses(t *testing.T) {
	c := testConfig(t)
	d := open(t, c)
	m := openMonitor(t, c, false)
	const sent = 6000 // more than the buffer holds
	for range sent {
		if _, _, err := d.net.Programs[podProgram].Test(frame(17, netip.MustParseAddrPort("10.1.1.1:1"), netip.MustParseAddrPort("10.1.1.2:2"), nil)); err != nil {
			t.Fatal(err)
		}
	}
	got := 0
	for {
		_, err := m.Read(time.Now().Add(-time.Second))
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got++
	}
	lost, err := m.Lost()
	if err != nil || lost == 0 || got == 0 || uint64(got)+lost != sent {
		t.Errorf("of %d events %d came and %d were lost, %v", sent, got, lost, err)
	}
}

func TestMonitorOfSockets(t *testing.T) {
	c := tablesConfig(t)
	d := open(t, c)
	to := netip.MustParseAddrPort("10.96.7.7:80")
	if _, err := d.LoadBalancers().Replace("u", []LoadBalancer{{Name: "n/none:", Protocol: 6, Frontends: fronts(ClusterIP, to)}}); err != nil {
		t.Fatal(err)
	}
	m := openMonitor(t, c, false)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}); err == nil {
		t.Fatal("connected to nobody")
	}
	e := next(t, m, "drop_no_backend")
	if e.Socket == nil || e.Socket.To != to || e.Socket.Protocol != 6 || e.Socket.PID != os.Getpid() || e.Socket.Command == "" || e.Packet != nil {
		t.Errorf("got %+v, %+v", e, e.Socket)
	}
}

func FuzzDecodeEvent(f *testing.F) {
	f.Add(make([]byte, eventHead+eventData))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := decodeEvent(b)
		if err == nil && len(e.Packet) > eventData {
			t.Errorf("%d bytes of a packet", len(e.Packet))
		}
	})
}

// BenchmarkMonitor tells what a counted packet costs while nobody watches, and while somebody does.
func BenchmarkMonitor(b *testing.B) {
	c := testConfig(b)
	d := open(b, c)
	packet := frame(17, netip.MustParseAddrPort("10.1.1.1:1"), netip.MustParseAddrPort("10.1.1.2:2"), nil)
	for name, until := range map[string]uint64{"off": 0, "on": 1 << 62} {
		b.Run(name, func(b *testing.B) {
			if err := d.net.Maps["monitor"].Put(uint32(0), netWatch{Until: until}); err != nil {
				b.Fatal(err)
			}
			_, took, err := d.net.Programs[podProgram].Benchmark(packet, b.N, b.ResetTimer)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(took.Nanoseconds()), "ns/packet")
		})
	}
}
