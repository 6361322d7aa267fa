// Package volumes makes a pod's volumes on the node and takes them away again.
//
// What comes from the API (configMap, secret, downwardAPI, projected) is written
// by swapping one symbolic link, so that a reader sees the old files or the new
// ones, never a mixture; it is written anew when the objects change.
package volumes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	"golang.org/x/sys/unix"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	mount "k8s.io/mount-utils"

	"github.com/strake-io/strake/kubelet/env"
)

// Sources are what volumes are made of; the pod is the one that asks.
type Sources struct {
	ConfigMap func(ctx context.Context, pod *corev1.Pod, name string) (*corev1.ConfigMap, error)
	Secret    func(ctx context.Context, pod *corev1.Pod, name string) (*corev1.Secret, error)
	// Token asks for a token of the pod's ServiceAccount, bound to the pod.
	Token func(ctx context.Context, pod *corev1.Pod, req authenticationv1.TokenRequestSpec) (string, time.Time, error)
	Node  corev1.ResourceList
	// Claim and Volume read what a pod's claims are bound to.
	Claim  func(ctx context.Context, pod *corev1.Pod, name string) (*corev1.PersistentVolumeClaim, error)
	Volume func(ctx context.Context, name string) (*corev1.PersistentVolume, error)
}

// Manager keeps the volumes below Root/UID/volumes.
type Manager struct {
	root, localRoot string
	src             Sources
	mounter         mount.Interface

	mu     sync.Mutex
	tokens map[types.UID]map[string]token

	locals   sync.Mutex // held while it is settled who has a local volume, never while its data is gone through
	removals singleflight.Group
}

type token struct {
	value   string
	refresh time.Time
}

// New returns a manager whose pods have their folders below root; the local volumes that are made here are in localRoot.
func New(root, localRoot string, src Sources) *Manager {
	return &Manager{root: root, localRoot: localRoot, src: src, mounter: mount.New(""), tokens: map[types.UID]map[string]token{}}
}

// PodDir is the folder of one pod.
func (m *Manager) PodDir(uid types.UID) string { return filepath.Join(m.root, string(uid)) }

// Setup makes all volumes of the pod, or brings them up to date, and returns where they are, by name. refresh is
// when it should be called again because a token grows old; zero: only when an object changes.
func (m *Manager) Setup(ctx context.Context, pod *corev1.Pod) (paths map[string]string, refresh time.Time, err error) {
	paths = map[string]string{}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		path, again, err := m.setup(ctx, pod, v)
		if err != nil {
			return nil, time.Time{}, fmt.Errorf("volume %q: %w", v.Name, err)
		}
		paths[v.Name] = path
		if !again.IsZero() && (refresh.IsZero() || again.Before(refresh)) {
			refresh = again
		}
	}
	return paths, refresh, nil
}

func (m *Manager) setup(ctx context.Context, pod *corev1.Pod, v *corev1.Volume) (string, time.Time, error) {
	var none time.Time
	dir := filepath.Join(m.PodDir(pod.UID), "volumes", v.Name)
	switch {
	case v.HostPath != nil:
		return v.HostPath.Path, none, checkHostPath(v.HostPath)
	case v.EmptyDir != nil:
		return dir, none, m.emptyDir(pod, v.EmptyDir, dir)
	case v.ConfigMap != nil:
		files, err := m.configMap(ctx, pod, &v.ConfigMap.LocalObjectReference, v.ConfigMap.Items, v.ConfigMap.DefaultMode, v.ConfigMap.Optional)
		return dir, none, m.write(pod, dir, files, err)
	case v.Secret != nil:
		files, err := m.secret(ctx, pod, v.Secret.SecretName, v.Secret.Items, v.Secret.DefaultMode, v.Secret.Optional)
		return dir, none, m.inMemory(pod, dir, files, err)
	case v.DownwardAPI != nil:
		files, err := m.downward(pod, v.DownwardAPI.Items, v.DownwardAPI.DefaultMode)
		return dir, none, m.inMemory(pod, dir, files, err)
	case v.Projected != nil:
		files, again, err := m.projected(ctx, pod, v.Projected)
		return dir, again, m.inMemory(pod, dir, files, err)
	case v.PersistentVolumeClaim != nil, v.Ephemeral != nil:
		path, err := m.persistent(ctx, pod, v)
		return path, none, err
	}
	return "", none, errors.New("its type is not supported here (supported: configMap, secret, projected, downwardAPI, emptyDir, hostPath, persistentVolumeClaim, ephemeral)")
}

