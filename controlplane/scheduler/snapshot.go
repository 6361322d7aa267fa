package scheduler

import (
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	schedulingv1alpha3 "k8s.io/api/scheduling/v1alpha3"
	schedulingv1beta1 "k8s.io/api/scheduling/v1beta1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/kube-scheduler/framework"
)

// snapshot is what plugins see of the cluster during a cycle. It implements framework.SharedLister.
type snapshot struct {
	index map[string]*nodeInfo
	list  []framework.NodeInfo // by name
}

var _ framework.SharedLister = (*snapshot)(nil)

func newSnapshot() *snapshot { return &snapshot{index: map[string]*nodeInfo{}} }

func (s *snapshot) position(name string) (int, bool) {
	return slices.BinarySearchFunc(s.list, name, func(n framework.NodeInfo, name string) int { return strings.Compare(n.Node().Name, name) })
}

func (s *snapshot) set(n *nodeInfo) {
	s.index[n.node.Name] = n
	if i, ok := s.position(n.node.Name); ok {
		s.list[i] = n
	} else {
		s.list = slices.Insert(s.list, i, framework.NodeInfo(n))
	}
}

func (s *snapshot) drop(name string) {
	delete(s.index, name)
	if i, ok := s.position(name); ok {
		s.list = slices.Delete(s.list, i, i+1)
	}
}

func (s *snapshot) NodeInfos() framework.NodeInfoLister       { return nodeLister{s} }
func (s *snapshot) StorageInfos() framework.StorageInfoLister { return storageLister{s} }

// Pod groups (gang scheduling, alpha) are not part of this scheduler: none is ever found.
func (s *snapshot) PodGroupStates() framework.PodGroupStateLister { return noGroupStates{} }
func (s *snapshot) PodGroups() framework.PodGroupLister           { return noGroups{} }
func (s *snapshot) CompositePodGroupStates() framework.CompositePodGroupStateLister {
	return noCompositeStates{}
}
func (s *snapshot) CompositePodGroups() framework.CompositePodGroupLister { return noComposites{} }

type nodeLister struct{ s *snapshot }

func (l nodeLister) List() ([]framework.NodeInfo, error) { return l.s.list, nil }

func (l nodeLister) where(f func(framework.NodeInfo) bool) ([]framework.NodeInfo, error) {
	var out []framework.NodeInfo
	for _, n := range l.s.list {
		if f(n) {
			out = append(out, n)
		}
	}
	return out, nil
}

func (l nodeLister) HavePodsWithAffinityList() ([]framework.NodeInfo, error) {
	return l.where(func(n framework.NodeInfo) bool { return len(n.GetPodsWithAffinity()) > 0 })
}

func (l nodeLister) HavePodsWithRequiredAntiAffinityList() ([]framework.NodeInfo, error) {
	return l.where(func(n framework.NodeInfo) bool { return len(n.GetPodsWithRequiredAntiAffinity()) > 0 })
}

func (l nodeLister) HavePodsWithRequiredNonHostScopedAntiAffinityList() ([]framework.NodeInfo, error) {
	return l.where(func(n framework.NodeInfo) bool { return len(n.GetPodsWithRequiredNonHostScopedAntiAffinity()) > 0 })
}

func (l nodeLister) Get(name string) (framework.NodeInfo, error) {
	if n := l.s.index[name]; n != nil {
		return n, nil
	}
	return nil, fmt.Errorf("node %s: %w", name, framework.ErrNotFound)
}

type storageLister struct{ s *snapshot }

func (l storageLister) IsPVCUsedByPods(key string) bool {
	return slices.ContainsFunc(l.s.list, func(n framework.NodeInfo) bool { return n.GetPVCRefCounts()[key] > 0 })
}

type (
	noGroupStates     struct{}
	noGroups          struct{}
	noCompositeStates struct{}
	noComposites      struct{}
)

func (noGroupStates) Get(_, name string) (framework.PodGroupState, error) {
	return nil, apierrors.NewNotFound(schedulingv1beta1.Resource("podgroups"), name)
}
func (noGroups) Get(_, name string) (*schedulingv1beta1.PodGroup, error) {
	return nil, apierrors.NewNotFound(schedulingv1beta1.Resource("podgroups"), name)
}
func (noCompositeStates) Get(_, name string) (framework.CompositePodGroupState, error) {
	return nil, apierrors.NewNotFound(schedulingv1alpha3.Resource("compositepodgroups"), name)
}
func (noComposites) Get(_, name string) (*schedulingv1alpha3.CompositePodGroup, error) {
	return nil, apierrors.NewNotFound(schedulingv1alpha3.Resource("compositepodgroups"), name)
}

// groups implements framework.PodGroupManager for a scheduler without pod groups.
type groups struct{ *snapshot }

func (g groups) BuildHierarchySnapshotFromPod(*v1.Pod) (framework.PodGroupManager, error) {
	return g, nil
}
func (groups) GetRootKeyForGroup(k framework.EntityKey) (framework.EntityKey, bool, error) {
	return k, false, nil
}
