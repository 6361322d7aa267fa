package cni

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/klog/v2"
)

// A sandbox that the runtime has never finished making, or has forgotten, leaves an attachment for which no DEL comes. It is looked for
// every lookEvery, and released once it has been unknown for leakGrace: a sandbox has its network before the
// runtime tells of it.
const (
	lookEvery = 5 * time.Minute
	leakGrace = 10 * time.Minute
)

// leaks remembers since when attachments belong to no sandbox that the runtime knows.
type leaks map[string]time.Time

// releaseLeaks looks for leaks until ctx ends.
func (s *Server) releaseLeaks(ctx context.Context) {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	unknown := leaks{}
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			if err := s.look(ctx, unknown, now); err != nil && ctx.Err() == nil {
				klog.ErrorS(err, "Looking for networks of pods that are gone")
			}
		}
	}
}

// look compares the attachments with the runtime's sandboxes once, and releases those that have been without for too long.
func (s *Server) look(ctx context.Context, unknown leaks, now time.Time) error {
	have := s.ipam.list() // before the sandboxes: what is made meanwhile is not looked at
	list, err := s.cfg.Sandboxes(ctx)
	if err != nil {
		return fmt.Errorf("cni: sandboxes of the runtime: %w", err)
	}
	known := map[string]bool{}
	for _, id := range list {
		known[id] = true
	}
	suspects := leaks{}
	var errs []error
	for _, a := range have {
		if known[a.ContainerID] {
			continue
		}
		since, ok := unknown[a.key()]
		if !ok {
			since = now
		}
		suspects[a.key()] = since
		if now.Sub(since) < leakGrace {
			continue
		}
		unlock := s.calls.lock(a.ContainerID)
		if _, ok := s.ipam.get(a.ContainerID, a.Ifname); ok {
			klog.InfoS("Releasing the addresses of a pod that the runtime does not know", "container", a.ContainerID, "addresses", a.Addrs)
			errs = append(errs, s.del(a.ContainerID, a.Ifname))
		}
		unlock()
		delete(suspects, a.key())
	}
	clear(unknown)
	for k, since := range suspects {
		unknown[k] = since
	}
	return errors.Join(errs...)
}
