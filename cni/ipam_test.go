package cni

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

func newIPAM(t *testing.T, dir string) (*ipam, *time.Time) {
	t.Helper()
	p, err := openIPAM(dir)
	must(t, err)
	now := time.Unix(1_000_000, 0)
	p.now = func() time.Time { return now }
	return p, &now
}

// give allocates an address of each range.
func (p *ipam) give(id, ifname string, ranges ...string) ([]netip.Addr, error) {
	var list []netip.Prefix
	for _, r := range ranges {
		list = append(list, netip.MustParsePrefix(r))
	}
	a, durable, err := p.allocate(list, Allocation{ContainerID: id, Ifname: ifname, Host: "h"})
	if err == nil {
		err = durable()
	}
	return a.Addrs, err
}

func TestAllocateGivesEachAddressOnce(t *testing.T) {
	for _, c := range []struct {
		cidr        string
		count       int
		first, last string
	}{
		{"10.244.3.0/24", 253, "10.244.3.2", "10.244.3.254"}, {"10.0.0.0/30", 1, "10.0.0.2", "10.0.0.2"}, {"10.244.255.128/29", 5, "10.244.255.130", "10.244.255.134"},
		{"fd00::/120", 254, "fd00::2", "fd00::ff"}, {"fd00::f0/126", 2, "fd00::f2", "fd00::f3"},
	} {
		p, _ := newIPAM(t, t.TempDir())
		seen := map[netip.Addr]bool{}
		var got []netip.Addr
		for i := range c.count {
			a, err := p.give("c"+strconv.Itoa(i), "eth0", c.cidr)
			must(t, err)
			got = append(got, a[0])
			if seen[a[0]] || !netip.MustParsePrefix(c.cidr).Contains(a[0]) {
				t.Errorf("%s gave %s again or out of range", c.cidr, a[0])
			}
			seen[a[0]] = true
		}
		if got[0].String() != c.first || got[len(got)-1].String() != c.last {
			t.Errorf("%s gives %s to %s, want %s to %s", c.cidr, got[0], got[len(got)-1], c.first, c.last)
		}
		if _, err := p.give("more", "eth0", c.cidr); !errors.Is(err, errFull) || !strings.Contains(err.Error(), c.cidr) {
			t.Errorf("%s is full: error %v, want one that names the range", c.cidr, err)
		}
	}
}

// A range of 2^64 addresses is not walked, neither for the next address nor for what rests.
func TestAllocateInHugeRanges(t *testing.T) {
	for _, cidr := range []string{"fd00:1:2:3::/64", "fd00::/8", "10.0.0.0/8"} {
		p, now := newIPAM(t, t.TempDir())
		r := netip.MustParsePrefix(cidr)
		p.last[r.Addr().Is4()] = nth(r, firstHost+hosts(r)-1) // the last that is given: the round begins anew
		for i := range 100 {
			a, err := p.give(strconv.Itoa(i), "eth0", cidr)
			must(t, err)
			if want := nth(r, uint64(firstHost+i)); a[0] != want {
				t.Fatalf("%s gave %s, want %s", cidr, a[0], want)
			}
			must(t, p.release(strconv.Itoa(i), "eth0"))
		}
		if len(p.resting) != 100 || len(p.queue) != 100 {
			t.Errorf("%d rest, %d in the queue, want 100", len(p.resting), len(p.queue))
		}
		*now = now.Add(grace)
		_, err := p.give("x", "eth0", cidr)
		must(t, err)
		if len(p.resting)+len(p.queue) != 0 {
			t.Errorf("%d rest, %d in the queue after their time", len(p.resting), len(p.queue))
		}
	}
	// What is remembered of another range that has the same beginning is no place to go on at.
	p, _ := newIPAM(t, t.TempDir())
	p.last[false] = netip.MustParseAddr("fd00::5:0:0:0:9")
	if a, err := p.give("x", "eth0", "fd00::/32"); err != nil || a[0].String() != "fd00::2" {
		t.Errorf("got %v, %v", a, err)
	}
}

func TestAllocateBothFamilies(t *testing.T) {
	dir := t.TempDir()
	p, _ := newIPAM(t, dir)
	for i, want := range []string{"[10.0.0.2 fd00::2]", "[10.0.0.3 fd00::3]"} {
		if a, err := p.give(strconv.Itoa(i), "eth0", "10.0.0.0/29", "fd00::/64"); err != nil || fmt.Sprint(a) != want {
			t.Errorf("got %v, %v, want %s", a, err, want)
		}
	}
	p, _ = newIPAM(t, dir)
	if a, err := p.give("6 first", "eth0", "fd00::/64", "10.0.0.0/29"); err != nil || fmt.Sprint(a) != "[fd00::4 10.0.0.4]" {
		t.Errorf("got %v, %v: the round of each family goes on after a restart", a, err)
	}
	for range 2 {
		_, err := p.give(strconv.Itoa(len(p.byKey)), "eth0", "10.0.0.0/29")
		must(t, err)
	}
	// One family is full: nothing is taken of the other.
	if _, err := p.give("more", "eth0", "fd00::/64", "10.0.0.0/29"); !errors.Is(err, errFull) || len(p.taken) != 8 || len(p.byKey) != 5 {
		t.Errorf("error %v, taken %v", err, p.taken)
	}
}

