// Package eviction watches what the node is short of. It says so (conditions of
// the Node), frees what nobody needs, and as a last resort ends pods: those that
// use more than they asked for before others, and the less important ones first
// ("Node-pressure Eviction" of the Kubernetes documentation).
package eviction

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/klog/v2"
)

// Signal is something that can run out.
type Signal string

// The signals, by their names in Kubernetes.
const (
	Memory      Signal = "memory.available"
	NodeFS      Signal = "nodefs.available"
	NodeInodes  Signal = "nodefs.inodesFree"
	ImageFS     Signal = "imagefs.available"
	ImageInodes Signal = "imagefs.inodesFree"
	PID         Signal = "pid.available"
)

// Level is how much there is: bytes, inodes or process ids.
type Level struct{ Available, Capacity uint64 }

// Threshold is the least that has to be available: a quantity, or a part of the capacity.
type Threshold struct {
	Signal   Signal
	Quantity uint64
	Percent  float64
}

// Defaults are Kubernetes' own (kubelet --eviction-hard on Linux), but for the space on disks: a part of 10 or 15 % of today's disks is so
// much that a machine in daily use is refused, though tens of gigabytes are free. k3s has 5 % too.
var Defaults = []Threshold{
	{Signal: Memory, Quantity: 100 << 20},
	{Signal: NodeFS, Percent: 5}, {Signal: NodeInodes, Percent: 5},
	{Signal: ImageFS, Percent: 5}, {Signal: ImageInodes, Percent: 5},
}

func (t Threshold) of(capacity uint64) uint64 {
	if t.Percent > 0 {
		return uint64(float64(capacity) * t.Percent / 100)
	}
	return t.Quantity
}

// Crossed lists the thresholds below which something is. What is not measured, or has no capacity (inodes on file
// systems that make them as needed), is not.
func Crossed(levels map[Signal]Level, thresholds []Threshold) []Threshold {
	var out []Threshold
	for _, t := range thresholds {
		if l, ok := levels[t.Signal]; ok && l.Capacity > 0 && l.Available < t.of(l.Capacity) {
			out = append(out, t)
		}
	}
	return out
}

// Condition is the Node's condition that a signal means.
func Condition(s Signal) corev1.NodeConditionType {
	switch s {
	case Memory:
		return corev1.NodeMemoryPressure
	case PID:
		return corev1.NodePIDPressure
	}
	return corev1.NodeDiskPressure
}

func (s Signal) resource() corev1.ResourceName {
	switch s {
	case Memory:
		return corev1.ResourceMemory
	case PID:
		return "pids"
	case NodeInodes, ImageInodes:
		return "inodes"
	}
	return corev1.ResourceEphemeralStorage
}

// Usage is what a pod uses, in all and by container.
type Usage struct {
	Pod        *corev1.Pod
	Memory     uint64
	Disk       uint64
	Containers map[string]ContainerUsage
	Volumes    map[string]uint64 // emptyDirs on disk
}

// ContainerUsage is what one container uses.
type ContainerUsage struct{ Memory, Disk uint64 }

// critical pods are never evicted: those of priority system-cluster-critical and above.
const critical = 2_000_000_000

func priority(p *corev1.Pod) int32 {
	if p.Spec.Priority == nil {
		return 0
	}
	return *p.Spec.Priority
}

func running(p *corev1.Pod) bool {
	return p.DeletionTimestamp == nil && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed
}

// Rank puts the pods that may be evicted into the order in which they are.
func Rank(pods []Usage, s Signal) []Usage {
	out := slices.DeleteFunc(slices.Clone(pods), func(u Usage) bool { return priority(u.Pod) >= critical || !running(u.Pod) })
	over := func(u Usage) int64 {
		used, name := u.Disk, corev1.ResourceEphemeralStorage
		if s == Memory {
			used, name = u.Memory, corev1.ResourceMemory
		}
		asked := int64(0)
		for _, c := range u.Pod.Spec.Containers {
			q := c.Resources.Requests[name]
			asked += q.Value()
		}
		return int64(used) - asked
	}
	slices.SortStableFunc(out, func(a, b Usage) int {
		x, y := over(a), over(b)
		switch {
		case x > 0 && y <= 0:
			return -1
		case y > 0 && x <= 0:
			return 1
		case priority(a.Pod) != priority(b.Pod):
			return int(int64(priority(a.Pod)) - int64(priority(b.Pod)))
		case x > y:
			return -1
		case x < y:
			return 1
		}
		return 0
	})
	return out
}

