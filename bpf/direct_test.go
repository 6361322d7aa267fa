package bpf

import (
	"fmt"
	"net/netip"
	"testing"
)

// askers are those who ask a frontend and its backend by packets: the programs that see both questions, and both answers.
func (l *serviceLab) askers(f family) []asker {
	return []asker{
		{"a pod another one", f.pod, f.other, podProgram, l.podVeth, podProgram, l.otherVeth},
		{"a pod one of another node", f.pod, f.remote(), podProgram, l.podVeth, toPodProgram, l.podVeth},
		{"a pod the outside", f.pod, f.far, podProgram, l.podVeth, toPodProgram, l.podVeth},
		{"another node a pod", f.peer(), f.other, uplinkProgram, l.uplink, podProgram, l.otherVeth},
		{"outside a pod", f.far, f.other, uplinkProgram, l.uplink, podProgram, l.otherVeth},
		{"outside the node", f.far, f.node, uplinkProgram, l.uplink, egressProgram, l.uplink},
	}
}

type asker struct {
	what, client, backend string
	asks                  string
	asksAt                int
	answers               string
	answersAt             int
}

// A client that asked a frontend asks its backend from the same port later, as one does whose Service is served at the socket meanwhile: it is answered by whom
// it asked, and not by the frontend as long as that flow lives.
func TestFrontendsFlowGivesWay(t *testing.T) {
	l := newServiceLab(t)
	l.native(t)
	t.Cleanup(func() { l.tunnelled(t) })
	for _, f := range families {
		for name, proto := range protocols {
			for i, c := range l.askers(f) {
				t.Run(fmt.Sprint(f.name, " ", name, " ", c.what), func(t *testing.T) {
					client, front, backend := at(c.client, uint16(4500+i)), at(f.vip(), 80), at(c.backend, 8080)
					l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: proto, Frontends: fronts(LoadBalancerIP, front), Backends: backs(backend)})
					answered := func(what string, to netip.AddrPort, by netip.AddrPort) {
						t.Helper()
						in := frame(proto, client, to, []byte("question"))
						if proto == 132 {
							in = chunk(client, to, 1)
						}
						_, question := l.run(t, c.asks, c.asksAt, in)
						_, out := l.run(t, c.answers, c.answersAt, reply(question[:len(in)]))
						if src, dst := ends(out); src != by || dst != client {
							t.Errorf("%s: answered from %s to %s, want %s to %s", what, src, dst, by, client)
						}
					}
					answered("the frontend", front, front)
					answered("the backend", backend, backend)
					answered("the frontend once more", front, front)
				})
			}
		}
	}
}

// Datagrams to a frontend and to the backend that it chose go from one port at a time, as those of gossip do: what the frontend gets has one backend all the while,
// and each answer comes from whom it was asked of, in whatever order they come.
func TestDatagramsToAFrontendAndItsBackend(t *testing.T) {
	l := newServiceLab(t)
	l.native(t)
	t.Cleanup(func() { l.tunnelled(t) })
	for _, f := range families {
		for i, c := range l.askers(f) {
			t.Run(f.name+" "+c.what, func(t *testing.T) {
				client, front := at(c.client, uint16(4700+i)), at(f.vip(), 80)
				var backends []netip.AddrPort
				for port := range uint16(16) {
					backends = append(backends, at(c.backend, 8080+port))
				}
				l.service(t, LoadBalancer{Name: "ns/web:packets", Protocol: 17, Frontends: fronts(LoadBalancerIP, front), Backends: backs(backends...)})
				ask := func(to netip.AddrPort) (question []byte, from, at netip.AddrPort) {
					t.Helper()
					in := frame(17, client, to, []byte("question"))
					_, out := l.run(t, c.asks, c.asksAt, in)
					from, at = ends(out[:len(in)])
					checkSums(t, out[:len(in)])
					return out[:len(in)], from, at
				}
				answered := func(question []byte, by netip.AddrPort) {
					t.Helper()
					in := reply(question)
					_, out := l.run(t, c.answers, c.answersAt, in)
					if src, dst := ends(out[:len(in)]); src != by || dst != client {
						t.Errorf("answered from %s to %s, want %s to %s", src, dst, by, client)
					}
				}
				_, _, backend := ask(front)
				var port uint16
				for round := range 8 {
					direct, from, _ := ask(backend)
					if from != client {
						t.Fatalf("what is asked of the backend comes from %s", from)
					}
					asked, from, got := ask(front)
					if got != backend {
						t.Fatalf("round %d: the frontend's datagrams go to %s after %s", round, got, backend)
					}
					if from.Addr() != client.Addr() || from.Port() == client.Port() || (port != 0 && from.Port() != port) {
						t.Fatalf("round %d: from %s, before that from port %d; the backend itself is asked from %s", round, from, port, client)
					}
					port = from.Port()
					answered(direct, backend)
					answered(asked, front)
					answered(direct, backend)
				}
			})
		}
	}
}

// So do those that come in fragments.
func TestFragmentsToAFrontendsBackend(t *testing.T) {
	l := newServiceLab(t)
	for _, f := range families {
		client, front, backend := at(f.pod, 4800), at(f.vip(), 80), at(f.other, 8080)
		l.service(t, LoadBalancer{Name: "ns/web:packets", Protocol: 17, Frontends: fronts(LoadBalancerIP, front), Backends: backs(backend)})
		l.run(t, podProgram, l.podVeth, frame(17, client, front, nil))
		direct := frame(17, client, backend, []byte("question"))
		l.run(t, podProgram, l.podVeth, cut(direct, 7, 0, true))
		in := reply(direct)
		_, out := l.run(t, podProgram, l.otherVeth, in)
		if src, dst := ends(out[:len(in)]); src != backend || dst != client {
			t.Errorf("%s: answered from %s to %s", f.name, src, dst)
		}
	}
}

// A connection to a frontend that goes on keeps its port: a SYN to the backend itself does not end it.
func TestConnectionsGiveNoWay(t *testing.T) {
	l := newServiceLab(t)
	f := families[0]
	client, front, backend := at(f.pod, 4600), at(f.vip(), 80), at(f.other, 8080)
	l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: 6, Frontends: fronts(LoadBalancerIP, front), Backends: backs(backend)})
	l.run(t, podProgram, l.podVeth, segment(client, front, 0x02))
	l.run(t, podProgram, l.otherVeth, segment(backend, client, 0x12))
	l.run(t, podProgram, l.podVeth, segment(client, front, 0x10))
	l.run(t, podProgram, l.podVeth, segment(client, backend, 0x02))
	l.step(t, "the connection's answer", podProgram, l.otherVeth, segment(backend, client, 0x10), actRedirect, "pod_to_uplink", front, client)
}
