package descriptor

import (
	"context"
	"fmt"
	"maps"
	"reflect"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/generic"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/names"
	"k8s.io/apiserver/pkg/util/dryrun"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
)

// Register puts the resource's types into the scheme, as its group's internal version too, with its
// defaulting and the fields that selectors may name.
func (r *Resource) Register(scheme *runtime.Scheme) error {
	obj, list := r.New(), r.NewList()
	internal := schema.GroupVersion{Group: r.GroupVersion.Group, Version: runtime.APIVersionInternal}
	for _, gv := range []schema.GroupVersion{internal, r.GroupVersion} {
		scheme.AddKnownTypeWithName(gv.WithKind(r.Kind), obj)
		scheme.AddKnownTypeWithName(gv.WithKind(r.Kind+"List"), list)
	}
	if r.Default != nil {
		scheme.AddTypeDefaultingFunc(obj, func(o any) { r.Default(o.(runtime.Object)) })
		scheme.AddTypeDefaultingFunc(list, func(o any) {
			// EachListItem fails on things that are no lists only; a list kind's list is one.
			_ = meta.EachListItem(o.(runtime.Object), func(item runtime.Object) error {
				r.Default(item)
				return nil
			})
		})
	}
	selectable := r.fields(r.New())
	return scheme.AddFieldLabelConversionFunc(r.GroupVersionKind(), func(label, value string) (string, string, error) {
		if _, ok := selectable[label]; !ok {
			return "", "", fmt.Errorf("field label not supported: %s", label)
		}
		return label, value, nil
	})
}

// fields returns what field selectors see of an object.
func (r *Resource) fields(obj runtime.Object) fields.Set {
	set := fields.Set{"metadata.name": ""}
	if m, err := meta.Accessor(obj); err == nil {
		set["metadata.name"] = m.GetName()
		if r.Namespaced {
			set["metadata.namespace"] = m.GetNamespace()
		}
	}
	if r.Selectable != nil {
		maps.Copy(set, r.Selectable(obj))
	}
	return set
}

// Store is a resource's storage: the generic registry with the names that kubectl asks for.
type Store struct {
	*genericregistry.Store
	r *Resource
}

var (
	_ rest.StandardStorage      = (*Store)(nil)
	_ rest.ShortNamesProvider   = (*Store)(nil)
	_ rest.CategoriesProvider   = (*Store)(nil)
	_ rest.SingularNameProvider = (*Store)(nil)
)

// ShortNames for kubectl.
func (s *Store) ShortNames() []string { return s.r.ShortNames }

// Categories for kubectl, such as "all".
func (s *Store) Categories() []string { return s.r.Categories }

// Build makes the storages of a resource and its general subresources, by path ("pods", "pods/status").
func Build(r *Resource, scheme *runtime.Scheme, getter generic.RESTOptionsGetter) (map[string]rest.Storage, *Store, error) {
	if _, ok := reflect.TypeOf(r.New()).Elem().FieldByName(statusField); r.Status && !ok {
		return nil, nil, fmt.Errorf("storage of %s: Status is set, but %s has no field of that name", r.GroupResource(), r.Kind)
	}
	s := strategy{ObjectTyper: scheme, NameGenerator: names.SimpleNameGenerator, r: r}
	store := &genericregistry.Store{
		NewFunc:                   r.New,
		NewListFunc:               r.NewList,
		DefaultQualifiedResource:  r.GroupResource(),
		SingularQualifiedResource: schema.GroupResource{Group: r.GroupVersion.Group, Resource: r.Singular},
		CreateStrategy:            s,
		UpdateStrategy:            s,
		DeleteStrategy:            s,
		ResetFieldsStrategy:       s,
		TableConvertor:            tableConvertor{columns: r.Columns, order: r.Order},
		PredicateFunc: func(label labels.Selector, field fields.Selector) storage.SelectionPredicate {
			p := storage.SelectionPredicate{Label: label, Field: field, GetAttrs: r.attrs}
			if r.IndexField != "" {
				p.IndexFields = []string{r.IndexField}
			}
			return p
		},
	}
	if r.TTL > 0 {
		store.TTLFunc = func(runtime.Object, uint64, bool) (uint64, error) { return uint64(r.TTL.Seconds()), nil }
	}
	if r.KeepWhile != nil {
		store.ShouldDeleteDuringUpdate = func(ctx context.Context, key string, obj, existing runtime.Object) bool {
			return !r.KeepWhile(obj) && genericregistry.ShouldDeleteDuringUpdate(ctx, key, obj, existing)
		}
	}
	setHooks(store, r.Hooks)
	options := &generic.StoreOptions{RESTOptions: getter, AttrFunc: r.attrs}
	if r.IndexField != "" {
		value := func(obj runtime.Object) string { return r.fields(obj)[r.IndexField] }
		options.TriggerFunc = storage.IndexerFuncs{r.IndexField: value}
		options.Indexers = &cache.Indexers{storage.FieldIndex(r.IndexField): func(obj any) ([]string, error) {
			return []string{value(obj.(runtime.Object))}, nil
		}}
	}
	if err := store.CompleteWithOptions(options); err != nil {
		return nil, nil, fmt.Errorf("storage of %s: %w", r.GroupResource(), err)
	}
	main := &Store{Store: store, r: r}
	storages := map[string]rest.Storage{r.Plural: main}
	if r.Status {
		st := *store
		ss := statusStrategy{s}
		st.UpdateStrategy, st.ResetFieldsStrategy = ss, ss
		st.BeginUpdate = nil
		if r.Hooks.Status != nil {
			st.BeginUpdate = func(ctx context.Context, obj, old runtime.Object, _ *metav1.UpdateOptions) (genericregistry.FinishFunc, error) {
				return unfinished, r.Hooks.Status(ctx, obj, old)
			}
		}
		storages[r.Plural+"/status"] = &statusREST{store: &st}
	}
	if r.Scale != nil {
		storages[r.Plural+"/scale"] = &scaleREST{store: store, r: r}
	}
	return storages, main, nil
}

