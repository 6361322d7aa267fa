package flows

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/netpol"
)

// Source is what the kernel writes; bpf.FlowRecord is one.
type Source interface {
	Read(deadline time.Time) (bpf.FlowEvent, error)
	Waiting() bool
	Classes() (map[bpf.FlowClass]bpf.FlowTally, error)
	Forget([]bpf.FlowClass) error
	Losses() (bpf.FlowLosses, error)
	Room() int
	Close() error
}

// Names tells who is who.
type Names struct {
	End     func(netip.Addr, time.Time) (End, bool) // who had an address then; without Addr
	Policy  func(uint32) (bpf.PolicyName, bool)
	Service func(netip.AddrPort, uint8) string
}

// Bounds of a record.
const (
	DefaultSize = 64 << 20           // bytes
	DefaultAge  = 7 * 24 * time.Hour // of the oldest lines
	MinSize     = 1 << 20
)

// How often the agent writes what waits, and looks at the kernel's counts; and for how long events gather once one was read, so that a
// storm of them does not wake it for each.
const (
	flushEvery = time.Second
	countEvery = 10 * time.Second
	gather     = 20 * time.Millisecond
)

// Config is that of a Recorder.
type Config struct {
	Dir    string
	Node   string
	Source Source
	Names  Names
	Size   int64         // of all files; 0: DefaultSize
	Age    time.Duration // 0: DefaultAge
	Clock  func() (time.Time, time.Duration)
}

// Recorder writes the record of a node.
type Recorder struct {
	cfg           Config
	flows, counts *journal
	counted       map[bpf.FlowClass]bpf.FlowTally // what the files have
	since         time.Time                       // when the counts were read
	losses        bpf.FlowLosses
	untold        Loss                        // what the files can't have, beside losses of the kernel
	policies      map[uint32]netpol.PolicyRef // that are known, or were
	offset        time.Time                   // when the kernel's clock began
	failing       bool
}

// New goes on with the record in a folder, or makes it.
func New(cfg Config) (*Recorder, error) {
	if cfg.Size == 0 {
		cfg.Size = DefaultSize
	}
	if cfg.Age == 0 {
		cfg.Age = DefaultAge
	}
	if cfg.Size < MinSize {
		return nil, fmt.Errorf("record of flows: %d bytes: it has %d at least", cfg.Size, MinSize)
	}
	if cfg.Clock == nil {
		cfg.Clock = func() (time.Time, time.Duration) { return time.Now(), bpf.Monotonic() }
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("record of flows: %w", err)
	}
	r := &Recorder{cfg: cfg, policies: map[uint32]netpol.PolicyRef{}}
	var err error
	if r.flows, err = openJournal(cfg.Dir, sortFlows, cfg.Size*3/4, cfg.Age); err != nil {
		return nil, err
	}
	if r.counts, err = openJournal(cfg.Dir, sortCounts, cfg.Size/4, cfg.Age); err != nil {
		return nil, err
	}
	return r, r.goOn()
}

// goOn learns from the files what is counted already. A class that they don't have was not counted, unless it is older than the last look: then its
// lines are gone, and what it had since is a loss.
func (r *Recorder) goOn() error {
	r.setOffset()
	type known struct {
		began int64
		total [4]uint64
	}
	last := map[string]known{}
	err := Read([]string{r.cfg.Dir}, Options{Counts: true}, func(l Line) error {
		if l.Count != nil {
			last[l.Class] = known{l.Began, l.Total}
		}
		if l.Time.After(r.since) {
			r.since = l.Time
		}
		return nil
	})
	if err != nil {
		return err
	}
	all, err := r.cfg.Source.Classes()
	if err != nil {
		return err
	}
	r.counted = map[bpf.FlowClass]bpf.FlowTally{}
	for c, n := range all {
		had, ok := last[classID(c)]
		switch {
		case ok && had.began == int64(n.First) && had.total[0] <= n.Flows && had.total[1] <= n.Again && had.total[2] <= n.Packets && had.total[3] <= n.Bytes:
			r.counted[c] = bpf.FlowTally{Flows: had.total[0], Again: had.total[1], Packets: had.total[2], Bytes: had.total[3], First: n.First}
		case !ok && r.wall(n.First).Before(r.since):
			r.counted[c] = n
			if !r.wall(n.Last).Before(r.since) {
				r.untold.Restarted++
			}
		}
	}
	if r.since.IsZero() {
		r.since, _ = r.cfg.Clock()
	}
	if r.losses, err = r.cfg.Source.Losses(); err != nil {
		return err
	}
	return errors.Join(r.flows.add(r.line(KindStart), nil), r.flows.flush())
}

