package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
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
	listen   []netip.AddrPort
	settings atomic.Pointer[settings]
	metrics  *metrics
	watchers watchers

	listening atomic.Bool

	// Alone makes a port that another process has an error, also if that one would share it. Else a successor may listen before its
	// predecessor has ended.
	Alone bool

	mu      sync.Mutex // of Configure
	changed func(Config) error
	kernel  Kernel // nil: there is none
}

// NewServer answers on the addresses, over UDP and TCP.
func NewServer(r *Records, cfg Config, listen ...netip.AddrPort) (*Server, error) {
	s := &Server{records: r, listen: listen, metrics: newMetrics()}
	return s, s.Configure(cfg)
}

// Configure takes another configuration from the next query on. One that is wrong is an error, and changes nothing.
func (s *Server) Configure(cfg Config) error {
	if err := s.check(cfg); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changed != nil {
		if err := s.changed(cfg); err != nil {
			return err
		}
	}
	before := s.settings.Load()
	next := newSettings(cfg, s.records, s.metrics, before)
	s.settings.Store(next)
	if before != nil {
		before.closeBut(next)
	}
	if s.kernel != nil {
		_, err := s.kernel.Forget(".")
		return err
	}
	return nil
}

// check tells what of a configuration this resolver can't do.
func (s *Server) check(cfg Config) error {
	if err := cfg.Check(); err != nil {
		return err
	}
	if cfg.withDefaults().Pods == PodsVerified && s.records.pods == nil {
		return errors.New("dns: pods verified: this resolver does not follow pods; choose insecure or disabled")
	}
	return nil
}

// OnConfigure calls f with this configuration and each later one, before it counts.
func (s *Server) OnConfigure(f func(Config) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changed = f
	return f(s.settings.Load().cfg)
}

// Config is the configuration that counts, with all defaults.
func (s *Server) Config() Config { return s.settings.Load().cfg }

// Ready tells whether all of the cluster has been seen once, and a query finds open sockets.
func (s *Server) Ready() bool { return s.listening.Load() && s.records.ready() }

// Collectors are the resolver's metrics.
func (s *Server) Collectors() []prometheus.Collector {
	return append([]prometheus.Collector{cacheSizes{s}}, s.metrics.collectors...)
}

// Run serves until ctx ends. An address that can't be listened on is an error.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	lc := net.ListenConfig{Control: func(network, _ string, c syscall.RawConn) error {
		var err error
		cerr := c.Control(func(fd uintptr) {
			if !s.Alone {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
			}
			if err == nil && strings.HasPrefix(network, "udp") && unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, burst) != nil {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, burst) // who is not root gets what the node allows
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
		for _, srv := range []*dns.Server{{PacketConn: p, UDPSize: dns.DefaultMsgSize}, {Listener: newConnections(l)}} {
			srv.Handler = handler{s, "dns://" + addr.String()}
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
	s.listening.Store(true)
	defer s.listening.Store(false)
	g.Go(func() error { s.followServers(ctx); return nil })
	return g.Wait()
}

// handler answers what comes in at one address.
type handler struct {
	*Server
	name string
}

// ServeDNS implements dns.Handler.
func (h handler) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	begin := time.Now()
	defer func() {
		if r := recover(); r != nil {
			h.metrics.panics.Inc()
			klog.ErrorS(nil, "The resolver failed at a query", "query", q.String(), "panic", r, "stack", string(debug.Stack()))
			_ = w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)) // the client is not to wait; there is nobody to tell
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	proto, size, client := "tcp", dns.MaxMsgSize, netip.Addr{}
	switch a := w.RemoteAddr().(type) {
	case *net.UDPAddr:
		client = a.AddrPort().Addr().Unmap()
		proto, size = "udp", dns.MinMsgSize
		if o := q.IsEdns0(); o != nil {
			size = min(max(int(o.UDPSize()), size), maxUDP)
		}
	case *net.TCPAddr:
		client = a.AddrPort().Addr().Unmap()
	}
	a := h.Ask(ctx, client, q)
	a.Msg.Truncate(size)
	data, err := a.Msg.Pack()
	if err != nil {
		klog.ErrorS(err, "An answer can't be written", "question", q.Question)
		a.Msg = new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
		data, err = a.Msg.Pack()
	}
	if err == nil {
		_, err = w.Write(data)
	}
	if err != nil {
		klog.V(4).InfoS("DNS client went away", "err", err)
	}
	h.count(a, q, proto, client, len(data), time.Since(begin))
}

