package reference

import (
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/strake-io/strake/netpol"
)

const allOf = `{namespaces: {}}`

// cnp writes a policy of all pods.
func cnp(name, tier, priority, rest string) string {
	return `{name: ` + name + `, tier: ` + tier + `, priority: ` + priority + `, subject: ` + allOf + `, ` + rest + `}`
}

func TestTiersInOrder(t *testing.T) {
	deny := `ingress: [{action: Deny, from: [` + allOf + `]}]`
	accept := `ingress: [{action: Accept, from: [` + allOf + `]}]`
	pass := `ingress: [{action: Pass, from: [` + allOf + `]}]`
	isolate, open := `{name: x/np}`, `{name: x/np, ingress: [{}]}`
	for _, c := range []struct {
		name     string
		policies []string
		allowed  bool
		tier     netpol.Tier
		policy   string
	}{
		{"nothing", nil, true, netpol.TierNone, ""},
		{"admin denies before NetworkPolicy", []string{cnp("adm", "Admin", "1", deny), open}, false, netpol.TierAdmin, "adm"},
		{"admin accepts before NetworkPolicy", []string{cnp("adm", "Admin", "1", accept), isolate}, true, netpol.TierAdmin, "adm"},
		{"admin passes to isolation", []string{cnp("adm", "Admin", "1", pass), isolate, cnp("base", "Baseline", "1", accept)}, false, netpol.TierNetworkPolicy, "x/np"},
		{"admin passes to a rule", []string{cnp("adm", "Admin", "1", pass), open, cnp("base", "Baseline", "1", deny)}, true, netpol.TierNetworkPolicy, "x/np"},
		{"admin passes to baseline", []string{cnp("adm", "Admin", "1", pass), cnp("base", "Baseline", "1", deny)}, false, netpol.TierBaseline, "base"},
		{"pass skips the tier", []string{cnp("adm", "Admin", "1", pass), cnp("later", "Admin", "2", deny)}, true, netpol.TierNone, ""},
		{"baseline passes to the default", []string{cnp("base", "Baseline", "1", pass), cnp("later", "Baseline", "2", deny)}, true, netpol.TierNone, ""},
		{"isolation ends it before baseline", []string{isolate, cnp("base", "Baseline", "1", accept)}, false, netpol.TierNetworkPolicy, "x/np"},
		{"baseline decides where nothing isolates", []string{`{name: x/np, policyTypes: [Egress], egress: [{}]}`, cnp("base", "Baseline", "1", deny)}, false, netpol.TierBaseline, "base"},
		{"baseline accepts", []string{cnp("base", "Baseline", "1", accept), cnp("later", "Baseline", "2", deny)}, true, netpol.TierBaseline, "base"},
		{"lower numbers first", []string{cnp("aaa", "Admin", "20", accept), cnp("zzz", "Admin", "10", deny)}, false, netpol.TierAdmin, "zzz"},
		{"0 is a priority", []string{cnp("aaa", "Admin", "1", accept), cnp("zzz", "Admin", "0", deny)}, false, netpol.TierAdmin, "zzz"},
		{"of equal ones by name", []string{cnp("bbb", "Admin", "7", deny), cnp("aaa", "Admin", "7", accept)}, true, netpol.TierAdmin, "aaa"},
		{"a policy without rules of a direction says nothing", []string{cnp("adm", "Admin", "1", `egress: [{action: Accept, to: [`+allOf+`]}]`), isolate}, false, netpol.TierNetworkPolicy, "x/np"},
	} {
		t.Run(c.name, func(t *testing.T) {
			j := in(t, c.policies...)
			j.says(c.allowed, "u/a", "x/b", "80/TCP")
			side := j.one("u/a", "x/b", "80/TCP").Ingress
			got := ""
			if side.Policy != nil {
				got = side.Policy.String()
			}
			if side.Tier != c.tier || got != c.policy {
				t.Errorf("decided by %q of tier %q, must be %q of %q: %s", got, side.Tier, c.policy, c.tier, side.Why)
			}
		})
	}
}

