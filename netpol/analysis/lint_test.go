package analysis

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/strake-io/strake/netpol/manifests"
)

const lintCluster = `
{apiVersion: v1, kind: Pod, metadata: {name: web, labels: {app: web}}, spec: {containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db, labels: {app: db}}, spec: {containers: [{name: c, ports: [{name: pg, containerPort: 5432}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: real, namespace: prod, labels: {app: real}}, status: {podIPs: [{ip: 10.1.2.3}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: svc}, spec: {clusterIP: 10.96.0.7}}
---
# so that nothing is unguarded
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: zz, namespace: default}, spec: {podSelector: {}, policyTypes: [Ingress, Egress]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: zz, namespace: prod}, spec: {podSelector: {}, policyTypes: [Ingress, Egress]}}
---
`

func np(name, spec string) string {
	return "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: " + name + "}, spec: {" + spec + "}}\n---\n"
}

func cnp(name, spec string) string {
	return "{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {name: " + name + "}, spec: {" + spec + "}}\n---\n"
}

func lintOf(t *testing.T, text string) []string {
	t.Helper()
	s, problems := manifests.Parse("x", []byte(text))
	for _, p := range problems {
		if !strings.Contains(p.Reason, "nvalid") && !strings.Contains(p.Reason, "not supported") {
			t.Fatal(p)
		}
	}
	var out []string
	for _, f := range Lint(s) {
		out = append(out, fmt.Sprintf("%s %s %s %s: %s", f.Severity, f.Check, f.Object, f.Field, f.Message))
		if f.Hint == "" || f.Message == "" {
			t.Errorf("%+v says nothing", f)
		}
	}
	return out
}

