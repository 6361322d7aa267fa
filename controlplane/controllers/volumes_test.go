package controllers_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// volumes are what a subtest makes: all of a class of its own, which keeps subtests apart.
type volumes struct {
	*cluster
	ns, class string
}

func (c *cluster) volumes(t *testing.T, name string, mode storagev1.VolumeBindingMode, provisioner string) volumes {
	t.Helper()
	class := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: provisioner, VolumeBindingMode: &mode}
	if _, err := c.client.StorageV1().StorageClasses().Create(t.Context(), class, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return volumes{c, c.namespace(t, name), name}
}

func (v volumes) volume(name, size string, change ...func(*corev1.PersistentVolume)) {
	v.Helper()
	pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: v.class + "-" + name, Labels: map[string]string{"size": size}}, Spec: corev1.PersistentVolumeSpec{
		Capacity: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		StorageClassName: v.class, PersistentVolumeSource: corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/nowhere"}},
	}}
	for _, f := range change {
		f(pv)
	}
	if _, err := v.client.CoreV1().PersistentVolumes().Create(v.Context(), pv, metav1.CreateOptions{}); err != nil {
		v.Fatal(err)
	}
}

func (v volumes) claim(name, size string, change ...func(*corev1.PersistentVolumeClaim)) {
	v.Helper()
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PersistentVolumeClaimSpec{
		StorageClassName: &v.class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}},
	}}
	for _, f := range change {
		f(claim)
	}
	if _, err := v.client.CoreV1().PersistentVolumeClaims(v.ns).Create(v.Context(), claim, metav1.CreateOptions{}); err != nil {
		v.Fatal(err)
	}
}

// shows waits until a claim is as told: phase, volume, capacity.
func (v volumes) shows(claim, want string) {
	v.Helper()
	v.eventually("claim "+claim+": "+want, func() error {
		c, err := v.client.CoreV1().PersistentVolumeClaims(v.ns).Get(v.Context(), claim, metav1.GetOptions{})
		if err != nil {
			return err
		}
		capacity := c.Status.Capacity[corev1.ResourceStorage]
		if got := strings.TrimSpace(fmt.Sprint(c.Status.Phase, " ", strings.TrimPrefix(c.Spec.VolumeName, v.class+"-"))) + " " + capacity.String(); got != want {
			return fmt.Errorf("%q", got)
		}
		return nil
	})
}

