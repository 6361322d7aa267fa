// Package arrows keeps the import arrows of the architecture (docs/architecture.md): who may know whom.
package arrows

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/strake-io/strake/"

// area is the part of the house that a package belongs to: a top-level folder, or a folder of controlplane.
func area(pkg string) string {
	parts := strings.Split(strings.TrimPrefix(pkg, module), "/")
	if parts[0] == "controlplane" && len(parts) > 1 {
		return parts[0] + "/" + parts[1]
	}
	return parts[0]
}

// allowed tells whether a package of one area may import one of another.
func allowed(from, to string) bool {
	switch a, b := area(from), area(to); {
	case a == b, a == "cmd", a == "tests", to == module+"atomicfile": // which knows nobody
		return true
	case from == module+"controlplane/apiserver/apiservertest" && b == "tests":
		return true
	case slices.Contains([]string{"cni", "proxy", "netpol", "dns"}, a):
		return b == "bpf" || b == "mirror"
	case a == "controlplane/apiserver": // what is valid is said once, for who writes policies and for who reads files of them
		return to == module+"netpol/validation"
	}
	return false
}

func TestRules(t *testing.T) {
	for _, c := range []struct {
		from, to string
		want     bool
	}{
		{"cni", "bpf", true}, {"proxy", "bpf", true}, {"dns", "bpf", true}, {"dns", "mirror", true}, {"proxy", "mirror", true}, {"mirror", "bpf", false}, {"kubelet", "mirror", false}, {"bpf", "cni", false}, {"cni", "dns", false},
		{"kubelet", "bpf", false}, {"kubelet/certificates", "atomicfile", true}, {"controlplane/pki", "atomicfile", true}, {"atomicfile", "bpf", false}, {"kubelet/server", "kubelet/status", true}, {"controlplane/apiserver", "controlplane/store", false},
		{"controlplane/apiserver/auth", "controlplane/apiserver/descriptor", true}, {"controlplane/apiserver/apiservertest", "tests/freeport", true}, {"controlplane/apiserver", "tests/freeport", false}, {"controlplane/scheduler", "bpf", false}, {"controlplane/apiserver/resources", "netpol/validation", true},
		{"controlplane/apiserver/resources", "netpol/compiler", false}, {"netpol/enforce", "cni", false}, {"cmd/strake", "kubelet", true},
	} {
		if got := allowed(module+c.from, module+c.to); got != c.want {
			t.Errorf("%s imports %s: allowed %v, want %v", c.from, c.to, got, c.want)
		}
	}
}

func TestArrows(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports,Doc", module+"...").Output()
	if err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(bytes.NewReader(out))
	for {
		var p struct {
			ImportPath, Doc string
			Imports         []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
		for _, i := range p.Imports {
			if strings.HasPrefix(i, module) && !allowed(p.ImportPath, i) {
				t.Errorf("%s must not import %s", p.ImportPath, i)
			}
			if i == "k8s.io/kubernetes" || strings.HasPrefix(i, "k8s.io/kubernetes/") {
				t.Errorf("%s imports %s, which is no library", p.ImportPath, i)
			}
		}
		if last := p.ImportPath[strings.LastIndex(p.ImportPath, "/")+1:]; slices.Contains([]string{"util", "utils", "common", "helper", "helpers", "misc"}, last) {
			t.Errorf("%s: the name says nothing", p.ImportPath)
		}
	}
}
