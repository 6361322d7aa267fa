package controllers_test

import (
	"fmt"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func deployment(ns, name string, replicas int32) *appsv1.Deployment {
	labels := map[string]string{"app": name}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
		Spec:       appsv1.DeploymentSpec{Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: podTemplate(labels)},
	}
}

func (c *cluster) deployed(ns, name string, revision string) *appsv1.Deployment {
	c.Helper()
	var d *appsv1.Deployment
	c.eventually("Deployment "+name+" at revision "+revision, func() error {
		var err error
		if d, err = c.client.AppsV1().Deployments(ns).Get(c.Context(), name, metav1.GetOptions{}); err != nil {
			return err
		}
		s, want := d.Status, *d.Spec.Replicas
		if s.ObservedGeneration < d.Generation || s.UpdatedReplicas != want || s.Replicas != want || s.AvailableReplicas != want || d.Annotations["deployment.kubernetes.io/revision"] != revision {
			return fmt.Errorf("revision %s, status %+v", d.Annotations["deployment.kubernetes.io/revision"], s)
		}
		for _, cond := range s.Conditions {
			if cond.Type == appsv1.DeploymentProgressing && (cond.Status != corev1.ConditionTrue || cond.Reason != "NewReplicaSetAvailable") {
				return fmt.Errorf("condition %+v", cond)
			}
		}
		return nil
	})
	return d
}

