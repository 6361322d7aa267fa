package allocator

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/strake-io/strake/controlplane/apiserver/resources"
)

// ranges are those that addresses of a family are given from, the cluster's own first. A ServiceCIDR that is being deleted, or
// that is not ready, gives none, nor does the cluster's own range while the ServiceCIDR that tells of it is such a one.
func (a *Allocator) ranges(f corev1.IPFamily) ([]netip.Prefix, error) {
	own := a.cfg.Prefixes[slices.Index(a.families, f)]
	if a.cfg.Further == nil {
		return []netip.Prefix{own}, nil
	}
	all, err := a.cfg.Further()
	if err != nil {
		return nil, fmt.Errorf("list ServiceCIDRs: %w", err)
	}
	var open []netip.Prefix
	closed := map[netip.Prefix]bool{}
	for _, c := range all {
		for _, cidr := range c.Spec.CIDRs {
			p, err := netip.ParsePrefix(cidr)
			switch {
			case err != nil || resources.FamilyOf(p.Addr()) != f:
			case usable(c):
				open = append(open, p)
			default:
				closed[p] = true
			}
		}
	}
	slices.SortFunc(open, func(p, q netip.Prefix) int { return strings.Compare(p.String(), q.String()) })
	if !closed[own] || slices.Contains(open, own) {
		open = slices.Insert(slices.DeleteFunc(open, func(p netip.Prefix) bool { return p == own }), 0, own)
	}
	return slices.Compact(open), nil
}

// usable tells whether addresses are given from a ServiceCIDR. One that nobody has judged yet is ready.
func usable(c *networkingv1.ServiceCIDR) bool {
	return c.DeletionTimestamp == nil && !meta.IsStatusConditionFalse(c.Status.Conditions, networkingv1.ServiceCIDRConditionReady)
}

// gives tells whether an address of a range may be a Service's: the first one never is, nor is the last one of IPv4.
func gives(p netip.Prefix, ip netip.Addr) bool {
	return p.Contains(ip) && ip != p.Addr() && (!ip.Is4() || ip != nth(p, size(p)-1))
}

func listed(ranges []netip.Prefix) string {
	var all []string
	for _, p := range ranges {
		all = append(all, p.String())
	}
	return strings.Join(all, ", ")
}

// reserved is how many addresses at the start of a range are only given when asked for (kubernetes, DNS):
// one sixteenth of it, 16 to 256 (KEP-3070).
func reserved(size uint64) uint64 { return min(max(size/16, 16), 256, size/2) }

// size is how many addresses of a range are chosen from: of a large IPv6 range the first 2^32.
func size(p netip.Prefix) uint64 { return 1 << min(p.Addr().BitLen()-p.Bits(), 32) }

// nth is a range's address of that number, which is less than its size.
func nth(p netip.Prefix, n uint64) netip.Addr {
	b := p.Addr().AsSlice()
	low := b[len(b)-4:]
	binary.BigEndian.PutUint32(low, binary.BigEndian.Uint32(low)+uint32(n))
	a, _ := netip.AddrFromSlice(b) // four or sixteen bytes it is
	return a
}
