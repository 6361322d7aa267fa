package analysis

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/strake-io/strake/netpol"
	"github.com/strake-io/strake/netpol/manifests"
	"github.com/strake-io/strake/netpol/reference"
)

// TestDiffMatchesTheReference: on random States with the same pods and other policies, a flow from or to a pod is in a change if, and only
// if, the evaluator says of it one thing before and another after.
func TestDiffMatchesTheReference(t *testing.T) {
	different := 0
	for seed := range uint64(150) {
		d := dice{rand.New(rand.NewPCG(seed, 11))}
		before := d.state()
		after := before
		other := d.state()
		after.NetworkPolicies, after.ClusterNetworkPolicies = other.NetworkPolicies, other.ClusterNetworkPolicies
		was, err := reference.New(before)
		if err != nil {
			t.Fatal(err)
		}
		is, err := reference.New(after)
		if err != nil {
			t.Fatal(err)
		}
		changes := map[[3]string]Change{}
		for _, c := range Compare(before, after).Changes {
			changes[[3]string{c.From, c.To, c.Family}] = c
		}
		all := ends(New(before, Options{Blocks: append(blocksOf(before), blocksOf(after)...)}))
		for _, from := range all {
			for _, to := range all {
				if from.pod == to.pod || from.end.Addr.Is4() != to.end.Addr.Is4() || from.host && from.node == to.node {
					continue
				}
				family := "IPv4"
				if from.end.Addr.Is6() {
					family = "IPv6"
				}
				c, ok := changes[[3]string{from.name, to.name, family}]
				if !ok {
					c = changes[[3]string{from.name, to.name, ""}]
				}
				for _, proto := range []uint8{netpol.TCP, netpol.UDP, netpol.ICMP} {
					for _, port := range []uint16{1, 53, 79, 80, 81, 82, 85, 90, 91, 65535} {
						f := netpol.Flow{From: from.end, To: to.end, Protocol: proto, Port: port}
						x, err1 := was.Judge(f)
						y, err2 := is.Judge(f)
						if err1 != nil || err2 != nil {
							t.Fatal(err1, err2)
						}
						told := false
						for _, r := range c.Ranges {
							name := map[uint8]string{netpol.TCP: "TCP", netpol.UDP: "UDP", netpol.ICMP: "*"}[proto]
							if r.Protocol == name && (r.Ports == nil || r.Ports.From <= port && port <= r.Ports.To) {
								told = true
								if r.Allowed != y.Allowed {
									t.Fatalf("seed %d: %+v: %+v, the reference says %+v", seed, f, r, y)
								}
							}
						}
						if told != (x.Allowed != y.Allowed) {
							t.Fatalf("seed %d: %+v: told %t, before %t, after %t: %+v", seed, f, told, x.Allowed, y.Allowed, c)
						}
						if told {
							different++
						}
					}
				}
			}
		}
	}
	if different < 1000 {
		t.Errorf("only %d flows were different", different)
	}
}

func parsed(t *testing.T, text string) manifests.Loaded {
	t.Helper()
	l, err := manifests.LoadAll(strings.NewReader(text), nil, "-")
	if err != nil || len(l.Problems) > 0 {
		t.Fatal(err, l.Problems)
	}
	return l
}

func TestDiffOutput(t *testing.T) {
	before := load(t, "shop.yaml")
	after := load(t, "shop.yaml", "shop.more.yaml")
	after.NetworkPolicies = slices.DeleteFunc(after.NetworkPolicies, func(n *networkingv1.NetworkPolicy) bool { return n.Name == "db" })
	var b bytes.Buffer
	d := Compare(before, after)
	if err := d.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	golden(t, "shop.diff.txt", b.Bytes())
	if !d.Differs() {
		t.Error("it does not differ")
	}
}

// TestDiffIsAboutMeaning: policies that say the same in other words are no difference.
func TestDiffIsAboutMeaning(t *testing.T) {
	pods := "{apiVersion: v1, kind: Pod, metadata: {name: a, labels: {app: a}}}\n---\n{apiVersion: v1, kind: Pod, metadata: {name: b, labels: {app: b}}}\n---\n"
	one := parsed(t, pods+np("p", "podSelector: {matchLabels: {app: a}}, ingress: [{ports: [{port: 80, endPort: 90}], from: [{podSelector: {}}, {ipBlock: {cidr: 192.0.2.0/24}}]}]")).State
	same := parsed(t, pods+np("q", "podSelector: {matchLabels: {app: a}}, policyTypes: [Ingress], ingress: [{ports: [{port: 80, endPort: 85}], from: [{podSelector: {matchExpressions: [{key: app, operator: Exists}]}}, {ipBlock: {cidr: 192.0.2.0/25}}, {ipBlock: {cidr: 192.0.2.128/25}}]}]")+
		np("r", "podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [b]}]}, ingress: [{ports: [{port: 86, endPort: 90}], from: [{podSelector: {}}, {ipBlock: {cidr: 192.0.2.0/24}}]}]")).State
	if d := Compare(one, same); d.Differs() || len(d.Policies) != 3 {
		t.Errorf("%+v", d)
	}
	less := parsed(t, pods+np("p", "podSelector: {matchLabels: {app: a}}, ingress: [{ports: [{port: 80, endPort: 90}], from: [{podSelector: {}}, {ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.7/32]}}]}]")).State
	d := Compare(one, less)
	if len(d.Changes) != 1 || d.Changes[0].From != "192.0.2.7/32" || d.Changes[0].Closed != "TCP 80-90" || d.Changes[0].Opened != "" {
		t.Errorf("%+v", d.Changes)
	}
}