func TestRulesInOrder(t *testing.T) {
	j := in(t, cnp("adm", "Admin", "1", `ingress: [
		{name: from-a, action: Accept, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {pod: a}}}}], protocols: [{tcp: {destinationPort: {number: 80}}}]},
		{name: pass-c, action: Pass, from: [{pods: {namespaceSelector: {matchLabels: {ns: u}}, podSelector: {matchLabels: {pod: c}}}}]},
		{name: rest, action: Deny, from: [`+allOf+`]}]`))
	j.each(yes("u/a", "x/b", "80/TCP"), no("u/a", "x/b", "81/TCP"), yes("u/c", "x/b", "81/TCP"), no("z/c", "x/b", "81/TCP"), yes("198.51.100.1", "x/b", "81/TCP"))
	if s := j.one("u/a", "x/b", "81/TCP").Ingress; s.Rule != 2 || s.Why != "rule 2 (rest) of ClusterNetworkPolicy adm denies it" {
		t.Errorf("%+v", s)
	}
	if s := j.one("u/c", "x/b", "81/TCP").Ingress; s.Rule != netpol.NoRule || !strings.HasPrefix(s.Why, "rule 1 (pass-c) of ClusterNetworkPolicy adm passes it") {
		t.Errorf("%+v", s)
	}
}

func TestSubjects(t *testing.T) {
	deny := `ingress: [{action: Deny, from: [` + allOf + `]}]`
	in(t, `{name: cnp, tier: Admin, priority: 1, subject: {namespaces: {matchLabels: {ns: x}}}, `+deny+`}`).each(no("u/a", "x/a", "80/TCP"), yes("x/a", "u/a", "80/TCP"))
	in(t, `{name: cnp, tier: Admin, priority: 1, subject: {pods: {namespaceSelector: {matchLabels: {ns: x}}, podSelector: {matchLabels: {pod: a}}}}, `+deny+`}`).each(
		no("u/a", "x/a", "80/TCP"), yes("u/a", "x/b", "80/TCP"), yes("x/a", "u/a", "80/TCP"))
	in(t, `{name: cnp, tier: Admin, priority: 1, subject: {pods: {namespaceSelector: {}, podSelector: {}}}, `+deny+`}`).each(no("u/a", "x/a", "80/TCP"), yes("u/a", "x/host", "80/TCP"))
}

func TestClusterPeers(t *testing.T) {
	egress := func(peers string) judge {
		return in(t, `{name: cnp, tier: Admin, priority: 1, subject: {namespaces: {matchLabels: {ns: x}}}, egress: [{action: Deny, to: [`+peers+`]}]}`)
	}
	egress(`{namespaces: {matchLabels: {ns: u}}}`).each(no("x/a", "u/a", "80/TCP"), yes("x/a", "z/a", "80/TCP"), yes("x/a", "u/host", "80/TCP"), yes("x/a", "198.51.100.1", "80/TCP"))
	egress(`{namespaces: {matchLabels: {ns: u}}}, {pods: {namespaceSelector: {matchLabels: {ns: z}}, podSelector: {matchLabels: {pod: b}}}}`).each(no("x/a", "u/a", "80/TCP"), no("x/a", "z/b", "80/TCP"), yes("x/a", "z/a", "80/TCP"))
	egress(`{networks: [198.51.100.0/24, "2001:db8::/32", 10.2.0.0/16]}`).each(no("x/a", "198.51.100.1", "80/TCP"), no("x/a", "2001:db8::1", "1/UDP"), yes("x/a", "203.0.113.1", "80/TCP"), yes("x/a", "z/a", "80/TCP"))
	if v := egress(`{networks: [0.0.0.0/0]}`).one("x/a", "u/a", "80/TCP"); v.Allowed {
		t.Error("networks cover pods")
	}
	egress(`{networks: ["10.2.0.9/16", "fd00:2::9/32"]}`).denies("x/a", "u/a", "80/TCP") // host bits do not count
	egress(`{nodes: {}}`).each(no("x/a", "192.168.0.1", "80/TCP"), no("x/a", "fd00:f::2", "80/TCP"), no("x/a", "x/host", "80/TCP"), yes("x/a", "u/a", "80/TCP"), yes("x/a", "192.168.0.3", "80/TCP"))
	egress(`{nodes: {matchLabels: {zone: one}}}`).each(no("x/b", "192.168.0.1", "80/TCP"), yes("x/b", "192.168.0.2", "80/TCP"), no("x/b", "x/host", "80/TCP"), yes("x/b", "u/host", "80/TCP"))
}

