package bpf

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// XDPMode tells at which drivers strake_xdp stands. It is never in the kernel's generic mode, which is slower than no program.
type XDPMode string

const (
	XDPOff XDPMode = "off" // at none; so it is without a word
	// XDPAuto: at those that run it by themselves, but virtual pairs: what sends there may have left its checksums to the receiver, and what is
	// sent back is lost unless the other end takes frames of this kind, which can't be seen.
	XDPAuto   XDPMode = "auto"
	XDPNative XDPMode = "native" // at all but bridges, which have none; one that can't is an error, if it has an address of the node
)

func (m XDPMode) on() bool { return m == XDPAuto || m == XDPNative }

// Check fails if there is no such mode.
func (m XDPMode) Check() error {
	if !slices.Contains([]XDPMode{"", XDPOff, XDPAuto, XDPNative}, m) {
		return fmt.Errorf("%q is none of %s, %s and %s", string(m), XDPOff, XDPAuto, XDPNative)
	}
	return nil
}

// attachXDP puts the program at an uplink's driver, or takes it away, as the mode says.
func (d *Datapath) attachXDP(ifindex int, mode XDPMode) error {
	if !mode.on() {
		return d.detachXDP(ifindex)
	}
	iface, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return fmt.Errorf("bpf: interface %d: %w", ifindex, err)
	}
	if kind := iface.Type(); kind == "bridge" || mode == XDPAuto && kind == "veth" {
		return d.detachXDP(ifindex)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	pin := linkPin(d.pinDir, xdpProgram, ifindex)
	if ok, err := updatePinned(pin, d.net.Programs[xdpProgram]); ok || err != nil {
		return err
	}
	l, err := link.AttachXDP(link.XDPOptions{Program: d.net.Programs[xdpProgram], Interface: ifindex, Flags: link.XDPDriverMode})
	if err != nil {
		if mode == XDPAuto && xdpCantBe(err) {
			return nil
		}
		return fmt.Errorf("bpf: attach %s to the driver of interface %s (its program, its MTU or another's program may stand in the way): %w", xdpProgram, iface.Attrs().Name, err)
	}
	defer l.Close()
	if err := l.Pin(pin); err != nil {
		return fmt.Errorf("bpf: pin %s: %w", pin, err)
	}
	return nil
}

// xdpCantBe tells whether a driver has refused for what it is, or how it is set, or because another program is there.
func xdpCantBe(err error) bool {
	return slices.ContainsFunc([]error{ebpf.ErrNotSupported, unix.EOPNOTSUPP, unix.EINVAL, unix.EBUSY, unix.EEXIST, unix.ENOSPC, unix.ERANGE, unix.E2BIG, unix.ENODEV},
		func(known error) bool { return errors.Is(err, known) })
}

func (d *Datapath) detachXDP(ifindex int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := detachPinned(linkPin(d.pinDir, xdpProgram, ifindex)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// atDriver fills in what stands at an interface's driver; ours has this id.
func (h *Hook) atDriver(ifindex int, ours ebpf.ProgramID) error {
	iface, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return fmt.Errorf("bpf: hooks: interface %d: %w", ifindex, err)
	}
	xdp := iface.Attrs().Xdp
	if xdp == nil || !xdp.Attached {
		return nil
	}
	if h.Attached = ebpf.ProgramID(xdp.ProgId) == ours; h.Attached {
		return nil
	}
	if name, ok := foreign(ebpf.ProgramID(xdp.ProgId)); ok {
		h.Others = append(h.Others, name)
	}
	return nil
}
