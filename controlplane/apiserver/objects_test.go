package apiserver_test

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	clientv3 "go.etcd.io/etcd/client/v3"
)

func deployment(name string) *appsv1.Deployment {
	labels := map[string]string{"app": name}
	return &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: appsv1.DeploymentSpec{
		Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{
			Containers: []corev1.Container{{Name: "c", Image: "i", Env: []corev1.EnvVar{{Name: "A", Value: "1"}, {Name: "B", Value: "2"}}}},
		}},
	}}
}

func configMap(name string, labels map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}, Data: map[string]string{"k": "v"}}
}

func testObjects(a *api) {
	api, ctx := a.client.CoreV1().ConfigMaps(a.ns), a.Context()
	made := must(api.Create(ctx, configMap("a", nil), metav1.CreateOptions{}))(a)
	if made.UID == "" || made.ResourceVersion == "" || made.CreationTimestamp.IsZero() {
		a.Errorf("metadata %+v", made.ObjectMeta)
	}
	_, err := api.Create(ctx, configMap("a", nil), metav1.CreateOptions{})
	if !apierrors.IsAlreadyExists(err) {
		a.Errorf("a second one: %v", err)
	}
	made.Data["k"] = "w"
	changed := must(api.Update(ctx, made, metav1.UpdateOptions{}))(a)
	if changed.Data["k"] != "w" || changed.ResourceVersion == made.ResourceVersion || changed.UID != made.UID {
		a.Errorf("changed to %+v", changed)
	}
	if _, err := api.Update(ctx, made, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
		a.Errorf("an update of an old version: %v", err)
	}
	same := must(api.Update(ctx, changed, metav1.UpdateOptions{}))(a)
	if same.ResourceVersion != changed.ResourceVersion {
		a.Error("an update that changes nothing was written")
	}
	made.ResourceVersion = ""
	must(api.Update(ctx, made, metav1.UpdateOptions{}))(a)
	uid := types.UID("other")
	if err := api.Delete(ctx, "a", metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}}); !apierrors.IsConflict(err) {
		a.Errorf("a delete of another: %v", err)
	}
	if err := api.Delete(ctx, "a", metav1.DeleteOptions{}); err != nil {
		a.Error(err)
	}
	if _, err := api.Get(ctx, "a", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		a.Errorf("after the delete: %v", err)
	}
	generated := must(api.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "g-"}}, metav1.CreateOptions{}))(a)
	if !strings.HasPrefix(generated.Name, "g-") || len(generated.Name) != len("g-")+5 {
		a.Errorf("generated name %q", generated.Name)
	}
	held := configMap("held", nil)
	held.Finalizers = []string{"test.strake.io/hold"}
	must(api.Create(ctx, held, metav1.CreateOptions{}))(a)
	if err := api.Delete(ctx, "held", metav1.DeleteOptions{}); err != nil {
		a.Error(err)
	}
	if got := must(api.Get(ctx, "held", metav1.GetOptions{}))(a); got.DeletionTimestamp == nil {
		a.Error("no deletion timestamp")
	}
	must(api.Patch(ctx, "held", types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{}))(a)
	if _, err := api.Get(ctx, "held", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		a.Errorf("after the last finalizer: %v", err)
	}
}

func testWatch(a *api) {
	api, ctx := a.client.CoreV1().ConfigMaps(a.ns), a.Context()
	must(api.Create(ctx, configMap("before", map[string]string{"w": "y"}), metav1.CreateOptions{}))(a)
	list := must(api.List(ctx, metav1.ListOptions{}))(a)
	w := must(api.Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion, LabelSelector: "w=y"}))(a)
	defer w.Stop()
	must(api.Create(ctx, configMap("other", nil), metav1.CreateOptions{}))(a)
	must(api.Create(ctx, configMap("in", map[string]string{"w": "y"}), metav1.CreateOptions{}))(a)
	// Leaving the selection is a deletion to who watches it.
	must(api.Patch(ctx, "before", types.MergePatchType, []byte(`{"metadata":{"labels":{"w":"n"}}}`), metav1.PatchOptions{}))(a)
	if err := api.Delete(ctx, "in", metav1.DeleteOptions{}); err != nil {
		a.Fatal(err)
	}
	for _, want := range []struct {
		kind watch.EventType
		name string
	}{{watch.Added, "in"}, {watch.Deleted, "before"}, {watch.Deleted, "in"}} {
		e, ok := <-w.ResultChan()
		if !ok {
			a.Fatal("the watch ended")
		}
		if m, ok := e.Object.(*corev1.ConfigMap); !ok || e.Type != want.kind || m.Name != want.name {
			a.Errorf("event %s %v, want %v", e.Type, e.Object, want)
		}
	}
}

