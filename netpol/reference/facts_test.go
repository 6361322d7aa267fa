package reference

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/strake-io/strake/netpol"
)

// A test for each line of the list of what implementations get wrong that concerns what a policy means. The line is in the name.

func TestFact01EndPortIsInclusive(t *testing.T) {
	j := in(t, `{name: x/p, podSelector: {}, ingress: [{ports: [{port: 80, endPort: 82}]}]}`)
	j.allows("u/a", "x/a", "80/TCP")
	j.allows("u/a", "x/a", "81/TCP")
	j.allows("u/a", "x/a", "82/TCP")
	j.denies("u/a", "x/a", "79/TCP")
	j.denies("u/a", "x/a", "83/TCP")
	j.denies("u/a", "x/a", "81/UDP")
	whole := in(t, `{name: x/p, podSelector: {}, ingress: [{ports: [{port: 1, endPort: 65535, protocol: UDP}]}]}`)
	whole.allows("u/a", "x/a", "65535/UDP")
	whole.allows("u/a", "x/a", "1/UDP")
	whole.denies("u/a", "x/a", "1/TCP")
	single := in(t, `{name: x/p, podSelector: {}, ingress: [{ports: [{port: 80, endPort: 80}]}]}`)
	single.allows("u/a", "x/a", "80/TCP")
	single.denies("u/a", "x/a", "81/TCP")
}

func TestFact01EndPortWantsANumber(t *testing.T) {
	for _, ports := range []string{`[{port: web, endPort: 90}]`, `[{endPort: 90}]`, `[{port: 90, endPort: 80}]`, `[{port: 80, endPort: 70000}]`} {
		j := of(t, with(t, world(), `{name: x/p, podSelector: {}, ingress: [{ports: `+ports+`}]}`))
		j.denies("u/a", "x/a", "80/TCP")
		j.denies("u/a", "x/a", "90/TCP")
		wantProblem(t, j, "spec.ingress[0].ports[0].endPort")
	}
}

func TestFact02NamedPortIsOfTheDestination(t *testing.T) {
	in(t, `{name: x/p, podSelector: {}, ingress: [{ports: [{port: web}]}]}`).each(
		yes("u/c", "x/a", "80/TCP"), no("u/c", "x/a", "8080/TCP"), yes("u/c", "x/b", "8080/TCP"), no("u/c", "x/b", "80/TCP"))
	in(t, `{name: x/p, podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: web}]}]}`).each(
		yes("x/b", "u/a", "80/TCP"), no("x/b", "u/a", "8080/TCP"), yes("x/a", "u/b", "8080/TCP"), no("x/a", "u/b", "80/TCP"))
}

func TestFact02NamedPortOfInitContainers(t *testing.T) {
	s := with(t, world(), `{name: x/p, podSelector: {}, ingress: [{ports: [{port: early}]}]}`)
	always, never := corev1.ContainerRestartPolicyAlways, corev1.ContainerRestartPolicyNever
	podOf(s, "x/a").Spec.InitContainers = []corev1.Container{{Name: "sidecar", RestartPolicy: &always, Ports: []corev1.ContainerPort{{Name: "early", ContainerPort: 7000}}}}
	podOf(s, "x/b").Spec.InitContainers = []corev1.Container{{Name: "setup", RestartPolicy: &never, Ports: []corev1.ContainerPort{{Name: "early", ContainerPort: 7000}}}}
	j := of(t, s)
	j.allows("u/a", "x/a", "7000/TCP")
	j.denies("u/a", "x/b", "7000/TCP")
}

func TestFact03NamedPortOpensNoOther(t *testing.T) {
	in(t, `{name: x/p, podSelector: {}, ingress: [{ports: [{port: web}]}]}`).each(
		yes("u/a", "x/a", "80/TCP"), no("u/a", "x/a", "81/TCP"), no("u/a", "x/a", "80/UDP"), no("u/a", "x/a", "80/SCTP"))
	in(t, `{name: x/p, podSelector: {}, ingress: [{ports: [{port: dns}]}]}`).each( // of TCP there is none
		no("u/a", "x/a", "53/TCP"), no("u/a", "x/a", "53/UDP"))
	in(t, `{name: x/p, podSelector: {}, ingress: [{ports: [{port: dns, protocol: UDP}]}]}`).each(
		no("u/a", "x/a", "53/TCP"), yes("u/a", "x/a", "53/UDP"))
	in(t, `{name: x/p, podSelector: {}, ingress: [{ports: [{port: nowhere}]}]}`).each(
		no("u/a", "x/a", "80/TCP"), no("u/a", "x/a", "81/TCP"))
}

