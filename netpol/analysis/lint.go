package analysis

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/strake-io/strake/netpol"
	"github.com/strake-io/strake/netpol/validation"
)

// Lint tells what is wrong with the policies of a State, or surprising. What it says of pods is said of those that there are.
func Lint(s netpol.State) []Finding {
	if !slices.ContainsFunc(s.Pods, isDNS) && len(s.DNSAddrs) == 0 {
		for f, have := range familiesOf(s) { // some, so that policies can be asked about it
			if have {
				s.DNSAddrs = append(s.DNSAddrs, [2]netip.Addr{netip.MustParseAddr("198.18.255.53"), netip.MustParseAddr("2001:db8:53::53")}[f])
			}
		}
	}
	l := &linter{a: New(s, Options{})}
	for _, p := range l.a.policies {
		l.policy(p)
	}
	for _, p := range l.a.shadow { // what it would do, if it were enforced
		l.policy(p)
	}
	l.cover()
	l.ties()
	l.workloads()
	sortFindings(l.found)
	return l.found
}

func familiesOf(s netpol.State) (out [2]bool) {
	for _, p := range s.Pods {
		for f, a := range podAddrs(p) {
			out[f] = out[f] || a.IsValid()
		}
	}
	return out
}

func isDNS(p *corev1.Pod) bool {
	return p.Namespace == metav1.NamespaceSystem && p.Labels["k8s-app"] == "kube-dns" && alive(p)
}

type linter struct {
	a     *Analysis
	found []Finding
	never map[*rule]bool // rules of which it is said that they match nothing
}

func (l *linter) add(check string, severity Severity, o Object, path *field.Path, format string, args ...any) {
	i := slices.IndexFunc(Checks, func(c Check) bool { return c.ID == check })
	f := Finding{Check: check, Severity: severity, Object: o, Message: fmt.Sprintf(format, args...), Hint: Checks[i].Hint}
	if path != nil {
		f.Field = path.String()
	}
	l.found = append(l.found, f)
}

func (p *policy) object() Object {
	return Object{Kind: p.ref.Kind, Namespace: p.ref.Namespace, Name: p.ref.Name}
}

func (r *rule) path() *field.Path { return field.NewPath("spec", r.dir.String()).Index(r.index) }

// peersPath is that of the list of peers.
func (r *rule) peersPath() *field.Path {
	if r.dir == netpol.Ingress {
		return r.path().Child("from")
	}
	return r.path().Child("to")
}

// policy looks at one policy alone.
func (l *linter) policy(p *policy) {
	var errs field.ErrorList
	if p.np != nil {
		errs = validation.NetworkPolicy(p.np)
		l.types(p)
	} else {
		errs = validation.ClusterNetworkPolicy(p.cnp)
	}
	for _, e := range errs {
		f := Finding{Check: "invalid", Severity: Error, Object: p.object(), Field: e.Field, Message: e.ErrorBody(), Hint: Checks[0].Hint}
		l.found = append(l.found, f)
	}
	if p.subjects.empty() {
		path := field.NewPath("spec", "podSelector")
		if p.cnp != nil {
			path = field.NewPath("spec", "subject")
		}
		l.add("unused-policy", Warning, p.object(), path, "selects no pod")
		return // what its rules match does not matter
	}
	if len(errs) > 0 {
		return // what it was to say is not known
	}
	for _, rules := range p.rules {
		for _, r := range rules {
			l.rule(r)
		}
	}
}

