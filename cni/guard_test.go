package cni

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/strake-io/strake/cni/plugin"
)

// fakeGuard lets pods in when it is told to.
type fakeGuard struct {
	verdicts chan error

	mu       sync.Mutex
	asked    []Allocation
	released []Allocation
}

func (g *fakeGuard) Admit(ctx context.Context, a Allocation) error {
	g.mu.Lock()
	g.asked = append(g.asked, a)
	g.mu.Unlock()
	select {
	case err := <-g.verdicts:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (g *fakeGuard) Release(a Allocation) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.released = append(g.released, a)
}

// ADD answers when the pod's packets are judged, and DEL has that forgotten.
func TestAddWaitsForVerdicts(t *testing.T) {
	n := newNode(t, "10.244.0.0/24")
	g := &fakeGuard{verdicts: make(chan error)}
	n.cfg.Guard = g
	n.restart(t)
	ns := newNetns(t)
	type answer struct {
		result *types100.Result
		err    *types.Error
	}
	answers := make(chan answer, 1)
	go func() {
		r, err := n.Handle(plugin.Request{Verb: "ADD", ContainerID: "a", Netns: ns, Ifname: "eth0", Args: "K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web;K8S_POD_UID=u1"})
		answers <- answer{r, err}
	}()
	g.verdicts <- nil // it is asked; had ADD answered before, nobody would
	a := <-answers
	if a.err != nil {
		t.Fatal(a.err)
	}
	if len(g.asked) != 1 || g.asked[0].Pod != "ns/web" || g.asked[0].UID != "u1" || !slices.Equal(g.asked[0].Addrs, n.Attachments()[0].Addrs) {
		t.Errorf("asked about %+v", g.asked)
	}
	n.restart(t)
	if all := n.Attachments(); len(all) != 1 || all[0].UID != "u1" {
		t.Errorf("after a restart %+v", all)
	}
	n.del(t, "a", ns)
	if len(g.released) != 1 || g.released[0].Addrs[0] != g.asked[0].Addrs[0] {
		t.Errorf("released %+v", g.released)
	}
}

// A pod whose verdicts can't be had gets no network, and nothing of it is left.
func TestAddFailsClosed(t *testing.T) {
	n := newNode(t, "10.244.0.0/24")
	g := &fakeGuard{verdicts: make(chan error, 1)}
	n.cfg.Guard = g
	n.restart(t)
	g.verdicts <- errors.New("the API is away")
	_, err := n.Handle(plugin.Request{Verb: "ADD", ContainerID: "a", Netns: newNetns(t), Ifname: "eth0", Args: "K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web"})
	if err == nil || err.Code != types.ErrTryAgainLater {
		t.Errorf("ADD: %v", err)
	}
	n.wantEmpty(t)
	if len(g.released) != 1 {
		t.Errorf("released %+v", g.released)
	}
}
