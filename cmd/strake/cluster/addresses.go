package cluster

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/strake-io/strake/cni"
)

// IPFamily names the families that a cluster has; the first is the primary one.
type IPFamily string

// The families that --ip-family knows. A dual-stack cluster with IPv6 first is one whose ranges are named in that order.
const (
	IPv4      IPFamily = "ipv4"
	IPv6      IPFamily = "ipv6"
	DualStack IPFamily = "dual"
)

// UnmarshalText reads a flag.
func (f *IPFamily) UnmarshalText(text []byte) error {
	switch v := IPFamily(text); v {
	case IPv4, IPv6, DualStack:
		*f = v
		return nil
	}
	return fmt.Errorf("%q is none of %s, %s and %s", text, IPv4, IPv6, DualStack)
}

// MarshalText is the inverse.
func (f IPFamily) MarshalText() ([]byte, error) { return []byte(f), nil }

func familyOf(ranges []netip.Prefix) IPFamily {
	switch {
	case len(ranges) == 2:
		return DualStack
	case len(ranges) == 1 && ranges[0].Addr().Is6():
		return IPv6
	}
	return IPv4
}

// ParseAddrs reads one address, or two of different families with a comma between.
func ParseAddrs(s string) ([]netip.Addr, error) { return parseList(s, netip.ParseAddr) }

// ParsePrefixes reads one range, or two of different families with a comma between.
func ParsePrefixes(s string) ([]netip.Prefix, error) { return parseList(s, netip.ParsePrefix) }

