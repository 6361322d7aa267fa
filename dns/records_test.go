package dns

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/strake-io/strake/mirror"
)

const (
	soaLine = "! cluster.local. 30 SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 30"
	noData  = "NOERROR\n" + soaLine
	noName  = "NXDOMAIN\n" + soaLine
	public  = "127.0.0.2"
)

// In answers: "! " is of the authority section, "+ " of the additional one.
var recordCases = map[string]string{
	// Services with cluster addresses.
	"web.default.svc.cluster.local. A":                           "NOERROR\nweb.default.svc.cluster.local. 30 A 10.96.0.5",
	"web.default.svc.cluster.local. AAAA":                        noData,
	"web.default.svc.cluster.local. TXT":                         noData,
	"web.default.svc.cluster.local. ANY":                         "NOERROR\nweb.default.svc.cluster.local. 8482 HINFO \"RFC8482\" \"\"",
	"ext.default.svc.cluster.local. ANY":                         "NOERROR\next.default.svc.cluster.local. 30 CNAME Example.com.",
	"nothing.default.svc.cluster.local. ANY":                     noName,
	"example.com. ANY":                                           "NOERROR\nexample.com. 8482 HINFO \"RFC8482\" \"\"",
	"WEB.Default.SVC.Cluster.LOCAL. A":                           "NOERROR\nWEB.Default.SVC.Cluster.LOCAL. 30 A 10.96.0.5",
	"dual.default.svc.cluster.local. A":                          "NOERROR\ndual.default.svc.cluster.local. 30 A 10.96.0.6",
	"dual.default.svc.cluster.local. AAAA":                       "NOERROR\ndual.default.svc.cluster.local. 30 AAAA fd00:96::6",
	"six.default.svc.cluster.local. A":                           noData,
	"six.default.svc.cluster.local. AAAA":                        "NOERROR\nsix.default.svc.cluster.local. 30 AAAA fd00:96::7",
	"six-1.six.default.svc.cluster.local. AAAA":                  "NOERROR\nsix-1.six.default.svc.cluster.local. 30 AAAA fd00:244::21",
	"six.default.svc.cluster.local. SRV":                         "NOERROR\nsix.default.svc.cluster.local. 30 SRV 0 100 443 six.default.svc.cluster.local.\n+ six.default.svc.cluster.local. 30 AAAA fd00:96::7",
	"bare.default.svc.cluster.local. A":                          noData,
	"bare.default.svc.cluster.local. AAAA":                       "NOERROR\nbare.default.svc.cluster.local. 30 AAAA fd00:244::31\nbare.default.svc.cluster.local. 30 AAAA fd00:244::32",
	"bare-0.bare.default.svc.cluster.local. A":                   noData,
	"bare-0.bare.default.svc.cluster.local. AAAA":                "NOERROR\nbare-0.bare.default.svc.cluster.local. 30 AAAA fd00:244::31",
	"plain.default.svc.cluster.local. A":                         "NOERROR\nplain.default.svc.cluster.local. 30 A 10.96.0.7",
	"old.default.svc.cluster.local. A":                           "NOERROR\nold.default.svc.cluster.local. 30 A 10.96.0.8",
	"10-244-0-7.web.default.svc.cluster.local. A":                "NOERROR\n10-244-0-7.web.default.svc.cluster.local. 30 A 10.244.0.7",
	"web-1.web.default.svc.cluster.local. A":                     "NOERROR\nweb-1.web.default.svc.cluster.local. 30 A 10.244.0.8",
	"nobody.web.default.svc.cluster.local. A":                    noName,
	"10-1-2-3.web.default.svc.cluster.local. A":                  "NOERROR\n10-1-2-3.web.default.svc.cluster.local. 30 A 10.244.0.11", // a hostname
	"10-244-0-11.web.default.svc.cluster.local. A":               noName,
	"10-244-0-3.web.default.svc.cluster.local. A":                noName, // of another Service
	"nothing.default.svc.cluster.local. A":                       noName,
	"web.nowhere.svc.cluster.local. A":                           noName,
	"a.b.c.web.default.svc.cluster.local. A":                     noName,
	`web\.default.svc.cluster.local. A`:                          noName,
	`\000\255.default.svc.cluster.local. A`:                      noName,
	"*.default.svc.cluster.local. A":                             noName,
	"web.*.svc.cluster.local. A":                                 noName,
	"web.default.svc.cluster.local.cluster.local. A":             noName,
	"web.default.svc.cluster.local.default.svc.cluster.local. A": noName,

	// SRV.
	"web.default.svc.cluster.local. SRV": "NOERROR\nweb.default.svc.cluster.local. 30 SRV 0 50 53 web.default.svc.cluster.local.\n" +
		"web.default.svc.cluster.local. 30 SRV 0 50 80 web.default.svc.cluster.local.\n+ web.default.svc.cluster.local. 30 A 10.96.0.5",
	"_http._tcp.web.default.svc.cluster.local. SRV": "NOERROR\n_http._tcp.web.default.svc.cluster.local. 30 SRV 0 100 80 web.default.svc.cluster.local.\n+ web.default.svc.cluster.local. 30 A 10.96.0.5",
	"_HTTP._TCP.Web.default.svc.cluster.local. SRV": "NOERROR\n_HTTP._TCP.Web.default.svc.cluster.local. 30 SRV 0 100 80 web.default.svc.cluster.local.\n+ web.default.svc.cluster.local. 30 A 10.96.0.5",
	"_dns._udp.web.default.svc.cluster.local. SRV":  "NOERROR\n_dns._udp.web.default.svc.cluster.local. 30 SRV 0 100 53 web.default.svc.cluster.local.\n+ web.default.svc.cluster.local. 30 A 10.96.0.5",
	"_https._tcp.dual.default.svc.cluster.local. SRV": "NOERROR\n_https._tcp.dual.default.svc.cluster.local. 30 SRV 0 100 443 dual.default.svc.cluster.local.\n" +
		"+ dual.default.svc.cluster.local. 30 A 10.96.0.6\n+ dual.default.svc.cluster.local. 30 AAAA fd00:96::6",
	"_http._tcp.web.default.svc.cluster.local. A":   noData,
	"_http._udp.web.default.svc.cluster.local. SRV": noName,
	"_none._tcp.web.default.svc.cluster.local. SRV": noName,
	"_tcp.web.default.svc.cluster.local. SRV":       noData,
	"_sctp.web.default.svc.cluster.local. SRV":      noName,
	"_.web.default.svc.cluster.local. SRV":          noName,
	"_._tcp.web.default.svc.cluster.local. SRV":     noName,
	"_http._.web.default.svc.cluster.local. SRV":    noName,
	"_._.web.default.svc.cluster.local. SRV":        noName,
	"http.tcp.web.default.svc.cluster.local. SRV":   noName,
	"plain.default.svc.cluster.local. SRV":          "NOERROR\nplain.default.svc.cluster.local. 30 SRV 0 100 80 plain.default.svc.cluster.local.\n+ plain.default.svc.cluster.local. 30 A 10.96.0.7",
	"web-1.web.default.svc.cluster.local. SRV":      "NOERROR\nweb-1.web.default.svc.cluster.local. 30 SRV 0 100 8080 web-1.web.default.svc.cluster.local.\n+ web-1.web.default.svc.cluster.local. 30 A 10.244.0.8",
	"_._tcp.plain.default.svc.cluster.local. SRV":   noName,

	// Headless Services.
	"db.default.svc.cluster.local. A":                  "NOERROR\ndb.default.svc.cluster.local. 30 A 10.244.0.2\ndb.default.svc.cluster.local. 30 A 10.244.0.3",
	"db.default.svc.cluster.local. AAAA":               noData,
	"db-0.db.default.svc.cluster.local. A":             "NOERROR\ndb-0.db.default.svc.cluster.local. 30 A 10.244.0.2",
	"DB-0.db.default.svc.cluster.local. A":             "NOERROR\nDB-0.db.default.svc.cluster.local. 30 A 10.244.0.2",
	"db-0.db.default.svc.cluster.local. AAAA":          noData,
	"10-244-0-3.db.default.svc.cluster.local. A":       "NOERROR\n10-244-0-3.db.default.svc.cluster.local. 30 A 10.244.0.3",
	"10-244-0-2.db.default.svc.cluster.local. A":       noName, // its name is db-0
	"db-2.db.default.svc.cluster.local. A":             noName, // not ready
	"two.default.svc.cluster.local. AAAA":              "NOERROR\ntwo.default.svc.cluster.local. 30 AAAA fd00:244::12\ntwo.default.svc.cluster.local. 30 AAAA fd00:244::13",
	"two-0.two.default.svc.cluster.local. A":           "NOERROR\ntwo-0.two.default.svc.cluster.local. 30 A 10.244.0.12",
	"two-0.two.default.svc.cluster.local. AAAA":        "NOERROR\ntwo-0.two.default.svc.cluster.local. 30 AAAA fd00:244::12",
	"fd00-244--13.two.default.svc.cluster.local. AAAA": "NOERROR\nfd00-244--13.two.default.svc.cluster.local. 30 AAAA fd00:244::13",
	"_pg._tcp.db.default.svc.cluster.local. SRV": "NOERROR\n_pg._tcp.db.default.svc.cluster.local. 30 SRV 0 50 5432 10-244-0-3.db.default.svc.cluster.local.\n" +
		"_pg._tcp.db.default.svc.cluster.local. 30 SRV 0 50 5432 db-0.db.default.svc.cluster.local.\n" +
		"+ 10-244-0-3.db.default.svc.cluster.local. 30 A 10.244.0.3\n+ db-0.db.default.svc.cluster.local. 30 A 10.244.0.2",
	"_pg._tcp.two.default.svc.cluster.local. SRV": "NOERROR\n_pg._tcp.two.default.svc.cluster.local. 30 SRV 0 50 5432 fd00-244--13.two.default.svc.cluster.local.\n" +
		"_pg._tcp.two.default.svc.cluster.local. 30 SRV 0 50 5432 two-0.two.default.svc.cluster.local.\n" +
		"+ fd00-244--13.two.default.svc.cluster.local. 30 AAAA fd00:244::13\n" +
		"+ two-0.two.default.svc.cluster.local. 30 A 10.244.0.12\n+ two-0.two.default.svc.cluster.local. 30 AAAA fd00:244::12",
	"all.default.svc.cluster.local. A":       "NOERROR\nall.default.svc.cluster.local. 30 A 10.244.0.9",
	"all-0.all.default.svc.cluster.local. A": "NOERROR\nall-0.all.default.svc.cluster.local. 30 A 10.244.0.9",
	"empty.default.svc.cluster.local. A":     noName,
	"empty.default.svc.cluster.local. SRV":   noName,

	// ExternalName.
	"ext.default.svc.cluster.local. A":         "NOERROR\nExample.com. 300 A 192.0.2.80\next.default.svc.cluster.local. 30 CNAME Example.com.",
	"ext.default.svc.cluster.local. AAAA":      "NOERROR\next.default.svc.cluster.local. 30 CNAME Example.com.\n! com. 20 SOA ns.com. host.com. 1 2 3 4 20",
	"ext.default.svc.cluster.local. CNAME":     "NOERROR\next.default.svc.cluster.local. 30 CNAME Example.com.",
	"a.ext.default.svc.cluster.local. A":       noName,
	"extaddr.default.svc.cluster.local. A":     noName,
	"extaddr6.default.svc.cluster.local. AAAA": noName,
	"extin.default.svc.cluster.local. A":       "NOERROR\nextin.default.svc.cluster.local. 30 CNAME web.default.svc.cluster.local.\nweb.default.svc.cluster.local. 30 A 10.96.0.5",
	"extin.default.svc.cluster.local. AAAA":    "NOERROR\nextin.default.svc.cluster.local. 30 CNAME web.default.svc.cluster.local.\n" + soaLine,
	"exttwice.default.svc.cluster.local. A":    "NOERROR\nextin.default.svc.cluster.local. 30 CNAME web.default.svc.cluster.local.\nexttwice.default.svc.cluster.local. 30 CNAME extin.default.svc.cluster.local.\nweb.default.svc.cluster.local. 30 A 10.96.0.5",
	"extgone.default.svc.cluster.local. A":     "NXDOMAIN\nextgone.default.svc.cluster.local. 30 CNAME gone.default.svc.cluster.local.\n" + soaLine,
	"extlost.default.svc.cluster.local. A":     "NXDOMAIN\nextlost.default.svc.cluster.local. 30 CNAME lost.example.com.\n! com. 20 SOA ns.com. host.com. 1 2 3 4 20",
	"extbroken.default.svc.cluster.local. A":   "SERVFAIL\nextbroken.default.svc.cluster.local. 30 CNAME broken.example.com.",
	"circle.default.svc.cluster.local. A":      "SERVFAIL",
	"circle.default.svc.cluster.local. CNAME":  "NOERROR\ncircle.default.svc.cluster.local. 30 CNAME circle.default.svc.cluster.local.",

	// Pods.
	"10-1-0-1.default.pod.cluster.local. A":        "NOERROR\n10-1-0-1.default.pod.cluster.local. 30 A 10.1.0.1",
	"10-1-0-1.default.pod.cluster.local. AAAA":     noData,
	"fd00--1.default.pod.cluster.local. AAAA":      "NOERROR\nfd00--1.default.pod.cluster.local. 30 AAAA fd00::1",
	"10-1-0-1.nowhere.pod.cluster.local. A":        noName,
	"10-1-0.default.pod.cluster.local. A":          noName,
	"10-1-0-256.default.pod.cluster.local. A":      noName,
	"fe80--1%eth0.default.pod.cluster.local. AAAA": noName,
	"a.10-1-0-1.default.pod.cluster.local. A":      noName,

	// What is between.
	"cluster.local. A":                 noData,
	"cluster.local. SOA":               "NOERROR\n" + soaLine[2:],
	"cluster.local. NS":                "NOERROR\ncluster.local. 30 NS ns.dns.cluster.local.\n+ ns.dns.cluster.local. 30 A 10.96.0.10\n+ ns.dns.cluster.local. 30 AAAA fd00:96::a",
	"svc.cluster.local. A":             noData,
	"pod.cluster.local. A":             noData,
	"dns.cluster.local. A":             noData,
	"ns.dns.cluster.local. A":          "NOERROR\nns.dns.cluster.local. 30 A 10.96.0.10",
	"ns.dns.cluster.local. AAAA":       "NOERROR\nns.dns.cluster.local. 30 AAAA fd00:96::a",
	"a.dns.cluster.local. A":           noName,
	"default.svc.cluster.local. A":     noData,
	"nowhere.svc.cluster.local. A":     noName,
	"default.pod.cluster.local. A":     noData,
	"nowhere.pod.cluster.local. A":     noName,
	"dns-version.cluster.local. TXT":   "NOERROR\ndns-version.cluster.local. 30 TXT \"1.1.0\"",
	"dns-version.cluster.local. A":     noData,
	"a.dns-version.cluster.local. A":   noName,
	"example.com.cluster.local. A":     noName,
	"example.com.svc.cluster.local. A": noName,

	// Addresses.
	"5.0.96.10.in-addr.arpa. PTR":  "NOERROR\n5.0.96.10.in-addr.arpa. 30 PTR web.default.svc.cluster.local.",
	"5.0.96.10.In-Addr.ARPA. PTR":  "NOERROR\n5.0.96.10.In-Addr.ARPA. 30 PTR web.default.svc.cluster.local.",
	"5.0.96.10.in-addr.arpa. A":    "NOERROR\n! in-addr.arpa. 30 SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 30",
	"2.0.244.10.in-addr.arpa. PTR": "NOERROR\n2.0.244.10.in-addr.arpa. 30 PTR db-0.db.default.svc.cluster.local.",
	"3.0.244.10.in-addr.arpa. PTR": "NOERROR\n3.0.244.10.in-addr.arpa. 30 PTR 10-244-0-3.db.default.svc.cluster.local.",
	"7.0.244.10.in-addr.arpa. PTR": "NOERROR\n7.0.244.10.in-addr.arpa. 30 PTR 10-244-0-7.web.default.svc.cluster.local.",
	"9.0.244.10.in-addr.arpa. PTR": "NOERROR\n9.0.244.10.in-addr.arpa. 30 PTR all-0.all.default.svc.cluster.local.",
	"6.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa. PTR": "NOERROR\n" +
		"6.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa. 30 PTR dual.default.svc.cluster.local.",
	"2.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.4.4.2.0.0.0.d.f.ip6.arpa. PTR": "NOERROR\n" +
		"2.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.4.4.2.0.0.0.d.f.ip6.arpa. 30 PTR two-0.two.default.svc.cluster.local.",
	"4.0.244.10.in-addr.arpa. PTR": "NXDOMAIN\n! com. 20 SOA ns.com. host.com. 1 2 3 4 20", // not ready: upstream's matter
	"0.96.10.in-addr.arpa. PTR":    "NXDOMAIN\n! com. 20 SOA ns.com. host.com. 1 2 3 4 20",

	// Not ours.
	"example.com. A":        "NOERROR\nexample.com. 300 A 192.0.2.80",
	"xcluster.local. A":     "NXDOMAIN\n! com. 20 SOA ns.com. host.com. 1 2 3 4 20",
	"local. A":              "NXDOMAIN\n! com. 20 SOA ns.com. host.com. 1 2 3 4 20",
	". NS":                  "NXDOMAIN\n! com. 20 SOA ns.com. host.com. 1 2 3 4 20",
	"web.default.svc. A":    "NXDOMAIN\n! com. 20 SOA ns.com. host.com. 1 2 3 4 20",
	"broken.example.com. A": "SERVFAIL",
}

