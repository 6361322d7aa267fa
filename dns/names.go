package dns

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/bpf"
)

// Desired returns the names that the kernel answers for a Service: those with an IPv4 ClusterIP. All others need user space.
func Desired(svc *corev1.Service, zone string) []bpf.Name {
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	a, err := netip.ParseAddr(svc.Spec.ClusterIP)
	if err != nil || !a.Is4() || len(svc.Spec.ClusterIPs) > 1 {
		return nil
	}
	return []bpf.Name{{Owner: string(svc.UID), Name: fmt.Sprintf("%s.%s.svc.%s.", svc.Name, svc.Namespace, zone), Addrs: []netip.Addr{a}}}
}

// Names keeps the kernel's names up to date.
type Names struct {
	table    bpf.Table[bpf.Name]
	zone     string
	services corelisters.ServiceLister
	synced   cache.InformerSynced
	queue    workqueue.TypedRateLimitingInterface[change]
}

// change is a Service that changed: the UID tells a deleted one from its successor.
type change struct{ namespace, name, uid string }

// NewNames registers with the informers; start them afterwards.
func NewNames(f informers.SharedInformerFactory, table bpf.Table[bpf.Name], zone string) (*Names, error) {
	svc := f.Core().V1().Services()
	n := &Names{
		table: table, zone: zone, services: svc.Lister(), synced: svc.Informer().HasSynced,
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[change](10*time.Millisecond, 30*time.Second)),
	}
	add := func(obj any) {
		if t, ok := obj.(cache.DeletedFinalStateUnknown); ok {
			obj = t.Obj
		}
		if s, ok := obj.(*corev1.Service); ok {
			n.queue.Add(change{s.Namespace, s.Name, string(s.UID)})
		}
	}
	_, err := svc.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: add, UpdateFunc: func(old, obj any) { add(old); add(obj) }, DeleteFunc: add})
	if err != nil {
		return nil, fmt.Errorf("dns: %w", err)
	}
	return n, nil
}

// Run writes names until ctx ends. What it has written stays.
func (n *Names) Run(ctx context.Context) error {
	if !cache.WaitForCacheSync(ctx.Done(), n.synced) {
		return nil
	}
	all, err := n.services.List(labels.Everything())
	if err != nil {
		return fmt.Errorf("dns: %w", err)
	}
	live := map[string]bool{}
	for _, s := range all {
		live[string(s.UID)] = true
	}
	if _, err := n.table.Prune(func(owner string) bool { return live[owner] }); err != nil {
		return fmt.Errorf("dns: %w", err)
	}
	go func() {
		<-ctx.Done()
		n.queue.ShutDown()
	}()
	for {
		c, quit := n.queue.Get()
		if quit {
			return nil
		}
		if err := n.sync(c); err != nil {
			klog.ErrorS(err, "Name is not in the kernel yet, trying again", "service", c.namespace+"/"+c.name)
			n.queue.AddRateLimited(c)
		} else {
			n.queue.Forget(c)
		}
		n.queue.Done(c)
	}
}

func (n *Names) sync(c change) error {
	svc, err := n.services.Services(c.namespace).Get(c.name)
	var want []bpf.Name
	if err == nil && string(svc.UID) == c.uid {
		want = Desired(svc, n.zone)
	}
	_, err = n.table.Replace(c.uid, want)
	return err
}
