package flows

import (
	"context"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/strake-io/strake/bpf"
)

// kernel is a Source.
type kernel struct {
	mu      sync.Mutex
	events  []bpf.FlowEvent
	classes map[bpf.FlowClass]bpf.FlowTally
	losses  bpf.FlowLosses
	room    int
	more    chan struct{}
	closed  bool
}

func newKernel() *kernel {
	return &kernel{classes: map[bpf.FlowClass]bpf.FlowTally{}, room: 100, more: make(chan struct{}, 1)}
}

func (k *kernel) Read(deadline time.Time) (bpf.FlowEvent, error) {
	for {
		k.mu.Lock()
		if k.closed {
			k.mu.Unlock()
			return bpf.FlowEvent{}, os.ErrClosed
		}
		if len(k.events) > 0 {
			e := k.events[0]
			k.events = k.events[1:]
			k.mu.Unlock()
			return e, nil
		}
		k.mu.Unlock()
		select {
		case <-k.more:
		case <-time.After(time.Until(deadline)):
			return bpf.FlowEvent{}, os.ErrDeadlineExceeded
		}
	}
}

func (k *kernel) wake() {
	select {
	case k.more <- struct{}{}:
	default:
	}
}

func (k *kernel) Waiting() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.events) > 0
}

func (k *kernel) Classes() (map[bpf.FlowClass]bpf.FlowTally, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := map[bpf.FlowClass]bpf.FlowTally{}
	for c, n := range k.classes {
		out[c] = n
	}
	return out, nil
}

func (k *kernel) Forget(list []bpf.FlowClass) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, c := range list {
		delete(k.classes, c)
	}
	return nil
}

func (k *kernel) Losses() (bpf.FlowLosses, error) { return k.losses, nil }
func (k *kernel) Room() int                       { return k.room }

func (k *kernel) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed = true
	k.wake()
	return nil
}

// seen counts packets of a class at a time of the kernel's clock.
func (k *kernel) seen(c bpf.FlowClass, flows, packets uint64, at time.Duration) {
	n, ok := k.classes[c]
	if !ok {
		n.First = at
	}
	n.Flows += flows
	n.Packets += packets
	n.Bytes += 60 * (flows + packets)
	n.Last = at
	k.classes[c] = n
}

var (
	web, db = netip.MustParseAddr("10.244.0.5"), netip.MustParseAddr("10.244.0.6")
	clock   = time.Hour // of the kernel
	today   = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
)

func names() Names {
	return Names{
		End: func(a netip.Addr, _ time.Time) (End, bool) {
			switch a {
			case web:
				return End{Namespace: "shop", Pod: "web-1", Labels: map[string]string{"app": "web"}}, true
			case db:
				return End{Namespace: "shop", Pod: "db-0", Labels: map[string]string{"app": "db"}}, true
			case netip.MustParseAddr("192.0.2.1"):
				return End{Node: "n1"}, true
			}
			return End{}, false
		},
		Policy: func(n uint32) (bpf.PolicyName, bool) {
			return bpf.PolicyName{Policy: n, UID: "u", Kind: "NetworkPolicy", Namespace: "shop", Name: "allow-web"}, n == 7
		},
		Service: func(a netip.AddrPort, _ uint8) string { return "shop/db:pg" },
	}
}

func open(t *testing.T, k *kernel, dir string) *Recorder {
	t.Helper()
	k.closed = false
	r, err := New(Config{Dir: dir, Node: "n1", Source: k, Names: names(), Clock: func() (time.Time, time.Duration) { return today, clock }})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// once runs a recorder until it has read all events, and ends it.
func once(t *testing.T, r *Recorder) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	for r.cfg.Source.Waiting() {
		time.Sleep(time.Millisecond)
	}
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

func lines(t *testing.T, o Options, dirs ...string) []Line {
	t.Helper()
	var out []Line
	if err := Read(dirs, o, func(l Line) error { out = append(out, l); return nil }); err != nil {
		t.Fatal(err)
	}
	return out
}

func verdict(policy uint32, rule uint16, allow bool) bpf.FlowVerdict {
	return bpf.FlowVerdict{Asked: true, PolicyVerdict: bpf.PolicyVerdict{Allow: allow, Policy: policy, Rule: rule, Tier: bpf.PolicyTierNetworkPolicy}}
}

func event() bpf.FlowEvent {
	return bpf.FlowEvent{
		Time: clock - time.Second, Kind: bpf.FlowNew, From: netip.AddrPortFrom(web, 4000), To: netip.AddrPortFrom(db, 5432), Front: netip.MustParseAddrPort("10.96.0.9:5432"), Protocol: 6,
		FlowSides: bpf.FlowSides{Source: true, Dest: true}, Length: 74, Verdicts: bpf.FlowVerdicts{Egress: verdict(7, 2, true), ShadowIngress: verdict(8, bpf.PolicyNoRule, false)},
	}
}

func class() bpf.FlowClass {
	e := event()
	return bpf.FlowClass{From: netip.PrefixFrom(web, 32), To: db, Protocol: 6, Port: 5432, FlowSides: e.FlowSides, Verdicts: e.Verdicts}
}
