// Package e2e brings up real clusters in network namespaces of their own and uses them as people do.
package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/strake-io/strake/tests/lab"
)

// cluster is a cluster in a lab of the test's own.
type cluster struct {
	*lab.Cluster
	t *testing.T
}

// start brings a cluster up; it goes with the test.
func start(t *testing.T) *cluster {
	t.Helper()
	l, err := lab.New("strake-e2e", filepath.Join(t.TempDir(), "data"), "../../bin/strake")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	c := &cluster{Cluster: l, t: t}
	if out, err := c.Strake("up", "--node-name", "node-1", "--wait", "90s"); err != nil {
		t.Fatalf("up: %v\n%s", err, out)
	}
	return c
}

func (c *cluster) must(cmd *exec.Cmd) string {
	c.t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		c.t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	return string(out)
}

func (c *cluster) kubectl(args ...string) string {
	c.t.Helper()
	out, err := c.Strake(append([]string{"kubectl"}, args...)...)
	if err != nil {
		c.t.Fatalf("kubectl %v: %v\n%s", args, err, out)
	}
	return out
}

func (c *cluster) apply(manifest string) {
	c.t.Helper()
	cmd := c.StrakeCommand(c.t.Context(), "kubectl", "apply", "-f", "-")
	cmd.Stdin = strings.NewReader(manifest)
	c.must(cmd)
}

// eventually repeats f until it returns "" and fails with what it returned last.
func eventually(t *testing.T, within time.Duration, f func() string) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		last := f()
		if last == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(last)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// busybox makes an image of the machine's static busybox and loads it.
func (c *cluster) busybox() {
	c.t.Helper()
	dir := c.t.TempDir()
	sh := func(cmd string) { c.t.Helper(); c.must(exec.Command("sh", "-ec", cmd)) }
	// The form that `docker save` writes: a layer, a configuration, a manifest.
	sh(fmt.Sprintf(`cd %s; mkdir -p root/bin root/tmp; cp /bin/busybox root/bin/; for a in sh wget nslookup cat sleep echo env httpd ls true kill; do ln -s busybox root/bin/$a; done
tar -C root -cf layer.tar .; sum=$(sha256sum layer.tar | cut -d' ' -f1)
printf '{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":["sha256:%%s"]}}' $sum > config.json
printf '[{"Config":"config.json","RepoTags":["strake.io/busybox:1"],"Layers":["layer.tar"]}]' > manifest.json
tar -cf image.tar layer.tar config.json manifest.json`, dir))
	if out, err := c.Strake("image", "import", filepath.Join(dir, "image.tar")); err != nil || !strings.Contains(out, "strake.io/busybox:1") {
		c.t.Fatalf("image import: %v\n%s", err, out)
	}
}

const manifests = `
apiVersion: v1
kind: ConfigMap
metadata: {name: conf}
data: {greeting: hello, index.html: "from a file\n"}
---
apiVersion: v1
kind: Secret
metadata: {name: secret}
stringData: {password: xyzzy}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: strake.io/busybox:1
        command: [httpd, -f, -p, "8080", -h, /www]
        ports: [{name: http, containerPort: 8080}]
        env:
        - {name: GREETING, valueFrom: {configMapKeyRef: {name: conf, key: greeting}}}
        - {name: PASSWORD, valueFrom: {secretKeyRef: {name: secret, key: password}}}
        - {name: MY_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
        volumeMounts:
        - {name: www, mountPath: /www}
        - {name: secret, mountPath: /secret}
        readinessProbe: {httpGet: {path: /index.html, port: http}, periodSeconds: 1}
      volumes:
      - {name: www, configMap: {name: conf}}
      - {name: secret, secret: {secretName: secret, defaultMode: 0400}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: http}]
`

