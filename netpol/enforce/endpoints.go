package enforce

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Endpoint is what a pod of this node got from the CNI server. Its addresses count for the node's own pods, not those that the API has: the API
// learns them later, and forgets them at another time than the interface goes.
type Endpoint struct {
	Owner          string // the attachment
	Namespace, Pod string // empty: no pod of the cluster, but another container of this network
	UID            string // of the pod; empty: not known, its name counts
	Addrs          []netip.Addr
}

// noPod begins the names of what is no pod.
const noPod = "/"

// name is the pod's, or the attachment's own if there is no pod.
func (ep Endpoint) name() string {
	if ep.Pod == "" {
		return noPod + ep.Owner
	}
	return ep.Namespace + "/" + ep.Pod
}

// attached is an Endpoint on its way to be enforced.
type attached struct {
	Endpoint
	known bool // the compiler has its pod with its addresses
	live  chan struct{}
	ended chan struct{} // nobody will make it live any more
}

func (a *attached) isLive() bool {
	select {
	case <-a.live:
		return true
	default:
		return false
	}
}

// is tells whether an attachment is of a pod.
func (a *attached) is(p *corev1.Pod) bool {
	if a.Pod != p.Name || a.Namespace != p.Namespace {
		return false
	}
	return a.UID == "" || a.UID == string(p.UID) || a.UID == p.Annotations[staticPodUID]
}

// Known tells of the Endpoints of former runs. It is to be called once, before Run. Those that have no rows go on without: bpf.Open has given some to pods from
// before anything was judged on this node.
func (e *Enforcer) Known(all ...Endpoint) {
	for _, ep := range all {
		e.attach(ep)
	}
}

func (e *Enforcer) attach(ep Endpoint) *attached {
	a := &attached{Endpoint: ep, live: make(chan struct{}), ended: make(chan struct{})}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.over {
		close(a.ended)
	}
	e.endpoints[ep.Owner] = a
	e.whose.attached(ep)
	e.noteLocked(object{kindEndpoint, ep.name()}, nil)
	return a
}

// Admit returns when the packets of a new Endpoint are judged, or an error if they are not by the time that ctx ends. Whoever
// does not go on then is to call Release.
func (e *Enforcer) Admit(ctx context.Context, ep Endpoint) error {
	if err := e.upToDate(ctx, ep.Namespace); err != nil {
		return err
	}
	a := e.attach(ep)
	select {
	case <-a.live:
		return nil
	case <-a.ended:
		return errors.New("the agent ends")
	case <-ctx.Done():
		return e.whyNot(a)
	}
}

// whyNot tells what an Endpoint waits for.
func (e *Enforcer) whyNot(a *attached) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case !e.synced:
		var missing []string
		var causes []error
		for _, f := range []*followed{e.pods, e.namespaces, e.nodes, e.policies, e.clusterPolicies} {
			select {
			case <-f.synced:
			default:
				missing = append(missing, f.kind)
				causes = append(causes, f.api.get())
				if f == e.clusterPolicies {
					causes = append(causes, e.definition.api.get())
				}
			}
		}
		err := fmt.Errorf("the API has not told yet what there is of %s", strings.Join(missing, ", "))
		if cause := errors.Join(causes...); cause != nil {
			err = fmt.Errorf("%w: %w", err, cause)
		}
		return err
	case !a.known:
		return fmt.Errorf("the API has not told of pod %s with UID %s", a.name(), a.UID)
	case e.failed != nil:
		return e.failed
	}
	return errors.New("its rows are not written yet")
}

// Release forgets an Endpoint. Its rows go soon.
func (e *Enforcer) Release(owner string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if a, ok := e.endpoints[owner]; ok {
		delete(e.endpoints, owner)
		e.whose.released(a.Endpoint)
		e.noteLocked(object{kindEndpoint, a.name()}, nil)
	}
}

// giveUp tells those who wait that nobody works for them any more.
func (e *Enforcer) giveUp() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.over {
		return
	}
	e.over = true
	for _, a := range e.endpoints {
		close(a.ended)
	}
}

// localPod is one of this node, as the API has it. One that the API has no more, as it was deleted without waiting for its end, is held
// until its network is gone: so long it is who it was.
type localPod struct {
	*corev1.Pod
	gone bool
}

// podChanged tells the compiler of a pod.
func (e *Enforcer) podChanged(uid types.UID, now metav1.Object) {
	l := e.local[uid]
	switch p, ok := now.(*corev1.Pod); {
	case !ok && l == nil:
		e.compiler.DeletePod(uid)
		return
	case !ok:
		l.gone = true
	case p.Spec.NodeName != e.cfg.NodeName || p.Spec.HostNetwork:
		delete(e.local, uid)
		e.compiler.SetPod(p)
		return
	default:
		l = &localPod{Pod: p}
		e.local[uid] = l
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.place(l)
}

// endpointsChanged tells the compiler of the pods of this node that have a name, with the addresses that they have here.
func (e *Enforcer) endpointsChanged(name string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, l := range e.local {
		if l.Namespace+"/"+l.Name == name {
			e.place(l)
		}
	}
	owner, ok := strings.CutPrefix(name, noPod)
	if !ok {
		return
	}
	// No pod of the cluster: nobody's peer by labels, and subject to what selects everything.
	uid := types.UID(name)
	a := e.endpoints[owner]
	if a == nil {
		e.compiler.DeletePod(uid)
		return
	}
	a.known = true
	e.compiler.SetPod(withAddrs(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, UID: uid}, Spec: corev1.PodSpec{NodeName: e.cfg.NodeName}}, a.Addrs))
}

// place tells the compiler of a pod of this node. A pod that is not made yet, or has no interface any more, is nobody's peer.
func (e *Enforcer) place(l *localPod) {
	var addrs []netip.Addr
	for _, a := range e.endpoints {
		if a.is(l.Pod) {
			a.known = true
			addrs = append(addrs, a.Addrs...)
		}
	}
	if len(addrs) > 0 {
		e.compiler.SetPod(withAddrs(l.Pod, addrs))
		return
	}
	e.compiler.DeletePod(l.UID)
	if l.gone {
		delete(e.local, l.UID)
	}
}

// withAddrs returns a pod with these addresses, and no others. The addresses may be another's: they stay as they are.
func withAddrs(p *corev1.Pod, addrs []netip.Addr) *corev1.Pod {
	addrs = slices.Clone(addrs)
	slices.SortFunc(addrs, netip.Addr.Compare)
	here := *p
	here.Status.PodIP, here.Status.PodIPs = "", nil
	for _, a := range addrs {
		here.Status.PodIPs = append(here.Status.PodIPs, corev1.PodIP{IP: a.String()})
	}
	return &here
}
