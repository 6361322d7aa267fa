package scheduler

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/klog/v2"
	"k8s.io/kube-scheduler/framework"
)

// sequential is up to how many nodes are filtered one after the other; more are filtered side by side.
const sequential = 32

// misfit is why a pod found no node.
type misfit struct {
	message string
	plugins sets.Set[string] // that rejected it; none: an error
}

// schedule makes one attempt to place a pod. When it returns, the pod counts on its node, or is back in the queue.
func (s *scheduler) schedule(ctx context.Context, e *entry) {
	p := e.tried
	if s.cache.placed(p.UID) {
		s.queue.forget(p.UID)
		return
	}
	s.cache.snapshot(s.snap)
	state := newCycleState()
	node, why := s.choose(ctx, state, p)
	if why != nil {
		s.giveBack(ctx, e, *why)
		return
	}
	if !s.cache.assume(p, node) {
		s.queue.forget(p.UID)
		return
	}
	undo := func(st *framework.Status) {
		s.extensions.unreserves(ctx, state, p, node)
		s.cache.forget(p.UID)
		s.giveBack(ctx, e, refusal(st))
		s.queue.event(clusterEvent{framework.AssignedPod, framework.Delete, p, nil}) // the room is free again
	}
	if st := s.extensions.reserves(ctx, state, p, node); !st.IsSuccess() {
		undo(st)
		return
	}
	waits, st := s.extensions.permits(ctx, state, p, node)
	if !st.IsSuccess() {
		undo(st)
		return
	}
	var w *waitingPod
	if len(waits) > 0 {
		w = s.permits.add(p, waits)
	}
	s.bindings.Go(func() {
		if w != nil {
			if st := s.permits.wait(ctx, w); !st.IsSuccess() {
				undo(st)
				return
			}
		}
		if st := s.bind(ctx, state, p, node); !st.IsSuccess() {
			undo(st)
		}
	})
}

// bind runs beside the next cycles.
func (s *scheduler) bind(ctx context.Context, state framework.CycleState, p *v1.Pod, node string) *framework.Status {
	if len(s.extensions.preBind) > 0 {
		bindCtx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		handle{s}.AddPodInPreBind(p.UID, cancel)
		st := s.extensions.preBinds(bindCtx, state, p, node)
		in, _ := s.preBinding.LoadAndDelete(p.UID)
		if st.IsSuccess() && in != nil && !in.(*preBinding).MarkPrebound() {
			st = framework.AsStatus(context.Cause(bindCtx))
		}
		if !st.IsSuccess() {
			return st
		}
	}
	if st := s.extensions.binds(ctx, state, p, node); !st.IsSuccess() {
		return st
	}
	s.DeleteNominatedPodIfExists(p)
	s.queue.forget(p.UID)
	s.recorder.Eventf(p, v1.EventTypeNormal, "Scheduled", "Successfully assigned %s/%s to %s", p.Namespace, p.Name, node)
	for _, pl := range s.extensions.postBind {
		pl.PostBind(ctx, state, p, node)
	}
	return nil
}

func refusal(st *framework.Status) misfit {
	if st.IsRejected() {
		return misfit{st.Message(), sets.New(st.Plugin())}
	}
	return misfit{message: st.Message()}
}

// choose finds the node for a pod, or why there is none.
func (s *scheduler) choose(ctx context.Context, state framework.CycleState, p *v1.Pod) (string, *misfit) {
	total := len(s.snap.list)
	if total == 0 {
		return "", &misfit{"no nodes available to schedule pods", sets.New("")}
	}
	d := diagnosis{total: total, byNode: map[string]*framework.Status{}, plugins: sets.New[string]()}
	allowed, st := s.extensions.preFilters(ctx, state, p, s.snap.list)
	switch {
	case st.IsRejected():
		d.absent, d.preFilter = st, st.Message()
		d.plugins.Insert(st.Plugin())
		return "", s.postFilter(ctx, state, p, d)
	case !st.IsSuccess():
		return "", &misfit{message: st.Message()}
	}
	nodes := s.snap.list
	if !allowed.AllNodes() {
		nodes = slices.DeleteFunc(slices.Clone(nodes), func(n framework.NodeInfo) bool { return !allowed.NodeNames.Has(n.Node().Name) })
		d.absent = framework.NewStatus(framework.UnschedulableAndUnresolvable, "node(s) didn't satisfy plugin(s) [PreFilter]")
	}
	verdicts := make([]*framework.Status, len(nodes))
	filter := func(i int) { verdicts[i] = handle{s}.RunFilterPluginsWithNominatedPods(ctx, state, p, nodes[i]) }
	if len(nodes) > sequential {
		parallelizer{}.Until(ctx, len(nodes), filter, "filter")
	} else {
		for i := range nodes {
			filter(i)
		}
	}
	var fits []framework.NodeInfo
	for i, n := range nodes {
		switch st := verdicts[i]; {
		case st.IsSuccess():
			fits = append(fits, n)
		case !st.IsRejected():
			return "", &misfit{message: st.Message()}
		default:
			d.byNode[n.Node().Name] = st
			d.plugins.Insert(st.Plugin())
		}
	}
	switch len(fits) {
	case 0:
		return "", s.postFilter(ctx, state, p, d)
	case 1:
		return fits[0].Node().Name, nil
	}
	if st := s.extensions.preScores(ctx, state, p, fits); !st.IsSuccess() {
		return "", &misfit{message: st.Message()}
	}
	scores, st := s.extensions.scores(ctx, state, p, fits)
	if !st.IsSuccess() {
		return "", &misfit{message: st.Message()}
	}
	// Equal scores are decided by name, so that a decision can be repeated.
	best := scores[0]
	for _, sc := range scores[1:] {
		if sc.TotalScore > best.TotalScore {
			best = sc
		}
	}
	return best.Name, nil
}

