package bpf

import (
	"context"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"
)

// Flags of TCP.
const (
	fin = 1
	syn = 2
	rst = 4
	ack = 16
)

// segment is a frame with a TCP segment of other flags than a SYN.
func segment(src, dst netip.AddrPort, flags byte) []byte {
	b := frame(6, src, dst, []byte("data"))
	_, l4, _ := transport(b)
	b[l4+13] = flags
	at := l4 + 16
	binary.BigEndian.PutUint16(b[at:], 0)
	_, _, end := transport(b)
	binary.BigEndian.PutUint16(b[at:], ^sum(b[l4:end], pseudo(6, src.Addr(), dst.Addr(), end-l4)))
	return b
}

// chunk is a frame with one chunk of SCTP.
func chunk(src, dst netip.AddrPort, kind byte) []byte {
	b := make([]byte, 12+16)
	binary.BigEndian.PutUint16(b, src.Port())
	binary.BigEndian.PutUint16(b[2:], dst.Port())
	b[12], b[15] = kind, 16
	return append(ipHeader(132, src.Addr(), dst.Addr(), len(b)), b...)
}

// fronted has a frontend of each family at the node's ports 30080 and 30081, with the pods' port 8080 as the backend.
func fronted(t testing.TB, protocol uint8, backends int, change ...func(*Config)) *Datapath {
	t.Helper()
	d := withPods(t, append([]func(*Config){func(c *Config) {
		c.NodeAddrs = []netip.Addr{netip.MustParseAddr(nodeIP), netip.MustParseAddr(nodeIP6)}
	}}, change...)...)
	var rows []LoadBalancer
	for _, f := range families {
		to := []netip.AddrPort{at(f.pod, 8080), at(f.other, 8080)}[:backends]
		for _, name := range []string{"a", "b"} {
			port := uint16(30080)
			if name == "b" {
				port++
			}
			rows = append(rows, LoadBalancer{Name: "ns/" + f.name + ":" + name, Protocol: protocol, Frontends: fronts(NodePort, at(f.node, port)), Backends: backs(to...)})
		}
	}
	_, err := d.LoadBalancers().Replace("u", rows)
	must(t, err)
	return d
}

// where finds a flow by its key, as who began it sends.
func where(t testing.TB, d *Datapath, protocol uint8, from, to netip.AddrPort) (table string, f netFlow) {
	t.Helper()
	key := netFlowKey{Saddr: addr16(from.Addr()), Sport: port16(from.Port()), Daddr: addr16(to.Addr()), Dport: port16(to.Port()), Proto: protocol}
	for _, name := range flowTables {
		if d.net.Maps[name].Lookup(key, &f) == nil {
			back, want := turned(key, f)
			var other netFlow
			if err := d.net.Maps[name].Lookup(back, &other); err != nil || other != want {
				t.Errorf("in %s the answers' row is %+v (%v), want %+v", name, other, err, want)
			}
			return name, f
		}
	}
	return "", f
}

// A connection is in flows_open from when both sides agreed on it until both ended it, or one broke it off.
func TestConnectionsHaveStates(t *testing.T) {
	const replied, finOut, finIn, reset, agreed = flowReplied, flowFinOut, flowFinIn, flowReset, flowAgreed
	type step struct {
		in    bool // from outside, else from the pod
		flags byte
		table string
		state uint8
	}
	d := fronted(t, 6, 1)
	for name, steps := range map[string][]step{
		"closed by the client": {
			{true, syn, flowsPassing, 0}, {true, syn, flowsPassing, 0}, {false, syn | ack, flowsPassing, replied}, {true, ack, flowsOpen, replied | agreed},
			{false, ack, flowsOpen, replied | agreed}, {true, fin | ack, flowsOpen, replied | agreed | finOut}, {false, ack, flowsOpen, replied | agreed | finOut},
			{false, fin | ack, flowsPassing, replied | agreed | finOut | finIn}, {true, ack, flowsPassing, replied | agreed | finOut | finIn},
			{true, syn, flowsPassing, 0}, {false, syn | ack, flowsPassing, replied}, {true, ack, flowsOpen, replied | agreed}, // the ports are used again
		},
		"closed by the pod": {
			{true, syn, flowsPassing, 0}, {false, syn | ack, flowsPassing, replied}, {true, ack, flowsOpen, replied | agreed},
			{false, fin | ack, flowsOpen, replied | agreed | finIn}, {true, ack, flowsOpen, replied | agreed | finIn}, {true, fin | ack, flowsPassing, replied | agreed | finOut | finIn},
		},
		"refused": {{true, syn, flowsPassing, 0}, {false, rst | ack, flowsPassing, replied | reset}, {true, syn, flowsPassing, 0}},
		"an RST that nobody believes": {
			{true, syn, flowsPassing, 0}, {false, syn | ack, flowsPassing, replied}, {true, ack, flowsOpen, replied | agreed},
			{true, rst, flowsPassing, replied | agreed | reset}, {false, ack, flowsOpen, replied | agreed}, {true, syn, flowsOpen, replied | agreed},
		},
		"met in the middle": {{true, ack, flowsPassing, 0}, {false, ack, flowsPassing, replied}, {true, ack, flowsOpen, replied | agreed}},
		"half open":         {{true, syn, flowsPassing, 0}, {true, ack, flowsPassing, 0}, {true, fin | ack, flowsPassing, finOut}},
	} {
		for _, f := range families {
			t.Run(name+" "+f.name, func(t *testing.T) {
				forget(t, d)
				client, node := at(f.far, 5555), at(f.node, 30080)
				for i, s := range steps {
					p, b := d.net.Programs[podProgram], segment(at(f.pod, 8080), client, s.flags)
					if s.in {
						p, b = d.net.Programs[uplinkProgram], segment(client, node, s.flags)
					}
					verdict, got := run(t, p, b)
					checkSums(t, got[:len(b)])
					src, dst := ends(got)
					if s.in && (src != client || dst != at(f.pod, 8080)) || !s.in && (src != node || dst != client) || verdict != actRedirect {
						t.Fatalf("step %d: verdict %d, from %s to %s", i, verdict, src, dst)
					}
					if table, row := where(t, d, 6, client, node); table != s.table || row.State != s.state {
						t.Fatalf("step %d: in %q with state %#x, want %q and %#x", i, table, row.State, s.table, s.state)
					}
				}
			})
		}
	}
}

