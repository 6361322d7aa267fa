package podnet

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// HasSCTP tells whether this kernel has sockets for SCTP.
func HasSCTP() bool {
	fd, err := sctpSocket(false)
	if err == nil {
		unix.Close(fd)
	}
	return err == nil
}

// sctpSocket makes a socket of one association, which is used as one of TCP is.
func sctpSocket(v6 bool) (int, error) {
	family := unix.AF_INET
	if v6 {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err != nil {
		return -1, os.NewSyscallError("SCTP socket", err)
	}
	if v6 { // and it tells the other end of no IPv4 address
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			unix.Close(fd)
			return -1, os.NewSyscallError("SCTP for IPv6 alone", err)
		}
	}
	return fd, nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// exchangeSCTP sends a message and returns the answer.
func exchangeSCTP(addr string) (string, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return "", err
	}
	f, err := dialSCTP(to)
	if err != nil {
		return "", err
	}
	defer f.Close()
	end := time.Now().Add(patience)
	if err := f.SetDeadline(end); err != nil {
		return "", err
	}
	for {
		said, err := associated(f)
		if said {
			break
		}
		if err == nil && time.Now().After(end) {
			err = os.ErrDeadlineExceeded
		}
		if err != nil {
			return "", err
		}
		time.Sleep(time.Millisecond) // there is no association yet, and no event tells of it but by notifications between the messages
	}
	line, err := bufio.NewReader(f).ReadString('\n')
	return strings.TrimSpace(line), err
}

// dialSCTP asks for an association, and does not wait for it.
func dialSCTP(to netip.AddrPort) (*os.File, error) {
	fd, err := sctpSocket(to.Addr().Is6())
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "SCTP to "+to.String())
	if err := unix.Connect(fd, sockaddr(to)); err != nil && err != unix.EINPROGRESS {
		return nil, errors.Join(&os.PathError{Op: "connect", Path: f.Name(), Err: err}, f.Close())
	}
	return f, nil
}

// associated says hello, and tells whether there is an association that takes it.
func associated(f *os.File) (bool, error) {
	if err := refused(f); err != nil {
		return false, err
	}
	switch _, err := f.WriteString("hello\n"); {
	case errors.Is(err, unix.EPIPE):
		return false, nil
	default:
		return err == nil, err
	}
}

// refused tells why there will be no association, if that is known.
func refused(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	failed := 0
	if cerr := raw.Control(func(fd uintptr) { failed, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR) }); cerr != nil {
		return cerr
	}
	if err == nil && failed != 0 {
		err = &os.PathError{Op: "connect", Path: f.Name(), Err: unix.Errno(failed)}
	}
	return err
}

// listenSCTP makes a socket that associations to every address of a family and a port come to.
func listenSCTP(v6 bool, port int) (*os.File, error) {
	any := netip.IPv4Unspecified()
	if v6 {
		any = netip.IPv6Unspecified()
	}
	fd, err := sctpSocket(v6)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), fmt.Sprint("SCTP port ", port))
	if err = unix.Bind(fd, sockaddr(netip.AddrPortFrom(any, uint16(port)))); err == nil {
		err = unix.Listen(fd, 128)
	}
	if err != nil {
		return nil, errors.Join(&os.PathError{Op: "listen", Path: f.Name(), Err: err}, f.Close())
	}
	return f, nil
}

// serveSCTP answers each line until the listener is closed.
func serveSCTP(l *os.File, answer func(netip.Addr) []byte) {
	raw, err := l.SyscallConn()
	if err != nil {
		return
	}
	for {
		var fd int
		var from unix.Sockaddr
		var failed error
		if err := raw.Read(func(listener uintptr) bool {
			fd, from, failed = unix.Accept4(int(listener), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
			return failed != unix.EAGAIN && failed != unix.EINTR
		}); err != nil {
			return
		}
		if failed != nil {
			continue // who called has gone
		}
		c := os.NewFile(uintptr(fd), l.Name())
		go func() {
			defer c.Close()
			for in := bufio.NewScanner(c); in.Scan(); {
				if _, err := c.Write(answer(addrOf(from))); err != nil {
					return
				}
			}
		}()
	}
}

func addrOf(s unix.Sockaddr) netip.Addr {
	switch s := s.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(s.Addr)
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(s.Addr)
	}
	return netip.Addr{}
}
