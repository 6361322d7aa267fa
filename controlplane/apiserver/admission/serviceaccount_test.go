package admission

import (
	"regexp"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var tokenVolume = regexp.MustCompile(`^kube-api-access-[bcdfghjklmnpqrstvwxz2456789]{5}$`)

func account(name string, automount *bool) *corev1.ServiceAccount {
	return &corev1.ServiceAccount{
		ObjectMeta:       metav1.ObjectMeta{Namespace: "ns", Name: name},
		ImagePullSecrets: []corev1.LocalObjectReference{{Name: "registry"}}, AutomountServiceAccountToken: automount,
	}
}

func TestServiceAccountGolden(t *testing.T) {
	p := pod(corev1.Container{Name: "main"}, corev1.Container{Name: "own", VolumeMounts: []corev1.VolumeMount{{Name: "mine", MountPath: tokenMountPath}}})
	p.Spec.InitContainers = []corev1.Container{{Name: "init"}}
	if err := run(t, started(t, "ServiceAccount", account("default", nil)), request{obj: p}); err != nil {
		t.Fatal(err)
	}
	name := p.Spec.Volumes[0].Name
	if !tokenVolume.MatchString(name) {
		t.Errorf("volume name %q", name)
	}
	p.Spec.Volumes[0].Name = "kube-api-access-xxxxx"
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			for j := range list[i].VolumeMounts {
				if m := &list[i].VolumeMounts[j]; m.Name == name {
					m.Name = "kube-api-access-xxxxx"
				}
			}
		}
	}
	golden(t, "serviceaccount", p.Spec)
}

func TestServiceAccountAutomount(t *testing.T) {
	yes, no := true, false
	for _, tc := range []struct {
		name        string
		pod, of     *bool
		wantMounted bool
	}{
		{"neither says", nil, nil, true},
		{"account opts out", nil, &no, false},
		{"pod opts out", &no, nil, false},
		{"pod overrides account", &yes, &no, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := pod()
			p.Spec.AutomountServiceAccountToken = tc.pod
			if err := run(t, started(t, "ServiceAccount", account("default", tc.of)), request{obj: p}); err != nil {
				t.Fatal(err)
			}
			if got := len(p.Spec.Volumes) == 1; got != tc.wantMounted {
				t.Errorf("mounted = %v, want %v", got, tc.wantMounted)
			}
			if p.Spec.ServiceAccountName != "default" || p.Spec.DeprecatedServiceAccount != "default" {
				t.Errorf("account %q, %q", p.Spec.ServiceAccountName, p.Spec.DeprecatedServiceAccount)
			}
		})
	}
}

func TestServiceAccountMustExist(t *testing.T) {
	p := pod()
	p.Spec.ServiceAccountName = "nobody"
	err := run(t, started(t, "ServiceAccount", account("default", nil)), request{obj: p})
	if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "error looking up service account ns/nobody") {
		t.Errorf("got %v", err)
	}
}

func TestServiceAccountKeepsPullSecrets(t *testing.T) {
	p := pod()
	p.Spec.ImagePullSecrets = []corev1.LocalObjectReference{{Name: "own"}}
	if err := run(t, started(t, "ServiceAccount", account("default", nil)), request{obj: p}); err != nil {
		t.Fatal(err)
	}
	if len(p.Spec.ImagePullSecrets) != 1 || p.Spec.ImagePullSecrets[0].Name != "own" {
		t.Errorf("pull secrets %v", p.Spec.ImagePullSecrets)
	}
}

func TestServiceAccountLeavesMirrorPods(t *testing.T) {
	p := pod()
	p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"}
	if err := run(t, started(t, "ServiceAccount"), request{obj: p}); err != nil {
		t.Fatal(err)
	}
	if p.Spec.ServiceAccountName != "" || len(p.Spec.Volumes) != 0 {
		t.Errorf("changed: %+v", p.Spec)
	}
}
