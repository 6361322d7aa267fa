// Package revisions keeps the history of what StatefulSets and DaemonSets make: a ControllerRevision for
// each template, in the form that `kubectl rollout history` and `undo` read.
package revisions

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/client-go/kubernetes"
	appslisters "k8s.io/client-go/listers/apps/v1"

	"github.com/strake-io/strake/controlplane/controllers/pods"
)

// Label tells by which revision a pod was made. Its value is the revision's name for StatefulSets and its hash for
// DaemonSets.
const Label = appsv1.ControllerRevisionHashLabelKey

// History reads and writes the revisions of one kind of owner.
type History struct {
	Client kubernetes.Interface
	Lister appslisters.ControllerRevisionLister
	Kind   schema.GroupVersionKind
}

// Owner is what a revision is of.
type Owner struct {
	metav1.Object
	Selector labels.Selector
	Template *corev1.PodTemplateSpec
	// Collisions counts the names that another's revision had taken.
	Collisions *int32
	Live       func(context.Context) (metav1.Object, error)
}

// Sync returns the owner's revisions, the oldest first, and the one of its present template, which it makes where it
// is missing and puts at the end where the owner has come back to it.
func (h *History) Sync(ctx context.Context, o Owner) (all []*appsv1.ControllerRevision, now *appsv1.ControllerRevision, collisions int32, err error) {
	if o.Collisions != nil {
		collisions = *o.Collisions
	}
	if all, err = h.owned(ctx, o); err != nil {
		return nil, nil, collisions, err
	}
	data, err := encode(o.Template)
	if err != nil {
		return nil, nil, collisions, fmt.Errorf("revision of %s: %w", o.GetName(), err)
	}
	next := int64(1)
	if len(all) > 0 {
		next = all[len(all)-1].Revision + 1
	}
	for i := len(all) - 1; i >= 0; i-- {
		r := all[i]
		if !same(r.Data.Raw, data) {
			continue
		}
		if i < len(all)-1 {
			r = r.DeepCopy()
			r.Revision = next
			if r, err = h.Client.AppsV1().ControllerRevisions(r.Namespace).Update(ctx, r, metav1.UpdateOptions{}); err != nil {
				return nil, nil, collisions, fmt.Errorf("revision %s: %w", r.GetName(), err)
			}
			all = append(slices.Delete(all, i, i+1), r)
		}
		return all, r, collisions, nil
	}
	for {
		r, err := h.make(ctx, o, data, next, collisions)
		if !apierrors.IsAlreadyExists(err) {
			if err != nil {
				return nil, nil, collisions, fmt.Errorf("revision of %s: %w", o.GetName(), err)
			}
			return append(all, r), r, collisions, nil
		}
		// The cache lags behind ourselves, or another's revision has this name.
		have, err := h.Client.AppsV1().ControllerRevisions(o.GetNamespace()).Get(ctx, h.name(o, data, collisions), metav1.GetOptions{})
		if err != nil {
			return nil, nil, collisions, fmt.Errorf("revision of %s: %w", o.GetName(), err)
		}
		if metav1.IsControlledBy(have, o) && same(have.Data.Raw, data) {
			return append(all, have), have, collisions, nil
		}
		collisions++
	}
}

func (h *History) name(o Owner, data []byte, collisions int32) string {
	return o.GetName() + "-" + hash(data, collisions)
}

func (h *History) make(ctx context.Context, o Owner, data []byte, revision int64, collisions int32) (*appsv1.ControllerRevision, error) {
	l := map[string]string{}
	maps.Copy(l, o.Template.Labels)
	l[Label] = hash(data, collisions)
	r := &appsv1.ControllerRevision{
		ObjectMeta: metav1.ObjectMeta{
			Name: h.name(o, data, collisions), Namespace: o.GetNamespace(), Labels: l, Annotations: maps.Clone(o.GetAnnotations()),
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(o, h.Kind)},
		},
		Data: runtime.RawExtension{Raw: data}, Revision: revision,
	}
	return h.Client.AppsV1().ControllerRevisions(o.GetNamespace()).Create(ctx, r, metav1.CreateOptions{})
}

