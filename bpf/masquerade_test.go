package bpf

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	outsideIP  = "192.0.2.1"
	outsideIP6 = "2001:db8::1"
)

// echoSource answers each line, or datagram, with the address that it came from and its length.
func (s space) echoSource(t testing.TB, at string) {
	t.Helper()
	s.within(t, func() error {
		l, err := net.Listen("tcp", at)
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					for in := bufio.NewReader(c); ; {
						line, err := in.ReadString('\n')
						if err != nil {
							return
						}
						fmt.Fprintln(c, c.RemoteAddr(), len(line)-1)
					}
				}()
			}
		}()
		local, err := net.ResolveUDPAddr("udp", at)
		if err != nil {
			return err
		}
		u, err := net.ListenUDP("udp", local)
		if err != nil {
			return err
		}
		t.Cleanup(func() { u.Close() })
		raw, err := u.SyscallConn()
		if err != nil {
			return err
		}
		cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20) }) // on one processor all clients may ask first
		if err = errors.Join(err, cerr); err != nil {
			return err
		}
		go func() {
			b := make([]byte, 65536)
			for {
				n, from, err := u.ReadFromUDPAddrPort(b)
				if err != nil {
					return
				}
				// As long as what came, so that answers come in fragments where questions do.
				u.WriteToUDPAddrPort(fmt.Appendf(nil, "%s %d %s\n", netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), n-1, strings.Repeat("y", max(0, n-60))), from)
			}
		}()
		return nil
	})
}

// dialFrom connects from a port of the client's choice.
func (s space) dialFrom(t testing.TB, network string, port int, addr string) net.Conn {
	t.Helper()
	return s.dialBound(t, network, "", port, addr)
}

// dialAs connects from one of a machine's addresses.
func (s space) dialAs(t testing.TB, network, from, addr string) net.Conn {
	t.Helper()
	return s.dialBound(t, network, from, 0, addr)
}

func (s space) dialBound(t testing.TB, network, from string, port int, addr string) net.Conn {
	t.Helper()
	var c net.Conn
	s.within(t, func() (err error) {
		d := net.Dialer{Timeout: late}
		if network == "tcp" {
			d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from), Port: port}
		} else {
			d.LocalAddr = &net.UDPAddr{IP: net.ParseIP(from), Port: port}
		}
		c, err = d.Dial(network, addr)
		return err
	})
	t.Cleanup(func() { c.Close() })
	return c
}

// source asks who the other end takes us for.
func source(t testing.TB, c net.Conn, msg string) netip.AddrPort {
	t.Helper()
	c.SetDeadline(time.Now().Add(late))
	_, err := c.Write([]byte(msg + "\n"))
	must(t, err)
	got, err := bufio.NewReaderSize(c, 65536).ReadString('\n') // a datagram is read whole or cut
	f := strings.Fields(got)
	if err != nil || len(f) < 2 || f[1] != fmt.Sprint(len(msg)) {
		t.Fatalf("%.60q, %v", got, err)
	}
	return ap(f[0])
}

// route leads from a namespace to a range.
func (s space) route(t testing.TB, to, via string) {
	t.Helper()
	s.within(t, func() error {
		_, dst, err := net.ParseCIDR(to)
		must(t, err)
		return netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: net.ParseIP(via)})
	})
}

