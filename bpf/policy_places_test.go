package bpf

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// A connection that begins takes the place of another one, which goes where its state asks for: a test of one place.
func TestNewestConnections(t *testing.T) {
	l := newPolicyLab(t, func(c *Config) { c.Flows, c.newestRows = 16, 1 })
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
	in := func(what string, port int, table string) {
		t.Helper()
		if got, row := policyFlow(t, l.d, 6, at(f.pod, uint16(port)), server); got != table {
			t.Errorf("%s: in %q, %+v; want %q", what, got, row, table)
		}
	}
	send(1, syn)
	in("the newest", 1, policyNewest)
	send(2, syn)
	in("one that waits for an answer", 1, policyFlowsPassing)
	l.want(t, "an answer", podProgram, l.otherVeth, segment(server, at(f.pod, 1), syn|ack), "pod_to_pod")
	in("an answer", 1, policyFlowsPassing)
	send(1, ack)
	in("both agreed", 1, policyFlowsOpen)
	send(1, fin|ack, fin|ack)
	in("it ended, and is not the newest", 1, policyFlowsPassing)
	send(1, syn)
	in("it begins again", 1, policyNewest)
	in("another one in its place", 2, policyFlowsPassing)
	l.want(t, "an answer", podProgram, l.otherVeth, segment(server, at(f.pod, 1), syn|ack), "pod_to_pod")
	send(1, ack)
	in("both agreed, the newest", 1, policyNewest)
	send(3, syn, syn|ack, ack)
	in("open while another one came", 1, policyFlowsOpen)
	send(1, rst)
	in("it was reset, and is not the newest", 1, policyFlowsPassing)
	send(3, fin|ack, fin|ack, ack)
	in("ended just now", 3, policyNewest)
	send(4, syn, syn|ack, ack)
	in("ended a while ago", 3, policyFlowsPassing)
	send(3, ack, ack) // what comes late
	send(4, rst)
	send(4, ack, ack) // by a stranger: it goes on
	in("it goes on", 4, policyNewest)
	send(4, rst)
	in("reset just now", 4, policyNewest)
	send(5, syn, syn|ack, ack)
	in("reset a while ago", 4, "")
	changeNewest(t, l.d, func(n *netPolicyNew) { n.Flow.Seen -= lifeOfClosed + 1; n.Flow.State |= flowFinIn | flowFinOut })
	send(6, syn)
	in("ended long ago", 5, "")
	l.judge(t, PolicySubject{Egress: everybody}, PolicySubject{Ingress: everybody})
	l.want(t, "an answer behind a change", podProgram, l.otherVeth, segment(server, at(f.pod, 6), syn|ack), "pod_to_pod")
	in("judged anew before both agreed", 6, policyFlowsPassing)
	send(7, syn, syn|ack, ack)
	for i := len(rowsOfPolicyFlows(t, l.d, policyFlowsOpen)); i < 16; i++ {
		must(t, l.d.net.Maps[policyFlowsOpen].Put(netPolicyKey{Proto: 6, LowPort: uint16(i)}, netPolicyFlow{Seen: monotonic(t), State: flowReplied | flowAgreed}))
	}
	l.want(t, "one that finds no room", podProgram, l.podVeth, segment(at(f.pod, 8), server, syn), "pod_to_podpolicy_flows_full")
	in("it finds no room", 7, policyFlowsPassing)
	in("there is always a place", 8, policyNewest)
}

