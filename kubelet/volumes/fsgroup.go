package volumes

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"syscall"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// What an fsGroup may do with the folders and files of a volume; setgid, so that new files are the group's too.
const folderMode, fileMode = 0o770 | fs.ModeSetgid, fs.FileMode(0o660)

// ownTree gives a volume's files to the pod's fsGroup, as fsGroupChangePolicy says. Others may have the volume and change it meanwhile: no
// link that they make leads out of it, and what they remove is not missed.
func ownTree(ctx context.Context, pod *corev1.Pod, folder string) error {
	sc := pod.Spec.SecurityContext
	if sc == nil || sc.FSGroup == nil {
		return nil
	}
	group := int(*sc.FSGroup)
	root, err := os.OpenRoot(folder)
	if err != nil {
		return err
	}
	defer root.Close()
	if p := sc.FSGroupChangePolicy; p != nil && *p == corev1.FSGroupChangeOnRootMismatch {
		info, err := root.Lstat(".")
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Gid) == group && info.Mode()&folderMode == folderMode {
			return nil
		}
	}
	return ownBelow(ctx, root, ".", group)
}

// ownBelow is ownTree of what is at name. A folder comes after what is in it, so that the root tells that all the others are done.
func ownBelow(ctx context.Context, root *os.Root, name string, group int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	info, err := root.Lstat(name)
	if err == nil && info.IsDir() {
		var entries []string
		if entries, err = folderNames(root, name); err != nil {
			return err
		}
		for _, e := range entries {
			if err := ownBelow(ctx, root, path.Join(name, e), group); err != nil {
				return err
			}
		}
	}
	if err == nil {
		err = root.Lchown(name, -1, group)
	}
	if err == nil && info.Mode()&fs.ModeSymlink == 0 {
		mode := info.Mode().Perm() | fileMode
		if info.IsDir() {
			mode = info.Mode().Perm() | folderMode
		}
		err = root.Chmod(name, mode)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// folderNames are the names of what is in a folder; none if it is none any more. It never waits for the other end of a pipe.
func folderNames(root *os.Root, name string) ([]string, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
	if err == nil {
		defer f.Close()
		var names []string
		if names, err = f.Readdirnames(-1); err == nil {
			return names, nil
		}
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	return nil, err
}
