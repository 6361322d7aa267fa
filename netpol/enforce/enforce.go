// Package enforce holds the node's policy tables to what the API says: it follows pods, namespaces, nodes and policies, has the compiler make
// rows of them, and writes those.
//
// A change is written at once; what comes while rows are being written goes together into the next write. Nothing is written, and so nothing is
// taken away, before all kinds of objects are known: until then, and while the API or the agent is away, the last verdicts stand. A pod that the CNI
// server makes is admitted when its rows are in the kernel; without rows nothing passes.
package enforce

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/netpol"
	"github.com/strake-io/strake/netpol/compiler"
	"github.com/strake-io/strake/netpol/history"
)

// Tables are the node's, see bpf.PolicyTables.
type Tables interface {
	Apply(bpf.PolicyChange) error
	Dump() (bpf.PolicyRows, error)
	Hits() ([]bpf.PolicyHit, error)
	Usage() ([]bpf.MapStatus, error)
}

// Config says whose policies they are.
type Config struct {
	Client   kubernetes.Interface
	Dynamic  dynamic.Interface // for ClusterNetworkPolicies and their definition
	Tables   Tables
	NodeName string
	// DNSAddrs are those at which the node network answers for the cluster's DNS.
	DNSAddrs []netip.Addr
	// KeepFlows: established flows go on when policies change, but where an annotation says otherwise.
	KeepFlows bool
	// MaxRules and MaxPeers are bpf.Config's MaxPolicyRules and MaxPolicyPeers.
	MaxRules, MaxPeers int
	// Recorder gets Events; nil: nobody does.
	Recorder record.EventRecorder
	// History is told what is enforced, and what proofs find; nil: nobody is.
	History *history.Log
	// Whose: who has which address is followed, see Enforcer.Whose.
	Whose bool
	// Synced is called once, when all that the API has at the start is enforced; nil: it is not.
	Synced func()
}

// Enforcer is a node's.
type Enforcer struct {
	cfg Config

	pods, namespaces, nodes, policies, clusterPolicies *followed
	definition                                         *definition
	conditions                                         *conditions // of clusterPolicies
	asked                                              *asked

	metrics *instruments
	usage   usage
	whose   *whose // nil unless Config.Whose
	ready   chan struct{}
	trouble *trouble

	mu        sync.Mutex
	pending   []change
	latest    map[object]int // index in pending
	endpoints map[string]*attached
	failed    error // why the last write did not succeed
	synced    bool
	over      bool                      // Run has ended
	noted     uint64                    // changes so far
	enforced  uint64                    // how many of them
	mend      bool                      // the tables are not what they should be
	closed    map[netpol.PolicyRef]bool // for want of room
	names     map[uint32]bpf.PolicyName
	wake      chan struct{}

	// Of the loop alone.
	compiler *compiler.Compiler
	local    map[types.UID]*localPod
	torn     bool             // the last write did not succeed
	begun    bool             // one did
	reborn   []netip.Addr     // of changes since the last write that succeeded
	learned  []history.Change // of policies, and not enforced yet
	told     bool             // History knows all policies that were there at the start
}

// object names what has changed: a pod by its UID, all else by its name.
type object struct{ kind, id string }

// change is of one object.
type change struct {
	object
	now   metav1.Object // nil: it is gone
	since time.Time     // since when it is waiting
}

// New makes an Enforcer. Run starts it.
func New(cfg Config) *Enforcer {
	if cfg.Recorder == nil {
		cfg.Recorder = &record.FakeRecorder{} // without a channel it says nothing
	}
	e := &Enforcer{
		cfg: cfg, metrics: newInstruments(), latest: map[object]int{}, endpoints: map[string]*attached{}, names: map[uint32]bpf.PolicyName{}, wake: make(chan struct{}, 1),
		compiler: compiler.New(compiler.Options{NodeName: cfg.NodeName, KeepFlows: cfg.KeepFlows, MaxRules: cfg.MaxRules, MaxPeers: cfg.MaxPeers}), local: map[types.UID]*localPod{},
	}
	e.ready, e.asked = make(chan struct{}), newAsked()
	if cfg.Whose {
		e.whose = newWhose()
	}
	e.trouble = newTrouble(cfg.Recorder, cfg.NodeName)
	e.pods = newFollowed(kindPod, uidOf, keeping(keptPod), e.note)
	e.namespaces = newFollowed(kindNamespace, keyOf, keeping(keptNamespace), e.note)
	e.nodes = newFollowed(kindNode, keyOf, keeping(keptNode), e.note)
	e.policies = newFollowed(kindNetworkPolicy, keyOf, keeping(keptNetworkPolicy), e.note)
	e.clusterPolicies = newFollowed(kindClusterNetworkPolicy, keyOf, customCodec, e.note)
	e.conditions = newConditions()
	e.clusterPolicies.look = e.conditions.look
	e.definition = newDefinition()
	e.compiler.SetDNSAddrs(cfg.DNSAddrs)
	e.compiler.SetNamespace(&corev1.Namespace{}) // of what is no pod
	return e
}