func TestLint(t *testing.T) {
	web := "podSelector: {matchLabels: {app: web}}, "
	ingress := web + "policyTypes: [Ingress], "
	fromDB := "from: [{podSelector: {matchLabels: {app: db}}}]"
	for name, test := range map[string]struct {
		text string
		want string // prefixes of all findings, with | between
	}{
		"clean":                 {np("p", ingress+"ingress: [{"+fromDB+", ports: [{port: http}]}]"), ""},
		"invalid":               {np("p", ingress+"ingress: [{"+fromDB+", ports: [{port: 70000}]}]"), "error invalid default/p spec.ingress[0].ports[0].port: Invalid value: 70000"},
		"ignored ingress":       {np("p", web+"policyTypes: [Egress], ingress: [{"+fromDB+"}]"), "error ignored-rules default/p spec.ingress: 1 rule"},
		"ignored egress":        {np("p", ingress+"egress: [{}]"), "error ignored-rules default/p spec.egress: 1 rule"},
		"implied ingress":       {np("p", web+"egress: [{to: [{podSelector: {matchLabels: {app: db}}}, {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {}}]}]"), "warning implied-types default/p spec.policyTypes: not there: the policy has only egress"},
		"implied egress":        {np("p", web+"ingress: [{"+fromDB+"}], egress: []"), "warning implied-types default/p spec.policyTypes: not there: the empty list"},
		"unused":                {np("p", "podSelector: {matchLabels: {app: Web}}"), "warning unused-policy default/p spec.podSelector: selects no pod"},
		"unused CNP":            {cnp("c", "tier: Admin, priority: 1, subject: {namespaces: {matchLabels: {a: b}}}"), "warning unused-policy c spec.subject"},
		"never":                 {np("p", ingress+"ingress: [{from: [{podSelector: {matchLabels: {app: x}}}]}]"), "warning rule-never-matches default/p spec.ingress[0].from: none"},
		"own namespace":         {np("p", ingress+"ingress: [{from: [{podSelector: {matchLabels: {app: real}}}]}]"), "warning rule-never-matches default/p"},
		"one peer":              {np("p", ingress+"ingress: [{from: [{podSelector: {matchLabels: {app: x}}}, {podSelector: {matchLabels: {app: db}}}]}]"), "info peer-selects-nothing default/p spec.ingress[0].from[0]: matches no pod"},
		"nodes":                 {cnp("c", "tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{action: Deny, to: [{nodes: {}}, {pods: {podSelector: {matchLabels: {app: db}}, namespaceSelector: {}}}], protocols: [{tcp: {destinationPort: {number: 1}}}]}]"), "info peer-selects-nothing c spec.egress[0].to[0]: matches no node"},
		"except":                {np("p", ingress+"ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.0/25, 192.0.2.128/25]}}, {podSelector: {matchLabels: {app: db}}}]}]"), "warning except-covers-cidr default/p spec.ingress[0].from[0].ipBlock.except"},
		"part of it":            {np("p", ingress+"ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.0/25]}}]}]"), ""},
		"port name":             {np("p", ingress+"ingress: [{"+fromDB+", ports: [{port: pg}, {port: 80}]}]"), `warning port-name-unresolved default/p spec.ingress[0].ports[0].port: no pod that is asked has a port "pg" of TCP`},
		"port's protocol":       {np("p", ingress+"ingress: [{"+fromDB+", ports: [{port: http, protocol: UDP}]}]"), `warning rule-never-matches default/p spec.ingress[0]: none of its ports|warning port-name-unresolved default/p spec.ingress[0].ports[0].port`},
		"port of a block":       {np("p", web+"policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 192.0.2.0/24}}], ports: [{port: pg}]}]"), "warning rule-never-matches default/p spec.egress[0]|warning port-name-unresolved default/p spec.egress[0].ports[0].port"},
		"a CNP's port name":     {cnp("c", "tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{destinationNamedPort: pg}, {destinationNamedPort: x}]}]"), "warning port-name-unresolved c spec.ingress[0].protocols[1].destinationNamedPort"},
		"a Service":             {np("p", web+"policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.96.0.7/32}}], ports: [{port: 80}]}, {ports: [{port: 53}, {port: 53, protocol: UDP}]}]"), "warning service-address default/p spec.egress[0].to[0].ipBlock.cidr: 10.96.0.7 is the Service default/svc"},
		"redundant":             {np("p", ingress+"ingress: [{"+fromDB+", ports: [{port: 8000, endPort: 9000}]}, {"+fromDB+", ports: [{port: http}]}]"), "info redundant-rule default/p spec.ingress[1]: spec.ingress[0] of default/p admits all that it admits"},
		"twice":                 {np("p", ingress+"ingress: [{"+fromDB+"}]") + np("q", "podSelector: {}, policyTypes: [Ingress], ingress: [{"+fromDB+"}]"), "info redundant-rule default/p spec.ingress[0]: spec.ingress[0] of default/q"},
		"together":              {np("p", ingress+"ingress: [{"+fromDB+", ports: [{port: 1, endPort: 5}]}, {"+fromDB+", ports: [{port: 6, endPort: 9}]}]") + np("q", ingress+"ingress: [{"+fromDB+", ports: [{port: 3, endPort: 8}]}]"), "info redundant-rule default/q spec.ingress[0]: other rules together admit"},
		"redundant for one":     {"{apiVersion: v1, kind: Pod, metadata: {name: web2, labels: {app: web}}, spec: {containers: [{name: c, image: x, ports: [{name: http, containerPort: 8081}]}]}}\n---\n" + np("p", ingress+"ingress: [{"+fromDB+", ports: [{port: http}]}, {"+fromDB+", ports: [{port: 8080}]}]"), ""},
		"not the same":          {np("p", ingress+"ingress: [{"+fromDB+", ports: [{port: 1, endPort: 5}]}, {"+fromDB+", ports: [{port: 5, endPort: 9}]}]"), ""},
		"overridden":            {np("p", ingress+"ingress: [{"+fromDB+", ports: [{port: 22}]}]") + cnp("c", "tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 22}}}]}]"), "info overridden-rule default/p spec.ingress[0]: spec.ingress[0] of c decides"},
		"passed":                {np("p", ingress+"ingress: [{"+fromDB+", ports: [{port: 22}]}]") + cnp("c", "tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Pass, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 22}}}]}]"), ""},
		"unreached":             {cnp("c", "tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}, {action: Accept, from: [{namespaces: {matchLabels: {kubernetes.io/metadata.name: prod}}}]}]"), "warning unreached-rule c spec.ingress[1]: spec.ingress[0] of c comes before it"},
		"tie":                   {cnp("c", "tier: Baseline, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 22}}}]}]") + cnp("d", "tier: Baseline, priority: 1, subject: {namespaces: {}}, ingress: [{action: Accept, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {range: {start: 20, end: 30}}}}]}]"), "warning priority-tie d spec.priority: 1 of the Baseline tier"},
		"no tie":                {cnp("c", "tier: Baseline, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 22}}}]}]") + cnp("d", "tier: Baseline, priority: 1, subject: {namespaces: {}}, ingress: [{action: Accept, from: [{namespaces: {}}], protocols: [{udp: {destinationPort: {number: 22}}}]}]"), ""},
		"allow all":             {np("p", ingress+"ingress: [{}]"), "warning allow-all default/p spec.ingress[0]: admits everything from everybody"},
		"world":                 {np("p", ingress+"ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}], ports: [{port: http}]}]"), "warning world-open default/p spec.ingress[0].from[0].ipBlock.cidr: 0.0.0.0/0 is every"},
		"world but":             {np("p", ingress+"ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8]}}], ports: [{port: http}]}]"), "info world-open"},
		"pods in a block":       {np("p", ingress+"ingress: [{from: [{ipBlock: {cidr: 10.1.0.0/16}}]}]"), "info block-covers-pods default/p spec.ingress[0].from[0].ipBlock.cidr: 10.1.0.0/16 covers 1 pod: prod/real"},
		"one family":            {"{apiVersion: v1, kind: Pod, metadata: {name: six}, status: {podIPs: [{ip: 'fd00::1'}]}}\n---\n" + np("p", ingress+"ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}], ports: [{port: http}]}]"), "warning world-open|info one-family default/p spec.ingress[0].from[0].ipBlock.cidr: 0.0.0.0/0, and nothing"},
		"DNS":                   {np("p", web+"policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: db}}}]}]"), "warning dns-forgotten default/web : its egress is restricted by default/p, default/zz, and none admits the cluster's DNS on UDP and TCP 53"},
		"DNS by UDP only":       {np("p", web+"policyTypes: [Egress], egress: [{ports: [{port: 53, protocol: UDP}]}]"), "info dns-forgotten default/web : its egress is restricted by default/p, default/zz, and none admits the cluster's DNS on TCP 53"},
		"DNS by name":           {np("p", web+"policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}, podSelector: {matchLabels: {k8s-app: kube-dns}}}], ports: [{port: dns, protocol: UDP}, {port: dns-tcp}]}]"), ""},
		"unguarded":             {"{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: free}}", "warning unguarded-workload free/p : no policy guards it, in either direction"},
		"half guarded":          {"{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: free}}\n---\n{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: i, namespace: free}, spec: {podSelector: {}}}", "info unguarded-workload free/p : no policy guards its egress"},
		"a policy in a shadow":  {"{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: s, annotations: {strake.io/policy-mode: shadow}}, spec: {podSelector: {}, ingress: [{}]}}", "warning allow-all default/s spec.ingress[0]: admits everything from everybody"},
		"a rule in a shadow":    {"{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: s, annotations: {strake.io/policy-mode: shadow}}, spec: {podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: nobody}}}]}]}}", "warning rule-never-matches default/s spec.ingress[0].from: none"},
		"domain names":          {cnp("c", "tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{action: Accept, to: [{domainNames: [example.org]}]}]"), "error invalid c spec.egress[0].to[0].domainNames: Forbidden: of the experimental channel, and not supported"},
		"hostNetwork and ended": {"{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: free}, spec: {hostNetwork: true}}\n---\n{apiVersion: v1, kind: Pod, metadata: {name: q, namespace: free}, status: {phase: Succeeded}}", ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := lintOf(t, lintCluster+test.text)
			want := strings.Split(test.want, "|")
			if test.want == "" {
				want = nil
			}
			ok := len(got) == len(want)
			for _, w := range want {
				ok = ok && slices.ContainsFunc(got, func(g string) bool { return strings.HasPrefix(g, w) })
			}
			if !ok {
				t.Errorf("found\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
			}
		})
	}
}

