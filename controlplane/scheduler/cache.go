package scheduler

import (
	"sync"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
)

// nodeCache holds the nodes and what runs on them: by what the API says, and by decisions whose binding is under way.
type nodeCache struct {
	mu    sync.Mutex
	nodes map[string]*nodeInfo
	pods  map[types.UID]*placedPod
	dirty map[string]bool // nodes that changed since the last snapshot
}

type placedPod struct {
	pod     *v1.Pod
	node    string
	assumed bool // decided, and not seen in the API yet
}

func newNodeCache() *nodeCache {
	return &nodeCache{nodes: map[string]*nodeInfo{}, pods: map[types.UID]*placedPod{}, dirty: map[string]bool{}}
}

func (c *nodeCache) node(name string) *nodeInfo {
	c.dirty[name] = true
	if c.nodes[name] == nil {
		c.nodes[name] = newNodeInfo()
	}
	return c.nodes[name]
}

// setNode adds or updates a node.
func (c *nodeCache) setNode(n *v1.Node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.node(n.Name).SetNode(n)
}

// dropNode removes a node. Its pods count on until they are gone, in case the node comes back.
func (c *nodeCache) dropNode(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	info := c.node(name)
	if info.node = nil; len(info.pods) == 0 {
		delete(c.nodes, name)
	}
}

// setPod adds or updates a pod that the API says is on a node.
func (c *nodeCache) setPod(p *v1.Pod) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.remove(p.UID)
	c.add(p, p.Spec.NodeName, false)
}

// dropPod removes a pod.
func (c *nodeCache) dropPod(uid types.UID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.remove(uid)
}

// assume counts a decision. It tells false if the pod is placed already.
func (c *nodeCache) assume(p *v1.Pod, node string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pods[p.UID] != nil {
		return false
	}
	c.add(p, node, true)
	return true
}

// forget takes an assumed pod back; one that the API has confirmed stays.
func (c *nodeCache) forget(uid types.UID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.pods[uid]; p != nil && p.assumed {
		c.remove(uid)
	}
}

// placed tells whether a pod counts on a node.
func (c *nodeCache) placed(uid types.UID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pods[uid] != nil
}

// assumed tells whether a pod is being bound.
func (c *nodeCache) assumed(uid types.UID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.pods[uid]
	return p != nil && p.assumed
}

func (c *nodeCache) add(p *v1.Pod, node string, assumed bool) {
	c.node(node).AddPodInfo(newPodInfo(p))
	c.pods[p.UID] = &placedPod{pod: p, node: node, assumed: assumed}
}

func (c *nodeCache) remove(uid types.UID) {
	p := c.pods[uid]
	if p == nil {
		return
	}
	delete(c.pods, uid)
	info := c.node(p.node)
	if err := info.RemovePod(klog.Background(), p.pod); err != nil {
		klog.ErrorS(err, "Scheduler cache out of step")
	}
	if info.node == nil && len(info.pods) == 0 {
		delete(c.nodes, p.node)
	}
}

// snapshot brings s up to date: only nodes that changed are copied.
func (c *nodeCache) snapshot(s *snapshot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name := range c.dirty {
		if info := c.nodes[name]; info != nil && info.node != nil {
			s.set(info.Snapshot().(*nodeInfo))
		} else {
			s.drop(name)
		}
	}
	clear(c.dirty)
}
