package scheduler

import (
	"fmt"
	"maps"
	"slices"
	"sync/atomic"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	ndf "k8s.io/component-helpers/nodedeclaredfeatures"
	resourcehelper "k8s.io/component-helpers/resource"
	"k8s.io/klog/v2"
	"k8s.io/kube-scheduler/framework"
)

// assumedRequests are what a container counts for in scores if it requests nothing: it does need something.
var assumedRequests = v1.ResourceList{v1.ResourceCPU: resource.MustParse("100m"), v1.ResourceMemory: resource.MustParse("200Mi")}

// resources implements framework.Resource.
type resources struct {
	milliCPU, memory, ephemeral int64
	pods                        int
	scalar                      map[v1.ResourceName]int64
}

func newResources(l v1.ResourceList) *resources {
	r := &resources{}
	for name, q := range l {
		switch name {
		case v1.ResourceCPU:
			r.milliCPU = q.MilliValue()
		case v1.ResourceMemory:
			r.memory = q.Value()
		case v1.ResourceEphemeralStorage:
			r.ephemeral = q.Value()
		case v1.ResourcePods:
			r.pods = int(q.Value())
		default:
			if r.scalar == nil {
				r.scalar = map[v1.ResourceName]int64{}
			}
			r.scalar[name] = q.Value()
		}
	}
	return r
}

func (r *resources) add(o *resources, sign int64) {
	r.milliCPU += sign * o.milliCPU
	r.memory += sign * o.memory
	r.ephemeral += sign * o.ephemeral
	for name, n := range o.scalar {
		if r.scalar == nil {
			r.scalar = map[v1.ResourceName]int64{}
		}
		r.scalar[name] += sign * n
	}
}

func (r *resources) clone() *resources {
	c := *r
	c.scalar = maps.Clone(r.scalar)
	return &c
}

func (r *resources) GetMilliCPU() int64         { return r.milliCPU }
func (r *resources) GetMemory() int64           { return r.memory }
func (r *resources) GetEphemeralStorage() int64 { return r.ephemeral }
func (r *resources) GetAllowedPodNumber() int   { return r.pods }
func (r *resources) GetScalarResources() map[v1.ResourceName]int64 {
	return r.scalar
}
func (r *resources) SetMaxResource(l v1.ResourceList) {
	o := newResources(l)
	r.milliCPU, r.memory, r.ephemeral = max(r.milliCPU, o.milliCPU), max(r.memory, o.memory), max(r.ephemeral, o.ephemeral)
	for name, n := range o.scalar {
		if r.scalar == nil {
			r.scalar = map[v1.ResourceName]int64{}
		}
		r.scalar[name] = max(r.scalar[name], n)
	}
}

// podInfo implements framework.PodInfo.
type podInfo struct {
	pod             *v1.Pod
	requests, non0  *resources
	affinity, anti  []framework.AffinityTerm
	prefer, preferN []framework.WeightedAffinityTerm
}

var _ framework.PodInfo = (*podInfo)(nil)

// newPodInfo computes what plugins ask of a pod again and again. Terms with a selector that can't be read are
// left out; validation keeps such pods away.
func newPodInfo(p *v1.Pod) *podInfo {
	i := &podInfo{
		pod:      p,
		requests: newResources(resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{UseStatusResources: true})),
		non0:     newResources(resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{UseStatusResources: true, NonMissingContainerRequests: assumedRequests})),
	}
	a := p.Spec.Affinity
	if a == nil {
		return i
	}
	log := func(err error) {
		if err != nil {
			klog.ErrorS(err, "Affinity of a pod", "pod", klog.KObj(p))
		}
	}
	var err error
	i.affinity, err = framework.GetAffinityTerms(p, framework.GetPodAffinityTerms(a))
	log(err)
	i.anti, err = framework.GetAffinityTerms(p, framework.GetPodAntiAffinityTerms(a))
	log(err)
	if a.PodAffinity != nil {
		i.prefer, err = framework.GetWeightedAffinityTerms(p, a.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution)
		log(err)
	}
	if a.PodAntiAffinity != nil {
		i.preferN, err = framework.GetWeightedAffinityTerms(p, a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution)
		log(err)
	}
	return i
}

func (p *podInfo) GetPod() *v1.Pod                                                 { return p.pod }
func (p *podInfo) GetRequiredAffinityTerms() []framework.AffinityTerm              { return p.affinity }
func (p *podInfo) GetRequiredAntiAffinityTerms() []framework.AffinityTerm          { return p.anti }
func (p *podInfo) GetPreferredAffinityTerms() []framework.WeightedAffinityTerm     { return p.prefer }
func (p *podInfo) GetPreferredAntiAffinityTerms() []framework.WeightedAffinityTerm { return p.preferN }
func (p *podInfo) CalculateResource() framework.PodResource {
	return framework.PodResource{Resource: p.requests, Non0CPU: p.non0.milliCPU, Non0Mem: p.non0.memory}
}

func (p *podInfo) hasAffinity() bool {
	return len(p.affinity)+len(p.anti)+len(p.prefer)+len(p.preferN) > 0
}

// generations numbers all changes of all nodes, so that a node that was deleted and came back is never taken for the old one.
var generations atomic.Int64

// nodeInfo implements framework.NodeInfo: a node and the pods that are, or are about to be, on it.
type nodeInfo struct {
	node                 *v1.Node
	pods                 []framework.PodInfo
	affinity, anti, wide []framework.PodInfo // with any affinity; with required anti-affinity; with one of a wider topology than the host
	ports                framework.HostPortInfo
	claims               map[string]int
	requested            *resources
	nonZero              *resources
	allocatable          *resources
	generation           int64
}

