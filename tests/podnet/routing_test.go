package podnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cni"
)

// await waits for what comes of an event; a condition that never holds fails the test.
func await(t *testing.T, what string, f func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

func (n *Node) counter(t *testing.T, name string) uint64 {
	t.Helper()
	s, err := bpf.ReadStatus(n.pins())
	must(t, err)
	v, ok := s.Counters[name]
	if !ok {
		t.Fatalf("no counter %s", name)
	}
	return v
}

// between asks from every pod to every pod of the other node, and from every node.
func (c *cluster) between(t *testing.T) {
	t.Helper()
	for _, from := range c.pods {
		for _, to := range c.pods {
			if from.Node == to.Node {
				continue
			}
			for family := range to.Addrs {
				for _, network := range networks[family] {
					out, err := from.Ask(network, netip.AddrPortFrom(to.Addrs[family], serverPort), 1)
					answered(t, out, err, to.ID+" "+from.Addrs[family].String(), network, from.ID, to.ID)
				}
			}
		}
	}
}

// Nodes that have IPv6 only carry both families of their pods over it.
func TestTunnelOverIPv6(t *testing.T) {
	c := start(t, 2, cni.VXLAN, func(n *Node) {
		n.Addrs = n.Addrs[1:]
		for i := range n.Nodes {
			n.Nodes[i].Addrs = n.Nodes[i].Addrs[len(n.Nodes[i].Addrs)-1:]
		}
		n.LoadBalancers = nil
	})
	c.between(t)
	must(t, c.Nodes[0].Space.In(func() error {
		l, err := netlink.LinkByName(cni.TunnelDevice)
		if err == nil && l.Attrs().MTU != 1430 {
			err = fmt.Errorf("the tunnel's MTU is %d, want 1430", l.Attrs().MTU)
		}
		return err
	}))
}

// Strict checks of the way back, set by somebody for all interfaces, stop nothing.
func TestStrictReversePath(t *testing.T) {
	for _, routing := range []cni.Routing{cni.VXLAN, cni.Native} {
		t.Run(string(routing), func(t *testing.T) {
			c := start(t, 2, routing)
			for _, n := range c.Nodes {
				must(t, n.Space.In(func() error { return os.WriteFile("/proc/sys/net/ipv4/conf/all/rp_filter", []byte("1"), 0) }))
			}
			paths(t, c)
		})
	}
}

// What somebody takes away comes back: routes, the tunnel's device, an uplink that was down.
func TestWaysComeBack(t *testing.T) {
	c := start(t, 2, cni.VXLAN)
	n := c.Nodes[0]
	to := netip.AddrPortFrom(c.pods[2].Addrs[0], serverPort).String()
	reach := func() error {
		c, err := n.Space.Dial(t.Context(), "tcp4", to)
		if err == nil {
			c.Close()
		}
		return err
	}
	for _, damage := range []struct {
		what string
		do   func() error
	}{
		{"the routes", func() error {
			list, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: cni.RouteProtocol}, netlink.RT_FILTER_PROTOCOL)
			if err == nil && len(list) == 0 {
				err = errors.New("there are none")
			}
			for i := range list {
				err = errors.Join(err, netlink.RouteDel(&list[i]))
			}
			return err
		}},
		{"the tunnel's device", func() error {
			l, err := netlink.LinkByName(cni.TunnelDevice)
			if err == nil {
				err = netlink.LinkDel(l)
			}
			return err
		}},
		{"the tunnel's device, down", func() error {
			l, err := netlink.LinkByName(cni.TunnelDevice)
			if err == nil {
				err = netlink.LinkSetDown(l)
			}
			return err
		}},
	} {
		must(t, n.Space.In(damage.do))
		await(t, damage.what, reach)
		c.between(t)
	}
	must(t, n.Stop())
	if err := reach(); err != nil {
		t.Errorf("without the node's process: %v", err)
	}
}

// A node that starts with the other routing leaves nothing of the former.
func TestSwitchRouting(t *testing.T) {
	c := start(t, 2, cni.VXLAN)
	for _, routing := range []cni.Routing{cni.Native, cni.VXLAN} {
		for _, n := range c.Nodes {
			must(t, n.Stop())
			n.Routing = routing
		}
		must(t, c.Start())
		must(t, c.Nodes[0].Space.In(func() error {
			_, err := netlink.LinkByName(cni.TunnelDevice)
			if there := err == nil; there != (routing == cni.VXLAN) {
				return fmt.Errorf("%s: the tunnel's device is there: %v", routing, there)
			}
			return nil
		}))
		c.between(t)
	}
}

