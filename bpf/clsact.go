package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// filterPriority is ours among the filters of an interface.
const filterPriority = 0x5374

func filter(ifindex int, name string) *netlink.BpfFilter {
	return &netlink.BpfFilter{
		FilterAttrs:  netlink.FilterAttrs{LinkIndex: ifindex, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Priority: filterPriority, Protocol: unix.ETH_P_ALL},
		Name:         name,
		DirectAction: true,
	}
}

// attachClsact is for kernels without tcx. A filter of ours that is there is replaced in place.
func attachClsact(ifindex int, name string, prog *ebpf.Program) error {
	qdisc := &netlink.GenericQdisc{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}, QdiscType: "clsact"}
	if err := netlink.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("bpf: clsact on interface %d: %w", ifindex, err)
	}
	f := filter(ifindex, name)
	f.Fd = prog.FD()
	if err := netlink.FilterReplace(f); err != nil {
		return fmt.Errorf("bpf: attach %s to interface %d: %w", name, ifindex, err)
	}
	return nil
}

// detachClsact removes our filter only: the qdisc may serve others.
func detachClsact(ifindex int, name string) error {
	err := netlink.FilterDel(filter(ifindex, name))
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("bpf: detach %s from interface %d: %w", name, ifindex, err)
	}
	return nil
}
