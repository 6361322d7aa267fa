package e2e

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const ticker = `
apiVersion: v1
kind: Pod
metadata: {name: ticker}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: strake.io/busybox:1
    command: [sh, -c, "mkdir -p /www; echo served > /www/x; httpd -p 8080 -h /www; i=0; while true; do echo tick $i; i=$((i+1)); sleep 0.1; done"]
`

func TestKubectl(t *testing.T) {
	c := use(t)
	c.apply(ticker)
	c.kubectl("wait", "--for=condition=Ready", "pod/ticker", "--timeout=60s")

	run := func(name string, f func(*testing.T, *cluster)) { t.Run(name, func(t *testing.T) { f(t, c.in(t)) }) }
	run("logs -f follows, and ends with the pod", func(t *testing.T, c *cluster) {
		cmd := c.kubectlCommand("logs", "-f", "--tail=1", "pod/ticker")
		pipe, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var last int
		lines := bufio.NewScanner(pipe)
		for n := 0; n < 10 && lines.Scan(); n++ {
			var i int
			if _, err := fmt.Sscanf(lines.Text(), "tick %d", &i); err != nil || n > 0 && i != last+1 {
				t.Errorf("line %q after tick %d", lines.Text(), last)
			}
			last = i
		}
		c.kubectl("delete", "pod", "ticker", "--wait=false")
		for lines.Scan() {
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("logs -f ended with %v", err)
		}
		c.kubectl("wait", "--for=delete", "pod/ticker", "--timeout=120s")
		c.apply(ticker)
		c.kubectl("wait", "--for=condition=Ready", "pod/ticker", "--timeout=60s")
	})
	run("exec -it has a terminal", func(t *testing.T, c *cluster) {
		// script(1) gives kubectl a terminal, 24 lines of 80.
		inner := c.kubectlCommand("exec", "-it", "ticker", "--", "sh", "-c", "tty; while s=$(stty size 2>/dev/null); test -z \"$s\"; do sleep 0.1; done; echo $s; read line; echo got $line")
		cmd := exec.CommandContext(t.Context(), "script", "-qec", "stty rows 24 cols 80; "+quoted(inner.Args), "/dev/null")
		cmd.Stdin = strings.NewReader("hello\n")
		out, err := cmd.CombinedOutput()
		for _, want := range []string{"/dev/pts/", "24 80", "got hello"} {
			if !strings.Contains(string(out), want) {
				t.Errorf("%v: no %q in %q", err, want, out)
			}
		}
	})
	run("exec tells the exit code and passes standard input", func(t *testing.T, c *cluster) {
		cmd := c.kubectlCommand("exec", "-i", "ticker", "--", "sh", "-c", "cat; echo err >&2; exit 7")
		cmd.Stdin = strings.NewReader("in")
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != 7 || !strings.Contains(string(out), "in") || !strings.Contains(string(out), "err") {
			t.Errorf("%v: %s", err, out)
		}
	})
	run("cp in both directions", func(t *testing.T, c *cluster) {
		dir := t.TempDir()
		from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
		if err := os.WriteFile(from, []byte("content"), 0o600); err != nil {
			t.Fatal(err)
		}
		c.kubectl("cp", from, "ticker:/tmp/file")
		c.kubectl("cp", "ticker:/tmp/file", to)
		if data, err := os.ReadFile(to); err != nil || string(data) != "content" {
			t.Errorf("%v: %q", err, data)
		}
	})
	run("port-forward", func(t *testing.T, c *cluster) {
		cmd := c.kubectlCommand("port-forward", "pod/ticker", ":8080")
		pipe, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer cmd.Wait()
		defer cmd.Process.Kill()
		line, err := bufio.NewReader(pipe).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		addr := strings.Fields(strings.TrimPrefix(line, "Forwarding from "))[0]
		if _, _, err := net.SplitHostPort(addr); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		for range 3 {
			if out, err := c.Command(t.Context(), "curl", "-s", "-m", "5", "http://"+addr+"/x").CombinedOutput(); err != nil || string(out) != "served\n" {
				t.Errorf("%v: %q", err, out)
			}
		}
	})
	run("events, describe, top of a list", func(t *testing.T, c *cluster) {
		for _, reason := range []string{"Scheduled", "Started"} {
			eventually(t, 40*time.Second, func() string {
				if out := c.kubectl("events", "--for", "pod/ticker"); !strings.Contains(out, reason) {
					return "no event " + reason + " in\n" + out
				}
				return ""
			})
		}
		if out := c.kubectl("describe", "pod", "ticker"); !strings.Contains(out, "Started") || !strings.Contains(out, nodeName+"/") {
			t.Errorf("describe\n%s", out)
		}
		if out := c.kubectl("get", "pods", "-o", "wide"); !strings.Contains(out, nodeName) || !strings.Contains(out, "10.244.0.") {
			t.Errorf("get -o wide\n%s", out)
		}
	})
	run("rollouts go forth and back", func(t *testing.T, c *cluster) {
		c.kubectl("create", "deployment", "app", "--image=strake.io/demo:1", "--replicas=2", "--", "/strake", "demo", "echo")
		c.kubectl("rollout", "status", "deployment/app", "--timeout=60s")
		c.kubectl("set", "image", "deployment/app", "demo=strake.io/missing:1")
		eventually(t, 6*time.Minute, func() string {
			if out := c.kubectl("get", "pods", "-l", "app=app"); !strings.Contains(out, "ErrImagePull") && !strings.Contains(out, "ImagePullBackOff") {
				return "no pod tells of its missing image:\n" + out
			}
			return ""
		})
		if out := c.kubectl("get", "deployment", "app", "-o", "jsonpath={.status.availableReplicas}"); out != "2" {
			t.Errorf("%s replicas are available during a bad rollout", out)
		}
		c.kubectl("rollout", "undo", "deployment/app")
		c.kubectl("rollout", "status", "deployment/app", "--timeout=60s")
		if out := c.kubectl("rollout", "history", "deployment/app"); !strings.Contains(out, "2") || !strings.Contains(out, "3") {
			t.Errorf("history\n%s", out)
		}
	})
	run("server-side apply and diff and dry run", func(t *testing.T, c *cluster) {
		manifest := filepath.Join(t.TempDir(), "cm.yaml")
		write := func(v string) {
			if err := os.WriteFile(manifest, []byte("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: cm}\ndata: {k: "+v+"}\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write("one")
		c.kubectl("apply", "--server-side", "-f", manifest)
		c.kubectl("patch", "configmap", "cm", "--field-manager=other", "-p", `{"data":{"k":"two"}}`)
		write("three")
		if out, err := c.try("apply", "--server-side", "-f", manifest); err == nil || !strings.Contains(out, "conflict") {
			t.Errorf("%v: %s", err, out)
		}
		if out, err := c.try("diff", "-f", manifest); err == nil || !strings.Contains(out, "+  k: three") {
			t.Errorf("diff %v: %s", err, out)
		}
		c.kubectl("apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", manifest)
		if out := c.kubectl("get", "configmap", "cm", "-o", "jsonpath={.data.k}"); out != "two" {
			t.Errorf("a dry run wrote %q", out)
		}
	})
	run("wrong fields, types and values are told by their path", func(t *testing.T, c *cluster) {
		for manifest, want := range map[string]string{
			"{apiVersion: v1, kind: Pod, metadata: {name: bad}, spec: {containers: [{name: c, image: i, imagePolicy: x}]}}":         `unknown field "spec.containers[0].imagePolicy"`,
			"{apiVersion: v1, kind: Pod, metadata: {name: bad}, spec: {containers: [{name: c, image: [1]}]}}":                       "image",
			"{apiVersion: v1, kind: Pod, metadata: {name: Bad_}, spec: {containers: [{name: c, image: i}]}}":                        "metadata.name",
			"{apiVersion: v1, kind: Pod, metadata: {name: bad}, spec: {containers: []}}":                                            "spec.containers",
			"{apiVersion: v1, kind: Service, metadata: {name: bad}, spec: {ports: [{port: 80, protocol: ICMP}]}}":                   "spec.ports[0].protocol",
			"{apiVersion: apps/v1, kind: Deployment, metadata: {name: bad}, spec: {selector: {}, template: {spec: {}}}}":            "spec.template",
			"{apiVersion: batch/v1, kind: Job, metadata: {name: bad}, spec: {parallelism: -1, template: {spec: {}}}}":               "spec.parallelism",
			"{apiVersion: v1, kind: Unknown, metadata: {name: bad}}":                                                                `no matches for kind "Unknown"`,
			"{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: bad}, spec: {policyTypes: [Sideways]}}":       "spec.policyTypes[0]",
			"{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {name: bad}, rules: [{resources: [pods]}]}":           "rules[0].verbs",
			"{apiVersion: v1, kind: ConfigMap, metadata: {name: bad}, data: {\"a/b\": x}}":                                          "data[a/b]",
			"{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: bad}, spec: {accessModes: [Always]}}":                   "spec.accessModes",
			"{apiVersion: v1, kind: Secret, metadata: {name: bad}, type: kubernetes.io/tls, data: {x: eA==}}":                       "data[tls.crt]",
			"{apiVersion: v1, kind: Pod, metadata: {name: bad}, spec: {containers: [{name: c, image: i, ports: [{hostPort: 1}]}]}}": "spec.containers[0].ports[0].containerPort",
		} {
			cmd := c.kubectlCommand("create", "-f", "-")
			cmd.Stdin = strings.NewReader(manifest)
			if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), want) {
				t.Errorf("%s\n%v: %s", manifest, err, out)
			}
		}
	})
}

// quoted makes a shell's command line of arguments.
func quoted(args []string) string {
	var b strings.Builder
	for _, a := range args {
		b.WriteString(" '" + strings.ReplaceAll(a, "'", `'\''`) + "'")
	}
	return b.String()
}
