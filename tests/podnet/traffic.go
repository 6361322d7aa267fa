package podnet

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// client is what a process started by Ask does.
func client(args []string) error {
	if len(args) != 3 {
		return fmt.Errorf("want network, address, number: %q", args)
	}
	n, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	for range n {
		answer, err := exchange(args[0], args[1])
		if err != nil {
			return err
		}
		fmt.Println(answer)
	}
	return nil
}

func exchange(network, addr string) (string, error) {
	c, err := net.DialTimeout(network, addr, patience)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintln(c, "hello"); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(line), err
}

// Server answers each line or datagram that comes to a port with its own name and the address of who asks.
type Server struct {
	tcp net.Listener
	udp net.PacketConn
}

// Serve starts a server in the namespace, for TCP and UDP and every address.
func (s Space) Serve(name string, port int) (*Server, error) {
	var v Server
	addr := fmt.Sprint(":", port)
	err := s.In(func() (err error) {
		if v.tcp, err = net.Listen("tcp", addr); err == nil {
			v.udp, err = net.ListenPacket("udp", addr)
		}
		return err
	})
	if err != nil {
		return nil, errors.Join(err, v.Close())
	}
	answer := func(from net.Addr) []byte {
		a := netip.MustParseAddrPort(from.String()).Addr().Unmap()
		return fmt.Appendln(nil, name, a)
	}
	go func() {
		for {
			c, err := v.tcp.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for in := bufio.NewScanner(c); in.Scan(); {
					if _, err := c.Write(answer(c.RemoteAddr())); err != nil {
						return
					}
				}
			}()
		}
	}()
	go func() {
		b := make([]byte, 2000)
		for {
			_, from, err := v.udp.ReadFrom(b)
			if err != nil {
				return
			}
			if _, err := v.udp.WriteTo(answer(from), from); errors.Is(err, net.ErrClosed) {
				return
			}
		}
	}()
	return &v, nil
}

// Close ends the server. Connections that are open go on.
func (s *Server) Close() error {
	var errs []error
	if s.tcp != nil {
		errs = append(errs, s.tcp.Close())
	}
	if s.udp != nil {
		errs = append(errs, s.udp.Close())
	}
	return errors.Join(errs...)
}

// Lookup asks a DNS server from the pod and returns the answer's code and its addresses.
func (p *Pod) Lookup(server netip.Addr, name string, qtype uint16) (code int, addrs []string, err error) {
	query := new(dns.Msg).SetQuestion(name, qtype)
	err = p.In(func() error {
		c, err := net.Dial("udp", netip.AddrPortFrom(server, 53).String())
		if err != nil {
			return err
		}
		defer c.Close()
		co := &dns.Conn{Conn: c}
		if err := co.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		if err := co.WriteMsg(query); err != nil {
			return err
		}
		answer, err := co.ReadMsg()
		if err != nil {
			return err
		}
		code = answer.Rcode
		for _, rr := range answer.Answer {
			switch rr := rr.(type) {
			case *dns.A:
				addrs = append(addrs, rr.A.String())
			case *dns.AAAA:
				addrs = append(addrs, rr.AAAA.String())
			}
		}
		return nil
	})
	return code, addrs, err
}
