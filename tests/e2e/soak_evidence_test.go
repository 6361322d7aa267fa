package e2e

import (
	"bytes"
	"context"
	order "encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/tests/podnet"
)

// evidence tells what there is to see of a question that nobody answers: it is asked a few times more, from the same socket if there is one, or else
// from one port, and looked for wherever it may come by.
func (s *soak) evidence(c asker, conn net.Conn) string {
	const span = 3 * time.Second
	var b strings.Builder
	fmt.Fprintf(&b, "at %s", time.Now().Format(time.StampMilli))
	ports := []uint16{c.to.Port(), uint16(soakPort + c.svc.index)} // of a connection that is not made
	own := []uint16{uint16(61000 + rand.IntN(4000))}               // none that the kernel gives a client
	ports = append(ports, own...)
	if conn != nil {
		local, err := netip.ParseAddrPort(conn.LocalAddr().String())
		if err != nil {
			return err.Error()
		}
		fmt.Fprintf(&b, ", asked from %s", local)
		own = []uint16{local.Port()}
		ports = own
	}
	places := map[string]podnet.Space{"the client": c.space}
	before := map[*soakNode]map[string]uint64{}
	for _, n := range s.nodes {
		places["node "+n.name] = n.space
		if st, err := bpf.ReadStatus(n.pins); err == nil {
			before[n] = st.Counters
		}
	}
	for _, p := range s.pods {
		places["the pod with "+p.addrs[0].String()] = p.space
	}
	var seen seenPackets
	var wg sync.WaitGroup
	until := time.Now().Add(span)
	for name, space := range places {
		wg.Go(func() { seen.watch(name, space, ports, until) })
	}
	answer := make([]byte, 100)
	for time.Now().Before(until) {
		time.Sleep(span / 10)
		if conn == nil {
			ctx, cancel := context.WithTimeout(context.Background(), span/5)
			var again net.Conn
			err := c.space.In(func() (err error) {
				again, err = (&net.Dialer{FallbackDelay: -1, LocalAddr: &net.TCPAddr{Port: int(own[0])}}).DialContext(ctx, c.network, c.to.String())
				return err
			})
			cancel()
			fmt.Fprintf(&b, "\nonce more: %v", err)
			if err == nil {
				fmt.Fprintf(&b, ", from %s", again.LocalAddr())
				again.(*net.TCPConn).SetLinger(0) // the port is free for the next one
				again.Close()
			}
			continue
		}
		conn.SetDeadline(time.Now().Add(span / 5)) // the one of the question is over
		_, werr := conn.Write([]byte("?"))
		n, rerr := conn.Read(answer)
		fmt.Fprintf(&b, "\nonce more: %q (%v, %v)", answer[:n], werr, rerr)
	}
	wg.Wait()
	slices.Sort(seen.lines)
	b.WriteString("\n" + strings.Join(seen.lines, "\n"))
	if seen.more > 0 {
		fmt.Fprintf(&b, "\nand %d packets more", seen.more)
	}
	for _, n := range s.nodes {
		if st, err := bpf.ReadStatus(n.pins); err == nil {
			for _, name := range bpf.Reasons() {
				if d := st.Counters[name] - before[n][name]; d != 0 {
					fmt.Fprintf(&b, "\nnode %s: %s %d times meanwhile", n.name, name, d)
				}
			}
		}
		services, err := bpf.ReadServices(n.pins)
		if err != nil {
			fmt.Fprintf(&b, "\nnode %s: %v", n.name, err)
		}
		for _, r := range services {
			if strings.Contains(r.Name, "/"+c.svc.name+":") {
				fmt.Fprintf(&b, "\nnode %s: %+v", n.name, r)
			}
		}
		for _, port := range own {
			b.WriteString(rowsWithPort(n, port))
		}
	}
	return b.String()
}

// seenPackets are those with some port, one a line: a Service's own ports have those of all its clients.
type seenPackets struct {
	mu    sync.Mutex
	lines []string
	more  int // that are not told
}

