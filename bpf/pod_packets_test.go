package bpf

import (
	"encoding/binary"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
)

// fate runs a packet through a program and tells the verdict, the packet, and the one thing that was counted, if any.
func fate(t testing.TB, d *Datapath, p *ebpf.Program, in []byte) (verdict uint32, out []byte, counted string) {
	t.Helper()
	before, err := d.Counters()
	must(t, err)
	verdict, out = run(t, p, in)
	after, err := d.Counters()
	must(t, err)
	for name, n := range after {
		if n == before[name] {
			continue
		}
		if counted != "" || n != before[name]+1 {
			t.Errorf("%x is counted more than once: %s, %s", in, counted, name)
		}
		counted = name
	}
	return verdict, out, counted
}

func edited(b []byte, change func(b []byte)) []byte {
	b = append([]byte(nil), b...)
	change(b)
	return b
}

// options puts IPv4 options before what a frame carries.
func options(b []byte, o ...byte) []byte {
	for len(o)%4 != 0 {
		o = append(o, 0)
	}
	b = slices.Concat(b[:34], o, b[34:])
	b[14] += byte(len(o) / 4)
	binary.BigEndian.PutUint16(b[16:], uint16(len(b)-14))
	binary.BigEndian.PutUint16(b[24:], 0)
	binary.BigEndian.PutUint16(b[24:], ^sum(b[14:34+len(o)], 0))
	return b
}

