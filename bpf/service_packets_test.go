package bpf

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// A pod that no socket hook serves asks backends wherever they are, and the answers come from the Service.
func TestServiceOfAPod(t *testing.T) {
	l := newServiceLab(t)
	for _, f := range families {
		for name, proto := range protocols {
			t.Run(f.name+" "+name, func(t *testing.T) {
				for i, c := range []struct {
					what, backend, counted string
					verdict                uint32
					answerAt               string // program
					answerIf               int
					masqueraded            bool
				}{
					{"another pod", f.other, "pod_to_service", actRedirect, podProgram, l.otherVeth, false},
					{"the pod itself", f.pod, "pod_to_service", actRedirect, podProgram, l.podVeth, true},
					{"a pod of another node", f.remote(), "pod_to_remote", actRedirect, toPodProgram, l.podVeth, false},
					{"another node", f.peer(), "pod_to_remote", actRedirect, toPodProgram, l.podVeth, false},
					{"the node", f.node, "pod_to_service", actOK, toPodProgram, l.podVeth, false},
					{"outside of the cluster", f.far, "pod_to_service", actOK, toPodProgram, l.podVeth, false},
				} {
					t.Run(c.what, func(t *testing.T) {
						client, front := at(f.pod, uint16(5000+i)), at(f.service, 80)
						l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: proto, Frontends: fronts(ClusterIP, front), Backends: backs(at(c.backend, 8080))})
						from := client
						if c.masqueraded { // the pod's own port, or one of the range
							from = at(f.node, client.Port())
						}
						out := l.step(t, "the question", podProgram, l.podVeth, frame(proto, client, front, []byte("question")), c.verdict, c.counted, from, at(c.backend, 8080))
						verdict, counted := uint32(actRedirect), "pod_to_uplink"
						if c.answerAt == toPodProgram {
							verdict, counted = actOK, "service_to_pod"
						}
						l.step(t, "the answer", c.answerAt, c.answerIf, reply(out), verdict, counted, front, client)
						l.step(t, "the next question", podProgram, l.podVeth, frame(proto, client, front, nil), c.verdict, c.counted, from, at(c.backend, 8080))
					})
				}
			})
		}
	}
}

// Clients outside get backends wherever they are. Those of this node know the client by its address.
func TestServiceFromOutside(t *testing.T) {
	l := newServiceLab(t)
	for _, f := range families {
		for name, proto := range protocols {
			for k, front := range []netip.AddrPort{at(f.node, 30080), at(f.vip(), 80)} {
				t.Run(fmt.Sprint(f.name, " ", name, " ", front), func(t *testing.T) {
					for i, c := range []struct {
						what, backend, counted string
						verdict                uint32
						answerAt               string
						answerIf               int
						answered               string
						masqueraded            bool
					}{
						{"a pod", f.pod, "uplink_to_pod", actRedirect, podProgram, l.podVeth, "pod_to_uplink", false},
						{"a pod of another node", f.remote(), "uplink_to_remote", actRedirect, uplinkProgram, l.uplink, "remote_to_uplink", true},
						{"the node", f.node, "uplink_to_node", actOK, egressProgram, l.uplink, "node_to_uplink", false},
						{"outside of the cluster", f.hop, "uplink_to_remote", actRedirect, uplinkProgram, l.uplink, "remote_to_uplink", true},
					} {
						t.Run(c.what, func(t *testing.T) {
							client := at(f.far, uint16(5000+10*k+i))
							l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: proto, Frontends: fronts(NodePort, front), Backends: backs(at(c.backend, 8080))})
							from := client
							if c.masqueraded {
								from = at(f.node, client.Port())
							}
							out := l.step(t, "the question", uplinkProgram, l.uplink, frame(proto, client, front, []byte("question")), c.verdict, c.counted, from, at(c.backend, 8080))
							verdict := uint32(actRedirect)
							if c.answerAt == egressProgram {
								verdict = actOK
							}
							l.step(t, "the answer", c.answerAt, c.answerIf, reply(out), verdict, c.answered, front, client)
						})
					}
				})
			}
		}
	}
}

