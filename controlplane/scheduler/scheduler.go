package scheduler

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"
	"k8s.io/kube-scheduler/framework"
)

// Config says for whom the scheduler works.
type Config struct {
	Client kubernetes.Interface
	// Name is the spec.schedulerName that it answers to; empty: default-scheduler.
	Name string
	// Plugins that run; nil: DefaultPlugins.
	Plugins []framework.Plugin
}

// retryAll looks at pods that did not fit again, in case an event was missed.
const retryAll = 5 * time.Minute

type scheduler struct {
	client   kubernetes.Interface
	name     string
	filters  []framework.FilterPlugin
	scores   []framework.ScorePlugin
	recorder record.EventRecorder
	queue    *podQueue

	mu    sync.Mutex
	nodes map[string]*nodeInfo
	// placed says where each pod counts: by the API, or by a decision whose binding is under way.
	placed map[types.UID]string
}

// Run schedules until ctx ends.
func Run(ctx context.Context, cfg Config) error {
	if cfg.Name == "" {
		cfg.Name = v1.DefaultSchedulerName
	}
	if cfg.Plugins == nil {
		cfg.Plugins = DefaultPlugins()
	}
	events := record.NewBroadcaster(record.WithContext(ctx))
	defer events.Shutdown()
	events.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: cfg.Client.CoreV1().Events("")})
	s := &scheduler{
		client: cfg.Client, name: cfg.Name, recorder: events.NewRecorder(scheme.Scheme, v1.EventSource{Component: cfg.Name}),
		queue: newPodQueue(), nodes: map[string]*nodeInfo{}, placed: map[types.UID]string{},
	}
	for _, p := range cfg.Plugins {
		if f, ok := p.(framework.FilterPlugin); ok {
			s.filters = append(s.filters, f)
		}
		if f, ok := p.(framework.ScorePlugin); ok {
			s.scores = append(s.scores, f)
		}
	}
	f := informers.NewSharedInformerFactoryWithOptions(cfg.Client, 0, informers.WithTransform(func(obj any) (any, error) {
		if m, ok := obj.(metav1.Object); ok {
			m.SetManagedFields(nil)
		}
		return obj, nil
	}))
	nodes, pods := f.Core().V1().Nodes().Informer(), f.Core().V1().Pods().Informer()
	if _, err := nodes.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: s.setNode, UpdateFunc: func(_, obj any) { s.setNode(obj) }, DeleteFunc: s.dropNode}); err != nil {
		return fmt.Errorf("scheduler: %w", err)
	}
	if _, err := pods.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: s.setPod, UpdateFunc: func(_, obj any) { s.setPod(obj) }, DeleteFunc: s.dropPod}); err != nil {
		return fmt.Errorf("scheduler: %w", err)
	}
	f.Start(ctx.Done())
	defer f.Shutdown()
	if !cache.WaitForCacheSync(ctx.Done(), nodes.HasSynced, pods.HasSynced) {
		return nil
	}
	retry := time.NewTicker(retryAll)
	defer retry.Stop()
	for {
		for p, ok := s.queue.pop(); ok; p, ok = s.queue.pop() {
			s.schedule(ctx, p)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-retry.C:
			s.queue.activate()
		case <-s.queue.wake:
		}
	}
}

func (s *scheduler) node(name string) *nodeInfo {
	if s.nodes[name] == nil {
		s.nodes[name] = newNodeInfo()
	}
	return s.nodes[name]
}

func (s *scheduler) setNode(obj any) {
	n := obj.(*v1.Node)
	s.mu.Lock()
	old := s.node(n.Name).node
	s.node(n.Name).SetNode(n)
	s.mu.Unlock()
	if old == nil || !slices.Equal(old.Spec.Taints, n.Spec.Taints) || old.Spec.Unschedulable != n.Spec.Unschedulable ||
		!mapsEqual(old.Labels, n.Labels) || !resourcesEqual(old.Status.Allocatable, n.Status.Allocatable) {
		s.queue.activate()
	}
}

func mapsEqual(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return true
}

func resourcesEqual(a, b v1.ResourceList) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || v.Cmp(w) != 0 {
			return false
		}
	}
	return true
}

func (s *scheduler) dropNode(obj any) {
	if t, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = t.Obj
	}
	n, ok := obj.(*v1.Node)
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// Its pods count on until they are gone, in case the node comes back.
	if info := s.nodes[n.Name]; info != nil {
		info.node = nil
		if len(info.pods) == 0 {
			delete(s.nodes, n.Name)
		}
	}
}

func finished(p *v1.Pod) bool {
	return p.Status.Phase == v1.PodSucceeded || p.Status.Phase == v1.PodFailed
}

func (s *scheduler) setPod(obj any) {
	p := obj.(*v1.Pod)
	switch {
	case p.Spec.NodeName != "":
		s.queue.forget(p.UID)
		s.mu.Lock()
		where, counted := s.placed[p.UID]
		freed := false
		if counted && (where != p.Spec.NodeName || finished(p)) {
			s.uncount(p)
			counted, freed = false, true
		}
		if !counted && !finished(p) {
			s.count(p, p.Spec.NodeName)
		}
		s.mu.Unlock()
		if freed {
			s.queue.activate()
		}
	case p.Spec.SchedulerName == s.name && p.DeletionTimestamp == nil && len(p.Spec.SchedulingGates) == 0 && !finished(p):
		s.mu.Lock()
		_, deciding := s.placed[p.UID]
		s.mu.Unlock()
		if !deciding && !s.queue.isWaiting(p) {
			s.queue.add(p)
		}
	default:
		s.queue.forget(p.UID)
	}
}