// testWatchList gets a list as a watch, as informers do: what there is, then a bookmark, then what comes.
func testWatchList(a *api) {
	api, ctx := a.client.CoreV1().ConfigMaps(a.ns), a.Context()
	for _, name := range []string{"a", "b"} {
		must(api.Create(ctx, configMap(name, nil), metav1.CreateOptions{}))(a)
	}
	yes := true
	w := must(api.Watch(ctx, metav1.ListOptions{SendInitialEvents: &yes, AllowWatchBookmarks: true, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan}))(a)
	defer w.Stop()
	for _, want := range []string{"ADDED a", "ADDED b", "BOOKMARK "} {
		e, ok := <-w.ResultChan()
		if !ok {
			a.Fatal("the watch ended")
		}
		m := e.Object.(*corev1.ConfigMap)
		if got := string(e.Type) + " " + m.Name; got != want {
			a.Errorf("event %s, want %s", got, want)
		}
		if e.Type == watch.Bookmark && (m.Annotations[metav1.InitialEventsAnnotationKey] != "true" || m.ResourceVersion == "") {
			a.Errorf("bookmark %+v", m.ObjectMeta)
		}
	}
	// From a version of before on, the same events come again.
	first := must(api.Get(ctx, "a", metav1.GetOptions{}))(a)
	resumed := must(api.Watch(ctx, metav1.ListOptions{ResourceVersion: first.ResourceVersion}))(a)
	defer resumed.Stop()
	if e := <-resumed.ResultChan(); e.Type != watch.Added || e.Object.(*corev1.ConfigMap).Name != "b" {
		a.Errorf("resumed with %+v", e)
	}
}

func testPatches(a *api) {
	api, ctx := a.client.AppsV1().Deployments(a.ns), a.Context()
	made := must(api.Create(ctx, deployment("web"), metav1.CreateOptions{}))(a)
	if made.Generation != 1 || made.Spec.Replicas == nil || *made.Spec.Replicas != 1 || made.Spec.Strategy.RollingUpdate == nil {
		a.Errorf("made %+v", made.Spec)
	}
	env := func(d *appsv1.Deployment) string {
		var all []string
		for _, e := range d.Spec.Template.Spec.Containers[0].Env {
			all = append(all, e.Name+"="+e.Value)
		}
		return strings.Join(all, ",")
	}
	for _, test := range []struct {
		kind       types.PatchType
		patch      string
		env        string
		generation int64
	}{
		{types.StrategicMergePatchType, `{"spec":{"template":{"spec":{"containers":[{"name":"c","env":[{"name":"B","value":"3"}]}]}}}}`, "A=1,B=3", 2},
		{types.StrategicMergePatchType, `{"metadata":{"labels":{"x":"y"}}}`, "A=1,B=3", 2},
		{types.JSONPatchType, `[{"op":"replace","path":"/spec/template/spec/containers/0/env/0/value","value":"9"}]`, "A=9,B=3", 3},
		{types.MergePatchType, `{"spec":{"template":{"spec":{"containers":[{"name":"c","image":"j","env":[{"name":"Z","value":"1"}]}]}}}}`, "Z=1", 4},
		{types.ApplyYAMLPatchType, "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {template: {spec: {containers: [{name: c, env: [{name: S, value: '1'}]}]}}}", "Z=1,S=1", 5},
	} {
		options := metav1.PatchOptions{}
		if test.kind == types.ApplyYAMLPatchType {
			options.FieldManager = "test"
		}
		d, err := api.Patch(ctx, "web", test.kind, []byte(test.patch), options)
		if err != nil {
			a.Errorf("%s %s: %v", test.kind, test.patch, err)
			continue
		}
		if env(d) != test.env || d.Generation != test.generation {
			a.Errorf("%s: env %s, generation %d, want %s, %d", test.kind, env(d), d.Generation, test.env, test.generation)
		}
	}
	_, err := api.Patch(ctx, "web", types.JSONPatchType, []byte(`[{"op":"test","path":"/spec/replicas","value":7}]`), metav1.PatchOptions{})
	a.refused(err, 422)
	_, err = api.Patch(ctx, "web", types.MergePatchType, []byte(`{"spec":{"selector":{"matchLabels":{"app":"other"}},"template":{"metadata":{"labels":{"app":"other"}}}}}`), metav1.PatchOptions{})
	a.refused(err, 422, "spec.selector")
}

