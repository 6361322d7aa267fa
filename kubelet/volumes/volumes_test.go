package volumes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// rig is a manager whose sources the test sets.
type rig struct {
	*Manager
	t       *testing.T
	data    map[string]string // of ConfigMap cm
	tokens  int
	life    time.Duration
	pod     *corev1.Pod
	podRoot string
	claim   *corev1.PersistentVolumeClaim // claim c, and p-own, and what they are bound to
	volume  *corev1.PersistentVolume
}

func newRig(t *testing.T) *rig {
	if os.Getuid() != 0 {
		t.Fatal("needs root: it mounts")
	}
	r := &rig{t: t, data: map[string]string{"a": "1", "b": "2"}, life: time.Hour, podRoot: t.TempDir()}
	r.Manager = New(r.podRoot, filepath.Join(t.TempDir(), "local"), Sources{
		ConfigMap: func(_ context.Context, _ *corev1.Pod, name string) (*corev1.ConfigMap, error) {
			if name != "cm" {
				return nil, apierrors.NewNotFound(corev1.Resource("configmaps"), name)
			}
			return &corev1.ConfigMap{Data: maps.Clone(r.data), BinaryData: map[string][]byte{"bin": {0, 255}}}, nil
		},
		Secret: func(_ context.Context, _ *corev1.Pod, name string) (*corev1.Secret, error) {
			switch name {
			case "s":
				return &corev1.Secret{Data: map[string][]byte{"p": []byte("word")}}, nil
			case "broken":
				return nil, errors.New("no answer")
			}
			return nil, apierrors.NewNotFound(corev1.Resource("secrets"), name)
		},
		Token: func(_ context.Context, _ *corev1.Pod, req authenticationv1.TokenRequestSpec) (string, time.Time, error) {
			r.tokens++
			return fmt.Sprintf("token %d for %v", r.tokens, req.Audiences), time.Now().Add(r.life), nil
		},
		Claim: func(_ context.Context, _ *corev1.Pod, name string) (*corev1.PersistentVolumeClaim, error) {
			if r.claim == nil || name != r.claim.Name {
				return nil, apierrors.NewNotFound(corev1.Resource("persistentvolumeclaims"), name)
			}
			return r.claim, nil
		},
		Volume: func(_ context.Context, name string) (*corev1.PersistentVolume, error) {
			if r.volume == nil || name != r.volume.Name {
				return nil, apierrors.NewNotFound(corev1.Resource("persistentvolumes"), name)
			}
			return r.volume, nil
		},
		Node: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("4")},
	})
	r.pod = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns", UID: "u", Labels: map[string]string{"l": "v"}}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c"}}}}
	t.Cleanup(func() {
		if err := r.Teardown("u"); err != nil {
			t.Error(err)
		}
		if data, err := os.ReadFile("/proc/self/mounts"); err != nil || strings.Contains(string(data), r.podRoot) {
			t.Errorf("mounts are left, %v", err)
		}
		if _, err := os.Stat(r.PodDir("u")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the pod's folder is left: %v", err)
		}
	})
	return r
}

func (r *rig) setup(src corev1.VolumeSource) (string, time.Time, error) {
	r.pod.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: src}}
	paths, refresh, err := r.Setup(r.t.Context(), r.pod)
	return paths["v"], refresh, err
}

// tree reads the files of a volume as a container sees them: name → "mode content".
func (r *rig) tree(dir string) map[string]string {
	r.t.Helper()
	out := map[string]string{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "..") {
			continue
		}
		root, err := filepath.EvalSymlinks(filepath.Join(dir, e.Name()))
		if err != nil {
			r.t.Fatal(err)
		}
		if err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			data, err := os.ReadFile(path)
			rel, _ := filepath.Rel(root, path)
			out[filepath.Join(e.Name(), rel)] = fmt.Sprintf("%o %s", info.Mode().Perm(), data)
			return err
		}); err != nil {
			r.t.Fatal(err)
		}
	}
	return out
}

func ptr[T any](v T) *T { return &v }

