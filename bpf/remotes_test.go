package bpf

import (
	"net/netip"
	"testing"
)

// Rows of other nodes are read back as they were written, by the next agent too; the longest prefix decides; bad ones are refused.
func TestRemotes(t *testing.T) {
	c := tablesConfig(t)
	d := open(t, c)
	node4, node6 := netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")
	want := map[string]Remote{}
	add := func(owner, prefix string, node netip.Addr) Remote {
		r := Remote{Owner: owner, Prefix: netip.MustParsePrefix(prefix), Node: node}
		want[prefix] = r
		return r
	}
	behind := func(owner, prefix string, node netip.Addr) Remote {
		r := add(owner, prefix, node)
		r.Behind = true
		want[prefix] = r
		return r
	}
	for owner, rows := range map[string][]Remote{
		"b": {add("b", "10.244.1.0/24", node4), add("b", "192.0.2.2/32", node4), add("b", "fd00::1:0:0:0:0/64", node4)},
		"c": {add("c", "10.244.1.128/32", node6), add("c", "2001:db8::2/128", node6)},
		"d": {add("d", "10.244.3.0/24", netip.Addr{})},
		"e": {behind("e", "10.244.4.0/24", node4)},
	} {
		if _, err := d.Remotes().Replace(owner, rows); err != nil {
			t.Fatal(err)
		}
	}
	check := func() {
		t.Helper()
		have := dumped(t, d.Remotes(), func(r Remote) string { return r.Prefix.String() })
		for k, w := range want {
			if have[w.Prefix.String()] != w {
				t.Errorf("%s: have %+v, want %+v", k, have[w.Prefix.String()], w)
			}
		}
		if len(have) != len(want) {
			t.Errorf("%d rows, want %d", len(have), len(want))
		}
	}
	check()
	must(t, d.Close())
	d = open(t, c)
	check()
	if _, err := d.Remotes().Replace("f", []Remote{{Prefix: netip.MustParsePrefix("10.244.1.0/24"), Node: node4}}); err == nil {
		t.Error("a range of another node was taken over")
	}
	for _, bad := range []netip.Prefix{{}, netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::ffff:10.0.0.0/104")} {
		if _, err := d.Remotes().Replace("f", []Remote{{Prefix: bad, Node: node4}}); err == nil {
			t.Errorf("%s was accepted", bad)
		}
	}
	if got, err := d.Remotes().Replace("b", []Remote{want["10.244.1.0/24"]}); err != nil || got != (Changes{Deleted: 2}) {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := d.Remotes().Prune(func(o string) bool { return o == "b" }); err != nil || got != (Changes{Deleted: 4}) {
		t.Errorf("%+v, %v", got, err)
	}
	want = map[string]Remote{"b": want["10.244.1.0/24"]}
	check()
}

// What the pods' program does with the rows, without a device: what has no tunnel is dropped, what is native goes by the kernel's routes.
func TestVerdictsOnRemotes(t *testing.T) {
	d := withPods(t)
	for owner, rows := range map[string][]Remote{
		"b": {{Prefix: netip.MustParsePrefix("10.244.1.0/24"), Node: netip.MustParseAddr("192.0.2.2")}},
		"c": {{Prefix: netip.MustParsePrefix("10.244.2.0/24")}},
	} {
		if _, err := d.Remotes().Replace(owner, rows); err != nil {
			t.Fatal(err)
		}
	}
	must(t, d.AttachTunnel(0, 1450))
	big := make([]byte, 1440)
	for name, c := range map[string]struct {
		in     []byte
		want   uint32
		reason string
	}{
		"without a tunnel":            {frame(6, ap(pod+":1000"), ap("10.244.1.2:80"), nil), actShot, "drop_no_remote"},
		"too large":                   {frame(17, ap(pod+":1000"), ap("10.244.1.2:80"), big), actOK, "path_too_big"},
		"native, too large":           {frame(17, ap(pod+":1000"), ap("10.244.2.2:80"), big), actOK, "path_too_big"},
		"native, without a route":     {frame(6, ap(pod+":1000"), ap("10.244.2.2:80"), nil), actOK, "pod_to_remote"},
		"to nobody: the host's stack": {frame(6, ap(pod+":1000"), ap("10.244.3.2:80"), nil), actOK, ""},
	} {
		before, err := d.Counters()
		must(t, err)
		if got, _ := run(t, d.net.Programs[podProgram], c.in); got != c.want {
			t.Errorf("%s: verdict %d, want %d", name, got, c.want)
		}
		after, err := d.Counters()
		must(t, err)
		if c.reason != "" && after[c.reason] != before[c.reason]+1 {
			t.Errorf("%s: %s does not count it", name, c.reason)
		}
	}
	// Nothing comes in by the tunnel that did not come through it.
	if got, _ := run(t, d.net.Programs[tunnelIn], frame(6, ap("10.244.1.2:80"), ap(pod+":1000"), nil)); got != actShot {
		t.Errorf("verdict %d on a packet without a tunnel", got)
	}
	if got, _ := run(t, d.net.Programs[tunnelOut], frame(6, ap("192.0.2.1:80"), ap("10.244.9.2:1000"), nil)); got != actShot {
		t.Errorf("verdict %d on a packet to no node", got)
	}
}