// note has a change written.
func (e *Enforcer) note(kind, id string, now metav1.Object) {
	e.whose.note(kind, id, now)
	e.mu.Lock()
	e.noteLocked(object{kind, id}, now)
	e.mu.Unlock()
}

func (e *Enforcer) noteLocked(o object, now metav1.Object) {
	e.noted++
	if i, ok := e.latest[o]; ok {
		e.pending[i].now = now
	} else {
		e.latest[o] = len(e.pending)
		e.pending = append(e.pending, change{o, now, time.Now()})
	}
	e.wakeUp()
}

// wakeUp has the loop look at what there is to do.
func (e *Enforcer) wakeUp() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// take returns what has changed since it was called last, and how many changes there were up to then.
func (e *Enforcer) take() (changes []change, noted uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	changes = e.pending
	e.pending, e.latest = nil, map[object]int{}
	return changes, e.noted
}

// Run enforces until ctx ends. What it has written stays.
func (e *Enforcer) Run(ctx context.Context) error {
	var following sync.WaitGroup
	defer following.Wait()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer e.giveUp()
	for _, r := range e.followAPI(e.cfg.Client) {
		following.Go(func() { r.RunWithContext(ctx) })
	}
	following.Go(func() { e.followClusterPolicies(ctx) })
	following.Go(func() { e.prove(ctx) })
	following.Go(func() { e.writeStatus(ctx) })
	if !e.awaitAll(ctx) {
		return nil
	}
	backoff := newBackoff()
	for {
		err := e.resume()
		if err == nil {
			break
		}
		e.fail(err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(backoff.Step()):
		}
	}
	close(e.ready)
	return e.loop(ctx)
}

// newBackoff is how writes that failed are tried again.
func newBackoff() wait.Backoff {
	return wait.Backoff{Duration: 10 * time.Millisecond, Factor: 2, Jitter: 0.1, Steps: 12, Cap: 30 * time.Second}
}

// awaitAll waits until all kinds of objects are known; meanwhile the compiler learns them as they come. It is false if ctx ended.
func (e *Enforcer) awaitAll(ctx context.Context) bool {
	for _, f := range []*followed{e.namespaces, e.nodes, e.policies, e.clusterPolicies, e.pods} {
		for known := false; !known; {
			select {
			case <-ctx.Done():
				return false
			case <-f.synced:
				known = true
			case <-e.wake:
			}
			changes, _ := e.take()
			e.learn(changes)
		}
	}
	e.mu.Lock()
	e.synced = true
	e.mu.Unlock()
	return true
}

// resume has the compiler go on from the rows that the kernel has.
func (e *Enforcer) resume() error {
	rows, err := e.cfg.Tables.Dump()
	if err != nil {
		return err
	}
	e.compiler.Continue(rows)
	e.name(bpf.PolicyChange{Names: rows.Names})
	return nil
}

// loop writes what changes.
func (e *Enforcer) loop(ctx context.Context) error {
	backoff := newBackoff()
	retry := time.NewTimer(0) // the first write follows at once, whatever has changed
	defer retry.Stop()
	var waiting []change
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-e.wake:
		case <-retry.C:
		}
		changes, noted := e.take()
		e.learn(changes)
		waiting = append(waiting, changes...)
		if err := e.write(); err != nil {
			e.fail(err)
			retry.Reset(backoff.Step())
			continue
		}
		backoff = newBackoff()
		retry.Stop()
		e.live(waiting, noted)
		waiting = nil
	}
}