func TestClusterProtocols(t *testing.T) {
	protocols := func(list string) judge {
		return in(t, cnp("adm", "Admin", "1", `ingress: [{action: Deny, from: [`+allOf+`], protocols: [`+list+`]}]`))
	}
	protocols(`{tcp: {destinationPort: {number: 80}}}`).each(no("u/a", "x/a", "80/TCP"), yes("u/a", "x/a", "81/TCP"), yes("u/a", "x/a", "80/UDP"), yes("u/a", "x/a", "ICMP"))
	protocols(`{udp: {destinationPort: {number: 53}}}, {sctp: {destinationPort: {number: 80}}}`).each(no("u/a", "x/a", "53/UDP"), yes("u/a", "x/a", "53/TCP"), no("u/a", "x/a", "80/SCTP"), yes("u/a", "x/a", "80/TCP"))
	protocols(`{tcp: {destinationPort: {range: {start: 80, end: 82}}}}`).each(yes("u/a", "x/a", "79/TCP"), no("u/a", "x/a", "80/TCP"), no("u/a", "x/a", "82/TCP"), yes("u/a", "x/a", "83/TCP"))
	protocols(`{destinationNamedPort: web}`).each(no("u/a", "x/a", "80/TCP"), yes("u/a", "x/a", "80/UDP"), yes("u/a", "x/b", "80/TCP"), no("u/a", "x/b", "8080/TCP"))
	protocols(`{destinationNamedPort: dns}`).each(no("u/a", "x/a", "53/UDP"), yes("u/a", "x/a", "53/TCP")) // of the protocol that the port has
	in(t, cnp("adm", "Admin", "1", `ingress: [{action: Deny, from: [`+allOf+`]}]`)).each(no("u/a", "x/a", "80/TCP"), no("u/a", "x/a", "ICMP"), no("u/a", "x/a", "50"))
}

