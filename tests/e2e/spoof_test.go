package e2e

import (
	"bytes"
	bits "encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strake-io/strake/tests/podnet"
)

// place is where a pod's packets can be seen and made, as its own privileged container could.
type place struct {
	podnet.Space
	mac, gateway net.HardwareAddr
	addrs        [2]netip.Addr // IPv4, IPv6
	index        int           // of eth0
	fd           int           // packet socket of eth0
}

func placeOf(t *testing.T, c *threeNodes, pod string) *place {
	t.Helper()
	uid := c.kubectl("get", "pod", pod, "-o", "jsonpath={.metadata.uid}")
	pid := strings.TrimSpace(c.must(exec.Command("sh", "-c", "for f in $(grep -ls 'pod"+uid+"' /proc/[0-9]*/cgroup); do p=${f%/cgroup}; grep -qs sleep $p/cmdline && basename $p && exit; done; exit 1")))
	p := &place{Space: podnet.Space("/proc/" + pid + "/ns/net")}
	for i, a := range strings.Fields(c.kubectl("get", "pod", pod, "-o", "jsonpath={.status.podIPs[0].ip} {.status.podIPs[1].ip}")) {
		p.addrs[i] = netip.MustParseAddr(a)
	}
	err := p.In(func() error {
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		p.mac, p.index = eth0.HardwareAddr, eth0.Index
		neigh, err := exec.Command("ip", "neigh", "show", "169.254.1.1", "dev", "eth0").Output()
		if err != nil {
			return err
		}
		f := strings.Fields(string(neigh))
		if len(f) < 3 {
			return fmt.Errorf("neighbours %q", neigh)
		}
		if p.gateway, err = net.ParseMAC(f[2]); err != nil {
			return err
		}
		if p.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(swap(unix.ETH_P_ALL))); err != nil {
			return err
		}
		return errors.Join(unix.SetsockoptTimeval(p.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 200000}),
			unix.Bind(p.fd, &unix.SockaddrLinklayer{Protocol: swap(unix.ETH_P_ALL), Ifindex: p.index}))
	})
	if err != nil {
		t.Fatalf("%s: %v", pod, err)
	}
	t.Cleanup(func() { unix.Close(p.fd) })
	return p
}

func swap(v uint16) uint16 { return v<<8 | v>>8 }

func (p *place) send(t *testing.T, frame []byte) {
	t.Helper()
	if err := unix.Sendto(p.fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: p.index}); err != nil {
		t.Fatal(err)
	}
}

// receive waits for a frame that holds what is told.
func (p *place) receive(what []byte, forbidden func(frame []byte)) bool {
	b := make([]byte, 2000)
	for {
		n, from, err := unix.Recvfrom(p.fd, b, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return false
		}
		if l, ok := from.(*unix.SockaddrLinklayer); ok && l.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if bytes.Contains(b[:n], what) {
			return true
		}
		forbidden(b[:n])
	}
}

func ethernet(dst, src net.HardwareAddr, kind uint16, payload []byte) []byte {
	return append(bits.BigEndian.AppendUint16(append(bytes.Clone(dst), src...), kind), payload...)
}

// packet is a UDP datagram, or an ICMPv6 message if the protocol says so; checksums that nobody looks at on its way are left out.
func packet(src, dst netip.Addr, protocol byte, payload []byte) (kind uint16, b []byte) {
	if protocol == unix.IPPROTO_UDP {
		payload = append(bits.BigEndian.AppendUint16([]byte{0x30, 0x39, 0x30, 0x39}, uint16(8+len(payload))), append([]byte{0, 0}, payload...)...)
	}
	if src.Is4() {
		h := []byte{0x45, 0, 0, 0, 0, 1, 0, 0, 64, protocol, 0, 0}
		bits.BigEndian.PutUint16(h[2:], uint16(20+len(payload)))
		h = append(append(h, src.AsSlice()...), dst.AsSlice()...)
		bits.BigEndian.PutUint16(h[10:], ^sum(h))
		return unix.ETH_P_IP, append(h, payload...)
	}
	h := []byte{0x60, 0, 0, 0, 0, 0, protocol, 255}
	bits.BigEndian.PutUint16(h[4:], uint16(len(payload)))
	h = append(append(h, src.AsSlice()...), dst.AsSlice()...)
	if protocol == unix.IPPROTO_ICMPV6 {
		pseudo := bits.BigEndian.AppendUint32(bytes.Clone(h[8:40]), uint32(len(payload)))
		bits.BigEndian.PutUint16(payload[2:], ^sum(append(append(pseudo, 0, 0, 0, protocol), payload...)))
	}
	return unix.ETH_P_IPV6, append(h, payload...)
}

