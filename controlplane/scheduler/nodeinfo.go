package scheduler

import (
	"fmt"
	"maps"
	"slices"

	v1 "k8s.io/api/core/v1"
	ndf "k8s.io/component-helpers/nodedeclaredfeatures"
	resourcehelper "k8s.io/component-helpers/resource"
	"k8s.io/klog/v2"
	"k8s.io/kube-scheduler/framework"
)

// What a container counts for in scores if it requests nothing.
const (
	defaultMilliCPU = 100
	defaultMemory   = 200 << 20
)

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
	pod      *v1.Pod
	requests *resources
	non0     *resources
}

func newPodInfo(p *v1.Pod) *podInfo {
	requests := newResources(resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{}))
	non0 := *requests
	non0.scalar = maps.Clone(requests.scalar)
	for i := range p.Spec.Containers {
		if r := p.Spec.Containers[i].Resources.Requests; r.Cpu().IsZero() {
			non0.milliCPU += defaultMilliCPU
		}
		if r := p.Spec.Containers[i].Resources.Requests; r.Memory().IsZero() {
			non0.memory += defaultMemory
		}
	}
	return &podInfo{pod: p, requests: requests, non0: &non0}
}

func (p *podInfo) GetPod() *v1.Pod                                                 { return p.pod }
func (p *podInfo) GetRequiredAffinityTerms() []framework.AffinityTerm              { return nil }
func (p *podInfo) GetRequiredAntiAffinityTerms() []framework.AffinityTerm          { return nil }
func (p *podInfo) GetPreferredAffinityTerms() []framework.WeightedAffinityTerm     { return nil }
func (p *podInfo) GetPreferredAntiAffinityTerms() []framework.WeightedAffinityTerm { return nil }
func (p *podInfo) CalculateResource() framework.PodResource {
	return framework.PodResource{Resource: p.requests, Non0CPU: p.non0.milliCPU, Non0Mem: p.non0.memory}
}

// nodeInfo implements framework.NodeInfo: a node and the pods that are, or are about to be, on it.
type nodeInfo struct {
	node        *v1.Node
	pods        []framework.PodInfo
	ports       framework.HostPortInfo
	requested   *resources
	nonZero     *resources
	allocatable *resources
	generation  int64
}

var _ framework.NodeInfo = (*nodeInfo)(nil)

func newNodeInfo() *nodeInfo {
	return &nodeInfo{ports: framework.HostPortInfo{}, requested: &resources{}, nonZero: &resources{}, allocatable: &resources{}}
}

func (n *nodeInfo) Node() *v1.Node                                                    { return n.node }
func (n *nodeInfo) GetPods() []framework.PodInfo                                      { return n.pods }
func (n *nodeInfo) GetPodsWithAffinity() []framework.PodInfo                          { return nil }
func (n *nodeInfo) GetPodsWithRequiredAntiAffinity() []framework.PodInfo              { return nil }
func (n *nodeInfo) GetPodsWithRequiredNonHostScopedAntiAffinity() []framework.PodInfo { return nil }
func (n *nodeInfo) GetUsedPorts() framework.HostPortInfo                              { return n.ports }
func (n *nodeInfo) GetRequested() framework.Resource                                  { return n.requested }
func (n *nodeInfo) GetNonZeroRequested() framework.Resource                           { return n.nonZero }
func (n *nodeInfo) GetAllocatable() framework.Resource                                { return n.allocatable }
func (n *nodeInfo) GetImageStates() map[string]*framework.ImageStateSummary           { return nil }
func (n *nodeInfo) GetPVCRefCounts() map[string]int                                   { return nil }
func (n *nodeInfo) GetGeneration() int64                                              { return n.generation }
func (n *nodeInfo) GetNodeDeclaredFeatures() ndf.FeatureSet                           { return ndf.FeatureSet{} }
func (n *nodeInfo) String() string {
	return fmt.Sprintf("node %s with %d pods", n.node.GetName(), len(n.pods))
}

// Snapshot returns a copy that later changes leave alone.
func (n *nodeInfo) Snapshot() framework.NodeInfo {
	c := *n
	c.pods = slices.Clone(n.pods)
	c.ports = framework.HostPortInfo{}
	for ip, ports := range n.ports {
		c.ports[ip] = maps.Clone(ports)
	}
	req, non := *n.requested, *n.nonZero
	req.scalar, non.scalar = maps.Clone(req.scalar), maps.Clone(non.scalar)
	c.requested, c.nonZero = &req, &non
	return &c
}

func (n *nodeInfo) SetNode(node *v1.Node) {
	n.node, n.allocatable = node, newResources(node.Status.Allocatable)
	n.generation++
}

func (n *nodeInfo) AddPodInfo(p framework.PodInfo) { n.count(p, 1) }

func (n *nodeInfo) RemovePod(_ klog.Logger, pod *v1.Pod) error {
	for i, p := range n.pods {
		if p.GetPod().UID == pod.UID {
			n.count(p, -1)
			n.pods = slices.Delete(n.pods, i, i+1)
			return nil
		}
	}
	return fmt.Errorf("pod %s/%s is not on node %s", pod.Namespace, pod.Name, n.node.GetName())
}

func (n *nodeInfo) count(p framework.PodInfo, sign int64) {
	own, ok := p.(*podInfo)
	if !ok {
		own = newPodInfo(p.GetPod())
	}
	n.requested.add(own.requests, sign)
	n.nonZero.add(own.non0, sign)
	if sign > 0 {
		n.pods = append(n.pods, own)
	}
	for _, c := range own.pod.Spec.Containers {
		for _, port := range c.Ports {
			if sign > 0 {
				n.ports.Add(port.HostIP, string(port.Protocol), port.HostPort)
			} else {
				n.ports.Remove(port.HostIP, string(port.Protocol), port.HostPort)
			}
		}
	}
	n.generation++
}
