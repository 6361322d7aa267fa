package bpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// write makes rows those of one owner.
func (l *lab) write(t testing.TB, rows ...LoadBalancer) {
	t.Helper()
	_, err := l.d.LoadBalancers().Replace("u", rows)
	must(t, err)
}

// who connects from the node to a Service and returns which server answered.
func (l *lab) who(t testing.TB, network, addr string) (string, error) {
	t.Helper()
	var reply string
	var failed error
	l.node.within(t, func() error {
		c, err := net.DialTimeout(network, addr, late)
		if failed = err; err != nil {
			return nil
		}
		defer c.Close()
		reply, failed = exchange(c, "x")
		return nil
	})
	name, _, _ := strings.Cut(reply, " ")
	return name, failed
}

func sinceBoot(t testing.TB) uint64 {
	t.Helper()
	var ts unix.Timespec
	must(t, unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts))
	return uint64(ts.Nano())
}

// A client keeps its backend for exactly as long as the Service says after it used it last; one that is none any more it does not keep.
func TestAffinityAtTheSocket(t *testing.T) {
	l := newLab(t)
	for i, s := range l.pods {
		s.serve(t, fmt.Sprint("pod", i), 8080)
	}
	affinities := l.d.sock.Maps["lb_affinity"]
	// used sets when the node, as a client, used its backend last, and returns its name.
	used := func(ago time.Duration) string {
		t.Helper()
		var k sockAffinityKey
		var a sockAffinity
		it := affinities.Iterate()
		n := 0
		for it.Next(&k, &a) {
			n++
		}
		if must(t, it.Err()); n != 1 {
			t.Fatalf("%d rows", n)
		}
		if age := time.Duration(sinceBoot(t) - a.Last); age > time.Minute {
			t.Errorf("last used %v ago", age)
		}
		a.Last = sinceBoot(t) - uint64(ago)
		must(t, affinities.Put(k, a))
		if addrOf(netAddr(a.Addr)) == netip.MustParseAddr(pod) || addrOf(netAddr(a.Addr)) == netip.MustParseAddr(pod6) {
			return "pod0"
		}
		return "pod1"
	}
	const long, short = 24 * time.Hour, 30 * time.Second
	for _, f := range families {
		front := f.of("10.96.0.5:80", "[fd00:10:96::5]:80")
		for _, proto := range []uint8{6, 17} {
			network := map[uint8]string{6: "tcp", 17: "udp"}[proto]
			for _, timeout := range []time.Duration{long, short} {
				if uint64(timeout) > sinceBoot(t) {
					continue // a machine that runs for less than that can't have used it so long ago
				}
				t.Run(fmt.Sprint(f.name, network, timeout), func(t *testing.T) {
					row := LoadBalancer{Name: "ns/a", Protocol: proto, Frontends: fronts(ClusterIP, ap(front)), Backends: backs(at(f.pod, 8080), at(f.other, 8080)), Affinity: timeout}
					l.write(t, row)
					defer l.write(t)
					ask := func() string {
						t.Helper()
						name, err := l.who(t, network, front)
						must(t, err)
						return name
					}
					first := ask()
					for range 20 {
						if used(timeout-10*time.Second) != first || ask() != first {
							t.Fatal("another backend within the time")
						}
					}
					others := 0
					for range 40 {
						was := used(timeout + time.Nanosecond)
						if ask() != was {
							others++
						}
					}
					if others == 0 {
						t.Error("the backend is kept beyond the time")
					}
					// It drains: the client goes elsewhere and stays there, also when it comes back.
					was := used(0)
					i := map[string]int{"pod0": 0, "pod1": 1}[was]
					row.Backends[i].All = false
					l.write(t, row)
					now := ask()
					if now == was {
						t.Error("a draining backend is kept")
					}
					row.Backends[i].All = true
					l.write(t, row)
					if ask() != now {
						t.Error("the backend was kept while another drained, and is not now")
					}
					var k sockAffinityKey
					must(t, affinities.NextKey(nil, &k))
					must(t, affinities.Delete(k))
				})
			}
		}
	}
}

