package bpf

import (
	"fmt"
	"net/netip"
	"testing"
)

// Identities in these tests, and rule sets: nobody, everybody, all on port 8080, nobody by an Admin policy; onlyOf(identity) are those that
// let one identity alone.
const (
	isPod = 1 + iota
	isOther
	isRemote
	isNode
	isPeer
	isFar
	isDNS

	nobody    = 1
	everybody = 2
	web       = 3
	banned    = 4
)

func onlyOf(identity uint32) uint32 { return 10 + identity }

// Numbers of policies that these rule sets name.
const (
	closes = 1
	opens  = 2
	serves = 3
	bans   = 4
)

// policyLab is a serviceLab of which policies are asked.
type policyLab struct {
	*serviceLab
	config Config
}

func newPolicyLab(t testing.TB, change ...func(*Config)) *policyLab {
	t.Helper()
	l := &policyLab{}
	change = append(change, func(c *Config) {
		c.Policy = true
		l.config = *c
	})
	l.serviceLab = newServiceLab(t, change...)
	deny := PolicyVerdict{Policy: closes, Rule: PolicyNoRule, Tier: PolicyTierNetworkPolicy}
	allow := PolicyVerdict{Policy: opens, Allow: true, Tier: PolicyTierNetworkPolicy}
	c := PolicyChange{
		Ports: []PolicyPort{
			{Ports: nobody, Verdict: deny}, {Ports: everybody, Verdict: allow}, {Ports: banned, Verdict: PolicyVerdict{Policy: bans, Rule: 2, Tier: PolicyTierAdmin}},
			{Ports: web, Verdict: deny},
		},
		Answers: []PolicyAnswer{{RuleSet: nobody, Ports: nobody}, {RuleSet: everybody, Ports: everybody}, {RuleSet: web, Ports: web}, {RuleSet: banned, Ports: banned}},
	}
	for _, proto := range protocols {
		c.Ports = append(c.Ports, PolicyPort{Ports: web, Protocol: proto, Port: 8080, Bits: 16, Verdict: PolicyVerdict{Policy: serves, Rule: 1, Allow: true, Tier: PolicyTierNetworkPolicy}})
	}
	for id := uint32(isPod); id <= isDNS; id++ {
		c.Answers = append(c.Answers, PolicyAnswer{RuleSet: onlyOf(id), Ports: nobody}, PolicyAnswer{RuleSet: onlyOf(id), Identity: id, Ports: everybody})
	}
	for _, f := range families {
		for a, id := range map[string]uint32{f.remote(): isRemote, f.node: isNode, f.peer(): isPeer, f.far: isFar, f.dns: isDNS} {
			addr := netip.MustParseAddr(a)
			c.Peers = append(c.Peers, PolicyPeer{Prefix: netip.PrefixFrom(addr, addr.BitLen()), Identity: id})
		}
	}
	must(t, l.d.Policies().Apply(c))
	l.judge(t, PolicySubject{}, PolicySubject{})
	return l
}

// judge says what the lab's two pods are judged by, in both families.
func (l *policyLab) judge(t testing.TB, pod, other PolicySubject) {
	t.Helper()
	var c PolicyChange
	for _, f := range families {
		for a, s := range map[string]PolicySubject{f.pod: pod, f.other: other} {
			s.Addr, s.Identity = netip.MustParseAddr(a), isPod
			if a == f.other {
				s.Identity = isOther
			}
			c.Subjects = append(c.Subjects, s)
		}
	}
	must(t, l.d.Policies().Apply(c))
	for k, v := range l.d.Policies().subjects { // nothing is older
		v.Adopts = 0
		must(t, l.d.net.Maps["policy_subjects"].Put(k, v))
	}
}

// want puts a frame through a program and fails unless it is counted as said: what is denied is dropped.
func (l *policyLab) want(t testing.TB, what, program string, ifindex int, in []byte, counted string) []byte {
	t.Helper()
	verdict, out, got := l.at(t, program, ifindex, in)
	if got != counted || (verdict == actShot) != (len(counted) > 4 && counted[:5] == "drop_") {
		t.Errorf("%s: verdict %d, counted %q, want %q", what, verdict, got, counted)
	}
	return out[:len(in)]
}

