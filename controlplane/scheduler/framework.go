package scheduler

import (
	"context"
	"fmt"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/kube-scheduler/framework"
)

// Plugin says how to make a plugin, and what its score weighs.
type Plugin struct {
	// New makes it. Its signature is that of every plugin written for the framework.
	New  func(ctx context.Context, args runtime.Object, h framework.Handle) (framework.Plugin, error)
	Args runtime.Object
	// Weight of the plugin's score among all; zero means one.
	Weight int64
}

// extensions are a scheduler's plugins by the points where they are called.
type extensions struct {
	preEnqueue []framework.PreEnqueuePlugin
	queueSort  framework.QueueSortPlugin
	preFilter  []framework.PreFilterPlugin
	filter     []framework.FilterPlugin
	postFilter []framework.PostFilterPlugin
	preScore   []framework.PreScorePlugin
	score      []framework.ScorePlugin
	weights    map[string]int64
	reserve    []framework.ReservePlugin
	permit     []framework.PermitPlugin
	preBind    []framework.PreBindPlugin
	bind       []framework.BindPlugin
	postBind   []framework.PostBindPlugin
	hints      map[string][]framework.ClusterEventWithHint
}

func newExtensions(ctx context.Context, plugins []Plugin, h framework.Handle) (*extensions, error) {
	x := &extensions{weights: map[string]int64{}, hints: map[string][]framework.ClusterEventWithHint{}}
	for _, c := range plugins {
		p, err := c.New(ctx, c.Args, h)
		if err != nil {
			return nil, fmt.Errorf("scheduler plugin: %w", err)
		}
		if _, twice := x.weights[p.Name()]; twice {
			return nil, fmt.Errorf("scheduler plugin %s is configured twice", p.Name())
		}
		x.weights[p.Name()] = max(c.Weight, 1)
		collect(&x.preEnqueue, p)
		collect(&x.preFilter, p)
		collect(&x.filter, p)
		collect(&x.postFilter, p)
		collect(&x.preScore, p)
		collect(&x.score, p)
		collect(&x.reserve, p)
		collect(&x.permit, p)
		collect(&x.preBind, p)
		collect(&x.bind, p)
		collect(&x.postBind, p)
		if q, ok := p.(framework.QueueSortPlugin); ok {
			if x.queueSort != nil {
				return nil, fmt.Errorf("scheduler plugins %s and %s both sort the queue; there can be only one", x.queueSort.Name(), q.Name())
			}
			x.queueSort = q
		}
		if e, ok := p.(framework.EnqueueExtensions); ok {
			if x.hints[p.Name()], err = e.EventsToRegister(ctx); err != nil {
				return nil, fmt.Errorf("scheduler plugin %s: %w", p.Name(), err)
			}
		}
	}
	if x.queueSort == nil || len(x.bind) == 0 {
		return nil, fmt.Errorf("the scheduler needs a plugin that sorts the queue and one that binds")
	}
	return x, nil
}

// collect appends the plugin if it is of this kind.
func collect[T any](to *[]T, p framework.Plugin) {
	if x, ok := p.(T); ok {
		*to = append(*to, x)
	}
}

// hold returns the name of the plugin that holds a pod back from being tried.
func (x *extensions) hold(ctx context.Context, p *v1.Pod) string {
	for _, pl := range x.preEnqueue {
		if !pl.PreEnqueue(ctx, p).IsSuccess() {
			return pl.Name()
		}
	}
	return ""
}

// preFilters runs all PreFilter plugins; the result names the nodes that are left, nil: all.
func (x *extensions) preFilters(ctx context.Context, state framework.CycleState, p *v1.Pod, nodes []framework.NodeInfo) (*framework.PreFilterResult, *framework.Status) {
	skip := sets.New[string]()
	var result *framework.PreFilterResult
	for _, pl := range x.preFilter {
		r, st := pl.PreFilter(ctx, state, p, nodes)
		switch {
		case st.IsSkip():
			skip.Insert(pl.Name())
		case !st.IsSuccess():
			return nil, st.WithPlugin(pl.Name())
		case !r.AllNodes():
			if result = result.Merge(r); len(result.NodeNames) == 0 {
				return nil, framework.NewStatus(framework.UnschedulableAndUnresolvable, "node(s) didn't satisfy plugin(s) "+fmt.Sprint([]string{pl.Name()})).WithPlugin(pl.Name())
			}
		}
	}
	state.SetSkipFilterPlugins(skip)
	return result, nil
}

// filters runs the Filter plugins on a node until one rejects it.
func (x *extensions) filters(ctx context.Context, state framework.CycleState, p *v1.Pod, n framework.NodeInfo) *framework.Status {
	skip := state.GetSkipFilterPlugins()
	for _, pl := range x.filter {
		if skip.Has(pl.Name()) {
			continue
		}
		if st := pl.Filter(ctx, state, p, n); !st.IsSuccess() {
			if !st.IsRejected() {
				st = framework.AsStatus(fmt.Errorf("filter plugin %s: %w", pl.Name(), st.AsError()))
			}
			return st.WithPlugin(pl.Name())
		}
	}
	return nil
}

