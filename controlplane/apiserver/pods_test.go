package apiserver_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/watch"
)

func testBinding(a *api) {
	api, ctx := a.client.CoreV1().Pods(a.ns), a.Context()
	made := a.makePod("p")
	bind := func(pod string, change ...func(*corev1.Binding)) error {
		b := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: pod, Annotations: map[string]string{"why": "test"}}, Target: corev1.ObjectReference{Kind: "Node", Name: "n1"}}
		for _, f := range change {
			f(b)
		}
		return api.Bind(ctx, b, metav1.CreateOptions{})
	}
	a.refused(bind("nosuch"), 404)
	a.refused(bind("p", func(b *corev1.Binding) { b.Target.Name = "" }), 422, "target.name")
	a.refused(bind("p", func(b *corev1.Binding) { b.Target.Kind = "Pod" }), 422, "target.kind")
	a.refused(bind("p", func(b *corev1.Binding) { b.UID = "another" }), 409)
	if err := bind("p", func(b *corev1.Binding) { b.UID = made.UID }); err != nil {
		a.Fatal(err)
	}
	got := must(api.Get(ctx, "p", metav1.GetOptions{}))(a)
	if got.Spec.NodeName != "n1" || got.Annotations["why"] != "test" {
		a.Errorf("bound to %q, annotations %v", got.Spec.NodeName, got.Annotations)
	}
	if c := got.Status.Conditions; len(c) != 1 || c[0].Type != corev1.PodScheduled || c[0].Status != corev1.ConditionTrue {
		a.Errorf("conditions %+v", c)
	}
	a.refused(bind("p", func(b *corev1.Binding) { b.Target.Name = "n2" }), 409)

	gated := a.makePod("gated", func(p *corev1.Pod) {
		p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "test.strake.io/wait"}}
	})
	if c := gated.Status.Conditions; len(c) != 1 || c[0].Reason != corev1.PodReasonSchedulingGated {
		a.Errorf("conditions of a gated pod %+v", c)
	}
	a.refused(bind("gated"), 409)
	must(api.Patch(ctx, "gated", types.MergePatchType, []byte(`{"spec":{"schedulingGates":null}}`), metav1.PatchOptions{}))(a)
	if err := bind("gated"); err != nil {
		a.Error(err)
	}

	// A pod's spec doesn't change but for what the API's documentation names.
	for _, test := range []struct{ name, patch, field string }{
		{"its node", `{"spec":{"nodeName":"n2"}}`, "spec"},
		{"another container", `{"spec":{"containers":[{"name":"c","image":"i"},{"name":"d","image":"i"}]}}`, "spec.containers"},
		{"its policy", `{"spec":{"restartPolicy":"Never"}}`, "spec"},
		{"its image", `{"spec":{"containers":[{"name":"c","image":"j"}]}}`, ""},
		{"a deadline", `{"spec":{"activeDeadlineSeconds":100}}`, ""},
		{"a later deadline", `{"spec":{"activeDeadlineSeconds":200}}`, "spec.activeDeadlineSeconds"},
	} {
		a.Run(test.name, func(t *testing.T) {
			_, err := api.Patch(ctx, "p", types.StrategicMergePatchType, []byte(test.patch), metav1.PatchOptions{})
			if test.field == "" && err != nil {
				t.Error(err)
			} else if test.field != "" {
				a.in(t).refused(err, 422, test.field)
			}
		})
	}
}

