package bpf

import (
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What strake_xdp says.
const (
	xdpPass = 2
	xdpTx   = 3
)

// gatewayMAC is where all leaves the lab's uplink to.
var gatewayMAC = net.HardwareAddr{2, 0, 0, 0, 0, 9}

// newDriverLab is a node whose uplink, its lo, has a way out: where a test run puts frames without saying by which interface they came.
func newDriverLab(t testing.TB, change ...func(*Config)) *serviceLab {
	t.Helper()
	l := newServiceLab(t, append(change, func(c *Config) { c.XDP = XDPNative })...)
	l.native(t)
	up(t, "lo")
	forward(t)
	for _, f := range families {
		everything := &net.IPNet{IP: net.ParseIP(f.of("0.0.0.0", "::")), Mask: net.CIDRMask(0, f.of32(32, 128))}
		must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: 1, Dst: everything}))
		for _, a := range []string{f.remote(), f.hop, f.far, f.peer()} {
			must(t, netlink.NeighSet(&netlink.Neigh{LinkIndex: 1, IP: net.ParseIP(a), HardwareAddr: gatewayMAC, State: unix.NUD_PERMANENT}))
		}
	}
	return l
}

func (l *serviceLab) atDriver(t testing.TB, in []byte) (verdict uint32, out []byte) {
	t.Helper()
	run := &ebpf.RunOptions{Data: in, DataOut: make([]byte, len(in)+256)}
	result := make(chan error)
	l.do <- func() {
		var err error
		verdict, err = l.d.net.Programs[xdpProgram].Run(run)
		result <- err
	}
	must(t, <-result)
	return verdict, run.DataOut
}

// same wants the driver's program to do what the one behind it does with a packet, which is of a flow that is known. That one sees it first:
// a flow's first packet of each second is its own.
func (l *serviceLab) same(t *testing.T, what string, in []byte) {
	t.Helper()
	for range 5 { // a second may end between the two
		_, want, counted := l.at(t, uplinkProgram, l.uplink, in)
		before, err := l.d.Counters()
		must(t, err)
		verdict, out := l.atDriver(t, in)
		if verdict == xdpPass {
			continue
		}
		after, err := l.d.Counters()
		must(t, err)
		if verdict != xdpTx || string(out[14:]) != string(want[14:len(out)]) || string(out[:6]) != string(gatewayMAC) || string(out[6:12]) != string(hostMAC) ||
			after[counted] != before[counted]+1 || after["xdp_forwarded"] != before["xdp_forwarded"]+1 {
			t.Errorf("%s: verdict %d, %s\n%x, want\n%x", what, verdict, counted, out, want[:len(out)])
		}
		return
	}
	t.Errorf("%s: it passes on", what)
}

// packet is of TCP with these flags, or of another protocol without.
func (f family) packet(proto byte, flags byte, from, to netip.AddrPort, payload string) []byte {
	b := frame(proto, from, to, []byte(payload))
	if proto == 6 {
		b[transportAt(b)+13] = flags
		repair(b)
	}
	return b
}

// Packets of flows that only pass the node become at the driver what they become behind it, both ways.
func TestDriverForwards(t *testing.T) {
	for mode, change := range map[string]func(*Config){"snat": func(*Config) {}, "dsr": direct} {
		l := newDriverLab(t, change)
		for _, f := range families {
			for name, proto := range map[string]byte{"TCP": 6, "UDP": 17} {
				for _, backend := range []string{f.remote(), f.hop} {
					t.Run(mode+" "+f.name+" "+name+" "+backend, func(t *testing.T) {
						client, front := at(f.far, 5000), at(f.vip(), 80)
						if backend == f.hop {
							client = at(f.far, 5001)
						}
						l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: proto, Frontends: fronts(ExternalIP, front), Backends: backs(at(backend, 8080))})
						first := f.packet(proto, 0x02, client, front, "question")
						_, out, _ := l.at(t, uplinkProgram, l.uplink, first)
						direct := mode == "dsr" && backend == f.remote()
						var answer []byte
						if !direct {
							answer = reply(out[:len(first)])
							l.at(t, uplinkProgram, l.uplink, answer)
						}
						l.same(t, "a question", f.packet(proto, 0x10, client, front, "question"))
						l.same(t, "an odd one", f.packet(proto, 0x18, client, front, "questions"))
						if !direct {
							if proto == 6 {
								answer[transportAt(answer)+13] = 0x18
								repair(answer)
							}
							l.same(t, "an answer", answer)
						}
						if proto == 17 && f.name == "IPv4" {
							in := f.packet(proto, 0, client, front, "without a checksum")
							in[transportAt(in)+6], in[transportAt(in)+7] = 0, 0
							l.same(t, "without a checksum", in)
						}
						in := append(f.packet(proto, 0x10, client, front, ""), make([]byte, 6)...)
						if _, out := l.atDriver(t, in); direct && len(out) < len(in) {
							t.Error("what is behind the packet is missing")
						}
					})
				}
			}
		}
	}
}

