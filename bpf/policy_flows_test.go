package bpf

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// policyFlow finds the flow between two ends.
func policyFlow(t testing.TB, d *Datapath, protocol uint8, from, to netip.AddrPort) (table string, f netPolicyFlow) {
	t.Helper()
	for _, name := range policyFlowTables {
		must(t, eachRow(d.net.Maps[name], name, func(k netPolicyKey, v netPolicyFlow) {
			low, high := netip.AddrPortFrom(addrOf(k.Low), port16(k.LowPort)), netip.AddrPortFrom(addrOf(k.High), port16(k.HighPort))
			if k.Proto == protocol && (low == from && high == to || low == to && high == from) {
				if table != "" {
					t.Errorf("%s to %s is in two tables", from, to)
				}
				table, f = name, v
			}
		}))
	}
	return table, f
}

func rowsOfPolicyFlows(t testing.TB, d *Datapath, table string) map[netPolicyKey]netPolicyFlow {
	t.Helper()
	out := map[netPolicyKey]netPolicyFlow{}
	must(t, eachRow(d.net.Maps[table], table, func(k netPolicyKey, v netPolicyFlow) { out[k] = v }))
	return out
}

// A connection's state is followed, from its first packet on in one row of policy_flows_open while it is among the newest.
func TestPolicyFlowsHaveStates(t *testing.T) {
	l := newPolicyLab(t)
	l.judge(t, PolicySubject{Egress: web}, PolicySubject{Ingress: web})
	const replied, agreed = flowReplied, flowReplied | flowAgreed
	for _, f := range families {
		client, server := at(f.pod, 5000), at(f.other, 8080)
		for i, s := range []struct {
			answer bool
			flags  byte
			state  uint8
		}{
			{false, syn, 0}, {false, syn, 0}, {true, syn | ack, replied}, {false, ack, agreed}, {true, ack, agreed},
			{true, fin | ack, agreed | flowFinIn}, {false, fin | ack, agreed | flowFinIn | flowFinOut}, {true, ack, agreed | flowFinIn | flowFinOut},
			{false, syn, 0}, {true, syn | ack, replied}, {false, ack, agreed}, {false, rst, agreed | flowReset},
		} {
			ifindex, in := l.podVeth, segment(client, server, s.flags)
			if s.answer {
				ifindex, in = l.otherVeth, segment(server, client, s.flags)
			}
			l.want(t, fmt.Sprint(f.name, " step ", i), podProgram, ifindex, in, "pod_to_pod")
			if table, row := policyFlow(t, l.d, 6, client, server); table != policyFlowsOpen || row.State != s.state || row.Policy != serves || row.Rule != 1 {
				t.Errorf("%s step %d: in %q, %+v", f.name, i, table, row)
			}
		}
		{ // who answers can't begin a connection with the same ports
			l.want(t, f.name+" a SYN back", podProgram, l.otherVeth, segment(server, client, syn), "pod_to_pod")
			l.judge(t, PolicySubject{Egress: web}, PolicySubject{Ingress: web, Egress: nobody})
			l.want(t, f.name+" connects", podProgram, l.podVeth, segment(client, server, syn), "pod_to_pod")
			l.want(t, f.name+" a SYN back, denied", podProgram, l.otherVeth, segment(server, client, syn), "drop_policy_egress")
			l.want(t, f.name+" is accepted", podProgram, l.otherVeth, segment(server, client, syn|ack), "pod_to_pod")
			l.judge(t, PolicySubject{Egress: web}, PolicySubject{Ingress: web})
		}
	}
}

