package bpf

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/features"
	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func (l *lab) counter(t testing.TB, name string) uint64 {
	t.Helper()
	counters, err := l.d.Counters()
	must(t, err)
	n, ok := counters[name]
	if !ok {
		t.Fatalf("no counter %s", name)
	}
	return n
}

// service gives both pods a server and puts a frontend of both protocols before them.
func (l *lab) service(t testing.TB, frontends ...string) {
	t.Helper()
	for i, s := range l.pods {
		s.serve(t, fmt.Sprint("pod", i), 8080)
	}
	var rows []LoadBalancer
	for _, frontend := range frontends {
		backends := []netip.AddrPort{at(pod, 8080), at(other, 8080)}
		if ap(frontend).Addr().Is6() {
			backends = []netip.AddrPort{at(pod6, 8080), at(other6, 8080)}
		}
		for _, proto := range []uint8{6, 17} {
			rows = append(rows, LoadBalancer{Name: fmt.Sprint("ns/web:", frontend, proto), Protocol: proto, Frontends: fronts(ClusterIP, ap(frontend)), Backends: backs(backends...)})
		}
	}
	_, err := l.d.LoadBalancers().Replace("u", rows)
	must(t, err)
}

func TestPodToPod(t *testing.T) {
	l := newLab(t)
	l.pods[1].serve(t, "pod1", 8080)
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			before := l.counter(t, "pod_to_pod")
			for _, network := range []string{"tcp", "udp"} {
				if got, err := exchange(l.pods[0].dial(t, network, at(f.other, 8080).String()), "hello"); err != nil || got != "pod1 hello" {
					t.Errorf("%s: %q, %v", network, got, err)
				}
			}
			if out, err := l.pods[0].command(t, "", nil, "busybox", "ping", "-c", "2", "-W", "5", f.other); err != nil {
				t.Errorf("ping: %v\n%s", err, out)
			}
			if out, err := l.pods[0].command(t, "", nil, "busybox", "ping", "-c", "1", "-W", "5", "-s", "4000", f.other); err != nil {
				t.Errorf("ping in fragments: %v\n%s", err, out)
			}
			if n := l.counter(t, "pod_to_pod") - before; n < 10 {
				t.Errorf("%d packets went from pod to pod by the program", n)
			}
			// The host and its pods reach each other through the host's stack.
			if out, err := l.node.command(t, "", nil, "busybox", "ping", "-c", "1", "-W", "5", f.pod); err != nil {
				t.Errorf("ping from the host: %v\n%s", err, out)
			}
			// Another pod's address does not leave this one.
			stolen := f.of("10.244.0.99", "fd00:10:244::99")
			l.pods[0].within(t, func() error { address(t, "eth0", stolen+f.of("/32", "/128")); return nil })
			spoofed := l.counter(t, "drop_spoofed")
			if out, err := l.pods[0].command(t, "", nil, "busybox", "ping", "-c", "1", "-W", "1", "-I", stolen, f.other); err == nil {
				t.Errorf("a spoofed ping was answered: %s", out)
			}
			if l.counter(t, "drop_spoofed") == spoofed {
				t.Error("no spoofed packet was counted")
			}
		})
	}
}

// Replies come from the address that was asked, whichever way the program asks.
func TestClusterIP(t *testing.T) {
	l := newLab(t)
	frontends := map[string][]string{
		"10.96.0.5:80":       {"tcp", "udp", "udp-open", "mapped-tcp", "mapped-udp", "mapped-udp-open"},
		"[fd00:10:96::5]:80": {"tcp", "udp", "udp-open"},
	}
	l.service(t, slices.Collect(maps.Keys(frontends))...)
	for where, c := range map[string]struct {
		s    space
		ours bool
	}{"a pod": {l.pods[0], true}, "the host": {l.node, false}} {
		for frontend, networks := range frontends {
			for _, network := range networks {
				out, err := l.client(t, c.s, c.ours, network, frontend, 40)
				if err != nil {
					t.Errorf("%s to %s from %s: %v\n%s", network, frontend, where, err, out)
					continue
				}
				seen := map[string]int{}
				for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
					from, reply, _ := strings.Cut(line, " ")
					if from != frontend {
						t.Errorf("%s from %s: the reply is of %s, asked was %s", network, where, from, frontend)
					}
					seen[strings.Fields(reply)[0]]++
				}
				if seen["pod0"]+seen["pod1"] != 40 || seen["pod0"] == 0 || seen["pod1"] == 0 {
					t.Errorf("%s to %s from %s: backends %v", network, frontend, where, seen)
				}
			}
		}
	}
	// Who is not of this node is not translated.
	for frontend := range frontends {
		if out, err := l.client(t, l.out, false, "tcp", frontend, 1); err == nil {
			t.Errorf("a stranger was translated: %s", out)
		}
	}
}

