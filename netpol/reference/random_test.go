package reference

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/strake-io/strake/netpol"
)

// chance makes random policies of the world: small alphabets, so that much meets. With rubbish, some of what it makes is invalid.
type chance struct {
	*rand.Rand
	rubbish bool
}

func pick[T any](c chance, from ...T) T { return from[c.IntN(len(from))] }

func (c chance) odds(n int) bool { return c.IntN(n) == 0 }

func (c chance) selector(key string, values ...string) metav1.LabelSelector {
	switch c.IntN(6) {
	case 0:
		return metav1.LabelSelector{}
	case 1, 2:
		return metav1.LabelSelector{MatchLabels: map[string]string{key: pick(c, values...)}}
	case 3:
		return metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: pick(c, key, "none"), Operator: pick(c, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist)}}}
	case 4:
		if c.rubbish {
			return metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: key, Operator: pick(c, metav1.LabelSelectorOpIn, "Like", ""), Values: []string{"no value!"}[:c.IntN(2)]}}}
		}
	}
	return metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: key, Operator: pick(c, metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn), Values: values[:1+c.IntN(len(values))]}}}
}

func (c chance) pods() metav1.LabelSelector       { return c.selector("pod", "a", "b", "c") }
func (c chance) namespaces() metav1.LabelSelector { return c.selector("ns", "x", "u", "z") }

func (c chance) cidr() string {
	if c.rubbish && c.odds(5) {
		return pick(c, "", "10.0.0.0", "10.0.0.0/33", "::ffff:10.0.0.0/104", "rubbish/8", "fe80::%1/64")
	}
	return pick(c, "0.0.0.0/0", "::/0", "10.0.0.0/8", "10.2.0.0/16", "10.1.0.2/32", "fd00::/16", "fd00:2::/32", "192.168.0.0/24", "192.168.0.1/32", "198.51.100.0/24")
}

func (c chance) networkPeer() networkingv1.NetworkPolicyPeer {
	var p networkingv1.NetworkPolicyPeer
	pods, spaces := c.pods(), c.namespaces()
	switch c.IntN(5) {
	case 0:
		p.PodSelector = &pods
	case 1:
		p.NamespaceSelector = &spaces
	case 2:
		p.PodSelector, p.NamespaceSelector = &pods, &spaces
	case 3:
		p.IPBlock = &networkingv1.IPBlock{CIDR: "10.0.0.0/8", Except: []string{pick(c, "10.2.0.0/16", "10.1.0.1/32")}}
	default:
		p.IPBlock = &networkingv1.IPBlock{CIDR: c.cidr()}
	}
	if c.rubbish && c.odds(6) {
		p = networkingv1.NetworkPolicyPeer{}
		if c.odds(2) {
			p.PodSelector, p.IPBlock = &pods, &networkingv1.IPBlock{CIDR: c.cidr(), Except: []string{c.cidr()}}
		}
	}
	return p
}

func (c chance) networkPort() networkingv1.NetworkPolicyPort {
	var p networkingv1.NetworkPolicyPort
	if c.odds(2) {
		proto := pick(c, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
		p.Protocol = &proto
	}
	switch c.IntN(4) {
	case 0:
	case 1:
		p.Port = &intstr.IntOrString{Type: intstr.String, StrVal: pick(c, "web", "dns", "other", "nowhere")}
	default:
		n := pick[int32](c, 80, 81, 53, 1)
		p.Port = &intstr.IntOrString{IntVal: n}
		if end := n + c.Int32N(100); c.odds(3) {
			p.EndPort = &end
		}
	}
	if c.rubbish && c.odds(6) {
		n, proto := pick[int32](c, -1, 0, 70000, 5), corev1.Protocol("ICMP")
		p.EndPort = &n
		if c.odds(2) {
			p.Protocol = &proto
		}
	}
	return p
}

func some[T any](c chance, most int, one func() T) []T {
	var out []T
	for range c.IntN(most + 1) {
		out = append(out, one())
	}
	return out
}

func (c chance) networkPolicy(i int) *networkingv1.NetworkPolicy {
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: pick(c, "x", "u", "z"), Name: fmt.Sprintf("np%d", i)}}
	p.Spec.PodSelector = c.pods()
	p.Spec.PolicyTypes = pick(c, nil, []networkingv1.PolicyType{"Ingress"}, []networkingv1.PolicyType{"Egress"}, []networkingv1.PolicyType{"Ingress", "Egress"})
	if c.rubbish && c.odds(8) {
		p.Spec.PolicyTypes = []networkingv1.PolicyType{"ingress"}
	}
	p.Spec.Ingress = some(c, 2, func() networkingv1.NetworkPolicyIngressRule {
		return networkingv1.NetworkPolicyIngressRule{From: some(c, 2, c.networkPeer), Ports: some(c, 2, c.networkPort)}
	})
	p.Spec.Egress = some(c, 2, func() networkingv1.NetworkPolicyEgressRule {
		return networkingv1.NetworkPolicyEgressRule{To: some(c, 2, c.networkPeer), Ports: some(c, 2, c.networkPort)}
	})
	if c.odds(8) {
		p.Annotations = map[string]string{netpol.ModeAnnotation: netpol.ModeShadow}
	}
	return p
}

