package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// recordLab is a policyLab that records flows.
type recordLab struct {
	*policyLab
	record *FlowRecord
}

func newRecordLab(t testing.TB, rate int) *recordLab {
	t.Helper()
	l := &recordLab{policyLab: newPolicyLab(t, func(c *Config) { c.RecordFlows = rate })}
	var err error
	l.record, err = l.d.FlowRecord()
	must(t, err)
	t.Cleanup(func() { l.record.Close() })
	return l
}

// events are those that were told since the last call.
func (l *recordLab) events(t testing.TB) []FlowEvent {
	t.Helper()
	var out []FlowEvent
	for {
		e, err := l.record.Read(time.Now())
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return out
		}
		must(t, err)
		if now := Monotonic(); e.Time <= 0 || e.Time > now || now-e.Time > time.Hour {
			t.Errorf("at %v, and now it is %v", e.Time, now)
		}
		e.Time = 0
		out = append(out, e)
	}
}

// forget empties the counts.
func (l *recordLab) forget(t testing.TB) {
	t.Helper()
	all, err := l.record.Classes()
	must(t, err)
	for c := range all {
		must(t, l.record.Forget([]FlowClass{c}))
	}
	all, err = l.record.Classes()
	must(t, err)
	if len(all) != 0 {
		t.Errorf("classes that are forgotten: %+v", all)
	}
}

// one wants one class to be counted, and one event; both are returned.
func (l *recordLab) one(t testing.TB, what string) (FlowClass, FlowTally, FlowEvent) {
	t.Helper()
	all, err := l.record.Classes()
	must(t, err)
	events := l.events(t)
	if len(all) != 1 || len(events) != 1 {
		t.Fatalf("%s: events %+v, classes %+v; want one of each", what, events, all)
	}
	l.forget(t)
	for c, n := range all {
		if n.First <= 0 || n.Last < n.First {
			t.Errorf("%s: from %v to %v", what, n.First, n.Last)
		}
		n.First, n.Last = 0, 0
		return c, n, events[0]
	}
	panic("unreachable")
}

func said(policy uint32, rule uint16, allow bool, tier PolicyTier) FlowVerdict {
	return FlowVerdict{Asked: true, PolicyVerdict: PolicyVerdict{Allow: allow, Policy: policy, Rule: rule, Tier: tier}}
}

var (
	saidClosed = said(closes, PolicyNoRule, false, PolicyTierNetworkPolicy)
	saidOpen   = said(opens, 0, true, PolicyTierNetworkPolicy)
	saidWeb    = said(serves, 1, true, PolicyTierNetworkPolicy)
)