// sum is that of the Internet checksum (RFC 1071).
func sum(b []byte) uint16 {
	var s uint32
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(bits.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		s += uint32(b[len(b)-1]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// spoofs sends, from a pod with all rights, what is another's: addresses, Ethernet addresses, answers of ARP and NDP, a router's word.
// Nothing of it reaches another pod, on the same node or another one, or is believed by the node.
func spoofs(t *testing.T, c *threeNodes) {
	c.apply(strings.ReplaceAll(residents(c.nodes[0].Name, 8), "app: resident", "app: neighbour"))
	c.kubectl("wait", "--for=condition=Ready", "pod/resident-8", "--timeout=60s")
	attacker := placeOf(t, c, "resident-0")
	victims := map[string]*place{"on the same node": placeOf(t, c, "resident-8"), "on another node": placeOf(t, c, "resident-1")}
	stranger := net.HardwareAddr{2, 0xba, 0xd0, 0xba, 0xd0, 1}
	foreign := [2][]netip.Addr{
		{netip.MustParseAddr("192.0.2.66"), netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("169.254.1.1"), c.nodes[0].Addresses[0]},
		{netip.MustParseAddr("2001:db8:bad::1"), netip.MustParseAddr("::1"), netip.MustParseAddr("fe80::1"), c.nodes[0].Addresses[1]},
	}
	const lie, truth = "this is a lie", "this is the truth"
	for where, victim := range victims {
		for family := range 2 {
			to := victim.addrs[family]
			for _, from := range append(foreign[family], to, victims["on the same node"].addrs[family], victims["on another node"].addrs[family]) {
				kind, p := packet(from, to, unix.IPPROTO_UDP, []byte(lie))
				attacker.send(t, ethernet(attacker.gateway, attacker.mac, kind, p))
			}
			kind, p := packet(attacker.addrs[family], to, unix.IPPROTO_UDP, []byte(lie))
			attacker.send(t, ethernet(attacker.gateway, stranger, kind, p))
			attacker.send(t, ethernet(attacker.gateway, victim.mac, kind, p))
		}
		// The victim's addresses are claimed, by ARP and NDP.
		broadcast := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
		for _, operation := range []byte{1, 2} {
			arp := append([]byte{0, 1, 8, 0, 6, 4, 0, operation}, attacker.mac...)
			arp = append(append(arp, victim.addrs[0].AsSlice()...), attacker.mac...)
			attacker.send(t, ethernet(broadcast, attacker.mac, unix.ETH_P_ARP, append(arp, victim.addrs[0].AsSlice()...)))
		}
		all := netip.MustParseAddr("ff02::1")
		advertisement := append([]byte{136, 0, 0, 0, 0x20, 0, 0, 0}, victim.addrs[1].AsSlice()...)
		_, p := packet(victim.addrs[1], all, unix.IPPROTO_ICMPV6, append(append(advertisement, 2, 1), attacker.mac...))
		attacker.send(t, ethernet(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, attacker.mac, unix.ETH_P_IPV6, p))
		// A router with a prefix of its own, by which hosts would make up addresses (RFC 4861 4.2, RFC 4862).
		router := append([]byte{134, 0, 0, 0, 64, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 3, 4, 64, 0xc0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0}, netip.MustParseAddr("2001:db8:bad::").AsSlice()...)
		_, p = packet(netip.MustParseAddr("fe80::bad"), all, unix.IPPROTO_ICMPV6, router)
		attacker.send(t, ethernet(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, attacker.mac, unix.ETH_P_IPV6, p))
		// What is honest comes after all that, and arrives.
		for family := range 2 {
			eventually(t, 80*time.Second, func() string {
				kind, p := packet(attacker.addrs[family], victim.addrs[family], unix.IPPROTO_UDP, fmt.Append(nil, truth, family))
				attacker.send(t, ethernet(attacker.gateway, attacker.mac, kind, p))
				if !victim.receive(fmt.Append(nil, truth, family), func(frame []byte) {
					if bytes.Contains(frame, []byte(lie)) || bytes.Contains(frame, attacker.mac) {
						t.Errorf("a pod %s received % x", where, frame)
					}
				}) {
					return fmt.Sprintf("an honest packet to a pod %s does not arrive", where)
				}
				return ""
			})
		}
		for _, n := range c.nodes {
			for _, args := range [][]string{{"ip", "neigh"}, {"ip", "-6", "neigh"}} {
				for line := range strings.Lines(c.must(n.command(t, args...))) {
					for _, a := range victim.addrs {
						if strings.Contains(line, a.String()+" ") && strings.Contains(line, attacker.mac.String()) {
							t.Errorf("%s believes: %s", n.Name, line)
						}
					}
				}
			}
			if out := c.must(n.command(t, "sh", "-c", "ip -6 addr; ip -6 route")); strings.Contains(out, "2001:db8:bad:") {
				t.Errorf("%s has what the false router says:\n%s", n.Name, out)
			}
		}
		if err := victim.In(func() error {
			out, err := exec.Command("sh", "-c", "ip -6 addr; ip -6 route").CombinedOutput()
			if strings.Contains(string(out), "2001:db8:bad:") {
				t.Errorf("a pod %s has what the false router says:\n%s", where, out)
			}
			return err
		}); err != nil {
			t.Error(err)
		}
	}
	c.kubectl("delete", "pod", "resident-8", "--timeout=60s")
}
