package reference

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"
	"sigs.k8s.io/yaml"

	"github.com/strake-io/strake/netpol"
)

// The world of the tests: namespaces x, u, z (label ns=their name) with pods a, b, c (label pod=their name) each, with addresses of both families:
// x/a is 10.1.0.1 and fd00:1::1, z/c is 10.3.0.3 and fd00:3::3. Pods a and c are on node n1 (192.168.0.1, fd00:f::1; label zone=one), b on n2. Every
// pod has the ports web (80/TCP, but 8080 on b), dns (53/UDP), other (81/TCP) and stream (80/SCTP). x/host and u/host are hostNetwork pods on n1 and n2.
func world() netpol.State {
	var s netpol.State
	for i, ns := range []string{"x", "u", "z"} {
		s.Namespaces = append(s.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns, Labels: map[string]string{"ns": ns}}})
		for j, name := range []string{"a", "b", "c"} {
			node, web := "n1", int32(80)
			if name == "b" {
				node, web = "n2", 8080
			}
			s.Pods = append(s.Pods, &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, Labels: map[string]string{"pod": name}},
				Spec: corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "main", Ports: []corev1.ContainerPort{
					{Name: "web", ContainerPort: web}, {Name: "dns", ContainerPort: 53, Protocol: corev1.ProtocolUDP}}}, {Name: "second", Ports: []corev1.ContainerPort{
					{Name: "other", ContainerPort: 81, Protocol: corev1.ProtocolTCP}, {Name: "stream", ContainerPort: 80, Protocol: corev1.ProtocolSCTP}}}}},
				Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: fmt.Sprintf("10.%d.0.%d", i+1, j+1)}, {IP: fmt.Sprintf("fd00:%d::%d", i+1, j+1)}}},
			})
		}
	}
	for i, zone := range []string{"one", "two"} {
		name, addrs := fmt.Sprintf("n%d", i+1), []string{fmt.Sprintf("192.168.0.%d", i+1), fmt.Sprintf("fd00:f::%d", i+1)}
		s.Nodes = append(s.Nodes, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"zone": zone}},
			Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: name}, {Type: corev1.NodeInternalIP, Address: addrs[0]}, {Type: corev1.NodeInternalIP, Address: addrs[1]}}}})
		s.Pods = append(s.Pods, &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: []string{"x", "u"}[i], Name: "host", Labels: map[string]string{"pod": "host"}},
			Spec:       corev1.PodSpec{NodeName: name, HostNetwork: true, Containers: []corev1.Container{{Name: "main", Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 80}}}}},
			Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: addrs[0]}, {IP: addrs[1]}}},
		})
	}
	return s
}

// with adds policies to a state. They are written as YAML documents, short: "name: NS/NAME" (NetworkPolicy) or "name: NAME" (ClusterNetworkPolicy) beside the fields of spec.
func with(t *testing.T, s netpol.State, manifests ...string) netpol.State {
	t.Helper()
	for _, m := range manifests {
		for doc := range strings.SplitSeq(m, "\n---\n") {
			var head struct {
				Name        string            `json:"name"`
				Annotations map[string]string `json:"annotations"`
			}
			if err := yaml.Unmarshal([]byte(doc), &head); err != nil || head.Name == "" {
				t.Fatalf("manifest %s: %v", doc, err)
			}
			ns, name, namespaced := strings.Cut(head.Name, "/")
			if namespaced {
				p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, Annotations: head.Annotations}}
				if err := yaml.Unmarshal([]byte(doc), &p.Spec); err != nil {
					t.Fatalf("manifest %s: %v", doc, err)
				}
				s.NetworkPolicies = append(s.NetworkPolicies, p)
				continue
			}
			p := &policyv1alpha2.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: ns, Annotations: head.Annotations}}
			if err := yaml.Unmarshal([]byte(doc), &p.Spec); err != nil {
				t.Fatalf("manifest %s: %v", doc, err)
			}
			s.ClusterNetworkPolicies = append(s.ClusterNetworkPolicies, p)
		}
	}
	return s
}

func podOf(s netpol.State, name string) *corev1.Pod {
	for _, p := range s.Pods {
		if p.Namespace+"/"+p.Name == name {
			return p
		}
	}
	panic("no pod " + name)
}

