package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/spf13/pflag"

	"github.com/strake-io/strake/controlplane/apiserver"
)

func TestFlagsOfAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "server.flags")
	read := func(text string, args ...string) (*apiserver.Settings, error) {
		t.Helper()
		set, fs := apiserver.NewSettings(), pflag.NewFlagSet("server", pflag.ContinueOnError)
		set.AddFlags(fs)
		if err := fs.Parse(args); err != nil {
			t.Fatal(err)
		}
		if text != "" {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return set, fileFlags(fs, path)
	}
	if _, err := read(""); err != nil {
		t.Errorf("without a file: %v", err)
	}
	set, err := read("# ours\n--enable-admission-plugins=AlwaysPullImages,X\n\n encryption-provider-config-automatic-reload \nprofiling=false\netcd-prefix=/a\n", "--etcd-prefix=/b")
	if err != nil || len(set.EnableAdmission) != 2 || !set.EncryptionReload || set.EnableProfiling || set.EtcdPrefix != "/b" {
		t.Errorf("%+v, %v", set, err)
	}
	for _, bad := range []string{"nonsense=1", "profiling=perhaps", "data-dir=/x"} {
		if _, err := read(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}
