package monitor

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"
)

// Packet is what the headers at the beginning of a frame say. What was cut off or is not understood is left empty.
type Packet struct {
	Protocol         string // TCP, UDP, ICMP, ICMPv6, ARP, or a number
	Source, Dest     netip.Addr
	SrcPort, DstPort uint16
	Ports            bool   // of TCP and UDP, in the first fragment
	Flags            string // of TCP, such as SYN,ACK
	Note             string // what else is to be said: an ICMP type, a fragment, a header that is cut off
}

// Decode reads a frame that begins with its Ethernet header. It takes any bytes.
func Decode(frame []byte) Packet {
	if len(frame) < 14 {
		return Packet{Note: "no Ethernet header"}
	}
	kind, rest := binary.BigEndian.Uint16(frame[12:]), frame[14:]
	for range 2 { // IEEE 802.1Q and 802.1ad: two tags at most
		if (kind != unix.ETH_P_8021Q && kind != unix.ETH_P_8021AD) || len(rest) < 4 {
			break
		}
		kind, rest = binary.BigEndian.Uint16(rest[2:]), rest[4:]
	}
	switch kind {
	case unix.ETH_P_IP:
		return decode4(rest)
	case unix.ETH_P_IPV6:
		return decode6(rest)
	case unix.ETH_P_ARP:
		return decodeARP(rest)
	}
	return Packet{Protocol: fmt.Sprintf("ethertype 0x%04x", kind)}
}

// decodeARP reads a request or reply for IPv4 over Ethernet (RFC 826).
func decodeARP(b []byte) Packet {
	p := Packet{Protocol: "ARP"}
	if len(b) < 28 {
		p.Note = "cut off"
		return p
	}
	p.Source, p.Dest = netip.AddrFrom4([4]byte(b[14:18])), netip.AddrFrom4([4]byte(b[24:28]))
	switch op := binary.BigEndian.Uint16(b[6:]); op {
	case 1:
		p.Note = "request"
	case 2:
		p.Note = "reply"
	default:
		p.Note = fmt.Sprintf("operation %d", op)
	}
	return p
}

func decode4(b []byte) Packet {
	if len(b) < 20 {
		return Packet{Protocol: "IPv4", Note: "header cut off"}
	}
	p := Packet{Source: netip.AddrFrom4([4]byte(b[12:16])), Dest: netip.AddrFrom4([4]byte(b[16:20]))}
	head := int(b[0]&15) * 4
	if b[0]>>4 != 4 || head < 20 || head > len(b) {
		p.Protocol, p.Note = "IPv4", "bad header"
		return p
	}
	fragment := binary.BigEndian.Uint16(b[6:])
	p.transport(b[9], b[head:], fragment&0x1fff != 0, fragment&0x3fff != 0)
	return p
}

// decode6 follows extension headers (RFC 8200).
func decode6(b []byte) Packet {
	if len(b) < 40 {
		return Packet{Protocol: "IPv6", Note: "header cut off"}
	}
	p := Packet{Source: netip.AddrFrom16([16]byte(b[8:24])), Dest: netip.AddrFrom16([16]byte(b[24:40]))}
	if b[0]>>4 != 6 {
		p.Protocol, p.Note = "IPv6", "bad header"
		return p
	}
	next, rest := b[6], b[40:]
	fragment, later := false, false
	for {
		length := 0
		switch next {
		case unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS:
			if len(rest) >= 2 {
				length = int(rest[1])*8 + 8
			}
		case unix.IPPROTO_FRAGMENT:
			if length = 8; len(rest) >= 8 {
				at := binary.BigEndian.Uint16(rest[2:])
				fragment, later = at&0xfff9 != 0, at&0xfff8 != 0
			}
		case unix.IPPROTO_AH:
			if len(rest) >= 2 {
				length = int(rest[1])*4 + 8
			}
		default:
			p.transport(next, rest, later, fragment)
			return p
		}
		if length == 0 || len(rest) < length {
			p.Protocol, p.Note = "IPv6", "extension header cut off"
			return p
		}
		next, rest = rest[0], rest[length:]
		if later { // what follows is data of the packet's middle
			p.transport(next, nil, later, fragment)
			return p
		}
	}
}

var tcpFlags = []string{"FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"}

func (p *Packet) transport(proto uint8, b []byte, later, fragment bool) {
	names := map[uint8]string{unix.IPPROTO_TCP: "TCP", unix.IPPROTO_UDP: "UDP", unix.IPPROTO_ICMP: "ICMP", unix.IPPROTO_ICMPV6: "ICMPv6", unix.IPPROTO_SCTP: "SCTP", unix.IPPROTO_NONE: "no next header"}
	p.Protocol = names[proto]
	if p.Protocol == "" {
		p.Protocol = fmt.Sprintf("protocol %d", proto)
	}
	if fragment {
		p.Note = "fragment"
	}
	if later {
		return
	}
	switch proto {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP:
		if len(b) < 4 {
			p.Note = "header cut off"
			return
		}
		p.SrcPort, p.DstPort, p.Ports = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]), true
		if proto == unix.IPPROTO_TCP && len(b) >= 14 {
			var set []string
			for i, name := range tcpFlags {
				if b[13]>>i&1 == 1 {
					set = append(set, name)
				}
			}
			p.Flags = strings.Join(set, ",")
		}
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		if len(b) < 2 {
			p.Note = "header cut off"
			return
		}
		p.Note = strings.TrimSpace(icmpName(proto == unix.IPPROTO_ICMP, b[0], b[1]) + " " + p.Note)
	}
}

// icmpName names the types that one meets (RFC 792, RFC 4443, RFC 4861).
func icmpName(v4 bool, kind, code uint8) string {
	names := map[uint8]string{128: "echo request", 129: "echo reply", 1: "unreachable", 2: "packet too big", 3: "time exceeded", 133: "router solicitation", 134: "router advertisement",
		135: "neighbour solicitation", 136: "neighbour advertisement"}
	if v4 {
		names = map[uint8]string{8: "echo request", 0: "echo reply", 3: "unreachable", 11: "time exceeded", 5: "redirect"}
		if kind == 3 && code == 4 {
			return "packet too big"
		}
	}
	if name := names[kind]; name != "" {
		return name
	}
	return fmt.Sprintf("type %d code %d", kind, code)
}
