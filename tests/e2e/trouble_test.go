package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/strake-io/strake/cmd/strake/layout"
)

// One pod calls a Service by its name over TCP and UDP, each time anew, and logs what it gets; another downloads without an end.
const sources = `
apiVersion: v1
kind: Pod
metadata: {name: caller}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: caller
    image: strake.io/demo:1
    args: [demo, client, --url, "http://echo.demo.svc.cluster.local/", --interval, 20ms]
  - name: sender
    image: strake.io/demo:1
    args: [demo, client, --url, "udp://echo.demo.svc.cluster.local:80", --interval, 5ms]
  - {name: shell, image: "strake.io/busybox:1", command: [sleep, "1000000"]}
---
apiVersion: v1
kind: Pod
metadata: {name: source, labels: {app: source}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: c, image: "strake.io/busybox:1", command: [nc, -ll, -p, "9000", -e, dd, if=/dev/zero, bs=64k]}
---
apiVersion: v1
kind: Service
metadata: {name: source}
spec:
  selector: {app: source}
  ports: [{port: 9000}]
`

const download = `
apiVersion: v1
kind: Pod
metadata: {name: download}
spec:
  terminationGracePeriodSeconds: 1
  restartPolicy: Never
  containers:
  - {name: c, image: "strake.io/busybox:1", command: [sh, -c, "nc source 9000 | dd of=/dev/null bs=64k; echo the download ended"]}
`

// TestProcessesAreKilled kills one process after the other while pods use the network.
func TestProcessesAreKilled(t *testing.T) {
	c := start(t)
	c.apply(sources)
	c.kubectl("wait", "--for=condition=Ready", "pod/caller", "pod/source", "--timeout=60s")
	c.apply(download)
	c.kubectl("wait", "--for=condition=Ready", "pod/download", "--timeout=60s")
	eventually(t, 80*time.Second, func() string {
		if received(t, c) == 0 {
			return "the download has not begun"
		}
		return ""
	})
	lost := lostPackets(t, c)
	for _, component := range []string{"agent", "supervisor", "agent", "containerd", "server"} {
		t.Run(component, func(t *testing.T) {
			c := c.in(t)
			before, calls := received(t, c), answers(c)
			pid := kill(t, c, component)
			if component == "supervisor" {
				if out, err := c.Strake("up", "--wait", "120s"); err != nil {
					t.Fatalf("up: %v\n%s", err, out)
				}
			}
			eventually(t, 4*time.Minute, func() string {
				if now := processOf(t, c, component); now == 0 || now == pid {
					return component + " did not come back"
				}
				if out, err := c.try("exec", "caller", "-c", "caller", "--", "/strake", "version"); err != nil {
					return out
				}
				return ""
			})
			if after := received(t, c); after <= before {
				t.Errorf("the download stands still at %d bytes", after)
			}
			for container, n := range answers(c) {
				if n <= calls[container] {
					t.Errorf("the %s stands still at %d answers", container, n)
				}
			}
		})
	}
	for container := range answers(c) {
		if log := c.kubectl("logs", "caller", "-c", container); strings.Contains(log, "error") {
			t.Errorf("calls of the %s failed:\n%s", container, log)
		}
	}
	if log := c.kubectl("logs", "download"); log != "" {
		t.Errorf("the download ended:\n%s", log)
	}
	// An exchange or two may be under way when the counters are read.
	if now := lostPackets(t, c); now > lost+2 {
		t.Errorf("%d packets were lost", now-lost)
	}
	if out := c.kubectl("get", "pods", "-A", "-o", "jsonpath={.items[*].status.containerStatuses[*].restartCount}"); strings.Trim(out, "0 ") != "" {
		t.Errorf("containers were restarted: %s", out)
	}
	t.Run("all at once, by a reboot", func(t *testing.T) { reboot(t, c) })
}

// reboot brings a cluster back after a reboot.
func reboot(t *testing.T, c *cluster) {
	c.kubectl("create", "configmap", "kept", "--from-literal=k=v")
	c.reboot()
	if out := c.kubectl("get", "configmap", "kept", "-o", "jsonpath={.data.k}"); out != "v" {
		t.Errorf("the ConfigMap holds %q", out)
	}
	eventually(t, 4*time.Minute, func() string {
		out, err := c.try("logs", "--tail=5", "caller", "-c", "caller")
		if err != nil || !strings.Contains(out, "answers GET") {
			pods, _ := c.try("get", "pods", "-A", "-o", "wide")
			return "the caller is not back:\n" + out + pods
		}
		return ""
	})
}

