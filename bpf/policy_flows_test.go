package bpf

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/cilium/ebpf"
)

// policyFlow finds the flow between two ends.
func policyFlow(t testing.TB, d *Datapath, protocol uint8, from, to netip.AddrPort) (table string, f netPolicyFlow) {
	t.Helper()
	for _, name := range []string{policyNewest, policyFlowsOpen, policyFlowsPassing} {
		for k, v := range rowsOfPolicyFlows(t, d, name) {
			low, high := netip.AddrPortFrom(addrOf(k.Low), port16(k.LowPort)), netip.AddrPortFrom(addrOf(k.High), port16(k.HighPort))
			if k.Proto == protocol && (low == from && high == to || low == to && high == from) {
				if table != "" {
					t.Errorf("%s to %s is in two tables", from, to)
				}
				table, f = name, v
			}
		}
	}
	return table, f
}

func rowsOfPolicyFlows(t testing.TB, d *Datapath, table string) map[netPolicyKey]netPolicyFlow {
	t.Helper()
	out := map[netPolicyKey]netPolicyFlow{}
	if table != policyNewest {
		must(t, eachRow(d.net.Maps[table], table, func(k netPolicyKey, v netPolicyFlow) { out[k] = v }))
		return out
	}
	must(t, eachRow(d.net.Maps[table], table, func(_ uint32, v netPolicyNew) {
		if v.Key.Proto != 0 {
			out[v.Key] = v.Flow
		}
	}))
	return out
}

// policyFlowCount is how many flows have a row.
func policyFlowCount(t testing.TB, d *Datapath) (n int) {
	t.Helper()
	for _, name := range []string{policyNewest, policyFlowsOpen, policyFlowsPassing} {
		n += len(rowsOfPolicyFlows(t, d, name))
	}
	return n
}

func forgetPolicyFlows(t testing.TB, d *Datapath) {
	t.Helper()
	for _, name := range policyFlowTables {
		for k := range rowsOfPolicyFlows(t, d, name) {
			must(t, d.net.Maps[name].Delete(k))
		}
	}
	changeNewest(t, d, func(n *netPolicyNew) { *n = netPolicyNew{} })
}

// changeNewest changes each connection in policy_places.
func changeNewest(t testing.TB, d *Datapath, change func(*netPolicyNew)) {
	t.Helper()
	m := d.net.Maps[policyNewest]
	must(t, eachRow(m, policyNewest, func(i uint32, n netPolicyNew) {
		if n.Key.Proto != 0 {
			change(&n)
			must(t, m.Put(i, n))
		}
	}))
}

