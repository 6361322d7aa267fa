package cni

import (
	"fmt"
	"sync"

	"github.com/strake-io/strake/bpf"
)

// fakeTable keeps rows by owner, and refuses an owner that is too long, and a row that is taken by another owner's.
type fakeTable[R any] struct {
	mu    sync.Mutex
	rows  map[string][]R
	taken func(have, want R) bool // nil: none ever is
}

func (f *fakeTable[R]) Replace(owner string, want []R) (bpf.Changes, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(owner) > maxOwner {
		return bpf.Changes{}, fmt.Errorf("owner %q is too long", owner)
	}
	for other, rows := range f.rows {
		for _, have := range rows {
			for _, w := range want {
				if other != owner && f.taken != nil && f.taken(have, w) {
					return bpf.Changes{}, fmt.Errorf("%v belongs to %s", w, other)
				}
			}
		}
	}
	if f.rows[owner] = want; len(want) == 0 {
		delete(f.rows, owner)
	}
	return bpf.Changes{}, nil
}

func (f *fakeTable[R]) Prune(keep func(string) bool) (bpf.Changes, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for o := range f.rows {
		if !keep(o) {
			delete(f.rows, o)
		}
	}
	return bpf.Changes{}, nil
}

func (f *fakeTable[R]) Dump() ([]R, error) { return nil, nil }

// fakePorts is the load balancer's table.
type fakePorts struct{ fakeTable[bpf.LoadBalancer] }

// ReplaceAll implements bpf.LoadBalancerTable.
func (*fakePorts) ReplaceAll(map[string][]bpf.LoadBalancer) (bpf.Changes, map[string]error) {
	panic("that is for Services")
}

func newFakePorts() *fakePorts {
	return &fakePorts{fakeTable[bpf.LoadBalancer]{rows: map[string][]bpf.LoadBalancer{}, taken: func(have, want bpf.LoadBalancer) bool {
		return have.Protocol == want.Protocol && have.Frontends[0].Addr == want.Frontends[0].Addr
	}}}
}
