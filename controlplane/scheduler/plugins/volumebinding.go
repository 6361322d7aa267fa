package plugins

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/apimachinery/pkg/util/wait"
	corelisters "k8s.io/client-go/listers/core/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/component-helpers/storage/ephemeral"
	"k8s.io/component-helpers/storage/volume"
	"k8s.io/kube-scheduler/framework"
)

const (
	volumesByClass = "VolumeBinding: volumes by class"
	// bindTimeout is how long a pod's volumes may take to be made.
	bindTimeout = 10 * time.Minute
	bindPoll    = 100 * time.Millisecond
)

// volumeBinding keeps pods to nodes that reach their volumes. Claims whose class waits for a consumer are bound, or have volumes made, for the
// node that is chosen, before the pod is bound to it.
type volumeBinding struct {
	handle      framework.Handle
	claims      corelisters.PersistentVolumeClaimLister
	volumes     corelisters.PersistentVolumeLister
	classes     storagelisters.StorageClassLister
	volumeIndex cache.Indexer

	mu      sync.Mutex
	assumed map[string]*v1.PersistentVolumeClaim // volumes that are given to claims while nobody else knows it yet, by name
}

// NewVolumeBinding makes the plugin.
func NewVolumeBinding(_ context.Context, _ runtime.Object, h framework.Handle) (framework.Plugin, error) {
	f := h.SharedInformerFactory()
	volumes := f.Core().V1().PersistentVolumes()
	b := &volumeBinding{
		handle: h, claims: f.Core().V1().PersistentVolumeClaims().Lister(), volumes: volumes.Lister(), classes: f.Storage().V1().StorageClasses().Lister(),
		volumeIndex: volumes.Informer().GetIndexer(), assumed: map[string]*v1.PersistentVolumeClaim{},
	}
	return b, volumes.Informer().AddIndexers(cache.Indexers{volumesByClass: func(obj any) ([]string, error) {
		if v, ok := obj.(*v1.PersistentVolume); ok {
			return []string{volume.GetPersistentVolumeClass(v)}, nil
		}
		return nil, nil
	}})
}

// volumeState is what the pod's volumes ask for, and what each node has for them.
type volumeState struct {
	bound   []*v1.PersistentVolume
	waiting []*v1.PersistentVolumeClaim // for the pod's node

	mu     sync.Mutex
	byNode map[string]volumeDecision
}

type volumeDecision struct {
	bind   map[string]*v1.PersistentVolume // by claim; for the others volumes are made
	labels map[string]string               // of the node
}

func (s *volumeState) Clone() framework.StateData { return s }

const volumeKey framework.StateKey = "VolumeBinding"

func (*volumeBinding) Name() string { return "VolumeBinding" }

// podClaims are the names of the claims of a pod; own are made for it.
func podClaims(p *v1.Pod, each func(name string, own bool) *framework.Status) *framework.Status {
	for i := range p.Spec.Volumes {
		var st *framework.Status
		switch v := &p.Spec.Volumes[i]; {
		case v.PersistentVolumeClaim != nil:
			st = each(v.PersistentVolumeClaim.ClaimName, false)
		case v.Ephemeral != nil:
			st = each(ephemeral.VolumeClaimName(p, v), true)
		}
		if !st.IsSuccess() {
			return st
		}
	}
	return nil
}