func TestFact04NamedPortTowardAnAddressOutside(t *testing.T) {
	j := in(t, `{name: x/p, podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: web}]}]}`)
	j.denies("x/a", "198.51.100.1", "80/TCP")
	j.denies("x/a", "2001:db8::1", "80/TCP")
	j.denies("x/a", "u/host", "80/TCP") // a node's address, whatever the pod's ports are
	j = in(t, `{name: x/p, podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}, {ipBlock: {cidr: "::/0"}}], ports: [{port: web}]}]}`)
	j.denies("x/a", "198.51.100.1", "80/TCP")
	j.allows("x/a", "u/a", "80/TCP")
}

func TestFact05ProtocolAloneIsAllItsPorts(t *testing.T) {
	in(t, `{name: x/p, podSelector: {}, ingress: [{ports: [{protocol: UDP}]}]}`).each(
		yes("u/a", "x/a", "1/UDP"), yes("u/a", "x/a", "65535/UDP"), no("u/a", "x/a", "80/TCP"), no("u/a", "x/a", "80/SCTP"), no("u/a", "x/a", "ICMP"))
}

func TestFact06ProtocolOmittedIsTCP(t *testing.T) {
	in(t, `{name: x/p, podSelector: {}, ingress: [{ports: [{port: 80}]}]}`).each(
		yes("u/a", "x/a", "80/TCP"), no("u/a", "x/a", "80/UDP"), no("u/a", "x/a", "80/SCTP"))
	in(t, `{name: x/p, podSelector: {}, ingress: [{ports: [{}]}]}`).each(
		yes("u/a", "x/a", "80/TCP"), yes("u/a", "x/a", "9/TCP"), no("u/a", "x/a", "80/UDP"))
}

func TestFact07IPBlockCoversPods(t *testing.T) {
	in(t, `{name: x/p, podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.2.0.0/16}}, {ipBlock: {cidr: "fd00:2::/32"}}]}]}`).each(
		yes("u/a", "x/a", "80/TCP"), no("z/a", "x/a", "80/TCP"), no("x/b", "x/a", "80/TCP"))
	in(t, `{name: x/p, podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.2.0.1/32}}, {ipBlock: {cidr: "fd00:2::1/128"}}]}]}`).each(
		yes("x/a", "u/a", "80/TCP"), no("x/a", "u/b", "80/TCP"))
}

func TestFact08ExceptIsNoDeny(t *testing.T) {
	const other = `{from: [{ipBlock: {cidr: 10.2.0.1/32}}, {ipBlock: {cidr: "fd00:2::1/128"}}]}`
	const except = `{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.2.0.0/16]}}, {ipBlock: {cidr: "fd00::/16", except: ["fd00:2::/32"]}}]}`
	for _, rules := range []string{except + `, ` + other, other + `, ` + except} {
		j := in(t, `{name: x/p, podSelector: {}, ingress: [`+rules+`]}`)
		j.allows("u/a", "x/a", "80/TCP")
		j.denies("u/b", "x/a", "80/TCP")
		j.allows("z/b", "x/a", "80/TCP")
	}
	twice := in(t, `{name: x/p, podSelector: {}, ingress: [`+except+`]}`, `{name: x/q, podSelector: {}, ingress: [`+other+`]}`)
	twice.allows("u/a", "x/a", "80/TCP")
	twice.denies("u/b", "x/a", "80/TCP")
}

func TestFact09ExceptUnderEverything(t *testing.T) {
	in(t, `{name: x/p, podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.2.0.0/16]}}, {ipBlock: {cidr: "::/0", except: ["fd00:2::/32"]}}], ports: [{port: 80}]}]}`).each(
		no("x/a", "u/a", "80/TCP"), yes("x/a", "z/a", "80/TCP"), no("x/a", "z/a", "81/TCP"), yes("x/a", "198.51.100.1", "80/TCP"), yes("x/a", "2001:db8::1", "80/TCP"))
	in(t, `{name: x/p, podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}`).each( // of one family only
		yes("x/a", "198.51.100.1", "80/TCP"), no("x/a", "2001:db8::1", "80/TCP"))
}

