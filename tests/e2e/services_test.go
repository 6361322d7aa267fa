package e2e

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/strake-io/strake/tests/lab"
)

// Two replicas that serve two ports of TCP and one of UDP, and a client that stays.
const servers = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: multi}
spec:
  replicas: 2
  selector: {matchLabels: {app: multi}}
  template:
    metadata: {labels: {app: multi}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: echo
        image: strake.io/demo:1
        args: [demo, echo, --listen, ":8080"]
        ports: [{name: http, containerPort: 8080}, {name: packets, containerPort: 8080, protocol: UDP}]
        readinessProbe: {httpGet: {path: /healthz, port: http}, periodSeconds: 1}
      - name: admin
        image: strake.io/busybox:1
        command: [httpd, -f, -p, "8081", -h, /etc]
        ports: [{name: admin, containerPort: 8081}]
---
apiVersion: v1
kind: Service
metadata: {name: multi}
spec:
  type: NodePort
  selector: {app: multi}
  ports:
  - {name: http, port: 80, targetPort: http, nodePort: 30180}
  - {name: admin, port: 81, targetPort: admin, nodePort: 30181}
  - {name: packets, port: 80, targetPort: packets, protocol: UDP, nodePort: 30180}
---
apiVersion: v1
kind: Service
metadata: {name: none}
spec:
  selector: {app: nobody}
  ports: [{port: 80}]
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: client, image: "strake.io/demo:1", args: [demo, echo]}
---
apiVersion: v1
kind: Pod
metadata: {name: host}
spec:
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  terminationGracePeriodSeconds: 1
  containers:
  - {name: host, image: "strake.io/demo:1", args: [demo, echo, --listen, ":18080"]}
`

func TestServices(t *testing.T) {
	c := use(t)
	c.apply(servers)
	c.kubectl("rollout", "status", "deployment/multi", "--timeout=60s")
	c.kubectl("wait", "--for=condition=Ready", "pod/client", "pod/host", "--timeout=60s")
	ip := c.kubectl("get", "service", "multi", "-o", "jsonpath={.spec.clusterIP}")
	name := "multi." + c.namespace + ".svc.cluster.local"
	// In one exec, so that ports are the client's own choice: each connection is balanced anew.
	client := func(url string) []string {
		return []string{"demo", "client", "--interval", "1ms", "--count", "40", "--url", url}
	}
	in := func(pod, url string) (string, error) {
		return c.try(append([]string{"exec", pod, "--", "/strake"}, client(url)...)...)
	}
	outside := func(url string) (string, error) {
		out, err := exec.CommandContext(t.Context(), "ip", append([]string{"netns", "exec", c.Outside, c.Binary}, client(url)...)...).CombinedOutput()
		return string(out), err
	}
	// The pods are Ready; the node learns of it, and of the Services, in its own time.
	eventually(t, 4*time.Minute, func() string {
		for url, pods := range map[string]int{"http://" + ip: 2, "udp://" + ip + ":80": 2, "http://" + lab.NodeIP + ":30180": 2, "udp://" + lab.NodeIP + ":30180": 2, "http://" + name + ":81/hostname": 0} {
			if out, err := in("client", url); err != nil || pods > 0 && len(answersOf(out)) != pods {
				return url + " does not reach all pods:\n" + out
			}
		}
		if out, _ := c.try("exec", "client", "--", "/strake", "demo", "client", "--count", "1", "--url", "http://none."+c.namespace); strings.Contains(out, "no such host") {
			return out
		}
		return ""
	})
	for _, pod := range []string{"client", "host"} {
		for what, host := range map[string]string{"short name": "multi", "shortened name": "multi." + c.namespace, "long name": name, "address": ip} {
			for _, scheme := range []string{"http", "udp"} {
				t.Run(fmt.Sprintf("%s pod, %s by %s", pod, scheme, what), func(t *testing.T) {
					out, err := in(pod, scheme+"://"+host+":80")
					spread(t, out, err, 2)
				})
			}
		}
		t.Run(pod+" pod, a second port", func(t *testing.T) {
			out, err := c.try("exec", pod, "--", "/strake", "demo", "client", "--count", "1", "--url", "http://"+name+":81/hostname")
			if err != nil || !strings.Contains(out, " multi-") {
				t.Errorf("%v: %q", err, out)
			}
		})
		t.Run(pod+" pod, a Service without endpoints refuses at once", func(t *testing.T) {
			if out, err := c.try("exec", pod, "--", "/strake", "demo", "client", "--count", "1", "--url", "http://none."+c.namespace); err == nil || !strings.Contains(out, "connection refused") {
				t.Errorf("%v: %q", err, out)
			}
		})
	}
	t.Run("a replica reaches itself through its Service", func(t *testing.T) {
		out, err := in("deploy/multi", "http://multi")
		spread(t, out, err, 2)
	})
	t.Run("a process of the node", func(t *testing.T) {
		out, err := c.Command(t.Context(), append([]string{c.Binary}, client("http://"+ip)...)...).CombinedOutput()
		spread(t, string(out), err, 2)
	})
	for _, scheme := range []string{"http", "udp"} {
		t.Run("NodePort from outside by "+scheme, func(t *testing.T) {
			out, err := outside(scheme + "://" + lab.NodeIP + ":30180")
			spread(t, out, err, 2)
		})
		t.Run("NodePort from a pod by "+scheme, func(t *testing.T) {
			out, err := in("client", scheme+"://"+lab.NodeIP+":30180")
			spread(t, out, err, 2)
		})
	}
	t.Run("a Service without endpoints gets some", func(t *testing.T) {
		c := c.in(t)
		c.kubectl("scale", "deployment/multi", "--replicas=0")
		eventually(t, 2*time.Minute, func() string {
			if out, _ := in("client", "http://multi"); !strings.Contains(out, "40 ") || strings.Contains(out, "answers") {
				return out
			}
			return ""
		})
		c.kubectl("scale", "deployment/multi", "--replicas=1")
		eventually(t, 2*time.Minute, func() string {
			if out, err := in("client", "http://multi"); err != nil {
				return out
			}
			return ""
		})
	})
}

// answersOf counts a client's answers by who gave them.
func answersOf(out string) map[string]int {
	seen := map[string]int{}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) > 3 && f[3] == "answers" {
			seen[f[2]]++
		}
	}
	return seen
}

// spread checks that forty answers came, from all of the pods, none of them forgotten.
func spread(t *testing.T, out string, err error, pods int) {
	t.Helper()
	seen, missing := answersOf(out), 40
	for _, n := range seen {
		missing -= n
	}
	if err != nil || missing != 0 || len(seen) != pods {
		t.Errorf("%v: %d answers are missing, those that came are from %v:\n%s", err, missing, seen, out)
	}
}