// A Service without backends refuses at once, with the error that programs know. Before Linux 6.1, UDP gets another.
func TestServiceWithoutBackends(t *testing.T) {
	for _, old := range []bool{false, true} {
		t.Run(fmt.Sprint("before Linux 6.1: ", old), func(t *testing.T) {
			l := newLab(t)
			if old {
				l.config.noSetRetval = true
				open(t, l.config) // takes over the pinned links
			}
			frontends := map[string][]string{
				"10.96.0.6:80":       {"tcp", "udp", "udp-open", "mapped-tcp", "mapped-udp", "mapped-udp-open"},
				"[fd00:10:96::6]:80": {"tcp", "udp", "udp-open"},
			}
			for frontend := range frontends {
				for _, proto := range []uint8{6, 17} {
					_, err := l.d.LoadBalancers().Replace(fmt.Sprint(frontend, proto), []LoadBalancer{{Name: fmt.Sprint("ns/empty:", proto), Protocol: proto, Frontends: fronts(ClusterIP, ap(frontend))}})
					must(t, err)
				}
			}
			for where, c := range map[string]struct {
				s    space
				ours bool
			}{"a pod": {l.pods[0], true}, "the host": {l.node, false}} {
				for frontend, networks := range frontends {
					for _, network := range networks {
						want := "connection refused"
						if l.refusal(unix.ECONNREFUSED) == unix.EPERM && strings.Contains(network, "udp") {
							want = "operation not permitted"
						}
						before := l.counter(t, "drop_no_backend")
						if out, err := l.client(t, c.s, c.ours, network, frontend, 1); err == nil || !strings.Contains(out, want) {
							t.Errorf("%s to %s from %s: %v %s, want %s", network, frontend, where, err, out, want)
						}
						if l.counter(t, "drop_no_backend") == before {
							t.Errorf("%s from %s was not counted", network, where)
						}
					}
				}
			}
		})
	}
}

// Nobody listens on the DNS addresses: what is answered, the kernel answers.
func TestDNSWithNobodyListening(t *testing.T) {
	l := newLab(t)
	addrs := []netip.Addr{netip.MustParseAddr("10.96.0.5"), netip.MustParseAddr("10.96.0.6"), netip.MustParseAddr("fd00:10:96::5")}
	_, err := l.d.Names().Replace("u", []Name{{Name: "web.default.svc.cluster.local.", Addrs: addrs}, {Name: "old.default.svc.cluster.local.", Addrs: addrs[:2]}})
	must(t, err)
	for _, f := range families {
		c := l.pods[0].dial(t, "udp", at(f.dns, 53).String())
		for _, q := range []struct {
			name     string
			qtype    uint16
			rcode, n int
		}{
			{"Web.Default.svc.cluster.local.", dns.TypeA, dns.RcodeSuccess, 2},
			{"web.default.svc.cluster.local.", dns.TypeAAAA, dns.RcodeSuccess, 1},
			{"old.default.svc.cluster.local.", dns.TypeAAAA, dns.RcodeSuccess, 0},
			{"example.com.cluster.local.", dns.TypeA, dns.RcodeNameError, 0},
		} {
			for _, edns := range []bool{false, true} {
				m := new(dns.Msg).SetQuestion(q.name, q.qtype)
				if edns {
					m.SetEdns0(1232, false)
				}
				conn := &dns.Conn{Conn: c, UDPSize: 1232}
				c.SetDeadline(time.Now().Add(late))
				must(t, conn.WriteMsg(m))
				r, err := conn.ReadMsg()
				if err != nil {
					t.Fatalf("%s %s: %v", f.name, q.name, err)
				}
				if r.Id != m.Id || r.Rcode != q.rcode || len(r.Answer) != q.n || r.Question[0].Name != q.name {
					t.Errorf("%s %s:\n%s", f.name, q.name, r)
				}
			}
		}
	}
}