// What is not plain passes on as it came.
func TestDriverPassesOn(t *testing.T) {
	for mode, change := range map[string]func(*Config){"snat": func(*Config) {}, "dsr": direct} {
		l := newDriverLab(t, change)
		for _, f := range families {
			client, front := at(f.far, 5000), at(f.vip(), 80)
			lb := LoadBalancer{Name: "ns/web:http", Protocol: 6, Frontends: fronts(ExternalIP, front), Backends: backs(at(f.remote(), 8080))}
			l.service(t, lb)
			syn := f.packet(6, 0x02, client, front, "")
			_, out, _ := l.at(t, uplinkProgram, l.uplink, syn)
			if mode == "snat" {
				l.at(t, uplinkProgram, l.uplink, reply(out[:len(syn)]))
			}
			good := f.packet(6, 0x10, client, front, "question")
			passes := func(what string, in []byte) {
				t.Helper()
				for { // both within one second: the first packet of each passes on anyway
					second := monotonic(t)
					l.at(t, uplinkProgram, l.uplink, good)
					verdict, out := l.atDriver(t, in)
					if monotonic(t) != second {
						continue
					}
					if verdict != xdpPass || string(out) != string(in) {
						t.Errorf("%s, %s, %s: verdict %d\n%x, was\n%x", mode, f.name, what, verdict, out, in)
					}
					return
				}
			}
			l.same(t, "the plain case", good)
			passes("SYN", syn)
			passes("FIN", f.packet(6, 0x11, client, front, ""))
			passes("RST", f.packet(6, 0x04, client, front, ""))
			passes("another flow", f.packet(6, 0x10, at(f.far, 5009), front, ""))
			passes("another protocol", f.packet(17, 0, client, front, ""))
			passes("its last hop", edited(good, func(b []byte) { b[f.of32(22, 21)] = 1 }))
			passes("a fragment", cut(good, 7, 0, true))
			passes("a later one", later(6, f.far, f.vip(), 7, 16))
			passes("for another machine", edited(good, func(b []byte) { b[0], b[5] = 2, 7 }))
			passes("a VLAN's", edited(good, func(b []byte) { b[12], b[13] = 0x81, 0 }))
			passes("longer than the frame", good[:len(good)-1])
			passes("a TCP header cut off", good[:14+f.of32(20, 40)+10])
			passes("an error", f.about(f.hop, f.vip(), frame(6, front, client, nil)))
			if f.name == "IPv4" {
				passes("options", options(good, 1, 1, 1, 1))
			} else {
				passes("an extension", extended(good, extension(60, 1)))
			}
			_, err := l.d.LoadBalancers().Replace("u", nil)
			must(t, err)
			l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: 6, Frontends: fronts(ExternalIP, front), Backends: backs(at(f.remote(), 8081))})
			if verdict, _ := l.atDriver(t, good); verdict != xdpPass {
				t.Errorf("%s, %s: to a backend that is gone: verdict %d", mode, f.name, verdict)
			}
			l.service(t, lb)
			must(t, l.d.net.Maps["path"].Put(uint32(0), netPath{Tunnel: uint32(l.tunnel), Mtu: 1400}))
			if verdict, _ := l.atDriver(t, good); verdict != xdpPass {
				t.Errorf("%s, %s: with a tunnel: verdict %d", mode, f.name, verdict)
			}
			must(t, l.d.net.Maps["path"].Put(uint32(0), netPath{Mtu: 1400}))
			must(t, netlink.RouteAdd(&netlink.Route{Type: unix.RTN_BLACKHOLE, Dst: &net.IPNet{IP: net.ParseIP(f.remote()), Mask: net.CIDRMask(f.of32(32, 128), f.of32(32, 128))}}))
			fresh := f.packet(6, 0x02, at(f.far, 5100), front, "")
			l.at(t, uplinkProgram, l.uplink, fresh)
			if mode == "dsr" {
				passes("no way", f.packet(6, 0x10, at(f.far, 5100), front, ""))
			}
		}
	}
}