// Only so many connections are where no flood pushes them out before both sides agreed on them, and after they ended: the newest.
func TestNewestConnections(t *testing.T) {
	onOneProcessor(t)
	l := newPolicyLab(t, func(c *Config) { c.Flows = 16 }) // one of each processor
	if n := l.d.net.Maps[policyNewest].MaxEntries(); n != 1 {
		t.Fatalf("the ring has %d places", n)
	}
	l.judge(t, PolicySubject{Egress: web}, PolicySubject{Ingress: web})
	f := families[0]
	server := at(f.other, 8080)
	send := func(port int, flags ...byte) { // the first of the client, then in turns
		t.Helper()
		client := at(f.pod, uint16(port))
		for i, b := range flags {
			if i%2 == 0 {
				l.want(t, "a question", podProgram, l.podVeth, segment(client, server, b), "pod_to_pod")
			} else {
				l.want(t, "an answer", podProgram, l.otherVeth, segment(server, client, b), "pod_to_pod")
			}
		}
	}
	in := func(what string, port int, table string) netPolicyFlow {
		t.Helper()
		got, row := policyFlow(t, l.d, 6, at(f.pod, uint16(port)), server)
		if got != table {
			t.Errorf("%s: in %q, %+v; want %q", what, got, row, table)
		}
		return row
	}
	send(1, syn)
	in("the newest", 1, policyFlowsOpen)
	send(2, syn)
	in("one that waits for an answer", 1, policyFlowsPassing)
	l.want(t, "an answer", podProgram, l.otherVeth, segment(server, at(f.pod, 1), syn|ack), "pod_to_pod")
	in("an answer", 1, policyFlowsPassing)
	send(1, ack)
	in("both agreed", 1, policyFlowsOpen)
	send(1, fin|ack, fin|ack)
	in("it ended, and is none of the newest", 1, policyFlowsPassing)
	send(1, syn)
	in("it begins again", 1, policyFlowsOpen)
	in("another one in its place", 2, policyFlowsPassing)
	l.want(t, "an answer", podProgram, l.otherVeth, segment(server, at(f.pod, 1), syn|ack), "pod_to_pod")
	send(1, ack)
	send(3, syn, syn|ack, ack)
	if row := in("open while others came", 1, policyFlowsOpen); row.Flags&policyFlowNewest != 0 {
		t.Errorf("it is no more among the newest: %+v", row)
	}
	send(1, rst)
	in("it was reset, and is none of the newest", 1, policyFlowsPassing)
	send(3, fin|ack, fin|ack, ack)
	in("ended just now", 3, policyFlowsOpen)
	send(4, syn, syn|ack, ack)
	in("ended a while ago", 3, policyFlowsPassing)
	send(3, ack, ack) // what comes late
	send(4, rst)
	send(4, ack, ack) // by a stranger: it goes on
	in("it goes on", 4, policyFlowsOpen)
	send(4, rst)
	in("reset just now", 4, policyFlowsOpen)
	send(5, syn, syn|ack, ack)
	in("reset a while ago", 4, "")
	for key, row := range rowsOfPolicyFlows(t, l.d, policyFlowsOpen) { // and long ended
		row.Seen -= lifeOfClosed + 1
		row.State |= flowFinIn | flowFinOut
		must(t, l.d.net.Maps[policyFlowsOpen].Put(key, row))
	}
	send(6, syn)
	in("ended long ago", 5, "")
	l.judge(t, PolicySubject{Egress: everybody}, PolicySubject{Ingress: everybody})
	l.want(t, "an answer behind a change", podProgram, l.otherVeth, segment(server, at(f.pod, 6), syn|ack), "pod_to_pod")
	in("judged anew before both agreed", 6, policyFlowsPassing)
	send(7, syn)
	for key, row := range rowsOfPolicyFlows(t, l.d, policyFlowsOpen) { // no room, and the ring's place is of who is open
		row.State, row.Flags = flowReplied|flowAgreed, 0
		must(t, l.d.net.Maps[policyFlowsOpen].Put(key, row))
	}
	for i := len(rowsOfPolicyFlows(t, l.d, policyFlowsOpen)); i < 16; i++ {
		must(t, l.d.net.Maps[policyFlowsOpen].Put(netPolicyKey{Proto: 6, LowPort: uint16(i)}, netPolicyFlow{Seen: monotonic(t), State: flowReplied | flowAgreed}))
	}
	send(8, syn)
	in("it finds no room", 8, policyFlowsPassing)
}

