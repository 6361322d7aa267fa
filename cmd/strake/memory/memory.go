// Package memory gives back what a process does not need any more.
package memory

import (
	"bufio"
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// GiveBack leaves memory to others that only what is over has used, such as the start: the heap's free pages, and the mapped pages of the program. The
// latter stay in the kernel's page cache, whence those that are still needed come back without a read; but what nobody maps any more goes first when
// memory is short.
func GiveBack() {
	debug.FreeOSMemory()
	if err := unmapProgram(); err != nil {
		klog.V(2).InfoS("The program's pages stay mapped", "err", err)
	}
}

func unmapProgram() error {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	maps, err := os.Open("/proc/self/smaps")
	if err != nil {
		return err
	}
	defer maps.Close()
	var start, end uintptr
	ours, written := false, false
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		field := strings.Fields(lines.Text())
		switch {
		case len(field) < 2:
		case strings.Contains(field[0], "-"): // the head of the next mapping
			start, end, ours = readOnly(lines.Text(), program)
			written = false
		case field[0] == "Anonymous:" || field[0] == "Swap:": // pages that were changed once, by a loader or for a uprobe
			written = written || field[1] != "0"
		case field[0] == "VmFlags:" && ours && !written: // the last of a mapping
			if _, _, errno := unix.Syscall(unix.SYS_MADVISE, start, end-start, unix.MADV_DONTNEED); errno != 0 {
				return fmt.Errorf("madvise %x-%x of %s: %w", start, end, program, errno)
			}
		}
	}
	return nil
}

// readOnly returns the addresses of a line of /proc/PID/maps (proc_pid_maps(5)), if it is a part of this file that can't be written to: what is not
// as in the file must not be lost. The head of a mapping in smaps is such a line.
func readOnly(line, file string) (start, end uintptr, ok bool) {
	var perms string
	if _, err := fmt.Sscanf(line, "%x-%x %s", &start, &end, &perms); err != nil || !strings.HasPrefix(perms, "r-") {
		return 0, 0, false
	}
	return start, end, strings.HasSuffix(line, " "+file)
}