// Replacing returns the registry of the same objects with another strategy for updates: a subresource, or a write of
// the server's own. Its updates run no hooks.
func (s *Store) Replacing(with func(rest.RESTUpdateStrategy) rest.RESTUpdateStrategy) *genericregistry.Store {
	st := *s.Store
	st.UpdateStrategy, st.ResetFieldsStrategy, st.BeginUpdate = with(st.UpdateStrategy), nil, nil
	return &st
}

func (r *Resource) attrs(obj runtime.Object) (labels.Set, fields.Set, error) {
	m, err := meta.Accessor(obj)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", r.Kind, err)
	}
	return m.GetLabels(), r.fields(obj), nil
}

// unfinished is what a hook leaves to do after its write: nothing.
func unfinished(context.Context, bool) {}

func setHooks(store *genericregistry.Store, h Hooks) {
	if h.Create != nil {
		store.BeginCreate = func(ctx context.Context, obj runtime.Object, o *metav1.CreateOptions) (genericregistry.FinishFunc, error) {
			return unfinished, h.Create(ctx, obj, dryrun.IsDryRun(o.DryRun))
		}
	}
	if h.Update != nil {
		store.BeginUpdate = func(ctx context.Context, obj, old runtime.Object, o *metav1.UpdateOptions) (genericregistry.FinishFunc, error) {
			return unfinished, h.Update(ctx, obj, old, dryrun.IsDryRun(o.DryRun))
		}
	}
	if h.Delete != nil {
		store.AfterDelete = func(obj runtime.Object, o *metav1.DeleteOptions) {
			if !dryrun.IsDryRun(o.DryRun) {
				h.Delete(obj)
			}
		}
	}
}

// statusREST is the status subresource.
type statusREST struct{ store *genericregistry.Store }

var (
	_ rest.Patcher             = (*statusREST)(nil)
	_ rest.ResetFieldsStrategy = (*statusREST)(nil)
	_ rest.TableConvertor      = (*statusREST)(nil)
)

func (s *statusREST) New() runtime.Object { return s.store.New() }

// Destroy leaves the shared store to its main storage.
func (s *statusREST) Destroy() {}

func (s *statusREST) Get(ctx context.Context, name string, o *metav1.GetOptions) (runtime.Object, error) {
	return s.store.Get(ctx, name, o)
}

func (s *statusREST) Update(ctx context.Context, name string, info rest.UpdatedObjectInfo, create rest.ValidateObjectFunc, update rest.ValidateObjectUpdateFunc, _ bool, o *metav1.UpdateOptions) (runtime.Object, bool, error) {
	return s.store.Update(ctx, name, info, create, update, false, o)
}

func (s *statusREST) GetResetFields() map[fieldpath.APIVersion]*fieldpath.Set {
	return s.store.GetResetFields()
}

func (s *statusREST) ConvertToTable(ctx context.Context, obj, options runtime.Object) (*metav1.Table, error) {
	return s.store.ConvertToTable(ctx, obj, options)
}
