// Package servicecidr says of each ServiceCIDR whether Services get addresses of it, and keeps one that is being deleted until
// no Service has an address that is of no other range (KEP-1880).
package servicecidr

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	networkinglisters "k8s.io/client-go/listers/networking/v1"

	"github.com/strake-io/strake/controlplane/controllers/queue"
)

const finalizer = "networking.k8s.io/service-cidr-finalizer"

// grace is how long a range that nobody uses is kept after it was deleted: until then all API servers have learned that they may
// give none of its addresses any more.
const grace = 10 * time.Second

// lookEvery is the pause between looks at whether a range that is to go is still used. Addresses are not watched for that: there
// may be many, and ranges go rarely.
const lookEvery = 5 * time.Second

type controller struct {
	client kubernetes.Interface
	ranges networkinglisters.ServiceCIDRLister
	q      *queue.Queue
}

// Setup registers the controller with the informers and returns what runs it.
func Setup(client kubernetes.Interface, f informers.SharedInformerFactory) (func(context.Context), error) {
	ranges := f.Networking().V1().ServiceCIDRs()
	c := &controller{client: client, ranges: ranges.Lister(), q: queue.New("servicecidr")}
	if _, err := ranges.Informer().AddEventHandler(c.q.Handlers()); err != nil {
		return nil, fmt.Errorf("ServiceCIDRs: %w", err)
	}
	return func(ctx context.Context) { c.q.Run(ctx, 1, c.reconcile, ranges.Informer().HasSynced) }, nil
}

func (c *controller) reconcile(ctx context.Context, _, name string) error {
	r, err := c.ranges.Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	r = r.DeepCopy()
	kept := slices.Contains(r.Finalizers, finalizer)
	switch {
	case r.DeletionTimestamp == nil && !kept:
		r.Finalizers = append(r.Finalizers, finalizer)
		_, err = c.client.NetworkingV1().ServiceCIDRs().Update(ctx, r, metav1.UpdateOptions{}) // its event is the next step's
		return err
	case r.DeletionTimestamp == nil:
		return c.tell(ctx, r, metav1.ConditionTrue, "Allocating", "Kubernetes Service CIDR is ready")
	case !kept:
		return nil
	}
	used, err := c.used(ctx, r)
	if err != nil {
		return err
	}
	if used != "" {
		c.q.AddAfter(name, lookEvery)
		return c.tell(ctx, r, metav1.ConditionFalse, networkingv1.ServiceCIDRReasonTerminating,
			fmt.Sprintf("There are still IPAddresses referencing the ServiceCIDR (%s), please remove them or create a new ServiceCIDR", used))
	}
	if wait := grace - time.Since(r.DeletionTimestamp.Time); wait > 0 {
		c.q.AddAfter(name, wait)
		return nil
	}
	r.Finalizers = slices.DeleteFunc(r.Finalizers, func(f string) bool { return f == finalizer })
	_, err = c.client.NetworkingV1().ServiceCIDRs().Update(ctx, r, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// tell writes the condition Ready unless it says so already; its message alone is no change.
func (c *controller) tell(ctx context.Context, r *networkingv1.ServiceCIDR, ready metav1.ConditionStatus, reason, message string) error {
	if meta.IsStatusConditionPresentAndEqual(r.Status.Conditions, networkingv1.ServiceCIDRConditionReady, ready) {
		return nil
	}
	meta.SetStatusCondition(&r.Status.Conditions, metav1.Condition{
		Type: networkingv1.ServiceCIDRConditionReady, Status: ready, Reason: reason, Message: message, ObservedGeneration: r.Generation,
	})
	_, err := c.client.NetworkingV1().ServiceCIDRs().UpdateStatus(ctx, r, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// used names an address of a Service that is of this range and of no other that stays, or none. It asks the API server, which
// knows of addresses that caches don't show yet.
func (c *controller) used(ctx context.Context, r *networkingv1.ServiceCIDR) (string, error) {
	all, err := c.client.NetworkingV1().ServiceCIDRs().List(ctx, metav1.ListOptions{})
	if err != nil {
		return "", fmt.Errorf("list ServiceCIDRs: %w", err)
	}
	var stay []netip.Prefix
	for i := range all.Items {
		if o := &all.Items[i]; o.UID != r.UID && o.DeletionTimestamp == nil {
			stay = append(stay, prefixes(o)...)
		}
	}
	addresses, err := c.client.NetworkingV1().IPAddresses().List(ctx, metav1.ListOptions{})
	if err != nil {
		return "", fmt.Errorf("list IPAddresses: %w", err)
	}
	going := prefixes(r)
	for _, a := range addresses.Items {
		ip, err := netip.ParseAddr(a.Name)
		if p := a.Spec.ParentRef; err != nil || p == nil || p.Group != "" || p.Resource != "services" {
			continue // somebody else's use
		}
		if contains(going, ip) && !contains(stay, ip) {
			return a.Name, nil
		}
	}
	return "", nil
}

func prefixes(r *networkingv1.ServiceCIDR) []netip.Prefix {
	var all []netip.Prefix
	for _, cidr := range r.Spec.CIDRs {
		if p, err := netip.ParsePrefix(cidr); err == nil {
			all = append(all, p)
		}
	}
	return all
}

func contains(all []netip.Prefix, ip netip.Addr) bool {
	return slices.ContainsFunc(all, func(p netip.Prefix) bool { return p.Contains(ip) })
}