func TestNodePortFromOutside(t *testing.T) {
	l := newLab(t)
	l.service(t, at(nodeIP, 30080).String(), at(nodeIP6, 30080).String())
	l.node.serve(t, "node", 8081)
	l.pods[0].echoSource(t, ":8082")
	var echo []LoadBalancer
	for _, f := range families {
		echo = append(echo, LoadBalancer{Name: "ns/echo:" + f.name, Protocol: 17, Frontends: fronts(NodePort, at(f.node, 30081)), Backends: backs(at(f.pod, 8082))})
	}
	_, err := l.d.LoadBalancers().Replace("echo", echo)
	must(t, err)
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			node := at(f.node, 30080).String()
			for _, network := range []string{"tcp", "udp"} {
				seen := map[string]int{}
				for i := range 30 {
					c := l.out.dial(t, network, node)
					for round := range 3 { // one flow stays with one backend
						msg := fmt.Sprint(i, ".", round)
						got, err := exchange(c, msg)
						name, echoed, _ := strings.Cut(got, " ")
						if err != nil || echoed != msg {
							t.Fatalf("%s: %q, %v", network, got, err)
						}
						if round == 0 {
							seen[name]++
						}
					}
				}
				if seen["pod0"] == 0 || seen["pod1"] == 0 {
					t.Errorf("%s: backends %v", network, seen)
				}
			}
			// More than a packet holds, both ways.
			big := strings.Repeat("x", 50000)
			if got, err := exchange(l.out.dial(t, "tcp", node), big); err != nil || !strings.HasSuffix(got, big) {
				t.Errorf("%d bytes came back, %v", len(got), err)
			}
			// Datagrams in fragments, both ways.
			datagram := l.out.dial(t, "udp", at(f.node, 30081).String())
			for range 3 {
				source(t, datagram, strings.Repeat("x", 7000))
			}
			// The node's own ports are not ours.
			if got, err := exchange(l.out.dial(t, "tcp", at(f.node, 8081).String()), "x"); err != nil || got != "node x" {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

// Every datagram is answered while the agent ends and starts again and again: UDP has nobody who would send one twice.
func TestRestartLosesNothing(t *testing.T) {
	l := newLab(t)
	node := l.nodeIP + ":30080"
	l.service(t, node)
	_, err := l.d.Names().Replace("u", []Name{{Name: "web.default.svc.cluster.local.", Addrs: []netip.Addr{netip.MustParseAddr("10.96.0.5")}}})
	must(t, err)
	l.out.serve(t, "out", 8080)
	stop, result := make(chan struct{}), make(chan error, 6)
	watch := func(what string, once func(i int) error) {
		go func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					if i >= 50 {
						result <- nil
						return
					}
				default:
				}
				if err := once(i); err != nil {
					result <- fmt.Errorf("%s: round %d: %w", what, i, err)
					return
				}
				time.Sleep(200 * time.Microsecond) // leaves the processors to what restarts
			}
		}()
	}
	echo := func(c net.Conn) func(int) error {
		return func(i int) error {
			got, err := exchange(c, fmt.Sprint(i))
			if err == nil && !strings.HasSuffix(got, fmt.Sprint(" ", i)) {
				err = fmt.Errorf("got %q", got)
			}
			return err
		}
	}
	resolver := l.pods[0].dial(t, "udp", "10.96.0.10:53")
	watch("NodePort UDP", echo(l.out.dial(t, "udp", node)))
	watch("NodePort TCP", echo(l.out.dial(t, "tcp", node)))
	watch("pod to pod UDP", echo(l.pods[0].dial(t, "udp", other+":8080")))
	watch("pod to outside UDP", echo(l.pods[0].dial(t, "udp", outsideIP+":8080")))
	watch("pod to outside TCP", echo(l.pods[0].dial(t, "tcp", outsideIP+":8080")))
	watch("DNS", func(int) error {
		conn := &dns.Conn{Conn: resolver}
		resolver.SetDeadline(time.Now().Add(late))
		if err := conn.WriteMsg(new(dns.Msg).SetQuestion("web.default.svc.cluster.local.", dns.TypeA)); err != nil {
			return err
		}
		r, err := conn.ReadMsg()
		if err == nil && len(r.Answer) != 1 {
			err = fmt.Errorf("answer %s", r)
		}
		return err
	})
	for range 10 {
		must(t, l.d.Close())
		l.d = open(t, l.config)
		for _, i := range l.veths {
			must(t, l.d.AttachPod(i))
		}
		must(t, l.d.AttachUplink(l.uplink))
	}
	close(stop)
	for range cap(result) {
		if err := <-result; err != nil {
			t.Error(err)
		}
	}
}

