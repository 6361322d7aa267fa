package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/strake-io/strake/controlplane/controllers/queue"
)

func node(name string, change ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name)}, Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}}}
	for _, f := range change {
		f(n)
	}
	return n
}

func pod(name, node string, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name)}, Spec: corev1.PodSpec{NodeName: node},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
	}
	for _, f := range change {
		f(p)
	}
	return p
}

// lab is a controller whose caches hold what a test puts into them.
type lab struct {
	*testing.T
	*controller
	client *fake.Clientset
	store  cache.Store // of Nodes
}

// newLab makes a controller with one range of pods, enough for one node.
func newLab(t *testing.T, objects ...runtime.Object) *lab {
	t.Helper()
	client := fake.NewClientset(objects...)
	f := informers.NewSharedInformerFactory(client, 0)
	nodes := f.Core().V1().Nodes()
	pods := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{nodeIndex: func(obj any) ([]string, error) { return []string{obj.(*corev1.Pod).Spec.NodeName}, nil }})
	sub, err := newSubnets(prefixes("10.0.0.0/24"), nil)
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{T: t, client: client, store: nodes.Informer().GetStore(), controller: &controller{
		client: client, collector: client, nodes: nodes.Lister(), pods: pods, recorder: record.NewFakeRecorder(100), queue: queue.New("test"), subnets: sub,
		heard: map[string]sighting{}, tainted: map[string]map[corev1.Taint]time.Time{},
	}}
	for _, o := range objects {
		switch o := o.(type) {
		case *corev1.Node:
			err = l.store.Add(o)
		case *corev1.Pod:
			err = pods.Add(o)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return l
}

// step reconciles a node and shows the caches what came of it.
func (l *lab) step(name string) error {
	err := l.reconcile(l.Context(), "", name)
	if n, err := l.client.CoreV1().Nodes().Get(l.Context(), name, metav1.GetOptions{}); err == nil {
		if err := l.store.Update(n); err != nil {
			l.Fatal(err)
		}
	}
	return err
}

func (l *lab) must(name string) *corev1.Node {
	l.Helper()
	if err := l.step(name); err != nil {
		l.Fatal(err)
	}
	n, err := l.nodes.Get(name)
	if err != nil {
		l.Fatal(err)
	}
	return n
}

func (l *lab) pod(name string) *corev1.Pod {
	l.Helper()
	p, err := l.client.CoreV1().Pods("ns").Get(l.Context(), name, metav1.GetOptions{})
	if err != nil {
		l.Fatal(err)
	}
	return p
}

func condition(n *corev1.Node, kind corev1.NodeConditionType) string {
	for _, c := range n.Status.Conditions {
		if c.Type == kind {
			return fmt.Sprint(c.Status, " ", c.Reason)
		}
	}
	return ""
}

func tainted(n *corev1.Node, key string, e corev1.TaintEffect) bool {
	for _, t := range n.Spec.Taints {
		if t.Key == key && t.Effect == e {
			return true
		}
	}
	return false
}

// A node without a part of the pod range says so, takes no pods, and gets the part of one that goes.
func TestRangeIsUsedUp(t *testing.T) {
	l := newLab(t, node("a"), node("b"))
	if n := l.must("a"); n.Spec.PodCIDR != "10.0.0.0/24" || condition(n, corev1.NodeNetworkUnavailable) != "" {
		t.Fatalf("node a: %+v", n)
	}
	l.must("b")
	if n := l.must("b"); n.Spec.PodCIDR != "" || condition(n, corev1.NodeNetworkUnavailable) != "True CIDRNotAvailable" || !tainted(n, corev1.TaintNodeNetworkUnavailable, corev1.TaintEffectNoSchedule) {
		t.Fatalf("node b: %+v", n)
	}
	events := len(l.recorder.(*record.FakeRecorder).Events)
	if events == 0 {
		t.Error("no event")
	}
	if err := l.client.CoreV1().Nodes().Delete(t.Context(), "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := l.store.Delete(node("a")); err != nil {
		t.Fatal(err)
	}
	if err := l.step("a"); err != nil {
		t.Fatal(err)
	}
	// The queue has the one that waited.
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	l.queue.Run(ctx, 1, func(_ context.Context, _, name string) error {
		if name == "b" {
			cancel()
		}
		return nil
	})
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		t.Fatal("nobody looks at node b again")
	}
	l.must("b")
	if n := l.must("b"); n.Spec.PodCIDR != "10.0.0.0/24" || condition(n, corev1.NodeNetworkUnavailable) != "False CIDRNotAvailable" || tainted(n, corev1.TaintNodeNetworkUnavailable, corev1.TaintEffectNoSchedule) {
		t.Errorf("node b: %+v", n)
	}
}

