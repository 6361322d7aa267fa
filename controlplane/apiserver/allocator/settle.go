package allocator

import (
	"context"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
)

// attempt is what a request has claimed so far. The store may try a write several times; a claim of one try serves
// the next.
type attempt struct {
	mu               sync.Mutex
	addresses, ports []string // claimed by this request
	last             *writing // the try that counts
}

type attemptKey struct{}

// attemptOf finds the request's attempt. Writes that no Settling began have one of their own, whose leftovers Repair finds.
func attemptOf(ctx context.Context) *attempt {
	if t, ok := ctx.Value(attemptKey{}).(*attempt); ok {
		return t
	}
	return &attempt{}
}

func (t *attempt) begin(w *writing) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = w
}

// Settling is the Services' storage: it gives up what a write claimed in vain, or left behind.
type Settling struct {
	*descriptor.Store
	a *Allocator
}

var _ rest.StandardStorage = (*Settling)(nil)

// Settling wraps the storage that has this allocator's Hooks.
func (a *Allocator) Settling(services *descriptor.Store) *Settling { return &Settling{services, a} }

// Create implements rest.Creater.
func (s *Settling) Create(ctx context.Context, obj runtime.Object, validate rest.ValidateObjectFunc, o *metav1.CreateOptions) (runtime.Object, error) {
	t := &attempt{}
	out, err := s.Store.Create(context.WithValue(ctx, attemptKey{}, t), obj, validate, o)
	s.a.settle(ctx, t, out, err)
	return out, err
}

// Update implements rest.Updater.
func (s *Settling) Update(ctx context.Context, name string, info rest.UpdatedObjectInfo, create rest.ValidateObjectFunc, update rest.ValidateObjectUpdateFunc, force bool, o *metav1.UpdateOptions) (runtime.Object, bool, error) {
	t := &attempt{}
	out, created, err := s.Store.Update(context.WithValue(ctx, attemptKey{}, t), name, info, create, update, force, o)
	s.a.settle(ctx, t, out, err)
	return out, created, err
}

// settle gives up what the Service does not hold now that its write has ended.
func (a *Allocator) settle(ctx context.Context, t *attempt, out runtime.Object, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.last == nil || t.last.dryRun || err != nil && !refused(err) {
		return
	}
	ips, nodePorts := t.addresses, t.ports
	if s, ok := out.(*corev1.Service); ok && err == nil {
		left := func(v string, now []string) bool { return slices.Contains(now, v) }
		ips = slices.DeleteFunc(slices.Concat(ips, t.last.heldAddresses), func(v string) bool { return left(v, addresses(s)) })
		nodePorts = slices.DeleteFunc(slices.Concat(nodePorts, t.last.heldPorts), func(v string) bool { return left(v, ports(s)) })
	}
	if len(ips)+len(nodePorts) == 0 {
		return
	}
	// The client may be gone; the claims should go nevertheless.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.cfg.WriteTimeout)
	defer cancel()
	a.giveUp(ctx, t.last.owner, ips, nodePorts)
}

// refused tells whether an error means that nothing was written. After a time-out or a lost connection nobody knows:
// such claims are Repair's.
func refused(err error) bool {
	for _, is := range []func(error) bool{
		apierrors.IsInvalid, apierrors.IsForbidden, apierrors.IsConflict, apierrors.IsAlreadyExists, apierrors.IsNotFound, apierrors.IsBadRequest,
	} {
		if is(err) {
			return true
		}
	}
	return false
}