func TestFact10NilAndEmpty(t *testing.T) {
	for _, none := range []string{`{name: x/p, podSelector: {}}`, `{name: x/p, podSelector: {}, ingress: []}`, `{name: x/p, podSelector: {}, ingress: null}`} {
		in(t, none).each(no("u/a", "x/a", "80/TCP"), no("x/b", "x/a", "80/TCP"), yes("x/a", "u/a", "80/TCP"))
	}
	for _, all := range []string{`[{}]`, `[{from: []}]`, `[{from: null, ports: []}]`, `[{ports: []}]`} {
		in(t, `{name: x/p, podSelector: {}, ingress: `+all+`}`).each(yes("u/a", "x/a", "80/TCP"), yes("198.51.100.1", "x/a", "1/UDP"), yes("u/a", "x/a", "ICMP"), yes("u/a", "x/a", "50"))
	}
	in(t, `{name: x/p, podSelector: {}, policyTypes: [Egress], egress: []}`).each(no("x/a", "u/a", "80/TCP"), yes("u/a", "x/a", "80/TCP"))
	in(t, `{name: x/p, podSelector: {}, policyTypes: [Egress], egress: [{}]}`).each(yes("x/a", "u/a", "80/TCP"), yes("x/a", "u/a", "50"))
	s := with(t, world(), `{name: x/p, podSelector: {}, ingress: [{}]}`)
	s.NetworkPolicies[0].Spec.Ingress[0].From = s.NetworkPolicies[0].Spec.Ingress[0].From[:0:0]
	of(t, s).allows("u/a", "x/a", "80/TCP")
}

func TestFact11SelectorsNilAndEmpty(t *testing.T) {
	for _, all := range []string{`{name: x/p}`, `{name: x/p, podSelector: {}}`, `{name: x/p, podSelector: {matchLabels: {}, matchExpressions: []}}`} {
		in(t, all).each(no("u/a", "x/a", "80/TCP"), no("u/a", "x/c", "80/TCP"), yes("x/a", "u/a", "80/TCP"), yes("x/a", "u/b", "80/TCP"))
	}
	in(t, `{name: x/p, ingress: [{from: [{podSelector: {}}]}]}`).each(yes("x/b", "x/a", "80/TCP"), no("u/b", "x/a", "80/TCP"), no("198.51.100.1", "x/a", "80/TCP"))
	in(t, `{name: x/p, ingress: [{from: [{namespaceSelector: {}}]}]}`).each(yes("x/b", "x/a", "80/TCP"), yes("u/b", "x/a", "80/TCP"), no("198.51.100.1", "x/a", "80/TCP"))
	in(t, `{name: x/p, ingress: [{from: [{namespaceSelector: {}, podSelector: {}}]}]}`).each(yes("x/b", "x/a", "80/TCP"), yes("u/b", "x/a", "80/TCP"), no("198.51.100.1", "x/a", "80/TCP"))
	in(t, `{name: x/p, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: u}}}]}]}`).each(no("x/b", "x/a", "80/TCP"), yes("u/b", "x/a", "80/TCP"), no("z/b", "x/a", "80/TCP"))
}

func TestFact12PeerIsAndListIsOr(t *testing.T) {
	in(t, `{name: x/p, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: u}}, podSelector: {matchLabels: {pod: b}}}]}]}`).each(
		yes("u/b", "x/a", "80/TCP"), no("u/a", "x/a", "80/TCP"), no("z/b", "x/a", "80/TCP"), no("x/b", "x/a", "80/TCP"))
	in(t, `{name: x/p, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: u}}}, {podSelector: {matchLabels: {pod: b}}}]}]}`).each(
		yes("u/b", "x/a", "80/TCP"), yes("u/a", "x/a", "80/TCP"), no("z/b", "x/a", "80/TCP"), yes("x/b", "x/a", "80/TCP"), no("x/c", "x/a", "80/TCP"))
}

