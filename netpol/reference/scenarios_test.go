package reference

import "testing"

// The scenarios that everybody's end-to-end tests have for NetworkPolicies, told for this world.
func TestScenarios(t *testing.T) {
	const denyIngress, denyEgress = `{name: x/deny-in, policyTypes: [Ingress]}`, `{name: x/deny-out, policyTypes: [Egress], egress: []}`
	for _, c := range []struct {
		name     string
		policies []string
		asked    []asked
	}{
		{"no policy: everybody reaches everybody", nil,
			[]asked{yes("x/a", "x/b", "80/TCP"), yes("x/a", "z/c", "53/UDP"), yes("198.51.100.1", "x/a", "80/TCP"), yes("x/a", "2001:db8::1", "443/TCP")}},
		{"default deny of ingress: all pods of the namespace, nobody else", []string{denyIngress},
			[]asked{no("x/b", "x/a", "80/TCP"), no("u/a", "x/c", "80/TCP"), yes("x/a", "u/a", "80/TCP"), yes("u/a", "z/a", "80/TCP")}},
		{"default deny of egress", []string{denyEgress},
			[]asked{no("x/a", "u/a", "80/TCP"), no("x/a", "x/b", "53/UDP"), yes("u/a", "x/a", "80/TCP")}},
		{"default deny of both", []string{`{name: x/deny, policyTypes: [Ingress, Egress]}`},
			[]asked{no("x/a", "u/a", "80/TCP"), no("u/a", "x/a", "80/TCP"), yes("u/a", "z/a", "80/TCP")}},
		{"allow all over default deny", []string{denyIngress, `{name: x/allow, ingress: [{}]}`},
			[]asked{yes("x/b", "x/a", "80/TCP"), yes("198.51.100.1", "x/a", "53/UDP")}},
		{"allow all of egress over default deny", []string{denyEgress, `{name: x/allow, policyTypes: [Egress], egress: [{}]}`},
			[]asked{yes("x/b", "u/a", "80/TCP"), yes("x/a", "198.51.100.1", "53/UDP")}},
		{"from pods of the own namespace with a label", []string{`{name: x/p, podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]}`},
			[]asked{yes("x/b", "x/a", "80/TCP"), no("x/c", "x/a", "80/TCP"), no("u/b", "x/a", "80/TCP"), yes("u/b", "x/b", "80/TCP")}},
		{"from namespaces with a label", []string{`{name: x/p, podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: u}}}]}]}`},
			[]asked{yes("u/b", "x/a", "80/TCP"), no("x/b", "x/a", "80/TCP"), no("z/b", "x/a", "80/TCP"), yes("z/b", "x/b", "80/TCP")}},
		{"from namespaces by expression", []string{`{name: x/p, ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: ns, operator: NotIn, values: [x]}]}}]}]}`},
			[]asked{yes("u/b", "x/a", "80/TCP"), yes("z/b", "x/a", "80/TCP"), no("x/b", "x/a", "80/TCP")}},
		{"from pods by expression", []string{`{name: x/p, ingress: [{from: [{podSelector: {matchExpressions: [{key: pod, operator: In, values: [b, q]}]}}]}]}`},
			[]asked{yes("x/b", "x/a", "80/TCP"), no("x/c", "x/a", "80/TCP")}},
		{"from a namespace by its name", []string{`{name: x/p, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: u}}}]}]}`},
			[]asked{yes("u/b", "x/a", "80/TCP"), no("z/b", "x/a", "80/TCP")}},
		{"from all namespaces but one by name", []string{`{name: x/p, ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: NotIn, values: [u]}]}}]}]}`},
			[]asked{no("u/b", "x/a", "80/TCP"), yes("z/b", "x/a", "80/TCP"), yes("x/b", "x/a", "80/TCP"), no("198.51.100.1", "x/a", "80/TCP")}},
		{"to a namespace by its name", []string{`{name: x/p, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: u}}}]}]}`},
			[]asked{yes("x/a", "u/b", "80/TCP"), no("x/a", "z/b", "80/TCP"), no("x/a", "x/b", "80/TCP")}},
		{"pods and namespaces as one peer", []string{`{name: x/p, ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: ns, operator: NotIn, values: [x]}]}, podSelector: {matchExpressions: [{key: pod, operator: In, values: [b]}]}}]}]}`},
			[]asked{yes("u/b", "x/a", "80/TCP"), no("u/c", "x/a", "80/TCP"), no("x/b", "x/a", "80/TCP")}},
		{"pods or namespaces", []string{`{name: x/p, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: u}}}, {podSelector: {matchLabels: {pod: b}}}]}]}`},
			[]asked{yes("u/c", "x/a", "80/TCP"), yes("x/b", "x/a", "80/TCP"), no("z/b", "x/a", "80/TCP")}},
		{"one port only", []string{`{name: x/p, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: u}}}], ports: [{port: 81}]}]}`},
			[]asked{yes("u/a", "x/a", "81/TCP"), no("u/a", "x/a", "80/TCP"), no("z/a", "x/a", "81/TCP")}},
		{"several policies, several ports", []string{`{name: x/p80, ingress: [{ports: [{port: 80}]}]}`, `{name: x/p81, ingress: [{ports: [{port: 81}]}]}`},
			[]asked{yes("u/a", "x/a", "80/TCP"), yes("u/a", "x/a", "81/TCP"), no("u/a", "x/a", "82/TCP")}},
		{"several rules add up", []string{`{name: x/p, ingress: [{ports: [{port: 80}]}, {from: [{namespaceSelector: {matchLabels: {ns: u}}}], ports: [{port: 81}]}]}`},
			[]asked{yes("z/a", "x/a", "80/TCP"), yes("u/a", "x/a", "81/TCP"), no("z/a", "x/a", "81/TCP")}},
		{"a port by name", []string{`{name: x/p, ingress: [{ports: [{port: other}]}]}`},
			[]asked{yes("u/a", "x/a", "81/TCP"), no("u/a", "x/a", "80/TCP")}},
		{"a port by name on the way out, not by its number elsewhere", []string{`{name: x/p, policyTypes: [Egress], egress: [{ports: [{port: other}]}]}`},
			[]asked{yes("x/a", "u/a", "81/TCP"), no("x/a", "u/a", "80/TCP"), no("x/a", "198.51.100.1", "81/TCP")}},
		{"UDP only", []string{`{name: x/p, ingress: [{ports: [{protocol: UDP, port: 53}]}]}`},
			[]asked{yes("u/a", "x/a", "53/UDP"), no("u/a", "x/a", "53/TCP"), no("u/a", "x/a", "80/TCP")}},
		{"a rule of SCTP opens no TCP and isolates all the same", []string{`{name: x/p, ingress: [{ports: [{protocol: SCTP, port: 80}]}]}`},
			[]asked{yes("u/a", "x/a", "80/SCTP"), no("u/a", "x/a", "80/TCP")}},
		{"egress isolates the client, and the server stays open for others", []string{`{name: x/p, podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {ns: u}}}]}]}`},
			[]asked{yes("x/a", "u/b", "80/TCP"), no("x/a", "x/b", "80/TCP"), yes("x/b", "x/a", "80/TCP"), yes("z/a", "x/a", "80/TCP")}},
		{"both sides must allow", []string{`{name: x/out, podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {ns: u}}}], ports: [{port: 80}]}]}`, `{name: u/in, ingress: [{from: [{podSelector: {}}, {namespaceSelector: {matchLabels: {ns: x}}}], ports: [{port: 80}, {port: 81}]}]}`},
			[]asked{yes("x/a", "u/a", "80/TCP"), no("x/a", "u/a", "81/TCP"), yes("x/b", "u/a", "81/TCP"), no("z/a", "u/a", "80/TCP")}},
		{"egress to DNS only", []string{`{name: x/p, policyTypes: [Egress], egress: [{ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]}]}`},
			[]asked{yes("x/a", "u/a", "53/UDP"), yes("x/a", "198.51.100.1", "53/TCP"), no("x/a", "u/a", "80/TCP")}},
		{"a block with an exception", []string{`{name: x/p, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.2.0.0/24, except: [10.2.0.1/32]}}, {ipBlock: {cidr: "fd00:2::/64", except: ["fd00:2::1/128"]}}]}]}`},
			[]asked{no("x/a", "u/a", "80/TCP"), yes("x/a", "u/b", "80/TCP"), no("x/a", "z/b", "80/TCP")}},
		{"a second policy opens what the first one excepts", []string{`{name: x/p, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.2.0.0/24, except: [10.2.0.1/32]}}, {ipBlock: {cidr: "fd00:2::/64", except: ["fd00:2::1/128"]}}]}]}`, `{name: x/q, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.2.0.1/32}}, {ipBlock: {cidr: "fd00:2::1/128"}}]}]}`},
			[]asked{yes("x/a", "u/a", "80/TCP"), yes("x/a", "u/b", "80/TCP"), no("x/a", "z/b", "80/TCP")}},
		{"a policy of another namespace does not matter", []string{`{name: z/deny}`}, []asked{yes("u/a", "x/a", "80/TCP"), no("u/a", "z/a", "80/TCP")}},
		{"who has no label that is selected is not isolated", []string{`{name: x/p, podSelector: {matchExpressions: [{key: pod, operator: In, values: [b, c]}]}}`},
			[]asked{yes("u/a", "x/a", "80/TCP"), no("u/a", "x/b", "80/TCP"), no("u/a", "x/c", "80/TCP")}},
	} {
		t.Run(c.name, func(t *testing.T) { in(t, c.policies...).each(c.asked...) })
	}
}

