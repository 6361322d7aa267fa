package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

const (
	maxChase = 8                // CNAMEs in a chain
	burst    = 4 << 20          // bytes of queries that wait; what finds no room is lost, and its client waits 5 s
	udpSize  = 1232             // what we take in a datagram: no path cuts it into fragments
	maxUDP   = 65535 - 28       // what IPv4 carries in one
	deadline = 10 * time.Second // of a query: two upstreams that do not answer take eight
)

// Server is the resolver in user space.
type Server struct {
	records  *Records
	upstream *Forwarder
	listen   []netip.AddrPort
}

// NewServer answers on the addresses, over UDP and TCP.
func NewServer(r *Records, f *Forwarder, listen ...netip.AddrPort) *Server {
	return &Server{records: r, upstream: f, listen: listen}
}

// Run serves until ctx ends. An address that can't be listened on is an error.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	lc := net.ListenConfig{Control: func(network, _ string, c syscall.RawConn) error {
		var err error
		cerr := c.Control(func(fd uintptr) {
			// A successor may listen before its predecessor has ended.
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
			if err == nil && strings.HasPrefix(network, "udp") {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, burst)
			}
		})
		return errors.Join(cerr, err)
	}}
	for _, addr := range s.listen {
		p, err := lc.ListenPacket(ctx, "udp", addr.String())
		if err != nil {
			return fmt.Errorf("dns: listen on %s: %w", addr, err)
		}
		defer p.Close()
		l, err := lc.Listen(ctx, "tcp", addr.String())
		if err != nil {
			return fmt.Errorf("dns: listen on %s: %w", addr, err)
		}
		defer l.Close()
		for _, srv := range []*dns.Server{{PacketConn: p, UDPSize: dns.DefaultMsgSize}, {Listener: l}} {
			srv.Handler = dns.HandlerFunc(s.serve)
			g.Go(func() error {
				if err := srv.ActivateAndServe(); err != nil && ctx.Err() == nil {
					return fmt.Errorf("dns: serve on %s: %w", addr, err)
				}
				return nil
			})
			g.Go(func() error { // of the group, so that the sockets are closed when Run returns
				<-ctx.Done()
				if err := srv.Shutdown(); err != nil {
					klog.V(2).InfoS("DNS server did not run", "err", err)
				}
				// A server that had not begun is not ended by Shutdown.
				p.Close()
				l.Close()
				return nil
			})
		}
	}
	return g.Wait()
}

func (s *Server) serve(w dns.ResponseWriter, q *dns.Msg) {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	m := s.Answer(ctx, q)
	size := dns.MaxMsgSize
	if w.LocalAddr().Network() == "udp" {
		size = dns.MinMsgSize
		if o := q.IsEdns0(); o != nil {
			size = min(max(int(o.UDPSize()), size), maxUDP)
		}
	}
	m.Truncate(size)
	if err := w.WriteMsg(m); err != nil {
		klog.V(4).InfoS("DNS client went away", "err", err)
	}
}

// Answer answers one query: from the cluster's records, or from upstream.
func (s *Server) Answer(ctx context.Context, q *dns.Msg) *dns.Msg {
	var m *dns.Msg
	o := q.IsEdns0()
	if rcode := acceptable(q); rcode != dns.RcodeSuccess {
		m = new(dns.Msg).SetRcode(q, rcode)
	} else {
		m = s.answer(ctx, q)
	}
	m.RecursionAvailable = true
	if o != nil {
		m.SetEdns0(udpSize, o.Do())
	}
	return m
}

// acceptable tells what is wrong with a query: nothing (RcodeSuccess), or the code to answer it with.
func acceptable(q *dns.Msg) int {
	if q.Opcode != dns.OpcodeQuery {
		return dns.RcodeNotImplemented
	}
	opts := 0
	for _, rr := range q.Extra {
		if rr.Header().Rrtype == dns.TypeOPT {
			opts++
		}
	}
	if len(q.Question) != 1 || q.Response || opts > 1 {
		return dns.RcodeFormatError
	}
	if o := q.IsEdns0(); o != nil && o.Version() != 0 {
		return dns.RcodeBadVers // RFC 6891 6.1.3
	}
	if question := q.Question[0]; question.Qclass != dns.ClassINET || question.Qtype == dns.TypeAXFR || question.Qtype == dns.TypeIXFR {
		return dns.RcodeRefused
	}
	return dns.RcodeSuccess
}

func (s *Server) answer(ctx context.Context, q *dns.Msg) *dns.Msg {
	name := strings.ToLower(dns.Fqdn(q.Question[0].Name))
	if s.records.mine(name) {
		return s.cluster(ctx, q, name)
	}
	if addr, zone, ok := reverseAddr(name); ok {
		m := new(dns.Msg).SetReply(q)
		if !s.records.ready() {
			m.Rcode = dns.RcodeServerFailure
			return m
		}
		if rrs := s.records.reverse(q.Question[0].Name, addr); len(rrs) > 0 {
			m.Authoritative = true
			if q.Question[0].Qtype == dns.TypePTR {
				m.Answer = rrs
			} else {
				m.Ns = []dns.RR{s.records.soa(zone)}
			}
			return m
		}
	}
	return s.upstream.Forward(ctx, q)
}

func (s *Server) cluster(ctx context.Context, q *dns.Msg, name string) *dns.Msg {
	question := q.Question[0]
	m := new(dns.Msg).SetReply(q)
	if !s.records.ready() {
		// An honest "not now" rather than a false "there is no such name".
		m.Rcode = dns.RcodeServerFailure
		return m
	}
	m.Authoritative = true
	a := s.records.lookup(question.Name, name, question.Qtype)
	m.Answer, m.Extra = a.rrs, a.extra
	for hop := 0; a.cname != "" && question.Qtype != dns.TypeCNAME; hop++ {
		if hop == maxChase { // in a circle, most likely
			m.Rcode, m.Answer, m.Authoritative = dns.RcodeServerFailure, nil, false
			return m
		}
		target := strings.ToLower(a.cname)
		if !s.records.mine(target) {
			up := q.Copy()
			up.Question[0].Name = a.cname
			resp := s.upstream.Forward(ctx, up)
			// The code is that of the chain's last name (RFC 6604 3).
			m.Rcode, m.Answer, m.Ns = resp.Rcode, append(m.Answer, resp.Answer...), resp.Ns
			return m
		}
		a = s.records.lookup(a.cname, target, question.Qtype)
		m.Answer, m.Extra = append(m.Answer, a.rrs...), append(m.Extra, a.extra...)
	}
	if !a.exists {
		m.Rcode = dns.RcodeNameError
	}
	if len(a.rrs) == 0 {
		m.Ns = []dns.RR{s.records.soa(s.records.zone)}
	}
	return m
}