// judge is an evaluator of a test, which holds answers against it.
type judge struct {
	t *testing.T
	s netpol.State
	e *Evaluator
}

// in makes a judge of the world with policies. They must have no problems.
func in(t *testing.T, manifests ...string) judge {
	t.Helper()
	j := of(t, with(t, world(), manifests...))
	for _, p := range j.e.Problems() {
		t.Errorf("problem: %s", p)
	}
	return j
}

func of(t *testing.T, s netpol.State) judge {
	t.Helper()
	e, err := New(s)
	if err != nil {
		t.Fatal(err)
	}
	return judge{t, s, e}
}

func (j judge) allows(from, to, port string) { j.t.Helper(); j.says(true, from, to, port) }
func (j judge) denies(from, to, port string) { j.t.Helper(); j.says(false, from, to, port) }

// says asks in every way in which the flow can be meant: between pods, in both families, by name and by address.
func (j judge) says(allowed bool, from, to, port string) {
	j.t.Helper()
	for _, f := range j.flows(from, to, port) {
		if v := j.verdict(f); v.Allowed != allowed {
			j.t.Errorf("%s -> %s %s (%v): allowed %v, must be %v\n  egress: %s\n  ingress: %s", from, to, port, f, v.Allowed, allowed, v.Egress.Why, v.Ingress.Why)
		}
	}
}

func (j judge) verdict(f netpol.Flow) netpol.Verdict {
	j.t.Helper()
	v, err := j.e.Judge(f)
	if err != nil {
		j.t.Fatalf("%v: %v", f, err)
	}
	if v.Allowed != (v.Egress.Allowed && v.Ingress.Allowed) || v.Egress.Why == "" || v.Ingress.Why == "" {
		j.t.Errorf("%v: a verdict that contradicts itself: %+v", f, v)
	}
	return v
}

func (j judge) one(from, to, port string) netpol.Verdict {
	j.t.Helper()
	return j.verdict(flow(end(from), end(to), port))
}

func (j judge) flows(from, to, port string) []netpol.Flow {
	out := []netpol.Flow{flow(end(from), end(to), port)}
	a, b := j.addrs(from), j.addrs(to)
	for _, x := range a {
		for _, y := range b {
			if x.Addr.Is6() == y.Addr.Is6() {
				out = append(out, flow(x, y, port))
				if !j.host(from) && !j.host(to) { // of a hostNetwork pod the address alone is a node's
					out = append(out, flow(netpol.End{Addr: x.Addr}, netpol.End{Addr: y.Addr}, port))
				}
			}
		}
	}
	return out
}

func (j judge) host(name string) bool {
	return strings.Contains(name, "/") && podOf(j.s, name).Spec.HostNetwork
}

// addrs are an end with each of its addresses.
func (j judge) addrs(name string) []netpol.End {
	e := end(name)
	if e.Addr.IsValid() {
		return []netpol.End{e}
	}
	var out []netpol.End
	for _, ip := range podOf(j.s, name).Status.PodIPs {
		out = append(out, netpol.End{Pod: e.Pod, Addr: netip.MustParseAddr(ip.IP)})
	}
	return out
}

func end(text string) netpol.End {
	if ns, name, ok := strings.Cut(text, "/"); ok {
		return netpol.End{Pod: types.NamespacedName{Namespace: ns, Name: name}}
	}
	return netpol.End{Addr: netip.MustParseAddr(text)}
}

// flow reads a port: 80/TCP, 80/UDP, ICMP, 50 (a protocol without ports).
func flow(from, to netpol.End, text string) netpol.Flow {
	f := netpol.Flow{From: from, To: to}
	number, proto, ok := strings.Cut(text, "/")
	n, err := strconv.Atoi(number)
	switch {
	case text == "ICMP":
		f.Protocol = netpol.ICMP
	case err != nil:
		panic(err)
	case !ok:
		f.Protocol = uint8(n)
	default:
		if f.Protocol, err = netpol.ProtocolNumber(corev1.Protocol(proto)); err != nil {
			panic(err)
		}
		f.Port = uint16(n)
	}
	return f
}
