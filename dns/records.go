package dns

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/strake-io/strake/mirror"
)

// specVersion is that of the specification, as TXT dns-version tells it.
const specVersion = "1.1.0"

// Records answers from what a mirror holds; nothing is listed for a query.
type Records struct {
	zone       string // with the trailing dot
	ttl        uint32
	self       []netip.Addr // of the name server
	services   *mirror.Services
	slices     *mirror.Slices
	namespaces *mirror.Namespaces
	pods       *mirror.Pods // nil: pods are not followed
	podNames   string       // such as PodsInsecure
}

// NewRecords has a mirror that does not run yet follow what records are made of. self are the name server's own addresses, those of ns.dns.<zone>.
func NewRecords(m *mirror.Mirror, self ...netip.Addr) *Records {
	r := &Records{self: self, services: m.Services(), slices: m.Slices(), namespaces: m.Namespaces()}
	r.services.FindByAddress()
	r.slices.FindByAddress()
	return r
}

// FollowPods makes PodsVerified possible. Call it before the mirror runs.
func (r *Records) FollowPods(m *mirror.Mirror) {
	r.pods = m.Pods()
	r.pods.FindByAddress()
}

// of are the records of a zone.
func (r *Records) of(zone string, cfg Config) *Records {
	z := *r
	z.zone, z.ttl, z.podNames = zone, cfg.TTL, cfg.Pods
	return &z
}

// ready tells whether all of the cluster has been seen once. Until then an absent name may exist.
func (r *Records) ready() bool {
	return mirror.Seen(r.services, r.slices, r.namespaces) && (r.pods == nil || mirror.Seen(r.pods))
}

// answer is what is known of a name.
type answer struct {
	exists     bool // the name has records, or names below it
	rrs, extra []dns.RR
	cname      string // target to follow
}

// owner makes the header of records of a name.
func (r *Records) owner(name string) func(uint16) dns.RR_Header {
	return func(t uint16) dns.RR_Header {
		return dns.RR_Header{Name: name, Rrtype: t, Class: dns.ClassINET, Ttl: r.ttl}
	}
}

// mine tells whether a lower-case name is in the zone.
func (r *Records) mine(name string) bool { return dns.IsSubDomain(r.zone, name) }

// lookup answers a question about a lower-case name inside the zone. qname is the name as it was asked.
func (r *Records) lookup(qname, name string, qtype uint16) answer {
	labels := dns.SplitDomainName(strings.TrimSuffix(name, r.zone))
	hdr := r.owner(qname)
	if len(labels) == 0 {
		return r.apex(qtype, hdr)
	}
	last := labels[len(labels)-1]
	rest := labels[:len(labels)-1]
	switch {
	case last == "dns-version" && len(rest) == 0:
		a := answer{exists: true}
		if qtype == dns.TypeTXT {
			a.rrs = []dns.RR{&dns.TXT{Hdr: hdr(dns.TypeTXT), Txt: []string{specVersion}}}
		}
		return a
	case last == "dns" && len(rest) == 0:
		return answer{exists: true}
	case last == "dns" && len(rest) == 1 && rest[0] == "ns":
		return answer{exists: true, rrs: addrRRs(hdr, qtype, r.self...)}
	case last == "svc":
		return r.service(rest, qtype, hdr)
	case last == "pod":
		return r.pod(rest, qtype, hdr)
	}
	return answer{}
}

func (r *Records) apex(qtype uint16, hdr func(uint16) dns.RR_Header) answer {
	a := answer{exists: true}
	switch qtype {
	case dns.TypeSOA:
		a.rrs = []dns.RR{r.soa(r.zone)}
	case dns.TypeNS:
		ns := "ns.dns." + r.zone
		a.rrs = []dns.RR{&dns.NS{Hdr: hdr(dns.TypeNS), Ns: ns}}
		a.extra = r.addresses(ns, r.self)
	}
	return a
}

