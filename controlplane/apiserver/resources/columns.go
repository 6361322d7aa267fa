package resources

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
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