func (l *linter) types(p *policy) {
	s := p.np.Spec
	types := field.NewPath("spec", "policyTypes")
	has := func(t networkingv1.PolicyType) bool { return slices.Contains(s.PolicyTypes, t) }
	if len(s.PolicyTypes) > 0 {
		if n := len(s.Ingress); n > 0 && !has(networkingv1.PolicyTypeIngress) {
			l.add("ignored-rules", Error, p.object(), field.NewPath("spec", "ingress"), "%s without effect: policyTypes does not have Ingress", count(n, "rule"))
		}
		if n := len(s.Egress); n > 0 && !has(networkingv1.PolicyTypeEgress) {
			l.add("ignored-rules", Error, p.object(), field.NewPath("spec", "egress"), "%s without effect: policyTypes does not have Egress", count(n, "rule"))
		}
		return
	}
	switch {
	case len(s.Egress) > 0 && len(s.Ingress) == 0:
		l.add("implied-types", Warning, p.object(), types, "not there: the policy has only egress rules, and denies all ingress too")
	case s.Egress != nil && len(s.Egress) == 0:
		l.add("implied-types", Warning, p.object(), types, "not there: the empty list of egress rules does not restrict egress")
	}
}

// rule looks at what a rule says, and at whom it matches.
func (l *linter) rule(r *rule) {
	o := r.policy.object()
	if l.never == nil {
		l.never = map[*rule]bool{}
	}
	for i, one := range r.eachPeer() {
		path := r.peersPath().Index(i)
		nothing := true
		for _, p := range one {
			nothing = nothing && p.classes.empty()
			l.block(r, p, path)
		}
		if nothing && len(one) > 0 && one[0].block.IsValid() {
			if r.policy.np != nil && coversAll(one[0]) {
				l.add("except-covers-cidr", Warning, o, path.Child("ipBlock", "except"), "nothing is left of %s", one[0].block)
			}
		} else if nothing && len(r.peers) > 1 {
			l.add("peer-selects-nothing", Info, o, path, "matches %s", nothingOf(one))
		}
	}
	if r.classes.empty() {
		l.never[r] = true
		l.add("rule-never-matches", Warning, o, r.peersPath(), "none of its peers matches anything")
		return
	}
	l.names(r)
	if r.action == allow && r.any && r.ports.Full() {
		way := map[netpol.Direction]string{netpol.Ingress: "from", netpol.Egress: "to"}[r.dir]
		l.add("allow-all", Warning, o, r.path(), "admits everything %s everybody", way)
	}
}

func nothingOf(list []*peer) string {
	if len(list) > 0 && list[0].nodes != nil {
		return "no node"
	}
	return "no pod"
}

// eachPeer gives the peers by the items of the list that they are written in.
func (r *rule) eachPeer() [][]*peer {
	if r.policy.np != nil || r.dir == netpol.Ingress {
		var out [][]*peer
		for _, p := range r.peers {
			out = append(out, []*peer{p})
		}
		return out
	}
	var out [][]*peer
	at := 0
	for _, to := range r.policy.cnp.Spec.Egress[r.index].To {
		n := max(len(to.Networks), 1)
		if at+n > len(r.peers) {
			break
		}
		out = append(out, r.peers[at:at+n])
		at += n
	}
	return out
}

// coversAll tells whether the exceptions of a block leave nothing.
func coversAll(p *peer) bool {
	except := map[netip.Prefix]bool{p.block: true}
	for _, e := range p.except {
		except[e] = true
	}
	family := 4
	if p.block.Addr().Is6() {
		family = 6
	}
	for _, a := range atomsOf(family, except, nil) {
		if a.prefix == p.block {
			return false
		}
	}
	return p.block.Bits() > 0
}

