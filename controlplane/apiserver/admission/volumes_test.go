package admission

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/admission"
)

func TestInUse(t *testing.T) {
	p := started(t, "StorageObjectInUseProtection")
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "c", Finalizers: []string{"test.strake.io/other"}}}
	volume := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "v", Finalizers: []string{"kubernetes.io/pv-protection"}}}
	for _, r := range []request{{obj: claim}, {obj: volume, resource: corev1.SchemeGroupVersion.WithResource("persistentvolumes")}} {
		if err := run(t, p, r); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(claim.Finalizers, []string{"test.strake.io/other", "kubernetes.io/pvc-protection"}) || len(volume.Finalizers) != 1 {
		t.Errorf("finalizers %q and %q", claim.Finalizers, volume.Finalizers)
	}
}

func TestResize(t *testing.T) {
	yes, no := true, false
	class := func(name string, grows *bool) runtime.Object {
		return &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, AllowVolumeExpansion: grows}
	}
	claim := func(size, class string, phase corev1.PersistentVolumeClaimPhase) *corev1.PersistentVolumeClaim {
		c := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "c"}, Status: corev1.PersistentVolumeClaimStatus{Phase: phase}}
		c.Spec.Resources.Requests = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}
		if class != "" {
			c.Spec.StorageClassName = &class
		}
		return c
	}
	p := started(t, "PersistentVolumeClaimResize", class("grows", &yes), class("fixed", &no), class("silent", nil))
	const bound, byClass = corev1.ClaimBound, "must support resize"
	for _, c := range []struct {
		name    string
		old, to *corev1.PersistentVolumeClaim
		want    string // of the error
	}{
		{"a class whose volumes grow", claim("1Gi", "grows", bound), claim("2Gi", "grows", bound), ""},
		{"a class whose volumes don't", claim("1Gi", "fixed", bound), claim("2Gi", "fixed", bound), byClass},
		{"a class that says nothing", claim("1Gi", "silent", bound), claim("2Gi", "silent", bound), byClass},
		{"a class that is gone", claim("1Gi", "gone", bound), claim("2Gi", "gone", bound), byClass},
		{"no class", claim("1Gi", "", bound), claim("2Gi", "", bound), byClass},
		{"a class that it only gets now", claim("1Gi", "", bound), claim("2Gi", "grows", bound), byClass},
		{"not bound", claim("1Gi", "grows", corev1.ClaimPending), claim("2Gi", "grows", corev1.ClaimPending), "only bound"},
		{"the same size, otherwise said", claim("1Gi", "fixed", bound), claim("1024Mi", "fixed", bound), ""},
		{"smaller: validation's", claim("2Gi", "fixed", bound), claim("1Gi", "fixed", bound), ""},
	} {
		err := run(t, p, request{op: admission.Update, obj: c.to, old: c.old})
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(strings.ToLower(err.Error()), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

func TestDefaultIngressClass(t *testing.T) {
	now := time.Now()
	class := func(name string, age time.Duration, isDefault string) runtime.Object {
		return &networkingv1.IngressClass{ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.NewTime(now.Add(-age)), Annotations: map[string]string{networkingv1.AnnotationIsDefaultIngressClass: isDefault}}}
	}
	one, other := []runtime.Object{class("a", 0, "true"), class("b", 0, "false")}, "other"
	for _, c := range []struct {
		name        string
		classes     []runtime.Object
		have        *string
		annotations map[string]string
		want        string
	}{
		{name: "the default one", classes: one, want: "a"},
		{name: "no default", classes: []runtime.Object{class("b", 0, "false")}, want: "<nil>"},
		{name: "the newest of several", classes: []runtime.Object{class("old", time.Hour, "true"), class("new", time.Minute, "true")}, want: "new"},
		{name: "the first by name of twins", classes: []runtime.Object{class("b", 0, "true"), class("a", 0, "true")}, want: "a"},
		{name: "another is asked for", classes: one, have: &other, want: "other"},
		{name: "asked for in the old way", classes: one, annotations: map[string]string{"kubernetes.io/ingress.class": "nginx"}, want: "<nil>"},
		{name: "none is asked for, in the old way", classes: one, annotations: map[string]string{"kubernetes.io/ingress.class": ""}, want: "<nil>"},
	} {
		in := &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "i", Annotations: c.annotations}, Spec: networkingv1.IngressSpec{IngressClassName: c.have}}
		if err := run(t, started(t, "DefaultIngressClass", c.classes...), request{obj: in, resource: networkingv1.SchemeGroupVersion.WithResource("ingresses")}); err != nil {
			t.Fatal(err)
		}
		got := "<nil>"
		if in.Spec.IngressClassName != nil {
			got = *in.Spec.IngressClassName
		}
		if got != c.want {
			t.Errorf("%s: class %q, want %q", c.name, got, c.want)
		}
	}
}
