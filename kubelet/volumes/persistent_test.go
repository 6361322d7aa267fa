package volumes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/component-helpers/storage/volume"
)

// bound gives the pod a volume v of a claim that is bound to a volume with this source.
func (r *rig) bound(name string, source corev1.PersistentVolumeSource) {
	r.claim = &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "c", UID: "claim"}, Spec: corev1.PersistentVolumeClaimSpec{VolumeName: name}}
	r.claim.Status.Phase = corev1.ClaimBound
	r.volume = &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PersistentVolumeSpec{
		PersistentVolumeSource: source, ClaimRef: &corev1.ObjectReference{Namespace: "ns", Name: "c", UID: "claim"},
	}}
	r.pod.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}}}}
}

// dynamic is bound to a volume of our own provisioner.
func (r *rig) dynamic(name string) string {
	path := filepath.Join(r.localRoot, name)
	r.bound(name, corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: path}})
	r.volume.Annotations = map[string]string{volume.AnnDynamicallyProvisioned: LocalProvisioner}
	return path
}

func TestLocalVolumeOutlivesItsPods(t *testing.T) {
	r := newRig(t)
	path := r.dynamic("pvc-1")
	setup := func() {
		t.Helper()
		paths, _, err := r.Setup(t.Context(), r.pod)
		if err != nil || paths["v"] != path {
			t.Fatalf("%v, %v", paths, err)
		}
	}
	setup()
	for dir, want := range map[string]fs.FileMode{r.localRoot: 0o700, path: 0o777} {
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want %v", dir, info.Mode(), err, want)
		}
	}
	if err := os.WriteFile(filepath.Join(path, "data"), []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.RemoveLocal(t.Context(), "pvc-1"); !errors.Is(err, ErrInUse) {
		t.Errorf("removed under a pod: %v", err)
	}
	if err := r.Teardown("u"); err != nil {
		t.Fatal(err)
	}
	setup()
	if data, err := os.ReadFile(filepath.Join(path, "data")); err != nil || string(data) != "kept" {
		t.Fatalf("%q, %v", data, err)
	}
	if err := r.Teardown("u"); err != nil {
		t.Fatal(err)
	}
	for range 2 { // who asks twice gets no error
		if err := r.RemoveLocal(t.Context(), "pvc-1"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the data is still there: %v", err)
	}
	for _, bad := range []string{"", ".", "..", "../x", "a/b"} {
		if err := r.RemoveLocal(t.Context(), bad); err == nil {
			t.Errorf("removed %q", bad)
		}
	}
	if _, err := os.Stat(r.localRoot); err != nil {
		t.Error(err)
	}
}

func TestClaimsThatHaveNoVolumeHere(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*rig)
		want   string
	}{
		"no claim":       {func(r *rig) { r.claim = nil }, "not found"},
		"pending":        {func(r *rig) { r.claim.Status.Phase = corev1.ClaimPending }, "is not bound"},
		"another's":      {func(r *rig) { r.volume.Spec.ClaimRef.UID = "other" }, "is not bound to claim c"},
		"no volume":      {func(r *rig) { r.volume = nil }, "not found"},
		"a block device": {func(r *rig) { r.volume.Spec.VolumeMode = new(corev1.PersistentVolumeBlock) }, "volumeMode Block is not supported"},
		"an unknown kind": {func(r *rig) {
			r.volume.Spec.PersistentVolumeSource = corev1.PersistentVolumeSource{NFS: &corev1.NFSVolumeSource{}}
		}, "type is not supported"},
		"no folder there": {func(r *rig) { r.volume.Spec.Local.Path = "/nowhere" }, "no such file"},
		"a file":          {func(r *rig) { r.volume.Spec.Local.Path = "/proc/version" }, "is no folder"},
		"not the pod's own": {func(r *rig) {
			r.claim.Name = "p-v"
			r.pod.Spec.Volumes[0].VolumeSource = corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}
		}, "not created for pod"},
		// Only folders of our own are made: the path of another volume is its maker's to prepare.
		"a path of somebody else below ours": {func(r *rig) { r.volume.Spec.Local.Path += "/../other" }, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.dynamic("pvc-1")
			c.change(r)
			if _, _, err := r.Setup(t.Context(), r.pod); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

func TestStaticVolumes(t *testing.T) {
	r := newRig(t)
	dir := t.TempDir()
	for what, source := range map[string]corev1.PersistentVolumeSource{
		dir:                           {Local: &corev1.LocalVolumeSource{Path: dir}},
		filepath.Join(dir, "made/it"): {HostPath: &corev1.HostPathVolumeSource{Path: filepath.Join(dir, "made/it"), Type: new(corev1.HostPathDirectoryOrCreate)}},
	} {
		r.bound("pv", source)
		r.pod.UID = types.UID(filepath.Base(what))
		paths, _, err := r.Setup(t.Context(), r.pod)
		if err != nil || paths["v"] != what {
			t.Errorf("%s: %v, %v", what, paths, err)
		}
		if info, err := os.Stat(what); err != nil || !info.IsDir() {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// An fsGroup owns what is in a local volume, once; symbolic links are not followed.
func TestGroupOfLocalVolume(t *testing.T) {
	r := newRig(t)
	dir, outside := t.TempDir(), filepath.Join(t.TempDir(), "outside")
	file := filepath.Join(dir, "sub", "file")
	if err := errors.Join(os.Mkdir(filepath.Dir(file), 0o700), os.WriteFile(file, nil, 0o600), os.WriteFile(outside, nil, 0o600), os.Symlink(outside, filepath.Join(dir, "link"))); err != nil {
		t.Fatal(err)
	}
	r.bound("pv", corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: dir}})
	setup := func(group int64, policy corev1.PodFSGroupChangePolicy) {
		t.Helper()
		r.pod.UID = types.UID(string(policy))
		r.pod.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: &group, FSGroupChangePolicy: &policy}
		if _, _, err := r.Setup(t.Context(), r.pod); err != nil {
			t.Fatal(err)
		}
	}
	setup(777, corev1.FSGroupChangeAlways)
	for path, mode := range map[string]fs.FileMode{dir: fs.ModeDir | fs.ModeSetgid, filepath.Dir(file): fs.ModeDir | fs.ModeSetgid | 0o770, file: 0o660} {
		info, err := os.Stat(path)
		if err != nil || groupOf(t, path) != 777 || info.Mode()&mode != mode {
			t.Errorf("%s: %v, group %d, %v", path, info.Mode(), groupOf(t, path), err)
		}
	}
	if g := groupOf(t, outside); g != 0 {
		t.Errorf("a file outside is of group %d now", g)
	}
	if err := os.Chown(file, -1, 5); err != nil {
		t.Fatal(err)
	}
	setup(777, corev1.FSGroupChangeOnRootMismatch)
	if g := groupOf(t, file); g != 5 {
		t.Errorf("group %d, although the root's is right", g)
	}
}

// Others have the volume meanwhile: whatever folder they put a link in place of, nothing outside becomes the group's.
func TestGroupOfLocalVolumeThatChanges(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	sub, link := filepath.Join(dir, "sub"), filepath.Join(dir, "link")
	if err := errors.Join(os.Mkdir(sub, 0o755), os.Symlink(outside, link)); err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		name := fmt.Sprint(i)
		if err := errors.Join(os.WriteFile(filepath.Join(sub, name), nil, 0o600), os.WriteFile(filepath.Join(outside, name), nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	var swapper sync.WaitGroup
	swapper.Go(func() {
		for ctx.Err() == nil {
			if err := unix.Renameat2(unix.AT_FDCWD, sub, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE); err != nil {
				t.Error(err)
				return
			}
		}
	})
	pod := &corev1.Pod{Spec: corev1.PodSpec{SecurityContext: &corev1.PodSecurityContext{FSGroup: new(int64(777))}}}
	done := 0
	for range 100 {
		if ownTree(t.Context(), pod, dir) == nil { // else a link was found in place of a folder: the next try sees it
			done++
		}
	}
	cancel()
	swapper.Wait()
	for i := range 100 {
		path := filepath.Join(outside, fmt.Sprint(i))
		if info, err := os.Stat(path); err != nil || groupOf(t, path) != 0 || info.Mode().Perm() != 0o600 {
			t.Fatalf("%s, outside, is of group %d now, %v, %v", path, groupOf(t, path), info.Mode(), err)
		}
	}
	if groupOf(t, outside) != 0 {
		t.Error("the folder outside is of another group now")
	}
	if err := ownTree(ctx, pod, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("%v after the end, %d done before", err, done)
	}
}

// again is the manager after an end of its process.
func (r *rig) again() {
	r.Manager = New(r.root, r.localRoot, r.src)
}

func TestClaimsOutliveTheAgent(t *testing.T) {
	r := newRig(t)
	path := r.dynamic("pvc-1")
	r.pod.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: new(int64(777))}
	// A process that ended while it made a folder left one with another mode.
	if err := errors.Join(os.Mkdir(r.localRoot, 0o700), os.Mkdir(filepath.Join(r.localRoot, newDir), 0o755)); err != nil {
		t.Fatal(err)
	}
	setup := func() {
		t.Helper()
		if paths, _, err := r.Setup(t.Context(), r.pod); err != nil || paths["v"] != path {
			t.Fatalf("%v, %v", paths, err)
		}
	}
	setup()
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o777 {
		t.Fatalf("%v, %v", info, err)
	}
	// The application has modes of its own, and its pod may be gone from the API while its containers run.
	if err := os.Chmod(path, 0o700); err != nil {
		t.Fatal(err)
	}
	r.again()
	if err := r.RemoveLocal(t.Context(), "pvc-1"); !errors.Is(err, ErrInUse) {
		t.Errorf("removed under a pod of before: %v", err)
	}
	setup()
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the group was given again: %v, %v", info.Mode(), err)
	}
	// A volume whose preparation fails is the pod's, too: it may be tried again at any time.
	if err := errors.Join(r.Teardown("u"), os.Remove(path), os.Symlink("/nowhere", path)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.Setup(t.Context(), r.pod); err == nil {
		t.Fatal("a link to nowhere is no volume")
	}
	if err := r.RemoveLocal(t.Context(), "pvc-1"); !errors.Is(err, ErrInUse) {
		t.Errorf("removed while it was prepared: %v", err)
	}
}

func TestRemovalsOutliveTheAgent(t *testing.T) {
	r := newRig(t)
	left := func(name string) string {
		path := filepath.Join(r.localRoot, goingDir, name, "data")
		if err := os.MkdirAll(path, 0o700); err != nil {
			t.Fatal(err)
		}
		return filepath.Dir(path)
	}
	gone := func(path string) {
		t.Helper()
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
	swept := left("pvc-1")
	r.Sweep(t.Context())
	gone(swept)
	asked := left("pvc-2")
	if err := r.RemoveLocal(t.Context(), "pvc-2"); err != nil {
		t.Fatal(err)
	}
	gone(asked)
	// Who stops waiting does not stop the removal, and who asks again waits for it.
	path := filepath.Join(r.localRoot, "pvc-3")
	if err := os.MkdirAll(filepath.Join(path, "data"), 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r.locals.Lock()
	err := r.RemoveLocal(ctx, "pvc-3")
	r.locals.Unlock()
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if err := r.RemoveLocal(t.Context(), "pvc-3"); err != nil {
		t.Fatal(err)
	}
	gone(path)
	gone(filepath.Join(r.localRoot, goingDir, "pvc-3"))
}

func groupOf(t *testing.T, path string) uint32 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Gid
}
