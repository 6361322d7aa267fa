package bpf

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
)

// within puts what a frame carries into a packet of its own between two addresses, which names a port: what one node sends to a pod of another.
func within(b []byte, src, dst string, port uint16) []byte {
	s, d := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	proto := byte(4)
	if isV6(b) {
		proto = 41
	}
	out := ipHeader(proto, s, d, len(b)-14)
	if isV6(b) {
		binary.BigEndian.PutUint16(out[16:], port)
		return append(out, b[14:]...)
	}
	binary.BigEndian.PutUint16(out[18:], port)
	binary.BigEndian.PutUint16(out[20:], 0x4000)
	out[24], out[25] = 0, 0
	binary.BigEndian.PutUint16(out[24:], ^sum(out[14:34], 0))
	return append(out, b[14:]...)
}

// hopped is a frame that has gone one hop.
func hopped(b []byte) []byte {
	b = slices.Clone(b)
	if isV6(b) {
		b[21]--
		return b
	}
	b[22]--
	b[24], b[25] = 0, 0
	binary.BigEndian.PutUint16(b[24:], ^sum(b[14:14+int(b[14]&15)*4], 0))
	return b
}

func transportAt(b []byte) int {
	_, l4, _ := transport(b)
	return l4
}

func direct(c *Config) { c.DSR = true }

// sends wants a frame to go as it is to the backend's node, within a packet of this one.
func (l *serviceLab) sends(t *testing.T, what string, f family, in []byte, port uint16) {
	t.Helper()
	verdict, out, counted := l.at(t, uplinkProgram, l.uplink, in)
	want := within(hopped(in), f.node, f.remote(), port)
	if out = out[:len(want)]; verdict != actRedirect || counted != "dsr_to_remote" || string(out[14:]) != string(want[14:]) {
		t.Errorf("%s: verdict %d, %s\n%x, want\n%x", what, verdict, counted, out[14:], want[14:])
	}
}

// What clients outside ask goes as it came, if another node's pod is to answer; all packets of a flow, fragments and errors about answers too.
func TestDirectReturnIsAsked(t *testing.T) {
	l := newServiceLab(t, direct)
	for _, f := range families {
		for name, proto := range protocols {
			for k, front := range []netip.AddrPort{at(f.node, 30080), at(f.vip(), 80)} {
				t.Run(fmt.Sprint(f.name, " ", name, " ", front), func(t *testing.T) {
					client := at(f.far, uint16(5000+k))
					kind := NodePort
					if k > 0 {
						kind = ExternalIP
					}
					l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: proto, Frontends: fronts(kind, front), Backends: backs(at(f.remote(), 8080))})
					first := frame(proto, client, front, []byte("question"))
					l.sends(t, "the first packet", f, first, 8080)
					next := slices.Clone(first)
					if proto == 6 {
						next[transportAt(next)+13] = 0x10
						repair(next)
					}
					l.sends(t, "the next one", f, next, 8080)
					l.sends(t, "an error about an answer", f, f.about(f.hop, front.Addr().String(), frame(proto, front, client, nil)), 8080)
					id := uint16(100*k) + uint16(proto)
					l.sends(t, "a first fragment", f, cut(first, id, 0, true), 8080)
					l.sends(t, "a later one", f, later(proto, f.far, front.Addr().String(), id, 16), 0)
					// Where no backend is left, the client is told as ever.
					l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: proto, Frontends: fronts(kind, front)})
					if _, _, counted := l.at(t, uplinkProgram, l.uplink, next); counted != "drop_backend_gone" && counted != "drop_no_backend" {
						t.Errorf("the backend is gone: %s", counted)
					}
				})
			}
		}
	}
}

