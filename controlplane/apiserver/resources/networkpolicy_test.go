package resources

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func netpol(change func(*networkingv1.NetworkPolicySpec)) *networkingv1.NetworkPolicy {
	n := &networkingv1.NetworkPolicy{}
	change(&n.Spec)
	return n
}

func from(peers ...networkingv1.NetworkPolicyPeer) *networkingv1.NetworkPolicy {
	return netpol(func(s *networkingv1.NetworkPolicySpec) {
		s.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: peers}}
	})
}

func block(cidr string, except ...string) networkingv1.NetworkPolicyPeer {
	return networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: cidr, Except: except}}
}

func onPorts(ports ...networkingv1.NetworkPolicyPort) *networkingv1.NetworkPolicy {
	return netpol(func(s *networkingv1.NetworkPolicySpec) {
		s.Egress = []networkingv1.NetworkPolicyEgressRule{{Ports: ports}}
	})
}

func in(key string, values ...string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: key, Operator: metav1.LabelSelectorOpIn, Values: values}}}
}

func TestNetworkPolicies(t *testing.T) {
	number, name := func(n int32) *intstr.IntOrString { return ptr(intstr.FromInt32(n)) }, func(s string) *intstr.IntOrString { return ptr(intstr.FromString(s)) }
	for what, test := range map[string]struct {
		obj  *networkingv1.NetworkPolicy
		want []string
	}{
		"nothing said":         {netpol(func(*networkingv1.NetworkPolicySpec) {}), nil},
		"empty rules":          {netpol(func(s *networkingv1.NetworkPolicySpec) { s.Ingress = make([]networkingv1.NetworkPolicyIngressRule, 2) }), nil},
		"every kind of port":   {onPorts(networkingv1.NetworkPolicyPort{}, networkingv1.NetworkPolicyPort{Protocol: ptr(corev1.ProtocolSCTP), Port: name("web")}, networkingv1.NetworkPolicyPort{Port: number(1), EndPort: ptr(int32(65535))}, networkingv1.NetworkPolicyPort{Port: number(80), EndPort: ptr(int32(80))}), nil},
		"port 0":               {onPorts(networkingv1.NetworkPolicyPort{Port: number(0)}), []string{"spec.egress[0].ports[0].port: Invalid value"}},
		"port 65536":           {onPorts(networkingv1.NetworkPolicyPort{Port: number(65536)}), []string{"spec.egress[0].ports[0].port: Invalid value"}},
		"a name that is none":  {onPorts(networkingv1.NetworkPolicyPort{Port: name("Web_1")}), []string{"spec.egress[0].ports[0].port: Invalid value"}},
		"an empty name":        {onPorts(networkingv1.NetworkPolicyPort{Port: name("")}), []string{"spec.egress[0].ports[0].port: Invalid value", "spec.egress[0].ports[0].port: Invalid value"}},
		"ICMP":                 {onPorts(networkingv1.NetworkPolicyPort{Protocol: ptr(corev1.Protocol("ICMP"))}), []string{"spec.egress[0].ports[0].protocol: Unsupported value"}},
		"tcp":                  {onPorts(networkingv1.NetworkPolicyPort{Protocol: ptr(corev1.Protocol("tcp"))}), []string{"spec.egress[0].ports[0].protocol: Unsupported value"}},
		"an end alone":         {onPorts(networkingv1.NetworkPolicyPort{EndPort: ptr(int32(5))}), []string{"spec.egress[0].ports[0].endPort: Invalid value"}},
		"an end of a name":     {onPorts(networkingv1.NetworkPolicyPort{Port: name("web"), EndPort: ptr(int32(5))}), []string{"spec.egress[0].ports[0].endPort: Invalid value"}},
		"an end before":        {onPorts(networkingv1.NetworkPolicyPort{Port: number(9), EndPort: ptr(int32(8))}), []string{"spec.egress[0].ports[0].endPort: Invalid value"}},
		"an end beyond":        {onPorts(networkingv1.NetworkPolicyPort{Port: number(9), EndPort: ptr(int32(65536))}), []string{"spec.egress[0].ports[0].endPort: Invalid value"}},
		"every kind of peer":   {from(networkingv1.NetworkPolicyPeer{PodSelector: in("a", "b")}, networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{}, NamespaceSelector: &metav1.LabelSelector{}}, block("10.0.0.0/8", "10.1.0.0/16"), block("::/0", "fd00::/8")), nil},
		"no peer":              {from(networkingv1.NetworkPolicyPeer{}), []string{"spec.ingress[0].from[0]: Required value"}},
		"a block and pods":     {from(networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: "10.0.0.0/8"}, PodSelector: &metav1.LabelSelector{}}), []string{"spec.ingress[0].from[0]: Forbidden"}},
		"no cidr":              {from(block("", "10.0.0.0/8")), []string{"spec.ingress[0].from[0].ipBlock.cidr: Required value"}},
		"33 bits":              {from(block("10.0.0.0/33", "x")), []string{"spec.ingress[0].from[0].ipBlock.cidr: Invalid value"}},
		"bits behind the mask": {from(block("10.0.0.1/8")), []string{"spec.ingress[0].from[0].ipBlock.cidr: Invalid value"}},
		"no length":            {from(block("10.0.0.1")), []string{"spec.ingress[0].from[0].ipBlock.cidr: Invalid value"}},
		"mapped":               {from(block("::ffff:10.0.0.0/104")), []string{"spec.ingress[0].from[0].ipBlock.cidr: Invalid value"}},
		"except all":           {from(block("10.0.0.0/8", "10.0.0.0/8")), []string{"spec.ingress[0].from[0].ipBlock.except[0]: Invalid value"}},
		"except elsewhere":     {from(block("10.0.0.0/8", "10.1.0.0/16", "192.168.0.0/16")), []string{"spec.ingress[0].from[0].ipBlock.except[1]: Invalid value"}},
		"except more":          {from(block("10.0.0.0/8", "0.0.0.0/0")), []string{"spec.ingress[0].from[0].ipBlock.except[0]: Invalid value"}},
		"except of the other family": {from(block("0.0.0.0/0", "fd00::/8"), block("::/0", "10.0.0.0/8")),
			[]string{"spec.ingress[0].from[0].ipBlock.except[0]: Invalid value", "spec.ingress[0].from[1].ipBlock.except[0]: Invalid value"}},
		"except rubbish": {from(block("10.0.0.0/8", "x")), []string{"spec.ingress[0].from[0].ipBlock.except[0]: Invalid value"}},
		"both kinds of types and one more": {netpol(func(s *networkingv1.NetworkPolicySpec) {
			s.PolicyTypes = []networkingv1.PolicyType{"Ingress", "Egress", "Ingress"}
		}), []string{"spec.policyTypes: Invalid value"}},
		"a type that is none": {netpol(func(s *networkingv1.NetworkPolicySpec) { s.PolicyTypes = []networkingv1.PolicyType{"Both", ""} }),
			[]string{"spec.policyTypes[0]: Unsupported value", "spec.policyTypes[1]: Unsupported value"}},
		"the subject's selector": {netpol(func(s *networkingv1.NetworkPolicySpec) { s.PodSelector = *in("a") }), []string{"spec.podSelector.matchExpressions[0].values: Required value"}},
		"values of labels":       {netpol(func(s *networkingv1.NetworkPolicySpec) { s.PodSelector = *in("a", "-b-") }), []string{"spec.podSelector.matchExpressions[0].values[0]: Invalid value"}},
		"matchLabels":            {netpol(func(s *networkingv1.NetworkPolicySpec) { s.PodSelector.MatchLabels = map[string]string{"a": "b c"} }), []string{"spec.podSelector.matchLabels: Invalid value"}},
		"peers' selectors": {from(networkingv1.NetworkPolicyPeer{PodSelector: in("a/b/c", "d"), NamespaceSelector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "k", Operator: "Like"}}}}),
			[]string{"spec.ingress[0].from[0].podSelector.matchExpressions[0].key: Invalid value", "spec.ingress[0].from[0].namespaceSelector.matchExpressions[0].operator: Invalid value"}},
	} {
		t.Run(what, func(t *testing.T) { refused(t, test.obj, test.want...) })
	}
}

