package resources

import (
	"slices"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func sizeOf(q string) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(q)}
}

func claim(change func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	c := &corev1.PersistentVolumeClaim{Spec: corev1.PersistentVolumeClaimSpec{
		AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, Resources: corev1.VolumeResourceRequirements{Requests: sizeOf("1Gi")},
	}}
	change(c)
	return c
}

func volume(change func(*corev1.PersistentVolume)) *corev1.PersistentVolume {
	v := &corev1.PersistentVolume{Spec: corev1.PersistentVolumeSpec{
		Capacity: sizeOf("1Gi"), AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
		PersistentVolumeSource:        corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/srv"}},
	}}
	change(v)
	return v
}

// saysOf compares errors as "type path".
func saysOf(t *testing.T, errs field.ErrorList, want ...string) {
	t.Helper()
	var have []string
	for _, e := range errs {
		have = append(have, string(e.Type)+" "+e.Field)
	}
	if !slices.Equal(have, want) {
		t.Errorf("have %q, want %q", have, want)
	}
}

func TestClaims(t *testing.T) {
	other := "other"
	for name, c := range map[string]struct {
		change func(*corev1.PersistentVolumeClaim)
		want   []string
	}{
		"good":           {func(*corev1.PersistentVolumeClaim) {}, nil},
		"no access mode": {func(c *corev1.PersistentVolumeClaim) { c.Spec.AccessModes = nil }, []string{"FieldValueRequired spec.accessModes"}},
		"unknown access mode": {func(c *corev1.PersistentVolumeClaim) { c.Spec.AccessModes[0] = "Always" },
			[]string{"FieldValueNotSupported spec.accessModes"}},
		"one pod and many": {func(c *corev1.PersistentVolumeClaim) {
			c.Spec.AccessModes = append(c.Spec.AccessModes, corev1.ReadWriteOncePod)
		}, []string{"FieldValueForbidden spec.accessModes"}},
		"no size":   {func(c *corev1.PersistentVolumeClaim) { c.Spec.Resources = corev1.VolumeResourceRequirements{} }, []string{"FieldValueRequired spec.resources[storage]"}},
		"zero size": {func(c *corev1.PersistentVolumeClaim) { c.Spec.Resources.Requests = sizeOf("0") }, []string{"FieldValueInvalid spec.resources[storage]"}},
		"class":     {func(c *corev1.PersistentVolumeClaim) { s := "A_b"; c.Spec.StorageClassName = &s }, []string{"FieldValueInvalid spec.storageClassName"}},
		"source": {func(c *corev1.PersistentVolumeClaim) {
			c.Spec.DataSource = &corev1.TypedLocalObjectReference{Kind: "Secret", Name: "x"}
		}, []string{"FieldValueInvalid spec.dataSource"}},
	} {
		t.Run(name, func(t *testing.T) { saysOf(t, validateClaim(claim(c.change)), c.want...) })
	}
	bound := func(change func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
		return claim(func(c *corev1.PersistentVolumeClaim) {
			c.Spec.VolumeName, c.Status.Phase, c.Status.Capacity = "v", corev1.ClaimBound, sizeOf("1Gi")
			change(c)
		})
	}
	for name, c := range map[string]struct {
		old, new *corev1.PersistentVolumeClaim
		want     []string
	}{
		"the binder names the volume": {claim(func(*corev1.PersistentVolumeClaim) {}), bound(func(*corev1.PersistentVolumeClaim) {}), nil},
		"a bound claim grows":         {bound(func(*corev1.PersistentVolumeClaim) {}), bound(func(c *corev1.PersistentVolumeClaim) { c.Spec.Resources.Requests = sizeOf("2Gi") }), nil},
		"a bound claim shrinks": {bound(func(*corev1.PersistentVolumeClaim) {}), bound(func(c *corev1.PersistentVolumeClaim) { c.Spec.Resources.Requests = sizeOf("1Mi") }),
			[]string{"FieldValueForbidden spec.resources.requests.storage"}},
		"a pending claim grows": {claim(func(*corev1.PersistentVolumeClaim) {}), claim(func(c *corev1.PersistentVolumeClaim) { c.Spec.Resources.Requests = sizeOf("2Gi") }),
			[]string{"FieldValueForbidden spec"}},
		"another volume": {bound(func(*corev1.PersistentVolumeClaim) {}), bound(func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = other }),
			[]string{"FieldValueForbidden spec"}},
	} {
		t.Run(name, func(t *testing.T) { saysOf(t, validateClaimUpdate(c.new, c.old), c.want...) })
	}
}

