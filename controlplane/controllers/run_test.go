package controllers_test

import (
	"fmt"
	"net/netip"
	"testing"

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
	t.Run("identities", func(t *testing.T) { testIdentities(t, c) })
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