// A client that asks two frontends from one port, and gets one backend by both: no answer comes from the other one.
func TestTwoFrontendsOneClientPort(t *testing.T) {
	l := newServiceLab(t)
	for _, f := range families {
		for name, proto := range protocols {
			t.Run(f.name+" "+name, func(t *testing.T) {
				for program, c := range map[string]struct {
					ifindex int
					client  netip.AddrPort
					backend string
				}{
					podProgram: {l.podVeth, at(f.pod, 4000), f.other}, uplinkProgram: {l.uplink, at(f.far, 4000), f.other},
				} {
					fronts := []Frontend{{Addr: at(f.vip(), 80)}, {Addr: at(f.vip(), 81)}}
					l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: proto, Frontends: fronts, Backends: backs(at(c.backend, 8080))})
					var sources []netip.AddrPort
					for range 2 { // the second time as known flows
						for i, front := range fronts {
							_, out, _ := l.at(t, program, c.ifindex, frame(proto, c.client, front.Addr, nil))
							src, dst := ends(out)
							if src.Addr() != c.client.Addr() || dst != at(c.backend, 8080) {
								t.Fatalf("from %s to %s", src, dst)
							}
							if sources = append(sources, src); len(sources) > 2 && sources[i] != src {
								t.Errorf("from %s, before from %s", src, sources[i])
							}
							l.step(t, "the answer", podProgram, l.otherVeth, reply(out[:len(frame(proto, c.client, front.Addr, nil))]), actRedirect, "pod_to_uplink", front.Addr, c.client)
						}
					}
					if sources[0] == sources[1] {
						t.Errorf("both come from %s", sources[0])
					}
				}
			})
		}
	}
}

// What comes from a link or a pod for a loopback address asks no frontend there, and the kernel gets it as it came: such are for sockets of the node alone.
func TestLoopbackFrontendsAreTheNodes(t *testing.T) {
	l := newServiceLab(t)
	for _, f := range families {
		front := at(f.of("127.0.0.1", "::1"), 8080)
		for name, proto := range protocols {
			for _, kind := range []FrontendKind{HostPort, NodePort} {
				l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: proto, Frontends: fronts(kind, front), Backends: backs(at(f.other, 8080))})
				for program, c := range map[string]struct {
					ifindex int
					client  string
				}{uplinkProgram: {l.uplink, f.far}, podProgram: {l.podVeth, f.pod}} {
					in := frame(proto, at(c.client, 5000), front, []byte("question"))
					verdict, out, counted := l.at(t, program, c.ifindex, in)
					if verdict != actOK || counted != "" || !bytes.Equal(out[:len(in)], in) {
						t.Errorf("%s, %s, %v, %s: verdict %d, %q", f.name, name, kind, program, verdict, counted)
					}
				}
			}
		}
	}
}

// Who may ask, and for whom there are backends.
func TestWhomAFrontendServes(t *testing.T) {
	l := newServiceLab(t)
	for _, f := range families {
		front, there := at(f.vip(), 80), at(f.remote(), 8080)
		inside := frame(6, at(f.pod, 4000), front, nil)
		outside := frame(6, at(f.far, 4000), front, nil)
		here := Backend{Addr: at(f.other, 8080), All: true, Local: true, Weight: 1}
		elsewhere := Backend{Addr: there, All: true, Weight: 1}
		far := netip.PrefixFrom(netip.MustParseAddr(f.far), netip.MustParseAddr(f.far).BitLen())
		pods := netip.PrefixFrom(netip.MustParseAddr(f.pod), f.of32(24, 64)).Masked()
		for name, c := range map[string]struct {
			front           Frontend
			backends        []Backend
			inside, outside string
		}{
			"all":                           {Frontend{}, []Backend{elsewhere}, "pod_to_remote", "uplink_to_remote"},
			"outside local":                 {Frontend{Outside: Local}, []Backend{here, elsewhere}, "", "uplink_to_pod"},
			"outside local, but none":       {Frontend{Outside: Local}, []Backend{elsewhere}, "pod_to_remote", "drop_no_local_backend"},
			"inside local":                  {Frontend{Inside: Local}, []Backend{here, elsewhere}, "pod_to_service", ""},
			"inside local, but none":        {Frontend{Inside: Local}, []Backend{elsewhere}, "drop_no_local_backend", "uplink_to_remote"},
			"local, and none at all":        {Frontend{Inside: Local, Outside: Local}, nil, "drop_no_backend", "drop_no_backend"},
			"sources":                       {Frontend{Sources: []netip.Prefix{far}}, []Backend{here}, "drop_source_range", "uplink_to_pod"},
			"sources of others":             {Frontend{Sources: []netip.Prefix{pods}}, []Backend{here}, "pod_to_service", "drop_source_range"},
			"sources, and no backend there": {Frontend{Sources: []netip.Prefix{pods}}, nil, "drop_no_backend", "drop_source_range"},
		} {
			c.front.Addr, c.front.Kind = front, LoadBalancerIP
			for _, flow := range []struct {
				program string
				ifindex int
				in      []byte
				want    string
			}{{podProgram, l.podVeth, inside, c.inside}, {uplinkProgram, l.uplink, outside, c.outside}} {
				if flow.want == "" {
					continue
				}
				l.service(t)
				l.service(t, LoadBalancer{Name: "ns/web:" + name, Protocol: 6, Frontends: []Frontend{c.front}, Backends: c.backends})
				if _, _, got := l.at(t, flow.program, flow.ifindex, flow.in); got != flow.want {
					t.Errorf("%s, %s: %s, want %s", f.name, name, got, flow.want)
				}
			}
		}
	}
}