// Who can't answer by himself is asked in this node's name.
func TestDirectReturnIsNotForAll(t *testing.T) {
	l := newServiceLab(t, direct)
	for _, f := range families {
		vip := at(f.vip(), 80)
		for i, c := range []struct {
			what, client, backend string
			front                 netip.AddrPort
			kind                  FrontendKind
		}{
			{"another node's process", f.far, f.peer(), vip, ExternalIP},
			{"a machine outside", f.far, f.hop, vip, ExternalIP},
			{"a node asks", f.peer(), f.remote(), vip, ExternalIP},
			{"an address of this node that others don't know", f.far, f.remote(), at(f.of("192.0.2.11", "2001:db8::11"), 30080), NodePort},
		} {
			l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: 17, Frontends: fronts(c.kind, c.front), Backends: backs(at(c.backend, 8080))})
			client := at(c.client, uint16(6000+i))
			l.step(t, f.name+" "+c.what, uplinkProgram, l.uplink, frame(17, client, c.front, nil), actRedirect, "uplink_to_remote", at(f.node, client.Port()), at(c.backend, 8080))
		}
	}
	l.native(t)
	for _, f := range families {
		l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: 17, Frontends: fronts(ExternalIP, at(f.vip(), 80)), Backends: backs(at(f.remote(), 8080))})
		in := cut(frame(17, at(f.far, 6100), at(f.vip(), 80), nil), 9, 0, true)
		if _, _, counted := l.at(t, uplinkProgram, l.uplink, in); counted != "uplink_to_remote" {
			t.Errorf("%s: fragments where they don't fit: %s", f.name, counted)
		}
		// Nor does one of a flow that is there: it goes on with this node's address, all of it, and so does what comes behind.
		client, backend := at(f.far, 6150), at(f.remote(), 8080)
		whole := frame(17, client, at(f.vip(), 80), make([]byte, 1368))
		l.sends(t, f.name+" a flow begins", f, frame(17, client, at(f.vip(), 80), nil), 8080)
		l.sends(t, f.name+" its small fragment", f, cut(frame(17, client, at(f.vip(), 80), make([]byte, 8)), 10, 0, true), 8080)
		for i, in := range [][]byte{cut(whole, 11, 0, true), later(17, f.far, f.vip(), 11, 1376), frame(17, client, at(f.vip(), 80), nil)} {
			_, out, counted := l.at(t, uplinkProgram, l.uplink, in)
			if src, dst := addrs(out); counted != "uplink_to_remote" || src.String() != f.node || dst != backend.Addr() {
				t.Errorf("%s: packet %d of a flow that no longer fits: %s, from %s to %s", f.name, i, counted, src, dst)
			}
		}
		// What does not fit with the header is answered: to send less.
		small, large := frame(17, at(f.far, 6200), at(f.vip(), 80), nil), frame(17, at(f.far, 6200), at(f.vip(), 80), make([]byte, 1340))
		l.sends(t, f.name+" small", f, small, 8080)
		verdict, out, counted := l.at(t, uplinkProgram, l.uplink, large)
		_, l4, end := transport(out)
		src, dst := addrs(out)
		kind, code, mtu := f.of32(3, 2), f.of32(4, 0), f.of32(1380, 1360)
		if f.name == "IPv4" {
			large = frame(17, at(f.far, 6200), at(f.vip(), 80), make([]byte, 1360))
			verdict, out, counted = l.at(t, uplinkProgram, l.uplink, large)
			_, l4, end = transport(out)
			src, dst = addrs(out)
		}
		if verdict != actRedirect || counted != "path_too_big" || src.String() != f.vip() || dst.String() != f.far || int(out[l4]) != kind || int(out[l4+1]) != code || int(binary.BigEndian.Uint32(out[l4+4:])) != mtu {
			t.Errorf("%s: verdict %d, %s, from %s to %s: %x", f.name, verdict, counted, src, dst, out[l4:end])
		} else {
			checkSums(t, out[:end])
			if string(out[l4+8:end]) != string(large[14:14+end-l4-8]) {
				t.Errorf("%s: it quotes %x", f.name, out[l4+8:end])
			}
		}
		fits := frame(17, at(f.far, 6200), at(f.vip(), 80), make([]byte, f.of32(1352, 1312)))
		l.sends(t, f.name+" as large as fits", f, fits, 8080)
	}
}

