package bpf

import (
	"encoding/binary"
	"hash/crc32"
	"net"
	"net/netip"
	"testing"
)

const (
	actOK       = 0
	actShot     = 2
	actRedirect = 7
)

var (
	podMAC  = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	hostMAC = net.HardwareAddr{0, 0, 0, 0, 0, 0} // the loopback device's, at which test packets arrive
)

// family has the addresses of the tests' node in one family.
type family struct {
	name                                     string
	pod, other, node, dns, service, far, hop string // far is outside, hop on the way there
	linkLocal                                string
	icmp, echo, echoReply, unreachable       byte
}

var families = []family{
	{"IPv4", pod, other, nodeIP, "10.96.0.10", "10.96.0.5", "198.51.100.1", "203.0.113.9", "169.254.169.254", 1, 8, 0, 3},
	{"IPv6", pod6, other6, nodeIP6, "fd00:10:96::a", "fd00:10:96::5", "2001:db8:ff::1", "2001:db8:fe::9", "fe80::1", 58, 128, 129, 1},
}

// at is an address with a port.
func at(addr string, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(addr), port)
}

// ipHeader builds an Ethernet and an IP header from the pod's MAC address to the host's.
func ipHeader(proto byte, src, dst netip.Addr, payload int) []byte {
	b := make([]byte, 14, 14+40+payload)
	copy(b, hostMAC)
	copy(b[6:], podMAC)
	s, d := src.AsSlice(), dst.AsSlice()
	if src.Is6() {
		binary.BigEndian.PutUint16(b[12:], 0x86dd)
		ip := make([]byte, 40)
		ip[0], ip[6], ip[7] = 0x60, proto, 64
		binary.BigEndian.PutUint16(ip[4:], uint16(payload))
		copy(ip[8:], s)
		copy(ip[24:], d)
		return append(b, ip...)
	}
	binary.BigEndian.PutUint16(b[12:], 0x0800)
	ip := make([]byte, 20)
	ip[0], ip[8], ip[9] = 0x45, 64, proto
	binary.BigEndian.PutUint16(ip[2:], uint16(20+payload))
	copy(ip[12:], s)
	copy(ip[16:], d)
	binary.BigEndian.PutUint16(ip[10:], ^sum(ip, 0))
	return append(b, ip...)
}

// frame builds an Ethernet frame with an IP packet: TCP (a SYN), UDP, SCTP (with the payload for chunks), or another protocol with eight bytes
// of zeroes before the payload.
func frame(proto byte, src, dst netip.AddrPort, payload []byte) []byte {
	l4 := 8
	switch proto {
	case 6:
		l4 = 20
	case 132:
		l4 = 12
	}
	t := make([]byte, l4+len(payload))
	binary.BigEndian.PutUint16(t, src.Port())
	binary.BigEndian.PutUint16(t[2:], dst.Port())
	copy(t[l4:], payload)
	switch proto {
	case 6:
		t[12], t[13] = 0x50, 0x02
	case 17:
		binary.BigEndian.PutUint16(t[4:], uint16(len(t)))
	case 132:
		binary.LittleEndian.PutUint32(t[8:], crc32.Checksum(t, crc32.MakeTable(crc32.Castagnoli)))
	}
	if at := sumAt(proto); at >= 0 {
		binary.BigEndian.PutUint16(t[at:], ^sum(t, pseudo(proto, src.Addr(), dst.Addr(), len(t))))
	}
	return append(ipHeader(proto, src.Addr(), dst.Addr(), len(t)), t...)
}

// icmp builds a frame with an ICMP message of the addresses' family; rest is the header's second half.
func icmp(src, dst string, kind, code byte, rest uint32, payload []byte) []byte {
	s, d := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	m := append(make([]byte, 8), payload...)
	m[0], m[1] = kind, code
	binary.BigEndian.PutUint32(m[4:], rest)
	proto, start := byte(1), uint32(0)
	if s.Is6() {
		proto = 58
		start = pseudo(proto, s, d, len(m))
	}
	binary.BigEndian.PutUint16(m[2:], ^sum(m, start))
	return append(ipHeader(proto, s, d, len(m)), m...)
}

// extended puts extension headers before what an IPv6 frame carries. Each begins with a byte that is its own number, where the next one's
// belongs.
func extended(b []byte, headers ...[]byte) []byte {
	out, next := append([]byte(nil), b[:54]...), b[20]
	at := 20
	for _, h := range headers {
		out[at] = h[0]
		at = len(out)
		out = append(out, h...)
	}
	out[at] = next
	out = append(out, b[54:]...)
	binary.BigEndian.PutUint16(out[18:], uint16(len(out)-54))
	return out
}

// extension is a header of n times eight bytes.
func extension(number byte, n int) []byte {
	h := make([]byte, 8*n)
	h[0], h[1] = number, byte(n-1)
	if number == 51 { // counts in fours, and two less
		h[1] = byte(2*n - 2)
	}
	return h
}