// The program comes and goes with the mode, and with the node.
func TestDriverAttachment(t *testing.T) {
	c := testConfig(t)
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "v0"}, PeerName: "v1"}))
	must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}))
	index := device(t, "v0").Attrs().Index
	stands := func(what string, want bool) {
		t.Helper()
		xdp := device(t, "v0").Attrs().Xdp
		if got := xdp != nil && xdp.Attached; got != want {
			t.Errorf("%s: a program stands at the driver: %v", what, got)
		}
		hooks, err := ReadHooks(c.PinDir, c.CgroupRoot)
		must(t, err)
		if got := slices.ContainsFunc(hooks, func(h Hook) bool { return h.Program == HookXDP && h.Ifindex == index && h.Attached }); got != want {
			t.Errorf("%s: the hooks are %v", what, hooks)
		}
	}
	for _, m := range []struct {
		mode XDPMode
		want bool
	}{{XDPOff, false}, {XDPNative, true}, {XDPNative, true}, {XDPAuto, false}, {XDPNative, true}, {XDPOff, false}, {XDPNative, true}} {
		c.XDP = m.mode
		d, err := Open(c)
		must(t, err)
		must(t, d.AttachUplink(index))
		must(t, d.AttachUplink(device(t, "br0").Attrs().Index)) // it has no driver, and is an uplink all the same
		stands("mode "+string(m.mode), m.want)
		must(t, d.Close())
		stands("closed", m.want)
	}
	must(t, Remove(c.PinDir))
	if xdp := device(t, "v0").Attrs().Xdp; xdp != nil && xdp.Attached {
		t.Error("it stays behind")
	}
	c.XDP = "generic"
	if _, err := Open(c); err == nil {
		t.Error("a mode that there is not")
	}
}

// A further link that can do nothing of what is wanted, or is gone, and more of them than there is room for, keep no other from being served.
func TestFurtherLinksStopNothing(t *testing.T) {
	c := testConfig(t)
	c.XDP = XDPNative
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "v0"}, PeerName: "v1"}))
	must(t, netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "none"}, VxlanId: 7, Port: 4789}))
	uplink, other := device(t, "v0").Attrs().Index, device(t, "none").Attrs().Index // the driver of the second runs no program
	d, err := Open(c)
	must(t, err)
	defer d.Close()
	own := []netip.Addr{netip.MustParseAddr("198.51.100.9")}
	serves := func(want ...int) {
		t.Helper()
		have, err := d.Uplinks()
		must(t, err)
		if !slices.Equal(have, slices.Sorted(slices.Values(want))) {
			t.Errorf("the programs are at %v, want %v", have, want)
		}
		if xdp := device(t, "v0").Attrs().Xdp; xdp == nil || !xdp.Attached {
			t.Error("the uplink's driver has no program")
		}
	}

	left, err := d.ServeUplinks([]int{uplink}, map[int][]netip.Addr{other: own})
	if left != nil || err != nil {
		t.Errorf("a driver that runs no programs: %v, %v", left, err)
	}
	serves(uplink, other)

	many := map[int][]netip.Addr{} // each round fills the table
	for round := range 2 {
		clear(many)
		for i := range 300 {
			many[1000*(round+1)+i] = own
		}
		many[other] = own
		if left, err = d.ServeUplinks([]int{uplink}, many); left == nil || err != nil {
			t.Errorf("too many links that are gone: %v, %v", left, err)
		}
		serves(uplink, other)
		var row netLinkAddrs
		if err := d.net.Maps["uplink_addrs"].Lookup(uint32(1000*(round+1)), &row); err != nil {
			t.Errorf("round %d: what there is room for: %v", round, err)
		}
	}

	if _, err := d.ServeUplinks([]int{9999}, map[int][]netip.Addr{}); err == nil {
		t.Error("an uplink that is gone is no error")
	}
	serves(uplink, other)
}
