package cni

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"k8s.io/klog/v2"
)

// ApplyMTU gives the pods that are there what Config.MTU says by now. A pod that set itself a smaller one keeps it. What fails is logged: one
// pod's trouble must not hold up the others.
func (s *Server) ApplyMTU() {
	mtu := s.cfg.MTU()
	if mtu == 0 {
		return
	}
	for _, a := range s.ipam.list() {
		unlock := s.calls.lock(a.ContainerID)
		if _, ok := s.ipam.get(a.ContainerID, a.Ifname); ok {
			if err := applyMTU(a, mtu); err != nil {
				klog.ErrorS(err, "A pod keeps its MTU", "container", a.ContainerID, "addresses", a.Addrs, "wanted", mtu)
			}
		}
		unlock()
	}
}

func applyMTU(a Allocation, mtu int) error {
	outside, err := netlink.LinkByName(a.Host)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil // it is on its way out
	}
	if err != nil {
		return fmt.Errorf("find %s: %w", a.Host, err)
	}
	p, err := inPod(a.Netns)
	if err != nil {
		return err
	}
	defer p.close()
	inside, err := p.LinkByName(a.Ifname)
	if err != nil {
		return fmt.Errorf("interface %s of the pod: %w", a.Ifname, err)
	}
	was, pods := outside.Attrs().MTU, inside.Attrs().MTU
	// The pod's side first if it gets smaller: it must not send what is dropped on the way.
	if pods > mtu {
		err = p.LinkSetMTU(inside, mtu)
	}
	if err == nil && was != mtu {
		err = netlink.LinkSetMTU(outside, mtu)
	}
	if err == nil && pods == was && pods < mtu {
		err = p.LinkSetMTU(inside, mtu)
	}
	if err != nil {
		return fmt.Errorf("MTU %d of %s: %w", mtu, a.Host, err)
	}
	return nil
}