// What was judged counts for further flows between the same ends to the same port, and for no others, until something changes.
func TestVerdictsAreRecalled(t *testing.T) {
	onOneProcessor(t)
	l := newPolicyLab(t)
	for _, f := range families {
		l.judge(t, PolicySubject{Egress: web}, PolicySubject{Ingress: everybody})
		begin := func(what string, proto byte, from, to netip.AddrPort, counted string) {
			t.Helper()
			ifindex := l.podVeth
			if from.Addr().String() == f.other {
				ifindex = l.otherVeth
			}
			l.want(t, f.name+" "+what, podProgram, ifindex, frame(proto, from, to, nil), counted)
		}
		begin("the first", 17, at(f.pod, 1), at(f.other, 8080), "pod_to_pod")
		// Rows that vanish without a change show who looks for them.
		for _, port := range []uint16{8080, 8081} {
			begin("another port", 17, at(f.pod, 2), at(f.other, port), map[uint16]string{8080: "pod_to_pod", 8081: "drop_policy_egress"}[port])
		}
		key := netPolicyAnswerKey{Rules: web}
		var ports uint32
		must(t, l.d.net.Maps["policy_answers"].Lookup(key, &ports))
		must(t, l.d.net.Maps["policy_answers"].Delete(key))
		begin("it is recalled", 17, at(f.pod, 3), at(f.other, 8080), "pod_to_pod")
		begin("another protocol", 132, at(f.pod, 3), at(f.other, 8080), "drop_no_verdict")
		begin("another end", 17, at(f.pod, 3), at(f.far, 8080), "drop_no_verdict")
		begin("the other direction", 17, at(f.other, 3), at(f.pod, 8080), "pod_to_pod")
		l.judge(t, PolicySubject{Egress: web}, PolicySubject{Ingress: everybody})
		begin("behind a change", 17, at(f.pod, 4), at(f.other, 8080), "drop_no_verdict")
		must(t, l.d.net.Maps["policy_answers"].Put(key, ports))
		begin("the row is back", 17, at(f.pod, 5), at(f.other, 8080), "pod_to_pod")
	}
}

// onOneProcessor keeps the calling goroutine on one processor.
func onOneProcessor(t testing.TB) {
	t.Helper()
	runtime.LockOSThread()
	var before, one unix.CPUSet
	must(t, unix.SchedGetaffinity(0, &before))
	cpu := 0
	for !before.IsSet(cpu) {
		cpu++
	}
	one.Set(cpu)
	must(t, unix.SchedSetaffinity(0, &one))
	t.Cleanup(func() {
		must(t, unix.SchedSetaffinity(0, &before))
		runtime.UnlockOSThread()
	})
}

// After a change a flow is judged anew in the direction in which it began, whichever packet comes first, and who keeps flows is not.
func TestPolicyChangeUnderFlows(t *testing.T) {
	l := newPolicyLab(t)
	port := uint16(5000)
	for _, f := range families {
		for name, proto := range protocols {
			for _, c := range []struct {
				what              string
				pod, other        PolicySubject // behind the change
				question, counted string        // of each direction
			}{
				{"still allowed", PolicySubject{Egress: everybody, Ingress: nobody}, PolicySubject{Ingress: web, Egress: nobody}, "pod_to_pod", "pod_to_pod"},
				{"no more to be sent", PolicySubject{Egress: nobody}, PolicySubject{Ingress: web}, "drop_policy_egress", "drop_policy_egress"},
				{"no more to be got", PolicySubject{Egress: web}, PolicySubject{Ingress: nobody}, "drop_policy_ingress", "drop_policy_ingress"},
				{"not judged any more", PolicySubject{}, PolicySubject{}, "pod_to_pod", "pod_to_pod"},
				{"kept by who sent", PolicySubject{Egress: nobody, KeepFlows: true}, PolicySubject{Ingress: web}, "pod_to_pod", "pod_to_pod"},
				{"kept by who sent alone", PolicySubject{Egress: nobody, KeepFlows: true}, PolicySubject{Ingress: nobody}, "drop_policy_ingress", "drop_policy_ingress"},
				{"kept by both", PolicySubject{Egress: nobody, KeepFlows: true}, PolicySubject{Ingress: nobody, KeepFlows: true}, "pod_to_pod", "pod_to_pod"},
			} {
				for _, answerFirst := range []bool{false, true} {
					port++
					what := fmt.Sprint(f.name, " ", name, " ", c.what, ", the answer is first: ", answerFirst)
					question := frame(proto, at(f.pod, port), at(f.other, 8080), []byte{1, 0, 0, 4})
					answer := reply(question)
					l.judge(t, PolicySubject{Egress: web}, PolicySubject{Ingress: web})
					l.want(t, what+": question", podProgram, l.podVeth, question, "pod_to_pod")
					l.want(t, what+": answer", podProgram, l.otherVeth, answer, "pod_to_pod")
					l.judge(t, c.pod, c.other)
					for range 2 {
						if !answerFirst {
							l.want(t, what+": question after the change", podProgram, l.podVeth, question, c.question)
						}
						l.want(t, what+": answer after the change", podProgram, l.otherVeth, answer, c.counted)
						answerFirst = false
					}
					// What is allowed again goes on.
					l.judge(t, PolicySubject{Egress: web}, PolicySubject{Ingress: web})
					l.want(t, what+": question after another change", podProgram, l.podVeth, question, "pod_to_pod")
				}
			}
		}
	}
}

