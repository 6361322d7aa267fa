package enforce

import (
	"net/netip"
	"sync"

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
}

type whosePod struct {
	types.NamespacedName
	labels  map[string]string
	addrs   []netip.Addr
	created int64
}

func newWhose() *whose {
	return &whose{pods: map[types.UID]*whosePod{}, names: map[types.NamespacedName]types.UID{}, at: map[netip.Addr]types.UID{}, here: map[netip.Addr]types.NamespacedName{},
		nodes: map[netip.Addr]string{}, byNode: map[string][]netip.Addr{}}
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
		w.forget(types.UID(id))
		if p, ok := now.(*corev1.Pod); ok && !p.Spec.HostNetwork && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
			k := &whosePod{types.NamespacedName{Namespace: p.Namespace, Name: p.Name}, p.Labels, podAddrs(p), p.CreationTimestamp.Unix()}
			w.pods[p.UID], w.names[k.NamespacedName] = k, p.UID
			for _, a := range k.addrs { // while one follows another both may have it
				if had := w.pods[w.at[a]]; had == nil || had.created <= k.created {
					w.at[a] = p.UID
				}
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

func (w *whose) forget(uid types.UID) {
	p := w.pods[uid]
	if p == nil {
		return
	}
	delete(w.pods, uid)
	if w.names[p.NamespacedName] == uid {
		delete(w.names, p.NamespacedName)
	}
	for _, a := range p.addrs {
		if w.at[a] == uid {
			delete(w.at, a)
		}
	}
}

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
	for _, a := range ep.Addrs {
		w.here[a] = types.NamespacedName{Namespace: ep.Namespace, Name: ep.Pod}
	}
}

func (w *whose) released(ep Endpoint) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range ep.Addrs {
		delete(w.here, a)
	}
}

// Whose tells who has an address now; ok: somebody of the cluster. It knows nobody unless Config.Whose is set.
func (e *Enforcer) Whose(a netip.Addr) (who Whose, ok bool) {
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
	if name, here := w.here[a]; here {
		who = Whose{Namespace: name.Namespace, Pod: name.Name}
		if p := w.pods[w.names[name]]; p != nil {
			who.Labels = p.labels
		}
		return who, true
	}
	if p := w.pods[w.at[a]]; p != nil {
		return Whose{Namespace: p.Namespace, Pod: p.Name, Labels: p.labels}, true
	}
	who.Node, ok = w.nodes[a]
	return who, ok
}

// PolicyName tells which policy has a number in the tables now.
func (e *Enforcer) PolicyName(n uint32) (bpf.PolicyName, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	name, ok := e.names[n]
	return name, ok
}