// The outside knows no way to pods, and sees the node.
func TestPodsReachTheOutside(t *testing.T) {
	l := newLab(t)
	l.out.echoSource(t, ":8080")
	for i, f := range families {
		port := 40000 + i // a socket of the unknown IPv6 address has its port in both families
		t.Run(f.name, func(t *testing.T) {
			node, to := netip.MustParseAddr(f.node), at(f.outside(), 8080).String()
			for _, network := range []string{"tcp", "udp"} {
				seen := map[uint16]bool{}
				var conns []net.Conn
				for _, s := range l.pods { // of both, from one port to one destination
					conns = append(conns, s.dialFrom(t, network, port, to))
				}
				for range 3 {
					for _, c := range conns {
						from := source(t, c, "hello")
						if from.Addr() != node || from.Port() < 61000 {
							t.Errorf("%s: the outside sees %s", network, from)
						}
						seen[from.Port()] = true
					}
				}
				if len(seen) != 2 {
					t.Errorf("%s: ports %v, want one for each flow", network, seen)
				}
				// Outside of the node's own range a pod keeps its port.
				if from := source(t, l.pods[0].dialFrom(t, network, 5060+i, to), "x"); int(from.Port()) != 5060+i {
					t.Errorf("%s: port %d, sent from %d", network, from.Port(), 5060+i)
				}
				if from := source(t, l.pods[1].dialFrom(t, network, 5060+i, to), "x"); int(from.Port()) == 5060+i {
					t.Errorf("%s: two pods have one port", network)
				}
				// The node itself goes out as it is.
				if from := source(t, l.node.dialFrom(t, network, port, to), "x"); from.Addr() != node || int(from.Port()) != port {
					t.Errorf("%s: the node is seen as %s", network, from)
				}
				// More than a packet holds: segments of TCP, fragments of UDP, both ways.
				source(t, l.pods[0].dial(t, network, to), strings.Repeat("x", 7000))
			}
			for _, size := range []string{"56", "4000"} {
				for _, s := range []space{l.pods[0], l.pods[1], l.node} {
					if out, err := s.command(t, "", nil, "busybox", "ping", "-c", "2", "-i", "0.1", "-W", "5", "-s", size, f.outside()); err != nil {
						t.Errorf("ping of %s: %v\n%s", size, err, out)
					}
				}
			}
		})
	}
	for _, name := range []string{"masqueraded_out", "masqueraded_in"} {
		if l.counter(t, name) == 0 {
			t.Errorf("%s is 0", name)
		}
	}
}

func TestNotMasqueraded(t *testing.T) {
	l := newLab(t, func(c *Config) {
		c.NoMasquerade = append(c.NoMasquerade, netip.MustParsePrefix("192.0.2.128/25"), netip.MustParsePrefix("2001:db8::8000/113"))
	})
	l.out.within(t, func() error {
		address(t, "eth0", "192.0.2.200/24")
		address(t, "eth0", "2001:db8::8001/64")
		return nil
	})
	l.out.route(t, "10.244.0.0/24", l.nodeIP)
	l.out.route(t, "fd00:10:244::/64", nodeIP6)
	l.node.echoSource(t, ":8090")
	l.pods[1].echoSource(t, ":8091")
	for _, f := range families {
		direct := at(f.of("192.0.2.200", "2001:db8::8001"), 8080).String()
		l.out.echoSource(t, at(f.outside(), 8080).String())
		l.out.echoSource(t, direct)
		for _, network := range []string{"tcp", "udp"} {
			if from := source(t, l.pods[0].dial(t, network, direct), "x"); from.Addr().String() != f.pod {
				t.Errorf("%s: the outside sees %s in a range that is not masqueraded", network, from)
			}
			if from := source(t, l.pods[0].dial(t, network, at(f.outside(), 8080).String()), "x"); from.Addr().String() != f.node {
				t.Errorf("%s: the outside sees %s", network, from)
			}
			// Pod and node see each other as they are.
			if from := source(t, l.pods[0].dial(t, network, at(f.node, 8090).String()), "x"); from.Addr().String() != f.pod {
				t.Errorf("%s: the node sees %s", network, from)
			}
			// Who has a route to pods reaches them by their own addresses.
			for range 2 {
				if from := source(t, l.out.dialAs(t, network, f.outside(), at(f.other, 8091).String()), "x"); from.Addr().String() != f.outside() {
					t.Errorf("%s: the pod sees %s", network, from)
				}
			}
		}
		for _, size := range []string{"56", "4000"} { // the latter in fragments
			if out, err := l.out.command(t, "", nil, "busybox", "ping", "-c", "1", "-W", "5", "-s", size, "-I", f.outside(), f.pod); err != nil {
				t.Errorf("ping of a pod from outside: %v\n%s", err, out)
			}
		}
	}
}

// With three ports there are three flows to a destination; the next is refused and counted, and another destination has its own three.
func TestPortsRunOut(t *testing.T) {
	l := newLab(t, func(c *Config) { c.masqPorts = portRange{62000, 62002} })
	l.out.echoSource(t, ":8080")
	l.out.echoSource(t, ":8081")
	for _, port := range []int{8080, 8081} {
		to := fmt.Sprint(outsideIP, ":", port)
		seen := map[uint16]bool{}
		for i := range 3 {
			seen[source(t, l.pods[0].dialFrom(t, "udp", 40000+10*(port-8080)+i, to), "x").Port()] = true
		}
		if len(seen) != 3 {
			t.Errorf("ports %v", seen)
		}
		before := l.counter(t, "drop_no_port")
		c := l.pods[0].dialFrom(t, "udp", 40000+10*(port-8080)+4, to)
		c.Write([]byte("x\n")) // the program runs within the call, or the queue's
		if n := l.counter(t, "drop_no_port") - before; n != 1 {
			t.Errorf("%d packets were counted", n)
		}
		// UDP ports are not TCP's.
		source(t, l.pods[0].dialFrom(t, "tcp", 40000+10*(port-8080)+4, to), "x")
	}
}