// SCTP likewise: its chunks say the same in other words.
func TestAssociationsHaveStates(t *testing.T) {
	d := fronted(t, 132, 1)
	for _, f := range families {
		client, node := at(f.far, 5555), at(f.node, 8080)
		_, err := d.LoadBalancers().Replace("sctp"+f.name, []LoadBalancer{{Name: "ns/sctp:" + f.name, Protocol: 132, Frontends: fronts(NodePort, node), Backends: backs(at(f.pod, 8080))}})
		must(t, err)
		for i, s := range []struct {
			in    bool
			kind  byte
			table string
			state uint8
		}{
			{true, 1, flowsPassing, 0}, {false, 2, flowsPassing, flowReplied}, {true, 10, flowsOpen, flowReplied | flowAgreed}, {false, 11, flowsOpen, flowReplied | flowAgreed},
			{true, 0, flowsOpen, flowReplied | flowAgreed}, {true, 7, flowsOpen, flowReplied | flowAgreed | flowFinOut},
			{false, 8, flowsPassing, flowReplied | flowAgreed | flowFinOut | flowFinIn}, {true, 14, flowsPassing, flowReplied | flowAgreed | flowFinOut | flowFinIn},
			{true, 1, flowsPassing, 0}, {false, 6, flowsPassing, flowReplied | flowReset},
		} {
			p, b := d.net.Programs[podProgram], chunk(at(f.pod, 8080), client, s.kind)
			if s.in {
				p, b = d.net.Programs[uplinkProgram], chunk(client, node, s.kind)
			}
			verdict, _ := run(t, p, b)
			if table, row := where(t, d, 132, client, node); verdict != actRedirect || table != s.table || row.State != s.state {
				t.Fatalf("%s step %d: verdict %d, in %q with state %#x, want %q and %#x", f.name, i, verdict, table, row.State, s.table, s.state)
			}
		}
	}
}

// What a client sends twice goes to the backend that it went to.
func TestSYNSentTwice(t *testing.T) {
	d := fronted(t, 6, 2)
	for i := range 40 {
		client, node := at(families[0].far, uint16(5000+i)), at(nodeIP, 30080)
		var to netip.AddrPort
		for n := range 5 {
			_, got := run(t, d.net.Programs[uplinkProgram], segment(client, node, syn))
			_, dst := ends(got)
			if n > 0 && dst != to {
				t.Fatalf("to %s and %s", to, dst)
			}
			to = dst
		}
	}
}

