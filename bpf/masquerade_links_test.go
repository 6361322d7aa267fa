package bpf

import (
	"net/netip"
	"testing"
)

// At a link with addresses of its own pods' packets leave with these, and answers for them find back; the node's address is the node's there, too.
func TestLinksWithAddressesOfTheirOwn(t *testing.T) {
	d := masqueraded(t, 62000, 62000)
	out, in := d.net.Programs[egressProgram], d.net.Programs[uplinkProgram]
	const here = 1 // where test packets are
	second := map[string]string{"IPv4": "198.51.100.9", "IPv6": "2001:db8:51::9"}
	both := []netip.Addr{netip.MustParseAddr(second["IPv4"]), netip.MustParseAddr(second["IPv6"])}
	server := func(f family, port uint16) netip.AddrPort { return at(f.far, port-39000) } // each flow has another, so that ports don't run out
	leaves := func(f family, what, from string, port uint16, want netip.AddrPort) {
		t.Helper()
		verdict, got := run(t, out, frame(17, at(from, port), server(f, port), []byte("question")))
		if src, dst := ends(got); verdict != actOK || src != want || dst != server(f, port) {
			t.Errorf("%s, %s: verdict %d, from %s to %s; want from %s", f.name, what, verdict, src, dst, want)
		}
	}
	for _, f := range families {
		must(t, d.LeaveAs(nil))
		leaves(f, "no address of its own", f.pod, 40000, at(f.node, 62000))

		must(t, d.LeaveAs(map[int][]netip.Addr{here: both, 77: nil}))
		own := at(second[f.name], 62000)
		leaves(f, "another flow", f.pod, 40001, own)
		leaves(f, "the flow of before", f.pod, 40000, at(f.node, 62000))
		leaves(f, "the node", f.node, 40002, at(f.node, 40002))
		leaves(f, "the node by its other address", second[f.name], 40003, at(second[f.name], 40003))
		for to, want := range map[netip.AddrPort]netip.AddrPort{own: at(f.pod, 40001), at(f.node, 62000): at(f.pod, 40000)} {
			answer := frame(17, server(f, want.Port()), to, []byte("answer"))
			verdict, got := run(t, in, answer)
			if _, dst := ends(got); verdict != actRedirect || dst != want {
				t.Errorf("%s: the answer to %s: verdict %d, to %s; want to %s", f.name, to, verdict, dst, want)
			}
			checkSums(t, got[:len(answer)])
		}

		// All fragments of a datagram leave with one address, in whichever way its flow began.
		for port, want := range map[uint16]string{40000: f.node, 40001: second[f.name]} {
			whole := frame(17, at(f.pod, port), server(f, port), make([]byte, 24))
			for i, in := range [][]byte{cut(whole, port, 0, true), later(17, f.pod, f.far, port, 32)} {
				verdict, got := run(t, out, in)
				if src, _ := addrs(got); verdict != actOK || src != netip.MustParseAddr(want) {
					t.Errorf("%s, fragment %d of a flow as %s: verdict %d, from %s", f.name, i, want, verdict, src)
				}
			}
		}

		// The address goes: who had it is dropped once, and has the node's then.
		must(t, d.LeaveAs(map[int][]netip.Addr{77: both}))
		if verdict, _ := run(t, out, frame(17, at(f.pod, 40001), server(f, 40001), []byte("question"))); verdict != actShot {
			t.Errorf("%s: an address that the link has no more: verdict %d", f.name, verdict)
		}
		if verdict, _ := run(t, in, frame(17, server(f, 40001), own, []byte("answer"))); verdict != actOK {
			t.Errorf("%s: an answer to that: verdict %d", f.name, verdict)
		}
		must(t, d.LeaveAs(map[int][]netip.Addr{here: both[:1]}))
		if f.name == "IPv6" {
			leaves(f, "a link of the other family alone", f.pod, 40004, at(f.node, 62000))
		}
	}
}
