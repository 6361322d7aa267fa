package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Feature is something of the kernel that the programs need, or use where it is there.
type Feature struct {
	Name    string
	Needed  bool
	Instead string // of an optional one: what is done without it
	Err     error  // nil: it is there; ebpf.ErrNotSupported: it is not; else it could not be found out
}

// optional are features that Open and AttachPod choose by.
var optional = []struct {
	requirement
	instead string
}{
	{requirement{"tcx links (Linux 6.6)", haveTCX}, "clsact filters: programs are replaced filter by filter"},
	{requirement{"bpf_set_retval (Linux 6.1)", func() error { return features.HaveProgramHelper(ebpf.CGroupSockAddr, asm.FnSetRetval) }},
		"UDP to a Service without endpoints fails with EPERM, not ECONNREFUSED, and who binds a NodePort gets EPERM, not EADDRINUSE"},
	{requirement{"IPV6_V6ONLY at bind (BTF of the kernel)", func() error { _, _, err := v6OnlyAt(); return err }},
		"who binds [::] for IPv6 alone is refused a port that is a NodePort of IPv4"},
	{requirement{"SOCK_DESTROY (INET_DIAG_DESTROY)", haveDestroy}, "connections that were made to a backend hang when that is deleted, until they time out"},
	{requirement{"SO_NETNS_COOKIE (Linux 5.14)", haveCookie}, "a program at the cgroup root tells the cookie when the agent starts"},
}

// Features probes what the running kernel has of all that the programs need or can use. It changes nothing but this
// process's limit of locked memory.
func Features() []Feature {
	var out []Feature
	for _, r := range requirements {
		out = append(out, Feature{Name: r.what, Needed: true, Err: r.probe()})
	}
	for _, o := range optional {
		out = append(out, Feature{Name: o.what, Instead: o.instead, Err: o.probe()})
	}
	return out
}

// haveTCX asks what is attached to lo: a kernel without tcx does not know the question.
func haveTCX() error {
	const lo = 1 // the first interface of every network namespace
	_, err := link.QueryPrograms(link.QueryOptions{Target: lo, Attach: ebpf.AttachTCXIngress})
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("tcx: %w", ebpf.ErrNotSupported)
	}
	return err
}

func haveCookie() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE); errors.Is(err, unix.ENOPROTOOPT) {
		return fmt.Errorf("SO_NETNS_COOKIE: %w", ebpf.ErrNotSupported)
	}
	return err
}

// v6OnlyAt finds the bit of IPV6_V6ONLY in the kernel's struct sock, for strake_bind6: the byte, and the bit of it. A kernel without BTF, with another
// struct, or that lets such programs read no memory of its own, is ErrNotSupported.
func v6OnlyAt() (at uint32, bit uint8, err error) {
	if err := features.HaveProgramHelper(ebpf.CGroupSockAddr, asm.FnProbeReadKernel); err != nil {
		return 0, 0, err
	}
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return 0, 0, err
	}
	const sockHead = 64 // SOCK_HEAD of sock.c
	var common *btf.Struct
	if err := spec.TypeByName("sock_common", &common); err == nil {
		for _, m := range common.Members { // struct sock begins with it
			if m.Name == "skc_ipv6only" && m.BitfieldSize == 1 && m.Offset < 8*sockHead {
				return m.Offset.Bytes(), 1 << (m.Offset % 8), nil
			}
		}
	}
	return 0, 0, fmt.Errorf("skc_ipv6only of struct sock_common: %w", ebpf.ErrNotSupported)
}