func TestFact13SelectorsAndMissingKeys(t *testing.T) {
	peer := func(expression string) judge {
		s := with(t, world(), `{name: x/p, ingress: [{from: [{podSelector: {matchExpressions: [`+expression+`]}}]}]}`)
		podOf(s, "x/b").Labels["tier"] = "db"
		podOf(s, "x/c").Labels["tier"] = ""
		podOf(s, "x/a").Labels = nil
		return of(t, s)
	}
	for expression, want := range map[string][3]bool{ // from a (no key), b (db), c ("")
		`{key: tier, operator: NotIn, values: [db]}`:     {true, false, true},
		`{key: tier, operator: DoesNotExist}`:            {true, false, false},
		`{key: tier, operator: Exists}`:                  {false, true, true},
		`{key: tier, operator: In, values: [db]}`:        {false, true, false},
		`{key: tier, operator: In, values: [""]}`:        {false, false, true},
		`{key: tier, operator: In, values: [db, "", q]}`: {false, true, true},
	} {
		j := peer(expression)
		for i, from := range []string{"x/a", "x/b", "x/c"} {
			to := "x/b"
			if from == to {
				to = "x/c"
			}
			if v := j.one(from, to, "80/TCP"); v.Allowed != want[i] {
				t.Errorf("%s from %s: allowed %v, must be %v: %s", expression, from, v.Allowed, want[i], v.Ingress.Why)
			}
		}
	}
	empty := func(labels map[string]string) judge {
		s := with(t, world(), `{name: x/p, ingress: [{from: [{podSelector: {matchLabels: {tier: ""}}}]}]}`)
		podOf(s, "x/b").Labels = labels
		return of(t, s)
	}
	empty(map[string]string{"pod": "b"}).denies("x/b", "x/a", "80/TCP")
	empty(map[string]string{"tier": ""}).allows("x/b", "x/a", "80/TCP")
	both := in(t, `{name: x/p, ingress: [{from: [{podSelector: {matchLabels: {pod: b}, matchExpressions: [{key: pod, operator: NotIn, values: [b]}]}}]}]}`)
	both.denies("x/b", "x/a", "80/TCP") // the two are ANDed
}

func TestFact14PolicyTypesDefault(t *testing.T) {
	in(t, `{name: x/p}`).each(no("u/a", "x/a", "80/TCP"), yes("x/a", "u/a", "80/TCP"))
	in(t, `{name: x/p, egress: [{to: [{podSelector: {}}]}]}`).each(no("u/a", "x/a", "80/TCP"), no("x/b", "x/a", "80/TCP"), no("x/a", "u/a", "80/TCP"))
	in(t, `{name: x/p, policyTypes: [Ingress, Egress]}`).each(no("u/a", "x/a", "80/TCP"), no("x/a", "u/a", "80/TCP"))
	in(t, `{name: x/p, policyTypes: [], egress: []}`).each(no("u/a", "x/a", "80/TCP"), yes("x/a", "u/a", "80/TCP"))
}

func TestFact15EgressOnlyLeavesIngress(t *testing.T) {
	in(t, `{name: x/p, policyTypes: [Egress]}`).each(yes("u/a", "x/a", "80/TCP"), no("x/a", "u/a", "80/TCP"))
	in(t, `{name: x/p, policyTypes: [Egress], ingress: [{from: [{podSelector: {}}]}]}`).each(yes("u/a", "x/a", "80/TCP"), no("x/a", "u/a", "80/TCP"))
	// What policyTypes does not name is not read, not even what it allows.
	in(t, `{name: x/p, policyTypes: [Ingress], egress: [{}]}`, `{name: x/q, policyTypes: [Egress]}`).each(no("u/a", "x/a", "80/TCP"), no("x/a", "u/a", "80/TCP"))
}

func TestFact16RuleWithoutPodsStaysClosed(t *testing.T) {
	in(t, `{name: x/p, ingress: [{from: [{podSelector: {matchLabels: {pod: nobody}}}]}]}`).each(no("x/b", "x/a", "80/TCP"), no("u/b", "x/a", "80/TCP"), no("198.51.100.1", "x/a", "80/TCP"))
	in(t, `{name: x/p, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: nowhere}}}]}]}`).each(no("x/b", "x/a", "80/TCP"), no("u/b", "x/a", "80/TCP"))
}

func TestFact17EgressWithPortsOnly(t *testing.T) {
	in(t, `{name: x/p, policyTypes: [Egress], egress: [{ports: [{port: 80}]}]}`).each(
		yes("x/a", "u/a", "80/TCP"), no("x/a", "u/a", "81/TCP"), yes("x/a", "198.51.100.1", "80/TCP"), yes("x/a", "2001:db8::1", "80/TCP"), yes("x/a", "u/host", "80/TCP"), no("x/a", "198.51.100.1", "53/UDP"))
}