// Two frontends with one backend, called from one port: both get their own answers.
func TestTwoFrontendsOfOneBackend(t *testing.T) {
	for _, protocol := range []byte{6, 17} {
		d := fronted(t, protocol, 1)
		for _, f := range families {
			client := at(f.far, 5555)
			seen := map[netip.AddrPort]uint16{}
			for round := range 2 {
				for _, port := range []uint16{30080, 30081} {
					node := at(f.node, port)
					b := frame(protocol, client, node, []byte("data"))
					verdict, got := run(t, d.net.Programs[uplinkProgram], b)
					checkSums(t, got[:len(b)])
					src, _ := ends(got)
					if verdict != actRedirect || src.Addr() != client.Addr() {
						t.Fatalf("%s: verdict %d, from %s", f.name, verdict, src)
					}
					if was, ok := seen[src]; round == 0 && ok || round == 1 && was != port {
						t.Fatalf("%s: round %d: the backend sees %s for port %d and %d", f.name, round, src, was, port)
					}
					seen[src] = port
				}
			}
			for source, port := range seen {
				b := frame(protocol, at(f.pod, 8080), source, []byte("answer"))
				if protocol == 6 {
					b = segment(at(f.pod, 8080), source, syn|ack)
				}
				_, got := run(t, d.net.Programs[podProgram], b)
				checkSums(t, got[:len(b)])
				if src, dst := ends(got); src != at(f.node, port) || dst != client {
					t.Errorf("%s: the answer of port %d is from %s to %s", f.name, port, src, dst)
				}
			}
		}
	}
}

// connect makes a connection from outside.
func connect(t testing.TB, d *Datapath, client netip.AddrPort) (ok bool) {
	t.Helper()
	node := at(nodeIP, 30080)
	for _, s := range []struct {
		in    bool
		flags byte
	}{{true, syn}, {false, syn | ack}, {true, ack}} {
		p, b := d.net.Programs[podProgram], segment(at(pod, 8080), client, s.flags)
		if s.in {
			p, b = d.net.Programs[uplinkProgram], segment(client, node, s.flags)
		}
		if verdict, _ := run(t, p, b); verdict != actRedirect {
			return false
		}
	}
	return true
}

// numbered is a client outside.
func numbered(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100 + byte(i>>16), byte(i >> 8)}), uint16(1024+i&0xff))
}

// Whatever is sent, connections stay.
func TestFloodsPushOutNoConnection(t *testing.T) {
	d := fronted(t, 6, 1, func(c *Config) { c.Flows = 500 })
	for i := range 400 {
		if !connect(t, d, numbered(i)) {
			t.Fatalf("connection %d", i)
		}
	}
	for i := range 5000 { // ten times as many as there is room for
		run(t, d.net.Programs[uplinkProgram], segment(numbered(100000+i), at(nodeIP, 30080), syn))
		run(t, d.net.Programs[egressProgram], frame(17, at(pod, uint16(1024+i)), at(families[0].far, 53), nil))
	}
	for i := range 400 {
		if table, _ := where(t, d, 6, numbered(i), at(nodeIP, 30080)); table != flowsOpen {
			t.Fatalf("connection %d is in %q", i, table)
		}
	}
}

