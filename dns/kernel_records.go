package dns

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/mirror"
)

// KernelRecords keeps the answers up to date that the kernel gives as they are: SRV of ports, PTR of addresses, aliases inside the cluster, and more addresses
// than Names holds. They are what Records says, so both layers say the same.
type KernelRecords struct {
	table   bpf.Table[bpf.Record]
	records *Records
	queue   workqueue.TypedRateLimitingInterface[recordsOf]

	// Flush makes the kernel forget what servers outside have said of the cluster's aliases; nil: it keeps nothing. Set it before Run.
	Flush func() error

	mu      sync.Mutex
	zone    *Records                // with the TTL that counts
	hosts   map[netip.Addr][]string // addresses that the configuration gives names
	aliases map[string][]string     // keys of the Services that an ExternalName leads to in the cluster, by its own
	leads   map[string]sets.Set[string]
	told    sets.Set[netip.Addr] // addresses that the kernel has an answer about
}

// recordsOf is whose answers may have changed: a Service, of which the UID tells a deleted one from its successor, or an address.
type recordsOf struct {
	key, uid string
	addr     netip.Addr
}

// addrOwner begins the owners of answers about addresses, which may be of several Services.
const addrOwner = "@"

// NewKernelRecords follows a mirror, which is to run afterwards.
func NewKernelRecords(m *mirror.Mirror, table bpf.Table[bpf.Record], zone string) *KernelRecords {
	k := newKernelRecords(NewRecords(m), table, zone)
	k.records.services.Follow(each(func(svc *corev1.Service) {
		k.queueService(svc)
		k.queueAliases(mirror.KeyOf(svc))
	}))
	k.records.slices.Follow(each(k.queueSlice))
	return k
}

func newKernelRecords(records *Records, table bpf.Table[bpf.Record], zone string) *KernelRecords {
	return &KernelRecords{
		table: table, records: records, aliases: map[string][]string{}, leads: map[string]sets.Set[string]{}, told: sets.New[netip.Addr](),
		zone:  records.of(canonical(zone), Config{}.withDefaults()),
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[recordsOf](10*time.Millisecond, 30*time.Second)),
	}
}

// Configure makes the kernel's answers those of a resolver that has a configuration.
func (k *KernelRecords) Configure(cfg Config) error {
	cfg = cfg.withDefaults()
	hosts := newHosts(cfg).names
	k.mu.Lock()
	if cfg.TTL == k.zone.ttl && maps.EqualFunc(hosts, k.hosts, slices.Equal) {
		k.mu.Unlock()
		return nil
	}
	k.zone, k.hosts = k.records.of(k.zone.zone, cfg), hosts
	k.mu.Unlock()
	for svc := range k.records.services.All() {
		k.queueService(svc)
	}
	return nil
}

// queueSlice notes whose answers a slice has a part in. A Service that is not known yet sees its slices when it comes.
func (k *KernelRecords) queueSlice(s *discoveryv1.EndpointSlice) {
	key := mirror.ServiceOf(s)
	svc := k.records.services.Get(key)
	headless := svc != nil && svc.Spec.ClusterIP == corev1.ClusterIPNone
	k.queueAddresses(headless, s)
	if headless { // else its answers don't depend on its endpoints
		k.queue.Add(recordsOf{key: key, uid: string(svc.UID)})
		k.queueAliases(key)
	}
}

func (k *KernelRecords) queueService(svc *corev1.Service) {
	key := mirror.KeyOf(svc)
	k.queue.Add(recordsOf{key: key, uid: string(svc.UID)})
	for _, a := range mirror.ClusterIPs(svc) {
		k.queue.Add(recordsOf{addr: a})
	}
	k.queueAddresses(svc.Spec.ClusterIP == corev1.ClusterIPNone, k.records.slices.OfService(key)...)
}

// queueAddresses notes the addresses of endpoints: of headless Services, or of any those that are told of already.
func (k *KernelRecords) queueAddresses(headless bool, list ...*discoveryv1.EndpointSlice) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, s := range list {
		for _, e := range s.Endpoints {
			for _, t := range e.Addresses {
				if a, err := netip.ParseAddr(t); err == nil && (headless || k.told.Has(a)) {
					k.queue.Add(recordsOf{addr: a})
				}
			}
		}
	}
}