// New flows and drops are recorded with both sides' verdicts, and what was asked for before a Service's translation; packets of flows that are known are
// not.
func TestFlowsAreRecorded(t *testing.T) {
	l := newRecordLab(t, 1000)
	port := uint16(20000)
	for _, f := range families {
		for name, proto := range protocols {
			vip, nodePort := at(f.service, 80), at(f.node, 30080)
			whole := func(a string) netip.Prefix {
				addr := netip.MustParseAddr(a)
				return netip.PrefixFrom(addr, addr.BitLen())
			}
			network := netip.PrefixFrom(netip.MustParseAddr(f.far), f.of32(24, 64)).Masked()
			for _, c := range []struct {
				what       string
				pod, other PolicySubject
				backend    string // of a Service
				program    string
				ifindex    int
				in         int // the interface that the packet came in by
				from       string
				to         netip.AddrPort // that it has
				judged     netip.AddrPort
				class      netip.Prefix
				sides      FlowSides
				denied     FlowDenial
				verdicts   FlowVerdicts
			}{
				{"allowed by both", PolicySubject{Egress: everybody}, PolicySubject{Ingress: web}, "", podProgram, l.podVeth, 0, f.pod, at(f.other, 8080), at(f.other, 8080), whole(f.pod),
					FlowSides{Source: true, Dest: true}, NotDenied, FlowVerdicts{Egress: saidOpen, Ingress: saidWeb}},
				{"not judged", PolicySubject{}, PolicySubject{}, "", podProgram, l.podVeth, 0, f.pod, at(f.other, 8080), at(f.other, 8080), whole(f.pod),
					FlowSides{Source: true, Dest: true}, NotDenied, FlowVerdicts{}},
				{"not judged, to outside", PolicySubject{}, PolicySubject{}, "", podProgram, l.podVeth, 0, f.pod, at(f.far, 443), at(f.far, 443), whole(f.pod),
					FlowSides{Source: true}, NotDenied, FlowVerdicts{}},
				{"denied by egress", PolicySubject{Egress: web}, PolicySubject{Ingress: web}, "", podProgram, l.podVeth, 0, f.pod, at(f.other, 81), at(f.other, 81), whole(f.pod),
					FlowSides{Source: true, Dest: true}, DeniedByEgress, FlowVerdicts{Egress: saidClosed, Ingress: saidClosed}},
				{"denied by ingress", PolicySubject{}, PolicySubject{Ingress: onlyOf(isRemote)}, "", podProgram, l.podVeth, 0, f.pod, at(f.other, 81), at(f.other, 81), whole(f.pod),
					FlowSides{Source: true, Dest: true}, DeniedByIngress, FlowVerdicts{Ingress: saidClosed}},
				{"to a Service", PolicySubject{Egress: web}, PolicySubject{}, f.other, podProgram, l.podVeth, 0, f.pod, vip, at(f.other, 8080), whole(f.pod),
					FlowSides{Source: true, Dest: true}, NotDenied, FlowVerdicts{Egress: saidWeb}},
				{"to a Service, not judged", PolicySubject{}, PolicySubject{}, f.other, podProgram, l.podVeth, 0, f.pod, vip, at(f.other, 8080), whole(f.pod),
					FlowSides{Source: true, Dest: true}, NotDenied, FlowVerdicts{}},
				{"to a Service of another node, denied", PolicySubject{Egress: nobody}, PolicySubject{}, f.remote(), podProgram, l.podVeth, 0, f.pod, vip, at(f.remote(), 8080), whole(f.pod),
					FlowSides{Source: true}, DeniedByEgress, FlowVerdicts{Egress: saidClosed}},
				{"to a NodePort from outside", PolicySubject{}, PolicySubject{Ingress: web}, f.other, uplinkProgram, l.uplink, l.uplink, f.far, nodePort, at(f.other, 8080), network,
					FlowSides{Dest: true}, NotDenied, FlowVerdicts{Ingress: saidWeb}},
				{"to a NodePort from outside, not judged", PolicySubject{}, PolicySubject{}, f.other, uplinkProgram, l.uplink, l.uplink, f.far, nodePort, at(f.other, 8080), network,
					FlowSides{Dest: true}, NotDenied, FlowVerdicts{}},
				{"of the node", PolicySubject{Ingress: nobody}, PolicySubject{}, "", toPodProgram, l.podVeth, 0, f.node, at(f.pod, 8080), at(f.pod, 8080), whole(f.node),
					FlowSides{Dest: true, Node: true}, NotDenied, FlowVerdicts{}},
				{"in shadow", PolicySubject{Egress: everybody, ShadowEgress: nobody}, PolicySubject{ShadowIngress: web}, "", podProgram, l.podVeth, 0, f.pod, at(f.other, 8080), at(f.other, 8080), whole(f.pod),
					FlowSides{Source: true, Dest: true}, NotDenied, FlowVerdicts{Egress: saidOpen, ShadowEgress: saidClosed, ShadowIngress: saidWeb}},
			} {
				what := fmt.Sprint(f.name, " ", name, " ", c.what)
				port++
				if c.backend != "" {
					l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: proto, Frontends: append(fronts(ClusterIP, vip), fronts(NodePort, nodePort)...), Backends: backs(at(c.backend, 8080))})
				}
				l.judge(t, c.pod, c.other)
				in := frame(proto, at(c.from, port), c.to, []byte{1, 0, 0, 4})
				packets, flows := 1, 1
				for range 3 { // the first one is told, and then it is known, or told again
					l.from = c.in
					l.run(t, c.program, c.ifindex, in)
					if c.denied != NotDenied {
						break
					}
				}
				packets = 0
				if c.denied != NotDenied {
					packets, flows = 1, 0
				}
				class, n, event := l.one(t, what)
				wantClass := FlowClass{From: c.class, To: c.judged.Addr(), Protocol: proto, Port: c.judged.Port(), FlowSides: c.sides, Denied: c.denied, Verdicts: c.verdicts}
				if class != wantClass {
					t.Errorf("%s: class\n%+v, want\n%+v", what, class, wantClass)
				}
				if want := (FlowTally{Flows: uint64(flows), Packets: uint64(packets), Bytes: uint64(len(in))}); n != want {
					t.Errorf("%s: %+v, want %+v", what, n, want)
				}
				want := FlowEvent{Kind: FlowNew, From: at(c.from, port), To: c.judged, Protocol: proto, FlowSides: c.sides, Denied: c.denied, Length: len(in), Ifindex: c.ifindex, Verdicts: c.verdicts}
				if c.denied != NotDenied {
					want.Kind = FlowDrop
				}
				if c.to != c.judged {
					want.Front = c.to
				}
				if event != want {
					t.Errorf("%s: event\n%+v, want\n%+v", what, event, want)
				}
			}
		}
	}
}

