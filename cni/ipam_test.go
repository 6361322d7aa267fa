package cni

import (
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

func newIPAM(t *testing.T, dir string) (*ipam, *time.Time) {
	t.Helper()
	p, err := openIPAM(dir)
	must(t, err)
	now := time.Unix(1_000_000, 0)
	p.now = func() time.Time { return now }
	return p, &now
}

func TestAllocateGivesEachAddressOnce(t *testing.T) {
	for _, c := range []struct {
		cidr  string
		count int
		first string
	}{{"10.244.3.0/24", 253, "10.244.3.2"}, {"10.0.0.0/30", 1, "10.0.0.2"}, {"10.244.255.128/29", 5, "10.244.255.130"}} {
		p, _ := newIPAM(t, t.TempDir())
		prefix := netip.MustParsePrefix(c.cidr)
		seen := map[netip.Addr]bool{}
		for i := range c.count {
			a, err := p.allocate(prefix, "c"+strconv.Itoa(i), "eth0", "h")
			must(t, err)
			if i == 0 && a.Addr.String() != c.first {
				t.Errorf("%s begins with %s, want %s", c.cidr, a.Addr, c.first)
			}
			if seen[a.Addr] || !prefix.Contains(a.Addr) {
				t.Errorf("%s gave %s again or out of range", c.cidr, a.Addr)
			}
			seen[a.Addr] = true
		}
		if _, err := p.allocate(prefix, "more", "eth0", "h"); err == nil || !strings.Contains(err.Error(), c.cidr) {
			t.Errorf("%s is full: error %v, want one that names the range", c.cidr, err)
		}
	}
}

func TestAllocateRefusesRangesWithoutRoom(t *testing.T) {
	p, _ := newIPAM(t, t.TempDir())
	for _, cidr := range []string{"10.0.0.0/31", "10.0.0.1/32", "fd00::/64"} {
		if a, err := p.allocate(netip.MustParsePrefix(cidr), "c", "eth0", "h"); err == nil {
			t.Errorf("%s gave %s", cidr, a.Addr)
		}
	}
}

func TestReleasedAddressRests(t *testing.T) {
	p, now := newIPAM(t, t.TempDir())
	prefix := netip.MustParsePrefix("10.0.0.0/29") // .2 to .6
	next := func(id string) string {
		t.Helper()
		a, err := p.allocate(prefix, id, "eth0", "h")
		must(t, err)
		return a.Addr.String()
	}
	for i, want := range []string{"10.0.0.2", "10.0.0.3"} {
		if got := next("c" + strconv.Itoa(i)); got != want {
			t.Fatalf("got %s, want %s", got, want)
		}
	}
	must(t, p.release("c0", "eth0"))
	must(t, p.release("c0", "eth0")) // twice is fine
	for _, want := range []string{"10.0.0.4", "10.0.0.5", "10.0.0.6"} {
		if got := next(want); got != want {
			t.Fatalf("got %s, want %s: .2 still rests", got, want)
		}
	}
	if got := next("again"); got != "10.0.0.2" {
		t.Fatalf("got %s; with nothing else free, what rests is used", got)
	}
	must(t, p.release("10.0.0.5", "eth0"))
	*now = now.Add(time.Second)
	must(t, p.release("10.0.0.4", "eth0"))
	if got := next("oldest"); got != "10.0.0.5" {
		t.Errorf("got %s, want what rests longest", got)
	}
}

func TestAllocationsSurviveRestart(t *testing.T) {
	dir := t.TempDir()
	p, _ := newIPAM(t, dir)
	prefix := netip.MustParsePrefix("10.0.0.0/24")
	_, err := p.allocate(prefix, "a", "b_c", "h1") // keys that would meet, were the names only glued
	must(t, err)
	_, err = p.allocate(prefix, "a_b", "c", "h2")
	must(t, err)
	must(t, p.release("a_b", "c"))
	must(t, os.WriteFile(filepath.Join(dir, ".tmp-123"), []byte("{"), 0o600)) // a crash while writing
	p, _ = newIPAM(t, dir)
	if a, ok := p.get("a", "b_c"); !ok || a.Addr.String() != "10.0.0.2" || len(p.list()) != 1 {
		t.Errorf("after the restart: %+v, list %+v", a, p.list())
	}
	if a, err := p.allocate(prefix, "new", "eth0", "h"); err != nil || a.Addr.String() != "10.0.0.4" {
		t.Errorf("got %v, %v; the round goes on after a restart", a.Addr, err)
	}
}

func TestDamagedAllocationsAreAnError(t *testing.T) {
	for name, content := range map[string]string{"no JSON": "{", "no address": `{"containerID":"a","ifname":"eth0","host":"h"}`, "twice": `{"containerID":"b","ifname":"eth0","addr":"10.0.0.2","host":"h"}`} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			p, _ := newIPAM(t, dir)
			_, err := p.allocate(netip.MustParsePrefix("10.0.0.0/24"), "a", "eth0", "h")
			must(t, err)
			must(t, os.WriteFile(filepath.Join(dir, "b,eth0.json"), []byte(content), 0o600))
			if _, err := openIPAM(dir); err == nil || !strings.Contains(err.Error(), dir) {
				t.Errorf("error %v, want one that names the place", err)
			}
		})
	}
}
