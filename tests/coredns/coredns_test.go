package coredns

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/strake-io/strake/dns"
	"github.com/strake-io/strake/mirror"
	"github.com/strake-io/strake/tests/freeport"
)

// binary names CoreDNS, which `make test-coredns` builds.
const binary = "STRAKE_COREDNS"

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func ptr[T any](v T) *T { return &v }

func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain for " + what)
		}
	}
}

func service(name string, change func(*corev1.ServiceSpec), ips ...string) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIPs: ips}}
	if len(ips) > 0 {
		s.Spec.ClusterIP = ips[0]
	}
	if change != nil {
		change(&s.Spec)
	}
	return s
}

func ports(list ...corev1.ServicePort) func(*corev1.ServiceSpec) {
	return func(s *corev1.ServiceSpec) { s.Ports = list }
}

func external(name string) func(*corev1.ServiceSpec) {
	return func(s *corev1.ServiceSpec) { s.Type, s.ExternalName = corev1.ServiceTypeExternalName, name }
}

// slice has endpoints as "name=address", or "address", which ends in "!" if it is not ready.
func slice(service, id string, port *discoveryv1.EndpointPort, list ...string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: service + "-" + id, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	if port != nil {
		s.Ports = []discoveryv1.EndpointPort{*port}
	}
	for _, text := range list {
		addr, notReady := strings.CutSuffix(text, "!")
		e := discoveryv1.Endpoint{Conditions: discoveryv1.EndpointConditions{Ready: ptr(!notReady)}}
		if name, a, ok := strings.Cut(addr, "="); ok {
			e.Hostname, addr = &name, a
		}
		if strings.Contains(addr, ":") {
			s.AddressType = discoveryv1.AddressTypeIPv6
		}
		e.Addresses = []string{addr}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

func objects() []runtime.Object {
	tcp := func(name string, n int32) corev1.ServicePort {
		return corev1.ServicePort{Name: name, Protocol: corev1.ProtocolTCP, Port: n}
	}
	at := func(name string, n int32) *discoveryv1.EndpointPort {
		return &discoveryv1.EndpointPort{Name: &name, Port: &n, Protocol: ptr(corev1.ProtocolTCP)}
	}
	var many []string
	for i := range 200 {
		many = append(many, fmt.Sprintf("10.244.7.%d", i))
	}
	return []runtime.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "other"}},
		service("web", ports(tcp("http", 80), corev1.ServicePort{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53}), "10.96.0.5"),
		slice("web", "a", at("http", 8080), "10.244.0.7", "web-1=10.244.0.8"),
		service("dual", ports(tcp("https", 443)), "10.96.0.6", "fd00:96::6"),
		service("six", ports(tcp("https", 443)), "fd00:96::7"),
		slice("six", "a", at("https", 8443), "six-1=fd00:244::21"),
		service("plain", ports(tcp("", 80)), "10.96.0.7"),
		slice("plain", "a", at("", 8080), "10.244.0.17"),
		service("same", ports(tcp("a", 80), tcp("b", 80)), "10.96.0.11"),
		service("db", ports(tcp("pg", 5432)), "None"),
		slice("db", "a", at("pg", 5432), "db-0=10.244.0.2", "10.244.0.3", "db-2=10.244.0.4!"),
		service("two", ports(tcp("pg", 5432)), "None"),
		slice("two", "a", at("pg", 5432), "two-0=10.244.0.12"), slice("two", "b", at("pg", 5432), "two-0=fd00:244::12", "fd00:244::13"),
		service("many", nil, "None"), slice("many", "a", nil, many...),
		service("all", func(s *corev1.ServiceSpec) { s.PublishNotReadyAddresses = true }, "None"), slice("all", "a", nil, "all-0=10.244.0.9!"),
		service("empty", nil, "None"), slice("empty", "a", nil, "10.244.0.10!"),
		service("bare", nil, "None"),
		service("ext", external("Example.com")), service("extin", external("web.default.svc.cluster.local")), service("exttwice", external("extin.default.svc.cluster.local")),
		service("extgone", external("gone.default.svc.cluster.local")), service("extaddr", external("192.0.2.1")), service("extlost", external("lost.example.com")),
	}
}

