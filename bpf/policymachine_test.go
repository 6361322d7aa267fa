package bpf

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

func openMachine(t testing.TB) *PolicyMachine {
	t.Helper()
	m, err := OpenPolicyMachine()
	must(t, err)
	t.Cleanup(func() { m.Close() })
	return m
}

// The three looks: an identity by the subject, an address or the longest block, its answer or that of all others, and the longest row of ports.
func TestPolicyMachineJudges(t *testing.T) {
	m := openMachine(t)
	allow := func(policy uint32) PolicyVerdict {
		return PolicyVerdict{Allow: true, Policy: policy, Tier: PolicyTierNetworkPolicy}
	}
	deny := func(policy uint32, tier PolicyTier) PolicyVerdict {
		return PolicyVerdict{Policy: policy, Rule: PolicyNoRule, Tier: tier}
	}
	const everybody, nobody, web, admin, broken, gone = 1, 2, 3, 4, 5, 6 // lists, and rule sets that give them to all
	change := PolicyChange{
		Ports: []PolicyPort{
			{Ports: everybody, Verdict: allow(1)}, {Ports: nobody, Verdict: deny(2, PolicyTierNetworkPolicy)}, {Ports: admin, Verdict: deny(4, PolicyTierAdmin)},
			{Ports: web, Verdict: deny(3, PolicyTierNetworkPolicy)}, {Ports: web, Protocol: 6, Port: 80, Bits: 16, Verdict: allow(31)},
			{Ports: web, Protocol: 6, Port: 8080, Bits: 12, Verdict: allow(32)}, {Ports: web, Protocol: 6, Port: 8082, Bits: 16, Verdict: deny(33, PolicyTierAdmin)},
			{Ports: web, Protocol: 17, Verdict: allow(34)}, {Ports: web, Protocol: 132, Port: 0xffff, Bits: 16, Verdict: allow(35)},
			{Ports: broken, Protocol: 6, Verdict: allow(5)},
		},
		Answers: []PolicyAnswer{
			{RuleSet: nobody, Ports: nobody}, {RuleSet: nobody, Identity: 10, Ports: everybody}, {RuleSet: nobody, Identity: 11, Ports: web},
			{RuleSet: admin, Ports: admin}, {RuleSet: everybody, Ports: everybody}, {RuleSet: broken, Ports: broken}, {RuleSet: gone, Identity: 10, Ports: everybody},
		},
		Peers: []PolicyPeer{
			{Prefix: netip.MustParsePrefix("10.244.9.1/32"), Identity: 10}, {Prefix: netip.MustParsePrefix("198.51.100.0/24"), Identity: 10},
			{Prefix: netip.MustParsePrefix("198.51.100.64/26"), Identity: 0}, {Prefix: netip.MustParsePrefix("198.51.100.65/32"), Identity: 11},
			{Prefix: netip.MustParsePrefix("::/0"), Identity: 10}, {Prefix: netip.MustParsePrefix("2001:db8::/32"), Identity: 0},
		},
	}
	addr := netip.MustParseAddr
	subjects := map[string]PolicySubject{
		"free": {}, "closed": {Ingress: nobody}, "caged": {Egress: nobody, Identity: 10}, "caged6": {Egress: nobody}, "loner": {Egress: nobody, Ingress: nobody},
		"banned": {Egress: admin, Ingress: admin}, "broken": {Ingress: broken}, "gone": {Ingress: gone}, "shadowed": {Ingress: nobody, ShadowIngress: everybody, ShadowEgress: nobody},
	}
	named := map[string]netip.Addr{}
	for i, name := range []string{"free", "closed", "caged", "loner", "banned", "broken", "gone", "shadowed"} {
		named[name] = netip.AddrFrom4([4]byte{10, 244, 0, byte(10 + i)})
	}
	named["caged6"] = addr("fd00:10:244::9")
	for name, s := range subjects {
		s.Addr = named[name]
		change.Subjects = append(change.Subjects, s)
	}
	must(t, m.Apply(change))
	end := func(s string) netip.Addr {
		if a, ok := named[s]; ok {
			return a
		}
		return addr(s)
	}
	for _, c := range []struct {
		from, to string
		protocol uint8
		port     uint16
		want     string
	}{
		{"free", "free", 6, 80, "allowed - -"},
		{"10.244.9.1", "closed", 6, 1, "allowed - 1"},
		{"caged", "closed", 17, 1, "denied -2 1"}, // as a peer the caged pod is of identity 10
		{"free", "closed", 6, 80, "denied - -2"},
		{"198.51.100.63", "closed", 6, 80, "allowed - 1"},
		{"198.51.100.64", "closed", 6, 80, "denied - -2"},
		{"198.51.100.65", "closed", 6, 80, "allowed - 31"},
		{"198.51.100.65", "closed", 6, 81, "denied - -3"},
		{"198.51.100.65", "closed", 6, 8080, "allowed - 32"},
		{"198.51.100.65", "closed", 6, 8095, "allowed - 32"},
		{"198.51.100.65", "closed", 6, 8096, "denied - -3"},
		{"198.51.100.65", "closed", 6, 8082, "denied - -33"},
		{"198.51.100.65", "closed", 17, 0, "allowed - 34"},
		{"198.51.100.65", "closed", 132, 80, "denied - -3"},
		{"198.51.100.65", "closed", 132, 0xffff, "allowed - 35"},
		{"198.51.100.65", "closed", 1, 80, "denied - -3"},
		{"caged", "198.51.100.1", 6, 443, "allowed 1 -"},
		{"caged", "203.0.113.1", 6, 443, "denied -2 -"}, // ::/0 is not for IPv4
		{"caged6", "2001:db8::1", 6, 443, "denied -2 -"},
		{"caged6", "2001:db9::1", 6, 443, "allowed 1 -"},
		{"loner", "loner", 6, 80, "allowed 2 2"},
		{"loner", "free", 6, 80, "denied -2 -"},
		{"banned", "banned", 6, 80, "denied -4 -4"},
		{"free", "broken", 6, 80, "allowed - 5"},
		{"free", "broken", 17, 80, "none - -0"},
		{"free", "gone", 6, 80, "none - -0"},
		{"free", "shadowed", 6, 80, "denied - -2, in shadow - 1"},
		{"shadowed", "203.0.113.1", 6, 80, "allowed - -, in shadow -2 -"},
		{"203.0.113.1", "203.0.113.2", 6, 80, "allowed - -"},
	} {
		got, err := m.Judge([]PolicyQuery{{From: end(c.from), To: end(c.to), Protocol: c.protocol, Port: c.port}})
		must(t, err)
		show := func(v *PolicyVerdict) string {
			if v == nil {
				return "-"
			}
			if !v.Allow {
				return fmt.Sprint("-", v.Policy)
			}
			return fmt.Sprint(v.Policy)
		}
		d := got[0]
		is := "denied"
		if d.Allowed {
			is = "allowed"
		} else if d.NoVerdict {
			is = "none"
		}
		is += " " + show(d.Egress) + " " + show(d.Ingress)
		if d.ShadowEgress != nil || d.ShadowIngress != nil {
			is += ", in shadow " + show(d.ShadowEgress) + " " + show(d.ShadowIngress)
		}
		if is != c.want {
			t.Errorf("%s to %s %d/%d: %s, want %s", c.from, c.to, c.port, c.protocol, is, c.want)
		}
	}
	node, err := m.Judge([]PolicyQuery{{From: addr("192.0.2.1"), To: named["closed"], Protocol: 6, Port: 80}, {From: addr("192.0.2.1"), To: named["closed"], Protocol: 6, Port: 80, Node: true}})
	must(t, err)
	if node[0].Allowed || !node[1].Allowed {
		t.Errorf("from a node, and from the pod's own: %+v", node)
	}
	if _, err := m.Judge([]PolicyQuery{{From: addr("::ffff:10.0.0.1"), To: named["closed"]}}); err == nil {
		t.Error("a mapped address was judged")
	}
}

