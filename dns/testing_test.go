package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/strake-io/strake/mirror"
	"github.com/strake-io/strake/tests/netns"
)

// self and self6 are the cluster DNS addresses; they are on lo, as on a node.
var self, self6 = netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:96::a")

// TestMain runs the tests in a process with a network namespace of its own: servers listen on port 53 of its addresses.
func TestMain(m *testing.M) {
	netns.Process()
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	for _, a := range []netip.Addr{self, self6} {
		if err == nil || errors.Is(err, unix.EEXIST) { // a fuzz worker is started from within
			err = netlink.AddrAdd(lo, &netlink.Addr{IPNet: whole(a)})
		}
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if spec := os.Getenv(benchAgent); spec != "" {
		fmt.Fprintln(os.Stderr, runBenchAgent(spec))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// whole is the network of one address.
func whole(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func ptr[T any](v T) *T { return &v }

func service(name string, ips []string, change ...func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("uid-" + name)},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIPs: ips},
	}
	if len(ips) > 0 {
		s.Spec.ClusterIP = ips[0]
	}
	for _, f := range change {
		f(s)
	}
	return s
}

var headless = []string{corev1.ClusterIPNone}

func port(name string, proto corev1.Protocol, number int32) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: name, Protocol: proto, Port: number})
	}
}

func external(name string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.Type, s.Spec.ExternalName = corev1.ServiceTypeExternalName, name }
}

func publish(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = true }

// endpoints makes an EndpointSlice of addresses; "name=address" has a hostname, and what ends in "!" is not ready.
func endpoints(service, id string, ports []discoveryv1.EndpointPort, list ...string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: service + "-" + id, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		Ports:      ports,
	}
	for _, text := range list {
		addr, notReady := strings.CutSuffix(text, "!")
		e := discoveryv1.Endpoint{Conditions: discoveryv1.EndpointConditions{Ready: ptr(!notReady)}}
		if name, a, ok := strings.Cut(addr, "="); ok {
			e.Hostname, addr = &name, a
		}
		e.Addresses = []string{addr}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

func endpointPort(name string, proto corev1.Protocol, number int32) []discoveryv1.EndpointPort {
	return []discoveryv1.EndpointPort{{Name: &name, Protocol: &proto, Port: &number}}
}

// objects are the cluster that most tests ask about.
func objects() []apiruntime.Object {
	out := []apiruntime.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}},
		service("web", []string{"10.96.0.5"}, port("http", corev1.ProtocolTCP, 80), port("dns", corev1.ProtocolUDP, 53)),
		endpoints("web", "a", endpointPort("http", corev1.ProtocolTCP, 8080), "10.244.0.7", "web-1=10.244.0.8", "10-1-2-3=10.244.0.11"),
		service("dual", []string{"10.96.0.6", "fd00:96::6"}, port("https", corev1.ProtocolTCP, 443)),
		service("six", []string{"fd00:96::7"}, port("https", corev1.ProtocolTCP, 443)),
		endpoints("six", "a", endpointPort("https", corev1.ProtocolTCP, 8443), "six-1=fd00:244::21"),
		service("plain", []string{"10.96.0.7"}, port("", corev1.ProtocolTCP, 80)),
		service("old", nil, func(s *corev1.Service) { s.Spec.ClusterIP = "10.96.0.8" }),
		service("db", headless, port("pg", corev1.ProtocolTCP, 5432)),
		endpoints("db", "a", endpointPort("pg", corev1.ProtocolTCP, 5432), "db-0=10.244.0.2", "10.244.0.3", "db-2=10.244.0.4!"),
		service("two", headless, port("pg", corev1.ProtocolTCP, 5432)),
		endpoints("two", "a", endpointPort("pg", corev1.ProtocolTCP, 5432), "Two-0=10.244.0.12"),
		endpoints("two", "b", endpointPort("pg", corev1.ProtocolTCP, 5432), "Two-0=fd00:244:0:0::12", "fd00:244::13"),
		service("bare", headless, port("pg", corev1.ProtocolTCP, 5432)),
		endpoints("bare", "a", endpointPort("pg", corev1.ProtocolTCP, 5432), "bare-0=fd00:244::31", "fd00:244::32"),
		service("ends", headless, port("pg", corev1.ProtocolTCP, 5432)),
		endpoints("ends", "a", endpointPort("pg", corev1.ProtocolTCP, 5432), "fd00:244::"),
		service("all", headless, publish),
		endpoints("all", "a", nil, "all-0=10.244.0.9!"),
		service("empty", headless),
		endpoints("empty", "a", nil, "10.244.0.10!"),
		service("ext", nil, external("Example.com")),
		service("extaddr", nil, external("192.0.2.1")),
		service("extaddr6", nil, external("2001:db8::1")),
		service("extin", nil, external("web.default.svc.cluster.local.")),
		service("extgone", nil, external("gone.default.svc.cluster.local")),
		service("exttwice", nil, external("extin.default.svc.cluster.local")),
		service("circle", nil, external("circle.default.svc.cluster.local")),
		service("extlost", nil, external("lost.example.com")),
		service("extbroken", nil, external("broken.example.com")),
	}
	many := endpoints("many", "a", nil)
	for i := range 60 {
		many.Endpoints = append(many.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprint("10.244.1.", i)}})
	}
	out = append(out, service("many", headless), many, service("huge", headless))
	for i := range 20 {
		s := endpoints("huge", fmt.Sprint(i), nil)
		for j := range 100 {
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.245.%d.%d", i, j)}})
		}
		out = append(out, s)
	}
	return out
}