func TestFact18UnionWithoutOrder(t *testing.T) {
	policies := []string{
		`{name: x/c, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]}`,
		`{name: x/a, podSelector: {matchLabels: {pod: a}}}`,
		`{name: x/b, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: u}}}], ports: [{port: 80}]}]}`,
	}
	for _, order := range [][3]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
		j := in(t, policies[order[0]], policies[order[1]], policies[order[2]])
		j.each(yes("x/b", "x/a", "81/TCP"), yes("u/c", "x/a", "80/TCP"), no("u/c", "x/a", "81/TCP"), no("z/a", "x/a", "80/TCP"), no("x/c", "x/a", "80/TCP"))
		v := j.one("u/c", "x/a", "80/TCP")
		if got := v.Ingress; got.Policy.String() != "x/b" || got.Rule != 0 || len(got.Isolating) != 3 || got.Isolating[0].Name != "a" || got.Isolating[2].Name != "c" {
			t.Errorf("order %v: %+v", order, got)
		}
	}
}

func TestFact19HostNetworkIsAnAddress(t *testing.T) {
	in(t, `{name: x/p, policyTypes: [Ingress, Egress]}`).each(yes("u/a", "x/host", "80/TCP"), yes("x/host", "u/a", "80/TCP"))           // never a subject
	in(t, `{name: u/p, ingress: [{from: [{namespaceSelector: {}}]}]}`).each(no("x/host", "u/b", "80/TCP"), yes("x/a", "u/b", "80/TCP")) // never a peer
	in(t, `{name: x/p, ingress: [{from: [{podSelector: {matchLabels: {pod: host}}}]}]}`).denies("x/host", "x/b", "80/TCP")
	in(t, `{name: x/p, ingress: [{from: [{ipBlock: {cidr: 192.168.0.1/32}}, {ipBlock: {cidr: "fd00:f::1/128"}}]}]}`).each(yes("x/host", "x/b", "80/TCP"), no("u/host", "x/a", "80/TCP"))
	in(t, `{name: u/p, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}}]}]}`).each(no("u/a", "x/host", "80/TCP"), yes("u/a", "x/a", "80/TCP"))
	in(t, `{name: cnp, tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}`).each(
		yes("x/host", "u/b", "80/TCP"), yes("u/b", "x/host", "80/TCP"), no("x/a", "u/b", "80/TCP"))
	s := world() // without an address of its own, a hostNetwork pod has its node's
	podOf(s, "x/host").Status.PodIPs = nil
	j := of(t, with(t, s, `{name: x/p, ingress: [{from: [{ipBlock: {cidr: 192.168.0.1/32}}]}]}`))
	if v := j.one("x/host", "x/b", "80/TCP"); !v.Allowed {
		t.Error(v.Ingress.Why)
	}
}

func TestFact20NodeToItsOwnPods(t *testing.T) {
	j := in(t, `{name: x/p, podSelector: {}}`, `{name: cnp, tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}`)
	j.allows("192.168.0.1", "x/a", "80/TCP")
	j.allows("fd00:f::1", "x/a", "80/TCP")
	j.allows("x/host", "x/a", "80/TCP")
	j.allows("192.168.0.2", "x/b", "ICMP")
	j.denies("198.51.100.1", "x/a", "80/TCP")
	in(t, `{name: x/p, policyTypes: [Egress]}`).denies("x/a", "192.168.0.1", "80/TCP") // only on the way in
}

func TestFact21OtherNodesAreNotExempt(t *testing.T) {
	j := in(t, `{name: x/p, podSelector: {}}`)
	j.denies("192.168.0.2", "x/a", "80/TCP")
	j.denies("fd00:f::2", "x/a", "80/TCP")
	j.denies("u/host", "x/a", "80/TCP")
	j.denies("192.168.0.1", "x/b", "80/TCP")
	s := with(t, world(), `{name: x/p, podSelector: {}}`) // where nobody says which node a pod is on, no node is its own
	podOf(s, "x/a").Spec.NodeName, podOf(s, "x/host").Spec.NodeName = "", ""
	of(t, s).denies("x/host", "x/a", "80/TCP")
}