// checkHostPath follows the meanings of HostPathType.
func checkHostPath(h *corev1.HostPathVolumeSource) error {
	kind := corev1.HostPathUnset
	if h.Type != nil {
		kind = *h.Type
	}
	info, err := os.Stat(h.Path)
	if errors.Is(err, fs.ErrNotExist) {
		switch kind {
		case corev1.HostPathUnset:
			return os.MkdirAll(h.Path, 0o755) // what the container runtime would do
		case corev1.HostPathDirectoryOrCreate:
			return os.MkdirAll(h.Path, 0o755)
		case corev1.HostPathFileOrCreate:
			f, err := os.OpenFile(h.Path, os.O_CREATE|os.O_RDONLY, 0o644)
			if err != nil {
				return err
			}
			return f.Close()
		}
	}
	if err != nil {
		return fmt.Errorf("hostPath type check failed: %w", err)
	}
	ok := true
	switch mode := info.Mode(); kind {
	case corev1.HostPathDirectory, corev1.HostPathDirectoryOrCreate:
		ok = mode.IsDir()
	case corev1.HostPathFile, corev1.HostPathFileOrCreate:
		ok = mode.IsRegular()
	case corev1.HostPathSocket:
		ok = mode&fs.ModeSocket != 0
	case corev1.HostPathCharDev:
		ok = mode&fs.ModeCharDevice != 0
	case corev1.HostPathBlockDev:
		ok = mode&fs.ModeDevice != 0 && mode&fs.ModeCharDevice == 0
	}
	if !ok {
		return fmt.Errorf("hostPath type check failed: %s is not a %s", h.Path, kind)
	}
	return nil
}

func (m *Manager) emptyDir(pod *corev1.Pod, e *corev1.EmptyDirVolumeSource, dir string) error {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	switch e.Medium {
	case corev1.StorageMediumDefault:
	case corev1.StorageMediumMemory:
		size := int64(0)
		if e.SizeLimit != nil {
			size = e.SizeLimit.Value()
		}
		if err := m.tmpfs(dir, size); err != nil {
			return err
		}
	default:
		return fmt.Errorf("the emptyDir's medium %q is not supported here (supported: the default, Memory)", e.Medium)
	}
	if err := os.Chmod(dir, 0o777); err != nil { // whatever the umask
		return err
	}
	return own(pod, dir, 0o2777)
}

// tmpfs has a folder in memory, if it is not yet; size in bytes, zero: without limit.
func (m *Manager) tmpfs(dir string, size int64) error {
	mounted, err := m.mounter.IsMountPoint(dir)
	if err != nil || mounted {
		return err
	}
	options := []string{"nosuid", "nodev"}
	if size > 0 {
		options = append(options, fmt.Sprintf("size=%d", size))
	}
	if err := m.mounter.Mount("tmpfs", dir, "tmpfs", options); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	return nil
}

// inMemory is write to a file system in memory: what may be secret never gets onto a disk.
func (m *Manager) inMemory(pod *corev1.Pod, dir string, files map[string]file, err error) error {
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := m.tmpfs(dir, 0); err != nil {
		return err
	}
	return m.write(pod, dir, files, nil)
}

// own gives a path to the pod's fsGroup.
func own(pod *corev1.Pod, path string, mode uint32) error {
	sc := pod.Spec.SecurityContext
	if sc == nil || sc.FSGroup == nil {
		return nil
	}
	if err := os.Lchown(path, -1, int(*sc.FSGroup)); err != nil {
		return err
	}
	if mode != 0 {
		return unix.Chmod(path, mode)
	}
	return nil
}

// file is the content of one file of a volume.
type file struct {
	data []byte
	mode int32
}

func (m *Manager) configMap(ctx context.Context, pod *corev1.Pod, ref *corev1.LocalObjectReference, items []corev1.KeyToPath, mode *int32, optional *bool) (map[string]file, error) {
	cm, err := m.src.ConfigMap(ctx, pod, ref.Name)
	if err != nil {
		if apierrors.IsNotFound(err) && optional != nil && *optional {
			return nil, nil
		}
		return nil, err
	}
	data := map[string][]byte{}
	for k, v := range cm.Data {
		data[k] = []byte(v)
	}
	for k, v := range cm.BinaryData {
		data[k] = v
	}
	return pick(data, items, mode, optional, "configmap "+ref.Name)
}

func (m *Manager) secret(ctx context.Context, pod *corev1.Pod, name string, items []corev1.KeyToPath, mode *int32, optional *bool) (map[string]file, error) {
	s, err := m.src.Secret(ctx, pod, name)
	if err != nil {
		if apierrors.IsNotFound(err) && optional != nil && *optional {
			return nil, nil
		}
		return nil, err
	}
	return pick(s.Data, items, mode, optional, "secret "+name)
}

// pick chooses keys and paths.
func pick(data map[string][]byte, items []corev1.KeyToPath, mode *int32, optional *bool, what string) (map[string]file, error) {
	base := int32(0o644)
	if mode != nil {
		base = *mode
	}
	out := map[string]file{}
	if len(items) == 0 {
		for k, v := range data {
			out[k] = file{v, base}
		}
		return out, nil
	}
	for _, item := range items {
		v, ok := data[item.Key]
		if !ok {
			if optional != nil && *optional {
				continue
			}
			return nil, fmt.Errorf("%s references non-existent key: %s", what, item.Key)
		}
		f := file{v, base}
		if item.Mode != nil {
			f.mode = *item.Mode
		}
		out[item.Path] = f
	}
	return out, nil
}

