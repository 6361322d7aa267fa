package admission

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/admission"
)

func limitRange(items ...corev1.LimitRangeItem) *corev1.LimitRange {
	return &corev1.LimitRange{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "limits"}, Spec: corev1.LimitRangeSpec{Limits: items}}
}

func container(name string, requests, limits corev1.ResourceList) corev1.Container {
	return corev1.Container{Name: name, Resources: corev1.ResourceRequirements{Requests: requests, Limits: limits}}
}

func TestLimitRangerFillsIn(t *testing.T) {
	lr := limitRange(corev1.LimitRangeItem{Type: corev1.LimitTypeContainer, Max: quantities("cpu", "2"), Default: quantities("memory", "128Mi"), DefaultRequest: quantities("cpu", "100m")})
	p := pod(container("bare", nil, nil), container("own", quantities("cpu", "1"), quantities("cpu", "1", "memory", "1Gi")))
	p.Spec.InitContainers = []corev1.Container{container("init", nil, nil)}
	if err := run(t, started(t, "LimitRanger", lr), request{obj: p}); err != nil {
		t.Fatal(err)
	}
	golden(t, "limitranger", map[string]any{"annotations": p.Annotations, "initContainers": p.Spec.InitContainers, "containers": p.Spec.Containers})
}

func TestLimitRangerRefuses(t *testing.T) {
	item := func(typ corev1.LimitType) corev1.LimitRangeItem {
		return corev1.LimitRangeItem{Type: typ, Min: quantities("cpu", "100m"), Max: quantities("cpu", "1")}
	}
	for _, tc := range []struct {
		name string
		item corev1.LimitRangeItem
		pod  *corev1.Pod
		want []string // nil: admitted
	}{
		{"container inside", item(corev1.LimitTypeContainer), pod(container("a", quantities("cpu", "100m"), quantities("cpu", "1"))), nil},
		{"container request below", item(corev1.LimitTypeContainer), pod(container("a", quantities("cpu", "99m"), quantities("cpu", "1"))), []string{"minimum cpu usage per Container is 100m, but request is 99m"}},
		{"container limit above", item(corev1.LimitTypeContainer), pod(container("a", quantities("cpu", "1"), quantities("cpu", "1001m"))), []string{"maximum cpu usage per Container is 1, but limit is 1001m"}},
		{"pod sum above", item(corev1.LimitTypePod), pod(container("a", quantities("cpu", "100m"), quantities("cpu", "600m")), container("b", quantities("cpu", "100m"), quantities("cpu", "600m"))), []string{"maximum cpu usage per Pod is 1, but limit is 1200m"}},
		{"pod without", item(corev1.LimitTypePod), pod(), []string{"No request is specified", "No limit is specified"}},
		{"ratio kept", corev1.LimitRangeItem{Type: corev1.LimitTypeContainer, MaxLimitRequestRatio: quantities("cpu", "2")}, pod(container("a", quantities("cpu", "500m"), quantities("cpu", "1"))), nil},
		{"ratio broken", corev1.LimitRangeItem{Type: corev1.LimitTypeContainer, MaxLimitRequestRatio: quantities("cpu", "2")}, pod(container("a", quantities("cpu", "400m"), quantities("cpu", "1"))), []string{"provided ratio is 2.5"}},
		{"claims don't concern pods", item(corev1.LimitTypePersistentVolumeClaim), pod(), nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := run(t, started(t, "LimitRanger", limitRange(tc.item)), request{obj: tc.pod})
			if (err == nil) != (tc.want == nil) || err != nil && !apierrors.IsForbidden(err) {
				t.Fatalf("got %v", err)
			}
			for _, w := range tc.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%v does not say %q", err, w)
				}
			}
		})
	}
}

func TestLimitRangerClaims(t *testing.T) {
	p := started(t, "LimitRanger", limitRange(corev1.LimitRangeItem{Type: corev1.LimitTypePersistentVolumeClaim, Min: quantities("storage", "1Gi"), Max: quantities("storage", "2Gi")}))
	for size, ok := range map[string]bool{"1Gi": true, "2Gi": true, "512Mi": false, "3Gi": false} {
		c := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "c"}, Spec: corev1.PersistentVolumeClaimSpec{Resources: corev1.VolumeResourceRequirements{Requests: quantities("storage", size)}}}
		for _, op := range []admission.Operation{admission.Create, admission.Update} {
			if err := run(t, p, request{obj: c, old: c, op: op}); (err == nil) != ok {
				t.Errorf("%s of %s: %v", op, size, err)
			}
		}
	}
}

func TestLimitRangerLeavesUpdatesOfPods(t *testing.T) {
	p := started(t, "LimitRanger", limitRange(corev1.LimitRangeItem{Type: corev1.LimitTypeContainer, Max: quantities("cpu", "1")}))
	big := pod(container("a", quantities("cpu", "5"), quantities("cpu", "5")))
	if err := run(t, p, request{obj: big, old: big, op: admission.Update}); err != nil {
		t.Errorf("update: %v", err)
	}
	if err := run(t, p, request{obj: big, old: big, op: admission.Update, subresource: "resize"}); err == nil {
		t.Error("a resize beyond the limit is admitted")
	}
	other := big.DeepCopy()
	other.Namespace = "elsewhere"
	if err := run(t, p, request{obj: other}); err != nil {
		t.Errorf("another namespace: %v", err)
	}
}