// Every way of a packet from or to a pod, but by the tunnel: see network_test.go.
func TestPolicyOnEveryWay(t *testing.T) {
	l := newPolicyLab(t)
	port := uint16(20000)
	for _, f := range families {
		native := netip.MustParseAddr(f.of("10.244.2.7", "fd00:10:244:2::7"))
		_, err := l.d.Remotes().Replace("native"+f.name, []Remote{{Prefix: netip.PrefixFrom(native, f.of32(24, 64)).Masked()}})
		must(t, err)
		service := func(backend string, kind FrontendKind, front netip.AddrPort) func(proto byte) {
			return func(proto byte) {
				l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: proto, Frontends: fronts(kind, front), Backends: backs(at(backend, 8080))})
			}
		}
		vip, nodePort, hostPort := at(f.service, 80), at(f.node, 30080), at(f.node, 8099)
		for _, c := range []struct {
			what         string
			prepare      func(proto byte)
			program      string
			ifindex      int
			from         string // the client's address
			to           netip.AddrPort
			source, dest bool // whether the lab's pod sends it, and its other one gets it
			counted      string
		}{
			{"to a pod of the node", nil, podProgram, l.podVeth, f.pod, at(f.other, 8080), true, true, "pod_to_pod"},
			{"to a pod of another node", nil, podProgram, l.podVeth, f.pod, at(f.remote(), 8080), true, false, "pod_to_remote"},
			{"outside", nil, podProgram, l.podVeth, f.pod, at(f.far, 8080), true, false, ""},
			{"to the node", nil, podProgram, l.podVeth, f.pod, at(f.node, 8080), true, false, ""},
			{"to another node", nil, podProgram, l.podVeth, f.pod, at(f.peer(), 8080), true, false, "pod_to_remote"},
			{"to a Service, a pod of the node", service(f.other, ClusterIP, vip), podProgram, l.podVeth, f.pod, vip, true, true, "pod_to_service"},
			{"to a Service, a pod of another node", service(f.remote(), ClusterIP, vip), podProgram, l.podVeth, f.pod, vip, true, false, "pod_to_remote"},
			{"to a Service, outside", service(f.far, ClusterIP, vip), podProgram, l.podVeth, f.pod, vip, true, false, "pod_to_service"},
			{"from outside to a NodePort", service(f.other, NodePort, nodePort), uplinkProgram, l.uplink, f.far, nodePort, false, true, "uplink_to_pod"},
			{"from outside to a host port", service(f.other, HostPort, hostPort), uplinkProgram, l.uplink, f.far, hostPort, false, true, "uplink_to_pod"},
			{"to a host port, a pod of the node", service(f.other, HostPort, hostPort), podProgram, l.podVeth, f.pod, hostPort, true, true, "pod_to_service"},
			{"from a native node", nil, uplinkProgram, l.uplink, native.String(), at(f.other, 8080), false, true, "uplink_to_pod"},
			{"from the host's stack", nil, toPodProgram, l.otherVeth, f.far, at(f.other, 8080), false, true, ""},
			{"from the node's neighbours to a Service", service(f.other, ClusterIP, vip), egressProgram, l.uplink, f.hop, vip, false, true, "uplink_to_pod"},
		} {
			for name, proto := range protocols {
				if c.prepare != nil {
					c.prepare(proto)
				}
				l.from = l.uplink
				packet := func() []byte {
					port++
					return frame(proto, at(c.from, port), c.to, []byte("hi"))
				}
				try := func(what string, pod, other PolicySubject, counted string) {
					t.Helper()
					l.judge(t, pod, other)
					in := packet()
					for _, again := range []string{", first", ", again"} {
						l.want(t, f.name+" "+name+" "+c.what+", "+what+again, c.program, c.ifindex, in, counted)
					}
				}
				closed, open := PolicySubject{Egress: nobody, Ingress: nobody}, PolicySubject{}
				opposite := PolicySubject{Egress: nobody}
				if c.source {
					opposite = PolicySubject{Ingress: nobody}
				}
				egress, ingress := c.counted, c.counted
				if c.source {
					egress = "drop_policy_egress"
				}
				if c.dest {
					ingress = "drop_policy_ingress"
				}
				try("not judged", open, open, c.counted)
				try("source closed", closed, open, egress)
				try("destination closed", open, closed, ingress)
				try("judged in the other direction", opposite, PolicySubject{Egress: nobody}, c.counted)
				try("all may", PolicySubject{Egress: everybody, Ingress: nobody}, PolicySubject{Ingress: everybody, Egress: nobody}, c.counted)
				try("its port may", PolicySubject{Egress: web}, PolicySubject{Ingress: web}, c.counted)
				if c.source && c.dest {
					try("only the pod may", PolicySubject{Egress: onlyOf(isOther)}, PolicySubject{Ingress: onlyOf(isPod)}, c.counted)
					try("only another may", PolicySubject{}, PolicySubject{Ingress: onlyOf(isRemote)}, "drop_policy_ingress")
				}
			}
		}
	}
}