func (c chance) protocol() policyv1alpha2.ClusterNetworkPolicyProtocol {
	port := &policyv1alpha2.Port{Number: pick[int32](c, 80, 81, 53)}
	if c.odds(3) {
		port = &policyv1alpha2.Port{Range: &policyv1alpha2.PortRange{Start: 1 + c.Int32N(80), End: 81 + c.Int32N(100)}}
	}
	if c.rubbish && c.odds(5) {
		port = pick(c, nil, &policyv1alpha2.Port{}, &policyv1alpha2.Port{Number: -1}, &policyv1alpha2.Port{Range: &policyv1alpha2.PortRange{Start: 9, End: 8}})
	}
	switch c.IntN(4) {
	case 0:
		return policyv1alpha2.ClusterNetworkPolicyProtocol{UDP: &policyv1alpha2.ClusterNetworkPolicyProtocolUDP{DestinationPort: port}}
	case 1:
		return policyv1alpha2.ClusterNetworkPolicyProtocol{SCTP: &policyv1alpha2.ClusterNetworkPolicyProtocolSCTP{DestinationPort: port}}
	case 2:
		return policyv1alpha2.ClusterNetworkPolicyProtocol{DestinationNamedPort: pick(c, "web", "dns", "")}
	}
	return policyv1alpha2.ClusterNetworkPolicyProtocol{TCP: &policyv1alpha2.ClusterNetworkPolicyProtocolTCP{DestinationPort: port}}
}

func (c chance) clusterPolicy(i int) *policyv1alpha2.ClusterNetworkPolicy {
	p := &policyv1alpha2.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("cnp%d", i)}}
	p.Spec.Tier, p.Spec.Priority = pick(c, policyv1alpha2.AdminTier, policyv1alpha2.BaselineTier), c.Int32N(4)
	pods := func() (*metav1.LabelSelector, *policyv1alpha2.NamespacedPod) {
		spaces := c.namespaces()
		if c.odds(2) {
			return &spaces, nil
		}
		return nil, &policyv1alpha2.NamespacedPod{NamespaceSelector: spaces, PodSelector: c.pods()}
	}
	action := func() policyv1alpha2.ClusterNetworkPolicyRuleAction {
		if c.rubbish && c.odds(8) {
			return "Allow"
		}
		return pick[policyv1alpha2.ClusterNetworkPolicyRuleAction](c, "Accept", "Deny", "Pass")
	}
	p.Spec.Subject.Namespaces, p.Spec.Subject.Pods = pods()
	if c.rubbish && c.odds(10) {
		p.Spec.Subject = policyv1alpha2.ClusterNetworkPolicySubject{}
	}
	if c.rubbish && c.odds(10) {
		p.Spec.Tier = "Middle"
	}
	p.Spec.Ingress = some(c, 2, func() policyv1alpha2.ClusterNetworkPolicyIngressRule {
		return policyv1alpha2.ClusterNetworkPolicyIngressRule{Action: action(), Protocols: some(c, 2, c.protocol), From: some(c, 2, func() (out policyv1alpha2.ClusterNetworkPolicyIngressPeer) {
			out.Namespaces, out.Pods = pods()
			return out
		})}
	})
	p.Spec.Egress = some(c, 2, func() policyv1alpha2.ClusterNetworkPolicyEgressRule {
		return policyv1alpha2.ClusterNetworkPolicyEgressRule{Action: action(), Protocols: some(c, 2, c.protocol), To: some(c, 2, func() (out policyv1alpha2.ClusterNetworkPolicyEgressPeer) {
			switch c.IntN(4) {
			case 0:
				out.Networks = []policyv1alpha2.CIDR{policyv1alpha2.CIDR(c.cidr())}
			case 1:
				nodes := c.selector("zone", "one", "two")
				out.Nodes = &nodes
			default:
				out.Namespaces, out.Pods = pods()
			}
			if c.rubbish && c.odds(8) {
				out.DomainNames = []policyv1alpha2.DomainName{"example.org"}
			}
			return out
		})}
	})
	return p
}

