package volumes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/component-helpers/storage/ephemeral"
	"k8s.io/component-helpers/storage/volume"
	"k8s.io/klog/v2"
)

const (
	// LocalProvisioner makes volumes that are folders of a node. They are made here, when the first pod mounts one.
	LocalProvisioner = "strake.io/local"
	// LocalAnnotation is what a node tells its folder of such volumes by.
	LocalAnnotation = "strake.io/local-volumes"

	claimsDir = "claims"    // in a pod's folder: links to the volumes of its claims
	reserved  = ".reserved" // behind a volume's name, which has no dot
	goingDir  = ".going"    // in the folder of local volumes, whose names don't begin with a dot: what is being removed
	newDir    = ".new"      // the same: what is being made
)

// ErrInUse tells that pods of this node still have a volume.
var ErrInUse = errors.New("the volume is in use")

// persistent returns where the volume of a claim is. It is prepared once for each pod: what a claim is bound to does not change, and what
// a pod's containers made of the modes in it is theirs.
//
// A link in the pod's folder tells that the pod has the volume, also after an end of this process: under the volume's name once all is done,
// and before under that name with reserved behind it.
func (m *Manager) persistent(ctx context.Context, pod *corev1.Pod, v *corev1.Volume) (string, error) {
	claims := filepath.Join(m.PodDir(pod.UID), claimsDir)
	done := filepath.Join(claims, v.Name)
	if path, err := os.Readlink(done); err == nil {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	pv, err := m.claimed(ctx, pod, v)
	if err != nil {
		return "", err
	}
	if mode := pv.Spec.VolumeMode; mode != nil && *mode != corev1.PersistentVolumeFilesystem {
		return "", fmt.Errorf("volume %s: volumeMode %s is not supported here", pv.Name, *mode)
	}
	var path string
	switch s := &pv.Spec.PersistentVolumeSource; {
	case s.HostPath != nil:
		if path, err = s.HostPath.Path, checkHostPath(s.HostPath); err == nil {
			err = m.reserve(claims, v.Name, path)
		}
	case s.Local != nil:
		path = s.Local.Path
		if err = m.reserve(claims, v.Name, path); err == nil {
			if err = m.local(pv); err == nil {
				err = ownTree(ctx, pod, path)
			}
		}
	default:
		err = errors.New("its type is not supported here (supported: local, hostPath)")
	}
	if err == nil {
		err = os.Rename(done+reserved, done)
	}
	if err != nil {
		return "", fmt.Errorf("volume %s: %w", pv.Name, err)
	}
	return path, nil
}

// reserve notes that a pod, whose links are in claims, has the volume at path: from now on RemoveLocal leaves it alone.
func (m *Manager) reserve(claims, name, path string) error {
	m.locals.Lock()
	defer m.locals.Unlock()
	if err := os.MkdirAll(claims, 0o750); err != nil {
		return err
	}
	link := filepath.Join(claims, name+reserved)
	if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Symlink(path, link)
}

// claimed is the volume that a pod's claim is bound to.
func (m *Manager) claimed(ctx context.Context, pod *corev1.Pod, v *corev1.Volume) (*corev1.PersistentVolume, error) {
	var name string
	if v.PersistentVolumeClaim != nil {
		name = v.PersistentVolumeClaim.ClaimName
	} else {
		name = ephemeral.VolumeClaimName(pod, v)
	}
	claim, err := m.src.Claim(ctx, pod, name)
	if err != nil {
		return nil, fmt.Errorf("claim %s: %w", name, err)
	}
	if v.Ephemeral != nil {
		if err := ephemeral.VolumeIsForPod(pod, claim); err != nil {
			return nil, err
		}
	}
	if claim.Status.Phase != corev1.ClaimBound || claim.Spec.VolumeName == "" {
		return nil, fmt.Errorf("claim %s is not bound", name)
	}
	pv, err := m.src.Volume(ctx, claim.Spec.VolumeName)
	if err != nil {
		return nil, fmt.Errorf("volume %s of claim %s: %w", claim.Spec.VolumeName, name, err)
	}
	if pv.Spec.ClaimRef == nil || pv.Spec.ClaimRef.UID != claim.UID {
		return nil, fmt.Errorf("volume %s is not bound to claim %s", pv.Name, name)
	}
	return pv, nil
}

// local sees to the folder of a local volume. One of our own provisioner is made, where nobody but root gets past the folder above; others
// are there.
func (m *Manager) local(pv *corev1.PersistentVolume) error {
	path := pv.Spec.Local.Path
	if pv.Annotations[volume.AnnDynamicallyProvisioned] == LocalProvisioner && path == filepath.Join(m.localRoot, pv.Name) {
		return m.makeLocal(path)
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is no folder, and block devices are not supported here", path)
	}
	return nil
}

// makeLocal makes the folder at path, if it is not there yet. It gets its name last: what has the name is ready, wherever this process ended.
func (m *Manager) makeLocal(path string) error {
	m.locals.Lock()
	defer m.locals.Unlock()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(m.localRoot, 0o700); err != nil {
		return err
	}
	fresh := filepath.Join(m.localRoot, newDir)
	if err := os.Mkdir(fresh, 0o777); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := os.Chmod(fresh, 0o777); err != nil { // whatever the umask
		return err
	}
	return os.Rename(fresh, path)
}

// RemoveLocal removes the data of a local volume that was made here, or nothing if there is none. With the end of ctx it stops waiting, and the
// removal goes on: who asks again waits for the same.
func (m *Manager) RemoveLocal(ctx context.Context, name string) error {
	if bad := validation.IsDNS1123Subdomain(name); len(bad) > 0 {
		return fmt.Errorf("volume %q: %s", name, bad[0])
	}
	select {
	case r := <-m.removals.DoChan(name, func() (any, error) { return nil, m.removeLocal(name) }):
		if r.Err != nil {
			return fmt.Errorf("volume %s: %w", name, r.Err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("volume %s: its data is still being removed: %w", name, context.Cause(ctx))
	}
}

// removeLocal puts the folder aside while no pod can get it, and removes it where it is in nobody's way.
func (m *Manager) removeLocal(name string) error {
	aside := filepath.Join(m.localRoot, goingDir, name)
	if err := os.RemoveAll(aside); err != nil { // what an end of this process left
		return err
	}
	there, err := m.putAside(filepath.Join(m.localRoot, name), aside)
	if err != nil || !there {
		return err
	}
	return os.RemoveAll(aside)
}

// putAside gives an unused volume's folder another name. It tells whether there is one.
func (m *Manager) putAside(path, aside string) (bool, error) {
	m.locals.Lock()
	defer m.locals.Unlock()
	if _, err := os.Lstat(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return false, err
	}
	for _, uid := range m.Pods() {
		claims := filepath.Join(m.PodDir(uid), claimsDir)
		links, err := os.ReadDir(claims)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
		for _, link := range links {
			if at, err := os.Readlink(filepath.Join(claims, link.Name())); err == nil && at == path {
				return false, fmt.Errorf("pod %s: %w", uid, ErrInUse)
			}
		}
	}
	if err := os.MkdirAll(filepath.Dir(aside), 0o700); err != nil {
		return false, err
	}
	return true, os.Rename(path, aside)
}

// Sweep removes what removals left when this process ended in their midst. It returns when that is done, or ctx ends.
func (m *Manager) Sweep(ctx context.Context) {
	entries, err := os.ReadDir(filepath.Join(m.localRoot, goingDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		klog.ErrorS(err, "Data of removed volumes may be left")
	}
	for _, e := range entries {
		if ctx.Err() != nil {
			return
		}
		aside := filepath.Join(m.localRoot, goingDir, e.Name())
		select {
		// The name cannot be that of a removal that somebody waits for: a volume of the same name may have come since.
		case r := <-m.removals.DoChan(goingDir+"/"+e.Name(), func() (any, error) { return nil, os.RemoveAll(aside) }):
			if r.Err != nil {
				klog.ErrorS(r.Err, "Data of a removed volume is left", "volume", e.Name())
			}
		case <-ctx.Done():
		}
	}
}