// A Service without backends is refused by itself, also to who may send nothing: policies judge where packets go, and these go nowhere.
func TestPolicyOfServicesWithoutBackends(t *testing.T) {
	l := newPolicyLab(t)
	for _, f := range families {
		vip := at(f.service, 80)
		for name, proto := range map[string]byte{"TCP": 6, "UDP": 17} {
			l.service(t, LoadBalancer{Name: "ns/empty:http", Protocol: proto, Frontends: fronts(ClusterIP, vip)})
			for _, pod := range []PolicySubject{{Egress: nobody, Ingress: nobody}, {Egress: everybody, Ingress: everybody}, {}} {
				l.judge(t, pod, PolicySubject{})
				in := frame(proto, at(f.pod, 5000), vip, []byte("hi"))
				verdict, out, counted := l.at(t, podProgram, l.podVeth, in)
				if from, to := addrs(out); verdict != actRedirect || counted != "drop_no_backend" || from != vip.Addr() || to.String() != f.pod {
					t.Errorf("%s %s, judged by %+v: verdict %d, counted %q, %s to %s", f.name, name, pod, verdict, counted, from, to)
				}
			}
		}
	}
}

// A pod without a row sends and gets nothing.
func TestPodWithoutVerdict(t *testing.T) {
	l := newPolicyLab(t)
	for _, f := range families {
		must(t, l.d.Policies().Apply(PolicyChange{GoneSubjects: []netip.Addr{netip.MustParseAddr(f.other)}}))
		for what, c := range map[string]struct {
			program string
			ifindex int
			in      []byte
		}{
			"to it":            {podProgram, l.podVeth, frame(6, at(f.pod, 1), at(f.other, 80), nil)},
			"from it":          {podProgram, l.otherVeth, frame(17, at(f.other, 1), at(f.far, 80), nil)},
			"a question of it": {podProgram, l.otherVeth, frame(17, at(f.other, 1), at(f.dns, 53), query(t, "a.b.cluster.local.", 1, false))},
			"from the node":    {toPodProgram, l.otherVeth, frame(6, at(f.node, 1), at(f.other, 80), nil)},
			"an error":         {podProgram, l.otherVeth, icmp(f.other, f.far, f.unreachable, 0, 0, frame(17, at(f.far, 1), at(f.other, 1), nil)[14:])},
			"a later fragment": {podProgram, l.otherVeth, later(17, f.other, f.far, 7, 16)},
			"another protocol": {podProgram, l.podVeth, frame(47, at(f.pod, 1), at(f.other, 1), nil)},
			"an echo":          {podProgram, l.podVeth, icmp(f.pod, f.other, f.echo, 0, 1, nil)},
		} {
			l.want(t, f.name+" "+what, c.program, c.ifindex, c.in, "drop_no_verdict")
		}
	}
}