// upstream answers for example.com.
func upstream(t *testing.T) string {
	addr := fmt.Sprint("127.0.0.1:", freeport.Find(t))
	p, err := net.ListenPacket("udp", addr)
	must(t, err)
	l, err := net.Listen("tcp", addr)
	must(t, err)
	handler := mdns.HandlerFunc(func(w mdns.ResponseWriter, q *mdns.Msg) {
		m := new(mdns.Msg).SetReply(q)
		m.RecursionAvailable = true
		name := q.Question[0].Name
		if strings.EqualFold(name, "example.com.") && q.Question[0].Qtype == mdns.TypeA {
			rr, err := mdns.NewRR(name + " 300 IN A 192.0.2.80")
			if err != nil {
				panic(err)
			}
			m.Answer = []mdns.RR{rr}
		} else {
			rr, err := mdns.NewRR("com. 20 IN SOA ns.com. host.com. 1 2 3 4 20")
			if err != nil {
				panic(err)
			}
			m.Ns = []mdns.RR{rr}
			if !strings.EqualFold(name, "example.com.") {
				m.Rcode = mdns.RcodeNameError
			}
		}
		if o := q.IsEdns0(); o != nil {
			m.SetEdns0(1232, o.Do())
		}
		_ = w.WriteMsg(m) // the client asks again
	})
	for _, srv := range []*mdns.Server{{PacketConn: p, Handler: handler}, {Listener: l, Handler: handler}} {
		go srv.ActivateAndServe() // ends with Shutdown
		t.Cleanup(func() { srv.Shutdown() })
	}
	return addr
}

// both starts CoreDNS and our resolver for the same API; each is asked at its address.
func both(t *testing.T, api *API) (core, ours string) {
	t.Helper()
	path := os.Getenv(binary)
	if path == "" {
		t.Skipf("SKIPPED: %s is not set: `make test-coredns` builds CoreDNS and runs this", binary)
	}
	up := upstream(t)
	dir := t.TempDir()
	port := freeport.Find(t)
	core = fmt.Sprint("127.0.0.1:", port)
	text := fmt.Sprintf(`.:%d {
    bind 127.0.0.1
    errors
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        endpoint %s
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }
    forward . %s
    loadbalance
}
`, port, api.URL, up)
	file := filepath.Join(dir, "Corefile")
	must(t, os.WriteFile(file, []byte(text), 0o600))
	cmd := exec.Command(path, "-conf", file)
	log, err := os.Create(filepath.Join(dir, "log"))
	must(t, err)
	cmd.Stdout, cmd.Stderr = log, log
	must(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			log.Seek(0, io.SeekStart)
			data, _ := io.ReadAll(log)
			t.Logf("CoreDNS:\n%.2000s", data)
		}
	})
	client, err := kubernetes.NewForConfig(&rest.Config{Host: api.URL})
	must(t, err)
	m := mirror.New(client, "")
	at := netip.MustParseAddrPort(fmt.Sprint("127.0.0.1:", freeport.Find(t)))
	server, err := dns.NewServer(dns.NewRecords(m, at.Addr()), dns.Config{Upstream: dns.Upstream{Servers: []string{up}}}, at)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go m.Run(ctx)
	go func() { done <- server.Run(ctx) }()
	t.Cleanup(func() { cancel(); must(t, <-done) })
	for _, to := range []string{core, at.String()} {
		await(t, to+" to answer", func() bool {
			m, err := mdns.Exchange(new(mdns.Msg).SetQuestion("web.default.svc.cluster.local.", mdns.TypeA), to)
			return err == nil && len(m.Answer) == 1
		})
	}
	return core, at.String()
}

