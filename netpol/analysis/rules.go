package analysis

import (
	"cmp"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/strake-io/strake/netpol"
	"github.com/strake-io/strake/netpol/validation"
)

type action uint8

const (
	allow action = iota
	deny
	pass
)

// peer is one item of a from or to, of a subject too. Equal ones of different rules are one.
type peer struct {
	key string

	// Pods: of a namespace, or of those that a selector takes.
	pods       labels.Selector
	namespace  string
	namespaces labels.Selector

	nodes labels.Selector

	block  netip.Prefix
	except []netip.Prefix

	classes bitset // that it matches
}

// named is a port's name that stands for numbers of the pod that is asked.
type named struct {
	name     string
	protocol int // index in protocols; -1: whatever the port's is
}

// rule is one of a policy, as it is judged. What is invalid in it is out already.
type rule struct {
	policy *policy
	index  int
	dir    netpol.Direction
	action action
	any    bool // peers: all
	peers  []*peer
	ports  PortSet
	names  []named

	classes bitset // that its peers match
}

// policy is one of either kind.
type policy struct {
	ref       netpol.PolicyRef
	np        *networkingv1.NetworkPolicy
	cnp       *policyv1alpha2.ClusterNetworkPolicy
	tier      netpol.Tier
	number    int // place in the order in which policies are looked at
	subject   *peer
	isolates  [2]bool
	rules     [2][]*rule
	subjects  bitset
	shadow    bool
	malformed bool // the subject is invalid: it stands for all pods
}

// reader makes policies of objects.
type reader struct {
	peers    map[string]*peer
	prefixes map[netip.Prefix]bool // that blocks name
	podKeys  map[string]bool       // labels that selectors of pods look at
	names    map[string]bool       // names of ports
}

func newReader() *reader {
	return &reader{peers: map[string]*peer{}, prefixes: map[netip.Prefix]bool{}, podKeys: map[string]bool{}, names: map[string]bool{}}
}

func (r *reader) intern(p peer) *peer {
	if have, ok := r.peers[p.key]; ok {
		return have
	}
	r.peers[p.key] = &p
	if p.pods != nil {
		reqs, _ := p.pods.Requirements() // the selector that takes nothing has none
		for _, q := range reqs {
			r.podKeys[q.Key()] = true
		}
	}
	if p.block.IsValid() {
		r.prefixes[p.block] = true
		for _, e := range p.except {
			r.prefixes[e] = true
		}
	}
	return &p
}

func (r *reader) podPeer(namespace string, namespaces *metav1.LabelSelector, pods *metav1.LabelSelector) (*peer, bool) {
	if pods == nil {
		pods = &metav1.LabelSelector{}
	}
	podSelector, err := metav1.LabelSelectorAsSelector(pods)
	if err != nil {
		return nil, false
	}
	p := peer{pods: podSelector, namespace: namespace, key: "pods\x00" + namespace + "\x00" + podSelector.String()}
	if namespaces != nil {
		p.namespace = ""
		if p.namespaces, err = metav1.LabelSelectorAsSelector(namespaces); err != nil {
			return nil, false
		}
		p.key = "pods of\x00" + p.namespaces.String() + "\x00" + podSelector.String()
	}
	return r.intern(p), true
}

func (r *reader) blockPeer(cidr string, except []string) (*peer, bool) {
	b, err := netip.ParsePrefix(cidr)
	if err != nil {
		return nil, false
	}
	p := peer{block: b.Masked()}
	p.key = "block\x00" + p.block.String()
	for _, v := range except {
		e, err := netip.ParsePrefix(v)
		if err != nil {
			return nil, false
		}
		p.except = append(p.except, e.Masked())
		p.key += "\x00" + e.Masked().String()
	}
	return r.intern(p), true
}