func TestRecords(t *testing.T) {
	newUpstream(t, public, internet)
	s := newServer(t, newRecords(t, objects()...), resolvConf(t, public))
	for question, want := range recordCases {
		name, qtype, _ := strings.Cut(question, " ")
		q := new(dns.Msg).SetQuestion(name, dns.StringToType[qtype])
		m := s.Answer(context.Background(), q)
		if got := show(m); got != want {
			t.Errorf("%s:\n%s\nwant\n%s", question, got, want)
		}
		ours := strings.Contains(strings.ToLower(name), ".cluster.local.") || strings.HasPrefix(name, "cluster.local.") || strings.Contains(want, "ns.dns") || strings.Contains(want, "PTR")
		if m.Rcode == dns.RcodeServerFailure && len(m.Answer) == 0 {
			ours = false
		}
		if m.Id != q.Id || !m.Response || !m.RecursionAvailable || !m.RecursionDesired || m.Question[0].Name != name || m.Authoritative != ours || m.IsEdns0() != nil {
			t.Errorf("%s: header and question\n%s", question, m)
		}
		if data, err := m.Pack(); err != nil {
			t.Errorf("%s: %v", question, err)
		} else if len(data) == 0 {
			t.Errorf("%s: nothing", question)
		}
	}
}

// The names of endpoints are found without a look at all of a Service's.
func TestEndpointsAreFoundByName(t *testing.T) {
	r := newRecords(t, objects()...).of("cluster.local.", Config{}.withDefaults())
	for label, want := range map[string]int{"nobody": 0, "10-245-3-7": 1, "10-244-0-7": 0, "10-1-2-3": 0} { // 10.244.0.7 is another Service's
		name := label + ".huge.default.svc.cluster.local."
		if n := len(r.lookup(name, name, dns.TypeA).rrs); n != want {
			t.Errorf("%s: %d records", name, n)
		}
		if n := testing.AllocsPerRun(10, func() { r.lookup(name, name, dns.TypeA) }); n > 1000 { // a slice of a hundred takes more than 400
			t.Errorf("%s: %g allocations", name, n)
		}
	}
}