func TestContents(t *testing.T) {
	cm := func(items []corev1.KeyToPath, mode *int32) corev1.VolumeSource {
		return corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "cm"}, Items: items, DefaultMode: mode}}
	}
	for name, c := range map[string]struct {
		src  corev1.VolumeSource
		want map[string]string
		err  string
	}{
		"config map":          {cm(nil, nil), map[string]string{"a": "644 1", "b": "644 2", "bin": "644 \x00\xff"}, ""},
		"items and modes":     {cm([]corev1.KeyToPath{{Key: "a", Path: "x/y/z"}, {Key: "b", Path: "w", Mode: ptr(int32(0o400))}}, ptr(int32(0o600))), map[string]string{"x/y/z": "600 1", "w": "400 2"}, ""},
		"no such key":         {cm([]corev1.KeyToPath{{Key: "none", Path: "x"}}, nil), nil, "references non-existent key: none"},
		"path out":            {cm([]corev1.KeyToPath{{Key: "a", Path: "../x"}}, nil), nil, "leads out of the volume"},
		"path in disguise":    {cm([]corev1.KeyToPath{{Key: "a", Path: "..data"}}, nil), nil, "leads out of the volume"},
		"absolute path":       {cm([]corev1.KeyToPath{{Key: "a", Path: "/etc/x"}}, nil), nil, "leads out of the volume"},
		"absent":              {corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "none"}}}, nil, `volume "v": configmaps "none" not found`},
		"absent, optional":    {corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "none"}, Optional: ptr(true)}}, map[string]string{}, ""},
		"secret":              {corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s", DefaultMode: ptr(int32(0o400))}}, map[string]string{"p": "400 word"}, ""},
		"no answer, optional": {corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "broken", Optional: ptr(true)}}, nil, "no answer"},
		"downward": {corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{
			{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}}, {Path: "cpu", ResourceFieldRef: &corev1.ResourceFieldSelector{ContainerName: "c", Resource: "limits.cpu"}},
		}}}, map[string]string{"labels": "644 l=\"v\"", "cpu": "644 4"}, ""},
		"projected": {corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{DefaultMode: ptr(int32(0o440)), Sources: []corev1.VolumeProjection{
			{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "cm"}, Items: []corev1.KeyToPath{{Key: "a", Path: "a"}}}},
			{Secret: &corev1.SecretProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "s"}}},
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", Audience: "x"}},
		}}}, map[string]string{"a": "440 1", "p": "440 word", "token": "440 token 1 for [x]"}, ""},
		"unknown projection": {corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{}}}}, nil, "not supported"},
		"unknown type":       {corev1.VolumeSource{NFS: &corev1.NFSVolumeSource{}}, nil, "not supported"},
		"unknown medium":     {corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: "HugePages"}}, nil, "not supported"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			dir, _, err := r.setup(c.src)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("%v, want %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := r.tree(dir); !maps.Equal(got, c.want) {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

// A change shows at once and whole: the old content is there until one link is moved.
func TestChange(t *testing.T) {
	r := newRig(t)
	src := corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "cm"}}}
	dir, _, err := r.setup(src)
	if err != nil {
		t.Fatal(err)
	}
	first, _ := os.Readlink(filepath.Join(dir, dataLink))
	if _, _, err = r.setup(src); err != nil {
		t.Fatal(err)
	}
	if again, _ := os.Readlink(filepath.Join(dir, dataLink)); again != first {
		t.Error("written anew though nothing changed")
	}
	r.data = map[string]string{"a": "new", "c": "3"}
	if _, _, err = r.setup(src); err != nil {
		t.Fatal(err)
	}
	if got, want := r.tree(dir), map[string]string{"a": "644 new", "c": "644 3", "bin": "644 \x00\xff"}; !maps.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if _, err := os.Stat(filepath.Join(dir, first)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the old content is left: %v", err)
	}
}

func TestTokenGrowsOld(t *testing.T) {
	r := newRig(t)
	src := corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}}}}}
	_, refresh, err := r.setup(src)
	if err != nil || time.Until(refresh) < 40*time.Minute || time.Until(refresh) > 49*time.Minute {
		t.Errorf("refresh at %s, %v: want after 80 %% of an hour", refresh, err)
	}
	if r.setup(src); r.tokens != 1 {
		t.Errorf("%d tokens were asked for", r.tokens)
	}
	if err := r.Teardown("u"); err != nil {
		t.Fatal(err)
	}
	r.life = -time.Second
	r.setup(src)
	if r.setup(src); r.tokens != 3 {
		t.Errorf("%d tokens, want a new one for one that is old", r.tokens)
	}
}