func (c chance) state() netpol.State {
	s := world()
	s.DNSAddrs = []netip.Addr{netip.MustParseAddr("10.96.0.10")}
	for i := range c.IntN(6) {
		s.NetworkPolicies = append(s.NetworkPolicies, c.networkPolicy(i))
	}
	for i := range c.IntN(4) {
		s.ClusterNetworkPolicies = append(s.ClusterNetworkPolicies, c.clusterPolicy(i))
	}
	if c.rubbish {
		p := pick(c, s.Pods...)
		switch c.IntN(5) {
		case 0:
			p.Status.PodIPs = nil
		case 1:
			p.Status.PodIPs = []corev1.PodIP{{IP: "rubbish"}, {}}
		case 2:
			p.Status.Phase = corev1.PodFailed
		case 3:
			p.Spec = corev1.PodSpec{HostNetwork: c.odds(2)}
		case 4:
			s.Namespaces, s.Nodes = nil, nil
		}
	}
	return s
}

func (c chance) end(s netpol.State) netpol.End {
	if c.odds(4) {
		return netpol.End{Addr: pick(c, netip.Addr{}, netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("192.168.0.1"), netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("::1"),
			netip.MustParseAddr("::ffff:10.1.0.1"), netip.MustParseAddr("fd00:2::2"), netip.MustParseAddr("fe80::1%eth0"))}
	}
	p := pick(c, s.Pods...)
	e := netpol.End{Pod: types.NamespacedName{Namespace: p.Namespace, Name: p.Name}}
	if c.odds(20) {
		e.Pod.Name = "nobody"
	}
	if c.odds(4) && len(p.Status.PodIPs) > 1 {
		e.Addr, _ = netip.ParseAddr(pick(c, p.Status.PodIPs...).IP)
	}
	return e
}

func (c chance) flow(s netpol.State) netpol.Flow {
	f := netpol.Flow{From: c.end(s), To: c.end(s), Protocol: pick[uint8](c, 6, 6, 17, 132, 1, 58, 50), Port: pick[uint16](c, 80, 81, 53, 8080, 0, 65535, 100)}
	f.ViaService, f.Forwarded, f.ICMPType = c.odds(4), c.odds(6), pick[uint8](c, 0, 0, 0, 3, 135)
	return f
}

// verdicts are verdicts of many flows, and errors as text.
func verdicts(t testing.TB, s netpol.State, flows []netpol.Flow) []netpol.Verdict {
	t.Helper()
	e, err := New(s)
	if err != nil {
		t.Fatal(err)
	}
	out := make([]netpol.Verdict, len(flows))
	for i, f := range flows {
		if out[i], err = e.Judge(f); err != nil {
			out[i].Egress.Why = err.Error()
		}
	}
	return out
}

func flowsOf(c chance, s netpol.State, n int) []netpol.Flow {
	out := make([]netpol.Flow, n)
	for i := range out {
		out[i] = c.flow(s)
	}
	return out
}

func TestTheOrderOfObjectsDoesNotMatter(t *testing.T) {
	for seed := range uint64(300) {
		c := chance{rand.New(rand.NewPCG(seed, 1)), seed%2 == 0}
		s := c.state()
		flows := flowsOf(c, s, 60)
		want := verdicts(t, s, flows)
		for _, list := range []any{s.NetworkPolicies, s.ClusterNetworkPolicies, s.Pods, s.Namespaces, s.Nodes} {
			rand.New(rand.NewPCG(seed, 2)).Shuffle(reflect.ValueOf(list).Len(), reflect.Swapper(list))
		}
		for i, got := range verdicts(t, s, flows) {
			if !reflect.DeepEqual(got, want[i]) {
				t.Fatalf("seed %d, %+v:\n%+v and in another order\n%+v", seed, flows[i], want[i], got)
			}
		}
	}
}