func TestClusterRulesFailClosed(t *testing.T) {
	sel := `{matchExpressions: [{key: pod, operator: Like, values: [b]}]}`
	for field, rule := range map[string]string{
		"to[0]":                            `to: [{}]`,
		"to[1]":                            `to: [` + allOf + `, {}]`,
		"to[0] ":                           `to: [{namespaces: {}, networks: [10.0.0.0/8]}]`,
		"to":                               `to: []`,
		"to[0].domainNames":                `to: [{domainNames: ["example.org"]}]`,
		"to[0].networks[1]":                `to: [{networks: [10.0.0.0/8, rubbish]}]`,
		"to[0].networks[0]":                `to: [{networks: ["::ffff:10.0.0.0/104"]}]`,
		"to[0].namespaces":                 `to: [{namespaces: ` + sel + `}]`,
		"to[0].pods.podSelector":           `to: [{pods: {namespaceSelector: {}, podSelector: ` + sel + `}}]`,
		"to[0].pods.namespaceSelector":     `to: [{pods: {namespaceSelector: ` + sel + `, podSelector: {}}}]`,
		"to[0].nodes":                      `to: [{nodes: ` + sel + `}]`,
		"protocols[0]":                     `to: [` + allOf + `], protocols: [{}]`,
		"protocols[0].tcp.destinationPort": `to: [` + allOf + `], protocols: [{tcp: {}}]`,
		"protocols[0].udp.destinationPort": `to: [` + allOf + `], protocols: [{udp: {destinationPort: {}}}]`,
		"protocols[0].sctp.destinationPort.number": `to: [` + allOf + `], protocols: [{sctp: {destinationPort: {number: 65536}}}]`,
		"protocols[0].tcp.destinationPort.range":   `to: [` + allOf + `], protocols: [{tcp: {destinationPort: {range: {start: 80, end: 80}}}}]`,
		"protocols[0].tcp.destinationPort.range ":  `to: [` + allOf + `], protocols: [{tcp: {destinationPort: {range: {start: 0, end: 80}}}}]`,
		"protocols[0].destinationNamedPort":        `to: [{networks: [0.0.0.0/0]}], protocols: [{destinationNamedPort: web}]`,
		"protocols[1].destinationNamedPort":        `to: [{nodes: {}}], protocols: [{tcp: {destinationPort: {number: 80}}}, {destinationNamedPort: web}]`,
		"protocols[0] ":                            `to: [` + allOf + `], protocols: [{tcp: {destinationPort: {number: 80}}, udp: {destinationPort: {number: 80}}}]`,
	} {
		field = "spec.egress[0]." + strings.TrimSpace(field)
		for _, action := range []string{"Accept", "Deny", "Pass"} {
			// An Accept rule would override the later one, a Deny rule what follows; anywhere the rule is not about this flow.
			j := of(t, with(t, world(), cnp("adm", "Admin", "1", `egress: [{action: `+action+`, `+rule+`}, {action: `+map[bool]string{true: "Deny", false: "Accept"}[action == "Accept"]+`, to: [{networks: [0.0.0.0/0, "::/0"]}]}]`)))
			j.denies("x/a", "u/b", "9/UDP")
			j.denies("x/a", "198.51.100.1", "80/TCP")
			j.allows("x/host", "u/b", "9/UDP")
			wantProblem(t, j, field)
			// Alone, an Accept rule says nothing.
			of(t, with(t, world(), cnp("adm", "Admin", "1", `egress: [{action: `+action+`, `+rule+`}]`))).says(action == "Accept", "x/a", "u/b", "9/UDP")
		}
	}
	unknown := of(t, with(t, world(), cnp("adm", "Admin", "1", `egress: [{action: Allow, to: [{networks: [198.51.100.0/24]}]}]`)))
	unknown.denies("x/a", "u/a", "80/TCP")
	wantProblem(t, unknown, "spec.egress[0].action")
}

func TestClusterPoliciesThatCannotBeReadWhole(t *testing.T) {
	rules := `ingress: [
		{action: Accept, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {pod: a}}}}]},
		{action: Pass, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {pod: b}}}}]},
		{action: Deny, from: [{pods: {namespaceSelector: {matchLabels: {ns: u}}, podSelector: {}}}]}]`
	for _, subject := range []string{`{}`, `{namespaces: {}, pods: {namespaceSelector: {}, podSelector: {}}}`, `{namespaces: {matchExpressions: [{key: ns, operator: In}]}}`,
		`{pods: {namespaceSelector: {}, podSelector: {matchLabels: {"no key!": x}}}}`} {
		j := of(t, with(t, world(), `{name: adm, tier: Admin, priority: 1, subject: `+subject+`, `+rules+`}`))
		j.each(no("u/a", "x/c", "80/TCP"), no("x/b", "z/c", "80/TCP"), no("u/c", "x/a", "80/TCP"), yes("z/a", "x/c", "80/TCP"), yes("z/c", "x/c", "80/TCP"))
		if n := len(j.e.Problems()); n != 1 {
			t.Errorf("subject %s: %v", subject, j.e.Problems())
		}
	}
	tier := of(t, with(t, world(), `{name: adm, tier: Middle, priority: 1, subject: {namespaces: {matchLabels: {ns: x}}}, `+rules+`}`, `{name: x/np, ingress: [{}]}`))
	tier.each(no("u/a", "x/c", "80/TCP"), no("x/b", "x/c", "80/TCP"), yes("x/b", "z/c", "80/TCP"), yes("z/a", "x/c", "80/TCP"))
	wantProblem(t, tier, "spec.tier")
	if s := tier.one("u/c", "x/c", "80/TCP").Ingress; s.Tier != netpol.TierAdmin {
		t.Errorf("%+v", s)
	}
	priority := of(t, with(t, world(), cnp("adm", "Admin", "1001", `ingress: [{action: Deny, from: [`+allOf+`]}]`)))
	priority.denies("u/a", "x/a", "80/TCP")
	wantProblem(t, priority, "spec.priority")
}

