package resources

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"slices"
	"strings"

	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
)

// All returns the descriptors of every built-in resource.
func All() []*descriptor.Resource {
	var all []*descriptor.Resource
	for _, group := range [][]*descriptor.Resource{
		{pods(), services(), namespaces(), nodes(), configMaps(), secrets(), serviceAccounts(), endpoints(), events(), replicationControllers()},
		volumes(), quotas(), apps(), batch(), discovery(), coordination(), networking(), rbac(), storage(), scheduling(), policy(),
		certificates(), trust(), admissionRegistration(), flowControl(), autoscaling(), runtimeClasses(), serviceAddresses(), devices(), storageMigrations(),
	} {
		all = append(all, group...)
	}
	return all
}

// object ties a kind's Go types together; T and L are the structs of the object and of its list.
type object[T, L any] interface {
	*T
	runtime.Object
}

// kind starts a descriptor: the names follow from the kind unless the descriptor changes them.
func kind[T, L any, PT object[T, L], PL object[L, L]](name string, d descriptor.Resource) *descriptor.Resource {
	d.Kind = name
	d.Singular = strings.ToLower(name)
	if d.Plural == "" {
		d.Plural = d.Singular + "s"
	}
	d.New = func() runtime.Object { return PT(new(T)) }
	d.NewList = func() runtime.Object { return PL(new(L)) }
	if d.Columns == nil {
		d.Columns = []descriptor.Column{descriptor.Age}
	}
	return &d
}

// set gives a pointer field a default.
func set[V any](p **V, v V) {
	if *p == nil {
		*p = &v
	}
}

// fill gives a value field a default.
func fill[V comparable](p *V, v V) {
	var zero V
	if *p == zero {
		*p = v
	}
}

// joined prints a list of a cell; nothing prints as <none>.
func joined(items []string) string {
	if len(items) == 0 {
		return "<none>"
	}
	return strings.Join(items, ",")
}

func selectorCell(s *metav1.LabelSelector) string { return orNone(metav1.FormatLabelSelector(s)) }

func orNone(s string) string {
	if s == "" {
		return "<none>"
	}
	return s
}

func nonEmpty(items ...string) []string {
	return slices.DeleteFunc(items, func(s string) bool { return s == "" })
}

func metaTime(t metav1.MicroTime) metav1.Time { return metav1.Time{Time: t.Time} }
