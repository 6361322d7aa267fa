package dns

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

func TestParseConfig(t *testing.T) {
	for text, want := range map[string]string{
		"{}": "", "zones: [a.b]\nttl: 5": "",
		"ttl: [":                             "config.yaml",
		"tll: 5":                             `unknown field "tll"`,
		"ttl: 7200":                          "ttl 7200 is longer than an hour",
		"pods: all":                          `pods "all"`,
		"zones: ['a..b']":                    `zone "a..b"`,
		"zones: ['.']":                       `zone "."`,
		"upstream: {servers: [a]}":           `upstream: "a" is neither`,
		"upstream: {servers: ['1.2.3.4:0']}": `"1.2.3.4:0" is neither`,
		"upstream: {policy: best}":           `policy "best"`,
		"upstream: {maxConcurrent: -1}":      "maxConcurrent -1",
		"upstream: {except: ['a..b']}":       `except "a..b"`,
		"stubs: [{zone: a}]":                 "stub a has no servers",
		"stubs: [{zone: a, servers: [1.2.3.4]}, {zone: A., servers: [1.2.3.4]}]": "stub A. is there twice",
		"stubs: [{zone: '.', servers: [1.2.3.4]}]":                               `stub "." is no domain name`,
		"hosts: [{ip: a, names: [b]}]":                                           `"a" is no IP address`,
		"hosts: [{ip: 1.2.3.4}]":                                                 "1.2.3.4 has no name",
		"hosts: [{ip: 1.2.3.4, names: ['a..b']}]":                                `"a..b", a name of 1.2.3.4`,
		"rewrites: [{from: a}]":                                                  `rewrite  "a" to ""`,
		"rewrites: [{match: best, from: a, to: b}]":                              `rewrite "best"`,
		"rewrites: [{match: regex, from: '(', to: b}]":                           `rewrite regex "("`,
		"cache: {failure: 10m}":                                                  "failure is at most 5m",
	} {
		_, err := ParseConfig([]byte(text))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

func TestRewrites(t *testing.T) {
	for _, c := range []struct {
		rule     Rewrite
		name, to string // none: not for it
	}{
		{Rewrite{"", "A.example", "b.example"}, "a.example.", "b.example."},
		{Rewrite{"exact", "a.example.", "b.example."}, "x.a.example.", ""},
		{Rewrite{"prefix", "a-", "b-"}, "a-c.", "b-c."},
		{Rewrite{"prefix", "a-", ""}, "a-c.", "c."},
		{Rewrite{"suffix", ".x.example", ".svc.cluster.local"}, "a.b.x.example.", "a.b.svc.cluster.local."},
		{Rewrite{"suffix", ".x.example", ".svc.cluster.local"}, "a.b.y.example.", ""},
		{Rewrite{"substring", "foo", "bar"}, "a.foo.foo.", "a.bar.bar."},
		{Rewrite{"regex", `^(.*)-(.*)\.Example\.$`, "{2}-{1}.test"}, "a-b.example.", "b-a.test."},
		{Rewrite{"regex", `^(.*)\.example$`, "{1}.test"}, "a.example.", "a.test."},
		{Rewrite{"regex", `^(.*)\.example$`, "{1}.test"}, "a.test.", ""},
	} {
		f, err := c.rule.compile()
		must(t, err)
		if to, ok := f(c.name); ok != (c.to != "") || ok && to != c.to {
			t.Errorf("%v: %s is %q, %v", c.rule, c.name, to, ok)
		}
	}
}

// All that a configuration says, as clients see it.
func TestConfigured(t *testing.T) {
	newUpstream(t, "127.0.20.1", says("192.0.2.1"))
	newUpstream(t, "127.0.20.2", says("192.0.2.2"))
	newUpstream(t, "127.0.20.3", says("192.0.2.3"))
	s := configured(t, newRecords(t, objects()...), Config{
		Zones: []string{"cluster.local", "old.example"}, TTL: 7, HostsTTL: 60,
		Upstream: Upstream{Servers: []string{"127.0.20.1"}},
		Stubs:    []Stub{{"corp.example", Upstream{Servers: []string{"127.0.20.2"}}}, {"deep.Corp.example", Upstream{Servers: []string{"127.0.20.3"}}}, {"consul.cluster.local", Upstream{Servers: []string{"127.0.20.3"}}}, {"168.192.in-addr.arpa", Upstream{Servers: []string{"127.0.20.2"}}}},
		Hosts:    []Host{{"192.0.2.9", []string{"Registry.example", "git.corp.example"}}, {"2001:db8::9", []string{"registry.example"}}, {"192.0.2.10", []string{"registry.example"}}},
		Rewrites: []Rewrite{{"", "alias.example", "web.default.svc.cluster.local"}, {"suffix", ".svc.other", ".svc.cluster.local"}, {"", "other.example", "registry.example"}},
	})
	const soa7 = "\n! cluster.local. 7 SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 7"
	for question, want := range map[string]string{
		"web.default.svc.cluster.local. A":      "NOERROR\nweb.default.svc.cluster.local. 7 A 10.96.0.5",
		"web.default.svc.old.example. A":        "NOERROR\nweb.default.svc.old.example. 7 A 10.96.0.5",
		"nothing.default.svc.old.example. A":    "NXDOMAIN\n! old.example. 7 SOA ns.dns.old.example. hostmaster.old.example. 1 7200 1800 86400 7",
		"5.0.96.10.in-addr.arpa. PTR":           "NOERROR\n5.0.96.10.in-addr.arpa. 7 PTR web.default.svc.cluster.local.",
		"www.example. A":                        "NOERROR\nwww.example. 300 A 192.0.2.1",
		"www.corp.example. A":                   "NOERROR\nwww.corp.example. 300 A 192.0.2.2",
		"corp.example. A":                       "NOERROR\ncorp.example. 300 A 192.0.2.2",
		"xcorp.example. A":                      "NOERROR\nxcorp.example. 300 A 192.0.2.1",
		"www.DEEP.corp.example. A":              "NOERROR\nwww.DEEP.corp.example. 300 A 192.0.2.3",
		"a.consul.cluster.local. A":             "NOERROR\na.consul.cluster.local. 300 A 192.0.2.3",
		"1.0.168.192.in-addr.arpa. A":           "NOERROR\n1.0.168.192.in-addr.arpa. 300 A 192.0.2.2",
		"registry.Example. A":                   "NOERROR\nregistry.Example. 60 A 192.0.2.10\nregistry.Example. 60 A 192.0.2.9",
		"registry.example. AAAA":                "NOERROR\nregistry.example. 60 AAAA 2001:db8::9",
		"git.corp.example. A":                   "NOERROR\ngit.corp.example. 60 A 192.0.2.9",
		"git.corp.example. AAAA":                "NOERROR\n! git.corp.example. 60 SOA git.corp.example. hostmaster.git.corp.example. 1 7200 1800 86400 60",
		"9.2.0.192.in-addr.arpa. PTR":           "NOERROR\n9.2.0.192.in-addr.arpa. 60 PTR git.corp.example.\n9.2.0.192.in-addr.arpa. 60 PTR registry.example.",
		"Alias.example. A":                      "NOERROR\nAlias.example. 7 A 10.96.0.5",
		"alias.example. AAAA":                   "NOERROR" + soa7,
		"web.default.svc.other. A":              "NOERROR\nweb.default.svc.other. 7 A 10.96.0.5",
		"db.default.svc.other. A":               "NOERROR\ndb.default.svc.other. 7 A 10.244.0.2\ndb.default.svc.other. 7 A 10.244.0.3",
		"gone.default.svc.other. A":             "NXDOMAIN" + soa7,
		"other.example. AAAA":                   "NOERROR\nother.example. 60 AAAA 2001:db8::9",
		"_http._tcp.web.default.svc.other. SRV": "NOERROR\n_http._tcp.web.default.svc.other. 7 SRV 0 100 80 web.default.svc.cluster.local.\n+ web.default.svc.cluster.local. 7 A 10.96.0.5",
		"10-1-0-1.default.pod.cluster.local. A": "NOERROR\n10-1-0-1.default.pod.cluster.local. 7 A 10.1.0.1",
		"dns-version.old.example. TXT":          "NOERROR\ndns-version.old.example. 7 TXT \"1.1.0\"",
	} {
		name, qtype, _ := strings.Cut(question, " ")
		q := new(dns.Msg).SetQuestion(name, dns.StringToType[qtype])
		m := s.Answer(context.Background(), q)
		if got := show(m); got != want || m.Question[0] != q.Question[0] || m.Id != q.Id {
			t.Errorf("%s:\n%s\nwant\n%s", question, got, want)
		}
	}
}

// Names of pods' addresses by each of the three rules.
func TestPodNames(t *testing.T) {
	r := newRecords(t, append(objects(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p"}, Status: corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: "10.1.0.1"}, {IP: "fd00::1"}}}},
		&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "host"}, Spec: corev1.PodSpec{HostNetwork: true}, Status: corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: "10.1.0.2"}}}},
		&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "done"}, Status: corev1.PodStatus{Phase: corev1.PodSucceeded, PodIPs: []corev1.PodIP{{IP: "10.1.0.3"}}}})...)
	for mode, want := range map[string]string{PodsInsecure: "11111", PodsVerified: "11000", PodsDisabled: "00000"} {
		s := configured(t, r, Config{Pods: mode, Upstream: Upstream{Servers: []string{"/nowhere"}}})
		got := ""
		for i, name := range []string{"10-1-0-1", "fd00--1", "10-1-0-2", "10-1-0-3", "10-1-0-4"} {
			qtype := dns.TypeA
			if i == 1 {
				qtype = dns.TypeAAAA
			}
			got += map[bool]string{true: "1", false: "0"}[len(s.Answer(context.Background(), new(dns.Msg).SetQuestion(name+".default.pod.cluster.local.", qtype)).Answer) == 1]
		}
		if got != want {
			t.Errorf("%s: %s, want %s", mode, got, want)
		}
	}
}

