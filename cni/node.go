package cni

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	forwardSysctl = "/proc/sys/net/ipv4/ip_forward"
	savedForward  = "ip_forward.before"
)

// Prepare makes the node forward, and gives it an address of its own on lo (the cluster DNS). What the sysctl was before is kept in dir.
func Prepare(dir string, local netip.Addr) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("cni: %w", err)
	}
	before, err := os.ReadFile(forwardSysctl)
	if err != nil {
		return fmt.Errorf("cni: %w", err)
	}
	saved := filepath.Join(dir, savedForward)
	if _, err := os.Stat(saved); errors.Is(err, fs.ErrNotExist) {
		if err := writeFile(saved, before); err != nil {
			return fmt.Errorf("cni: %w", err)
		}
	}
	if strings.TrimSpace(string(before)) != "1" {
		if err := os.WriteFile(forwardSysctl, []byte("1"), 0); err != nil {
			return fmt.Errorf("cni: %w", err)
		}
	}
	return AddLocalAddress(local)
}

// AddLocalAddress gives the node an address of its own on lo, and sets lo up. One that is there is no error.
func AddLocalAddress(a netip.Addr) error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err == nil {
		err = netlink.AddrAdd(lo, &netlink.Addr{IPNet: ipNet(a)})
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

// RemoveAll undoes Prepare and removes all pod interfaces that carry the alias, with their routes, and all allocations.
// No Server may run on dir. What is gone already is no error.
func RemoveAll(dir, alias string, local netip.Addr) error {
	links, err := ours(alias)
	errs := []error{err}
	for _, l := range links {
		errs = append(errs, disconnect(l.Attrs().Name))
	}
	errs = append(errs, RemoveLocalAddress(local))
	saved := filepath.Join(dir, savedForward)
	if before, err := os.ReadFile(saved); err == nil {
		if err := os.WriteFile(forwardSysctl, before, 0); err != nil {
			errs = append(errs, fmt.Errorf("cni: %w", err))
		} else {
			errs = append(errs, os.Remove(saved))
		}
	}
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
