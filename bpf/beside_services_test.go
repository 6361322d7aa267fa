package bpf

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
)

// besideLab is a serviceLab whose first veth leads to a pod of another plugin.
type besideLab struct {
	*serviceLab
	host net.HardwareAddr // of the host's side
}

func newBesideLab(t testing.TB) (l besideLab, client func(family) string) {
	t.Helper()
	l.serviceLab = newServiceLab(t, func(c *Config) { c.Beside = true })
	l.host = device(t, "a0").Attrs().HardwareAddr
	client = func(f family) string { return f.of("10.88.0.7", "fd00:10:88::7") }
	forward(t)
	up(t, "a0")
	up(t, "b0")
	for _, f := range families {
		ip := net.ParseIP(client(f))
		must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: l.podVeth, Dst: &net.IPNet{IP: ip, Mask: net.CIDRMask(f.of32(32, 128), f.of32(32, 128))}, Scope: netlink.SCOPE_LINK}))
	}
	return l, client
}

func cutOff(b []byte) []byte { return b[:len(b)-4] }

// sent is a frame as the pod sends it, to the host's side.
func (l besideLab) sent(b []byte) []byte {
	copy(b, l.host)
	return b
}

// A pod that another plugin has made, and that no hook serves, asks a NodePort of its own node, which leads anywhere.
func TestServicesOfPodsBeside(t *testing.T) {
	l, client := newBesideLab(t)
	for _, f := range families {
		for name, proto := range protocols {
			for i, c := range []struct {
				what, backend string
				local         bool
				verdict       uint32
				answeredAt    string
				answeredIf    int
				answer        uint32
				counted       string
			}{
				{"a pod of this node", f.of("10.88.0.5", "fd00:10:88::5"), true, actUnspec, toBesideProgram, l.podVeth, actUnspec, "service_to_pod"},
				{"the node", f.node, true, actUnspec, toBesideProgram, l.podVeth, actUnspec, "service_to_pod"},
				{"one elsewhere", f.of("10.88.1.5", "fd00:10:88:1::5"), false, actUnspec, toBesideProgram, l.podVeth, actUnspec, "service_to_pod"},
				{"itself", client(f), true, actRedirect, besideProgram, l.podVeth, actRedirect, "remote_to_uplink"},
			} {
				t.Run(fmt.Sprint(f.name, " ", name, " ", c.what), func(t *testing.T) {
					front, asks, backend := at(f.node, 30080), at(client(f), uint16(4000+i)), at(c.backend, 8080)
					// externalTrafficPolicy Local is not for who is inside of the cluster.
					l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: proto, Frontends: []Frontend{{Addr: front, Kind: NodePort, Outside: Local}}, Backends: []Backend{{Addr: backend, All: true, Local: c.local}}})
					in := l.sent(frame(proto, asks, front, nil))
					out := l.step(t, "the question", besideProgram, l.podVeth, in, c.verdict, "pod_to_service", netip.AddrPort{}, netip.AddrPort{})
					src, dst := ends(out)
					if masqueraded := src.Addr() == netip.MustParseAddr(f.node); dst != backend || masqueraded != (c.verdict == actRedirect) || (!masqueraded && src != asks) {
						t.Errorf("the question goes from %s to %s", src, dst)
					}
					answer := reply(out)
					if c.answeredAt == besideProgram {
						l.sent(answer)
					} else if verdict, got := l.run(t, uplinkProgram, l.uplink, answer); verdict != actOK || !bytes.Equal(got[:len(answer)], answer) {
						t.Errorf("the answer did not pass the uplink as it was: verdict %d", verdict)
					}
					l.step(t, "the answer", c.answeredAt, c.answeredIf, answer, c.answer, c.counted, front, asks)
					l.service(t)
					must(t, clearFlows(l.d))
				})
			}
		}
	}
}