// A port that the node uses is the node's, whoever comes first.
func TestTheNodeOwnsItsPorts(t *testing.T) {
	l := newLab(t, func(c *Config) { c.masqPorts = portRange{62000, 62001} })
	l.out.echoSource(t, ":8080")
	to := outsideIP + ":8080"
	for _, network := range []string{"tcp", "udp"} {
		node := l.node.dialFrom(t, network, 62000, to)
		first := l.pods[0].dialFrom(t, network, 40000, to)
		for range 3 {
			if from := source(t, first, "x"); from.Port() != 62001 {
				t.Errorf("%s: the pod has port %d", network, from.Port())
			}
			if from := source(t, node, "x"); from.Port() != 62000 {
				t.Errorf("%s: the node has port %d", network, from.Port())
			}
		}
		// The node comes second: its traffic works. The pod's goes on from another port.
		node.Close()
		later := l.node.dialFrom(t, network, 62001, to)
		if from := source(t, later, "x"); from.Port() != 62001 {
			t.Errorf("%s: the node has port %d", network, from.Port())
		}
		if network == "udp" {
			if from := source(t, first, "x"); from.Port() != 62000 {
				t.Errorf("the pod has port %d", from.Port())
			}
			if from := source(t, later, "x"); from.Port() != 62001 {
				t.Errorf("the node has port %d", from.Port())
			}
		}
	}
}

// A port becomes a NodePort while a pod's flow has it: both go on.
func TestMasqueradeBesideNodePorts(t *testing.T) {
	l := newLab(t)
	l.out.echoSource(t, ":8080")
	to := outsideIP + ":8080"
	before := l.pods[0].dialFrom(t, "udp", 30080, to)
	if from := source(t, before, "x"); from.Port() != 30080 {
		t.Fatalf("port %d, sent from 30080", from.Port())
	}
	l.service(t, l.nodeIP+":30080")
	for range 3 {
		if from := source(t, before, "x"); from.Port() != 30080 {
			t.Errorf("the flow moved to port %d", from.Port())
		}
		if got, err := exchange(l.out.dial(t, "udp", l.nodeIP+":30080"), "x"); err != nil || !strings.HasSuffix(got, " x") {
			t.Errorf("NodePort: %q, %v", got, err)
		}
	}
	l.out.echoSource(t, ":8081")
	if from := source(t, l.pods[1].dialFrom(t, "udp", 30080, outsideIP+":8081"), "x"); from.Port() == 30080 {
		t.Error("a NodePort was given to a pod")
	}
}

// Errors of the way find the pod: refused datagrams, a narrow link behind a router, and hops that traceroute counts.
func TestErrorsReachThePod(t *testing.T) {
	l := newLab(t)
	far := newSpace(t)
	l.out.within(t, func() error {
		forward(t)
		v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "far", MTU: 1300}, PeerName: "eth0", PeerMTU: 1500, PeerNamespace: netlink.NsFd(int(far.f.Fd()))}
		must(t, netlink.LinkAdd(v))
		address(t, "far", "203.0.113.1/24")
		address(t, "far", "2001:db8:1::1/64")
		return nil
	})
	far.within(t, func() error {
		up(t, "lo")
		address(t, "eth0", "203.0.113.2/24")
		address(t, "eth0", "2001:db8:1::2/64")
		return nil
	})
	far.route(t, "192.0.2.0/24", "203.0.113.1")
	far.route(t, "2001:db8::/64", "2001:db8:1::1")
	l.node.route(t, "203.0.113.0/24", outsideIP)
	l.node.route(t, "2001:db8:1::/64", outsideIP6)
	far.echoSource(t, ":8080")
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			target := f.of("203.0.113.2", "2001:db8:1::2")
			c := l.pods[0].dial(t, "udp", at(f.outside(), 9).String())
			c.SetDeadline(time.Now().Add(late))
			c.Write([]byte("x"))
			if _, err := c.Read(make([]byte, 10)); !strings.Contains(fmt.Sprint(err), "refused") {
				t.Errorf("a closed port: %v", err)
			}
			errors := l.counter(t, "masqueraded_error")
			source(t, l.pods[0].dial(t, "tcp", at(target, 8080).String()), strings.Repeat("x", 50000))
			if l.counter(t, "masqueraded_error") == errors {
				t.Error("no packet was too big")
			}
			program := f.of("traceroute", "traceroute6")
			for _, kind := range []string{"-I", "-n"} { // by echo requests, and by datagrams
				if kind == "-I" && f.name == "IPv6" {
					continue // busybox has that for IPv4 only
				}
				out, err := l.pods[0].command(t, "", nil, "busybox", program, kind, "-n", "-q", "1", "-w", "3", "-m", "5", target)
				lines := strings.Split(strings.TrimSpace(out), "\n")
				if err != nil || len(lines) != 4 || !strings.Contains(lines[2], f.outside()) || !strings.Contains(lines[3], target) {
					t.Errorf("traceroute %s: %v\n%s", kind, err, out)
				}
			}
		})
	}
}

