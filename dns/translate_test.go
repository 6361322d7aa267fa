package dns

import (
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// usual is the Corefile that kubeadm writes.
const usual = `.:53 {
    errors
    health {
       lameduck 5s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
    }
    prometheus :9153
    forward . /etc/resolv.conf {
       max_concurrent 1000
    }
    cache 30 {
       disable success cluster.local
       disable denial cluster.local
    }
    loop
    reload
    loadbalance
}
`

func TestFromCorefile(t *testing.T) {
	for name, c := range map[string]struct {
		in, want string
		skipped  []string
	}{
		"the usual one": {usual, `cache: {maxDenial: 30s, maxTTL: 30s}
pods: insecure
ttl: 30
upstream: {maxConcurrent: 1000, policy: random, servers: [/etc/resolv.conf]}
zones: [cluster.local.]`, nil},
		"with all that is done": {`(up) {
  errors
  forward . 192.0.2.1 dns://192.0.2.2:5353 {
    policy sequential
    force_tcp
    except secret.example
  }
}
cluster.local:53 old.example {
  kubernetes
  log
}
. {
  import up
  cache {
    success 5000 600
    denial 2500 60
    serve_stale 1h verify
    servfail 2s
  }
  hosts {
    192.0.2.9 registry.example git.example
    ttl 60
    fallthrough
  }
  rewrite name a.example web.default.svc.cluster.local
  rewrite stop name suffix .svc.example .svc.cluster.local answer auto
  rewrite stop {
    name regex (.*)\.x\.example {1}.default.svc.cluster.local
    answer name (.*)\.default\.svc\.cluster\.local {1}.x.example
  }
}
corp.example {
  forward . 192.0.2.7
}`, `cache: {entries: 5000, failure: 2s, maxDenial: 1m0s, maxTTL: 10m0s, serveStale: 1h0m0s}
hosts: [{ip: 192.0.2.9, names: [registry.example, git.example]}]
hostsTTL: 60
log: true
pods: disabled
rewrites: [{from: a.example, to: web.default.svc.cluster.local}, {from: .svc.example, match: suffix, to: .svc.cluster.local}, {from: '(.*)\.x\.example', match: regex, to: '{1}.default.svc.cluster.local'}]
stubs: [{policy: random, servers: [192.0.2.7], zone: corp.example.}]
ttl: 5
upstream: {except: [secret.example], policy: sequential, servers: [192.0.2.1, '192.0.2.2:5353'], tcp: true}
zones: [cluster.local., old.example.]`, nil},
		"with what is not done": {`. {
  kubernetes cluster.local in-addr.arpa {
    endpoint_pod_names
    fallthrough
  }
  forward . tls://192.0.2.1 192.0.2.2 {
    max_fails 3
  }
  template IN A x
  autopath @kubernetes
  import custom/*.override
  rewrite type ANY HINFO
  hosts /etc/hosts
}
tls://example.org {
  forward . 192.0.2.1
}`, `cache: {disabled: true}
pods: disabled
ttl: 5
upstream: {policy: random, servers: [192.0.2.2]}
zones: [cluster.local.]`, []string{
			"line 3: endpoint_pod_names: not known of kubernetes", "line 4: fallthrough: for names that the cluster does not have", "line 6: forward . tls://192.0.2.1 192.0.2.2: tls://192.0.2.1 is no server",
			"line 7: max_fails 3: not known of forward", "line 9: template IN A x: not known", "line 10: autopath @kubernetes: not known", "line 11: import custom/*.override: not known",
			"line 12: rewrite type ANY HINFO: only names", "line 13: hosts /etc/hosts: lines of the block", "line 13: hosts /etc/hosts: without fallthrough", "line 15: tls://example.org: ",
		}},
	} {
		got, skipped, err := FromCorefile(c.in)
		var want Config
		must(t, yaml.UnmarshalStrict([]byte(c.want), &want))
		have, marshalErr := yaml.Marshal(got)
		must(t, marshalErr)
		wanted, marshalErr := yaml.Marshal(want)
		must(t, marshalErr)
		if err != nil || string(have) != string(wanted) {
			t.Errorf("%s: %v\n%s\nwant\n%s", name, err, have, wanted)
		}
		ok := len(skipped) == len(c.skipped)
		for i := range min(len(skipped), len(c.skipped)) {
			ok = ok && strings.HasPrefix(skipped[i], c.skipped[i])
		}
		if !ok {
			t.Errorf("%s: skipped\n%s\nwant\n%s", name, strings.Join(skipped, "\n"), strings.Join(c.skipped, "\n"))
		}
	}
	for in, want := range map[string]string{
		". {":                                "Corefile: line 1",
		". {\n errors\n}":                    "no block has kubernetes",
		". {\n kubernetes a\n forward .\n}":  "line 3: forward: it has no servers",
		". {\n kubernetes a {\n ttl x\n}\n}": `line 3: ttl: "x" is no number`,
		". {\n kubernetes a\n rewrite name regex ( b\n}": "line 3: rewrite",
		". {\n kubernetes a {\n ttl 7200\n}\n}":          "ttl 7200 is longer",
		". {\n kubernetes a\n hosts {\n 192.0.2.1\n}\n}": "line 4: 192.0.2.1: an address without a name",
	} {
		if _, _, err := FromCorefile(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", in, err, want)
		}
	}
}

// What is read is a configuration that a server takes, or an error.
func FuzzFromCorefile(f *testing.F) {
	f.Add(usual)
	f.Add(". {\n kubernetes a b {\n pods verified\n}\n cache 5 {\n serve_stale\n}\n rewrite name substring a b\n hosts {\n ::1 c\n}\n}\nd {\n forward . 192.0.2.1:1\n}")
	f.Fuzz(func(t *testing.T, text string) {
		c, _, err := FromCorefile(text)
		if err != nil {
			return
		}
		s := newSettings(c, &Records{}, newMetrics(), nil)
		s.closeBut(nil)
		s.rewrite("a.b.")
	})
}