func parseList[T any](s string, parse func(string) (T, error)) ([]T, error) {
	var list []T
	for part := range strings.SplitSeq(s, ",") {
		v, err := parse(strings.TrimSpace(part))
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, nil
}

// family is what differs between the families.
type family struct {
	name                 string
	podCIDR, serviceCIDR netip.Prefix // by default
	node                 int          // length of a node's part of the pod range
	pod, service         [2]int       // lengths that the ranges may have
	example              string       // of a range
	netlink              int
}

var families = map[bool]family{ // by whether it is IPv6
	false: {name: "IPv4", podCIDR: netip.MustParsePrefix("10.244.0.0/16"), serviceCIDR: netip.MustParsePrefix("10.96.0.0/16"), node: 24,
		pod: [2]int{8, 24}, service: [2]int{8, 28}, example: "192.168.0.0/16", netlink: netlink.FAMILY_V4},
	true: {name: "IPv6", podCIDR: netip.MustParsePrefix("fd00:10:244::/56"), serviceCIDR: netip.MustParsePrefix("fd00:10:96::/112"), node: 64,
		pod: [2]int{48, 64}, service: [2]int{108, 124}, example: "fd00:1::/64", netlink: netlink.FAMILY_V6},
}

// NodeBits is the length of a node's part of a pod range.
func NodeBits(podCIDR netip.Prefix) int { return families[podCIDR.Addr().Is6()].node }

// dnsIndex is the place of the cluster DNS in a Service range, where every distribution has it.
const dnsIndex = 10

func nth(p netip.Prefix, n int) netip.Addr {
	a := p.Masked().Addr()
	for range n {
		a = a.Next()
	}
	return a
}

func nthOfEach(ranges []netip.Prefix, n int) []netip.Addr {
	list := make([]netip.Addr, len(ranges))
	for i, r := range ranges {
		list[i] = nth(r, n)
	}
	return list
}

func areV6(ranges []netip.Prefix) []bool {
	list := make([]bool, len(ranges))
	for i, r := range ranges {
		list[i] = r.Addr().Is6()
	}
	return list
}

func familyNames(v6 []bool) string {
	names := make([]string, len(v6))
	for i, f := range v6 {
		names[i] = families[f].name
	}
	return strings.Join(names, " and ")
}

// completeAddresses settles the families by what was given of them, and then finds what was not given.
func (s *Settings) completeAddresses() error {
	if s.Joined() {
		return nil
	}
	v6 := map[IPFamily][]bool{"": {false}, IPv4: {false}, IPv6: {true}, DualStack: {false, true}}[s.IPFamily]
	switch {
	case len(s.PodCIDRs) > 0:
		v6 = areV6(s.PodCIDRs)
	case len(s.ServiceCIDRs) > 0:
		v6 = areV6(s.ServiceCIDRs)
	case s.IPFamily == "" && len(s.NodeAddrs) > 0:
		v6 = nil
		for _, a := range s.NodeAddrs {
			v6 = append(v6, a.Is6())
		}
	}
	if s.IPFamily != "" && len(s.PodCIDRs)+len(s.ServiceCIDRs) > 0 && len(v6) > 0 {
		if have := familyOf(append(slices.Clone(s.PodCIDRs), s.ServiceCIDRs...)[:len(v6)]); have != s.IPFamily {
			return fmt.Errorf("--%s %s does not fit the ranges, which are %s; leave the flag out, or name ranges of these families", FlagIPFamily, s.IPFamily, familyNames(v6))
		}
	}
	if len(s.PodCIDRs) == 0 {
		for _, f := range v6 {
			s.PodCIDRs = append(s.PodCIDRs, families[f].podCIDR)
		}
	}
	if len(s.ServiceCIDRs) == 0 {
		for _, f := range v6 {
			s.ServiceCIDRs = append(s.ServiceCIDRs, families[f].serviceCIDR)
		}
	}
	s.DNSAddrs = nthOfEach(s.ServiceCIDRs, dnsIndex)
	return s.findNodeAddrs(v6)
}

// findNodeAddrs finds the addresses that were not given.
func (s *Settings) findNodeAddrs(v6 []bool) error {
	if len(s.NodeAddrs) > 0 {
		return nil
	}
	for _, f := range v6 {
		a, err := nodeAddr(families[f], anywhere)
		if err != nil {
			return err
		}
		s.NodeAddrs = append(s.NodeAddrs, a)
	}
	s.FoundAddrs = true
	return nil
}

// checkAddresses holds all addresses and ranges against each other.
func (s Settings) checkAddresses() error {
	v6 := areV6(s.PodCIDRs)
	if len(v6) == 0 || len(v6) > 2 || len(v6) == 2 && v6[0] == v6[1] {
		return fmt.Errorf("--%s %s: give one range, or two of different families, the primary one first", FlagPodCIDR, join(s.PodCIDRs))
	}
	for _, r := range s.PodCIDRs {
		f := families[r.Addr().Is6()]
		if err := checkRange(FlagPodCIDR, r, f.pod, f.podCIDR); err != nil {
			return err
		}
	}
	if !s.Joined() {
		for _, r := range s.ServiceCIDRs {
			f := families[r.Addr().Is6()]
			if err := checkRange(FlagServiceCIDR, r, f.service, f.serviceCIDR); err != nil {
				return err
			}
		}
		if have := areV6(s.ServiceCIDRs); !slices.Equal(have, v6) {
			return fmt.Errorf("--%s %s is %s, but the pod range is %s: name ranges of the same families in the same order", FlagServiceCIDR, join(s.ServiceCIDRs), familyNames(have), familyNames(v6))
		}
	}
	var dns []bool
	for _, a := range s.DNSAddrs {
		dns = append(dns, a.Is6())
	}
	if !slices.Equal(dns, v6) {
		return fmt.Errorf("the cluster DNS addresses %s are not of the pod ranges' families (%s)", join(s.DNSAddrs), familyNames(v6))
	}
	var addrs []bool
	for _, a := range s.NodeAddrs {
		if !a.IsValid() || a.Is4In6() || a.Zone() != "" || !a.IsGlobalUnicast() && !a.IsLoopback() {
			return fmt.Errorf("--%s %s is not an address that other nodes could reach", FlagNodeIP, a)
		}
		addrs = append(addrs, a.Is6())
	}
	if !slices.Equal(addrs, v6) {
		return fmt.Errorf("--%s %s is %s, but the cluster is %s: name an address of each family in the same order", FlagNodeIP, join(s.NodeAddrs), familyNames(addrs), familyNames(v6))
	}
	all := slices.Concat(s.PodCIDRs, s.ServiceCIDRs)
	for i, r := range all {
		flag := FlagPodCIDR
		if i >= len(s.PodCIDRs) {
			flag = FlagServiceCIDR
		}
		for _, a := range s.NodeAddrs {
			if r.Contains(a) {
				return fmt.Errorf("the node's address %s lies in %s; choose another range with --%s", a, r, flag)
			}
		}
		for _, other := range all[:i] {
			if r.Overlaps(other) {
				return fmt.Errorf("--%s %s and --%s %s overlap; choose ranges that don't", FlagPodCIDR, other, flag, r)
			}
		}
	}
	for _, r := range s.NoMasquerade {
		f := families[r.Addr().Is6()]
		if !r.IsValid() || r != r.Masked() || !slices.Contains(v6, r.Addr().Is6()) {
			return fmt.Errorf("--%s %s is not a range of the cluster's family (%s), such as %s", FlagNoMasquerade, r, familyNames(v6), f.example)
		}
	}
	for _, r := range s.AllowLinkLocal {
		if !r.IsValid() || r != r.Masked() || !r.Addr().IsLinkLocalUnicast() && !r.Addr().IsLinkLocalMulticast() {
			return fmt.Errorf("--%s %s is not a link-local range, such as 169.254.20.10/32", FlagLinkLocal, r)
		}
	}
	return nil
}

func checkRange(flag string, r netip.Prefix, lengths [2]int, example netip.Prefix) error {
	f := families[r.Addr().Is6()]
	if !r.IsValid() || r.Addr().Is4In6() || r != r.Masked() || r.Bits() < lengths[0] || r.Bits() > lengths[1] {
		part := ""
		if flag == FlagPodCIDR {
			part = fmt.Sprintf(" (a node's part of it is a /%d)", f.node)
		}
		return fmt.Errorf("--%s %s is not an %s range of /%d to /%d%s, such as %s", flag, r, f.name, lengths[0], lengths[1], part, example)
	}
	return nil
}

func join[T fmt.Stringer](list []T) string {
	words := make([]string, len(list))
	for i, v := range list {
		words[i] = v.String()
	}
	return strings.Join(words, ",")
}

// place is where an address of the node is looked for.
type place bool

const (
	anywhere       place = false // on the interface of the default route, else on any but loopback
	onDefaultRoute place = true  // there alone: while a node runs, an uplink that is away for a while is no reason to move to what is left
)

// nodeAddr finds the machine's address of a family.
func nodeAddr(f family, where place) (netip.Addr, error) {
	fail := func(err error) (netip.Addr, error) { return netip.Addr{}, fmt.Errorf("node address: %w", err) }
	links, err := cni.Whole(netlink.LinkList)
	if err != nil {
		return fail(err)
	}
	routes, err := cni.Whole(func() ([]netlink.Route, error) { return netlink.RouteList(nil, f.netlink) })
	if err != nil {
		return fail(err)
	}
	preferred := 0
	for _, r := range routes {
		if r.Gw != nil && (r.Dst == nil || r.Dst.IP.IsUnspecified()) {
			preferred = r.LinkIndex
			break
		}
	}
	var found netip.Addr
	for _, link := range links {
		addrs, err := cni.Whole(func() ([]netlink.Addr, error) { return netlink.AddrList(link, f.netlink) })
		if err != nil {
			return fail(err)
		}
		for _, a := range addrs {
			ip, ok := netip.AddrFromSlice(a.IP)
			if ip = ip.Unmap(); !ok || !ip.IsGlobalUnicast() || strings.HasPrefix(link.Attrs().Name, "stk") {
				continue
			}
			if link.Attrs().Index == preferred {
				return ip, nil
			}
			if !found.IsValid() && where == anywhere {
				found = ip
			}
		}
	}
	if !found.IsValid() && where == onDefaultRoute {
		return fail(fmt.Errorf("the interface of the default route has no %s address, or there is none", f.name))
	}
	if !found.IsValid() {
		return fail(errors.New("this machine has no " + f.name + " address but loopback; give it one, or name one with --" + FlagNodeIP))
	}
	return found, nil
}
