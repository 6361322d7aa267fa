package daemonset

import (
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/strake-io/strake/controlplane/controllers/pods"
	"github.com/strake-io/strake/controlplane/controllers/revisions"
)

// plan is what one pass does, and what it counts.
type plan struct {
	create []string // nodes
	remove []*corev1.Pod
	failed []*corev1.Pod // to be made anew, not too often
	status appsv1.DaemonSetStatus
	again  time.Duration // when a ready pod becomes available; 0: nobody to wait for
}

// site is what a node has of the daemon.
type site struct {
	node    string
	run     bool
	current []*corev1.Pod // of the present revision, the oldest first
	old     []*corev1.Pod // of others
}

func ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded
}

// decide compares nodes and pods.
func decide(d *appsv1.DaemonSet, nodes []*corev1.Node, owned []*corev1.Pod, hash string, now time.Time) plan {
	p := plan{status: *d.Status.DeepCopy()}
	p.status.ObservedGeneration = d.Generation
	p.status.CurrentNumberScheduled, p.status.NumberMisscheduled, p.status.DesiredNumberScheduled, p.status.NumberReady = 0, 0, 0, 0
	p.status.UpdatedNumberScheduled, p.status.NumberAvailable, p.status.NumberUnavailable = 0, 0, 0
	byNode := map[string][]*corev1.Pod{}
	for _, pod := range owned {
		if n := nodeOf(pod); n != "" {
			byNode[n] = append(byNode[n], pod)
		}
	}
	template := daemon(d)
	var sites []site
	for _, n := range nodes {
		run, stay := belongs(template, n)
		here := byNode[n.Name]
		delete(byNode, n.Name)
		if run {
			p.status.DesiredNumberScheduled++
		}
		if !run && len(here) == 0 {
			continue
		}
		s := site{node: n.Name, run: run}
		slices.SortFunc(here, func(a, b *corev1.Pod) int { return a.CreationTimestamp.Time.Compare(b.CreationTimestamp.Time) })
		for _, pod := range here {
			switch {
			case pod.DeletionTimestamp != nil:
			case !stay:
				p.remove = append(p.remove, pod)
			case ended(pod):
				p.failed = append(p.failed, pod)
			}
			if pod.Labels[revisions.Label] == hash {
				s.current = append(s.current, pod)
			} else {
				s.old = append(s.old, pod)
			}
		}
		p.count(d, s, now)
		if stay {
			sites = append(sites, s)
		}
	}
	// Pods of nodes that are gone go when their node's controller says so; those never bound have nowhere to go.
	for _, lost := range byNode {
		for _, pod := range lost {
			if pod.Spec.NodeName == "" && pod.DeletionTimestamp == nil {
				p.remove = append(p.remove, pod)
			}
		}
	}
	p.status.NumberUnavailable = p.status.DesiredNumberScheduled - p.status.NumberAvailable
	if d.DeletionTimestamp == nil {
		p.place(d, sites, now)
	} else {
		p.remove, p.failed = nil, nil
	}
	return p
}

func (p *plan) available(d *appsv1.DaemonSet, pod *corev1.Pod, now time.Time) bool {
	if pod.DeletionTimestamp != nil {
		return false
	}
	ok, left := pods.Available(pod, time.Duration(d.Spec.MinReadySeconds)*time.Second, now)
	if left > 0 && (p.again == 0 || left < p.again) {
		p.again = left
	}
	return ok
}

// count adds a node to the status: the pod that counts is the oldest, of the present revision if there is one.
func (p *plan) count(d *appsv1.DaemonSet, s site, now time.Time) {
	pod := oldest(s.current)
	if pod == nil {
		pod = oldest(s.old)
	}
	switch {
	case pod == nil:
		return
	case !s.run:
		p.status.NumberMisscheduled++
		return
	}
	p.status.CurrentNumberScheduled++
	if len(s.current) > 0 {
		p.status.UpdatedNumberScheduled++
	}
	ready, ok := false, false
	for _, each := range slices.Concat(s.current, s.old) {
		if each.DeletionTimestamp == nil {
			is, _ := pods.Ready(each)
			ready = ready || is
			ok = p.available(d, each, now) || ok
		}
	}
	if ready {
		p.status.NumberReady++
	}
	if ok {
		p.status.NumberAvailable++
	}
}

func oldest(list []*corev1.Pod) *corev1.Pod {
	for _, pod := range list {
		if pod.DeletionTimestamp == nil && !ended(pod) {
			return pod
		}
	}
	return nil
}

func living(list []*corev1.Pod) []*corev1.Pod {
	return slices.DeleteFunc(slices.Clone(list), func(p *corev1.Pod) bool { return p.DeletionTimestamp != nil || ended(p) })
}

// share reads a number or percentage of the nodes, rounded up.
func share(v *intstr.IntOrString, of int) int {
	if v == nil {
		return 0
	}
	n, err := intstr.GetScaledValueFromIntOrPercent(v, of, true)
	if err != nil {
		return 0
	}
	return n
}

// place makes daemons where they are missing and replaces those of other revisions, no more at once than the strategy says.
func (p *plan) place(d *appsv1.DaemonSet, sites []site, now time.Time) {
	rolling := d.Spec.UpdateStrategy.Type == appsv1.RollingUpdateDaemonSetStrategyType
	surge, most := 0, 0
	if r := d.Spec.UpdateStrategy.RollingUpdate; rolling && r != nil {
		desired := int(p.status.DesiredNumberScheduled)
		surge, most = share(r.MaxSurge, desired), share(r.MaxUnavailable, desired)
	}
	if rolling && surge == 0 {
		most = max(most, 1)
	}
	down, surging := 0, 0
	type candidate struct{ old *corev1.Pod }
	var swap []candidate // available pods of other revisions
	var doubled []string // nodes whose old pod is to get a companion
	for _, s := range sites {
		current, old := living(s.current), living(s.old)
		// Of several, the oldest of each revision stays.
		p.remove = append(p.remove, rest(current)...)
		p.remove = append(p.remove, rest(old)...)
		if !s.run {
			continue
		}
		switch {
		case len(current) == 0 && len(old) == 0:
			if !stopping(s) {
				p.create = append(p.create, s.node)
			}
			down++
		case len(current) > 0 && len(old) > 0:
			// The old one stays until its companion serves.
			surging++
			if p.available(d, current[0], now) || !p.available(d, old[0], now) {
				p.remove = append(p.remove, old[0])
			}
		case len(old) > 0 && !rolling, len(current) > 0 && p.available(d, current[0], now):
		case len(current) > 0:
			down++
		case surge > 0:
			doubled = append(doubled, s.node)
		case !p.available(d, old[0], now):
			// What doesn't serve can go at once: nobody loses anything.
			p.remove = append(p.remove, old[0])
			down++
		default:
			swap = append(swap, candidate{old[0]})
		}
	}
	for _, c := range swap[:min(len(swap), max(0, most-down))] {
		p.remove = append(p.remove, c.old)
	}
	p.create = append(p.create, doubled[:min(len(doubled), max(0, surge-surging))]...)
}

// stopping tells whether a node still has a pod that is on its way out, or one that ended and is to be removed first.
func stopping(s site) bool {
	return len(s.current)+len(s.old) > 0
}

func rest(list []*corev1.Pod) []*corev1.Pod {
	if len(list) < 2 {
		return nil
	}
	return list[1:]
}