// addresses are all address records of a name.
func (r *Records) addresses(name string, addrs []netip.Addr) []dns.RR {
	return append(addrRRs(r.owner(name), dns.TypeA, addrs...), addrRRs(r.owner(name), dns.TypeAAAA, addrs...)...)
}

// pod answers 10-1-0-1.ns.pod: any address, if the namespace is there, or only those of pods.
func (r *Records) pod(labels []string, qtype uint16, hdr func(uint16) dns.RR_Header) answer {
	if r.podNames == PodsDisabled {
		return answer{}
	}
	switch len(labels) {
	case 0:
		return answer{exists: true}
	case 1:
		return answer{exists: r.namespaces.Has(labels[0])}
	case 2:
	default:
		return answer{}
	}
	addr, ok := dashed(labels[0])
	if !ok || !r.namespaces.Has(labels[1]) || r.podNames == PodsVerified && !r.podWith(labels[1], addr) {
		return answer{}
	}
	return answer{exists: true, rrs: addrRRs(hdr, qtype, addr)}
}

// podWith tells whether a pod of a namespace has an address.
func (r *Records) podWith(namespace string, addr netip.Addr) bool {
	return slices.ContainsFunc(r.pods.At(addr), func(p *corev1.Pod) bool { return p.Namespace == namespace })
}

// dashed reads an address with dashes for its dots or colons.
func dashed(label string) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(strings.ReplaceAll(label, "-", "."))
	if err != nil {
		addr, err = netip.ParseAddr(strings.ReplaceAll(label, "-", ":"))
	}
	return addr, err == nil && addr.Zone() == ""
}

// addrRRs are the records of a type, in an order of chance.
func addrRRs(hdr func(uint16) dns.RR_Header, qtype uint16, addrs ...netip.Addr) []dns.RR {
	var out []dns.RR
	for _, a := range addrs {
		switch {
		case a.Is4() && qtype == dns.TypeA:
			out = append(out, &dns.A{Hdr: hdr(dns.TypeA), A: a.AsSlice()})
		case a.Is6() && qtype == dns.TypeAAAA:
			out = append(out, &dns.AAAA{Hdr: hdr(dns.TypeAAAA), AAAA: a.AsSlice()})
		}
	}
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// service answers what is below svc: namespaces, Services, their endpoints and ports.
func (r *Records) service(labels []string, qtype uint16, hdr func(uint16) dns.RR_Header) answer {
	n := len(labels)
	switch n {
	case 0:
		return answer{exists: true}
	case 1:
		return answer{exists: r.namespaces.Has(labels[0])}
	}
	svc := r.services.Get(labels[n-1] + "/" + labels[n-2])
	if svc == nil {
		return answer{}
	}
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		if n != 2 {
			return answer{}
		}
		if _, err := netip.ParseAddr(strings.TrimSuffix(svc.Spec.ExternalName, ".")); err == nil {
			return answer{} // an address is no name
		}
		target := dns.Fqdn(svc.Spec.ExternalName)
		return answer{exists: true, cname: target, rrs: []dns.RR{&dns.CNAME{Hdr: hdr(dns.TypeCNAME), Target: target}}}
	}
	s := target{r: r, svc: svc, name: labels[n-2] + "." + labels[n-1] + ".svc." + r.zone, headless: svc.Spec.ClusterIP == corev1.ClusterIPNone}
	oneHost := n == 3 && !strings.HasPrefix(labels[0], "_")
	switch {
	case oneHost:
		s.eps = r.host(svc, labels[0])
	case s.headless || n == 3:
		s.eps = endpointsOf(svc, r.slices.OfService(mirror.KeyOf(svc)))
	}
	if s.headless && len(s.eps) == 0 {
		return answer{}
	}
	switch {
	case n == 2 && qtype == dns.TypeSRV:
		return s.srv("", "", hdr)
	case n == 2:
		addrs := mirror.ClusterIPs(svc)
		if s.headless {
			addrs = distinct(s.eps)
		}
		return answer{exists: true, rrs: addrRRs(hdr, qtype, addrs...)}
	case oneHost: // also of Services with a cluster IP: their endpoints' PTRs lead here
		if qtype == dns.TypeSRV && len(s.eps) > 0 {
			s.headless = true // the ports of the endpoint, not those of the Service
			return s.srv("", "", hdr)
		}
		addrs := distinct(s.eps)
		return answer{exists: len(addrs) > 0, rrs: addrRRs(hdr, qtype, addrs...)}
	case n == 3: // nothing but names below it (RFC 8020)
		return answer{exists: labels[0] != "_" && s.srv("", labels[0][1:], hdr).exists}
	case n == 4 && len(labels[0]) > 1 && labels[0][0] == '_' && len(labels[1]) > 1 && labels[1][0] == '_':
		a := s.srv(labels[0][1:], labels[1][1:], hdr)
		if qtype != dns.TypeSRV {
			a.rrs, a.extra = nil, nil
		}
		return a
	}
	return answer{}
}