// A pod gets what another node was asked, from the client, and its answer goes to the client from the Service.
func TestDirectReturnIsAnswered(t *testing.T) {
	l := newServiceLab(t)
	l.native(t)
	for _, f := range families {
		for name, proto := range protocols {
			for k, front := range []netip.AddrPort{at(f.peer(), 30080), at(f.vip(), 80)} {
				t.Run(fmt.Sprint(f.name, " ", name, " ", front), func(t *testing.T) {
					client, backend := at(f.far, uint16(5000+k)), at(f.pod, 8080)
					own := []Frontend{{Addr: at(f.node, 30080), Kind: NodePort}, {Addr: at(f.vip(), 80), Kind: ExternalIP}}
					l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: proto, Frontends: own, Backends: backs(backend, at(f.pod, 8081))})
					question := frame(proto, client, front, []byte("question"))
					takes := func(what string, in []byte, from netip.AddrPort) []byte {
						t.Helper()
						verdict, out, counted := l.at(t, uplinkProgram, l.uplink, within(in, f.peer(), f.pod, 8080))
						out = out[:len(in)]
						src, dst := ends(out)
						if verdict != actRedirect || counted != "uplink_to_pod" || src != from || dst != backend {
							t.Errorf("%s: verdict %d, %s, from %s to %s", what, verdict, counted, src, dst)
						}
						checkSums(t, out)
						return out
					}
					got := takes("the question", question, client)
					l.step(t, "the answer", podProgram, l.podVeth, reply(got), actRedirect, "dsr_to_client", front, client)
					takes("the next question", question, client)
					// The node that was asked may have chosen again, but this is the flow.
					_, out, _ := l.at(t, uplinkProgram, l.uplink, within(question, f.peer(), f.pod, 8081))
					if _, dst := ends(out); dst != backend {
						t.Errorf("the flow moved to %s", dst)
					}
					// An error about the answer finds the pod.
					in := f.about(f.hop, front.Addr().String(), frame(proto, front, client, nil))
					verdict, out, _ := l.at(t, uplinkProgram, l.uplink, within(in, f.peer(), f.pod, 8080))
					_, dst := addrs(out)
					qs, qd := quote(out[:len(in)])
					if verdict != actRedirect || dst != backend.Addr() || qs != backend || qd != client {
						t.Errorf("an error about the answer: verdict %d, to %s about a packet from %s to %s", verdict, dst, qs, qd)
					}
					// The other frontend from the same port is another flow.
					other := own[1-k].Addr
					if k == 1 {
						other = at(f.peer(), 30080)
					}
					_, out, _ = l.at(t, uplinkProgram, l.uplink, within(frame(proto, client, other, nil), f.peer(), f.pod, 8080))
					src, _ := ends(out)
					if src == client {
						t.Error("two flows have one port")
					}
					n := len(frame(proto, client, other, nil))
					l.step(t, "the other answer", podProgram, l.podVeth, reply(out[:n]), actRedirect, "dsr_to_client", other, client)
				})
			}
		}
		t.Run(f.name+" fragments", func(t *testing.T) {
			front, client := at(f.vip(), 80), at(f.far, 5100)
			l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: 17, Frontends: fronts(ExternalIP, front), Backends: backs(at(f.pod, 8080))})
			for i, in := range [][]byte{cut(frame(17, client, front, make([]byte, 8)), 77, 0, true), later(17, f.far, f.vip(), 77, 16)} {
				_, out, counted := l.at(t, uplinkProgram, l.uplink, within(in, f.peer(), f.pod, 8080*uint16(1-i)))
				if src, dst := addrs(out); counted != "uplink_to_pod" || src.String() != f.far || dst.String() != f.pod {
					t.Errorf("fragment %d: %s, from %s to %s", i, counted, src, dst)
				}
			}
		})
	}
}

