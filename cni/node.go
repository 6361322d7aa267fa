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
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err == nil {
		if err = netlink.AddrAdd(lo, &netlink.Addr{IPNet: ipNet(local)}); errors.Is(err, unix.EEXIST) {
			err = nil
		}
	}
	if err != nil {
		return fmt.Errorf("cni: address %s on lo: %w", local, err)
	}
	return nil
}

// RemoveAll undoes Prepare and removes all pod interfaces that carry the alias.
func RemoveAll(dir, alias string, local netip.Addr) error {
	var errs []error
	links, err := netlink.LinkList()
	errs = append(errs, err)
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, hostPrefix) && l.Attrs().Alias == alias {
			errs = append(errs, disconnect(l.Attrs().Name))
		}
	}
	if lo, err := netlink.LinkByName("lo"); err == nil {
		if err := netlink.AddrDel(lo, &netlink.Addr{IPNet: ipNet(local)}); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			errs = append(errs, fmt.Errorf("cni: address %s on lo: %w", local, err))
		}
	}
	saved := filepath.Join(dir, savedForward)
	if before, err := os.ReadFile(saved); err == nil {
		if err := os.WriteFile(forwardSysctl, before, 0); err != nil {
			errs = append(errs, fmt.Errorf("cni: %w", err))
		}
		errs = append(errs, os.Remove(saved))
	}
	return errors.Join(errs...)
}