func testApply(a *api) {
	api, ctx := a.client.CoreV1().ConfigMaps(a.ns), a.Context()
	apply := func(manager, data string, force bool) (*corev1.ConfigMap, error) {
		body := `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"data":` + data + `}`
		return api.Patch(ctx, "a", types.ApplyPatchType, []byte(body), metav1.PatchOptions{FieldManager: manager, Force: &force})
	}
	must(apply("one", `{"k":"1","gone":"1"}`, false))(a)
	if m := must(apply("two", `{"l":"2"}`, false))(a); len(m.Data) != 3 {
		a.Errorf("data %v", m.Data)
	}
	_, err := apply("two", `{"k":"2","l":"2"}`, false)
	if !apierrors.IsConflict(err) || !strings.Contains(err.Error(), `conflict with "one": .data.k`) {
		a.Errorf("a conflict: %v", err)
	}
	a.refused(err, 409, ".data.k")
	if m := must(apply("two", `{"k":"2","l":"2"}`, true))(a); m.Data["k"] != "2" {
		a.Errorf("data %v", m.Data)
	}
	// What a manager no longer applies and nobody else holds goes; what another took over stays.
	m := must(apply("one", `{}`, false))(a)
	if _, ok := m.Data["gone"]; ok || m.Data["k"] != "2" {
		a.Errorf("data %v", m.Data)
	}
	var managers []string
	for _, f := range m.ManagedFields {
		managers = append(managers, f.Manager+" "+string(f.Operation))
	}
	if !slices.Contains(managers, "two Apply") {
		a.Errorf("managers %q", managers)
	}
	// Many that apply at once: each keeps its own field, and of a shared one all but one are told of the conflict.
	errs := make(chan error)
	const many = 10
	for i := range many {
		go func() {
			_, err := apply(fmt.Sprint("racer-", i), fmt.Sprintf(`{"own-%d":"x","shared":"%d"}`, i, i), false)
			if apierrors.IsConflict(err) {
				_, own := apply(fmt.Sprint("racer-", i), fmt.Sprintf(`{"own-%d":"x"}`, i), false)
				err = errors.Join(err, own)
			}
			errs <- err
		}()
	}
	conflicts := 0
	for range many {
		if err := <-errs; apierrors.IsConflict(err) && strings.Contains(err.Error(), ".data.shared") {
			conflicts++
		} else if err != nil {
			a.Errorf("an apply among many: %v", err)
		}
	}
	if m = must(api.Get(ctx, "a", metav1.GetOptions{}))(a); conflicts != many-1 || len(m.Data) != 3+many {
		a.Errorf("%d conflicts of %d, data %v", conflicts, many, m.Data)
	}
	// Who applies the resource doesn't own its status.
	body := `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"d"},"spec":{"selector":{"matchLabels":{"a":"b"}},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}},"status":{"replicas":7}}`
	d := must(a.client.AppsV1().Deployments(a.ns).Patch(ctx, "d", types.ApplyPatchType, []byte(body), metav1.PatchOptions{FieldManager: "one"}))(a)
	for _, f := range d.ManagedFields {
		if strings.Contains(string(f.FieldsV1.Raw), "f:status") {
			a.Errorf("manager %s of %s", f.Manager, f.FieldsV1.Raw)
		}
	}
	if d.Status.Replicas != 0 {
		a.Errorf("status %+v", d.Status)
	}
}