func TestInvalidNetworkPoliciesClose(t *testing.T) {
	for field, spec := range map[string]string{
		"spec.podSelector":                           `podSelector: {matchExpressions: [{key: pod, operator: In}]}, ingress: [{}]`,
		"spec.podSelector ":                          `podSelector: {matchLabels: {pod: "not a value"}}, ingress: [{}]`,
		"spec.ingress[0].from[0]":                    `ingress: [{from: [{}]}]`,
		"spec.ingress[0].from[0] ":                   `ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}, podSelector: {}}]}]`,
		"spec.ingress[0].from[0]  ":                  `ingress: [{from: [{ipBlock: {cidr: "::/0"}, namespaceSelector: {}}]}]`,
		"spec.ingress[0].from[0].ipBlock.cidr":       `ingress: [{from: [{ipBlock: {cidr: ""}}]}]`,
		"spec.ingress[0].from[0].ipBlock.cidr ":      `ingress: [{from: [{ipBlock: {cidr: "::ffff:0.0.0.0/96"}}]}]`,
		"spec.ingress[0].from[0].ipBlock.except[0]":  `ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]}]`,
		"spec.ingress[0].from[0].ipBlock.except[0] ": `ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [192.168.0.0/16]}}]}]`,
		"spec.ingress[0].from[0].ipBlock.except[1]":  `ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.9.0.0/16, 10.9]}}]}]`,
		"spec.ingress[0].from[0].podSelector":        `ingress: [{from: [{podSelector: {matchExpressions: [{key: pod, operator: Exists, values: [a]}]}}]}]`,
		"spec.ingress[0].from[0].namespaceSelector":  `ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: "", operator: Exists}]}}]}]`,
		"spec.ingress[0].ports[0].port":              `ingress: [{ports: [{port: 0}]}]`,
		"spec.ingress[0].ports[0].port ":             `ingress: [{ports: [{port: "80"}]}]`,
		"spec.ingress[0].ports[0].port  ":            `ingress: [{ports: [{port: 65536}]}]`,
		"spec.ingress[0].ports[0].protocol":          `ingress: [{ports: [{protocol: ICMP}]}]`,
		"spec.ingress[0].ports[0].protocol ":         `ingress: [{ports: [{protocol: ""}]}]`,
	} {
		j := of(t, with(t, world(), `{name: x/p, `+spec+`}`))
		j.each(no("u/a", "x/a", "80/TCP"), no("x/b", "x/a", "80/TCP"), no("x/a", "x/b", "53/UDP"), yes("x/a", "u/a", "80/TCP"))
		if v := j.one("198.51.100.1", "x/a", "80/TCP"); v.Allowed {
			t.Errorf("%s: %+v", field, v)
		}
		j.denies("u/a", "x/a", "0/TCP")
		wantProblem(t, j, strings.TrimSpace(field))
	}
	rest := of(t, with(t, world(), `{name: x/p, ingress: [{from: [{}, {podSelector: {}}], ports: [{port: 0}, {port: 80}]}]}`)) // what is valid beside it counts
	rest.each(yes("x/b", "x/a", "80/TCP"), no("x/b", "x/a", "81/TCP"), no("u/a", "x/a", "80/TCP"))
	wantProblem(t, rest, "spec.ingress[0].from[0]", "spec.ingress[0].ports[0].port")
	types := of(t, with(t, world(), `{name: x/p, policyTypes: [Ingress, egress], ingress: [{}], egress: [{}]}`))
	types.each(yes("u/a", "x/a", "80/TCP"), no("x/a", "u/a", "80/TCP"))
	wantProblem(t, types, "spec.policyTypes[1]")
	selector := of(t, with(t, world(), `{name: x/p, policyTypes: [Egress], podSelector: {matchExpressions: [{key: pod, operator: In}]}, egress: [{}]}`))
	selector.each(no("x/a", "u/a", "80/TCP"), yes("u/a", "x/a", "80/TCP"), yes("u/a", "z/a", "80/TCP"))
}