func (l *linter) block(r *rule, p *peer, path *field.Path) {
	if !p.block.IsValid() {
		return
	}
	o := r.policy.object()
	if r.policy.np != nil {
		path = path.Child("ipBlock", "cidr")
	}
	families := l.a.families
	switch {
	case p.block.Bits() == 0:
		if r.action == allow {
			severity := Warning
			said := fmt.Sprintf("%s is every address there is", p.block)
			if len(p.except) > 0 {
				said = fmt.Sprintf("%s is every address there is but %s", p.block, count(len(p.except), "range"))
			}
			if r.dir == netpol.Egress || len(p.except) > 0 {
				severity = Info
			}
			l.add("world-open", severity, o, path, "%s", said)
		}
		other := !p.block.Addr().Is4()
		if families[0] && families[1] && !slices.ContainsFunc(r.peers, func(q *peer) bool { return q.block.IsValid() && q.block.Bits() == 0 && q.block.Addr().Is4() == other }) {
			l.add("one-family", Info, o, path, "%s, and nothing of the other family", p.block)
		}
		return
	case p.block.IsSingleIP():
		for _, s := range l.a.state.Services {
			if slices.Contains(append(s.Spec.ClusterIPs, s.Spec.ClusterIP), p.block.Addr().String()) {
				l.add("service-address", Warning, o, path, "%s is the Service %s/%s", p.block.Addr(), s.Namespace, s.Name)
			}
		}
	}
	var pods []string
	for _, m := range l.a.members {
		for _, c := range m.classes {
			if c >= 0 && !m.dns && !m.pod.Spec.HostNetwork && p.classes.has(c) {
				pods = append(pods, m.pod.Namespace+"/"+m.pod.Name)
			}
		}
	}
	if len(pods) > 0 {
		l.add("block-covers-pods", Info, o, path, "%s covers %s: %s", p.block, count(len(pods), "pod"), some(pods, 3))
	}
}

// names looks for names of ports that stand for nothing.
func (l *linter) names(r *rule) {
	dests := r.classes // whom the rule's ports are about
	if r.dir == netpol.Ingress {
		dests = r.policy.subjects
	}
	unresolved := 0
	for _, n := range r.names {
		found := false
		dests.each(func(c int) bool {
			found = slices.ContainsFunc(l.a.classes[c].ports[n.name], func(p protocolPort) bool { return n.protocol < 0 || n.protocol == p.protocol })
			return !found
		})
		if !found {
			unresolved++
			what := fmt.Sprintf("%q", n.name)
			if n.protocol >= 0 {
				what += " of " + protocolNames[n.protocol]
			}
			l.add("port-name-unresolved", Warning, r.policy.object(), r.portPath(n), "no pod that is asked has a port %s", what)
		}
	}
	if unresolved > 0 && unresolved == len(r.names) && r.ports.Empty() {
		l.never[r] = true
		l.add("rule-never-matches", Warning, r.policy.object(), r.path(), "none of its ports is any pod's that is asked")
	}
}

// portPath finds where a name is written.
func (r *rule) portPath(n named) *field.Path {
	if c := r.policy.cnp; c != nil {
		list := c.Spec.Ingress
		var at int
		if r.dir == netpol.Ingress {
			for i, v := range list[r.index].Protocols {
				if v.DestinationNamedPort == n.name {
					at = i
				}
			}
		} else {
			for i, v := range c.Spec.Egress[r.index].Protocols {
				if v.DestinationNamedPort == n.name {
					at = i
				}
			}
		}
		return r.path().Child("protocols").Index(at).Child("destinationNamedPort")
	}
	var ports []networkingv1.NetworkPolicyPort
	if r.dir == netpol.Ingress {
		ports = r.policy.np.Spec.Ingress[r.index].Ports
	} else {
		ports = r.policy.np.Spec.Egress[r.index].Ports
	}
	for i, v := range ports {
		if v.Port != nil && v.Port.StrVal == n.name && (v.Protocol == nil && n.protocol == 0 || v.Protocol != nil && string(*v.Protocol) == protocolNames[n.protocol]) {
			return r.path().Child("ports").Index(i).Child("port")
		}
	}
	return r.path().Child("ports")
}

// ties looks for policies of one tier and priority that both decide of the same.
func (l *linter) ties() {
	for i, p := range l.a.policies {
		if p.cnp == nil {
			continue
		}
		for _, q := range l.a.policies[i+1:] {
			if q.cnp == nil || q.tier != p.tier || q.cnp.Spec.Priority != p.cnp.Spec.Priority {
				continue
			}
			if d, ok := l.clash(p, q); ok {
				l.add("priority-tie", Warning, q.object(), field.NewPath("spec", "priority"),
					"%d of the %s tier is the priority of %s too, and both have rules about the %s of the same flows that say different things (here names decide: %s goes first)", q.cnp.Spec.Priority, q.tier, p.ref, d, p.ref)
			}
		}
	}
}