// PreFilter sorts the pod's claims.
func (b *volumeBinding) PreFilter(_ context.Context, state framework.CycleState, p *v1.Pod, _ []framework.NodeInfo) (*framework.PreFilterResult, *framework.Status) {
	s := &volumeState{byNode: map[string]volumeDecision{}}
	never := func(format string, args ...any) *framework.Status {
		return framework.NewStatus(framework.UnschedulableAndUnresolvable, fmt.Sprintf(format, args...))
	}
	immediate := false
	st := podClaims(p, func(name string, own bool) *framework.Status {
		claim, err := b.claims.PersistentVolumeClaims(p.Namespace).Get(name)
		switch {
		case apierrors.IsNotFound(err) && own:
			return never("waiting for ephemeral volume controller to create the persistentvolumeclaim %q", name)
		case apierrors.IsNotFound(err):
			return never("persistentvolumeclaim %q not found", name)
		case err != nil:
			return framework.AsStatus(err)
		case claim.DeletionTimestamp != nil:
			return never("persistentvolumeclaim %q is being deleted", name)
		case claim.Status.Phase == v1.ClaimLost:
			return never("persistentvolumeclaim %q bound to non-existent persistentvolume %q", name, claim.Spec.VolumeName)
		}
		if own {
			if err := ephemeral.VolumeIsForPod(p, claim); err != nil {
				return never("%v", err)
			}
		}
		if fullyBound(claim) {
			v, err := b.volumes.Get(claim.Spec.VolumeName)
			if apierrors.IsNotFound(err) {
				return never("node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)")
			}
			if err != nil {
				return framework.AsStatus(err)
			}
			s.bound = append(s.bound, v)
			return nil
		}
		delayed, err := volume.IsDelayBindingMode(claim, b.classes)
		if err != nil {
			return framework.AsStatus(err)
		}
		// One that names its volume is the binder's, as are those whose class does not wait.
		if !delayed || claim.Spec.VolumeName != "" {
			immediate = true
			return nil
		}
		s.waiting = append(s.waiting, claim)
		return nil
	})
	switch {
	case !st.IsSuccess():
		return nil, st
	case immediate:
		return nil, never("pod has unbound immediate PersistentVolumeClaims")
	case len(s.bound)+len(s.waiting) == 0:
		return nil, framework.NewStatus(framework.Skip)
	}
	// Those that want most choose first, so that a small one does not take the only volume that is large enough.
	slices.SortStableFunc(s.waiting, func(x, y *v1.PersistentVolumeClaim) int {
		a, b := x.Spec.Resources.Requests[v1.ResourceStorage], y.Spec.Resources.Requests[v1.ResourceStorage]
		return b.Cmp(a)
	})
	s.waiting = slices.CompactFunc(s.waiting, func(x, y *v1.PersistentVolumeClaim) bool { return x.UID == y.UID })
	state.Write(volumeKey, s)
	return nil, nil
}

func fullyBound(claim *v1.PersistentVolumeClaim) bool {
	return claim.Spec.VolumeName != "" && metav1.HasAnnotation(claim.ObjectMeta, volume.AnnBindCompleted)
}

func (*volumeBinding) PreFilterExtensions() framework.PreFilterExtensions { return nil }

func readVolumes(state framework.CycleState) *volumeState {
	data, err := state.Read(volumeKey)
	if err != nil {
		return nil // a pod without claims
	}
	return data.(*volumeState)
}

