package controllers_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func statefulSet(ns, name string, replicas int32) *appsv1.StatefulSet {
	l := map[string]string{"app": name}
	return &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
		Spec: appsv1.StatefulSetSpec{
			Replicas: &replicas, ServiceName: name, Selector: &metav1.LabelSelector{MatchLabels: l}, Template: podTemplate(l),
			VolumeClaimTemplates: []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}, Spec: corev1.PersistentVolumeClaimSpec{
				AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
			}}},
		},
	}
}

// podsOf returns the pods with a label app, by name.
func (c *cluster) podsOf(ns, app string) (map[string]*corev1.Pod, error) {
	list, err := c.client.CoreV1().Pods(ns).List(c.Context(), metav1.ListOptions{LabelSelector: "app=" + app})
	if err != nil {
		return nil, err
	}
	out := map[string]*corev1.Pod{}
	for i := range list.Items {
		out[list.Items[i].Name] = &list.Items[i]
	}
	return out, nil
}

// settled waits until a StatefulSet has so many pods, all ready and of one revision, which it returns.
func (c *cluster) settled(ns, name string, replicas int32) string {
	c.Helper()
	var revision string
	c.eventually(fmt.Sprintf("StatefulSet %s with %d pods", name, replicas), func() error {
		s, err := c.client.AppsV1().StatefulSets(ns).Get(c.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		st := s.Status
		if st.ObservedGeneration < s.Generation || st.Replicas != replicas || st.AvailableReplicas != replicas || st.UpdatedReplicas != replicas || st.CurrentRevision != st.UpdateRevision {
			return fmt.Errorf("status %+v", st)
		}
		have, err := c.podsOf(ns, name)
		if err != nil {
			return err
		}
		for i := range int(replicas) {
			if p := have[fmt.Sprintf("%s-%d", name, i)]; p == nil || p.Labels["controller-revision-hash"] != st.UpdateRevision {
				return fmt.Errorf("pods %v", slices.Sorted(maps.Keys(have)))
			}
		}
		revision = st.UpdateRevision
		if len(have) != int(replicas) {
			return fmt.Errorf("pods %v", slices.Sorted(maps.Keys(have)))
		}
		return nil
	})
	return revision
}

func testStatefulSet(t *testing.T, c *cluster) {
	ns := c.namespace(t, "statefulset")
	api := c.client.AppsV1().StatefulSets(ns)
	s := statefulSet(ns, "db", 3)
	s.Spec.PersistentVolumeClaimRetentionPolicy = &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{WhenScaled: appsv1.DeletePersistentVolumeClaimRetentionPolicyType, WhenDeleted: appsv1.RetainPersistentVolumeClaimRetentionPolicyType}
	if _, err := api.Create(t.Context(), s, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	before := c.settled(ns, "db", 3)
	have, err := c.podsOf(ns, "db")
	if err != nil {
		t.Fatal(err)
	}
	p := have["db-2"]
	if p.Spec.Hostname != "db-2" || p.Spec.Subdomain != "db" || p.Labels[appsv1.PodIndexLabel] != "2" || p.Labels[appsv1.StatefulSetPodNameLabel] != "db-2" {
		t.Errorf("pod %+v", p)
	}
	if !slices.ContainsFunc(p.Spec.Volumes, func(v corev1.Volume) bool {
		return v.Name == "data" && v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ClaimName == "data-db-2"
	}) {
		t.Errorf("volumes %+v", p.Spec.Volumes)
	}
	for i := range 2 {
		if a, b := have[fmt.Sprintf("db-%d", i)], have[fmt.Sprintf("db-%d", i+1)]; b.CreationTimestamp.Before(&a.CreationTimestamp) {
			t.Errorf("%s was made before %s", b.Name, a.Name)
		}
	}
	// A pod that is deleted comes back with its name and its claim.
	claim, err := c.client.CoreV1().PersistentVolumeClaims(ns).Get(t.Context(), "data-db-1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.client.CoreV1().Pods(ns).Delete(t.Context(), "db-1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.eventually("db-1 made anew", func() error {
		p, err := c.client.CoreV1().Pods(ns).Get(t.Context(), "db-1", metav1.GetOptions{})
		if err == nil && p.UID == have["db-1"].UID {
			err = fmt.Errorf("the old one is there")
		}
		return err
	})
	c.settled(ns, "db", 3)
	if now, err := c.client.CoreV1().PersistentVolumeClaims(ns).Get(t.Context(), "data-db-1", metav1.GetOptions{}); err != nil || now.UID != claim.UID {
		t.Errorf("claim %v, %v", now, err)
	}
	// A new template: only what is above the partition, then all.
	patch := `{"spec":{"updateStrategy":{"rollingUpdate":{"partition":2}},"template":{"spec":{"containers":[{"name":"main","image":"example.test/main:2"}]}}}}`
	if _, err := api.Patch(t.Context(), "db", types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	c.eventually("db-2 alone is new", func() error {
		have, err := c.podsOf(ns, "db")
		if err != nil {
			return err
		}
		for name, want := range map[string]string{"db-0": "1", "db-1": "1", "db-2": "2"} {
			if p := have[name]; p == nil || !strings.HasSuffix(p.Spec.Containers[0].Image, ":"+want) || p.Status.Phase != corev1.PodRunning {
				return fmt.Errorf("%s: %+v", name, p)
			}
		}
		return nil
	})
	if _, err := api.Patch(t.Context(), "db", types.MergePatchType, []byte(`{"spec":{"updateStrategy":{"rollingUpdate":{"partition":0}}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	after := c.settled(ns, "db", 3)
	if after == before {
		t.Error("the revision did not change")
	}
	// Back to the first template: its revision is used again.
	if _, err := api.Patch(t.Context(), "db", types.StrategicMergePatchType, []byte(`{"spec":{"template":{"spec":{"containers":[{"name":"main","image":"example.test/main:1"}]}}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	c.eventually("the first revision again", func() error {
		s, err := api.Get(t.Context(), "db", metav1.GetOptions{})
		if err == nil && s.Status.UpdateRevision != before {
			err = fmt.Errorf("update revision %s, want %s", s.Status.UpdateRevision, before)
		}
		return err
	})
	c.settled(ns, "db", 3)
	// Fewer: the highest goes, and its claim with it.
	if _, err := api.Patch(t.Context(), "db", types.MergePatchType, []byte(`{"spec":{"replicas":1}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	c.settled(ns, "db", 1)
	c.eventually("claims of the pods that are gone", func() error {
		list, err := c.client.CoreV1().PersistentVolumeClaims(ns).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		live := slices.DeleteFunc(list.Items, func(p corev1.PersistentVolumeClaim) bool { return p.DeletionTimestamp != nil })
		if len(live) != 1 || live[0].Name != "data-db-0" {
			return fmt.Errorf("%d claims", len(live))
		}
		return nil
	})
	if err := api.Delete(t.Context(), "db", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.eventually("no pods", func() error {
		have, err := c.podsOf(ns, "db")
		if err == nil && len(have) > 0 {
			err = fmt.Errorf("%d pods", len(have))
		}
		return err
	})
	if _, err := c.client.CoreV1().PersistentVolumeClaims(ns).Get(t.Context(), "data-db-0", metav1.GetOptions{}); err != nil {
		t.Errorf("the claim that was to be kept: %v", err)
	}
}

// testStatefulSetOrder holds a pod unready: those after it wait, with Parallel they don't.
func testStatefulSetOrder(t *testing.T, c *cluster) {
	ns := c.namespace(t, "statefulset-order")
	for _, policy := range []appsv1.PodManagementPolicyType{appsv1.OrderedReadyPodManagement, appsv1.ParallelPodManagement} {
		s := statefulSet(ns, strings.ToLower(string(policy)), 2)
		s.Spec.PodManagementPolicy, s.Spec.VolumeClaimTemplates = policy, nil
		s.Spec.Template.Labels[unready] = "yes"
		if _, err := c.client.AppsV1().StatefulSets(ns).Create(t.Context(), s, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	c.eventually("both pods of the parallel set", func() error {
		have, err := c.podsOf(ns, "parallel")
		if err == nil && len(have) != 2 {
			err = fmt.Errorf("%d pods", len(have))
		}
		return err
	})
	c.eventually("the first pod of the ordered set", func() error {
		p, err := c.client.CoreV1().Pods(ns).Get(t.Context(), "orderedready-0", metav1.GetOptions{})
		if err == nil && p.Status.Phase != corev1.PodRunning {
			err = fmt.Errorf("%s", p.Status.Phase)
		}
		return err
	})
	if _, err := c.client.CoreV1().Pods(ns).Get(t.Context(), "orderedready-1", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the second pod did not wait: %v", err)
	}
}

func testDaemonSet(t *testing.T, c *cluster) {
	ns := c.namespace(t, "daemonset")
	l := map[string]string{"app": "agent"}
	api := c.client.AppsV1().DaemonSets(ns)
	d := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Name: "agent"}, Spec: appsv1.DaemonSetSpec{Selector: &metav1.LabelSelector{MatchLabels: l}, Template: podTemplate(l)}}
	d.Spec.Template.Spec.NodeSelector = map[string]string{corev1.LabelHostname: nodeName}
	if _, err := api.Create(t.Context(), d, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	served := func(image string) {
		t.Helper()
		c.eventually("a daemon of "+image, func() error {
			d, err := api.Get(t.Context(), "agent", metav1.GetOptions{})
			if err != nil {
				return err
			}
			if s := d.Status; s.ObservedGeneration < d.Generation || s.DesiredNumberScheduled != 1 || s.CurrentNumberScheduled != 1 || s.NumberAvailable != 1 || s.UpdatedNumberScheduled != 1 || s.NumberMisscheduled != 0 {
				return fmt.Errorf("status %+v", s)
			}
			have, err := c.podsOf(ns, "agent")
			if err != nil {
				return err
			}
			for _, p := range have {
				if p.Spec.NodeName != nodeName || !strings.HasSuffix(p.Spec.Containers[0].Image, image) || len(have) != 1 {
					return fmt.Errorf("%d pods, one of %s", len(have), p.Spec.Containers[0].Image)
				}
			}
			return nil
		})
	}
	served(":1")
	if _, err := api.Patch(t.Context(), "agent", types.StrategicMergePatchType, []byte(`{"spec":{"template":{"spec":{"containers":[{"name":"main","image":"example.test/main:2"}]}}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	served(":2")
	// With surge the old one stays until the new one serves.
	if _, err := api.Patch(t.Context(), "agent", types.StrategicMergePatchType, []byte(`{"spec":{"updateStrategy":{"rollingUpdate":{"maxSurge":1,"maxUnavailable":0}},"template":{"spec":{"containers":[{"name":"main","image":"example.test/main:3"}]}}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	served(":3")
	revisions, err := c.client.AppsV1().ControllerRevisions(ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=agent"})
	if err != nil || len(revisions.Items) != 3 {
		t.Errorf("%d revisions, %v", len(revisions.Items), err)
	}
	// A node that is wanted no more loses its daemon.
	if _, err := api.Patch(t.Context(), "agent", types.MergePatchType, []byte(`{"spec":{"template":{"spec":{"nodeSelector":{"nobody":"has"}}}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	c.eventually("no daemons", func() error {
		have, err := c.podsOf(ns, "agent")
		if err == nil && len(have) > 0 {
			err = fmt.Errorf("%d pods", len(have))
		}
		return err
	})
}

// testClaimInUse deletes a claim and its pod, in this order: the claim goes last.
func testClaimInUse(t *testing.T, c *cluster) {
	ns := c.namespace(t, "claim-in-use")
	claims := c.client.CoreV1().PersistentVolumeClaims(ns)
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "c"}, Spec: corev1.PersistentVolumeClaimSpec{
		AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
	}}
	if _, err := claims.Create(t.Context(), claim, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: podTemplate(nil).Spec}
	pod.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}}}}
	if _, err := c.client.CoreV1().Pods(ns).Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.eventually("the pod on its node", func() error {
		p, err := c.client.CoreV1().Pods(ns).Get(t.Context(), "p", metav1.GetOptions{})
		if err == nil && p.Status.Phase != corev1.PodRunning {
			err = fmt.Errorf("%s", p.Status.Phase)
		}
		return err
	})
	if err := claims.Delete(t.Context(), "c", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if got, err := claims.Get(t.Context(), "c", metav1.GetOptions{}); err != nil || got.DeletionTimestamp == nil || len(got.Finalizers) == 0 {
		t.Errorf("the claim that a pod uses: %+v, %v", got, err)
	}
	if err := c.client.CoreV1().Pods(ns).Delete(t.Context(), "p", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.eventually("no claim", func() error {
		if _, err := claims.Get(t.Context(), "c", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return fmt.Errorf("it is there: %w", err)
		}
		return nil
	})
}