// cut6 makes a frame a fragment that begins at an offset of the packet.
func cut6(b []byte, id uint32, offset int, more bool) []byte {
	h := extension(44, 1)
	h[1] = 0
	binary.BigEndian.PutUint16(h[2:], uint16(offset))
	if more {
		h[3] |= 1
	}
	binary.BigEndian.PutUint32(h[4:], id)
	return extended(b, h)
}

// cut4 is cut6 for IPv4.
func cut4(b []byte, id uint16, offset int, more bool) []byte {
	b = append([]byte(nil), b...)
	flags := uint16(offset / 8)
	if more {
		flags |= 0x2000
	}
	binary.BigEndian.PutUint16(b[18:], id)
	binary.BigEndian.PutUint16(b[20:], flags)
	binary.BigEndian.PutUint16(b[24:], 0)
	binary.BigEndian.PutUint16(b[24:], ^sum(b[14:14+int(b[14]&15)*4], 0))
	return b
}

func cut(b []byte, id uint16, offset int, more bool) []byte {
	if isV6(b) {
		return cut6(b, uint32(id), offset, more)
	}
	return cut4(b, id, offset, more)
}

// later is a fragment that is not the first one, with some bytes of a protocol.
func later(proto byte, src, dst string, id uint16, offset int) []byte {
	data := []byte("sixteen bytes ..")
	return cut(append(ipHeader(proto, netip.MustParseAddr(src), netip.MustParseAddr(dst), len(data)), data...), id, offset, false)
}

func isV6(b []byte) bool { return binary.BigEndian.Uint16(b[12:]) == 0x86dd }

// shortest is how much of a frame a test run takes at least: the Ethernet and the IP header.
func shortest(b []byte) int {
	if isV6(b) {
		return 54
	}
	return 34
}

// transport is what an IP packet without extension headers carries: its protocol and where it begins and ends.
func transport(b []byte) (proto byte, begin, end int) {
	if isV6(b) {
		return b[20], 54, 54 + int(binary.BigEndian.Uint16(b[18:]))
	}
	return b[23], 14 + int(b[14]&15)*4, 14 + int(binary.BigEndian.Uint16(b[16:]))
}

// addrs are the addresses of a frame, or of a packet that is quoted if it is given with 14 bytes before it.
func addrs(b []byte) (src, dst netip.Addr) {
	if isV6(b) {
		return netip.AddrFrom16([16]byte(b[22:38])), netip.AddrFrom16([16]byte(b[38:54]))
	}
	return netip.AddrFrom4([4]byte(b[26:30])), netip.AddrFrom4([4]byte(b[30:34]))
}

// ends are the addresses and ports of a frame.
func ends(b []byte) (src, dst netip.AddrPort) {
	s, d := addrs(b)
	_, l4, _ := transport(b)
	return netip.AddrPortFrom(s, binary.BigEndian.Uint16(b[l4:])), netip.AddrPortFrom(d, binary.BigEndian.Uint16(b[l4+2:]))
}

// sumAt is where a transport header has its checksum.
func sumAt(proto byte) int {
	switch proto {
	case 6:
		return 16
	case 17:
		return 6
	case 1, 58:
		return 2
	}
	return -1
}

func pseudo(proto byte, src, dst netip.Addr, length int) uint32 {
	if proto == 1 {
		return 0
	}
	s := uint32(proto) + uint32(length)
	for _, a := range [][]byte{src.AsSlice(), dst.AsSlice()} {
		for i := 0; i < len(a); i += 2 {
			s += uint32(binary.BigEndian.Uint16(a[i:]))
		}
	}
	return s
}

// sum is the Internet checksum before its complement (RFC 1071).
func sum(b []byte, start uint32) uint16 {
	for i := 0; i+1 < len(b); i += 2 {
		start += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		start += uint32(b[len(b)-1]) << 8
	}
	for start > 0xffff {
		start = start&0xffff + start>>16
	}
	return uint16(start)
}

// checkSums fails unless all checksums of a frame are right.
func checkSums(t *testing.T, b []byte) {
	t.Helper()
	if !isV6(b) {
		if s := sum(b[14:14+int(b[14]&15)*4], 0); s != 0xffff {
			t.Errorf("IP checksum is off: %04x", s)
		}
	}
	proto, begin, end := transport(b)
	l4 := b[begin:end]
	if proto == 17 && binary.BigEndian.Uint16(l4[6:]) == 0 {
		if isV6(b) {
			t.Error("UDP over IPv6 without a checksum")
		}
		return
	}
	if proto == 132 {
		whole := append([]byte(nil), l4...)
		clear(whole[8:12])
		if want := crc32.Checksum(whole, crc32.MakeTable(crc32.Castagnoli)); binary.LittleEndian.Uint32(l4[8:]) != want {
			t.Errorf("SCTP checksum %x, want %08x", l4[8:12], want)
		}
		return
	}
	src, dst := addrs(b)
	if s := sum(l4, pseudo(proto, src, dst, len(l4))); s != 0xffff {
		t.Errorf("transport checksum is off: %04x", s)
	}
}
