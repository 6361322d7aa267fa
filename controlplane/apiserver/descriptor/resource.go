package descriptor

import (
	"context"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Resource describes one built-in resource. Objects passed to its functions are of the type that
// New returns; use the adapters of this package (Each, Check, CheckUpdate …) to write them typed.
// A nil function means that there is nothing to do.
type Resource struct {
	GroupVersion schema.GroupVersion
	Kind         string
	Plural       string // resource name in URLs
	Singular     string
	ShortNames   []string
	Categories   []string
	Namespaced   bool
	New          func() runtime.Object
	NewList      func() runtime.Object

	// StoragePrefix is the folder below /registry; empty: Plural. The usual etcd tools expect
	// "minions" for nodes and "services/specs" for services.
	StoragePrefix string
	// TTL after which the store drops an object; zero: never.
	TTL time.Duration

	// Default fills in what a client left out, when an object is decoded (from a client or from the
	// store). It must be idempotent.
	Default func(obj runtime.Object)
	// ValidName checks metadata.name; nil: a DNS subdomain (RFC 1123).
	ValidName func(name string, prefix bool) []string
	// PrepareCreate and PrepareUpdate adjust an object after the general rules: status is reset (kept, on
	// an update) where Status is set, and metadata.generation follows changes of everything else
	// but metadata and status where Generation is set.
	PrepareCreate func(ctx context.Context, obj runtime.Object)
	PrepareUpdate func(ctx context.Context, obj, old runtime.Object)
	Validate      func(obj runtime.Object) field.ErrorList
	// Revalidate stands for Validate on an update, where what the old object has already is not refused for it; nil: Validate.
	Revalidate func(obj, old runtime.Object) field.ErrorList
	// ValidateUpdate tells what may not change.
	ValidateUpdate func(obj, old runtime.Object) field.ErrorList
	Warn           func(obj runtime.Object) []string

	Generation bool
	// Status gives the resource a status subresource.
	Status bool
	// PrepareStatus and ValidateStatus see an update through the status subresource.
	PrepareStatus  func(ctx context.Context, obj, old runtime.Object)
	ValidateStatus func(obj, old runtime.Object) field.ErrorList
	Scale          *Scale

	// Graceful decides, at a delete, how long the object lives on: it may set options' grace period and
	// tells whether the delete is graceful.
	Graceful func(obj runtime.Object, options *metav1.DeleteOptions) bool
	// OrphanByDefault keeps dependents when a delete names no propagation policy.
	OrphanByDefault bool
	// KeepWhile keeps a deleted object although its metadata names no finalizer any more.
	KeepWhile func(obj runtime.Object) bool

	Columns []Column
	// Order compares two objects as the rows of a table are to come; nil leaves them in the order of their names.
	Order func(a, b runtime.Object) int
	// Selectable returns the fields, beside metadata.name and metadata.namespace, that field selectors may name.
	Selectable func(obj runtime.Object) fields.Set
	// IndexField is one of Selectable by which the watch cache keeps an index (a node watches its own pods).
	IndexField string

	AllowCreateOnUpdate bool
	// RequireResourceVersion refuses updates that name no resourceVersion.
	RequireResourceVersion bool

	// Hooks see writes with effects outside of the object; they are set by whoever owns the effect.
	Hooks Hooks
}

// GroupResource names the resource.
func (r Resource) GroupResource() schema.GroupResource {
	return schema.GroupResource{Group: r.GroupVersion.Group, Resource: r.Plural}
}

// GroupVersionKind names the kind.
func (r Resource) GroupVersionKind() schema.GroupVersionKind { return r.GroupVersion.WithKind(r.Kind) }

// Hooks see a write before the store does: they may refuse it, or fill in what must be reserved outside of the object.
// Create, Update and Status, which is an update through the status subresource, run before the preparations and validations above,
// and again for each attempt of a write that meets a conflict; whether the write succeeded only the caller of the storage learns.
// Delete runs after the object is gone.
type Hooks struct {
	Create func(ctx context.Context, obj runtime.Object, dryRun bool) error
	Update func(ctx context.Context, obj, old runtime.Object, dryRun bool) error
	Status func(ctx context.Context, obj, old runtime.Object) error
	Delete func(obj runtime.Object)
}

// Scale describes the scale subresource (autoscaling/v1).
type Scale struct {
	Replicas       func(obj runtime.Object) int32
	SetReplicas    func(obj runtime.Object, n int32)
	StatusReplicas func(obj runtime.Object) int32
	Selector       func(obj runtime.Object) string
}

// Column is a column of `kubectl get`.
type Column struct {
	Name        string
	Type        string // OpenAPI type; empty: string
	Format      string
	Wide        bool // shown by -o wide only
	Description string
	// Cell returns a string, int64 or bool.
	Cell func(obj runtime.Object) any
}

// Each adapts a function of a typed object.
func Each[T runtime.Object](f func(T)) func(runtime.Object) {
	return func(o runtime.Object) { f(o.(T)) }
}

// Check adapts a typed validation.
func Check[T runtime.Object](f func(T) field.ErrorList) func(runtime.Object) field.ErrorList {
	return func(o runtime.Object) field.ErrorList { return f(o.(T)) }
}

// CheckUpdate adapts a typed validation of an update.
func CheckUpdate[T runtime.Object](f func(obj, old T) field.ErrorList) func(obj, old runtime.Object) field.ErrorList {
	return func(o, old runtime.Object) field.ErrorList { return f(o.(T), old.(T)) }
}

// Warn adapts a typed function of warnings.
func Warn[T runtime.Object](f func(T) []string) func(runtime.Object) []string {
	return func(o runtime.Object) []string { return f(o.(T)) }
}

// Prepare adapts a typed strategy function.
func Prepare[T runtime.Object](f func(obj T)) func(context.Context, runtime.Object) {
	return func(_ context.Context, o runtime.Object) { f(o.(T)) }
}

// PrepareChange adapts a typed strategy function of an update.
func PrepareChange[T runtime.Object](f func(obj, old T)) func(ctx context.Context, obj, old runtime.Object) {
	return func(_ context.Context, o, old runtime.Object) { f(o.(T), old.(T)) }
}

// Cell adapts a typed cell.
func Cell[T runtime.Object, V any](f func(T) V) func(runtime.Object) any {
	return func(o runtime.Object) any { return f(o.(T)) }
}