func (s *scheduler) dropPod(obj any) {
	if t, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = t.Obj
	}
	p, ok := obj.(*v1.Pod)
	if !ok {
		return
	}
	s.queue.forget(p.UID)
	s.mu.Lock()
	s.uncount(p)
	s.mu.Unlock()
	s.queue.activate()
}

// count and uncount are called with the lock held.
func (s *scheduler) count(p *v1.Pod, node string) {
	s.node(node).AddPodInfo(newPodInfo(p))
	s.placed[p.UID] = node
}

func (s *scheduler) uncount(p *v1.Pod) {
	if where, ok := s.placed[p.UID]; ok {
		if info := s.nodes[where]; info != nil {
			if err := info.RemovePod(klog.Background(), p); err != nil {
				klog.ErrorS(err, "Scheduler cache out of step")
			}
		}
		delete(s.placed, p.UID)
	}
}

// schedule makes one attempt.
func (s *scheduler) schedule(ctx context.Context, p *v1.Pod) {
	s.mu.Lock()
	node, why := s.choose(ctx, p)
	if node != "" {
		s.count(p, node) // counts at once: the next pod sees it
	}
	s.mu.Unlock()
	if node == "" {
		s.queue.park(p)
		s.report(ctx, p, why)
		return
	}
	go s.bind(ctx, p, node)
}

// choose filters and scores; it returns the node, or why there is none.
func (s *scheduler) choose(ctx context.Context, p *v1.Pod) (string, string) {
	state := newCycleState()
	reasons := map[string]int{}
	var fits []*nodeInfo
	total := 0
	for _, n := range s.nodes {
		if n.node == nil {
			continue
		}
		total++
		if st := s.filter(ctx, state, p, n); st.IsSuccess() {
			fits = append(fits, n)
		} else {
			for _, r := range st.Reasons() {
				reasons[r]++
			}
		}
	}
	if len(fits) == 0 {
		if total == 0 {
			return "", "no nodes available to schedule pods"
		}
		var parts []string
		for r, n := range reasons {
			parts = append(parts, fmt.Sprintf("%d %s", n, r))
		}
		sort.Strings(parts)
		return "", fmt.Sprintf("0/%d nodes are available: %s.", total, strings.Join(parts, ", "))
	}
	var best *nodeInfo
	var bestScore int64
	for _, n := range fits {
		var sum int64
		for _, sc := range s.scores {
			v, st := sc.Score(ctx, state, p, n)
			if !st.IsSuccess() {
				return "", fmt.Sprintf("plugin %s: %s", sc.Name(), st.Message())
			}
			sum += v
		}
		// Equal scores are decided by name, so that a decision can be repeated.
		if best == nil || sum > bestScore || sum == bestScore && n.node.Name < best.node.Name {
			best, bestScore = n, sum
		}
	}
	return best.node.Name, ""
}

func (s *scheduler) filter(ctx context.Context, state framework.CycleState, p *v1.Pod, n *nodeInfo) *framework.Status {
	for _, f := range s.filters {
		if st := f.Filter(ctx, state, p, n); !st.IsSuccess() {
			return st
		}
	}
	return nil
}

func (s *scheduler) bind(ctx context.Context, p *v1.Pod, node string) {
	err := s.client.CoreV1().Pods(p.Namespace).Bind(ctx, &v1.Binding{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, UID: p.UID},
		Target:     v1.ObjectReference{Kind: "Node", Name: node},
	}, metav1.CreateOptions{})
	if err == nil {
		s.recorder.Eventf(p, v1.EventTypeNormal, "Scheduled", "Successfully assigned %s/%s to %s", p.Namespace, p.Name, node)
		return
	}
	s.mu.Lock()
	s.uncount(p)
	s.mu.Unlock()
	if apierrors.IsNotFound(err) || ctx.Err() != nil {
		return
	}
	s.recorder.Eventf(p, v1.EventTypeWarning, "FailedScheduling", "binding rejected: %v", err)
	s.queue.park(p)
	s.queue.activate()
}

// report tells in an event and in the pod's status why it did not fit.
func (s *scheduler) report(ctx context.Context, p *v1.Pod, why string) {
	s.recorder.Event(p, v1.EventTypeWarning, "FailedScheduling", why)
	for _, c := range p.Status.Conditions {
		if c.Type == v1.PodScheduled && c.Status == v1.ConditionFalse && c.Message == why {
			return
		}
	}
	patch := fmt.Sprintf(`{"metadata":{"uid":%q},"status":{"conditions":[{"type":%q,"status":"False","reason":%q,"message":%q,"lastTransitionTime":%q}]}}`,
		p.UID, v1.PodScheduled, v1.PodReasonUnschedulable, why, time.Now().UTC().Format(time.RFC3339))
	_, err := s.client.CoreV1().Pods(p.Namespace).Patch(ctx, p.Name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status")
	if err != nil && !apierrors.IsNotFound(err) && ctx.Err() == nil {
		klog.ErrorS(err, "Status of a pod that does not fit", "pod", klog.KObj(p))
	}
}