// Many questions are answered in their order, and quickly: the figure is printed, not asserted.
func TestPolicyMachineManyQueries(t *testing.T) {
	m := openMachine(t)
	var c PolicyChange
	c.Ports = append(c.Ports, PolicyPort{Ports: 1, Verdict: PolicyVerdict{Policy: 1, Rule: PolicyNoRule}}, PolicyPort{Ports: 2, Verdict: PolicyVerdict{Allow: true, Policy: 1}})
	c.Answers = append(c.Answers, PolicyAnswer{RuleSet: 1, Ports: 1})
	for i := range uint32(1000) {
		c.Answers = append(c.Answers, PolicyAnswer{RuleSet: 1, Identity: 1 + i, Ports: 1 + i%2})
		a := netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})
		c.Peers = append(c.Peers, PolicyPeer{Prefix: netip.PrefixFrom(a, 32), Identity: 1 + i})
		c.Subjects = append(c.Subjects, PolicySubject{Addr: netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)}), Ingress: 1, Egress: 1})
	}
	must(t, m.Apply(c))
	var queries []PolicyQuery
	for i := range 100_000 {
		q := PolicyQuery{From: c.Peers[i%1000].Prefix.Addr(), To: c.Subjects[i/7%1000].Addr, Protocol: 6, Port: uint16(i)}
		queries = append(queries, q)
	}
	began := time.Now()
	got, err := m.Judge(queries)
	must(t, err)
	t.Logf("%.0f queries a second", float64(len(queries))/time.Since(began).Seconds())
	for i, d := range got {
		if d.Allowed != (i%1000%2 == 1) {
			t.Fatalf("query %d: %+v", i, d)
		}
	}
}