// A flow whose verdict is recalled is recorded as one that is judged.
func TestRecalledFlowsAreRecorded(t *testing.T) {
	onOneProcessor(t)
	l := newRecordLab(t, 1000)
	l.judge(t, PolicySubject{Egress: web}, PolicySubject{Ingress: web})
	const flows = 3
	for _, f := range families {
		for port := range uint16(flows) {
			l.run(t, podProgram, l.podVeth, segment(at(f.pod, 20000+port), at(f.other, 8080), syn))
		}
		all, err := l.record.Classes()
		must(t, err)
		events := l.events(t)
		for c, n := range all {
			if n.Flows != flows || len(events) != flows || len(all) != 1 || c.Verdicts != (FlowVerdicts{Egress: saidWeb, Ingress: saidWeb}) {
				t.Errorf("%s: %+v of %+v, events %+v; want %d flows", f.name, n, all, events, flows)
			}
		}
		l.forget(t)
	}
}

// Where nobody is judged, too, a flow is recorded once: answers are not, nor a SYN that is sent again, but one of another connection is.
func TestFlowsOfNobodyAreRecordedOnce(t *testing.T) {
	l := newRecordLab(t, 1000)
	for _, f := range families {
		client, server := at(f.pod, 5000), at(f.other, 8080)
		numbered := func(n uint32) []byte {
			b := segment(client, server, syn)
			_, l4, _ := transport(b)
			binary.BigEndian.PutUint32(b[l4+4:], n)
			return b
		}
		through := func(in []byte, ifindex int) { l.run(t, podProgram, ifindex, in) }
		for _, c := range []struct {
			what  string
			do    func()
			flows int
		}{
			{"a SYN", func() { through(numbered(1), l.podVeth) }, 1},
			{"it is sent again", func() { through(numbered(1), l.podVeth) }, 0},
			{"its answer", func() { through(segment(server, client, syn|ack), l.otherVeth) }, 0},
			{"what follows", func() { through(segment(client, server, ack), l.podVeth) }, 0},
			{"another connection", func() { through(numbered(2), l.podVeth) }, 1},
			{"an INIT", func() { through(chunk(client, server, 1), l.podVeth) }, 1},
			{"its answer", func() { through(chunk(server, client, 2), l.otherVeth) }, 0},
			{"a datagram", func() { through(frame(17, client, server, nil), l.podVeth) }, 1},
			{"its answer", func() { through(frame(17, server, client, nil), l.otherVeth) }, 0},
			{"a datagram to another port", func() { through(frame(17, client, at(f.other, 81), nil), l.podVeth) }, 1},
			{"an echo", func() { through(icmp(f.pod, f.other, f.echo, 0, 7<<16, nil), l.podVeth) }, 1},
			{"its answer", func() { through(icmp(f.other, f.pod, f.echoReply, 0, 7<<16, nil), l.otherVeth) }, 0},
			{"an error", func() {
				through(icmp(f.other, f.pod, f.unreachable, 3, 0, frame(17, client, server, nil)[14:]), l.otherVeth)
			}, 0},
			{"a later fragment", func() { through(later(17, f.pod, f.other, 7, 16), l.podVeth) }, 0},
			{"GRE", func() { through(frame(47, at(f.pod, 0), at(f.other, 0), nil), l.podVeth) }, 1},
			{"a question that the kernel answers", func() {
				through(frame(17, at(f.pod, 5000), at(f.dns, 53), query(t, "no.such.svc.cluster.local.", 1, false)), l.podVeth)
			}, 1},
			{"one that goes on", func() {
				through(frame(17, at(f.pod, 5001), at(f.dns, 53), query(t, "example.org.", 1, false)), l.podVeth)
			}, 1},
			{"what the node answers", func() {
				l.run(t, toPodProgram, l.podVeth, reply(frame(17, at(f.pod, 5001), at(f.dns, 53), query(t, "example.org.", 1, false))))
			}, 0},
			{"a probe of the node", func() { l.run(t, toPodProgram, l.podVeth, frame(6, at(f.node, 4000), at(f.pod, 80), nil)) }, 1},
			{"the pod's answer", func() { through(segment(at(f.pod, 80), at(f.node, 4000), syn|ack), l.podVeth) }, 0},
		} {
			c.do()
			if events := l.events(t); len(events) != c.flows {
				t.Errorf("%s: %s: %+v, want %d", f.name, c.what, events, c.flows)
			}
		}
	}
}