// queueAliases notes the Services that lead to one.
func (k *KernelRecords) queueAliases(key string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for alias := range k.leads[key] {
		if svc := k.records.services.Get(alias); svc != nil {
			k.queue.Add(recordsOf{key: alias, uid: string(svc.UID)})
		}
	}
}

// Run writes answers until ctx ends. What it has written stays.
func (k *KernelRecords) Run(ctx context.Context) error {
	defer k.queue.ShutDown()
	if !mirror.Wait(ctx, k.records.services, k.records.slices) {
		return nil
	}
	defer context.AfterFunc(ctx, k.queue.ShutDown)()
	if err := k.prune(); err != nil {
		klog.ErrorS(err, "Answers of Services that are gone are in the kernel still")
	}
	for {
		o, quit := k.queue.Get()
		if quit {
			return nil
		}
		if err := k.sync(o); err != nil {
			klog.ErrorS(err, "Answer is not in the kernel yet, trying again", "service", o.key, "address", o.addr)
			k.queue.AddRateLimited(o)
		} else {
			k.queue.Forget(o)
		}
		k.queue.Done(o)
	}
}

// prune deletes the answers of Services and addresses that went while nobody watched.
func (k *KernelRecords) prune() error {
	live := map[string]bool{}
	for svc := range k.records.services.All() {
		live[string(svc.UID)] = true
	}
	_, err := k.table.Prune(func(owner string) bool {
		text, ok := strings.CutPrefix(owner, addrOwner)
		if !ok {
			return live[owner]
		}
		addr, err := netip.ParseAddr(text)
		return err == nil && len(k.reverseOf(addr)) > 0
	})
	return err
}

func (k *KernelRecords) sync(o recordsOf) error {
	if o.key == "" {
		k.tell(o.addr, true) // before it is looked at: what changes from here on comes again
		want := k.reverseOf(o.addr)
		if len(want) == 0 {
			k.tell(o.addr, false)
		}
		_, err := k.table.Replace(addrOwner+o.addr.String(), want)
		return err
	}
	svc := k.records.services.Get(o.key)
	if k.Flush != nil && (k.isAlias(o.key) || svc != nil && svc.Spec.Type == corev1.ServiceTypeExternalName) {
		if err := k.Flush(); err != nil {
			return err
		}
	}
	var want []bpf.Record
	if svc == nil {
		k.unfollow(o.key)
	} else if string(svc.UID) == o.uid {
		want = k.answersOf(svc)
	}
	_, err := k.table.Replace(o.uid, want)
	return err
}

func (k *KernelRecords) tell(addr netip.Addr, told bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.told.Delete(addr); told {
		k.told.Insert(addr)
	}
}

func (k *KernelRecords) isAlias(key string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, ok := k.aliases[key]
	return ok
}

// follow notes which Services an alias leads to, so that it is written anew when one of them changes.
func (k *KernelRecords) follow(alias string, to []string) {
	k.unfollow(alias)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.aliases[alias] = to
	for _, key := range to {
		if k.leads[key] == nil {
			k.leads[key] = sets.New[string]()
		}
		k.leads[key].Insert(alias)
	}
}

func (k *KernelRecords) unfollow(alias string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, key := range k.aliases[alias] {
		if k.leads[key].Delete(alias); k.leads[key].Len() == 0 {
			delete(k.leads, key)
		}
	}
	delete(k.aliases, alias)
}

