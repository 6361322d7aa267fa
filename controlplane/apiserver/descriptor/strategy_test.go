package descriptor

import (
	"context"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// replicaSet is a descriptor with a status and a generation.
func replicaSet() *Resource {
	return &Resource{
		GroupVersion: appsv1.SchemeGroupVersion, Kind: "ReplicaSet", Plural: "replicasets", Namespaced: true, Generation: true, Status: true,
		New: func() runtime.Object { return &appsv1.ReplicaSet{} }, NewList: func() runtime.Object { return &appsv1.ReplicaSetList{} },
	}
}

func set(replicas int32, status int32, labels ...string) *appsv1.ReplicaSet {
	s := &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Name: "s", Namespace: "ns", Generation: 7}, Spec: appsv1.ReplicaSetSpec{Replicas: &replicas}, Status: appsv1.ReplicaSetStatus{Replicas: status}}
	for _, l := range labels {
		s.Labels = map[string]string{l: ""}
	}
	return s
}

func TestWritesAreSeparate(t *testing.T) {
	s, ctx := strategy{r: replicaSet()}, context.Background()
	made := set(3, 9)
	s.PrepareForCreate(ctx, made)
	if made.Status.Replicas != 0 || made.Generation != 1 {
		t.Errorf("made with status %+v, generation %d", made.Status, made.Generation)
	}
	for _, test := range []struct {
		name       string
		change     *appsv1.ReplicaSet
		generation int64
	}{
		{"nothing", set(3, 0), 7}, {"spec", set(4, 0), 8}, {"status", set(3, 9), 7}, {"labels", set(3, 0, "l"), 7},
	} {
		test.change.Generation = 99 // nobody's to set
		s.PrepareForUpdate(ctx, test.change, set(3, 1))
		if test.change.Generation != test.generation || test.change.Status.Replicas != 1 {
			t.Errorf("%s: generation %d, status %d", test.name, test.change.Generation, test.change.Status.Replicas)
		}
	}
	now := metav1.NewTime(time.Unix(1, 0))
	change := set(4, 9, "l")
	change.Generation, change.DeletionTimestamp, change.OwnerReferences = 99, &now, []metav1.OwnerReference{{Name: "x"}}
	statusStrategy{s}.PrepareForUpdate(ctx, change, set(3, 1))
	if *change.Spec.Replicas != 3 || change.Status.Replicas != 9 || change.Generation != 7 || change.DeletionTimestamp != nil || change.OwnerReferences != nil || len(change.Labels) != 1 {
		t.Errorf("through status: %+v", change)
	}
	if got := s.GetResetFields()["apps/v1"].String(); got != ".status" {
		t.Errorf("who writes the resource leaves %s to others", got)
	}
	if got := (statusStrategy{s}).GetResetFields()["apps/v1"].String(); got != ".spec" {
		t.Errorf("who writes the status leaves %s to others", got)
	}
}

func TestErrorsAreInOrder(t *testing.T) {
	r := replicaSet()
	r.Validate = func(runtime.Object) field.ErrorList {
		return field.ErrorList{field.Required(field.NewPath("spec", "b"), ""), field.Required(field.NewPath("spec", "a"), "y"), field.Required(field.NewPath("spec", "a"), "x")}
	}
	r.ValidateUpdate = func(runtime.Object, runtime.Object) field.ErrorList {
		return field.ErrorList{field.Forbidden(field.NewPath("a"), "")}
	}
	bad := set(1, 0)
	bad.Name, bad.ResourceVersion = "NO", "1"
	for what, errs := range map[string]field.ErrorList{
		"metadata.name spec.a spec.a spec.b": strategy{r: r}.Validate(context.Background(), bad),
		"a metadata.name spec.a spec.a spec.b": strategy{r: r}.ValidateUpdate(context.Background(), bad, func() runtime.Object {
			o := bad.DeepCopy()
			o.ResourceVersion = "1"
			bad.ResourceVersion = "1"
			return o
		}()),
	} {
		var fields string
		for _, e := range errs {
			fields += " " + e.Field
		}
		if fields != " "+what {
			t.Errorf("errors of%s, want %s", fields, what)
		}
	}
}

func TestBuildRefusesAStatusThatIsNotThere(t *testing.T) {
	r := &Resource{Kind: "ConfigMap", Plural: "configmaps", Status: true, New: func() runtime.Object { return &corev1.ConfigMap{} }}
	if _, _, err := Build(r, runtime.NewScheme(), nil); err == nil {
		t.Error("no error")
	}
}

func TestTableWithoutHeaders(t *testing.T) {
	c := tableConvertor{columns: []Column{{Name: "Data", Type: "integer", Cell: Cell(func(m *corev1.ConfigMap) int64 { return int64(len(m.Data)) })}, Age}}
	list := &corev1.ConfigMapList{ListMeta: metav1.ListMeta{ResourceVersion: "9", Continue: "c"}, Items: []corev1.ConfigMap{{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Data: map[string]string{"k": "v"}}, {}}}
	table, err := c.ConvertToTable(context.Background(), list, nil)
	if err != nil || len(table.Rows) != 2 || len(table.ColumnDefinitions) != 3 || table.ResourceVersion != "9" || table.Continue != "c" {
		t.Fatalf("%+v, %v", table, err)
	}
	if cells := table.Rows[0].Cells; cells[0] != "a" || cells[1] != int64(1) || cells[2] != "<unknown>" {
		t.Errorf("cells %v", cells)
	}
	if table, err = c.ConvertToTable(context.Background(), list, &metav1.TableOptions{NoHeaders: true}); err != nil || len(table.ColumnDefinitions) != 0 || len(table.Rows) != 2 {
		t.Errorf("%+v, %v", table, err)
	}
}
