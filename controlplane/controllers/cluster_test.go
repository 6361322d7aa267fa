package controllers_test

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/controlplane/apiserver"
	"github.com/strake-io/strake/controlplane/apiserver/apiservertest"
	"github.com/strake-io/strake/controlplane/apiserver/quota"
	"github.com/strake-io/strake/controlplane/controllers"
)

// cluster is an API server with all controllers and a node whose kubelet only pretends.
type cluster struct {
	*testing.T
	server *apiservertest.Server
	client kubernetes.Interface
	audit  auditLog
}

const (
	nodeName = "hollow-0"
	// outcome is the label by which a test says how the containers of a pod end; without it they run on.
	outcome = "test.strake.io/outcome"
	// unready is the label that keeps a pod from becoming ready.
	unready = "test.strake.io/unready"
)

func start(t *testing.T) *cluster {
	t.Helper()
	audit := auditLog(filepath.Join(t.TempDir(), "audit.log"))
	server := apiservertest.Start(t, func(c *apiserver.Config) {
		c.ServiceCIDRs = append(c.ServiceCIDRs, netip.MustParsePrefix("fd00:10:96::/112"))
		c.Settings = audit.settings(t)
	})
	client, err := kubernetes.NewForConfig(server.Admin)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- controllers.Run(ctx, controllers.Config{
			API: server.As(t, user.KubeControllerManager), Metrics: serveMetrics(t), PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/56")}, CAFile: server.CAFile, CAKeyFile: server.CAKeyFile, Server: server.Admin.Host,
			Quota: quota.Evaluators,
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("controllers: %v", err)
		}
	})
	c := &cluster{T: t, server: server, client: client, audit: audit}
	c.hollowNode(ctx, nodeName)
	return c
}

// hollowNode registers a node and plays scheduler and kubelet for it.
func (c *cluster) hollowNode(ctx context.Context, name string) {
	c.Helper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}}}
	made, err := c.client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{})
	if err != nil {
		c.Fatal(err)
	}
	made.Status.Allocatable = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("8"), corev1.ResourceMemory: resource.MustParse("16Gi"), corev1.ResourcePods: resource.MustParse("500")}
	made.Status.Capacity = made.Status.Allocatable
	made.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady", LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now()}}
	if _, err := c.client.CoreV1().Nodes().UpdateStatus(ctx, made, metav1.UpdateOptions{}); err != nil {
		c.Fatal(err)
	}
	c.renew(ctx, name)
	f := informers.NewSharedInformerFactory(c.client, 0)
	inf := f.Core().V1().Pods()
	q := workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[string]())
	add := func(obj any) {
		if key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(obj); err == nil {
			q.Add(key)
		}
	}
	if _, err := inf.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: add, UpdateFunc: func(_, o any) { add(o) }}); err != nil {
		c.Fatal(err)
	}
	f.Start(ctx.Done())
	go func() {
		<-ctx.Done()
		q.ShutDown()
	}()
	go func() {
		for {
			key, quit := q.Get()
			if quit {
				return
			}
			ns, podName, _ := cache.SplitMetaNamespaceKey(key)
			if p, err := inf.Lister().Pods(ns).Get(podName); err == nil {
				if err := c.runPod(ctx, p.DeepCopy(), name); err != nil {
					q.AddRateLimited(key)
				}
			}
			q.Done(key)
		}
	}()
}

// runPod makes one step in the life of a pod.
func (c *cluster) runPod(ctx context.Context, p *corev1.Pod, node string) error {
	api := c.client.CoreV1().Pods(p.Namespace)
	switch {
	case p.Spec.NodeName == "" && p.DeletionTimestamp == nil && len(p.Spec.SchedulingGates) == 0:
		return api.Bind(ctx, &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: p.Name}, Target: corev1.ObjectReference{Kind: "Node", Name: node}}, metav1.CreateOptions{})
	case p.Spec.NodeName != node:
		return nil
	case p.DeletionTimestamp != nil:
		if p.Status.Phase == corev1.PodRunning || p.Status.Phase == corev1.PodPending {
			p.Status.Phase = corev1.PodFailed
			if _, err := api.UpdateStatus(ctx, p, metav1.UpdateOptions{}); err != nil {
				return err
			}
		}
		zero := int64(0)
		return api.Delete(ctx, p.Name, metav1.DeleteOptions{GracePeriodSeconds: &zero, Preconditions: metav1.NewUIDPreconditions(string(p.UID))})
	case p.Status.Phase == corev1.PodPending || p.Status.Phase == "":
		now := metav1.Now()
		p.Status.Phase = corev1.PodRunning
		p.Status.PodIP = fmt.Sprintf("10.244.%d.%d", 1+len(p.Name)%200, 1+int(p.Name[len(p.Name)-1]))
		p.Status.PodIPs = []corev1.PodIP{{IP: p.Status.PodIP}, {IP: "fd00:10:244::" + strings.ReplaceAll(strings.TrimPrefix(p.Status.PodIP, "10.244."), ".", ":")}}
		p.Status.StartTime = &now
		if p.Labels[unready] == "" {
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: now}}
		}
		switch p.Labels[outcome] {
		case "succeed":
			p.Status.Phase = corev1.PodSucceeded
		case "fail":
			p.Status.Phase = corev1.PodFailed
		}
		if p.Status.Phase != corev1.PodRunning {
			p.Status.Conditions = nil
		}
		_, err := api.UpdateStatus(ctx, p, metav1.UpdateOptions{})
		return err
	}
	return nil
}

// renew writes the node's Lease, and goes on until ctx ends.
func (c *cluster) renew(ctx context.Context, name string) {
	c.Helper()
	api := c.client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	now, seconds := metav1.NowMicro(), int32(40)
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: coordinationv1.LeaseSpec{HolderIdentity: &name, RenewTime: &now, LeaseDurationSeconds: &seconds}}
	c.eventually("Lease of "+name, func() error {
		_, err := api.Create(ctx, lease, metav1.CreateOptions{})
		return err
	})
	go wait.UntilWithContext(ctx, func(ctx context.Context) {
		renewed := fmt.Sprintf(`{"spec":{"renewTime":%q}}`, time.Now().UTC().Format(metav1.RFC3339Micro))
		if _, err := api.Patch(ctx, name, types.MergePatchType, []byte(renewed), metav1.PatchOptions{}); err != nil && ctx.Err() == nil {
			klog.ErrorS(err, "The hollow node can't renew its Lease")
		}
	}, 5*time.Second)
}

// namespace makes a namespace for one subtest.
func (c *cluster) namespace(t *testing.T, name string) string {
	t.Helper()
	if _, err := c.client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.on(t).eventually("default ServiceAccount in "+name, func() error {
		_, err := c.client.CoreV1().ServiceAccounts(name).Get(t.Context(), "default", metav1.GetOptions{})
		return err
	})
	return name
}

// on is the cluster for a subtest.
func (c *cluster) on(t *testing.T) *cluster {
	return &cluster{T: t, server: c.server, client: c.client, audit: c.audit}
}

// eventually repeats f until it returns no error; the limit is only there so that a broken controller fails the test.
func (c *cluster) eventually(what string, f func() error) {
	c.Helper()
	deadline := time.Now().Add(5 * time.Minute)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			c.Fatalf("%s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func podTemplate(labels map[string]string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: labels},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "example.test/main:1"}}},
	}
}
