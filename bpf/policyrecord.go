package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
)

// FlowVerdict is what a rule set says of a flow, if it was asked.
type FlowVerdict struct {
	Asked bool
	PolicyVerdict
}

// FlowVerdicts are what was asked of a flow: nobody, where no policy judges the pod in that direction.
type FlowVerdicts struct {
	Egress, Ingress             FlowVerdict
	ShadowEgress, ShadowIngress FlowVerdict // asked beside them, and not followed
}

// FlowDenial says which direction denied a packet.
type FlowDenial uint8

const (
	NotDenied       FlowDenial = iota
	DeniedByEgress             // of who sends
	DeniedByIngress            // of who gets it
	DeniedUnknown              // rows were missing: a pod without a verdict sends and gets nothing
)

// FlowSides says which ends of a flow are known to the node that judged it.
type FlowSides struct {
	Source bool // who began it is a pod of this node: egress was judged
	Dest   bool // who gets it is: ingress was judged, unless Node
	Node   bool // this node's own stack began it: ingress is not judged
}

// FlowClass is what flows have in common that are counted together. From is the network, with 24 bits or 64 of IPv6, of who asks from outside of the
// cluster; all other addresses are whole.
type FlowClass struct {
	From     netip.Prefix
	To       netip.Addr
	Protocol uint8
	Port     uint16 // of To; 0: the protocol has none, or the packets were amid connections that nobody knows
	FlowSides
	Denied   FlowDenial
	Verdicts FlowVerdicts
}

// FlowTally is how often a class was seen. Numbers only grow, but for rows that ForgetFlowClasses takes.
type FlowTally struct {
	Flows       uint64        // that began, and were allowed
	Again       uint64        // judged anew behind a change of policies, and still allowed
	Packets     uint64        // denied
	Bytes       uint64        // of the first packets of those flows, and of the denied ones, with their Ethernet headers
	First, Last time.Duration // monotonic clock
}

// FlowKind is what happened to a flow.
type FlowKind uint8

const (
	FlowNew   FlowKind = 1 + iota // it began, and is allowed
	FlowDrop                      // a packet of it was denied
	FlowAgain                     // it was judged anew behind a change of policies, and is still allowed
)

// FlowEvent is a sample of what FlowTally counts.
type FlowEvent struct {
	Time     time.Duration // monotonic clock
	Kind     FlowKind
	From, To netip.AddrPort
	Front    netip.AddrPort // what was asked for before a Service's translation made To of it; invalid: To
	Protocol uint8
	FlowSides
	Denied   FlowDenial
	Middle   bool // the packet is amid a connection that nobody knows
	Length   int  // of the packet with its Ethernet header
	Ifindex  int  // where the program stood
	Verdicts FlowVerdicts
}

// FlowLosses are how many things are not in the record, since the counters began.
type FlowLosses struct {
	Lost    uint64 // events for which the buffer had no room
	Skipped uint64 // events beyond the rate: they are counted in their classes
	Full    uint64 // events that no class counts: the table is full
}

// DefaultRecordFlows is how many events of a kind (new flows; drops; first ones of a class) are told in a second by each processor.
const DefaultRecordFlows = 500

const maxRecordFlows = 1 << 20

// FlowRecord is what the programs of a node write while Config.RecordFlows is set. All methods may be called from anywhere, but Read by one at a time.
type FlowRecord struct {
	classes *ebpf.Map
	reader  *ringbuf.Reader
	pinDir  string
}

const (
	policyClasses = "policy_classes"
	policyEvents  = "policy_events"
)

// FlowRecord opens the record; Close it.
func (d *Datapath) FlowRecord() (*FlowRecord, error) {
	reader, err := ringbuf.NewReader(d.net.Maps[policyEvents])
	if err != nil {
		return nil, fmt.Errorf("bpf: record of flows: %w", err)
	}
	return &FlowRecord{classes: d.net.Maps[policyClasses], reader: reader, pinDir: d.pinDir}, nil
}

