package memory

import (
	"bufio"
	"fmt"
	"os"
	"testing"
)

func TestReadOnly(t *testing.T) {
	const file = "/usr/local/bin/strake"
	for line, want := range map[string]bool{
		"00400000-03a52000 r-xp 00000000 fe:00 393 " + file:                                         true,
		"03a52000-07a52000 r--p 03652000 fe:00 393                            " + file:              true,
		"07a52000-07b52000 rw-p 07652000 fe:00 393                            " + file:              false, // the data
		"c000000000-c004000000 rw-p 00000000 00:00 0 ":                                              false, // the heap
		"7f0000000000-7f0000001000 r--p 00000000 fe:00 394                    /usr/lib/strake/else": false,
		"7ffc0b5f2000-7ffc0b5f4000 r-xp 00000000 00:00 0                      [vdso]":               false,
		"": false,
	} {
		start, end, ok := readOnly(line, file)
		if ok != want || ok && (start == 0 || end <= start) {
			t.Errorf("%q: %x-%x %v, want %v", line, start, end, ok, want)
		}
	}
}

func TestProgramRunsOnWithoutItsPages(t *testing.T) {
	before := mappedOfFiles(t)
	if err := unmapProgram(); err != nil {
		t.Fatal(err)
	}
	after := mappedOfFiles(t) // what goes on running is back
	t.Logf("%d kB of files are mapped, before it was %d", after, before)
	if after >= before {
		t.Error("no pages were given back")
	}
}

// mappedOfFiles is RssFile of proc_pid_status(5), in kB.
func mappedOfFiles(t *testing.T) (kB int) {
	t.Helper()
	status, err := os.Open("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	defer status.Close()
	for lines := bufio.NewScanner(status); lines.Scan(); {
		if _, err := fmt.Sscanf(lines.Text(), "RssFile: %d kB", &kB); err == nil {
			return kB
		}
	}
	t.Fatal("no RssFile")
	return 0
}