func testDeployment(t *testing.T, c *cluster) {
	ns := c.namespace(t, "deployment")
	api := c.client.AppsV1().Deployments(ns)
	if _, err := api.Create(t.Context(), deployment(ns, "web", 3), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.deployed(ns, "web", "1")
	// A deleted pod is replaced.
	pods, err := c.client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{})
	if err != nil || len(pods.Items) != 3 {
		t.Fatalf("%d pods, %v", len(pods.Items), err)
	}
	if err := c.client.CoreV1().Pods(ns).Delete(t.Context(), pods.Items[0].Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.eventually("a new pod", func() error {
		l, err := c.client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, p := range l.Items {
			if p.UID == pods.Items[0].UID {
				return fmt.Errorf("the old pod is still there")
			}
		}
		if len(l.Items) != 3 {
			return fmt.Errorf("%d pods", len(l.Items))
		}
		return nil
	})
	c.deployed(ns, "web", "1")
	// Scaling keeps the revision.
	if _, err := api.Patch(t.Context(), "web", types.MergePatchType, []byte(`{"spec":{"replicas":5}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	c.deployed(ns, "web", "1")
	// Background deletion takes everything along.
	if err := api.Delete(t.Context(), "web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.nothingLeft(ns)
}

// nothingLeft waits until no pod and no ReplicaSet is left.
func (c *cluster) nothingLeft(ns string) {
	c.Helper()
	c.eventually("no pods and ReplicaSets in "+ns, func() error {
		rs, err := c.client.AppsV1().ReplicaSets(ns).List(c.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		pods, err := c.client.CoreV1().Pods(ns).List(c.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		if len(rs.Items)+len(pods.Items) > 0 {
			return fmt.Errorf("%d ReplicaSets, %d pods", len(rs.Items), len(pods.Items))
		}
		return nil
	})
}

func testRollback(t *testing.T, c *cluster) {
	ns := c.namespace(t, "rollback")
	api := c.client.AppsV1().Deployments(ns)
	if _, err := api.Create(t.Context(), deployment(ns, "web", 4), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.deployed(ns, "web", "1")
	image := func(name string) {
		t.Helper()
		patch := fmt.Sprintf(`{"spec":{"template":{"spec":{"containers":[{"name":"main","image":%q}]}}}}`, name)
		if _, err := api.Patch(t.Context(), "web", types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	image("example.test/main:2")
	c.deployed(ns, "web", "2")
	image("example.test/main:1")
	c.deployed(ns, "web", "3")
	sets, err := c.client.AppsV1().ReplicaSets(ns).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, rs := range sets.Items {
		got[rs.Annotations["deployment.kubernetes.io/revision"]] = rs.Spec.Template.Spec.Containers[0].Image
		if rs.Annotations["deployment.kubernetes.io/revision"] == "3" && rs.Annotations["deployment.kubernetes.io/revision-history"] != "1" {
			t.Errorf("history of the revived ReplicaSet: %v", rs.Annotations)
		}
	}
	if len(got) != 2 || got["2"] != "example.test/main:2" || got["3"] != "example.test/main:1" {
		t.Errorf("revisions %v", got)
	}
}

func job(ns, name, how string, parallelism, completions, limit int32) *batchv1.Job {
	tmpl := podTemplate(map[string]string{outcome: how})
	tmpl.Spec.RestartPolicy = corev1.RestartPolicyNever
	return &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
		Spec:       batchv1.JobSpec{Parallelism: &parallelism, Completions: &completions, BackoffLimit: &limit, Template: tmpl},
	}
}

func (c *cluster) finished(ns, name string, how batchv1.JobConditionType) *batchv1.Job {
	c.Helper()
	var j *batchv1.Job
	c.eventually("Job "+name, func() error {
		var err error
		if j, err = c.client.BatchV1().Jobs(ns).Get(c.Context(), name, metav1.GetOptions{}); err != nil {
			return err
		}
		for _, cond := range j.Status.Conditions {
			if cond.Type == how && cond.Status == corev1.ConditionTrue {
				return nil
			}
		}
		return fmt.Errorf("status %+v", j.Status)
	})
	return j
}

func testJob(t *testing.T, c *cluster) {
	ns := c.namespace(t, "job")
	if _, err := c.client.BatchV1().Jobs(ns).Create(t.Context(), job(ns, "work", "succeed", 2, 5, 6), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	j := c.finished(ns, "work", batchv1.JobComplete)
	if j.Status.Succeeded != 5 || j.Status.Failed != 0 || j.Status.Active != 0 || j.Status.CompletionTime == nil {
		t.Errorf("status %+v", j.Status)
	}
	c.eventually("pods without finalizer", func() error {
		l, err := c.client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		if len(l.Items) != 5 {
			return fmt.Errorf("%d pods", len(l.Items))
		}
		for _, p := range l.Items {
			if len(p.Finalizers) > 0 {
				return fmt.Errorf("%s has finalizers %v", p.Name, p.Finalizers)
			}
		}
		return nil
	})
}

func testJobFails(t *testing.T, c *cluster) {
	ns := c.namespace(t, "job-fails")
	if _, err := c.client.BatchV1().Jobs(ns).Create(t.Context(), job(ns, "work", "fail", 1, 1, 0), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	j := c.finished(ns, "work", batchv1.JobFailed)
	if j.Status.Failed != 1 || j.Status.Succeeded != 0 {
		t.Errorf("status %+v", j.Status)
	}
	// Its time to live is over as soon as it has one.
	if _, err := c.client.BatchV1().Jobs(ns).Patch(t.Context(), "work", types.MergePatchType, []byte(`{"spec":{"ttlSecondsAfterFinished":0}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	c.eventually("no Job", func() error {
		_, err := c.client.BatchV1().Jobs(ns).Get(t.Context(), "work", metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("still there: %w", err)
	})
}

// testJobDeleted: pods carry the tracking finalizer; they must not outlive a Job that is deleted in the background.
func testJobDeleted(t *testing.T, c *cluster) {
	ns := c.namespace(t, "job-deleted")
	if _, err := c.client.BatchV1().Jobs(ns).Create(t.Context(), job(ns, "work", "", 3, 3, 0), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.eventually("running pods", func() error {
		j, err := c.client.BatchV1().Jobs(ns).Get(t.Context(), "work", metav1.GetOptions{})
		if err == nil && j.Status.Active != 3 {
			err = fmt.Errorf("status %+v", j.Status)
		}
		return err
	})
	background := metav1.DeletePropagationBackground
	if err := c.client.BatchV1().Jobs(ns).Delete(t.Context(), "work", metav1.DeleteOptions{PropagationPolicy: &background}); err != nil {
		t.Fatal(err)
	}
	c.nothingLeft(ns)
}