// With no room left, connections can't begin, which is counted, and those that there are go on. Once some are over, others begin: with an agent
// at once, else after a while.
func TestFullTable(t *testing.T) {
	const room = 512 // processors take free rows of flows_passing by 128: in a table of not many more, what has just come may be pushed out
	d := fronted(t, 6, 1, func(c *Config) { c.Flows = room })
	swept := make(chan SweptFlows, 100)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	keep := func() {
		go func() {
			done <- d.KeepFlows(ctx, func(s SweptFlows, err error) {
				if err != nil {
					t.Error(err)
				}
				swept <- s
			})
		}()
	}
	made := 0
	for i := range 2 * room {
		if !connect(t, d, numbered(i)) {
			break
		}
		made++
	}
	if made != room {
		t.Fatalf("%d connections were made, there is room for %d", made, room)
	}
	if n, _ := counterOf(t, d, "drop_conntrack_full"); n != 1 {
		t.Errorf("%d drops are counted", n)
	}
	var since uint32
	if err := d.net.Maps["flows_full"].Lookup(uint32(0), &since); err != nil || since == 0 {
		t.Errorf("the table is full since %d, %v", since, err)
	}
	must(t, d.net.Maps["flows_full"].Put(uint32(0), monotonic(t))) // however long it took until here
	if verdict, _ := run(t, d.net.Programs[uplinkProgram], segment(numbered(5000), at(nodeIP, 30080), syn)); verdict != actShot {
		t.Errorf("a SYN while the table is full: verdict %d", verdict)
	}
	if verdict, _ := run(t, d.net.Programs[egressProgram], frame(17, at(pod, 999), at(families[0].far, 53), nil)); verdict != actOK {
		t.Errorf("a datagram while the table is full: verdict %d", verdict)
	}
	for i := range made {
		if verdict, _ := run(t, d.net.Programs[uplinkProgram], segment(numbered(i), at(nodeIP, 30080), ack)); verdict != actRedirect {
			t.Fatalf("connection %d: verdict %d", i, verdict)
		}
	}
	stats, err := ReadFlowStats(d.pinDir)
	must(t, err)
	if !stats.Full || stats.Open.Rows != 2*room || stats.Open.Max != 2*room || len(stats.Counts) < 3 || stats.Counts[0] != (FlowCount{6, "open", room}) {
		t.Errorf("%+v", stats)
	}
	// Some had no packet for long.
	for k, f := range flowRows(t, d) {
		if f.State&flowAgreed != 0 && binary.BigEndian.Uint16([]byte{byte(k.Sport), byte(k.Sport >> 8)})%2 == 0 {
			f.Seen -= 7500
			must(t, d.net.Maps[flowsOpen].Put(k, f))
		}
	}
	keep()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	select {
	case s := <-swept:
		if !s.Full || s.Deleted == 0 || s.Left == 0 {
			t.Errorf("%+v", s)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("nobody looked")
	}
	if !connect(t, d, numbered(6000)) {
		t.Error("there is room, and no connection begins")
	}
}

// What is in the tables can be asked for.
func TestFlowIsRead(t *testing.T) {
	d := fronted(t, 6, 1)
	client, node := numbered(1), at(nodeIP, 30080)
	if _, ok, err := ReadFlow(d.pinDir, 6, client, node); ok || err != nil {
		t.Errorf("%v, %v", ok, err)
	}
	connect(t, d, client)
	f, ok, err := ReadFlow(d.pinDir, 6, client, node)
	if err != nil || !ok || f.State != "open" || f.Table != flowsOpen || f.As != at(pod, 8080) || f.AsFrom != client || f.Service == 0 {
		t.Errorf("%+v, %v, %v", f, ok, err)
	}
}

// Any packets in any order: no program fails, and each drop is counted.
func FuzzFlows(f *testing.F) {
	f.Add([]byte{0, 2, 0x12, 1, 18, 0x22, 0, 16, 0x10})
	f.Add([]byte{3, 2, 1, 4, 16, 9, 5, 1, 255, 6, 4, 7})
	d := fronted(f, 6, 2, func(c *Config) { c.Flows = 40 })
	for _, protocol := range []uint8{17, 132} {
		_, err := d.LoadBalancers().Replace("more", []LoadBalancer{{Name: "ns/more:x", Protocol: protocol, Frontends: fronts(NodePort, at(nodeIP, 30080)), Backends: backs(at(pod, 8080), at("10.244.9.9", 8080))}})
		must(f, err)
	}
	_, err := d.Remotes().Replace("far", []Remote{{Prefix: netip.MustParsePrefix("10.244.9.0/24")}})
	must(f, err)
	programs := []string{podProgram, uplinkProgram, egressProgram, tunnelIn}
	ports := []uint16{30080, 8080, 5555, 53}
	dropped := func(t *testing.T) (n uint64) {
		s, err := d.Status()
		must(t, err)
		for name, v := range s.Counters {
			if len(name) > 5 && name[:5] == "drop_" {
				n += v
			}
		}
		return n
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		before, drops := dropped(t), uint64(0)
		for ; len(in) >= 3; in = in[3:] {
			fam := families[in[0]>>2&1]
			hosts := []string{fam.pod, fam.node, fam.far, fam.other}
			src, dst := at(hosts[in[2]&3], ports[in[2]>>2&3]), at(hosts[in[2]>>4&3], ports[in[2]>>6&3])
			var b []byte
			switch in[0] >> 3 & 7 {
			case 0, 1, 2:
				b = segment(src, dst, in[1])
			case 3:
				b = frame(17, src, dst, in)
			case 4:
				b = chunk(src, dst, in[1])
			case 5:
				b = icmp(src.Addr().String(), dst.Addr().String(), in[1], 0, uint32(src.Port())<<16, in)
			case 6:
				b = icmp(src.Addr().String(), dst.Addr().String(), fam.unreachable, 4, 1300, frame(6+11*(in[1]&1), dst, src, in)[14:])
			case 7:
				b = cut(frame(17, src, dst, make([]byte, 24)), uint16(in[1]), int(in[1]&2)*4, in[1]&1 == 0)
			}
			if n := int(in[1]) + shortest(b); in[0]&0x80 != 0 && n < len(b) {
				b = b[:n]
			}
			if verdict, _ := run(t, d.net.Programs[programs[in[0]&3]], b); verdict == actShot {
				drops++
			} else if verdict != actOK && verdict != actRedirect {
				t.Fatalf("verdict %d of %s for %x", verdict, programs[in[0]&3], b)
			}
		}
		if n := dropped(t) - before; n != drops {
			t.Fatalf("%d packets were dropped, and %d counted", drops, n)
		}
	})
}
