package cni

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestPrepareAndRemoveAll(t *testing.T) {
	value := func(name string) string {
		t.Helper()
		v, err := readSysctl(name)
		must(t, err)
		return v
	}
	onLo := func() (out []netip.Addr) {
		t.Helper()
		lo, err := netlink.LinkByName("lo")
		must(t, err)
		addrs, err := netlink.AddrList(lo, netlink.FAMILY_ALL)
		must(t, err)
		for _, a := range addrs {
			out = append(out, toAddr(a.IP))
		}
		return out
	}
	// One uplink listens to routers, another is told by other means.
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "learns"
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "static"}))
	t.Cleanup(func() { must(t, disconnect("learns")) })
	for _, c := range []struct {
		before string
		nodes  []netip.Addr
	}{{"0", nodeAddrs}, {"1", nodeAddrs}, {"0", nodeAddrs[:1]}, {"0", nodeAddrs[1:]}} {
		before := map[string]string{forward4: c.before, forward6: c.before, conf6 + "learns/accept_ra": "1", conf6 + "static/accept_ra": "0"}
		must(t, os.WriteFile(procSys+forward4, []byte(c.before), 0))
		must(t, os.WriteFile(procSys+forward6, []byte(c.before), 0))
		must(t, setSysctls([]sysctl{{conf6 + "learns/accept_ra", "1"}, {conf6 + "static/accept_ra", "0"}}))
		has := func(is4 bool) bool {
			return slices.ContainsFunc(c.nodes, func(a netip.Addr) bool { return a.Is4() == is4 })
		}
		dir := filepath.Join(t.TempDir(), "state")
		for range 2 { // an agent starts more than once
			must(t, Prepare(dir, c.nodes, dnsAddrs))
			want := map[string]string{forward4: c.before, forward6: c.before, conf6 + "learns/accept_ra": "1", conf6 + "static/accept_ra": "0"}
			if has(true) {
				want[forward4] = "1"
			}
			if has(false) {
				want[forward6] = "1"
				if c.before == "0" { // a router's interface listened to nobody, and goes on so
					want[conf6+"learns/accept_ra"] = "2"
				}
			}
			for name, v := range want {
				if got := value(name); got != v {
					t.Errorf("%+v: after Prepare %s is %s, want %s", c, name, got, v)
				}
			}
			for _, a := range dnsAddrs {
				if !slices.Contains(onLo(), a) {
					t.Errorf("%s is not on lo", a)
				}
			}
		}
		must(t, RemoveAll(dir, testAlias, dnsAddrs))
		for name, v := range before {
			if got := value(name); got != v {
				t.Errorf("%+v: after RemoveAll %s is %s, want %s", c, name, got, v)
			}
		}
		for _, a := range dnsAddrs {
			if slices.Contains(onLo(), a) {
				t.Errorf("%s is left on lo", a)
			}
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	}
	must(t, os.WriteFile(procSys+forward4, []byte("0"), 0))
	must(t, os.WriteFile(procSys+forward6, []byte("0"), 0))
	must(t, RemoveAll(filepath.Join(t.TempDir(), "never"), testAlias, dnsAddrs))
}
