package dns

import (
	"net/netip"
	"slices"

	"github.com/miekg/dns"
)

// hosts are names that the configuration gives addresses.
type hosts struct {
	ttl   uint32
	addrs map[string][]netip.Addr
	names map[netip.Addr][]string
}

func newHosts(cfg Config) hosts {
	h := hosts{ttl: cfg.HostsTTL, addrs: map[string][]netip.Addr{}, names: map[netip.Addr][]string{}}
	for _, host := range cfg.Hosts {
		addr, err := netip.ParseAddr(host.IP)
		if err != nil {
			continue // Check has refused it
		}
		addr = addr.Unmap()
		for _, n := range host.Names {
			name := canonical(n)
			if !slices.Contains(h.addrs[name], addr) {
				h.addrs[name] = append(h.addrs[name], addr)
			}
			if !slices.Contains(h.names[addr], name) {
				h.names[addr] = append(h.names[addr], name)
			}
		}
	}
	return h
}

// lookup answers a question about a name that there is, or about an address that has names.
func (h hosts) lookup(qname, name string, qtype uint16) answer {
	hdr := func(t uint16) dns.RR_Header {
		return dns.RR_Header{Name: qname, Rrtype: t, Class: dns.ClassINET, Ttl: h.ttl}
	}
	if addrs := h.addrs[name]; len(addrs) > 0 {
		return answer{exists: true, rrs: addrRRs(hdr, qtype, addrs...)}
	}
	addr, _, ok := reverseAddr(name)
	if !ok || len(h.names[addr]) == 0 {
		return answer{}
	}
	a := answer{exists: true}
	if qtype == dns.TypePTR {
		for _, n := range h.names[addr] {
			a.rrs = append(a.rrs, &dns.PTR{Hdr: hdr(dns.TypePTR), Ptr: n})
		}
	}
	return a
}

// noData is the authority section of a name of hosts that has no such records: without it clients don't remember that.
func (h hosts) noData(name string) []dns.RR {
	return []dns.RR{&dns.SOA{
		Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: h.ttl}, Ns: name, Mbox: "hostmaster." + name,
		Serial: 1, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: h.ttl,
	}}
}
