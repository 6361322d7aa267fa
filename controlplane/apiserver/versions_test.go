package apiserver_test

import (
	"context"
	"fmt"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
)

// testVersions reads the past and the future: what resourceVersion and resourceVersionMatch mean. TestRestart sees what is left when the store forgets.
func testVersions(a *api) {
	api, ctx := a.client.CoreV1().ConfigMaps(a.ns), a.Context()
	first := must(api.Create(ctx, configMap("first", nil), metav1.CreateOptions{}))(a).ResourceVersion
	must(api.Create(ctx, configMap("second", nil), metav1.CreateOptions{}))(a)
	must(api.Create(ctx, configMap("third", nil), metav1.CreateOptions{}))(a)
	now := must(api.List(ctx, metav1.ListOptions{}))(a).ResourceVersion
	future := strconv.FormatUint(must(strconv.ParseUint(now, 10, 64))(a)+1_000_000, 10)
	// The library's client would try again by itself what comes too early.
	list := func(ctx context.Context, o metav1.ListOptions) (*corev1.ConfigMapList, error) {
		got := &corev1.ConfigMapList{}
		return got, a.client.CoreV1().RESTClient().Get().MaxRetries(0).Namespace(a.ns).Resource("configmaps").VersionedParams(&o, clientscheme.ParameterCodec).Do(ctx).Into(got)
	}
	const exact, notOlder = metav1.ResourceVersionMatchExact, metav1.ResourceVersionMatchNotOlderThan
	for _, test := range []struct {
		version string
		match   metav1.ResourceVersionMatch
		limit   int64
		items   int
		code    int32
	}{
		{"", "", 0, 3, 0}, {"0", "", 0, -1, 0}, {"0", notOlder, 0, -1, 0}, {now, "", 0, 3, 0}, {now, notOlder, 0, 3, 0}, {first, notOlder, 0, -1, 0}, {now, notOlder, 2, 2, 0},
		{first, exact, 0, 1, 0}, {first, exact, 1, 1, 0}, {first, "", 5, 1, 0}, // an old version and a limit mean that very version
		{"", exact, 0, 0, 422}, {"0", exact, 0, 0, 422}, {first, "Roughly", 0, 0, 422}, {"x", "", 0, 0, 400},
		{future, notOlder, 0, 0, 504}, {future, exact, 0, 0, 504},
	} {
		list, err := list(ctx, metav1.ListOptions{ResourceVersion: test.version, ResourceVersionMatch: test.match, Limit: test.limit})
		what := fmt.Sprintf("version %q, match %q, limit %d", test.version, test.match, test.limit)
		switch {
		case test.code == 0 && err != nil:
			a.Errorf("%s: %v", what, err)
		case test.code == 0:
			// A cache that may be behind has what it has, but not less than was asked for.
			if n := len(list.Items); n != test.items && (test.items >= 0 || n > 3) {
				a.Errorf("%s: %d objects, want %d", what, n, test.items)
			}
			if test.match == exact && list.ResourceVersion != first {
				a.Errorf("%s: the list is of version %s", what, list.ResourceVersion)
			}
		default:
			if s, ok := err.(apierrors.APIStatus); !ok || s.Status().Code != test.code {
				a.Errorf("%s: %v, want %d", what, err, test.code)
			}
			if test.code == 504 && !apierrors.HasStatusCause(err, metav1.CauseTypeResourceVersionTooLarge) {
				a.Errorf("%s: %v does not say that the version is too large", what, err)
			}
		}
	}
	if err := a.client.CoreV1().RESTClient().Get().MaxRetries(0).Namespace(a.ns).Resource("configmaps").Name("first").Param("resourceVersion", future).Do(ctx).Error(); !apierrors.HasStatusCause(err, metav1.CauseTypeResourceVersionTooLarge) {
		a.Errorf("a get of the future: %v", err)
	}
	if err := api.Delete(ctx, "second", metav1.DeleteOptions{Preconditions: &metav1.Preconditions{ResourceVersion: &now}}); !apierrors.IsConflict(err) {
		a.Errorf("a delete of another version: %v", err)
	}

	// A list in pages is of one moment, whatever happens meanwhile.
	page := must(api.List(ctx, metav1.ListOptions{Limit: 1}))(a)
	if page.RemainingItemCount == nil || *page.RemainingItemCount != 2 {
		a.Errorf("remaining %v", page.RemainingItemCount)
	}
	if err := api.Delete(ctx, "second", metav1.DeleteOptions{}); err != nil {
		a.Fatal(err)
	}
	next := must(api.List(ctx, metav1.ListOptions{Limit: 1, Continue: page.Continue}))(a)
	if len(next.Items) != 1 || next.Items[0].Name != "second" || next.ResourceVersion != page.ResourceVersion {
		a.Errorf("the second page has %+v of version %s, the first is of %s", next.Items, next.ResourceVersion, page.ResourceVersion)
	}
}