func TestFact22PoliciesSeeBackends(t *testing.T) {
	// A Service's own address is not its pods': only what names the address itself matches it.
	in(t, `{name: x/p, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}}]}]}`).each(no("x/a", "10.96.0.10", "80/TCP"), yes("x/a", "u/a", "80/TCP"))
	in(t, `{name: x/p, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.96.0.10/32}}]}]}`).each(no("x/a", "u/a", "80/TCP"))
}

func TestFact24OwnAddress(t *testing.T) {
	all := []string{`{name: x/p, podSelector: {}, policyTypes: [Ingress, Egress]}`, `{name: cnp, tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}], egress: [{action: Deny, to: [{namespaces: {}}]}]}`}
	j := in(t, all...)
	j.allows("x/a", "x/a", "80/TCP")
	j.denies("x/a", "x/b", "80/TCP")
	j.allows("x/a", "127.0.0.1", "80/TCP")
	j.allows("x/a", "::1", "80/TCP")
	hairpin := flow(end("x/a"), end("x/a"), "80/TCP")
	hairpin.ViaService = true
	if v := j.verdict(hairpin); v.Allowed || v.Egress.Tier != netpol.TierAdmin || v.Ingress.Tier != netpol.TierAdmin {
		t.Errorf("a ClusterNetworkPolicy judges what a pod sends itself by way of a Service: %+v", v)
	}
	if v := in(t, all[0]).verdict(hairpin); !v.Allowed || v.Egress.Tier != netpol.TierNetworkPolicy || v.Egress.Rule != netpol.NoRule || len(v.Ingress.Isolating) != 1 {
		t.Errorf("NetworkPolicies always allow it: %+v", v)
	}
	baseline := `{name: cnp, tier: Baseline, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}`
	if v := in(t, baseline).verdict(hairpin); v.Allowed {
		t.Errorf("the Baseline tier judges it: %+v", v)
	}
	if v := in(t, baseline, all[0]).verdict(hairpin); !v.Allowed {
		t.Errorf("but not where NetworkPolicies decided: %+v", v)
	}
	toOther := flow(end("x/a"), end("x/b"), "80/TCP")
	toOther.ViaService = true
	if v := in(t, all[0]).verdict(toOther); v.Allowed {
		t.Errorf("another backend is judged: %+v", v)
	}
}

func TestFact33TerminatingPodsStay(t *testing.T) {
	s := with(t, world(), `{name: x/p, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]}`)
	now := metav1.Now()
	podOf(s, "x/a").DeletionTimestamp, podOf(s, "x/b").DeletionTimestamp = &now, &now
	j := of(t, s)
	j.allows("x/b", "x/a", "80/TCP")
	j.denies("u/b", "x/a", "80/TCP")
}

func TestFact34EndedPodsLeaveAtOnce(t *testing.T) {
	for _, phase := range []corev1.PodPhase{corev1.PodSucceeded, corev1.PodFailed} {
		s := with(t, world(), `{name: x/p, ingress: [{from: [{podSelector: {}}]}]}`)
		podOf(s, "x/b").Status.Phase = phase
		j := of(t, s)
		if v := j.one("10.1.0.2", "x/a", "80/TCP"); v.Allowed {
			t.Error("the address of a pod that ended is nobody's")
		}
		if v := j.one("u/a", "10.1.0.2", "80/TCP"); !v.Allowed {
			t.Error("a pod that ended is no subject")
		}
		for _, f := range []netpol.Flow{flow(end("x/b"), end("x/a"), "80/TCP"), flow(end("x/a"), end("x/b"), "80/TCP")} {
			if _, err := j.e.Judge(f); err == nil || !strings.Contains(err.Error(), "has ended") {
				t.Errorf("asked by name: %v", err)
			}
		}
		podOf(s, "u/b").Status.PodIPs = podOf(s, "x/b").Status.PodIPs // the address has a new owner
		j = of(t, s)
		j.denies("u/b", "x/a", "80/TCP")
		podOf(s, "x/c").Status.PodIPs = podOf(s, "x/b").Status.PodIPs
		podOf(s, "x/c").CreationTimestamp = metav1.Unix(5, 0) // of two, the newer one
		of(t, s).allows("10.1.0.2", "x/a", "80/TCP")
	}
}