// What becomes of flows when their backend goes: connections end at once, datagrams go elsewhere, and one that drains is left in peace. If the whole Service
// goes, connections go on, as with kube-proxy's rules, as long as their backend is there.
func TestBackendsThatGo(t *testing.T) {
	l := newServiceLab(t)
	for _, f := range families {
		for name, proto := range protocols {
			for program, c := range map[string]struct {
				ifindex int
				client  string
			}{podProgram: {l.podVeth, f.pod}, uplinkProgram: {l.uplink, f.far}} {
				t.Run(fmt.Sprint(f.name, " ", name, " ", program), func(t *testing.T) {
					front := at(f.vip(), 80)
					set := func(backends ...Backend) {
						t.Helper()
						l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: proto, Frontends: []Frontend{{Addr: front}}, Backends: backends})
					}
					first, second := Backend{Addr: at(f.other, 8080), All: true}, Backend{Addr: at(f.remote(), 8080), All: true}
					question := frame(proto, at(c.client, 4000), front, []byte("question"))
					more := question
					if proto == 6 {
						more = edited(question, func(b []byte) {
							_, l4, _ := transport(b)
							b[l4+13] = 0x10
							binary.BigEndian.PutUint16(b[l4+16:], binary.BigEndian.Uint16(b[l4+16:])-0x0e)
						})
					}
					to := func(what string, in []byte) netip.AddrPort {
						t.Helper()
						verdict, out, counted := l.at(t, program, c.ifindex, in)
						if _, dst := ends(out); verdict == actRedirect && counted != "drop_backend_gone" {
							return dst
						}
						return netip.AddrPort{}
					}
					set(first)
					if got := to("the question", question); got != first.Addr {
						t.Fatalf("to %s", got)
					}
					draining := first
					draining.All = false
					set(draining, second)
					if got := to("while it drains", more); got != first.Addr {
						t.Errorf("from a backend that drains to %s", got)
					}
					set(second)
					verdict, out, counted := l.at(t, program, c.ifindex, more)
					src, dst := ends(out)
					_, l4, _ := transport(out)
					if proto == 6 {
						if verdict != actRedirect || counted != "drop_backend_gone" || src != front || dst != at(c.client, 4000) || out[l4+13] != 0x04 {
							t.Errorf("verdict %d, %s, from %s to %s, flags %x; want a reset", verdict, counted, src, dst, out[l4+13])
						}
						if got := to("a new connection", question); got != second.Addr {
							t.Errorf("a new connection goes to %s", got)
						}
					} else if dst != second.Addr {
						t.Errorf("to %s from a backend that is gone", dst)
					}
					l.service(t) // the Service itself goes
					if proto != 17 {
						if got := to("without the Service", more); got != second.Addr {
							t.Errorf("a connection without its Service goes to %s", got)
						}
						return
					}
					if verdict, out, counted := l.at(t, program, c.ifindex, more); verdict != actRedirect || counted != "drop_backend_gone" {
						src, dst := ends(out)
						t.Errorf("without the Service: verdict %d, %q, from %s to %s", verdict, counted, src, dst)
					}
					if verdict, out, _ := l.at(t, program, c.ifindex, more); verdict != actOK || string(out[:len(more)]) != string(more) {
						t.Errorf("without the Service and a flow: verdict %d", verdict)
					}
				})
			}
		}
	}
}

