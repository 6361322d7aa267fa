package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestSupportBundle plants secrets where people keep them and looks for them in the bundle, and for those that the cluster itself has.
func TestSupportBundle(t *testing.T) {
	c := use(t)
	const planted = "planted-7a1c9e4b"
	c.apply(`
apiVersion: v1
kind: Secret
metadata: {name: s}
stringData: {k: ` + planted + `}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: m}
data: {k: ` + planted + `}
---
apiVersion: v1
kind: Pod
metadata: {name: p, annotations: {note: ` + planted + `}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: strake.io/busybox:1
    command: [sh, -c, "echo ` + planted + `; sleep 1000000"]
    env: [{name: VISIBLE_NAME, value: ` + planted + `}, {name: FROM_SECRET, valueFrom: {secretKeyRef: {name: s, key: k}}}]
`)
	c.kubectl("wait", "--for=condition=Ready", "pod/p", "--timeout=60s")
	token := strings.TrimSpace(c.kubectl("create", "token", "default"))
	path := filepath.Join(t.TempDir(), "bundle.tgz")
	out, err := c.Strake("support-bundle", "-f", path)
	if err != nil || !strings.Contains(out, "api/pods.json") {
		t.Fatalf("%v\n%s", err, out)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	dir := t.TempDir()
	c.must(exec.Command("tar", "-C", dir, "-xzf", path))
	forbidden := map[string]string{"the planted secret": planted, "a token": token, "a key": "PRIVATE KEY", "a key in base64": "LS0tLS1CRUdJTi"}
	keys, err := filepath.Glob(filepath.Join(c.Data, "pki", "*.key"))
	if err != nil || len(keys) == 0 {
		t.Fatalf("no keys: %v", err)
	}
	for _, k := range keys {
		data, err := os.ReadFile(k)
		if err != nil {
			t.Fatal(err)
		}
		forbidden[filepath.Base(k)] = strings.Split(string(data), "\n")[1]
	}
	files := 0
	err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files++
		data, err := os.ReadFile(path)
		for what, secret := range forbidden {
			if strings.Contains(string(data), secret) {
				t.Errorf("%s has %s", path, what)
			}
		}
		if filepath.Ext(path) == ".json" && !json.Valid(data) {
			t.Errorf("%s is no JSON", path)
		}
		if strings.HasSuffix(path, ".error") && filepath.Base(path) != "modules.txt.error" {
			t.Errorf("%s: %s", path, data)
		}
		if filepath.Base(path) == "pods.json" && !strings.Contains(string(data), "VISIBLE_NAME") {
			t.Error("the pods are not told")
		}
		return err
	})
	if err != nil || files < 20 {
		t.Errorf("%d files, %v", files, err)
	}
}