// A rule of a NetworkPolicy only ever opens: one more never closes what was open, and one less never opens.
func TestARuleMoreClosesNothing(t *testing.T) {
	opened := 0
	for seed := range uint64(400) {
		c := chance{rand.New(rand.NewPCG(seed, 3)), seed%2 == 0}
		s := c.state()
		var candidates []*networkingv1.NetworkPolicy // those in which a rule changes no default of policyTypes
		for _, p := range s.NetworkPolicies {
			if len(p.Spec.PolicyTypes) > 0 || len(p.Spec.Egress) > 0 {
				candidates = append(candidates, p)
			}
		}
		if len(candidates) == 0 {
			continue
		}
		flows := flowsOf(c, s, 80)
		before := verdicts(t, s, flows)
		p := pick(c, candidates...)
		p.Spec.Ingress = slices.Insert(p.Spec.Ingress, c.IntN(len(p.Spec.Ingress)+1), networkingv1.NetworkPolicyIngressRule{From: some(c, 2, c.networkPeer), Ports: some(c, 1, c.networkPort)})
		p.Spec.Egress = slices.Insert(p.Spec.Egress, c.IntN(len(p.Spec.Egress)+1), networkingv1.NetworkPolicyEgressRule{To: some(c, 2, c.networkPeer), Ports: some(c, 1, c.networkPort)})
		for i, after := range verdicts(t, s, flows) {
			if before[i].Allowed && !after.Allowed {
				t.Fatalf("seed %d, %+v: a rule more closes\n%+v\n%+v", seed, flows[i], before[i], after)
			}
			if !before[i].Allowed && after.Allowed {
				opened++
			}
		}
	}
	if opened < 50 {
		t.Errorf("the rules opened %d flows only: this proves little", opened)
	}
}

// A policy of rubbish never opens, but where a NetworkPolicy's being there is what opens: a pod that gets itself by a Service, which the Baseline tier denied.
func TestProblemsOpenNothing(t *testing.T) {
	closed := 0
	for seed := range uint64(400) {
		c := chance{rand.New(rand.NewPCG(seed, 4)), false}
		s := c.state()
		flows := flowsOf(c, s, 60)
		before := verdicts(t, s, flows)
		bad := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: pick(c, "x", "u", "z"), Name: "bad"}}
		bad.Spec.PolicyTypes = []networkingv1.PolicyType{"Ingress", "Egress"}
		bad.Spec.PodSelector = metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "pod", Operator: "Like"}}}
		bad.Spec.Ingress, bad.Spec.Egress = make([]networkingv1.NetworkPolicyIngressRule, 1), make([]networkingv1.NetworkPolicyEgressRule, 1)
		s.NetworkPolicies = append(s.NetworkPolicies, bad)
		for i, after := range verdicts(t, s, flows) {
			if before[i].Allowed && !after.Allowed {
				closed++
			}
			if !before[i].Allowed && after.Allowed && !flows[i].ViaService {
				t.Fatalf("seed %d, %+v: opened\n%+v\n%+v", seed, flows[i], before[i], after)
			}
		}
	}
	if closed < 100 {
		t.Errorf("%d flows were closed only: this proves little", closed)
	}
}

func FuzzJudge(f *testing.F) {
	for seed := range uint64(8) {
		f.Add(seed, seed%2 == 0)
	}
	f.Fuzz(func(t *testing.T, seed uint64, rubbish bool) {
		c := chance{rand.New(rand.NewPCG(seed, 5)), rubbish}
		s := c.state()
		e, err := New(s)
		if err != nil {
			t.Fatal(err)
		}
		for range 50 {
			fl := c.flow(s)
			for _, judge := range []func(netpol.Flow) (netpol.Verdict, error){e.Judge, e.JudgeShadow} {
				v, err := judge(fl)
				if err != nil {
					if !reflect.DeepEqual(v, netpol.Verdict{}) {
						t.Errorf("seed %d, %+v: an error and a verdict: %+v", seed, fl, v)
					}
					continue
				}
				for _, side := range []netpol.Side{v.Egress, v.Ingress} {
					if side.Why == "" || (side.Tier == netpol.TierNone) != (side.Policy == nil) || side.Tier == netpol.TierNone && !side.Allowed ||
						(len(side.Isolating) > 0) != (side.Tier == netpol.TierNetworkPolicy) || side.Rule != netpol.NoRule && side.Policy == nil {
						t.Errorf("seed %d, %+v: a verdict that contradicts itself: %+v", seed, fl, side)
					}
				}
				if v.Allowed != (v.Egress.Allowed && v.Ingress.Allowed) {
					t.Errorf("seed %d, %+v: %+v", seed, fl, v)
				}
			}
		}
	})
}