// Filter finds volumes of this node for the claims that wait for one, or a way to make them.
func (b *volumeBinding) Filter(_ context.Context, state framework.CycleState, _ *v1.Pod, n framework.NodeInfo) *framework.Status {
	s, node := readVolumes(state), n.Node()
	if s == nil {
		return nil
	}
	for _, v := range s.bound {
		if volume.CheckNodeAffinity(v, node.Labels) != nil {
			return framework.NewStatus(framework.UnschedulableAndUnresolvable, "node(s) didn't match PersistentVolume's node affinity")
		}
	}
	d := volumeDecision{bind: map[string]*v1.PersistentVolume{}, labels: node.Labels}
	none := framework.NewStatus(framework.UnschedulableAndUnresolvable, "node(s) didn't find available persistent volumes to bind")
	taken := map[string]*v1.PersistentVolume{}
	for _, claim := range s.waiting {
		if chosen := claim.Annotations[volume.AnnSelectedNode]; chosen != "" && chosen != node.Name {
			return none // its volume is being made elsewhere
		}
		if claim.Annotations[volume.AnnSelectedNode] == "" {
			v, err := volume.FindMatchingVolume(claim, b.candidates(claim), node, taken, true, true)
			if err != nil {
				return framework.AsStatus(err)
			}
			if v != nil {
				d.bind[claim.Name], taken[v.Name] = v, v
				continue
			}
		}
		class, err := b.classes.Get(volume.GetPersistentVolumeClaimClass(claim))
		if err != nil {
			return framework.AsStatus(err)
		}
		if class.Provisioner == volume.NotSupportedProvisioner || !withinTopology(class.AllowedTopologies, node.Labels) {
			return none
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byNode[node.Name] = d
	return nil
}

// withinTopology tells whether a node's labels match all of one of the terms; without terms any node's do.
func withinTopology(terms []v1.TopologySelectorTerm, labels map[string]string) bool {
	return len(terms) == 0 || slices.ContainsFunc(terms, func(t v1.TopologySelectorTerm) bool {
		return !slices.ContainsFunc(t.MatchLabelExpressions, func(r v1.TopologySelectorLabelRequirement) bool {
			value, ok := labels[r.Key]
			return !ok || !slices.Contains(r.Values, value)
		})
	})
}

// candidates are the volumes of a claim's class that nobody was given a moment ago.
func (b *volumeBinding) candidates(claim *v1.PersistentVolumeClaim) []*v1.PersistentVolume {
	objs, err := b.volumeIndex.ByIndex(volumesByClass, volume.GetPersistentVolumeClaimClass(claim))
	if err != nil {
		return nil // the index is there from the start
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]*v1.PersistentVolume, 0, len(objs))
	for _, o := range objs {
		v := o.(*v1.PersistentVolume)
		if owner := b.assumed[v.Name]; owner == nil || owner.UID == claim.UID {
			out = append(out, v)
		}
	}
	return out
}

// Reserve gives the node's volumes to the pod's claims, as far as this scheduler is concerned.
func (b *volumeBinding) Reserve(_ context.Context, state framework.CycleState, _ *v1.Pod, node string) *framework.Status {
	s := readVolumes(state)
	if s == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, claim := range s.waiting {
		if v := s.byNode[node].bind[claim.Name]; v != nil {
			b.assumed[v.Name] = claim
		}
	}
	return nil
}

// Unreserve takes that back.
func (b *volumeBinding) Unreserve(_ context.Context, state framework.CycleState, _ *v1.Pod, node string) {
	if s := readVolumes(state); s != nil {
		b.forget(s.byNode[node])
	}
}

func (b *volumeBinding) forget(d volumeDecision) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, v := range d.bind {
		delete(b.assumed, v.Name)
	}
}

// PreBindPreFlight tells whether there is something to do.
func (*volumeBinding) PreBindPreFlight(_ context.Context, state framework.CycleState, _ *v1.Pod, _ string) (*framework.PreBindPreFlightResult, *framework.Status) {
	if s := readVolumes(state); s == nil || len(s.waiting) == 0 {
		return nil, framework.NewStatus(framework.Skip)
	}
	return nil, nil
}