// What an older server took may stay, and be changed elsewhere; nothing new of the kind may come.
func TestNetworkPolicyUpdates(t *testing.T) {
	r := of(t, &networkingv1.NetworkPolicy{})
	old := from(block("10.0.0.1/8", "010.1.0.0/16"), networkingv1.NetworkPolicyPeer{PodSelector: in("a", "b c")})
	same := old.DeepCopy()
	same.Spec.PolicyTypes = []networkingv1.PolicyType{"Ingress"}
	if errs := r.Revalidate(same, old); len(errs) > 0 {
		t.Errorf("what was there is refused: %v", errs.ToAggregate())
	}
	worse := from(block("10.0.0.2/8"))
	if got := told(r.Revalidate(worse, old)); !slices.Equal(got, []string{"spec.ingress[0].from[0].ipBlock.cidr: Invalid value"}) {
		t.Errorf("what is new: %v", got)
	}
	if got := told(r.Revalidate(old, worse)); len(got) != 2 {
		t.Errorf("what is new: %v", got)
	}
}

func TestNetworkPolicyWarnings(t *testing.T) {
	got := of(t, &networkingv1.NetworkPolicy{}).Warn(from(block("fd00:0::/64", "fd00::0/96"), block("10.0.0.0/8")))
	if len(got) != 2 || !strings.Contains(got[0], "spec.ingress[0].from[0].ipBlock.cidr") || !strings.Contains(got[1], "ipBlock.except[0]") {
		t.Errorf("warnings %q", got)
	}
}
