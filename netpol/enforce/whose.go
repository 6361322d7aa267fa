package enforce

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/strake-io/strake/bpf"
)

// Whose tells who has an address.
type Whose struct {
	Namespace, Pod string
	Labels         map[string]string // of the pod; not to be changed
	Node           string            // the address is a node's: its name
}

// whose follows who has which address, for who tells of flows. It is nil where nobody asks.
type whose struct {
	mu     sync.Mutex
	pods   map[types.UID]*whosePod // without those in the node's network
	names  map[types.NamespacedName]types.UID
	at     map[netip.Addr]types.UID            // as the API has it
	here   map[netip.Addr]types.NamespacedName // of this node's pods, before the API has it
	nodes  map[netip.Addr]string
	byNode map[string][]netip.Addr
	former map[netip.Addr][]owner // who has an address no more, the last one last
	ended  []ending               // of them all, in the order of time
	now    func() time.Time
}

// owner is a pod that had an address.
type owner struct {
	types.NamespacedName
	labels map[string]string
	until  time.Time
}

type ending struct {
	addr  netip.Addr
	until time.Time
}

// Bounds of former owners: flows are told when the pods that they were of may be gone, up to ten seconds later.
const (
	keepFormer = 30 * time.Second
	maxFormer  = 16384
)

type whosePod struct {
	types.NamespacedName
	labels  map[string]string
	addrs   []netip.Addr
	created int64
}

func newWhose() *whose {
	return &whose{pods: map[types.UID]*whosePod{}, names: map[types.NamespacedName]types.UID{}, at: map[netip.Addr]types.UID{}, here: map[netip.Addr]types.NamespacedName{},
		nodes: map[netip.Addr]string{}, byNode: map[string][]netip.Addr{}, former: map[netip.Addr][]owner{}, now: time.Now}
}

// note follows a change of the API's objects.
func (w *whose) note(kind, id string, now metav1.Object) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch kind {
	case kindPod:
		was := w.forget(types.UID(id))
		if p, ok := now.(*corev1.Pod); ok && !p.Spec.HostNetwork && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
			k := &whosePod{types.NamespacedName{Namespace: p.Namespace, Name: p.Name}, p.Labels, podAddrs(p), p.CreationTimestamp.Unix()}
			w.pods[p.UID], w.names[k.NamespacedName] = k, p.UID
			for _, a := range k.addrs { // while one follows another both may have it
				had := w.pods[w.at[a]]
				if had == nil || had.created <= k.created {
					w.at[a] = p.UID
				}
				if had != nil && had != k && w.at[a] == p.UID {
					w.retire(a, had.NamespacedName, had.labels)
				}
			}
		}
		for _, a := range was.had {
			if w.at[a] != types.UID(id) {
				w.retire(a, was.NamespacedName, was.labels)
			}
		}
	case kindNode:
		for _, a := range w.byNode[id] {
			delete(w.nodes, a)
		}
		delete(w.byNode, id)
		if n, ok := now.(*corev1.Node); ok {
			for _, s := range n.Status.Addresses {
				if a, err := netip.ParseAddr(s.Address); err == nil {
					w.nodes[a.Unmap()] = id
					w.byNode[id] = append(w.byNode[id], a.Unmap())
				}
			}
		}
	}
}

// forgotten is a pod with the addresses that were its alone.
type forgotten struct {
	whosePod
	had []netip.Addr
}

func (w *whose) forget(uid types.UID) (was forgotten) {
	p := w.pods[uid]
	if p == nil {
		return was
	}
	was.whosePod = *p
	delete(w.pods, uid)
	if w.names[p.NamespacedName] == uid {
		delete(w.names, p.NamespacedName)
	}
	for _, a := range p.addrs {
		if w.at[a] == uid {
			delete(w.at, a)
			was.had = append(was.had, a)
		}
	}
	return was
}

