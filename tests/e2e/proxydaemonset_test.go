package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/tests/lab"
	"github.com/strake-io/strake/tests/lab/labtest"
	"github.com/strake-io/strake/tests/lab/plainnode"
)

const proxiedNodePort = 30110

const proxied = `
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
        command: [sh, -c, "mkdir /tmp/www; hostname > /tmp/www/index.html; exec httpd -f -p 8080 -h /tmp/www"]
        readinessProbe: {httpGet: {path: /index.html, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080, nodePort: 30110}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  containers: [{name: client, image: "strake.io/busybox:1", command: [sleep, "86400"]}]
`

// TestProxyDaemonSet applies deploy/kube-proxy's manifest in a cluster where nobody serves Services, as docs/kube-proxy.md says, and takes it back.
func TestProxyDaemonSet(t *testing.T) {
	t.Parallel()
	l := labtest.New(t, "strake-e2e", binary)
	plainnode.Start(t, l)
	c := &cluster{Cluster: l, t: t, namespace: "default"}
	c.busybox()
	c.awaitServiceAccount()
	const image = "registry.example/strake:test"
	plainnode.LoadStrake(t, l, image)
	c.apply(proxied)
	c.kubectl("rollout", "status", "deployment/web", "--timeout=240s")
	c.kubectl("wait", "--for=condition=Ready", "pod/client", "--timeout=240s")

	outside := func(port int) (string, error) {
		out, err := exec.Command("ip", "netns", "exec", l.Outside, "curl", "-sS", "-m", "10", fmt.Sprintf("http://%s:%d/", lab.NodeIP, port)).CombinedOutput()
		return string(out), err
	}
	clusterIP := c.kubectl("get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
	inside := func() (string, error) {
		return c.try("exec", "client", "--", "timeout", "10", "wget", "-q", "-O", "-", "http://"+clusterIP+"/")
	}
	if out, err := outside(proxiedNodePort); err == nil {
		t.Fatalf("somebody serves Services already: %s", out)
	}

	bpffs := plainnode.BPFFS(t)
	system := &cluster{Cluster: l, t: t, namespace: "kube-system"}
	manifest := deployed(t, l, image, bpffs)
	deploy := func() {
		t.Helper()
		system.apply(manifest)
		system.kubectl("rollout", "status", "daemonset/strake-proxy", "--timeout=240s")
	}
	remove := func() {
		t.Helper()
		system.kubectl("delete", "daemonset", "strake-proxy", "--timeout=240s")
		system.kubectl("wait", "--for=delete", "pod", "-l", "app.kubernetes.io/name=strake-proxy", "--timeout=240s")
	}
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := system.try("logs", "daemonset/strake-proxy", "--tail=100")
			t.Logf("strake-proxy:\n%s\n%s", system.kubectl("get", "pods", "-A", "-o", "wide"), out)
		}
	})
	deploy()
	for what, ask := range map[string]func() (string, error){"NodePort": func() (string, error) { return outside(proxiedNodePort) }, "ClusterIP": inside} {
		seen := map[string]bool{}
		eventually(t, 4*time.Minute, func() string { // until both pods have answered
			out, err := ask()
			if err != nil {
				return fmt.Sprintf("%s: %v: %s", what, err, out)
			}
			if seen[out] = true; len(seen) < 2 {
				return fmt.Sprintf("%s: %v alone answers", what, seen)
			}
			return ""
		})
	}

	// While nobody's agent runs, the kernel goes on, and one that comes back finds what there is.
	stop, ended := make(chan struct{}), make(chan error, 1)
	var answers atomic.Int64
	go func() {
		for {
			select {
			case <-stop:
				ended <- nil
				return
			default:
			}
			if out, err := outside(proxiedNodePort); err != nil {
				ended <- fmt.Errorf("after %d answers: %w: %s", answers.Load(), err, out)
				return
			}
			answers.Add(1)
		}
	}()
	asked := func(when string) {
		t.Helper()
		before := answers.Load()
		eventually(t, 2*time.Minute, func() string {
			select {
			case err := <-ended:
				t.Fatal(err)
			default:
			}
			if now := answers.Load(); now < before+5 {
				return fmt.Sprintf("%s: %d answers", when, now-before)
			}
			return ""
		})
	}
	remove()
	asked("without the DaemonSet")
	if out, err := inside(); err != nil {
		t.Errorf("ClusterIP without the DaemonSet: %v: %s", err, out)
	}
	deploy()
	asked("with the DaemonSet again")
	close(stop)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	c.kubectl("expose", "deployment", "web", "--name=later", "--port=80", "--target-port=8080", "--type=NodePort", `--overrides={"spec":{"ports":[{"port":80,"targetPort":8080,"nodePort":30111}]}}`)
	eventually(t, 4*time.Minute, func() string {
		if out, err := outside(30111); err != nil {
			return "a Service that came later: " + out
		}
		return ""
	})

	remove()
	system.kubectl("debug", "node/"+system.kubectl("get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"), "--profile=sysadmin", "--image="+image, "--",
		"/strake", "agent", "--only", "proxy", "--data-dir", "/host"+bpffs+"/strake", "--cleanup")
	eventually(t, 4*time.Minute, func() string {
		return system.kubectl("get", "pods", "-o", `jsonpath={range .items[?(@.status.phase!="Succeeded")]}{.metadata.name} {.status.phase} {end}`)
	})
	if out, err := outside(proxiedNodePort); err == nil {
		t.Errorf("a Service is served after the cleanup: %s", out)
	}
	if _, err := os.Stat(bpffs + "/strake"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the cleanup leaves the folder of its pins: %v", err)
	}
}

// deployed is deploy/kube-proxy's manifest, filled in. This machine has a node in a namespace of its own, so that two things are not where another node
// has them: its bpffs, and the cgroup that its pods are in.
func deployed(t *testing.T, l *lab.Cluster, image, bpffs string) string {
	t.Helper()
	data, err := os.ReadFile("../../deploy/kube-proxy/strake-proxy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	places, err := layout.New(l.Data)
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	if !plainnode.MayLiftLimits(t) {
		text = strings.Replace(text, "add: [BPF, PERFMON, NET_ADMIN, SYS_RESOURCE, SYS_ADMIN]", "add: [BPF, PERFMON, NET_ADMIN, SYS_ADMIN]", 1)
	}
	for _, place := range [][2]string{
		{"image: REGISTRY/strake:VERSION\n", "image: " + image + "\n"},
		{"value: API-SERVER\n", "value: " + lab.NodeIP + "\n"},
		{"path: /sys/fs/bpf/strake/", "path: " + bpffs + "/strake/"},
		{"        - --only=proxy\n", "        - --only=proxy\n        - --cgroup=" + places.Cgroup() + "\n"},
	} {
		if strings.Count(text, place[0]) != 1 {
			t.Fatalf("the manifest has %q %d times, not once", place[0], strings.Count(text, place[0]))
		}
		text = strings.Replace(text, place[0], place[1], 1)
	}
	return text
}
