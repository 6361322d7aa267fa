package bpf

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// attachCgroup puts the socket hooks on the root of the cgroup2 tree; what they act on is their constants' business.
func (d *Datapath) attachCgroup(root string) error {
	for name, at := range cgroupHooks {
		pin := filepath.Join(d.pinDir, linkPrefix+name)
		prog := d.sock.Programs[name]
		if ok, err := updatePinned(pin, prog); ok || err != nil {
			if err != nil {
				return err
			}
			continue
		}
		l, err := link.AttachCgroup(link.CgroupOptions{Path: root, Attach: at, Program: prog})
		if err != nil {
			return fmt.Errorf("bpf: attach %s to cgroup %s: %w", name, root, err)
		}
		err = l.Pin(pin)
		l.Close()
		if err != nil {
			return fmt.Errorf("bpf: pin %s: %w", pin, err)
		}
	}
	return nil
}

// updatePinned switches a pinned link to another program. It tells whether there was one.
func updatePinned(pin string, prog *ebpf.Program) (bool, error) {
	l, err := link.LoadPinnedLink(pin, nil)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("bpf: %s: %w", pin, err)
	}
	defer l.Close()
	if err := l.Update(prog); err != nil {
		if errors.Is(err, unix.ENOLINK) {
			return false, l.Unpin() // its interface is gone
		}
		return false, fmt.Errorf("bpf: update %s: %w", pin, err)
	}
	return true, nil
}

func linkPin(pinDir, program string, ifindex int) string {
	return filepath.Join(pinDir, linkPrefix+program+"_"+strconv.Itoa(ifindex))
}

// podPrograms are those on a host-side veth. The one for what the pod gets is first: an answer must find its way back from the first packet on.
var podPrograms = []string{toPodProgram, podProgram}

// AttachPod puts the pod programs on a host-side veth, or brings those that are there up to date.
func (d *Datapath) AttachPod(ifindex int) error {
	for _, program := range podPrograms {
		if err := d.attachPod(program, ifindex); err != nil {
			return err
		}
	}
	return nil
}

func (d *Datapath) attachPod(program string, ifindex int) error {
	if err := d.attach(program, ifindex); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := os.Stat(linkPin(d.pinDir, program, ifindex)); err != nil {
		return nil // there are no links: it is the filter
	}
	if _, err := os.Stat(filterPin(d.pinDir, program, ifindex)); err != nil {
		return nil
	}
	return detachClsact(d.pinDir, ifindex, program)
}

// AttachNewPod is AttachPod for a new interface, and quick: to make a link the kernel waits for a grace period of RCU, some 10 ms, with
// the lock of all interfaces held, so that pods would start one after the other. The programs stand there as filters, which costs
// packets some 100 ns more, until AttachPod makes links of them. No packet is lost then: the link is first, and whom it does not pass on
// the filter does not see.
func (d *Datapath) AttachNewPod(ifindex int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, program := range podPrograms {
		if err := attachClsact(d.pinDir, ifindex, program, d.net.Programs[program]); err != nil {
			return err
		}
	}
	return nil
}

// AttachUplink puts the uplink's programs on an interface. The one for what comes in is first: an answer must find its way back from the
// first packet on.
func (d *Datapath) AttachUplink(ifindex int) error { return d.attachUplink(ifindex, d.xdp) }

func (d *Datapath) attachUplink(ifindex int, xdp XDPMode) error {
	if err := d.attach(uplinkProgram, ifindex); err != nil {
		return err
	}
	if err := d.attach(egressProgram, ifindex); err != nil {
		return err
	}
	return d.attachXDP(ifindex, xdp)
}

// ServeUplinks has the uplink's programs at exactly these links: those with the node's addresses, and others, which pods' packets leave with other
// addresses (LeaveAs). The node can't do without the former: what fails there ends it. What fails at others, which may be of any kind and number, is left,
// and told apart: all else goes on. A driver of theirs that can't run a program is no failure in any mode.
func (d *Datapath) ServeUplinks(links []int, others map[int][]netip.Addr) (left, err error) {
	for _, index := range links {
		if err := d.AttachUplink(index); err != nil {
			return nil, err
		}
	}
	left = d.LeaveAs(others)
	xdp := d.xdp
	if xdp == XDPNative {
		xdp = XDPAuto
	}
	for _, index := range slices.Sorted(maps.Keys(others)) {
		if !slices.Contains(links, index) {
			left = errors.Join(left, d.attachUplink(index, xdp))
		}
	}
	have, err := d.Uplinks()
	for _, index := range have {
		if _, other := others[index]; !other && !slices.Contains(links, index) {
			err = errors.Join(err, d.DetachUplink(index))
		}
	}
	return left, err
}