func TestPodProgramVerdicts(t *testing.T) {
	d := withPods(t, func(c *Config) {
		c.AllowLinkLocal = []netip.Prefix{netip.MustParsePrefix("169.254.20.10/32"), netip.MustParsePrefix("fe80::20/128")}
	})
	type want struct {
		verdict uint32
		counted string
	}
	passed, toPod := want{actOK, ""}, want{actRedirect, "pod_to_pod"}
	malformed, spoofed, linkLocal := want{actShot, "drop_malformed"}, want{actShot, "drop_spoofed"}, want{actShot, "drop_link_local"}
	ignored, notIP, routed := want{actShot, "link_ignored"}, want{actShot, "drop_not_ip"}, want{actShot, "drop_source_route"}
	type packet struct {
		in   []byte
		want want
	}
	etherType := func(n uint16) func([]byte) { return func(b []byte) { binary.BigEndian.PutUint16(b[12:], n) } }
	for _, f := range families {
		tcp, udp := frame(6, at(f.pod, 1000), at(f.other, 80), []byte("data")), frame(17, at(f.pod, 1000), at(f.other, 80), []byte("data"))
		lengthAt, stranger, strange := 16, "10.244.9.9", "169.254.20.10"
		if isV6(tcp) {
			lengthAt, stranger, strange = 18, "fd00:10:244::99", "fe80::20"
		}
		length := func(add int) func([]byte) {
			return func(b []byte) {
				binary.BigEndian.PutUint16(b[lengthAt:], uint16(int(binary.BigEndian.Uint16(b[lengthAt:]))+add))
			}
		}
		packets := map[string]packet{
			"to a pod of this node":                {tcp, toPod},
			"a datagram to a pod":                  {udp, toPod},
			"an echo to a pod":                     {icmp(f.pod, f.other, f.echo, 0, 1, nil), toPod},
			"a protocol without ports":             {frame(47, at(f.pod, 1), at(f.other, 1), nil), toPod},
			"a first fragment to a pod":            {cut(udp, 7, 0, true), toPod},
			"a later fragment to a pod":            {later(17, f.pod, f.other, 7, 16), toPod},
			"to elsewhere":                         {frame(6, at(f.pod, 1000), at(f.far, 80), nil), passed},
			"a name's server elsewhere":            {frame(17, at(f.pod, 1000), at(f.far, 53), []byte("rubbish")), passed},
			"with another's address":               {frame(6, at(f.other, 1000), at(f.pod, 80), nil), spoofed},
			"with an unknown address":              {frame(6, at(stranger, 1000), at(f.other, 80), nil), spoofed},
			"with the node's address":              {frame(17, at(f.node, 1000), at(f.far, 80), nil), spoofed},
			"with another MAC address":             {edited(tcp, func(b []byte) { b[11] ^= 1 }), spoofed},
			"with another manufacturer's":          {edited(tcp, func(b []byte) { b[6] ^= 0x80 }), spoofed},
			"with another's address, first part":   {cut(frame(17, at(f.other, 1), at(f.pod, 1), nil), 7, 0, true), spoofed},
			"with another's address, later part":   {later(17, f.other, f.pod, 7, 16), spoofed},
			"with another's, over IP alone":        {frame(47, at(f.other, 1), at(f.pod, 1), nil), spoofed},
			"a query with another's address":       {frame(17, at(f.other, 1000), at(f.dns, 53), query(t, "a.", 1, false)), spoofed},
			"a link-local service":                 {frame(6, at(f.pod, 1000), at(f.linkLocal, 80), nil), linkLocal},
			"a part for a link-local service":      {later(17, f.pod, f.linkLocal, 7, 16), linkLocal},
			"a link-local service that is allowed": {frame(17, at(f.pod, 1000), at(strange, 53), nil), passed},
			"cut within its ports":                 {tcp[:len(tcp)-22], malformed},
			"longer than the frame":                {edited(tcp, length(1)), malformed},
			"ports in the padding":                 {edited(udp, length(-7)), malformed},
			"padded":                               {append(udp[:len(udp):len(udp)], 0, 0, 0, 0), toPod},
			"a fragment over a TCP header":         {later(6, f.pod, f.other, 7, 8), malformed},
			"half a header in the first fragment":  {edited(cut(frame(6, at(f.pod, 1), at(f.other, 1), nil), 7, 0, true), length(-8)), malformed},
			"the other version":                    {edited(tcp, func(b []byte) { b[14] ^= 0x20 }), malformed},
			"a VLAN":                               {edited(tcp, etherType(0x8100)), notIP},
			"MPLS":                                 {edited(tcp, etherType(0x8847)), notIP},
			"the bridges' protocol":                {edited(tcp, etherType(0x0026)), notIP},
		}
		if isV6(tcp) {
			hop, route, target, fragment, auth := extension(0, 1), extension(43, 3), extension(60, 2), extension(44, 1), extension(51, 2)
			fragment[1] = 0
			left := edited(route, func(b []byte) { b[3] = 1 })
			maps.Copy(packets, map[string]packet{
				"a mapped address":                  {frame(6, at("::ffff:10.244.0.2", 1), at(f.other, 1), nil), malformed},
				"to a mapped address":               {frame(6, at(f.pod, 1), at("::ffff:10.244.0.3", 1), nil), malformed},
				"a link-local address":              {frame(6, at("fe80::2", 1), at(f.other, 1), nil), want{actShot, "drop_link_local_source"}},
				"link-local to link-local":          {frame(17, at("fe80::2", 1), at("fe80::1", 1), nil), want{actShot, "drop_link_local_source"}},
				"link-local to what is allowed":     {frame(17, at("fe80::2", 1), at("fe80::20", 1), nil), want{actShot, "drop_link_local_source"}},
				"no address":                        {frame(17, at("::", 1), at(f.other, 1), nil), spoofed},
				"to all nodes":                      {frame(17, at(f.pod, 1), at("ff02::1", 1), nil), linkLocal},
				"to the neighbours' names":          {frame(17, at(f.pod, 5353), at("ff02::fb", 5353), nil), linkLocal},
				"to a group of the site":            {frame(17, at(f.pod, 1), at("ff05::2", 1), nil), passed},
				"all extension headers":             {extended(tcp, hop, target, route, fragment, auth, target), toPod},
				"as many headers as there may be":   {extended(tcp, slices.Repeat([][]byte{target}, 8)...), toPod},
				"one header too many":               {extended(tcp, slices.Repeat([][]byte{target}, 9)...), malformed},
				"hop-by-hop behind another":         {extended(tcp, target, hop), malformed},
				"two fragment headers":              {extended(tcp, fragment, fragment), malformed},
				"a header longer than the packet":   {extended(tcp, edited(target, func(b []byte) { b[1] = 200 })), malformed},
				"headers that do not end":           {extended(tcp, hop)[:14+40+7], malformed},
				"no next header":                    {extended(frame(59, at(f.pod, 1), at(f.other, 1), nil), hop), toPod},
				"a route that it has come":          {extended(tcp, route), toPod},
				"a route that it is to go":          {extended(tcp, left), routed},
				"a route behind others":             {extended(tcp, hop, target, left), routed},
				"another's address behind headers":  {extended(frame(6, at(f.other, 1), at(f.pod, 1), nil), hop, target), spoofed},
				"link-local behind headers":         {extended(frame(6, at(f.pod, 1), at(f.linkLocal, 1), nil), hop, target), linkLocal},
				"later, with a header not sent yet": {edited(later(60, f.pod, f.other, 7, 16), func(b []byte) {}), toPod},
				"asks for routers":                  {icmp("fe80::2", "ff02::2", 133, 0, 0, nil), ignored},
				"asks for routers without address":  {icmp("::", "ff02::2", 133, 0, 0, nil), ignored},
				"joins groups":                      {extended(icmp("::", "ff02::16", 143, 0, 1, make([]byte, 20)), edited(hop, func(b []byte) { b[2] = 5; b[3] = 2 })), ignored},
				"joins groups as of old":            {icmp(f.pod, "ff02::16", 131, 0, 0, make([]byte, 16)), ignored},
				"says that it is a router":          {icmp("fe80::2", "ff02::1", 134, 0, 0, make([]byte, 8)), want{actShot, "drop_neighbour"}},
				"the same, to a pod":                {icmp(f.pod, f.other, 134, 0, 0, make([]byte, 8)), want{actShot, "drop_neighbour"}},
				"the same, behind headers":          {extended(icmp(f.pod, f.other, 134, 0, 0, make([]byte, 8)), target), want{actShot, "drop_neighbour"}},
				"the same, in a fragment":           {cut(icmp(f.pod, f.other, 134, 0, 0, make([]byte, 8)), 7, 0, true), want{actShot, "drop_neighbour"}},
				"says where somebody is":            {icmp(f.pod, f.other, 136, 0, 0, make([]byte, 24)), want{actShot, "drop_neighbour"}},
				"sends another way":                 {icmp(f.pod, f.other, 137, 0, 0, make([]byte, 32)), want{actShot, "drop_neighbour"}},
			})
		} else {
			maps.Copy(packets, map[string]packet{
				"the unknown address":          {frame(17, at("0.0.0.0", 68), at("255.255.255.255", 67), nil), spoofed},
				"to all":                       {frame(17, at(f.pod, 1), at("255.255.255.255", 1), nil), linkLocal},
				"to the neighbours' names":     {frame(17, at(f.pod, 5353), at("224.0.0.251", 5353), nil), linkLocal},
				"to the gateway's address":     {icmp(f.pod, gateway, 8, 0, 1, nil), linkLocal},
				"joins groups":                 {options(frame(2, at(f.pod, 0), at("224.0.0.22", 0), nil), 148, 4, 0, 0), ignored},
				"to a group of the site":       {frame(17, at(f.pod, 1), at("239.1.2.3", 1), nil), passed},
				"with a link-local address":    {frame(17, at("169.254.1.2", 1), at(f.other, 1), nil), spoofed},
				"records its route":            {options(tcp, 1, 7, 7, 4, 0, 0, 0, 0), toPod},
				"names a loose route":          {options(tcp, 1, 131, 7, 4, 169, 254, 169, 254), routed},
				"names a strict route":         {options(tcp, 137, 7, 4, 169, 254, 169, 254), routed},
				"a route behind the end":       {options(tcp, 0, 131, 7, 4, 169, 254, 169, 254), toPod},
				"a fragment with a route":      {cut(options(udp, 131, 7, 4, 1, 2, 3, 4), 7, 0, true), routed},
				"an option of no length":       {options(tcp, 7, 0, 4, 0), malformed},
				"an option past the header":    {options(tcp, 7, 9, 4, 0), malformed},
				"the longest options":          {options(tcp, slices.Repeat([]byte{1}, 40)...), toPod},
				"options past the end":         {edited(tcp, func(b []byte) { b[14] = 0x4f }), malformed},
				"no IP header":                 {edited(tcp, func(b []byte) { b[14] = 0x44 }), malformed},
				"a header longer than all":     {edited(tcp, func(b []byte) { binary.BigEndian.PutUint16(b[16:], 19) }), malformed},
				"ARP for Ethernet's end":       {arpFrame(1, podMAC, pod, other)[:14+27], malformed},
				"ARP of another protocol":      {edited(arpFrame(1, podMAC, pod, other), func(b []byte) { b[17] = 1 }), malformed},
				"ARP with longer addresses":    {edited(arpFrame(1, podMAC, pod, other), func(b []byte) { b[18] = 8 }), malformed},
				"its own address by ARP":       {arpFrame(1, podMAC, pod, pod), ignored},
				"is an address in use?":        {arpFrame(1, podMAC, "0.0.0.0", other), ignored},
				"a reply of its own":           {arpFrame(2, podMAC, pod, "169.254.1.1"), passed},
				"a reply for another":          {arpFrame(2, podMAC, other, pod), want{actShot, "drop_neighbour"}},
				"another's address by ARP":     {arpFrame(1, podMAC, other, other), want{actShot, "drop_neighbour"}},
				"the gateway's by ARP":         {arpFrame(2, podMAC, gateway, pod), want{actShot, "drop_neighbour"}},
				"another's MAC address by ARP": {arpFrame(2, hostMAC, pod, gateway), want{actShot, "drop_neighbour"}},
				"a MAC address within only":    {edited(arpFrame(2, podMAC, pod, gateway), func(b []byte) { copy(b[22:], hostMAC) }), want{actShot, "drop_neighbour"}},
				"RARP":                         {edited(arpFrame(3, podMAC, pod, gateway), func([]byte) {}), want{actShot, "drop_neighbour"}},
			})
		}
		for name, c := range packets {
			t.Run(f.name+" "+name, func(t *testing.T) {
				verdict, out, counted := fate(t, d, d.net.Programs[podProgram], c.in)
				if (want{verdict, counted}) != c.want {
					t.Errorf("verdict %d, counted %q; want %+v", verdict, counted, c.want)
				}
				if verdict != actRedirect && string(out[:len(c.in)]) != string(c.in) {
					t.Error("the packet was changed")
				}
			})
		}
	}
}

