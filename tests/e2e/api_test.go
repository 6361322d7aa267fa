package e2e

import (
	"strings"
	"testing"
	"time"
)

// Two pods that are kubectl themselves, one of them with rights.
const inside = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view}
subjects: [{kind: ServiceAccount, name: reader}]
---
apiVersion: v1
kind: Pod
metadata: {name: reader}
spec:
  serviceAccountName: reader
  restartPolicy: Never
  containers: [{name: c, image: "strake.io/demo:1", args: [kubectl, get, pods, -o, name]}]
---
apiVersion: v1
kind: Pod
metadata: {name: stranger}
spec:
  restartPolicy: Never
  containers: [{name: c, image: "strake.io/demo:1", args: [kubectl, get, pods, -o, name]}]
---
apiVersion: v1
kind: Pod
metadata: {name: nobody}
spec:
  automountServiceAccountToken: false
  restartPolicy: Never
  containers: [{name: c, image: "strake.io/busybox:1", command: [ls, /var/run/secrets/kubernetes.io]}]
`

func TestTheAPIFromInsideAPod(t *testing.T) {
	c := use(t)
	c.apply(inside)
	for pod, want := range map[string]struct{ phase, log string }{
		"reader":   {"Succeeded", "pod/stranger"},
		"stranger": {"Failed", `pods is forbidden: User "system:serviceaccount:` + c.namespace + `:default" cannot list resource "pods"`},
		"nobody":   {"Failed", "No such file"},
	} {
		c.kubectl("wait", "--for=jsonpath={.status.phase}="+want.phase, "pod/"+pod, "--timeout=60s")
		if log := c.kubectl("logs", pod); !strings.Contains(log, want.log) {
			t.Errorf("%s: %s", pod, log)
		}
	}
}

const widgets = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.e2e.strake.io}
spec:
  group: e2e.strake.io
  scope: Namespaced
  names: {plural: widgets, singular: widget, kind: Widget, shortNames: [wd]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    additionalPrinterColumns: [{name: Size, type: integer, jsonPath: .spec.size}]
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [size]
            properties: {size: {type: integer, minimum: 1, description: How big it is.}}
          status: {type: object, x-kubernetes-preserve-unknown-fields: true}
`

func TestCustomResources(t *testing.T) {
	c := use(t)
	c.apply(widgets)
	t.Cleanup(func() { c.kubectl("delete", "crd", "widgets.e2e.strake.io") })
	c.kubectl("wait", "--for=condition=Established", "crd/widgets.e2e.strake.io", "--timeout=120s")
	widget := func(size string) string {
		return "apiVersion: e2e.strake.io/v1\nkind: Widget\nmetadata: {name: a}\nspec: {size: " + size + "}\n"
	}
	eventually(t, 80*time.Second, func() string { // discovery follows
		cmd := c.kubectlCommand("apply", "-f", "-")
		cmd.Stdin = strings.NewReader(widget("3"))
		if out, err := cmd.CombinedOutput(); err != nil {
			return string(out)
		}
		return ""
	})
	if out := c.kubectl("get", "wd"); !strings.Contains(out, "SIZE") || !strings.Contains(out, "3") {
		t.Errorf("get: %s", out)
	}
	cmd := c.kubectlCommand("apply", "-f", "-")
	cmd.Stdin = strings.NewReader(widget("0"))
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "spec.size") {
		t.Errorf("%v: %s", err, out)
	}
	eventually(t, 80*time.Second, func() string {
		if out, err := c.try("explain", "widget.spec.size"); err != nil || !strings.Contains(out, "How big it is.") {
			return out
		}
		return ""
	})
}
