package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/strake-io/strake/cni/plugin"
)

// binary is built once for all tests: what is tested is the process.
var binary string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "strake-cni-test-")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		binary = filepath.Join(dir, "strake-cni")
		build := exec.Command("go", "build", "-o", binary, ".")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			os.Stderr.Write(out)
			return 1
		}
		for _, name := range []string{"pause", "loopback"} {
			if err := os.Symlink(binary, filepath.Join(dir, name)); err != nil {
				panic(err)
			}
		}
		return m.Run()
	}())
}

// run calls a plugin as a runtime does.
func run(t *testing.T, name, stdin string, env ...string) (stdout string, code uint) {
	t.Helper()
	c := exec.Command(filepath.Join(filepath.Dir(binary), name))
	c.Env = append([]string{"CNI_PATH=/nowhere"}, env...)
	c.Stdin = strings.NewReader(stdin)
	out, err := c.Output()
	if err == nil {
		return string(out), 0
	}
	if !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	var e struct {
		Code       uint
		Msg        string
		CNIVersion string
	}
	if err := json.Unmarshal(out, &e); err != nil || e.Code == 0 || e.Msg == "" {
		t.Fatalf("the plugin failed and printed no CNI error: %s", out)
	}
	return string(out), e.Code
}

// agent answers as the agent would, and remembers what it was asked.
func agent(t *testing.T, resp plugin.Response) (socket string, asked <-chan plugin.Request) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	requests := make(chan plugin.Request, 10)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			var r plugin.Request
			if err := json.NewDecoder(c).Decode(&r); err == nil {
				requests <- r
				err = json.NewEncoder(c).Encode(resp)
				if err != nil {
					t.Error(err)
				}
			}
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return socket, requests
}

func conf(version, socket, more string) string {
	return `{"cniVersion":"` + version + `","name":"strake","type":"strake-cni","socket":"` + socket + `"` + more + `}`
}

func vars(verb string) []string {
	return []string{"CNI_COMMAND=" + verb, "CNI_CONTAINERID=abc", "CNI_NETNS=/run/netns/x", "CNI_IFNAME=eth0"}
}

func TestAddInEveryVersion(t *testing.T) {
	_, ip, err := net.ParseCIDR("10.244.0.2/32")
	if err != nil {
		t.Fatal(err)
	}
	socket, asked := agent(t, plugin.Response{Result: &types100.Result{
		CNIVersion: types100.ImplementedSpecVersion, IPs: []*types100.IPConfig{{Address: *ip, Gateway: net.IPv4(169, 254, 1, 1)}},
	}})
	for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		out, code := run(t, "strake-cni", conf(version, socket, ""), vars("ADD")...)
		var result struct {
			CNIVersion string
			IPs        []struct{ Address string }
		}
		if err := json.Unmarshal([]byte(out), &result); code != 0 || err != nil || result.CNIVersion != version || len(result.IPs) != 1 || result.IPs[0].Address != "10.244.0.2/32" {
			t.Errorf("%s: code %d, %v: %s", version, code, err, out)
		}
		if r := <-asked; r.Verb != "ADD" || r.ContainerID != "abc" || r.Netns != "/run/netns/x" || r.Ifname != "eth0" {
			t.Errorf("%s: asked %+v", version, r)
		}
	}
}

func TestVerbs(t *testing.T) {
	socket, asked := agent(t, plugin.Response{})
	for _, verb := range []string{"DEL", "CHECK", "STATUS"} {
		if out, code := run(t, "strake-cni", conf("1.1.0", socket, ""), vars(verb)...); code != 0 {
			t.Errorf("%s: %s", verb, out)
			continue
		}
		if r := <-asked; r.Verb != verb {
			t.Errorf("%s: asked %+v", verb, r)
		}
	}
	out, code := run(t, "strake-cni", conf("1.1.0", socket, `,"cni.dev/valid-attachments":[{"containerID":"abc","ifname":"eth0"}]`), "CNI_COMMAND=GC")
	if code != 0 {
		t.Fatalf("GC: %s", out)
	}
	if r := <-asked; r.Verb != "GC" || len(r.Valid) != 1 || r.Valid[0] != "abc/eth0" {
		t.Errorf("GC: asked %+v", r)
	}
	out, code = run(t, "strake-cni", "", "CNI_COMMAND=VERSION")
	if code != 0 || !strings.Contains(out, `"1.1.0"`) || !strings.Contains(out, `"0.3.1"`) {
		t.Errorf("VERSION: %s", out)
	}
	if out, code := run(t, "strake-cni", conf("1.0.0", socket, ""), "CNI_COMMAND=DEL", "CNI_CONTAINERID=abc", "CNI_IFNAME=eth0"); code != 0 {
		t.Errorf("DEL without a namespace: %s", out)
	}
}

