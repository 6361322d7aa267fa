package compiler

import (
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/netpol"
)

// rowByRow is a cluster whose changes are written one row at a time.
type rowByRow struct {
	*testing.T
	*Compiler
	tables *Tables
	addrs  map[string]netip.Addr
}

func newRowByRow(t *testing.T) *rowByRow {
	return &rowByRow{t, New(Options{}), Interpret(bpf.PolicyRows{}), map[string]netip.Addr{}}
}

// pod makes the pod of a namespace that is called as it is.
func (l *rowByRow) pod(namespace, addr string) {
	p := plainPod(namespace, addr, nil)
	p.Namespace = namespace
	p.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 8080}}}}
	l.SetPod(p)
	l.addrs[namespace] = netip.MustParseAddr(addr)
}

func (l *rowByRow) team(namespace, team string) {
	n := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}
	if team != "" {
		n.Labels = map[string]string{"team": team}
	}
	l.SetNamespace(n)
}

// policy makes a policy of all pods of a namespace.
func (l *rowByRow) policy(namespace, name, spec string) {
	l.Helper()
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(namespace + name)}}
	if err := yaml.UnmarshalStrict([]byte(spec), &p.Spec); err != nil {
		l.Fatal(err)
	}
	l.SetNetworkPolicy(p)
}

func (l *rowByRow) allowed(from, to string, port uint16) bool {
	return l.tables.Judge(bpf.PolicyQuery{From: l.addrs[from], To: l.addrs[to], Protocol: netpol.TCP, Port: port}).Allowed
}

// write makes all changes, and looks behind each row.
func (l *rowByRow) write(look func()) {
	for _, change := range l.Flush() {
		for _, write := range single(change) {
			l.tables.Apply(write)
			look()
		}
	}
}

var orders = [][3]string{{"10.0.0.1", "10.0.0.2", "10.0.0.3"}, {"10.0.0.3", "10.0.0.2", "10.0.0.1"}, {"10.0.0.2", "10.0.0.1", "10.0.0.3"}, {"10.0.0.2", "10.0.0.3", "10.0.0.1"}}

// TestNamespacesGetLabelsAtOnce: who asks was nobody to those that serve, and becomes somebody, while those that serve become nobody to who asks. In neither state both ends allow
// it, nor in any moment between.
func TestNamespacesGetLabelsAtOnce(t *testing.T) {
	for _, addrs := range orders {
		l := newRowByRow(t)
		l.pod("asks", addrs[0])
		l.pod("serves", addrs[1])
		l.team("asks", "")
		l.team("serves", "c")
		l.policy("asks", "out", `{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {team: c}}}]}]}`)
		l.policy("serves", "in", `{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: b}}}]}]}`)
		l.write(func() {})
		for _, teams := range [][2]string{{"b", "d"}, {"", "c"}} {
			l.team("asks", teams[0])
			l.team("serves", teams[1])
			l.write(func() {
				if l.allowed("asks", "serves", 80) {
					t.Fatalf("%v: allowed on the way to teams %q", addrs, teams)
				}
			})
		}
		l.team("asks", "b")
		if l.write(func() {}); !l.allowed("asks", "serves", 80) {
			t.Error("both ends allow it, and it is denied")
		}
	}
}

// TestNamespacesSwapTeams: what a namespace may get from whom changes both ways when the labels of others do. Who has the same labels all the while has the same all the while,
// though others come to have them, too.
func TestNamespacesSwapTeams(t *testing.T) {
	for _, addrs := range orders {
		l := newRowByRow(t)
		l.pod("moves", addrs[0])
		l.pod("stays", addrs[1])
		l.pod("serves", addrs[2])
		l.team("moves", "a")
		l.team("stays", "b")
		l.team("serves", "c")
		l.policy("moves", "out", `{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {team: c}}}], ports: [{port: 81}]}, {to: [{namespaceSelector: {matchLabels: {team: d}}}], ports: [{port: 80}]}]}`)
		l.policy("serves", "in", `{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: a}}}], ports: [{port: 80}]}, {from: [{namespaceSelector: {matchLabels: {team: b}}}], ports: [{port: 81}]}]}`)
		l.write(func() {})
		for _, teams := range [][2]string{{"b", "d"}, {"a", "c"}} {
			l.team("moves", teams[0])
			l.team("serves", teams[1])
			l.write(func() {
				if l.allowed("moves", "serves", 80) || l.allowed("moves", "serves", 81) {
					t.Fatalf("%v: allowed on the way to teams %q", addrs, teams)
				}
				if !l.allowed("stays", "serves", 81) || l.allowed("stays", "serves", 80) {
					t.Fatalf("%v: who stays is judged otherwise on the way to teams %q", addrs, teams)
				}
			})
		}
	}
}

// TestNamesThatAreKnown: a rule set that is new, and asks for a name of ports that others have asked for, answers for the pods that have it.
func TestNamesThatAreKnown(t *testing.T) {
	l := newRowByRow(t)
	l.pod("asks", "10.0.0.1")
	l.pod("serves", "10.0.0.2")
	l.policy("serves", "out", `{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: web}]}]}`)
	l.write(func() {})
	l.policy("asks", "out", `{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: web}]}]}`)
	l.write(func() {})
	if !l.allowed("asks", "serves", 8080) || l.allowed("asks", "serves", 8081) {
		t.Errorf("8080, which is called web: %v; 8081: %v", l.allowed("asks", "serves", 8080), l.allowed("asks", "serves", 8081))
	}
}