// What a pod that keeps flows sends and gets is followed while nothing judges it, but a pod that gets its address keeps nothing of it.
func TestKeptFlowsAreThePodsOwn(t *testing.T) {
	l := newPolicyLab(t)
	for _, f := range families {
		in := segment(at(f.far, 5000), at(f.pod, 80), ack)
		open := segment(at(f.far, 5000), at(f.pod, 80), syn)
		l.from = l.uplink
		l.judge(t, PolicySubject{KeepFlows: true}, PolicySubject{})
		l.want(t, f.name+" begins", toPodProgram, l.podVeth, open, "")
		l.judge(t, PolicySubject{KeepFlows: true, Ingress: nobody}, PolicySubject{})
		l.want(t, f.name+" goes on", toPodProgram, l.podVeth, in, "")
		l.want(t, f.name+" another", toPodProgram, l.podVeth, segment(at(f.far, 5001), at(f.pod, 80), syn), "drop_policy_ingress")
		addr := netip.MustParseAddr(f.pod)
		must(t, l.d.Policies().Apply(PolicyChange{Subjects: []PolicySubject{{Addr: addr, KeepFlows: true, Ingress: nobody}}, Reborn: []netip.Addr{addr}}))
		l.want(t, f.name+" another pod, at once", toPodProgram, l.podVeth, in, "drop_policy_ingress")
		l.judge(t, PolicySubject{KeepFlows: true}, PolicySubject{})
		l.want(t, f.name+" begins again", toPodProgram, l.podVeth, open, "")
		must(t, l.d.Policies().Apply(PolicyChange{GoneSubjects: []netip.Addr{netip.MustParseAddr(f.pod)}}))
		l.want(t, f.name+" no pod", toPodProgram, l.podVeth, in, "drop_no_verdict")
		l.judge(t, PolicySubject{KeepFlows: true, Ingress: nobody}, PolicySubject{})
		l.want(t, f.name+" another pod", toPodProgram, l.podVeth, in, "drop_policy_ingress")
		l.from = 0
	}
}

// A connection with the ports of one that is kept is another one, and judged; that it was denied is nothing to the one that is kept.
func TestKeptFlowsLetNoOthersBegin(t *testing.T) {
	l := newPolicyLab(t)
	for _, f := range families {
		client, server := at(f.pod, 5000), at(f.other, 8080)
		l.judge(t, PolicySubject{KeepFlows: true}, PolicySubject{})
		l.want(t, f.name+" connects", podProgram, l.podVeth, segment(client, server, syn), "pod_to_pod")
		l.want(t, f.name+" is accepted", podProgram, l.otherVeth, segment(server, client, syn|ack), "pod_to_pod")
		l.want(t, f.name+" is connected", podProgram, l.podVeth, segment(client, server, ack), "pod_to_pod")
		l.judge(t, PolicySubject{KeepFlows: true, Egress: nobody}, PolicySubject{})
		for range 2 { // before and after the kept one is judged anew
			l.want(t, f.name+" connects again", podProgram, l.podVeth, segment(client, server, syn), "drop_policy_egress")
			l.want(t, f.name+" goes on", podProgram, l.podVeth, segment(client, server, ack), "pod_to_pod")
		}
		l.want(t, f.name+" an answer", podProgram, l.otherVeth, segment(server, client, ack), "pod_to_pod")
	}
}