// The uplink's MTU reaches the pods that are there, and those to come.
func TestMTUIsFollowed(t *testing.T) {
	c := start(t, 2, cni.VXLAN)
	n := c.Nodes[0]
	mtu := func(s Space, name string) (got int) {
		must(t, s.In(func() error {
			l, err := netlink.LinkByName(name)
			if err == nil {
				got = l.Attrs().MTU
			}
			return err
		}))
		return got
	}
	for _, up := range []int{1400, 1500} {
		must(t, n.Space.In(func() error {
			l, err := netlink.LinkByName(Uplink)
			if err == nil {
				err = netlink.LinkSetMTU(l, up)
			}
			return err
		}))
		want := up - 50
		await(t, fmt.Sprint("uplink of ", up), func() error {
			if got := []int{mtu(n.Space, cni.TunnelDevice), mtu(c.pods[0].Space, "eth0"), mtu(c.pods[1].Space, "eth0")}; got[0] != want || got[1] != want || got[2] != want {
				return fmt.Errorf("tunnel and pods have %v, want %d", got, want)
			}
			return nil
		})
		p, err := n.NewPod(fmt.Sprint("late", up))
		must(t, err)
		if got := mtu(p.Space, "eth0"); got != want {
			t.Errorf("a new pod has %d, want %d", got, want)
		}
		c.between(t)
	}
}

// A pod that sends more than the path takes is told so.
func TestTooBigIsAnswered(t *testing.T) {
	c := start(t, 2, cni.VXLAN)
	from, to := c.pods[0], c.pods[2]
	must(t, c.Nodes[0].Space.In(func() error { // else the link itself drops it
		links, err := netlink.LinkList()
		for _, l := range links {
			if l.Type() == "veth" && l.Attrs().Name != Uplink {
				err = errors.Join(err, netlink.LinkSetMTU(l, 1500))
			}
		}
		return err
	}))
	must(t, from.In(func() error {
		l, err := netlink.LinkByName("eth0")
		if err == nil {
			err = netlink.LinkSetMTU(l, 1500)
		}
		return err
	}))
	for family, option := range [2][3]int{{unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO}, {unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO}} {
		conn, err := from.Dial(t.Context(), networks[family][1], netip.AddrPortFrom(to.Addrs[family], serverPort).String())
		must(t, err)
		defer conn.Close()
		raw, err := conn.(*net.UDPConn).SyscallConn()
		must(t, err)
		must(t, raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), option[0], option[1], option[2]) }))
		must(t, err)
		before := c.Nodes[0].counter(t, "path_too_big")
		await(t, networks[family][1], func() error {
			if _, err := conn.Write(make([]byte, 1440)); errors.Is(err, unix.EMSGSIZE) {
				return nil
			} else if err != nil {
				return err
			}
			return errors.New("1440 bytes are still sent")
		})
		if c.Nodes[0].counter(t, "path_too_big") == before {
			t.Error("what was too large was not counted")
		}
	}
}

// More than a packet holds, both ways at once, in both families; in large segments, so that fewer packets pass the programs than the bytes
// would make.
func TestLargeTransfers(t *testing.T) {
	for _, routing := range []cni.Routing{cni.VXLAN, cni.Native} {
		t.Run(string(routing), func(t *testing.T) {
			c := start(t, 2, routing)
			const size = 32 << 20
			for family := range 2 {
				before := c.Nodes[0].counter(t, "pod_to_remote")
				transfer(t, family, c.pods[0].Space, c.pods[2].Space, netip.AddrPortFrom(c.pods[2].Addrs[family], echoPort), size)
				if packets := c.Nodes[0].counter(t, "pod_to_remote") - before; packets > size/1400 {
					t.Errorf("%s: %d packets for %d bytes: they are not sent in large segments", networks[family][0], packets, size)
				}
			}
		})
	}
}

// echoPort is where transfer listens.
const echoPort = 9000

// transfer sends bytes to an address, by which to answers with the same, and wants them all back.
func transfer(t *testing.T, family int, from, to Space, addr netip.AddrPort, size int) {
	t.Helper()
	network := networks[family][0]
	var l net.Listener
	must(t, to.In(func() (err error) { l, err = net.Listen(network, fmt.Sprint(":", echoPort)); return err }))
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		io.Copy(conn, conn)
	}()
	conn, err := from.Dial(t.Context(), network, addr.String())
	must(t, err)
	defer conn.Close()
	must(t, conn.SetDeadline(time.Now().Add(100*time.Second)))
	sent := make(chan error, 1)
	go func() {
		b := make([]byte, 1<<16)
		for at := 0; at < size; at += len(b) {
			for i := 0; i < len(b); i += 8 {
				binary.BigEndian.PutUint64(b[i:], uint64(at+i))
			}
			if _, err := conn.Write(b); err != nil {
				sent <- err
				return
			}
		}
		sent <- conn.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(conn)
	must(t, errors.Join(err, <-sent))
	if len(got) != size {
		t.Fatalf("%s: %d of %d bytes came back", network, len(got), size)
	}
	for i := 0; i < size; i += 8 {
		if binary.BigEndian.Uint64(got[i:]) != uint64(i) {
			t.Fatalf("%s: other bytes at %d", network, i)
		}
	}
}

