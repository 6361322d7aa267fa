package podnet

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestDNSConfig(t *testing.T) {
	nodeFile := "# the node's\nnameserver 192.0.2.53\nnameserver 192.0.2.54 ; the other\nsearch old.example\nsearch corp.example lan.\noptions timeout:1 rotate\n"
	cluster := []string{"ns.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example", "lan"}
	two := "2"
	many := []string{}
	for i := range 40 {
		many = append(many, fmt.Sprintf("s%d.example", i))
	}
	for name, c := range map[string]struct {
		policy                    corev1.DNSPolicy
		host                      bool
		config                    *corev1.PodDNSConfig
		servers, searches, option []string
	}{
		"cluster first":                    {corev1.DNSClusterFirst, false, nil, []string{"10.96.0.10"}, cluster, []string{"ndots:5"}},
		"on the host's network":            {corev1.DNSClusterFirst, true, nil, []string{"192.0.2.53", "192.0.2.54"}, []string{"corp.example", "lan"}, []string{"timeout:1", "rotate"}},
		"cluster first with host":          {corev1.DNSClusterFirstWithHostNet, true, nil, []string{"10.96.0.10"}, cluster, []string{"ndots:5"}},
		"default":                          {corev1.DNSDefault, false, nil, []string{"192.0.2.53", "192.0.2.54"}, []string{"corp.example", "lan"}, []string{"timeout:1", "rotate"}},
		"cluster first, a zone of its own": {corev1.DNSClusterFirst, false, &corev1.PodDNSConfig{Searches: []string{"."}}, []string{"10.96.0.10"}, append(slices.Clone(cluster), "."), []string{"ndots:5"}},
		"none":                             {corev1.DNSNone, false, &corev1.PodDNSConfig{Nameservers: []string{"1.1.1.1"}, Searches: []string{"x"}}, []string{"1.1.1.1"}, []string{"x"}, nil},
		"merged":                           {corev1.DNSClusterFirst, false, &corev1.PodDNSConfig{Nameservers: []string{"1.1.1.1", "10.96.0.10"}, Searches: []string{"x", "cluster.local"}, Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: &two}, {Name: "edns0"}}}, []string{"10.96.0.10", "1.1.1.1"}, append(slices.Clone(cluster), "x"), []string{"ndots:2", "edns0"}},
		"too many of everything":           {corev1.DNSNone, false, &corev1.PodDNSConfig{Nameservers: []string{"1.1.1.1", "1.1.1.2", "1.1.1.3", "1.1.1.4"}, Searches: many}, []string{"1.1.1.1", "1.1.1.2", "1.1.1.3"}, many[:32], nil},
		"too long all together":            {corev1.DNSNone, false, &corev1.PodDNSConfig{Searches: []string{strings.Repeat("a", 2000), "b", strings.Repeat("c", 200)}}, nil, []string{strings.Repeat("a", 2000), "b"}, nil},
		"more than six is allowed":         {corev1.DNSClusterFirst, false, &corev1.PodDNSConfig{Searches: many[:20]}, []string{"10.96.0.10"}, append(slices.Clone(cluster), many[:20]...), []string{"ndots:5"}},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "resolv.conf")
			if err := os.WriteFile(file, []byte(nodeFile), 0o644); err != nil {
				t.Fatal(err)
			}
			cfg := Config{ClusterDNS: []string{"10.96.0.10"}, ClusterDomain: "cluster.local", ResolvConf: file}
			p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns"}, Spec: corev1.PodSpec{DNSPolicy: c.policy, HostNetwork: c.host, DNSConfig: c.config}}
			got, err := cfg.DNSConfig(p)
			if err != nil || !slices.Equal(got.Servers, c.servers) || !slices.Equal(got.Searches, c.searches) || !slices.Equal(got.Options, c.option) {
				t.Errorf("%v, %v\nwant servers %q searches %q options %q", got, err, c.servers, c.searches, c.option)
			}
		})
	}
	if _, err := (Config{ResolvConf: filepath.Join(t.TempDir(), "absent")}).DNSConfig(&corev1.Pod{}); err == nil {
		t.Error("no resolv.conf gave no error")
	}
}

func ptr[T any](v T) *T { return &v }

