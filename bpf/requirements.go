package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// requirement is something that the programs need of the kernel.
type requirement struct {
	what  string
	probe func() error // ebpf.ErrNotSupported if the kernel has it not
}

// requirements of all programs. The newest helpers among them came with Linux 5.10. The right comes first: before Linux 5.11, what all of a
// user's processes have loaded counts against the limit of the one that loads more.
var requirements = []requirement{
	{"the right to lock memory for BPF", rlimit.RemoveMemlock},
	{"programs on traffic control (CONFIG_NET_CLS_BPF)", func() error { return features.HaveProgramType(ebpf.SchedCLS) }},
	{"programs on sockets of a cgroup (CONFIG_CGROUP_BPF)", func() error { return features.HaveProgramType(ebpf.CGroupSockAddr) }},
	{"bpf_redirect_peer (Linux 5.10)", func() error { return features.HaveProgramHelper(ebpf.SchedCLS, asm.FnRedirectPeer) }},
	{"bpf_redirect_neigh (Linux 5.10)", func() error { return features.HaveProgramHelper(ebpf.SchedCLS, asm.FnRedirectNeigh) }},
	{"bpf_get_netns_cookie (Linux 5.7)", func() error { return features.HaveProgramHelper(ebpf.CGroupSockAddr, asm.FnGetNetnsCookie) }},
	{"bpf_get_current_ancestor_cgroup_id (Linux 5.7)", func() error {
		return features.HaveProgramHelper(ebpf.CGroupSockAddr, asm.FnGetCurrentAncestorCgroupId)
	}},
}

// Supported tells what the programs need and the running kernel lacks, by trying each. It changes nothing but this process's limit of locked
// memory.
func Supported() error { return probe(requirements) }

func probe(list []requirement) error {
	for _, r := range list {
		err := r.probe()
		switch {
		case err == nil:
		case errors.Is(err, ebpf.ErrNotSupported):
			return fmt.Errorf("this kernel lacks %s: use Linux 5.10 or newer, with BPF", r.what)
		case errors.Is(err, unix.EPERM):
			return fmt.Errorf("this process may not load BPF programs (%w): give it CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, or all of root's capabilities", err)
		default:
			return fmt.Errorf("bpf: find out whether the kernel has %s: %w", r.what, err)
		}
	}
	return nil
}
