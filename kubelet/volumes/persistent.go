package volumes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/component-helpers/storage/ephemeral"
	"k8s.io/component-helpers/storage/volume"
)

const (
	// LocalProvisioner makes volumes that are folders of a node. They are made here, when the first pod mounts one.
	LocalProvisioner = "strake.io/local"
	// LocalAnnotation is what a node tells its folder of such volumes by.
	LocalAnnotation = "strake.io/local-volumes"
)

// ErrInUse tells that pods of this node still have a volume.
var ErrInUse = errors.New("the volume is in use")

// persistent returns where the volume of a claim is. It is asked once for each pod: what a claim is bound to does not change.
func (m *Manager) persistent(ctx context.Context, pod *corev1.Pod, v *corev1.Volume) (string, error) {
	m.mu.Lock()
	path, ok := m.mounted[pod.UID][v.Name]
	m.mu.Unlock()
	if ok {
		return path, nil
	}
	pv, err := m.claimed(ctx, pod, v)
	if err != nil {
		return "", err
	}
	if mode := pv.Spec.VolumeMode; mode != nil && *mode != corev1.PersistentVolumeFilesystem {
		return "", fmt.Errorf("volume %s: volumeMode %s is not supported here", pv.Name, *mode)
	}
	switch s := &pv.Spec.PersistentVolumeSource; {
	case s.HostPath != nil:
		path, err = s.HostPath.Path, checkHostPath(s.HostPath)
	case s.Local != nil:
		if path, err = m.local(pv); err == nil {
			err = ownTree(pod, path)
		}
	default:
		err = errors.New("its type is not supported here (supported: local, hostPath)")
	}
	if err != nil {
		return "", fmt.Errorf("volume %s: %w", pv.Name, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mounted[pod.UID] == nil {
		m.mounted[pod.UID] = map[string]string{}
	}
	m.mounted[pod.UID][v.Name] = path
	return path, nil
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

// local is the folder of a local volume. One of our own provisioner is made, where nobody but root gets past the folder above; others are there.
func (m *Manager) local(pv *corev1.PersistentVolume) (string, error) {
	path := pv.Spec.Local.Path
	if pv.Annotations[volume.AnnDynamicallyProvisioned] == LocalProvisioner && path == filepath.Join(m.localRoot, pv.Name) {
		if err := os.MkdirAll(m.localRoot, 0o700); err != nil {
			return "", err
		}
		err := os.Mkdir(path, 0o777)
		if err == nil {
			err = os.Chmod(path, 0o777) // whatever the umask
		}
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return "", err
		}
		return path, nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if !info.IsDir() {
		return "", fmt.Errorf("%s is no folder, and block devices are not supported here", path)
	}
	return path, nil
}

// ownTree gives a volume's files to the pod's fsGroup, as fsGroupChangePolicy says.
func ownTree(pod *corev1.Pod, root string) error {
	sc := pod.Spec.SecurityContext
	if sc == nil || sc.FSGroup == nil {
		return nil
	}
	group := int(*sc.FSGroup)
	const folderMode, fileMode = 0o2770, 0o660 // setgid, so that new files are the group's too
	if p := sc.FSGroupChangePolicy; p != nil && *p == corev1.FSGroupChangeOnRootMismatch {
		var st unix.Stat_t
		if err := unix.Stat(root, &st); err != nil {
			return err
		}
		if int(st.Gid) == group && st.Mode&folderMode == folderMode {
			return nil
		}
	}
	// The root comes last: it tells that all the others are done.
	var paths []string
	if err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		paths = append(paths, path)
		return err
	}); err != nil {
		return err
	}
	for _, path := range slices.Backward(paths) {
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		if err := os.Lchown(path, -1, group); err != nil {
			return err
		}
		mode := uint32(info.Mode().Perm())
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			continue
		case info.IsDir():
			mode |= folderMode
		default:
			mode |= fileMode
		}
		if err := unix.Chmod(path, mode); err != nil {
			return err
		}
	}
	return nil
}

// RemoveLocal removes the data of a local volume that was made here, or nothing if there is none.
func (m *Manager) RemoveLocal(name string) error {
	if bad := validation.IsDNS1123Subdomain(name); len(bad) > 0 {
		return fmt.Errorf("volume %q: %s", name, bad[0])
	}
	path := filepath.Join(m.localRoot, name)
	m.mu.Lock()
	defer m.mu.Unlock() // no pod gets it meanwhile
	for uid, volumes := range m.mounted {
		for _, at := range volumes {
			if at == path {
				return fmt.Errorf("volume %s: pod %s: %w", name, uid, ErrInUse)
			}
		}
	}
	if err := os.RemoveAll(path); err != nil {
		return fmt.Errorf("volume %s: %w", name, err)
	}
	return nil
}
