package e2e

import (
	"encoding/json"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/strake-io/strake/cmd/strake/connectivity"
	"github.com/strake-io/strake/tests/lab"
)

func TestConnectivity(t *testing.T) {
	c := use(t)
	listener, _ := c.listenOutside()
	none := func(t *testing.T) {
		t.Helper()
		if out := c.in(t).kubectl("get", "namespaces", "-l", "strake.io/connectivity-test", "-o", "name"); strings.TrimSpace(out) != "" {
			t.Errorf("the test left %s", out)
		}
	}
	test := func(t *testing.T, flags ...string) (connectivity.Report, int) {
		t.Helper()
		cmd := c.StrakeCommand(t.Context(), append([]string{"connectivity", "test", "-o", "json"}, flags...)...)
		var diagnostics strings.Builder
		cmd.Stderr = &diagnostics
		out, err := cmd.Output()
		var r connectivity.Report
		if jerr := json.Unmarshal(out, &r); jerr != nil {
			t.Fatalf("%v, %v\n%s\n%s", err, jerr, out, diagnostics.String())
		}
		none(t)
		return r, cmd.ProcessState.ExitCode()
	}
	t.Run("every path", func(t *testing.T) {
		r, code := test(t, "--outside", listener.Addr().String(), "--perf")
		for _, o := range r.Checks {
			if !o.OK {
				t.Errorf("%s → %s (%s, %s): %s", o.From, o.Column, o.Family, o.Target, o.Reason)
			}
		}
		if code != 0 || !r.OK || len(r.Checks) < 40 {
			t.Errorf("exit code %d, ok %v, %d paths", code, r.OK, len(r.Checks))
		}
		for _, f := range r.Figures {
			if f.Error != "" || f.BitsPerS <= 0 || f.RoundTrip <= 0 || f.ThroughputRatio <= 0 || f.RoundTripRatio <= 0 {
				t.Errorf("%+v", f)
			}
		}
		if len(r.Figures) < 4 || r.Reference == "" {
			t.Errorf("figures beside %q: %+v", r.Reference, r.Figures)
		}
	})
	t.Run("a path that does not work", func(t *testing.T) {
		r, code := test(t, "--outside", lab.OutsideIP+":1")
		if code != 1 || r.OK || r.Failures != 2 {
			t.Errorf("exit code %d, ok %v, %d failures", code, r.OK, r.Failures)
		}
		for _, o := range r.Checks {
			if !o.OK && (o.Column != connectivity.ColOutside || o.Reason != "connection refused") {
				t.Errorf("%+v", o)
			}
		}
	})
	t.Run("interrupted", func(t *testing.T) {
		cmd := c.StrakeCommand(t.Context(), "connectivity", "test", "--outside", lab.OutsideIP+":1") // it would go on for a while
		out, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var said strings.Builder
		buf := make([]byte, 1<<10)
		sent := false
		for {
			n, err := out.Read(buf)
			said.Write(buf[:n])
			if !sent && strings.Contains(said.String(), "namespace strake-connectivity-") {
				sent = true
				if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
					t.Error(err)
				}
			}
			if err != nil {
				break
			}
		}
		if err := cmd.Wait(); err == nil {
			t.Errorf("it ended as if all were well:\n%s", said.String())
		}
		none(t)
	})
}

// TestMonitor sees a packet that is dropped and a connection that is refused, by their pods' names.
func TestMonitor(t *testing.T) {
	c := use(t)
	c.apply(`
apiVersion: v1
kind: Pod
metadata: {name: caller}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: c, image: "strake.io/busybox:1", command: [sleep, "1000000"]}
---
apiVersion: v1
kind: Service
metadata: {name: none}
spec:
  selector: {app: nobody}
  ports: [{port: 80}]
`)
	c.kubectl("wait", "--for=condition=Ready", "pod/caller", "--timeout=60s")
	ip := strings.TrimSpace(c.kubectl("get", "service", "none", "-o", "jsonpath={.spec.clusterIP}"))
	watch := func(flags ...string) *exec.Cmd {
		return c.StrakeCommand(t.Context(), append([]string{"monitor", "--pod", c.namespace + "/caller", "-n", "1", "-o", "json"}, flags...)...)
	}
	for name, x := range map[string]struct {
		flags  []string
		does   string
		reason string
	}{
		"a refused connection": {nil, "nc -w 1 " + ip + " 80", "drop_no_backend"},
		"a name":               {[]string{"--all", "--reason", "dns_answered"}, "nslookup none." + c.namespace + ".svc.cluster.local.", "dns_answered"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := watch(x.flags...)
			var out, diagnostics strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &diagnostics
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() { done <- cmd.Wait() }()
			var err error
			for deadline, ended := time.Now().Add(60*time.Second), false; !ended; {
				_, _ = c.in(t).try("exec", "caller", "--", "sh", "-c", x.does) // it may come before the monitor watches
				select {
				case err = <-done:
					ended = true
				case <-time.After(200 * time.Millisecond):
				}
				if time.Now().After(deadline) {
					_ = cmd.Process.Kill()
					t.Fatalf("no event came: %s%s", out.String(), diagnostics.String())
				}
			}
			if err != nil {
				t.Fatalf("%v\n%s", err, diagnostics.String())
			}
			var l struct {
				Reason, Pod string
				Source      *struct{ Pod string }
			}
			if err := json.Unmarshal([]byte(out.String()), &l); err != nil {
				t.Fatalf("%v\n%s", err, out.String())
			}
			if l.Reason != x.reason || l.Pod != c.namespace+"/caller" {
				t.Errorf("got %s", out.String())
			}
		})
	}
}
