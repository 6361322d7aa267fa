package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
)

// NodePortAddrs are the addresses of a node at which NodePorts and health checks answer: of those on its interfaces what ranges
// hold, or without ranges its primary ones. A loopback address is one only if a range is of loopback addresses itself, however wide
// another is; so are addresses of one link. What the node serves itself (cluster DNS) is none.
func NodePortAddrs(ranges []netip.Prefix, primary, interfaces, served []netip.Addr) []netip.Addr {
	if len(ranges) == 0 {
		return primary
	}
	var out []netip.Addr
	for _, a := range interfaces {
		if slices.Contains(served, a) || a.IsLinkLocalUnicast() || a.IsMulticast() {
			continue
		}
		if slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(a) && p.Addr().IsLoopback() == a.IsLoopback() }) {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// InterfaceAddrs are the addresses on the interfaces of our network namespace.
func InterfaceAddrs() ([]netip.Addr, error) {
	for {
		list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
		if errors.Is(err, netlink.ErrDumpInterrupted) {
			continue // addresses changed meanwhile: some may be missing
		}
		if err != nil {
			return nil, fmt.Errorf("proxy: addresses of interfaces: %w", err)
		}
		var out []netip.Addr
		for _, a := range list {
			if addr, ok := netip.AddrFromSlice(a.IP); ok {
				out = append(out, addr.Unmap())
			}
		}
		return out, nil
	}
}

// FollowInterfaces sets the proxy's addresses to what ranges hold of those on the node's interfaces whenever these change, until ctx ends.
// Without ranges there is nothing to follow. The proxy begins with what they hold (NodePortAddrs), else its first rows would lack some.
func (p *Proxy) FollowInterfaces(ctx context.Context, ranges []netip.Prefix) error {
	if len(ranges) == 0 {
		return nil
	}
	have := p.cfg.Node.Addrs
	apply := func() error {
		all, err := InterfaceAddrs()
		if err != nil {
			return err
		}
		if now := NodePortAddrs(ranges, nil, all, p.cfg.Node.Local); !slices.Equal(now, have) {
			have = now
			p.SetAddrs(now)
		}
		return nil
	}
	for ctx.Err() == nil {
		if err := p.followOnce(ctx, apply); err != nil {
			return err
		}
	}
	return nil
}

// followOnce applies at once and at each change, until ctx ends or the kernel has told more than we could read: then it must begin anew.
func (p *Proxy) followOnce(ctx context.Context, apply func() error) error {
	done := make(chan struct{})
	defer close(done)
	updates, lost := make(chan netlink.AddrUpdate, 64), make(chan struct{}, 1)
	err := netlink.AddrSubscribeWithOptions(updates, done, netlink.AddrSubscribeOptions{ErrorCallback: func(error) {
		select {
		case lost <- struct{}{}:
		default:
		}
	}})
	if err != nil {
		return fmt.Errorf("proxy: changes of addresses: %w", err)
	}
	defer func() { // the subscription ends once it can say what it has
		go func() {
			for range updates {
			}
		}()
	}()
	if err := apply(); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-lost:
			return nil
		case _, ok := <-updates:
			if !ok {
				return nil
			}
			// Of several changes at once the last is enough.
			settle := time.NewTimer(10 * time.Millisecond)
			for more := true; more; {
				select {
				case _, more = <-updates:
				case <-settle.C:
					more = false
				}
			}
			settle.Stop()
			if err := apply(); err != nil {
				return err
			}
		}
	}
}
