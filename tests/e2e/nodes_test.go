package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	strake "github.com/strake-io/strake/cmd/strake/cluster"
	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/cmd/strake/supervisor"
	"github.com/strake-io/strake/tests/lab"
)

// TestNodes: a cluster of several nodes on one machine comes up, grows, shrinks, loses processes, is rebooted and goes without a trace.
func TestNodes(t *testing.T) {
	t.Parallel()
	c := start(t, "--nodes", "3")
	l, err := layout.New(c.Data)
	if err != nil {
		t.Fatal(err)
	}
	names := []string{nodeName, nodeName + "-2", nodeName + "-3"}
	t.Run("status", func(t *testing.T) {
		st := status(t, c.Cluster)
		var found []string
		for _, n := range st.Nodes {
			found = append(found, n.Name)
			if !n.Ready || n.Name != nodeName && (len(n.Components) != 3 || n.Datapath == nil || len(n.Datapath.Links) == 0) {
				t.Errorf("node %+v", n)
			}
		}
		slices.Sort(found)
		if !st.Ready || !slices.Equal(found, names) {
			t.Errorf("ready: %v, nodes %v", st.Ready, found)
		}
	})
	t.Run("no token is left", func(t *testing.T) { noToken(t, c.in(t)) })
	c.onEach(names)
	t.Run("pods reach each other", func(t *testing.T) { everyWay(t, c.in(t), names) })
	t.Run("an agent killed", func(t *testing.T) {
		c := c.in(t)
		before, ok := supervisor.Find(l.Node(2).Pid("agent"))
		if !ok {
			t.Fatal("node 2 has no agent")
		}
		if err := syscall.Kill(before.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		everyWay(t, c, names) // without it
		eventually(t, 4*time.Minute, func() string {
			if now, ok := supervisor.Find(l.Node(2).Pid("agent")); !ok || now == before {
				return "the agent did not come back"
			}
			return ""
		})
		everyWay(t, c, names)
	})
	t.Run("one node more, and less again", func(t *testing.T) {
		c := c.in(t)
		if out, err := c.Strake("up", "--nodes", "4", "--wait", "120s"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		four := nodeName + "-4"
		c.kubectl("wait", "--for=condition=Ready", "node/"+four, "--timeout=120s")
		if out, err := c.Strake("up", "--nodes", "2"); err == nil || !strings.Contains(out, "strake node remove") {
			t.Errorf("fewer nodes: %v\n%s", err, out)
		}
		c.kubectl("create", "deployment", "moves", "--image=strake.io/demo:1", "--", "/strake", "demo", "echo")
		c.kubectl("patch", "deployment", "moves", "-p", `{"spec":{"template":{"spec":{"terminationGracePeriodSeconds":1,"affinity":{"nodeAffinity":{"preferredDuringSchedulingIgnoredDuringExecution":[
			{"weight":100,"preference":{"matchExpressions":[{"key":"kubernetes.io/hostname","operator":"In","values":["`+four+`"]}]}}]}}}}}}`)
		c.kubectl("rollout", "status", "deployment/moves", "--timeout=90s")
		if out, err := c.Strake("node", "remove", four); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		c.kubectl("rollout", "status", "deployment/moves", "--timeout=90s")
		if out := c.kubectl("get", "pods", "-o", "wide") + c.kubectl("get", "nodes"); strings.Contains(out, four) {
			t.Errorf("something is left of %s:\n%s", four, out)
		}
		nothingOf(t, l.Node(4))
		if out, err := c.Strake("node", "remove", nodeName); err == nil || !strings.Contains(out, "control plane") {
			t.Errorf("the first node: %v\n%s", err, out)
		}
		c.kubectl("delete", "deployment", "moves")
	})
	t.Run("routing is switched", func(t *testing.T) {
		c := c.in(t)
		for _, routing := range []string{strake.RoutingNative, strake.RoutingVXLAN} {
			if out, err := c.Strake("up", "--routing", routing, "--wait", "120s"); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			eventually(t, 4*time.Minute, func() string {
				for _, netns := range []string{"/run/netns/" + c.Net, l.Node(2).Netns(), l.Node(3).Netns()} {
					out := c.must(exec.Command("nsenter", "--net="+netns, "ip", "route", "show", "proto", "83"))
					if strings.Contains(out, "dev strake-vxlan") != (routing == strake.RoutingVXLAN) || !strings.Contains(out, "via") {
						return fmt.Sprintf("%s, with %s:\n%s", netns, routing, out)
					}
				}
				return ""
			})
			everyWay(t, c, names)
		}
	})
	t.Run("a reboot", func(t *testing.T) {
		c := c.in(t)
		c.reboot()
		if st := status(t, c.Cluster); len(st.Nodes) != 3 {
			t.Errorf("nodes after the reboot: %+v", st.Nodes)
		}
		noToken(t, c)
		for _, n := range names {
			c.kubectl("wait", "--for=condition=Ready", "pod/on-"+n, "--timeout=90s")
		}
		everyWay(t, c, names)
	})
	t.Run("a data folder of the lab by hand", func(t *testing.T) {
		for _, args := range [][]string{{"up"}, {"down"}, {"agent"}} {
			out, err := c.Command(t.Context(), append([]string{c.Binary, "--data-dir", l.Node(2).Data}, args...)...).CombinedOutput()
			if err == nil || !strings.Contains(string(out), "use --data-dir "+c.Data+",") {
				t.Errorf("%v: %v\n%s", args, err, out)
			}
		}
	})
	t.Run("nothing is left after down --purge", func(t *testing.T) { purge(t, c.in(t)) })
}

// TestFailedGrowth: nodes that can't come to be are taken back, and the cluster goes on.
func TestFailedGrowth(t *testing.T) {
	c := use(t)
	l, err := layout.New(c.Data)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(l.Node(3).Netns(), 0o755); err != nil { // no namespace can have this name
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(l.Node(3).Netns()) })
	out, err := c.Strake("up", "--nodes", "3", "--wait", "60s")
	if err == nil || !strings.Contains(out, nodeName+"-3") {
		t.Errorf("%v\n%s", err, out)
	}
	nothingOf(t, l.Node(2))
	nothingOf(t, l.Node(3))
	if st := status(t, c.Cluster); !st.Ready || len(st.Nodes) != 1 {
		t.Errorf("%+v", st)
	}
}

// TestJoin: another machine joins by a token, comes back after a reboot without one, and leaves.
func TestJoin(t *testing.T) {
	t.Parallel()
	c := start(t)
	data := filepath.Join(t.TempDir(), "data")
	l, err := c.Machine(1, data)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	m := &cluster{Cluster: l, t: t, namespace: "default"}
	const joined = "machine-1"
	var token struct{ Token, CACertHash string }
	if out, err := c.StrakeCommand(t.Context(), "token", "create", "-o", "json").Output(); err != nil || json.Unmarshal(out, &token) != nil || token.CACertHash == "" {
		t.Fatalf("token: %v\n%s", err, out)
	}
	server := "https://" + lab.NodeIP + ":6443"
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token.Token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	wrongSecret := token.Token[:7] + strings.Repeat("x", 16)
	for _, b := range []struct {
		name string
		args []string
		want string
	}{
		{"no URL", nil, "is not the folder of a node yet"},
		{"no token", []string{server, "--ca-cert-hash", token.CACertHash}, "token"},
		{"a wrong token", []string{server, "--token", wrongSecret, "--ca-cert-hash", token.CACertHash}, "token"},
		{"no hash", []string{server, "--token", token.Token}, "hash"},
		{"a wrong hash", []string{server, "--token", token.Token, "--ca-cert-hash", "sha256:" + strings.Repeat("0", 64)}, "its CA is not the one"},
		{"nobody there", []string{"https://" + lab.NodeIP + ":6444", "--token", token.Token, "--ca-cert-hash", token.CACertHash, "--wait", "5s"}, "6444"},
		{"the name of a node that lives", []string{server, "--token", token.Token, "--ca-cert-hash", token.CACertHash, "--node-name", nodeName}, "join by another name"},
	} {
		t.Run(b.name, func(t *testing.T) {
			out, err := m.Strake(append([]string{"join"}, b.args...)...)
			if err == nil || !strings.Contains(out, b.want) {
				t.Errorf("%v, want %q in\n%s", err, b.want, out)
			}
			nothingRuns(t, m)
			if _, err := os.Stat(filepath.Join(data, "pki")); err == nil {
				t.Error("certificates are left")
			}
		})
	}
	if out, err := m.Strake("join", server, "--token-file", file, "--ca-cert-hash", token.CACertHash, "--node-name", joined); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	m.busybox()
	c.kubectl("wait", "--for=condition=Ready", "node/"+joined, "--timeout=120s")
	names := []string{nodeName, joined}
	c.onEach(names)
	t.Run("pods reach each other", func(t *testing.T) { everyWay(t, c.in(t), names) })
	t.Run("joining twice", func(t *testing.T) {
		for _, args := range [][]string{{"join"}, {"join", server, "--token", token.Token, "--ca-cert-hash", token.CACertHash}, {"up"}} {
			if out, err := m.Strake(args...); err != nil {
				t.Errorf("%v: %v\n%s", args, err, out)
			}
		}
		if out, err := m.Strake("join", "https://192.0.2.1:6443"); err == nil || !strings.Contains(out, "has joined "+server) {
			t.Errorf("another cluster: %v\n%s", err, out)
		}
		if out, err := m.Strake("server"); err == nil || !strings.Contains(out, "it has no server") {
			t.Errorf("a server there: %v\n%s", err, out)
		}
	})
	t.Run("status there", func(t *testing.T) {
		if st := status(t, m.Cluster); !st.Ready || len(st.Nodes) != 2 || len(st.Components) != 3 {
			t.Errorf("%+v", st)
		}
	})
	t.Run("its own token is not needed any more", func(t *testing.T) {
		c.must(c.StrakeCommand(t.Context(), "token", "delete", token.Token[:6]))
		m := m.in(t)
		m.reboot()
		c := c.in(t)
		c.kubectl("wait", "--for=condition=Ready", "pod/on-"+joined, "--timeout=90s")
		everyWay(t, c, names)
	})
	t.Run("it gets another address", func(t *testing.T) { otherAddress(t, c.in(t), m.in(t), names) })
	t.Run("the cluster changes what its nodes share", func(t *testing.T) { otherSettings(t, c.in(t), m.in(t), joined) })
	t.Run("a node beside the first one", func(t *testing.T) {
		c := c.in(t)
		if out, err := c.Strake("up", "--nodes", "2", "--wait", "120s"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		c.busybox()
		names = append(names, nodeName+"-2")
		c.onEach(names)
		everyWay(t, c, names)
		for _, n := range names { // the kubelets, by the API server; and host to host
			c.kubectl("exec", "on-"+n, "--", "true")
		}
	})
	t.Run("the control plane gets another address", func(t *testing.T) { otherAddressOfTheControlPlane(t, c.in(t), m.in(t), names) })
	t.Run("leaving", func(t *testing.T) {
		c, m := c.in(t), m.in(t)
		c.kubectl("delete", "pod", "on-"+joined)
		if out, err := m.Strake("down", "--purge"); err != nil || !strings.Contains(out, "strake node remove "+joined) {
			t.Errorf("%v\n%s", err, out)
		}
		nothingRuns(t, m)
		if out, err := c.Strake("node", "remove", joined); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		if out := c.kubectl("get", "nodes", "-o", "name"); strings.Contains(out, joined) {
			t.Errorf("nodes are left:\n%s", out)
		}
	})
}

// otherAddress gives a machine that has joined another address, as a DHCP server may: it is followed, by the node and by the others, and nobody
// starts anything anew.
func otherAddress(t *testing.T, c, m *cluster, names []string) {
	joined := names[1]
	before := agentOf(t, m)
	const now = "198.18.1.77"
	for _, args := range []string{"addr del 198.18.1.2/24 dev up0", "addr add " + now + "/24 dev up0", "route add default via 198.18.1.1"} {
		if out, err := exec.Command("ip", append([]string{"-n", m.Net}, strings.Fields(args)...)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v\n%s", args, err, out)
		}
	}
	eventually(t, 4*time.Minute, func() string {
		out, err := c.try("get", "node", joined, "-o", "jsonpath={.status.addresses[?(@.type==\"InternalIP\")].address} {.status.conditions[?(@.type==\"Ready\")].status}")
		if err != nil || strings.TrimSpace(out) != now+" True" {
			return fmt.Sprintf("%q, %v", out, err)
		}
		return ""
	})
	eventually(t, 4*time.Minute, func() string { // the kubelet's certificate names the address
		out, err := c.try("exec", "on-"+joined, "--", "true")
		if err != nil {
			return out
		}
		return ""
	})
	everyWay(t, c, names)
	if after := agentOf(t, m); after != before {
		t.Errorf("the agent is process %d now, it was %d", after, before)
	}
}

// otherAddressOfTheControlPlane gives the first machine another address, once while all runs and once while it is down. It and the nodes beside
// it follow, and a machine that has joined by the address: once it is called by the API server, and once it is told.
func otherAddressOfTheControlPlane(t *testing.T, c, m *cluster, names []string) {
	move := func(from, to string) {
		t.Helper()
		for _, args := range []string{"addr del " + from + "/24 dev up0", "addr add " + to + "/24 dev up0", "route add default via " + lab.OutsideIP} {
			c.must(exec.Command("ip", append([]string{"-n", c.Net}, strings.Fields(args)...)...))
		}
	}
	follows := func(addr string, told bool) {
		t.Helper()
		eventually(t, 6*time.Minute, func() string {
			out, err := c.try("get", "node", nodeName, "-o", "jsonpath={.status.addresses[?(@.type==\"InternalIP\")].address}")
			if err != nil || out != addr {
				return fmt.Sprintf("the node: %q, %v", out, err)
			}
			if out, err = c.try("get", "endpointslice", "kubernetes", "-o", "jsonpath={.endpoints[*].addresses[*]}"); err != nil || out != addr {
				return fmt.Sprintf("the Service kubernetes: %q, %v", out, err)
			}
			return ""
		})
		if config, err := os.ReadFile(filepath.Join(c.Data, "admin.kubeconfig")); err != nil || !strings.Contains(string(config), "https://"+addr+":6443") {
			t.Errorf("the administrator's kubeconfig: %v\n%s", err, config)
		}
		if told {
			if out, err := m.Strake("join", "https://"+addr+":6443"); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
		}
		eventually(t, 8*time.Minute, func() string {
			if s, err := os.ReadFile(filepath.Join(m.Data, "settings.json")); err != nil || !strings.Contains(string(s), "https://"+addr+":6443") {
				return fmt.Sprintf("the machine that has joined keeps %s (%v)", s, err)
			}
			return ""
		})
		eventually(t, 6*time.Minute, func() string {
			out, err := c.try("get", "nodes", "-o", "jsonpath={.items[*].status.conditions[?(@.type==\"Ready\")].status}")
			if err != nil || out != strings.TrimSpace(strings.Repeat("True ", len(names))) {
				return fmt.Sprintf("ready: %q, %v", out, err)
			}
			return ""
		})
		everyWay(t, c, names)
		for _, n := range names {
			eventually(t, 4*time.Minute, func() string { // a pod finds the API server, which finds the kubelet
				out, _ := c.try("exec", "on-"+n, "--", "timeout", "5", "wget", "-O", "-", "http://kubernetes.default.svc:443/")
				if !strings.Contains(out, "400 Bad Request") { // of HTTP without TLS
					return fmt.Sprintf("the API server from %s: %s", n, out)
				}
				return ""
			})
		}
		if out, err := c.Strake("doctor"); err != nil {
			t.Errorf("doctor: %v\n%s", err, out)
		}
	}
	const other = "198.18.0.77"
	before := agentOf(t, c)
	move(lab.NodeIP, other)
	follows(other, false)
	if after := agentOf(t, c); after != before {
		t.Errorf("the agent is process %d now, it was %d", after, before)
	}
	if out, err := c.Strake("down"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	move(other, lab.NodeIP)
	if out, err := c.Strake("up"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, n := range names {
		c.kubectl("wait", "--for=condition=Ready", "pod/on-"+n, "--timeout=90s")
	}
	follows(lab.NodeIP, true)
}

func agentOf(t *testing.T, m *cluster) int {
	t.Helper()
	for _, p := range status(t, m.Cluster).Components {
		if p.Name == "agent" {
			return p.PID
		}
	}
	t.Fatal("no agent")
	return 0
}

// otherSettings changes a setting on the first machine: the node that has joined takes it over while it runs. The outside knows no way to pods:
// what leaves with a pod's own address gets no answer.
func otherSettings(t *testing.T, c, m *cluster, joined string) {
	const outside = "198.18.200.1"
	if out, err := exec.Command("ip", "-n", m.Outside, "addr", "add", outside+"/32", "dev", "lo").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	ask := func() string {
		out, _ := c.try("exec", "on-"+joined, "--", "timeout", "3", "wget", "-O", "-", "http://"+outside+":9/")
		return out
	}
	eventually(t, 4*time.Minute, func() string {
		if out := ask(); !strings.Contains(out, "refused") {
			return "as the node: " + out
		}
		return ""
	})
	if out, err := c.Strake("up", "--non-masquerade-cidr", outside+"/32"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	eventually(t, 4*time.Minute, func() string {
		if out := ask(); strings.Contains(out, "refused") {
			return "still as the node: " + out
		}
		return ""
	})
	if data, err := os.ReadFile(filepath.Join(m.Data, "settings.json")); err != nil || !strings.Contains(string(data), outside) {
		t.Errorf("what the node keeps: %v\n%s", err, data)
	}
}

// onEach runs a pod on each of the nodes: on-NAME, which serves its node's name.
func (c *cluster) onEach(names []string) {
	c.t.Helper()
	for _, n := range names {
		c.apply(fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: on-%[1]s}
spec:
  nodeName: %[1]s
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: strake.io/busybox:1
    command: [sh, -c, "mkdir -p /tmp/w; echo %[1]s > /tmp/w/index.html; exec httpd -f -p 8080 -h /tmp/w"]
    readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
`, n))
	}
	for _, n := range names {
		c.kubectl("wait", "--for=condition=Ready", "pod/on-"+n, "--timeout=90s")
	}
}

// everyWay: the pod on each node gets an answer of the pod on each node, and of a Service by its name.
func everyWay(t *testing.T, c *cluster, names []string) {
	t.Helper()
	for _, from := range names {
		for _, to := range names {
			eventually(t, 4*time.Minute, func() string {
				addr := c.kubectl("get", "pod", "on-"+to, "-o", "jsonpath={.status.podIP}") // another one after a reboot
				out, err := c.try("exec", "on-"+from, "--", "timeout", "5", "wget", "-q", "-O", "-", "http://"+addr+":8080/")
				if err != nil || strings.TrimSpace(out) != to {
					return fmt.Sprintf("from %s to %s (%s): %v: %s", from, to, addr, err, out)
				}
				return ""
			})
		}
		eventually(t, 4*time.Minute, func() string {
			if out, err := c.try("exec", "on-"+from, "--", "timeout", "5", "wget", "-q", "-O", "-", "http://echo.demo.svc.cluster.local/"); err != nil {
				return fmt.Sprintf("from %s to the demo: %v: %s", from, err, out)
			}
			return ""
		})
	}
}

func status(t *testing.T, c *lab.Cluster) strake.Status {
	t.Helper()
	var st strake.Status
	out, err := c.StrakeCommand(t.Context(), "status", "-o", "json").Output()
	if json.Unmarshal(out, &st) != nil || st.Ready != (err == nil) {
		t.Fatalf("status: %v\n%s", err, out)
	}
	return st
}

func noToken(t *testing.T, c *cluster) {
	t.Helper()
	if out := c.kubectl("get", "secrets", "-n", "kube-system", "--field-selector", "type=bootstrap.kubernetes.io/token", "-o", "name"); strings.TrimSpace(out) != "" {
		t.Errorf("tokens are left:\n%s", out)
	}
}

// nothingOf looks for what a node of the lab could leave behind.
func nothingOf(t *testing.T, node layout.Layout) {
	t.Helper()
	cgroups, err := exec.Command("find", "/sys/fs/cgroup", "-name", filepath.Base(node.Cgroup())).Output()
	if err != nil || len(cgroups) > 0 {
		t.Errorf("cgroups are left: %s (%v)", cgroups, err)
	}
	for _, path := range []string{node.Data, node.Run(), node.Netns()} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s is left", path)
		}
	}
	if running, _ := exec.Command("pgrep", "-af", node.Data+"( |/|$)").Output(); len(running) > 0 { // 1: none
		t.Errorf("these still run:\n%s", running)
	}
}