func TestDNSIsJudgedAsItsPods(t *testing.T) {
	state := func(policies ...string) judge {
		s := with(t, world(), policies...)
		s.DNSAddrs = []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:96::a")}
		return of(t, s)
	}
	isolate := `{name: x/p, policyTypes: [Egress]}`
	state(isolate).each(no("x/a", "10.96.0.10", "53/UDP"), no("x/a", "fd00:96::a", "53/UDP"), yes("u/a", "10.96.0.10", "53/UDP"))
	named := state(`{name: x/p, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}], ports: [{port: dns, protocol: UDP}, {port: dns-tcp}]}]}`)
	named.each(yes("x/a", "10.96.0.10", "53/UDP"), yes("x/a", "fd00:96::a", "53/TCP"), no("x/a", "10.96.0.10", "80/TCP"), no("x/a", "10.96.0.11", "53/UDP"))
	state(`{name: x/p, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}}], ports: [{port: 53, protocol: UDP}]}]}`).each(yes("x/a", "10.96.0.10", "53/UDP"), no("x/a", "10.96.0.10", "53/TCP"))
	state(`{name: x/p, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.96.0.0/16}}]}]}`).each(yes("x/a", "10.96.0.10", "53/UDP"), no("x/a", "fd00:96::a", "53/UDP"))
	state(`{name: x/p, policyTypes: [Egress], egress: [{to: [{podSelector: {}}]}]}`).denies("x/a", "10.96.0.10", "53/UDP")
	state(`{name: kube-system/p}`, cnp("adm", "Admin", "1", `ingress: [{action: Deny, from: [`+allOf+`]}]`)).allows("x/a", "10.96.0.10", "53/UDP") // nobody's subject
	state(cnp("adm", "Admin", "1", `egress: [{action: Deny, to: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {k8s-app: kube-dns}}}}]}]`)).denies("x/a", "10.96.0.10", "53/UDP")
}

func TestPodsWithoutAddress(t *testing.T) {
	s := world()
	podOf(s, "x/a").Status.PodIPs, podOf(s, "u/a").Status.PodIPs = nil, nil
	rule := func(blocks string) judge {
		return of(t, with(t, s, `{name: x/p, ingress: [{from: [`+blocks+`]}]}`))
	}
	open := rule(`{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8]}}`)
	for from, want := range map[string]bool{"u/a": true, "u/b": false, "198.51.100.1": true, "2001:db8::1": false} {
		if v := open.one(from, "x/a", "80/TCP"); v.Allowed != want {
			t.Errorf("from %s: %+v", from, v)
		}
	}
	if v := rule(`{ipBlock: {cidr: 0.0.0.0/1}}, {ipBlock: {cidr: 128.0.0.0/1}}`).one("u/a", "x/a", "80/TCP"); v.Allowed {
		t.Error("no block but those of length 0 covers it")
	}
	six := netpol.Flow{From: end("u/a"), To: netpol.End{Pod: end("x/b").Pod, Addr: netip.MustParseAddr("fd00:1::2")}, Protocol: netpol.TCP, Port: 80}
	if v := rule(`{ipBlock: {cidr: "::/0"}}`).verdict(six); !v.Allowed {
		t.Errorf("the family is that of the other end: %+v", v)
	}
	if v := rule(`{ipBlock: {cidr: 0.0.0.0/0}}`).verdict(six); v.Allowed {
		t.Errorf("the family is that of the other end: %+v", v)
	}
	if v := rule(`{namespaceSelector: {}}`).one("u/a", "x/a", "80/TCP"); !v.Allowed {
		t.Errorf("%+v", v)
	}
}

