package scheduler

import (
	"maps"

	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/kube-scheduler/framework"
)

// cycleState is what plugins remember within one attempt to schedule one pod. Attempts run one after the
// other, so it needs no lock.
type cycleState struct {
	data                            map[framework.StateKey]framework.StateData
	skipFilter, skipScore, skipBind sets.Set[string]
	parallelBind                    sets.Set[string]
}

var _ framework.CycleState = (*cycleState)(nil)

func newCycleState() *cycleState {
	return &cycleState{data: map[framework.StateKey]framework.StateData{}}
}

func (s *cycleState) ShouldRecordPluginMetrics() bool                          { return false }
func (s *cycleState) GetSkipFilterPlugins() sets.Set[string]                   { return s.skipFilter }
func (s *cycleState) SetSkipFilterPlugins(p sets.Set[string])                  { s.skipFilter = p }
func (s *cycleState) GetSkipScorePlugins() sets.Set[string]                    { return s.skipScore }
func (s *cycleState) SetSkipScorePlugins(p sets.Set[string])                   { s.skipScore = p }
func (s *cycleState) GetSkipPreBindPlugins() sets.Set[string]                  { return s.skipBind }
func (s *cycleState) SetSkipPreBindPlugins(p sets.Set[string])                 { s.skipBind = p }
func (s *cycleState) GetParallelPreBindPlugins() sets.Set[string]              { return s.parallelBind }
func (s *cycleState) SetParallelPreBindPlugins(p sets.Set[string])             { s.parallelBind = p }
func (s *cycleState) ShouldSkipAllPostFilterPlugins() bool                     { return false }
func (s *cycleState) IsPodGroupSchedulingCycle() bool                          { return false }
func (s *cycleState) GetPodGroupSchedulingCycle() framework.PodGroupCycleState { return nil }
func (s *cycleState) GetPlacementCycleState() framework.PlacementCycleState    { return nil }

func (s *cycleState) Read(key framework.StateKey) (framework.StateData, error) {
	if v, ok := s.data[key]; ok {
		return v, nil
	}
	return nil, framework.ErrNotFound
}
func (s *cycleState) Write(key framework.StateKey, v framework.StateData) { s.data[key] = v }
func (s *cycleState) Delete(key framework.StateKey)                       { delete(s.data, key) }
func (s *cycleState) Clone() framework.CycleState {
	c := *s
	c.data = maps.Clone(s.data)
	return &c
}
