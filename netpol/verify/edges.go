package verify

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/netpol"
)

// strangers are addresses that hardly any policy means.
var strangers = []string{"192.0.2.77", "2001:db8:77::77"}

// edges are addresses where verdicts may change: nodes, the cluster's DNS, the first and last ones of blocks and what is beside them. The blocks are the policies', and
// those of rows: what rows have beyond the policies would be asked about by nobody else.
func edges(s netpol.State, rows []bpf.PolicyPeer, untold map[netip.Addr]bool) []end {
	seen := maps.Clone(untold) // whose they are is not known: they are not asked about
	if seen == nil {
		seen = map[netip.Addr]bool{}
	}
	for _, p := range s.Pods {
		if !hasAddrs(p) {
			continue
		}
		for _, ip := range p.Status.PodIPs {
			if a, err := netip.ParseAddr(ip.IP); err == nil {
				seen[a.Unmap()] = true // they are asked about as pods
			}
		}
	}
	var out []end
	add := func(a netip.Addr) {
		a = a.Unmap()
		if a.IsValid() && !a.IsLoopback() && !a.IsUnspecified() && !seen[a] {
			seen[a] = true
			out = append(out, end{End: netpol.End{Addr: a}, class: a.String()})
		}
	}
	prefix := func(p netip.Prefix) {
		first, last := p.Masked().Addr(), lastOf(p)
		for _, a := range []netip.Addr{first, first.Prev(), last, last.Next()} {
			add(a)
		}
	}
	block := func(text string) {
		if p, err := netip.ParsePrefix(text); err == nil {
			prefix(p)
		}
	}
	for _, text := range strangers {
		add(netip.MustParseAddr(text))
	}
	for _, a := range s.DNSAddrs {
		add(a)
	}
	for _, n := range s.Nodes {
		for _, na := range n.Status.Addresses {
			if a, err := netip.ParseAddr(na.Address); err == nil {
				add(a)
			}
		}
	}
	for _, p := range s.NetworkPolicies {
		for _, peer := range peers(p) {
			if b := peer.IPBlock; b != nil {
				block(b.CIDR)
				for _, e := range b.Except {
					block(e)
				}
			}
		}
	}
	for _, p := range s.ClusterNetworkPolicies {
		for _, r := range p.Spec.Egress {
			for _, peer := range r.To {
				for _, c := range peer.Networks {
					block(string(c))
				}
			}
		}
	}
	for _, r := range rows {
		if r.Prefix.IsSingleIP() { // a pod's, most of them
			add(r.Prefix.Addr())
		} else {
			prefix(r.Prefix)
		}
	}
	return out
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 1 << (7 - bit%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func peers(p *networkingv1.NetworkPolicy) []networkingv1.NetworkPolicyPeer {
	var out []networkingv1.NetworkPolicyPeer
	for _, r := range p.Spec.Ingress {
		out = append(out, r.From...)
	}
	for _, r := range p.Spec.Egress {
		out = append(out, r.To...)
	}
	return out
}

// portsOf are the ports at the ends of all ranges and what is beside them, with a protocol that has none. The ranges are the policies', and those of rows.
func portsOf(s netpol.State, rows []bpf.PolicyPort) []port {
	seen := map[port]bool{{netpol.ICMP, 0}: true}
	out := []port{{netpol.ICMP, 0}}
	add := func(protocol uint8, numbers ...int32) {
		for _, n := range numbers {
			p := port{protocol, uint16(n)}
			if n > 0 && n <= 65535 && !seen[p] {
				seen[p] = true
				out = append(out, p)
			}
		}
	}
	for _, protocol := range []uint8{netpol.TCP, netpol.UDP, netpol.SCTP} {
		add(protocol, 1, 65535)
	}
	network := func(ports []networkingv1.NetworkPolicyPort) {
		for _, p := range ports {
			protocol := corev1.ProtocolTCP
			if p.Protocol != nil {
				protocol = *p.Protocol
			}
			number, err := netpol.ProtocolNumber(protocol)
			if err != nil || p.Port == nil {
				continue
			}
			first := p.Port.IntVal
			last := first
			if p.EndPort != nil {
				last = *p.EndPort
			}
			add(number, first-1, first, last, last+1)
		}
	}
	for _, p := range s.NetworkPolicies {
		for _, r := range p.Spec.Ingress {
			network(r.Ports)
		}
		for _, r := range p.Spec.Egress {
			network(r.Ports)
		}
	}
	cluster := func(list []policyv1alpha2.ClusterNetworkPolicyProtocol) {
		for _, p := range list {
			for number, dst := range map[uint8]*policyv1alpha2.Port{netpol.TCP: tcpPort(p.TCP), netpol.UDP: udpPort(p.UDP), netpol.SCTP: sctpPort(p.SCTP)} {
				if dst == nil {
					continue
				}
				add(number, dst.Number-1, dst.Number, dst.Number+1)
				if dst.Range != nil {
					add(number, dst.Range.Start-1, dst.Range.Start, dst.Range.End, dst.Range.End+1)
				}
			}
		}
	}
	for _, p := range s.ClusterNetworkPolicies {
		for _, r := range p.Spec.Ingress {
			cluster(r.Protocols)
		}
		for _, r := range p.Spec.Egress {
			cluster(r.Protocols)
		}
	}
	for _, p := range turns(rows) {
		add(p.protocol, int32(p.number)-1, int32(p.number))
	}
	return out
}

// turns are the ports from which on a list of rows allows what it denies before, or the reverse. If the rows are right policies have ranges, or pods names of
// ports, that begin or end there.
func turns(rows []bpf.PolicyPort) []port {
	sorted := slices.SortedFunc(slices.Values(rows), func(a, b bpf.PolicyPort) int {
		return cmp.Or(cmp.Compare(a.Ports, b.Ports), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Bits, b.Bits))
	})
	type part struct {
		at    int // where it begins; of those that are open: where it ends
		allow bool
	}
	var out []port
	base := false // what the list says of all that it has no other row of: that row is its first
	for i := 0; i < len(sorted); {
		list, protocol := sorted[i].Ports, sorted[i].Protocol
		if i == 0 || sorted[i-1].Ports != list {
			base = false
		}
		parts, open := []part{{0, base}}, []part{{1 << 16, base}}
		begin := func(at int, allow bool) {
			if last := &parts[len(parts)-1]; last.at == at {
				last.allow = allow
			} else {
				parts = append(parts, part{at, allow})
			}
		}
		closeBefore := func(at int) {
			for end := open[len(open)-1].at; len(open) > 1 && end <= at; end = open[len(open)-1].at {
				open = open[:len(open)-1]
				begin(end, open[len(open)-1].allow)
			}
		}
		for ; i < len(sorted) && sorted[i].Ports == list && sorted[i].Protocol == protocol; i++ {
			r := sorted[i]
			if protocol == 0 {
				base = r.Verdict.Allow
				continue
			}
			closeBefore(int(r.Port))
			open = append(open, part{int(r.Port) + 1<<(16-r.Bits), r.Verdict.Allow})
			begin(int(r.Port), r.Verdict.Allow)
		}
		closeBefore(1<<16 - 1)
		for j := 1; j < len(parts); j++ {
			if parts[j].allow != parts[j-1].allow {
				out = append(out, port{protocol, uint16(parts[j].at)})
			}
		}
	}
	return out
}

// hasAddrs tells whether a pod has addresses of its own, and has not ended.
func hasAddrs(p *corev1.Pod) bool {
	return !p.Spec.HostNetwork && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed
}

func tcpPort(p *policyv1alpha2.ClusterNetworkPolicyProtocolTCP) *policyv1alpha2.Port {
	if p == nil {
		return nil
	}
	return p.DestinationPort
}

func udpPort(p *policyv1alpha2.ClusterNetworkPolicyProtocolUDP) *policyv1alpha2.Port {
	if p == nil {
		return nil
	}
	return p.DestinationPort
}

func sctpPort(p *policyv1alpha2.ClusterNetworkPolicyProtocolSCTP) *policyv1alpha2.Port {
	if p == nil {
		return nil
	}
	return p.DestinationPort
}