// Clients are told to send segments that leave room for the header; who says no size, or a smaller one, is left alone.
func TestDirectReturnLimitsSegments(t *testing.T) {
	l := newServiceLab(t)
	l.native(t)
	for _, f := range families {
		front := at(f.vip(), 80)
		l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: 6, Frontends: fronts(ExternalIP, front), Backends: backs(at(f.pod, 8080))})
		most := uint16(1400 - f.of32(20+20, 40+40) - 20)
		for i, c := range []struct {
			options, want []byte
		}{
			{[]byte{2, 4, 5, 0xb4}, binary.BigEndian.AppendUint16([]byte{2, 4}, most)},
			{[]byte{1, 2, 4, 5, 0xb4, 1, 1, 0}, append(binary.BigEndian.AppendUint16([]byte{1, 2, 4}, most), 1, 1, 0)},
			{[]byte{4, 2, 1, 1, 2, 4, 5, 0xb4}, binary.BigEndian.AppendUint16([]byte{4, 2, 1, 1, 2, 4}, most)},
			{[]byte{2, 4, 2, 0}, []byte{2, 4, 2, 0}},
			{[]byte{1, 1, 1, 1}, []byte{1, 1, 1, 1}},
			{[]byte{0, 2, 4, 5}, []byte{0, 2, 4, 5}},
			{[]byte{3, 0, 2, 4}, []byte{3, 0, 2, 4}},         // a length that leads nowhere
			{[]byte{3, 2, 2, 40}, []byte{3, 2, 2, 40}},       // one that leads out
			{[]byte{8, 255, 2, 4}, []byte{8, 255, 2, 4}},     // far out
			{[]byte{2, 3, 255, 255}, []byte{2, 3, 255, 255}}, // no size
		} {
			client := at(f.far, uint16(7000+i))
			_, out, _ := l.at(t, uplinkProgram, l.uplink, within(frame(6, client, front, nil), f.peer(), f.pod, 8080))
			answer := append(reply(out[:len(frame(6, client, front, nil))])[:0:0], reply(out[:len(frame(6, client, front, nil))])...)
			l4 := transportAt(answer)
			answer = append(answer[:l4+20], c.options...)
			answer[l4+12] = byte(5+len(c.options)/4) << 4
			repair(answer)
			_, out, counted := l.at(t, podProgram, l.podVeth, answer)
			if got := out[l4+20 : len(answer)]; counted != "dsr_to_client" || string(got) != string(c.want) {
				t.Errorf("%s: options %x became %x, want %x; %s", f.name, c.options, got, c.want, counted)
			}
			checkSums(t, out[:len(answer)])
		}
	}
}

