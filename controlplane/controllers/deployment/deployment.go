// Package deployment turns Deployments into ReplicaSets, one for each revision
// of the template, and moves the pods from one revision to the next.
package deployment

import (
	"cmp"
	"context"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/dump"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	appslisters "k8s.io/client-go/listers/apps/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/strake-io/strake/controlplane/controllers/pods"
	"github.com/strake-io/strake/controlplane/controllers/queue"
)

// Annotations that kubectl rollout reads.
const (
	revisionAnnotation = "deployment.kubernetes.io/revision"
	historyAnnotation  = "deployment.kubernetes.io/revision-history"
	desiredAnnotation  = "deployment.kubernetes.io/desired-replicas"
	maxAnnotation      = "deployment.kubernetes.io/max-replicas"
)

var kind = appsv1.SchemeGroupVersion.WithKind("Deployment")

type controller struct {
	client      kubernetes.Interface
	deployments appslisters.DeploymentLister
	sets        appslisters.ReplicaSetLister
	pods        cache.Indexer
	recorder    record.EventRecorder
	queue       *queue.Queue
}

// Setup registers the controller with the informers and returns what runs it.
func Setup(client kubernetes.Interface, f informers.SharedInformerFactory, recorder record.EventRecorder) (func(context.Context), error) {
	ds, rss, podInf := f.Apps().V1().Deployments(), f.Apps().V1().ReplicaSets(), f.Core().V1().Pods()
	if err := pods.AddIndex(podInf.Informer()); err != nil {
		return nil, fmt.Errorf("deployment controller: %w", err)
	}
	c := &controller{client: client, deployments: ds.Lister(), sets: rss.Lister(), pods: podInf.Informer().GetIndexer(), recorder: recorder, queue: queue.New("deployment")}
	if _, err := ds.Informer().AddEventHandler(c.queue.Handlers()); err != nil {
		return nil, fmt.Errorf("deployment controller: %w", err)
	}
	ofSet := func(obj any) {
		if rs, ok := queue.Object[*appsv1.ReplicaSet](obj); ok {
			if ref := metav1.GetControllerOfNoCopy(rs); ref != nil && ref.Kind == kind.Kind {
				c.queue.Add(rs.Namespace + "/" + ref.Name)
			} else if ref == nil {
				c.addMatching(rs)
			}
		}
	}
	_, err := rss.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: ofSet, UpdateFunc: func(_, obj any) { ofSet(obj) }, DeleteFunc: ofSet})
	if err != nil {
		return nil, fmt.Errorf("deployment controller: %w", err)
	}
	// Recreate waits for the last old pod to be gone.
	_, err = podInf.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{DeleteFunc: func(obj any) {
		if p, ok := queue.Object[*corev1.Pod](obj); ok {
			if ref := metav1.GetControllerOfNoCopy(p); ref != nil && ref.Kind == "ReplicaSet" {
				if rs, err := c.sets.ReplicaSets(p.Namespace).Get(ref.Name); err == nil {
					ofSet(rs)
				}
			}
		}
	}})
	if err != nil {
		return nil, fmt.Errorf("deployment controller: %w", err)
	}
	return func(ctx context.Context) {
		c.queue.Run(ctx, 4, c.reconcile, ds.Informer().HasSynced, rss.Informer().HasSynced, podInf.Informer().HasSynced)
	}, nil
}

func (c *controller) addMatching(rs *appsv1.ReplicaSet) {
	all, err := c.deployments.Deployments(rs.Namespace).List(labels.Everything())
	if err != nil {
		return
	}
	for _, d := range all {
		if sel, err := metav1.LabelSelectorAsSelector(d.Spec.Selector); err == nil && !sel.Empty() && sel.Matches(labels.Set(rs.Labels)) {
			c.queue.Add(d.Namespace + "/" + d.Name)
		}
	}
}