// Answers of what was allowed pass whatever is closed, on all ways back, and only those.
func TestPolicyAnswers(t *testing.T) {
	l := newPolicyLab(t)
	l.judge(t, PolicySubject{Egress: web, Ingress: nobody}, PolicySubject{Ingress: web, Egress: nobody})
	port := uint16(30000)
	for _, f := range families {
		for name, proto := range protocols {
			port++
			client, backend := at(f.pod, port), at(f.other, 8080)
			what := f.name + " " + name + " "
			l.want(t, what+"an answer before the question", podProgram, l.otherVeth, reply(frame(proto, client, backend, nil)), "drop_policy_egress")
			l.want(t, what+"question", podProgram, l.podVeth, frame(proto, client, backend, nil), "pod_to_pod")
			l.want(t, what+"answer", podProgram, l.otherVeth, reply(frame(proto, client, backend, nil)), "pod_to_pod")
			l.want(t, what+"answer to another port", podProgram, l.otherVeth, reply(frame(proto, at(f.pod, port+500), backend, nil)), "drop_policy_egress")
			l.want(t, what+"a question back", podProgram, l.otherVeth, frame(proto, backend, at(f.pod, 8080), nil), "drop_policy_egress")
			// Outside, and back.
			far := at(f.far, 8080)
			l.want(t, what+"to outside", podProgram, l.podVeth, frame(proto, client, far, nil), "")
			out := l.want(t, what+"to outside, masqueraded", egressProgram, l.uplink, frame(proto, client, far, nil), "masqueraded_out")
			l.want(t, what+"from outside", uplinkProgram, l.uplink, reply(out), "masqueraded_in")
			// A Service of another node's pod, which is translated back at the pod's interface.
			vip := at(f.service, 80)
			l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: proto, Frontends: fronts(ClusterIP, vip), Backends: backs(at(f.remote(), 8080))})
			out = l.want(t, what+"to a Service", podProgram, l.podVeth, frame(proto, client, vip, nil), "pod_to_remote")
			l.from = l.tunnel
			l.want(t, what+"of a Service", toPodProgram, l.podVeth, reply(out), "service_to_pod")
			// One of the other pod, whose answer comes to the first as the Service's: it was judged where it began.
			l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: proto, Frontends: fronts(ClusterIP, vip), Backends: backs(backend)})
			out = l.want(t, what+"to a Service here", podProgram, l.podVeth, frame(proto, at(f.pod, port+200), vip, nil), "pod_to_service")
			back := l.want(t, what+"of a Service here", podProgram, l.otherVeth, reply(out), "pod_to_uplink")
			l.from, l.mark = l.otherVeth, 0x53701ce5
			l.want(t, what+"of a Service here, at the pod", toPodProgram, l.podVeth, back, "")
			l.mark = 0
			l.want(t, what+"the same without a mark", toPodProgram, l.podVeth, back, "drop_policy_ingress")
			l.from = 0
			// From outside to a Service.
			nodePort := at(f.node, 30080)
			l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: proto, Frontends: fronts(NodePort, nodePort), Backends: backs(backend)})
			out = l.want(t, what+"to a NodePort", uplinkProgram, l.uplink, frame(proto, at(f.far, port), nodePort, nil), "uplink_to_pod")
			l.want(t, what+"of a NodePort", podProgram, l.otherVeth, reply(out), "pod_to_uplink")
		}
	}
}

// The node's own stack reaches its pods, and gets their answers. What it only forwards is judged, and so is another node.
func TestPolicyOfTheNode(t *testing.T) {
	onOneProcessor(t) // what is judged is recalled
	l := newPolicyLab(t)
	closed := PolicySubject{Egress: nobody, Ingress: nobody}
	l.judge(t, closed, closed)
	for _, f := range families {
		for name, proto := range protocols {
			what := f.name + " " + name + " "
			probe := frame(proto, at(f.node, 40000), at(f.pod, 8080), []byte{1, 0, 0, 4}) // of SCTP, INIT
			l.from = l.uplink
			l.want(t, what+"forwarded", toPodProgram, l.podVeth, probe, "drop_policy_ingress")
			l.from = 0
			l.want(t, what+"an answer before", podProgram, l.podVeth, reply(probe), "drop_policy_egress")
			l.want(t, what+"of the node", toPodProgram, l.podVeth, probe, "")
			l.want(t, what+"answer", podProgram, l.podVeth, reply(probe), "")
			l.judge(t, closed, closed) // another revision
			l.want(t, what+"answer after a change", podProgram, l.podVeth, reply(probe), "")
			l.want(t, what+"of the node after a change", toPodProgram, l.podVeth, probe, "")
			l.want(t, what+"a flow back", podProgram, l.podVeth, frame(proto, at(f.pod, 8081), at(f.node, 40000), nil), "drop_policy_egress")
			l.from = l.uplink
			l.want(t, what+"another node", toPodProgram, l.podVeth, frame(proto, at(f.peer(), 40000), at(f.pod, 8080), nil), "drop_policy_ingress")
			l.from = 0
		}
		// Its connection is the node's also where one between the same ends is known that was judged.
		l.judge(t, PolicySubject{Ingress: web}, closed)
		l.from = l.uplink
		l.want(t, f.name+" forwarded", toPodProgram, l.podVeth, segment(at(f.node, 40001), at(f.pod, 8080), syn), "")
		l.from = 0
		l.want(t, f.name+" of the node", toPodProgram, l.podVeth, segment(at(f.node, 40002), at(f.pod, 8080), syn), "")
		l.judge(t, closed, closed)
		l.want(t, f.name+" of the node after a change", toPodProgram, l.podVeth, segment(at(f.node, 40002), at(f.pod, 8080), ack), "")
		// What the node answers makes no flow of its own: a connection that the pod may not have any more does not live on by it.
		l.judge(t, PolicySubject{Egress: web}, PolicySubject{})
		client, server := at(f.pod, 5000), at(f.node, 8080)
		l.want(t, f.name+" connects", podProgram, l.podVeth, segment(client, server, syn), "")
		l.want(t, f.name+" is accepted", toPodProgram, l.podVeth, segment(server, client, syn|ack), "")
		l.want(t, f.name+" is connected", podProgram, l.podVeth, segment(client, server, ack), "")
		l.judge(t, closed, PolicySubject{})
		l.want(t, f.name+" the node goes on", toPodProgram, l.podVeth, segment(server, client, ack), "drop_policy_egress")
		l.want(t, f.name+" the node goes on again", toPodProgram, l.podVeth, segment(server, client, ack), "drop_policy_egress")
		l.want(t, f.name+" the pod goes on", podProgram, l.podVeth, segment(client, server, ack), "drop_policy_egress")
		l.want(t, f.name+" a segment of no connection", toPodProgram, l.podVeth, segment(at(f.node, 8081), client, ack), "")
		l.want(t, f.name+" its answer", podProgram, l.podVeth, segment(client, at(f.node, 8081), ack), "drop_policy_egress")
		l.judge(t, closed, closed)
	}
}