func classID(c bpf.FlowClass) string { return strconv.FormatUint(c.ID(), 16) }

func (r *Recorder) setOffset() {
	now, clock := r.cfg.Clock()
	r.offset = now.Add(-clock)
}

func (r *Recorder) wall(t time.Duration) time.Time { return r.offset.Add(t).UTC() }

func (r *Recorder) line(kind string) Line {
	now, _ := r.cfg.Clock()
	return Line{Time: now.UTC(), Node: r.cfg.Node, Kind: kind}
}

// Run records until ctx ends, and closes the Source.
func (r *Recorder) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { r.cfg.Source.Close() })
	defer stop()
	flush, count := time.Now().Add(flushEvery), time.Now().Add(countEvery)
	for ctx.Err() == nil {
		e, err := r.cfg.Source.Read(flush)
		switch {
		case err == nil:
			r.tell(r.flows.add(r.sample(e), nil))
			if !r.cfg.Source.Waiting() {
				select {
				case <-ctx.Done():
				case <-time.After(gather):
				}
			}
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, os.ErrClosed):
		default:
			r.tell(err)
		}
		now := time.Now()
		if now.After(count) {
			r.tell(r.count())
			count = now.Add(countEvery)
		}
		if now.After(flush) {
			r.setOffset()
			err := errors.Join(r.flows.flush(), r.counts.flush())
			r.tell(err)
			r.failing = err != nil
			flush = now.Add(flushEvery)
		}
	}
	return errors.Join(r.count(), r.flows.close(), r.counts.close())
}

// tell says once that the record fails: nothing of a node waits for it.
func (r *Recorder) tell(err error) {
	if err != nil && !r.failing {
		klog.ErrorS(err, "The record of flows has gaps", "folder", r.cfg.Dir)
	}
	r.failing = r.failing || err != nil
}

// count writes what the kernel has counted since it did so last, and makes room in its table.
func (r *Recorder) count() error {
	all, err := r.cfg.Source.Classes()
	if err != nil {
		return err
	}
	now, clock := r.cfg.Clock()
	var errs []error
	var idle []bpf.FlowClass
	patience := 5 * time.Minute
	switch room := r.cfg.Source.Room(); {
	case len(all) > room*3/4:
		patience = 15 * time.Second
	case len(all) < room/2:
		patience = 0 // nobody needs the room
	}
	first := r.counts.seq
	told := map[bpf.FlowClass]bpf.FlowTally{} // what the files have after this
	complete := true
	for c, n := range all {
		was, ok := r.counted[c]
		if was.First != n.First {
			was, ok = bpf.FlowTally{}, false
		}
		if ok {
			told[c] = was
		}
		if n.Flows == was.Flows && n.Again == was.Again && n.Packets == was.Packets {
			if patience != 0 && clock-n.Last > patience {
				idle = append(idle, c)
			}
			continue
		}
		l := r.line(KindCount)
		l.Flow = r.class(c, n.Last)
		l.Count = &Count{
			Class: classID(c), Flows: n.Flows - was.Flows, Again: n.Again - was.Again, Packets: n.Packets - was.Packets, Bytes: n.Bytes - was.Bytes,
			Since: r.since.UTC(), Began: int64(n.First), Total: [4]uint64{n.Flows, n.Again, n.Packets, n.Bytes},
		}
		if err := r.counts.add(l, func() { told[c] = n }); err != nil {
			errs, complete = append(errs, err), false
		}
	}
	if err := r.counts.flush(); err != nil {
		errs, complete = append(errs, err), false
	}
	if r.counted = told; complete { // what was not written is told the next time
		r.since = now
	}
	for _, c := range idle {
		delete(r.counted, c)
	}
	errs = append(errs, r.cfg.Source.Forget(idle), r.flows.prune(r.flows.room), r.counts.prune(r.counts.room))
	if r.counts.oldest > first { // more at once than the files have room for
		r.untold.Pruned += r.counts.oldest - first
	}
	return errors.Join(append(errs, r.lost())...)
}

// lost writes what is not in the record.
func (r *Recorder) lost() error {
	now, err := r.cfg.Source.Losses()
	if err != nil || now == r.losses && r.untold == (Loss{}) {
		return err
	}
	l := r.line(KindLoss)
	l.Loss = &Loss{Lost: now.Lost - r.losses.Lost, Skipped: now.Skipped - r.losses.Skipped, Full: now.Full - r.losses.Full, Pruned: r.untold.Pruned, Restarted: r.untold.Restarted}
	return errors.Join(r.flows.add(l, func() { r.losses, r.untold = now, Loss{} }), r.flows.flush()) // what was not written is told the next time
}

