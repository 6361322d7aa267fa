package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cmd/strake/demo"
	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/cmd/strake/supervisor"
	"github.com/strake-io/strake/tests/lab"
	"github.com/strake-io/strake/tests/podnet"
)

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
	t.Parallel()
	c := start(t)
	var st struct {
		Ready bool `json:"ready"`
	}
	out, err := c.Strake("status", "-o", "json")
	if err != nil || json.Unmarshal([]byte(out), &st) != nil || !st.Ready {
		t.Fatalf("status: %v\n%s", err, out)
	}
	c.apply(manifests)
	c.kubectl("rollout", "status", "deployment/web", "--timeout=60s")

	t.Run("a Job calls the Service by its long and its short name", func(t *testing.T) {
		c := c.in(t)
		c.apply(job)
		c.kubectl("wait", "--for=condition=complete", "job/once", "--timeout=60s")
		if out := c.kubectl("logs", "job/once"); out != "from a file\nfrom a file\n" {
			t.Errorf("log %q", out)
		}
	})
	t.Run("configuration as environment and files", func(t *testing.T) {
		c := c.in(t)
		out := c.kubectl("exec", "deploy/web", "--", "sh", "-c", "echo $GREETING $PASSWORD $MY_IP; cat /secret/password; ls -lL /secret/password")
		if !strings.Contains(out, "hello xyzzy 10.244.0.") || !strings.Contains(out, "xyzzy-r--------") {
			t.Errorf("saw %q", out)
		}
	})
	t.Run("a change of a ConfigMap reaches its files", func(t *testing.T) {
		c := c.in(t)
		c.kubectl("patch", "configmap", "conf", "-p", `{"data":{"index.html":"changed\n"}}`)
		eventually(t, 2*time.Minute, func() string {
			if out := c.kubectl("exec", "deploy/web", "--", "cat", "/www/index.html"); out != "changed\n" {
				return "still " + out
			}
			return ""
		})
	})
	t.Run("NodePort from outside, evenly", func(t *testing.T) {
		c := c.in(t)
		seen := map[string]int{}
		for range 60 {
			cmd := exec.Command("ip", "netns", "exec", c.Outside, "curl", "-s", "-m", "10", "http://"+lab.NodeIP+":30080/")
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
		c := c.in(t)
		c.kubectl("delete", "pod", "-l", "app=web", "--wait=true", "--timeout=60s")
		c.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
		eventually(t, 4*time.Minute, func() string { // the rollout's status may be from before the pods went
			uid := c.kubectl("get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].metadata.uid}")
			if uid, _, _ = strings.Cut(uid, " "); uid == "" {
				return "no pod to kill"
			}
			if out := c.must(exec.Command("sh", "-c", "for p in $(grep -ls 'pod"+uid+"' /proc/[0-9]*/cgroup | cut -d/ -f3); do grep -qs httpd /proc/$p/cmdline && kill -9 $p && echo $p; done; true")); out == "" {
				return "no process to kill in pod " + uid
			}
			return ""
		})
		eventually(t, 4*time.Minute, func() string {
			out := c.kubectl("get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].status.containerStatuses[0].restartCount}{range .items[*]}{.status.conditions[?(@.type=='Ready')].status}{end}")
			if !strings.Contains(out, "1") || strings.Contains(out, "False") {
				return "restarts and readiness: " + out
			}
			return ""
		})
	})
	t.Run("scale and describe", func(t *testing.T) {
		c := c.in(t)
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
		c := c.in(t)
		cmd := c.StrakeCommand(c.t.Context(), "kubectl", "apply", "-f", "-")
		cmd.Stdin = strings.NewReader("apiVersion: v1\nkind: Service\nmetadata: {name: bad}\nspec: {ports: [{port: 70000}]}\n")
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "spec.ports[0].port") {
			t.Errorf("%v: %s", err, out)
		}
	})
	t.Run("no rule of ours in netfilter", func(t *testing.T) {
		c := c.in(t)
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
		c := c.in(t)
		if out, err := c.Strake("up", "--wait", "120s"); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
	t.Run("up of another release takes over, and pods go on", func(t *testing.T) { anotherRelease(t, c) })
	t.Run("nothing is left after down --purge", func(t *testing.T) { purge(t, c.in(t)) })
}

// anotherRelease brings the cluster up by another program file, while pods run and a connection to one is asked over.
func anotherRelease(t *testing.T, c *cluster) {
	dir := c.t.TempDir() // the cluster runs from it until the whole test ends
	c = c.in(t)
	l, err := layout.New(c.Data)
	if err != nil {
		t.Fatal(err)
	}
	containers := func() string {
		return c.kubectl("get", "pods", "-A", "-o", "jsonpath={range .items[*]}{.metadata.uid} {.status.containerStatuses[*].containerID}{\"\\n\"}{end}")
	}
	c.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
	before := containers()
	c.must(exec.Command("cp", c.Binary, filepath.Join(filepath.Dir(c.Binary), "strake-cni"), dir))
	newer := filepath.Join(dir, filepath.Base(c.Binary))
	goesOn := keepAsking(t, c)
	c.must(c.Command(t.Context(), newer, "--data-dir", c.Data, "up", "--wait", "4m"))
	if err := goesOn(); err != nil {
		t.Errorf("a connection by a NodePort: %v", err)
	}
	for _, name := range []string{"server", "agent"} {
		p, _ := supervisor.Find(l.Pid(name))
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.PID)); err != nil || exe != newer {
			t.Errorf("%s runs %s, %v", name, exe, err)
		}
	}
	if after := containers(); after != before {
		t.Errorf("pods were\n%s\nand are\n%s", before, after)
	}
}