// PreBind writes what was decided, and waits until the claims are bound.
func (b *volumeBinding) PreBind(ctx context.Context, state framework.CycleState, p *v1.Pod, node string) *framework.Status {
	s := readVolumes(state)
	d := s.byNode[node]
	api := b.handle.ClientSet().CoreV1()
	written := map[string]string{} // versions of claims that name the node
	for _, claim := range s.waiting {
		if v := d.bind[claim.Name]; v != nil {
			v, changed, err := volume.GetBindVolumeToClaim(v, claim)
			if err == nil && changed {
				_, err = api.PersistentVolumes().Update(ctx, v, metav1.UpdateOptions{})
			}
			if err != nil {
				return framework.AsStatus(fmt.Errorf("volume for claim %s: %w", claim.Name, err))
			}
			continue
		}
		claim = claim.DeepCopy()
		metav1.SetMetaDataAnnotation(&claim.ObjectMeta, volume.AnnSelectedNode, node)
		now, err := api.PersistentVolumeClaims(claim.Namespace).Update(ctx, claim, metav1.UpdateOptions{})
		if err != nil {
			return framework.AsStatus(fmt.Errorf("node for claim %s: %w", claim.Name, err))
		}
		written[claim.Name] = now.ResourceVersion
	}
	err := wait.PollUntilContextTimeout(ctx, bindPoll, bindTimeout, true, func(context.Context) (bool, error) {
		for _, claim := range s.waiting {
			now, err := b.claims.PersistentVolumeClaims(p.Namespace).Get(claim.Name)
			if err != nil {
				return false, err
			}
			if fullyBound(now) {
				v, err := b.volumes.Get(now.Spec.VolumeName)
				if apierrors.IsNotFound(err) {
					return false, nil // on its way
				}
				if err == nil {
					err = volume.CheckNodeAffinity(v, d.labels)
				}
				if err != nil {
					return false, fmt.Errorf("claim %s is bound to volume %s: %w", claim.Name, now.Spec.VolumeName, err)
				}
				continue
			}
			if version := written[claim.Name]; version != "" && now.Annotations[volume.AnnSelectedNode] == "" {
				if order, err := resourceversion.CompareResourceVersion(now.ResourceVersion, version); err == nil && order > 0 {
					return false, fmt.Errorf("provisioning failed for claim %s on node %s", claim.Name, node)
				}
			}
			return false, nil
		}
		return true, nil
	})
	if err != nil {
		if wait.Interrupted(err) && ctx.Err() == nil {
			err = errors.New("the pod's claims were not bound in time")
		}
		return framework.AsStatus(fmt.Errorf("binding volumes: %w", err))
	}
	b.forget(d)
	return nil
}

func (*volumeBinding) EventsToRegister(context.Context) ([]framework.ClusterEventWithHint, error) {
	return slices.Concat(
		on(framework.PersistentVolumeClaim, framework.Add|framework.Update), on(framework.PersistentVolume, framework.Add|framework.Update),
		on(framework.StorageClass, framework.Add|framework.Update), on(framework.Node, framework.Add|framework.UpdateNodeLabel),
	), nil
}

// volumeRestrictions keeps a claim of access mode ReadWriteOncePod to one pod.
type volumeRestrictions struct {
	handle framework.Handle
	claims corelisters.PersistentVolumeClaimLister
}

// NewVolumeRestrictions makes the plugin.
func NewVolumeRestrictions(_ context.Context, _ runtime.Object, h framework.Handle) (framework.Plugin, error) {
	return volumeRestrictions{h, h.SharedInformerFactory().Core().V1().PersistentVolumeClaims().Lister()}, nil
}

func (volumeRestrictions) Name() string { return "VolumeRestrictions" }
func (r volumeRestrictions) PreFilter(_ context.Context, _ framework.CycleState, p *v1.Pod, _ []framework.NodeInfo) (*framework.PreFilterResult, *framework.Status) {
	return nil, podClaims(p, func(name string, _ bool) *framework.Status {
		claim, err := r.claims.PersistentVolumeClaims(p.Namespace).Get(name)
		if err != nil || !slices.Contains(claim.Spec.AccessModes, v1.ReadWriteOncePod) {
			return nil // what is missing is VolumeBinding's to tell
		}
		if r.handle.SnapshotSharedLister().StorageInfos().IsPVCUsedByPods(p.Namespace + "/" + name) {
			return framework.NewStatus(framework.Unschedulable, "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode")
		}
		return nil
	})
}
func (volumeRestrictions) PreFilterExtensions() framework.PreFilterExtensions { return nil }
func (volumeRestrictions) EventsToRegister(context.Context) ([]framework.ClusterEventWithHint, error) {
	return slices.Concat(on(framework.AssignedPod, framework.Delete), on(framework.PersistentVolumeClaim, framework.Add|framework.Update)), nil
}
