package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// debian has the labels of its archives, and the suites that hold the kernels.
var debian = map[string][]string{
	"Debian":          {"bullseye", "bookworm", "bookworm-backports"},
	"Debian-Security": {"bullseye-security", "bookworm-security"},
}

// apt is a configuration of our own: it reads and writes nothing of the machine's but its keys.
type apt struct {
	dir     string
	updated bool
	failed  error // of the update: one suite may be gone and the others there
}

// kernel is an unpacked package.
type kernel struct {
	series  string // such as 6.1
	release string // as uname says
	dir     string
}

// fetch gives the newest kernel of a series that Debian has, or the one below dir from a former run: remove it to get a newer one.
func (a *apt) fetch(series, dir string) (kernel, error) {
	k := kernel{series: series, dir: filepath.Join(dir, series)}
	if _, err := os.Stat(k.dir); errors.Is(err, os.ErrNotExist) {
		if err := a.unpack(series, k.dir); err != nil {
			return k, err
		}
	}
	found, err := filepath.Glob(filepath.Join(k.dir, "boot", "vmlinuz-*"))
	if err != nil {
		return k, err
	}
	if len(found) != 1 {
		return k, fmt.Errorf("%s holds %d kernels: remove it, it is fetched anew", k.dir, len(found))
	}
	k.release = strings.TrimPrefix(filepath.Base(found[0]), "vmlinuz-")
	return k, nil
}

func (a *apt) unpack(series, dir string) error {
	if !a.updated {
		if err := a.update(); err != nil {
			return err
		}
	}
	names, err := a.run("apt-cache", "pkgnames", "linux-image-"+series+".")
	if err != nil {
		return err
	}
	name := newest(series, strings.Fields(names))
	if name == "" {
		return errors.Join(fmt.Errorf("apt knows no package linux-image-%s.*%s", series, cloud), a.failed)
	}
	tmp := dir + ".tmp"
	if err := errors.Join(os.RemoveAll(tmp), os.MkdirAll(tmp, 0o755)); err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if _, err := a.run("apt-get", "download", name); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(a.dir, name+"_*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("%s: apt-get download left %q (%v)", name, debs, err)
	}
	defer os.Remove(debs[0])
	if out, err := exec.Command("dpkg", "-x", debs[0], tmp).CombinedOutput(); err != nil {
		return fmt.Errorf("dpkg -x %s: %w: %s", debs[0], err, out)
	}
	return os.Rename(tmp, dir)
}

// newest picks the kernel for virtual machines with the highest version; no debugging symbols, no unsigned one.
func newest(series string, names []string) string {
	want := regexp.MustCompile(`^linux-image-` + regexp.QuoteMeta(series) + `\.[^-]*(-[0-9][^-]*)?` + cloud + `$`)
	names = slices.DeleteFunc(slices.Clone(names), func(n string) bool { return !want.MatchString(n) })
	if len(names) == 0 {
		return ""
	}
	return slices.MaxFunc(names, func(a, b string) int { return slices.Compare(numbers(a), numbers(b)) })
}

// cloud ends the names of kernels for virtual machines.
const cloud = "-cloud-amd64"

var digits = regexp.MustCompile(`\d+`)

func numbers(s string) (out []int) {
	for _, d := range digits.FindAllString(strings.TrimSuffix(s, cloud), -1) {
		n, _ := strconv.Atoi(d)
		out = append(out, n)
	}
	return out
}

// update reads the package lists of the suites, from where the machine's own apt gets Debian.
func (a *apt) update() error {
	targets, err := exec.Command("apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)").Output()
	if err != nil {
		return fmt.Errorf("apt-get indextargets: %w", err)
	}
	list := sources(string(targets))
	if list == "" {
		return errors.New("apt on this machine has no archive of Debian: name one in its sources, and run apt-get update")
	}
	for _, d := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(a.dir, d), 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(a.dir, "sources.list"), []byte(list), 0o644); err != nil {
		return err
	}
	_, a.failed = a.run("apt-get", "update", "-q", "-o", "APT::Update::Error-Mode=any")
	a.updated = true
	return nil
}

// sources is a sources.list of the suites, from lines of a label and where it is.
func sources(targets string) string {
	places := map[string]string{}
	for line := range strings.Lines(targets) {
		if label, uri, ok := strings.Cut(strings.TrimSpace(line), " "); ok && places[label] == "" {
			places[label] = uri
		}
	}
	var out strings.Builder
	for _, label := range []string{"Debian", "Debian-Security"} {
		if places[label] == "" {
			continue
		}
		for _, suite := range debian[label] {
			fmt.Fprintln(&out, "deb", places[label], suite, "main")
		}
	}
	return out.String()
}

func (a *apt) run(program string, args ...string) (string, error) {
	abs, err := filepath.Abs(a.dir)
	if err != nil {
		return "", err
	}
	c := exec.Command(program, append([]string{
		"-o", "Dir::Etc::sourcelist=" + abs + "/sources.list", "-o", "Dir::Etc::sourceparts=-",
		"-o", "Dir::State=" + abs, "-o", "Dir::State::status=/dev/null", "-o", "Dir::Cache=" + abs + "/cache",
		"-o", "APT::Architecture=amd64", "-o", "APT::Architectures=amd64", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Languages=none",
		"-o", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
		"-o", "Acquire::Check-Valid-Until=false", // what is no longer supported is no longer signed anew; the signature still counts
	}, args...)...)
	c.Dir = abs
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}