// TestBorrow: a folder of policies is judged on the other's pods, whose made up addresses keep out of its blocks.
func TestBorrow(t *testing.T) {
	full := parsed(t, "{apiVersion: v1, kind: Namespace, metadata: {name: ns, labels: {a: b}}}\n---\n{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: ns}}\n---\n{apiVersion: v1, kind: Pod, metadata: {name: b, namespace: ns}}")
	only := parsed(t, "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p, namespace: ns}, spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}}]}]}}")
	s := only.Borrow(full)
	if len(s.Pods) != 2 || len(s.Namespaces) != 1 || s.Namespaces[0].Labels["a"] != "b" || len(s.NetworkPolicies) != 1 {
		t.Fatalf("%+v", s)
	}
	ref, err := reference.New(s)
	if err != nil {
		t.Fatal(err)
	}
	v, err := ref.Judge(netpol.Flow{From: netpol.End{Pod: types.NamespacedName{Namespace: "ns", Name: "a"}}, To: netpol.End{Pod: types.NamespacedName{Namespace: "ns", Name: "b"}}, Protocol: netpol.TCP, Port: 80})
	if err != nil || v.Allowed {
		t.Errorf("%+v, %v", v, err)
	}
	if full.State.Pods[0].Status.PodIP == s.Pods[0].Status.PodIP {
		t.Error("the pod's address is in the block")
	}
}

func TestDiffOfOtherWorkloads(t *testing.T) {
	a := parsed(t, "{apiVersion: v1, kind: Pod, metadata: {name: a}}\n---\n{apiVersion: v1, kind: Pod, metadata: {name: b}}").State
	b := parsed(t, "{apiVersion: v1, kind: Pod, metadata: {name: a}}\n---\n{apiVersion: v1, kind: Pod, metadata: {name: c}}").State
	d := Compare(a, b)
	if d.Differs() || len(d.Gone) != 1 || d.Gone[0] != "pod default/b" || len(d.Appeared) != 1 || d.Appeared[0] != "pod default/c" {
		t.Errorf("%+v", d)
	}
}

func TestHash(t *testing.T) {
	read := func(text string) netpol.State { return parsed(t, text).State }
	ref := netpol.PolicyRef{Kind: "NetworkPolicy", Namespace: "default", Name: "p"}
	one := netpol.Hashes(read(np("p", "podSelector: {matchLabels: {a: b, c: d}}")))[ref]
	if !strings.HasPrefix(one, "sha256:") || one != netpol.Hashes(read("{kind: NetworkPolicy, spec: {podSelector: {matchLabels: {c: d, a: b}}}, apiVersion: networking.k8s.io/v1, metadata: {name: p, namespace: default, uid: x, resourceVersion: '7', annotations: {kubectl.kubernetes.io/last-applied-configuration: '{}'}}}"))[ref] {
		t.Error("the same policy has another hash")
	}
	if one == netpol.Hashes(read(np("p", "podSelector: {matchLabels: {a: b, c: e}}")))[ref] {
		t.Error("another policy has the same hash")
	}
}

// A node is each of its addresses: what opens to one of them is told, by matrix and diff.
func TestNodesWithSeveralAddresses(t *testing.T) {
	const nodes = "{apiVersion: v1, kind: Node, metadata: {name: n1}, status: {addresses: [{type: Hostname, address: n1}, {type: ExternalIP, address: 198.51.100.1}, {type: InternalIP, address: 192.0.2.1}]}}\n---\n" +
		"{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: x}}\n---\n"
	policy := func(ingress string) netpol.State {
		s, problems := manifests.Parse("x", []byte(nodes+"{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p, namespace: x}, spec: {podSelector: {}, ingress: "+ingress+"}}\n"))
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		return s
	}
	closed, open := policy("[]"), policy("[{from: [{ipBlock: {cidr: 198.51.100.1/32}}]}]")
	var text bytes.Buffer
	if d := Compare(closed, open); !d.Differs() {
		t.Error("the node's second address makes no difference")
	} else if err := d.WriteText(&text); err != nil || d.Counts != (DiffCounts{Pairs: 6, Opened: 1}) || strings.Count(text.String(), "node n1") != 1 || !strings.Contains(text.String(), "node n1 198.51.100.1") || strings.Contains(text.String(), "192.0.2.1") {
		t.Errorf("%v\n%s", err, &text)
	}
	text.Reset()
	if err := New(open, Options{}).Matrix(nil, nil).WriteCSV(&text); err != nil || !strings.Contains(text.String(), "nodes (n1 198.51.100.1),x/p,all") || !strings.Contains(text.String(), "nodes (n1),x/p,none") {
		t.Errorf("%v\n%s", err, &text)
	}
	text.Reset()
	if err := New(closed, Options{}).Matrix(nil, nil).WriteCSV(&text); err != nil || !strings.Contains(text.String(), "\nnodes,x/p,none") {
		t.Errorf("%v\n%s", err, &text)
	}
}
