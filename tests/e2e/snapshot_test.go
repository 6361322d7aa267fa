package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestSnapshot saves a cluster, changes it, and brings it back.
func TestSnapshot(t *testing.T) {
	t.Parallel()
	c := start(t)
	c.kubectl("create", "configmap", "before", "--from-literal=a=b")
	file := filepath.Join(t.TempDir(), "s.db")
	if out, err := c.Strake("snapshot", "save", file); err != nil || !strings.Contains(out, "hash verified") {
		t.Fatalf("%v: %s", err, out)
	}
	c.kubectl("create", "configmap", "after", "--from-literal=a=b")
	last := c.kubectl("get", "configmap", "after", "-o", "jsonpath={.metadata.resourceVersion}")
	if out, err := c.Strake("snapshot", "restore", file); err == nil || !strings.Contains(out, "stop it first") {
		t.Errorf("restored under a running server: %v: %s", err, out)
	}
	for _, args := range [][]string{{"down"}, {"snapshot", "restore", file}, {"up"}} {
		if out, err := c.Strake(args...); err != nil {
			t.Fatalf("strake %s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	eventually(t, 6*time.Minute, func() string {
		out, err := c.try("get", "configmap", "before")
		if err != nil {
			return out
		}
		return ""
	})
	if out, err := c.try("get", "configmap", "after"); err == nil {
		t.Errorf("what was made after the snapshot is there: %s", out)
	}
	c.kubectl("create", "configmap", "new", "--from-literal=a=b")
	var was, is int64
	fmt.Sscan(last, &was)
	fmt.Sscan(c.kubectl("get", "configmap", "new", "-o", "jsonpath={.metadata.resourceVersion}"), &is)
	if was == 0 || is <= was {
		t.Errorf("revision %d after %d", is, was)
	}
	// Controllers and nodes go on with what is there now.
	c.kubectl("create", "deployment", "web", "--image=example.test/x", "--replicas=2")
	eventually(t, 4*time.Minute, func() string {
		if out := c.kubectl("get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].spec.nodeName}"); len(strings.Fields(out)) != 2 {
			return "pods on " + out
		}
		return ""
	})
}