const mostPackets = 2000

func (s *seenPackets) add(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.lines) == mostPackets {
		s.more++
		return
	}
	s.lines = append(s.lines, fmt.Sprintf(format, args...))
}

// watch notes the packets from and to ports that come by any interface of a namespace.
func (s *seenPackets) watch(name string, space podnet.Space, ports []uint16, until time.Time) {
	all := int(order.NativeEndian.Uint16(order.BigEndian.AppendUint16(nil, unix.ETH_P_ALL)))
	fd := -1
	err := space.In(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, all)
		return err
	})
	if err != nil {
		s.add("%s: %v", name, err)
		return
	}
	defer unix.Close(fd)
	b := make([]byte, 2000)
	for time.Now().Before(until) {
		wait := unix.NsecToTimeval(int64(100 * time.Millisecond))
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
			s.add("%s: %v", name, err)
			return
		}
		n, from, err := unix.Recvfrom(fd, b, 0)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		} else if err != nil {
			s.add("%s: %v", name, err)
			return
		}
		src, dst, ok := packetEnds(b[:n])
		if link, is := from.(*unix.SockaddrLinklayer); is && ok && (slices.Contains(ports, src.Port()) || slices.Contains(ports, dst.Port())) {
			s.add("%s, %s: interface %d, type %d, %s → %s", time.Now().Format(time.StampMicro), name, link.Ifindex, link.Pkttype, src, dst)
		}
	}
}

// packetEnds are who sent a packet of TCP or UDP, and whom to.
func packetEnds(ip []byte) (src, dst netip.AddrPort, ok bool) {
	var from, to netip.Addr
	switch {
	case len(ip) >= 28 && ip[0]>>4 == 4 && (ip[9] == unix.IPPROTO_UDP || ip[9] == unix.IPPROTO_TCP) && len(ip) >= int(ip[0]&15)*4+8:
		from, _ = netip.AddrFromSlice(ip[12:16])
		to, _ = netip.AddrFromSlice(ip[16:20])
		ip = ip[int(ip[0]&15)*4:]
	case len(ip) >= 48 && ip[0]>>4 == 6 && (ip[6] == unix.IPPROTO_UDP || ip[6] == unix.IPPROTO_TCP):
		from, _ = netip.AddrFromSlice(ip[8:24])
		to, _ = netip.AddrFromSlice(ip[24:40])
		ip = ip[40:]
	default:
		return src, dst, false
	}
	return netip.AddrPortFrom(from, order.BigEndian.Uint16(ip)), netip.AddrPortFrom(to, order.BigEndian.Uint16(ip[2:])), true
}

// rowsWithPort are the rows of all tables of flows and sockets that a node has pinned in which a port stands.
func rowsWithPort(n *soakNode, port uint16) string {
	var b strings.Builder
	want := order.BigEndian.AppendUint16(nil, port)
	entries, err := os.ReadDir(n.pins)
	if err != nil {
		return "\n" + err.Error()
	}
	for _, e := range entries {
		if !strings.Contains(e.Name(), "flows") && !strings.Contains(e.Name(), "reverse") && !strings.Contains(e.Name(), "policy_places") {
			continue
		}
		m, err := ebpf.LoadPinnedMap(filepath.Join(n.pins, e.Name()), &ebpf.LoadPinOptions{ReadOnly: true})
		if err != nil {
			continue // a program, or a ring
		}
		var key, value []byte
		rows := m.Iterate()
		for rows.Next(&key, &value) {
			if bytes.Contains(key, want) || bytes.Contains(value, want) {
				fmt.Fprintf(&b, "\nnode %s: %s %x: %x", n.name, e.Name(), key, value)
			}
		}
		if err := rows.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
			fmt.Fprintf(&b, "\nnode %s: %s: %v", n.name, e.Name(), err)
		}
		m.Close()
	}
	return b.String()
}
