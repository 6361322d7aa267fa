package reference

import (
	"fmt"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/strake-io/strake/netpol"
)

// isolated says why nothing admits a flow: who isolates, and which rule comes nearest to admitting it.
func isolated(isolating []*networkPolicy, d netpol.Direction, other party, q question) string {
	why := "isolated by " + policyNames(isolating)
	if miss := nearest(isolating, d, other, q); miss != "" {
		return why + "; nearest: " + miss
	}
	return why + ", of which no rule admits anything"
}

// policyNames names a few, and counts the rest.
func policyNames(policies []*networkPolicy) string {
	const few = 3
	var names []string
	for _, p := range policies[:min(few, len(policies))] {
		names = append(names, p.ref.String())
	}
	s := strings.Join(names, ", ")
	if n := len(policies) - few; n > 0 {
		s += fmt.Sprintf(" and %d more", n)
	}
	return s
}

// nearest finds the rule that comes nearest. One for this peer comes before one for this port, that before any other; of those for the peer, that with
// the closest port of the protocol; then the first.
func nearest(isolating []*networkPolicy, d netpol.Direction, other party, q question) string {
	const neither = 1 << 20
	best, rule := -1, 0
	var policy *networkPolicy
	for _, p := range isolating {
		for i := range p.rules[d] {
			r := &p.rules[d][i]
			distance := neither
			switch {
			case matchesPeers(r, other):
				distance = portDistance(r, q)
			case matchesPorts(r, q):
				distance = neither - 1
			}
			if best < 0 || distance < best {
				best, policy, rule = distance, p, i
			}
		}
	}
	if policy == nil {
		return ""
	}
	return ruleName(policy.ref, rule, "") + " admits " + missText(&policy.rules[d][rule], d, other, q)
}

// portDistance is how far the ports of a rule are from that of the flow: another protocol is farther than any port, and a name that says nothing
// of this pod too.
func portDistance(r *rule, q question) int {
	const otherProtocol = 1 << 16
	best := otherProtocol
	for _, p := range r.ports {
		if !p.valid || p.name != "" || p.protocol != q.Protocol {
			continue
		}
		best = min(best, max(int(p.first)-int(q.Port), int(q.Port)-int(p.last)))
	}
	return best
}

// missText: "8080/TCP from it"; "80/TCP from pods with app=web, but not from this one".
func missText(r *rule, d netpol.Direction, other party, q question) string {
	preposition := " from "
	if d == netpol.Egress {
		preposition = " to "
	}
	ports := portsText(r, q)
	switch {
	case matchesPeers(r, other):
		return ports + preposition + "it"
	case matchesPorts(r, q):
		return ports + preposition + peersText(r) + ", but not" + preposition + "this one"
	}
	return ports + preposition + peersText(r) + ": neither the port nor the peer"
}

func portsText(r *rule, q question) string {
	if r.anyPort {
		return "every port"
	}
	var out []string
	for _, p := range r.ports {
		out = append(out, portText(p, q))
	}
	return strings.Join(out, ", ")
}

func portText(p port, q question) string {
	protocol := map[uint8]string{netpol.TCP: "/TCP", netpol.UDP: "/UDP", netpol.SCTP: "/SCTP"}[p.protocol]
	switch {
	case !p.valid:
		return "no port"
	case p.name != "":
		return "the port " + p.name + protocol + " (" + namedText(p, q) + ")"
	case p.first == 0:
		return "every port of " + protocol[1:]
	case p.first == p.last:
		return strconv.Itoa(int(p.first)) + protocol
	}
	return fmt.Sprintf("%d-%d%s", p.first, p.last, protocol)
}

// namedText tells which numbers a name stands for where the flow goes.
func namedText(p port, q question) string {
	if q.to.pod == nil {
		return "of pods only"
	}
	var numbers []string
	for _, c := range q.to.pod.ports {
		if c.name == p.name && (p.protocol == 0 || p.protocol == c.protocol) {
			numbers = append(numbers, strconv.Itoa(int(c.number)))
		}
	}
	if len(numbers) == 0 {
		return "which " + q.to.pod.String() + " does not have"
	}
	return strings.Join(numbers, ", ") + " of " + q.to.pod.String()
}

func peersText(r *rule) string {
	if r.anyPeer {
		return "anywhere"
	}
	var out []string
	for _, p := range r.peers {
		out = append(out, p.text)
	}
	return strings.Join(out, " or ")
}

func podPeerText(p *podPeer) string {
	if p.namespaces == nil {
		return selected("pods", p.pods) + " in namespace " + p.own
	}
	return selected("pods", p.pods) + " in " + selected("namespaces", p.namespaces)
}

func blockText(b block) string {
	if len(b.except) == 0 {
		return b.cidr.String()
	}
	var out []string
	for _, x := range b.except {
		out = append(out, x.String())
	}
	return b.cidr.String() + " except " + strings.Join(out, ", ")
}

func selected(what string, s labels.Selector) string {
	if s.Empty() {
		return "all " + what
	}
	return what + " with " + s.String()
}
