package doctor

import (
	"errors"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/strake-io/strake/bpf"
)

func (e *examination) kernel(g group) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		g.unknown("release", err, "")
	} else {
		release := unix.ByteSliceToString(u.Release[:])
		g.judgeRelease(release)
	}
	for _, f := range bpf.Features() {
		g.feature(f)
	}
}

func (g group) feature(f bpf.Feature) {
	switch {
	case f.Err == nil:
		g.ok(f.Name, "present")
	case !errors.Is(f.Err, ebpf.ErrNotSupported):
		g.unknown(f.Name, f.Err, "run it as root, with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON")
	case f.Needed:
		g.fail(f.Name, "use Linux 5.10 or newer, with BPF", "missing")
	default:
		g.ok(f.Name, "missing; used instead: %s", f.Instead)
	}
}
