package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/strake-io/strake/tests/lab/labtest"
	"github.com/strake-io/strake/tests/podnet"
)

// threeNodes is a cluster of three nodes with addresses of both families.
type threeNodes struct {
	*cluster
	nodes []labNode
}

// labNode is what `status` says of a node.
type labNode struct {
	Name       string       `json:"name"`
	Addresses  []netip.Addr `json:"addresses"`
	Ready      bool         `json:"ready"`
	DataDir    string       `json:"dataDir"`
	Components []struct {
		Name string `json:"name"`
		PID  int    `json:"pid"`
	} `json:"components"`

	netns string // path
}

// agent is the pid of the node's agent, 0 if there is none.
func (n labNode) agent() int {
	for _, c := range n.Components {
		if c.Name == "agent" {
			return c.PID
		}
	}
	return 0
}

// refresh asks what nodes there are.
func (c *threeNodes) refresh() string {
	out, err := c.StrakeCommand(c.t.Context(), "status", "-o", "json").Output()
	var st struct {
		Ready      bool      `json:"ready"`
		Nodes      []labNode `json:"nodes"`
		Components []struct {
			Name string `json:"name"`
			PID  int    `json:"pid"`
		} `json:"components"`
	}
	if err != nil || json.Unmarshal(out, &st) != nil || !st.Ready {
		return string(out)
	}
	for i := range st.Nodes {
		n := &st.Nodes[i]
		if n.DataDir == "" || n.Name == nodeName {
			n.Components, n.DataDir = st.Components, c.Data
		}
		if !n.Ready || n.agent() == 0 {
			return fmt.Sprintf("node %s is not Ready\n%s", n.Name, out)
		}
		n.netns = fmt.Sprintf("/proc/%d/ns/net", n.agent())
	}
	c.nodes = st.Nodes
	return ""
}

// in is the same for a part of a test.
func (c *threeNodes) in(t *testing.T) *threeNodes {
	return &threeNodes{cluster: c.cluster.in(t), nodes: c.nodes}
}

// command runs a program in the node's namespace.
func (n labNode) command(t *testing.T, args ...string) *exec.Cmd {
	return exec.CommandContext(t.Context(), "nsenter", append([]string{"--net=" + n.netns}, args...)...)
}

// TestPodNetwork is the pod network of several nodes: every path, and then what may happen to it.
func TestPodNetwork(t *testing.T) {
	l := labtest.New(t, "strake-e2e", binary)
	c := &threeNodes{cluster: &cluster{Cluster: l, t: t, namespace: "default"}}
	if out, err := c.Strake("up", "--node-name", nodeName, "--nodes", "3", "--ip-family", "dual", "--wait", "300s"); err != nil {
		t.Fatalf("up: %v\n%s", err, out)
	}
	c.busybox()
	c.awaitServiceAccount()
	eventually(t, 4*time.Minute, c.refresh)
	if len(c.nodes) != 3 {
		t.Fatalf("nodes %+v", c.nodes)
	}
	for i := range c.nodes {
		c.apply(residents(c.nodes[i].Name, i))
	}
	c.apply(residentService)
	c.kubectl("wait", "--for=condition=Ready", "pod", "-l", "app=resident", "--timeout=90s")
	for _, part := range []struct {
		name string
		run  func(*testing.T, *threeNodes)
	}{
		{"every path", everyPath},
		{"a NodePort from outside leads to all nodes", nodePorts},
		{"logs, exec and port-forward of pods on every node", streams},
		{"no rule of ours in netfilter", noRules},
		{"pods can't be others", spoofs},
		{"the MTU follows the uplink's", followMTU},
		{"agents are killed under traffic", killAgents},
		{"agents of two nodes are killed, and each packet is counted", countPackets},
		{"a node is rebooted under traffic", rebootNode},
		{"a pod with limits", limitedPod},
		{"no address is left on a node", exhaust},
		{"a node is removed", removeNode},
	} {
		t.Run(part.name, func(t *testing.T) {
			c := c.in(t)
			eventually(t, 6*time.Minute, c.refresh) // an agent may be another by now
			part.run(t, c)
		})
	}
}

// residents is a pod on a node.
func residents(node string, i int) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: resident-%[2]d, labels: {app: resident, kind: pod}}
spec:
  nodeName: %[1]s
  terminationGracePeriodSeconds: 1
  containers:
  - {name: echo, image: "strake.io/demo:1", args: [demo, echo, --listen, ":8080"]}
  - {name: shell, image: "strake.io/busybox:1", command: [sleep, "1000000"]}