// arpFrame says by ARP that somebody has an address, and asks for another one, or tells it.
func arpFrame(op byte, mac net.HardwareAddr, spa, tpa string) []byte {
	b := make([]byte, 42)
	copy(b, []byte{255, 255, 255, 255, 255, 255})
	copy(b[6:], mac)
	copy(b[12:], []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, op})
	copy(b[22:], mac)
	copy(b[28:], netip.MustParseAddr(spa).AsSlice())
	copy(b[38:], netip.MustParseAddr(tpa).AsSlice())
	return b
}

// solicit asks for the neighbour that has an address.
func solicit(src, target string) []byte {
	t := netip.MustParseAddr(target).As16()
	group := netip.MustParseAddr("ff02::1:ff00:0").As16()
	copy(group[13:], t[13:])
	body := t[:]
	if src != "::" {
		body = append(append(body, 1, 1), podMAC...)
	}
	b := icmp(src, netip.AddrFrom16(group).String(), 135, 0, 0, body)
	b[21] = 255
	return b
}

// This side of the veth answers for every address but the pod's own.
func TestNeighboursAreAnswered(t *testing.T) {
	d := withPods(t)
	p := d.net.Programs[podProgram]
	for _, asked := range []string{other, gateway, nodeIP, "198.51.100.1", "10.244.0.77"} {
		verdict, out, counted := fate(t, d, p, arpFrame(1, podMAC, pod, asked))
		want := arpFrame(2, hostMAC, asked, pod)
		copy(want, podMAC)
		copy(want[32:], podMAC)
		if verdict != actRedirect || counted != "neighbour_answered" || string(out[:42]) != string(want) {
			t.Errorf("ARP for %s: verdict %d, counted %q\n%x, want\n%x", asked, verdict, counted, out[:42], want)
		}
	}
	short := solicit(pod6, "fe80::1") // without the option
	short = short[:len(short)-8]
	short[19] -= 8
	for asked, in := range map[string][]byte{
		other6: solicit(pod6, other6), nodeIP6: solicit(pod6, nodeIP6), "2001:db8:ff::1": solicit(pod6, "2001:db8:ff::1"), "fe80::1": short,
	} {
		verdict, out, counted := fate(t, d, p, in)
		if verdict != actRedirect || counted != "neighbour_answered" {
			t.Errorf("%s: verdict %d, counted %q", asked, verdict, counted)
			continue
		}
		out = out[:14+40+32]
		checkSums(t, out)
		src, dst := addrs(out)
		if src.String() != asked || dst.String() != pod6 || out[21] != 255 || out[54] != 136 || out[55] != 0 || out[58] != 0xe0 {
			t.Errorf("%s: from %s to %s: %x", asked, src, dst, out)
		}
		if string(out[:12]) != string(append(slices.Clone(podMAC), hostMAC...)) || netip.AddrFrom16([16]byte(out[62:78])) != src || string(out[78:]) != string(append([]byte{2, 1}, hostMAC...)) {
			t.Errorf("%s: %x", asked, out)
		}
	}
	for name, c := range map[string]struct {
		in      []byte
		counted string
	}{
		"is an address in use?":      {solicit("::", "fd00:10:244::2"), "link_ignored"},
		"is another's in use?":       {solicit("::", other6), "link_ignored"},
		"its own":                    {solicit(pod6, pod6), "link_ignored"},
		"as another":                 {solicit(other6, "fe80::1"), "drop_neighbour"},
		"as a link-local one":        {solicit("fe80::2", "fe80::1"), "drop_neighbour"},
		"from another MAC address":   {edited(solicit(pod6, other6), func(b []byte) { b[11]++ }), "drop_neighbour"},
		"from afar":                  {edited(solicit(pod6, other6), func(b []byte) { b[21] = 64 }), "drop_malformed"},
		"for a group":                {solicit(pod6, "ff02::1"), "drop_malformed"},
		"with a code":                {edited(solicit(pod6, other6), func(b []byte) { b[55] = 1 }), "drop_malformed"},
		"behind extension headers":   {extended(solicit(pod6, other6), extension(60, 1)), "drop_malformed"},
		"in a fragment":              {cut(solicit(pod6, other6), 7, 0, true), "drop_malformed"},
		"shorter than its addresses": {edited(solicit(pod6, other6)[:14+40+20], func(b []byte) { b[19] = 20 }), "drop_malformed"},
	} {
		if verdict, _, counted := fate(t, d, p, c.in); verdict != actShot || counted != c.counted {
			t.Errorf("%s: verdict %d, counted %q, want %s", name, verdict, counted, c.counted)
		}
	}
}

