package doctor

import (
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cni"
)

const restartAgent = "restart the agent: it attaches what is missing"

func (e *examination) mounts(g group) {
	fsType := func(name, dir string, magic int64, kind, hint string) bool {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			g.fail(name, hint, "%s: %v", dir, err)
			return false
		}
		if st.Type != magic {
			g.fail(name, hint, "%s is no %s", dir, kind)
			return false
		}
		g.ok(name, "%s", dir)
		return true
	}
	pins := fsType("bpffs", e.Layout.BPF(), unix.BPF_FS_MAGIC, "bpffs", "the agent mounts it when it starts: is it running? (`strake status`)")
	root := fsType("cgroup2", e.cgroupRoot, unix.CGROUP2_SUPER_MAGIC, "cgroup2 mount", "mount -t cgroup2 none /sys/fs/cgroup/unified")
	if root {
		dir := filepath.Join(e.cgroupRoot, e.Cgroup)
		fsType("node cgroup", dir, unix.CGROUP2_SUPER_MAGIC, "cgroup2 folder", restartAgent)
	}
	if !pins || !root {
		return
	}
	hooks, err := bpf.ReadHooks(e.Layout.BPF(), e.cgroupRoot)
	if err != nil {
		g.unknown("hooks", err, "")
		return
	}
	rows, err := bpf.ReadRows(e.Layout.BPF())
	if err != nil {
		g.unknown("hooks of pods", err, restartAgent)
	}
	uplinks := slices.DeleteFunc(e.uplinks(), func(name string) bool { return name == "lo" })
	var further []string
	if !e.ProxyOnly {
		others, err := cni.DesiredLinks(cni.NodeView{Name: e.Name, Addrs: e.Addrs, Uplinks: e.Uplinks})
		if err != nil {
			g.unknown("hooks of further links", err, "")
		}
		for index := range others {
			if name := nameOfInterface(index); name != "" { // else it went meanwhile
				further = append(further, name)
			}
		}
	}
	g.hooks(hooks, rows.Endpoints, uplinks, further, nameOfInterface)
}

func nameOfInterface(index int) string {
	if i, err := net.InterfaceByIndex(index); err == nil {
		return i.Name
	}
	return ""
}

// hooks judges what is attached: at the cgroup root, at every pod's interface, at the uplinks, and at further links. Of these the agent leaves what
// it can't serve, such as a device that takes no program: that is no failure, and another start of it mends nothing.
func (g group) hooks(hooks []bpf.Hook, endpoints []bpf.Endpoint, uplinks, further []string, nameOf func(int) string) {
	pods := map[int]bool{}
	var missing, others []string
	atCgroup, drivers := 0, ""
	for _, h := range hooks {
		at := "the cgroup root"
		if h.Ifindex != 0 {
			name := nameOf(h.Ifindex)
			if name == "" {
				continue // the interface went, and its pin goes with the next start of the agent
			}
			at = name
		}
		if len(h.Others) > 0 {
			slices.Sort(h.Others)
			others = append(others, fmt.Sprintf("%s beside %s at %s", strings.Join(h.Others, ", "), h.Program, at))
		}
		switch {
		case !h.Attached:
			missing = append(missing, fmt.Sprintf("%s at %s", h.Program, at))
		case h.Ifindex == 0:
			atCgroup++
		case h.Program == bpf.HookPod:
			pods[h.Ifindex] = true
		case h.Program == bpf.HookXDP:
			drivers += ", " + at + "'s driver"
		}
	}
	type atPod struct {
		program string
		ifindex int
	}
	known := map[atPod]bool{}
	atUplink := map[string]bool{}
	for _, h := range hooks {
		if h.Program == bpf.HookPod || h.Program == bpf.HookToPod {
			known[atPod{h.Program, h.Ifindex}] = true
		} else if h.Ifindex != 0 {
			atUplink[h.Program+" at "+nameOf(h.Ifindex)] = true
		}
	}
	lacking := func(links []string) (out []string) {
		for _, name := range links {
			for _, program := range []string{bpf.HookUplink, bpf.HookEgress} {
				if at := program + " at " + name; !atUplink[at] {
					out = append(out, at)
				}
			}
		}
		return out
	}
	missing = append(missing, lacking(uplinks)...)
	for _, ep := range endpoints {
		for _, program := range []string{bpf.HookPod, bpf.HookToPod} {
			if at := (atPod{program, ep.Ifindex}); !known[at] {
				known[at] = true
				missing = append(missing, fmt.Sprintf("%s at %s, the interface of the pod with %s", program, or(nameOf(ep.Ifindex), fmt.Sprintf("interface %d (gone)", ep.Ifindex)), ep.Addr))
			}
		}
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		g.fail("hooks", restartAgent, "not attached: %s", strings.Join(missing, "; "))
	} else {
		g.ok("hooks", "%d at the cgroup root, %d pods' interfaces%s", atCgroup, len(pods), drivers)
	}
	if left := lacking(further); len(left) > 0 {
		slices.Sort(left)
		g.warn("hooks of further links", "agent.log tells why: Services don't answer there, and pods' packets may leave with the node's address", "not attached: %s", strings.Join(left, "; "))
	}
	if len(others) > 0 {
		slices.Sort(others)
		g.warn("foreign programs", "find out whose they are with `bpftool net` and `bpftool cgroup tree`: they see or change the same packets", "%s", strings.Join(others, "; "))
	} else {
		g.ok("foreign programs", "none at these hooks")
	}
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