// host are the endpoints of a Service that have a name of one label. A Service may have thousands: only the slices that can have it are read.
func (r *Records) host(svc *corev1.Service, label string) []endpoint {
	key := mirror.KeyOf(svc)
	list := r.slices.NamedOfService(key)
	if addr, ok := dashed(label); ok {
		for _, s := range r.slices.At(addr) {
			if mirror.ServiceOf(s) == key && !slices.ContainsFunc(list, func(o *discoveryv1.EndpointSlice) bool { return o.Name == s.Name }) {
				list = append(list, s)
			}
		}
	}
	return slices.DeleteFunc(endpointsOf(svc, list), func(e endpoint) bool { return e.host != label })
}

// endpoint is one address of a headless Service.
type endpoint struct {
	host  string // its hostname, or its address
	addr  netip.Addr
	ports []discoveryv1.EndpointPort
}

func distinct(eps []endpoint) []netip.Addr {
	seen := map[netip.Addr]bool{}
	var out []netip.Addr
	for _, e := range eps {
		if !seen[e.addr] {
			seen[e.addr] = true
			out = append(out, e.addr)
		}
	}
	return out
}

// endpointsOf lists those that are ready, or all if the Service publishes them so.
func endpointsOf(svc *corev1.Service, list []*discoveryv1.EndpointSlice) []endpoint {
	var out []endpoint
	for _, s := range list {
		for _, e := range s.Endpoints {
			if !svc.Spec.PublishNotReadyAddresses && e.Conditions.Ready != nil && !*e.Conditions.Ready {
				continue
			}
			for _, t := range e.Addresses {
				if a, err := netip.ParseAddr(t); err == nil {
					out = append(out, endpoint{host: endpointHost(e, a), addr: a, ports: s.Ports})
				}
			}
		}
	}
	return out
}

var toDashes = strings.NewReplacer(".", "-", ":", "-")

func endpointHost(e discoveryv1.Endpoint, a netip.Addr) string {
	if e.Hostname != nil && *e.Hostname != "" {
		return strings.ToLower(*e.Hostname)
	}
	return toDashes.Replace(a.String())
}

// target is a Service that is asked for.
type target struct {
	r        *Records
	svc      *corev1.Service
	name     string // its own, lower case
	headless bool
	eps      []endpoint
}