// What is attached shows in the status without an agent; a veth that is gone takes its pin along at the next Open.
func TestAttachments(t *testing.T) {
	l := newLab(t)
	for range 2 {
		must(t, l.d.AttachPod(l.veths[0])) // again is an update
	}
	names := func() (out []string) {
		s, err := ReadStatus(l.config.PinDir)
		must(t, err)
		for _, k := range s.Links {
			out = append(out, k.Name)
			if k.Program == 0 {
				t.Errorf("%s has no program", k.Name)
			}
		}
		return out
	}
	must(t, l.d.Close())
	if got := names(); len(got) != len(cgroupHooks)+6 {
		t.Errorf("links %v, want all of sockets, 4 of pods, 2 of the uplink", got)
	}
	must(t, netlink.LinkDel(device(t, "pod0")))
	l.d = open(t, l.config)
	if _, err := os.Stat(linkPin(l.config.PinDir, podProgram, l.veths[0])); !os.IsNotExist(err) {
		t.Errorf("the pin of a veth that is gone: %v", err)
	}
	for range 2 {
		must(t, l.d.DetachPod(l.veths[1]))
	}
	must(t, l.d.DetachPod(99999))
	if got := names(); len(got) != len(cgroupHooks)+2 {
		t.Errorf("links %v, want all of sockets, 2 of the uplink", got)
	}
	must(t, l.d.Close())
	must(t, Remove(l.config.PinDir))
	left, err := filepath.Glob(filepath.Join(l.config.PinDir, "*"))
	must(t, err)
	for _, p := range left {
		if !strings.HasSuffix(p, ".debug") {
			t.Errorf("%s is left", p)
		}
	}
	if s, err := ReadStatus(l.config.PinDir); err != nil || len(s.Links)+len(s.Maps) != 0 {
		t.Errorf("status after Remove: %+v, %v", s, err)
	}
}