// A Service for backends of this node alone has no others; where there are some elsewhere only, who asks is told at once that it may not.
func TestLocalScopeAtTheSocket(t *testing.T) {
	l := newLab(t)
	for i, s := range l.pods {
		s.serve(t, fmt.Sprint("pod", i), 8080)
	}
	for _, f := range families {
		for _, proto := range []uint8{6, 17} {
			network := map[uint8]string{6: "tcp", 17: "udp"}[proto]
			t.Run(f.name+network, func(t *testing.T) {
				inside, outside, both := ap(f.of("10.96.0.5:80", "[fd00:10:96::5]:80")), ap(f.of("10.96.0.6:80", "[fd00:10:96::6]:80")), backs(at(f.pod, 8080), at(f.other, 8080))
				both[1].Local = true
				row := LoadBalancer{Name: "ns/a", Protocol: proto, Frontends: []Frontend{{Addr: inside, Inside: Local}, {Addr: outside, Kind: LoadBalancerIP, Outside: Local}}, Backends: both}
				l.write(t, row)
				seen := map[string]int{}
				for range 30 {
					name, err := l.who(t, network, inside.String())
					if err != nil || name != "pod1" {
						t.Fatalf("%s, %v: not a backend of this node", name, err)
					}
					name, err = l.who(t, network, outside.String())
					must(t, err)
					seen[name]++
				}
				if len(seen) != 2 {
					t.Errorf("the policy for the outside is that of the inside: %v", seen)
				}
				row.Backends[1].Local = false
				l.write(t, row)
				before := l.counter(t, "drop_no_local_backend")
				if _, err := l.who(t, network, inside.String()); !errors.Is(err, unix.EPERM) {
					t.Errorf("without backends here: %v", err)
				}
				if l.counter(t, "drop_no_local_backend") == before {
					t.Error("nothing is counted")
				}
				row.Backends = nil
				l.write(t, row)
				refusal := unix.ECONNREFUSED // TCP's is its own, by the packet
				if strings.HasPrefix(network, "udp") {
					refusal = l.refusal(refusal)
				}
				if _, err := l.who(t, network, inside.String()); !errors.Is(err, refusal) {
					t.Errorf("without backends: %v", err)
				}
				l.write(t)
			})
		}
	}
}

// The node itself may ask Services that only some may ask from outside.
func TestSourcesAtTheSocket(t *testing.T) {
	l := newLab(t)
	l.pods[0].serve(t, "pod0", 8080)
	front := Frontend{Addr: ap("198.51.100.1:80"), Kind: LoadBalancerIP, Sources: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}}
	l.write(t, LoadBalancer{Name: "ns/a", Protocol: 6, Frontends: []Frontend{front}, Backends: backs(at(pod, 8080))})
	if name, err := l.who(t, "tcp", front.Addr.String()); err != nil || name != "pod0" {
		t.Errorf("%s, %v", name, err)
	}
}