// networkPolicy reads a NetworkPolicy. Of what is invalid see the package netpol: it matches nothing.
func (r *reader) networkPolicy(n *networkingv1.NetworkPolicy) *policy {
	p := &policy{
		ref: netpol.PolicyRef{Kind: "NetworkPolicy", Namespace: n.Namespace, Name: n.Name, UID: n.UID}, np: n,
		tier: netpol.TierNetworkPolicy, shadow: netpol.InShadow(n),
	}
	sound := len(validation.NetworkPolicy(n)) == 0
	if len(n.Spec.PolicyTypes) == 0 {
		p.isolates = [2]bool{netpol.Ingress: true, netpol.Egress: len(n.Spec.Egress) > 0}
	}
	named := p.isolates // directions whose rules count
	for _, t := range n.Spec.PolicyTypes {
		switch t {
		case networkingv1.PolicyTypeIngress:
			named[netpol.Ingress] = true
		case networkingv1.PolicyTypeEgress:
			named[netpol.Egress] = true
		}
	}
	p.isolates = named
	for _, t := range n.Spec.PolicyTypes {
		if t != networkingv1.PolicyTypeIngress && t != networkingv1.PolicyTypeEgress {
			p.isolates = [2]bool{true, true}
		}
	}
	if !sound && len(validation.NetworkPolicy(&networkingv1.NetworkPolicy{Spec: networkingv1.NetworkPolicySpec{PodSelector: n.Spec.PodSelector}})) > 0 {
		p.malformed = true
		p.subject, _ = r.podPeer(n.Namespace, nil, nil)
		return p
	}
	p.subject, _ = r.podPeer(n.Namespace, nil, &n.Spec.PodSelector)
	add := func(dir netpol.Direction, i int, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) {
		if !named[dir] {
			return
		}
		out := &rule{policy: p, index: i, dir: dir, any: len(peers) == 0}
		for _, from := range peers {
			if !sound && !valid(networkingv1.NetworkPolicyIngressRule{From: []networkingv1.NetworkPolicyPeer{masked(from)}}) {
				continue
			}
			var one *peer
			var ok bool
			if from.IPBlock != nil {
				one, ok = r.blockPeer(from.IPBlock.CIDR, from.IPBlock.Except)
			} else {
				one, ok = r.podPeer(n.Namespace, from.NamespaceSelector, from.PodSelector)
			}
			if ok {
				out.peers = append(out.peers, one)
			}
		}
		if len(ports) == 0 {
			out.ports = allPorts()
		}
		for _, port := range ports {
			if sound || valid(networkingv1.NetworkPolicyIngressRule{Ports: []networkingv1.NetworkPolicyPort{port}}) {
				r.port(out, port)
			}
		}
		p.rules[dir] = append(p.rules[dir], out)
	}
	for i, v := range n.Spec.Ingress {
		add(netpol.Ingress, i, v.From, v.Ports)
	}
	for i, v := range n.Spec.Egress {
		add(netpol.Egress, i, v.To, v.Ports)
	}
	return p
}

// masked is a peer whose blocks are written as the API wants them written today. It took others before, with the same meaning.
func masked(p networkingv1.NetworkPolicyPeer) networkingv1.NetworkPolicyPeer {
	if p.IPBlock == nil {
		return p
	}
	mask := func(v string) string {
		if b, err := netip.ParsePrefix(v); err == nil {
			return b.Masked().String()
		}
		return v
	}
	b := networkingv1.IPBlock{CIDR: mask(p.IPBlock.CIDR)}
	for _, e := range p.IPBlock.Except {
		b.Except = append(b.Except, mask(e))
	}
	p.IPBlock = &b
	return p
}

// valid tells whether a rule is, whatever policy it is in.
func valid(r networkingv1.NetworkPolicyIngressRule) bool {
	return len(validation.NetworkPolicy(&networkingv1.NetworkPolicy{Spec: networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{r}}})) == 0
}

func (r *reader) port(to *rule, p networkingv1.NetworkPolicyPort) {
	protocol := corev1.ProtocolTCP
	if p.Protocol != nil {
		protocol = *p.Protocol
	}
	number, err := netpol.ProtocolNumber(protocol)
	if err != nil {
		return
	}
	i := slices.Index(protocols[:], number)
	var s PortSet
	switch {
	case p.Port == nil:
		s.Of[i] = []Ports{everyPort}
	case p.Port.Type == intstr.String:
		to.names = append(to.names, named{p.Port.StrVal, i})
		r.names[p.Port.StrVal] = true
	default:
		from, end := p.Port.IntVal, p.Port.IntVal
		if p.EndPort != nil {
			end = *p.EndPort
		}
		s.Of[i] = []Ports{{uint16(from), uint16(end)}}
	}
	to.ports = to.ports.or(s)
}