func TestVolumes(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*corev1.PersistentVolume)
		want   []string
	}{
		"good":        {func(*corev1.PersistentVolume) {}, nil},
		"no capacity": {func(v *corev1.PersistentVolume) { v.Spec.Capacity = nil }, []string{"FieldValueRequired spec.capacity"}},
		"no type":     {func(v *corev1.PersistentVolume) { v.Spec.HostPath = nil }, []string{"FieldValueRequired spec"}},
		"two types": {func(v *corev1.PersistentVolume) {
			v.Spec.NFS = &corev1.NFSVolumeSource{Server: "s", Path: "/"}
		}, []string{"FieldValueForbidden spec"}},
		"a way out": {func(v *corev1.PersistentVolume) { v.Spec.HostPath.Path = "/a/../../etc" }, []string{"FieldValueInvalid spec.hostPath.path"}},
		"policy":    {func(v *corev1.PersistentVolume) { v.Spec.PersistentVolumeReclaimPolicy = "Burn" }, []string{"FieldValueNotSupported spec.persistentVolumeReclaimPolicy"}},
		"recycle the root": {func(v *corev1.PersistentVolume) {
			v.Spec.HostPath.Path, v.Spec.PersistentVolumeReclaimPolicy = "/", "Recycle"
		}, []string{"FieldValueForbidden spec.persistentVolumeReclaimPolicy"}},
		"local on no node": {func(v *corev1.PersistentVolume) {
			v.Spec.PersistentVolumeSource = corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: "/d"}}
		}, []string{"FieldValueRequired spec.nodeAffinity"}},
		"CSI": {func(v *corev1.PersistentVolume) {
			v.Spec.PersistentVolumeSource = corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{}}
		}, []string{"FieldValueRequired spec.csi.driver", "FieldValueRequired spec.csi.volumeHandle"}},
	} {
		t.Run(name, func(t *testing.T) { saysOf(t, validateVolume(volume(c.change)), c.want...) })
	}
	old := volume(func(*corev1.PersistentVolume) {})
	saysOf(t, validateVolumeUpdate(volume(func(v *corev1.PersistentVolume) { v.Spec.HostPath.Path = "/other" }), old), "FieldValueForbidden spec.persistentvolumesource")
}

// TestMountsOfClaimTemplates: a container of a StatefulSet may mount what its claim templates bring, and nothing that there is not.
func TestMountsOfClaimTemplates(t *testing.T) {
	for mount, want := range map[string]int{"data": 0, "template": 0, "none": 1} {
		s := &appsv1.StatefulSet{}
		s.Spec.VolumeClaimTemplates = []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}}}
		s.Spec.Template.Spec.Volumes = []corev1.Volume{{Name: "template", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
		s.Spec.Template.Spec.Containers = []corev1.Container{{Name: "main", VolumeMounts: []corev1.VolumeMount{{Name: mount, MountPath: "/data"}}}}
		got := 0
		for _, err := range validatePodTemplate(withClaims(s), field.NewPath("template")) {
			if err.Field == "template.spec.containers[0].volumeMounts[0].name" {
				got++
			}
		}
		if got != want || len(s.Spec.Template.Spec.Volumes) != 1 {
			t.Errorf("%s: %d errors, want %d", mount, got, want)
		}
	}
}