`, node, i)
}

const residentService = `
apiVersion: v1
kind: Service
metadata: {name: residents}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {app: resident}
  ports:
  - {name: http, port: 80, targetPort: 8080, nodePort: 30280}
  - {name: packets, port: 80, targetPort: 8080, protocol: UDP, nodePort: 30280}
`

// everyPath lets the cluster test itself.
func everyPath(t *testing.T, c *threeNodes) {
	if out, err := c.Strake("connectivity", "test", "--timeout", "4m"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// nodePorts of a node lead to the pods of all.
func nodePorts(t *testing.T, c *threeNodes) {
	ask := func(url string) (string, error) {
		out, err := exec.CommandContext(t.Context(), "ip", "netns", "exec", c.Outside, c.Binary, "demo", "client", "--interval", "1ms", "--count", "40", "--url", url).CombinedOutput()
		return string(out), err
	}
	// The other nodes of a lab are behind the first one, which masquerades what they send: only it is reached from outside. The
	// NodePorts of all are among the paths that the cluster tests itself.
	for _, a := range c.nodes[0].Addresses {
		for _, scheme := range []string{"http", "udp"} {
			url := scheme + "://" + netip.AddrPortFrom(a, 30280).String()
			var out string
			var err error
			eventually(t, 2*time.Minute, func() string { // a node learns of Services in its own time
				if out, err = ask(url); len(answersOf(out)) == len(c.nodes) {
					return ""
				}
				return url + ":\n" + out
			})
			spread(t, out, err, len(c.nodes))
		}
	}
}

// streams go through the API server to every node's kubelet.
func streams(t *testing.T, c *threeNodes) {
	for i := range c.nodes {
		pod := fmt.Sprint("resident-", i)
		if out := c.kubectl("exec", pod, "-c", "shell", "--", "echo", "hello"); out != "hello\n" {
			t.Errorf("exec in %s: %q", pod, out)
		}
		c.kubectl("exec", pod, "-c", "shell", "--", "sh", "-c", "echo logged > /proc/1/fd/1")
		eventually(t, 80*time.Second, func() string {
			if out := c.kubectl("logs", pod, "-c", "shell"); out != "logged\n" {
				return fmt.Sprintf("logs of %s: %q", pod, out)
			}
			return ""
		})
		if answer := forward(c.cluster, pod, "8080"); !strings.HasPrefix(answer, pod+" answers") {
			t.Errorf("port-forward to %s: %q", pod, answer)
		}
	}
}

// forward asks a port of a pod through `kubectl port-forward`.
func forward(c *cluster, pod, port string) string {
	c.t.Helper()
	cmd := c.kubectlCommand("port-forward", "pod/"+pod, ":"+port)
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	line := make([]byte, 200)
	n, err := pipe.Read(line)
	if err != nil {
		c.t.Fatal(err)
	}
	addr := strings.Fields(strings.TrimPrefix(string(line[:n]), "Forwarding from "))[0]
	out, err := c.Command(c.t.Context(), "curl", "-s", "-m", "20", "http://"+addr+"/").CombinedOutput()
	if err != nil {
		return err.Error()
	}
	return string(out)
}

func noRules(t *testing.T, c *threeNodes) {
	for _, n := range c.nodes {
		for _, args := range [][]string{{"iptables-save"}, {"ip6tables-save"}, {"nft", "list", "ruleset"}} {
			if _, err := exec.LookPath(args[0]); err != nil {
				continue // then it holds no rule
			}
			if out := c.must(n.command(t, args...)); len(bytes.TrimSpace([]byte(out))) > 0 {
				t.Errorf("%s, %v:\n%s", n.Name, args, out)
			}
		}
	}
}

// uplinkOf names the interface that has the node's first address.
func uplinkOf(t *testing.T, c *threeNodes, n labNode) string {
	t.Helper()
	f := strings.Fields(c.must(n.command(t, "ip", "-br", "-4", "addr", "show", "to", n.Addresses[0].String())))
	if len(f) < 2 {
		t.Fatalf("no interface of %s has %s", n.Name, n.Addresses[0])
	}
	name, _, _ := strings.Cut(f[0], "@")
	return name
}

// followMTU makes a node's uplink smaller and larger again: what pods may send follows it, those that run too, and large transfers go on in both
// directions, in both families.
func followMTU(t *testing.T, c *threeNodes) {
	n := c.nodes[2]
	up := uplinkOf(t, c, n)
	mtu := func() string {
		return strings.TrimSpace(c.kubectl("exec", "resident-2", "-c", "shell", "--", "cat", "/sys/class/net/eth0/mtu"))
	}
	const size = 64 << 20
	for _, pod := range []string{"resident-0", "resident-2"} {
		c.kubectl("exec", pod, "-c", "shell", "--", "sh", "-c", fmt.Sprintf("mkdir -p /tmp/w; dd if=/dev/zero of=/tmp/w/big bs=1 count=0 seek=%d; httpd -p 9100 -h /tmp/w", size))
	}
	moving, stop := context.WithCancel(t.Context())
	defer stop()
	var g errgroup.Group
	for from, to := range map[string]string{"resident-0": "resident-2", "resident-2": "resident-0"} {
		for _, addr := range c.podAddrs(to) {
			g.Go(func() error { return c.transfer(moving, from, addr, size) })
		}
	}
	before := mtu()
	for _, set := range []string{"1400", "1500", "1400", "1500"} {
		c.must(n.command(t, "ip", "link", "set", up, "mtu", set))
		eventually(t, 4*time.Minute, func() string {
			if now := mtu(); (now == before) != (set == "1500") || len(now) != 4 || now > set {
				return "the pod's MTU is " + now + " behind an uplink of " + set + ", and was " + before
			}
			return ""
		})
	}
	stop()
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	for _, pod := range []string{"resident-0", "resident-2"} {
		c.kubectl("exec", pod, "-c", "shell", "--", "rm", "/tmp/w/big")
	}
}

// killAgents kills each node's agent while a client calls a Service and pods of all nodes answer. No call fails.
func killAgents(t *testing.T, c *threeNodes) {
	// From a node of its own, by its name over TCP and by its addresses over UDP, in both families.
	ips := strings.Fields(c.kubectl("get", "service", "residents", "-o", "jsonpath={.spec.clusterIPs[0]} {.spec.clusterIPs[1]}"))
	containers := map[string]string{"name": "http://residents", "v4": "udp://" + net.JoinHostPort(ips[0], "80"), "v6": "udp://" + net.JoinHostPort(ips[1], "80")}
	manifest := "apiVersion: v1\nkind: Pod\nmetadata: {name: caller}\nspec:\n  nodeName: " + c.nodes[1].Name + "\n  terminationGracePeriodSeconds: 1\n  containers:\n"
	for name, url := range containers {
		manifest += fmt.Sprintf("  - {name: %s, image: \"strake.io/demo:1\", args: [demo, client, --url, %q, --interval, 10ms]}\n", name, url)
	}
	c.apply(manifest)
	c.kubectl("wait", "--for=condition=Ready", "pod/caller", "--timeout=60s")
	// Calls that began before the node knew the pod may have failed.
	var skip map[string]int
	logs := func() map[string][]string {
		lines := map[string][]string{}
		for name := range containers {
			lines[name] = strings.Split(c.kubectl("logs", "caller", "-c", name), "\n")
		}
		return lines
	}
	eventually(t, 2*time.Minute, func() string {
		skip = map[string]int{}
		for name, lines := range logs() {
			if len(lines) < 20 || !strings.Contains(lines[len(lines)-2], "answers") {
				return name + " gets no answers:\n" + strings.Join(lines, "\n")
			}
			skip[name] = len(lines) - 1
		}
		return ""
	})
	for i, n := range c.nodes {
		if err := syscall.Kill(n.agent(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, 6*time.Minute, func() string {
			if trouble := c.refresh(); trouble != "" {
				return trouble
			}
			if c.nodes[i].agent() == n.agent() {
				return "the agent of " + n.Name + " did not come back"
			}
			if out, err := c.try("exec", fmt.Sprint("resident-", i), "-c", "shell", "--", "true"); err != nil {
				return out
			}
			return ""
		})
	}
	for name, lines := range logs() {
		for _, line := range lines[skip[name]:] {
			if strings.Contains(line, "error") {
				t.Errorf("%s: %s", name, line)
			}
		}
		if len(lines) <= skip[name]+20 {
			t.Errorf("%s stands still at %d calls", name, len(lines))
		}
	}
	c.kubectl("delete", "pod", "caller", "--timeout=60s")
}

// cni gives the way to call a node's CNI plugin as its runtime would.
func (c *threeNodes) cni(n labNode) func(verb, container string, space podnet.Space, args string) (string, error) {
	c.t.Helper()
	conf := c.must(exec.Command("sh", "-c", "cat "+n.DataDir+"/cni/net.d/*.conflist"))
	var list struct {
		CNIVersion, Name string
		Plugins          []map[string]any
	}
	if err := json.Unmarshal([]byte(conf), &list); err != nil {
		c.t.Fatalf("%v: %s", err, conf)
	}
	list.Plugins[0]["cniVersion"], list.Plugins[0]["name"] = "1.0.0", list.Name
	own, err := json.Marshal(list.Plugins[0])
	if err != nil {
		c.t.Fatal(err)
	}
	return func(verb, container string, space podnet.Space, args string) (string, error) {
		cmd := exec.Command(filepath.Join(filepath.Dir(c.Binary), "strake-cni"))
		cmd.Env = []string{"CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + container, "CNI_IFNAME=eth0", "CNI_NETNS=" + string(space), "CNI_PATH=/nowhere", "CNI_ARGS=" + args}
		cmd.Stdin = bytes.NewReader(own)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
}

// exhaust takes all of a node's addresses: the next pod's event tells it, and the pod starts when there is one again.
func exhaust(t *testing.T, c *threeNodes) {
	n := c.nodes[2]
	dir, plugin := t.TempDir(), c.cni(n)
	call := func(verb string, i int) (string, error) {
		return plugin(verb, fmt.Sprint("taker", i), podnet.Space(filepath.Join(dir, fmt.Sprint(i))), "")
	}
	taken := 0
	t.Cleanup(func() {
		for i := range taken {
			if out, err := call("DEL", i); err != nil {
				t.Errorf("DEL %d: %v: %s", i, err, out)
			}
		}
	})
	var last string
	for taken < 260 {
		ns, err := podnet.NewSpace(filepath.Join(dir, fmt.Sprint(taken)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := ns.Remove(); err != nil {
				t.Error(err)
			}
		})
		out, err := call("ADD", taken)
		if last = out; err != nil {
			break
		}
		taken++
	}
	if taken < 200 || taken > 253 || !strings.Contains(last, "10.244.") {
		t.Fatalf("after %d addresses: %s", taken, last)
	}
	c.apply(strings.ReplaceAll(residents(n.Name, 9), "app: resident", "app: late"))
	eventually(t, 4*time.Minute, func() string {
		if out := c.kubectl("get", "events", "--field-selector", "involvedObject.name=resident-9", "-o", "jsonpath={.items[*].message}"); !strings.Contains(out, "10.244.") {
			return "no event tells what is short: " + out
		}
		return ""
	})
	for taken > 0 {
		taken--
		if out, err := call("DEL", taken); err != nil {
			t.Fatalf("DEL %d: %v: %s", taken, err, out)
		}
	}
	c.kubectl("wait", "--for=condition=Ready", "pod/resident-9", "--timeout=120s")
	c.kubectl("delete", "pod", "resident-9", "--timeout=60s")
}

// removeNode takes a node away: its routes go from all others, and they go on.
func removeNode(t *testing.T, c *threeNodes) {
	gone := c.nodes[2]
	ranges := strings.Fields(c.kubectl("get", "node", gone.Name, "-o", "jsonpath={.spec.podCIDRs[0]} {.spec.podCIDRs[1]}"))
	c.kubectl("delete", "pod", "resident-2", "--timeout=60s") // bare pods are nobody's to make anew
	if out, err := c.Strake("node", "remove", gone.Name, "--wait", "120s"); err != nil {
		t.Fatalf("node remove: %v\n%s", err, out)
	}
	for _, n := range c.nodes[:2] {
		eventually(t, 2*time.Minute, func() string {
			routes := c.must(n.command(t, "ip", "route")) + c.must(n.command(t, "ip", "-6", "route"))
			for _, r := range ranges {
				if strings.Contains(routes, r) {
					return fmt.Sprintf("%s has a route to %s:\n%s", n.Name, r, routes)
				}
			}
			return ""
		})
	}
	if out := c.kubectl("get", "nodes", "-o", "name"); strings.Contains(out, gone.Name) {
		t.Errorf("nodes:\n%s", out)
	}
	if running, _ := exec.Command("pgrep", "-af", gone.DataDir).Output(); len(running) > 0 { // 1: none
		t.Errorf("left:\n%s", running)
	}
	if entries, err := os.ReadDir(gone.DataDir); err == nil {
		t.Errorf("left in %s: %v", gone.DataDir, entries)
	}
	ip := strings.TrimSpace(c.kubectl("get", "pod", "resident-1", "-o", "jsonpath={.status.podIP}"))
	if out, err := c.try("exec", "resident-0", "-c", "echo", "--", "/strake", "demo", "client", "--count", "1", "--url", "http://"+net.JoinHostPort(ip, "8080")); err != nil || !strings.Contains(out, "resident-1 answers") {
		t.Errorf("the others: %v: %s", err, out)
	}
}