// keepAsking holds one connection from outside to a pod of the demo, by its NodePort, and asks over it again and again, until the function that it
// returns is called, and once more then.
func keepAsking(t *testing.T, c *cluster) (goesOn func() error) {
	t.Helper()
	conn, err := podnet.Space("/run/netns/"+c.Outside).Dial(t.Context(), "tcp", fmt.Sprintf("%s:%d", lab.NodeIP, demo.NodePort))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	answers := bufio.NewReader(conn)
	ask := func() error {
		if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			return err
		}
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: demo\r\n\r\n"); err != nil {
			return err
		}
		answer, err := http.ReadResponse(answers, nil)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		_, err = io.Copy(io.Discard, answer.Body)
		return err
	}
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	enough, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-enough:
				ended <- ask()
				return
			case <-time.After(100 * time.Millisecond):
			}
			if err := ask(); err != nil {
				ended <- err
				return
			}
		}
	}()
	return func() error {
		close(enough)
		return <-ended
	}
}

// purge looks for all that a cluster could leave behind.
func purge(t *testing.T, c *cluster) {
	l, err := layout.New(c.Data)
	if err != nil {
		t.Fatal(err)
	}
	var st struct {
		Datapath bpf.Status `json:"datapath"`
	}
	if out, err := c.StrakeCommand(t.Context(), "status", "-o", "json").Output(); json.Unmarshal(out, &st) != nil || len(st.Datapath.Links) == 0 {
		t.Fatalf("status: %v\n%s", err, out)
	}
	for range 2 { // a second down is fine
		if out, err := c.Strake("down", "--purge"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	for what, cmd := range map[string]string{
		"processes":  "for f in $(grep -lsa '" + c.Data + "' /proc/[0-9]*/cmdline); do tr '\\0' ' ' < $f; echo; done 2>/dev/null | grep -v -e grep -e 'sh -c' || true",
		"mounts":     "grep '" + c.Data + "' /proc/self/mounts || true",
		"cgroups":    "find /sys/fs/cgroup -name '" + filepath.Base(l.Cgroup()) + "*'",
		"sockets":    "ls -d " + l.Run() + "* 2>/dev/null || true",
		"namespaces": "ls /run/netns | grep strake-" + l.ID + " || true",
		"routes":     "ip -n " + c.Net + " route | grep -v up0 || true",
		"filters":    "tc -n " + c.Net + " filter show dev up0 ingress",
		"interfaces": "ip -n " + c.Net + " -o link | grep stk || true",
		"addresses":  "ip -n " + c.Net + " -o addr | grep 10.96 || true",
		"data":       "ls " + c.Data + " 2>/dev/null || true",
	} {
		if out := strings.TrimSpace(c.must(exec.Command("sh", "-c", cmd))); out != "" {
			t.Errorf("%s are left:\n%s", what, out)
		}
	}
	for _, link := range st.Datapath.Links {
		if p, err := ebpf.NewProgramFromID(ebpf.ProgramID(link.Program)); err == nil {
			p.Close()
			t.Errorf("program %d of %s is left", link.Program, link.Name)
		}
	}
}
