package podnet

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
)

// client is what a process that asks does: it reads questions, a line each of network, address and number, and writes the answers to each,
// a line each, and then a line that begins with noMore and tells in quotes what failed.
func client(in io.Reader, out io.Writer) error {
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		var network, addr, failed string
		var n int
		if _, err := fmt.Sscan(lines.Text(), &network, &addr, &n); err != nil {
			return fmt.Errorf("want network, address, number: %q: %w", lines.Text(), err)
		}
		for range n {
			answer, err := exchange(network, addr)
			if err != nil {
				failed = err.Error()
				break
			}
			fmt.Fprintln(out, answer)
		}
		if _, err := fmt.Fprintf(out, "%s%q\n", noMore, failed); err != nil {
			return err
		}
	}
	return lines.Err()
}

const noMore = "= "

// asker is a client's process. It stays for all that its place asks: where machines are emulated, to start one takes long.
type asker struct {
	mu  sync.Mutex
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// newAsker starts a client in a namespace, as a process of a cgroup if its folder is given.
func newAsker(s Space, cgroup string) (*asker, error) {
	a := &asker{cmd: exec.Command("/proc/self/exe")}
	a.cmd.Env = append(os.Environ(), roleVariable+"=client")
	a.cmd.Stderr = os.Stderr
	var err error
	if a.in, err = a.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := a.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	a.out = bufio.NewReader(out)
	return a, s.In(func() error {
		if cgroup != "" {
			dir, err := os.Open(cgroup)
			if err != nil {
				return err
			}
			defer dir.Close()
			a.cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
		}
		return a.cmd.Start()
	})
}

func (a *asker) ask(network string, to netip.AddrPort, n int) (string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, err := fmt.Fprintln(a.in, network, to, n); err != nil {
		return "", err
	}
	var answers strings.Builder
	for {
		line, err := a.out.ReadString('\n')
		if err != nil {
			return answers.String(), fmt.Errorf("the client has ended: %w", err)
		}
		quoted, last := strings.CutPrefix(strings.TrimSpace(line), noMore)
		if !last {
			answers.WriteString(line)
			continue
		}
		failed, err := strconv.Unquote(quoted)
		if err == nil && failed != "" {
			err = errors.New(failed)
		}
		return answers.String(), err
	}
}

func (a *asker) close() error { return errors.Join(a.in.Close(), a.cmd.Wait()) }

// exchange asks once. Of the networks, sctp4 and sctp6 are our own.
func exchange(network, addr string) (string, error) {
	if strings.HasPrefix(network, "sctp") {
		return exchangeSCTP(addr)
	}
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
	tcp  net.Listener
	udp  net.PacketConn
	sctp []*os.File
}

// Serve starts a server in the namespace, for TCP and UDP, SCTP where the kernel has it, and every address.
func (s Space) Serve(name string, port int) (*Server, error) {
	var v Server
	addr := fmt.Sprint(":", port)
	err := s.In(func() (err error) {
		if v.tcp, err = net.Listen("tcp", addr); err == nil {
			v.udp, err = net.ListenPacket("udp", addr)
		}
		for _, v6 := range []bool{false, true} {
			if err != nil || !HasSCTP() {
				break
			}
			var l *os.File
			if l, err = listenSCTP(v6, port); err == nil {
				v.sctp = append(v.sctp, l)
			}
		}
		return err
	})
	if err != nil {
		return nil, errors.Join(err, v.Close())
	}
	answer := func(from netip.Addr) []byte { return fmt.Appendln(nil, name, from) }
	asker := func(from net.Addr) netip.Addr { return netip.MustParseAddrPort(from.String()).Addr().Unmap() }
	for _, l := range v.sctp {
		go serveSCTP(l, answer)
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
					if _, err := c.Write(answer(asker(c.RemoteAddr()))); err != nil {
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
			if _, err := v.udp.WriteTo(answer(asker(from)), from); errors.Is(err, net.ErrClosed) {
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
	for _, l := range s.sctp {
		errs = append(errs, l.Close())
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