// What comes through the tunnel is from a node that is known, and from an address of that node.
func TestTunnelIsNotForStrangers(t *testing.T) {
	c := start(t, 2, cni.VXLAN)
	n, peer := c.Nodes[0], c.Nodes[1]
	inner := func(vni byte, src, dst netip.Addr) []byte {
		b := append([]byte{8, 0, 0, 0, 0, 0, vni, 0}, make([]byte, 14+20+8)...)
		copy(b[8:], []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0})
		ip := b[22:]
		ip[0], ip[8], ip[9] = 0x45, 64, 17
		binary.BigEndian.PutUint16(ip[2:], 28)
		copy(ip[12:], src.AsSlice())
		copy(ip[16:], dst.AsSlice())
		sum := uint32(0)
		for i := 0; i < 20; i += 2 {
			sum += uint32(binary.BigEndian.Uint16(ip[i:]))
		}
		binary.BigEndian.PutUint16(ip[10:], ^uint16(sum>>16+sum&0xffff))
		binary.BigEndian.PutUint16(ip[24:], 8)
		return b
	}
	arp := inner(1, n.Addrs[0], n.Addrs[0])
	arp[8+13] = 6
	local, remote := c.pods[0].Addrs[0], c.pods[2].Addrs[0]
	for _, test := range []struct {
		name, counter string
		from          Space
		frame         []byte
	}{
		{"a machine that is no node", "drop_tunnel_stranger", c.Outside, inner(1, remote, local)},
		{"another network's number", "drop_tunnel_stranger", peer.Space, inner(2, remote, local)},
		{"an address outside", "drop_tunnel_spoofed", peer.Space, inner(1, netip.MustParseAddr("8.8.8.8"), local)},
		{"a pod of ours", "drop_tunnel_spoofed", peer.Space, inner(1, c.pods[1].Addrs[0], local)},
		{"to a pod that is gone", "drop_no_pod", peer.Space, inner(1, remote, n.PodCIDRs[0].Addr().Next())},
		{"to the outside", "drop_no_pod", peer.Space, inner(1, remote, OutsideIPs[0])},
		{"no IP", "drop_malformed", peer.Space, arp},
		{"what a node's pod sends", "tunnel_to_pod", peer.Space, inner(1, remote, local)},
		{"what a node itself sends", "tunnel_to_pod", peer.Space, inner(1, peer.Addrs[0], local)},
		{"to the node", "tunnel_to_node", peer.Space, inner(1, remote, n.Addrs[0])},
	} {
		before := n.counter(t, test.counter)
		conn, err := test.from.Dial(t.Context(), "udp4", netip.AddrPortFrom(n.Addrs[0], cni.DefaultTunnelPort).String())
		must(t, err)
		_, err = conn.Write(test.frame)
		must(t, err)
		conn.Close()
		await(t, test.name, func() error {
			if n.counter(t, test.counter) == before {
				return fmt.Errorf("%s counts nothing", test.counter)
			}
			return nil
		})
	}
	// A pod's address that comes past the tunnel.
	before := n.counter(t, "drop_spoofed")
	must(t, c.Outside.Address("link", remote.String()+"/32"))
	must(t, c.Outside.In(func() error {
		return netlink.RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: local.AsSlice(), Mask: net.CIDRMask(32, 32)}, Gw: n.Addrs[0].AsSlice(), Src: remote.AsSlice()})
	}))
	conn, err := c.Outside.Dial(t.Context(), "udp4", netip.AddrPortFrom(local, serverPort).String())
	must(t, err)
	defer conn.Close()
	if !strings.HasPrefix(conn.LocalAddr().String(), remote.String()) {
		t.Fatalf("sent from %s", conn.LocalAddr())
	}
	_, err = conn.Write([]byte("x\n"))
	must(t, err)
	await(t, "past the tunnel", func() error {
		if n.counter(t, "drop_spoofed") == before {
			return errors.New("drop_spoofed counts nothing")
		}
		return nil
	})
}

// A node that gets another address is followed.
func TestNodeChangesItsAddress(t *testing.T) {
	c := start(t, 2, cni.VXLAN)
	n := c.Nodes[1]
	was, now := n.Addrs[0], netip.MustParseAddr("198.18.0.77")
	must(t, n.Space.In(func() error {
		l, err := netlink.LinkByName(Uplink)
		if err != nil {
			return err
		}
		return netlink.AddrDel(l, &netlink.Addr{IPNet: &net.IPNet{IP: was.AsSlice(), Mask: net.CIDRMask(24, 32)}})
	}))
	must(t, n.Space.Address(Uplink, now.String()+"/24"))
	n.Addrs[0] = now
	for _, each := range c.Nodes {
		must(t, each.Stop())
		for i := range each.Nodes {
			if each.Nodes[i].Addrs[0] == was || each.Nodes[i].Addrs[0] == now {
				each.Nodes[i].Addrs = []netip.Addr{now, each.Nodes[i].Addrs[1]}
			}
		}
		for i, lb := range each.LoadBalancers {
			for k, f := range lb.Frontends {
				if f.Addr.Addr() == was {
					each.LoadBalancers[i].Frontends[k].Addr = netip.AddrPortFrom(now, f.Addr.Port())
				}
			}
		}
	}
	must(t, c.Start())
	c.between(t)
}