// learn tells the compiler of changes.
func (e *Enforcer) learn(changes []change) {
	for _, c := range changes {
		if e.cfg.History != nil && (c.kind == kindNetworkPolicy || c.kind == kindClusterNetworkPolicy) {
			e.learned = append(e.learned, changeOf(c))
		}
		switch c.kind {
		case kindPod:
			e.podChanged(types.UID(c.id), c.now)
		case kindEndpoint:
			e.endpointsChanged(c.id)
		case kindNamespace:
			if n, ok := c.now.(*corev1.Namespace); ok {
				e.compiler.SetNamespace(n)
			} else {
				e.compiler.DeleteNamespace(c.id)
			}
		case kindNode:
			if n, ok := c.now.(*corev1.Node); ok {
				e.compiler.SetNode(n)
			} else {
				e.compiler.DeleteNode(c.id)
			}
		case kindNetworkPolicy:
			if p, ok := c.now.(*networkingv1.NetworkPolicy); ok {
				e.compiler.SetNetworkPolicy(p)
			} else {
				namespace, name, _ := strings.Cut(c.id, "/")
				e.compiler.DeleteNetworkPolicy(namespace, name)
			}
		case kindClusterNetworkPolicy:
			if p, ok := c.now.(*policyv1alpha2.ClusterNetworkPolicy); ok {
				e.compiler.SetClusterNetworkPolicy(p)
			} else {
				e.compiler.DeleteClusterNetworkPolicy(c.id)
			}
		}
	}
}

// changeOf is a change of a policy as History has it.
func changeOf(c change) history.Change {
	out := history.Change{Kind: c.kind, Name: c.id, Now: c.now}
	if c.kind == kindNetworkPolicy {
		out.Namespace, out.Name, _ = strings.Cut(c.id, "/")
	}
	return out
}

// write brings the tables to what the compiler knows. After a write that did not succeed nobody knows how far it came: what there is is
// read then, and mended.
func (e *Enforcer) write() error {
	changes := e.compiler.Flush()
	for _, c := range changes {
		e.reborn = append(e.reborn, c.Reborn...)
	}
	e.mu.Lock()
	e.torn = e.torn || e.mend
	e.mend = false
	e.mu.Unlock()
	if e.torn {
		have, err := e.cfg.Tables.Dump()
		if err != nil {
			return err
		}
		changes = repair(have, e.compiler.Rows(), e.reborn)
	}
	for _, c := range changes {
		e.torn = true
		if err := e.cfg.Tables.Apply(c); err != nil {
			return fmt.Errorf("write the rows of policies: %w", err)
		}
		e.name(c)
		e.usage.stale()
	}
	e.torn, e.reborn = false, nil
	return nil
}

// name follows which policies the numbers in the tables stand for.
func (e *Enforcer) name(c bpf.PolicyChange) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, n := range c.GoneNames {
		delete(e.names, n)
	}
	for _, n := range c.Names {
		e.names[n.Policy] = n
	}
}

// live follows a write that succeeded: all of these changes are enforced.
func (e *Enforcer) live(changes []change, noted uint64) {
	now := time.Now()
	for _, c := range changes {
		e.metrics.latency.Observe(now.Sub(c.since).Seconds())
	}
	e.mu.Lock()
	e.failed, e.enforced = nil, noted
	e.closed = e.compiler.Closed()
	for _, a := range e.endpoints {
		if a.known && !a.isLive() {
			close(a.live)
		}
	}
	e.mu.Unlock()
	e.metrics.broken.Set(0)
	if e.cfg.History != nil {
		if e.told {
			e.cfg.History.Changed(e.learned)
		} else {
			e.cfg.History.All(e.learned)
		}
		e.told, e.learned = true, nil
	}
	problems := e.compiler.Problems()
	e.trouble.tell(problems)
	e.metrics.problems.Set(float64(len(problems)))
	if !e.begun && e.cfg.Synced != nil {
		e.cfg.Synced()
	}
	e.begun = true
}

// fail notes that a write did not succeed, and says so once while it is the same.
func (e *Enforcer) fail(err error) {
	e.mu.Lock()
	same := e.failed != nil && e.failed.Error() == err.Error()
	e.failed = err
	e.mu.Unlock()
	e.metrics.failures.Inc()
	e.metrics.broken.Set(1)
	if !same {
		klog.ErrorS(err, "Policies are not enforced as the API has them: what was enforced stays, trying again")
		e.trouble.failed(err)
	}
}

// Settled tells whether all that the API has said is enforced.
func (e *Enforcer) Settled() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.settled()
}

// settled is Settled with the lock held.
func (e *Enforcer) settled() bool { return e.synced && e.enforced == e.noted && e.failed == nil }
