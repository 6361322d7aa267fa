package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"
)

// maxChase bounds a chain of CNAMEs.
const maxChase = 8

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

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, addr := range s.listen {
		for _, network := range []string{"udp", "tcp"} {
			srv := &dns.Server{Addr: addr.String(), Net: network, Handler: dns.HandlerFunc(s.serve), ReusePort: true, UDPSize: dns.DefaultMsgSize}
			g.Go(func() error {
				if err := srv.ListenAndServe(); err != nil && ctx.Err() == nil {
					return fmt.Errorf("dns: listen on %s (%s): %w", addr, network, err)
				}
				return nil
			})
			g.Go(func() error {
				<-ctx.Done()
				if err := srv.Shutdown(); err != nil && !errors.Is(err, context.Canceled) {
					klog.V(2).InfoS("DNS server was not running", "err", err)
				}
				return nil
			})
		}
	}
	return g.Wait()
}

func (s *Server) serve(w dns.ResponseWriter, q *dns.Msg) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	m := s.Answer(ctx, q)
	if w.LocalAddr().Network() == "udp" {
		size := dns.MinMsgSize
		if o := q.IsEdns0(); o != nil {
			size = max(int(o.UDPSize()), size)
		}
		m.Truncate(size)
	}
	if err := w.WriteMsg(m); err != nil {
		klog.V(4).InfoS("DNS client went away", "err", err)
	}
}

// Answer answers one query: from the cluster's records, or from upstream.
func (s *Server) Answer(ctx context.Context, q *dns.Msg) *dns.Msg {
	m := new(dns.Msg)
	if len(q.Question) != 1 || q.Opcode != dns.OpcodeQuery || q.Response {
		return m.SetRcode(q, dns.RcodeFormatError)
	}
	question := q.Question[0]
	name := strings.ToLower(dns.Fqdn(question.Name))
	switch {
	case question.Qclass == dns.ClassINET && s.records.mine(name):
		s.cluster(ctx, q, m, name)
	case question.Qtype == dns.TypePTR:
		if rrs, ok := s.records.reverse(question.Name, name); ok {
			m.SetReply(q)
			m.Authoritative = true
			m.Answer = rrs
			break
		}
		fallthrough
	default:
		return s.upstream.Forward(ctx, q)
	}
	m.RecursionAvailable = true
	if o := q.IsEdns0(); o != nil {
		m.SetEdns0(1232, o.Do())
	}
	return m
}

func (s *Server) cluster(ctx context.Context, q, m *dns.Msg, name string) {
	question := q.Question[0]
	m.SetReply(q)
	m.Authoritative = true
	if !s.ready() {
		// An honest "not now" rather than a false "there is no such name".
		m.Rcode, m.Authoritative = dns.RcodeServerFailure, false
		return
	}
	a := s.records.lookup(question.Name, name, question.Qtype)
	if !a.exists {
		m.Rcode = dns.RcodeNameError
	}
	m.Answer, m.Extra = a.rrs, a.extra
	for hop := 0; a.cname != "" && question.Qtype != dns.TypeCNAME && hop < maxChase; hop++ {
		target := strings.ToLower(a.cname)
		if !s.records.mine(target) {
			up := new(dns.Msg)
			up.SetQuestion(a.cname, question.Qtype)
			if resp := s.upstream.Forward(ctx, up); resp.Rcode == dns.RcodeSuccess {
				m.Answer = append(m.Answer, resp.Answer...)
			}
			break
		}
		a = s.records.lookup(a.cname, target, question.Qtype)
		m.Answer, m.Extra = append(m.Answer, a.rrs...), append(m.Extra, a.extra...)
	}
	if len(m.Answer) == 0 {
		m.Ns = []dns.RR{s.records.soa()}
	}
}

func (s *Server) ready() bool {
	for _, f := range s.records.synced {
		if !f() {
			return false
		}
	}
	return true
}