// Whatever a pod sends, nothing with another's address gets past the program.
func FuzzPodPackets(f *testing.F) {
	d := masqueraded(f, 62000, 62001)
	for _, v := range families {
		f.Add(frame(6, at(v.pod, 1000), at(v.other, 80), []byte("x")))
		f.Add(frame(17, at(v.other, 1000), at(v.far, 80), []byte("x")))
		f.Add(frame(17, at(v.pod, 4242), at(v.dns, 53), query(f, "web.default.svc.cluster.local.", 1, true)))
		f.Add(later(17, v.pod, v.other, 7, 16))
		f.Add(icmp(v.hop, v.node, v.unreachable, 0, 0, frame(17, at(v.node, 62000), at(v.far, 53), nil)[14:]))
	}
	f.Add(extended(frame(6, at(pod6, 1), at(other6, 1), nil), extension(0, 1), extension(60, 1), extension(43, 1), extension(44, 1)))
	f.Add(options(frame(6, at(pod, 1), at(other, 1), nil), 131, 7, 4, 1, 2, 3, 4))
	f.Add(arpFrame(1, podMAC, pod, other))
	f.Add(solicit(pod6, other6))
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) < 34 || len(in) < shortest(in) || len(in) > 1500 {
			return
		}
		for _, p := range []string{uplinkProgram, egressProgram} {
			run(t, d.net.Programs[p], in)
		}
		if verdict, _ := run(t, d.net.Programs[podProgram], in); verdict != actShot && !fromPod(in) {
			t.Errorf("verdict %d for %x", verdict, in)
		}
	})
}