// diagnosis is what the filters said of each node. It implements framework.NodeToStatusReader.
type diagnosis struct {
	total     int
	byNode    map[string]*framework.Status
	absent    *framework.Status // of nodes that were not even filtered
	preFilter string            // why no node was filtered
	plugins   sets.Set[string]
}

func (d diagnosis) Get(node string) *framework.Status {
	if st, ok := d.byNode[node]; ok {
		return st
	}
	return d.absent
}

func (d diagnosis) NodesForStatusCode(l framework.NodeInfoLister, code framework.Code) ([]framework.NodeInfo, error) {
	all, err := l.List()
	if err != nil {
		return nil, err
	}
	var out []framework.NodeInfo
	for _, n := range all {
		if d.Get(n.Node().Name).Code() == code {
			out = append(out, n)
		}
	}
	return out, nil
}

// message has the form that users know: "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) …."
func (d diagnosis) message(more string) string {
	text := fmt.Sprintf("0/%d nodes are available:", d.total)
	if d.preFilter != "" {
		text += " " + d.preFilter + "."
	} else {
		reasons := map[string]int{}
		for _, st := range d.byNode {
			for _, r := range st.Reasons() {
				reasons[r]++
			}
		}
		if n := d.total - len(d.byNode); n > 0 && d.absent != nil {
			for _, r := range d.absent.Reasons() {
				reasons[r] += n
			}
		}
		var parts []string
		for r, n := range reasons {
			parts = append(parts, fmt.Sprintf("%d %s", n, r))
		}
		slices.Sort(parts)
		text += " " + strings.Join(parts, ", ") + "."
	}
	if more != "" {
		text += " " + more
	}
	return text
}

// postFilter lets plugins make room for a pod that fits nowhere.
func (s *scheduler) postFilter(ctx context.Context, state framework.CycleState, p *v1.Pod, d diagnosis) *misfit {
	more := ""
	for _, pl := range s.extensions.postFilter {
		r, st := pl.PostFilter(ctx, state, p, d)
		more = st.Message()
		if r != nil && r.NominatingInfo != nil {
			s.nominate(ctx, p, r.NominatingInfo)
		}
		if !st.IsRejected() {
			break
		}
	}
	return &misfit{d.message(more), d.plugins}
}

// nominate notes the node that room is being made on.
func (s *scheduler) nominate(ctx context.Context, p *v1.Pod, info *framework.NominatingInfo) {
	if info.Mode() == framework.ModeNoop || info.NominatedNodeName == p.Status.NominatedNodeName {
		return
	}
	s.AddNominatedPod(klog.Background(), newPodInfo(p), info)
	patch := fmt.Sprintf(`{"metadata":{"uid":%q},"status":{"nominatedNodeName":%q}}`, p.UID, info.NominatedNodeName)
	s.patchStatus(ctx, p, patch)
}

// giveBack puts a pod back into the queue and tells why, in an event and in the pod's status.
func (s *scheduler) giveBack(ctx context.Context, e *entry, why misfit) {
	p := e.tried
	if ctx.Err() != nil || !s.queue.failed(e, why.plugins) {
		return
	}
	s.recorder.Event(p, v1.EventTypeWarning, "FailedScheduling", why.message)
	reason := v1.PodReasonUnschedulable
	if len(why.plugins) == 0 {
		reason = v1.PodReasonSchedulerError
	}
	for _, c := range p.Status.Conditions {
		if c.Type == v1.PodScheduled && c.Status == v1.ConditionFalse && c.Reason == reason && c.Message == why.message {
			return
		}
	}
	message := strings.ToValidUTF8(why.message, "?")
	s.patchStatus(ctx, p, fmt.Sprintf(`{"metadata":{"uid":%q},"status":{"conditions":[{"type":%q,"status":"False","reason":%q,"message":%s,"lastTransitionTime":%q}]}}`,
		p.UID, v1.PodScheduled, reason, quoteJSON(message), time.Now().UTC().Format(time.RFC3339)))
}

// patchStatus writes beside the cycle: nobody waits for it.
func (s *scheduler) patchStatus(ctx context.Context, p *v1.Pod, patch string) {
	s.bindings.Go(func() {
		_, err := s.client.CoreV1().Pods(p.Namespace).Patch(ctx, p.Name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status")
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) && ctx.Err() == nil {
			klog.ErrorS(err, "Status of a pod that does not fit", "pod", klog.KObj(p))
		}
	})
}