func TestShadow(t *testing.T) {
	shadow := `annotations: {strake.io/policy-mode: shadow}, `
	j := in(t, `{name: x/p, `+shadow+`podSelector: {}}`, `{name: cnp, `+shadow+`tier: Admin, priority: 1, subject: {namespaces: {matchLabels: {ns: u}}}, ingress: [{action: Deny, from: [`+allOf+`]}]}`)
	j.each(yes("u/a", "x/a", "80/TCP"), yes("x/a", "u/a", "80/TCP"))
	if s := j.one("u/a", "x/a", "80/TCP").Ingress; s.Why != "no policy selects it" || s.Policy != nil {
		t.Errorf("%+v", s)
	}
	for to, policy := range map[string]string{"x/a": "x/p", "u/a": "cnp"} {
		v, err := j.e.JudgeShadow(flow(end("z/a"), end(to), "80/TCP"))
		if err != nil || v.Allowed || v.Ingress.Policy.String() != policy {
			t.Errorf("to %s: %+v, %v", to, v, err)
		}
	}
	opened := in(t, `{name: x/closed}`, `{name: x/opens, `+shadow+`ingress: [{}]}`)
	opened.denies("u/a", "x/a", "80/TCP")
	if v, err := opened.e.JudgeShadow(flow(end("u/a"), end("x/a"), "80/TCP")); err != nil || !v.Allowed {
		t.Errorf("%+v, %v", v, err)
	}
	other := of(t, with(t, world(), `{name: x/p, annotations: {strake.io/policy-mode: Shadow}}`))
	other.denies("u/a", "x/a", "80/TCP")
	wantProblem(t, other, "metadata.annotations[strake.io/policy-mode]")
}

