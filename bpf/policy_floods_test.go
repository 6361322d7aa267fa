package bpf

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// Whatever one pod sends, connections stay, and where there is no room for another it passes all the same and is told.
func TestPolicyFloods(t *testing.T) {
	l := newPolicyLab(t, func(c *Config) { c.Flows, c.newestRows = 100, 1 })
	l.judge(t, PolicySubject{Egress: everybody, Ingress: nobody}, PolicySubject{Ingress: everybody, Egress: nobody})
	f := families[0]
	server := at(f.other, 8080)
	connect := func(port int) {
		client := at(f.pod, uint16(port))
		l.run(t, podProgram, l.podVeth, segment(client, server, syn))
		l.run(t, podProgram, l.otherVeth, segment(server, client, syn|ack))
		l.run(t, podProgram, l.podVeth, segment(client, server, ack))
	}
	for i := range 80 {
		connect(1000 + i)
	}
	for i := range 2000 {
		l.run(t, podProgram, l.podVeth, frame(17, at(f.pod, uint16(1024+i)), at(f.far, 53), nil))
		l.run(t, podProgram, l.podVeth, segment(at(f.pod, uint16(10000+i)), server, syn))
	}
	for i := range 80 {
		l.want(t, "an answer behind the flood", podProgram, l.otherVeth, segment(server, at(f.pod, uint16(1000+i)), ack), "pod_to_pod")
	}
	for i := range 40 {
		connect(2000 + i)
	}
	if n, _ := counterOf(t, l.d, "policy_flows_full"); n < 10 {
		t.Errorf("%d connections found no room", n)
	}
	// A second later it is tried again. Of this row alone: one that is written may push out another here.
	for key, row := range rowsOfPolicyFlows(t, l.d, policyFlowsPassing) {
		if port16(key.LowPort) == 2038 || port16(key.HighPort) == 2038 {
			row.Seen--
			must(t, l.d.net.Maps[policyFlowsPassing].Put(key, row))
		}
	}
	l.want(t, "a question without room", podProgram, l.podVeth, segment(at(f.pod, 2038), server, ack), "pod_to_podpolicy_flows_full")
	tries := 0 // where packets are slow the next one may be of another second
	for ; tries < 10; tries++ {
		if _, _, counted := l.at(t, podProgram, l.otherVeth, segment(server, at(f.pod, 2038), ack)); counted == "pod_to_pod" {
			break
		}
	}
	if tries == 10 {
		t.Error("each packet looks for room again")
	}
	// The agent is told, and makes room.
	for key, row := range rowsOfPolicyFlows(t, l.d, policyFlowsOpen) {
		row.Seen -= 7500
		must(t, l.d.net.Maps[policyFlowsOpen].Put(key, row))
	}
	ctx, stop := context.WithCancel(context.Background())
	swept, done := make(chan SweptFlows, 10), make(chan error)
	go func() {
		done <- l.d.KeepFlows(ctx, func(s SweptFlows, err error) {
			if err != nil {
				t.Error(err)
			}
			swept <- s
		})
	}()
	select {
	case s := <-swept:
		if !s.Full || s.Deleted < 80 {
			t.Errorf("%+v", s)
		}
	case <-time.After(30 * time.Second):
		t.Error("nobody made room")
	}
	stop()
	must(t, <-done)
	connect(3000)
	connect(3001)
	if table, _ := policyFlow(t, l.d, 6, at(f.pod, 3000), server); table != policyFlowsOpen {
		t.Errorf("a connection after that is in %q", table)
	}
}

