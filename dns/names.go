package dns

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/bpf"
)

// maxKernelAddrs is how many addresses of a family the kernel answers for a headless Service.
const maxKernelAddrs = 8

// Desired returns the names that the kernel answers for a Service: those with a ClusterIP, and headless ones whose
// addresses fit. As the kernel denies such a name what it has no addresses of, the row has all of both families, or is not there.
func Desired(svc *corev1.Service, endpoints []*discoveryv1.EndpointSlice, zone string) []bpf.Name {
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	addrs := clusterIPs(svc)
	if svc.Spec.ClusterIP == corev1.ClusterIPNone {
		addrs = distinct(endpointsOf(svc, endpoints))
	}
	six := 0
	for _, a := range addrs {
		if a.Is4In6() || a.Zone() != "" {
			return nil
		}
		if a.Is6() {
			six++
		}
	}
	if len(addrs) == 0 || max(six, len(addrs)-six) > maxKernelAddrs {
		return nil
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	name := svc.Name + "." + svc.Namespace + ".svc." + strings.Trim(strings.ToLower(zone), ".") + "."
	return []bpf.Name{{Owner: string(svc.UID), Name: name, Addrs: addrs}}
}

// Names keeps the kernel's names up to date.
type Names struct {
	table            bpf.Table[bpf.Name]
	zone             string
	services, slices cache.Indexer
	synced           []cache.InformerSynced
	queue            workqueue.TypedRateLimitingInterface[change]
}

// change is a Service that changed: the UID tells a deleted one from its successor.
type change struct{ key, uid string }

// NewNames registers with the informers; start them afterwards.
func NewNames(f informers.SharedInformerFactory, table bpf.Table[bpf.Name], zone string) (*Names, error) {
	svc, sl := f.Core().V1().Services().Informer(), f.Discovery().V1().EndpointSlices().Informer()
	if err := addIndex(sl, byService, sliceService); err != nil {
		return nil, err
	}
	n := &Names{
		table: table, zone: zone, services: svc.GetIndexer(), slices: sl.GetIndexer(),
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[change](10*time.Millisecond, 30*time.Second)),
	}
	for _, informer := range []cache.SharedIndexInformer{svc, sl} {
		registration, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: n.enqueue, DeleteFunc: n.enqueue, UpdateFunc: func(old, obj any) { n.enqueue(old); n.enqueue(obj) },
		})
		if err != nil {
			return nil, fmt.Errorf("dns: %w", err)
		}
		n.synced = append(n.synced, registration.HasSynced)
	}
	return n, nil
}

// enqueue notes the Service that an object is, or belongs to.
func (n *Names) enqueue(obj any) {
	if t, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = t.Obj
	}
	switch o := obj.(type) {
	case *corev1.Service:
		n.queue.Add(change{o.Namespace + "/" + o.Name, string(o.UID)})
	case *discoveryv1.EndpointSlice:
		// A Service that is not known yet sees its slices when it comes; one that is gone has no use for them.
		key := o.Namespace + "/" + o.Labels[discoveryv1.LabelServiceName]
		if svc, ok, err := n.services.GetByKey(key); err == nil && ok {
			n.queue.Add(change{key, string(svc.(*corev1.Service).UID)})
		}
	}
}

// Run writes names until ctx ends. What it has written stays.
func (n *Names) Run(ctx context.Context) error {
	defer n.queue.ShutDown()
	if !cache.WaitForCacheSync(ctx.Done(), n.synced...) {
		return nil
	}
	backoff := wait.Backoff{Duration: 10 * time.Millisecond, Factor: 2, Steps: 12, Cap: 30 * time.Second}
	for {
		err := n.prune()
		if err == nil {
			break
		}
		klog.ErrorS(err, "Names of Services that are gone are in the kernel still, trying again")
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(backoff.Step()):
		}
	}
	defer context.AfterFunc(ctx, n.queue.ShutDown)()
	for {
		c, quit := n.queue.Get()
		if quit {
			return nil
		}
		if err := n.sync(c); err != nil {
			klog.ErrorS(err, "Name is not in the kernel yet, trying again", "service", c.key)
			n.queue.AddRateLimited(c)
		} else {
			n.queue.Forget(c)
		}
		n.queue.Done(c)
	}
}

// prune deletes the names of Services that went while nobody watched.
func (n *Names) prune() error {
	live := map[string]bool{}
	for _, obj := range n.services.List() {
		live[string(obj.(*corev1.Service).UID)] = true
	}
	_, err := n.table.Prune(func(owner string) bool { return live[owner] })
	return err
}

func (n *Names) sync(c change) error {
	obj, ok, err := n.services.GetByKey(c.key)
	if err != nil {
		return err
	}
	var want []bpf.Name
	if ok {
		if svc := obj.(*corev1.Service); string(svc.UID) == c.uid {
			want = Desired(svc, slicesOf(n.slices, c.key), n.zone)
		}
	}
	_, err = n.table.Replace(c.uid, want)
	return err
}
