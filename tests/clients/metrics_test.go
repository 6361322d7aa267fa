package clients

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/strake-io/strake/cmd/strake/ociimage"
	"github.com/strake-io/strake/tests/lab/labtest"
)

// metricsServer is built from a module of its own: it is of an older release line than ours.
const metricsServer = "sigs.k8s.io/metrics-server"

// TestMetricsServer installs metrics-server by its own manifests, with the kubelets' certificates verified. Then kubectl top has figures, and an
// autoscaler acts on them.
func TestMetricsServer(t *testing.T) {
	dir := t.TempDir()
	binary := filepath.Join(dir, "metrics-server")
	goIn(t, "metricsserver", "build", "-trimpath", "-o", binary, metricsServer+"/cmd/metrics-server")
	source := goIn(t, "metricsserver", "list", "-m", "-f", "{{.Dir}}", metricsServer)
	c := startCluster(t, "strake-metrics")
	labtest.LoadImage(t, c, ociimage.Image{Name: "strake.io/metrics-server:1", Files: map[string]string{"metrics-server": binary}, Entrypoint: []string{"/metrics-server"}, User: "1000"})
	labtest.LoadImage(t, c, ociimage.Image{Name: "strake.io/shell:1", Files: map[string]string{"bin/sh": "/bin/busybox"}})

	if err := os.CopyFS(filepath.Join(dir, "base"), os.DirFS(filepath.Join(source, "manifests", "base"))); err != nil {
		t.Fatal(err)
	}
	overlay := `resources: [base]
images: [{name: gcr.io/k8s-staging-metrics-server/metrics-server, newName: strake.io/metrics-server, newTag: "1"}]
patches:
- target: {kind: Deployment, name: metrics-server}
  patch: |
    - {op: add, path: /spec/template/spec/containers/0/args/-, value: --kubelet-certificate-authority=/var/run/secrets/kubernetes.io/serviceaccount/ca.crt}
    - {op: replace, path: /spec/template/spec/containers/0/readinessProbe/initialDelaySeconds, value: 1}
`
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(overlay), 0o600); err != nil {
		t.Fatal(err)
	}
	work := filepath.Join(dir, "work.yaml")
	if err := os.WriteFile(work, []byte(busy), 0o600); err != nil {
		t.Fatal(err)
	}
	kubectl := func(args ...string) (string, error) { return c.Strake(append([]string{"kubectl"}, args...)...) }
	for _, args := range [][]string{{"apply", "-f", work}, {"apply", "-k", dir}, {"rollout", "status", "-n", "kube-system", "deployment/metrics-server", "--timeout=120s"}, {"wait", "--for=condition=Available", "apiservice/v1beta1.metrics.k8s.io", "--timeout=60s"}} {
		if out, err := kubectl(args...); err != nil {
			log, _ := kubectl("logs", "-n", "kube-system", "-l", "k8s-app=metrics-server")
			t.Fatalf("kubectl %v: %v\n%s\n%s", args, err, out, log)
		}
	}
	for _, test := range []struct {
		what    string
		command []string
		want    string
	}{
		{"figures of the node", []string{"top", "nodes", "--no-headers"}, `(?m)^node-1 +[1-9]\d*m +\d+% +[1-9]\d*Mi +\d+%`},
		{"figures of a busy pod", []string{"top", "pods", "--no-headers", "-l", "app=busy"}, `(?m)^busy-\S+ +[1-9]\d*m +\d+Mi`},
		{"figures of containers", []string{"top", "pods", "-A", "--containers", "--no-headers"}, `(?m)^kube-system +metrics-server-\S+ +metrics-server +\d+m +[1-9]\d*Mi`},
		{"the sum of a namespace", []string{"top", "pods", "--sum", "-n", "kube-system"}, `(?m)^ +[1-9]\d*m +[1-9]\d*Mi`},
		{"an autoscaler that acts", []string{"get", "hpa", "busy", "-o", "jsonpath={.status.currentReplicas} {.status.currentMetrics[0].resource.current.averageUtilization}"}, `^2 [1-9]\d+`},
		{"the group's discovery", []string{"api-resources", "--api-group=metrics.k8s.io", "-o", "name"}, `(?m)^pods.metrics.k8s.io`},
	} {
		eventually(t, test.what, func() error {
			out, err := kubectl(test.command...)
			if err == nil && !regexp.MustCompile(test.want).MatchString(out) {
				err = fmt.Errorf("want %s", test.want)
			}
			if err != nil {
				return fmt.Errorf("%w\n%s", err, out)
			}
			return nil
		})
	}
	// What a cluster has of metrics follows it: with the server gone there are none, and all else goes on.
	if out, err := kubectl("scale", "-n", "kube-system", "deployment/metrics-server", "--replicas=0"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	eventually(t, "the APIService knows that nobody answers", func() error {
		out, err := kubectl("get", "apiservice", "v1beta1.metrics.k8s.io", "--no-headers")
		if err == nil && !strings.Contains(out, "False") {
			err = fmt.Errorf("%s", out)
		}
		return err
	})
	if out, err := kubectl("get", "deployments", "-A"); err != nil {
		t.Errorf("with a group that nobody answers for: %v\n%s", err, out)
	}
}

// busy asks for little processor time and takes all that it gets.
const busy = `apiVersion: apps/v1
kind: Deployment
metadata: {name: busy}
spec:
  selector: {matchLabels: {app: busy}}
  template:
    metadata: {labels: {app: busy}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: shell
        image: strake.io/shell:1
        command: [/bin/sh, -c, "while :; do :; done"]
        resources: {requests: {cpu: 10m, memory: 8Mi}, limits: {cpu: 50m, memory: 32Mi}}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: busy}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: busy}
  maxReplicas: 2
  metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 60}}}]
`

// goIn runs a go command in a module beside the tests', and returns what it says.
func goIn(t *testing.T, module string, args ...string) string {
	t.Helper()
	cmd := exec.Command("go", args...)
	cmd.Dir = module
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	return strings.TrimSpace(string(out))
}
