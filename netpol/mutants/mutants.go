// Package mutants proves that the tests of a package would notice if it were wrong: it runs them once for each of some faults, which the Go command puts in
// place of what is right (-overlay). Only tests use it.
package mutants

import (
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

var prove = flag.Bool("mutants", false, "prove that the tests notice when the code is wrong (some seconds for each fault)")

// Try fails for each fault that the tests, run by `go test` with these arguments, do not notice. A fault is a file of the package, what is right in it, and what is
// wrong in place of the first of that. Without the flag -mutants it looks only whether they still are faults of what there is.
func Try(t *testing.T, faults [][3]string, args ...string) {
	t.Helper()
	noticed := 0
	for _, fault := range faults {
		file, right, wrong := fault[0], fault[1], fault[2]
		text, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(text), right) {
			t.Errorf("%s has no %q: %v", file, right, err)
			continue
		}
		if !*prove {
			continue
		}
		switch out, err := test(t, file, strings.Replace(string(text), right, wrong, 1), args); {
		case err == nil:
			t.Errorf("nothing notices %s: %q instead of %q", file, wrong, right)
		case !strings.Contains(out, "--- FAIL") && !strings.Contains(out, "panic:"):
			t.Errorf("%s: %q instead of %q: %s", file, wrong, right, out)
		default:
			noticed++
		}
	}
	if !*prove {
		t.Skip("only with -mutants")
	}
	t.Logf("%d of %d mutants are noticed", noticed, len(faults))
}

// test runs the tests of the package in this folder with another text of a file.
func test(t *testing.T, file, text string, args []string) (string, error) {
	t.Helper()
	dir := t.TempDir()
	path, err := filepath.Abs(file)
	if err != nil {
		t.Fatal(err)
	}
	replaced, overlay := filepath.Join(dir, file), filepath.Join(dir, "overlay.json")
	list, err := json.Marshal(map[string]map[string]string{"Replace": {path: replaced}})
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{replaced: []byte(text), overlay: list} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.CommandContext(t.Context(), "go", append([]string{"test", "-vet=off", "-failfast", "-overlay", overlay}, args...)...).CombinedOutput()
	return string(out), err
}