// A change of policies makes no new flows; what goes on is counted as judged anew, and what is denied now in the direction in which it began.
func TestFlowsAreRecordedWhenJudgedAnew(t *testing.T) {
	l := newRecordLab(t, 1000)
	for _, f := range families {
		client, server := at(f.pod, 5000), at(f.other, 8080)
		l.judge(t, PolicySubject{Egress: web}, PolicySubject{})
		l.run(t, podProgram, l.podVeth, frame(17, client, server, nil))
		l.one(t, f.name+" a flow")
		l.judge(t, PolicySubject{Egress: everybody}, PolicySubject{})
		for range 2 {
			l.run(t, podProgram, l.otherVeth, frame(17, server, client, nil))
		}
		class, n, event := l.one(t, f.name+" still allowed")
		if n.Again != 1 || n.Flows != 0 || event.Kind != FlowAgain || event.From != client || class.Port != 8080 || event.Verdicts.Egress != saidOpen {
			t.Errorf("%s, still allowed: %+v, %+v, %+v", f.name, class, n, event)
		}
		l.judge(t, PolicySubject{Egress: nobody}, PolicySubject{})
		for i := range 2 {
			l.run(t, podProgram, l.otherVeth, frame(17, server, client, nil))
			class, n, event = l.one(t, f.name+" no more allowed")
			if n.Packets != 1 || n.Flows != 0 || event.Kind != FlowDrop || event.From != client || class.Port != 8080 || event.Denied != DeniedByEgress {
				t.Errorf("%s, no more allowed, packet %d: %+v, %+v, %+v", f.name, i, class, n, event)
			}
		}
		l.judge(t, PolicySubject{Egress: web}, PolicySubject{})
		l.run(t, podProgram, l.podVeth, segment(at(f.pod, 5001), at(f.other, 81), ack))
		if class, _, event = l.one(t, f.name+" amid a connection"); !event.Middle || class.Port != 0 || event.To != at(f.other, 81) {
			t.Errorf("%s amid a connection that nobody knows: %+v, %+v", f.name, class, event)
		}
		must(t, l.d.Policies().Apply(PolicyChange{GoneSubjects: []netip.Addr{netip.MustParseAddr(f.pod)}}))
		l.run(t, podProgram, l.podVeth, frame(6, at(f.pod, 5002), at(f.other, 81), nil))
		if class, _, event = l.one(t, f.name+" without a verdict"); event.Denied != DeniedUnknown || event.To != at(f.other, 81) || class.Port != 81 {
			t.Errorf("%s, a pod without a verdict: %+v, %+v", f.name, class, event)
		}
	}
}

