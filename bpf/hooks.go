package bpf

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// Hook is a place where a program of ours is, or should be.
type Hook struct {
	Program  string
	Ifindex  int      // zero: the root of the cgroup2 tree
	Attached bool     // ours is there
	Others   []string // programs at the same place that are not Strake's, by name
}

// Names of the tc programs in a Hook.
const (
	HookPod    = podProgram
	HookToPod  = toPodProgram
	HookUplink = uplinkProgram
	HookEgress = egressProgram
	HookXDP    = xdpProgram
)

// ReadHooks asks the kernel what is attached where the pins below pinDir say that programs are, and at the socket hooks that every node
// has. It changes nothing, and is to be called in the node's network namespace.
func ReadHooks(pinDir, cgroupRoot string) ([]Hook, error) {
	var out []Hook
	root, err := os.Open(cgroupRoot)
	if err != nil {
		return nil, fmt.Errorf("bpf: hooks: %w", err)
	}
	defer root.Close()
	for _, name := range slices.Sorted(maps.Keys(cgroupHooks)) {
		h := Hook{Program: name}
		id, err := linkedProgram(filepath.Join(pinDir, linkPrefix+name))
		if err != nil {
			return nil, err
		}
		if err := h.at(int(root.Fd()), cgroupHooks[name], id); err != nil {
			return nil, err
		}
		out = append(out, h)
	}
	entries, err := os.ReadDir(pinDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("bpf: hooks: %w", err)
	}
	for _, e := range entries {
		if program, ifindex, ok := filterOf(e.Name()); ok {
			h, err := readFilter(pinDir, program, ifindex)
			if err != nil {
				return nil, err
			}
			out = append(out, h)
			continue
		}
		rest, ok := strings.CutPrefix(e.Name(), linkPrefix)
		i := strings.LastIndexByte(rest, '_')
		if !ok || i < 0 {
			continue
		}
		ifindex, err := strconv.Atoi(rest[i+1:])
		if err != nil {
			continue // of the cgroup
		}
		id, err := linkedProgram(filepath.Join(pinDir, e.Name()))
		if err != nil {
			return nil, err
		}
		h := Hook{Program: rest[:i], Ifindex: ifindex}
		if h.Program == xdpProgram {
			if err := h.atDriver(ifindex, id); err != nil && !gone(ifindex) {
				return nil, err
			}
			out = append(out, h)
			continue
		}
		at := ebpf.AttachTCXIngress
		if leaves(h.Program) {
			at = ebpf.AttachTCXEgress
		}
		if err := h.at(ifindex, at, id); err != nil && !gone(ifindex) {
			return nil, err
		}
		out = append(out, h)
	}
	return out, nil
}

func gone(ifindex int) bool {
	_, err := net.InterfaceByIndex(ifindex)
	return err != nil
}

// linkedProgram is the program of a pinned link; zero if there is no pin.
func linkedProgram(pin string) (ebpf.ProgramID, error) {
	l, err := link.LoadPinnedLink(pin, nil)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("bpf: %s: %w", pin, err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return 0, fmt.Errorf("bpf: %s: %w", pin, err)
	}
	return info.Program, nil
}

// at fills in what the kernel has at a place; ours has this id.
func (h *Hook) at(target int, attach ebpf.AttachType, ours ebpf.ProgramID) error {
	found, err := link.QueryPrograms(link.QueryOptions{Target: target, Attach: attach})
	if err != nil {
		return fmt.Errorf("bpf: what is attached at %s: %w", attach, err)
	}
	for _, p := range found.Programs {
		if p.ID == ours {
			h.Attached = true
		} else if name, ok := foreign(p.ID); ok {
			h.Others = append(h.Others, name)
		}
	}
	return nil
}

// foreign names a program, unless it is of another Strake node on this machine, or gone.
func foreign(id ebpf.ProgramID) (string, bool) {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return "", false
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil || strings.HasPrefix(info.Name, "strake_") {
		return "", false
	}
	if info.Name == "" {
		return fmt.Sprintf("program %d", id), true
	}
	return info.Name, true
}

// readFilter is for kernels without tcx.
func readFilter(pinDir, program string, ifindex int) (Hook, error) {
	h := Hook{Program: program, Ifindex: ifindex}
	p, err := ebpf.LoadPinnedProgram(filterPin(pinDir, program, ifindex), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return h, fmt.Errorf("bpf: hooks: %w", err)
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return h, fmt.Errorf("bpf: hooks: %w", err)
	}
	id, _ := info.ID()
	iface, err := netlink.LinkByIndex(ifindex)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return h, nil
	}
	if err != nil {
		return h, fmt.Errorf("bpf: hooks: interface %d: %w", ifindex, err)
	}
	list, err := netlink.FilterList(iface, filter(ifindex, program).Parent)
	if err != nil {
		return h, fmt.Errorf("bpf: hooks: filters of interface %d: %w", ifindex, err)
	}
	for _, f := range list {
		b, ok := f.(*netlink.BpfFilter)
		if ok && ebpf.ProgramID(b.Id) == id {
			h.Attached = true
		} else if ok && !strings.HasPrefix(b.Name, "strake_") {
			h.Others = append(h.Others, b.Name)
		}
	}
	return h, nil
}