func (c *controller) reconcile(ctx context.Context, namespace, name string) error {
	d, err := c.deployments.Deployments(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	d = d.DeepCopy()
	owned, err := c.owned(ctx, d)
	if err != nil {
		return err
	}
	next, old := split(d, owned)
	if d.DeletionTimestamp != nil {
		return c.writeStatus(ctx, d, next, old)
	}
	if !d.Spec.Paused {
		if next, err = c.ensureNext(ctx, d, next, old); err != nil {
			return err
		}
	}
	if err := c.roll(ctx, d, next, old); err != nil {
		return err
	}
	if next != nil && complete(d, statusCounts(d, next, old)) {
		if err := c.trimHistory(ctx, d, old); err != nil {
			return err
		}
	}
	return c.writeStatus(ctx, d, next, old)
}

// owned returns the deployment's sets, after adopting those that its selector matches and letting go of those
// that it matches no longer.
func (c *controller) owned(ctx context.Context, d *appsv1.Deployment) ([]*appsv1.ReplicaSet, error) {
	sel, err := metav1.LabelSelectorAsSelector(d.Spec.Selector)
	if err != nil || sel.Empty() {
		return nil, nil // validation keeps such objects out
	}
	all, err := c.sets.ReplicaSets(d.Namespace).List(labels.Everything())
	if err != nil {
		return nil, err
	}
	var out []*appsv1.ReplicaSet
	checked := false
	for _, rs := range all {
		matches := sel.Matches(labels.Set(rs.Labels))
		switch ref := metav1.GetControllerOfNoCopy(rs); {
		case ref != nil && ref.UID == d.UID && matches:
			out = append(out, rs.DeepCopy()) // roll notes new sizes in it
		case ref != nil && ref.UID == d.UID:
			rs = rs.DeepCopy()
			rs.OwnerReferences = slices.DeleteFunc(rs.OwnerReferences, func(r metav1.OwnerReference) bool { return r.UID == d.UID })
			if _, err = c.client.AppsV1().ReplicaSets(rs.Namespace).Update(ctx, rs, metav1.UpdateOptions{}); err != nil && !apierrors.IsNotFound(err) {
				return nil, fmt.Errorf("release ReplicaSet %s: %w", rs.Name, err)
			}
		case ref == nil && matches && rs.DeletionTimestamp == nil && d.DeletionTimestamp == nil:
			if !checked {
				live := func(ctx context.Context) (metav1.Object, error) {
					return c.client.AppsV1().Deployments(d.Namespace).Get(ctx, d.Name, metav1.GetOptions{})
				}
				if err := pods.Standing(ctx, d, live); err != nil {
					return nil, err
				}
				checked = true
			}
			rs = rs.DeepCopy()
			rs.OwnerReferences = append(rs.OwnerReferences, *metav1.NewControllerRef(d, kind))
			if rs, err = c.client.AppsV1().ReplicaSets(rs.Namespace).Update(ctx, rs, metav1.UpdateOptions{}); err != nil {
				return nil, fmt.Errorf("adopt ReplicaSet: %w", err)
			}
			out = append(out, rs)
		}
	}
	return out, nil
}

// split finds the set of the current template (the oldest, if a race made two), and the others.
func split(d *appsv1.Deployment, sets []*appsv1.ReplicaSet) (next *appsv1.ReplicaSet, old []*appsv1.ReplicaSet) {
	sorted := slices.Clone(sets)
	slices.SortFunc(sorted, func(a, b *appsv1.ReplicaSet) int { return a.CreationTimestamp.Time.Compare(b.CreationTimestamp.Time) })
	for _, rs := range sorted {
		if next == nil && sameTemplate(&rs.Spec.Template, &d.Spec.Template) {
			next = rs
		} else {
			old = append(old, rs)
		}
	}
	return next, old
}

// sameTemplate ignores the label that tells revisions apart.
func sameTemplate(a, b *corev1.PodTemplateSpec) bool {
	a, b = a.DeepCopy(), b.DeepCopy()
	delete(a.Labels, appsv1.DefaultDeploymentUniqueLabelKey)
	delete(b.Labels, appsv1.DefaultDeploymentUniqueLabelKey)
	return apiequality.Semantic.DeepEqual(a, b)
}

// templateHash names a revision; collisions are counted into it.
func templateHash(t *corev1.PodTemplateSpec, collisions *int32) string {
	h := fnv.New32a()
	fmt.Fprintf(h, "%v", dump.ForHash(t))
	if collisions != nil {
		fmt.Fprintf(h, "/%d", *collisions)
	}
	return rand.SafeEncodeString(strconv.FormatUint(uint64(h.Sum32()), 10))
}

func revision(o metav1.Object) int64 {
	n, _ := strconv.ParseInt(o.GetAnnotations()[revisionAnnotation], 10, 64) // absent or foreign: before the first
	return n
}

// ensureNext makes the set of the current template, or brings its annotations up to date.
func (c *controller) ensureNext(ctx context.Context, d *appsv1.Deployment, next *appsv1.ReplicaSet, old []*appsv1.ReplicaSet) (*appsv1.ReplicaSet, error) {
	var newest int64
	for _, rs := range old {
		newest = max(newest, revision(rs))
	}
	rev := strconv.FormatInt(newest+1, 10)
	if next != nil {
		if revision(next) > newest {
			rev = next.Annotations[revisionAnnotation]
		}
		want := next.DeepCopy()
		want.Annotations = annotations(d, next, rev)
		want.Spec.MinReadySeconds = d.Spec.MinReadySeconds
		if !apiequality.Semantic.DeepEqual(next, want) {
			var err error
			if next, err = c.client.AppsV1().ReplicaSets(d.Namespace).Update(ctx, want, metav1.UpdateOptions{}); err != nil {
				return nil, err
			}
		}
		return next, c.noteRevision(ctx, d, rev)
	}
	hash := templateHash(&d.Spec.Template, d.Status.CollisionCount)
	t := *d.Spec.Template.DeepCopy()
	t.Labels = with(t.Labels, appsv1.DefaultDeploymentUniqueLabelKey, hash)
	sel := d.Spec.Selector.DeepCopy()
	sel.MatchLabels = with(sel.MatchLabels, appsv1.DefaultDeploymentUniqueLabelKey, hash)
	rs := &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{
			Name: d.Name + "-" + hash, Namespace: d.Namespace, Labels: t.Labels,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(d, kind)},
		},
		Spec: appsv1.ReplicaSetSpec{Replicas: new(int32), MinReadySeconds: d.Spec.MinReadySeconds, Selector: sel, Template: t},
	}
	*rs.Spec.Replicas = firstSize(d, old, c.anyPods(old))
	rs.Annotations = sized(annotations(d, rs, rev), d)
	made, err := c.client.AppsV1().ReplicaSets(d.Namespace).Create(ctx, rs, metav1.CreateOptions{})
	switch {
	case apierrors.IsAlreadyExists(err):
		have, gerr := c.client.AppsV1().ReplicaSets(d.Namespace).Get(ctx, rs.Name, metav1.GetOptions{})
		if gerr != nil {
			return nil, gerr
		}
		if ref := metav1.GetControllerOf(have); ref != nil && ref.UID == d.UID && sameTemplate(&have.Spec.Template, &d.Spec.Template) {
			return have, nil // the cache has not shown it yet
		}
		n := int32(1)
		if d.Status.CollisionCount != nil {
			n = *d.Status.CollisionCount + 1
		}
		d.Status.CollisionCount = &n
		if _, uerr := c.client.AppsV1().Deployments(d.Namespace).UpdateStatus(ctx, d, metav1.UpdateOptions{}); uerr != nil {
			return nil, uerr
		}
		return nil, fmt.Errorf("ReplicaSet %s: its name belongs to another template, choosing another: %w", rs.Name, err)
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return nil, nil
	case err != nil:
		c.recorder.Eventf(d, corev1.EventTypeWarning, "ReplicaSetCreateError", "Failed to create new replica set %q: %v", rs.Name, err)
		return nil, err
	}
	if *made.Spec.Replicas > 0 {
		c.recorder.Eventf(d, corev1.EventTypeNormal, "ScalingReplicaSet", "Scaled up replica set %s from 0 to %d", made.Name, *made.Spec.Replicas)
	}
	return made, c.noteRevision(ctx, d, rev)
}

