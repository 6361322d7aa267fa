package cni

import (
	"errors"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestWhole(t *testing.T) {
	broken := errors.New("broken")
	for _, end := range []error{nil, broken} {
		reads := 0
		list, err := Whole(func() ([]int, error) {
			if reads++; reads < 3 {
				return []int{0}, netlink.ErrDumpInterrupted
			}
			return []int{1, 2}, end
		})
		if reads != 3 || err != end || !slices.Equal(list, []int{1, 2}) {
			t.Errorf("%v (%v) after %d reads, want 1, 2 (%v) after 3", list, err, reads, end)
		}
	}
}
