package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// serviceLab is a node of which packets are told from which interface they come. Nothing moves: its interfaces are there for their numbers.
type serviceLab struct {
	do                                 chan func() // runs what it gets in the node's namespace: subtests have threads of their own
	d                                  *Datapath
	uplink, podVeth, otherVeth, tunnel int
	mark                               uint32 // of packets
	from                               int    // the interface that they came in by before that at which they are; 0: the node sends them
	fromAt                             int    // where packets say so in struct __sk_buff
}

const (
	remote  = "10.244.1.7" // a pod of another node
	remote6 = "fd00:10:244:1::7"
)

// peer is another node, remote a pod there.
func (f family) peer() string   { return f.of("192.0.2.20", "2001:db8::20") }
func (f family) remote() string { return f.of(remote, remote6) }
func (f family) vip() string    { return f.of("203.0.113.50", "2001:db8:fe::50") }

func newServiceLab(t testing.TB, change ...func(*Config)) *serviceLab {
	t.Helper()
	readBy := ingressIfindex
	if !saysIngress(t) {
		readBy = priority
		change = append(slices.Clip(change), readFromPriority)
	}
	d := masqueraded(t, 62000, 62063, change...)
	for i := range 2 {
		must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprint("a", i)}, PeerName: fmt.Sprint("b", i)}))
	}
	l := &serviceLab{do: make(chan func()), d: d, fromAt: readBy, uplink: 1, podVeth: device(t, "a0").Attrs().Index, otherVeth: device(t, "b0").Attrs().Index, tunnel: device(t, "a1").Attrs().Index}
	node, ready := currentSpace(t), make(chan error)
	var processors unix.CPUSet
	must(t, unix.SchedGetaffinity(0, &processors))
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		// Packets go on the test's processors, of which there may be one: onOneProcessor. Another thread may be of another mind.
		ready <- errors.Join(unix.Setns(int(node.f.Fd()), unix.CLONE_NEWNET), unix.SchedSetaffinity(0, &processors))
		for f := range l.do {
			f()
		}
	}()
	must(t, <-ready)
	t.Cleanup(func() { close(l.do) })
	for _, f := range families {
		for owner, row := range map[string]Endpoint{f.pod: {Ifindex: l.podVeth}, f.other: {Ifindex: l.otherVeth}} {
			row.Addr, row.PodMAC, row.HostMAC = netip.MustParseAddr(owner), podMAC, hostMAC
			_, err := d.Endpoints().Prune(func(o string) bool { return o != pod && o != other })
			must(t, err)
			_, err = d.Endpoints().Replace("lab "+owner, []Endpoint{row})
			must(t, err)
		}
	}
	l.tunnelled(t)
	return l
}

// Fields of struct __sk_buff.
const (
	priority       = 32
	ingressIfindex = 36
)

// saysIngress tells whether a test can say by which interface a packet came in, which takes Linux 5.16.
func saysIngress(t testing.TB) bool {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "Dual BSD/GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}})
	must(t, err)
	defer p.Close()
	context := make([]byte, 192)
	context[ingressIfindex] = 1
	_, err = p.Run(&ebpf.RunOptions{Data: make([]byte, 64), Context: context})
	if err != nil && !errors.Is(err, unix.EINVAL) {
		t.Fatal(err)
	}
	return err == nil
}

// readFromPriority lets the programs read a packet's priority, of which they know nothing otherwise and which each kernel lets a test say, where they
// would read by which interface it came in.
func readFromPriority(c *Config) {
	load := c.newCollection
	c.newCollection = func(spec *ebpf.CollectionSpec, options ebpf.CollectionOptions) (*ebpf.Collection, error) {
		for _, p := range spec.Programs {
			line := "" // the first instruction of each has it
			for i := range p.Instructions {
				in := &p.Instructions[i]
				if source := in.Source(); source != nil {
					line = source.String()
				}
				if in.OpCode == asm.LoadMemOp(asm.Word) && in.Offset == ingressIfindex && strings.Contains(line, "skb->ingress_ifindex") {
					in.Offset = priority
				}
			}
		}
		return load(spec, options)
	}
}