// Message says why a pod is evicted.
func Message(u Usage, t Threshold, l Level) string {
	var b strings.Builder
	fmt.Fprintf(&b, "The node was low on resource: %s. Threshold quantity: %s, available: %s. ", t.Signal.resource(), quantity(t.of(l.Capacity), t.Signal), quantity(l.Available, t.Signal))
	name := t.Signal.resource()
	if name != corev1.ResourceMemory && name != corev1.ResourceEphemeralStorage {
		return b.String()
	}
	for _, c := range u.Pod.Spec.Containers {
		used := u.Containers[c.Name].Disk
		if name == corev1.ResourceMemory {
			used = u.Containers[c.Name].Memory
		}
		if asked := c.Resources.Requests[name]; int64(used) > asked.Value() {
			fmt.Fprintf(&b, "Container %s was using %s, request is %s, has larger consumption of %s. ", c.Name, quantity(used, t.Signal), asked.String(), name)
		}
	}
	return b.String()
}

func quantity(n uint64, s Signal) string {
	format := resource.BinarySI
	if r := s.resource(); r == "inodes" || r == "pids" {
		format = resource.DecimalSI
	}
	return resource.NewQuantity(int64(n), format).String()
}

// Limits tells whether a pod has limits of its own on the disk.
func Limits(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Spec.Volumes, func(v corev1.Volume) bool { return v.EmptyDir != nil && v.EmptyDir.SizeLimit != nil }) ||
		slices.ContainsFunc(p.Spec.Containers, func(c corev1.Container) bool {
			_, ok := c.Resources.Limits[corev1.ResourceEphemeralStorage]
			return ok
		})
}

// OverLimit tells whether a pod uses more of the disk than its own limits allow, and how.
func OverLimit(u Usage) (message string, over bool) {
	for _, v := range u.Pod.Spec.Volumes {
		if v.EmptyDir != nil && v.EmptyDir.SizeLimit != nil && v.EmptyDir.SizeLimit.Sign() > 0 && int64(u.Volumes[v.Name]) > v.EmptyDir.SizeLimit.Value() {
			return fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %q. ", v.Name, v.EmptyDir.SizeLimit.String()), true
		}
	}
	var sum int64
	all := len(u.Pod.Spec.Containers) > 0
	for _, c := range u.Pod.Spec.Containers {
		limit, ok := c.Resources.Limits[corev1.ResourceEphemeralStorage]
		if !ok {
			all = false
			continue
		}
		if sum += limit.Value(); int64(u.Containers[c.Name].Disk) > limit.Value() {
			return fmt.Sprintf("Container %s exceeded its local ephemeral storage limit %q. ", c.Name, limit.String()), true
		}
	}
	if all && int64(u.Disk) > sum {
		return fmt.Sprintf("Pod ephemeral local storage usage exceeds the total limit of containers %s. ", resource.NewQuantity(sum, resource.BinarySI)), true
	}
	return "", false
}

// Config is what a Manager works with.
type Config struct {
	Thresholds []Threshold // nil: Defaults
	Levels     func(context.Context) map[Signal]Level
	// Usage is what pods use: all of them, or only those that have limits of their own on the disk.
	Usage func(ctx context.Context, all bool) []Usage
	// Reclaim frees disk space that no pod needs.
	Reclaim func(context.Context) error
	// Evict ends a pod.
	Evict func(p *corev1.Pod, message string)
	// Changed is called when a condition changed.
	Changed func()
}

const (
	checkEvery = 10 * time.Second
	// A condition stays for this long after its cause went (evictionPressureTransitionPeriod).
	transition = 5 * time.Minute
)