// A connection to a NodePort goes on when its Service is deleted, and when that is made anew and has no endpoints yet, or not all; if it has them and its
// backend is none of them, it ends. A new one is the node's own business.
func TestNodePortOfADeletedService(t *testing.T) {
	l := newServiceLab(t)
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			front, client, backend := at(f.node, 30080), at(f.far, 4000), at(f.other, 8080)
			l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: 6, Frontends: fronts(NodePort, front), Backends: backs(backend)})
			l.step(t, "SYN", uplinkProgram, l.uplink, segment(client, front, syn), actRedirect, "uplink_to_pod", client, backend)
			l.step(t, "SYN-ACK", podProgram, l.otherVeth, segment(backend, client, syn|ack), actRedirect, "pod_to_uplink", front, client)
			l.step(t, "ACK", uplinkProgram, l.uplink, segment(client, front, ack), actRedirect, "uplink_to_pod", client, backend)
			l.service(t)
			l.step(t, "without the Service", uplinkProgram, l.uplink, segment(client, front, ack), actRedirect, "uplink_to_pod", client, backend)
			l.step(t, "a stranger", uplinkProgram, l.uplink, segment(at(f.far, 4001), front, ack), actOK, "", netip.AddrPort{}, netip.AddrPort{})
			l.step(t, "a new one", uplinkProgram, l.uplink, segment(client, front, syn), actOK, "", netip.AddrPort{}, netip.AddrPort{})
			again := func(client netip.AddrPort, backends ...netip.AddrPort) {
				t.Helper()
				l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: 6, Frontends: fronts(NodePort, front), Backends: backs(backends...)})
				counted, src, dst := "uplink_to_pod", client, backend
				if len(backends) > 0 && backends[0] != backend {
					counted, src, dst = "drop_backend_gone", front, client
				}
				l.step(t, fmt.Sprint("made anew with ", backends), uplinkProgram, l.uplink, segment(client, front, ack), actRedirect, counted, src, dst)
			}
			again(client)
			again(client, backend)
			l.service(t)
			again(client)
			l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: 6, Frontends: fronts(NodePort, front), Backends: backs(at(f.remote(), 8080))})
			l.d.olderBy(t, -stillNew)
			l.step(t, "made anew, with one of its slices", uplinkProgram, l.uplink, segment(client, front, ack), actRedirect, "uplink_to_pod", client, backend)
			l.d.olderBy(t, stillNew+newFor)
			again(client, at(f.remote(), 8080))
			// The next one ends with its backend.
			l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: 6, Frontends: fronts(NodePort, front), Backends: backs(backend)})
			l.step(t, "SYN", uplinkProgram, l.uplink, segment(client, front, syn), actRedirect, "uplink_to_pod", client, backend)
			l.service(t)
			_, err := l.d.Endpoints().Replace("lab "+f.other, nil)
			must(t, err)
			l.step(t, "without its backend", uplinkProgram, l.uplink, segment(client, front, ack), actRedirect, "drop_backend_gone", front, client)
		})
	}
}

// A port of a Service that gets another name is the same to connections; they end if it has their backend no more.
func TestRenamedPortAtThePacket(t *testing.T) {
	l := newServiceLab(t)
	front, client, first, second := at("203.0.113.50", 80), at(families[0].far, 4000), at(other, 8080), at(remote, 8080)
	set := func(name string, backends ...netip.AddrPort) {
		t.Helper()
		l.service(t, LoadBalancer{Name: name, Protocol: 6, Frontends: []Frontend{{Addr: front}}, Backends: backs(backends...)})
	}
	set("ns/web:http", first)
	l.step(t, "SYN", uplinkProgram, l.uplink, segment(client, front, syn), actRedirect, "uplink_to_pod", client, first)
	set("ns/web:web", first)
	l.step(t, "renamed", uplinkProgram, l.uplink, segment(client, front, ack), actRedirect, "uplink_to_pod", client, first)
	set("ns/web:www", second)
	l.step(t, "renamed, without its backend", uplinkProgram, l.uplink, segment(client, front, ack), actRedirect, "drop_backend_gone", front, client)
}

// about is an ICMP error that quotes a packet as its receiver got it.
func (f family) about(src, dst string, quoted []byte) []byte {
	return icmp(src, dst, f.unreachable, 4, 1300, quoted[14:])
}