// clash tells whether two policies may say different things of one flow.
func (l *linter) clash(p, q *policy) (netpol.Direction, bool) {
	common := newBitset(len(l.a.classes))
	for i := range common {
		common[i] = p.subjects[i] & q.subjects[i]
	}
	if common.empty() {
		return 0, false
	}
	for d := range p.rules {
		for _, r := range p.rules[d] {
			for _, o := range q.rules[d] {
				if r.action == o.action || !r.classes.overlaps(o.classes) {
					continue
				}
				if len(r.names) > 0 || len(o.names) > 0 || !r.ports.and(o.ports).Empty() {
					return netpol.Direction(d), true
				}
			}
		}
	}
	return 0, false
}

// workloads looks at the pods: who is not guarded, and who can't ask the DNS.
func (l *linter) workloads() {
	var dns []int
	for _, m := range l.a.members {
		if m.dns || isDNS(m.pod) {
			for _, c := range m.classes {
				if c >= 0 && !slices.Contains(dns, c) {
					dns = append(dns, c)
				}
			}
		}
	}
	for _, e := range l.a.Ends() {
		if !e.subject {
			continue
		}
		o := Object{e.Kind, e.Namespace, e.Workload}
		part := ""
		if e.Part {
			part = " (" + some(e.Pods, 3) + ")"
		}
		var guarded [2]bool
		for _, c := range e.classes {
			for d := range guarded {
				guarded[d] = guarded[d] || c >= 0 && l.a.classes[c].sets[d] != nil
			}
		}
		switch {
		case !guarded[netpol.Ingress] && !guarded[netpol.Egress]:
			l.add("unguarded-workload", Warning, o, nil, "no policy guards it%s, in either direction", part)
		case !guarded[netpol.Ingress]:
			l.add("unguarded-workload", Info, o, nil, "no policy guards its ingress%s", part)
		case !guarded[netpol.Egress]:
			l.add("unguarded-workload", Info, o, nil, "no policy guards its egress%s", part)
		}
		if guarded[netpol.Egress] {
			l.dns(e, o, part, dns)
		}
	}
}

// dns tells of pods that may reach something, and not the cluster's DNS.
func (l *linter) dns(e End, o Object, part string, dns []int) {
	var udp, tcp, reaches bool
	var isolating []string
	for _, c := range e.classes {
		if c < 0 {
			continue
		}
		view := l.a.view(l.a.classes[c], netpol.Egress)
		for to := range l.a.classes {
			if l.a.classes[to].family != l.a.classes[c].family {
				continue
			}
			set := PortSet{}.or(allPorts())
			if view != nil {
				set = l.a.setsOf[l.a.answers[view[to]].set]
			}
			reaches = reaches || !set.Empty()
			if slices.Contains(dns, to) {
				udp, tcp = udp || set.Has(netpol.UDP, 53), tcp || set.Has(netpol.TCP, 53)
			}
		}
		if s := l.a.classes[c].sets[netpol.Egress]; s != nil {
			for _, p := range s.policies {
				if !slices.Contains(isolating, p.ref.String()) {
					isolating = append(isolating, p.ref.String())
				}
			}
		}
	}
	if !reaches || udp && tcp {
		return
	}
	missing, severity := "UDP and TCP 53", Warning
	switch {
	case udp:
		missing, severity = "TCP 53, which long answers need", Info
	case tcp:
		missing = "UDP 53"
	}
	l.add("dns-forgotten", severity, o, nil, "its egress%s is restricted by %s, and none admits the cluster's DNS on %s", part, strings.Join(isolating, ", "), missing)
}
