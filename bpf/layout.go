package bpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// addr16 and port16 are as the programs hold them: the bytes in network order, an IPv4 address as its IPv4-mapped IPv6 one.
func addr16(a netip.Addr) netAddr { return netAddr{B: a.As16()} }

func addrOf(v netAddr) netip.Addr { return netip.AddrFrom16(v.B).Unmap() }

// plain tells whether an address is of either family in its own form, without a zone: what addrOf gives back.
func plain(a netip.Addr) bool { return a.IsValid() && !a.Is4In6() && a.Zone() == "" }

func port16(p uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], p)
	return binary.NativeEndian.Uint16(b[:])
}

// text puts a string into a fixed field; what does not fit is an error, since a cut owner is another owner.
func text(dst []byte, s, what string) error {
	if len(s) > len(dst) {
		return fmt.Errorf("bpf: %s %q is longer than %d bytes", what, s, len(dst))
	}
	clear(dst)
	copy(dst, s)
	return nil
}

func textOf(b []byte) string { return string(bytes.TrimRight(b, "\x00")) }

var errName = errors.New("not a fully qualified name of labels of 1 to 63 bytes")

// wireName is a name as it stands in a question (RFC 1035 3.1), lower-cased; labels does not count the root.
func wireName(name string) (wire []byte, labels int, err error) {
	rest, ok := strings.CutSuffix(name, ".")
	if !ok || rest == "" {
		return nil, 0, errName
	}
	for _, l := range strings.Split(strings.ToLower(rest), ".") {
		if len(l) == 0 || len(l) > 63 {
			return nil, 0, errName
		}
		wire = append(append(wire, byte(len(l))), l...)
		labels++
	}
	if wire = append(wire, 0); len(wire) > 255 {
		return nil, 0, errName
	}
	return wire, labels, nil
}

// nameOf reads a wire name back.
func nameOf(wire []byte) string {
	var b strings.Builder
	for i := 0; i < len(wire) && wire[i] != 0; {
		end := i + 1 + int(wire[i])
		if end > len(wire) {
			break
		}
		b.Write(wire[i+1 : end])
		b.WriteByte('.')
		i = end
	}
	return b.String()
}
