package clients

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/strake-io/strake/cmd/strake/ociimage"
	"github.com/strake-io/strake/tests/lab"
	"github.com/strake-io/strake/tests/lab/labtest"
)

// TestArgoCD keeps an application as a folder has it, by what Argo CD does so with: made, changed, pruned, put right after somebody's changes.
func TestArgoCD(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "argocd")
	goIn(t, "argocd", "build", "-trimpath", "-ldflags=-s -w", "-o", binary, ".")
	c := startCluster(t, "strake-argocd")
	labtest.LoadImage(t, c, ociimage.Image{Name: "strake.io/shell:1", Files: map[string]string{"busybox": "/bin/busybox"}})
	kubectl := func(args ...string) string {
		out, err := c.Strake(append([]string{"kubectl", "--namespace", "shop"}, args...)...)
		if err != nil {
			return err.Error() + ": " + out
		}
		return strings.TrimSpace(out)
	}
	kubectl("create", "namespace", "shop")
	a := startArgoCD(t, c, binary)
	a.write(map[string]string{"shop.yaml": shop, "banner.yaml": banner, "report.yaml": report + fmt.Sprintf("  text: %q\n", strings.Repeat("long ", 60_000))})
	expect := func(what, want string, args ...string) {
		t.Helper()
		if got := kubectl(args...); got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	gone := func(what string, args ...string) { // what is pruned goes after its dependents, for which nobody waits
		t.Helper()
		eventually(t, what, func() error {
			if got := kubectl(append(args, "--ignore-not-found", "-o", "name")...); got != "" {
				return errors.New(got)
			}
			return nil
		})
	}
	differ := func(what, want string) {
		t.Helper()
		eventually(t, what, func() error {
			if got := a.order("diff", "<nil>"); got != want {
				return fmt.Errorf("%q, want %q", got, want)
			}
			return nil
		})
	}
	const replicas = "jsonpath={.spec.replicas} {.status.availableReplicas}"

	a.order("sync", "<nil>")
	expect("what runs", "1 1", "get", "deployment", "web", "-o", replicas)
	expect("before and after it", "1 1", "get", "jobs", "migrate", "smoke", "-o", "jsonpath={.items[*].status.succeeded}")
	expect("an object of a definition that came with it", "80", "get", "pier", "north", "-o", "jsonpath={.spec.length}")
	expect("who applies on the server", "Apply", "get", "configmap", "report", "-o", "jsonpath={.metadata.managedFields[?(@.manager=='argocd-controller')].operation}")
	ready, next := kubectl("get", "deployment", "store", "-o", `jsonpath={.status.conditions[?(@.type=="Available")].lastTransitionTime}`), kubectl("get", "deployment", "web", "-o", "jsonpath={.metadata.creationTimestamp}")
	if _, err := time.Parse(time.RFC3339, ready); err != nil || len(next) != len(ready) || next < ready {
		t.Errorf("the next wave came at %q, before the one that became healthy at %q", next, ready)
	}
	job := kubectl("get", "job", "migrate", "-o", "jsonpath={.metadata.uid}")
	differ("nothing is left to do", "")

	a.write(map[string]string{"shop.yaml": strings.Replace(shop, "replicas: 1", "replicas: 2", 1), "banner.yaml": ""})
	differ("what is new and what is too much", "ConfigMap/banner Deployment/web")
	a.order("sync", "<nil>")
	expect("a change", "2 2", "get", "deployment", "web", "-o", replicas)
	gone("what is no longer in the folder", "get", "configmap", "banner")
	if now := kubectl("get", "job", "migrate", "-o", "jsonpath={.metadata.uid}"); now == job || len(now) != len(job) {
		t.Errorf("the hook is job %q, which has run before", now)
	}
	differ("nothing is left to do", "")

	kubectl("scale", "deployment", "web", "--replicas=0")
	kubectl("delete", "service", "web")
	kubectl("patch", "pier", "north", "--type=merge", "-p", `{"spec":{"length":7}}`)
	differ("somebody's changes are seen", "Deployment/web Pier/north Service/web")
	a.order("sync", "<nil>")
	expect("a Deployment put right", "2 2", "get", "deployment", "web", "-o", replicas)
	expect("a Service put right", "80", "get", "service", "web", "-o", "jsonpath={.spec.ports[0].port}")
	expect("an object of the definition put right", "80", "get", "pier", "north", "-o", "jsonpath={.spec.length}")
}

