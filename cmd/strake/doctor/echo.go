package doctor

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Message types of ICMP (RFC 792) and ICMPv6 (RFC 4443).
const (
	echoRequest4, echoReply4 = 8, 0
	echoRequest6, echoReply6 = 128, 129
	icmpHeader               = 8
)

// Each size is tried so often, and waited for so long: the first packet may be lost while a neighbour is asked for.
const (
	tries = 3
	await = 700 * time.Millisecond
)

// pathMTU sends echo requests of a full size that may not be fragmented. It returns size if they come back, else the largest
// size that does; 0 if none does.
func pathMTU(ctx context.Context, to netip.Addr, size int) (int, error) {
	ok, err := echo(ctx, to, size)
	if ok || err != nil {
		return size, err
	}
	smallest := 128
	if ok, err = echo(ctx, to, smallest); !ok || err != nil {
		return 0, err
	}
	low, high := smallest, size // low passes, high does not
	for high-low > 1 {
		mid := (low + high) / 2
		if ok, err = echo(ctx, to, mid); err != nil {
			return low, err
		}
		if ok {
			low = mid
		} else {
			high = mid
		}
	}
	return low, nil
}

// echo tells whether an echo of so many bytes, IP header included, comes back whole.
func echo(ctx context.Context, to netip.Addr, size int) (bool, error) {
	family, proto, head := unix.AF_INET, unix.IPPROTO_ICMP, 20
	if to.Is6() {
		family, proto, head = unix.AF_INET6, unix.IPPROTO_ICMPV6, 40
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return false, fmt.Errorf("echo: %w", err)
	}
	defer unix.Close(fd)
	var dst unix.Sockaddr
	if to.Is4() {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE) // DF, whatever the kernel remembers of the path
		dst = &unix.SockaddrInet4{Addr: to.As4()}
	} else {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)
		dst = &unix.SockaddrInet6{Addr: to.As16()}
	}
	if err != nil {
		return false, fmt.Errorf("echo: %w", err)
	}
	if err := unix.Connect(fd, dst); err != nil {
		return false, nil // no route: nothing comes back
	}
	for try := range tries {
		msg := echoMessage(to.Is4(), size-head, uint16(rand.Uint32()), uint16(try))
		if err := unix.Send(fd, msg, 0); err != nil {
			continue // too large for the first link, or nobody there
		}
		deadline := time.Now().Add(await)
		for {
			left := time.Until(deadline)
			if left <= 0 || ctx.Err() != nil {
				break
			}
			tv := unix.NsecToTimeval(left.Nanoseconds())
			if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
				return false, fmt.Errorf("echo: %w", err)
			}
			buf := make([]byte, 1<<16)
			n, _, err := unix.Recvfrom(fd, buf, 0)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				break // the time is over, or an ICMP error came
			}
			if isReply(to.Is4(), buf[:n], msg) {
				return true, nil
			}
		}
		if err := ctx.Err(); err != nil {
			return false, err
		}
	}
	return false, nil
}

// echoMessage makes an echo request of so many bytes, ICMP header included. The kernel fills in ICMPv6's checksum.
func echoMessage(v4 bool, length int, id, seq uint16) []byte {
	m := make([]byte, max(length, icmpHeader))
	m[0] = echoRequest6
	binary.BigEndian.PutUint16(m[4:], id)
	binary.BigEndian.PutUint16(m[6:], seq)
	if v4 {
		m[0] = echoRequest4
		binary.BigEndian.PutUint16(m[2:], checksum(m))
	}
	return m
}

// checksum is the Internet checksum (RFC 1071).
func checksum(b []byte) uint16 {
	var s uint32
	for i := 0; i < len(b); i += 2 {
		s += uint32(b[i]) << 8
		if i+1 < len(b) {
			s += uint32(b[i+1])
		}
	}
	for s > 0xffff {
		s = s&0xffff + s>>16
	}
	return ^uint16(s)
}

// isReply tells whether what a raw socket read is the answer to a request, as long as that. IPv4's header comes along.
func isReply(v4 bool, got, request []byte) bool {
	kind := byte(echoReply6)
	if v4 {
		kind = echoReply4
		if len(got) < 20 {
			return false
		}
		head := int(got[0]&15) * 4
		if head < 20 || head > len(got) {
			return false
		}
		got = got[head:]
	}
	return len(got) == len(request) && len(got) >= icmpHeader && got[0] == kind && [4]byte(got[4:8]) == [4]byte(request[4:8])
}