// quote reads the ends of the packet that an error is about.
func quote(b []byte) (src, dst netip.AddrPort) {
	_, l4, _ := transport(b)
	return ends(append(append([]byte(nil), b[:14]...), b[l4+8:]...))
}

// Errors about questions and about answers get to who sent those, and are about what he sent: from the other end, and from a router.
func TestErrorsAboutServices(t *testing.T) {
	l := newServiceLab(t)
	for _, f := range families {
		for name, proto := range protocols {
			for i, c := range []struct {
				what, program  string
				ifindex        int
				client         string
				backend        string
				errorAt        string // about a question: where it comes in
				errorIf        int
				verdict        uint32
				aboutAnswer    uint32 // verdict on one that comes from where the client is
				fromRouterIsOf string // whom a router's error about an answer comes from in the end
			}{
				{"a pod to another", podProgram, l.podVeth, f.pod, f.other, podProgram, l.otherVeth, actRedirect, actRedirect, ""},
				{"a pod to itself", podProgram, l.podVeth, f.pod, f.pod, podProgram, l.podVeth, actRedirect, actRedirect, ""},
				{"a pod to another node's", podProgram, l.podVeth, f.pod, f.remote(), toPodProgram, l.podVeth, actOK, actRedirect, ""},
				{"a pod to the node", podProgram, l.podVeth, f.pod, f.node, toPodProgram, l.podVeth, actOK, actOK, ""},
				{"outside to a pod", uplinkProgram, l.uplink, f.far, f.pod, podProgram, l.podVeth, actRedirect, actRedirect, f.hop},
				{"outside to another node's", uplinkProgram, l.uplink, f.far, f.remote(), uplinkProgram, l.uplink, actRedirect, actRedirect, f.node},
				{"outside to the node", uplinkProgram, l.uplink, f.far, f.node, egressProgram, l.uplink, actOK, actOK, f.hop},
			} {
				t.Run(fmt.Sprint(f.name, " ", name, " ", c.what), func(t *testing.T) {
					front, client := at(f.vip(), 80), at(c.client, uint16(4000+i))
					l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: proto, Frontends: []Frontend{{Addr: front}}, Backends: backs(at(c.backend, 8080))})
					question := frame(proto, client, front, nil)
					_, got, _ := l.at(t, c.program, c.ifindex, question)
					got = got[:len(question)]
					from, to := ends(got)
					want := func(what string, verdict uint32, out []byte, wantVerdict uint32, src, dst string, wantFrom, wantTo netip.AddrPort) {
						t.Helper()
						s, d := addrs(out)
						qs, qd := quote(out)
						if verdict != wantVerdict || s.String() != src || d.String() != dst || qs != wantFrom || qd != wantTo {
							t.Errorf("%s: verdict %d, from %s to %s about a packet from %s to %s; want %d, from %s to %s about one from %s to %s",
								what, verdict, s, d, qs, qd, wantVerdict, src, dst, wantFrom, wantTo)
						}
						checkSums(t, out)
					}
					in := f.about(to.Addr().String(), from.Addr().String(), got)
					verdict, out, _ := l.at(t, c.errorAt, c.errorIf, in)
					want("about a question", verdict, out[:len(in)], c.verdict, f.vip(), c.client, client, front)
					answer := frame(proto, front, client, nil) // as the client got it
					in = f.about(c.client, f.vip(), answer)
					verdict, out, _ = l.at(t, c.program, c.ifindex, in)
					want("about an answer", verdict, out[:len(in)], c.aboutAnswer, from.Addr().String(), c.backend, to, from)
					if c.fromRouterIsOf != "" {
						in = f.about(f.hop, f.vip(), answer)
						verdict, out, _ = l.at(t, c.program, c.ifindex, in)
						want("about an answer, from a router", verdict, out[:len(in)], c.aboutAnswer, c.fromRouterIsOf, c.backend, to, from)
						in = f.about(f.vip(), f.far, frame(proto, front, at(f.far, 9), nil))
						if verdict, out, _ := l.at(t, c.program, c.ifindex, edited(in, func(b []byte) {})); verdict != actOK || string(out[:len(in)]) != string(in) {
							t.Errorf("about no flow: verdict %d", verdict)
						}
					}
				})
			}
		}
	}
}