// All are counted, whatever is told of them; what is not told is counted, too, and so is what the table has no room for.
func TestFlowsAreCountedExactly(t *testing.T) {
	const threads, packets = 4, 25000
	l := newRecordLab(t, 10)
	l.judge(t, PolicySubject{Egress: nobody}, PolicySubject{})
	f := families[0]
	before, err := l.record.Losses()
	must(t, err)
	node, failed, began := currentSpace(t), make(chan error), time.Now()
	for range threads {
		go func() {
			runtime.LockOSThread() // and never unlocked, as in newServiceLab
			err := unix.Setns(int(node.f.Fd()), unix.CLONE_NEWNET)
			if err == nil {
				_, err = l.d.net.Programs[podProgram].Run(&ebpf.RunOptions{Data: frame(6, at(f.pod, 5000), at(f.other, 8080), nil), Repeat: packets, Context: l.context(l.podVeth)})
			}
			failed <- err
		}()
	}
	for range threads {
		must(t, <-failed)
	}
	t.Logf("%.0f packets in a second", threads*packets/time.Since(began).Seconds())
	all, err := l.record.Classes()
	must(t, err)
	after, err := l.record.Losses()
	must(t, err)
	told := uint64(len(l.events(t)))
	var counted uint64
	for _, n := range all {
		counted += n.Packets
	}
	if skipped := after.Skipped - before.Skipped; counted != threads*packets || told == 0 || told+skipped+after.Lost-before.Lost != counted || len(all) != 1 {
		t.Errorf("counted %d in %d classes, told %d, not told %d of %d; before %+v, after %+v", counted, len(all), told, skipped, threads*packets, before, after)
	}
	l.forget(t)
	var keys []netPolicyClass
	for i := range l.record.Room() {
		keys = append(keys, netPolicyClass{Port: uint16(i), Proto: 1})
	}
	_, err = l.d.net.Maps[policyClasses].BatchUpdate(keys, make([]netPolicyCount, len(keys)), nil)
	must(t, err)
	l.run(t, podProgram, l.podVeth, frame(6, at(f.pod, 5000), at(f.other, 8080), nil))
	if full, err := l.record.Losses(); err != nil || full.Full != after.Full+1 {
		t.Errorf("a full table: %+v, %v", full, err)
	}
}

// A restart keeps what was counted, and what was not read; without a record there is nothing, and no room is taken.
func TestRecordSurvivesARestart(t *testing.T) {
	l := newRecordLab(t, 1000)
	l.judge(t, PolicySubject{Egress: nobody}, PolicySubject{})
	f := families[0]
	drop := func() { l.run(t, podProgram, l.podVeth, frame(6, at(f.pod, 5000), at(f.other, 8080), nil)) }
	drop()
	restart := func(rate int) {
		t.Helper()
		must(t, errors.Join(l.record.Close(), l.d.Close()))
		c := l.config
		c.RecordFlows = rate
		l.d = open(t, c)
		var err error
		l.record, err = l.d.FlowRecord()
		must(t, err)
	}
	restart(2000)
	drop()
	all, err := l.record.Classes()
	must(t, err)
	if events := l.events(t); len(all) != 1 || len(events) != 2 {
		t.Errorf("behind a restart: %+v, %+v", all, events)
	}
	restart(0)
	drop()
	all, err = l.record.Classes()
	must(t, err)
	if events := l.events(t); len(all) != 0 || len(events) != 0 || l.record.Room() != 1 {
		t.Errorf("without a record: %+v, %+v, room for %d", all, events, l.record.Room())
	}
	restart(1000)
	drop()
	if _, n, _ := l.one(t, "recorded again"); n.Packets != 1 {
		t.Errorf("recorded again: %+v", n)
	}
	for _, rate := range []int{-1, 1<<20 + 1} {
		c := l.config
		c.RecordFlows = rate
		if err := c.check(); err == nil {
			t.Errorf("%d flows in a second are no error", rate)
		}
	}
}

// What the buffer holds is read as it was written, and nothing shorter.
func TestFlowEventsOfRubbish(t *testing.T) {
	for n := range flowEventSize {
		if e, err := decodeFlow(make([]byte, n)); err == nil {
			t.Errorf("%d bytes: %+v", n, e)
		}
	}
	full := slices.Repeat([]byte{0xff}, flowEventSize)
	if _, err := decodeFlow(full); err != nil {
		t.Error(err)
	}
}