// clusterNetworkPolicy reads a ClusterNetworkPolicy. What is invalid fails closed, see the package netpol.
func (r *reader) clusterNetworkPolicy(c *policyv1alpha2.ClusterNetworkPolicy) *policy {
	p := &policy{ref: netpol.PolicyRef{Kind: "ClusterNetworkPolicy", Name: c.Name, UID: c.UID}, cnp: c, tier: netpol.TierAdmin, shadow: netpol.InShadow(c)}
	badTier := false
	switch c.Spec.Tier {
	case policyv1alpha2.AdminTier:
	case policyv1alpha2.BaselineTier:
		p.tier = netpol.TierBaseline
	default:
		badTier = true
	}
	subject := policyv1alpha2.ClusterNetworkPolicyIngressPeer{Namespaces: c.Spec.Subject.Namespaces, Pods: c.Spec.Subject.Pods}
	var ok bool
	if p.subject, ok = r.clusterPeer(subject.Namespaces, subject.Pods); !ok || !validSubject(c.Spec.Subject) {
		p.malformed = true
		p.subject, _ = r.podPeer("", &metav1.LabelSelector{}, nil)
	}
	closed := badTier || p.malformed
	for i, v := range c.Spec.Ingress {
		out := &rule{policy: p, index: i, dir: netpol.Ingress}
		sound := len(v.From) > 0
		for _, from := range v.From {
			sound = sound && validPeer(policyv1alpha2.ClusterNetworkPolicyEgressPeer{Namespaces: from.Namespaces, Pods: from.Pods})
			if one, ok := r.clusterPeer(from.Namespaces, from.Pods); ok {
				out.peers = append(out.peers, one)
			}
		}
		r.finish(out, v.Action, v.Protocols, sound, closed)
	}
	for i, v := range c.Spec.Egress {
		out := &rule{policy: p, index: i, dir: netpol.Egress}
		sound, nameless := len(v.To) > 0, false
		for _, to := range v.To {
			sound = sound && validPeer(to) && len(to.DomainNames) == 0
			nameless = nameless || to.Nodes != nil || len(to.Networks) > 0
			if one, ok := r.clusterPeer(to.Namespaces, to.Pods); ok {
				out.peers = append(out.peers, one)
			}
			if to.Nodes != nil {
				if s, err := metav1.LabelSelectorAsSelector(to.Nodes); err == nil {
					out.peers = append(out.peers, r.intern(peer{nodes: s, key: "nodes\x00" + s.String()}))
				}
			}
			for _, n := range to.Networks {
				if one, ok := r.blockPeer(string(n), nil); ok {
					out.peers = append(out.peers, one)
				}
			}
		}
		for _, port := range v.Protocols {
			sound = sound && (!nameless || port.DestinationNamedPort == "")
		}
		r.finish(out, v.Action, v.Protocols, sound, closed)
	}
	return p
}

// finish gives a rule its action and ports, and takes it to its policy. A rule that is invalid, or of a policy that is, fails
// closed.
func (r *reader) finish(out *rule, act policyv1alpha2.ClusterNetworkPolicyRuleAction, protocols []policyv1alpha2.ClusterNetworkPolicyProtocol, ruleValid, closed bool) {
	add := func() { out.policy.rules[out.dir] = append(out.policy.rules[out.dir], out) }
	for _, v := range protocols {
		ruleValid = ruleValid && validProtocol(v)
	}
	known := true
	switch act {
	case policyv1alpha2.ClusterNetworkPolicyRuleActionAccept:
		out.action = allow
	case policyv1alpha2.ClusterNetworkPolicyRuleActionDeny:
		out.action = deny
	case policyv1alpha2.ClusterNetworkPolicyRuleActionPass:
		out.action = pass
	default:
		known = false
	}
	switch {
	case !known || !ruleValid && out.action != allow:
		out.action, out.any, out.ports, out.peers = deny, true, allPorts(), nil
		add()
		return
	case out.action == allow && (!ruleValid || closed):
		out.peers = nil
		add()
		return
	case out.action == pass && closed:
		out.action = deny
	}
	if len(protocols) == 0 {
		out.ports = allPorts()
	}
	for _, v := range protocols {
		switch {
		case v.TCP != nil:
			out.ports = out.ports.or(clusterPorts(0, v.TCP.DestinationPort))
		case v.UDP != nil:
			out.ports = out.ports.or(clusterPorts(1, v.UDP.DestinationPort))
		case v.SCTP != nil:
			out.ports = out.ports.or(clusterPorts(2, v.SCTP.DestinationPort))
		default:
			out.names = append(out.names, named{v.DestinationNamedPort, -1})
			r.names[v.DestinationNamedPort] = true
		}
	}
	add()
}