func (x *extensions) preScores(ctx context.Context, state framework.CycleState, p *v1.Pod, nodes []framework.NodeInfo) *framework.Status {
	skip := sets.New[string]()
	for _, pl := range x.preScore {
		switch st := pl.PreScore(ctx, state, p, nodes); {
		case st.IsSkip():
			skip.Insert(pl.Name())
		case !st.IsSuccess():
			return framework.AsStatus(fmt.Errorf("prescore plugin %s: %w", pl.Name(), st.AsError()))
		}
	}
	state.SetSkipScorePlugins(skip)
	return nil
}

// scores runs the Score plugins on all nodes, normalises and weighs.
func (x *extensions) scores(ctx context.Context, state framework.CycleState, p *v1.Pod, nodes []framework.NodeInfo) ([]framework.NodePluginScores, *framework.Status) {
	out := make([]framework.NodePluginScores, len(nodes))
	for i, n := range nodes {
		out[i].Name = n.Node().Name
	}
	skip := state.GetSkipScorePlugins()
	for _, pl := range x.score {
		if skip.Has(pl.Name()) {
			continue
		}
		fail := func(err error) ([]framework.NodePluginScores, *framework.Status) {
			return nil, framework.AsStatus(fmt.Errorf("score plugin %s: %w", pl.Name(), err))
		}
		list := make(framework.NodeScoreList, len(nodes))
		for i, n := range nodes {
			v, st := pl.Score(ctx, state, p, n)
			if !st.IsSuccess() {
				return fail(st.AsError())
			}
			list[i] = framework.NodeScore{Name: n.Node().Name, Score: v}
			out[i].RawScores = append(out[i].RawScores, framework.PluginScore{Name: pl.Name(), Score: v})
		}
		if ext := pl.ScoreExtensions(); ext != nil {
			if st := ext.NormalizeScore(ctx, state, p, list); !st.IsSuccess() {
				return fail(st.AsError())
			}
		}
		for i, v := range list {
			if v.Score < framework.MinScore || v.Score > framework.MaxScore {
				return fail(fmt.Errorf("score %d of node %s is not within %d and %d", v.Score, v.Name, framework.MinScore, framework.MaxScore))
			}
			weighed := v.Score * x.weights[pl.Name()]
			out[i].Scores = append(out[i].Scores, framework.PluginScore{Name: pl.Name(), Score: weighed})
			out[i].TotalScore += weighed
		}
	}
	return out, nil
}

func (x *extensions) reserves(ctx context.Context, state framework.CycleState, p *v1.Pod, node string) *framework.Status {
	for _, pl := range x.reserve {
		if st := pl.Reserve(ctx, state, p, node); !st.IsSuccess() {
			return st.WithPlugin(pl.Name())
		}
	}
	return nil
}

// unreserves runs in the opposite order.
func (x *extensions) unreserves(ctx context.Context, state framework.CycleState, p *v1.Pod, node string) {
	for _, pl := range slices.Backward(x.reserve) {
		pl.Unreserve(ctx, state, p, node)
	}
}

// permits asks whether the pod may be bound; waits holds the plugins that want to be waited for, and how long.
func (x *extensions) permits(ctx context.Context, state framework.CycleState, p *v1.Pod, node string) (waits map[string]time.Duration, st *framework.Status) {
	for _, pl := range x.permit {
		st, wait := pl.Permit(ctx, state, p, node)
		switch {
		case st.IsSuccess():
		case st.IsWait():
			if waits == nil {
				waits = map[string]time.Duration{}
			}
			waits[pl.Name()] = min(wait, maxPermitWait)
		default:
			return nil, st.WithPlugin(pl.Name())
		}
	}
	return waits, nil
}

func (x *extensions) preBinds(ctx context.Context, state framework.CycleState, p *v1.Pod, node string) *framework.Status {
	for _, pl := range x.preBind {
		_, st := pl.PreBindPreFlight(ctx, state, p, node)
		if st.IsSkip() {
			continue
		}
		if st.IsSuccess() {
			st = pl.PreBind(ctx, state, p, node)
		}
		if !st.IsSuccess() {
			return st.WithPlugin(pl.Name())
		}
	}
	return nil
}

func (x *extensions) binds(ctx context.Context, state framework.CycleState, p *v1.Pod, node string) *framework.Status {
	for _, pl := range x.bind {
		st := pl.Bind(ctx, state, p, node)
		if st.IsSkip() {
			continue
		}
		if !st.IsSuccess() {
			st = st.WithPlugin(pl.Name())
		}
		return st
	}
	return framework.AsStatus(fmt.Errorf("no plugin binds pod %s/%s", p.Namespace, p.Name))
}