func testEviction(a *api) {
	api, budgets, ctx := a.client.CoreV1().Pods(a.ns), a.client.PolicyV1().PodDisruptionBudgets(a.ns), a.Context()
	for _, name := range []string{"p1", "p2", "sick", "free", "pending"} {
		pod := a.makePod(name, func(p *corev1.Pod) {
			p.Spec.NodeName = "n1"
			if name != "free" {
				p.Labels = map[string]string{"app": "web"}
			}
		})
		if name == "pending" {
			continue
		}
		pod.Status.Phase = corev1.PodRunning
		if name != "sick" {
			pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		}
		must(api.UpdateStatus(ctx, pod, metav1.UpdateOptions{}))(a)
	}
	one := intstr.FromInt32(1)
	budget := must(budgets.Create(ctx, &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: policyv1.PodDisruptionBudgetSpec{
		MinAvailable: &one, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
	}}, metav1.CreateOptions{}))(a)
	evict := func(name string, dry ...string) error {
		e := &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: name}, DeleteOptions: &metav1.DeleteOptions{DryRun: dry}}
		return a.client.CoreV1().RESTClient().Post().MaxRetries(0).Namespace(a.ns).Resource("pods").Name(name).SubResource("eviction").Body(e).Do(ctx).Error()
	}
	goes := func(name string, want bool) {
		a.Helper()
		if got := must(api.Get(ctx, name, metav1.GetOptions{}))(a); (got.DeletionTimestamp != nil) != want {
			a.Errorf("pod %s has the deletion timestamp %v", name, got.DeletionTimestamp)
		}
	}
	a.refused(evict("nosuch"), 404)
	// Nobody has counted yet.
	err := evict("p1")
	if after, told := apierrors.SuggestsClientDelay(err); !apierrors.IsTooManyRequests(err) || !told || after != 10 {
		a.Errorf("before the controller saw the budget: %v, to be tried again after %d s", err, after)
	}
	budget.Status = policyv1.PodDisruptionBudgetStatus{ObservedGeneration: budget.Generation, DisruptionsAllowed: 1, CurrentHealthy: 2, DesiredHealthy: 1, ExpectedPods: 2}
	must(budgets.UpdateStatus(ctx, budget, metav1.UpdateOptions{}))(a)
	if err := evict("p1", metav1.DryRunAll); err != nil {
		a.Error(err)
	}
	goes("p1", false)
	if err := evict("p1"); err != nil {
		a.Error(err)
	}
	goes("p1", true)
	spent := must(budgets.Get(ctx, "web", metav1.GetOptions{}))(a)
	if _, noted := spent.Status.DisruptedPods["p1"]; !noted || spent.Status.DisruptionsAllowed != 0 {
		a.Errorf("status of the budget %+v", spent.Status)
	}
	err = evict("p2")
	a.refused(err, 429, "")
	if after, told := apierrors.SuggestsClientDelay(err); told {
		a.Errorf("a client waits %d s for a budget that is spent", after)
	}
	if !apierrors.HasStatusCause(err, policyv1.DisruptionBudgetCause) {
		a.Errorf("no cause: %v", err)
	}
	goes("p2", false)
	// What was counted for another budget than this counts for nothing; pods that are not ready may go if enough others are.
	changed := must(budgets.Patch(ctx, "web", types.MergePatchType, []byte(`{"spec":{"minAvailable":2}}`), metav1.PatchOptions{}))(a)
	changed.Status.DisruptionsAllowed = 1
	changed = must(budgets.UpdateStatus(ctx, changed, metav1.UpdateOptions{}))(a)
	if err := evict("p2"); !apierrors.IsTooManyRequests(err) || !strings.Contains(fmt.Sprint(apierrors.StatusCause(err, policyv1.DisruptionBudgetCause)), "still being processed") {
		a.Errorf("before the controller saw the change: %v", err)
	}
	changed.Status = policyv1.PodDisruptionBudgetStatus{ObservedGeneration: changed.Generation, CurrentHealthy: 2, DesiredHealthy: 2, ExpectedPods: 3}
	must(budgets.UpdateStatus(ctx, changed, metav1.UpdateOptions{}))(a)
	if err := evict("sick"); err != nil {
		a.Errorf("a pod that is not ready: %v", err)
	}
	goes("sick", true)
	for _, name := range []string{"free", "pending"} {
		if err := evict(name); err != nil {
			a.Errorf("pod %s, that no budget is about: %v", name, err)
		}
		goes(name, true)
	}
	// Two budgets can't be asked together.
	must(budgets.Create(ctx, &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Name: "all"}, Spec: policyv1.PodDisruptionBudgetSpec{
		MinAvailable: &one, Selector: &metav1.LabelSelector{},
	}}, metav1.CreateOptions{}))(a)
	a.refused(evict("p2"), 500, "")
}

