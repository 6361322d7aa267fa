package resourcequota

import (
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	quota "k8s.io/apiserver/pkg/quota/v1"
	"k8s.io/apiserver/pkg/quota/v1/generic"
)

// ledger holds what is to be taken off the figures of quotas.
type ledger struct {
	mu       sync.Mutex
	accounts map[string]*account // by "namespace/name"
}

type account struct {
	credit  corev1.ResourceList // seen to go, not yet taken off
	version string              // of the quota that was last seen
	since   time.Time           // when it was first seen
	whole   bool                // its objects must be added up anew, whatever was seen to go
}

// account returns that of a quota. The caller holds the lock.
func (l *ledger) account(q *corev1.ResourceQuota) *account {
	key := q.Namespace + "/" + q.Name
	a, ok := l.accounts[key]
	if !ok {
		a = &account{credit: corev1.ResourceList{}}
		l.accounts[key] = a
	}
	return a
}

// credit notes what an object no longer takes, and tells whether that is anything.
func (l *ledger) credit(q *corev1.ResourceQuota, amount corev1.ResourceList) bool {
	if amount = quota.RemoveZeros(amount); len(amount) == 0 {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.account(q)
	a.credit = quota.Add(a.credit, amount)
	return true
}

// recount says that figures so far mean nothing any more.
func (l *ledger) recount(q *corev1.ResourceQuota) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.account(q).whole = true
}

// read returns what is to be taken off, since when nobody has written the quota, and whether it must be added up anew.
func (l *ledger) read(q *corev1.ResourceQuota) (credit corev1.ResourceList, since time.Time, whole bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.account(q)
	if a.version != q.ResourceVersion {
		a.version, a.since = q.ResourceVersion, time.Now()
	}
	return a.credit, a.since, a.whole
}

// spend takes a credit back that was written, and the wish to add up anew where that was done.
func (l *ledger) spend(q *corev1.ResourceQuota, amount corev1.ResourceList, whole bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.account(q)
	a.credit = quota.RemoveZeros(quota.SubtractWithNonNegativeResult(a.credit, amount))
	a.whole = a.whole && !whole
}

// close forgets a quota that is gone.
func (l *ledger) close(q *corev1.ResourceQuota) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.accounts, q.Namespace+"/"+q.Name)
}

// usage is what a quota counts of an object, nothing for none. A pod that is being deleted takes what it took, until it is seen to end: what
// the clock alone makes free is found when the quota is added up.
func (c *controller) usage(q *corev1.ResourceQuota, gvr schema.GroupVersionResource, object runtime.Object) corev1.ResourceList {
	if object == nil {
		return corev1.ResourceList{}
	}
	if p, ok := object.(*corev1.Pod); ok && p.DeletionTimestamp != nil {
		stays := *p
		stays.DeletionTimestamp = nil
		object = &stays
	}
	names := quota.ResourceNames(q.Spec.Hard)
	for _, e := range c.evaluators {
		if e.GroupResource() != gvr.GroupResource() {
			continue
		}
		if ok, err := e.Matches(q, object); err != nil || !ok {
			return corev1.ResourceList{}
		}
		used, err := e.Usage(object)
		if err != nil {
			return corev1.ResourceList{}
		}
		return quota.Mask(used, e.MatchingResources(names))
	}
	return quota.Mask(corev1.ResourceList{generic.ObjectCountQuotaResourceNameFor(gvr.GroupResource()): *resource.NewQuantity(1, resource.DecimalSI)}, names)
}
