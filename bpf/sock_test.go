package bpf

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// A process of the node's cgroup reaches a backend by the frontend's address, and is refused where there is no backend.
func TestSocketTranslation(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("needs root")
	}
	root := "/sys/fs/cgroup/unified"
	if _, err := os.Stat(root); err != nil {
		root = "/sys/fs/cgroup"
	}
	cg, err := os.MkdirTemp(root, "strake-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(cg) })
	var st syscall.Stat_t
	if err := syscall.Stat(cg, &st); err != nil {
		t.Fatal(err)
	}
	spec, err := loadSock()
	if err != nil {
		t.Fatal(err)
	}
	if err := spec.Variables["node_cgroup"].Set(st.Ino); err != nil {
		t.Fatal(err)
	}
	if err := spec.Variables["node_level"].Set(uint32(1)); err != nil {
		t.Fatal(err)
	}
	var o sockObjects
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinNone
	}
	if err := spec.LoadAndAssign(&o, nil); err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	l, err := link.AttachCgroup(link.CgroupOptions{Path: cg, Attach: ebpf.AttachCGroupInet4Connect, Program: o.StrakeConnect4})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	put := func(m *ebpf.Map, k, v []byte) {
		t.Helper()
		if err := m.Put(k, v); err != nil {
			t.Fatal(err)
		}
	}
	mapped := []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff}
	put(o.LbFrontends, slices.Concat(mapped, []byte{10, 96, 0, 1, 0, 80, 6, 0, 0, 0, 0, 0}), append([]byte{7, 0, 0, 0, 1, 0, 0, 0}, make([]byte, 20)...))
	put(o.LbFrontends, slices.Concat(mapped, []byte{10, 96, 0, 2, 0, 80, 6, 0, 0, 0, 0, 0}), append([]byte{8, 0, 0, 0}, make([]byte, 24)...))
	put(o.LbBackends, []byte{7, 0, 0, 0, 0, 0, 0, 0}, slices.Concat(mapped, []byte{127, 0, 0, 1, 0x1f, 0x90, 0, 0, 0, 0, 0, 0}))
	// A pod's loopback is its own, also where the node's has a NodePort.
	put(o.LbFrontends, slices.Concat(mapped, []byte{127, 0, 0, 1, 0, 81, 6, 0, 0, 0, 0, 0}), append([]byte{7, 0, 0, 0, 1, 0, 0, 0}, make([]byte, 20)...))
	script := `echo $$ > ` + filepath.Join(cg, "cgroup.procs") + `
ip link set lo up
(echo hello | busybox nc -l -p 8080) &
for i in $(seq 100); do sleep 1 | busybox nc -w 2 10.96.0.1 80 && break; sleep 0.1; done # who hangs up first may hear nothing
busybox nc -w 2 10.96.0.2 80 </dev/null 2>&1
(echo my own | busybox nc -l -p 81) &
for i in $(seq 100); do busybox nc -w 2 127.0.0.1 81 </dev/null && break; sleep 0.1; done
kill $! 2>/dev/null; wait`
	out, _ := exec.Command("unshare", "-n", "sh", "-c", script).CombinedOutput()
	if !strings.Contains(string(out), "hello") {
		t.Errorf("the backend was not reached: %s", out)
	}
	if !strings.Contains(string(out), "my own") {
		t.Errorf("a pod's loopback address was translated: %s", out)
	}
	if !strings.Contains(string(out), "efused") {
		t.Errorf("a frontend without backends was not refused: %s", out)
	}
}