// What else such a pod sends, and is sent, is left to the host's stack as it is.
func TestWhatPassesPodsBeside(t *testing.T) {
	l, client := newBesideLab(t)
	for _, f := range families {
		front, vip, asks := at(f.node, 30080), at(f.vip(), 80), at(client(f), 4000)
		dns := at(f.of("10.96.0.10", "fd00:10:96::a"), 53)
		must(t, l.d.SetNameServers([]netip.AddrPort{dns}))
		backend := Backend{Addr: at(f.of("10.88.0.5", "fd00:10:88::5"), 8080), All: true, Local: true}
		for _, proto := range []byte{6, 17} {
			l.service(t,
				LoadBalancer{Name: "ns/web:http", Protocol: proto, Frontends: []Frontend{{Addr: front, Kind: NodePort}, {Addr: vip}}, Backends: []Backend{backend}},
				LoadBalancer{Name: "ns/dns:dns", Protocol: 17, Frontends: fronts(ClusterIP, dns), Backends: []Backend{backend}},
				LoadBalancer{Name: "ns/none:http", Protocol: proto, Frontends: fronts(ClusterIP, at(f.vip(), 81))})
			// A flow that began at the uplink, before this program stood here, goes on there.
			l.from = l.podVeth
			old := frame(proto, at(client(f), 4001), vip, nil)
			l.step(t, "at the uplink", egressProgram, l.uplink, old, actRedirect, "uplink_to_node", at(f.vip(), 4001), backend.Addr)
			l.from = 0
			for what, in := range map[string][]byte{
				"a flow of the uplink's":     old,
				"an address not of this pod": frame(proto, at(f.of("10.88.0.9", "fd00:10:88::9"), 4000), front, nil),
				"no Service":                 frame(proto, asks, at(f.far, 80), nil),
				"another port of the node":   frame(proto, asks, at(f.node, 8080), nil),
				"cut":                        cutOff(frame(proto, asks, front, nil)),
			} {
				l.sent(in)
				if verdict, out := l.run(t, besideProgram, l.podVeth, in); verdict != actUnspec || !bytes.Equal(out[:len(in)], in) {
					t.Errorf("%s, %s: verdict %d, or it was changed", f.name, what, verdict)
				}
				if verdict, out := l.run(t, toBesideProgram, l.podVeth, in); verdict != actUnspec || !bytes.Equal(out[:len(in)], in) {
					t.Errorf("%s, %s, to the pod: verdict %d, or it was changed", f.name, what, verdict)
				}
			}
			// Nor may a pod speak in the stead of whom a flow is that came in elsewhere.
			far := at(f.far, 4002)
			question := frame(proto, far, front, nil)
			l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: proto, Frontends: []Frontend{{Addr: front, Kind: NodePort}}, Backends: []Backend{{Addr: at(f.of("10.88.1.5", "fd00:10:88:1::5"), 8080), All: true}}})
			out := l.step(t, "from outside", uplinkProgram, l.uplink, bytes.Clone(question), actRedirect, "uplink_to_remote", netip.AddrPort{}, netip.AddrPort{})
			for what, in := range map[string][]byte{"its question": question, "its answer": reply(out)} {
				l.sent(in)
				if verdict, out := l.run(t, besideProgram, l.podVeth, in); verdict != actUnspec || !bytes.Equal(out[:len(in)], in) {
					t.Errorf("%s, another's flow, %s: verdict %d, or it was changed", f.name, what, verdict)
				}
			}
			must(t, clearFlows(l.d))
			l.service(t,
				LoadBalancer{Name: "ns/dns:dns", Protocol: 17, Frontends: fronts(ClusterIP, dns), Backends: []Backend{backend}},
				LoadBalancer{Name: "ns/none:http", Protocol: proto, Frontends: fronts(ClusterIP, at(f.vip(), 81))})
			in := l.sent(frame(17, asks, dns, []byte("names come first")))
			if verdict, out := l.run(t, besideProgram, l.podVeth, in); verdict != actUnspec || !bytes.Equal(out[:len(in)], in) {
				t.Errorf("%s, a name server: verdict %d, or it was changed", f.name, verdict)
			}
			if verdict, _, counted := l.at(t, besideProgram, l.podVeth, l.sent(frame(proto, asks, at(f.vip(), 81), nil))); verdict != actRedirect || counted != "drop_no_backend" {
				t.Errorf("%s, without endpoints: verdict %d, %s", f.name, verdict, counted)
			}
			must(t, clearFlows(l.d))
		}
	}
}

// Both programs at a pod's veth, and what answers names there, stand beside each other, also as filters.
func TestProgramsBesideAtOneVeth(t *testing.T) {
	for name, noTCX := range map[string]bool{"links": false, "filters": true} {
		t.Run(name, func(t *testing.T) {
			d, _, _ := besideOthers(t)
			d.noTCX = noTCX
			must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "pod0"}, PeerName: "pod1"}))
			index := device(t, "pod0").Attrs().Index
			must(t, d.AttachNames(index))
			for range 2 {
				must(t, d.AttachBeside(index))
			}
			for _, program := range []string{namesProgram, besideProgram, toBesideProgram} {
				if err := d.attached(program, index); err != nil {
					t.Error(err)
				}
			}
			if have, err := d.BesideAt(); err != nil || !slices.Equal(have, []int{index}) {
				t.Errorf("at %v, %v", have, err)
			}
			must(t, d.DetachBeside(index))
			if err := d.attached(namesProgram, index); err != nil {
				t.Errorf("names went, too: %v", err)
			}
			for _, program := range []string{besideProgram, toBesideProgram} {
				if err := d.attached(program, index); err == nil {
					t.Errorf("%s stands there still", program)
				}
			}
			must(t, d.DetachNames(index))
		})
	}
}
