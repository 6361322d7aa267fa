package reference

import (
	"testing"

	"github.com/strake-io/strake/netpol/mutants"
)

// seeded are faults that others had, or that are easily made. The tests of the facts must notice each.
var seeded = [][3]string{
	// NetworkPolicy
	{"networkpolicy.go", "p.first <= q.Port && q.Port <= p.last", "p.first <= q.Port && q.Port < p.last"},
	{"networkpolicy.go", "p.first <= q.Port && q.Port <= p.last", "p.first == q.Port"},
	{"networkpolicy.go", "c.name == name && c.protocol == q.Protocol &&", "c.name == name &&"},
	{"networkpolicy.go", "&& c.number == int32(q.Port)", ""},
	{"networkpolicy.go", "if p.protocol != 0 && p.protocol != q.Protocol {\n\t\treturn false", "if false {\n\t\treturn false"},
	{"networkpolicy.go", "if !p.valid {", "if false {"},
	{"networkpolicy.go", "return !slices.ContainsFunc(b.except", "return true || !slices.ContainsFunc(b.except"},
	{"networkpolicy.go", "b.cidr.Bits() == 0 && b.cidr.Addr().Is6() == other.v6", "b.cidr.Bits() == 0"},
	{"networkpolicy.go", "b.cidr.Bits() == 0 && b.cidr.Addr().Is6() == other.v6", "false"},
	{"networkpolicy.go", "if p.Namespace != s.own {", "if false {"},
	{"networkpolicy.go", "return s.pods.Matches(p.labels)", "return true"},
	{"networkpolicy.go", "!s.namespaces.Matches(p.namespace)", "false"},
	{"networkpolicy.go", "matchesPorts(r, q) && matchesPeers(r, other)", "matchesPeers(r, other)"},
	{"networkpolicy.go", "matchesPorts(r, q) && matchesPeers(r, other)", "matchesPorts(r, q)"},
	{"networkpolicy.go", "matchesPorts(r, q) && matchesPeers(r, other)", "(matchesPeers(r, other) || matchesPorts(r, q))"},
	{"networkpolicy.go", "if p.ref.Namespace != s.Namespace {", "if false {"},
	{"networkpolicy.go", "return p.pods == nil || p.pods.Matches(s.labels)", "return p.pods != nil && p.pods.Matches(s.labels)"},
	{"networkpolicy.go", "return p.pods == nil || p.pods.Matches(s.labels)", "return true"},
	{"networkpolicy.go", "if !p.isolates[d] {", "if false {"},
	{"networkpolicy.go", "p.shadow && withShadow == 0", "false"},
	{"read.go", "return d == netpol.Ingress || len(p.Spec.Egress) > 0", "return d == netpol.Ingress || p.Spec.Egress != nil"},
	{"read.go", "return d == netpol.Ingress || len(p.Spec.Egress) > 0", "return d == netpol.Ingress"},
	{"read.go", "return d == netpol.Ingress || len(p.Spec.Egress) > 0", "return true"},
	{"read.go", "if !appliesTo(p, d) {", "if false {"},
	{"read.go", "anyPeer: len(peers) == 0, anyPort: len(ports) == 0", "anyPeer: peers == nil, anyPort: len(ports) == 0"},
	{"read.go", "anyPeer: len(peers) == 0, anyPort: len(ports) == 0", "anyPeer: len(peers) == 0, anyPort: ports == nil"},
	{"read.go", "protocol: netpol.TCP, first: 0, last: 65535", "protocol: 0, first: 0, last: 65535"},
	{"read.go", "out.rules = [2][]rule{}", ""},
	{"read.go", "out = [2]bool{true, true}", ""},
	{"read.go", "x.Bits() <= cidr.Bits()", "x.Bits() < cidr.Bits()"},
	{"read.go", "ok = ok && good", "_ = good"},
	{"read.go", "cmp.Compare(a.priority, b.priority)", "cmp.Compare(b.priority, a.priority)"},
	{"read.go", "cmp.Compare(a.priority, b.priority)", "0"},
	{"read.go", "if p.PodSelector != nil || p.NamespaceSelector != nil {", "if false {"},
	// Who is who
	{"cluster.go", "if p.hostNetwork || p.ended != \"\" {", "if p.ended != \"\" {"},
	{"cluster.go", "if p.hostNetwork || p.ended != \"\" {", "if p.hostNetwork {"},
	{"cluster.go", "phase == corev1.PodSucceeded || phase == corev1.PodFailed", "phase == corev1.PodSucceeded"},
	{"cluster.go", "if found.hostNetwork {", "if false {"},
	{"cluster.go", "out[corev1.LabelMetadataName] = name", ""},
	{"cluster.go", "*c.RestartPolicy == corev1.ContainerRestartPolicyAlways", "true"},
	{"cluster.go", "e.Addr.Unmap().WithZone(\"\")", "e.Addr.WithZone(\"\")"},
	{"cluster.go", "return a.created > b.created", "return a.created < b.created"},
	{"cluster.go", "c.addDNS(s.DNSAddrs)", ""},
	// What is exempt
	{"evaluator.go", "if q.Forwarded || home == \"\" {", "if home == \"\" {"},
	{"evaluator.go", "if q.Forwarded || home == \"\" {", "if q.Forwarded {"},
	{"evaluator.go", "q.from.host != nil && q.from.host.node == home", "q.from.host != nil"},
	{"evaluator.go", "return q.from.pod == nil && e.hasAddress(home, q.from.addr)", "return false"},
	{"evaluator.go", "return q.from.pod == nil && e.hasAddress(home, q.from.addr)", "return len(q.from.nodes) > 0"},
	{"evaluator.go", "q.from.pod == q.to.pod && !q.ViaService", "q.from.pod == q.to.pod"},
	{"evaluator.go", "q.from.pod == q.to.pod && !q.ViaService", "false"},
	{"evaluator.go", "if q.ViaService && q.from.guarded() && q.from.pod == q.to.pod {", "if false {"},
	{"evaluator.go", "if q.ViaService && q.from.guarded() && q.from.pod == q.to.pod {", "if q.ViaService {"},
	{"evaluator.go", "if netpol.PassesAlways(q.Protocol, q.ICMPType, q.from.guarded()) {", "if false {"},
	{"evaluator.go", "q.ICMPType, q.from.guarded()", "q.ICMPType, false"},
	{"evaluator.go", "case p.pod.dns:", "case false:"},
	// ClusterNetworkPolicy
	{"evaluator.go", "return nil, name + \" passes it; \"", "continue"},
	{"evaluator.go", "if p.shadow && !q.shadow {", "if false {"},
	{"clusternetworkpolicy.go", "return deny, r.action != accept\n\t}\n\t// CNP", "return r.action, false\n\t}\n\t// CNP"},
	{"clusternetworkpolicy.go", "return deny, r.action != accept\n\t}\n\t// CNP", "return deny, true\n\t}\n\t// CNP"},
	{"clusternetworkpolicy.go", "if r.noAccept {", "if false {"},
	{"clusternetworkpolicy.go", "!matchesPorts(&r.rule, q) || !matchesPeers(&r.rule, other)", "!matchesPeers(&r.rule, other)"},
	{"clusternetworkpolicy.go", "return p.subject == nil || p.subject.selects(s)", "return p.subject != nil && p.subject.selects(s)"},
	{"clusternetworkpolicy.go", "if nodes.Matches(n.labels) {", "if n != nil {"},
	{"readcluster.go", "p.Range.Start >= p.Range.End", "p.Range.Start > p.Range.End"},
	{"readcluster.go", "case set != 1:", "case set == 0:"},
	{"readcluster.go", "if peers == 0 {", "if false {"},
	{"readcluster.go", "if outside && proto.DestinationNamedPort", "if false && proto.DestinationNamedPort"},
	{"readcluster.go", "case len(f.domainNames) > 0:", "case false:"},
	{"readcluster.go", "return out, p.Spec.Tier == policyv1alpha2.BaselineTier", "return out, p.Spec.Tier != policyv1alpha2.AdminTier"},
}

func TestMutants(t *testing.T) { mutants.Try(t, seeded, "-skip", "Mutants|Fuzz|Order|More|Open", ".") }
