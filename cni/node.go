package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/strake-io/strake/atomicfile"
)

// Sysctls by which a node forwards.
const (
	forward4 = "net/ipv4/ip_forward"
	forward6 = "net/ipv6/conf/all/forwarding"
	conf6    = "net/ipv6/conf/"
)

// savedSysctls is the file that holds what Prepare found, by name.
const savedSysctls = "sysctls.before"

// Prepare makes the node forward the families in which it has an address, and gives it addresses of its own on lo (the cluster DNS).
// What the sysctls were before is kept in dir.
func Prepare(dir string, nodeAddrs, locals []netip.Addr) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("cni: %w", err)
	}
	var want []sysctl
	for _, a := range nodeAddrs {
		if a.Is4() {
			want = append(want, sysctl{forward4, "1"})
			continue
		}
		list, err := keepRouters()
		if err != nil {
			return err
		}
		want = append(append(want, list...), sysctl{forward6, "1"})
	}
	if err := changeSysctls(filepath.Join(dir, savedSysctls), want); err != nil {
		return err
	}
	for _, a := range locals {
		if err := AddLocalAddress(a); err != nil {
			return err
		}
	}
	return nil
}

// keepRouters lets the interfaces that learn routes from router advertisements go on with it: a node that forwards believes them only
// where accept_ra is 2 (Linux, networking/ip-sysctl.rst), and forgets the routes that it has when it begins to forward.
func keepRouters() ([]sysctl, error) {
	entries, err := os.ReadDir(procSys + conf6)
	if err != nil {
		return nil, fmt.Errorf("cni: the node has an IPv6 address, but its kernel no IPv6: %w", err)
	}
	var out []sysctl
	for _, e := range entries {
		if e.Name() == "all" || e.Name() == "default" || e.Name() == "lo" {
			continue
		}
		dir := conf6 + e.Name() + "/"
		accepts, err := readSysctl(dir + "accept_ra")
		if err != nil || accepts != "1" {
			continue // or it went meanwhile
		}
		if forwards, err := readSysctl(dir + "forwarding"); err == nil && forwards == "0" {
			out = append(out, sysctl{dir + "accept_ra", "2"})
		}
	}
	return out, nil
}

func readSysctl(name string) (string, error) {
	data, err := os.ReadFile(procSys + name)
	return strings.TrimSpace(string(data)), err
}

// changeSysctls sets those that are not as they should be, in order. First it notes in a file what they were, unless a former call did.
func changeSysctls(file string, want []sysctl) error {
	saved, err := readSaved(file)
	if err != nil {
		return err
	}
	var change []sysctl
	for _, s := range want {
		have, err := readSysctl(s.name)
		if err != nil {
			return fmt.Errorf("cni: %w", err)
		}
		if have == s.value {
			continue
		}
		change = append(change, s)
		if _, ok := saved[s.name]; !ok {
			saved[s.name] = have
		}
	}
	if len(change) == 0 {
		return nil
	}
	data, err := json.Marshal(saved)
	if err == nil {
		err = atomicfile.Write(file, data, 0o600)
	}
	if err == nil {
		err = setSysctls(change)
	}
	if err != nil {
		return fmt.Errorf("cni: %w", err)
	}
	return nil
}

func readSaved(file string) (map[string]string, error) {
	saved := map[string]string{}
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return saved, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &saved)
	}
	if err != nil {
		return nil, fmt.Errorf("cni: the node's former sysctls: %s: %w; remove it if they don't matter", file, err)
	}
	return saved, nil
}

// restoreSysctls undoes changeSysctls. What was removed with its interface is no error.
func restoreSysctls(file string) error {
	saved, err := readSaved(file)
	if err != nil {
		return err
	}
	var list []sysctl
	for _, name := range slices.Sorted(maps.Keys(saved)) {
		list = append(list, sysctl{name, saved[name]})
	}
	if err := setSysctls(list); err != nil {
		return fmt.Errorf("cni: %w", err)
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cni: %w", err)
	}
	return nil
}

// AddLocalAddress gives the node an address of its own on lo, and sets lo up. One that is there is no error.
func AddLocalAddress(a netip.Addr) error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	addr := &netlink.Addr{IPNet: ipNet(a)}
	if !a.Is4() {
		addr.Flags = unix.IFA_F_NODAD // of use at once: even on lo the kernel gets to its test later
	}
	if err == nil {
		err = netlink.AddrAdd(lo, addr)
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("cni: address %s on lo: %w", a, err)
	}
	return nil
}

// RemoveLocalAddress undoes AddLocalAddress. One that is gone is no error.
func RemoveLocalAddress(a netip.Addr) error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.AddrDel(lo, &netlink.Addr{IPNet: ipNet(a)})
	}
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("cni: address %s on lo: %w", a, err)
	}
	return nil
}

// RemoveAll undoes Prepare and removes all pod interfaces that carry the alias, with their routes, the ways to other nodes, and all
// allocations.
// No Server may run on dir. What is gone already is no error.
func RemoveAll(dir, alias string, locals []netip.Addr) error {
	links, err := ours(alias)
	errs := []error{err}
	for _, l := range links {
		errs = append(errs, disconnect(l.Attrs().Name))
	}
	for _, a := range locals {
		errs = append(errs, RemoveLocalAddress(a))
	}
	errs = append(errs, removeRouting())
	errs = append(errs, restoreSysctls(filepath.Join(dir, savedSysctls)))
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, fmt.Errorf("cni: %w", err))
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), allocationSuffix) || e.Name() == lastFile {
			path := filepath.Join(dir, e.Name())
			if data, err := os.ReadFile(path); err == nil {
				// An interface that a crash left before it got its alias.
				if a, err := parseAllocation(data); err == nil {
					errs = append(errs, disconnect(a.Host))
				}
			}
			errs = append(errs, os.Remove(path))
		}
	}
	return errors.Join(errs...)
}
