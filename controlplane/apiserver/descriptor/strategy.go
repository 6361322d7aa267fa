package descriptor

import (
	"cmp"
	"context"
	"reflect"
	"slices"
	"strings"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/storage/names"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
)

// strategy is what the registry asks about writes to the resource itself.
type strategy struct {
	runtime.ObjectTyper
	names.NameGenerator
	r *Resource
}

var (
	_ rest.RESTCreateStrategy              = strategy{}
	_ rest.RESTUpdateStrategy              = strategy{}
	_ rest.RESTGracefulDeleteStrategy      = strategy{}
	_ rest.GarbageCollectionDeleteStrategy = strategy{}
	_ rest.ResetFieldsStrategy             = strategy{}
)

func (s strategy) NamespaceScoped() bool { return s.r.Namespaced }

// Canonicalize has nothing to do: defaulting has run when the object was decoded.
func (s strategy) Canonicalize(runtime.Object) {}

func (s strategy) AllowCreateOnUpdate(context.Context) bool { return s.r.AllowCreateOnUpdate }

func (s strategy) AllowUnconditionalUpdate(context.Context) bool { return !s.r.RequireResourceVersion }

func (s strategy) WarningsOnCreate(_ context.Context, obj runtime.Object) []string {
	if s.r.Warn == nil {
		return nil
	}
	return s.r.Warn(obj)
}

func (s strategy) WarningsOnUpdate(ctx context.Context, obj, _ runtime.Object) []string {
	return s.WarningsOnCreate(ctx, obj)
}

func (s strategy) PrepareForCreate(ctx context.Context, obj runtime.Object) {
	if s.r.Status {
		clearField(obj, statusField)
	}
	if m, err := meta.Accessor(obj); err == nil && s.r.Generation {
		m.SetGeneration(1)
	}
	if s.r.PrepareCreate != nil {
		s.r.PrepareCreate(ctx, obj)
	}
}

func (s strategy) PrepareForUpdate(ctx context.Context, obj, old runtime.Object) {
	if s.r.Status {
		copyField(obj, old, statusField)
	}
	if s.r.PrepareUpdate != nil {
		s.r.PrepareUpdate(ctx, obj, old)
	}
	if s.r.Generation {
		followGeneration(obj, old)
	}
}

func (s strategy) Validate(_ context.Context, obj runtime.Object) field.ErrorList {
	errs := s.validateMeta(obj)
	if s.r.Validate != nil {
		errs = append(errs, s.r.Validate(obj)...)
	}
	return ordered(errs)
}

// ordered makes the same mistakes read the same each time: checks may go through maps.
func ordered(errs field.ErrorList) field.ErrorList {
	slices.SortStableFunc(errs, func(a, b *field.Error) int {
		return cmp.Or(strings.Compare(a.Field, b.Field), strings.Compare(a.Detail, b.Detail))
	})
	return errs
}

func (s strategy) validateMeta(obj runtime.Object) field.ErrorList {
	m, err := meta.Accessor(obj)
	if err != nil {
		return field.ErrorList{field.InternalError(field.NewPath("metadata"), err)}
	}
	valid := s.r.ValidName
	if valid == nil {
		valid = validation.NameIsDNSSubdomain
	}
	errs := validation.ValidateObjectMetaAccessor(m, s.r.Namespaced, valid, field.NewPath("metadata"))
	size := 0
	for k, v := range m.GetLabels() {
		size += len(k) + len(v)
	}
	if size > maxLabels {
		errs = append(errs, field.TooLong(field.NewPath("metadata", "labels"), "", maxLabels))
	}
	return errs
}

// maxLabels bounds the bytes of an object's labels, as the API bounds annotations: every list, watch and selector looks
// at them. The reference has no bound but that of the whole object.
const maxLabels = validation.TotalAnnotationSizeLimitB

func validateMetaUpdate(obj, old runtime.Object) field.ErrorList {
	m, err := meta.Accessor(obj)
	if err != nil {
		return field.ErrorList{field.InternalError(field.NewPath("metadata"), err)}
	}
	o, err := meta.Accessor(old)
	if err != nil {
		return field.ErrorList{field.InternalError(field.NewPath("metadata"), err)}
	}
	return validation.ValidateObjectMetaAccessorUpdate(m, o, field.NewPath("metadata"))
}

