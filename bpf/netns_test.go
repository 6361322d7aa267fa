package bpf

import (
	"testing"

	"golang.org/x/sys/unix"
)

// What a program sees is what the socket option says, where there is one; and each namespace has its own.
func TestNamespaceCookie(t *testing.T) {
	seen := map[uint64]bool{}
	for range 2 {
		newSpace(t).within(t, func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			must(t, err)
			defer unix.Close(fd)
			asked, err := askCookie(cgroupRoot(t), fd)
			must(t, err)
			if told, err := netnsCookie(cgroupRoot(t)); err != nil || told != asked {
				t.Errorf("the program saw %d, the kernel says %d, %v", asked, told, err)
			}
			seen[asked] = true
			return nil
		})
	}
	if len(seen) != 2 || seen[0] {
		t.Errorf("cookies %v", seen)
	}
}