// testBookmarks lets watches end, which are told before how far they have come, if that is further than where they began. It is two seconds before the end,
// when the object must have been made; on a busy machine it may not have, so one of some watches must be told.
func testBookmarks(a *api) {
	api, seconds := a.client.CoreV1().ConfigMaps(a.ns), int64(5)
	var told []string
	for i := range 10 {
		w := must(api.Watch(a.Context(), metav1.ListOptions{AllowWatchBookmarks: true, TimeoutSeconds: &seconds, LabelSelector: "none=such"}))(a)
		made := must(api.Create(a.Context(), configMap(fmt.Sprint("unseen-", i), nil), metav1.CreateOptions{}))(a)
		version := ""
		for e := range w.ResultChan() {
			if e.Type != watch.Bookmark {
				a.Errorf("event %+v", e)
				continue
			}
			version = e.Object.(*corev1.ConfigMap).ResourceVersion
		}
		if version != "" && must(strconv.Atoi(version))(a) >= must(strconv.Atoi(made.ResourceVersion))(a) {
			return
		}
		told = append(told, fmt.Sprintf("%q, an object was made in %s", version, made.ResourceVersion))
	}
	a.Errorf("the last bookmarks of all watches are too old: %v", told)
}

// testDryRuns goes through all verbs that write: each says what would be, and nothing is.
func testDryRuns(a *api) {
	ctx, all, no := a.Context(), []string{metav1.DryRunAll}, int64(0)
	maps, pods := a.client.CoreV1().ConfigMaps(a.ns), a.client.CoreV1().Pods(a.ns)
	before := must(maps.Create(ctx, configMap("a", nil), metav1.CreateOptions{}))(a)
	pod := a.makePod("p")
	d := must(a.client.AppsV1().Deployments(a.ns).Create(ctx, deployment("d"), metav1.CreateOptions{}))(a)
	apply := `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"%s"},"data":{"applied":"yes"}}`
	for kind, patch := range map[types.PatchType]string{
		types.MergePatchType: `{"data":{"k":"w"}}`, types.StrategicMergePatchType: `{"data":{"k":"w"}}`, types.JSONPatchType: `[{"op":"replace","path":"/data/k","value":"w"}]`, types.ApplyPatchType: fmt.Sprintf(apply, "a"),
	} {
		if got := must(maps.Patch(ctx, "a", kind, []byte(patch), metav1.PatchOptions{DryRun: all, FieldManager: "dry"}))(a); got.Data["k"] != "w" && got.Data["applied"] != "yes" {
			a.Errorf("%s would make %v", kind, got.Data)
		}
	}
	must(maps.Patch(ctx, "new", types.ApplyPatchType, fmt.Appendf(nil, apply, "new"), metav1.PatchOptions{DryRun: all, FieldManager: "dry"}))(a)
	if err := maps.DeleteCollection(ctx, metav1.DeleteOptions{DryRun: all}, metav1.ListOptions{}); err != nil {
		a.Error(err)
	}
	if got := must(maps.List(ctx, metav1.ListOptions{}))(a); len(got.Items) != 1 || got.Items[0].ResourceVersion != before.ResourceVersion {
		a.Errorf("ConfigMaps after dry runs: %+v", got.Items)
	}
	if err := pods.Bind(ctx, &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Target: corev1.ObjectReference{Name: "n"}}, metav1.CreateOptions{DryRun: all}); err != nil {
		a.Error(err)
	}
	debugged := pod.DeepCopy()
	debugged.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "e", Image: "i"}}}
	must(pods.UpdateEphemeralContainers(ctx, "p", debugged, metav1.UpdateOptions{DryRun: all}))(a)
	running := pod.DeepCopy()
	running.Status.Phase = corev1.PodRunning
	if got := must(pods.UpdateStatus(ctx, running, metav1.UpdateOptions{DryRun: all}))(a); got.Status.Phase != corev1.PodRunning {
		a.Errorf("would be %s", got.Status.Phase)
	}
	if err := pods.Delete(ctx, "p", metav1.DeleteOptions{DryRun: all, GracePeriodSeconds: &no}); err != nil {
		a.Error(err)
	}
	if got := must(pods.Get(ctx, "p", metav1.GetOptions{}))(a); got.ResourceVersion != pod.ResourceVersion {
		a.Errorf("pod after dry runs: %+v", got)
	}
	scaled := must(a.client.AppsV1().Deployments(a.ns).Patch(ctx, "d", types.MergePatchType, []byte(`{"spec":{"replicas":7}}`), metav1.PatchOptions{DryRun: all}, "scale"))(a)
	if got := must(a.client.AppsV1().Deployments(a.ns).Get(ctx, "d", metav1.GetOptions{}))(a); got.ResourceVersion != d.ResourceVersion {
		a.Errorf("scaled to %v by a dry run", scaled)
	}
	_, err := maps.Create(ctx, configMap("b", nil), metav1.CreateOptions{DryRun: []string{"Some"}})
	a.refused(err, 422, "dryRun")
}

