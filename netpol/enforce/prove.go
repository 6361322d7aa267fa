package enforce

import (
	"context"
	"fmt"
	"net/netip"
	"runtime/debug"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/netpol"
	"github.com/strake-io/strake/netpol/compiler"
	"github.com/strake-io/strake/netpol/verify"
)

// What is enforced is proved again and again: some while after changes, and now and then without any, for rows may be changed by others. A proof in a large cluster is
// one of samples, and takes no more than a small part of one CPU's time.
const (
	proveAfter   = 30 * time.Second
	proveAnyway  = 10 * time.Minute
	proveShare   = 50   // a proof may take a 50th of the time
	proveAsks    = 2000 // questions
	proveSamples = 500  // pods of other nodes
	// As many NetworkPolicies as a proof holds at once: beyond, it is about some namespaces, by lot.
	provePolicies = 1000
)

// prove holds rows against policies until ctx ends.
func (e *Enforcer) prove(ctx context.Context) {
	var last uint64
	var done time.Time
	pause := proveAfter
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		e.mu.Lock()
		noted, settled := e.noted, e.settled()
		e.mu.Unlock()
		if !settled || noted == last && time.Since(done) < proveAnyway {
			continue
		}
		began := time.Now()
		if e.proof(ctx) {
			last, done = noted, time.Now()
		}
		debug.FreeOSMemory() // what a proof of a large cluster looks at is most of what the agent holds, and nobody looks at it again
		pause = max(proveAfter, proveShare*time.Since(began))
	}
}

// proof is one; it is false if the cluster changed meanwhile. What differs is looked at again before it is told: and then rows are written that are as they should be.
func (e *Enforcer) proof(ctx context.Context) bool {
	var report verify.Report
	for range 2 {
		rows, state, o, err := e.snapshot()
		if err != nil {
			klog.ErrorS(err, "The enforcement of policies could not be proved")
			return false
		}
		if rows == nil {
			return false
		}
		if report, err = verify.Verify(ctx, *rows, state, o); err != nil {
			if ctx.Err() != nil {
				return false
			}
			klog.ErrorS(err, "The enforcement of policies could not be proved")
			return false
		}
		e.metrics.proofs.Inc()
		e.metrics.questions.Add(float64(report.Asked))
		if report.Drifts == 0 {
			break
		}
	}
	e.metrics.drift.Set(float64(report.Drifts))
	if report.Drifts == 0 {
		e.metrics.proved.SetToCurrentTime()
		e.testify(report.Asked, 0, "")
		return true
	}
	var lines []string
	for _, d := range report.Examples[:min(3, len(report.Examples))] {
		lines = append(lines, d.String())
	}
	what := fmt.Sprintf("the kernel does not judge as the policies say: %d differences, the first: %s", report.Drifts, strings.Join(lines, "; "))
	klog.ErrorS(nil, "Drift of network policies: rows are written anew", "differences", report.Drifts, "first", strings.Join(lines, "; "))
	e.trouble.drift(what)
	e.testify(report.Asked, report.Drifts, strings.Join(lines, "; "))
	e.mu.Lock()
	e.mend = true
	e.noted++ // a change as others: what is written is proved again
	e.mu.Unlock()
	e.wakeUp()
	return true
}

// testify has History keep what a proof found.
func (e *Enforcer) testify(questions, differences int, first string) {
	if e.cfg.History != nil {
		e.cfg.History.Proof(questions, differences, first)
	}
}

