package main

import (
	"bufio"
	"bytes"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/strake-io/strake/tests/kernel/console"
)

// archive writes an initramfs: a cpio archive in the format "newc" (Documentation/driver-api/early-userspace/buffer-format.rst).
// It is not compressed: the emulated machine would have to undo that.
type archive struct {
	w     *bufio.Writer
	inode int
	err   error
}

func (a *archive) add(name string, mode uint32, data []byte) {
	a.inode++
	// magic, inode, mode, user, group, links, time, size, device (2), device of a special file (2), length of the name with its 0, checksum
	a.write(fmt.Appendf(nil, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name))
	a.write(data)
}

// write pads to a multiple of 4 bytes.
func (a *archive) write(b []byte) {
	for _, b := range [][]byte{b, make([]byte, -len(b)&3)} {
		if a.err == nil {
			_, a.err = a.w.Write(b)
		}
	}
}

func (a *archive) dir(name string)               { a.add(name, 0o040755, nil) }
func (a *archive) file(name string, data []byte) { a.add(name, 0o100755, data) }

func (a *archive) copy(name, from string) {
	data, err := os.ReadFile(from)
	if err != nil && a.err == nil {
		a.err = err
	}
	a.file(name, data)
}

func (a *archive) close() error {
	a.add("TRAILER!!!", 0, nil)
	if a.err != nil {
		return a.err
	}
	return a.w.Flush()
}

// pack makes the machine's initramfs.
func (m machine) pack(path, guest string, objects []string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if !m.objects {
		objects = nil
	}
	if err := errors.Join(m.writeInitramfs(f, guest, objects), f.Close()); err != nil {
		return fmt.Errorf("initramfs of %s: %w", m.name(), err)
	}
	return nil
}

// writeInitramfs packs what the guest needs for the job: itself, busybox, modules of the kernel, BPF objects and the suite.
func (m machine) writeInitramfs(w io.Writer, guest string, objects []string) error {
	a := &archive{w: bufio.NewWriter(w)}
	for _, d := range []string{"bin", "etc", "modules", "objects", "suites"} {
		a.dir(d)
	}
	a.copy("init", guest)
	a.copy("bin/busybox", "/bin/busybox")
	var job console.Job
	list, err := m.kernel.modules(modules)
	if err != nil {
		return err
	}
	for _, module := range list {
		name := "modules/" + module.name + ".ko"
		a.file(name, module.data)
		job.Modules = append(job.Modules, "/"+name)
	}
	for _, path := range objects {
		name := "objects/" + filepath.Base(path)
		a.copy(name, path)
		job.Objects = append(job.Objects, "/"+name)
	}
	name := "suites/" + filepath.Base(m.binary)
	a.copy(name, m.binary)
	job.Suite = console.Suite{Name: m.folder, Path: "/" + name, Args: m.args, Part: m.part, Parts: m.parts}
	data, err := json.Marshal(job)
	if err != nil {
		return err
	}
	a.file(strings.TrimPrefix(console.JobFile, "/"), data)
	return a.close()
}

type module struct {
	name string
	data []byte // not compressed
}

// modules reads modules of the kernel and those they depend on, in the order to load them. What is no module of this kernel but
// built into it is left out.
func (k kernel) modules(names []string) ([]module, error) {
	root := filepath.Join(k.dir, "lib", "modules", k.release)
	paths := map[string]string{}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if name, _, ok := strings.Cut(filepath.Base(path), ".ko"); ok {
			paths[moduleName(name)] = path
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	builtin, err := os.ReadFile(filepath.Join(root, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(builtin)) {
		paths[moduleName(strings.TrimSuffix(filepath.Base(strings.TrimSpace(line)), ".ko"))] = ""
	}
	return ordered(names, func(name string) (*module, []string, error) {
		path, ok := paths[name]
		if !ok {
			return nil, nil, fmt.Errorf("kernel %s has no module %s", k.release, name)
		}
		if path == "" {
			return nil, nil, nil
		}
		data, err := readModule(path)
		if err != nil {
			return nil, nil, err
		}
		depends, err := dependencies(data)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", path, err)
		}
		return &module{name, data}, depends, nil
	})
}

// moduleName is how the kernel spells it; file names may have a dash.
func moduleName(file string) string { return strings.ReplaceAll(file, "-", "_") }

// ordered gives modules after those they depend on, each once.
func ordered(names []string, read func(name string) (*module, []string, error)) (out []module, err error) {
	seen := map[string]bool{}
	var visit func(name string) error
	visit = func(name string) error {
		if seen[name] {
			return nil
		}
		seen[name] = true
		m, depends, err := read(name)
		if err != nil || m == nil {
			return err
		}
		for _, d := range depends {
			if err := visit(d); err != nil {
				return err
			}
		}
		out = append(out, *m)
		return nil
	}
	for _, n := range names {
		if err := visit(n); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func readModule(path string) ([]byte, error) {
	if filepath.Ext(path) == ".xz" {
		data, err := exec.Command("busybox", "xzcat", path).Output()
		if err != nil {
			return nil, fmt.Errorf("xzcat %s: %w", path, err)
		}
		return data, nil
	}
	return os.ReadFile(path)
}

// dependencies are in the module itself; modules.dep is made at a package's installation only.
func dependencies(module []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("no section .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for field := range bytes.SplitSeq(info, []byte{0}) {
		if list, ok := strings.CutPrefix(string(field), "depends="); ok {
			return slices.DeleteFunc(strings.Split(list, ","), func(s string) bool { return s == "" }), nil
		}
	}
	return nil, nil
}
