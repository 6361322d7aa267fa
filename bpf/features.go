package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
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
