package cni

import (
	"context"
	"time"

	"k8s.io/klog/v2"
)

// calm is how long no pod has come before the programs of those that came are attached for good: that holds up others, for they all
// need the lock of the kernel's interfaces.
const calm = 2 * time.Second

// settle attaches the programs of new pods for good, until ctx ends. What it has not come to, the next start does.
func (s *Server) settle(ctx context.Context) {
	var pods []Allocation
	timer := time.NewTimer(calm)
	for {
		select {
		case <-ctx.Done():
			return
		case a := <-s.fresh:
			pods = append(pods, a)
			timer.Reset(calm)
			continue
		case <-timer.C:
		}
		for len(pods) > 0 && len(s.fresh) == 0 && ctx.Err() == nil {
			s.settlePod(pods[0])
			pods = pods[1:]
		}
	}
}

func (s *Server) settlePod(a Allocation) {
	defer s.calls.lock(a.ContainerID)()
	s.mu.Lock()
	ifindex, attached := s.ifindex[a.key()]
	s.mu.Unlock()
	if !attached {
		return // it has gone
	}
	if err := s.cfg.Datapath.AttachPod(ifindex); err != nil {
		klog.V(2).InfoS("The program of a pod stays a filter", "container", a.ContainerID, "err", err) // its namespace may have gone, without a DEL
	}
}