// ServiceAt is the Name of the load balancer that has a frontend; empty: none has.
func (d *Datapath) ServiceAt(frontend netip.AddrPort, protocol uint8) string {
	return d.loadBalancers.nameAt(frontend, protocol)
}

// Waiting tells whether there is something to read now.
func (r *FlowRecord) Waiting() bool { return r.reader.AvailableBytes() > 0 }

// Read waits for the next event. After Close, and when deadline has passed, it returns os.ErrClosed and os.ErrDeadlineExceeded.
func (r *FlowRecord) Read(deadline time.Time) (FlowEvent, error) {
	r.reader.SetDeadline(deadline)
	sample, err := r.reader.Read()
	if err != nil {
		return FlowEvent{}, err
	}
	return decodeFlow(sample.RawSample)
}

// Classes returns all counts. Rows that come meanwhile may be missing.
func (r *FlowRecord) Classes() (map[FlowClass]FlowTally, error) {
	out := map[FlowClass]FlowTally{}
	return out, readFlowClasses(r.classes, out)
}

func readFlowClasses(m *ebpf.Map, out map[FlowClass]FlowTally) error {
	return eachRow(m, "classes of flows", func(k netPolicyClass, v netPolicyCount) {
		out[flowClassOf(k)] = FlowTally{
			Flows: v.Flows, Again: v.Again, Packets: v.Packets, Bytes: v.Bytes, First: time.Duration(v.First), Last: time.Duration(v.Last),
		}
	})
}

// Forget takes classes away, so that others find room. What is counted in them meanwhile is lost.
func (r *FlowRecord) Forget(classes []FlowClass) error {
	for _, c := range classes {
		if err := r.classes.Delete(flowClassKey(c)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("bpf: forget a class of flows: %w", err)
		}
	}
	return nil
}

// Room is how many classes there can be.
func (r *FlowRecord) Room() int { return int(r.classes.MaxEntries()) }

// Losses tells what is not recorded.
func (r *FlowRecord) Losses() (FlowLosses, error) {
	counters := map[string]uint64{}
	err := readCounters(filepath.Join(r.pinDir, countersPin), counters)
	return FlowLosses{Lost: counters["policy_records_lost"], Skipped: counters["policy_records_skipped"], Full: counters["policy_classes_full"]}, err
}

// Close ends Read.
func (r *FlowRecord) Close() error { return r.reader.Close() }

// recordSizes are those of the tables of the record, which take next to nothing while there is none.
func (c Config) recordSizes(sizes map[string]uint32) {
	if c.RecordFlows == 0 {
		sizes[policyClasses], sizes["policy_seen"], sizes[policyEvents] = 1, 1, uint32(os.Getpagesize())
	}
}

// forgetRecord takes the pins of a record away that is of another size, or layout. Programs go on with it until they are replaced.
func (c Config) forgetRecord() error {
	specs, err := mapSpecs()
	if err != nil {
		return err
	}
	sizes := c.sizes()
	for _, name := range []string{policyClasses, policyEvents} {
		want, pin := specs[name], filepath.Join(c.PinDir, name)
		if n := sizes[name]; n != 0 {
			want.MaxEntries = n
		}
		had, err := ebpf.LoadPinnedMap(pin, nil)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("bpf: %s: %w", pin, err)
		}
		same := had.MaxEntries() == want.MaxEntries && had.KeySize() == want.KeySize && had.ValueSize() == want.ValueSize
		had.Close()
		if same {
			continue
		}
		if err := os.Remove(pin); err != nil {
			return fmt.Errorf("bpf: unpin %s: %w", pin, err)
		}
	}
	return nil
}

// Bits of policy_class.how and policy_event.how (POLICY_* of lib/policy.h), and of policy_event.what.
const (
	howSource  = 1
	howDest    = 2
	howNode    = 16
	whatKind   = 7
	whatMiddle = 8
)

func sidesOf(how uint8) FlowSides {
	return FlowSides{Source: how&howSource != 0, Dest: how&howDest != 0, Node: how&howNode != 0}
}