// phase waits until a volume is in a phase, for a claim or none.
func (v volumes) phase(name, want string) {
	v.Helper()
	v.eventually("volume "+name+": "+want, func() error {
		pv, err := v.client.CoreV1().PersistentVolumes().Get(v.Context(), v.class+"-"+name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		got := string(pv.Status.Phase)
		if pv.Spec.ClaimRef != nil {
			got += " " + pv.Spec.ClaimRef.Name
		}
		if got != want {
			return fmt.Errorf("%q", got)
		}
		return nil
	})
}

// told waits for an Event of a claim.
func (v volumes) told(claim, reason string) {
	v.Helper()
	v.eventually(reason+" of claim "+claim, func() error {
		l, err := v.client.CoreV1().Events(v.ns).List(v.Context(), metav1.ListOptions{FieldSelector: "involvedObject.name=" + claim})
		if err != nil {
			return err
		}
		var all []string
		for _, e := range l.Items {
			all = append(all, e.Reason+": "+e.Message)
		}
		if !slices.ContainsFunc(l.Items, func(e corev1.Event) bool { return e.Reason == reason }) {
			return fmt.Errorf("%q", all)
		}
		return nil
	})
}

func (v volumes) remove(claim string) {
	v.Helper()
	if err := v.client.CoreV1().PersistentVolumeClaims(v.ns).Delete(v.Context(), claim, metav1.DeleteOptions{}); err != nil {
		v.Fatal(err)
	}
}

// testStaticVolumes: claims get the smallest volume that does, by class, modes and selector, or the one that either side names; what becomes of
// a volume when its claim goes is as its policy says.
func testStaticVolumes(t *testing.T, c *cluster) {
	v := c.volumes(t, "static", storagev1.VolumeBindingImmediate, "kubernetes.io/no-provisioner")
	for _, size := range []string{"1Gi", "5Gi", "9Gi"} {
		v.volume(strings.ToLower(size), size)
		v.phase(strings.ToLower(size), "Available")
	}
	v.volume("many", "5Gi", func(pv *corev1.PersistentVolume) {
		pv.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}
	})
	v.volume("device", "2Gi", func(pv *corev1.PersistentVolume) { pv.Spec.VolumeMode = new(corev1.PersistentVolumeBlock) })
	v.volume("kept", "2Gi", func(pv *corev1.PersistentVolume) {
		pv.Spec.ClaimRef = &corev1.ObjectReference{Namespace: v.ns, Name: "owner"}
	})

	v.claim("fits", "3Gi")
	v.shows("fits", "Bound 5gi 5Gi")
	v.phase("5gi", "Bound fits")
	v.claim("chooses", "1Gi", func(c *corev1.PersistentVolumeClaim) {
		c.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"size": "9Gi"}}
	})
	v.shows("chooses", "Bound 9gi 9Gi")
	v.claim("names", "1Gi", func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = v.class + "-1gi" })
	v.shows("names", "Bound 1gi 1Gi")
	v.claim("late", "1Gi", func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = v.class + "-1gi" })
	v.told("late", "FailedBinding")
	v.claim("mismatch", "1Gi", func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = v.class + "-device" })
	v.told("mismatch", "VolumeMismatch")
	v.claim("shares", "1Gi", func(c *corev1.PersistentVolumeClaim) {
		c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}
	})
	v.shows("shares", "Bound many 5Gi")
	// What is kept for another claim is for that one alone.
	v.claim("waits", "2Gi")
	v.told("waits", "FailedBinding")
	v.claim("owner", "2Gi")
	v.shows("owner", "Bound kept 2Gi")
	v.shows("waits", "Pending 0")
	v.volume("new", "3Gi")
	v.shows("waits", "Bound new 3Gi")

	// Retain: the volume stays with its data, for somebody to look at, and is free again when nobody is named any more.
	v.remove("waits")
	v.phase("new", "Released waits")
	if _, err := c.client.CoreV1().PersistentVolumes().Patch(t.Context(), "static-new", types.MergePatchType, []byte(`{"spec":{"claimRef":null}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	v.phase("new", "Available")
	v.claim("again", "3Gi")
	v.shows("again", "Bound new 3Gi")
	// A claim of the same name is another one.
	v.remove("fits")
	v.phase("5gi", "Released fits")
	v.claim("fits", "5Gi")
	v.told("fits", "FailedBinding")
	v.phase("5gi", "Released fits")
	// Delete: nobody here can remove a folder of an administrator's.
	if _, err := c.client.CoreV1().PersistentVolumes().Patch(t.Context(), "static-many", types.MergePatchType, []byte(`{"spec":{"persistentVolumeReclaimPolicy":"Delete"}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	v.remove("shares")
	v.phase("many", "Failed shares")
	// Who loses its volume says so.
	for _, patch := range []struct{ kind, name string }{{"pv", "static-9gi"}} {
		if _, err := c.client.CoreV1().PersistentVolumes().Patch(t.Context(), patch.name, types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := c.client.CoreV1().PersistentVolumes().Delete(t.Context(), patch.name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	v.shows("chooses", "Lost 9gi 0")
}

// testDynamicVolumes: claims wait for their pod's node, other provisioners are told of theirs, and local volumes are made for the node, kept by
// what guards their data, and gone with their claim once the node has removed it or is gone itself.
func testDynamicVolumes(t *testing.T, c *cluster) {
	v := c.volumes(t, "dynamic", storagev1.VolumeBindingWaitForFirstConsumer, "strake.io/local")
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "storage", Labels: map[string]string{corev1.LabelHostname: "storage-host"}, Annotations: map[string]string{"strake.io/local-volumes": "/data/local"}}}
	if _, err := c.client.CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	selected := func(node string) func(*corev1.PersistentVolumeClaim) {
		return func(c *corev1.PersistentVolumeClaim) {
			c.Annotations = map[string]string{"volume.kubernetes.io/selected-node": node}
		}
	}
	v.claim("waits", "1Gi")
	v.told("waits", "WaitForFirstConsumer")
	for name, change := range map[string]func(*corev1.PersistentVolumeClaim){
		"many": func(c *corev1.PersistentVolumeClaim) {
			c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}
		},
		"block": func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeMode = new(corev1.PersistentVolumeBlock) },
	} {
		v.claim(name, "1Gi", selected("storage"), change)
		v.told(name, "ProvisioningFailed")
	}
	// A node that has none: the scheduler is to choose another.
	v.claim("elsewhere", "1Gi", selected(nodeName))
	v.told("elsewhere", "ProvisioningFailed")
	v.told("elsewhere", "WaitForFirstConsumer")

	v.claim("data", "1Gi", selected("storage"))
	var pv *corev1.PersistentVolume
	c.eventually("a volume", func() error {
		claim, err := c.client.CoreV1().PersistentVolumeClaims(v.ns).Get(t.Context(), "data", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if claim.Status.Phase != corev1.ClaimBound {
			return fmt.Errorf("%s", claim.Status.Phase)
		}
		pv, err = c.client.CoreV1().PersistentVolumes().Get(t.Context(), claim.Spec.VolumeName, metav1.GetOptions{})
		return err
	})
	if pv.Spec.Local == nil || pv.Spec.Local.Path != "/data/local/"+pv.Name || pv.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Values[0] != "storage-host" {
		t.Errorf("%+v", pv.Spec)
	}
	// The node does not answer: its data is not forgotten, though the object be deleted, before the node is.
	v.remove("data")
	v.eventually("a volume whose node does not answer", func() error {
		now, err := c.client.CoreV1().PersistentVolumes().Get(t.Context(), pv.Name, metav1.GetOptions{})
		if err == nil && now.Status.Phase != corev1.VolumeFailed {
			err = fmt.Errorf("%s", now.Status.Phase)
		}
		return err
	})
	if err := c.client.CoreV1().PersistentVolumes().Delete(t.Context(), pv.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.eventually("the finalizer of volumes alone", func() error {
		now, err := c.client.CoreV1().PersistentVolumes().Get(t.Context(), pv.Name, metav1.GetOptions{})
		if err == nil && !slices.Equal(now.Finalizers, []string{"kubernetes.io/pv-controller"}) {
			err = fmt.Errorf("finalizers %v", now.Finalizers)
		}
		return err
	})
	if err := c.client.CoreV1().Nodes().Delete(t.Context(), "storage", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.eventually("the volume of a node that is gone", func() error {
		if _, err := c.client.CoreV1().PersistentVolumes().Get(t.Context(), pv.Name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return fmt.Errorf("still there, %v", err)
		}
		return nil
	})
}

// testOtherProvisioners: who makes volumes from outside is told by an annotation, and what it makes is bound; a claim without a class gets the
// default one, also when that comes later.
func testOtherProvisioners(t *testing.T, c *cluster) {
	v := c.volumes(t, "outside", storagev1.VolumeBindingImmediate, "csi.example.com")
	v.claim("data", "1Gi")
	v.told("data", "ExternalProvisioning")
	claim, err := c.client.CoreV1().PersistentVolumeClaims(v.ns).Get(t.Context(), "data", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := claim.Annotations["volume.kubernetes.io/storage-provisioner"]; got != "csi.example.com" {
		t.Errorf("provisioner %q", got)
	}
	v.volume("made", "1Gi", func(pv *corev1.PersistentVolume) {
		pv.Annotations = map[string]string{"pv.kubernetes.io/provisioned-by": "csi.example.com"}
		pv.Spec.ClaimRef = &corev1.ObjectReference{Namespace: v.ns, Name: "data", UID: claim.UID}
		pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimDelete
		pv.Spec.PersistentVolumeSource = corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "csi.example.com", VolumeHandle: "1"}}
	})
	v.shows("data", "Bound made 1Gi")
	v.remove("data")
	v.phase("made", "Released data") // and there it stays for its provisioner
	c.eventually("the class of a claim that names none", func() error {
		class, err := c.client.StorageV1().StorageClasses().Get(t.Context(), "local", metav1.GetOptions{})
		if err == nil && class.Annotations["storageclass.kubernetes.io/is-default-class"] != "true" {
			err = fmt.Errorf("class local is not the default: %v", class.Annotations)
		}
		return err
	})
}

// testEphemeralVolumes: a pod's generic ephemeral volume is a claim of its own, and one of somebody else's is not taken for it.
func testEphemeralVolumes(t *testing.T, c *cluster) {
	v := c.volumes(t, "ephemeral", storagev1.VolumeBindingWaitForFirstConsumer, "strake.io/local")
	v.claim("p-taken", "1Gi")
	volume := func(name string) corev1.Volume {
		return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{VolumeClaimTemplate: &corev1.PersistentVolumeClaimTemplate{
			ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"of": "p"}},
			Spec: corev1.PersistentVolumeClaimSpec{StorageClassName: &v.class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}}},
		}}}}
	}
	c.podOn(v.ns, "p", "", func(p *corev1.Pod) {
		p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "test.strake.io/wait"}}
		p.Spec.Volumes = []corev1.Volume{volume("scratch"), volume("taken")}
	})
	c.eventually("the pod's claim", func() error {
		claim, err := c.client.CoreV1().PersistentVolumeClaims(v.ns).Get(t.Context(), "p-scratch", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if owner := metav1.GetControllerOf(claim); owner == nil || owner.Name != "p" || claim.Labels["of"] != "p" {
			return fmt.Errorf("%+v", claim.ObjectMeta)
		}
		return nil
	})
	v.told("p", "FailedBinding")
}
