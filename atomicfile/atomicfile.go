// Package atomicfile writes files that a crash, a full disk or a power loss never leaves half written.
package atomicfile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Unfinished begins the names of files that are being written, beside the file that they are to be: what a crash leaves of them is nobody's.
const Unfinished = ".tmp-"

// Write replaces a file, or makes it, and returns when its content and its name are on the disk. Whoever looks meanwhile, or after a power
// loss, finds the old content or the new one. An error names the file.
func Write(path string, data []byte, mode os.FileMode) error {
	if err := write(path, data, mode); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func write(path string, data []byte, mode os.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), Unfinished+"*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // nothing, once it has its name
	err = tmp.Chmod(mode)
	if err == nil {
		_, err = tmp.Write(data)
	}
	if err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return err
	}
	return SyncFolder(filepath.Dir(path))
}

// SyncFolder returns when the names in a folder are on the disk.
func SyncFolder(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
