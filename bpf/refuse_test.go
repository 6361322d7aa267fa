package bpf

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// checkUnfinished fails unless a frame stays as it is where the sender's protocol had its checksum at an offset of the transport's header, and
// what was left to the network card is written there now.
func checkUnfinished(t *testing.T, b []byte, offset int) {
	t.Helper()
	_, begin, end := transport(b)
	l4 := b[begin:end]
	was := binary.BigEndian.Uint16(l4[offset:])
	if got := ^sum(l4, 0); got != was && (got != 0xffff || was != 0) {
		t.Errorf("at %d is %04x, which a network card makes %04x", offset, was, got)
	}
}

func empty(t testing.TB, d *Datapath, proto uint8, frontends ...netip.AddrPort) {
	t.Helper()
	_, err := d.LoadBalancers().Replace("empty", []LoadBalancer{{Name: "ns/empty:http", Protocol: proto, Frontends: fronts(NodePort, frontends...)}})
	must(t, err)
}

func TestRefusedPackets(t *testing.T) {
	d := withPods(t)
	up := d.net.Programs[uplinkProgram]
	for _, f := range families {
		vip := at(f.service, 80)
		segment := func(flags byte, payload string) []byte {
			return edited(frame(6, at(f.far, 5555), vip, []byte(payload)), func(b []byte) {
				_, l4, _ := transport(b)
				binary.BigEndian.PutUint32(b[l4+4:], 1000)
				binary.BigEndian.PutUint32(b[l4+8:], 7000)
				b[l4+13] = flags
			})
		}
		t.Run(f.name+" TCP", func(t *testing.T) {
			empty(t, d, 6, vip)
			for name, c := range map[string]struct {
				in       []byte
				flags    byte
				seq, ack uint32
			}{
				"SYN":                {segment(0x02, ""), 0x14, 0, 1001},
				"SYN with data":      {segment(0x02, "abc"), 0x14, 0, 1004},
				"SYN, padded":        {append(segment(0x02, ""), 0, 0, 0), 0x14, 0, 1001},
				"data and an answer": {segment(0x18, "abc"), 0x04, 7000, 0},
				"FIN":                {segment(0x11, ""), 0x04, 7000, 0},
				"neither":            {segment(0x01, "abc"), 0x14, 0, 1004},
			} {
				verdict, out, counted := fate(t, d, up, c.in)
				_, l4, end := transport(out)
				src, dst := ends(out)
				if verdict != actRedirect || counted != "drop_no_backend" || src != vip || dst != at(f.far, 5555) || end-l4 != 20 {
					t.Fatalf("%s: verdict %d, %s, from %s to %s: %x", name, verdict, counted, src, dst, out[:end])
				}
				if string(out[:6]) != string(podMAC) || string(out[6:12]) != string(hostMAC) {
					t.Errorf("%s: MAC addresses %x", name, out[:12])
				}
				if seq, ack := binary.BigEndian.Uint32(out[l4+4:]), binary.BigEndian.Uint32(out[l4+8:]); out[l4+13] != c.flags || seq != c.seq || ack != c.ack {
					t.Errorf("%s: flags %x, seq %d, ack %d", name, out[l4+13], seq, ack)
				}
				checkSums(t, out)
				checkUnfinished(t, out, 16)
			}
			for name, in := range map[string][]byte{
				"RST": segment(0x04, ""), "a fragment": cut(segment(0x02, "12345678"), 7, 0, true),
			} {
				if verdict, _, counted := fate(t, d, up, in); verdict != actShot || counted != "drop_no_backend" {
					t.Errorf("%s: verdict %d, %s", name, verdict, counted)
				}
			}
		})
		t.Run(f.name+" UDP", func(t *testing.T) {
			empty(t, d, 17, vip)
			for _, payload := range []int{0, 1, 5, 1000} {
				in := frame(17, at(f.far, 5555), vip, make([]byte, payload))
				verdict, out, counted := fate(t, d, up, in)
				proto, l4, end := transport(out)
				src, dst := addrs(out)
				if verdict != actRedirect || counted != "drop_no_backend" || src != vip.Addr() || dst.String() != f.far || proto != f.icmp || end-l4 != 8+l4-14+8 {
					t.Fatalf("verdict %d, %s, from %s to %s: %x", verdict, counted, src, dst, out[:end])
				}
				if out[l4] != f.unreachable || out[l4+1] != byte(f.portUnreachable()) || string(out[l4+8:end]) != string(in[14:14+end-l4-8]) {
					t.Errorf("%x, on %x", out[l4:end], in[14:])
				}
				checkSums(t, out)
				checkUnfinished(t, out, 6)
			}
		})
	}
}

// Errors are as few as the kernel's own.
func TestRefusalsAreFew(t *testing.T) {
	d := withPods(t)
	vip := at("10.96.0.5", 80)
	empty(t, d, 17, vip)
	for began := time.Now(); time.Since(began) < time.Minute; {
		if verdict, _ := run(t, d.net.Programs[uplinkProgram], frame(17, at("198.51.100.1", 5555), vip, nil)); verdict == actShot {
			return
		}
	}
	t.Error("whatever comes is answered")
}

func (f family) portUnreachable() int {
	if f.name == "IPv6" {
		return 4
	}
	return 3
}

// Nobody but the programs has these addresses, and who asks them knows at once.
func TestRefusedFromOutside(t *testing.T) {
	l := newLab(t)
	for _, f := range families {
		vip := at(f.of("203.0.113.50", "2001:db8:fe::50"), 80)
		l.out.within(t, func() error {
			_, dst, err := net.ParseCIDR(f.of("203.0.113.0/24", "2001:db8:fe::/64"))
			must(t, err)
			return netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: net.ParseIP(f.node)})
		})
		for proto, network := range map[uint8]string{6: "tcp", 17: "udp"} {
			empty(t, l.d, proto, vip)
			l.out.within(t, func() error {
				c, err := net.DialTimeout(network, vip.String(), 20*time.Second)
				if err == nil {
					defer c.Close()
					_, err = exchange(c, "x")
				}
				if !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("%s %s: %v", f.name, network, err)
				}
				return nil
			})
		}
	}
}
