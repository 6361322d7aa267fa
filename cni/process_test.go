package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/strake-io/strake/cni/plugin"
)

// plugin binary, built once.
var built = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "strake-cni-")
	if err != nil {
		return "", err
	}
	removeAtEnd = dir
	path := filepath.Join(dir, "strake-cni")
	c := exec.Command("go", "build", "-o", path, "../cmd/strake-cni")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
})

// removeAtEnd is what TestMain removes.
var removeAtEnd string

// call runs the plugin as a runtime does. The variables are of the whole environment.
func (n *node) call(t testing.TB, stdin string, env ...string) (address netip.Addr, err error) {
	t.Helper()
	c := n.command(t, stdin, env...)
	out, err := c.Output()
	if errors.As(err, new(*exec.ExitError)) {
		var e types.Error
		if jerr := json.Unmarshal(out, &e); jerr != nil || e.Code == 0 {
			t.Errorf("the plugin failed without a CNI error: %v: %q", err, out)
			return address, err
		}
		return address, &e
	}
	must(t, err)
	if len(out) == 0 {
		return address, nil
	}
	var result struct{ IPs []struct{ Address string } }
	if err := json.Unmarshal(out, &result); err != nil || len(result.IPs) == 0 {
		t.Errorf("result %q: %v", out, err)
		return address, nil
	}
	return netip.MustParsePrefix(result.IPs[0].Address).Addr(), nil
}

func (n *node) command(t testing.TB, stdin string, env ...string) *exec.Cmd {
	t.Helper()
	path, err := built()
	must(t, err)
	c := exec.Command(path)
	c.Env, c.Stdin = append([]string{"CNI_PATH=/nowhere"}, env...), strings.NewReader(stdin)
	return c
}

func (n *node) conf() string {
	return fmt.Sprintf(`{"cniVersion":"1.0.0","name":"strake","type":"strake-cni","socket":%q}`, n.cfg.Socket)
}