// Connections that are older than a pod's isolation go on for a while, also if the pod speaks first; what it may not begin it may not begin.
func TestConnectionsOlderThanIsolation(t *testing.T) {
	l := newPolicyLab(t)
	apply := func(s PolicySubject) {
		var c PolicyChange
		for _, f := range families {
			s.Addr = netip.MustParseAddr(f.pod)
			c.Subjects = append(c.Subjects, s)
		}
		must(t, l.d.Policies().Apply(c))
	}
	for _, f := range families {
		answer := segment(at(f.pod, 8080), at(f.far, 5000), ack)
		apply(PolicySubject{})
		l.want(t, f.name+" before", podProgram, l.podVeth, answer, "")
		apply(PolicySubject{Ingress: web, Egress: nobody})
		l.want(t, f.name+" a SYN", podProgram, l.podVeth, segment(at(f.pod, 8080), at(f.far, 5000), syn), "drop_policy_egress")
		l.want(t, f.name+" of a port that nobody may ask", podProgram, l.podVeth, segment(at(f.pod, 8081), at(f.far, 5000), ack), "drop_policy_egress")
		l.want(t, f.name+" a datagram", podProgram, l.podVeth, frame(17, at(f.pod, 8080), at(f.far, 5000), nil), "drop_policy_egress")
		l.want(t, f.name+" an older one", podProgram, l.podVeth, answer, "")
		l.from = l.uplink
		l.want(t, f.name+" its client", toPodProgram, l.podVeth, segment(at(f.far, 5000), at(f.pod, 8080), ack), "")
		l.from = 0
		// As the adoption's time is over.
		k := addr16(netip.MustParseAddr(f.pod))
		v := l.d.Policies().subjects[k]
		if v.Adopts <= monotonic(t) {
			t.Errorf("adopts until %d", v.Adopts)
		}
		v.Adopts = monotonic(t) - 1
		must(t, l.d.net.Maps["policy_subjects"].Put(k, v))
		l.want(t, f.name+" an older one, adopted", podProgram, l.podVeth, answer, "")
		l.want(t, f.name+" too late", podProgram, l.podVeth, segment(at(f.pod, 8080), at(f.far, 5001), ack), "drop_policy_egress")
	}
}

// Connections that policies end stay where they are, so that they push out nothing that goes on.
func TestDeniedConnectionsPushNothingOut(t *testing.T) {
	l := newPolicyLab(t)
	for _, f := range families {
		l.judge(t, PolicySubject{Egress: everybody}, PolicySubject{Ingress: everybody})
		client, server := at(f.pod, 5000), at(f.other, 8080)
		for _, flags := range []byte{syn, ack} {
			l.want(t, f.name+" connects", podProgram, l.podVeth, segment(client, server, flags), "pod_to_pod")
			l.want(t, f.name+" is accepted", podProgram, l.otherVeth, segment(server, client, flags|ack), "pod_to_pod")
		}
		l.judge(t, PolicySubject{Egress: nobody}, PolicySubject{Ingress: everybody})
		l.want(t, f.name+" goes on", podProgram, l.podVeth, segment(client, server, ack), "drop_policy_egress")
		if table, row := policyFlow(t, l.d, 6, client, server); table != policyFlowsOpen || row.Flags&4 == 0 {
			t.Errorf("%s: in %q, %+v", f.name, table, row)
		}
		l.judge(t, PolicySubject{Egress: everybody}, PolicySubject{Ingress: everybody})
		l.want(t, f.name+" is allowed again", podProgram, l.otherVeth, segment(server, client, ack), "pod_to_pod")
		if table, row := policyFlow(t, l.d, 6, client, server); table != policyFlowsOpen || row.Flags&4 != 0 {
			t.Errorf("%s, allowed again: in %q, %+v", f.name, table, row)
		}
	}
}

// Pods from before there were policies on a node go on, from the first instant of programs that judge, also if these were killed on their way; where
// something was judged once, who has no row sends nothing, also if all pods went meanwhile.
func TestPodsFromBeforePoliciesGoOn(t *testing.T) {
	var config Config
	l := &policyLab{serviceLab: newServiceLab(t, func(c *Config) { config = *c })}
	f := families[0]
	in := frame(17, at(f.pod, 9000), at(f.other, 8080), []byte("hi"))
	config.Policy = true
	must(t, config.seedPolicies()) // and killed
	l.want(t, "the programs of before", podProgram, l.podVeth, in, "pod_to_pod")
	must(t, l.d.Close())
	l.d = open(t, config)
	for _, f := range families {
		l.want(t, f.name+", from before", podProgram, l.podVeth, frame(17, at(f.pod, 9000), at(f.other, 8080), []byte("hi")), "pod_to_pod")
	}
	must(t, l.d.Policies().Apply(PolicyChange{GoneSubjects: []netip.Addr{netip.MustParseAddr(f.pod), netip.MustParseAddr(f.other)}}))
	must(t, l.d.Close())
	l.d = open(t, config)
	l.want(t, "without a row", podProgram, l.podVeth, in, "drop_no_verdict")
}

