package dns

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
)

// Names of the indexes that records are found by.
const (
	byService = "dns-service" // EndpointSlices, by namespace/service
	byAddress = "dns-address" // Services and EndpointSlices, by IP address
)

// version of the specification, as TXT dns-version tells it.
const specVersion = "1.1.0"

// Records answers from the informers' caches; nothing is listed for a query.
type Records struct {
	zone                         string // with the trailing dot
	ttl                          uint32
	services, slices, namespaces cache.Indexer
	synced                       []cache.InformerSynced
}

// NewRecords adds indexes to informers that have not started yet.
func NewRecords(f informers.SharedInformerFactory, zone string, ttl uint32) (*Records, error) {
	svc, sl, ns := f.Core().V1().Services().Informer(), f.Discovery().V1().EndpointSlices().Informer(), f.Core().V1().Namespaces().Informer()
	err := svc.AddIndexers(cache.Indexers{byAddress: func(obj any) ([]string, error) { return obj.(*corev1.Service).Spec.ClusterIPs, nil }})
	if err == nil {
		err = sl.AddIndexers(cache.Indexers{
			byService: func(obj any) ([]string, error) {
				s := obj.(*discoveryv1.EndpointSlice)
				return []string{s.Namespace + "/" + s.Labels[discoveryv1.LabelServiceName]}, nil
			},
			byAddress: func(obj any) ([]string, error) {
				var out []string
				for _, e := range obj.(*discoveryv1.EndpointSlice).Endpoints {
					out = append(out, e.Addresses...)
				}
				return out, nil
			},
		})
	}
	if err != nil {
		return nil, fmt.Errorf("dns: %w", err)
	}
	return &Records{
		zone: dns.Fqdn(strings.ToLower(zone)), ttl: ttl, services: svc.GetIndexer(), slices: sl.GetIndexer(), namespaces: ns.GetIndexer(),
		synced: []cache.InformerSynced{svc.HasSynced, sl.HasSynced, ns.HasSynced},
	}, nil
}

// answer is what is known of a name.
type answer struct {
	exists     bool // the name has records, or names below it
	rrs, extra []dns.RR
	cname      string // target to follow
}

// Mine tells whether a name is ours to answer: inside the zone, or a reverse name of an address that we know.
func (r *Records) mine(name string) bool { return dns.IsSubDomain(r.zone, name) }

// lookup answers a question about a lower-case name inside the zone. qname is the name as it was asked.
func (r *Records) lookup(qname, name string, qtype uint16) answer {
	labels := dns.SplitDomainName(strings.TrimSuffix(name, r.zone))
	hdr := func(t uint16) dns.RR_Header {
		return dns.RR_Header{Name: qname, Rrtype: t, Class: dns.ClassINET, Ttl: r.ttl}
	}
	if len(labels) == 0 {
		return answer{exists: true}
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
	case last == "dns" && (len(rest) == 0 || len(rest) == 1 && rest[0] == "ns"):
		return answer{exists: true}
	case last == "svc":
		return r.service(qname, rest, qtype, hdr)
	case last == "pod":
		return r.pod(rest, qtype, hdr)
	}
	return answer{}
}

func (r *Records) namespace(name string) bool {
	_, ok, err := r.namespaces.GetByKey(name)
	return err == nil && ok
}

// pod answers 10-1-0-1.ns.pod: any address, if the namespace is there.
func (r *Records) pod(labels []string, qtype uint16, hdr func(uint16) dns.RR_Header) answer {
	switch len(labels) {
	case 0:
		return answer{exists: true}
	case 1:
		return answer{exists: r.namespace(labels[0])}
	case 2:
	default:
		return answer{}
	}
	if !r.namespace(labels[1]) {
		return answer{}
	}
	addr, err := netip.ParseAddr(strings.ReplaceAll(labels[0], "-", "."))
	if err != nil {
		if addr, err = netip.ParseAddr(strings.ReplaceAll(labels[0], "-", ":")); err != nil {
			return answer{}
		}
	}
	return answer{exists: true, rrs: addrRRs(hdr, qtype, addr)}
}

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
func (r *Records) service(qname string, labels []string, qtype uint16, hdr func(uint16) dns.RR_Header) answer {
	n := len(labels)
	switch n {
	case 0:
		return answer{exists: true}
	case 1:
		return answer{exists: r.namespace(labels[0])}
	}
	obj, ok, err := r.services.GetByKey(labels[n-1] + "/" + labels[n-2])
	if err != nil || !ok {
		return answer{}
	}
	svc := obj.(*corev1.Service)
	headless := svc.Spec.ClusterIP == corev1.ClusterIPNone
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
	var eps []endpoint
	if headless {
		if eps = r.endpoints(svc); len(eps) == 0 {
			return answer{}
		}
	}
	host := labels[n-2] + "." + labels[n-1] + ".svc." + r.zone
	switch {
	case n == 2:
		if qtype == dns.TypeSRV {
			return r.srv(svc, eps, host, "", "", hdr)
		}
		if headless {
			return answer{exists: true, rrs: addrRRs(hdr, qtype, distinct(eps)...)}
		}
		return answer{exists: true, rrs: addrRRs(hdr, qtype, clusterIPs(svc)...)}
	case n == 3 && headless && !strings.HasPrefix(labels[0], "_"):
		var addrs []netip.Addr
		for _, e := range eps {
			if e.host == labels[0] {
				addrs = append(addrs, e.addr)
			}
		}
		return answer{exists: len(addrs) > 0, rrs: addrRRs(hdr, qtype, addrs...)}
	case n == 3 && strings.HasPrefix(labels[0], "_"):
		return answer{exists: len(r.srv(svc, eps, host, "", labels[0][1:], hdr).rrs) > 0}
	case n == 4 && strings.HasPrefix(labels[0], "_") && strings.HasPrefix(labels[1], "_"):
		a := r.srv(svc, eps, host, labels[0][1:], labels[1][1:], hdr)
		a.exists = len(a.rrs) > 0
		if qtype != dns.TypeSRV {
			a.rrs, a.extra = nil, nil
		}
		return a
	}
	return answer{}
}