// testTables looks at the columns that kubectl prints, with -o wide for those in brackets.
func testTables(a *api) {
	ctx, create := a.Context(), metav1.CreateOptions{}
	must(a.client.AppsV1().Deployments(a.ns).Create(ctx, deployment("web"), create))(a)
	must(a.client.CoreV1().Services(a.ns).Create(ctx, nodePortService("web", 30009), create))(a)
	must(a.client.CoreV1().ConfigMaps(a.ns).Create(ctx, configMap("web", nil), create))(a)
	node := "n-" + a.ns
	must(a.client.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node, Labels: map[string]string{"node-role.kubernetes.io/worker": ""}}}, create))(a)
	pod := a.makePod("web", func(p *corev1.Pod) { p.Spec.NodeName = node })
	pod.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.244.0.9", PodIPs: []corev1.PodIP{{IP: "10.244.0.9"}}, ContainerStatuses: []corev1.ContainerStatus{
		{Name: "c", Ready: true, RestartCount: 2, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}},
	}}
	must(a.client.CoreV1().Pods(a.ns).UpdateStatus(ctx, pod, metav1.UpdateOptions{}))(a)
	must(a.client.BatchV1().Jobs(a.ns).Create(ctx, &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: batchv1.JobSpec{
		Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "c", Image: "i"}}}},
	}}, create))(a)
	must(a.client.BatchV1().CronJobs(a.ns).Create(ctx, &batchv1.CronJob{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: batchv1.CronJobSpec{
		Schedule: "@hourly", JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "c", Image: "i"}},
		}}}},
	}}, create))(a)
	ip := must(a.client.CoreV1().Services(a.ns).Get(ctx, "web", metav1.GetOptions{}))(a).Spec.ClusterIP
	in := func(group, resource string) string { return "/" + group + "/namespaces/" + a.ns + "/" + resource }
	for _, test := range []struct{ path, columns, cells string }{
		{in("api/v1", "pods"), "Name|Ready|Status|Restarts|Age|[IP]|[Node]|[Nominated Node]|[Readiness Gates]", "web|1/1|Running|2|AGE|10.244.0.9|" + node + "|<none>|<none>"},
		{in("api/v1", "services"), "Name|Type|Cluster-IP|External-IP|Port(s)|Age|[Selector]", "web|NodePort|" + ip + "|<none>|80:30009/TCP|AGE|app=web"},
		{in("api/v1", "configmaps"), "Name|Data|Age", "web|1|AGE"},
		{"/api/v1/nodes/" + node, "Name|Status|Roles|Age|Version|[Internal-IP]|[External-IP]|[OS-Image]|[Kernel-Version]|[Container-Runtime]", node + "|Unknown|worker|AGE||<none>|<none>|<unknown>|<unknown>|<unknown>"},
		{in("apis/apps/v1", "deployments"), "Name|Ready|Up-to-date|Available|Age|[Containers]|[Images]|[Selector]", "web|0/1|0|0|AGE|c|i|app=web"},
		{in("apis/batch/v1", "jobs"), "Name|Status|Completions|Duration|Age|[Containers]|[Images]|[Selector]", "web|Running|0/1||AGE|c|i|SELECTOR"},
		{in("apis/batch/v1", "cronjobs"), "Name|Schedule|Timezone|Suspend|Active|Last Schedule|Age|[Containers]|[Images]|[Selector]", "web|@hourly|<none>|False|0|<none>|AGE|c|i|<none>"},
		{"/api/v1/namespaces/" + a.ns, "Name|Status|Age", a.ns + "|Active|AGE"},
		{"/apis/scheduling.k8s.io/v1/priorityclasses/system-node-critical", "Name|Value|Global-Default|Age|PreemptionPolicy", "system-node-critical|2000001000|false|AGE|PreemptLowerPriority"},
	} {
		table := a.table(test.path)
		var columns, cells []string
		for _, c := range table.ColumnDefinitions {
			if c.Priority > 0 {
				c.Name = "[" + c.Name + "]"
			}
			columns = append(columns, c.Name)
		}
		if len(table.Rows) != 1 {
			a.Errorf("%s: %d rows", test.path, len(table.Rows))
			continue
		}
		for i, c := range table.Rows[0].Cells {
			text := fmt.Sprint(c)
			if n, ok := c.(float64); ok {
				text = fmt.Sprint(int64(n))
			}
			switch {
			case table.ColumnDefinitions[i].Name == "Age":
				text = "AGE"
			case strings.Contains(text, batchv1.ControllerUidLabel+"="):
				text = "SELECTOR"
			}
			cells = append(cells, text)
		}
		if got := strings.Join(columns, "|"); got != test.columns {
			a.Errorf("%s: columns\n%s\nwant\n%s", test.path, got, test.columns)
		}
		if got := strings.Join(cells, "|"); got != test.cells {
			a.Errorf("%s: cells\n%s\nwant\n%s", test.path, got, test.cells)
		}
	}
	// FlowSchemas come as requests are held against them.
	schemas := a.table("/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas").Rows
	var names []string
	for _, row := range schemas {
		names = append(names, fmt.Sprint(row.Cells[0]))
	}
	if !slices.IsSortedFunc(schemas, func(x, y metav1.TableRow) int { return cmp.Compare(x.Cells[2].(float64), y.Cells[2].(float64)) }) || names[0] != "exempt" || names[len(names)-1] != "catch-all" {
		a.Errorf("FlowSchemas in the order %v", names)
	}
}