// Answers come in an order of chance, so that clients spread.
func TestAnswersRotate(t *testing.T) {
	s := newServer(t, newRecords(t, objects()...), "/nowhere")
	first := map[string]bool{}
	for range 200 {
		m := s.Answer(context.Background(), new(dns.Msg).SetQuestion("db.default.svc.cluster.local.", dns.TypeA))
		first[m.Answer[0].String()] = true
	}
	if len(first) != 2 {
		t.Errorf("of 2 addresses %d came first", len(first))
	}
}

// Before the cluster was seen nothing in it is denied; what is outside is forwarded.
func TestBeforeTheCachesAreSynced(t *testing.T) {
	newUpstream(t, public, internet)
	r := NewRecords(mirror.New(fake.NewClientset(objects()...), ""))
	s := newServer(t, r, resolvConf(t, public))
	for question, want := range map[string]string{
		"web.default.svc.cluster.local. A":     "SERVFAIL",
		"nothing.default.svc.cluster.local. A": "SERVFAIL",
		"cluster.local. SOA":                   "SERVFAIL",
		"5.0.96.10.in-addr.arpa. PTR":          "SERVFAIL",
		"example.com. A":                       "NOERROR\nexample.com. 300 A 192.0.2.80",
	} {
		name, qtype, _ := strings.Cut(question, " ")
		if got := show(s.Answer(context.Background(), new(dns.Msg).SetQuestion(name, dns.StringToType[qtype]))); got != want {
			t.Errorf("%s:\n%s\nwant\n%s", question, got, want)
		}
	}
}