func TestWhy(t *testing.T) {
	deny := `{name: x/deny-all, policyTypes: [Ingress, Egress]}`
	for _, c := range []struct{ policies, from, to, port, egress, ingress string }{
		{deny, "u/a", "x/a", "80/TCP", "no policy selects it", "isolated by x/deny-all, of which no rule admits anything"},
		{deny, "198.51.100.1", "x/a", "80/TCP", "not a pod: no policy selects it", "isolated by x/deny-all, of which no rule admits anything"},
		{deny, "192.168.0.1", "x/a", "80/TCP", "not a pod: no policy selects it", "the pod's own node sends it"},
		{deny, "x/a", "x/host", "80/TCP", "isolated by x/deny-all, of which no rule admits anything", "a hostNetwork pod: no policy selects it"},
		{deny + "\n---\n" + `{name: x/web, ingress: [{from: [{podSelector: {}}], ports: [{port: 9000}]}, {from: [{namespaceSelector: {matchLabels: {ns: u}}}], ports: [{port: 8080}, {port: 9, endPort: 12, protocol: UDP}]}]}`,
			"u/a", "x/a", "8081/TCP", "no policy selects it", "isolated by x/deny-all, x/web; nearest: rule 1 of x/web admits 8080/TCP, 9-12/UDP from it"},
		{`{name: x/web, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}, {ipBlock: {cidr: 10.0.0.0/8, except: [10.2.0.0/16]}}], ports: [{port: 80}]}]}`,
			"u/a", "x/a", "80/TCP", "no policy selects it", "isolated by x/web; nearest: rule 0 of x/web admits 80/TCP from pods with pod=b in namespace x or 10.0.0.0/8 except 10.2.0.0/16, but not from this one"},
		{`{name: x/web, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}], ports: [{port: 80}]}]}`,
			"u/a", "x/a", "81/TCP", "no policy selects it", "isolated by x/web; nearest: rule 0 of x/web admits 80/TCP from pods with pod=b in namespace x: neither the port nor the peer"},
		{`{name: x/out, policyTypes: [Egress], egress: [{ports: [{port: web}, {protocol: UDP}]}]}`,
			"x/a", "u/b", "80/TCP", "isolated by x/out; nearest: rule 0 of x/out admits the port web/TCP (8080 of u/b), every port of UDP to it", "no policy selects it"},
		{`{name: x/out, policyTypes: [Egress], egress: [{ports: [{port: nowhere}]}]}`,
			"x/a", "u/b", "80/TCP", "isolated by x/out; nearest: rule 0 of x/out admits the port nowhere/TCP (which u/b does not have) to it", "no policy selects it"},
		{`{name: x/a1}` + "\n---\n" + `{name: x/a2}` + "\n---\n" + `{name: x/a3}` + "\n---\n" + `{name: x/a4}` + "\n---\n" + `{name: x/a5}`,
			"u/a", "x/a", "80/TCP", "no policy selects it", "isolated by x/a1, x/a2, x/a3 and 2 more, of which no rule admits anything"},
		{`{name: x/web, ingress: [{ports: [{port: 70}]}, {ports: [{port: 1000, endPort: 1010}]}, {ports: [{port: 1020, protocol: UDP}]}]}`,
			"u/a", "x/a", "1020/TCP", "no policy selects it", "isolated by x/web; nearest: rule 1 of x/web admits 1000-1010/TCP from it"},
		{cnp("adm", "Admin", "1", `egress: [{action: Deny, to: [{networks: [203.0.113.0/24]}]}]`), "x/a", "u/a", "80/TCP", "no rule of the policies that select it says anything of this", "no policy selects it"},
	} {
		v := in(t, c.policies).one(c.from, c.to, c.port)
		if v.Egress.Why != c.egress || v.Ingress.Why != c.ingress {
			t.Errorf("%s -> %s %s:\n got %q\n and %q\nwant %q\n and %q", c.from, c.to, c.port, v.Egress.Why, v.Ingress.Why, c.egress, c.ingress)
		}
	}
}

func TestQuestionsThatCannotBeAnswered(t *testing.T) {
	j := in(t)
	for want, f := range map[string]netpol.Flow{
		"from: no pod x/q":                                             flow(end("x/q"), end("x/a"), "80/TCP"),
		"to: no pod q/a":                                               flow(end("x/a"), end("q/a"), "80/TCP"),
		"to: neither a pod nor an address":                             {From: end("x/a")},
		"from: pod x/a does not have the address 10.9.9.9":             {From: netpol.End{Pod: end("x/a").Pod, Addr: netip.MustParseAddr("10.9.9.9")}, To: end("x/b")},
		"198.51.100.1 and 2001:db8::1 have no addresses of one family": flow(end("198.51.100.1"), end("2001:db8::1"), "80/TCP"),
	} {
		if _, err := j.e.Judge(f); err == nil || err.Error() != want {
			t.Errorf("%v: %v, must be %s", f, err, want)
		}
	}
	for _, s := range []netpol.State{{Pods: make([]*corev1.Pod, 1)}, {Namespaces: make([]*corev1.Namespace, 1)}, {Nodes: make([]*corev1.Node, 1)}, {NetworkPolicies: make([]*networkingv1.NetworkPolicy, 1)}, {ClusterNetworkPolicies: make([]*policyv1alpha2.ClusterNetworkPolicy, 1)}} {
		if _, err := New(s); err == nil {
			t.Errorf("a nil object: %+v", s)
		}
	}
}
