package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// stateful asks for volumes as charts do: without naming a class.
const stateful = `
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  replicas: 2
  serviceName: db
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 0
      securityContext: {runAsUser: 1000, fsGroup: 1000}
      containers:
      - name: db
        image: strake.io/busybox:1
        command: [sh, -c, "echo $HOSTNAME >> /data/starts; exec sleep 3600"]
        volumeMounts:
        - {name: data, mountPath: /data}
        - {name: scratch, mountPath: /scratch}
      volumes:
      - name: scratch
        ephemeral: {volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}}}
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 10Mi}}}
`

// byHand is a volume that an administrator made, and who uses it, for reading and for writing.
const byHand = `
apiVersion: v1
kind: PersistentVolume
metadata: {name: NAME}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteMany]
  storageClassName: by-hand
  hostPath: {path: DIR}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: shared}
spec:
  accessModes: [ReadWriteMany]
  storageClassName: by-hand
  resources: {requests: {storage: 1Gi}}
---
apiVersion: v1
kind: Pod
metadata: {name: both}
spec:
  restartPolicy: Never
  containers:
  - name: both
    image: strake.io/busybox:1
    command: [sh, -c, "cat /in/file && echo out > /in/sub/made && ! touch /read-only/x 2>/dev/null"]
    volumeMounts: [{name: shared, mountPath: /in}, {name: shared, mountPath: /sub, subPath: sub}, {name: again, mountPath: /read-only}]
  volumes:
  - {name: shared, persistentVolumeClaim: {claimName: shared}}
  - {name: again, persistentVolumeClaim: {claimName: shared, readOnly: true}}
`

// TestVolumes: data outlives pods and goes with its claim; volumes that were made by hand are bound and mounted.
func TestVolumes(t *testing.T) {
	c := use(t)
	c.apply(stateful)
	c.kubectl("rollout", "status", "statefulset/db", "--timeout=90s")
	path := c.kubectl("get", "pv", c.kubectl("get", "pvc", "data-db-0", "-o", "jsonpath={.spec.volumeName}"), "-o", "jsonpath={.spec.local.path}")
	if info, err := os.Stat(filepath.Dir(path)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%s: %v, %v", filepath.Dir(path), info, err)
	}
	c.kubectl("delete", "pod", "db-0", "--timeout=60s")
	c.kubectl("rollout", "status", "statefulset/db", "--timeout=90s")
	eventually(t, 2*time.Minute, func() string {
		if out, err := c.try("exec", "db-0", "--", "cat", "/data/starts"); err != nil || out != "db-0\ndb-0\n" {
			return out
		}
		return ""
	})

	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("from the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	name := c.namespace + "-by-hand"
	c.apply(strings.NewReplacer("NAME", name, "DIR", dir).Replace(byHand))
	t.Cleanup(func() {
		c.kubectl("delete", "pod/both", "pvc/shared", "--ignore-not-found", "--timeout=60s")
		c.kubectl("delete", "pv", name, "--ignore-not-found", "--timeout=60s")
	})
	c.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/both", "--timeout=60s")
	if out := c.kubectl("logs", "both"); out != "from the host\n" {
		t.Errorf("log %q", out)
	}
	if data, err := os.ReadFile(filepath.Join(dir, "sub", "made")); err != nil || string(data) != "out\n" {
		t.Errorf("%q, %v", data, err)
	}

	// With its claim the data goes; what others have stays.
	c.kubectl("delete", "statefulset", "db", "--timeout=60s")
	c.kubectl("delete", "pvc", "data-db-0", "--timeout=60s")
	eventually(t, 4*time.Minute, func() string {
		if _, err := os.Stat(path); err == nil {
			return path + " is still there: " + c.kubectl("get", "pv") + c.kubectl("get", "events", "-A", "--field-selector=reason=VolumeFailedDelete")
		}
		return ""
	})
	if out := c.kubectl("get", "pvc", "data-db-1", "-o", "jsonpath={.status.phase}"); out != "Bound" {
		t.Errorf("claim data-db-1 is %s", out)
	}
	eventually(t, 4*time.Minute, func() string { // those of the pods' ephemeral volumes
		if out := c.kubectl("get", "pv", "-o", "jsonpath={.items[?(@.spec.claimRef.namespace=='"+c.namespace+"')].spec.claimRef.name}"); out != "shared data-db-1" && out != "data-db-1 shared" {
			return "volumes of " + out
		}
		return ""
	})
}
