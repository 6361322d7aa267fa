package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// filterPriority is ours among the filters of an interface.
const filterPriority = 0x5374

func filter(ifindex int, name string) *netlink.BpfFilter {
	parent := uint32(netlink.HANDLE_MIN_INGRESS)
	if leaves(name) {
		parent = netlink.HANDLE_MIN_EGRESS
	}
	handle := uint32(1)
	if name == besideProgram { // stands beside namesProgram
		handle = 2
	}
	return &netlink.BpfFilter{
		FilterAttrs:  netlink.FilterAttrs{LinkIndex: ifindex, Parent: parent, Handle: handle, Priority: filterPriority, Protocol: unix.ETH_P_ALL},
		Name:         name,
		DirectAction: true,
	}
}

// filterPrefix begins the pins that note filters: filter_<program>_<ifindex>. A filter holds its program by itself; without the pin nobody
// would know where ours are.
const filterPrefix = "filter_"

func filterPin(pinDir, program string, ifindex int) string {
	return filepath.Join(pinDir, filterPrefix+program+"_"+strconv.Itoa(ifindex))
}

// filterOf reads a pin's name back.
func filterOf(pin string) (program string, ifindex int, ok bool) {
	rest, ok := strings.CutPrefix(pin, filterPrefix)
	i := strings.LastIndexByte(rest, '_')
	if !ok || i < 0 {
		return "", 0, false
	}
	ifindex, err := strconv.Atoi(rest[i+1:])
	return rest[:i], ifindex, err == nil
}

// attachClsact is for kernels without tcx. A filter of ours that is there is replaced in place.
func attachClsact(pinDir string, ifindex int, name string, prog *ebpf.Program) error {
	qdisc := &netlink.GenericQdisc{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}, QdiscType: "clsact"}
	if err := netlink.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("bpf: clsact on interface %d: %w", ifindex, err)
	}
	f := filter(ifindex, name)
	f.Fd = prog.FD()
	if err := netlink.FilterReplace(f); err != nil {
		return fmt.Errorf("bpf: attach %s to interface %d: %w", name, ifindex, err)
	}
	pin := filterPin(pinDir, name, ifindex)
	if err := os.Remove(pin); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("bpf: unpin %s: %w", pin, err)
	}
	own, err := prog.Clone() // one program, many pins: to pin it again would move the pin
	if err != nil {
		return fmt.Errorf("bpf: pin %s: %w", pin, err)
	}
	defer own.Close()
	if err := own.Pin(pin); err != nil {
		return fmt.Errorf("bpf: pin %s: %w", pin, err)
	}
	return nil
}

// sweepClsact forgets the filters of interfaces that are gone.
func sweepClsact(pinDir string) error {
	pins, err := filepath.Glob(filepath.Join(pinDir, filterPrefix+"*"))
	if err != nil {
		return err
	}
	for _, pin := range pins {
		_, ifindex, ok := filterOf(filepath.Base(pin))
		if !ok {
			continue
		}
		if _, err := netlink.LinkByIndex(ifindex); err == nil {
			continue
		} else if !errors.As(err, new(netlink.LinkNotFoundError)) {
			return fmt.Errorf("bpf: interface %d: %w", ifindex, err)
		}
		if err := os.Remove(pin); err != nil {
			return fmt.Errorf("bpf: unpin %s: %w", pin, err)
		}
	}
	return nil
}

// detachClsact removes our filter and its pin only: the qdisc may serve others.
func detachClsact(pinDir string, ifindex int, name string) error {
	err := netlink.FilterDel(filter(ifindex, name))
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("bpf: detach %s from interface %d: %w", name, ifindex, err)
	}
	if err := os.Remove(filterPin(pinDir, name, ifindex)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("bpf: unpin: %w", err)
	}
	return nil
}
