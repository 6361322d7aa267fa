package podnet

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/strake-io/strake/cni"
	"github.com/strake-io/strake/netpol"
)

// Ports of SCTP besides serverPort: the first two are a range, and the name assoc is the second's on pods a, the third's on pods b.
const (
	rangePort = 9000 + iota
	rangeEnd
	beyondPort
)

// TestSCTPPolicies: NetworkPolicies judge associations between pods of one node and of two by port, range, name and protocol, on either side, as no TCP; and
// those that are established, anew.
func TestSCTPPolicies(t *testing.T) {
	if !HasSCTP() {
		t.Skip("NOT TESTED: this kernel has no SCTP; make test-kernels runs it on some that do")
	}
	for _, routing := range []cni.Routing{cni.VXLAN, cni.Native} {
		t.Run(string(routing), func(t *testing.T) {
			c := start(t, 2, routing, func(n *Node) { n.Judged = sctpState(n.lab) })
			for _, p := range c.pods {
				for port := rangePort; port <= beyondPort; port++ {
					v, err := p.Serve(p.ID, port)
					must(t, err)
					t.Cleanup(func() { v.Close() })
				}
			}
			c.judgedAssociations(t)
			c.judgedAnew(t)
		})
	}
}

// sctpState has a policy for each pod, of the ways in which rules name ports.
func sctpState(l *Lab) *netpol.State {
	s := &netpol.State{Namespaces: []*corev1.Namespace{{ObjectMeta: metav1.ObjectMeta{Name: "default"}}}, NetworkPolicies: []*networkingv1.NetworkPolicy{
		admits("node1-a", port("SCTP", serverPort, 0), port("SCTP", rangePort, rangeEnd)),
		admits("node1-b", named("SCTP", "assoc")),
		admits("node2-a", networkingv1.NetworkPolicyPort{Protocol: new(corev1.ProtocolSCTP)}),
		admits("node2-b", port("", serverPort, 0), named("TCP", "assoc")),
		sends("node2-a", named("SCTP", "assoc"), port("SCTP", beyondPort, 0)),
	}}
	for i, n := range l.Nodes {
		name := fmt.Sprint("node", i+1)
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
		for _, a := range n.Addrs {
			node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
		}
		s.Nodes = append(s.Nodes, node)
		for pod := range podsOnNode {
			id := name + "-" + string(rune('a'+pod))
			p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: id, UID: types.UID(id), Labels: map[string]string{"pod": id}}}
			p.Spec.NodeName = name
			p.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{
				{Name: "assoc", Protocol: corev1.ProtocolSCTP, ContainerPort: int32(rangeEnd + pod)},
				{Name: "assoc", Protocol: corev1.ProtocolTCP, ContainerPort: rangePort},
			}}}
			for family := range 2 {
				p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: podAddr(n, family, pod).String()})
			}
			s.Pods = append(s.Pods, p)
		}
	}
	return s
}

// admitted is what the policies of sctpState say, in words of their own.
func admitted(from, to *Pod, number int) bool {
	if from == to {
		return true
	}
	assoc := rangeEnd
	if strings.HasSuffix(to.ID, "b") {
		assoc = beyondPort
	}
	if from.ID == "node2-a" && number != assoc && number != beyondPort {
		return false
	}
	switch to.ID {
	case "node1-a":
		return number != beyondPort
	case "node1-b":
		return number == assoc
	case "node2-a":
		return true
	}
	return false
}

func (c *cluster) judgedAssociations(t *testing.T) {
	var denied []*os.File
	before := c.denied(t)
	for family, network := range []string{"sctp4", "sctp6"} {
		for _, from := range c.pods {
			for _, to := range c.pods {
				for _, number := range []int{serverPort, rangePort, rangeEnd, beyondPort} {
					at := netip.AddrPortFrom(to.Addrs[family], uint16(number))
					if !admitted(from, to, number) {
						denied = append(denied, from.associate(t, at))
						continue
					}
					out, err := from.Ask(network, at, 1)
					answered(t, out, err, to.ID+" "+from.Addrs[family].String(), network, from.ID, at.String())
				}
			}
		}
		// TCP is let through where SCTP is not, and the other way round.
		from, to := c.pods[0], c.pods[3]
		out, err := from.Ask(networks[family][0], netip.AddrPortFrom(to.Addrs[family], rangePort), 1)
		answered(t, out, err, to.ID+" "+from.Addrs[family].String(), networks[family][0], from.ID, to.ID)
		silent(t, c.pods[1].Space, from.Addrs[family])
	}
	c.counts(t, before+uint64(len(denied)))
	for _, f := range denied {
		if said, err := associated(f); said || err != nil {
			t.Errorf("%s is answered: associated %v, %v", f.Name(), said, err)
		}
	}
}