// AttachTunnel puts the tunnel's programs on its device, and tells the pods' program to send what is for other nodes there. mtu is that of
// packets to other nodes. Without a device (0) the rows of Remotes lead to where the kernel's routes do.
func (d *Datapath) AttachTunnel(ifindex, mtu int) error {
	if ifindex != 0 {
		for _, program := range []string{tunnelIn, tunnelOut} {
			if err := d.attach(program, ifindex); err != nil {
				return err
			}
		}
	}
	if err := d.net.Maps["path"].Put(uint32(0), netPath{Tunnel: uint32(ifindex), Mtu: uint32(mtu)}); err != nil {
		return fmt.Errorf("bpf: path to other nodes: %w", err)
	}
	return nil
}

// leaves tells which programs see what an interface sends.
func leaves(program string) bool {
	return program == toPodProgram || program == egressProgram || program == tunnelOut || program == toBesideProgram
}

func (d *Datapath) attach(program string, ifindex int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	prog := d.net.Programs[program]
	pin := linkPin(d.pinDir, program, ifindex)
	if ok, err := updatePinned(pin, prog); ok || err != nil {
		return err
	}
	if d.noTCX {
		return attachClsact(d.pinDir, ifindex, program, prog)
	}
	at := ebpf.AttachTCXIngress
	if leaves(program) {
		at = ebpf.AttachTCXEgress
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: prog, Attach: at})
	if errors.Is(err, ebpf.ErrNotSupported) {
		return attachClsact(d.pinDir, ifindex, program, prog) // before Linux 6.6
	}
	if err != nil {
		return fmt.Errorf("bpf: attach %s to interface %d: %w", program, ifindex, err)
	}
	defer l.Close()
	if err := l.Pin(pin); err != nil {
		return fmt.Errorf("bpf: pin %s: %w", pin, err)
	}
	return nil
}

// DetachPod takes the pod programs and their pins away; an interface that is gone is no error.
func (d *Datapath) DetachPod(ifindex int) error {
	return errors.Join(d.detach(podProgram, ifindex), d.detach(toPodProgram, ifindex))
}

// DetachUplink undoes AttachUplink; an interface that is gone is no error.
func (d *Datapath) DetachUplink(ifindex int) error {
	return errors.Join(d.detachXDP(ifindex), d.detach(egressProgram, ifindex), d.detach(uplinkProgram, ifindex))
}

// Uplinks are the interfaces that have the uplink's programs, by index, those included that are gone.
func (d *Datapath) Uplinks() ([]int, error) { return interfacesWith(d.pinDir, uplinkProgram) }

func interfacesWith(pinDir, program string) ([]int, error) {
	found := map[int]bool{}
	for _, prefix := range []string{linkPrefix + program + "_", filterPrefix + program + "_"} {
		pins, err := filepath.Glob(filepath.Join(pinDir, prefix+"*"))
		if err != nil {
			return nil, err
		}
		for _, pin := range pins {
			if index, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(pin), prefix)); err == nil {
				found[index] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(found)), nil
}

func (d *Datapath) detach(program string, ifindex int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	err := detachPinned(linkPin(d.pinDir, program, ifindex))
	if _, serr := os.Stat(filterPin(d.pinDir, program, ifindex)); serr == nil || errors.Is(err, os.ErrNotExist) {
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		return errors.Join(err, detachClsact(d.pinDir, ifindex, program))
	}
	return err
}

// detachPinned ends a pinned link before it returns. To unpin alone is not enough: the kernel lets go of a link later, and packets
// meet its program until then.
func detachPinned(pin string) error {
	l, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		return fmt.Errorf("bpf: %s: %w", pin, err)
	}
	defer l.Close()
	if err := l.Detach(); err != nil && !errors.Is(err, unix.ENOLINK) {
		return fmt.Errorf("bpf: detach %s: %w", pin, err)
	}
	if err := l.Unpin(); err != nil {
		return fmt.Errorf("bpf: unpin %s: %w", pin, err)
	}
	return nil
}