func TestOwnership(t *testing.T) {
	r := newRig(t)
	r.pod.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: ptr(int64(4242))}
	dir, _, err := r.setup(corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s", DefaultMode: ptr(int32(0o400))}})
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "p"), &st); err != nil || st.Gid != 4242 || st.Mode&0o777 != 0o440 {
		t.Errorf("group %d mode %o, %v", st.Gid, st.Mode, err)
	}
	if dir, _, err = r.setup(corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Stat(dir, &st); err != nil || st.Gid != 4242 || st.Mode&0o7777 != 0o2777 {
		t.Errorf("group %d mode %o, %v", st.Gid, st.Mode, err)
	}
}

func TestInMemory(t *testing.T) {
	r := newRig(t)
	dir, _, err := r.setup(corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: ptr(resource.MustParse("1Mi"))}})
	if err != nil {
		t.Fatal(err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil || fs.Type != unix.TMPFS_MAGIC || fs.Blocks*uint64(fs.Bsize) != 1<<20 {
		t.Errorf("type %x, %d bytes, %v", fs.Type, fs.Blocks*uint64(fs.Bsize), err)
	}
}

func TestHostPath(t *testing.T) {
	r := newRig(t)
	base := t.TempDir()
	if err := os.WriteFile(filepath.Join(base, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		kind corev1.HostPathType
		path string
		ok   bool
	}{
		{corev1.HostPathUnset, "file", true}, {corev1.HostPathDirectory, "", true}, {corev1.HostPathDirectory, "file", false}, {corev1.HostPathDirectory, "none", false}, {corev1.HostPathDirectoryOrCreate, "made/deep", true},
		{corev1.HostPathFile, "file", true}, {corev1.HostPathFile, "", false}, {corev1.HostPathFileOrCreate, "madefile", true}, {corev1.HostPathFileOrCreate, "no/parent", false},
		{corev1.HostPathSocket, "file", false}, {corev1.HostPathCharDev, "/dev/null", true}, {corev1.HostPathBlockDev, "/dev/null", false},
	} {
		path := c.path
		if !filepath.IsAbs(path) {
			path = filepath.Join(base, path)
		}
		got, _, err := r.setup(corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path, Type: &c.kind}})
		if (err == nil) != c.ok || c.ok && got != path {
			t.Errorf("%s %s: %q, %v", c.kind, c.path, got, err)
		}
	}
}

func TestSubPath(t *testing.T) {
	r := newRig(t)
	root := filepath.Join(t.TempDir(), "volume")
	for _, dir := range []string{"in/deep", "../outside"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{"abs": "/", "up": "../outside", "loop": "loop", "inner": "in"} {
		if err := os.Symlink(to, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "file"), []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	ino := func(path string) (n uint64) {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		return st.Ino
	}
	for i, c := range []struct{ sub, shows, err string }{
		{"in/deep", "in/deep", ""}, {"inner/deep", "in/deep", ""}, {"file", "file", ""}, {"made/here", "made/here", ""}, {"abs/in", "in", ""}, {"abs/etc", "etc", ""}, {"up", "", "not a directory"},
		{"..", "", `must not contain ".."`}, {"a/../../x", "", `must not contain ".."`}, {"/etc", "", "absolute"}, {"loop", "", "too many"}, {"file/x", "", "not a directory"},
	} {
		got, err := r.SubPath("u", "v", root, c.sub, "c", i)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %q, %v, want %q", c.sub, got, err, c.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.sub, err)
			continue
		}
		if ino(got) != ino(filepath.Join(root, c.shows)) {
			t.Errorf("%s does not show %s", c.sub, c.shows)
		}
		// Another incarnation of the container gets it anew.
		if again, err := r.SubPath("u", "v", root, c.sub, "c", i); err != nil || again != got || ino(got) != ino(filepath.Join(root, c.shows)) {
			t.Errorf("%s again: %q, %v", c.sub, again, err)
		}
	}
}

// A full disk is told, and gets over when there is room.
func TestDiskFull(t *testing.T) {
	r := newRig(t)
	if err := os.MkdirAll(r.PodDir("u"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", r.PodDir("u"), "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	r.data = map[string]string{"big": strings.Repeat("x", 200_000)}
	src := corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "cm"}}}
	if _, _, err := r.setup(src); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "no space left on device") {
		t.Errorf("%v", err)
	}
	r.data = map[string]string{"small": "x"}
	dir, _, err := r.setup(src)
	if err != nil {
		t.Fatal(err)
	}
	if got := slices.Sorted(maps.Keys(r.tree(dir))); !slices.Equal(got, []string{"bin", "small"}) {
		t.Errorf("%q", got)
	}
	if err := unix.Unmount(r.PodDir("u"), 0); err != nil {
		t.Fatal(err)
	}
}