// Manager keeps the node's pressures.
type Manager struct {
	cfg Config

	mu   sync.Mutex
	last map[corev1.NodeConditionType]time.Time // that the condition held
	// short says of each condition that holds what is short.
	short map[corev1.NodeConditionType]string
}

// New returns a manager.
func New(cfg Config) *Manager {
	if cfg.Thresholds == nil {
		cfg.Thresholds = Defaults
	}
	return &Manager{cfg: cfg, last: map[corev1.NodeConditionType]time.Time{}, short: map[corev1.NodeConditionType]string{}}
}

// Pressure tells whether the node is short of what a condition means, and how short.
func (m *Manager) Pressure(c corev1.NodeConditionType) (detail string, short bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	at, ok := m.last[c]
	return m.short[c], ok && time.Since(at) < transition
}

// Admit tells whether a new pod may start; if not, why ("Node-pressure Eviction", "Node conditions").
func (m *Manager) Admit(p *corev1.Pod, bestEffort bool) (message string, ok bool) {
	if priority(p) >= critical {
		return "", true
	}
	var conditions []string
	if _, short := m.Pressure(corev1.NodeMemoryPressure); short && bestEffort {
		conditions = append(conditions, string(corev1.NodeMemoryPressure))
	}
	for _, c := range []corev1.NodeConditionType{corev1.NodeDiskPressure, corev1.NodePIDPressure} {
		if _, short := m.Pressure(c); short {
			conditions = append(conditions, string(c))
		}
	}
	if len(conditions) == 0 {
		return "", true
	}
	return fmt.Sprintf("The node had condition: %v. ", conditions), false
}

// Run looks at the node until ctx ends.
func (m *Manager) Run(ctx context.Context) {
	t := time.NewTicker(checkEvery)
	defer t.Stop()
	for {
		m.check(ctx)
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

func (m *Manager) check(ctx context.Context) {
	levels := m.cfg.Levels(ctx)
	crossed := Crossed(levels, m.cfg.Thresholds)
	m.note(crossed, levels)
	for _, u := range m.cfg.Usage(ctx, false) {
		if !running(u.Pod) {
			continue
		}
		if message, over := OverLimit(u); over {
			m.cfg.Evict(u.Pod, message)
		}
	}
	if len(crossed) == 0 {
		return
	}
	if slices.ContainsFunc(crossed, func(t Threshold) bool { return Condition(t.Signal) == corev1.NodeDiskPressure }) {
		if err := m.cfg.Reclaim(ctx); err != nil {
			klog.ErrorS(err, "Disk space could not be freed")
		}
		levels = m.cfg.Levels(ctx)
		if crossed = Crossed(levels, m.cfg.Thresholds); len(crossed) == 0 {
			return
		}
	}
	t := crossed[0] // one pod at a time: what its end frees is seen first
	if victims := Rank(m.cfg.Usage(ctx, true), t.Signal); len(victims) > 0 {
		m.cfg.Evict(victims[0].Pod, Message(victims[0], t, levels[t.Signal]))
		return
	}
	klog.InfoS("The node is short, but no pod may be evicted", "signal", t.Signal, "available", levels[t.Signal].Available)
}

// note keeps the conditions.
func (m *Manager) note(crossed []Threshold, levels map[Signal]Level) {
	m.mu.Lock()
	now := time.Now()
	changed := false
	for _, t := range crossed {
		c := Condition(t.Signal)
		at, ok := m.last[c]
		changed = changed || !ok || now.Sub(at) >= transition
		m.last[c] = now
		l := levels[t.Signal]
		m.short[c] = fmt.Sprintf("%s is %s, below %s", t.Signal, quantity(l.Available, t.Signal), quantity(t.of(l.Capacity), t.Signal))
	}
	for c, at := range m.last {
		if now.Sub(at) >= transition {
			delete(m.last, c)
			delete(m.short, c)
			changed = true
		}
	}
	m.mu.Unlock()
	if changed {
		m.cfg.Changed()
	}
}
