package volumes

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cyphar/filepath-securejoin/pathrs-lite"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"
)

// SubPath makes a place of ours that shows what lies at sub inside of a volume, for the n-th mount of a container, and
// returns it. A folder is made where nothing is. Whatever links a container put into the volume, or puts there while
// this runs: what is shown lies inside, for it is bound by a descriptor that was opened step by step.
func (m *Manager) SubPath(uid types.UID, volume, root, sub, container string, n int) (string, error) {
	if filepath.IsAbs(sub) {
		return "", fmt.Errorf("subPath %q must not be an absolute path", sub)
	}
	for _, part := range strings.Split(filepath.ToSlash(sub), "/") {
		if part == ".." {
			return "", fmt.Errorf("subPath %q must not contain \"..\"", sub)
		}
	}
	source, err := pathrs.OpenInRoot(root, sub)
	if errors.Is(err, fs.ErrNotExist) {
		if err = pathrs.MkdirAll(root, sub, 0o755); err == nil {
			source, err = pathrs.OpenInRoot(root, sub)
		}
	}
	if err != nil {
		return "", fmt.Errorf("subPath %q: %w", sub, err)
	}
	defer source.Close()
	info, err := source.Stat()
	if err != nil {
		return "", fmt.Errorf("subPath %q: %w", sub, err)
	}
	target := filepath.Join(m.PodDir(uid), "volume-subpaths", volume, container, strconv.Itoa(n))
	if err := m.place(target, info.IsDir()); err != nil {
		return "", fmt.Errorf("subPath %q: %w", sub, err)
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", source.Fd()), target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return "", fmt.Errorf("subPath %q: bind to %s: %w", sub, target, err)
	}
	return target, nil
}

// place makes an empty folder or file to mount on; what a former incarnation of the container had there goes.
func (m *Manager) place(target string, dir bool) error {
	for {
		err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", target, err)
		}
	}
	if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if dir {
		return os.MkdirAll(target, 0o750)
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		return err
	}
	return os.WriteFile(target, nil, 0o640)
}
