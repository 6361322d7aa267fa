package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// HeldPort is a port of the node that a Service or a pod has, and a process too: one that bound it before, or where the kernel could not keep it
// from that. Who asks from outside gets the Service; the process hears from nobody but by other addresses, and sees no reason for it.
type HeldPort struct {
	Owner, Name string // of the row
	Protocol    uint8
	Port        uint16
	At          netip.AddrPort // where the process listens
	Process     string         // its name and number; empty: not found
}

func (h HeldPort) String() string {
	by := "a process"
	if h.Process != "" {
		by = h.Process
	}
	return fmt.Sprintf("port %d/%s of %s is held by %s too, at %s: what comes from outside goes to the Service, and not to it", h.Port, transportNames[h.Protocol], h.Name, by, h.At)
}

var transportNames = map[uint8]string{unix.IPPROTO_TCP: "TCP", unix.IPPROTO_UDP: "UDP", unix.IPPROTO_SCTP: "SCTP"}

// States of sockets, as bits by the kernel's numbers (include/net/tcp_states.h). A datagram socket that is not connected is closed.
const (
	stateClosed    = 1 << 7
	stateListening = 1 << 10
)

// HeldPorts finds processes in the caller's network namespace that listen on ports that NodePorts and host ports among the rows have, at the same
// addresses or at all.
func HeldPorts(rows []LoadBalancer) ([]HeldPort, error) {
	var out []HeldPort
	for proto, states := range map[uint8]uint32{unix.IPPROTO_TCP: stateListening, unix.IPPROTO_UDP: stateClosed} {
		kept := map[uint16][]LoadBalancer{}
		for _, r := range rows {
			for _, f := range r.Frontends {
				if p := f.Addr.Port(); r.Protocol == proto && (f.Kind == NodePort || f.Kind == HostPort) {
					kept[p] = append(kept[p], LoadBalancer{Owner: r.Owner, Name: r.Name, Frontends: []Frontend{f}})
				}
			}
		}
		if len(kept) == 0 {
			continue
		}
		socks, err := listening(proto, states)
		if err != nil {
			return nil, err
		}
		for _, s := range socks {
			for _, r := range kept[s.local.Port()] {
				if !meets(s.local.Addr(), r.Frontends[0].Addr.Addr()) || slices.ContainsFunc(out, func(h HeldPort) bool {
					return h.Owner == r.Owner && h.Name == r.Name && h.Protocol == proto && h.Port == s.local.Port()
				}) {
					continue
				}
				out = append(out, HeldPort{Owner: r.Owner, Name: r.Name, Protocol: proto, Port: s.local.Port(), At: s.local, Process: processOf(s.inode)})
			}
		}
	}
	slices.SortFunc(out, func(a, b HeldPort) int { return strings.Compare(a.String(), b.String()) })
	return out, nil
}

// meets tells whether who listens at an address would get what is for a frontend's. Sockets of IPv6 for all addresses mostly take IPv4 too.
func meets(at, frontend netip.Addr) bool {
	at = at.Unmap()
	return at == frontend || at.IsUnspecified() && (at.Is6() || frontend.Is4())
}

// listening are the sockets of both families in some states.
func listening(proto uint8, states uint32) ([]diagSocket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("bpf: sockets: %w", err)
	}
	defer unix.Close(fd)
	var all []diagSocket
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		list, err := diagSockets(fd, family, proto, states)
		if err != nil {
			return nil, err
		}
		all = append(all, list...)
	}
	return all, nil
}

// processOf names the process that has a socket, if it is one that we can see.
func processOf(inode uint32) string {
	want := fmt.Sprintf("socket:[%d]", inode)
	files, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return ""
	}
	for _, f := range files {
		if to, err := os.Readlink(f); err != nil || to != want {
			continue
		}
		dir := filepath.Dir(filepath.Dir(f))
		name, err := os.ReadFile(filepath.Join(dir, "comm"))
		if errors.Is(err, os.ErrNotExist) {
			return ""
		}
		return fmt.Sprintf("%s (process %s)", strings.TrimSpace(string(name)), filepath.Base(dir))
	}
	return ""
}

// inodeOf reads the number of a socket's file (idiag_inode of struct inet_diag_msg).
func inodeOf(b []byte) uint32 {
	const at = 4 + 48 + 4*4
	if len(b) < at+4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b[at:])
}