// fromPod tells by other means than the program's whether a frame is of the first pod.
func fromPod(b []byte) bool {
	if string(b[6:12]) != string(podMAC) {
		return false
	}
	switch binary.BigEndian.Uint16(b[12:]) {
	case 0x0800:
		return netip.AddrFrom4([4]byte(b[26:30])).String() == pod
	case 0x86dd:
		return len(b) >= 54 && netip.AddrFrom16([16]byte(b[22:38])).String() == pod6
	case 0x0806:
		return string(b[22:28]) == string(podMAC) && netip.AddrFrom4([4]byte(b[28:32])).String() == pod
	}
	return false
}

// The same as the fuzz target, without a fuzzer: packets of all kinds with a few bytes changed.
func TestNoSpoofedSourceGetsThrough(t *testing.T) {
	d := masqueraded(t, 62000, 62001)
	rng := rand.New(rand.NewPCG(3, 4))
	var seeds [][]byte
	for _, f := range families {
		seeds = append(seeds, frame(6, at(f.pod, 1000), at(f.other, 80), []byte("x")), frame(17, at(f.pod, 1), at(f.dns, 53), query(t, "a.b.", 1, true)),
			later(17, f.pod, f.other, 7, 16), cut(frame(17, at(f.pod, 1), at(f.far, 1), nil), 7, 0, true), icmp(f.pod, f.far, f.echo, 0, 1, nil))
	}
	seeds = append(seeds, arpFrame(1, podMAC, pod, other), solicit(pod6, other6),
		extended(frame(6, at(pod6, 1), at(other6, 1), nil), extension(0, 1), extension(60, 1), extension(43, 1), extension(44, 1)))
	passed := 0
	for range 20000 {
		in := slices.Clone(seeds[rng.IntN(len(seeds))])
		for range rng.IntN(4) {
			in[rng.IntN(len(in))] = byte(rng.Uint32())
		}
		if len(in) < shortest(in) {
			continue
		}
		for _, p := range []string{uplinkProgram, egressProgram} {
			run(t, d.net.Programs[p], in)
		}
		verdict, _ := run(t, d.net.Programs[podProgram], in)
		if verdict == actShot {
			continue
		}
		if passed++; !fromPod(in) {
			t.Fatalf("verdict %d for %x", verdict, in)
		}
	}
	if passed < 1000 {
		t.Errorf("only %d packets passed", passed)
	}
}
