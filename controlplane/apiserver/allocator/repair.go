package allocator

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"
)

// repairEvery is the pause between repairs; only crashes and lost connections give them work.
const repairEvery = 3 * time.Minute

// Run repairs from time to time, until ctx ends. services must read them consistently, not from a cache that lags.
func (a *Allocator) Run(ctx context.Context, services func(context.Context) ([]corev1.Service, error)) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(repairEvery):
		}
		if err := a.Repair(ctx, services); err != nil && ctx.Err() == nil {
			klog.ErrorS(err, "Claims of Services could not be repaired")
		}
	}
}

// Repair removes claims that no Service and no write under way needs, and claims what Services hold without. From the
// first success on Services are given addresses.
func (a *Allocator) Repair(ctx context.Context, services func(context.Context) ([]corev1.Service, error)) error {
	// Claims are read before Services: a claim whose Service is not there then was stale already or is young.
	now := time.Now()
	ips, err := a.addresses.list(ctx)
	if err != nil {
		return err
	}
	nodePorts, err := a.ports.list(ctx)
	if err != nil {
		return err
	}
	all, err := services(ctx)
	if err != nil {
		return fmt.Errorf("list Services: %w", err)
	}
	wantIPs, wantPorts := map[string][]owner{}, map[string][]owner{}
	for i := range all {
		s := &all[i]
		for _, v := range addresses(s) {
			wantIPs[v] = append(wantIPs[v], ownerOf(s))
		}
		for _, v := range ports(s) {
			wantPorts[v] = append(wantPorts[v], ownerOf(s))
		}
	}
	// Twice the bound, for clocks that differ.
	old := now.Add(-2 * a.cfg.WriteTimeout)
	err = errors.Join(a.addresses.repair(ctx, ips, wantIPs, old), a.ports.repair(ctx, nodePorts, wantPorts, old))
	if err == nil {
		a.once.Do(func() { close(a.ready) })
	}
	return err
}

// repair makes the claims what the Services want. Claims made after old may belong to a write under way.
func (c *claims) repair(ctx context.Context, have map[string]claim, want map[string][]owner, old time.Time) error {
	var errs []error
	for value, got := range have {
		if got.owner.uid == "" || wants(want[value], got.owner) || got.made.After(old) {
			continue // not ours to judge, needed, or perhaps needed soon
		}
		klog.InfoS("Removing the claim of a Service that does not hold the value", "kind", c.what, "value", value, "service", got.owner.String())
		if err := c.drop(ctx, got); err != nil {
			errs = append(errs, err)
			continue
		}
		delete(have, value)
	}
	for value, owners := range want {
		if len(owners) > 1 {
			klog.ErrorS(nil, "Services share what only one may have; delete all but one", "kind", c.what, "value", value, "services", owners)
		}
		if _, ok := have[value]; ok {
			continue
		}
		if err := c.take(ctx, value, owners[0]); err != nil && !errors.Is(err, errTaken) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func wants(owners []owner, o owner) bool {
	for _, w := range owners {
		if w.uid == o.uid {
			return true
		}
	}
	return false
}
