package dns

import (
	"context"
	"crypto/rand"
	"fmt"
	randv2 "math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"k8s.io/klog/v2"
)

// probeZone holds names that do not exist anywhere (RFC 6761 6.4), so that no server has an answer of its own.
const probeZone = "loop.invalid."

// checks of a server that did not answer come at first at short, then at longer intervals.
const (
	firstCheck = 500 * time.Millisecond
	lastCheck  = 5 * time.Second
)

// server is a name server. Its fields but addr and probe are guarded by the mu of servers.
type server struct {
	addr  string
	probe string // a name that nobody else knows: who asks us for it was sent by this server
	loops bool
	down  bool // it did not answer: until it does, others go first
}

// servers are those of an Upstream, with what is known of them.
type servers struct {
	cfg     Upstream
	id      uint64
	avoid   []netip.AddrPort // our own addresses: asking them would never end
	metrics *metrics
	ctx     context.Context
	close   func()

	mu    sync.Mutex
	read  map[string]fileVersion
	list  []*server
	turn  int
	begun bool
	moved bool // the list is another one than before
}

// fileVersion tells whether a file was written.
type fileVersion struct {
	modified time.Time
	size     int64
}

var lastID atomic.Uint64

func newServers(cfg Upstream, avoid []netip.AddrPort, m *metrics) *servers {
	s := &servers{cfg: cfg, id: lastID.Add(1), avoid: avoid, metrics: m}
	s.ctx, s.close = context.WithCancel(context.Background())
	return s
}

// order returns the servers in the order to ask them, after reading again the files that have changed.
func (s *servers) order() ([]*server, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.refresh(); err != nil {
		return nil, err
	}
	var up, down []*server
	for _, u := range s.list {
		switch {
		case u.loops:
		case u.down:
			down = append(down, u)
		default:
			up = append(up, u)
		}
	}
	switch s.cfg.Policy {
	case PolicyRandom:
		for _, l := range [][]*server{up, down} {
			randv2.Shuffle(len(l), func(i, j int) { l[i], l[j] = l[j], l[i] })
		}
	case PolicyRoundRobin:
		if n := len(up); n > 1 {
			s.turn++
			up = slices.Concat(up[s.turn%n:], up[:s.turn%n])
		}
	}
	return append(up, down...), nil
}

// changed reads again the files that have changed, if somebody has asked before, and tells whether other servers have come of that since the
// last time.
func (s *servers) changed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.begun {
		return false
	}
	if err := s.refresh(); err != nil {
		klog.V(4).ErrorS(err, "Upstream DNS servers can't be read") // who asks is told
	}
	moved := s.moved
	s.moved = false
	return moved
}

// refresh reads the files that have changed. A server that stays keeps what is known of it.
func (s *servers) refresh() error {
	changed := !s.begun
	read := map[string]fileVersion{}
	for _, path := range s.cfg.Servers {
		if !filepath.IsAbs(path) {
			continue
		}
		info, err := os.Stat(path)
		if err != nil {
			return fmt.Errorf("dns: upstreams: %w", err)
		}
		read[path] = fileVersion{info.ModTime(), info.Size()}
		changed = changed || read[path] != s.read[path]
	}
	if !changed {
		return nil
	}
	before := map[string]*server{}
	for _, u := range s.list {
		before[u.addr] = u
	}
	var list, fresh []*server
	add := func(a netip.AddrPort) {
		a = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
		addr := a.String()
		if slices.Contains(s.avoid, a) || slices.ContainsFunc(list, func(u *server) bool { return u.addr == addr }) {
			return
		}
		u := before[addr]
		if u == nil {
			u = &server{addr: addr, probe: strings.ToLower(rand.Text()) + "." + probeZone}
			fresh = append(fresh, u)
		}
		list = append(list, u)
	}
	for _, source := range s.cfg.Servers {
		if !filepath.IsAbs(source) {
			if a, err := serverAddr(source); err == nil { // Check has refused others
				add(a)
			}
			continue
		}
		conf, err := dns.ClientConfigFromFile(source)
		if err != nil {
			return fmt.Errorf("dns: upstreams: %s: %w", source, err)
		}
		for _, text := range conf.Servers {
			if a, err := serverAddr(text); err == nil {
				add(a)
			}
		}
	}
	// Only now: what could not be read whole is read again with the next query.
	s.moved = s.moved || s.begun && !slices.Equal(s.list, list)
	s.begun, s.read, s.list = true, read, list
	for _, u := range fresh {
		go s.detectLoop(u)
	}
	klog.InfoS("Upstream DNS servers", "named in", s.cfg.Servers, "used", len(list), "new", len(fresh))
	return nil
}

// ask asks one server, and notes whether it answers.
func (s *servers) ask(q *dns.Msg, u *server) (*dns.Msg, error) {
	begin := time.Now()
	m, err := exchange(q, u.addr, s.cfg.TCP)
	s.metrics.asked(u.addr, m, time.Since(begin))
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		u.down = false
	} else if !u.down {
		u.down = true
		go s.watch(u)
	}
	return m, err
}

// watch asks a server that did not answer for the root until it does.
func (s *servers) watch(u *server) {
	for wait := firstCheck; ; wait = min(2*wait, lastCheck) {
		if _, err := exchange(new(dns.Msg).SetQuestion(".", dns.TypeNS), u.addr, s.cfg.TCP); err == nil {
			s.mu.Lock()
			u.down = false
			s.mu.Unlock()
			return
		}
		s.metrics.checkFailed(u.addr)
		select {
		case <-s.ctx.Done():
			return
		case <-time.After(wait):
		}
		s.mu.Lock()
		over := !u.down || !slices.Contains(s.list, u)
		u.down = u.down && !over // one that is named again later begins anew
		s.mu.Unlock()
		if over {
			return
		}
	}
}

// detectLoop asks a server for its probe. If the question comes back to us, so would all others, without end.
func (s *servers) detectLoop(u *server) {
	if _, err := exchange(new(dns.Msg).SetQuestion(u.probe, dns.TypeTXT), u.addr, s.cfg.TCP); err != nil {
		klog.V(2).InfoS("DNS server did not answer a probe", "server", u.addr, "err", err)
	}
}

// isProbe tells whether a lower-case name is made by detectLoop, here or in another resolver.
func isProbe(name string) bool { return strings.HasSuffix(name, "."+probeZone) }

// returned takes the server that sends us our own probe out of use.
func (s *servers) returned(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, u := range s.list {
		if u.probe == name && !u.loops {
			u.loops = true
			klog.ErrorS(nil, "A DNS server sends our queries back to us, it is not asked any more; name other servers", "server", u.addr, "named in", s.cfg.Servers)
		}
	}
}