const job = `
apiVersion: batch/v1
kind: Job
metadata: {name: once}
spec:
  template:
    spec:
      restartPolicy: Never
      containers:
      - name: once
        image: strake.io/busybox:1
        command: [sh, -c, "wget -q -O - http://web.default.svc.cluster.local/index.html && wget -q -O - http://web/index.html"]
`

// TestMainJob is what a newcomer does: the demo, then manifests of their own, then trouble.
func TestMainJob(t *testing.T) {
	c := start(t)
	var st struct {
		Ready bool `json:"ready"`
	}
	out, err := c.Strake("status", "-o", "json")
	if err != nil || json.Unmarshal([]byte(out), &st) != nil || !st.Ready {
		t.Fatalf("status: %v\n%s", err, out)
	}
	c.busybox()
	eventually(t, 10*time.Second, func() string {
		if out, err := c.Strake("kubectl", "get", "serviceaccount", "default"); err != nil {
			return out
		}
		return ""
	})
	c.apply(manifests)
	c.kubectl("rollout", "status", "deployment/web", "--timeout=60s")

	t.Run("a Job calls the Service by its long and its short name", func(t *testing.T) {
		c.apply(job)
		c.kubectl("wait", "--for=condition=complete", "job/once", "--timeout=60s")
		if out := c.kubectl("logs", "job/once"); out != "from a file\nfrom a file\n" {
			t.Errorf("log %q", out)
		}
	})
	t.Run("configuration as environment and files", func(t *testing.T) {
		out := c.kubectl("exec", "deploy/web", "--", "sh", "-c", "echo $GREETING $PASSWORD $MY_IP; cat /secret/password; ls -lL /secret/password")
		if !strings.Contains(out, "hello xyzzy 10.244.0.") || !strings.Contains(out, "xyzzy-r--------") {
			t.Errorf("saw %q", out)
		}
	})
	t.Run("a change of a ConfigMap reaches its files", func(t *testing.T) {
		c.kubectl("patch", "configmap", "conf", "-p", `{"data":{"index.html":"changed\n"}}`)
		eventually(t, 30*time.Second, func() string {
			if out := c.kubectl("exec", "deploy/web", "--", "cat", "/www/index.html"); out != "changed\n" {
				return "still " + out
			}
			return ""
		})
	})
	t.Run("NodePort from outside, evenly", func(t *testing.T) {
		seen := map[string]int{}
		for range 60 {
			cmd := exec.Command("ip", "netns", "exec", c.Outside, "curl", "-s", "-m", "3", "http://"+lab.NodeIP+":30080/")
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("curl: %v", err)
			}
			seen[strings.Fields(string(out))[0]]++
		}
		for pod, n := range seen {
			if n < 5 {
				t.Errorf("%s answered %d of 60", pod, n)
			}
		}
		if len(seen) != 3 {
			t.Errorf("answers from %v, want three pods", seen)
		}
	})
	t.Run("deleted pods and killed processes come back", func(t *testing.T) {
		c.kubectl("delete", "pod", "-l", "app=web", "--wait=true", "--timeout=60s")
		c.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
		uid := c.kubectl("get", "pods", "-l", "app=web", "-o", "jsonpath={.items[0].metadata.uid}")
		c.must(exec.Command("sh", "-c", "for p in $(grep -l pod"+uid+" /proc/[0-9]*/cgroup | cut -d/ -f3); do grep -q httpd /proc/$p/cmdline && kill -9 $p; done; true"))
		eventually(t, 60*time.Second, func() string {
			out := c.kubectl("get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].status.containerStatuses[0].restartCount}{range .items[*]}{.status.conditions[?(@.type=='Ready')].status}{end}")
			if !strings.Contains(out, "1") || strings.Contains(out, "False") {
				return "restarts and readiness: " + out
			}
			return ""
		})
	})
	t.Run("scale and describe", func(t *testing.T) {
		c.kubectl("scale", "deployment/web", "--replicas=3")
		c.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
		if out := c.kubectl("describe", "service", "web"); strings.Count(out, ":8080") < 3 {
			t.Errorf("describe\n%s", out)
		}
		if out := c.kubectl("explain", "deployment.spec.replicas"); !strings.Contains(out, "Number of desired pods") {
			t.Errorf("explain\n%s", out)
		}
	})
	t.Run("a wrong manifest is told by its field", func(t *testing.T) {
		cmd := c.StrakeCommand(c.t.Context(), "kubectl", "apply", "-f", "-")
		cmd.Stdin = strings.NewReader("apiVersion: v1\nkind: Service\nmetadata: {name: bad}\nspec: {ports: [{port: 70000}]}\n")
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "spec.ports[0].port") {
			t.Errorf("%v: %s", err, out)
		}
	})
	t.Run("the agent is killed and nobody notices", func(t *testing.T) { killAgent(t, c) })
	t.Run("no rule of ours in netfilter", func(t *testing.T) {
		for _, args := range [][]string{{"iptables-save"}, {"nft", "list", "ruleset"}} {
			if _, err := exec.LookPath(args[0]); err != nil {
				continue // then it holds no rule
			}
			if out := c.must(c.Command(t.Context(), args...)); len(bytes.TrimSpace([]byte(out))) > 0 {
				t.Errorf("%v:\n%s", args, out)
			}
		}
	})
	t.Run("a second up is fine", func(t *testing.T) {
		if out, err := c.Strake("up", "--wait", "60s"); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
	t.Run("nothing is left after down --purge", func(t *testing.T) { purge(t, c) })
}

// caller calls a Service by its name, each time anew, and logs what it gets.
const caller = `
apiVersion: v1
kind: Pod
metadata: {name: caller}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: caller
    image: strake.io/demo:1
    args: [demo, client, --url, "http://echo.demo.svc.cluster.local/", --interval, 20ms]
`

// killAgent kills the agent while a pod calls a Service by name.
func killAgent(t *testing.T, c *cluster) {
	c.apply(caller)
	c.kubectl("wait", "--for=condition=Ready", "pod/caller", "--timeout=30s")
	time.Sleep(time.Second)
	var pid int
	files, err := filepath.Glob("/run/strake/*/agent.pid")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		data, _ := os.ReadFile(f)
		var p int
		fmt.Sscan(string(data), &p)
		if line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p)); bytes.Contains(line, []byte(c.Data)) {
			pid = p
		}
	}
	if pid == 0 {
		t.Fatal("no agent found")
	}
	p, err := os.FindProcess(pid)
	if err == nil {
		err = p.Kill()
	}
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, func() string {
		if out, err := c.Strake("kubectl", "exec", "pod/caller", "--", "/strake", "version"); err != nil {
			return out
		}
		return ""
	})
	log := c.kubectl("logs", "pod/caller")
	if strings.Contains(log, "error") || strings.Count(log, "answers GET") < 50 {
		t.Errorf("calls failed while the agent was dead:\n%s", log)
	}
}

// purge looks for all that a cluster could leave behind.
func purge(t *testing.T, c *cluster) {
	for range 2 { // a second down is fine
		if out, err := c.Strake("down", "--purge"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	for what, cmd := range map[string]string{
		"processes":  "for f in $(grep -lsa '" + c.Data + "' /proc/[0-9]*/cmdline); do tr '\\0' ' ' < $f; echo; done 2>/dev/null | grep -v -e grep -e 'sh -c' || true",
		"mounts":     "grep '" + c.Data + "' /proc/self/mounts || true",
		"interfaces": "ip -n " + c.Net + " -o link | grep stk || true",
		"addresses":  "ip -n " + c.Net + " -o addr | grep 10.96 || true",
		"data":       "ls " + c.Data + " 2>/dev/null || true",
	} {
		if out := strings.TrimSpace(c.must(exec.Command("sh", "-c", cmd))); out != "" {
			t.Errorf("%s are left:\n%s", what, out)
		}
	}
}