// What the configuration says beyond the socket: results of others go to the agent, and the resolver's settings into the result.
func TestConfiguration(t *testing.T) {
	_, ip, err := net.ParseCIDR("10.244.0.2/32")
	if err != nil {
		t.Fatal(err)
	}
	socket, asked := agent(t, plugin.Response{Result: &types100.Result{CNIVersion: types100.ImplementedSpecVersion, IPs: []*types100.IPConfig{{Address: *ip}}}})
	more := `,"dns":{"nameservers":["10.96.0.10"],"search":["x.example"]},"args":{"cni":{"labels":[]}},"ipam":{},"capabilities":{"portMappings":true},
		"runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":8080,"protocol":"tcp"}],"ips":[],"io.kubernetes.cri.pod-annotations":{"a":"b"}},
		"prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"lo","sandbox":"/x"}],"ips":[{"address":"127.0.0.1/8","interface":0}],"dns":{}}`
	out, code := run(t, "strake-cni", conf("1.0.0", socket, more), vars("ADD")...)
	if code != 0 || !strings.Contains(out, `"10.96.0.10"`) || !strings.Contains(out, `"x.example"`) {
		t.Errorf("code %d: %s", code, out)
	}
	r := <-asked
	if r.Prev == nil || len(r.Prev.Interfaces) != 1 || len(r.Prev.IPs) != 1 || len(r.Ports) != 1 || r.Ports[0].ContainerPort != 8080 {
		t.Errorf("asked %+v", r)
	}
	if out, code := run(t, "strake-cni", conf("1.0.0", socket, more), vars("CHECK")...); code != 0 {
		t.Errorf("CHECK: %s", out)
	}
	if r := <-asked; r.Prev == nil {
		t.Errorf("CHECK without the result: %+v", r)
	}
	// DEL succeeds whatever became of the result.
	if out, code := run(t, "strake-cni", conf("1.0.0", socket, `,"prevResult":{"ips":"x"}`), vars("DEL")...); code != 0 {
		t.Errorf("DEL: %s", out)
	}
}

// An agent that restarts costs a pod no try: the call waits for it.
func TestAgentComesBack(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	old, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	old.(*net.UnixListener).SetUnlinkOnClose(false) // as one that is killed leaves it
	old.Close()
	c := exec.Command(binary)
	c.Env, c.Stdin = append(vars("DEL"), "CNI_PATH=/nowhere"), strings.NewReader(conf("1.0.0", socket, ""))
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer c.Process.Kill()
	time.Sleep(200 * time.Millisecond) // it should have met nobody first; nothing tells when it has
	if err := os.Remove(socket); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.(*net.UnixListener).SetDeadline(time.Now().Add(time.Minute))
	ended := make(chan error, 1)
	go func() { ended <- c.Wait(); l.Close() }()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := json.NewEncoder(conn).Encode(plugin.Response{}); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("DEL: %v", err)
	}
}

func TestErrors(t *testing.T) {
	socket, _ := agent(t, plugin.Response{})
	silent := filepath.Join(t.TempDir(), "silent")
	l, err := net.Listen("unix", silent)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	for name, c := range map[string]struct {
		verb, stdin string
		code        uint
	}{
		"agent away":              {"ADD", conf("1.1.0", "/nowhere/s", ""), 11},
		"agent away, DEL":         {"DEL", conf("1.1.0", "/nowhere/s", ""), 11},
		"agent away, STATUS":      {"STATUS", conf("1.1.0", "/nowhere/s", ""), 50},
		"agent hangs up":          {"ADD", conf("1.1.0", silent, ""), 11},
		"no JSON":                 {"ADD", "rubbish", 6},
		"JSON, but no object":     {"ADD", "[]", 6},
		"a field of another type": {"ADD", `{"cniVersion":"1.1.0","name":"strake","socket":7}`, 6},
		"no name":                 {"ADD", `{"cniVersion":"1.1.0","socket":"/s"}`, 7},
		"no socket":               {"ADD", `{"cniVersion":"1.1.0","name":"strake"}`, 7},
		"a version of the future": {"ADD", conf("9.0.0", socket, ""), 1},
		"ADD without a result":    {"ADD", conf("1.1.0", socket, ""), 999},
		"GC without its list":     {"GC", conf("1.1.0", socket, ""), 7},
		"GC before it was there":  {"GC", conf("1.0.0", socket, ""), 1},
		"another's addresses":     {"ADD", conf("1.1.0", socket, `,"ipam":{"type":"host-local"}`), 2},
		"an address asked for":    {"ADD", conf("1.1.0", socket, `,"runtimeConfig":{"ips":["10.0.0.9/24"]}`), 2},
		"a MAC asked for":         {"ADD", conf("1.1.0", socket, `,"runtimeConfig":{"mac":"02:00:00:00:00:01"}`), 2},
		"rubbish as prevResult":   {"ADD", conf("1.1.0", socket, `,"prevResult":{"ips":"x"}`), 7},
		"rubbish, CHECK":          {"CHECK", conf("1.1.0", socket, `,"prevResult":{"cniVersion":"9.0.0"}`), 7},
		"no container":            {"ADD without CNI_CONTAINERID", conf("1.1.0", socket, ""), 4},
		"no namespace":            {"ADD without CNI_NETNS", conf("1.1.0", socket, ""), 4},
		"no interface":            {"DEL without CNI_IFNAME", conf("1.1.0", socket, ""), 4},
		"an unknown verb":         {"EAT", conf("1.1.0", socket, ""), 4},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // some wait for the agent
			verb, less, _ := strings.Cut(c.verb, " without ")
			env := slices.DeleteFunc(vars(verb), func(v string) bool { return less != "" && strings.HasPrefix(v, less+"=") })
			out, code := run(t, "strake-cni", c.stdin, env...)
			if code != c.code {
				t.Errorf("code %d, want %d: %s", code, c.code, out)
			}
			if strings.HasPrefix(name, "agent away") && !strings.Contains(out, "/nowhere/s") {
				t.Errorf("the error does not name the socket: %s", out)
			}
		})
	}
	if out, code := run(t, "strake-cni", conf("1.1.0", socket, ""), "CNI_COMMAND=ADD"); code != 4 {
		t.Errorf("without variables: code %d: %s", code, out)
	}
}