// A pod that gets itself by a Service: NetworkPolicies let it, Admin policies are asked.
func TestPolicyOfHairpins(t *testing.T) {
	l := newPolicyLab(t)
	port := uint16(21000)
	for _, f := range families {
		vip := at(f.service, 80)
		for name, proto := range protocols {
			l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: proto, Frontends: fronts(ClusterIP, vip), Backends: backs(at(f.pod, 8080))})
			for _, c := range []struct {
				what    string
				pod     PolicySubject
				counted string
			}{
				{"closed", PolicySubject{Egress: nobody, Ingress: nobody}, "pod_to_service"},
				{"banned from sending", PolicySubject{Egress: banned, Ingress: nobody}, "drop_policy_egress"},
				{"banned from getting", PolicySubject{Egress: nobody, Ingress: banned}, "drop_policy_ingress"},
				{"not judged", PolicySubject{}, "pod_to_service"},
			} {
				port++
				l.judge(t, c.pod, PolicySubject{})
				what := f.name + " " + name + " " + c.what
				in := frame(proto, at(f.pod, port), vip, nil)
				for range 2 {
					out := l.want(t, what, podProgram, l.podVeth, in, c.counted)
					if c.counted != "pod_to_service" {
						continue
					}
					l.from = l.podVeth
					l.mark = 0x53701ce5
					l.want(t, what+", at its interface", toPodProgram, l.podVeth, out, "")
					l.mark = 0
					back := l.want(t, what+", answer", podProgram, l.podVeth, reply(out), "pod_to_uplink")
					l.want(t, what+", answer at its interface", toPodProgram, l.podVeth, back, "")
					l.from = 0
				}
			}
		}
		l.judge(t, PolicySubject{Egress: banned, Ingress: banned}, PolicySubject{})
		l.want(t, f.name+" its own address", podProgram, l.podVeth, frame(6, at(f.pod, port), at(f.pod, 80), nil), "pod_to_pod")
	}
}

