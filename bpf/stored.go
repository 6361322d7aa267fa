package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
)

// Bits of a query that make a difference to what servers outside answer (ASKED_RD and its like in lib/dns.h).
const (
	AskedRecursion uint8 = 1 << iota
	AskedUnchecked       // CD
	AskedAuthentic       // AD
	AskedDNSSEC          // DO
)

// Asked is a question that a stored answer is found by.
type Asked struct {
	Name string // lower-case, fully qualified
	Type uint16
	Bits uint8 // such as AskedRecursion; none for names of the cluster
}

func askedOf(k netAsked) Asked { return Asked{nameOf(k.Key.Name[:]), k.Type, k.Bits} }

// storedAnswer is a message as the kernel stores it.
type storedAnswer struct {
	key            netAsked  // without bits as storedOf finds it
	sections       [3]uint16 // how many records each has
	flags1, flags2 uint8
	body           []byte
	ttlAt          []uint16 // offsets in the body
	ttl            uint32   // the least
	stride, turns  uint16   // the first records, if they are addresses that can take turns
}

var errMessage = errors.New("not a whole response with one question")

const (
	dnsHeaderSize = 12
	typeA         = 1
	typeAAAA      = 28
	typeOPT       = 41
)

// storedOf takes a response apart. The programs change nothing in it but TTLs, and the order of addresses: so it may point to names in itself.
func storedOf(msg []byte) (s storedAnswer, err error) {
	if len(msg) < dnsHeaderSize || msg[2]&0xfa != 0x80 || binary.BigEndian.Uint16(msg[4:]) != 1 {
		return s, errMessage
	}
	question, err := skipName(msg, dnsHeaderSize)
	if err != nil || question+4 > len(msg) || question-dnsHeaderSize > len(s.key.Key.Name)-1 || binary.BigEndian.Uint16(msg[question+2:]) != 1 {
		return s, errMessage
	}
	copy(s.key.Key.Name[:], lowered(msg[dnsHeaderSize:question]))
	s.key.Type = binary.BigEndian.Uint16(msg[question:])
	s.flags1, s.flags2 = msg[2]&0x04, msg[3]&0x2f
	begin, records := question+4, 0
	for i := range s.sections {
		s.sections[i] = binary.BigEndian.Uint16(msg[6+2*i:])
		records += int(s.sections[i])
	}
	s.body, s.ttl = msg[begin:], 1<<31-1
	at, stride := begin, 0
	for i := range records {
		fixed, err := skipName(msg, at)
		if err != nil || fixed+10 > len(msg) {
			return s, errMessage
		}
		end := fixed + 10 + int(binary.BigEndian.Uint16(msg[fixed+8:]))
		rtype := binary.BigEndian.Uint16(msg[fixed:])
		if end > len(msg) || rtype == typeOPT {
			return s, errMessage
		}
		s.ttlAt = append(s.ttlAt, uint16(fixed+4-begin))
		s.ttl = min(s.ttl, binary.BigEndian.Uint32(msg[fixed+4:]))
		if i == 0 {
			stride = end - at
		}
		if i < int(s.sections[0]) && int(s.turns) == i && end-at == stride && rtype == s.key.Type && (rtype == typeA || rtype == typeAAAA) {
			s.turns++
		}
		at = end
	}
	if at != len(msg) || records == 0 {
		return s, errMessage
	}
	if s.turns < 2 || s.turns != s.sections[0] {
		s.turns = 0
	} else {
		s.stride = uint16(stride)
	}
	return s, nil
}

// head is that of a row which expires at a time of bootTime, or never (0).
func (s storedAnswer) head(expires uint64) netStored {
	h := crc32.NewIEEE()
	_ = binary.Write(h, binary.LittleEndian, expires) // to memory: it does not fail
	h.Write(s.key.Key.Name[:])
	_ = binary.Write(h, binary.LittleEndian, []uint16{s.key.Type, uint16(s.key.Bits)})
	h.Write(s.body)
	return netStored{
		Tag: h.Sum32(), Ttl: s.ttl, Expires: expires, Len: uint16(len(s.body)), Stride: s.stride, Turns: s.turns,
		Answers: s.sections[0], Authorities: s.sections[1], Additionals: s.sections[2], Flags1: s.flags1, Flags2: s.flags2,
	}
}

// messageOf is what storedOf was given, without an id, and without what the programs add to the header.
func messageOf(k netAsked, h netStored, body []byte) []byte {
	m := []byte{0, 0, h.Flags1 | 0x80, h.Flags2, 0, 1}
	for _, n := range []uint16{h.Answers, h.Authorities, h.Additionals} {
		m = binary.BigEndian.AppendUint16(m, n)
	}
	end, err := skipName(k.Key.Name[:], 0)
	if err != nil {
		return nil
	}
	m = binary.BigEndian.AppendUint16(append(m, k.Key.Name[:end]...), k.Type)
	return append(binary.BigEndian.AppendUint16(m, 1), body[:min(int(h.Len), len(body))]...)
}

// skipName is where a name ends (RFC 1035 4.1.4).
func skipName(msg []byte, at int) (int, error) {
	for at < len(msg) {
		switch n := int(msg[at]); {
		case n == 0:
			return at + 1, nil
		case n >= 0xc0:
			return at + 2, nil
		case n > 63:
			return 0, errMessage
		default:
			at += 1 + n
		}
	}
	return 0, errMessage
}

// lowered is a name as the programs look it up: ASCII letters alone have case (RFC 4343).
func lowered(wire []byte) []byte {
	out := make([]byte, len(wire))
	for i, c := range wire {
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		out[i] = c
	}
	return out
}

// showAsked is for errors.
func showAsked(k netAsked) string {
	return fmt.Sprintf("%s (type %d)", strings.ToValidUTF8(nameOf(k.Key.Name[:]), "?"), k.Type)
}
