package trace

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/strake-io/strake/bpf"
)

// Resolve gives the addresses of a host: an address is its own, a name is looked for with the search list that a pod of the namespace has
// among the names that the kernel answers, and else, with zone empty too, by the machine's own resolver.
func Resolve(host, namespace, zone string, names []bpf.Name) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a.Unmap()}, nil
	}
	if zone != "" {
		zone = strings.Trim(strings.ToLower(zone), ".")
		name := strings.ToLower(strings.TrimSuffix(host, "."))
		for _, suffix := range []string{"", "." + namespace + ".svc." + zone, ".svc." + zone, "." + zone} {
			if i := slices.IndexFunc(names, func(n bpf.Name) bool { return n.Name == name+suffix+"." && len(n.Addrs) > 0 }); i >= 0 {
				return names[i].Addrs, nil
			}
		}
		if strings.HasSuffix(name, "."+zone) || !strings.Contains(name, ".") {
			return nil, fmt.Errorf("no Service has the name %s for a pod of namespace %s (names of headless Services with many pods, and ExternalNames, are to be given by address)", host, namespace)
		}
	}
	ips, err := net.LookupIP(host)
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, ip := range ips {
		if a, ok := netip.AddrFromSlice(ip); ok {
			out = append(out, a.Unmap())
		}
	}
	return out, nil
}
