package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/strake-io/strake/cmd/strake/doctor"
)

// examine runs the doctor and checks that its exit code fits its report.
func examine(t *testing.T, c *cluster) doctor.Report {
	t.Helper()
	cmd := c.StrakeCommand(t.Context(), "doctor", "-o", "json")
	out, err := cmd.Output()
	var r doctor.Report
	if jerr := json.Unmarshal(out, &r); jerr != nil {
		t.Fatalf("doctor: %v, %v\n%s", err, jerr, out)
	}
	if code := cmd.ProcessState.ExitCode(); code != r.Code() {
		t.Errorf("exit code %d, but the report says %d", code, r.Code())
	}
	return r
}

// bad lists the checks of a report that are not well.
func bad(r doctor.Report) string {
	var out []string
	for _, c := range r.Checks {
		if c.Status == doctor.Failure || c.Status == doctor.Unknown {
			out = append(out, fmt.Sprintf("%s: %s: %s: %s", c.Group, c.Name, c.Status, c.Detail))
		}
	}
	return strings.Join(out, "\n")
}

func TestDoctor(t *testing.T) {
	c := use(t)
	// What is broken below is to stay broken: rows of pods that other tests have just deleted go by themselves.
	eventually(t, 4*time.Minute, func() string {
		leaving, err := c.try("get", "pods", "-A", "-o", `jsonpath={range .items[?(@.metadata.deletionTimestamp)]}{.metadata.namespace}/{.metadata.name} {end}`)
		if err != nil {
			return err.Error()
		}
		return strings.TrimSpace(leaving)
	})
	eventually(t, 2*time.Minute, func() string { return bad(examine(t, c)) })
	pins := filepath.Join(c.Data, "bpf")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	forget := func(table string) {
		t.Helper()
		m, err := ebpf.LoadPinnedMap(filepath.Join(pins, table), nil)
		must(err)
		defer m.Close()
		key, err := m.NextKeyBytes(nil)
		must(err)
		must(m.Delete(key))
	}
	detach := func(pin string) {
		t.Helper()
		l, err := link.LoadPinnedLink(pin, nil)
		must(err)
		defer l.Close()
		must(l.Detach())
	}
	var pods []string
	eventually(t, 2*time.Minute, func() string { // new pods' are filters for a while
		var err error
		if pods, err = filepath.Glob(filepath.Join(pins, "link_strake_pod_*")); err != nil || len(pods) == 0 {
			return fmt.Sprintf("no pod has a link, the test wants tcx (%v)", err)
		}
		return ""
	})
	config := filepath.Join(c.Data, "cni", "net.d", "05-other.conflist")
	in := func(args ...string) { t.Helper(); c.must(c.Command(t.Context(), args...)) }
	// A further link out of the cluster: the kind is what counts.
	in("ip", "link", "add", "wire0", "type", "veth", "peer", "name", "wire1")
	in("ip", "link", "add", "link", "wire0", "name", "storage0", "type", "macvlan", "mode", "bridge")
	in("ip", "addr", "add", "198.51.100.77/25", "dev", "storage0")
	in("ip", "link", "set", "wire0", "up")
	in("ip", "link", "set", "storage0", "up")
	storage, _, _ := strings.Cut(c.must(c.Command(t.Context(), "ip", "-o", "link", "show", "storage0")), ":")
	eventually(t, 2*time.Minute, func() string {
		if pins, _ := filepath.Glob(filepath.Join(pins, "link_strake_egress_"+storage)); len(pins) == 0 {
			return "the agent has no program at the further link"
		}
		return bad(examine(t, c))
	})
	defer func() {
		os.Remove(config)
		for _, undo := range [][]string{{"sysctl", "-qw", "net.ipv4.ip_forward=1"}, {"sysctl", "-qw", "net.ipv4.ip_local_port_range=32768 60999"}, {"ip", "link", "del", "cni0"}, {"ip", "link", "del", "storage0"}, {"ip", "link", "del", "wire0"}, {"nft", "delete", "table", "ip", "other"}} {
			if out, err := c.Command(t.Context(), undo...).CombinedOutput(); err != nil {
				t.Errorf("%v: %v\n%s", undo, err, out)
			}
		}
		kill(t, c, "agent") // its next start mends the rest
		eventually(t, 4*time.Minute, func() string { return bad(examine(t, c)) })
	}()
	must(os.WriteFile(config, nil, 0o600))
	in("ip", "link", "add", "cni0", "type", "bridge")
	in("nft", "add", "table", "ip", "other")
	in("nft", "add", "chain", "ip", "other", "KUBE-SERVICES")
	in("sysctl", "-qw", "net.ipv4.ip_forward=0")
	in("sysctl", "-qw", "net.ipv4.ip_local_port_range=32768 50999")
	way, err := ebpf.LoadPinnedMap(filepath.Join(pins, "path"), nil)
	must(err)
	defer way.Close()
	var to struct{ Tunnel, MTU uint32 }
	must(way.Lookup(uint32(0), &to))
	to.MTU = 9000
	must(way.Put(uint32(0), to))
	detach(filepath.Join(pins, "link_strake_connect4"))
	detach(pods[0])
	forget("lb_backends")
	forget("names")
	forget("endpoints")
	forget("uplink_addrs")
	detach(filepath.Join(pins, "link_strake_uplink_"+storage))
	r := examine(t, c)
	if r.OK || r.Code() != 1 {
		t.Errorf("ok %v, code %d", r.OK, r.Code())
	}
	for name, detail := range map[string]string{
		"hooks": "strake_connect4 at the cgroup root; strake_pod at stk", "table of further links": "storage0 is missing, should be 198.51.100.77", "net.ipv4.ip_forward": "0", "interfaces": "cni0", "nftables chains": "KUBE-SERVICES",
		"CNI configurations": "05-other.conflist", "table of Services": "should be frontends", "table of names": ".svc.cluster.local.", "table of pods": "is missing",
		"way to other nodes": "the programs take 9000 for the MTU", "constants of the programs": "local_last is 60999, should be 50999",
	} {
		i := slices.IndexFunc(r.Checks, func(c doctor.Check) bool { return c.Name == name })
		if i < 0 || r.Checks[i].Status != doctor.Failure || !strings.Contains(r.Checks[i].Detail, detail) || r.Checks[i].Hint == "" {
			t.Errorf("%s was not found to be broken:\n%s", name, bad(r))
		}
	}
	if !strings.Contains(bad(r), "strake_uplink at storage0") {
		t.Errorf("the further link's program is not missed:\n%s", bad(r))
	}
	// The agent proves and mends rows of policies by itself: it is stopped while they are looked at.
	pod, err := netip.ParseAddr(c.kubectl("get", "pods", "-n", "demo", "-o", "jsonpath={.items[0].status.podIP}"))
	must(err)
	agent := processOf(t, c, "agent")
	must(syscall.Kill(agent, syscall.SIGSTOP))
	subjects, err := ebpf.LoadPinnedMap(filepath.Join(pins, "policy_subjects"), nil)
	must(err)
	defer subjects.Close()
	row := pod.As16()
	must(subjects.Delete(row[:]))
	out, err := c.Strake("policy", "verify", "-o", "json")
	must(syscall.Kill(agent, syscall.SIGCONT))
	if err == nil || !strings.Contains(out, "no row: nothing passes") {
		t.Errorf("a pod without a row of policies is not told: %v\n%s", err, out)
	}
	if out, err := c.Strake("doctor", "--data-dir", t.TempDir()); err == nil || !strings.Contains(out, "strake up") {
		t.Errorf("doctor where no node is: %v\n%s", err, out)
	}
}