// Flows that begin all at once, on all processors, have a port each, and each gets its own answers.
func TestManyFlowsAtOnce(t *testing.T) {
	l := newLab(t)
	l.out.echoSource(t, ":8080")
	const n = 300
	type result struct {
		from string
		err  error
	}
	results := make(chan result, 2*n)
	for _, s := range l.pods {
		for i := range n {
			c := s.dialFrom(t, "udp", 40000+i, outsideIP+":8080")
			go func() {
				msg := strings.Repeat("x", i) // the answer tells the length
				got, err := exchange(c, msg)
				f := strings.Fields(got)
				if err == nil && (len(f) < 2 || f[1] != fmt.Sprint(i)) {
					err = fmt.Errorf("flow %d got %q", i, got)
				}
				results <- result{strings.Join(f[:min(1, len(f))], ""), err}
			}()
		}
	}
	seen := map[string]bool{}
	for range 2 * n {
		r := <-results
		if r.err != nil || seen[r.from] {
			t.Errorf("%s (twice: %v): %v", r.from, seen[r.from], r.err)
		}
		seen[r.from] = true
	}
}

// Machines behind the node that are not its pods leave as it does, and their answers find them by the node's routes.
func TestMachinesBehindTheNode(t *testing.T) {
	l := newLab(t, func(c *Config) {
		c.MasqueradeSources = []netip.Prefix{netip.MustParsePrefix("172.31.7.0/24"), netip.MustParsePrefix("fd00:172:31:7::/64")}
	})
	behind := newSpace(t)
	l.pair(t, "behind", behind)
	address(t, "behind", "172.31.7.1/24")
	address(t, "behind", "fd00:172:31:7::1/64")
	behind.within(t, func() error {
		up(t, "lo")
		address(t, "eth0", "172.31.7.2/24")
		address(t, "eth0", "fd00:172:31:7::2/64")
		return nil
	})
	behind.route(t, "0.0.0.0/0", "172.31.7.1")
	behind.route(t, "::/0", "fd00:172:31:7::1")
	l.out.echoSource(t, ":8080")
	l.pods[0].echoSource(t, ":8080")
	for i, f := range families {
		t.Run(f.name, func(t *testing.T) {
			to, own := at(f.outside(), 8080).String(), f.of("172.31.7.2", "fd00:172:31:7::2")
			for _, network := range []string{"tcp", "udp"} {
				pod, machine := l.pods[0].dialFrom(t, network, 40000+i, to), behind.dialFrom(t, network, 40000+i, to)
				for range 3 {
					a, b := source(t, pod, "x"), source(t, machine, "hello")
					if a.Addr().String() != f.node || b.Addr().String() != f.node || a.Port() == b.Port() {
						t.Errorf("%s: the outside sees %s and %s", network, a, b)
					}
				}
				source(t, behind.dial(t, network, to), strings.Repeat("x", 7000)) // in fragments
				if from := source(t, behind.dial(t, network, at(f.pod, 8080).String()), "x"); from.Addr().String() != own {
					t.Errorf("%s: a pod sees %s", network, from)
				}
			}
			if out, err := behind.command(t, "", nil, "busybox", "ping", "-c", "1", "-W", "5", "-s", "4000", f.outside()); err != nil {
				t.Errorf("ping: %v\n%s", err, out)
			}
			c := behind.dial(t, "udp", at(f.outside(), 9).String())
			c.SetDeadline(time.Now().Add(late))
			c.Write([]byte("x"))
			if _, err := c.Read(make([]byte, 10)); !strings.Contains(fmt.Sprint(err), "refused") {
				t.Errorf("a closed port: %v", err)
			}
		})
	}
}