// powerOff takes away what a power loss takes of a node, and of those of its lab: every process at once, the mounts, /run, and their namespaces.
// What is on the disk stays as it happens to be.
func (c *cluster) powerOff(l layout.Layout) {
	c.t.Helper()
	c.must(c.Command(c.t.Context(), "sh", "-c", `for i in 1 2 3; do
	for f in /proc/[0-9]*; do
		if grep -qs `+l.Cgroup()+` $f/cgroup || tr '\0' ' ' 2>/dev/null < $f/cmdline | grep -qe '`+l.Data+`' -e '`+l.Run()+`'; then
			case $(tr '\0' ' ' < $f/cmdline) in sh*|tr*|grep*|*e2e.test*) ;; *) kill -9 ${f#/proc/};; esac
		fi
	done 2>/dev/null
	sleep 0.2
done
awk -v d=`+l.Data+`/ -v r=`+l.Run()+` 'index($2, d) == 1 || index($2, r) == 1 {print $2}' /proc/self/mounts | tac | xargs -r umount -l
rm -r `+l.Run()+`*
for n in $(ip netns | cut -d' ' -f1 | grep -E "^strake-`+l.ID+`(-[0-9]+)?$"); do ip netns del $n; done`))
	if running, _ := exec.Command("pgrep", "-af", l.Data+"( |/|$)").Output(); len(running) > 0 { // 1: none
		c.t.Fatalf("these survived the power loss:\n%s", running)
	}
}

// reboot is a power loss that takes the node's links and addresses as well. Then the node is started again.
func (c *cluster) reboot() {
	c.t.Helper()
	l, err := layout.New(c.Data)
	if err != nil {
		c.t.Fatal(err)
	}
	c.powerOff(l)
	c.must(c.Command(c.t.Context(), "sh", "-c", `for l in $(ip -br link | grep -o '^stk[^@]*'); do ip link del $l; done
ip link del strake-vxlan 2>/dev/null
ip addr flush dev lo scope global
tc filter del dev up0 ingress 2>/dev/null; true`))
	if out, err := c.Strake("up", "--wait", "240s"); err != nil {
		c.t.Fatalf("up: %v\n%s", err, out)
	}
}

// processOf returns the pid of a component, or 0.
func processOf(t *testing.T, c *cluster, component string) int {
	t.Helper()
	files, err := filepath.Glob("/run/strake/*/" + component + ".pid")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		pid, _, _ := strings.Cut(string(data), " ")
		line, err := os.ReadFile("/proc/" + pid + "/cmdline")
		if n, aerr := strconv.Atoi(pid); err == nil && aerr == nil && strings.Contains(string(line), c.Data) {
			return n
		}
	}
	return 0
}

func kill(t *testing.T, c *cluster, component string) int {
	t.Helper()
	pid := processOf(t, c, component)
	if pid == 0 {
		t.Fatalf("there is no %s", component)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	return pid
}

// counters reads those of IP, TCP and UDP in a pod's namespace, as nstat(8) names them but with a dot: "Tcp.RetransSegs".
func counters(t *testing.T, c *cluster, pod, container string) map[string]int {
	t.Helper()
	out := c.kubectl("exec", pod, "-c", container, "--", "cat", "/proc/net/snmp", "/proc/net/netstat")
	all := map[string]int{}
	var names []string
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(names) != len(f) || names[0] != f[0] {
			names = f
			continue
		}
		for i := 1; i < len(f); i++ {
			n, err := strconv.Atoi(f[i])
			if err != nil {
				t.Fatalf("%s: %v", names[i], err)
			}
			all[strings.TrimSuffix(f[0], ":")+"."+names[i]] = n
		}
		names = nil
	}
	return all
}

// received counts what the download got, in bytes.
func received(t *testing.T, c *cluster) int {
	t.Helper()
	return counters(t, c, "download", "c")["IpExt.InOctets"]
}

// lostPackets counts what the caller's pod sent and got no answer to: datagrams, names among them, and TCP's segments. Those that
// the download sends anew don't count: its packets overtake each other when a process moves to another CPU, and TCP takes that
// for a loss. Nor do those that TCP found to have been sent anew for nothing: on a busy machine an answer may be later than it waits.
func lostPackets(t *testing.T, c *cluster) int {
	t.Helper()
	caller, source := counters(t, c, "caller", "shell"), counters(t, c, "source", "c")
	lost := caller["Udp.OutDatagrams"] - caller["Udp.InDatagrams"] + caller["TcpExt.TCPSynRetrans"]
	for _, pod := range []map[string]int{caller, source} {
		lost += pod["TcpExt.TCPTimeouts"] - pod["TcpExt.TCPLossUndo"]
	}
	return lost
}

// answers counts those that the caller's containers got.
func answers(c *cluster) map[string]int {
	c.t.Helper()
	out := map[string]int{}
	for _, container := range []string{"caller", "sender"} {
		out[container] = strings.Count(c.kubectl("logs", "caller", "-c", container), " answers ")
	}
	return out
}