func testDryRun(a *api) {
	api, ctx := a.client.CoreV1().ConfigMaps(a.ns), a.Context()
	all := []string{metav1.DryRunAll}
	must(api.Create(ctx, configMap("a", nil), metav1.CreateOptions{DryRun: all}))(a)
	if _, err := api.Get(ctx, "a", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		a.Errorf("after a dry create: %v", err)
	}
	made := must(api.Create(ctx, configMap("a", nil), metav1.CreateOptions{}))(a)
	made.Data["k"] = "w"
	must(api.Update(ctx, made, metav1.UpdateOptions{DryRun: all}))(a)
	if err := api.Delete(ctx, "a", metav1.DeleteOptions{DryRun: all}); err != nil {
		a.Error(err)
	}
	if got := must(api.Get(ctx, "a", metav1.GetOptions{}))(a); got.Data["k"] != "v" {
		a.Errorf("data %v", got.Data)
	}
}

func testCollections(a *api) {
	api, ctx := a.client.CoreV1().ConfigMaps(a.ns), a.Context()
	for i := range 5 {
		must(api.Create(ctx, configMap(fmt.Sprint("c", i), map[string]string{"odd": fmt.Sprint(i % 2)}), metav1.CreateOptions{}))(a)
	}
	var names []string
	options := metav1.ListOptions{Limit: 2}
	for pages := 0; ; pages++ {
		list := must(api.List(ctx, options))(a)
		for _, m := range list.Items {
			names = append(names, m.Name)
		}
		if options.Continue = list.Continue; options.Continue == "" || pages > 5 {
			break
		}
	}
	if want := []string{"c0", "c1", "c2", "c3", "c4"}; !slices.Equal(names, want) {
		a.Errorf("pages %q", names)
	}
	if list := must(api.List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=c3"}))(a); len(list.Items) != 1 {
		a.Errorf("%d by name", len(list.Items))
	}
	_, err := api.List(ctx, metav1.ListOptions{FieldSelector: "data=x"})
	a.refused(err, 400)
	if err := api.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "odd=1"}); err != nil {
		a.Error(err)
	}
	if list := must(api.List(ctx, metav1.ListOptions{}))(a); len(list.Items) != 3 {
		a.Errorf("%d are left", len(list.Items))
	}

	a.makePod("here", func(p *corev1.Pod) { p.Spec.NodeName = "n-" + a.ns })
	a.makePod("nowhere")
	for selector, want := range map[string]int{"spec.nodeName=n-" + a.ns: 1, "spec.nodeName=": 1, "status.phase=Pending": 2, "status.phase!=Pending": 0, "metadata.namespace=" + a.ns: 2} {
		if list := must(a.client.CoreV1().Pods(a.ns).List(ctx, metav1.ListOptions{FieldSelector: selector}))(a); len(list.Items) != want {
			a.Errorf("%s: %d pods, want %d", selector, len(list.Items), want)
		}
	}
}

