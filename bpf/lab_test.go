package bpf

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// late is when an answer does not come any more. A machine may be busy.
const late = 30 * time.Second

// TestMain makes the test binary a client when it is started as one: socket translation goes by process, so a pod's program must be one.
func TestMain(m *testing.M) {
	if os.Getenv("STRAKE_TEST_CLIENT") != "" {
		client(os.Args[1:])
		return
	}
	os.Exit(m.Run())
}

// client asks address over network n times and prints each reply with who gave it. "udp-open" is UDP by sendmsg, without connect; with
// "mapped-" before it the socket is an IPv6 one and the address an IPv4-mapped one, which package net never does.
func client(args []string) {
	if args[0] == "hold" {
		hold(args[1], args[2])
		return
	}
	network, addr := args[0], args[1]
	var n int
	fmt.Sscan(args[2], &n)
	for i := range n {
		if err := ask(network, addr, fmt.Sprint("m", i)); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
	}
}

func ask(network, addr, msg string) error {
	if kind, ok := strings.CutPrefix(network, "mapped-"); ok {
		return askMapped(kind, netip.MustParseAddrPort(addr), msg)
	}
	if network == "udp-open" {
		family := "udp4"
		if netip.MustParseAddrPort(addr).Addr().Is6() {
			family = "udp6"
		}
		c, err := net.ListenUDP(family, nil)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(late))
		if _, err := c.WriteToUDPAddrPort([]byte(msg), netip.MustParseAddrPort(addr)); err != nil {
			return err
		}
		b := make([]byte, 200)
		n, from, err := c.ReadFromUDPAddrPort(b)
		if err != nil {
			return err
		}
		fmt.Println(from, strings.TrimSpace(string(b[:n])))
		return nil
	}
	c, err := net.DialTimeout(network, addr, late)
	if err != nil {
		return err
	}
	defer c.Close()
	reply, err := exchange(c, msg)
	fmt.Println(c.RemoteAddr(), reply)
	return err
}

func askMapped(network string, addr netip.AddrPort, msg string) error {
	kind := unix.SOCK_DGRAM
	if network == "tcp" {
		kind = unix.SOCK_STREAM
	}
	fd, err := unix.Socket(unix.AF_INET6, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(late.Seconds())}); err != nil {
		return err
	}
	to := &unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()}
	if network == "udp-open" {
		err = unix.Sendto(fd, []byte(msg+"\n"), 0, to)
	} else if err = unix.Connect(fd, to); err == nil {
		_, err = unix.Write(fd, []byte(msg+"\n"))
	}
	if err != nil {
		return err
	}
	b := make([]byte, 200)
	n, from, err := unix.Recvfrom(fd, b, 0)
	for errors.Is(err, unix.EINTR) { // a signal of Go's scheduler: with a timeout on the socket the kernel does not start the call again
		n, from, err = unix.Recvfrom(fd, b, 0)
	}
	if err == nil && network != "udp-open" {
		from, err = unix.Getpeername(fd)
	}
	if err != nil {
		return err
	}
	peer, ok := from.(*unix.SockaddrInet6)
	if !ok || !netip.AddrFrom16(peer.Addr).Is4In6() {
		return fmt.Errorf("the peer is %v", from)
	}
	fmt.Println(netip.AddrPortFrom(netip.AddrFrom16(peer.Addr).Unmap(), uint16(peer.Port)), strings.TrimSpace(string(b[:n])))
	return nil
}

// exchange sends a line and returns the line that comes back.
func exchange(c net.Conn, msg string) (string, error) {
	c.SetDeadline(time.Now().Add(late))
	if _, err := io.WriteString(c, msg+"\n"); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(line), err
}

// space is a network namespace, kept by its file.
type space struct{ f *os.File }

func currentSpace(t testing.TB) space {
	t.Helper()
	f, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return space{f}
}

// within runs f on a thread that is in the namespace; sockets made there stay in it.
func (s space) within(t testing.TB, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		defer close(done)      // also when f ends the test
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := unix.Setns(int(s.f.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	if err, ok := <-done; err != nil || !ok {
		t.Fatal("in a namespace: ", err)
	}
}

func newSpace(t testing.TB) space {
	t.Helper()
	var s space
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			s.f, err = os.Open("/proc/thread-self/ns/net")
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.f.Close() })
	return s
}

// serve answers each line, or datagram, with the name of the server and what was asked.
func (s space) serve(t testing.TB, name string, port int) {
	t.Helper()
	s.within(t, func() error {
		l, err := net.ListenTCP("tcp", &net.TCPAddr{Port: port})
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
					for in := bufio.NewScanner(c); in.Scan(); {
						fmt.Fprintln(c, name, in.Text())
					}
				}()
			}
		}()
		u, err := net.ListenUDP("udp", &net.UDPAddr{Port: port})
		if err != nil {
			return err
		}
		t.Cleanup(func() { u.Close() })
		go func() {
			b := make([]byte, 2000)
			for {
				n, from, err := u.ReadFromUDPAddrPort(b)
				if err != nil {
					return
				}
				u.WriteToUDPAddrPort([]byte(name+" "+strings.TrimSpace(string(b[:n]))+"\n"), from)
			}
		}()
		return nil
	})
}

// dial connects from within the namespace, as a process outside of the node's cgroup.
func (s space) dial(t testing.TB, network, addr string) net.Conn {
	t.Helper()
	var c net.Conn
	s.within(t, func() (err error) { c, err = net.DialTimeout(network, addr, late); return err })
	t.Cleanup(func() { c.Close() })
	return c
}

