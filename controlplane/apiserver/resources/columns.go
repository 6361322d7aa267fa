package resources

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
)

// accessModes prints the modes of a volume in their short form, in a fixed order.
func accessModes(modes []corev1.PersistentVolumeAccessMode) string {
	var out []string
	for _, m := range []struct {
		mode  corev1.PersistentVolumeAccessMode
		short string
	}{{corev1.ReadWriteOnce, "RWO"}, {corev1.ReadOnlyMany, "ROX"}, {corev1.ReadWriteMany, "RWX"}, {corev1.ReadWriteOncePod, "RWOP"}} {
		if slices.Contains(modes, m.mode) {
			out = append(out, m.short)
		}
	}
	return strings.Join(out, ",")
}

func capacity(l corev1.ResourceList) string {
	q, ok := l[corev1.ResourceStorage]
	if !ok {
		return ""
	}
	return q.String()
}

func modeOf(m *corev1.PersistentVolumeMode) string {
	if m == nil {
		return "<unset>"
	}
	return string(*m)
}

func valueOr[V any](p *V, otherwise string) string {
	if p == nil {
		return otherwise
	}
	return fmt.Sprint(*p)
}

// narrow makes columns that are always shown of them.
func narrow(columns []descriptor.Column) []descriptor.Column {
	for i := range columns {
		columns[i].Wide = false
	}
	return columns
}

// few lists the first three items, and how many more there are.
func few(items []string, none string) string {
	const shown = 3
	switch {
	case len(items) == 0:
		return none
	case len(items) > shown:
		return fmt.Sprintf("%s + %d more...", strings.Join(items[:shown], ","), len(items)-shown)
	}
	return strings.Join(items, ",")
}

// balanced lists the addresses, or else names, that a load balancer gave.
func balanced[T any](ingress []T, get func(T) (ip, host string)) []string {
	var out []string
	for _, in := range ingress {
		ip, host := get(in)
		out = append(out, nonEmpty(cmp.Or(ip, host))...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// classColumn is the name of a class, with a remark if it is the one of who names none.
func classColumn(isDefault ...string) descriptor.Column {
	return descriptor.NameColumn(func(m metav1.Object) string {
		for _, a := range isDefault {
			if m.GetAnnotations()[a] == "true" {
				return m.GetName() + " (default)"
			}
		}
		return m.GetName()
	})
}

// subjectColumns are the wide columns of bindings.
func subjectColumns(subjects func(runtime.Object) []rbacv1.Subject) []descriptor.Column {
	of := func(kind string) func(runtime.Object) any {
		return func(o runtime.Object) any {
			var names []string
			for _, s := range subjects(o) {
				switch {
				case s.Kind != kind:
				case kind == rbacv1.ServiceAccountKind:
					names = append(names, s.Namespace+"/"+s.Name)
				default:
					names = append(names, s.Name)
				}
			}
			return strings.Join(names, ", ")
		}
	}
	return []descriptor.Column{
		{Name: "Users", Wide: true, Cell: of(rbacv1.UserKind)},
		{Name: "Groups", Wide: true, Cell: of(rbacv1.GroupKind)},
		{Name: "ServiceAccounts", Wide: true, Cell: of(rbacv1.ServiceAccountKind)},
	}
}

// quotaCell prints how much of each resource is used, of the limits or of all else.
func quotaCell(q *corev1.ResourceQuota, limits bool) string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(q.Status.Hard)) {
		hard, used := q.Status.Hard[name], q.Status.Used[name]
		if strings.HasPrefix(string(name), "limits") == limits {
			out = append(out, fmt.Sprintf("%s: %s/%s", name, used.String(), hard.String()))
		}
	}
	return strings.Join(out, ", ")
}