// A connection's state is followed, in its place among the newest from its first packet on, or where a SYN that is sent again brings it.
func TestPolicyFlowsHaveStates(t *testing.T) {
	onOneProcessor(t) // a SYN that is sent again is one whose verdict is known
	l := newPolicyLab(t)
	l.judge(t, PolicySubject{Egress: web}, PolicySubject{Ingress: web})
	const replied, agreed = flowReplied, flowReplied | flowAgreed
	for _, f := range families {
		client, server := at(f.pod, 5000), at(f.other, 8080)
		for i, s := range []struct {
			answer bool
			flags  byte
			table  string
			state  uint8
		}{
			{false, syn, policyNewest, 0}, {false, syn, policyFlowsPassing, 0}, {true, syn | ack, policyFlowsPassing, replied},
			{false, ack, policyFlowsOpen, agreed}, {true, ack, policyFlowsOpen, agreed}, {true, fin | ack, policyFlowsOpen, agreed | flowFinIn},
			{false, fin | ack, policyFlowsPassing, agreed | flowFinIn | flowFinOut}, {true, ack, policyFlowsPassing, agreed | flowFinIn | flowFinOut},
			{false, syn, policyNewest, 0}, {true, syn | ack, policyNewest, replied}, {false, ack, policyNewest, agreed}, {true, ack, policyNewest, agreed},
			{true, fin | ack, policyNewest, agreed | flowFinIn}, {false, fin | ack, policyNewest, agreed | flowFinIn | flowFinOut},
			{false, syn, policyNewest, 0}, {true, syn | ack, policyNewest, replied}, {false, ack, policyNewest, agreed}, {false, rst, policyNewest, agreed | flowReset},
		} {
			ifindex, in := l.podVeth, segment(client, server, s.flags)
			if s.answer {
				ifindex, in = l.otherVeth, segment(server, client, s.flags)
			}
			l.want(t, fmt.Sprint(f.name, " step ", i), podProgram, ifindex, in, "pod_to_pod")
			if table, row := policyFlow(t, l.d, 6, client, server); table != s.table || row.State != s.state || row.Policy != serves || row.Rule != 1 {
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

// So is one on which both sides agreed while it has its place among the newest, where its packets change nothing and pass without a lock.
func TestPolicyChangeUnderAgreedConnections(t *testing.T) {
	l := newPolicyLab(t)
	for _, f := range families {
		for i, answerFirst := range []bool{false, true} {
			client, server := at(f.pod, uint16(5000+i)), at(f.other, 8080)
			question := func(flags byte, counted string) {
				t.Helper()
				l.want(t, f.name+" a question", podProgram, l.podVeth, segment(client, server, flags), counted)
			}
			answer := func(flags byte, counted string) {
				t.Helper()
				l.want(t, f.name+" an answer", podProgram, l.otherVeth, segment(server, client, flags), counted)
			}
			l.judge(t, PolicySubject{Egress: web}, PolicySubject{Ingress: web})
			question(syn, "pod_to_pod")
			answer(syn|ack, "pod_to_pod")
			question(ack, "pod_to_pod")
			l.judge(t, PolicySubject{Egress: web}, PolicySubject{Ingress: nobody})
			if table, row := policyFlow(t, l.d, 6, client, server); table != policyNewest || row.State != flowReplied|flowAgreed {
				t.Fatalf("%s: the connection is in %q, %+v", f.name, table, row)
			}
			changeNewest(t, l.d, func(n *netPolicyNew) { n.Flow.Seen = monotonic(t) }) // later it would pass by way of the lock, once
			if !answerFirst {
				question(ack, "drop_policy_ingress")
			}
			answer(ack, "drop_policy_ingress")
			question(ack, "drop_policy_ingress")
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
	// An upgrade from a release without policy_places, or back and forth again: while programs of both are there, each may miss what the others know.
	for _, before := range []string{"this release", "one without places", "one with others"} {
		upgrade := before != "this release"
		k := addr16(netip.MustParseAddr(f.pod))
		var row netPolicySubject
		must(t, l.d.net.Maps["policy_subjects"].Lookup(k, &row))
		row.Adopts = 0
		must(t, l.d.net.Maps["policy_subjects"].Put(k, row))
		var was ebpf.MapID
		switch info, err := l.d.net.Maps[policyNewest].Info(); before {
		case "one without places":
			must(t, l.d.net.Maps[policyNewest].Unpin())
		case "one with others":
			must(t, err)
			was, _ = info.ID()
			m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 64, MaxEntries: 1})
			must(t, err)
			must(t, m.Pin(filepath.Join(l.config.PinDir, policyNewestBefore)))
			must(t, m.Close())
		}
		reopen(500, true)
		info, err := l.d.net.Maps[policyNewest].Info()
		must(t, err)
		if id, _ := info.ID(); id == was || l.config.pinned(policyNewestBefore) {
			t.Errorf("an upgrade from %s: there are still places from before", before)
		}
		must(t, l.d.net.Maps["policy_subjects"].Lookup(k, &row))
		if got := row.Adopts > monotonic(t); got != upgrade {
			t.Errorf("an upgrade from %s: adopts until %d", before, row.Adopts)
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