// Kernels without tcx take clsact filters: the same packets go the same ways, and Remove leaves none.
func TestWithoutTCX(t *testing.T) {
	l := newLab(t)
	node := l.nodeIP + ":30080"
	l.service(t, node)
	for _, pin := range []string{linkPin(l.config.PinDir, podProgram, l.veths[0]), linkPin(l.config.PinDir, podProgram, l.veths[1]), linkPin(l.config.PinDir, toPodProgram, l.veths[0]), linkPin(l.config.PinDir, toPodProgram, l.veths[1]), linkPin(l.config.PinDir, uplinkProgram, l.uplink), linkPin(l.config.PinDir, egressProgram, l.uplink)} {
		if _, err := os.Stat(pin); os.IsNotExist(err) {
			if version, err := features.LinuxVersionCode(); err != nil || version >= 6<<16|6<<8 {
				t.Fatalf("%s is missing on a kernel that has tcx (%#x, %v)", pin, version, err)
			}
			t.Skip("NOT TESTED: this kernel has no tcx (Linux 6.6): all tests take clsact filters")
		}
		must(t, detachPinned(pin))
	}
	if got, err := exchange(l.out.dial(t, "udp", node), "x"); err == nil { // refused: nobody listens on the node
		t.Fatalf("the NodePort answers without programs: %s", got)
	}
	l.out.serve(t, "out", 8080)
	for range 2 {
		must(t, l.d.Close())
		l.d = open(t, l.config)
		l.d.noTCX = true
		for _, i := range l.veths {
			must(t, l.d.AttachPod(i))
		}
		must(t, l.d.AttachUplink(l.uplink))
		for _, network := range []string{"tcp", "udp"} {
			if got, err := exchange(l.out.dial(t, network, node), "x"); err != nil || !strings.HasSuffix(got, " x") {
				t.Errorf("%s: %q, %v", network, got, err)
			}
			if got, err := exchange(l.pods[0].dial(t, network, outsideIP+":8080"), "x"); err != nil || got != "out x" {
				t.Errorf("pod to outside %s: %q, %v", network, got, err)
			}
		}
	}
	s, err := ReadStatus(l.config.PinDir)
	must(t, err)
	if len(s.Links) != len(cgroupHooks)+6 {
		t.Errorf("links %+v", s.Links)
	}
	must(t, l.d.DetachPod(l.veths[0]))
	must(t, netlink.LinkDel(device(t, "pod1")))
	must(t, l.d.Close())
	l.d = open(t, l.config)
	must(t, l.d.Close())
	if pins, err := filepath.Glob(filepath.Join(l.config.PinDir, filterPrefix+"*")); err != nil || len(pins) != 2 {
		t.Errorf("pins %v, %v; want the uplink's", pins, err)
	}
	must(t, Remove(l.config.PinDir))
	for _, side := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		filters, err := netlink.FilterList(device(t, "uplink"), side)
		if err != nil || len(filters) != 0 {
			t.Errorf("filters %v, %v", filters, err)
		}
	}
}

// All datagrams of a socket to a Service go to one backend, while it is one; sockets spread.
func TestDatagramsOfASocketGoOneWay(t *testing.T) {
	l := newLab(t)
	const frontend = "10.96.0.5:80"
	l.service(t, frontend)
	backends := map[string]netip.AddrPort{"pod0": ap(pod + ":8080"), "pod1": ap(other + ":8080")}
	set := func(list ...netip.AddrPort) {
		t.Helper()
		_, err := l.d.LoadBalancers().Replace("u", []LoadBalancer{{Name: "ns/web:17", Protocol: 17, Frontends: fronts(ClusterIP, ap(frontend)), Backends: backs(list...)}})
		must(t, err)
	}
	type socket struct {
		*net.UDPConn
		backend string
	}
	ask := func(s *socket) {
		t.Helper()
		s.SetDeadline(time.Now().Add(late))
		_, err := s.WriteToUDPAddrPort([]byte("x"), ap(frontend))
		must(t, err)
		b := make([]byte, 100)
		n, from, err := s.ReadFromUDPAddrPort(b)
		must(t, err)
		if from != ap(frontend) {
			t.Errorf("the reply is of %s", from)
		}
		s.backend = strings.Fields(string(b[:n]))[0]
	}
	var sockets []*socket
	seen := map[string]int{}
	for range 40 {
		var s socket
		l.node.within(t, func() (err error) { s.UDPConn, err = net.ListenUDP("udp4", nil); return err })
		defer s.Close()
		ask(&s)
		seen[s.backend]++
		for range 10 {
			was := s.backend
			if ask(&s); s.backend != was {
				t.Fatalf("from %s to %s", was, s.backend)
			}
		}
		sockets = append(sockets, &s)
	}
	if seen["pod0"] == 0 || seen["pod1"] == 0 {
		t.Errorf("backends %v", seen)
	}
	for _, left := range []string{"pod1", "pod0"} { // each of them once goes, whatever its slot
		set(backends[left])
		for _, s := range sockets {
			if ask(s); s.backend != left {
				t.Errorf("%s is no backend any more", s.backend)
			}
		}
	}
	// Another backend comes: nobody moves.
	set(backends["pod0"], backends["pod1"])
	for _, s := range sockets {
		if ask(s); s.backend != "pod0" {
			t.Errorf("moved to %s", s.backend)
		}
	}
}