func vars(verb, id, ns string) []string {
	return []string{"CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + id, "CNI_NETNS=" + ns, "CNI_IFNAME=eth0"}
}

// wantNothing fails if anything of a pod is left, in the node, the state or the kernel's tables.
func (n *node) wantNothing(t *testing.T) {
	t.Helper()
	n.wantEmpty(t)
	n.fake.mu.Lock()
	defer n.fake.mu.Unlock()
	if len(n.fake.rows)+len(n.fake.attached)+len(n.calls.m)+len(n.ifindex)+len(n.ipam.taken) != 0 {
		t.Errorf("left: rows %v, attached %v, locks %v, interfaces %v, addresses %v", n.fake.rows, n.fake.attached, n.calls.m, n.ifindex, n.ipam.taken)
	}
	links, err := netlink.LinkList()
	must(t, err)
	for _, l := range links {
		if l.Type() == "veth" {
			t.Errorf("interface %s is left", l.Attrs().Name)
		}
	}
}

// 50 processes at once, each a pod's whole life in random order with calls twice, for pods that may go in the middle, or
// whose plugin is killed. No address is two pods', and in the end nothing is left.
func TestStormOfProcesses(t *testing.T) {
	n := newNode(t, "10.244.0.0/24")
	stop := n.run(t)
	_, err := built()
	must(t, err)
	var mu sync.Mutex
	live := map[netip.Addr]string{}
	claim := func(a netip.Addr, id string) {
		mu.Lock()
		defer mu.Unlock()
		if other, ok := live[a]; ok {
			t.Errorf("%s is %s's and %s's", a, id, other)
		}
		live[a] = id
	}
	forgo := func(id string) {
		mu.Lock()
		defer mu.Unlock()
		for a, other := range live {
			if other == id {
				delete(live, a)
			}
		}
	}
	var wg sync.WaitGroup
	for i := range 50 {
		random := rand.New(rand.NewPCG(uint64(i), 1))
		wg.Go(func() {
			id := fmt.Sprint("pod", i)
			ns := newNetns(t)
			for range 2 {
				switch random.IntN(4) {
				case 0: // the runtime kills a plugin that takes too long
					c := n.command(t, n.conf(), vars("ADD", id, ns)...)
					must(t, c.Start())
					if random.IntN(2) == 0 {
						runtime.Gosched()
					}
					c.Process.Kill()
					c.Wait()
				case 1: // DEL of nothing
					if _, err := n.call(t, n.conf(), vars("DEL", id, ns)...); err != nil {
						t.Errorf("DEL %s before ADD: %v", id, err)
					}
				}
				a, err := n.call(t, n.conf(), vars("ADD", id, ns)...)
				if err == nil {
					claim(a, id)
					if _, err := n.call(t, n.conf(), vars("ADD", id, ns)...); err == nil {
						t.Errorf("a second ADD of %s succeeded", id)
					}
					if _, err := n.call(t, n.conf(), vars("CHECK", id, ns)...); err != nil {
						t.Errorf("CHECK %s: %v", id, err)
					}
				} else if !strings.Contains(err.Error(), errExists.Error()) { // the killed one's
					t.Errorf("ADD %s: %v", id, err)
				}
				forgo(id)
				for range 1 + random.IntN(2) {
					if _, err := n.call(t, n.conf(), vars("DEL", id, ns)...); err != nil {
						t.Errorf("DEL %s: %v", id, err)
					}
				}
			}
		})
	}
	wg.Wait()
	stop() // an ADD whose plugin was killed may have been under way
	for i := range 50 {
		n.del(t, fmt.Sprint("pod", i), "")
	}
	n.wantNothing(t)
}

// The plugin is killed while the agent is at it: the agent ends what it began, and DEL takes all of it away.
func TestPluginKilledInTheMiddle(t *testing.T) {
	n := newNode(t, "10.244.0.0/24")
	n.run(t)
	ns := newNetns(t)
	entered, leave := make(chan struct{}), make(chan struct{})
	n.fake.hold = func() { entered <- struct{}{}; <-leave }
	c := n.command(t, n.conf(), vars("ADD", "a", ns)...)
	must(t, c.Start())
	<-entered
	must(t, c.Process.Kill())
	c.Wait()
	n.fake.hold = nil
	done := make(chan error)
	go func() {
		_, err := n.call(t, n.conf(), vars("DEL", "a", ns)...)
		done <- err
	}()
	close(leave)
	must(t, <-done)
	if there, err := present(ns, "eth0"); err != nil || there {
		t.Errorf("eth0 in the pod: %v, %v", there, err)
	}
	n.wantNothing(t)
	if _, err := n.call(t, n.conf(), vars("ADD", "a", ns)...); err != nil {
		t.Errorf("ADD again: %v", err)
	}
}

// Every variable and the configuration, with rubbish: a CNI error or an answer that CNI allows, and nothing is left.
func TestRubbish(t *testing.T) {
	n := newNode(t, "10.244.0.0/24")
	n.run(t)
	rubbish := []string{"", " ", "\n", "..", "../../../etc/passwd", "/", "a/b", "a b", "a\tb", "ä", "\x01\xff", "%s%n", "-1", "$(id)", "{}", "null", strings.Repeat("x", 5000), strings.Repeat("../", 500)}
	namespaces := []string{"/proc/self/ns/mnt", "/proc/1/root", "/dev/null", t.TempDir(), "/nowhere", "relative", "/proc/thread-self/ns/user"}
	for _, verb := range []string{"ADD", "CHECK", "DEL"} {
		for variable, values := range map[string][]string{"CNI_COMMAND": rubbish, "CNI_CONTAINERID": rubbish, "CNI_IFNAME": append(rubbish, "lo", "all", "default", "a:b", strings.Repeat("x", 16)), "CNI_NETNS": append(rubbish, namespaces...)} {
			for _, value := range values {
				env := vars(verb, "a", "/nowhere")
				for i, v := range env {
					if strings.HasPrefix(v, variable+"=") {
						env[i] = variable + "=" + value
					}
				}
				_, err := n.call(t, n.conf(), env...)
				if err == nil && verb != "DEL" && env[0] != "CNI_COMMAND=" { // without a command it says what it is
					t.Errorf("%s with %s=%q succeeded", verb, variable, value)
				}
			}
		}
	}
	ns := newNetns(t)
	for _, stdin := range append(rubbish, `{"cniVersion":"1.0.0"`, `[1]`, `{"cniVersion":1}`, `{"cniVersion":"1.0.0","name":"../x","socket":"/s"}`, strings.Repeat("[", 100000), strings.Repeat(`{"a":`, 20000),
		`{"cniVersion":"1.0.0","name":"strake","socket":"`+strings.Repeat("x", 200)+`"}`, `{"cniVersion":"1.0.0","name":"strake","socket":"/dev/null"}`) {
		if _, err := n.call(t, stdin, vars("ADD", "a", ns)...); err == nil {
			t.Errorf("ADD with the configuration %.100q succeeded", stdin)
		}
	}
	// CNI_ARGS are for others: pairs that are not ours don't matter.
	if _, err := n.call(t, n.conf(), append(vars("ADD", "a", ns), "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME=x;"+strings.Repeat("y", 1000)+"=1")...); err != nil {
		t.Errorf("with strange CNI_ARGS: %v", err)
	}
	n.del(t, "a", ns)
	n.wantNothing(t)
	if _, err := netlink.LinkByName("eth0"); err == nil {
		t.Error("the node has got an eth0")
	}
}

// The agent is away: the runtime is told to try again (CNI 1.1, code 11), and then it works.
func TestAgentAway(t *testing.T) {
	n := newNode(t, "10.244.0.0/24")
	ns := newNetns(t)
	var wg sync.WaitGroup
	for _, verb := range []string{"ADD", "CHECK", "DEL"} {
		wg.Go(func() {
			_, err := n.call(t, n.conf(), vars(verb, "a", ns)...)
			var e *types.Error
			if !errors.As(err, &e) || e.Code != types.ErrTryAgainLater || !strings.Contains(e.Msg, n.cfg.Socket) {
				t.Errorf("%s: %v, want code 11", verb, err)
			}
		})
	}
	wg.Wait()
	n.run(t)
	for _, verb := range []string{"ADD", "CHECK", "DEL"} {
		if _, err := n.call(t, n.conf(), vars(verb, "a", ns)...); err != nil {
			t.Errorf("%s: %v", verb, err)
		}
	}
	n.wantNothing(t)
}

// Neither the node's own namespace nor what is none is a pod's.
func TestNamespaceThatIsNoPods(t *testing.T) {
	n := newNode(t, "10.244.0.0/24")
	fifo, own := filepath.Join(t.TempDir(), "fifo"), filepath.Join(t.TempDir(), "own")
	must(t, unix.Mkfifo(fifo, 0o600))
	must(t, os.WriteFile(own, nil, 0o600))
	must(t, unix.Mount("/proc/thread-self/ns/net", own, "", unix.MS_BIND, ""))
	defer unix.Unmount(own, unix.MNT_DETACH)
	for _, path := range []string{own, "/proc/thread-self/ns/net", "/proc/self/ns/mnt", "/dev/null", fifo, "/nowhere"} {
		_, err := n.Handle(plugin.Request{Verb: "ADD", ContainerID: "a", Netns: path, Ifname: "eth0"})
		if err == nil || err.Code != types.ErrInvalidEnvironmentVariables || !strings.Contains(err.Msg, path) {
			t.Errorf("%s: %v", path, err)
		}
		n.wantNothing(t)
	}
}

// Pods that went without a DEL don't hold their addresses when they are needed.
func TestAddressesOfPodsThatWent(t *testing.T) {
	n := newNode(t, "10.244.0.0/29")
	for i := range 5 {
		ns := newNetns(t)
		n.add(t, fmt.Sprint("a", i), ns)
		if i > 0 {
			continue
		}
		host := hostName("a0", "eth0")
		removeNetns(t, ns)
		for { // the kernel takes a namespace down in its own time
			if _, err := netlink.LinkByName(host); errors.As(err, new(netlink.LinkNotFoundError)) {
				break
			}
			runtime.Gosched()
		}
	}
	if a := n.add(t, "b", newNetns(t)); a != netip.MustParseAddr("10.244.0.2") {
		t.Errorf("b has %s, want the one that a0 had", a)
	}
	if _, err := n.Handle(plugin.Request{Verb: "ADD", ContainerID: "c", Netns: newNetns(t), Ifname: "eth0"}); err == nil || !strings.Contains(err.Msg, "10.244.0.0/29") {
		t.Errorf("error %v, want one that names the range", err)
	}
	if len(n.fake.rows) != 5 || len(n.fake.attached) != 5 {
		t.Errorf("rows %v, attached %v", n.fake.rows, n.fake.attached)
	}
}