// argocd is tests/clients/argocd at work.
type argocd struct {
	*testing.T
	folder string
	orders io.Writer
	said   *bufio.Scanner
}

func startArgoCD(t *testing.T, c *lab.Cluster, binary string) *argocd {
	a := &argocd{T: t, folder: t.TempDir()}
	ctx, stop := context.WithTimeout(context.Background(), 4*time.Minute) // none of its orders has a time of its own
	cmd := c.Command(ctx, binary, filepath.Join(c.Data, "admin.kubeconfig"), "shop", a.folder)
	var log bytes.Buffer
	cmd.Stderr = &log
	orders, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	said, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	a.orders, a.said = orders, bufio.NewScanner(said)
	t.Cleanup(func() {
		stop()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("Argo CD: %s", log.Bytes()[max(0, log.Len()-5000):])
		}
	})
	return a
}

// write changes these files of the folder.
func (a *argocd) write(files map[string]string) {
	a.Helper()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(a.folder, name), []byte(text), 0o600); err != nil {
			a.Fatal(err)
		}
	}
}

// order has an order carried out, which ends so, and returns what is said before that.
func (a *argocd) order(order, end string) string {
	a.Helper()
	if _, err := fmt.Fprintln(a.orders, order); err != nil {
		a.Fatal(err)
	}
	var said []string
	for a.said.Scan() {
		line := a.said.Text()
		if how, ended := strings.CutPrefix(line, "end: "); !ended {
			said = append(said, line)
		} else if !strings.HasPrefix(how, end) {
			a.Fatalf("%s ends with %q, want %q\n%s", order, how, end, strings.Join(said, "\n"))
		} else {
			return strings.Join(said, " ")
		}
	}
	a.Fatalf("%s: it ended: %v\n%s", order, a.said.Err(), strings.Join(said, "\n"))
	return ""
}

const banner = `apiVersion: v1
kind: ConfigMap
metadata: {name: banner, labels: {app: shop}}
data: {text: welcome}
`

// report is too large for the annotation of what was applied last.
const report = `apiVersion: v1
kind: ConfigMap
metadata:
  name: report
  labels: {app: shop}
  annotations: {argocd.argoproj.io/sync-options: ServerSideApply=true}
data:
`

const shop = `apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: piers.harbour.example.org}
spec:
  group: harbour.example.org
  scope: Namespaced
  names: {plural: piers, singular: pier, kind: Pier}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {length: {type: integer}}}}}}
---
apiVersion: harbour.example.org/v1
kind: Pier
metadata: {name: north, annotations: {argocd.argoproj.io/sync-options: SkipDryRunOnMissingResource=true}}
spec: {length: 80}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: pages, labels: {app: shop}}
data: {index.html: hello}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: store, labels: {app: shop}}
spec:
  selector: {matchLabels: {app: store}}
  template:
    metadata: {labels: {app: store}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: store
        image: strake.io/shell:1
        command: [/busybox, sleep, "86400"]
        readinessProbe: {exec: {command: [/busybox, "true"]}, initialDelaySeconds: 2, periodSeconds: 1}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: shop}, annotations: {argocd.argoproj.io/sync-wave: "1"}}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: web
        image: strake.io/shell:1
        command: [/busybox, httpd, -f, -p, "8080", -h, /pages]
        readinessProbe: {httpGet: {path: /index.html, port: 8080}, periodSeconds: 1}
        volumeMounts: [{name: pages, mountPath: /pages}]
      volumes: [{name: pages, configMap: {name: pages}}]
---
apiVersion: v1
kind: Service
metadata: {name: web, labels: {app: shop}, annotations: {argocd.argoproj.io/sync-wave: "1"}}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: batch/v1
kind: Job
metadata: {name: migrate, annotations: {argocd.argoproj.io/hook: PreSync, argocd.argoproj.io/hook-delete-policy: BeforeHookCreation}}
spec:
  backoffLimit: 0
  template: {spec: {restartPolicy: Never, containers: [{name: c, image: "strake.io/shell:1", command: [/busybox, "true"]}]}}
---
apiVersion: batch/v1
kind: Job
metadata: {name: smoke, annotations: {argocd.argoproj.io/hook: PostSync, argocd.argoproj.io/hook-delete-policy: BeforeHookCreation}}
spec:
  backoffLimit: 0
  template: {spec: {restartPolicy: Never, containers: [{name: c, image: "strake.io/shell:1", command: [/busybox, wget, -O, "-", "http://web/index.html"]}]}}
`