// judgedAnew has policies change under associations: what is forbidden now gets no answers until it is allowed again, and the others go on.
func (c *cluster) judgedAnew(t *testing.T) {
	to := c.pods[0]
	var near, far []*association
	for family := range 2 {
		at := netip.AddrPortFrom(to.Addrs[family], serverPort)
		near = append(near, c.pods[1].converse(t, at))
		far = append(far, c.pods[3].converse(t, at))
	}
	apply := func(change func(*netpol.State)) {
		t.Helper()
		for _, n := range c.Nodes {
			must(t, n.Kill())
			n.Judged = sctpState(c.Lab)
			change(n.Judged)
		}
		must(t, c.Start())
	}
	said := func(all []*association) {
		t.Helper()
		for _, a := range all {
			a.answers(t)
		}
	}
	unanswered := func(all []*association) {
		t.Helper()
		before := c.denied(t)
		for _, a := range all {
			a.asks(t)
		}
		c.counts(t, before+uint64(len(all)))
		for _, a := range all {
			a.silent(t)
		}
	}
	// Who is asked admits only the pod beside it.
	apply(func(s *netpol.State) {
		s.NetworkPolicies[0].Spec.Ingress[0].From = []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"pod": "node1-b"}}}}
	})
	said(near)
	unanswered(far)
	// Who asks may ask a name that is another number there.
	apply(func(s *netpol.State) {
		s.NetworkPolicies = append(s.NetworkPolicies, sends("node1-b", named("SCTP", "assoc")), sends("node2-b", port("SCTP", serverPort, 0)))
	})
	for _, a := range far {
		a.awaits(t) // what it asked meanwhile arrives now
	}
	said(far)
	unanswered(near)
	apply(func(*netpol.State) {})
	for _, a := range near {
		a.awaits(t)
	}
	said(append(near, far...))
}

// association is one that answers each message.
type association struct {
	*os.File
	in   *bufio.Reader
	want string
}

// associate asks for an association.
func (p *Pod) associate(t *testing.T, to netip.AddrPort) (f *os.File) {
	t.Helper()
	must(t, p.In(func() (err error) {
		f, err = dialSCTP(to)
		return err
	}))
	t.Cleanup(func() { f.Close() })
	return f
}

// converse begins an association and hears the first answer.
func (p *Pod) converse(t *testing.T, to netip.AddrPort) *association {
	t.Helper()
	f := p.associate(t, to)
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		said, err := associated(f)
		must(t, err)
		if said {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%s from %s: no association", f.Name(), p.ID)
		}
	}
	a := &association{f, bufio.NewReader(f), ""}
	must(t, f.SetReadDeadline(time.Now().Add(patience)))
	var err error
	if a.want, err = a.in.ReadString('\n'); err != nil {
		t.Fatalf("%s from %s: %v", f.Name(), p.ID, err)
	}
	return a
}

func (a *association) asks(t *testing.T) {
	t.Helper()
	_, err := a.WriteString("hello\n")
	must(t, err)
}

func (a *association) awaits(t *testing.T) {
	t.Helper()
	must(t, a.SetReadDeadline(time.Now().Add(patience)))
	if got, err := a.in.ReadString('\n'); got != a.want || err != nil {
		t.Fatalf("%s answers %q, %v, want %q", a.Name(), got, err, a.want)
	}
}

func (a *association) answers(t *testing.T) {
	t.Helper()
	a.asks(t)
	a.awaits(t)
}

func (a *association) silent(t *testing.T) {
	t.Helper()
	must(t, a.SetReadDeadline(time.Now().Add(500*time.Millisecond)))
	if got, err := a.in.ReadString('\n'); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%s answers %q, %v, and is forbidden", a.Name(), got, err)
	}
}

// denied is how many packets policies have dropped on all nodes.
func (c *cluster) denied(t *testing.T) (sum uint64) {
	t.Helper()
	for _, n := range c.Nodes {
		sum += n.counter(t, "drop_policy_ingress") + n.counter(t, "drop_policy_egress")
	}
	return sum
}

// counts waits until so many have been dropped.
func (c *cluster) counts(t *testing.T, want uint64) {
	t.Helper()
	end := time.Now().Add(patience)
	for c.denied(t) < want {
		if time.Now().After(end) {
			t.Fatalf("policies have dropped %d packets, want %d", c.denied(t), want)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func policyOf(name, pod string, spec networkingv1.NetworkPolicySpec) *networkingv1.NetworkPolicy {
	spec.PodSelector.MatchLabels = map[string]string{"pod": pod}
	return &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name + pod, UID: types.UID(name + pod)}, Spec: spec}
}

func admits(pod string, ports ...networkingv1.NetworkPolicyPort) *networkingv1.NetworkPolicy {
	return policyOf("to-", pod, networkingv1.NetworkPolicySpec{
		PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}, Ingress: []networkingv1.NetworkPolicyIngressRule{{Ports: ports}}})
}

func sends(pod string, ports ...networkingv1.NetworkPolicyPort) *networkingv1.NetworkPolicy {
	return policyOf("from-", pod, networkingv1.NetworkPolicySpec{
		PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}, Egress: []networkingv1.NetworkPolicyEgressRule{{Ports: ports}}})
}

// port is one, or a range; without protocol it is TCP's.
func port(protocol corev1.Protocol, first, last int) (p networkingv1.NetworkPolicyPort) {
	p.Port = new(intstr.FromInt(first))
	if protocol != "" {
		p.Protocol = &protocol
	}
	if last != 0 {
		p.EndPort = new(int32(last))
	}
	return p
}

func named(protocol corev1.Protocol, name string) networkingv1.NetworkPolicyPort {
	return networkingv1.NetworkPolicyPort{Protocol: &protocol, Port: new(intstr.FromString(name))}
}