// Who begins a connection has his place at once, unless he may be one who sends his SYN again, and is counted once for each connection.
func TestNewestConnectionsThatBeginAgain(t *testing.T) {
	onOneProcessor(t) // what is judged is recalled from the second on
	l := newPolicyLab(t, func(c *Config) { c.newestRows = 1 })
	l.judge(t, PolicySubject{Egress: web}, PolicySubject{Ingress: web})
	f := families[0]
	server := at(f.other, 8080)
	send := func(port int, flags ...byte) { // the first of the client, then in turns
		t.Helper()
		for i, b := range flags {
			ifindex, in := l.podVeth, segment(at(f.pod, uint16(port)), server, b)
			if i%2 == 1 {
				ifindex, in = l.otherVeth, segment(server, at(f.pod, uint16(port)), b)
			}
			l.want(t, "a packet", podProgram, ifindex, in, "pod_to_pod")
		}
	}
	in := func(what string, port int, table string, state uint8, begun uint64) {
		t.Helper()
		if got, row := policyFlow(t, l.d, 6, at(f.pod, uint16(port)), server); got != table || row.State != state {
			t.Errorf("%s: in %q, %+v; want %q, state %d", what, got, row, table, state)
		}
		hits, err := l.d.Policies().Hits()
		must(t, err)
		for _, h := range hits {
			if h.Packets != begun {
				t.Errorf("%s: %d connections began, and counted are %+v", what, begun, h)
			}
		}
	}
	send(1, syn)
	in("it is judged", 1, policyNewest, 0, 1)
	send(2, syn, syn|ack, ack)
	in("another one wants its place", 1, policyFlowsPassing, 0, 2)
	send(2, rst)

	const agreed, begunLately = flowReplied | flowAgreed, 256 // BEGUN_LATELY of lib/policytrack.h

	begun := func(before uint32) { // when those that have rows in tables began
		must(t, eachRow(l.d.net.Maps["policy_begun"], "policy_begun", func(i, at uint32) {
			if at != 0 {
				must(t, l.d.net.Maps["policy_begun"].Put(i, monotonic(t)-before))
			}
		}))
	}
	for range 2 { // each counts as a begin
		begun(begunLately * 3 / 4)
		send(1, syn)
		in("its SYN is sent again", 1, policyFlowsPassing, 0, 2)
		must(t, eachRow(l.d.net.Maps["policy_begun"], "policy_begun", func(i, at uint32) {
			if at != 0 && monotonic(t)-at > begunLately/2 {
				t.Errorf("behind a SYN that is sent again the connection began %d s ago", monotonic(t)-at)
			}
		}))
	}
	in("who was reset has kept the place", 2, policyNewest, agreed|flowReset, 2)
	send(3, syn, syn|ack, ack)
	in("he has it no more", 3, policyNewest, agreed, 3)
	send(4, syn)
	in("it is open", 3, policyFlowsOpen, agreed, 4)
	send(4, rst)
	send(3, syn)
	for k, row := range rowsOfPolicyFlows(t, l.d, policyNewest) { // the row of before is there still, and counts for nothing
		if port16(k.LowPort) != 3 && port16(k.HighPort) != 3 || row.State != 0 {
			t.Errorf("one that was open begins again, and the newest is %+v: %+v", k, row)
		}
	}
	send(5, syn)
	in("it gives way", 3, policyFlowsPassing, 0, 6)
	if rows := rowsOfPolicyFlows(t, l.d, policyFlowsOpen); len(rows) != 0 {
		t.Errorf("a connection that began again is open still: %+v", rows)
	}
	send(5, rst)
	begun(begunLately + 1)
	send(1, syn)
	if table, _ := policyFlow(t, l.d, 6, at(f.pod, 5), server); table != "" {
		t.Errorf("one that began long ago has looked for its row")
	}
}

