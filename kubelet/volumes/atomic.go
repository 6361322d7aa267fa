package volumes

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

const dataLink = "..data"

// write makes the volume's content exactly files: they go into a new folder, to which the link ..data is then moved.
// Each top-level name is a link through ..data. Nothing is written if nothing changed.
func (m *Manager) write(pod *corev1.Pod, dir string, files map[string]file, err error) error {
	if err != nil {
		return err
	}
	for name := range files {
		if !filepath.IsLocal(name) || strings.HasPrefix(name, "..") {
			return fmt.Errorf("path %q leads out of the volume", name)
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	link := filepath.Join(dir, dataLink)
	if same(link, files) {
		return nil
	}
	next, err := os.MkdirTemp(dir, "..")
	if err != nil {
		return err
	}
	if err := fill(pod, next, files); err != nil {
		return errors.Join(err, os.RemoveAll(next))
	}
	old, _ := os.Readlink(link) // absent the first time
	tmp := filepath.Join(dir, "..data_tmp")
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(filepath.Base(next), tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, link); err != nil {
		return err
	}
	if err := linkNames(dir, files); err != nil {
		return err
	}
	if old != "" && old != filepath.Base(next) {
		return os.RemoveAll(filepath.Join(dir, old))
	}
	return nil
}

func fill(pod *corev1.Pod, dir string, files map[string]file) error {
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	for name, f := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, f.data, 0o600); err != nil {
			return err
		}
		mode := fs.FileMode(f.mode)
		if sc := pod.Spec.SecurityContext; sc != nil && sc.FSGroup != nil {
			mode |= 0o040
		}
		if err := os.Chmod(path, mode); err != nil {
			return err
		}
		if err := own(pod, path, 0); err != nil {
			return err
		}
	}
	return nil
}

// same tells whether the current content is what is wanted.
func same(link string, files map[string]file) bool {
	target, err := filepath.EvalSymlinks(link)
	if err != nil {
		return false
	}
	n := 0
	err = filepath.WalkDir(target, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(target, path)
		if err != nil {
			return err
		}
		want, ok := files[rel]
		have, rerr := os.ReadFile(path)
		if rerr != nil || !ok || !bytes.Equal(have, want.data) {
			return fs.ErrInvalid
		}
		n++
		return nil
	})
	return err == nil && n == len(files)
}

// linkNames keeps one link for each top-level name.
func linkNames(dir string, files map[string]file) error {
	want := map[string]bool{}
	for name := range files {
		top, _, _ := strings.Cut(name, string(filepath.Separator))
		want[top] = true
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if name := e.Name(); !strings.HasPrefix(name, "..") && !want[name] {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				return err
			}
		}
	}
	for name := range want {
		err := os.Symlink(filepath.Join(dataLink, name), filepath.Join(dir, name))
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}