// TestEveryCheckIsNamedOnce: IDs are unique, and each check says what is wrong and what to do.
func TestEveryCheckIsNamedOnce(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range Checks {
		if seen[c.ID] || c.Title == "" || c.Hint == "" {
			t.Errorf("%+v", c)
		}
		seen[c.ID] = true
	}
}

func TestFindingOutputs(t *testing.T) {
	s, problems := manifests.Parse("x", []byte(lintCluster+np("p", "podSelector: {}, ingress: [{}], egress: []")+np("q", "podSelector: {matchLabels: {app: x}}")))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	found := Lint(s)
	for i := range found {
		found[i].File, found[i].Line = "dir/x.yaml", i+1
	}
	var text, sarif, junit bytes.Buffer
	if err := WriteFindings(&text, found); err != nil {
		t.Fatal(err)
	}
	golden(t, "lint.txt", text.Bytes())
	if err := WriteSARIF(&sarif, found); err != nil || !json.Valid(sarif.Bytes()) {
		t.Fatal(err)
	}
	golden(t, "lint.sarif", sarif.Bytes())
	if err := WriteLintJUnit(&junit, found, Warning); err != nil {
		t.Fatal(err)
	}
	golden(t, "lint.junit.xml", junit.Bytes())
	var back struct {
		Suites []struct {
			Tests    int `xml:"tests,attr"`
			Failures int `xml:"failures,attr"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal(junit.Bytes(), &back); err != nil || len(back.Suites) != 1 || back.Suites[0].Failures != CountFindings(found).Warning || back.Suites[0].Tests < len(Checks) {
		t.Errorf("%v, %+v", err, back)
	}
}