// All fragments of a datagram go where the first one goes, both ways and to backends of all kinds.
func TestFragmentsToServices(t *testing.T) {
	l := newServiceLab(t)
	for _, f := range families {
		for i, c := range []struct {
			what, program, client, backend string
			ifindex                        int
			answerAt                       string
			answerIf                       int
		}{
			{"a pod to another", podProgram, f.pod, f.other, l.podVeth, podProgram, l.otherVeth},
			{"a pod to itself", podProgram, f.pod, f.pod, l.podVeth, podProgram, l.podVeth},
			{"a pod to another node's", podProgram, f.pod, f.remote(), l.podVeth, toPodProgram, l.podVeth},
			{"outside to a pod", uplinkProgram, f.far, f.pod, l.uplink, podProgram, l.podVeth},
			{"outside to another node's", uplinkProgram, f.far, f.remote(), l.uplink, uplinkProgram, l.uplink},
			{"outside to the node", uplinkProgram, f.far, f.node, l.uplink, egressProgram, l.uplink},
		} {
			t.Run(f.name+" "+c.what, func(t *testing.T) {
				front, client := at(f.vip(), 80), at(c.client, uint16(4000+i))
				id := uint16(100 + i)
				l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: 17, Frontends: []Frontend{{Addr: front}}, Backends: backs(at(c.backend, 8080))})
				first := frame(17, client, front, make([]byte, 8))
				both := func(what, program string, ifindex int, packet []byte, from, to netip.AddrPort) (src, dst netip.AddrPort) {
					t.Helper()
					in := cut(packet, id, 0, true)
					_, out, _ := l.at(t, program, ifindex, in)
					sa, da := addrs(out)
					at := len(in) - len(packet) + 34
					if isV6(out) {
						at += 20
					}
					src, dst = netip.AddrPortFrom(sa, binary.BigEndian.Uint16(out[at:])), netip.AddrPortFrom(da, binary.BigEndian.Uint16(out[at+2:]))
					if (from.IsValid() && src != from) || dst != to {
						t.Errorf("%s: the first one from %s to %s, want from %s to %s", what, src, dst, from, to)
					}
					s, d := addrs(packet)
					_, out, counted := l.at(t, program, ifindex, later(17, s.String(), d.String(), id, 16))
					if s, d := addrs(out); s != src.Addr() || d != dst.Addr() || counted == "" {
						t.Errorf("%s: the last one from %s to %s, %s; the first one from %s to %s", what, s, d, counted, src, dst)
					}
					return src, dst
				}
				from, to := both("a question", c.program, c.ifindex, first, netip.AddrPort{}, at(c.backend, 8080))
				both("the answer", c.answerAt, c.answerIf, frame(17, to, from, make([]byte, 8)), front, client)
			})
		}
	}
}

// A client keeps its backend for as long as the Service says, from whatever port it asks.
func TestAffinityOfClients(t *testing.T) {
	l := newServiceLab(t)
	for _, f := range families {
		front := at(f.vip(), 80)
		var list []Backend
		for i := range 20 {
			list = append(list, Backend{Addr: at(f.remote(), uint16(8000+i)), All: true})
		}
		l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: 17, Frontends: []Frontend{{Addr: front}}, Backends: list, Affinity: time.Hour})
		for program, c := range map[string]struct {
			ifindex int
			client  string
		}{podProgram: {l.podVeth, f.pod}, uplinkProgram: {l.uplink, f.far}} {
			seen := map[netip.AddrPort]bool{}
			for port := range uint16(20) {
				_, out, _ := l.at(t, program, c.ifindex, frame(17, at(c.client, 4000+port), front, nil))
				_, dst := ends(out)
				seen[dst] = true
			}
			if len(seen) != 1 {
				t.Errorf("%s, %s: backends %v", f.name, program, seen)
			}
		}
	}
}

// stillNew is by how much tests make Services younger that are to be new however slow the machine is.
const stillNew = 10 * time.Minute

// olderBy makes Services older than they are.
func (d *Datapath) olderBy(t testing.TB, age time.Duration) {
	t.Helper()
	for id, s := range rawOf(t, d.loadBalancers.lbMaps).services {
		if s.Made != 0 {
			s.Made -= uint32(age / time.Second)
			must(t, d.loadBalancers.services.Put(id, s))
		}
	}
}
