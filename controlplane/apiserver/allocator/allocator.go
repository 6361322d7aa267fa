// Package allocator hands out the addresses and ports of Services.
//
// Its one idea: what is allocated is what the stored Services say. At start the
// allocator reads them all; afterwards every write of a Service goes through its
// hooks, under one lock that is held until the write has succeeded or failed. A
// crash therefore leaks nothing and nothing is given twice.
package allocator

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
)

// reserved is how many addresses at the start of the range are only given when asked for (kubernetes, DNS):
// one sixteenth of the range, 16 to 256 (KEP-3070).
func reserved(size uint64) uint64 { return min(max(size/16, 16), 256, size/2) }

// Allocator knows which address and which port belongs to which Service.
type Allocator struct {
	prefix   netip.Prefix
	min, max int32

	mu    sync.Mutex
	ips   map[netip.Addr]types.NamespacedName
	ports map[portKey]types.NamespacedName
}

type portKey struct {
	protocol corev1.Protocol
	port     int32
}

// New makes an allocator of ClusterIPs in prefix (IPv4) and node ports from min to max. Load must run before its hooks.
func New(prefix netip.Prefix, min, max int32) *Allocator {
	return &Allocator{prefix: prefix.Masked(), min: min, max: max, ips: map[netip.Addr]types.NamespacedName{}, ports: map[portKey]types.NamespacedName{}}
}

// Load takes over what stored Services hold. Two that hold the same are both left as they are, and named in the error.
func (a *Allocator) Load(services []corev1.Service) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var errs []error
	for i := range services {
		s := &services[i]
		name := types.NamespacedName{Namespace: s.Namespace, Name: s.Name}
		if ip, ok := clusterIP(s); ok {
			if other, taken := a.ips[ip]; taken {
				errs = append(errs, fmt.Errorf("ClusterIP %s belongs to Services %s and %s", ip, other, name))
			}
			a.ips[ip] = name
		}
		for _, k := range nodePorts(s) {
			if other, taken := a.ports[k]; taken && other != name {
				errs = append(errs, fmt.Errorf("node port %s/%d belongs to Services %s and %s", k.protocol, k.port, other, name))
			}
			a.ports[k] = name
		}
	}
	return errors.Join(errs...)
}

// Hooks returns what the Service's storage calls around its writes.
func (a *Allocator) Hooks() descriptor.Hooks {
	return descriptor.Hooks{
		Create: func(_ context.Context, obj runtime.Object, dryRun bool) (func(bool), error) {
			return a.change(obj.(*corev1.Service), nil, dryRun)
		},
		Update: func(_ context.Context, obj, old runtime.Object, dryRun bool) (func(bool), error) {
			return a.change(obj.(*corev1.Service), old.(*corev1.Service), dryRun)
		},
		Delete: func(obj runtime.Object) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.release(obj.(*corev1.Service), nil)
		},
	}
}

// change allocates what the Service asks for and lacks. It returns a function that keeps it, and releases
// what the old one held alone, or gives it all back.
func (a *Allocator) change(s, old *corev1.Service, dryRun bool) (func(bool), error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	name := types.NamespacedName{Namespace: s.Namespace, Name: s.Name}
	var takenIPs []netip.Addr
	var takenPorts []portKey
	undo := func() {
		for _, ip := range takenIPs {
			delete(a.ips, ip)
		}
		for _, k := range takenPorts {
			delete(a.ports, k)
		}
	}
	var errs field.ErrorList
	if err := a.assignIP(s, name, &takenIPs); err != nil {
		errs = append(errs, err)
	}
	errs = append(errs, a.assignPorts(s, name, &takenPorts)...)
	if len(errs) > 0 {
		undo()
		return nil, apierrors.NewInvalid(corev1.SchemeGroupVersion.WithKind("Service").GroupKind(), s.Name, errs)
	}
	if dryRun {
		undo()
		return func(bool) {}, nil
	}
	return func(ok bool) {
		a.mu.Lock()
		defer a.mu.Unlock()
		if !ok {
			undo()
		} else if old != nil {
			a.release(old, s)
		}
	}, nil
}