func testStatus(a *api) {
	api, ctx := a.client.AppsV1().Deployments(a.ns), a.Context()
	made := must(api.Create(ctx, deployment("web"), metav1.CreateOptions{}))(a)
	made.Status.Replicas, *made.Spec.Replicas = 3, 9
	got := must(api.UpdateStatus(ctx, made, metav1.UpdateOptions{}))(a)
	if got.Status.Replicas != 3 || *got.Spec.Replicas != 1 || got.Generation != 1 {
		a.Errorf("after status: status %d, spec %d, generation %d", got.Status.Replicas, *got.Spec.Replicas, got.Generation)
	}
	got.Status.Replicas, *got.Spec.Replicas = 5, 9
	got = must(api.Update(ctx, got, metav1.UpdateOptions{}))(a)
	if got.Status.Replicas != 3 || *got.Spec.Replicas != 9 || got.Generation != 2 {
		a.Errorf("after spec: status %d, spec %d, generation %d", got.Status.Replicas, *got.Spec.Replicas, got.Generation)
	}
	fresh := deployment("other")
	fresh.Status.Replicas = 4
	if got := must(api.Create(ctx, fresh, metav1.CreateOptions{}))(a); got.Status.Replicas != 0 {
		a.Errorf("created with a status of %d", got.Status.Replicas)
	}
}

func testScale(a *api) {
	api, ctx := a.client.AppsV1().Deployments(a.ns), a.Context()
	made := must(api.Create(ctx, deployment("web"), metav1.CreateOptions{}))(a)
	scale := must(api.GetScale(ctx, "web", metav1.GetOptions{}))(a)
	if scale.Spec.Replicas != 1 || scale.Status.Selector != "app=web" || scale.UID != made.UID {
		a.Errorf("scale %+v", scale)
	}
	scale.Spec.Replicas = 4
	must(api.UpdateScale(ctx, "web", scale, metav1.UpdateOptions{}))(a)
	if got := must(api.Get(ctx, "web", metav1.GetOptions{}))(a); *got.Spec.Replicas != 4 || got.Generation != 2 {
		a.Errorf("replicas %d, generation %d", *got.Spec.Replicas, got.Generation)
	}
	if _, err := api.UpdateScale(ctx, "web", scale, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
		a.Errorf("an old version: %v", err)
	}
	_, err := api.UpdateScale(ctx, "web", &autoscalingv1.Scale{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: a.ns}, Spec: autoscalingv1.ScaleSpec{Replicas: -1}}, metav1.UpdateOptions{})
	a.refused(err, 422, "spec.replicas")
}

func testEvents(a *api) {
	ctx := a.Context()
	regarding := corev1.ObjectReference{Kind: "Pod", Namespace: a.ns, Name: "p", UID: "u"}
	made := must(a.client.EventsV1().Events(a.ns).Create(ctx, &eventsv1.Event{
		ObjectMeta: metav1.ObjectMeta{Name: "new"}, EventTime: metav1.NowMicro(), ReportingController: "test.io/x", ReportingInstance: "x-1",
		Action: "Testing", Reason: "Tested", Regarding: regarding, Note: "it works", Type: corev1.EventTypeNormal,
		Series: &eventsv1.EventSeries{Count: 2, LastObservedTime: metav1.NowMicro()},
	}, metav1.CreateOptions{}))(a)
	if made.Note != "it works" || made.Regarding != regarding {
		a.Errorf("made %+v", made)
	}
	old := must(a.client.CoreV1().Events(a.ns).Get(ctx, "new", metav1.GetOptions{}))(a)
	if old.Message != "it works" || old.InvolvedObject != regarding || old.Series == nil || old.Series.Count != 2 {
		a.Errorf("in the core group %+v", old)
	}
	must(a.client.CoreV1().Events(a.ns).Create(ctx, &corev1.Event{ObjectMeta: metav1.ObjectMeta{Name: "old"}, InvolvedObject: regarding, Reason: "Old", Type: corev1.EventTypeWarning}, metav1.CreateOptions{}))(a)
	patched := must(a.client.EventsV1().Events(a.ns).Patch(ctx, "new", types.StrategicMergePatchType, []byte(`{"series":{"count":5}}`), metav1.PatchOptions{}))(a)
	if patched.Series.Count != 5 {
		a.Errorf("series %+v", patched.Series)
	}
	for selector, want := range map[string]int{"regarding.name=p": 2, "type=Warning": 1, "reportingController=test.io/x": 1, "regarding.name=q": 0} {
		if list := must(a.client.EventsV1().Events(a.ns).List(ctx, metav1.ListOptions{FieldSelector: selector}))(a); len(list.Items) != want {
			a.Errorf("%s: %d events, want %d", selector, len(list.Items), want)
		}
	}
	if list := must(a.client.CoreV1().Events(a.ns).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.uid=u"}))(a); len(list.Items) != 2 {
		a.Errorf("%d events by the old name", len(list.Items))
	}
}