// A configuration that changes counts from the next query on; what is known of servers that stay is kept, and one that is wrong is refused.
func TestConfigure(t *testing.T) {
	up := newUpstream(t, "127.0.21.1", says("192.0.2.1"))
	newUpstream(t, "127.0.21.2", says("192.0.2.2"))
	first := Config{Upstream: Upstream{Servers: []string{"127.0.21.1"}}}
	s := configured(t, newRecords(t, objects()...), first)
	ask := func(name string) string {
		return address(s.Answer(context.Background(), new(dns.Msg).SetQuestion(name, dns.TypeA)))
	}
	ask("a.")
	first.Stubs = []Stub{{"b", Upstream{Servers: []string{"127.0.21.2"}}}}
	must(t, s.Configure(first))
	if got := ask("a.") + " " + ask("b."); got != "192.0.2.1 192.0.2.2" || up.count("udp a.") != 1 {
		t.Errorf("with a stub: %s, asked %v", got, up.asked)
	}
	if err := s.Configure(Config{TTL: 99999}); err == nil {
		t.Error("a wrong configuration was taken")
	}
	if err := s.Configure(Config{Pods: PodsVerified}); err != nil {
		t.Error(err) // the tests' records follow pods
	}
	must(t, s.Configure(Config{Upstream: Upstream{Servers: []string{"127.0.21.2"}}}))
	if got := ask("a.") + " " + ask("web.default.svc.cluster.local."); got != "192.0.2.2 10.96.0.5" {
		t.Errorf("another upstream: %s", got)
	}
}

