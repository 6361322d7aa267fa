package allocator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/storage"
)

// owner is the Service that a claim is for.
type owner struct {
	types.NamespacedName
	uid types.UID
}

func ownerOf(s *corev1.Service) owner {
	return owner{types.NamespacedName{Namespace: s.Namespace, Name: s.Name}, s.UID}
}

// ownerUID is the annotation by which a claim knows its Service even after another of that name was made.
const ownerUID = "strake.io/service-uid"

// managedBy is the label of IPAddresses that tells who looks after them.
const managedBy = "strake-apiserver"

// claim is one stored claim.
type claim struct {
	value           string
	owner           owner
	made            time.Time
	resourceVersion string
}

// form is how claims of one sort are written down.
type form struct {
	what    string // in errors
	prefix  string // of the keys, below /registry
	new     func() runtime.Object
	newList func() runtime.Object
	write   func(m metav1.ObjectMeta, o owner) runtime.Object
	read    func(obj runtime.Object) types.NamespacedName
}

var addressForm = form{
	what: "IP", prefix: "/ipaddresses/",
	new:     func() runtime.Object { return &networkingv1.IPAddress{} },
	newList: func() runtime.Object { return &networkingv1.IPAddressList{} },
	write: func(m metav1.ObjectMeta, o owner) runtime.Object {
		family := corev1.IPv4Protocol
		if strings.Contains(m.Name, ":") {
			family = corev1.IPv6Protocol
		}
		m.Labels = map[string]string{networkingv1.LabelIPAddressFamily: string(family), networkingv1.LabelManagedBy: managedBy}
		return &networkingv1.IPAddress{ObjectMeta: m, Spec: networkingv1.IPAddressSpec{
			ParentRef: &networkingv1.ParentReference{Resource: "services", Namespace: o.Namespace, Name: o.Name},
		}}
	},
	read: func(obj runtime.Object) types.NamespacedName {
		if p := obj.(*networkingv1.IPAddress).Spec.ParentRef; p != nil {
			return types.NamespacedName{Namespace: p.Namespace, Name: p.Name}
		}
		return types.NamespacedName{}
	},
}

var portForm = form{
	what: "port", prefix: "/ranges/servicenodeports/",
	new:     func() runtime.Object { return &coordinationv1.Lease{} },
	newList: func() runtime.Object { return &coordinationv1.LeaseList{} },
	write: func(m metav1.ObjectMeta, o owner) runtime.Object {
		holder, at := o.String(), metav1.NewMicroTime(m.CreationTimestamp.Time)
		return &coordinationv1.Lease{ObjectMeta: m, Spec: coordinationv1.LeaseSpec{HolderIdentity: &holder, AcquireTime: &at}}
	},
	read: func(obj runtime.Object) types.NamespacedName {
		l := obj.(*coordinationv1.Lease)
		if l.Spec.HolderIdentity == nil {
			return types.NamespacedName{}
		}
		namespace, name, _ := strings.Cut(*l.Spec.HolderIdentity, string(types.Separator))
		return types.NamespacedName{Namespace: namespace, Name: name}
	},
}

// errTaken says that another Service holds the value.
var errTaken = errors.New("is already allocated")

// claims are the claims of one sort.
type claims struct {
	form
	store storage.Interface

	mu   sync.Mutex
	held map[string]bool // where not to try first: claims as last seen
}

func newClaims(f form, store storage.Interface) *claims {
	return &claims{form: f, store: store, held: map[string]bool{}}
}

func (c *claims) note(value string, held bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if held {
		c.held[value] = true
	} else {
		delete(c.held, value)
	}
}

// looksFree tells whether a value is worth trying.
func (c *claims) looksFree(value string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.held[value]
}

// values are the claims as last seen.
func (c *claims) values() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Keys(c.held))
}

// take claims a value, or returns errTaken.
func (c *claims) take(ctx context.Context, value string, o owner) error {
	obj := c.write(metav1.ObjectMeta{Name: value, CreationTimestamp: metav1.Now(), Annotations: map[string]string{ownerUID: string(o.uid)}}, o)
	err := c.store.Create(ctx, c.prefix+value, obj, c.new(), 0)
	switch {
	case err == nil:
		c.note(value, true)
		return nil
	case storage.IsExist(err):
		c.note(value, true)
		return errTaken
	}
	return fmt.Errorf("claim %s %s: %w", c.what, value, err)
}

// free tells whether a value could be taken; dry runs ask.
func (c *claims) free(ctx context.Context, value string) (bool, error) {
	err := c.store.Get(ctx, c.prefix+value, storage.GetOptions{}, c.new())
	if storage.IsNotFound(err) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at the claim of %s %s: %w", c.what, value, err)
	}
	return false, nil
}

// errOther keeps a claim that is not the one to be released.
var errOther = errors.New("the claim is another's")

// release gives a value up if it is this owner's.
func (c *claims) release(ctx context.Context, value string, o owner) error {
	mine := func(_ context.Context, obj runtime.Object) error {
		if got, err := c.claim(obj); err != nil || got.owner.uid != o.uid {
			return errOther
		}
		return nil
	}
	err := c.store.Delete(ctx, c.prefix+value, c.new(), nil, mine, nil, storage.DeleteOptions{})
	switch {
	case errors.Is(err, errOther):
		return nil
	case err == nil, storage.IsNotFound(err):
		c.note(value, false)
		return nil
	}
	return fmt.Errorf("release %s %s of Service %s: %w", c.what, value, o, err)
}

// drop removes a claim if it is still as it was seen.
func (c *claims) drop(ctx context.Context, seen claim) error {
	pre := &storage.Preconditions{ResourceVersion: &seen.resourceVersion}
	any := func(context.Context, runtime.Object) error { return nil }
	err := c.store.Delete(ctx, c.prefix+seen.value, c.new(), pre, any, nil, storage.DeleteOptions{})
	if err != nil && !storage.IsNotFound(err) {
		return fmt.Errorf("drop the stale claim of %s %s for Service %s: %w", c.what, seen.value, seen.owner, err)
	}
	c.note(seen.value, false)
	return nil
}

// list reads all claims and takes them for what is held.
func (c *claims) list(ctx context.Context) (map[string]claim, error) {
	list := c.newList()
	if err := c.store.GetList(ctx, c.prefix, storage.ListOptions{Predicate: storage.Everything, Recursive: true}, list); err != nil {
		return nil, fmt.Errorf("list the claims of %ss: %w", c.what, err)
	}
	all, held := map[string]claim{}, map[string]bool{}
	err := meta.EachListItem(list, func(obj runtime.Object) error {
		got, err := c.claim(obj)
		if err != nil {
			return err
		}
		all[got.value], held[got.value] = got, true
		return nil
	})
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = held
	return all, nil
}

func (c *claims) claim(obj runtime.Object) (claim, error) {
	m, err := meta.Accessor(obj)
	if err != nil {
		return claim{}, fmt.Errorf("claim of a %s: %w", c.what, err)
	}
	return claim{
		value: m.GetName(), owner: owner{c.read(obj), types.UID(m.GetAnnotations()[ownerUID])},
		made: m.GetCreationTimestamp().Time, resourceVersion: m.GetResourceVersion(),
	}, nil
}
