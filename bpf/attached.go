package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// PodAttached tells what is wrong if a pod program does not stand at an interface, or if it is one that a former agent loaded.
func (d *Datapath) PodAttached(ifindex int) error {
	for _, program := range podPrograms {
		if err := d.attached(program, ifindex); err != nil {
			return err
		}
	}
	return nil
}

func (d *Datapath) attached(program string, ifindex int) error {
	at, parent := ebpf.AttachTCXIngress, uint32(netlink.HANDLE_MIN_INGRESS)
	if leaves(program) {
		at, parent = ebpf.AttachTCXEgress, netlink.HANDLE_MIN_EGRESS
	}
	info, err := d.net.Programs[program].Info()
	if err != nil {
		return fmt.Errorf("bpf: program %s: %w", program, err)
	}
	want, ok := info.ID()
	if !ok {
		return errors.New("bpf: the kernel tells no ids of programs")
	}
	// Linux before 6.6 has no such list, and a filter instead.
	if found, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: at}); err == nil {
		for _, p := range found.Programs {
			if p.ID == want {
				return nil
			}
		}
	}
	l, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return fmt.Errorf("bpf: interface %d: %w", ifindex, err)
	}
	filters, err := netlink.FilterList(l, parent)
	if err != nil {
		return fmt.Errorf("bpf: filters of interface %d: %w", ifindex, err)
	}
	for _, f := range filters {
		if f, ok := f.(*netlink.BpfFilter); ok && f.Priority == filterPriority && ebpf.ProgramID(f.Id) == want {
			return nil
		}
	}
	return fmt.Errorf("bpf: program %s is not attached to interface %d", program, ifindex)
}