// srv answers for the ports of a Service: all of them, or those of a name and protocol.
func (s target) srv(port, proto string, hdr func(uint16) dns.RR_Header) answer {
	type record struct {
		host string
		port uint16
	}
	var a answer
	seen := map[record]bool{}
	add := func(name string, protocol corev1.Protocol, number int32, host string) {
		rec := record{host, uint16(number)}
		if name == "" && port+proto != "" || port != "" && strings.ToLower(name) != port || proto != "" && strings.ToLower(string(protocol)) != proto || seen[rec] {
			return
		}
		seen[rec] = true
		a.rrs = append(a.rrs, &dns.SRV{Hdr: hdr(dns.TypeSRV), Port: rec.port, Target: host})
	}
	hosts := map[string][]netip.Addr{}
	if !s.headless {
		hosts[s.name] = mirror.ClusterIPs(s.svc)
		for _, p := range s.svc.Spec.Ports {
			add(p.Name, p.Protocol, p.Port, s.name)
		}
	}
	for _, e := range s.eps {
		host := e.host + "." + s.name
		hosts[host] = append(hosts[host], e.addr)
		for _, p := range e.ports {
			if p.Name != nil && p.Port != nil && p.Protocol != nil {
				add(*p.Name, *p.Protocol, *p.Port, host)
			}
		}
	}
	rand.Shuffle(len(a.rrs), func(i, j int) { a.rrs[i], a.rrs[j] = a.rrs[j], a.rrs[i] })
	for _, rr := range a.rrs {
		rr.(*dns.SRV).Weight = uint16(max(1, 100/len(a.rrs))) // as CoreDNS has them
		host := rr.(*dns.SRV).Target
		a.extra = append(a.extra, s.r.addresses(host, hosts[host])...)
		delete(hosts, host) // once
	}
	// The Service's own name exists without a named port, too.
	a.exists = len(a.rrs) > 0 || port == "" && proto == ""
	return a
}

// reverse are the PTR records of an address of a Service or of endpoints; none if it is nobody's.
func (r *Records) reverse(qname string, addr netip.Addr) []dns.RR {
	var out []dns.RR
	seen := map[string]bool{}
	add := func(labels ...string) {
		target := strings.Join(labels, ".") + ".svc." + r.zone
		if !seen[target] {
			seen[target] = true
			out = append(out, &dns.PTR{Hdr: r.owner(qname)(dns.TypePTR), Ptr: target})
		}
	}
	if list := r.services.At(addr); len(list) > 0 {
		add(list[0].Name, list[0].Namespace)
		return out
	}
	for _, s := range r.slices.At(addr) {
		svc := r.services.Get(mirror.ServiceOf(s))
		if svc == nil {
			continue
		}
		for _, e := range endpointsOf(svc, []*discoveryv1.EndpointSlice{s}) {
			if e.addr == addr {
				add(e.host, svc.Name, svc.Namespace)
			}
		}
	}
	return out
}

// Zones of addresses.
const (
	reverse4 = "in-addr.arpa." // RFC 1035 3.5
	reverse6 = "ip6.arpa."     // RFC 3596 2.5
)

// reverseAddr reads an address out of a lower-case name in one of these zones.
func reverseAddr(name string) (addr netip.Addr, zone string, ok bool) {
	if rest, ok := strings.CutSuffix(name, "."+reverse4); ok {
		p := strings.Split(rest, ".")
		if len(p) != 4 {
			return netip.Addr{}, "", false
		}
		a, err := netip.ParseAddr(p[3] + "." + p[2] + "." + p[1] + "." + p[0])
		return a, reverse4, err == nil && a.Is4()
	}
	rest, ok := strings.CutSuffix(name, "."+reverse6)
	if !ok || len(rest) != 63 {
		return netip.Addr{}, "", false
	}
	var b [16]byte
	for i := range 32 { // the least significant nibble comes first
		nibble := strings.IndexByte("0123456789abcdef", rest[2*i])
		if nibble < 0 || i < 31 && rest[2*i+1] != '.' {
			return netip.Addr{}, "", false
		}
		b[15-i/2] |= byte(nibble << (4 * (i % 2)))
	}
	return netip.AddrFrom16(b), reverse6, true
}

func (r *Records) soa(zone string) dns.RR {
	return &dns.SOA{
		Hdr: r.owner(zone)(dns.TypeSOA), Ns: "ns.dns." + r.zone, Mbox: "hostmaster." + r.zone,
		Serial: 1, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: r.ttl,
	}
}