// show is what a message says, in an order that chance has no part in.
func show(m *mdns.Msg) string {
	out := fmt.Sprintf("%s aa=%v tc=%v rd=%v %v", mdns.RcodeToString[m.Rcode], m.Authoritative, m.Truncated, m.RecursionDesired, m.Question)
	for i, section := range [][]mdns.RR{m.Answer, m.Ns, m.Extra} {
		var lines []string
		for _, rr := range section {
			switch r := rr.(type) {
			case *mdns.OPT:
				continue
			case *mdns.SOA:
				r.Serial = 0 // a time there
			case *mdns.SRV:
				r.Weight = 0 // one for all of an answer; there it also counts addresses
			}
			lines = append(lines, strings.ToLower(strings.Join(strings.Fields(rr.String()), " ")))
		}
		slices.Sort(lines)
		lines = slices.Compact(lines)
		for _, l := range lines {
			out += "\n" + []string{"", "! ", "+ "}[i] + l
		}
	}
	return out
}

func ask(t *testing.T, to, network string, q *mdns.Msg) *mdns.Msg {
	t.Helper()
	for range 5 { // a datagram may be lost
		m, _, err := (&mdns.Client{Net: network, Timeout: 5 * time.Second, UDPSize: 65535}).Exchange(q, to)
		if err == nil {
			return m
		}
		t.Logf("%s: %v", to, err)
	}
	t.Fatalf("%s does not answer %v", to, q.Question)
	return nil
}

// differs tells where we do otherwise on purpose, and why.
func differs(q *mdns.Msg, core, ours *mdns.Msg) string {
	name, qtype := strings.ToLower(q.Question[0].Name), q.Question[0].Qtype
	labels := mdns.SplitDomainName(name)
	denied := func(m *mdns.Msg, rcode int) bool { return m.Rcode == rcode && len(m.Answer) == 0 }
	switch {
	case core.Truncated && ours.Truncated && core.Rcode == ours.Rcode && len(ours.Answer) > 0:
		return "of a cut answer chance says what is left"
	case strings.HasPrefix(labels[0], "ext") && ours.Rcode != mdns.RcodeServerFailure && len(ours.Answer) > 0 && len(ours.Ns) > 0:
		return "an alias whose target has no such records is told with the target's denial (RFC 2308, 6604; there: without, or NOERROR and no alias)"
	case slices.Contains(labels, "all") || name == "9.0.244.10.in-addr.arpa.":
		return "publishNotReadyAddresses counts whatever the slice says (there: the slice alone)"
	case strings.HasPrefix(labels[0], "ext") && qtype == mdns.TypeSRV && len(ours.Answer) > 1:
		return "an alias is followed whatever is asked for (there: not to SRV)"
	case name == "cluster.local." && qtype == mdns.TypeNS:
		return "the name server of the zone is our own address"
	case qtype == mdns.TypeTXT && denied(core, mdns.RcodeNameError) && denied(ours, mdns.RcodeSuccess):
		return "a name that has no TXT exists all the same (there: NXDOMAIN)"
	case name == "dns-version.cluster.local.":
		return "dns-version exists for all types, and lives as long as other records"
	case strings.HasSuffix(name, ".pod.cluster.local.") && (qtype == mdns.TypeSRV && denied(ours, mdns.RcodeSuccess) || len(labels) > 5):
		return "pods' addresses have no SRV records, and no names below them"
	case qtype == mdns.TypeSOA && denied(core, mdns.RcodeSuccess):
		return "a question for the SOA of a name that does not exist is NXDOMAIN as any other (there: NOERROR)"
	case strings.HasPrefix(name, "_tcp.") && denied(core, mdns.RcodeNameError) && denied(ours, mdns.RcodeSuccess):
		return "names that have others below them exist (RFC 8020; there: NXDOMAIN)"
	case strings.HasPrefix(labels[0], "_") && (qtype == mdns.TypeA || qtype == mdns.TypeAAAA || qtype == mdns.TypePTR) && denied(ours, mdns.RcodeSuccess):
		return "a port's name has SRV records alone (there: addresses, too)"
	case strings.HasSuffix(name, ".arpa.") && qtype != mdns.TypePTR && denied(ours, mdns.RcodeSuccess):
		return "an address of the cluster has no records but PTR (there: upstream is asked)"
	}
	return ""
}

