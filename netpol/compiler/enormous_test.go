package compiler

import (
	"fmt"
	"net/netip"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/netpol"
)

// TestEnormous: policies as large as the API takes objects (1.5 MB) cost rows that grow no faster than they do.
func TestEnormous(t *testing.T) {
	ask := netip.MustParseAddr("10.0.0.1")
	for _, what := range []struct {
		name  string
		rules func() []networkingv1.NetworkPolicyIngressRule
		from  string
		port  uint16
	}{
		{"blocks", func() []networkingv1.NetworkPolicyIngressRule {
			var rule networkingv1.NetworkPolicyIngressRule
			for i := range 30_000 {
				rule.From = append(rule.From, networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: fmt.Sprintf("11.%d.%d.%d/32", i>>14, i>>6&255, i<<2&255)}})
			}
			return []networkingv1.NetworkPolicyIngressRule{rule}
		}, "11.0.0.4", 80},
		{"excepted blocks", func() []networkingv1.NetworkPolicyIngressRule {
			block := &networkingv1.IPBlock{CIDR: "11.0.0.0/8"}
			for i := range 40_000 {
				block.Except = append(block.Except, fmt.Sprintf("11.%d.%d.%d/32", i>>14, i>>6&255, i<<2&255))
			}
			return []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{IPBlock: block}}}}
		}, "11.0.0.5", 80},
		{"rules", func() []networkingv1.NetworkPolicyIngressRule {
			var rules []networkingv1.NetworkPolicyIngressRule
			for i := range 70_000 {
				number := intstr.FromInt(1 + i%3000)
				rules = append(rules, networkingv1.NetworkPolicyIngressRule{Ports: []networkingv1.NetworkPolicyPort{{Port: &number}}})
			}
			return rules
		}, "192.0.2.1", 3000},
		{"ranges", func() []networkingv1.NetworkPolicyIngressRule {
			var rules []networkingv1.NetworkPolicyIngressRule
			for i := range 2_000 {
				number, end := intstr.FromInt(1+i), int32(65000-i)
				rules = append(rules, networkingv1.NetworkPolicyIngressRule{Ports: []networkingv1.NetworkPolicyPort{{Port: &number, EndPort: &end}}})
			}
			return rules
		}, "192.0.2.1", 64999},
		{"values", func() []networkingv1.NetworkPolicyIngressRule {
			s := &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app", Operator: metav1.LabelSelectorOpIn}}}
			for i := range 100_000 {
				s.MatchExpressions[0].Values = append(s.MatchExpressions[0].Values, fmt.Sprint("app-", i))
			}
			s.MatchExpressions[0].Values = append(s.MatchExpressions[0].Values, "client")
			return []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{PodSelector: s}}}}
		}, "10.0.0.2", 80},
	} {
		c := New(Options{})
		c.SetPod(plainPod("server", ask.String(), map[string]string{"app": "server"}))
		c.SetPod(plainPod("client", "10.0.0.2", map[string]string{"app": "client"}))
		c.SetNetworkPolicy(&networkingv1.NetworkPolicy{
			ObjectMeta: metav1.ObjectMeta{Namespace: "alpha", Name: what.name},
			Spec:       networkingv1.NetworkPolicySpec{PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "server"}}, Ingress: what.rules()},
		})
		c.Flush()
		rows := c.Rows()
		if n := len(rows.Answers) + len(rows.Ports) + len(rows.Peers); n > 45_000 {
			t.Errorf("%s: %d rows", what.name, n)
		}
		tables := Interpret(rows)
		if d := tables.Judge(bpf.PolicyQuery{From: netip.MustParseAddr(what.from), To: ask, Protocol: netpol.TCP, Port: what.port}); !d.Allowed {
			t.Errorf("%s: %+v", what.name, d.Ingress)
		}
		if d := tables.Judge(bpf.PolicyQuery{From: netip.MustParseAddr("11.0.0.8"), To: ask, Protocol: netpol.TCP, Port: 65535}); d.Allowed != (what.name == "blocks") {
			t.Errorf("%s: %+v", what.name, d.Ingress)
		}
	}
}
