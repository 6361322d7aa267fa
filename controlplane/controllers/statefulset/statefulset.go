// Package statefulset keeps pods with names of their own, and claims that outlive them, as a StatefulSet says.
package statefulset

import (
	"context"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	appslisters "k8s.io/client-go/listers/apps/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/strake-io/strake/controlplane/controllers/pods"
	"github.com/strake-io/strake/controlplane/controllers/queue"
	"github.com/strake-io/strake/controlplane/controllers/revisions"
)

var kind = appsv1.SchemeGroupVersion.WithKind("StatefulSet")

type controller struct {
	client   kubernetes.Interface
	sets     appslisters.StatefulSetLister
	claims   corelisters.PersistentVolumeClaimLister
	pods     *pods.Control
	history  *revisions.History
	recorder record.EventRecorder
	queue    *queue.Queue
}

// Setup registers the controller with the informers and returns what runs it.
func Setup(client kubernetes.Interface, f informers.SharedInformerFactory, recorder record.EventRecorder) (func(context.Context), error) {
	sets, podInf, claims, history := f.Apps().V1().StatefulSets(), f.Core().V1().Pods(), f.Core().V1().PersistentVolumeClaims(), f.Apps().V1().ControllerRevisions()
	if err := pods.AddIndex(podInf.Informer()); err != nil {
		return nil, fmt.Errorf("statefulset controller: %w", err)
	}
	c := &controller{
		client: client, sets: sets.Lister(), claims: claims.Lister(), recorder: recorder, queue: queue.New("statefulset"),
		history: &revisions.History{Client: client, Lister: history.Lister(), Kind: kind},
		pods: &pods.Control{Client: client, Indexer: podInf.Informer().GetIndexer(), Recorder: recorder, Fits: func(owner metav1.Object, p *corev1.Pod) bool {
			return ordinalOf(owner.GetName(), p.Name) >= 0
		}},
	}
	if _, err := sets.Informer().AddEventHandler(c.queue.Handlers()); err != nil {
		return nil, fmt.Errorf("statefulset controller: %w", err)
	}
	changed := func(obj any) {
		p, ok := queue.Object[*corev1.Pod](obj)
		if !ok {
			return
		}
		if ref := metav1.GetControllerOfNoCopy(p); ref != nil {
			if ref.Kind == kind.Kind {
				c.queue.Add(p.Namespace + "/" + ref.Name)
			}
			return
		}
		c.addMatching(p)
	}
	if _, err := podInf.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: changed, UpdateFunc: func(old, obj any) { changed(old); changed(obj) }, DeleteFunc: changed}); err != nil {
		return nil, fmt.Errorf("statefulset controller: %w", err)
	}
	return func(ctx context.Context) {
		c.queue.Run(ctx, 4, c.reconcile, sets.Informer().HasSynced, podInf.Informer().HasSynced, claims.Informer().HasSynced, history.Informer().HasSynced)
	}, nil
}

// addMatching queues the sets that could adopt a stray pod.
func (c *controller) addMatching(p *corev1.Pod) {
	sets, err := c.sets.StatefulSets(p.Namespace).List(labels.Everything())
	if err != nil {
		return
	}
	for _, s := range sets {
		if sel, err := metav1.LabelSelectorAsSelector(s.Spec.Selector); err == nil && !sel.Empty() && sel.Matches(labels.Set(p.Labels)) && ordinalOf(s.Name, p.Name) >= 0 {
			c.queue.Add(s.Namespace + "/" + s.Name)
		}
	}
}

