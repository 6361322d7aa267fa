package trace

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/netpol/compiler"
)

// What policies forbid at the backend that would be chosen is told, with who forbids it.
func TestPoliciesAreTold(t *testing.T) {
	addr := netip.MustParseAddr
	s := State{
		NodeAddrs: []netip.Addr{addr("198.18.0.2")}, Endpoints: []bpf.Endpoint{{Addr: addr("10.244.0.2")}, {Addr: addr("10.244.0.3")}},
		Policies: compiler.Interpret(bpf.PolicyRows{
			Subjects: []bpf.PolicySubject{{Addr: addr("10.244.0.2"), Identity: 1}, {Addr: addr("10.244.0.3"), Identity: 2, Ingress: 1}},
			Answers:  []bpf.PolicyAnswer{{RuleSet: 1, Ports: 1}, {RuleSet: 1, Identity: 1, Ports: 2}},
			Ports: []bpf.PolicyPort{{Ports: 1, Verdict: bpf.PolicyVerdict{Policy: 1, Rule: bpf.PolicyNoRule, Tier: bpf.PolicyTierNetworkPolicy}},
				{Ports: 2, Verdict: bpf.PolicyVerdict{Policy: 1, Rule: bpf.PolicyNoRule, Tier: bpf.PolicyTierNetworkPolicy}},
				{Ports: 2, Protocol: 6, Port: 80, Bits: 16, Verdict: bpf.PolicyVerdict{Allow: true, Policy: 1, Rule: 2, Tier: bpf.PolicyTierNetworkPolicy}}},
			Names: []bpf.PolicyName{{Policy: 1, Kind: "NetworkPolicy", Namespace: "shop", Name: "web"}},
		}),
	}
	for _, c := range []struct {
		from             Client
		port             uint16
		verdict, ingress string
	}{
		{Client{Kind: Pod, Addr: addr("10.244.0.2")}, 80, Delivered, "allowed by rule 2 of NetworkPolicy shop/web"},
		{Client{Kind: Pod, Addr: addr("10.244.0.2")}, 81, Dropped, "forbidden: isolated by NetworkPolicy shop/web"},
		{Client{Kind: Outside, Addr: addr("192.0.2.1")}, 80, Dropped, "forbidden: isolated by NetworkPolicy shop/web"},
		{Client{Kind: Node, Addr: addr("198.18.0.2")}, 81, Delivered, "allowed: the pod's own node"},
	} {
		a := Decide(Question{From: c.from, To: netip.AddrPortFrom(addr("10.244.0.3"), c.port), Protocol: 6}, s)
		if a.Verdict != c.verdict || len(a.Backends) != 1 || a.Backends[0].Policy == nil || !strings.HasPrefix(a.Backends[0].Policy.Ingress, c.ingress) {
			t.Errorf("%+v: %s, %s, %+v", c, a.Verdict, a.Reason, a.Backends[0].Policy)
		}
		if c.verdict == Dropped && !strings.HasPrefix(a.Reason, "drop_policy_ingress: forbidden") {
			t.Errorf("%+v: reason %q", c, a.Reason)
		}
	}
	if a := Decide(Question{From: Client{Kind: Pod, Addr: addr("10.244.0.2")}, To: netip.MustParseAddrPort("192.0.2.1:80"), Protocol: 6}, s); a.Backends[0].Policy.Egress != "allowed: no policy selects it" {
		t.Errorf("%+v", a.Backends[0].Policy)
	}
}