func TestAllocateRefusesRangesWithoutRoom(t *testing.T) {
	p, _ := newIPAM(t, t.TempDir())
	for _, ranges := range [][]string{{"10.0.0.0/31"}, {"10.0.0.1/32"}, {"fd00::/127"}, {"fd00::1/128"}, {}, {"10.0.0.0/24", "10.0.1.0/24"}, {"fd00::/64", "fd01::/64"}, {"10.0.0.0/24", "fd00::/64", "10.0.1.0/24"}} {
		if a, err := p.give("c", "eth0", ranges...); err == nil {
			t.Errorf("%s gave %s", ranges, a)
		}
	}
}

func TestReleasedAddressRests(t *testing.T) {
	p, now := newIPAM(t, t.TempDir())
	prefix := "10.0.0.0/29" // .2 to .6
	next := func(id string) string {
		t.Helper()
		a, err := p.give(id, "eth0", prefix)
		must(t, err)
		return a[0].String()
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
	prefix := "10.0.0.0/24"
	_, err := p.give("a", "b_c", prefix) // keys that would meet, were the names only glued
	must(t, err)
	_, err = p.give("a_b", "c", prefix)
	must(t, err)
	must(t, p.release("a_b", "c"))
	must(t, os.WriteFile(filepath.Join(dir, ".tmp-123"), []byte("{"), 0o600)) // a crash while writing
	p, _ = newIPAM(t, dir)
	if _, err := os.Stat(filepath.Join(dir, ".tmp-123")); !os.IsNotExist(err) {
		t.Errorf("what a crash left is there still: %v", err)
	}
	if a, ok := p.get("a", "b_c"); !ok || fmt.Sprint(a.Addrs) != "[10.0.0.2]" || len(p.list()) != 1 {
		t.Errorf("after the restart: %+v, list %+v", a, p.list())
	}
	if a, err := p.give("new", "eth0", prefix); err != nil || fmt.Sprint(a) != "[10.0.0.4]" {
		t.Errorf("got %v, %v; the round goes on after a restart", a, err)
	}
}

// A node that was set up when a pod had one address goes on with its pods.
func TestAllocationsOfTheOldShape(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "a,eth0.json"), []byte(`{"containerID":"a","ifname":"eth0","addr":"10.0.0.2","host":"h"}`), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, lastFile), []byte("10.0.0.2"), 0o600))
	p, _ := newIPAM(t, dir)
	if a, ok := p.get("a", "eth0"); !ok || fmt.Sprint(a.Addrs) != "[10.0.0.2]" {
		t.Errorf("%+v, %v", a, ok)
	}
	if a, err := p.give("b", "eth0", "10.0.0.0/29", "fd00::/64"); err != nil || fmt.Sprint(a) != "[10.0.0.3 fd00::2]" {
		t.Errorf("got %v, %v", a, err)
	}
}

func TestDamagedAllocationsAreAnError(t *testing.T) {
	for name, content := range map[string]string{"no JSON": "{", "no address": `{"containerID":"b","ifname":"eth0","host":"h"}`,
		"twice": `{"containerID":"b","ifname":"eth0","addrs":["10.0.0.2"],"host":"h"}`, "twice, the old way": `{"containerID":"b","ifname":"eth0","addr":"10.0.0.2","host":"h"}`,
		"no name of a host's side": `{"containerID":"b","ifname":"eth0","addrs":["10.0.0.7"]}`, "an address of nothing": `{"containerID":"b","ifname":"eth0","addrs":["10.0.0.7",""],"host":"h"}`,
		"two of a family": `{"containerID":"b","ifname":"eth0","addrs":["10.0.0.7","10.0.0.8"],"host":"h"}`} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			p, _ := newIPAM(t, dir)
			_, err := p.give("a", "eth0", "10.0.0.0/24")
			must(t, err)
			must(t, os.WriteFile(filepath.Join(dir, "b,eth0.json"), []byte(content), 0o600))
			if _, err := openIPAM(dir); err == nil || !strings.Contains(err.Error(), dir) {
				t.Errorf("error %v, want one that names the place", err)
			}
		})
	}
}

// What a power failure left unfinished is nobody's; but what belongs to an interface that is there has to be read.
func TestTornAllocations(t *testing.T) {
	dir := t.TempDir()
	torn := func(id string) string {
		path := allocationFile(dir, Allocation{ContainerID: id, Ifname: "eth0"})
		must(t, os.WriteFile(path, make([]byte, 100), 0o600))
		return path
	}
	gone := torn("gone")
	p, err := openIPAM(dir)
	must(t, err)
	if _, err := os.Stat(gone); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file of a pod that never was: %v", err)
	}
	if _, err := p.give("gone", "eth0", "10.244.0.0/24"); err != nil {
		t.Error(err)
	}
	here := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: hostName("here", "eth0")}, PeerName: "torn0"}
	must(t, netlink.LinkAdd(here))
	t.Cleanup(func() { must(t, netlink.LinkDel(here)) })
	torn("here")
	if _, err := openIPAM(dir); err == nil || !strings.Contains(err.Error(), "here,eth0.json is corrupt") {
		t.Errorf("the file of a pod that is there: %v", err)
	}
}