// command runs a program in the namespace; with a cgroup it is a process of that.
func (s space) command(t testing.TB, cgroup string, env []string, argv ...string) (string, error) {
	t.Helper()
	var out []byte
	var failed error
	s.within(t, func() error {
		c := exec.Command(argv[0], argv[1:]...)
		c.Env = append(os.Environ(), env...)
		if cgroup != "" {
			dir, err := os.Open(cgroup)
			if err != nil {
				return err
			}
			defer dir.Close()
			c.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
		}
		out, failed = c.CombinedOutput()
		return nil
	})
	return string(out), failed
}

// lab is a node with two pods and an outside machine on its uplink, which knows no route to the pods.
type lab struct {
	config    Config
	d         *Datapath
	node, out space
	pods      [2]space
	veths     [2]int // host side
	uplink    int
	nodeIP    string
}

const (
	gateway  = "169.254.1.1"
	gateway6 = "fe80::1"
)

// of is whichever of two is of a family.
func (f family) of(v4, v6 string) string {
	if f.name == "IPv6" {
		return v6
	}
	return v4
}

// outside is the outside machine's address.
func (f family) outside() string { return f.of(outsideIP, outsideIP6) }

func newLab(t testing.TB, change ...func(*Config)) *lab {
	t.Helper()
	l := &lab{config: testConfig(t), nodeIP: "192.0.2.10"}
	l.config.NodeAddrs = []netip.Addr{netip.MustParseAddr(l.nodeIP), netip.MustParseAddr(nodeIP6)}
	l.config.NoMasquerade = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/56")}
	for _, c := range change {
		c(&l.config)
	}
	l.node, l.out = currentSpace(t), newSpace(t)
	forward(t)
	l.d = open(t, l.config)
	up(t, "lo")
	l.uplink = l.pair(t, "uplink", l.out)
	address(t, "uplink", l.nodeIP+"/24")
	address(t, "uplink", nodeIP6+"/64")
	l.out.within(t, func() error {
		up(t, "lo")
		address(t, "eth0", outsideIP+"/24")
		address(t, "eth0", outsideIP6+"/64")
		return nil
	})
	for i, a := range [][]string{{pod, pod6}, {other, other6}} {
		l.pods[i] = newSpace(t)
		l.addPod(t, i, a)
	}
	if err := l.d.AttachUplink(l.uplink); err != nil {
		t.Fatal(err)
	}
	return l
}

// forward makes this namespace a router.
func forward(t testing.TB) {
	t.Helper()
	for _, key := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		must(t, os.WriteFile("/proc/sys/net/"+key, []byte("1"), 0))
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func device(t testing.TB, name string) netlink.Link {
	t.Helper()
	d, err := netlink.LinkByName(name)
	must(t, err)
	return d
}

func up(t testing.TB, name string) { t.Helper(); must(t, netlink.LinkSetUp(device(t, name))) }

func address(t testing.TB, name, cidr string) {
	t.Helper()
	a, err := netlink.ParseAddr(cidr)
	must(t, err)
	a.Flags = unix.IFA_F_NODAD // without a wait for nobody to have it
	must(t, netlink.AddrAdd(device(t, name), a))
	up(t, name)
}

// pair makes a veth pair from here to eth0 of another namespace and returns the index of this side.
func (l *lab) pair(t testing.TB, name string, to space) int {
	t.Helper()
	v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(to.f.Fd()))}
	must(t, netlink.LinkAdd(v))
	up(t, name)
	return device(t, name).Attrs().Index
}

// addPod does what the CNI plugin does.
func (l *lab) addPod(t testing.TB, i int, list []string) {
	t.Helper()
	name := fmt.Sprint("pod", i)
	l.veths[i] = l.pair(t, name, l.pods[i])
	host := device(t, name).Attrs().HardwareAddr
	index := device(t, name).Attrs().Index
	var rows []Endpoint
	for _, text := range list {
		addr, gw := netip.MustParseAddr(text), net.ParseIP(gateway).To4()
		bits := addr.BitLen()
		if addr.Is6() {
			gw = net.ParseIP(gateway6)
		}
		var mac net.HardwareAddr
		l.pods[i].within(t, func() error {
			up(t, "lo")
			address(t, "eth0", fmt.Sprint(addr, "/", bits))
			eth := device(t, "eth0")
			mac = eth.Attrs().HardwareAddr
			must(t, netlink.NeighSet(&netlink.Neigh{LinkIndex: eth.Attrs().Index, IP: gw, HardwareAddr: host, State: netlink.NUD_PERMANENT}))
			if addr.Is4() {
				must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Dst: &net.IPNet{IP: gw, Mask: net.CIDRMask(32, 32)}, Scope: netlink.SCOPE_LINK}))
			}
			return netlink.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: gw})
		})
		must(t, netlink.NeighSet(&netlink.Neigh{LinkIndex: index, IP: addr.AsSlice(), HardwareAddr: mac, State: netlink.NUD_PERMANENT}))
		must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: index, Dst: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(bits, bits)}, Scope: netlink.SCOPE_LINK}))
		rows = append(rows, Endpoint{Addr: addr, Ifindex: index, PodMAC: mac, HostMAC: host})
	}
	_, err := l.d.Endpoints().Replace(name, rows)
	must(t, err)
	must(t, l.d.AttachPod(index))
}

// client runs this binary as a client in a namespace, as a process of the node if node is set.
func (l *lab) client(t testing.TB, s space, ours bool, network, addr string, n int) (string, error) {
	t.Helper()
	cgroup := ""
	if ours {
		cgroup = l.config.NodeCgroup
	}
	self, err := os.Executable()
	must(t, err)
	return s.command(t, cgroup, []string{"STRAKE_TEST_CLIENT=1"}, self, network, addr, fmt.Sprint(n))
}