func testGracefulDelete(a *api) {
	api, ctx := a.client.CoreV1().Pods(a.ns), a.Context()
	w := must(api.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=bound"}))(a)
	defer w.Stop()
	a.makePod("bound", func(p *corev1.Pod) { p.Spec.NodeName = "n1" })
	drop := func(name string, grace *int64) {
		a.Helper()
		if err := api.Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: grace}); err != nil {
			a.Error(err)
		}
	}
	grace := func(n int64) *int64 { return &n }
	drop("bound", nil)
	got := must(api.Get(ctx, "bound", metav1.GetOptions{}))(a)
	if got.DeletionGracePeriodSeconds == nil || *got.DeletionGracePeriodSeconds != 30 || got.DeletionTimestamp == nil {
		a.Fatalf("deletion %v after %v", got.DeletionTimestamp, got.DeletionGracePeriodSeconds)
	}
	first := got.DeletionTimestamp.Time
	drop("bound", grace(60)) // no longer
	drop("bound", grace(5))  // but sooner
	got = must(api.Get(ctx, "bound", metav1.GetOptions{}))(a)
	if *got.DeletionGracePeriodSeconds != 5 || !got.DeletionTimestamp.Time.Before(first) {
		a.Errorf("deletion %v after %v", got.DeletionTimestamp, *got.DeletionGracePeriodSeconds)
	}
	// The kubelet's last word.
	drop("bound", grace(0))
	if _, err := api.Get(ctx, "bound", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		a.Errorf("after the kubelet is done: %v", err)
	}
	var seen []watch.EventType
	for e := range w.ResultChan() {
		seen = append(seen, e.Type)
		if e.Type == watch.Deleted {
			break
		}
	}
	// The last modification tells the grace period of 0.
	if want := []watch.EventType{watch.Added, watch.Modified, watch.Modified, watch.Modified, watch.Deleted}; !slices.Equal(seen, want) {
		a.Errorf("events %v", seen)
	}

	// Where no kubelet has it, or it has ended, there is nothing to wait for.
	a.makePod("unbound")
	done := a.makePod("done", func(p *corev1.Pod) { p.Spec.NodeName = "n1" })
	done.Status.Phase = corev1.PodSucceeded
	must(api.UpdateStatus(ctx, done, metav1.UpdateOptions{}))(a)
	for _, name := range []string{"unbound", "done"} {
		drop(name, nil)
		if _, err := api.Get(ctx, name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			a.Errorf("pod %s is still there: %v", name, err)
		}
	}
}

func testEphemeral(a *api) {
	api, ctx := a.client.CoreV1().Pods(a.ns), a.Context()
	pod := a.makePod("p", func(p *corev1.Pod) { p.Spec.NodeName = "n1" })
	debug := func(name string, change ...func(*corev1.EphemeralContainer)) corev1.EphemeralContainer {
		c := corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: name, Image: "debug"}, TargetContainerName: "c"}
		for _, f := range change {
			f(&c)
		}
		return c
	}
	update := func(containers ...corev1.EphemeralContainer) (*corev1.Pod, error) {
		p := must(api.Get(ctx, "p", metav1.GetOptions{}))(a)
		p.Spec.EphemeralContainers = containers
		p.Spec.Containers[0].Image = "stealth"
		return api.UpdateEphemeralContainers(ctx, "p", p, metav1.UpdateOptions{})
	}
	got := must(update(debug("d1")))(a)
	if c := got.Spec.EphemeralContainers; len(c) != 1 || c[0].TerminationMessagePolicy == "" || c[0].ImagePullPolicy != corev1.PullAlways {
		a.Errorf("containers %+v", c)
	}
	if got.Spec.Containers[0].Image != "i" || got.Generation != pod.Generation+1 {
		a.Errorf("image %s, generation %d after %d", got.Spec.Containers[0].Image, got.Generation, pod.Generation)
	}
	first := got.Spec.EphemeralContainers[0]
	for _, test := range []struct {
		name       string
		containers []corev1.EphemeralContainer
		fields     []string
	}{
		{"removed", nil, []string{"spec.ephemeralContainers"}},
		{"changed", []corev1.EphemeralContainer{debug("d1", func(c *corev1.EphemeralContainer) { c.Image = "other" })}, []string{"spec.ephemeralContainers"}},
		{"a name that is taken", []corev1.EphemeralContainer{first, debug("c")}, []string{"spec.ephemeralContainers[1].name"}},
		{"with a port", []corev1.EphemeralContainer{first, debug("d2", func(c *corev1.EphemeralContainer) { c.Ports = []corev1.ContainerPort{{ContainerPort: 1}} })}, []string{"spec.ephemeralContainers[1].ports"}},
		{"beside nothing", []corev1.EphemeralContainer{first, debug("d2", func(c *corev1.EphemeralContainer) { c.TargetContainerName = "z" })}, []string{"spec.ephemeralContainers[1].targetContainerName"}},
		{"without image", []corev1.EphemeralContainer{first, debug("d2", func(c *corev1.EphemeralContainer) { c.Image = "" })}, []string{"spec.ephemeralContainers[1].image"}},
	} {
		a.Run(test.name, func(t *testing.T) {
			_, err := update(test.containers...)
			a.in(t).refused(err, 422, test.fields...)
		})
	}
	// As kubectl debug does it.
	patched := must(api.Patch(ctx, "p", types.StrategicMergePatchType, []byte(`{"spec":{"ephemeralContainers":[{"name":"d2","image":"debug:1"}]}}`), metav1.PatchOptions{}, "ephemeralcontainers"))(a)
	if c := patched.Spec.EphemeralContainers; len(c) != 2 {
		a.Errorf("containers %+v", c)
	}
}