// Echoes and other protocols are flows without a port; errors pass if they are about a flow that does; the neighbours' messages always.
func TestPolicyOfOtherProtocols(t *testing.T) {
	l := newPolicyLab(t)
	for _, f := range families {
		what := f.name + " "
		ping, pong := icmp(f.pod, f.other, f.echo, 0, 7<<16, nil), icmp(f.other, f.pod, f.echoReply, 0, 7<<16, nil)
		gre, back := frame(47, at(f.pod, 0), at(f.other, 0), nil), frame(47, at(f.other, 0), at(f.pod, 0), nil)
		l.judge(t, PolicySubject{Egress: web}, PolicySubject{Egress: nobody})
		l.want(t, what+"a rule for ports, echo", podProgram, l.podVeth, ping, "drop_policy_egress")
		l.want(t, what+"a rule for ports, GRE", podProgram, l.podVeth, gre, "drop_policy_egress")
		l.judge(t, PolicySubject{Egress: everybody, Ingress: nobody}, PolicySubject{Egress: nobody})
		l.want(t, what+"an echo's answer before", podProgram, l.otherVeth, pong, "drop_policy_egress")
		l.want(t, what+"echo", podProgram, l.podVeth, ping, "pod_to_pod")
		l.want(t, what+"the echo's answer", podProgram, l.otherVeth, pong, "pod_to_pod")
		l.want(t, what+"another's answer", podProgram, l.otherVeth, icmp(f.other, f.pod, f.echoReply, 0, 8<<16, nil), "drop_policy_egress")
		l.want(t, what+"GRE", podProgram, l.podVeth, gre, "pod_to_pod")
		l.want(t, what+"GRE back", podProgram, l.otherVeth, back, "pod_to_pod")
		asked := frame(17, at(f.pod, 5000), at(f.other, 8080), []byte("question"))
		refused := icmp(f.other, f.pod, f.unreachable, 3, 0, asked[14:])
		l.want(t, what+"an error about nothing", podProgram, l.otherVeth, refused, "drop_policy_egress")
		l.want(t, what+"a question", podProgram, l.podVeth, asked, "pod_to_pod")
		l.want(t, what+"an error about it", podProgram, l.otherVeth, refused, "pod_to_pod")
		l.want(t, what+"an error about it to another", podProgram, l.otherVeth, icmp(f.other, f.far, f.unreachable, 3, 0, asked[14:]), "drop_policy_egress")
		l.want(t, what+"an error that is cut off", podProgram, l.otherVeth, icmp(f.other, f.pod, f.unreachable, 3, 0, asked[14:30]), "drop_policy_egress")
		// From a router, about what went outside.
		sent := frame(17, at(f.pod, 5001), at(f.far, 8080), []byte("question"))
		l.from = l.uplink
		tooBig := icmp(f.hop, f.pod, f.unreachable, 4, 1400, sent[14:])
		l.want(t, what+"a router about nothing", toPodProgram, l.podVeth, tooBig, "drop_policy_ingress")
		l.want(t, what+"to outside", podProgram, l.podVeth, sent, "")
		l.want(t, what+"a router about it", toPodProgram, l.podVeth, tooBig, "")
		out := l.want(t, what+"to outside, masqueraded", egressProgram, l.uplink, sent, "masqueraded_out")
		l.want(t, what+"a router about it, masqueraded", uplinkProgram, l.uplink, icmp(f.hop, f.node, f.unreachable, 4, 1400, out[14:]), "masqueraded_error")
		l.judge(t, PolicySubject{Egress: nobody, Ingress: nobody}, PolicySubject{})
		l.want(t, what+"no more to outside", podProgram, l.podVeth, sent, "drop_policy_egress")
		l.want(t, what+"a router about what is denied now", toPodProgram, l.podVeth, tooBig, "drop_policy_ingress")
		l.from = 0
		l.want(t, what+"an error of the node", toPodProgram, l.podVeth, icmp(f.node, f.pod, f.unreachable, 4, 1400, sent[14:]), "")
		if f.name == "IPv6" {
			for _, kind := range []byte{133, 134, 135, 136, 137, 143} {
				l.from = l.uplink
				l.want(t, fmt.Sprint("ICMPv6 ", kind), toPodProgram, l.podVeth, icmp("fe80::1", f.pod, kind, 0, 0, make([]byte, 24)), "")
				l.from = 0
			}
			for _, kind := range []byte{141, 142, 148, 149, 151, 152, 153} { // pods are on no link with each other
				l.want(t, fmt.Sprint("ICMPv6 between pods ", kind), podProgram, l.podVeth, icmp(f.pod, f.other, kind, 0, 0, make([]byte, 24)), "drop_policy_egress")
			}
			l.want(t, "a solicitation of the pod", podProgram, l.podVeth, solicit(pod6, "fe80::1"), "neighbour_answered")
		} else {
			l.want(t, "ARP of the pod", podProgram, l.podVeth, arpFrame(1, podMAC, pod, gateway), "neighbour_answered")
		}
	}
}

