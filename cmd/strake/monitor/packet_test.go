package monitor

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
)

// bytesOf reads hex digits with blanks between them.
func bytesOf(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const (
	macs = "020000000002 020000000001 "
	ip4  = "c0000201 c0000202 " // 192.0.2.1 → 192.0.2.2
	ip6  = "20010db8000000000000000000000001 20010db8000000000000000000000002 "
)

var frames = map[string]struct {
	frame string
	want  Packet
}{
	"SYN":                    {macs + "0800 4500002800000000 4006 0000 " + ip4 + "1000 0050 00000000 00000000 5012 0000", Packet{Protocol: "TCP", SrcPort: 4096, DstPort: 80, Ports: true, Flags: "SYN,ACK"}},
	"options before UDP":     {macs + "0800 4600002400000000 4011 0000 " + ip4 + "01010101 0035 1000 0008 0000", Packet{Protocol: "UDP", SrcPort: 53, DstPort: 4096, Ports: true}},
	"first fragment":         {macs + "0800 4500002400002000 4011 0000 " + ip4 + "0035 1000 0008 0000", Packet{Protocol: "UDP", SrcPort: 53, DstPort: 4096, Ports: true, Note: "fragment"}},
	"later fragment":         {macs + "0800 4500002400002001 4011 0000 " + ip4 + "0035 1000 0008 0000", Packet{Protocol: "UDP", Note: "fragment"}},
	"DF is no fragment":      {macs + "0800 4500002400004000 4011 0000 " + ip4 + "0035 1000 0008 0000", Packet{Protocol: "UDP", SrcPort: 53, DstPort: 4096, Ports: true}},
	"ports cut off":          {macs + "0800 4500002400000000 4006 0000 " + ip4 + "00", Packet{Protocol: "TCP", Note: "header cut off"}},
	"flags cut off":          {macs + "0800 4500002400000000 4006 0000 " + ip4 + "0001 0002", Packet{Protocol: "TCP", SrcPort: 1, DstPort: 2, Ports: true}},
	"echo":                   {macs + "0800 4500002400000000 4001 0000 " + ip4 + "0800 0000", Packet{Protocol: "ICMP", Note: "echo request"}},
	"too big":                {macs + "0800 4500002400000000 4001 0000 " + ip4 + "0304 0000", Packet{Protocol: "ICMP", Note: "packet too big"}},
	"a protocol by number":   {macs + "0800 4500002400000000 402f 0000 " + ip4, Packet{Protocol: "protocol 47"}},
	"a header too long":      {macs + "0800 4f00002400000000 4006 0000 " + ip4, Packet{Protocol: "IPv4", Note: "bad header"}},
	"a header too short":     {macs + "0800 4100002400000000 4006 0000 " + ip4, Packet{Protocol: "IPv4", Note: "bad header"}},
	"VLAN":                   {macs + "8100 0005 0800 4500002400000000 4011 0000 " + ip4 + "0035 1000", Packet{Protocol: "UDP", SrcPort: 53, DstPort: 4096, Ports: true}},
	"IPv6 UDP":               {macs + "86dd 60000000 0008 11 40 " + ip6 + "0035 1000", Packet{Protocol: "UDP", SrcPort: 53, DstPort: 4096, Ports: true}},
	"IPv6 with options":      {macs + "86dd 60000000 0008 00 40 " + ip6 + "0600000000000000 0035 1000", Packet{Protocol: "TCP", SrcPort: 53, DstPort: 4096, Ports: true}},
	"IPv6 first fragment":    {macs + "86dd 60000000 0008 2c 40 " + ip6 + "1100000100000000 0035 1000", Packet{Protocol: "UDP", SrcPort: 53, DstPort: 4096, Ports: true, Note: "fragment"}},
	"IPv6 later fragment":    {macs + "86dd 60000000 0008 2c 40 " + ip6 + "1100000800000000 0035 1000", Packet{Protocol: "UDP", Note: "fragment"}},
	"IPv6 options cut off":   {macs + "86dd 60000000 0008 00 40 " + ip6 + "0604", Packet{Protocol: "IPv6", Note: "extension header cut off"}},
	"neighbour solicitation": {macs + "86dd 60000000 0008 3a ff " + ip6 + "8700 0000", Packet{Protocol: "ICMPv6", Note: "neighbour solicitation"}},
	"ARP":                    {macs + "0806 0001080006040001 020000000001 c0000201 000000000000 c0000202", Packet{Protocol: "ARP", Note: "request"}},
}

func TestDecode(t *testing.T) {
	for name, c := range frames {
		t.Run(name, func(t *testing.T) {
			want := c.want
			want.Source, want.Dest = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
			if strings.Contains(c.frame, ip6) {
				want.Source, want.Dest = netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
			}
			if got := Decode(bytesOf(t, c.frame)); got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
	for frame, want := range map[string]Packet{
		"":                    {Note: "no Ethernet header"},
		macs + "88cc 00":      {Protocol: "ethertype 0x88cc"},
		macs + "0800 45":      {Protocol: "IPv4", Note: "header cut off"},
		macs + "86dd 60":      {Protocol: "IPv6", Note: "header cut off"},
		macs + "0806 0001":    {Protocol: "ARP", Note: "cut off"},
		macs + "8100 0005 08": {Protocol: "ethertype 0x8100"},
	} {
		if got := Decode(bytesOf(t, frame)); got != want {
			t.Errorf("%q: got %+v, want %+v", frame, got, want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, c := range frames {
		f.Add(bytesOf(f, c.frame))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p := Decode(b)
		if p.Source.IsValid() != p.Dest.IsValid() {
			t.Errorf("one address alone: %+v", p)
		}
	})
}
