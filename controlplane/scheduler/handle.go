package scheduler

import (
	"context"
	"slices"
	"sync"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	restclient "k8s.io/client-go/rest"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/klog/v2"
	"k8s.io/kube-scheduler/framework"
)

// handle is what plugins get of the scheduler: it implements framework.Handle.
type handle struct{ *scheduler }

var _ framework.Handle = handle{}

func (h handle) ClientSet() kubernetes.Interface                        { return h.client }
func (h handle) KubeConfig() *restclient.Config                         { return h.kubeConfig }
func (h handle) SharedInformerFactory() informers.SharedInformerFactory { return h.informers }
func (h handle) ProfileName() string                                    { return h.name }
func (h handle) SnapshotSharedLister() framework.SharedLister           { return h.snap }
func (h handle) PodGroupManager() framework.PodGroupManager             { return groups{h.snap} }
func (h handle) EventRecorder() events.EventRecorderLogger              { return eventRecorder{h.recorder} }
func (h handle) Parallelizer() framework.Parallelizer                   { return parallelizer{} }

// What belongs to features that this scheduler does not have is nil: dynamic resource allocation, CSI limits, gangs,
// extenders, asynchronous API calls.
func (h handle) MutableSnapshotSharedLister() framework.MutableSnapshotSharedLister { return nil }
func (h handle) SharedDRAManager() framework.SharedDRAManager                       { return nil }
func (h handle) SharedCSIManager() framework.CSIManager                             { return nil }
func (h handle) Extenders() []framework.Extender                                    { return nil }
func (h handle) APIDispatcher() framework.APIDispatcher                             { return nil }
func (h handle) APICacher() framework.APICacher                                     { return nil }
func (h handle) SignPod(context.Context, *v1.Pod) framework.PodSignature            { return nil }

func (h handle) Activate(_ klog.Logger, pods map[string]*v1.Pod) {
	for _, p := range pods {
		h.queue.activate(p.UID)
	}
}

func (h handle) RunPreScorePlugins(ctx context.Context, s framework.CycleState, p *v1.Pod, nodes []framework.NodeInfo) *framework.Status {
	return h.extensions.preScores(ctx, s, p, nodes)
}
func (h handle) RunScorePlugins(ctx context.Context, s framework.CycleState, p *v1.Pod, nodes []framework.NodeInfo) ([]framework.NodePluginScores, *framework.Status) {
	return h.extensions.scores(ctx, s, p, nodes)
}
func (h handle) RunFilterPlugins(ctx context.Context, s framework.CycleState, p *v1.Pod, n framework.NodeInfo) *framework.Status {
	return h.extensions.filters(ctx, s, p, n)
}
func (h handle) RunReservePluginsReserve(ctx context.Context, s framework.CycleState, p *v1.Pod, node string) *framework.Status {
	return h.extensions.reserves(ctx, s, p, node)
}
func (h handle) RunReservePluginsUnreserve(ctx context.Context, s framework.CycleState, p *v1.Pod, node string) {
	h.extensions.unreserves(ctx, s, p, node)
}
func (h handle) RunPreFilterExtensionAddPod(ctx context.Context, s framework.CycleState, p *v1.Pod, add framework.PodInfo, n framework.NodeInfo) *framework.Status {
	return h.preFilterExtensions(s, func(x framework.PreFilterExtensions) *framework.Status { return x.AddPod(ctx, s, p, add, n) })
}
func (h handle) RunPreFilterExtensionRemovePod(ctx context.Context, s framework.CycleState, p *v1.Pod, gone framework.PodInfo, n framework.NodeInfo) *framework.Status {
	return h.preFilterExtensions(s, func(x framework.PreFilterExtensions) *framework.Status { return x.RemovePod(ctx, s, p, gone, n) })
}

func (h handle) preFilterExtensions(s framework.CycleState, f func(framework.PreFilterExtensions) *framework.Status) *framework.Status {
	for _, pl := range h.extensions.preFilter {
		x := pl.PreFilterExtensions()
		if x == nil || s.GetSkipFilterPlugins().Has(pl.Name()) {
			continue
		}
		if st := f(x); !st.IsSuccess() {
			return st.WithPlugin(pl.Name())
		}
	}
	return nil
}