// Errors about what a Service translated pass as the flow does.
func TestPolicyOfErrorsBehindServices(t *testing.T) {
	l := newPolicyLab(t)
	for _, f := range families {
		vip, nodePort := at(f.service, 80), at(f.node, 30080)
		l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: 17, Frontends: append(fronts(ClusterIP, vip), fronts(NodePort, nodePort)...), Backends: backs(at(f.other, 8080))})
		l.judge(t, PolicySubject{Egress: web, Ingress: nobody}, PolicySubject{Ingress: web, Egress: nobody})
		asked := l.want(t, f.name+" question", podProgram, l.podVeth, frame(17, at(f.pod, 5000), vip, []byte("question")), "pod_to_service")
		l.want(t, f.name+" the backend's error", podProgram, l.otherVeth, icmp(f.other, f.pod, f.unreachable, 3, 0, asked[14:]), "masqueraded_error")
		asked = l.want(t, f.name+" question from outside", uplinkProgram, l.uplink, frame(17, at(f.far, 5000), nodePort, []byte("question")), "uplink_to_pod")
		l.want(t, f.name+" the backend's error to outside", podProgram, l.otherVeth, icmp(f.other, f.far, f.unreachable, 3, 0, asked[14:]), "masqueraded_error")
		answer := l.want(t, f.name+" the backend's answer", podProgram, l.otherVeth, reply(asked), "pod_to_uplink")
		l.want(t, f.name+" an error about the answer", uplinkProgram, l.uplink, icmp(f.far, f.node, f.unreachable, 3, 0, answer[14:]), "masqueraded_erroruplink_to_pod")
		l.judge(t, PolicySubject{}, PolicySubject{Ingress: nobody, Egress: nobody})
		l.want(t, f.name+" question that is denied now", uplinkProgram, l.uplink, frame(17, at(f.far, 5000), nodePort, nil), "drop_policy_ingress")
		l.want(t, f.name+" the backend's error, denied", podProgram, l.otherVeth, icmp(f.other, f.far, f.unreachable, 3, 0, asked[14:]), "drop_policy_egressmasqueraded_error")
		// The client is here, its backend is not: what a router says of the question, and the client of the answer.
		l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: 17, Frontends: fronts(ClusterIP, vip), Backends: backs(at(f.far, 8080))})
		l.judge(t, PolicySubject{Egress: web, Ingress: nobody}, PolicySubject{})
		asked = l.want(t, f.name+" question to afar", podProgram, l.podVeth, frame(17, at(f.pod, 5001), vip, []byte("question")), "pod_to_service")
		l.want(t, f.name+" a router's error", uplinkProgram, l.uplink, icmp(f.hop, f.pod, f.unreachable, 4, 1400, asked[14:]), "masqueraded_error")
		answer = frame(17, vip, at(f.pod, 5001), []byte("answer"))
		l.want(t, f.name+" the client's error", podProgram, l.podVeth, icmp(f.pod, f.service, f.unreachable, 3, 0, answer[14:]), "masqueraded_errorpod_to_service")
		l.judge(t, PolicySubject{Egress: nobody, Ingress: nobody}, PolicySubject{})
		l.want(t, f.name+" question to afar that is denied now", podProgram, l.podVeth, frame(17, at(f.pod, 5001), vip, []byte("question")), "drop_policy_egress")
		l.want(t, f.name+" a router's error, denied", uplinkProgram, l.uplink, icmp(f.hop, f.pod, f.unreachable, 4, 1400, asked[14:]), "drop_policy_ingressmasqueraded_error")
	}
}