func TestFact35Relabelling(t *testing.T) {
	policy := `{name: x/p, podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: u}}, podSelector: {matchLabels: {pod: b}}}]}]}`
	in(t, policy).each(yes("u/b", "x/a", "80/TCP"), no("u/c", "x/a", "80/TCP"), yes("u/c", "x/c", "80/TCP"))
	s := with(t, world(), policy)
	podOf(s, "u/c").Labels["pod"] = "b"
	podOf(s, "x/c").Labels["pod"] = "a"
	of(t, s).each(yes("u/c", "x/a", "80/TCP"), no("z/b", "x/c", "80/TCP"))
	s.Namespaces[1].Labels["ns"], s.Namespaces[2].Labels["ns"] = "other", "u"
	of(t, s).each(no("u/b", "x/a", "80/TCP"), yes("z/b", "x/a", "80/TCP"))
}

func TestFact36NamespacesHaveTheirName(t *testing.T) {
	policy := `{name: x/p, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: u}}}]}]}`
	in(t, policy).each(yes("u/b", "x/a", "80/TCP"), no("z/b", "x/a", "80/TCP"))
	s := with(t, world(), policy)
	s.Namespaces[2].Labels[corev1.LabelMetadataName] = "u" // whatever the object says
	of(t, s).each(yes("u/b", "x/a", "80/TCP"), no("z/b", "x/a", "80/TCP"))
	s.Namespaces = nil // and without one
	of(t, s).each(yes("u/b", "x/a", "80/TCP"), no("z/b", "x/a", "80/TCP"))
}

func TestFact37SCTPIsNotTCP(t *testing.T) {
	in(t, `{name: x/p, ingress: [{ports: [{port: 80, protocol: SCTP}]}]}`).each(yes("u/a", "x/a", "80/SCTP"), no("u/a", "x/a", "80/TCP"), no("u/a", "x/a", "80/UDP"), no("u/a", "x/a", "81/SCTP"))
	in(t, `{name: x/p, ingress: [{ports: [{port: stream, protocol: SCTP}]}]}`).each(yes("u/a", "x/a", "80/SCTP"), no("u/a", "x/a", "80/TCP"))
}

func TestFact38ICMP(t *testing.T) {
	j := in(t, `{name: x/p, policyTypes: [Ingress, Egress]}`)
	j.denies("u/a", "x/a", "ICMP")
	j.denies("x/a", "198.51.100.1", "50")
	from := "u/a"
	icmp := func(protocol uint8, kind uint8) bool {
		f := flow(end(from), end("x/a"), "ICMP")
		f.Protocol, f.ICMPType = protocol, kind
		return j.verdict(f).Allowed
	}
	for _, kind := range []uint8{3, 11, 12} {
		if !icmp(netpol.ICMP, kind) {
			t.Errorf("ICMP type %d must pass", kind)
		}
	}
	for _, kind := range []uint8{0, 5, 8, 13, 133} {
		if icmp(netpol.ICMP, kind) {
			t.Errorf("ICMP type %d must be judged", kind)
		}
	}
	for _, kind := range []uint8{1, 2, 3, 4} {
		if !icmp(netpol.ICMPv6, kind) {
			t.Errorf("ICMPv6 type %d must pass", kind)
		}
	}
	for _, kind := range []uint8{130, 131, 132, 133, 134, 135, 136, 137, 141, 142, 143, 148, 149, 151, 152, 153} {
		from = "198.51.100.1"
		if !icmp(netpol.ICMPv6, kind) {
			t.Errorf("ICMPv6 type %d must pass from a link", kind)
		}
		from = "u/a"
		if icmp(netpol.ICMPv6, kind) {
			t.Errorf("ICMPv6 type %d of a pod, which is on no link with another, must be judged", kind)
		}
	}
	for _, kind := range []uint8{0, 5, 128, 138, 139, 140, 144, 150, 154} {
		if icmp(netpol.ICMPv6, kind) {
			t.Errorf("ICMPv6 type %d must be judged", kind)
		}
	}
	in(t, `{name: x/p, ingress: [{from: [{podSelector: {}}]}, {from: [{namespaceSelector: {}}], ports: [{protocol: TCP}, {protocol: UDP}, {protocol: SCTP}]}]}`).each(
		yes("x/b", "x/a", "ICMP"), no("u/b", "x/a", "ICMP"), yes("x/b", "x/a", "50"), no("u/b", "x/a", "50"))
}