var _ framework.NodeInfo = (*nodeInfo)(nil)

func newNodeInfo() *nodeInfo {
	return &nodeInfo{
		ports: framework.HostPortInfo{}, claims: map[string]int{}, requested: &resources{}, nonZero: &resources{}, allocatable: &resources{},
		generation: generations.Add(1),
	}
}

func (n *nodeInfo) Node() *v1.Node                                       { return n.node }
func (n *nodeInfo) GetPods() []framework.PodInfo                         { return n.pods }
func (n *nodeInfo) GetPodsWithAffinity() []framework.PodInfo             { return n.affinity }
func (n *nodeInfo) GetPodsWithRequiredAntiAffinity() []framework.PodInfo { return n.anti }
func (n *nodeInfo) GetPodsWithRequiredNonHostScopedAntiAffinity() []framework.PodInfo {
	return n.wide
}
func (n *nodeInfo) GetUsedPorts() framework.HostPortInfo                    { return n.ports }
func (n *nodeInfo) GetRequested() framework.Resource                        { return n.requested }
func (n *nodeInfo) GetNonZeroRequested() framework.Resource                 { return n.nonZero }
func (n *nodeInfo) GetAllocatable() framework.Resource                      { return n.allocatable }
func (n *nodeInfo) GetImageStates() map[string]*framework.ImageStateSummary { return nil }
func (n *nodeInfo) GetPVCRefCounts() map[string]int                         { return n.claims }
func (n *nodeInfo) GetGeneration() int64                                    { return n.generation }
func (n *nodeInfo) GetNodeDeclaredFeatures() ndf.FeatureSet                 { return ndf.FeatureSet{} }
func (n *nodeInfo) String() string {
	return fmt.Sprintf("node %s with %d pods", n.node.GetName(), len(n.pods))
}

// Snapshot returns a copy that later changes leave alone.
func (n *nodeInfo) Snapshot() framework.NodeInfo {
	c := *n
	c.pods, c.affinity, c.anti, c.wide = slices.Clone(n.pods), slices.Clone(n.affinity), slices.Clone(n.anti), slices.Clone(n.wide)
	c.ports = framework.HostPortInfo{}
	for ip, ports := range n.ports {
		c.ports[ip] = maps.Clone(ports)
	}
	c.claims = maps.Clone(n.claims)
	c.requested, c.nonZero, c.allocatable = n.requested.clone(), n.nonZero.clone(), n.allocatable.clone()
	return &c
}

func (n *nodeInfo) SetNode(node *v1.Node) {
	n.node, n.allocatable = node, newResources(node.Status.Allocatable)
	n.generation = generations.Add(1)
}

// AddPodInfo counts a pod.
func (n *nodeInfo) AddPodInfo(p framework.PodInfo) {
	own := n.count(p, 1)
	n.pods = append(n.pods, own)
	if own.hasAffinity() {
		n.affinity = append(n.affinity, own)
	}
	if len(own.anti) > 0 {
		n.anti = append(n.anti, own)
	}
	if slices.ContainsFunc(own.anti, func(t framework.AffinityTerm) bool { return t.TopologyKey != v1.LabelHostname }) {
		n.wide = append(n.wide, own)
	}
}

// RemovePod takes a pod out of all counts.
func (n *nodeInfo) RemovePod(_ klog.Logger, pod *v1.Pod) error {
	is := func(p framework.PodInfo) bool { return p.GetPod().UID == pod.UID }
	i := slices.IndexFunc(n.pods, is)
	if i < 0 {
		return fmt.Errorf("pod %s/%s is not on node %s", pod.Namespace, pod.Name, n.node.GetName())
	}
	n.count(n.pods[i], -1)
	n.pods = slices.Delete(n.pods, i, i+1)
	n.affinity, n.anti, n.wide = slices.DeleteFunc(n.affinity, is), slices.DeleteFunc(n.anti, is), slices.DeleteFunc(n.wide, is)
	return nil
}

// count adds or takes what a pod uses.
func (n *nodeInfo) count(p framework.PodInfo, sign int64) *podInfo {
	own, ok := p.(*podInfo)
	if !ok {
		own = newPodInfo(p.GetPod())
	}
	n.requested.add(own.requests, sign)
	n.nonZero.add(own.non0, sign)
	for _, c := range slices.Concat(own.pod.Spec.Containers, restartable(own.pod.Spec.InitContainers)) {
		for _, port := range c.Ports {
			if sign > 0 {
				n.ports.Add(port.HostIP, string(port.Protocol), port.HostPort)
			} else {
				n.ports.Remove(port.HostIP, string(port.Protocol), port.HostPort)
			}
		}
	}
	for _, v := range own.pod.Spec.Volumes {
		if v.PersistentVolumeClaim == nil {
			continue
		}
		key := own.pod.Namespace + "/" + v.PersistentVolumeClaim.ClaimName
		if n.claims[key] += int(sign); n.claims[key] <= 0 {
			delete(n.claims, key)
		}
	}
	n.generation = generations.Add(1)
	return own
}

// restartable are the init containers that go on running (sidecars).
func restartable(init []v1.Container) []v1.Container {
	var out []v1.Container
	for _, c := range init {
		if c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways {
			out = append(out, c)
		}
	}
	return out
}