// A restart keeps flows, verdicts, revision and what was counted; so does one that changes how many flows there may be.
func TestPolicyFlowsSurviveARestart(t *testing.T) {
	l := newPolicyLab(t, func(c *Config) { c.Flows = 1000 })
	l.judge(t, PolicySubject{Egress: web, Ingress: nobody}, PolicySubject{Ingress: web, Egress: nobody})
	f := families[0]
	client, server := at(f.pod, 5000), at(f.other, 8080)
	for _, flags := range []byte{syn, ack} {
		l.want(t, "connects", podProgram, l.podVeth, segment(client, server, flags), "pod_to_pod")
		l.want(t, "is accepted", podProgram, l.otherVeth, segment(server, client, flags|ack), "pod_to_pod")
	}
	l.want(t, "a question", podProgram, l.podVeth, frame(17, client, server, nil), "pod_to_pod")
	l.want(t, "denied", podProgram, l.podVeth, frame(17, client, at(f.other, 9), nil), "drop_policy_egress")
	hits, err := l.d.Policies().Hits()
	must(t, err)
	if len(hits) != 3 {
		t.Errorf("%+v", hits)
	}
	reopen := func(flows int, policy bool) {
		t.Helper()
		c := l.config
		c.Flows, c.Policy = flows, policy
		must(t, l.d.Close())
		l.d = open(t, c)
	}
	for _, flows := range []int{1000, 2000, 500} {
		reopen(flows, true)
		l.want(t, "goes on", podProgram, l.otherVeth, segment(server, client, ack), "pod_to_pod")
		l.want(t, "an answer", podProgram, l.otherVeth, frame(17, server, client, nil), "pod_to_pod")
		l.want(t, "denied", podProgram, l.otherVeth, frame(17, server, at(f.pod, 9), nil), "drop_policy_egress")
		if table, _ := policyFlow(t, l.d, 6, client, server); table != policyFlowsOpen {
			t.Errorf("with room for %d flows the connection is in %q", flows, table)
		}
		if n := l.d.net.Maps[policyFlowsOpen].MaxEntries(); n != uint32(flows) {
			t.Errorf("there is room for %d flows, not %d", n, flows)
		}
	}
	again, err := l.d.Policies().Hits()
	must(t, err)
	for i, h := range hits { // each start judges flows anew
		if len(again) != len(hits) || again[i].Policy != h.Policy || again[i].Packets <= h.Packets {
			t.Errorf("hits %+v, had %+v", again, hits)
		}
	}
	// While policies are off nobody is judged, and when they are on again older connections go on.
	reopen(500, false)
	l.want(t, "off", podProgram, l.podVeth, frame(17, client, at(f.other, 9), nil), "pod_to_pod")
	if n := l.d.net.Maps[policyFlowsPassing].MaxEntries(); n != 1 {
		t.Errorf("while policies are off there is room for %d flows", n)
	}
	reopen(500, true)
	l.want(t, "on again, denied", podProgram, l.podVeth, frame(17, client, at(f.other, 9), nil), "drop_policy_egress")
	l.want(t, "on again, the connection", podProgram, l.otherVeth, segment(server, client, ack), "pod_to_pod")
}

