package dns

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/mirror"
)

// NameServers is where the kernel is told in whose stead it answers.
type NameServers interface {
	SetNameServers([]netip.AddrPort) error
}

// Beside follows a cluster DNS that others run, so that the kernel answers in its stead, for the names that it knows: what is asked of the DNS
// Service's addresses, and of those of its endpoints, as to many programs the former are the latter already. What the kernel does not answer
// goes there as if it were not there.
type Beside struct {
	service  string // NAMESPACE/NAME
	to       NameServers
	names    *Names
	records  *KernelRecords
	services *mirror.Services
	slices   *mirror.Slices
	changed  chan struct{}
}

// NewBeside follows a mirror, which is to run afterwards.
func NewBeside(m *mirror.Mirror, to NameServers, names *Names, records *KernelRecords, service string) (*Beside, error) {
	b := &Beside{service: service, to: to, names: names, records: records, services: m.Services(), slices: m.Slices(), changed: make(chan struct{}, 1)}
	b.services.Follow(each(func(s *corev1.Service) { b.note(mirror.KeyOf(s)) }))
	b.slices.Follow(each(func(s *discoveryv1.EndpointSlice) { b.note(mirror.ServiceOf(s)) }))
	return b, names.offAtFirst()
}

// note has the kernel told anew if a Service is the DNS.
func (b *Beside) note(service string) {
	if service != b.service {
		return
	}
	select {
	case b.changed <- struct{}{}:
	default:
	}
}

// Run tells the kernel until ctx ends. What it has told stays.
func (b *Beside) Run(ctx context.Context) error {
	if !mirror.Wait(ctx, b.services, b.slices) {
		return nil
	}
	b.note(b.service)
	for backoff := newBackoff(); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-b.changed:
		}
		servers := b.servers()
		if err := b.to.SetNameServers(servers); err != nil {
			klog.ErrorS(err, "The kernel does not know where the cluster's DNS is, trying again", "service", b.service)
			time.AfterFunc(backoff.Step(), func() { b.note(b.service) })
			continue
		}
		backoff = newBackoff()
		if len(servers) == 0 {
			klog.InfoS("There is no such Service: names are not answered in the kernel", "service", b.service)
			continue
		}
		klog.InfoS("The kernel answers in the stead of the cluster's DNS", "service", b.service, "servers", servers)
	}
}

// servers are where the DNS is asked over UDP.
func (b *Beside) servers() []netip.AddrPort {
	svc := b.services.Get(b.service)
	if svc == nil {
		return nil
	}
	var out []netip.AddrPort
	add := func(a netip.Addr, port int32) {
		if to := netip.AddrPortFrom(a, uint16(port)); a.IsValid() && !a.Is4In6() && a.Zone() == "" && port > 0 && !slices.Contains(out, to) {
			out = append(out, to)
		}
	}
	for _, p := range svc.Spec.Ports {
		if p.Protocol == corev1.ProtocolUDP {
			for _, a := range mirror.ClusterIPs(svc) {
				add(a, p.Port)
			}
		}
	}
	for _, s := range b.slices.OfService(b.service) {
		for _, p := range s.Ports {
			if p.Protocol == nil || *p.Protocol != corev1.ProtocolUDP || p.Port == nil {
				continue
			}
			for _, e := range s.Endpoints {
				for _, text := range e.Addresses {
					if a, err := netip.ParseAddr(text); err == nil {
						add(a, *p.Port)
					}
				}
			}
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return out
}

// FollowCorefile makes the kernel answer as CoreDNS does by the Corefile of a ConfigMap (NAMESPACE/NAME), until ctx ends: with its TTL, and not at
// all where it may say something of names in the zone that the kernel does not know. Without a ConfigMap it is as if the Corefile were the usual one.
func (b *Beside) FollowCorefile(ctx context.Context, client kubernetes.Interface, configMap string) error {
	n := b.names
	namespace, name, _ := strings.Cut(configMap, "/")
	ref := klog.KRef(namespace, name)
	return followConfigMap(ctx, client, namespace, name, func(m *corev1.ConfigMap) error {
		cfg := Config{Zones: []string{n.zone}}
		say := func() {}
		if m != nil {
			var skipped []string
			var err error
			if cfg, skipped, err = FromConfigMap(m); err != nil {
				say = func() {
					klog.ErrorS(err, "The cluster's DNS has a configuration that is not understood: all names are left to it", "configMap", ref)
				}
				cfg = Config{inDoubt: true}
			} else if !slices.Contains(cfg.withDefaults().Zones, canonical(n.zone)) {
				say = func() {
					klog.InfoS("The cluster's DNS does not serve the zone: all names are left to it", "configMap", ref, "zone", n.zone)
				}
				cfg.inDoubt = true
			} else if cfg.inZone(n.zone) {
				say = func() {
					klog.InfoS("The cluster's DNS has a configuration of names in the zone that the kernel does not know: all names are left to it", "configMap", ref, "not done", skipped)
				}
			}
		}
		if err := errors.Join(n.Configure(cfg), b.records.Configure(cfg)); err != nil {
			return err
		}
		say()
		return nil
	})
}

// offAtFirst leaves all names to user space until there is a configuration, unless an earlier agent had one.
func (n *Names) offAtFirst() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.known != (bpf.NamesState{}) {
		return nil
	}
	return n.tell(bpf.NamesState{Off: true})
}
