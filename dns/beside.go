package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/bpf"
)

// NameServers is where the kernel is told in whose stead it answers.
type NameServers interface {
	SetNameServers([]netip.AddrPort) error
}

// Beside follows a cluster DNS that others run, so that the kernel answers in its stead, for the names that it knows: what is asked of the DNS
// Service's addresses, and of those of its endpoints, as to many programs the former are the latter already. What the kernel does not answer
// goes there as if it were not there.
type Beside struct {
	service          string // NAMESPACE/NAME
	to               NameServers
	names            *Names
	records          *KernelRecords
	services, slices cache.Indexer
	synced           []cache.InformerSynced
	changed          chan struct{}
}

// NewBeside registers with the informers; start them afterwards.
func NewBeside(f informers.SharedInformerFactory, to NameServers, names *Names, records *KernelRecords, service string) (*Beside, error) {
	svc, sl := f.Core().V1().Services().Informer(), f.Discovery().V1().EndpointSlices().Informer()
	if err := addIndex(sl, byService, sliceService); err != nil {
		return nil, err
	}
	b := &Beside{service: service, to: to, names: names, records: records, services: svc.GetIndexer(), slices: sl.GetIndexer(), changed: make(chan struct{}, 1)}
	for _, informer := range []cache.SharedIndexInformer{svc, sl} {
		registration, err := informer.AddEventHandler(cache.FilteringResourceEventHandler{
			FilterFunc: func(obj any) bool { return b.about(obj) },
			Handler:    cache.ResourceEventHandlerFuncs{AddFunc: b.note, DeleteFunc: b.note, UpdateFunc: func(_, obj any) { b.note(obj) }},
		})
		if err != nil {
			return nil, fmt.Errorf("dns: %w", err)
		}
		b.synced = append(b.synced, registration.HasSynced)
	}
	return b, names.offAtFirst()
}

// about tells whether an object is the DNS Service, or of it.
func (b *Beside) about(obj any) bool {
	if t, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = t.Obj
	}
	switch o := obj.(type) {
	case *corev1.Service:
		return o.Namespace+"/"+o.Name == b.service
	case *discoveryv1.EndpointSlice:
		return o.Namespace+"/"+o.Labels[discoveryv1.LabelServiceName] == b.service
	}
	return false
}

func (b *Beside) note(any) {
	select {
	case b.changed <- struct{}{}:
	default:
	}
}

// Run tells the kernel until ctx ends. What it has told stays.
func (b *Beside) Run(ctx context.Context) error {
	if !cache.WaitForCacheSync(ctx.Done(), b.synced...) {
		return nil
	}
	b.note(nil)
	for backoff := newBackoff(); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-b.changed:
		}
		servers := b.servers()
		if err := b.to.SetNameServers(servers); err != nil {
			klog.ErrorS(err, "The kernel does not know where the cluster's DNS is, trying again", "service", b.service)
			time.AfterFunc(backoff.Step(), func() { b.note(nil) })
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
	obj, ok, err := b.services.GetByKey(b.service)
	if err != nil || !ok {
		return nil
	}
	svc := obj.(*corev1.Service)
	var out []netip.AddrPort
	add := func(a netip.Addr, port int32) {
		if to := netip.AddrPortFrom(a, uint16(port)); a.IsValid() && !a.Is4In6() && a.Zone() == "" && port > 0 && !slices.Contains(out, to) {
			out = append(out, to)
		}
	}
	for _, p := range svc.Spec.Ports {
		if p.Protocol == corev1.ProtocolUDP {
			for _, a := range clusterIPs(svc) {
				add(a, p.Port)
			}
		}
	}
	for _, s := range slicesOf(b.slices, b.service) {
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