// The name that processes see: the short one, the whole, or the node's; one that the kernel refuses is told.
func TestKernelHostname(t *testing.T) {
	yes := ptr(true)
	for name, c := range map[string]struct {
		spec corev1.PodSpec
		want string // none of a pod on the host's network; "!": an error
	}{
		"the pod's":             {corev1.PodSpec{}, "p"},
		"its own":               {corev1.PodSpec{Hostname: "h"}, "h"},
		"with a subdomain":      {corev1.PodSpec{Hostname: "h", Subdomain: "sub"}, "h"},
		"whole":                 {corev1.PodSpec{Hostname: "h", Subdomain: "sub", SetHostnameAsFQDN: yes}, "h.sub.ns.svc.cluster.local"},
		"whole, no subdomain":   {corev1.PodSpec{Hostname: "h", SetHostnameAsFQDN: yes}, "h"},
		"on the host's":         {corev1.PodSpec{Hostname: "h", HostNetwork: true}, ""},
		"as long as it gets":    {corev1.PodSpec{Hostname: strings.Repeat("h", 39), Subdomain: "sub", SetHostnameAsFQDN: yes}, strings.Repeat("h", 39) + ".sub.ns.svc.cluster.local"},
		"too long":              {corev1.PodSpec{Hostname: strings.Repeat("h", 40), Subdomain: "sub", SetHostnameAsFQDN: yes}, "!"},
		"an override":           {corev1.PodSpec{Hostname: "h", HostnameOverride: ptr("a.example")}, "a.example"},
		"an override, too long": {corev1.PodSpec{HostnameOverride: ptr(strings.Repeat("a", 65))}, "!"},
	} {
		got, err := (Config{ClusterDomain: "cluster.local"}).KernelHostname(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns"}, Spec: c.spec})
		if (err != nil) != (c.want == "!") || err == nil && got != c.want {
			t.Errorf("%s: %q, %v, want %q", name, got, err, c.want)
		}
	}
}

func FuzzParseResolvConf(f *testing.F) {
	f.Add("nameserver 1.1.1.1\nsearch a b.\noptions ndots:2\n")
	f.Add("search .\nnameserver\n;x\n#y")
	f.Fuzz(func(t *testing.T, s string) {
		r := parseResolvConf([]byte(s))
		for _, list := range [][]string{r.servers, r.search, r.options} {
			for _, v := range list {
				if v == "" || strings.ContainsAny(v, " \t\n#;") {
					t.Errorf("%q of %q", v, s)
				}
			}
		}
	})
}

func TestHosts(t *testing.T) {
	long := strings.Repeat("n", 62) + "-x"
	for name, c := range map[string]struct {
		pod      corev1.Pod
		host     string
		contains []string
		lacks    []string
	}{
		"plain":     {corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns"}}, "p", []string{"127.0.0.1\tlocalhost\n", "10.0.0.1\tp\n", "fd00::1\tp\n"}, []string{"HostAliases"}},
		"subdomain": {corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns"}, Spec: corev1.PodSpec{Hostname: "h", Subdomain: "sub"}}, "h", []string{"10.0.0.1\th.sub.ns.svc.cluster.local\th\n"}, nil},
		"override":  {corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns"}, Spec: corev1.PodSpec{Hostname: "h", Subdomain: "sub", HostnameOverride: ptr("whole.example")}}, "whole.example", []string{"10.0.0.1\twhole.example\n"}, []string{"sub"}},
		"long name": {corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: long}}, strings.Repeat("n", 62), nil, []string{"-x"}},
		"aliases":   {corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{HostAliases: []corev1.HostAlias{{IP: "192.0.2.9", Hostnames: []string{"a", "b"}}}}}, "p", []string{"# Entries added by HostAliases.\n192.0.2.9\ta\tb\n"}, nil},
		"host":      {corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{HostNetwork: true}}, "p", []string{"(host network)"}, []string{"10.0.0.1"}},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := Config{ClusterDomain: "cluster.local"}
			if host, _ := cfg.Hostname(&c.pod); host != c.host {
				t.Errorf("host name %q, want %q", host, c.host)
			}
			path, err := cfg.HostsFile(&c.pod, []string{"10.0.0.1", "fd00::1"}, t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range c.contains {
				if !strings.Contains(string(data), s) {
					t.Errorf("%q is not in\n%s", s, data)
				}
			}
			for _, s := range c.lacks {
				if strings.Contains(string(data), s) {
					t.Errorf("%q is in\n%s", s, data)
				}
			}
		})
	}
}