// tunnelled lets the other node be reached by the tunnel, native without.
func (l *serviceLab) tunnelled(t testing.TB) {
	l.reach(t, netip.MustParseAddr("192.0.2.20"), netPath{Tunnel: uint32(l.tunnel), Mtu: 1400})
}

func (l *serviceLab) native(t testing.TB) { l.reach(t, netip.Addr{}, netPath{Mtu: 1400}) }

func (l *serviceLab) reach(t testing.TB, end netip.Addr, way netPath) {
	t.Helper()
	for _, f := range families {
		node := netip.MustParseAddr(f.peer())
		_, err := l.d.Remotes().Replace("b"+f.name, []Remote{
			{Prefix: netip.PrefixFrom(netip.MustParseAddr(f.remote()), f.of32(24, 64)).Masked(), Node: end}, {Prefix: netip.PrefixFrom(node, node.BitLen()), Node: end},
		})
		must(t, err)
	}
	must(t, l.d.net.Maps["path"].Put(uint32(0), way))
}

func (f family) of32(v4, v6 int) int {
	if f.name == "IPv6" {
		return v6
	}
	return v4
}

// at puts a frame through a program at an interface and tells the verdict, the frame, and what was counted.
func (l *serviceLab) at(t testing.TB, program string, ifindex int, in []byte) (verdict uint32, out []byte, counted string) {
	t.Helper()
	before, err := l.d.Counters()
	must(t, err)
	verdict, out = l.run(t, program, ifindex, in)
	after, err := l.d.Counters()
	must(t, err)
	for _, name := range slices.Sorted(maps.Keys(after)) {
		if after[name] != before[name] {
			counted += name
		}
	}
	return verdict, out, counted
}

func (l *serviceLab) run(t testing.TB, program string, ifindex int, in []byte) (verdict uint32, out []byte) {
	t.Helper()
	context := l.context(ifindex)
	out = make([]byte, len(in)+512)
	result := make(chan error)
	l.do <- func() {
		var err error
		verdict, err = l.d.net.Programs[program].Run(&ebpf.RunOptions{Data: in, DataOut: out, Context: context})
		result <- err
	}
	must(t, <-result)
	return verdict, out
}

// context is that of packets at an interface.
func (l *serviceLab) context(ifindex int) []byte {
	context := make([]byte, 192) // struct __sk_buff
	binary.NativeEndian.PutUint32(context[8:], l.mark)
	binary.NativeEndian.PutUint32(context[l.fromAt:], uint32(l.from))
	binary.NativeEndian.PutUint32(context[40:], uint32(ifindex))
	return context
}

func (l *serviceLab) service(t testing.TB, lbs ...LoadBalancer) {
	t.Helper()
	_, err := l.d.LoadBalancers().Replace("u", lbs)
	must(t, err)
}

// step wants a frame to come out between two ends, with all its checksums right, and to be counted as one thing.
func (l *serviceLab) step(t testing.TB, what, program string, ifindex int, in []byte, verdict uint32, counted string, src, dst netip.AddrPort) []byte {
	t.Helper()
	got, out, reason := l.at(t, program, ifindex, in)
	out = out[:len(in)]
	s, d := ends(out)
	if got != verdict || reason != counted || (src.IsValid() && (s != src || d != dst)) {
		t.Errorf("%s: verdict %d, %q, from %s to %s; want %d, %q, from %s to %s", what, got, reason, s, d, verdict, counted, src, dst)
	}
	if tt, ok := t.(*testing.T); ok && got != actShot {
		checkSums(tt, out)
	}
	return out
}

// reply is what who gets a packet answers.
func reply(b []byte) []byte {
	proto, _, _ := transport(b)
	src, dst := ends(b)
	out := frame(proto, dst, src, []byte("answers!"))
	if proto == 6 {
		_, l4, _ := transport(out)
		out[l4+13] = 0x12 // SYN, ACK
		binary.BigEndian.PutUint16(out[l4+16:], binary.BigEndian.Uint16(out[l4+16:])-0x10)
	}
	return out
}

var protocols = map[string]byte{"TCP": 6, "UDP": 17, "SCTP": 132}