func (m *Manager) downward(pod *corev1.Pod, items []corev1.DownwardAPIVolumeFile, mode *int32) (map[string]file, error) {
	base := int32(0o644)
	if mode != nil {
		base = *mode
	}
	out := map[string]file{}
	for _, item := range items {
		f := file{mode: base}
		if item.Mode != nil {
			f.mode = *item.Mode
		}
		var text string
		var err error
		if item.FieldRef != nil {
			text, err = env.Field(pod, item.FieldRef.FieldPath, nil, nil)
		} else if item.ResourceFieldRef != nil {
			text, err = env.Resource(pod, nil, item.ResourceFieldRef, m.src.Node)
		}
		if err != nil {
			return nil, err
		}
		f.data = []byte(text)
		out[item.Path] = f
	}
	return out, nil
}

func (m *Manager) projected(ctx context.Context, pod *corev1.Pod, p *corev1.ProjectedVolumeSource) (map[string]file, time.Time, error) {
	out := map[string]file{}
	var again time.Time
	for _, src := range p.Sources {
		var files map[string]file
		var err error
		switch {
		case src.ConfigMap != nil:
			files, err = m.configMap(ctx, pod, &src.ConfigMap.LocalObjectReference, src.ConfigMap.Items, p.DefaultMode, src.ConfigMap.Optional)
		case src.Secret != nil:
			files, err = m.secret(ctx, pod, src.Secret.Name, src.Secret.Items, p.DefaultMode, src.Secret.Optional)
		case src.DownwardAPI != nil:
			files, err = m.downward(pod, src.DownwardAPI.Items, p.DefaultMode)
		case src.ServiceAccountToken != nil:
			var t token
			if t, err = m.token(ctx, pod, src.ServiceAccountToken); err == nil {
				mode := int32(0o644)
				if p.DefaultMode != nil {
					mode = *p.DefaultMode
				}
				// A token is readable by the pod's group only, if it has one.
				if sc := pod.Spec.SecurityContext; sc != nil && sc.FSGroup != nil {
					mode = 0o640
				}
				files = map[string]file{src.ServiceAccountToken.Path: {[]byte(t.value), mode}}
				if again.IsZero() || t.refresh.Before(again) {
					again = t.refresh
				}
			}
		default:
			err = errors.New("a projected source of this kind is not supported here")
		}
		if err != nil {
			return nil, again, err
		}
		for k, f := range files {
			out[k] = f
		}
	}
	return out, again, nil
}

// token returns the current token of a projection, a new one once 80 % of its life is over.
func (m *Manager) token(ctx context.Context, pod *corev1.Pod, p *corev1.ServiceAccountTokenProjection) (token, error) {
	key := p.Audience + "/" + p.Path
	m.mu.Lock()
	t, ok := m.tokens[pod.UID][key]
	m.mu.Unlock()
	if ok && time.Now().Before(t.refresh) {
		return t, nil
	}
	req := authenticationv1.TokenRequestSpec{
		ExpirationSeconds: p.ExpirationSeconds,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID},
	}
	if p.Audience != "" {
		req.Audiences = []string{p.Audience}
	}
	value, expires, err := m.src.Token(ctx, pod, req)
	if err != nil {
		return token{}, fmt.Errorf("token of ServiceAccount %s: %w", pod.Spec.ServiceAccountName, err)
	}
	t = token{value: value, refresh: time.Now().Add(time.Until(expires) * 8 / 10)}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.tokens[pod.UID] == nil {
		m.tokens[pod.UID] = map[string]token{}
	}
	m.tokens[pod.UID][key] = t
	return t, nil
}

// Teardown unmounts and removes everything of a pod. It may be called again.
func (m *Manager) Teardown(uid types.UID) error {
	dir := m.PodDir(uid)
	points, err := m.mounter.List()
	if err != nil {
		return fmt.Errorf("volumes of pod %s: %w", uid, err)
	}
	for i := len(points) - 1; i >= 0; i-- {
		if rel, err := filepath.Rel(dir, points[i].Path); err == nil && filepath.IsLocal(rel) && rel != "." {
			if err := m.mounter.Unmount(points[i].Path); err != nil {
				return fmt.Errorf("volumes of pod %s: %w", uid, err)
			}
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("volumes of pod %s: %w", uid, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.tokens, uid)
	return nil
}

// Pods lists the UIDs that have folders, to find those of pods that are gone.
func (m *Manager) Pods() []types.UID {
	entries, err := os.ReadDir(m.root)
	if err != nil {
		return nil
	}
	var out []types.UID
	for _, e := range entries {
		out = append(out, types.UID(e.Name()))
	}
	return out
}