// Rows of pods that are gone go, and those of connections that had no packet for long.
func TestPolicyFlowsAreSwept(t *testing.T) {
	l := newPolicyLab(t)
	now := monotonic(t)
	state := uint8(flowReplied | flowAgreed)
	rows := map[string]netPolicyFlow{pod: {Seen: now, State: state}, other: {Seen: now - 90000, State: state}, "10.244.0.99": {Seen: now, State: state}}
	for a, row := range rows {
		must(t, l.d.net.Maps[policyFlowsOpen].Put(netPolicyKey{Low: addr16(netip.MustParseAddr(a)), High: addr16(netip.MustParseAddr("198.51.100.1")), Proto: 6}, row))
	}
	for port, idle := range []uint32{200, 300} { // one that is denied has no more than minutes
		key := netPolicyKey{Low: addr16(netip.MustParseAddr(pod)), High: addr16(netip.MustParseAddr("198.51.100.2")), HighPort: uint16(port), Proto: 6}
		must(t, l.d.net.Maps[policyFlowsOpen].Put(key, netPolicyFlow{Seen: now - idle, State: state, Flags: policyFlowDenied}))
	}
	s, err := l.d.sweepFlows(false)
	must(t, err)
	stats, err := l.d.FlowStats()
	must(t, err)
	if want := (MapStatus{Name: policyFlowsOpen, Rows: 2, Max: DefaultFlows}); stats.PolicyOpen != want {
		t.Errorf("%+v, want %+v", stats.PolicyOpen, want)
	}
	if s.Deleted != 3 || s.Left != 2 || policyFlowCount(t, l.d) != 2 {
		t.Errorf("%+v, %d rows are left", s, policyFlowCount(t, l.d))
	}
}

// Packets of all kinds, with a few bytes changed: whatever a closed pod sends or is sent goes nowhere, but what concerns its link and errors of the node.
func TestClosedPodsStayClosed(t *testing.T) {
	l := newPolicyLab(t)
	closed := PolicySubject{Egress: nobody, Ingress: nobody}
	l.judge(t, closed, closed)
	rng := rand.New(rand.NewPCG(5, 6))
	var from, to [][]byte
	for _, f := range families {
		l.service(t, LoadBalancer{Name: "ns/" + f.name, Protocol: 6, Frontends: fronts(ClusterIP, at(f.service, 80)), Backends: backs(at(f.other, 8080))})
		asked := frame(17, at(f.pod, 1), at(f.far, 1), nil)
		from = append(from, frame(6, at(f.pod, 1000), at(f.other, 80), []byte("x")), frame(6, at(f.pod, 1000), at(f.service, 80), []byte("x")),
			frame(17, at(f.pod, 1), at(f.dns, 53), query(t, "a.b.", 1, true)), later(17, f.pod, f.other, 7, 16), cut(asked, 7, 0, true),
			icmp(f.pod, f.far, f.echo, 0, 1, nil), icmp(f.pod, f.far, f.unreachable, 1, 0, reply(asked)[14:]), frame(47, at(f.pod, 1), at(f.other, 1), nil))
		to = append(to, frame(6, at(f.far, 1000), at(f.pod, 80), []byte("x")), frame(17, at(f.peer(), 1), at(f.pod, 53), nil), later(17, f.far, f.pod, 7, 16),
			icmp(f.far, f.pod, f.unreachable, 1, 0, asked[14:]), icmp(f.far, f.pod, f.echo, 0, 1, nil), frame(47, at(f.far, 1), at(f.pod, 1), nil))
	}
	from = append(from, extended(frame(6, at(pod6, 1), at(other6, 1), nil), extension(0, 1), extension(60, 1), extension(43, 1), extension(44, 1)))
	denied := 0
	for i := range 4000 {
		seeds, program := from, podProgram
		if i%2 == 1 {
			seeds, program = to, toPodProgram
			l.from = l.uplink
		}
		in := slices.Clone(seeds[rng.IntN(len(seeds))])
		for range rng.IntN(4) {
			in[14+rng.IntN(len(in)-14)] = byte(rng.Uint32())
		}
		verdict, _ := l.run(t, program, l.podVeth, in)
		l.from = 0
		if verdict == actShot {
			denied++
			continue
		}
		if proto, l4, _ := transport(in); program == podProgram && fromPod(in) && isV6(in) && proto == 58 && spared(in[l4]) {
			continue
		} else if src, dst := addrs(in); program == podProgram && src == dst {
			continue
		} else if program == toPodProgram && isV6(in) && proto == 58 && spared(in[l4]) {
			continue
		}
		t.Fatalf("%s passes %x: verdict %d", program, in, verdict)
	}
	if denied < 3000 {
		t.Errorf("%d of 4000 are denied", denied)
	}
	if n := policyFlowCount(t, l.d); n != 0 {
		t.Errorf("%d flows have rows", n)
	}
}

// spared tells the messages of ICMPv6 that are not for policies.
func spared(kind byte) bool {
	return kind >= 130 && kind <= 137 || kind >= 141 && kind <= 143 || kind == 148 || kind == 149 || kind >= 151 && kind <= 153
}