// firstSize is the size that a new set starts with.
func firstSize(d *appsv1.Deployment, old []*appsv1.ReplicaSet, oldPods bool) int32 {
	var total int32
	for _, rs := range old {
		total += *rs.Spec.Replicas
	}
	if d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
		if total > 0 || oldPods {
			return 0
		}
		return *d.Spec.Replicas
	}
	surge, _ := limits(d)
	return max(0, min(*d.Spec.Replicas, *d.Spec.Replicas+surge-total))
}

func with(m map[string]string, key, value string) map[string]string {
	m = maps.Clone(m)
	if m == nil {
		m = map[string]string{}
	}
	m[key] = value
	return m
}

// annotations are those of the set of revision rev: the Deployment's own, and the revisions that it was before.
func annotations(d *appsv1.Deployment, rs *appsv1.ReplicaSet, rev string) map[string]string {
	a := maps.Clone(rs.Annotations)
	if a == nil {
		a = map[string]string{}
	}
	for k, v := range d.Annotations {
		switch k {
		case corev1.LastAppliedConfigAnnotation, revisionAnnotation, historyAnnotation, desiredAnnotation, maxAnnotation:
		default:
			a[k] = v
		}
	}
	if was := a[revisionAnnotation]; was != "" && was != rev {
		if a[historyAnnotation] != "" {
			was = a[historyAnnotation] + "," + was
		}
		a[historyAnnotation] = was
	}
	a[revisionAnnotation] = rev
	return a
}