// testStorage looks at the store as an etcd tool does.
func testStorage(a *api) {
	ctx := a.Context()
	etcd := must(clientv3.New(clientv3.Config{Endpoints: []string{a.server.EtcdURL}}))(a)
	defer etcd.Close()
	must(a.client.AppsV1().Deployments(a.ns).Create(ctx, deployment("web"), metav1.CreateOptions{}))(a)
	node := "n-" + a.ns
	must(a.client.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}, metav1.CreateOptions{}))(a)
	a.makePod("p")
	must(a.client.CoreV1().Events(a.ns).Create(ctx, &corev1.Event{ObjectMeta: metav1.ObjectMeta{Name: "e"}, InvolvedObject: corev1.ObjectReference{Namespace: a.ns}}, metav1.CreateOptions{}))(a)
	service := must(a.client.CoreV1().Services(a.ns).Create(ctx, nodePortService("s", 0), metav1.CreateOptions{}))(a)
	for key, kind := range map[string]string{
		"/registry/deployments/" + a.ns + "/web":                                            "Deployment",
		"/registry/pods/" + a.ns + "/p":                                                     "Pod",
		"/registry/minions/" + node:                                                         "Node",
		"/registry/namespaces/" + a.ns:                                                      "Namespace",
		"/registry/services/specs/" + a.ns + "/s":                                           "Service",
		"/registry/events/" + a.ns + "/e":                                                   "Event",
		"/registry/serviceaccounts/" + a.ns + "/default":                                    "ServiceAccount",
		"/registry/clusterroles/cluster-admin":                                              "ClusterRole",
		"/registry/services/endpoints/default/kubernetes":                                   "Endpoints",
		"/registry/endpointslices/default/kubernetes":                                       "EndpointSlice",
		"/registry/ipaddresses/" + service.Spec.ClusterIP:                                   "IPAddress",
		fmt.Sprintf("/registry/ranges/servicenodeports/%d", service.Spec.Ports[0].NodePort): "Lease",
		"/registry/apiregistration.k8s.io/apiservices/v1.apps":                              "APIService",
		"/registry/priorityclasses/system-node-critical":                                    "PriorityClass",
	} {
		got := must(etcd.Get(ctx, key))(a)
		if len(got.Kvs) != 1 {
			a.Errorf("%s is not there", key)
			continue
		}
		value := string(got.Kvs[0].Value)
		if kind == "APIService" { // the aggregator's own types are stored as JSON
			if !strings.Contains(value, `"kind":"APIService"`) {
				a.Errorf("%s holds %.60q", key, value)
			}
		} else if !strings.HasPrefix(value, "k8s\x00") || !strings.Contains(value[:60], kind) {
			a.Errorf("%s holds %.60q, want a %s in protobuf", key, value, kind)
		}
		if lease := got.Kvs[0].Lease; (lease != 0) != (kind == "Event") {
			a.Errorf("%s has the etcd lease %d", key, lease)
		}
	}
}