// Nobody makes a node answer what it should not: neither strangers, nor what is damaged, nor a node that names what this one's table has not.
func TestDirectReturnIsNotForStrangers(t *testing.T) {
	l := newServiceLab(t)
	l.native(t)
	for _, f := range families {
		client, front := at(f.far, 5000), at(f.vip(), 80)
		l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: 17, Backends: backs(at(f.pod, 8080)),
			Frontends: []Frontend{{Addr: front, Kind: ExternalIP}, {Addr: at(f.node, 30080), Kind: NodePort}, {Addr: at(f.node, 9000), Kind: HostPort}, {Addr: at(f.vip(), 82), Kind: ExternalIP, Outside: Local},
				{Addr: at(f.vip(), 83), Kind: ExternalIP, Sources: []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr(f.hop), f.of32(32, 128))}}}})
		ask := func(from, to netip.AddrPort) []byte { return frame(17, from, to, []byte("question")) }
		honest := within(ask(client, front), f.peer(), f.pod, 8080)
		for _, c := range []struct {
			what, counted string // "": it is a pod's packet as any other, and reaches it as it is
			in            []byte
		}{
			{"a stranger", "", within(ask(client, front), f.hop, f.pod, 8080)},
			{"a pod of another node", "uplink_to_pod", within(ask(client, front), f.remote(), f.pod, 8080)},
			{"a pod of this node asks", "drop_dsr", within(ask(at(f.other, 5000), front), f.peer(), f.pod, 8080)},
			{"a pod of another node asks", "drop_dsr", within(ask(at(f.remote(), 5000), front), f.peer(), f.pod, 8080)},
			{"a node asks", "drop_dsr", within(ask(at(f.peer(), 5000), front), f.peer(), f.pod, 8080)},
			{"this node asks", "drop_dsr", within(ask(at(f.node, 5000), front), f.peer(), f.pod, 8080)},
			{"no Service's address", "drop_dsr", within(ask(client, at(f.hop, 80)), f.peer(), f.pod, 8080)},
			{"no Service's port", "drop_dsr", within(ask(client, at(f.vip(), 81)), f.peer(), f.pod, 8080)},
			{"no port of a backend", "drop_dsr", within(ask(client, front), f.peer(), f.pod, 8081)},
			{"another pod than the backend", "drop_dsr", within(ask(client, front), f.peer(), f.other, 8080)},
			{"a NodePort of a third node", "drop_dsr", within(ask(client, at(f.hop, 30080)), f.peer(), f.pod, 8080)},
			{"a hostPort", "drop_dsr", within(ask(client, at(f.peer(), 9000)), f.peer(), f.pod, 8080)},
			{"a hostPort here", "drop_dsr", within(ask(client, at(f.node, 9000)), f.peer(), f.pod, 8080)},
			{"this node's NodePort", "drop_dsr", within(ask(client, at(f.node, 30080)), f.peer(), f.pod, 8080)},
			{"who may not ask", "drop_source_range", within(ask(client, at(f.vip(), 83)), f.peer(), f.pod, 8080)},
			{"backends of the asked node alone", "drop_dsr", within(ask(client, at(f.vip(), 82)), f.peer(), f.pod, 8080)},
			{"another protocol", "drop_dsr", within(frame(6, client, front, nil), f.peer(), f.pod, 8080)},
			{"an echo", "drop_dsr", within(icmp(f.far, f.vip(), f.echo, 0, 1, nil), f.peer(), f.pod, 8080)},
			{"an error about nothing", "drop_dsr", within(f.about(f.hop, f.vip(), ask(front, at(f.far, 9))), f.peer(), f.pod, 8080)},
			{"a fragment of nothing", "drop_dsr", within(later(17, f.far, f.vip(), 9, 16), f.peer(), f.pod, 8080)},
			{"one within another", "drop_dsr", within(honest, f.peer(), f.pod, 8080)},
			{"a header alone", "drop_malformed", within(ask(client, front)[:34+f.of32(0, 20)], f.peer(), f.pod, 8080)},
			{"half a header", "drop_malformed", within(ask(client, front)[:30], f.peer(), f.pod, 8080)},
			{"cut off", "drop_malformed", within(ask(client, front)[:len(ask(client, front))-4], f.peer(), f.pod, 8080)},
			{"of the other family", "drop_malformed", edited(honest, func(b []byte) { b[14+f.of32(20, 40)] ^= 0x20 })},
			{"a fragment itself", "uplink_to_pod", cut(honest, 8080, 0, true)},
		} {
			verdict, out, counted := l.at(t, uplinkProgram, l.uplink, c.in)
			if counted != c.counted || (c.counted == "") != (verdict == actOK) || (verdict != actShot && string(out[14:len(c.in)]) != string(c.in[14:])) {
				t.Errorf("%s, %s: verdict %d, %q", f.name, c.what, verdict, counted)
			}
		}
		if _, _, counted := l.at(t, uplinkProgram, l.uplink, honest); counted != "uplink_to_pod" {
			t.Errorf("%s: an honest one: %q", f.name, counted)
		}
		// The tunnel's other end is checked by the tunnel's program: natively nothing is taken from a node behind it.
		node := netip.MustParseAddr(f.peer())
		_, err := l.d.Remotes().Replace("b"+f.name, []Remote{{Prefix: netip.PrefixFrom(node, node.BitLen()), Node: netip.MustParseAddr("192.0.2.20")}})
		must(t, err)
		if verdict, out, counted := l.at(t, uplinkProgram, l.uplink, honest); verdict != actOK || counted != "" || string(out[:len(honest)]) != string(honest) {
			t.Errorf("%s, past the tunnel: verdict %d, %q", f.name, verdict, counted)
		}
	}
}
