package main

import (
	"net/netip"
	"slices"
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
