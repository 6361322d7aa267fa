package e2e

import (
	"strings"
	"testing"
	"time"
)

// TestResize: a running container gets other limits and is not restarted for it; what the node can't give is told.
func TestResize(t *testing.T) {
	c := use(t)
	c.apply(`
apiVersion: v1
kind: Pod
metadata: {name: grows}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: strake.io/busybox:1
    command: [sleep, "3600"]
    resources: {requests: {cpu: 10m, memory: 16Mi}, limits: {cpu: 100m, memory: 32Mi}}
`)
	c.kubectl("wait", "--for=condition=Ready", "pod/grows", "--timeout=60s")
	limit := func() string {
		return strings.TrimSpace(c.kubectl("exec", "grows", "--", "sh", "-c", "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max"))
	}
	if got := limit(); got != "33554432" {
		t.Fatalf("limit %s", got)
	}
	resize := func(resources string) {
		c.kubectl("patch", "pod", "grows", "--subresource", "resize", "-p", `{"spec":{"containers":[{"name":"main","resources":`+resources+`}]}}`)
	}
	resize(`{"requests":{"memory":"24Mi"},"limits":{"memory":"64Mi"}}`)
	eventually(t, 2*time.Minute, func() string {
		if got := limit(); got != "67108864" {
			return "limit " + got
		}
		if out := c.kubectl("get", "pod", "grows", "-o", "jsonpath={.status.containerStatuses[0].resources.limits.memory} {.status.containerStatuses[0].allocatedResources.memory} {.status.containerStatuses[0].restartCount}"); out != "64Mi 24Mi 0" {
			return out
		}
		return ""
	})
	resize(`{"requests":{"cpu":"9k"},"limits":{"cpu":"9k"}}`)
	c.kubectl("wait", "--for=jsonpath={.status.conditions[?(@.type=='PodResizePending')].reason}=Infeasible", "pod/grows", "--timeout=30s")
	resize(`{"requests":{"cpu":"20m"},"limits":{"cpu":"200m"}}`)
	eventually(t, 2*time.Minute, func() string {
		if out := c.kubectl("get", "pod", "grows", "-o", "jsonpath={.status.containerStatuses[0].resources.limits.cpu}{.status.conditions[?(@.type=='PodResizePending')].reason}"); out != "200m" {
			return out
		}
		return ""
	})
}