// owned lists the owner's revisions, the oldest first, and adopts strays that it selects.
func (h *History) owned(ctx context.Context, o Owner) ([]*appsv1.ControllerRevision, error) {
	list, err := h.Lister.ControllerRevisions(o.GetNamespace()).List(labels.Everything())
	if err != nil {
		return nil, err
	}
	var all []*appsv1.ControllerRevision
	checked := false
	for _, r := range list {
		switch ref := metav1.GetControllerOfNoCopy(r); {
		case ref != nil && ref.UID == o.GetUID():
			all = append(all, r)
		case ref == nil && r.DeletionTimestamp == nil && o.GetDeletionTimestamp() == nil && !o.Selector.Empty() && o.Selector.Matches(labels.Set(r.Labels)):
			if !checked {
				if err := pods.Standing(ctx, o, o.Live); err != nil {
					return nil, err
				}
				checked = true
			}
			r = r.DeepCopy()
			r.OwnerReferences = append(r.OwnerReferences, *metav1.NewControllerRef(o, h.Kind))
			if r, err = h.Client.AppsV1().ControllerRevisions(r.Namespace).Update(ctx, r, metav1.UpdateOptions{}); err != nil {
				return nil, fmt.Errorf("adopt revision: %w", err)
			}
			all = append(all, r)
		}
	}
	slices.SortFunc(all, func(a, b *appsv1.ControllerRevision) int {
		return cmp.Or(cmp.Compare(a.Revision, b.Revision), a.CreationTimestamp.Time.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	return all, nil
}

// Trim removes the oldest revisions that nothing uses, but for so many.
func (h *History) Trim(ctx context.Context, all []*appsv1.ControllerRevision, limit int32, used func(*appsv1.ControllerRevision) bool) error {
	var idle []*appsv1.ControllerRevision
	for _, r := range all {
		if !used(r) {
			idle = append(idle, r)
		}
	}
	for _, r := range idle[:max(0, len(idle)-int(limit))] {
		err := h.Client.AppsV1().ControllerRevisions(r.Namespace).Delete(ctx, r.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(r.UID))})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return fmt.Errorf("old revision %s: %w", r.Name, err)
		}
	}
	return nil
}

// Template returns what a revision keeps.
func Template(r *appsv1.ControllerRevision) (*corev1.PodTemplateSpec, error) {
	var held struct {
		Spec struct {
			Template corev1.PodTemplateSpec `json:"template"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(r.Data.Raw, &held); err != nil {
		return nil, fmt.Errorf("revision %s: %w", r.Name, err)
	}
	return &held.Spec.Template, nil
}

// encode makes of a template the strategic merge patch that puts it back in place of another.
func encode(t *corev1.PodTemplateSpec) ([]byte, error) {
	raw, err := json.Marshal(t)
	if err != nil {
		return nil, err
	}
	var template map[string]any
	if err := json.Unmarshal(raw, &template); err != nil {
		return nil, err
	}
	template["$patch"] = "replace"
	return json.Marshal(map[string]any{"spec": map[string]any{"template": template}})
}

// same compares what revisions hold, not how it is spelt.
func same(a, b []byte) bool {
	if bytes.Equal(a, b) {
		return true
	}
	var x, y any
	if json.Unmarshal(a, &x) != nil || json.Unmarshal(b, &y) != nil {
		return false
	}
	p, err := json.Marshal(x)
	q, qErr := json.Marshal(y)
	return err == nil && qErr == nil && bytes.Equal(p, q)
}

func hash(data []byte, collisions int32) string {
	h := fnv.New32a()
	h.Write(data)
	if collisions > 0 {
		fmt.Fprintf(h, "/%d", collisions)
	}
	return rand.SafeEncodeString(strconv.FormatUint(uint64(h.Sum32()), 10))
}