// Two Services with the same backends: who asks both with one socket hears of each what it asked there, and who closes a socket and uses its
// port for the other Service as well.
func TestServicesWithTheSameBackend(t *testing.T) {
	l := newLab(t)
	for i, s := range l.pods {
		s.serve(t, fmt.Sprint("pod", i), 8080)
	}
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			vips := []netip.AddrPort{ap(f.of("10.96.0.5:80", "[fd00:10:96::5]:80")), ap(f.of("10.96.0.6:80", "[fd00:10:96::6]:80"))}
			set := func(backends ...Backend) {
				t.Helper()
				var rows []LoadBalancer
				for i, vip := range vips {
					for _, proto := range []uint8{6, 17} {
						rows = append(rows, LoadBalancer{Name: fmt.Sprint("ns/", i, proto), Protocol: proto, Frontends: fronts(ClusterIP, vip), Backends: backends})
					}
				}
				l.write(t, rows...)
			}
			set(backs(at(f.pod, 8080), at(f.other, 8080))...)
			open := func() (c *net.UDPConn) {
				l.node.within(t, func() (err error) { c, err = net.ListenUDP("udp", nil); return err })
				must(t, c.SetDeadline(time.Now().Add(30*time.Second)))
				return c
			}
			answer := func(c *net.UDPConn) (string, netip.AddrPort) {
				b := make([]byte, 100)
				n, from, err := c.ReadFromUDPAddrPort(b)
				must(t, err)
				_, msg, _ := strings.Cut(strings.TrimSpace(string(b[:n])), " ")
				return msg, netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
			}
			for range 40 {
				c := open()
				for i, vip := range vips {
					_, err := c.WriteToUDPAddrPort([]byte(fmt.Sprint(i)), vip)
					must(t, err)
				}
				for range vips {
					if msg, from := answer(c); from != vips[msg[0]-'0'] {
						t.Fatalf("what was asked of %v is answered by %v", vips[msg[0]-'0'], from)
					}
				}
				c.Close()
			}
			set(backs(at(f.pod, 8080))...) // with one backend for both, one question at a time
			c := open()
			defer c.Close()
			for i := range 20 {
				_, err := c.WriteToUDPAddrPort([]byte("x"), vips[i%2])
				must(t, err)
				if _, from := answer(c); from != vips[i%2] {
					t.Fatalf("what was asked of %v is answered by %v", vips[i%2], from)
				}
			}
			reuse := net.Dialer{LocalAddr: &net.TCPAddr{Port: 5999}, Control: func(_, _ string, c syscall.RawConn) error {
				return c.Control(func(fd uintptr) {
					unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
					unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}) // closed at once, so that the port is free
				})
			}}
			for i := range 10 {
				l.node.within(t, func() error {
					c, err := reuse.Dial("tcp", vips[i%2].String())
					if err != nil {
						return err
					}
					defer c.Close()
					if _, err := exchange(c, "x"); err != nil || c.RemoteAddr().String() != vips[i%2].String() {
						t.Errorf("%v, %v", c.RemoteAddr(), err)
					}
					return nil
				})
			}
		})
	}
}

// A socket asks a frontend and the backend that it got there in turn: each answer comes from whom it asked last, and the frontend keeps its backend.
func TestAFrontendAndItsBackendFromOneSocket(t *testing.T) {
	l := newLab(t)
	for i, s := range l.pods {
		s.serve(t, fmt.Sprint("pod", i), 8080)
	}
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			vip := ap(f.of("10.96.0.5:80", "[fd00:10:96::5]:80"))
			l.write(t, LoadBalancer{Name: "ns/web:packets", Protocol: 17, Frontends: fronts(ClusterIP, vip), Backends: backs(at(f.pod, 8080), at(f.other, 8080))})
			var c *net.UDPConn
			l.node.within(t, func() (err error) { c, err = net.ListenUDP("udp", nil); return err })
			defer c.Close()
			must(t, c.SetDeadline(time.Now().Add(late)))
			ask := func(to netip.AddrPort) (by string) {
				t.Helper()
				_, err := c.WriteToUDPAddrPort([]byte("x"), to)
				must(t, err)
				b := make([]byte, 100)
				n, from, err := c.ReadFromUDPAddrPort(b)
				must(t, err)
				if got := netip.AddrPortFrom(from.Addr().Unmap(), from.Port()); got != to {
					t.Errorf("what was asked of %s is answered by %s", to, got)
				}
				by, _, _ = strings.Cut(string(b[:n]), " ")
				return by
			}
			first := ask(vip)
			for range 8 {
				ask(at(map[string]string{"pod0": f.pod, "pod1": f.other}[first], 8080))
				if by := ask(vip); by != first {
					t.Fatalf("the frontend's datagrams go to %s after %s", by, first)
				}
			}
		})
	}
}