func (s FlowSides) how() uint8 {
	return uint8(flag(s.Source)*howSource | flag(s.Dest)*howDest | flag(s.Node)*howNode)
}

// all are the verdicts in the order of the programs.
func (v *FlowVerdicts) all() [4]*FlowVerdict {
	return [4]*FlowVerdict{&v.Egress, &v.Ingress, &v.ShadowEgress, &v.ShadowIngress}
}

func flowClassOf(k netPolicyClass) FlowClass {
	c := FlowClass{To: addrOf(k.To), Protocol: k.Proto, Port: port16(k.Port), FlowSides: sidesOf(k.How), Denied: FlowDenial(k.Denied)}
	from := addrOf(k.From)
	c.From = netip.PrefixFrom(from, from.BitLen())
	if k.Net != 0 {
		c.From = netip.PrefixFrom(from, outsideBits(from))
	}
	for i, v := range c.Verdicts.all() {
		if k.Asked>>i&1 != 0 {
			n := k.Verdicts[i]
			*v = FlowVerdict{Asked: true, PolicyVerdict: PolicyVerdict{Allow: n.Allow != 0, Policy: n.Policy, Rule: n.Rule, Tier: PolicyTier(n.Tier)}}
		}
	}
	return c
}

// outsideBits is how much is kept of the address of who asks from outside.
func outsideBits(a netip.Addr) int {
	if a.Is4() {
		return 24
	}
	return 64
}

func flowClassKey(c FlowClass) netPolicyClass {
	k := netPolicyClass{
		From: addr16(c.From.Addr()), To: addr16(c.To), Port: port16(c.Port), Proto: c.Protocol, How: c.how(), Denied: uint8(c.Denied),
		Net: uint8(flag(!c.From.IsSingleIP())),
	}
	for i, v := range c.Verdicts.all() {
		if v.Asked {
			k.Asked |= 1 << i
			k.Verdicts[i] = netPolicyVerdict{Policy: v.Policy, Rule: v.Rule, Allow: uint8(flag(v.Allow)), Tier: uint8(v.Tier)}
		}
	}
	return k
}

// ID names a class: as long as it is not forgotten no other one of the node has it.
func (c FlowClass) ID() uint64 {
	k := flowClassKey(c)
	h := fnv.New64a()
	_ = binary.Write(h, binary.NativeEndian, k) // a hash takes everything
	return h.Sum64()
}

// flowEventSize is that of struct policy_event of lib/policyrecord.h.
const flowEventSize = 112

// decodeFlow reads what a program wrote.
func decodeFlow(b []byte) (FlowEvent, error) {
	if len(b) < flowEventSize {
		return FlowEvent{}, fmt.Errorf("bpf: record of flows: an event of %d bytes", len(b))
	}
	end := func(addr, port int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[addr:])).Unmap(), binary.BigEndian.Uint16(b[port:]))
	}
	e := FlowEvent{
		Time: time.Duration(binary.NativeEndian.Uint64(b)), From: end(8, 56), To: end(24, 58), Protocol: b[62], Kind: FlowKind(b[63] & whatKind),
		Middle: b[63]&whatMiddle != 0, Length: int(binary.NativeEndian.Uint32(b[64:])), Ifindex: int(binary.NativeEndian.Uint32(b[68:])),
		FlowSides: sidesOf(b[104]), Denied: FlowDenial(b[106]),
	}
	if [16]byte(b[40:]) != [16]byte{} {
		e.Front = end(40, 60)
	}
	for i, v := range e.Verdicts.all() {
		if at := 72 + 8*i; b[105]>>i&1 != 0 {
			*v = FlowVerdict{Asked: true, PolicyVerdict: PolicyVerdict{
				Policy: binary.NativeEndian.Uint32(b[at:]), Rule: binary.NativeEndian.Uint16(b[at+4:]), Allow: b[at+6] != 0, Tier: PolicyTier(b[at+7]),
			}}
		}
	}
	return e, nil
}