func clusterPorts(protocol int, p *policyv1alpha2.Port) (s PortSet) {
	if p.Range != nil {
		s.Of[protocol] = []Ports{{uint16(p.Range.Start), uint16(p.Range.End)}}
	} else {
		s.Of[protocol] = []Ports{{uint16(p.Number), uint16(p.Number)}}
	}
	return s
}

func (r *reader) clusterPeer(namespaces *metav1.LabelSelector, pods *policyv1alpha2.NamespacedPod) (*peer, bool) {
	switch {
	case namespaces != nil:
		return r.podPeer("", namespaces, nil)
	case pods != nil:
		return r.podPeer("", &pods.NamespaceSelector, &pods.PodSelector)
	}
	return nil, false
}

var soundSpec = policyv1alpha2.ClusterNetworkPolicySpec{Tier: policyv1alpha2.AdminTier, Subject: policyv1alpha2.ClusterNetworkPolicySubject{Namespaces: &metav1.LabelSelector{}}}

func validSubject(s policyv1alpha2.ClusterNetworkPolicySubject) bool {
	spec := soundSpec
	spec.Subject = s
	return len(validation.ClusterNetworkPolicy(&policyv1alpha2.ClusterNetworkPolicy{Spec: spec})) == 0
}

func validPeer(p policyv1alpha2.ClusterNetworkPolicyEgressPeer) bool {
	if len(p.Networks) == 0 {
		p.Networks = nil
	}
	if len(p.DomainNames) == 0 {
		p.DomainNames = nil
	}
	return validRule(policyv1alpha2.ClusterNetworkPolicyEgressRule{To: []policyv1alpha2.ClusterNetworkPolicyEgressPeer{p}})
}

func validProtocol(p policyv1alpha2.ClusterNetworkPolicyProtocol) bool {
	return validRule(policyv1alpha2.ClusterNetworkPolicyEgressRule{
		To: []policyv1alpha2.ClusterNetworkPolicyEgressPeer{{Namespaces: &metav1.LabelSelector{}}}, Protocols: []policyv1alpha2.ClusterNetworkPolicyProtocol{p},
	})
}

func validRule(r policyv1alpha2.ClusterNetworkPolicyEgressRule) bool {
	spec := soundSpec
	r.Action = policyv1alpha2.ClusterNetworkPolicyRuleActionAccept
	spec.Egress = []policyv1alpha2.ClusterNetworkPolicyEgressRule{r}
	return len(validation.ClusterNetworkPolicy(&policyv1alpha2.ClusterNetworkPolicy{Spec: spec})) == 0
}

// inOrder sorts policies as they are looked at: Admin by priority and name, NetworkPolicies by namespace and name, Baseline by priority
// and name.
func inOrder(list []*policy) {
	tier := map[netpol.Tier]int{netpol.TierAdmin: 0, netpol.TierNetworkPolicy: 1, netpol.TierBaseline: 2}
	priority := func(p *policy) int32 {
		if p.cnp == nil {
			return 0
		}
		return p.cnp.Spec.Priority
	}
	slices.SortFunc(list, func(a, b *policy) int {
		return cmp.Or(cmp.Compare(tier[a.tier], tier[b.tier]), cmp.Compare(priority(a), priority(b)), cmp.Compare(a.ref.Namespace, b.ref.Namespace), cmp.Compare(a.ref.Name, b.ref.Name))
	})
	for i, p := range list {
		p.number = i
	}
}