// Whatever one pod sends, connections stay, and where there is no room for another it passes all the same and is told.
func TestPolicyFloods(t *testing.T) {
	onOneProcessor(t) // what the ring of another one has would make room
	l := newPolicyLab(t, func(c *Config) { c.Flows = 100 })
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
		if port16(key.LowPort) == 2039 || port16(key.HighPort) == 2039 {
			row.Seen--
			must(t, l.d.net.Maps[policyFlowsPassing].Put(key, row))
		}
	}
	l.want(t, "a question without room", podProgram, l.podVeth, segment(at(f.pod, 2039), server, ack), "pod_to_podpolicy_flows_full")
	tries := 0 // where packets are slow the next one may be of another second
	for ; tries < 10; tries++ {
		if _, _, counted := l.at(t, podProgram, l.otherVeth, segment(server, at(f.pod, 2039), ack)); counted == "pod_to_pod" {
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

// Denied packets are counted each, allowed flows each time that they are judged, and rule sets in shadow where they would have done otherwise.
func TestPolicyHits(t *testing.T) {
	l := newPolicyLab(t)
	f := families[0]
	question := func(port uint16) []byte { return frame(17, at(f.pod, port), at(f.other, 8080), []byte("hi")) }
	length := uint64(len(question(1)))
	check := func(what string, want ...PolicyHit) {
		t.Helper()
		got, err := l.d.Policies().Hits()
		must(t, err)
		for i := range want {
			want[i].Bytes = want[i].Packets * length
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n%+v, want\n%+v", what, got, want)
		}
		must(t, l.d.Policies().Apply(PolicyChange{GoneNames: []uint32{closes, opens, serves, bans}}))
		if got, err := l.d.Policies().Hits(); err != nil || len(got) != 0 {
			t.Errorf("%s: of policies that are gone there is left %+v, %v", what, got, err)
		}
	}
	send := func(port uint16, n int, counted string) {
		t.Helper()
		for range n {
			l.want(t, "a question", podProgram, l.podVeth, question(port), counted)
		}
	}
	l.judge(t, PolicySubject{Egress: everybody}, PolicySubject{Ingress: web})
	send(1, 5, "pod_to_pod")
	send(2, 1, "pod_to_pod")
	check("allowed", PolicyHit{Policy: opens, Allow: true, Packets: 2}, PolicyHit{Policy: serves, Rule: 1, Ingress: true, Allow: true, Packets: 2})
	l.judge(t, PolicySubject{Egress: everybody}, PolicySubject{Ingress: nobody})
	send(1, 2, "drop_policy_ingress") // a flow that was allowed
	send(3, 3, "drop_policy_ingress")
	check("denied", PolicyHit{Policy: closes, Rule: PolicyNoRule, Ingress: true, Packets: 5})
	l.judge(t, PolicySubject{Egress: banned}, PolicySubject{Ingress: nobody})
	send(4, 2, "drop_policy_egress")
	check("denied by both", PolicyHit{Policy: bans, Rule: 2, Packets: 2})
	l.judge(t, PolicySubject{ShadowEgress: banned}, PolicySubject{Ingress: nobody, ShadowIngress: web})
	send(5, 2, "drop_policy_ingress")
	check("denied, in shadow allowed", PolicyHit{Policy: closes, Rule: PolicyNoRule, Ingress: true, Packets: 2}, PolicyHit{Policy: serves, Rule: 1, Ingress: true, Shadow: true, Allow: true, Packets: 2})
	l.judge(t, PolicySubject{ShadowEgress: banned}, PolicySubject{Ingress: web, ShadowIngress: everybody})
	send(6, 3, "pod_to_pod")
	check("allowed, in shadow denied", PolicyHit{Policy: serves, Rule: 1, Ingress: true, Allow: true, Packets: 1}, PolicyHit{Policy: bans, Rule: 2, Shadow: true, Packets: 1})
}

// Who watches sees which policy drops a packet.
func TestMonitorOfPolicies(t *testing.T) {
	l := newPolicyLab(t)
	m := openMonitor(t, l.config, false)
	l.judge(t, PolicySubject{Egress: banned}, PolicySubject{Egress: nobody})
	in := frame(6, at(pod, 5000), at(other, 80), nil)
	l.want(t, "banned", podProgram, l.podVeth, in, "drop_policy_egress")
	if e := next(t, m, "drop_policy_egress"); e.Policy != bans || e.Rule != 2 || string(e.Packet) != string(in) {
		t.Errorf("%+v", e)
	}
	l.want(t, "closed", podProgram, l.otherVeth, frame(6, at(other, 5000), at(pod, 80), nil), "drop_policy_egress")
	if e := next(t, m, "drop_policy_egress"); e.Policy != closes || e.Rule != PolicyNoRule {
		t.Errorf("%+v", e)
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