// sized notes for which size of the Deployment a set was sized last.
func sized(a map[string]string, d *appsv1.Deployment) map[string]string {
	surge, _ := limits(d)
	a = with(a, desiredAnnotation, strconv.Itoa(int(*d.Spec.Replicas)))
	a[maxAnnotation] = strconv.Itoa(int(*d.Spec.Replicas + surge))
	return a
}

// noteRevision tells on the Deployment which revision is current.
func (c *controller) noteRevision(ctx context.Context, d *appsv1.Deployment, rev string) error {
	if d.Annotations[revisionAnnotation] == rev {
		return nil
	}
	d.Annotations = with(d.Annotations, revisionAnnotation, rev)
	updated, err := c.client.AppsV1().Deployments(d.Namespace).Update(ctx, d, metav1.UpdateOptions{})
	if err != nil {
		return err
	}
	d.ResourceVersion = updated.ResourceVersion
	return nil
}

// roll makes one step towards the current template or size.
func (c *controller) roll(ctx context.Context, d *appsv1.Deployment, next *appsv1.ReplicaSet, old []*appsv1.ReplicaSet) error {
	active := slices.DeleteFunc(slices.Clone(old), func(rs *appsv1.ReplicaSet) bool { return *rs.Spec.Replicas == 0 })
	all := active
	if next != nil {
		all = append(slices.Clone(active), next)
	}
	var steps []resize
	switch {
	case len(all) == 1 && len(active) == 0 || d.Spec.Paused && len(all) == 1:
		if rs := all[0]; *rs.Spec.Replicas != *d.Spec.Replicas {
			steps = []resize{{rs, *d.Spec.Replicas}}
		}
	case len(all) > 1 && d.Spec.Strategy.Type == appsv1.RollingUpdateDeploymentStrategyType && rescaled(d, all):
		steps = proportional(d, all)
	case d.Spec.Paused || next == nil:
	case d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType:
		for _, rs := range active {
			steps = append(steps, resize{rs, 0})
		}
		if len(steps) == 0 && *next.Spec.Replicas != *d.Spec.Replicas && !c.anyPods(old) {
			steps = []resize{{next, *d.Spec.Replicas}}
		}
	default:
		steps = rollingStep(d, next, active)
	}
	for _, s := range steps {
		if err := c.resize(ctx, d, s); err != nil {
			return err
		}
	}
	return nil
}

