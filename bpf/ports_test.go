package bpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"
)

// refusal is what a socket's call gets that a program refuses with an error of its choice, which takes Linux 6.1.
func (l *lab) refusal(chosen unix.Errno) unix.Errno {
	if l.config.noSetRetval || features.HaveProgramHelper(ebpf.CGroupSockAddr, asm.FnSetRetval) != nil {
		return unix.EPERM
	}
	return chosen
}

// binds tells what a socket that binds in a namespace gets.
func (s space) binds(t testing.TB, network, addr string) (err error) {
	t.Helper()
	s.within(t, func() error {
		if network == "tcp4" || network == "tcp6" || network == "tcp" {
			var l net.Listener
			if l, err = net.Listen(network, addr); err == nil {
				l.Close()
			}
			return nil
		}
		var c net.PacketConn
		if c, err = net.ListenPacket(network, addr); err == nil {
			c.Close()
		}
		return nil
	})
	return err
}

// What a process of the node would never hear from outside, it does not get: ports of NodePorts and host ports. All else is free.
func TestPortsAreKept(t *testing.T) {
	for name, change := range map[string]func(*Config){"chosen error": func(*Config) {}, "before Linux 6.1": func(c *Config) { c.noSetRetval = true }, "without BTF": func(c *Config) { c.noV6Only = true }} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, change)
			refusal := l.refusal(unix.EADDRINUSE)
			row := func(kind FrontendKind, proto uint8, port uint16, addrs ...string) LoadBalancer {
				lb := LoadBalancer{Name: fmt.Sprint("ns/", kind, proto, port, addrs), Protocol: proto}
				for _, a := range addrs {
					lb.Frontends = append(lb.Frontends, fronts(kind, at(a, port))...)
				}
				return lb
			}
			rows := []LoadBalancer{
				row(NodePort, 6, 30080, l.nodeIP, "127.0.0.5"), row(NodePort, 17, 30081, nodeIP6), row(HostPort, 6, 8000, l.nodeIP),
				row(ClusterIP, 6, 80, "10.96.0.5"), row(ExternalIP, 6, 81, "198.51.100.1"),
			}
			_, err := l.d.LoadBalancers().Replace("u", rows)
			must(t, err)
			for _, again := range []bool{false, true} {
				if again { // what an agent before had written is read by the next one, and what goes is free
					must(t, l.d.Close())
					l.d = open(t, l.config)
					_, err := l.d.LoadBalancers().Replace("u", rows[:1])
					must(t, err)
				}
				for _, c := range []struct {
					network, addr string
					kept          bool // at first
					stays         bool // with the first row alone
				}{
					{"tcp4", "0.0.0.0:30080", true, true},
					{"tcp", "[::]:30080", true, true},
					{"tcp", l.nodeIP + ":30080", true, true},
					{"tcp", "127.0.0.1:30080", false, false},
					{"tcp", "127.0.0.5:30080", true, true},
					{"tcp", "[::1]:30080", false, false},
					{"tcp6", "[" + nodeIP6 + "]:30080", false, false},
					{"udp4", "0.0.0.0:30080", false, false},
					{"udp", "[::]:30081", true, false},
					{"udp", "[" + nodeIP6 + "]:30081", true, false},
					{"udp4", "0.0.0.0:30081", false, false},
					{"tcp", "[::]:30081", false, false},
					{"tcp", ":8000", true, false},
					{"tcp", ":80", false, false},
					{"tcp", ":81", false, false},
					{"tcp", ":0", false, false},
				} {
					want := c.kept
					if again {
						want = c.stays
					}
					err := l.node.binds(t, c.network, c.addr)
					if want && !errors.Is(err, refusal) || !want && err != nil {
						t.Errorf("%s %s: %v", c.network, c.addr, err)
					}
					if err := l.pods[0].binds(t, c.network[:3], c.addr[strings.LastIndexByte(c.addr, ':'):]); err != nil {
						t.Errorf("in a pod, %s %s: %v", c.network, c.addr, err)
					}
				}
			}
			// A socket that leaves IPv4 alone needs IPv6's ports alone, where the kernel lets that be seen.
			_, err = l.d.LoadBalancers().Replace("u", rows)
			must(t, err)
			_, _, unseen := v6OnlyAt()
			for _, c := range []struct {
				network, addr string
				kept          bool
			}{{"tcp6", "[::]:30080", l.config.noV6Only || unseen != nil}, {"tcp6", "[::]:8000", l.config.noV6Only || unseen != nil}, {"udp6", "[::]:30081", true}, {"tcp6", "[::]:30081", false}} {
				if err := l.node.binds(t, c.network, c.addr); c.kept != errors.Is(err, refusal) || !c.kept && err != nil {
					t.Errorf("%s %s, for IPv6 alone: %v", c.network, c.addr, err)
				}
			}
			// A mapped address is the IPv4 one.
			l.node.within(t, func() error {
				fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					return err
				}
				defer unix.Close(fd)
				if err := unix.Bind(fd, &unix.SockaddrInet6{Port: 30080, Addr: netip.MustParseAddr("::ffff:" + l.nodeIP).As16()}); !errors.Is(err, refusal) {
					t.Errorf("mapped: %v", err)
				}
				return nil
			})
			if l.counter(t, "drop_port_kept") == 0 {
				t.Error("nothing is counted")
			}
		})
	}
}