func TestLoopback(t *testing.T) {
	// A process that sleeps in a namespace of its own stands for the sandbox.
	sandbox := exec.Command(filepath.Join(filepath.Dir(binary), "pause"))
	sandbox.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if err := sandbox.Start(); err != nil {
		t.Fatalf("a namespace needs root: %v", err)
	}
	defer func() { sandbox.Process.Signal(syscall.SIGKILL); sandbox.Wait() }()
	netns := "CNI_NETNS=/proc/" + itoa(sandbox.Process.Pid) + "/ns/net"
	env := func(verb string) []string {
		return []string{"CNI_COMMAND=" + verb, "CNI_CONTAINERID=abc", "CNI_IFNAME=lo", netns}
	}
	config := `{"cniVersion":"%","name":"cni-loopback","type":"loopback"}`
	if out, code := run(t, "loopback", strings.ReplaceAll(config, "%", "0.4.0"), env("CHECK")...); code == 0 {
		t.Errorf("CHECK before ADD succeeded: %s", out)
	}
	for _, version := range []string{"0.3.1", "1.0.0"} {
		out, code := run(t, "loopback", strings.ReplaceAll(config, "%", version), env("ADD")...)
		if code != 0 || !strings.Contains(out, `"127.0.0.1/8"`) || !strings.Contains(out, `"cniVersion": "`+version+`"`) {
			t.Errorf("ADD %s: %s", version, out)
		}
	}
	if out, code := run(t, "loopback", strings.ReplaceAll(config, "%", "1.0.0"), env("CHECK")...); code != 0 {
		t.Errorf("CHECK: %s", out)
	}
	if out, code := run(t, "loopback", strings.ReplaceAll(config, "%", "1.0.0"), env("DEL")...); code != 0 {
		t.Errorf("DEL: %s", out)
	}
	if out, code := run(t, "loopback", strings.ReplaceAll(config, "%", "1.0.0"), "CNI_COMMAND=ADD", "CNI_CONTAINERID=abc", "CNI_IFNAME=lo", "CNI_NETNS=/nowhere"); code == 0 {
		t.Errorf("ADD to a missing namespace succeeded: %s", out)
	}
}

func itoa(n int) string { b, _ := json.Marshal(n); return string(b) }

// startPause starts the process with a child, ends that once the shell is no more there to reap it, and returns when the
// process has done so: from then on it listens. As pid 1, the child is an orphan that another process left.
func startPause(t *testing.T, flags uintptr) *exec.Cmd {
	t.Helper()
	script := `sleep 1000 & exec "$0"`
	if flags&syscall.CLONE_NEWPID != 0 {
		script = `(sleep 1000 & exec true); exec "$0"`
	}
	c := exec.Command("/bin/sh", "-c", script, filepath.Join(filepath.Dir(binary), "pause"))
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
	if err := c.Start(); err != nil {
		t.Fatalf("a namespace needs root: %v", err)
	}
	t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	proc := "/proc/" + itoa(c.Process.Pid)
	for {
		comm, err := os.ReadFile(proc + "/comm")
		if err != nil {
			t.Fatal(err)
		}
		children, err := os.ReadFile(proc + "/task/" + itoa(c.Process.Pid) + "/children")
		if err != nil {
			t.Fatal(err)
		}
		if string(comm) == "pause\n" {
			if len(bytes.TrimSpace(children)) == 0 {
				return c
			}
			var child int
			if _, err := fmt.Sscan(string(children), &child); err != nil {
				t.Fatal(err)
			}
			if err := syscall.Kill(child, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
				t.Fatal(err)
			}
		}
		runtime.Gosched()
	}
}

func TestPauseReapsAndEndsWhenAsked(t *testing.T) {
	for _, flags := range []uintptr{0, syscall.CLONE_NEWPID} {
		for _, s := range []os.Signal{syscall.SIGTERM, syscall.SIGINT} {
			c := startPause(t, flags)
			if err := c.Process.Signal(s); err != nil {
				t.Fatal(err)
			}
			if err := c.Wait(); err != nil {
				t.Errorf("%v, flags %#x: %v, want exit 0", s, flags, err)
			}
		}
	}
}