func (s strategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	errs := append(s.validateMeta(obj), validateMetaUpdate(obj, old)...)
	if s.r.Revalidate != nil {
		errs = append(errs, s.r.Revalidate(obj, old)...)
	} else if s.r.Validate != nil {
		errs = append(errs, s.r.Validate(obj)...)
	}
	if s.r.ValidateUpdate != nil {
		errs = append(errs, s.r.ValidateUpdate(obj, old)...)
	}
	return ordered(errs)
}

// CheckGracefulDelete is asked by the registry before it deletes.
func (s strategy) CheckGracefulDelete(_ context.Context, obj runtime.Object, options *metav1.DeleteOptions) bool {
	return s.r.Graceful != nil && s.r.Graceful(obj, options)
}

// DefaultGarbageCollectionPolicy answers for deletes that name no propagation policy.
func (s strategy) DefaultGarbageCollectionPolicy(context.Context) rest.GarbageCollectionPolicy {
	if s.r.OrphanByDefault {
		return rest.OrphanDependents
	}
	return rest.DeleteDependents
}

// GetResetFields tells server-side apply that whoever writes the resource doesn't own its status.
func (s strategy) GetResetFields() map[fieldpath.APIVersion]*fieldpath.Set {
	if !s.r.Status {
		return nil
	}
	return resetFields(s.r, "status")
}

// statusStrategy is what the registry asks about writes to the status subresource.
type statusStrategy struct{ strategy }

func (s statusStrategy) PrepareForUpdate(ctx context.Context, obj, old runtime.Object) {
	restoreAllBut(obj, old, statusField)
	if s.r.PrepareStatus != nil {
		s.r.PrepareStatus(ctx, obj, old)
	}
}

func (s statusStrategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	errs := validateMetaUpdate(obj, old)
	if s.r.ValidateStatus != nil {
		errs = append(errs, s.r.ValidateStatus(obj, old)...)
	}
	return errs
}

func (s statusStrategy) GetResetFields() map[fieldpath.APIVersion]*fieldpath.Set {
	return resetFields(s.r, "spec")
}

func resetFields(r *Resource, name string) map[fieldpath.APIVersion]*fieldpath.Set {
	return map[fieldpath.APIVersion]*fieldpath.Set{
		fieldpath.APIVersion(r.GroupVersion.String()): fieldpath.NewSet(fieldpath.MakePathOrDie(name)),
	}
}

const statusField = "Status"

// metaFields are the Go fields of an object that are neither content nor status.
var metaFields = map[string]bool{"TypeMeta": true, "ObjectMeta": true}

func clearField(obj runtime.Object, name string) {
	reflect.ValueOf(obj).Elem().FieldByName(name).SetZero()
}

// copyField shares src's field with dst: both are one request's own, and neither is changed in depth afterwards.
func copyField(dst, src runtime.Object, name string) {
	reflect.ValueOf(dst).Elem().FieldByName(name).Set(reflect.ValueOf(src).Elem().FieldByName(name))
}

// restoreAllBut sets everything but metadata and the named field back to what it was. Of the metadata,
// an update of status may change labels, annotations and finalizers, as with the reference; its
// generation stays.
func restoreAllBut(obj, old runtime.Object, name string) {
	dst, src := reflect.ValueOf(obj).Elem(), reflect.ValueOf(old).Elem()
	for i := range dst.NumField() {
		if f := dst.Type().Field(i).Name; f != name && !metaFields[f] {
			dst.Field(i).Set(src.Field(i))
		}
	}
	m, err := meta.Accessor(obj)
	o, oldErr := meta.Accessor(old)
	if err == nil && oldErr == nil {
		m.SetGeneration(o.GetGeneration())
		m.SetDeletionTimestamp(o.GetDeletionTimestamp())
		m.SetOwnerReferences(o.GetOwnerReferences())
	}
}

// followGeneration raises metadata.generation if anything but metadata and status changed.
func followGeneration(obj, old runtime.Object) {
	m, err := meta.Accessor(obj)
	o, oldErr := meta.Accessor(old)
	if err != nil || oldErr != nil {
		return
	}
	m.SetGeneration(o.GetGeneration())
	a, b := reflect.ValueOf(obj).Elem(), reflect.ValueOf(old).Elem()
	for i := range a.NumField() {
		if f := a.Type().Field(i).Name; f == statusField || metaFields[f] {
			continue
		}
		if !apiequality.Semantic.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()) {
			m.SetGeneration(o.GetGeneration() + 1)
			return
		}
	}
}