// sample is the line of an event.
func (r *Recorder) sample(e bpf.FlowEvent) Line {
	l := Line{Time: r.wall(e.Time), Node: r.cfg.Node, Kind: KindFlow}
	l.Flow = r.flow(l.Time, netip.PrefixFrom(e.From.Addr(), e.From.Addr().BitLen()), e.To.Addr(), e.Protocol, e.FlowSides, e.Denied, e.Verdicts)
	l.Sample = &Sample{Event: map[bpf.FlowKind]string{bpf.FlowNew: "new", bpf.FlowDrop: "drop", bpf.FlowAgain: "again"}[e.Kind], Bytes: e.Length}
	if hasPorts(e.Protocol) {
		l.Sport = e.From.Port()
		if e.Middle {
			l.Dport = e.To.Port()
		} else {
			l.Port = e.To.Port()
		}
	}
	if e.Front.IsValid() {
		l.Service = &Service{Name: r.cfg.Names.Service(e.Front, e.Protocol), Addr: e.Front.Addr().String(), Port: e.Front.Port()}
	}
	return l
}

// class is one as it was when it was seen last.
func (r *Recorder) class(c bpf.FlowClass, last time.Duration) *Flow {
	f := r.flow(r.wall(last), c.From, c.To, c.Protocol, c.FlowSides, c.Denied, c.Verdicts)
	f.Port = c.Port
	return f
}

func hasPorts(protocol uint8) bool {
	return protocol == netpol.TCP || protocol == netpol.UDP || protocol == netpol.SCTP
}

func (r *Recorder) flow(at time.Time, from netip.Prefix, to netip.Addr, protocol uint8, sides bpf.FlowSides, denied bpf.FlowDenial, v bpf.FlowVerdicts) *Flow {
	f := &Flow{Verdict: Allowed, To: r.end(to, at), Protocol: protocolName(protocol)}
	if denied != bpf.NotDenied {
		f.Verdict = Dropped
	}
	if from.IsSingleIP() {
		f.From = r.end(from.Addr(), at)
	} else {
		f.From.Addr = from.String()
	}
	if sides.Source {
		f.Sides = append(f.Sides, sideSource)
	}
	if sides.Dest {
		f.Sides = append(f.Sides, sideDest)
	}
	if sides.Node {
		f.Sides = append(f.Sides, sideNode)
	}
	f.Egress, f.Ingress = r.decision(v.Egress), r.decision(v.Ingress)
	f.ShadowEgress, f.ShadowIngress = r.decision(v.ShadowEgress), r.decision(v.ShadowIngress)
	return f
}

func (r *Recorder) end(a netip.Addr, at time.Time) End {
	e, _ := r.cfg.Names.End(a, at)
	e.Addr = a.String()
	return e
}

func (r *Recorder) decision(v bpf.FlowVerdict) *Decision {
	if !v.Asked {
		return nil
	}
	d := &Decision{Allowed: v.Allow, Rule: int(v.Rule), Tier: map[bpf.PolicyTier]netpol.Tier{
		bpf.PolicyTierAdmin: netpol.TierAdmin, bpf.PolicyTierNetworkPolicy: netpol.TierNetworkPolicy, bpf.PolicyTierBaseline: netpol.TierBaseline,
	}[v.Tier]}
	if v.Rule >= bpf.PolicyNoRoom {
		d.Rule = netpol.NoRule
	}
	if v.Policy == 0 {
		return d
	}
	if n, ok := r.cfg.Names.Policy(v.Policy); ok {
		r.policies[v.Policy] = netpol.PolicyRef{Kind: n.Kind, Namespace: n.Namespace, Name: n.Name, UID: types.UID(n.UID)}
	}
	if ref, ok := r.policies[v.Policy]; ok { // or it was until just now
		d.Policy = &ref
	}
	return d
}

func protocolName(p uint8) string {
	switch p {
	case netpol.TCP:
		return "TCP"
	case netpol.UDP:
		return "UDP"
	case netpol.SCTP:
		return "SCTP"
	case netpol.ICMP:
		return "ICMP"
	case netpol.ICMPv6:
		return "ICMPv6"
	}
	return strconv.Itoa(int(p))
}