// answersOf are those that a Service has.
func (k *KernelRecords) answersOf(svc *corev1.Service) []bpf.Record {
	k.mu.Lock()
	zone := k.zone
	k.mu.Unlock()
	key := mirror.KeyOf(svc)
	name := svc.Name + "." + svc.Namespace + ".svc." + zone.zone
	var out []bpf.Record
	add := func(name string, types ...uint16) {
		for _, t := range types {
			q := new(dns.Msg).SetQuestion(strings.ToLower(name), t)
			m, outside := inCluster(zone, func(target string) *Records {
				if zone.mine(target) {
					return zone
				}
				return nil
			}, q, strings.ToLower(name))
			if outside == "" && (len(m.Answer) > 0 || m.Rcode == dns.RcodeSuccess) { // or that there are none
				out = appendRecord(out, string(svc.UID), m)
			}
		}
	}
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		k.follow(key, leadsTo(zone, svc))
		add(name, dns.TypeA, dns.TypeAAAA, dns.TypeCNAME)
		return out
	}
	k.unfollow(key)
	add(name, dns.TypeSRV)
	if svc.Spec.ClusterIP != corev1.ClusterIPNone {
		for _, p := range svc.Spec.Ports {
			if p.Name != "" {
				add("_"+p.Name+"._"+string(p.Protocol)+"."+name, dns.TypeSRV)
			}
		}
		return out
	}
	eps := endpointsOf(svc, zone.slices.OfService(key))
	if len(eps) > maxKernelAddrs {
		add(name, dns.TypeA, dns.TypeAAAA)
	}
	ports := sets.New[string]()
	for _, e := range eps {
		for _, p := range e.ports {
			if p.Name != nil && p.Protocol != nil && *p.Name != "" {
				ports.Insert("_" + *p.Name + "._" + string(*p.Protocol) + "." + name)
			}
		}
	}
	for _, port := range sets.List(ports) {
		add(port, dns.TypeSRV)
	}
	return out
}

// leadsTo are the keys of all Services that an ExternalName's answer depends on, in the cluster.
func leadsTo(zone *Records, svc *corev1.Service) []string {
	var out []string
	for range maxChase {
		target := canonical(svc.Spec.ExternalName)
		if svc.Spec.Type != corev1.ServiceTypeExternalName || !zone.mine(target) {
			break
		}
		labels := dns.SplitDomainName(strings.TrimSuffix(target, zone.zone))
		n := len(labels)
		if n < 3 || labels[n-1] != "svc" {
			break
		}
		out = append(out, labels[n-2]+"/"+labels[n-3])
		if svc = zone.services.Get(out[len(out)-1]); svc == nil {
			break
		}
	}
	return out
}

// reverseOf is the answer about an address of a Service, or of the endpoints of headless ones.
func (k *KernelRecords) reverseOf(addr netip.Addr) []bpf.Record {
	k.mu.Lock()
	zone, given := k.zone, len(k.hosts[addr]) > 0
	k.mu.Unlock()
	if given || !k.named(zone, addr) {
		return nil
	}
	name, err := dns.ReverseAddr(addr.String())
	if err != nil {
		return nil
	}
	m := new(dns.Msg).SetReply(new(dns.Msg).SetQuestion(name, dns.TypePTR))
	m.Authoritative = true
	if m.Answer = zone.reverse(name, addr); len(m.Answer) == 0 {
		return nil
	}
	return appendRecord(nil, addrOwner+addr.String(), m)
}

// named tells whether an address is of a Service, or of an endpoint of a headless one.
func (k *KernelRecords) named(zone *Records, addr netip.Addr) bool {
	if len(zone.services.At(addr)) > 0 {
		return true
	}
	return slices.ContainsFunc(zone.slices.At(addr), func(s *discoveryv1.EndpointSlice) bool {
		svc := zone.services.Get(mirror.ServiceOf(s))
		return svc != nil && svc.Spec.ClusterIP == corev1.ClusterIPNone
	})
}

// appendRecord leaves out what can't be written: a name that is too long, or no name. The order is always the same, so that nothing is written anew
// that has not changed; but aliases come as they follow on each other.
func appendRecord(to []bpf.Record, owner string, m *dns.Msg) []bpf.Record {
	m.Compress = true
	for _, section := range [][]dns.RR{m.Answer, m.Extra} {
		slices.SortStableFunc(section, func(a, b dns.RR) int {
			_, first := a.(*dns.CNAME)
			_, second := b.(*dns.CNAME)
			switch {
			case first && second:
				return 0
			case first:
				return -1
			case second:
				return 1
			}
			return strings.Compare(a.String(), b.String())
		})
	}
	data, err := m.Pack()
	if err != nil {
		return to
	}
	return append(to, bpf.Record{Owner: owner, Message: data})
}
