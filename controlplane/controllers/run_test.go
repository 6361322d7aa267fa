package controllers_test

import (
	"fmt"
	"net/netip"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// TestCluster runs all controllers against a real API server; each subtest has a namespace of its own.
func TestCluster(t *testing.T) {
	c := start(t)
	t.Run("node", func(t *testing.T) { testNode(t, c.on(t)) })
	t.Run("group", func(t *testing.T) {
		for name, test := range map[string]func(*testing.T, *cluster){
			"budget": testBudget, "replicationcontroller": testReplicationController, "claim-in-use": testClaimInUse, "quota": testQuota, "statefulset": testStatefulSet, "statefulset-order": testStatefulSetOrder, "daemonset": testDaemonSet, "cronjob": testCronJob, "deployment": testDeployment, "rollback": testRollback, "job": testJob, "job-fails": testJobFails, "job-deleted": testJobDeleted,
			"service": testService, "service-ranges": testServiceRanges, "families": testFamilies, "distribution": testTrafficDistribution, "conditions": testConditions, "mirror": testMirror, "endpoints": testEndpoints, "autoscaler": testAutoscaler, "static-volumes": testStaticVolumes, "dynamic-volumes": testDynamicVolumes, "other-provisioners": testOtherProvisioners, "ephemeral-volumes": testEphemeralVolumes, "policy-types": testPolicyTypes, "nodeGone": testNodeGone, "taint": testTaint, "namespace": testNamespace, "foreground": testForeground, "orphan": testOrphan,
		} {
			t.Run(name, func(t *testing.T) { t.Parallel(); test(t, c.on(t)) })
		}
	})
}

func testNode(t *testing.T, c *cluster) {
	c.eventually("PodCIDR and taints", func() error {
		n, err := c.client.CoreV1().Nodes().Get(t.Context(), nodeName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if len(n.Spec.PodCIDRs) != 2 || n.Spec.PodCIDR != n.Spec.PodCIDRs[0] {
			return fmt.Errorf("PodCIDR %q, PodCIDRs %q", n.Spec.PodCIDR, n.Spec.PodCIDRs)
		}
		for i, all := range []string{"10.244.0.0/16", "fd00:10:244::/56"} {
			if p, err := netip.ParsePrefix(n.Spec.PodCIDRs[i]); err != nil || !netip.MustParsePrefix(all).Contains(p.Addr()) {
				return fmt.Errorf("PodCIDRs %q", n.Spec.PodCIDRs)
			}
		}
		if len(n.Spec.Taints) > 0 {
			return fmt.Errorf("taints %v on a ready node", n.Spec.Taints)
		}
		return nil
	})
}

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

func testService(t *testing.T, c *cluster) {
	ns := c.namespace(t, "service")
	d := deployment(ns, "web", 3)
	d.Spec.Template.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}
	if _, err := c.client.AppsV1().Deployments(ns).Create(t.Context(), d, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err := c.client.CoreV1().Services(ns).Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": "web"}, Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromString("http")}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ready := func(want int) {
		t.Helper()
		c.eventually(fmt.Sprintf("%d endpoints", want), func() error {
			l, err := c.client.DiscoveryV1().EndpointSlices(ns).List(t.Context(), metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=web"})
			if err != nil {
				return err
			}
			n := 0
			for _, s := range l.Items {
				for _, p := range s.Ports {
					if *p.Port != 8080 || *p.Name != "http" {
						return fmt.Errorf("port %+v", p)
					}
				}
				n += len(s.Endpoints)
			}
			if n != want {
				return fmt.Errorf("%d endpoints", n)
			}
			return nil
		})
	}
	ready(3)
	if _, err := c.client.AppsV1().Deployments(ns).Patch(t.Context(), "web", types.MergePatchType, []byte(`{"spec":{"replicas":1}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	ready(1)
}

// testFamilies gives a Service a second family and takes it away: its EndpointSlices follow.
func testFamilies(t *testing.T, c *cluster) {
	ns := c.namespace(t, "families")
	if _, err := c.client.AppsV1().Deployments(ns).Create(t.Context(), deployment(ns, "web", 2), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	api := c.client.CoreV1().Services(ns)
	for _, s := range []corev1.Service{
		{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}},
		{ObjectMeta: metav1.ObjectMeta{Name: "bare"}, Spec: corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone, IPFamilies: []corev1.IPFamily{corev1.IPv6Protocol}}},
	} {
		s.Spec.Selector = map[string]string{"app": "web"}
		if _, err := api.Create(t.Context(), &s, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	slices := func(service string, four, six int) {
		t.Helper()
		c.eventually(fmt.Sprintf("%d and %d endpoints of %s", four, six, service), func() error {
			l, err := c.client.DiscoveryV1().EndpointSlices(ns).List(t.Context(), metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=" + service})
			if err != nil {
				return err
			}
			got := map[discoveryv1.AddressType]int{}
			for _, s := range l.Items {
				for _, e := range s.Endpoints {
					if a, err := netip.ParseAddr(e.Addresses[0]); err != nil || a.Is4() != (s.AddressType == discoveryv1.AddressTypeIPv4) {
						t.Errorf("address %s in a slice of %s", e.Addresses[0], s.AddressType)
					}
					got[s.AddressType]++
				}
			}
			if got[discoveryv1.AddressTypeIPv4] != four || got[discoveryv1.AddressTypeIPv6] != six {
				return fmt.Errorf("%v", got)
			}
			return nil
		})
	}
	slices("bare", 0, 2)
	slices("web", 2, 0)
	for _, step := range []struct {
		policy string
		six    int
	}{{"PreferDualStack", 2}, {"SingleStack", 0}} {
		if _, err := api.Patch(t.Context(), "web", types.MergePatchType, fmt.Appendf(nil, `{"spec":{"ipFamilyPolicy":%q}}`, step.policy), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		slices("web", 2, step.six)
	}
}

// silentNode is a node without a kubelet.
func (c *cluster) silentNode(name string) {
	c.Helper()
	if _, err := c.client.CoreV1().Nodes().Create(c.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
		c.Fatal(err)
	}
}

func (c *cluster) podOn(ns, name, node string, change ...func(*corev1.Pod)) {
	c.Helper()
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: podTemplate(nil).Spec}
	p.Spec.NodeName = node
	for _, f := range change {
		f(p)
	}
	if _, err := c.client.CoreV1().Pods(ns).Create(c.Context(), p, metav1.CreateOptions{}); err != nil {
		c.Fatal(err)
	}
}

func (c *cluster) noPod(ns, name string) {
	c.Helper()
	c.eventually("no pod "+name, func() error {
		_, err := c.client.CoreV1().Pods(ns).Get(c.Context(), name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("still there: %w", err)
	})
}

// testNodeGone: the pods of a deleted node go too, and who waits for their end sees it.
func testNodeGone(t *testing.T, c *cluster) {
	ns := c.namespace(t, "node-gone")
	c.silentNode("gone")
	c.podOn(ns, "plain", "gone")
	c.podOn(ns, "held", "gone", func(p *corev1.Pod) { p.Finalizers = []string{"test.strake.io/held"} })
	if err := c.client.CoreV1().Nodes().Delete(t.Context(), "gone", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.noPod(ns, "plain")
	c.eventually("a pod that has failed", func() error {
		p, err := c.client.CoreV1().Pods(ns).Get(t.Context(), "held", metav1.GetOptions{})
		if err == nil && (p.DeletionTimestamp == nil || p.Status.Phase != corev1.PodFailed) {
			err = fmt.Errorf("deleted %v, status %+v", p.DeletionTimestamp, p.Status)
		}
		return err
	})
	if _, err := c.client.CoreV1().Pods(ns).Patch(t.Context(), "held", types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	c.noPod(ns, "held")
	// A pod that is bound to a node which never was.
	c.podOn(ns, "lost", "never")
	c.noPod(ns, "lost")
}

// testTaint: a taint that a user sets moves pods away when they don't tolerate it any longer.
func testTaint(t *testing.T, c *cluster) {
	ns := c.namespace(t, "taint")
	c.silentNode("tainted")
	soon, never := int64(1), corev1.Toleration{Operator: corev1.TolerationOpExists}
	for name, tolerations := range map[string][]corev1.Toleration{
		"now": nil, "soon": {{Key: "test.strake.io/leave", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: &soon}}, "never": {never},
	} {
		c.podOn(ns, name, "tainted", func(p *corev1.Pod) {
			p.Spec.Tolerations = append(tolerations, corev1.Toleration{Key: "node.kubernetes.io/not-ready", Operator: corev1.TolerationOpExists})
			p.Finalizers = []string{"test.strake.io/held"} // a node without a kubelet lets pods go at once
		})
	}
	patch := `{"spec":{"taints":[{"key":"test.strake.io/leave","effect":"NoExecute"}]}}`
	if _, err := c.client.CoreV1().Nodes().Patch(t.Context(), "tainted", types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	leaving := func(name string) error {
		p, err := c.client.CoreV1().Pods(ns).Get(t.Context(), name, metav1.GetOptions{})
		if err == nil && p.DeletionTimestamp == nil {
			err = fmt.Errorf("it stays: %+v", p.Status)
		}
		return err
	}
	for _, name := range []string{"now", "soon"} {
		c.eventually("pod "+name+" leaves", func() error { return leaving(name) })
	}
	if leaving("never") == nil {
		t.Error("a pod that tolerates everything is made to leave")
	}
	if err := c.client.CoreV1().Nodes().Delete(t.Context(), "tainted", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

func testNamespace(t *testing.T, c *cluster) {
	ns := c.namespace(t, "doomed")
	c.eventually("root CA", func() error {
		cm, err := c.client.CoreV1().ConfigMaps(ns).Get(t.Context(), "kube-root-ca.crt", metav1.GetOptions{})
		if err == nil && cm.Data["ca.crt"] != string(c.server.Admin.CAData) {
			err = fmt.Errorf("data %v", cm.Data)
		}
		return err
	})
	if _, err := c.client.AppsV1().Deployments(ns).Create(t.Context(), deployment(ns, "web", 2), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.client.BatchV1().Jobs(ns).Create(t.Context(), job(ns, "work", "", 1, 1, 0), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.deployed(ns, "web", "1")
	if err := c.client.CoreV1().Namespaces().Delete(t.Context(), ns, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.eventually("no namespace", func() error {
		got, err := c.client.CoreV1().Namespaces().Get(t.Context(), ns, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("status %+v, %w", got.Status, err)
	})
}

func testForeground(t *testing.T, c *cluster) {
	ns := c.namespace(t, "foreground")
	if _, err := c.client.AppsV1().Deployments(ns).Create(t.Context(), deployment(ns, "web", 2), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.deployed(ns, "web", "1")
	foreground := metav1.DeletePropagationForeground
	if err := c.client.AppsV1().Deployments(ns).Delete(t.Context(), "web", metav1.DeleteOptions{PropagationPolicy: &foreground}); err != nil {
		t.Fatal(err)
	}
	c.eventually("no Deployment", func() error {
		_, err := c.client.AppsV1().Deployments(ns).Get(t.Context(), "web", metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("still there: %w", err)
	})
	// The owner goes last.
	pods, err := c.client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{})
	if err != nil || len(pods.Items) > 0 {
		t.Errorf("%d pods outlived their owner, %v", len(pods.Items), err)
	}
}

func testOrphan(t *testing.T, c *cluster) {
	ns := c.namespace(t, "orphan")
	if _, err := c.client.AppsV1().Deployments(ns).Create(t.Context(), deployment(ns, "web", 2), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	d := c.deployed(ns, "web", "1")
	orphan := metav1.DeletePropagationOrphan
	if err := c.client.AppsV1().Deployments(ns).Delete(t.Context(), "web", metav1.DeleteOptions{PropagationPolicy: &orphan}); err != nil {
		t.Fatal(err)
	}
	c.eventually("an orphaned ReplicaSet", func() error {
		l, err := c.client.AppsV1().ReplicaSets(ns).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		if len(l.Items) != 1 || len(l.Items[0].OwnerReferences) > 0 {
			return fmt.Errorf("sets %+v", l.Items)
		}
		if _, err := c.client.AppsV1().Deployments(ns).Get(t.Context(), "web", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return fmt.Errorf("the Deployment is still there: %w", err)
		}
		return nil
	})
	// A new Deployment of the same selector takes it over.
	d.ResourceVersion, d.UID = "", ""
	if _, err := c.client.AppsV1().Deployments(ns).Create(t.Context(), d, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.deployed(ns, "web", "1")
	l, err := c.client.AppsV1().ReplicaSets(ns).List(t.Context(), metav1.ListOptions{})
	if err != nil || len(l.Items) != 1 || len(l.Items[0].OwnerReferences) != 1 {
		t.Errorf("ReplicaSets after adoption: %+v, %v", l.Items, err)
	}
}