// RunFilterPluginsWithNominatedPods filters with the pods that are nominated to the node and not less important
// counted as running there: room that was made for them is theirs. It filters without them too, since they may
// never come, and the pod must not depend on them.
func (h handle) RunFilterPluginsWithNominatedPods(ctx context.Context, s framework.CycleState, p *v1.Pod, n framework.NodeInfo) *framework.Status {
	var ahead []framework.PodInfo
	for _, o := range h.NominatedPodsForNode(n.Node().Name) {
		if o.GetPod().UID != p.UID && corev1.PodPriority(o.GetPod()) >= corev1.PodPriority(p) {
			ahead = append(ahead, o)
		}
	}
	if len(ahead) > 0 {
		with, state := n.Snapshot(), s.Clone()
		for _, o := range ahead {
			with.AddPodInfo(o)
			if st := h.RunPreFilterExtensionAddPod(ctx, state, p, o, with); !st.IsSuccess() {
				return st
			}
		}
		if st := h.extensions.filters(ctx, state, p, with); !st.IsSuccess() {
			return st
		}
	}
	return h.extensions.filters(ctx, s, p, n)
}

// nominator remembers pods that room is being made for. It implements framework.PodNominator.
type nominator struct {
	mu     sync.Mutex
	byNode map[string][]framework.PodInfo
}

func (m *nominator) AddNominatedPod(_ klog.Logger, p framework.PodInfo, info *framework.NominatingInfo) {
	m.DeleteNominatedPodIfExists(p.GetPod())
	node := p.GetPod().Status.NominatedNodeName
	if info.Mode() == framework.ModeOverride {
		node = info.NominatedNodeName
	}
	if node == "" {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.byNode == nil {
		m.byNode = map[string][]framework.PodInfo{}
	}
	m.byNode[node] = append(m.byNode[node], p)
}

func (m *nominator) DeleteNominatedPodIfExists(p *v1.Pod) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for node, pods := range m.byNode {
		if m.byNode[node] = slices.DeleteFunc(pods, func(o framework.PodInfo) bool { return o.GetPod().UID == p.UID }); len(m.byNode[node]) == 0 {
			delete(m.byNode, node)
		}
	}
}

func (m *nominator) UpdateNominatedPod(logger klog.Logger, old *v1.Pod, now framework.PodInfo) {
	m.mu.Lock()
	node := ""
	for name, pods := range m.byNode {
		if slices.ContainsFunc(pods, func(o framework.PodInfo) bool { return o.GetPod().UID == old.UID }) {
			node = name
		}
	}
	m.mu.Unlock()
	m.AddNominatedPod(logger, now, &framework.NominatingInfo{NominatingMode: framework.ModeOverride, NominatedNodeName: node})
}

func (m *nominator) NominatedPodsForNode(node string) []framework.PodInfo {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.byNode[node])
}

// parallelizer implements framework.Parallelizer.
type parallelizer struct{}

// parallelism is how many nodes are looked at side by side when there are many.
const parallelism = 8

func (parallelizer) Until(ctx context.Context, pieces int, f workqueue.DoWorkPieceFunc, _ string) {
	workqueue.ParallelizeUntil(ctx, parallelism, pieces, f)
}

// eventRecorder writes the framework's events through the recorder of core/v1 events.
type eventRecorder struct{ record.EventRecorder }

func (r eventRecorder) Eventf(regarding, _ runtime.Object, kind, reason, _, note string, args ...any) {
	r.EventRecorder.Eventf(regarding, kind, reason, note, args...)
}
func (r eventRecorder) WithLogger(klog.Logger) events.EventRecorderLogger { return r }

// IterateOverWaitingPods and the others below serve plugins of the Permit and PreBind points.
func (h handle) IterateOverWaitingPods(f func(framework.WaitingPod)) { h.permits.each(f) }
func (h handle) GetWaitingPod(uid types.UID) framework.WaitingPod {
	if w := h.permits.get(uid); w != nil {
		return w
	}
	return nil
}
func (h handle) RejectWaitingPod(uid types.UID) bool {
	w := h.permits.get(uid)
	return w != nil && w.Reject("", "removed")
}
func (h handle) AddPodInPreBind(uid types.UID, cancel context.CancelCauseFunc) {
	h.preBinding.Store(uid, &preBinding{cancel: cancel})
}
func (h handle) GetPodInPreBind(uid types.UID) framework.PodInPreBind {
	if p, ok := h.preBinding.Load(uid); ok {
		return p.(*preBinding)
	}
	return nil
}
func (h handle) RemovePodInPreBind(uid types.UID) { h.preBinding.Delete(uid) }