// snapshot returns rows and the state that they follow from; no rows if there is no such moment now. The options tell of addresses that
// are of no pod of the state.
func (e *Enforcer) snapshot() (*bpf.PolicyRows, netpol.State, verify.Options, error) {
	o := verify.Options{Node: e.cfg.NodeName, Questions: proveAsks}
	e.mu.Lock()
	before, settled := e.noted, e.settled()
	e.mu.Unlock()
	if !settled {
		return nil, netpol.State{}, o, nil
	}
	rows, err := e.cfg.Tables.Dump()
	if err != nil {
		return nil, netpol.State{}, o, err
	}
	asked := e.provedNamespaces()
	state, untold, err := e.state(asked)
	if err != nil {
		return nil, state, o, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.noted != before || !e.settled() {
		return nil, state, o, nil
	}
	o.Untold, o.Closed, o.Unasked = untold, e.closed, map[netip.Addr]bool{}
	placed := map[string]bool{}
	var pods []*corev1.Pod
	for _, p := range state.Pods {
		if p.Spec.NodeName != e.cfg.NodeName || p.Spec.HostNetwork {
			pods = append(pods, p)
			continue
		}
		var addrs []netip.Addr
		for owner, a := range e.endpoints {
			if a.is(p) {
				placed[owner] = true
				addrs = append(addrs, a.Addrs...)
			}
		}
		if len(addrs) > 0 {
			pods = append(pods, withAddrs(p, addrs))
		}
		for _, a := range addrs {
			o.Unasked[a] = asked != nil && !asked[p.Namespace]
		}
	}
	state.Pods = compiler.WithoutForeignClaims(pods, e.cfg.NodeName)
	for owner, a := range e.endpoints {
		if !placed[owner] {
			o.Others = append(o.Others, a.Addrs...)
		}
	}
	return &rows, state, o, nil
}

// provedNamespaces are those whose NetworkPolicies, and pods of this node, a proof asks about; nil: all, for there are few policies.
func (e *Enforcer) provedNamespaces() map[string]bool {
	if e.policies.count() <= provePolicies {
		return nil
	}
	policies := map[string]int{}
	e.policies.mu.Lock()
	for key := range e.policies.known {
		namespace, _, _ := strings.Cut(key, "/")
		policies[namespace]++
	}
	e.policies.mu.Unlock()
	here := map[string]bool{}
	e.mu.Lock()
	for _, a := range e.endpoints {
		here[a.Namespace] = true
	}
	e.mu.Unlock()
	out, n := map[string]bool{}, 0
	for namespace := range here { // in an order by lot
		if n == 0 || n+policies[namespace] <= provePolicies {
			out[namespace] = true
			n += policies[namespace]
		}
	}
	return out
}

// state is what is followed, of NetworkPolicies those of the namespaces that are asked about (nil: all), of other nodes' pods a sample, and the addresses of those that are not in it: another pod, which has ended or is on its way
// out, may have one of them, too.
func (e *Enforcer) state(asked map[string]bool) (netpol.State, map[netip.Addr]bool, error) {
	s := netpol.State{DNSAddrs: e.cfg.DNSAddrs}
	e.mu.Lock()
	here := map[string]bool{}
	for _, a := range e.endpoints {
		here[a.name()] = true
	}
	e.mu.Unlock()
	var wanted func(key string) bool
	if asked != nil {
		wanted = func(key string) bool {
			namespace, _, _ := strings.Cut(key, "/")
			return asked[namespace]
		}
	}
	samples, untold := 0, map[netip.Addr]bool{}
	for _, err := range []error{
		e.pods.each(nil, func(o metav1.Object) {
			p := o.(*corev1.Pod)
			if !here[keyOf(p)] {
				samples++ // a map gives them in an order by lot
			}
			if here[keyOf(p)] || samples <= proveSamples {
				s.Pods = append(s.Pods, p)
				return
			}
			for _, ip := range p.Status.PodIPs {
				if a, err := netip.ParseAddr(ip.IP); err == nil {
					untold[a.Unmap()] = true
				}
			}
		}),
		e.namespaces.each(nil, func(o metav1.Object) { s.Namespaces = append(s.Namespaces, o.(*corev1.Namespace)) }),
		e.nodes.each(nil, func(o metav1.Object) { s.Nodes = append(s.Nodes, o.(*corev1.Node)) }),
		e.policies.each(wanted, func(o metav1.Object) { s.NetworkPolicies = append(s.NetworkPolicies, o.(*networkingv1.NetworkPolicy)) }),
		e.clusterPolicies.each(nil, func(o metav1.Object) {
			s.ClusterNetworkPolicies = append(s.ClusterNetworkPolicies, o.(*policyv1alpha2.ClusterNetworkPolicy))
		}),
	} {
		if err != nil {
			return s, nil, err
		}
	}
	return s, untold, nil
}