func (h handler) count(a Answer, q *dns.Msg, proto string, client netip.Addr, size int, took time.Duration) {
	family, qtype, m := "1", "other", h.metrics // as CoreDNS has them: 1 is IPv4, 2 IPv6
	if client.Is6() {
		family = "2"
	}
	if len(q.Question) == 1 {
		qtype = typeName(q.Question[0].Qtype)
	}
	asked := q.Len()
	m.requests.WithLabelValues(h.name, a.Zone, "", proto, family, qtype).Inc()
	m.responses.WithLabelValues(h.name, a.Zone, "", dns.RcodeToString[a.Msg.Rcode], a.By).Inc()
	m.duration.WithLabelValues(h.name, a.Zone, "").Observe(took.Seconds())
	m.requestSize.WithLabelValues(h.name, a.Zone, "", proto).Observe(float64(asked))
	m.answerSize.WithLabelValues(h.name, a.Zone, "", proto).Observe(float64(size))
	if h.watchers.n.Load() > 0 && len(q.Question) == 1 {
		h.watchers.tell(Query{
			Time: time.Now().Add(-took), Client: client, Name: q.Question[0].Name, Type: dns.Type(q.Question[0].Qtype).String(), Proto: proto,
			Code: dns.RcodeToString[a.Msg.Rcode], By: a.By, Took: took,
		})
	}
	if h.settings.Load().cfg.Log && len(q.Question) == 1 {
		klog.InfoS("DNS query", "client", client, "id", q.Id, "name", q.Question[0].Name, "type", dns.TypeToString[q.Question[0].Qtype], "proto", proto, "size", asked,
			"rcode", dns.RcodeToString[a.Msg.Rcode], "by", a.By, "zone", a.Zone, "bytes", size, "took", took)
	}
}

// What an Answer comes from.
const (
	ByCluster = "kubernetes" // objects of the cluster
	ByHosts   = "hosts"      // the configuration
	ByForward = "forward"    // upstream servers, or what is remembered of them
	ByNothing = ""           // the query was refused
)

// Answer is what a client gets, and where it comes from.
type Answer struct {
	Msg  *dns.Msg
	By   string // such as ByCluster
	Zone string // that the name is in: one of the cluster, a stub zone, or the root
	As   string // the name that was answered, if a rule has rewritten the one that was asked

	until time.Time // of what others may give in our stead: when that ends
}

// Answer answers one query: from the cluster's records, or from upstream.
func (s *Server) Answer(ctx context.Context, q *dns.Msg) *dns.Msg {
	return s.Ask(ctx, netip.Addr{}, q).Msg
}

// Ask answers one query of a client.
func (s *Server) Ask(ctx context.Context, client netip.Addr, q *dns.Msg) Answer {
	o := q.IsEdns0()
	a := Answer{Zone: "."}
	if rcode := acceptable(q); rcode != dns.RcodeSuccess {
		a.Msg = new(dns.Msg).SetRcode(q, rcode)
	} else {
		set := s.settings.Load()
		epoch := set.cache.epoch.Load()
		a = s.rewritten(request{ctx, set, client}, q)
		s.share(set, epoch, q, a)
	}
	a.Msg.RecursionAvailable = true
	if o != nil {
		a.Msg.SetEdns0(udpSize, o.Do())
	}
	return a
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

// request is what is needed of a client's query beside itself.
type request struct {
	ctx    context.Context
	set    *settings
	client netip.Addr
}

// rewritten answers a name by the rules of the configuration as another one, and gives the answer the name that was asked.
func (s *Server) rewritten(r request, q *dns.Msg) Answer {
	asked := q.Question[0].Name
	to, ok := r.set.rewrite(canonical(asked))
	if !ok {
		return s.answer(r, q)
	}
	other := q.Copy()
	other.Question[0].Name = to
	a := s.answer(r, other)
	a.As = to
	a.Msg.Question = []dns.Question{q.Question[0]}
	for _, section := range [][]dns.RR{a.Msg.Answer, a.Msg.Extra} {
		for _, rr := range section {
			if h := rr.Header(); strings.EqualFold(h.Name, to) {
				h.Name = asked
			}
		}
	}
	return a
}

func (s *Server) answer(r request, q *dns.Msg) Answer {
	question := q.Question[0]
	name := canonical(question.Name)
	if isProbe(name) {
		for _, f := range r.set.forwarders() {
			f.servers.returned(name)
		}
		return Answer{Msg: new(dns.Msg).SetRcode(q, dns.RcodeRefused), Zone: "."}
	}
	records, forwarder, zone := r.set.zoneOf(name)
	if question.Qtype == dns.TypeANY && records == nil {
		return Answer{Msg: minimalAny(q), By: ByNothing, Zone: zone}
	}
	if a := r.set.hosts.lookup(question.Name, name, question.Qtype); a.exists {
		m := new(dns.Msg).SetReply(q)
		m.Authoritative, m.Answer = true, a.rrs
		if len(a.rrs) == 0 {
			m.Ns = r.set.hosts.noData(name)
		}
		return Answer{Msg: m, By: ByHosts, Zone: zone}
	}
	if records != nil {
		m, until := s.cluster(r, records, q, name)
		return Answer{Msg: m, By: ByCluster, Zone: zone, until: until}
	}
	if addr, arpa, ok := reverseAddr(name); ok {
		if m := s.reverse(r, q, addr, arpa); m != nil {
			return Answer{Msg: m, By: ByCluster, Zone: arpa}
		}
	}
	m, until := forwarder.forward(r.ctx, r.client, q)
	return Answer{Msg: m, By: ByForward, Zone: zone, until: until}
}

// minimalAny answers a question for all that there is of a name as RFC 8482 4.2 allows, and asks nobody for it.
func minimalAny(q *dns.Msg) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	m.Answer = []dns.RR{&dns.HINFO{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeHINFO, Class: dns.ClassINET, Ttl: 8482}, Cpu: "RFC8482"}}
	return m
}