func TestFact40WhatAPodSees(t *testing.T) {
	policy := `{name: x/p, ingress: [{from: [{ipBlock: {cidr: 198.51.100.0/24}}]}]}`
	j := in(t, policy)
	j.allows("198.51.100.7", "x/a", "80/TCP") // externalTrafficPolicy Local: the client
	forwarded := flow(end("192.168.0.1"), end("x/a"), "80/TCP")
	forwarded.Forwarded = true // Cluster: a node's address, also that of the pod's own node
	if v := j.verdict(forwarded); v.Allowed {
		t.Error("what a node forwards in its own name is judged as its address")
	}
	j = in(t, policy, `{name: x/q, ingress: [{from: [{ipBlock: {cidr: 192.168.0.1/32}}]}]}`)
	if v := j.verdict(forwarded); !v.Allowed || v.Ingress.Policy.Name != "q" {
		t.Errorf("%+v", v)
	}
}

func TestFact43BothFamilies(t *testing.T) {
	in(t, `{name: x/p, ingress: [{from: [{ipBlock: {cidr: "fd00:2::/32"}}]}]}`).each(yes("fd00:2::1", "fd00:1::1", "80/TCP"), no("10.2.0.1", "10.1.0.1", "80/TCP"))
	j := of(t, with(t, world(), `{name: x/p, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: ["fd00:2::/32"]}}]}]}`))
	j.denies("u/a", "x/a", "80/TCP")
	wantProblem(t, j, "spec.ingress[0].from[0].ipBlock.except[0]")
	in(t, `{name: x/p, ingress: [{from: [{ipBlock: {cidr: 10.2.0.1/32}}]}, {from: [{podSelector: {matchLabels: {pod: b}}}]}]}`).each( // IPv4 in IPv6 is IPv4
		yes("::ffff:10.2.0.1", "10.1.0.1", "80/TCP"), yes("::ffff:10.1.0.2", "::ffff:10.1.0.1", "80/TCP"), no("::ffff:10.1.0.3", "10.1.0.1", "80/TCP"))
	s := world()
	podOf(s, "x/a").Status.PodIPs = podOf(s, "x/a").Status.PodIPs[:1]
	podOf(s, "u/a").Status.PodIPs = podOf(s, "u/a").Status.PodIPs[1:]
	if _, err := of(t, s).e.Judge(flow(end("x/a"), end("u/a"), "80/TCP")); err == nil || !strings.Contains(err.Error(), "one family") {
		t.Errorf("ends of two families: %v", err)
	}
	of(t, s).allows("x/a", "u/b", "80/TCP")
}

func TestFact45SameNumberOtherName(t *testing.T) {
	s := with(t, world(), `{name: x/p, ingress: [{ports: [{port: one}]}]}`)
	podOf(s, "x/a").Spec.Containers = []corev1.Container{
		{Name: "1", Ports: []corev1.ContainerPort{{Name: "two", ContainerPort: 81}, {Name: "one", ContainerPort: 80, Protocol: corev1.ProtocolUDP}}},
		{Name: "2", Ports: []corev1.ContainerPort{{Name: "one", ContainerPort: 90}}},
		{Name: "3", Ports: []corev1.ContainerPort{{Name: "one", ContainerPort: 91}, {ContainerPort: 92}}},
	}
	of(t, s).each(no("u/a", "x/a", "80/UDP"), no("u/a", "x/a", "80/TCP"), yes("u/a", "x/a", "90/TCP"), yes("u/a", "x/a", "91/TCP"), no("u/a", "x/a", "81/TCP"), no("u/a", "x/a", "92/TCP"))
}

// asked is an answer that is expected.
type asked struct {
	allowed        bool
	from, to, port string
}

func yes(from, to, port string) asked { return asked{true, from, to, port} }
func no(from, to, port string) asked  { return asked{false, from, to, port} }

func (j judge) each(all ...asked) {
	j.t.Helper()
	for _, a := range all {
		j.says(a.allowed, a.from, a.to, a.port)
	}
}

func wantProblem(t *testing.T, j judge, fields ...string) {
	t.Helper()
	var got []string
	for _, p := range j.e.Problems() {
		got = append(got, p.Field)
		if p.Reason == "" || p.Policy.Name == "" || !strings.Contains(p.String(), p.Field) {
			t.Errorf("a problem that says nothing: %+v", p)
		}
	}
	if !slices.Equal(got, fields) {
		t.Errorf("problems of the fields %q, must be %q: %v", got, fields, j.e.Problems())
	}
}
