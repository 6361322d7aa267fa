package podworker

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLogTail(t *testing.T) {
	line := func(tag, text string) string {
		return "2026-01-02T03:04:05.000000000Z stdout " + tag + " " + text + "\n"
	}
	long := ""
	for i := range 200 {
		long += line("F", fmt.Sprint("line ", i))
	}
	for name, c := range map[string]struct{ log, want string }{
		"empty":              {"", ""},
		"whole":              {line("F", "a") + line("F", "b"), "a\nb\n"},
		"in parts":           {line("P", "a") + line("P", "b") + line("F", "c") + line("F", "d"), "abc\nd\n"},
		"tag with more":      {line("F:x", "a"), "a\n"},
		"rubbish is skipped": {"rubbish\n\n" + line("F", "a") + "x y z w\n", "a\n"},
		"lines are counted":  {long, tail(120, 200)},
		"bytes are counted":  {line("F", strings.Repeat("x", 5000)), strings.Repeat("x", 2047) + "\n"},
		"no UTF-8":           {line("F", "a\xffb"), "ab\n"},
		"no end of line":     {strings.TrimSuffix(line("F", "a"), "\n"), "a\n"},
	} {
		path := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(path, []byte(c.log), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := logTail(path, maxLogMessage, maxLogLines); got != c.want {
			t.Errorf("%s: %.300q, want %.300q", name, got, c.want)
		}
	}
	if got := logTail("/no/such/file", 10, 10); got != "" {
		t.Errorf("%q", got)
	}
}

func tail(from, to int) (out string) {
	for i := from; i < to; i++ {
		out += fmt.Sprintf("line %d\n", i)
	}
	return out
}

func FuzzLogText(f *testing.F) {
	f.Add([]byte("2026-01-02T03:04:05Z stdout F text"))
	f.Add([]byte("t stderr P:x "))
	f.Add([]byte("    "))
	f.Fuzz(func(t *testing.T, line []byte) {
		text, _, ok := logText(line)
		if ok && !strings.HasSuffix(string(line), " "+text) {
			t.Errorf("%q is not the end of %q", text, line)
		}
	})
}

// What a container left in the place of its message is not trusted.
func TestReadHead(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(path("file"), []byte("0123456789"), 0o600); err != nil {
		t.Fatal(err)
	}
	if data, err := readHead(path("file"), 4); err != nil || string(data) != "0123" {
		t.Errorf("%q, %v", data, err)
	}
	if err := os.Symlink("/etc/passwd", path("link")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(path("pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"link", "pipe", "none", "."} {
		if data, err := readHead(path(name), 4); err == nil {
			t.Errorf("%s gave %q", name, data)
		}
	}
}