// retire notes that a pod has an address no more.
func (w *whose) retire(a netip.Addr, name types.NamespacedName, labels map[string]string) {
	now := w.now()
	list := w.former[a]
	if n := len(list); n > 0 && list[n-1].NamespacedName == name { // the API and the node tell of the same end
		if labels == nil {
			labels = list[n-1].labels
		}
		list = list[:n-1]
	}
	w.former[a] = append(list, owner{name, labels, now})
	w.ended = append(w.ended, ending{a, now})
	old := 0
	for ; old < len(w.ended) && (now.Sub(w.ended[old].until) > keepFormer || len(w.ended)-old > maxFormer); old++ {
		e := w.ended[old]
		left := slices.DeleteFunc(w.former[e.addr], func(o owner) bool { return !o.until.After(e.until) })
		if w.former[e.addr] = left; len(left) == 0 {
			delete(w.former, e.addr)
		}
	}
	w.ended = slices.Delete(w.ended, 0, old)
}

// ownerAt is who had an address at a time, if he has it no more; last: who had it last, if that is not long ago.
func (w *whose) ownerAt(a netip.Addr, at time.Time) (then, last *owner) {
	list := w.former[a]
	for i := range list {
		if !list[i].until.Before(at) {
			return &list[i], &list[i]
		}
	}
	if n := len(list); n > 0 && at.Sub(list[n-1].until) <= keepFormer {
		last = &list[n-1]
	}
	return nil, last
}

func (o *owner) whose() Whose { return Whose{Namespace: o.Namespace, Pod: o.Name, Labels: o.labels} }

func podAddrs(p *corev1.Pod) []netip.Addr {
	var out []netip.Addr
	for _, ip := range p.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			out = append(out, a.Unmap())
		}
	}
	return out
}

// attached and released follow this node's pods.
func (w *whose) attached(ep Endpoint) {
	if w == nil || ep.Pod == "" {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	name := types.NamespacedName{Namespace: ep.Namespace, Name: ep.Pod}
	for _, a := range ep.Addrs {
		if had, ok := w.here[a]; ok && had != name {
			w.retire(a, had, w.labels(had))
		}
		w.here[a] = name
	}
}

func (w *whose) released(ep Endpoint) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range ep.Addrs {
		if had, ok := w.here[a]; ok && had == (types.NamespacedName{Namespace: ep.Namespace, Name: ep.Pod}) {
			w.retire(a, had, w.labels(had))
			delete(w.here, a)
		}
	}
}

// labels are those of a pod that the API has.
func (w *whose) labels(name types.NamespacedName) map[string]string {
	if p := w.pods[w.names[name]]; p != nil {
		return p.labels
	}
	return nil
}

// Whose tells who had an address at a time up to half a minute ago; ok: somebody of the cluster. It knows nobody unless Config.Whose is set.
func (e *Enforcer) Whose(a netip.Addr, at time.Time) (who Whose, ok bool) {
	w := e.whose
	if w == nil {
		return who, false
	}
	for _, own := range e.cfg.DNSAddrs {
		if a == own {
			return Whose{Namespace: metav1.NamespaceSystem, Pod: "kube-dns", Labels: map[string]string{"k8s-app": "kube-dns"}}, true
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	then, last := w.ownerAt(a, at)
	if then != nil {
		return then.whose(), true
	}
	if name, here := w.here[a]; here {
		who = Whose{Namespace: name.Namespace, Pod: name.Name, Labels: w.labels(name)}
		if who.Labels == nil && last != nil && last.NamespacedName == name { // the API has removed it, and it still ends
			who.Labels = last.labels
		}
		return who, true
	}
	if p := w.pods[w.at[a]]; p != nil {
		return Whose{Namespace: p.Namespace, Pod: p.Name, Labels: p.labels}, true
	}
	if who.Node, ok = w.nodes[a]; !ok && last != nil {
		return last.whose(), true
	}
	return who, ok
}

// Ready is closed once all objects of the API are known, and the names of the policies in the kernel.
func (e *Enforcer) Ready() <-chan struct{} { return e.ready }

// PolicyName tells which policy has a number in the tables now.
func (e *Enforcer) PolicyName(n uint32) (bpf.PolicyName, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	name, ok := e.names[n]
	return name, ok
}
