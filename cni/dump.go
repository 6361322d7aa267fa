package cni

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// Whole reads a list of the kernel's (interfaces, addresses, routes) until none of it changed while it was read: what was read in between
// may lack an entry that was there all the time. Interfaces of other pods come and go at any time.
func Whole[T any](read func() ([]T, error)) ([]T, error) {
	for {
		list, err := read()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return list, err
		}
	}
}