func TestFollowConfigMap(t *testing.T) {
	newUpstream(t, "127.0.22.1", says("192.0.2.1"))
	base := Config{Zones: []string{"cluster.local"}, Upstream: Upstream{Servers: []string{"127.0.22.1"}}}
	s := configured(t, newRecords(t, objects()...), base)
	client := fake.NewClientset()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- FollowConfigMap(ctx, client, "kube-system", "strake-dns", s, base) }()
	defer func() { cancel(); must(t, <-done) }()
	maps := client.CoreV1().ConfigMaps("kube-system")
	write := func(key, text string) {
		t.Helper()
		m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "strake-dns"}, Data: map[string]string{key: text}}
		if _, err := maps.Update(ctx, m, metav1.UpdateOptions{}); err != nil {
			_, err = maps.Create(ctx, m, metav1.CreateOptions{})
			must(t, err)
		}
	}
	answers := func(name, want string) {
		t.Helper()
		await(t, name+" to be "+want, func() bool {
			return address(s.Answer(ctx, new(dns.Msg).SetQuestion(name, dns.TypeA))) == want
		})
	}
	answers("x.example.", "192.0.2.1")
	write("config.yaml", "hosts: [{ip: 192.0.2.7, names: [x.example]}]\nzones: [second.example]")
	answers("x.example.", "192.0.2.7")
	answers("web.default.svc.second.example.", "10.96.0.5")
	answers("web.default.svc.cluster.local.", "10.96.0.5")
	answers("y.example.", "192.0.2.1")
	write("config.yaml", "hosts: nonsense")
	write("Corefile", ". {\n kubernetes cluster.local\n hosts {\n 192.0.2.8 x.example\n fallthrough\n }\n forward . 127.0.22.1\n}")
	answers("x.example.", "192.0.2.8")
	if cfg := s.Config(); cfg.TTL != 5 || cfg.Pods != PodsDisabled || !cfg.Cache.Off {
		t.Errorf("by the Corefile: %+v", cfg)
	}
	must(t, maps.Delete(ctx, "strake-dns", metav1.DeleteOptions{}))
	answers("x.example.", "192.0.2.1")
}

// A ConfigMap is used as it is at last, never two at once; what failed is tried again.
func TestConfigMapAtLast(t *testing.T) {
	client, watched := newClient()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	using, next := make(chan *corev1.ConfigMap), make(chan error)
	go func() {
		ended <- followConfigMap(ctx, client, "kube-system", "strake-dns", func(m *corev1.ConfigMap) error {
			using <- m
			return <-next
		})
	}()
	is := func(want string) {
		t.Helper()
		got := ""
		if m := <-using; m != nil {
			got = m.Data["at"]
		}
		if got != want {
			t.Errorf("used is %q, want %q", got, want)
		}
	}
	is("")
	<-watched
	maps := client.CoreV1().ConfigMaps("kube-system")
	m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "strake-dns"}, Data: map[string]string{"at": "first"}}
	_, err := maps.Create(ctx, m, metav1.CreateOptions{})
	must(t, err)
	select {
	case <-using:
		t.Error("two are used at once")
	case <-time.After(50 * time.Millisecond): // only a wrong one is here earlier
	}
	next <- nil
	is("first")
	next <- errors.New("not now")
	is("first")
	next <- nil
	must(t, maps.Delete(ctx, "strake-dns", metav1.DeleteOptions{}))
	is("")
	cancel()
	next <- nil
	must(t, <-ended)
}