func clusterIPs(svc *corev1.Service) []netip.Addr {
	var out []netip.Addr
	for _, t := range svc.Spec.ClusterIPs {
		if a, err := netip.ParseAddr(t); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// endpoint is one address of a headless Service.
type endpoint struct {
	host  string
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

// endpoints lists those that are ready, or all if the Service publishes them so.
func (r *Records) endpoints(svc *corev1.Service) []endpoint {
	objs, err := r.slices.ByIndex(byService, svc.Namespace+"/"+svc.Name)
	if err != nil {
		return nil
	}
	var out []endpoint
	for _, o := range objs {
		s := o.(*discoveryv1.EndpointSlice)
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

func endpointHost(e discoveryv1.Endpoint, a netip.Addr) string {
	if e.Hostname != nil && *e.Hostname != "" {
		return strings.ToLower(*e.Hostname)
	}
	return strings.NewReplacer(".", "-", ":", "-").Replace(a.String())
}

// srv answers for the ports of a Service: all of them, or those of a name and protocol.
func (r *Records) srv(svc *corev1.Service, eps []endpoint, host, port, proto string, hdr func(uint16) dns.RR_Header) answer {
	a := answer{exists: true}
	seen := map[string]bool{}
	add := func(name, protocol string, number uint16, target string, addrs ...netip.Addr) {
		if name == "" || port != "" && strings.ToLower(name) != port || proto != "" && strings.ToLower(protocol) != proto {
			return
		}
		a.rrs = append(a.rrs, &dns.SRV{Hdr: hdr(dns.TypeSRV), Priority: 0, Weight: 100, Port: number, Target: target})
		if seen[target] {
			return
		}
		seen[target] = true
		th := func(t uint16) dns.RR_Header {
			return dns.RR_Header{Name: target, Rrtype: t, Class: dns.ClassINET, Ttl: r.ttl}
		}
		a.extra = append(append(a.extra, addrRRs(th, dns.TypeA, addrs...)...), addrRRs(th, dns.TypeAAAA, addrs...)...)
	}
	if svc.Spec.ClusterIP != corev1.ClusterIPNone {
		for _, p := range svc.Spec.Ports {
			add(p.Name, string(p.Protocol), uint16(p.Port), host, clusterIPs(svc)...)
		}
		return a
	}
	for _, e := range eps {
		for _, p := range e.ports {
			if p.Name != nil && p.Port != nil && p.Protocol != nil {
				add(*p.Name, string(*p.Protocol), uint16(*p.Port), e.host+"."+host, e.addr)
			}
		}
	}
	return a
}

// reverse answers PTR for addresses of Services and endpoints.
func (r *Records) reverse(qname, name string) ([]dns.RR, bool) {
	addr, ok := reverseAddr(name)
	if !ok {
		return nil, false
	}
	ptr := func(target string) dns.RR {
		return &dns.PTR{Hdr: dns.RR_Header{Name: qname, Rrtype: dns.TypePTR, Class: dns.ClassINET, Ttl: r.ttl}, Ptr: target}
	}
	if objs, err := r.services.ByIndex(byAddress, addr.String()); err == nil && len(objs) > 0 {
		s := objs[0].(*corev1.Service)
		return []dns.RR{ptr(s.Name + "." + s.Namespace + ".svc." + r.zone)}, true
	}
	objs, err := r.slices.ByIndex(byAddress, addr.String())
	if err != nil {
		return nil, false
	}
	var out []dns.RR
	for _, o := range objs {
		s := o.(*discoveryv1.EndpointSlice)
		for _, e := range s.Endpoints {
			for _, t := range e.Addresses {
				if t == addr.String() && s.Labels[discoveryv1.LabelServiceName] != "" {
					out = append(out, ptr(endpointHost(e, addr)+"."+s.Labels[discoveryv1.LabelServiceName]+"."+s.Namespace+".svc."+r.zone))
				}
			}
		}
	}
	return out, len(out) > 0
}

// reverseAddr reads an address out of in-addr.arpa or ip6.arpa.
func reverseAddr(name string) (netip.Addr, bool) {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		p := strings.Split(rest, ".")
		if len(p) != 4 {
			return netip.Addr{}, false
		}
		a, err := netip.ParseAddr(p[3] + "." + p[2] + "." + p[1] + "." + p[0])
		return a, err == nil
	}
	rest, ok := strings.CutSuffix(name, ".ip6.arpa.")
	p := strings.Split(rest, ".")
	if !ok || len(p) != 32 {
		return netip.Addr{}, false
	}
	var b strings.Builder
	for i := 31; i >= 0; i-- {
		b.WriteString(p[i])
		if i%4 == 0 && i > 0 {
			b.WriteByte(':')
		}
	}
	a, err := netip.ParseAddr(b.String())
	return a, err == nil
}

func (r *Records) soa() dns.RR {
	return &dns.SOA{
		Hdr: dns.RR_Header{Name: r.zone, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: r.ttl},
		Ns:  "ns.dns." + r.zone, Mbox: "hostmaster." + r.zone, Serial: 1, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: r.ttl,
	}
}