// rescaled tells whether spec.replicas changed since the sets were last sized.
func rescaled(d *appsv1.Deployment, sets []*appsv1.ReplicaSet) bool {
	for _, rs := range sets {
		if want := rs.Annotations[desiredAnnotation]; *rs.Spec.Replicas > 0 && want != "" && want != strconv.Itoa(int(*d.Spec.Replicas)) {
			return true
		}
	}
	return false
}

func (c *controller) anyPods(sets []*appsv1.ReplicaSet) bool {
	for _, rs := range sets {
		owned, err := c.pods.ByIndex(pods.OwnerIndex, string(rs.UID))
		if err != nil {
			return true
		}
		for _, o := range owned {
			if p := o.(*corev1.Pod); p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
				return true
			}
		}
	}
	return false
}

func (c *controller) resize(ctx context.Context, d *appsv1.Deployment, s resize) error {
	rs := s.set.DeepCopy()
	from := *rs.Spec.Replicas
	rs.Spec.Replicas = &s.to
	rs.Annotations = sized(rs.Annotations, d)
	if from == s.to && maps.Equal(rs.Annotations, s.set.Annotations) {
		return nil
	}
	updated, err := c.client.AppsV1().ReplicaSets(rs.Namespace).Update(ctx, rs, metav1.UpdateOptions{})
	if err != nil {
		return err
	}
	*s.set = *updated
	if from != s.to {
		word := "up"
		if s.to < from {
			word = "down"
		}
		c.recorder.Eventf(d, corev1.EventTypeNormal, "ScalingReplicaSet", "Scaled %s replica set %s from %d to %d", word, rs.Name, from, s.to)
	}
	return nil
}

// trimHistory deletes old, empty sets beyond the history limit, the oldest revision first.
func (c *controller) trimHistory(ctx context.Context, d *appsv1.Deployment, old []*appsv1.ReplicaSet) error {
	empty := slices.DeleteFunc(slices.Clone(old), func(rs *appsv1.ReplicaSet) bool {
		return *rs.Spec.Replicas != 0 || rs.Status.Replicas != 0 || rs.Generation > rs.Status.ObservedGeneration || rs.DeletionTimestamp != nil
	})
	slices.SortFunc(empty, func(a, b *appsv1.ReplicaSet) int { return cmp.Compare(revision(a), revision(b)) })
	if d.Spec.RevisionHistoryLimit == nil {
		return nil
	}
	for i := range max(0, len(empty)-int(*d.Spec.RevisionHistoryLimit)) {
		err := c.client.AppsV1().ReplicaSets(d.Namespace).Delete(ctx, empty[i].Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(empty[i].UID))})
		if err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return nil
}

func (c *controller) writeStatus(ctx context.Context, d *appsv1.Deployment, next *appsv1.ReplicaSet, old []*appsv1.ReplicaSet) error {
	before, err := c.deployments.Deployments(d.Namespace).Get(d.Name)
	if err != nil {
		return nil // gone meanwhile
	}
	now := time.Now()
	status := statusOf(d, before.Status, next, old, now)
	if left := deadlineIn(d, status, now); left > 0 {
		c.queue.AddAfter(d.Namespace+"/"+d.Name, left)
	}
	if apiequality.Semantic.DeepEqual(before.Status, status) {
		return nil
	}
	d = d.DeepCopy()
	d.Status = status
	_, err = c.client.AppsV1().Deployments(d.Namespace).UpdateStatus(ctx, d, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