// reverse answers for addresses of the cluster; others are not its matter.
func (s *Server) reverse(r request, q *dns.Msg, addr netip.Addr, arpa string) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	if !s.records.ready() {
		m.Rcode = dns.RcodeServerFailure
		return m
	}
	zone := r.set.primary
	rrs := zone.reverse(q.Question[0].Name, addr)
	if len(rrs) == 0 {
		return nil
	}
	m.Authoritative = true
	if q.Question[0].Qtype == dns.TypePTR {
		m.Answer = rrs
	} else {
		m.Ns = []dns.RR{zone.soa(arpa)}
	}
	return m
}

// cluster answers for a name in a zone. until is that of what servers outside have said; zero if they were not asked.
func (s *Server) cluster(r request, records *Records, q *dns.Msg, name string) (m *dns.Msg, until time.Time) {
	if !records.ready() {
		// An honest "not now" rather than a false "there is no such name".
		return new(dns.Msg).SetRcode(q, dns.RcodeServerFailure), until
	}
	m, outside := inCluster(records, r.set.zone, q, name)
	if outside != "" {
		_, forwarder, _ := r.set.zoneOf(strings.ToLower(outside))
		up := q.Copy()
		up.Question[0].Name = outside
		var resp *dns.Msg
		resp, until = forwarder.forward(r.ctx, r.client, up)
		// The code is that of the chain's last name (RFC 6604 3).
		m.Rcode, m.Answer, m.Ns = resp.Rcode, append(m.Answer, resp.Answer...), resp.Ns
		if own := time.Now().Add(time.Duration(records.ttl) * time.Second); own.Before(until) {
			until = own
		}
	}
	return m, until
}

// inCluster answers a question for a name, lower-case, of a zone, and follows aliases while they are in zones: outside is where the chain
// leaves them. zoneOf is nil for a name that is in none.
func inCluster(records *Records, zoneOf func(name string) *Records, q *dns.Msg, name string) (m *dns.Msg, outside string) {
	question := q.Question[0]
	m = new(dns.Msg).SetReply(q)
	m.Authoritative = true
	a := records.lookup(question.Name, name, question.Qtype)
	m.Answer, m.Extra = a.rrs, a.extra
	for hop := 0; a.cname != "" && question.Qtype != dns.TypeCNAME && question.Qtype != dns.TypeANY; hop++ {
		if hop == maxChase { // in a circle, most likely
			m.Rcode, m.Answer, m.Authoritative = dns.RcodeServerFailure, nil, false
			return m, ""
		}
		target := strings.ToLower(a.cname)
		if records = zoneOf(target); records == nil {
			return m, a.cname
		}
		a = records.lookup(a.cname, target, question.Qtype)
		m.Answer, m.Extra = append(m.Answer, a.rrs...), append(m.Extra, a.extra...)
	}
	if !a.exists {
		m.Rcode = dns.RcodeNameError
	}
	if len(a.rrs) == 0 && a.exists && question.Qtype == dns.TypeANY {
		m.Answer = minimalAny(q).Answer
	} else if len(a.rrs) == 0 {
		m.Ns = []dns.RR{records.soa(records.zone)}
	}
	return m, ""
}