// newRecords are those of a cluster that was seen.
func newRecords(t testing.TB, objs ...apiruntime.Object) *Records {
	t.Helper()
	m := mirror.New(fake.NewClientset(objs...), "")
	r := NewRecords(m, self, self6)
	r.FollowPods(m)
	t.Cleanup(follow(m))
	m.Wait(t.Context())
	return r
}

// follow runs a mirror until stop.
func follow(m *mirror.Mirror) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { m.Run(ctx) })
	return func() { cancel(); running.Wait() }
}

// newServer resolves names of Cluster.local, and asks the servers of a resolv.conf for others.
func newServer(t testing.TB, r *Records, resolvConf string, listen ...netip.AddrPort) *Server {
	t.Helper()
	return configured(t, r, Config{Zones: []string{"Cluster.local"}, Upstream: Upstream{Servers: []string{resolvConf}}, Avoid: []netip.AddrPort{at}}, listen...)
}

func configured(t testing.TB, r *Records, cfg Config, listen ...netip.AddrPort) *Server {
	t.Helper()
	s, err := NewServer(r, cfg, listen...)
	must(t, err)
	t.Cleanup(func() { s.settings.Load().closeBut(nil) })
	return s
}

// forwarder asks the servers of a resolv.conf.
func forwarder(t testing.TB, resolvConf string, avoid ...netip.AddrPort) *Forwarder {
	t.Helper()
	return forwarderTo(t, Upstream{Servers: []string{resolvConf}}, CacheLimits{}, avoid...)
}

func forwarderTo(t testing.TB, u Upstream, limits CacheLimits, avoid ...netip.AddrPort) *Forwarder {
	t.Helper()
	m := newMetrics()
	f := newForwarder(u, newAnswers(Config{Cache: limits}.withDefaults().Cache, m), m, avoid)
	t.Cleanup(f.close)
	return f
}

// resolvConf writes a resolv.conf of servers.
func resolvConf(t testing.TB, servers ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "resolv.conf")
	writeServers(t, path, servers...)
	return path
}

func writeServers(t testing.TB, path string, servers ...string) {
	t.Helper()
	text := "search example.org\noptions ndots:1\n"
	for _, s := range servers {
		text += "nameserver " + s + "\n"
	}
	must(t, os.WriteFile(path, []byte(text), 0o600))
}

// fakeUpstream is a name server on port 53 of an address of lo. It counts what it is asked.
type fakeUpstream struct {
	mu    sync.Mutex
	asked map[string]int // "udp name"
}

func newUpstream(t testing.TB, addr string, handler func(network string, q *dns.Msg) *dns.Msg) *fakeUpstream {
	t.Helper()
	u := &fakeUpstream{asked: map[string]int{}}
	p, err := net.ListenPacket("udp", addr+":53")
	must(t, err)
	l, err := net.Listen("tcp", addr+":53")
	must(t, err)
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	for network, srv := range map[string]*dns.Server{"udp": {PacketConn: p, UDPSize: 4096}, "tcp": {Listener: l}} {
		started := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		srv.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
			u.mu.Lock()
			u.asked[network+" "+strings.ToLower(q.Question[0].Name)]++
			u.mu.Unlock()
			if m := handler(network, q); m != nil {
				w.WriteMsg(m)
			}
		})
		wg.Go(func() {
			if err := srv.ActivateAndServe(); err != nil {
				t.Error(err)
			}
		})
		<-started
		t.Cleanup(func() { must(t, srv.Shutdown()) })
	}
	return u
}

func (u *fakeUpstream) count(question string) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.asked[question]
}

// internet answers for example.com, and denies all else.
func internet(_ string, q *dns.Msg) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	m.RecursionAvailable = true
	name := q.Question[0].Name
	switch {
	case strings.EqualFold(name, "broken.example.com."):
		m.Rcode = dns.RcodeServerFailure
	case (strings.EqualFold(name, "example.com.") || strings.HasSuffix(name, ".www.example.com.")) && q.Question[0].Qtype == dns.TypeA:
		m.Answer = rrs(name + " 300 IN A 192.0.2.80")
	default:
		m.Ns = rrs("com. 60 IN SOA ns.com. host.com. 1 2 3 4 20")
		if !strings.EqualFold(name, "example.com.") {
			m.Rcode = dns.RcodeNameError
		}
	}
	return m
}

func rrs(texts ...string) []dns.RR {
	var out []dns.RR
	for _, text := range texts {
		rr, err := dns.NewRR(text)
		if err != nil {
			panic(err)
		}
		out = append(out, rr)
	}
	return out
}

// show is what a message says, in an order that chance has no part in.
func show(m *dns.Msg) string {
	section := func(list []dns.RR) (out []string) {
		for _, rr := range list {
			if rr.Header().Rrtype != dns.TypeOPT {
				out = append(out, strings.Join(strings.Fields(strings.ReplaceAll(rr.String(), "\tIN", "")), " "))
			}
		}
		slices.Sort(out)
		return out
	}
	out := dns.RcodeToString[m.Rcode]
	for i, list := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		if s := section(list); len(s) > 0 {
			out += "\n" + []string{"", "! ", "+ "}[i] + strings.Join(s, "\n"+[]string{"", "! ", "+ "}[i])
		}
	}
	return out
}