func TestAsCoreDNS(t *testing.T) {
	api, err := StartAPI(objects()...)
	must(t, err)
	t.Cleanup(func() { api.Close() })
	core, ours := both(t, api)
	names := []string{"web", "dual", "six", "plain", "same", "db", "two", "many", "all", "empty", "bare", "ext", "extin", "exttwice", "extgone", "extaddr", "extlost", "nothing"}
	before := []string{"", "web-1.", "six-1.", "db-0.", "db-2.", "two-0.", "all-0.", "10-244-0-7.", "10-244-0-3.", "10-244-0-2.", "fd00-244--13.", "_http._tcp.", "_pg._tcp.", "_https._tcp.", "_dns._udp.", "_http._udp.", "_tcp.", "_a._tcp.", "_http.", "*.", "_*._tcp.", "x.y.z."}
	var questions []string
	for _, n := range names {
		for _, b := range before {
			questions = append(questions, b+n+".default.svc.cluster.local.")
		}
		questions = append(questions, n+".nowhere.svc.cluster.local.", n+".other.svc.cluster.local.")
	}
	questions = append(questions, "cluster.local.", "svc.cluster.local.", "pod.cluster.local.", "default.svc.cluster.local.", "nowhere.svc.cluster.local.", "default.pod.cluster.local.", "nowhere.pod.cluster.local.",
		"10-1-0-1.default.pod.cluster.local.", "10-1-0-1.nowhere.pod.cluster.local.", "fd00--1.default.pod.cluster.local.", "10-1-0.default.pod.cluster.local.", "a.10-1-0-1.default.pod.cluster.local.",
		"dns-version.cluster.local.", "a.dns-version.cluster.local.", "x.cluster.local.", "example.com.cluster.local.", "example.com.default.svc.cluster.local.", "example.com.svc.cluster.local.",
		"5.0.96.10.in-addr.arpa.", "2.0.244.10.in-addr.arpa.", "3.0.244.10.in-addr.arpa.", "7.0.244.10.in-addr.arpa.", "8.0.244.10.in-addr.arpa.", "9.0.244.10.in-addr.arpa.", "4.0.244.10.in-addr.arpa.", "1.2.3.4.in-addr.arpa.", "0.96.10.in-addr.arpa.",
		"6.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa.", "2.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.4.4.2.0.0.0.d.f.ip6.arpa.",
		"example.com.", "Example.COM.", "lost.example.com.", "WEB.Default.SVC.cluster.LOCAL.", "DB-0.db.default.svc.cluster.local.")
	types := []uint16{mdns.TypeA, mdns.TypeAAAA, mdns.TypeSRV, mdns.TypeTXT, mdns.TypePTR, mdns.TypeCNAME, mdns.TypeNS, mdns.TypeSOA, mdns.TypeMX, mdns.TypeHTTPS}
	different := map[string]int{}
	for i, name := range questions {
		for _, qtype := range types {
			q := new(mdns.Msg).SetQuestion(name, qtype)
			network := "udp"
			switch i % 4 {
			case 1:
				q.SetEdns0(1232, false)
			case 2:
				q.SetEdns0(65535, false)
			case 3:
				network = "tcp"
			}
			a, b := ask(t, core, network, q), ask(t, ours, network, q)
			if show(a) == show(b) {
				continue
			}
			if why := differs(q, a, b); why != "" {
				different[why]++
				continue
			}
			t.Errorf("%s %s\nCoreDNS: %s\nours:    %s", name, mdns.TypeToString[qtype], show(a), show(b))
		}
	}
	t.Log("different on purpose:", different)
}