func (c *controller) reconcile(ctx context.Context, namespace, name string) error {
	s, err := c.sets.StatefulSets(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	sel, err := metav1.LabelSelectorAsSelector(s.Spec.Selector)
	if err != nil || s.Spec.Replicas == nil {
		return nil // validation keeps such objects out; there is nothing to retry
	}
	live := func(ctx context.Context) (metav1.Object, error) {
		return c.client.AppsV1().StatefulSets(namespace).Get(ctx, name, metav1.GetOptions{})
	}
	owned, err := c.pods.Owned(ctx, s, *metav1.NewControllerRef(s, kind), sel, live)
	if err != nil {
		return err
	}
	if s.DeletionTimestamp != nil {
		return nil // the garbage collector removes what depends on it
	}
	all, update, collisions, err := c.history.Sync(ctx, revisions.Owner{Object: s, Selector: sel, Template: &s.Spec.Template, Collisions: s.Status.CollisionCount, Live: live})
	if err != nil {
		return err
	}
	current := update
	for _, r := range all {
		if r.Name == s.Status.CurrentRevision {
			current = r
		}
	}
	now := time.Now()
	wanted, condemned := places(s, owned)
	p := decide(s, wanted, condemned, update.Name, now)
	if p.again > 0 {
		c.queue.AddAfter(namespace+"/"+name, p.again)
	}
	actErr := c.keepClaims(ctx, s, wanted, condemned)
	if actErr == nil {
		actErr = c.act(ctx, s, p, current, update)
	}
	if err := c.writeStatus(ctx, s, statusOf(s, owned, current.Name, update.Name, collisions, now)); err != nil {
		return err
	}
	if actErr != nil {
		return actErr
	}
	used := map[string]bool{current.Name: true, update.Name: true}
	for _, pod := range owned {
		used[pod.Labels[revisions.Label]] = true
	}
	limit := int32(10)
	if s.Spec.RevisionHistoryLimit != nil {
		limit = *s.Spec.RevisionHistoryLimit
	}
	return c.history.Trim(ctx, all, limit, func(r *appsv1.ControllerRevision) bool { return used[r.Name] })
}

// act makes and deletes the pods of a plan. The cache may lag: a pod that is there already is as good as made.
func (c *controller) act(ctx context.Context, s *appsv1.StatefulSet, p plan, current, update *appsv1.ControllerRevision) error {
	for _, pod := range p.remove {
		if err := c.pods.Delete(ctx, s, pod); err != nil {
			return err
		}
	}
	for _, ordinal := range p.create {
		if err := c.makeClaims(ctx, s, ordinal); err != nil {
			return err
		}
		r, t := update, &s.Spec.Template
		if revisionFor(s, ordinal, current.Name, update.Name) != update.Name {
			var err error
			if t, err = revisions.Template(current); err != nil {
				return err
			}
			r = current
		}
		_, err := c.pods.Create(ctx, s, s.Namespace, s.Name, t, *metav1.NewControllerRef(s, kind), func(pod *corev1.Pod) { identify(pod, s, ordinal, r.Name) })
		switch {
		case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
			return nil
		case apierrors.IsAlreadyExists(err):
			continue
		case err != nil:
			return err
		}
	}
	return nil
}

// makeClaims makes the claims of a pod that are missing.
func (c *controller) makeClaims(ctx context.Context, s *appsv1.StatefulSet, ordinal int) error {
	for _, claim := range claims(s, ordinal) {
		have, err := c.claims.PersistentVolumeClaims(s.Namespace).Get(claim.Name)
		if err == nil {
			if have.DeletionTimestamp != nil {
				return fmt.Errorf("claim %s of StatefulSet %s is being deleted", claim.Name, s.Name)
			}
			continue
		}
		if !apierrors.IsNotFound(err) {
			return err
		}
		if claimOwners(claim, s, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: podName(s, ordinal)}}, false) {
			claim.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(s, kind)}
		}
		_, err = c.client.CoreV1().PersistentVolumeClaims(s.Namespace).Create(ctx, claim, metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			c.recorder.Eventf(s, corev1.EventTypeWarning, "FailedCreate", "create Claim %s for Pod %s in StatefulSet %s failed error: %v", claim.Name, podName(s, ordinal), s.Name, err)
			return fmt.Errorf("claim %s: %w", claim.Name, err)
		}
	}
	return nil
}

// keepClaims writes down with what the claims of pods go, before those pods do.
func (c *controller) keepClaims(ctx context.Context, s *appsv1.StatefulSet, wanted, condemned []member) error {
	if len(s.Spec.VolumeClaimTemplates) == 0 {
		return nil
	}
	for i, m := range append(append([]member{}, wanted...), condemned...) {
		if m.pod == nil {
			continue
		}
		for _, claim := range claims(s, m.ordinal) {
			have, err := c.claims.PersistentVolumeClaims(s.Namespace).Get(claim.Name)
			if apierrors.IsNotFound(err) {
				continue
			}
			if err != nil {
				return err
			}
			have = have.DeepCopy()
			if !claimOwners(have, s, m.pod, i >= len(wanted)) {
				continue
			}
			if _, err := c.client.CoreV1().PersistentVolumeClaims(s.Namespace).Update(ctx, have, metav1.UpdateOptions{}); err != nil && !apierrors.IsNotFound(err) {
				return fmt.Errorf("owner of claim %s: %w", claim.Name, err)
			}
		}
	}
	return nil
}

func (c *controller) writeStatus(ctx context.Context, s *appsv1.StatefulSet, status appsv1.StatefulSetStatus) error {
	if apiequality.Semantic.DeepEqual(s.Status, status) {
		return nil
	}
	s = s.DeepCopy()
	s.Status = status
	_, err := c.client.AppsV1().StatefulSets(s.Namespace).UpdateStatus(ctx, s, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