// A connection in its place goes on behind a stranger's RST, is seen by each of its packets, and ends with its life.
func TestNewestConnectionsGoOn(t *testing.T) {
	l := newPolicyLab(t, func(c *Config) { c.newestRows = 1 })
	for _, f := range families {
		l.judge(t, PolicySubject{Egress: web}, PolicySubject{Ingress: web, Egress: nobody})
		client, server := at(f.pod, 1), at(f.other, 8080)
		question := func(what string, flags byte) {
			t.Helper()
			l.want(t, f.name+" "+what, podProgram, l.podVeth, segment(client, server, flags), "pod_to_pod")
		}
		answer := func(what string, flags byte, counted string) {
			t.Helper()
			l.want(t, f.name+" "+what, podProgram, l.otherVeth, segment(server, client, flags), counted)
		}
		connect := func() {
			t.Helper()
			question("a SYN", syn)
			answer("its answer", syn|ack, "pod_to_pod")
			question("both agree", ack)
		}
		seen := func(before uint32) { // changes when it was seen
			changeNewest(t, l.d, func(n *netPolicyNew) { n.Flow.Seen = monotonic(t) - before })
		}
		connect()
		question("a stranger's RST", rst)
		seen(0)
		answer("it goes on", ack, "pod_to_pod")
		client = at(f.pod, 2)
		connect()
		if table, row := policyFlow(t, l.d, 6, at(f.pod, 1), server); table != policyFlowsOpen || row.State != flowReplied|flowAgreed {
			t.Errorf("%s: one that went on behind a RST has left its place to be in %q: %+v", f.name, table, row)
		}
		seen(lifeOfOpen - 100)
		answer("late", ack, "pod_to_pod")
		if table, row := policyFlow(t, l.d, 6, client, server); table != policyNewest || monotonic(t)-row.Seen > 60 {
			t.Errorf("%s: in %q, %+v, behind a packet of now, %d", f.name, table, row, monotonic(t))
		}
		seen(lifeOfOpen + 100)
		answer("too late", ack, "drop_policy_egress")
		seen(lifeOfOpen + 100)
		answer("an end, too late", fin|ack, "drop_policy_egress")

		client = at(f.pod, 3)
		connect()
		l.judge(t, PolicySubject{Egress: web}, PolicySubject{Ingress: nobody, Egress: nobody})
		seen(0)
		answer("an end behind a change", fin|ack, "drop_policy_ingress")
		forgetPolicyFlows(t, l.d)
	}
}

// An error about a connection passes while that is the newest, as one behind it.
func TestErrorsAboutTheNewestConnection(t *testing.T) {
	l := newPolicyLab(t)
	l.judge(t, PolicySubject{Egress: web}, PolicySubject{Ingress: web, Egress: nobody})
	for _, f := range families {
		question := segment(at(f.pod, 5000), at(f.other, 8080), syn)
		about := icmp(f.other, f.pod, f.unreachable, 1, 0, question[14:])
		l.want(t, f.name+" before the connection", podProgram, l.otherVeth, about, "drop_policy_egress")
		for range 2 {
			l.want(t, f.name+" a question", podProgram, l.podVeth, question, "pod_to_pod")
			l.want(t, f.name+" an error", podProgram, l.otherVeth, about, "pod_to_pod")
		}
	}
}

// Where many begin at once in few places each goes on, and has one row in the end.
func TestNewestConnectionsAtOnce(t *testing.T) {
	l := newPolicyLab(t, func(c *Config) { c.newestRows = 2 })
	l.judge(t, PolicySubject{Egress: web}, PolicySubject{Ingress: web, Egress: nobody})
	f := families[0]
	server := at(f.other, 8080)
	const threads, each = 4, 200
	node, failed := currentSpace(t), make(chan error)
	for thread := range threads {
		go func() {
			runtime.LockOSThread() // and never unlocked, as in newServiceLab
			err := unix.Setns(int(node.f.Fd()), unix.CLONE_NEWNET)
			for i := range each {
				client := at(f.pod, uint16(10000+thread*each+i))
				for j, flags := range []byte{syn, syn | ack, ack, ack, ack, ack} {
					ifindex, in := l.podVeth, segment(client, server, flags)
					if j%2 == 1 {
						ifindex, in = l.otherVeth, segment(server, client, flags)
					}
					var verdict uint32
					if err == nil {
						verdict, err = l.d.net.Programs[podProgram].Run(&ebpf.RunOptions{Data: in, DataOut: make([]byte, len(in)+512), Context: l.context(ifindex)})
					}
					if err == nil && verdict != actRedirect {
						err = fmt.Errorf("packet %d of %v: verdict %d", j, client, verdict)
					}
				}
			}
			failed <- err
		}()
	}
	for range threads {
		must(t, <-failed)
	}
	for i := range threads * each {
		if table, row := policyFlow(t, l.d, 6, at(f.pod, uint16(10000+i)), server); table == policyFlowsPassing || table == "" || row.State != flowReplied|flowAgreed {
			t.Errorf("connection %d is in %q: %+v", i, table, row)
		}
	}
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
		for i := range uint16(40) { // some of which have its place
			begin("another port, without rows", 17, at(f.pod, 3), at(f.other, 8080^(0x101*(i+1))), "drop_no_verdict")
		}
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