// assignIP checks an address that was asked for, or finds a free one.
func (a *Allocator) assignIP(s *corev1.Service, name types.NamespacedName, taken *[]netip.Addr) *field.Error {
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		s.Spec.ClusterIP, s.Spec.ClusterIPs, s.Spec.IPFamilies, s.Spec.IPFamilyPolicy = "", nil, nil, nil
		return nil
	}
	policy := corev1.IPFamilyPolicySingleStack
	s.Spec.IPFamilyPolicy = &policy
	if len(s.Spec.IPFamilies) == 0 {
		s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol}
	}
	if s.Spec.IPFamilies[0] != corev1.IPv4Protocol || len(s.Spec.IPFamilies) > 1 {
		return field.Invalid(field.NewPath("spec", "ipFamilies").Index(0), s.Spec.IPFamilies[0], "not configured on this cluster")
	}
	if s.Spec.ClusterIP == "" && len(s.Spec.ClusterIPs) > 0 {
		s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
	}
	defer func() { s.Spec.ClusterIPs = []string{s.Spec.ClusterIP} }()
	if s.Spec.ClusterIP == corev1.ClusterIPNone {
		return nil
	}
	path := field.NewPath("spec", "clusterIPs").Index(0)
	if s.Spec.ClusterIP != "" {
		ip, err := netip.ParseAddr(s.Spec.ClusterIP)
		if err != nil || !a.prefix.Contains(ip) {
			return field.Invalid(path, s.Spec.ClusterIP, fmt.Sprintf("failed to allocate IP %s: the provided IP is not in the valid range. The range of valid IPs is %s", s.Spec.ClusterIP, a.prefix))
		}
		if owner, held := a.ips[ip]; held && owner != name {
			return field.Invalid(path, s.Spec.ClusterIP, fmt.Sprintf("failed to allocate IP %s: provided IP is already allocated", ip))
		} else if !held {
			a.ips[ip] = name
			*taken = append(*taken, ip)
		}
		return nil
	}
	ip, ok := a.freeIP()
	if !ok {
		return field.InternalError(path, fmt.Errorf("range %s is full", a.prefix))
	}
	a.ips[ip] = name
	*taken = append(*taken, ip)
	s.Spec.ClusterIP = ip.String()
	return nil
}

// freeIP looks from a random place on in the upper part of the range, then in the lower, reserved one.
func (a *Allocator) freeIP() (netip.Addr, bool) {
	size := uint64(1) << (32 - a.prefix.Bits())
	low := reserved(size)
	for _, span := range [][2]uint64{{low, size - 1}, {1, low}} {
		n := span[1] - span[0]
		if span[1] <= span[0] {
			continue
		}
		start := rand.Uint64N(n)
		for i := range n {
			ip := offset(a.prefix.Addr(), span[0]+(start+i)%n)
			if _, held := a.ips[ip]; !held {
				return ip, true
			}
		}
	}
	return netip.Addr{}, false
}

func offset(base netip.Addr, n uint64) netip.Addr {
	b := base.As4()
	v := uint64(b[0])<<24 | uint64(b[1])<<16 | uint64(b[2])<<8 | uint64(b[3])
	v += n
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}

func (a *Allocator) assignPorts(s *corev1.Service, name types.NamespacedName, taken *[]portKey) field.ErrorList {
	if !wantsNodePorts(s) {
		for i := range s.Spec.Ports {
			s.Spec.Ports[i].NodePort = 0
		}
		return nil
	}
	var errs field.ErrorList
	for i := range s.Spec.Ports {
		p := &s.Spec.Ports[i]
		path := field.NewPath("spec", "ports").Index(i).Child("nodePort")
		if p.NodePort == 0 {
			n, ok := a.freePort(p.Protocol)
			if !ok {
				errs = append(errs, field.InternalError(path, fmt.Errorf("range %d-%d is full", a.min, a.max)))
				continue
			}
			p.NodePort = n
		} else if p.NodePort < a.min || p.NodePort > a.max {
			errs = append(errs, field.Invalid(path, p.NodePort, fmt.Sprintf("provided port is not in the valid range. The range of valid ports is %d-%d", a.min, a.max)))
			continue
		}
		k := portKey{p.Protocol, p.NodePort}
		if owner, held := a.ports[k]; held && owner != name {
			errs = append(errs, field.Invalid(path, p.NodePort, "provided port is already allocated"))
		} else if !held {
			a.ports[k] = name
			*taken = append(*taken, k)
		}
	}
	return errs
}

func (a *Allocator) freePort(protocol corev1.Protocol) (int32, bool) {
	n := a.max - a.min + 1
	start := rand.Int32N(n)
	for i := range n {
		p := a.min + (start+i)%n
		if _, held := a.ports[portKey{protocol, p}]; !held {
			return p, true
		}
	}
	return 0, false
}

// release gives back what old holds and kept (nil: nothing) does not.
func (a *Allocator) release(old, kept *corev1.Service) {
	name := types.NamespacedName{Namespace: old.Namespace, Name: old.Name}
	if ip, ok := clusterIP(old); ok && a.ips[ip] == name {
		if kept == nil || kept.Spec.ClusterIP != old.Spec.ClusterIP {
			delete(a.ips, ip)
		}
	}
	var keep []portKey
	if kept != nil {
		keep = nodePorts(kept)
	}
	for _, k := range nodePorts(old) {
		if a.ports[k] == name && !slices.Contains(keep, k) {
			delete(a.ports, k)
		}
	}
}

func clusterIP(s *corev1.Service) (netip.Addr, bool) {
	ip, err := netip.ParseAddr(s.Spec.ClusterIP)
	return ip, err == nil
}

func wantsNodePorts(s *corev1.Service) bool {
	return s.Spec.Type == corev1.ServiceTypeNodePort ||
		s.Spec.Type == corev1.ServiceTypeLoadBalancer && (s.Spec.AllocateLoadBalancerNodePorts == nil || *s.Spec.AllocateLoadBalancerNodePorts)
}

func nodePorts(s *corev1.Service) []portKey {
	var keys []portKey
	for _, p := range s.Spec.Ports {
		if p.NodePort != 0 {
			keys = append(keys, portKey{p.Protocol, p.NodePort})
		}
	}
	return keys
}
