package node

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

// bits are the lengths of nodes' parts; zeros: the default.
func bits(b4, b6 int) func(netip.Prefix) int {
	return func(p netip.Prefix) int {
		b := b6
		if p.Addr().Is4() {
			b = b4
		}
		if b == 0 {
			b = defaultNodeBits(p)
		}
		return b
	}
}

func joined(ps []netip.Prefix) string {
	var out []string
	for _, p := range ps {
		out = append(out, p.String())
	}
	return strings.Join(out, " ")
}

// TestSubnets gives parts to nodes a, b, c … in turn, of which some hold something already.
func TestSubnets(t *testing.T) {
	for name, test := range map[string]struct {
		ranges       string
		bits4, bits6 int
		held         map[string]string
		want         []string // of nodes a, b, …; empty: there is none left
	}{
		"IPv4":                 {ranges: "10.244.0.0/16", want: []string{"10.244.0.0/24", "10.244.1.0/24"}},
		"IPv6":                 {ranges: "fd00:10:244::/56", want: []string{"fd00:10:244::/64", "fd00:10:244:1::/64"}},
		"both":                 {ranges: "10.244.0.0/16 fd00:10:244::/56", want: []string{"10.244.0.0/24 fd00:10:244::/64", "10.244.1.0/24 fd00:10:244:1::/64"}},
		"IPv6 first":           {ranges: "fd00:10:244::/56 10.244.0.0/16", want: []string{"fd00:10:244::/64 10.244.0.0/24"}},
		"other lengths":        {ranges: "10.0.0.0/29 fd00::/119", bits4: 30, bits6: 120, want: []string{"10.0.0.0/30 fd00::/120", "10.0.0.4/30 fd00::100/120", ""}},
		"across a byte":        {ranges: "10.0.0.0/14", bits4: 18, held: map[string]string{"x": "10.0.0.0/18", "y": "10.0.64.0/18", "z": "10.0.128.0/18", "w": "10.0.192.0/18"}, want: []string{"10.1.0.0/18", "10.1.64.0/18"}},
		"a range that is one":  {ranges: "10.0.0.0/24", want: []string{"10.0.0.0/24", ""}},
		"one family runs out":  {ranges: "10.0.0.0/24 fd00::/63", want: []string{"10.0.0.0/24 fd00::/64", ""}},
		"what others hold":     {ranges: "10.0.0.0/22", held: map[string]string{"x": "10.0.0.0/24", "y": "10.0.2.0/24"}, want: []string{"10.0.1.0/24", "10.0.3.0/24", ""}},
		"parts of old lengths": {ranges: "10.0.0.0/22", held: map[string]string{"x": "10.0.1.128/25", "y": "10.0.2.0/23"}, want: []string{"10.0.0.0/24", ""}},
		"the family it lacks":  {ranges: "10.0.0.0/22 fd00::/62", held: map[string]string{"a": "10.0.3.0/24", "x": "fd00::/64"}, want: []string{"10.0.3.0/24 fd00:0:0:1::/64"}},
		"its order stays":      {ranges: "10.0.0.0/22 fd00::/62", held: map[string]string{"a": "fd00::/64"}, want: []string{"fd00::/64 10.0.0.0/24"}},
		"ranges of elsewhere":  {ranges: "10.0.0.0/22", held: map[string]string{"a": "192.0.2.0/24"}, want: []string{"192.0.2.0/24", "10.0.0.0/24"}},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := newSubnets(prefixes(strings.Fields(test.ranges)...), bits(test.bits4, test.bits6))
			if err != nil {
				t.Fatal(err)
			}
			for node, held := range test.held {
				if err := s.occupy(node, strings.Fields(held)); err != nil {
					t.Fatal(err)
				}
			}
			for i, want := range test.want {
				node := string(rune('a' + i))
				got, err := s.complete(node)
				if joined(got) != want || (err != nil) != (want == "") {
					t.Errorf("node %s gets %s, %v; want %s", node, joined(got), err, want)
				}
				if again, _ := s.complete(node); joined(again) != want {
					t.Errorf("asked again, node %s gets %s", node, joined(again))
				}
			}
		})
	}
}

func TestSubnetsComeBack(t *testing.T) {
	s, err := newSubnets(prefixes("10.0.0.0/23", "fd00::/63"), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, node := range []string{"a", "b"} {
		if _, err := s.complete(node); err != nil {
			t.Fatal(err)
		}
	}
	// A Node as the cache still shows it does not take back what it was given.
	if err := s.occupy("a", nil); err != nil {
		t.Fatal(err)
	}
	if got, err := s.complete("c"); err == nil {
		t.Errorf("node c gets %s, which others have", joined(got))
	}
	if !s.release("a") || s.release("a") {
		t.Error("a node's parts are released once")
	}
	if got, err := s.complete("c"); err != nil || joined(got) != "10.0.0.0/24 fd00::/64" {
		t.Errorf("node c gets %s, %v", joined(got), err)
	}
}

func TestOverlap(t *testing.T) {
	s, err := newSubnets(prefixes("10.0.0.0/22"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.occupy("a", []string{"10.0.1.0/24"}); err != nil {
		t.Fatal(err)
	}
	if err := s.occupy("b", []string{"10.0.0.0/23"}); err == nil || !strings.Contains(err.Error(), "nodes a and b") {
		t.Errorf("overlap: %v", err)
	}
	if err := s.occupy("c", []string{"pods"}); err == nil {
		t.Error("a range that is none was taken")
	}
}

func TestNewSubnetsRefuses(t *testing.T) {
	for _, test := range []struct {
		ranges       string
		bits4, bits6 int
	}{
		{"", 0, 0}, {"10.0.0.0/16 10.1.0.0/16", 0, 0}, {"10.0.0.0/25", 0, 0}, {"10.0.0.0/16", 31, 0}, {"fd00::/65", 0, 0}, {"fd00::/16", 0, 0}, {"fd00::/120", 0, 127}, {"::ffff:10.0.0.0/112", 0, 120},
	} {
		t.Run(fmt.Sprint(test), func(t *testing.T) {
			if _, err := newSubnets(prefixes(strings.Fields(test.ranges)...), bits(test.bits4, test.bits6)); err == nil {
				t.Error("no error")
			}
		})
	}
}