// testPropagation deletes many at once, each with what is to become of its dependents.
func testPropagation(a *api) {
	api, ctx := a.client.CoreV1().ConfigMaps(a.ns), a.Context()
	for policy, want := range map[metav1.DeletionPropagation]string{
		metav1.DeletePropagationForeground: metav1.FinalizerDeleteDependents, metav1.DeletePropagationOrphan: metav1.FinalizerOrphanDependents, metav1.DeletePropagationBackground: "",
	} {
		label := map[string]string{"policy": string(policy)}
		for _, name := range []string{"one", "two"} {
			m := configMap("", label)
			m.GenerateName = name + "-"
			must(api.Create(ctx, m, metav1.CreateOptions{}))(a)
		}
		if err := api.DeleteCollection(ctx, metav1.DeleteOptions{PropagationPolicy: &policy}, metav1.ListOptions{LabelSelector: "policy=" + string(policy)}); err != nil {
			a.Error(err)
		}
		list := must(api.List(ctx, metav1.ListOptions{LabelSelector: "policy=" + string(policy)}))(a)
		if want == "" != (len(list.Items) == 0) {
			a.Errorf("%s: %d are left", policy, len(list.Items))
		}
		for _, m := range list.Items {
			if m.DeletionTimestamp == nil || len(m.Finalizers) != 1 || m.Finalizers[0] != want {
				a.Errorf("%s: %s has the finalizers %q, deleted %v", policy, m.Name, m.Finalizers, m.DeletionTimestamp)
			}
		}
	}
	yes, wrong := true, metav1.DeletionPropagation("Sideways")
	a.refused(api.Delete(ctx, "x", metav1.DeleteOptions{PropagationPolicy: &wrong}), 422, "propagationPolicy")
	both := metav1.DeletePropagationOrphan
	a.refused(api.Delete(ctx, "x", metav1.DeleteOptions{OrphanDependents: &yes, PropagationPolicy: &both}), 422, "propagationPolicy") //nolint:staticcheck // clients of old still say so
}