func FuzzReverseAddr(f *testing.F) {
	for question := range recordCases {
		name, _, _ := strings.Cut(question, " ")
		f.Add(strings.ToLower(name))
	}
	f.Fuzz(func(t *testing.T, name string) {
		addr, zone, ok := reverseAddr(name)
		if !ok {
			return
		}
		if back, err := dns.ReverseAddr(addr.String()); !addr.Is4In6() && (err != nil || back != name) || !strings.HasSuffix(name, zone) {
			t.Errorf("%q is %s, whose name is %q (%v)", name, addr, back, err)
		}
	})
}

func FuzzDashed(f *testing.F) {
	for _, s := range []string{"10-1-0-1", "fd00--1", "--", "-", "", "fe80--1%eth0", "1.2.3.4", "--ffff-1-2-3-4"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, label string) {
		addr, ok := dashed(label)
		if !ok {
			return
		}
		if again, ok := dashed(toDashes.Replace(addr.Unmap().String())); !ok || again != addr.Unmap() {
			t.Errorf("%q is %s, and back %s", label, addr, again)
		}
	})
}

// FuzzAnswer asks what anybody may send: the answer can be packed and is for the question.
func FuzzAnswer(f *testing.F) {
	for question := range recordCases {
		name, qtype, _ := strings.Cut(question, " ")
		q := new(dns.Msg).SetQuestion(name, dns.StringToType[qtype])
		if len(name)%2 == 0 {
			q.SetEdns0(1232, true)
		}
		data, err := q.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	s := newServer(f, newRecords(f, objects()...), "/nowhere")
	f.Fuzz(func(t *testing.T, data []byte) {
		var q dns.Msg
		if q.Unpack(data) != nil {
			return
		}
		question := slices.Clone(q.Question)
		m := s.Answer(context.Background(), &q)
		m.Truncate(512)
		if _, err := m.Pack(); err != nil {
			t.Errorf("%s\nanswered with\n%s\nwhich is %v", &q, m, err)
		}
		if m.Id != q.Id || !m.Response || len(question) > 0 && (len(m.Question) == 0 || m.Question[0] != question[0]) {
			t.Errorf("%s\nanswered with\n%s", &q, m)
		}
	})
}
