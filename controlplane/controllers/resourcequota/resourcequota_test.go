package resourcequota

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	kubetesting "k8s.io/client-go/testing"

	"github.com/strake-io/strake/controlplane/apiserver/quota"
)

// bench is the controller beside caches that hold what a test put there; nothing else fills them.
type bench struct {
	*testing.T
	*controller
	client  *fake.Clientset
	factory informers.SharedInformerFactory
}

func newBench(t *testing.T, used string) *bench {
	t.Helper()
	q := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "q", ResourceVersion: "1"}, Spec: corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{"pods": resource.MustParse("9")}}}
	q.Status.Hard = q.Spec.Hard
	if used != "" {
		q.Status.Used = corev1.ResourceList{"pods": resource.MustParse(used)}
	}
	b := &bench{T: t, client: fake.NewClientset(q)}
	b.factory = informers.NewSharedInformerFactory(b.client, 0)
	var err error
	if b.controller, _, err = register(b.client, nil, b.factory, quota.Evaluators); err != nil {
		t.Fatal(err)
	}
	b.seeQuota(q)
	return b
}

func (b *bench) seeQuota(q *corev1.ResourceQuota) {
	b.Helper()
	if err := b.factory.Core().V1().ResourceQuotas().Informer().GetStore().Update(q); err != nil {
		b.Fatal(err)
	}
}

// see puts a pod into the caches, or takes it away, and tells the handlers, as an informer does.
func (b *bench) see(name string, phase corev1.PodPhase) {
	b.Helper()
	store, handlers := b.factory.Core().V1().Pods().Informer().GetStore(), b.handlers(corev1.SchemeGroupVersion.WithResource("pods"))
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, Status: corev1.PodStatus{Phase: phase}}
	old, had, err := store.Get(pod)
	switch {
	case err != nil:
	case phase == "":
		err = store.Delete(pod)
		handlers.OnDelete(old)
	case had:
		err = store.Update(pod)
		handlers.OnUpdate(old, pod)
	default:
		err = store.Add(pod)
		handlers.OnAdd(pod, false)
	}
	if err != nil {
		b.Fatal(err)
	}
}

// settle reconciles, lets the cache see the outcome, and compares it.
func (b *bench) settle(why, want string) {
	b.Helper()
	if err := b.reconcile(b.Context(), "ns", "q"); err != nil {
		b.Fatal(err)
	}
	q, err := b.client.CoreV1().ResourceQuotas("ns").Get(b.Context(), "q", metav1.GetOptions{})
	if err != nil {
		b.Fatal(err)
	}
	b.seeQuota(q)
	if have := q.Status.Used["pods"]; have.String() != want {
		b.Errorf("%s: %s pods are used, want %s", why, &have, want)
	}
}

// What admission charged stays charged though no cache has seen it yet; what is seen to go is free at once, and once only.
func TestChargesOnTheirWay(t *testing.T) {
	b := newBench(t, "3")
	b.see("a", corev1.PodRunning)
	b.see("b", corev1.PodRunning)
	b.settle("the third is on its way", "3")
	b.see("a", corev1.PodSucceeded)
	b.settle("one ended", "2")
	b.see("a", "")
	b.settle("it was deleted", "2")
	b.see("b", "")
	b.settle("another was deleted", "1")
	b.settle("nothing happened", "1")
	b.see("quick", corev1.PodRunning)
	b.see("c", corev1.PodRunning)
	b.see("d", corev1.PodRunning)
	b.settle("more are there than were charged", "3")
	b.see("quick", "")
	b.settle("one of them went", "2")
}

// A charge for an object that never came is found when nobody has charged the quota for long enough.
func TestLostCharges(t *testing.T) {
	b := newBench(t, "3")
	b.see("a", corev1.PodRunning)
	b.settle("two may be on their way", "3")
	b.controller.settled = 0
	b.settle("none can be", "1")
}

func TestFirstCount(t *testing.T) {
	b := newBench(t, "")
	b.see("a", corev1.PodRunning)
	b.see("b", corev1.PodRunning)
	b.see("b", "")
	b.settle("what went before the first count", "1")
	b.settle("counts for nothing after it", "1")
}

// A credit outlives a write that fails, and isn't spent against figures that are old.
func TestCreditOfFailedWrite(t *testing.T) {
	b := newBench(t, "2")
	b.see("a", corev1.PodRunning)
	b.see("b", corev1.PodRunning)
	b.see("b", "")
	b.see("c", corev1.PodRunning) // charged, but the quota here is from before: its figure looks right
	refuse := true
	b.client.PrependReactor("update", "resourcequotas", func(kubetesting.Action) (bool, runtime.Object, error) {
		return refuse, nil, apierrors.NewConflict(corev1.Resource("resourcequotas"), "q", fmt.Errorf("it was changed"))
	})
	if err := b.reconcile(t.Context(), "ns", "q"); !apierrors.IsConflict(err) {
		t.Errorf("%v, want a conflict", err)
	}
	refuse = false
	q, err := b.client.CoreV1().ResourceQuotas("ns").Get(t.Context(), "q", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	q.Status.Used["pods"] = resource.MustParse("3")
	b.seeQuota(q)
	b.settle("after the charge was seen", "2")
}
