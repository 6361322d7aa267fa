package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// diagSocket is a socket as the kernel tells of it (struct inet_diag_msg of linux/inet_diag.h).
type diagSocket struct {
	local, remote netip.AddrPort
	id            [48]byte // struct inet_diag_sockid
	cookie        uint64
	inode         uint32
}

const (
	sockDiagByFamily = 20 // SOCK_DIAG_BY_FAMILY of linux/sock_diag.h
	sockDestroy      = 21 // SOCK_DESTROY
	diagRequestLen   = 56 // struct inet_diag_req_v2
	anyState         = 0xffffffff
)

func diagRequest(kind uint16, flags uint16, family, proto uint8, states uint32, id [48]byte) []byte {
	b := make([]byte, unix.NLMSG_HDRLEN, unix.NLMSG_HDRLEN+diagRequestLen)
	binary.NativeEndian.PutUint32(b, uint32(cap(b)))
	binary.NativeEndian.PutUint16(b[4:], kind)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST|flags)
	b = append(b, family, proto, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, states)
	return append(b, id[:]...)
}

// diagSockets lists the sockets of the namespace in which fd was made that are in some states.
func diagSockets(fd int, family, proto uint8, states uint32) ([]diagSocket, error) {
	var out []diagSocket
	err := diag(fd, diagRequest(sockDiagByFamily, unix.NLM_F_DUMP, family, proto, states, [48]byte{}), func(b []byte) {
		if s, ok := diagSocketOf(b); ok {
			out = append(out, s)
		}
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
		return nil, fmt.Errorf("bpf: list sockets: the kernel has no inet_diag for protocol %d: %w", proto, err)
	}
	return out, err
}

func diagSocketOf(b []byte) (diagSocket, bool) {
	var s diagSocket
	if len(b) < 4+len(s.id) {
		return s, false
	}
	copy(s.id[:], b[4:])
	addr := func(at []byte) netip.Addr {
		if b[0] == unix.AF_INET {
			return netip.AddrFrom4([4]byte(at))
		}
		return netip.AddrFrom16([16]byte(at))
	}
	s.local = netip.AddrPortFrom(addr(s.id[4:20]), binary.BigEndian.Uint16(s.id[:]))
	s.remote = netip.AddrPortFrom(addr(s.id[20:36]), binary.BigEndian.Uint16(s.id[2:]))
	s.inode = inodeOf(b)
	s.cookie = uint64(binary.NativeEndian.Uint32(s.id[40:])) | uint64(binary.NativeEndian.Uint32(s.id[44:]))<<32
	return s, true
}

// haveDestroy asks for the end of a socket that is not there.
func haveDestroy() error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var nobody diagSocket
	nobody.id[0], nobody.id[40] = 1, 1
	switch err := diagDestroy(fd, unix.AF_INET, unix.IPPROTO_TCP, nobody); {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL):
		return fmt.Errorf("SOCK_DESTROY: %w", ebpf.ErrNotSupported)
	case errors.Is(err, unix.ENOENT): // as it should be
		return nil
	default:
		return err
	}
}

// diagDestroy aborts one (CONFIG_INET_DIAG_DESTROY).
func diagDestroy(fd int, family, proto uint8, s diagSocket) error {
	err := diag(fd, diagRequest(sockDestroy, unix.NLM_F_ACK, family, proto, anyState, s.id), func([]byte) {})
	if errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("the kernel was built without INET_DIAG_DESTROY: %w", err)
	}
	return err
}

// diag sends a request and calls each with what is answered, until the end.
func diag(fd int, request []byte, each func([]byte)) error {
	if err := unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("bpf: sockets: %w", err)
	}
	b := make([]byte, 1<<16)
	for {
		n, _, err := unix.Recvfrom(fd, b, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("bpf: sockets: %w", err)
		}
		for rest := b[:n]; len(rest) >= unix.NLMSG_HDRLEN; {
			size := int(binary.NativeEndian.Uint32(rest))
			if size < unix.NLMSG_HDRLEN || size > len(rest) {
				return errors.New("bpf: sockets: a message that is longer than it is")
			}
			body := rest[unix.NLMSG_HDRLEN:size]
			switch binary.NativeEndian.Uint16(rest[4:]) {
			case unix.NLMSG_DONE:
				return nil
			case unix.NLMSG_ERROR:
				if len(body) < 4 {
					return errors.New("bpf: sockets: an error that is cut off")
				}
				if code := int32(binary.NativeEndian.Uint32(body)); code != 0 {
					return unix.Errno(-code)
				}
				return nil
			default:
				each(body)
			}
			rest = rest[min((size+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1), len(rest)):]
		}
	}
}