// The scenarios of ClusterNetworkPolicies: tenants, guard rails, defaults.
func TestClusterScenarios(t *testing.T) {
	for _, c := range []struct {
		name     string
		policies []string
		asked    []asked
	}{
		{"a namespace that nobody may open", []string{`{name: strict, tier: Admin, priority: 10, subject: {namespaces: {matchLabels: {ns: x}}}, ingress: [{action: Deny, from: [{namespaces: {matchExpressions: [{key: ns, operator: NotIn, values: [x]}]}}]}]}`, `{name: x/open, ingress: [{}]}`},
			[]asked{no("u/a", "x/a", "80/TCP"), yes("x/b", "x/a", "80/TCP"), yes("198.51.100.1", "x/a", "80/TCP")}},
		{"monitoring gets in everywhere", []string{`{name: monitor, tier: Admin, priority: 5, subject: {namespaces: {}}, ingress: [{action: Accept, from: [{namespaces: {matchLabels: {ns: z}}}], protocols: [{tcp: {destinationPort: {number: 81}}}]}]}`, `{name: x/deny}`},
			[]asked{yes("z/a", "x/a", "81/TCP"), no("z/a", "x/a", "80/TCP"), no("u/a", "x/a", "81/TCP")}},
		{"DNS is never cut", []string{`{name: dns, tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{action: Accept, to: [{pods: {namespaceSelector: {matchLabels: {ns: z}}, podSelector: {matchLabels: {pod: a}}}}], protocols: [{udp: {destinationPort: {number: 53}}}, {tcp: {destinationPort: {number: 53}}}]}]}`, `{name: x/deny, policyTypes: [Egress]}`},
			[]asked{yes("x/a", "z/a", "53/UDP"), yes("x/a", "z/a", "53/TCP"), no("x/a", "z/b", "53/UDP"), no("x/a", "z/a", "80/TCP")}},
		{"tenants are apart by default, and may open themselves", []string{`{name: default, tier: Baseline, priority: 100, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}`, `{name: x/open, podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: u}}}]}]}`},
			[]asked{yes("u/a", "x/a", "80/TCP"), no("z/a", "x/a", "80/TCP"), no("u/a", "x/b", "80/TCP"), yes("198.51.100.1", "x/b", "80/TCP")}},
		{"the private ranges are closed, pods are left to developers", []string{`{name: out, tier: Admin, priority: 7, subject: {namespaces: {}}, egress: [{action: Pass, to: [{namespaces: {}}]}, {action: Deny, to: [{networks: [10.0.0.0/8, 192.168.0.0/16]}]}]}`},
			[]asked{yes("x/a", "u/a", "80/TCP"), no("x/a", "10.99.0.1", "80/TCP"), no("x/a", "192.168.7.7", "80/TCP"), yes("x/a", "198.51.100.1", "80/TCP")}},
		{"nodes are out of reach but for one port", []string{`{name: nodes, tier: Admin, priority: 7, subject: {namespaces: {}}, egress: [{action: Accept, to: [{nodes: {matchLabels: {zone: one}}}], protocols: [{tcp: {destinationPort: {number: 6443}}}]}, {action: Deny, to: [{nodes: {}}]}]}`},
			[]asked{yes("x/b", "192.168.0.1", "6443/TCP"), no("x/b", "192.168.0.2", "6443/TCP"), no("x/b", "fd00:f::1", "80/TCP"), no("x/b", "u/host", "80/TCP")}},
		{"of two policies the lower number", []string{`{name: a-deny, tier: Admin, priority: 20, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}`, `{name: b-accept, tier: Admin, priority: 10, subject: {namespaces: {matchLabels: {ns: x}}}, ingress: [{action: Accept, from: [{namespaces: {matchLabels: {ns: u}}}]}]}`},
			[]asked{yes("u/a", "x/a", "80/TCP"), no("z/a", "x/a", "80/TCP"), no("u/a", "z/a", "80/TCP")}},
	} {
		t.Run(c.name, func(t *testing.T) { in(t, c.policies...).each(c.asked...) })
	}
}