// The pods of a node that fell silent are no endpoints any more, even if writing that takes several tries.
func TestSilence(t *testing.T) {
	stays := func(p *corev1.Pod) { p.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}} }
	l := newLab(t, node("a", func(n *corev1.Node) {
		n.Status.Conditions = append(n.Status.Conditions, corev1.NodeCondition{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionFalse})
	}), pod("p", "a", stays), pod("q", "a", stays))
	l.must("a")
	if p := l.pod("p"); p.Status.Conditions[0].Status != corev1.ConditionTrue {
		t.Fatal("a pod of a node that may still speak")
	}
	l.heard["a"] = sighting{at: time.Now().Add(-2 * gracePeriod)}
	refused := false
	l.client.PrependReactor("update", "pods", func(a clienttesting.Action) (bool, runtime.Object, error) {
		if p := a.(clienttesting.UpdateAction).GetObject().(*corev1.Pod); p.Name == "p" && !refused {
			refused = true
			return true, nil, apierrors.NewConflict(corev1.Resource("pods"), "p", errors.New("it changed"))
		}
		return false, nil, nil
	})
	if err := l.step("a"); err == nil {
		t.Error("a conflict is success")
	}
	if p := l.pod("q"); p.Status.Conditions[0].Status != corev1.ConditionFalse {
		t.Error("one pod's conflict keeps another ready")
	}
	n := l.must("a")
	if p := l.pod("p"); p.Status.Conditions[0].Status != corev1.ConditionFalse || p.Status.Conditions[0].Reason != "NodeNotReady" {
		t.Errorf("pod %+v", p.Status)
	}
	if condition(n, corev1.NodeReady) != "Unknown NodeStatusUnknown" || condition(n, corev1.NodeNetworkUnavailable) != "False " || !tainted(n, corev1.TaintNodeUnreachable, corev1.TaintEffectNoExecute) {
		t.Errorf("node %+v %+v", n.Status.Conditions, n.Spec.Taints)
	}
}

// A pod is an orphan when the API says so, not when the cache does not know its node yet.
func TestOrphans(t *testing.T) {
	l := newLab(t, pod("p", "a"), pod("done", "a", func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }))
	if _, err := l.client.CoreV1().Nodes().Create(t.Context(), node("a"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := l.reconcile(t.Context(), "", "a"); err != nil {
		t.Fatal(err)
	}
	l.pod("p")
	if err := l.client.CoreV1().Nodes().Delete(t.Context(), "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	phases := map[string]corev1.PodPhase{}
	l.client.PrependReactor("delete", "pods", func(a clienttesting.Action) (bool, runtime.Object, error) {
		d := a.(clienttesting.DeleteActionImpl)
		obj, err := l.client.Tracker().Get(corev1.SchemeGroupVersion.WithResource("pods"), "ns", d.Name)
		if err != nil {
			return true, nil, err
		}
		p := obj.(*corev1.Pod)
		phases[d.Name] = p.Status.Phase
		if g := d.DeleteOptions.GracePeriodSeconds; g == nil || *g != 0 {
			t.Errorf("grace of %s: %v", d.Name, g)
		}
		if !slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.DisruptionTarget && c.Reason == "DeletionByPodGC"
		}) {
			t.Errorf("conditions of %s: %+v", d.Name, p.Status.Conditions)
		}
		return false, nil, nil
	})
	if err := l.reconcile(t.Context(), "", "a"); err != nil {
		t.Fatal(err)
	}
	if len(phases) != 2 || phases["p"] != corev1.PodFailed || phases["done"] != corev1.PodSucceeded {
		t.Errorf("deleted as %v", phases)
	}
}

func TestEvictIn(t *testing.T) {
	now := time.Now()
	taint := func(key string, ago time.Duration) corev1.Taint {
		return corev1.Taint{Key: key, Effect: corev1.TaintEffectNoExecute, TimeAdded: &metav1.Time{Time: now.Add(-ago)}}
	}
	tolerate := func(key string, seconds ...int64) corev1.Toleration {
		t := corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists}
		if len(seconds) > 0 {
			t.TolerationSeconds = &seconds[0]
		}
		return t
	}
	for name, test := range map[string]struct {
		tolerations []corev1.Toleration
		taints      []corev1.Taint
		left        time.Duration
		must        bool
	}{
		"not tolerated":               {nil, []corev1.Taint{taint("a", 0)}, 0, true},
		"tolerated":                   {[]corev1.Toleration{tolerate("a")}, []corev1.Taint{taint("a", 0)}, 0, false},
		"everything is tolerated":     {[]corev1.Toleration{tolerate("")}, []corev1.Taint{taint("a", 0), taint("b", 0)}, 0, false},
		"for a while":                 {[]corev1.Toleration{tolerate("a", 60)}, []corev1.Taint{taint("a", 20*time.Second)}, 40 * time.Second, true},
		"the shorter of two":          {[]corev1.Toleration{tolerate("a", 60), tolerate("b", 30)}, []corev1.Taint{taint("a", 0), taint("b", 0)}, 30 * time.Second, true},
		"one of two is not tolerated": {[]corev1.Toleration{tolerate("a", 60)}, []corev1.Taint{taint("a", 0), taint("b", 0)}, 0, true},
		"another effect":              {nil, []corev1.Taint{{Key: "a", Effect: corev1.TaintEffectNoSchedule}}, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			left, must := evictIn(pod("p", "n", func(p *corev1.Pod) { p.Spec.Tolerations = test.tolerations }), test.taints, now)
			if left != test.left || must != test.must {
				t.Errorf("%s, %t; want %s, %t", left, must, test.left, test.must)
			}
		})
	}
}

// Taints that people set don't say since when they are there.
func TestTaintWithoutTime(t *testing.T) {
	l := newLab(t)
	n := node("a", func(n *corev1.Node) { n.Spec.Taints = []corev1.Taint{{Key: "k", Effect: corev1.TaintEffectNoExecute}} })
	first := time.Now()
	for i := range 3 {
		got := l.dated(n, first.Add(time.Duration(i)*time.Minute))
		if len(got) != 1 || !got[0].TimeAdded.Time.Equal(first) {
			t.Errorf("look %d: %+v", i, got)
		}
	}
	l.dated(node("a"), first) // it was taken away
	later := first.Add(time.Hour)
	if got := l.dated(n, later); !got[0].TimeAdded.Time.Equal(later) {
		t.Errorf("a new taint: %+v", got)
	}
}