// Later fragments go as their first one went.
func TestPolicyOfFragments(t *testing.T) {
	l := newPolicyLab(t)
	for _, f := range families {
		vip := at(f.service, 80)
		l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: 17, Frontends: fronts(ClusterIP, vip), Backends: backs(at(f.other, 8080))})
		l.judge(t, PolicySubject{Egress: web, Ingress: nobody}, PolicySubject{Ingress: web, Egress: nobody})
		whole := func(port uint16) []byte {
			return frame(17, at(f.pod, 5000), at(f.other, port), []byte("0123456789abcdef"))
		}
		l.want(t, f.name+" later without a first", podProgram, l.podVeth, later(17, f.pod, f.other, 7, 16), "drop_policy_fragment")
		l.want(t, f.name+" first, denied", podProgram, l.podVeth, cut(whole(9), 7, 0, true), "drop_policy_egress")
		l.want(t, f.name+" later of a denied one", podProgram, l.podVeth, later(17, f.pod, f.other, 7, 16), "drop_policy_fragment")
		l.want(t, f.name+" first", podProgram, l.podVeth, cut(whole(8080), 8, 0, true), "pod_to_pod")
		l.want(t, f.name+" later", podProgram, l.podVeth, later(17, f.pod, f.other, 8, 16), "pod_to_pod")
		l.want(t, f.name+" later of another", podProgram, l.podVeth, later(17, f.pod, f.other, 9, 16), "drop_policy_fragment")
		l.want(t, f.name+" later to another", podProgram, l.podVeth, later(17, f.pod, f.far, 8, 16), "drop_policy_fragment")
		l.want(t, f.name+" answer, first", podProgram, l.otherVeth, cut(frame(17, at(f.other, 8080), at(f.pod, 5000), []byte("0123456789abcdef")), 8, 0, true), "pod_to_pod")
		l.want(t, f.name+" answer, later", podProgram, l.otherVeth, later(17, f.other, f.pod, 8, 16), "pod_to_pod")
		l.want(t, f.name+" to a Service, first", podProgram, l.podVeth, cut(frame(17, at(f.pod, 5000), vip, []byte("0123456789abcdef")), 10, 0, true), "pod_to_service")
		l.want(t, f.name+" to a Service, later", podProgram, l.podVeth, later(17, f.pod, f.service, 10, 16), "pod_to_service")
		l.want(t, f.name+" a fragment over a TCP header", podProgram, l.podVeth, later(6, f.pod, f.other, 7, 8), "drop_malformed")
		l.judge(t, PolicySubject{}, PolicySubject{})
		l.want(t, f.name+" later, not judged", podProgram, l.podVeth, later(17, f.pod, f.other, 11, 16), "pod_to_pod")
	}
}

// A question to the cluster's DNS is judged by the address of that, whoever answers it.
func TestPolicyOfDNS(t *testing.T) {
	l := newPolicyLab(t)
	_, err := l.d.Names().Replace("u", []Name{{Name: "web.default.svc.cluster.local.", Addrs: []netip.Addr{netip.MustParseAddr("10.96.0.5")}}})
	must(t, err)
	for _, f := range families {
		known := frame(17, at(f.pod, 5000), at(f.dns, 53), query(t, "web.default.svc.cluster.local.", 1, false))
		unknown := frame(17, at(f.pod, 5001), at(f.dns, 53), query(t, "example.com.", 1, false))
		l.judge(t, PolicySubject{Egress: nobody, Ingress: nobody}, PolicySubject{})
		l.want(t, f.name+" closed", podProgram, l.podVeth, known, "drop_policy_egress")
		l.want(t, f.name+" closed, goes up", podProgram, l.podVeth, unknown, "drop_policy_egress")
		l.want(t, f.name+" closed, TCP", podProgram, l.podVeth, frame(6, at(f.pod, 5001), at(f.dns, 53), nil), "drop_policy_egress")
		l.judge(t, PolicySubject{Egress: onlyOf(isDNS), Ingress: nobody}, PolicySubject{})
		answer := l.want(t, f.name+" allowed", podProgram, l.podVeth, known, "dns_answered")
		l.from = l.podVeth
		l.want(t, f.name+" its answer", toPodProgram, l.podVeth, answer, "")
		l.from = 0
		if n := policyFlowCount(t, l.d); n != 0 {
			t.Errorf("%s: %d flows after a question that the kernel answered", f.name, n)
		}
		l.want(t, f.name+" allowed, goes up", podProgram, l.podVeth, unknown, "dns_passed"+"dns_passed_outside")
		l.want(t, f.name+" the answer from above", toPodProgram, l.podVeth, frame(17, at(f.dns, 53), at(f.pod, 5001), []byte("answer")), "")
		if n := policyFlowCount(t, l.d); n != 1 {
			t.Errorf("%s: %d flows after a question that went up", f.name, n)
		}
		forgetPolicyFlows(t, l.d)
	}
}
