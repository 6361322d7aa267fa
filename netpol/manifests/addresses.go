package manifests

import (
	"cmp"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/strake-io/strake/netpol"
)

// Ranges that pods without addresses get theirs from, in this order: what clusters use for pods, then whatever is left.
var (
	ranges4 = prefixes("10.244.0.0/16", "100.64.0.0/10", "10.0.0.0/8", "172.16.0.0/12", "198.18.0.0/15", "240.0.0.0/4", "1.0.0.0/8", "0.0.0.0/0")
	ranges6 = prefixes("fd00:10:244::/56", "fd00::/8", "2001:db8::/32", "2000::/3", "::/0")
	// never are those that no pod can have.
	never = prefixes("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32", "::/8", "fe80::/10", "ff00::/8")
)

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, v := range list {
		out = append(out, netip.MustParsePrefix(v))
	}
	return out
}

// haveAddresses gives pods addresses that have none: of the ranges, if there are any, and then none that a block covers which lies in a range; else of IPv4, unless
// all that there is is of IPv6, and of IPv6, if something is of it, and none that any block covers. It tells whether there was none.
func haveAddresses(s *netpol.State, ranges []netip.Prefix) (full bool) {
	blocks := blocks(s)
	closed := append(slices.DeleteFunc(slices.Clone(blocks), func(b netip.Prefix) bool { return coversAny(b, ranges) }), never...)
	slices.SortFunc(closed, byAddr)
	taken := map[netip.Addr]bool{}
	var four, six bool
	seen := func(v string) {
		if a, ok := address(v); ok {
			taken[a] = true
			four, six = four || a.Is4(), six || a.Is6()
		}
	}
	for _, p := range s.Pods {
		for _, ip := range p.Status.PodIPs {
			seen(ip.IP)
		}
	}
	for _, n := range s.Nodes {
		for _, v := range n.Status.Addresses {
			seen(v.Address)
		}
	}
	for _, b := range blocks {
		four, six = four || b.Addr().Is4(), six || b.Addr().Is6()
	}
	four = four || !six
	next4, next6 := free{ranges: ranges4}, free{ranges: ranges6}
	if len(ranges) > 0 {
		next4.ranges, next6.ranges = nil, nil
		for _, r := range ranges {
			if r.Addr().Is4() {
				next4.ranges = append(next4.ranges, r)
			} else {
				next6.ranges = append(next6.ranges, r)
			}
		}
		four, six = len(next4.ranges) > 0, len(next6.ranges) > 0
	}
	for _, p := range s.Pods {
		if len(p.Status.PodIPs) > 0 {
			continue
		}
		if p.Spec.HostNetwork {
			p.Status.PodIPs = nodeAddresses(s, p.Spec.NodeName)
		}
		give := func(from *free) {
			a, ok := from.take(closed, taken)
			p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: a.String()})
			full = full || !ok
		}
		if len(p.Status.PodIPs) == 0 {
			if four {
				give(&next4)
			}
			if six {
				give(&next6)
			}
		}
		p.Status.PodIP = p.Status.PodIPs[0].IP
	}
	return full
}

// coversAny tells whether a block covers one of the ranges whole.
func coversAny(block netip.Prefix, ranges []netip.Prefix) bool {
	return slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return block.Bits() <= r.Bits() && block.Contains(r.Addr()) })
}

// nodeAddresses are those of a node that its host network's pods have: of each family the first InternalIP.
func nodeAddresses(s *netpol.State, name string) []corev1.PodIP {
	var out []corev1.PodIP
	have := map[bool]bool{}
	for _, n := range s.Nodes {
		if n.Name != name {
			continue
		}
		for _, v := range n.Status.Addresses {
			if a, ok := address(v.Address); ok && v.Type == corev1.NodeInternalIP && !have[a.Is4()] {
				have[a.Is4()] = true
				out = append(out, corev1.PodIP{IP: a.String()})
			}
		}
	}
	return out
}

// blocks are the ranges that policies name, excepted ones too, but for those of length 0.
func blocks(s *netpol.State) []netip.Prefix {
	var out []netip.Prefix
	add := func(v string) {
		if p, err := netip.ParsePrefix(v); err == nil && p.Bits() > 0 {
			out = append(out, netip.PrefixFrom(p.Addr().Unmap(), p.Bits()).Masked())
		}
	}
	peers := func(list []networkingv1.NetworkPolicyPeer) {
		for _, p := range list {
			if p.IPBlock != nil {
				add(p.IPBlock.CIDR)
				for _, e := range p.IPBlock.Except {
					add(e)
				}
			}
		}
	}
	for _, n := range s.NetworkPolicies {
		for _, r := range n.Spec.Ingress {
			peers(r.From)
		}
		for _, r := range n.Spec.Egress {
			peers(r.To)
		}
	}
	for _, c := range s.ClusterNetworkPolicies {
		for _, r := range c.Spec.Egress {
			for _, p := range r.To {
				for _, n := range p.Networks {
					add(string(n))
				}
			}
		}
	}
	slices.SortFunc(out, byAddr)
	return slices.Compact(out)
}

func byAddr(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// free walks through ranges and takes addresses that nobody has.
type free struct {
	ranges []netip.Prefix
	at     int // the range that is walked through
	last   netip.Addr
}

// take gives an address that is in none of the closed ranges, which are sorted; if there is none left, one that is.
func (f *free) take(closed []netip.Prefix, taken map[netip.Addr]bool) (netip.Addr, bool) {
	for f.at < len(f.ranges) {
		r := f.ranges[f.at]
		if !f.last.IsValid() {
			f.last = r.Addr()
		}
		f.last = f.last.Next()
		for i := 0; i < len(closed) && f.last.IsValid(); i++ { // since they are sorted, a jump never leads into one that was looked at
			if closed[i].Contains(f.last) {
				f.last = lastOf(closed[i]).Next()
			}
		}
		if !f.last.IsValid() || !r.Contains(f.last) {
			f.at, f.last = f.at+1, netip.Addr{}
			continue
		}
		if !taken[f.last] {
			taken[f.last] = true
			return f.last, true
		}
	}
	a := f.ranges[0].Addr().Next()
	for taken[a] {
		a = a.Next()
	}
	taken[a] = true
	return a, false
}

// lastOf is the last address of a range.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b) // of 4 or 16 bytes
	return a
}
