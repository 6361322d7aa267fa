package main

import (
	"bytes"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestRanges(t *testing.T) {
	some := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("::/0")}
	for text, want := range map[string][]netip.Prefix{"": nil, "primary": nil, "192.0.2.7/24, ::/0": some} {
		var got []netip.Prefix
		if err := ranges(&got)(text); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"192.0.2.1", "primary,::/0", ","} {
		if ranges(new([]netip.Prefix))(text) == nil {
			t.Errorf("%q is taken", text)
		}
	}
}

// A script asks by the exit code whether there is a cluster that is ready.
func TestStatusWithoutACluster(t *testing.T) {
	for _, words := range [][]string{{"status"}, {"status", "-o", "json"}} {
		var out bytes.Buffer
		root := rootCommand(nil)
		root.SetArgs(append(words, "--data-dir", t.TempDir()))
		root.SetOut(&out)
		err := root.ExecuteContext(t.Context())
		if exit := (exitError{}); !errors.As(err, &exit) || exit.code != 1 || exit.err != nil {
			t.Errorf("%v: %v, want exit code 1 and no more said", words, err)
		}
		if !strings.Contains(out.String(), "there is no cluster in ") {
			t.Errorf("%v printed %s", words, out.String())
		}
	}
}
