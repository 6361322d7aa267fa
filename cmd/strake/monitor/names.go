package monitor

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// Names knows who has which address. Its zero value knows nobody.
type Names struct {
	mu       sync.Mutex
	pods     map[netip.Addr]map[string]string // address → UID → namespace/name
	services map[netip.Addr]map[string]string
	nodes    map[netip.Addr]map[string]string
	uids     map[string]string // UID of a pod → namespace/name
	named    map[string]int    // namespace/name → how many pods: while one is made anew, two
	ports    map[int32]string  // NodePort → namespace/name of the Service
}

// NewNames knows nobody yet.
func NewNames() *Names {
	table := func() map[netip.Addr]map[string]string { return map[netip.Addr]map[string]string{} }
	return &Names{pods: table(), services: table(), nodes: table(), uids: map[string]string{}, named: map[string]int{}, ports: map[int32]string{}}
}

// Follow learns names from the API until ctx ends. It returns once it knows all, or has waited for too long: the rest comes in time.
func (n *Names) Follow(ctx context.Context, c kubernetes.Interface, wait time.Duration) error {
	f := informers.NewSharedInformerFactoryWithOptions(c, 0, informers.WithTransform(slim))
	var synced []cache.InformerSynced
	for _, i := range []cache.SharedIndexInformer{f.Core().V1().Pods().Informer(), f.Core().V1().Services().Informer(), f.Core().V1().Nodes().Informer()} {
		r, err := i.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: n.add, UpdateFunc: func(old, obj any) { n.remove(old); n.add(obj) }, DeleteFunc: n.remove})
		if err != nil {
			return err
		}
		synced = append(synced, r.HasSynced)
	}
	f.Start(ctx.Done())
	wctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	if !cache.WaitForCacheSync(wctx.Done(), synced...) && ctx.Err() == nil {
		return fmt.Errorf("the API server has not told all names in %s: some packets are shown with addresses alone", wait)
	}
	return nil
}

// slim keeps of an object what names need.
func slim(obj any) (any, error) {
	if m, ok := obj.(metav1.Object); ok {
		m.SetManagedFields(nil)
		m.SetAnnotations(nil)
	}
	if p, ok := obj.(*corev1.Pod); ok {
		p.Spec.Containers, p.Spec.InitContainers, p.Spec.Volumes = nil, nil, nil
	}
	return obj, nil
}

func (n *Names) add(obj any) { n.change(obj, true) }

func (n *Names) remove(obj any) {
	if t, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = t.Obj
	}
	n.change(obj, false)
}

func (n *Names) change(obj any, add bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	set := func(in map[netip.Addr]map[string]string, text, uid, name string) {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return // a headless Service, a host name
		}
		if !add {
			if delete(in[a], uid); len(in[a]) == 0 {
				delete(in, a)
			}
			return
		}
		if in[a] == nil {
			in[a] = map[string]string{}
		}
		in[a][uid] = name
	}
	switch o := obj.(type) {
	case *corev1.Pod:
		uid, name := string(o.UID), o.Namespace+"/"+o.Name
		if _, known := n.uids[uid]; add && !known {
			n.uids[uid] = name
			n.named[name]++
		} else if !add && known {
			delete(n.uids, uid)
			if n.named[name]--; n.named[name] == 0 {
				delete(n.named, name)
			}
		}
		if o.Spec.HostNetwork || o.Status.Phase == corev1.PodSucceeded || o.Status.Phase == corev1.PodFailed {
			return // the address is the node's, or another's by now
		}
		for _, ip := range o.Status.PodIPs {
			set(n.pods, ip.IP, uid, name)
		}
	case *corev1.Service:
		name := o.Namespace + "/" + o.Name
		addrs := append(append([]string{}, o.Spec.ClusterIPs...), o.Spec.ExternalIPs...)
		for _, in := range o.Status.LoadBalancer.Ingress {
			addrs = append(addrs, in.IP)
		}
		for _, a := range addrs {
			set(n.services, a, string(o.UID), name)
		}
		for _, p := range o.Spec.Ports {
			if p.NodePort == 0 {
				continue
			}
			if add {
				n.ports[p.NodePort] = name
			} else {
				delete(n.ports, p.NodePort)
			}
		}
	case *corev1.Node:
		for _, a := range o.Status.Addresses {
			set(n.nodes, a.Address, string(o.UID), o.Name)
		}
	}
}

// HasPod tells whether there is a pod of that namespace/name.
func (n *Names) HasPod(name string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.named[name] > 0
}

// Peer is one end of a packet's way.
type Peer struct {
	Address netip.Addr `json:"address"`
	Port    uint16     `json:"port,omitempty"`
	Pod     string     `json:"pod,omitempty"`     // namespace/name
	Service string     `json:"service,omitempty"` // namespace/name
	Node    string     `json:"node,omitempty"`
}

// Of names who has an address, or whose port of a node it is.
func (n *Names) Of(a netip.Addr, port uint16) *Peer {
	if !a.IsValid() {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	p := &Peer{Address: a, Port: port, Pod: one(n.pods[a]), Service: one(n.services[a]), Node: one(n.nodes[a])}
	if p.Node != "" && p.Service == "" {
		p.Service = n.ports[int32(port)]
	}
	return p
}

// one of those that share an address: there is more than one only while an address changes hands.
func one(names map[string]string) string {
	best := ""
	for _, name := range names {
		if best == "" || name < best {
			best = name
		}
	}
	return best
}

// PodOfProcess names the pod that a process of this node is of, by its cgroup; empty if none.
func (n *Names) PodOfProcess(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "" // it has ended
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.uids[podUID(string(b))]
}

// podUID finds the part pod<UID> in /proc/<pid>/cgroup; systemd writes the UID with underscores.
func podUID(cgroup string) string {
	for line := range strings.Lines(cgroup) {
		for part := range strings.SplitSeq(strings.TrimSpace(line), "/") {
			part = strings.TrimSuffix(part, ".slice")
			if i := strings.LastIndex(part, "pod"); i >= 0 {
				if uid := strings.ReplaceAll(part[i+3:], "_", "-"); len(uid) == 36 {
					return uid
				}
			}
		}
	}
	return ""
}

func (p *Peer) String() string {
	if p == nil {
		return "?"
	}
	s := p.Address.String()
	if p.Port != 0 {
		s = netip.AddrPortFrom(p.Address, p.Port).String()
	}
	switch {
	case p.Pod != "":
		s += " (" + p.Pod + ")"
	case p.Service != "":
		s += " (service " + p.Service + ")"
	case p.Node != "":
		s += " (node " + p.Node + ")"
	}
	return s
}
