package allocator

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
	"github.com/strake-io/strake/controlplane/apiserver/resources"
)

// Config says what there is to give.
type Config struct {
	Prefixes []netip.Prefix // of ClusterIPs, at most one of each family; the first is the default
	// Further lists the ServiceCIDRs of the API, which add ranges to those, and close them while they are deleted (KEP-1880).
	// nil: there are none.
	Further          func() ([]*networkingv1.ServiceCIDR, error)
	PortMin, PortMax int32 // of node ports, both included
	// Addresses stores networking.k8s.io/v1 IPAddresses below /registry/ipaddresses, Ports coordination.k8s.io/v1
	// Leases below /registry/ranges/servicenodeports. Neither may be a cache.
	Addresses, Ports storage.Interface
	// WriteTimeout bounds how long a write of a Service takes: a claim older than that is no write's under way.
	WriteTimeout time.Duration
}

// Allocator gives ClusterIPs and node ports to Services.
type Allocator struct {
	cfg       Config
	families  []corev1.IPFamily // of cfg.Prefixes
	addresses *claims
	ports     *claims

	// Nothing is given before the first repair: a Service restored from a backup may hold what nothing claims.
	once  sync.Once
	ready chan struct{}
}

// New makes an allocator. Services wait for the first Repair.
func New(cfg Config) (*Allocator, error) {
	cfg.Prefixes = slices.Clone(cfg.Prefixes)
	var families []corev1.IPFamily
	for i, p := range cfg.Prefixes {
		p = p.Masked()
		f := resources.FamilyOf(p.Addr())
		switch {
		case p.Addr().Is4In6() || p.Addr().BitLen()-p.Bits() < 2 || p.Addr().Is6() && p.Bits() < 64:
			return nil, fmt.Errorf("service CIDR %s: need an IPv4 prefix of 30 bits at most, or an IPv6 prefix of 64 to 126 bits", p)
		case slices.Contains(families, f):
			return nil, fmt.Errorf("service CIDRs %s: need at most one of each family", cfg.Prefixes)
		}
		cfg.Prefixes[i], families = p, append(families, f)
	}
	if len(families) == 0 {
		return nil, fmt.Errorf("service CIDRs: need at least one")
	}
	if cfg.PortMin < 1 || cfg.PortMax > 65535 || cfg.PortMin > cfg.PortMax {
		return nil, fmt.Errorf("node ports %d-%d: need a range within 1-65535", cfg.PortMin, cfg.PortMax)
	}
	a := &Allocator{cfg: cfg, families: families, addresses: newClaims(addressForm, cfg.Addresses), ports: newClaims(portForm, cfg.Ports), ready: make(chan struct{})}
	used.of.Store(a)
	return a, nil
}

// Hooks returns what the Service's storage asks before a write. That storage must be wrapped by Settling, which
// learns how the write ended.
func (a *Allocator) Hooks() descriptor.Hooks {
	return descriptor.Hooks{
		Create: func(ctx context.Context, obj runtime.Object, dryRun bool) error {
			return a.assign(ctx, obj.(*corev1.Service), nil, dryRun)
		},
		Update: func(ctx context.Context, obj, old runtime.Object, dryRun bool) error {
			return a.assign(ctx, obj.(*corev1.Service), old.(*corev1.Service), dryRun)
		},
		Delete: func(obj runtime.Object) {
			s := obj.(*corev1.Service)
			ctx, cancel := context.WithTimeout(context.Background(), a.cfg.WriteTimeout)
			defer cancel()
			a.giveUp(ctx, ownerOf(s), addresses(s), ports(s))
		},
	}
}

// giveUp releases values; what fails Repair catches up on.
func (a *Allocator) giveUp(ctx context.Context, o owner, ips, nodePorts []string) {
	var errs []error
	for _, v := range ips {
		errs = append(errs, a.addresses.release(ctx, v, o))
	}
	for _, v := range nodePorts {
		errs = append(errs, a.ports.release(ctx, v, o))
	}
	if err := errors.Join(errs...); err != nil {
		klog.ErrorS(err, "Claims of a Service stay until the next repair", "service", klog.KRef(o.Namespace, o.Name))
	}
}

// assign claims what s holds and old does not, and fills in what s leaves open.
func (a *Allocator) assign(ctx context.Context, s, old *corev1.Service, dryRun bool) error {
	select {
	case <-a.ready:
	case <-ctx.Done():
		return apierrors.NewServerTimeout(corev1.Resource("services"), "allocate", 1)
	}
	w := &writing{a: a, ctx: ctx, owner: ownerOf(s), dryRun: dryRun, attempt: attemptOf(ctx)}
	if old != nil {
		inherit(s, old)
		w.heldAddresses, w.heldPorts = addresses(old), ports(old)
	}
	w.attempt.begin(w)
	var errs field.ErrorList
	if hasClusterIP(s) {
		if s.Spec.ClusterIP != "" && len(s.Spec.ClusterIPs) == 0 {
			s.Spec.ClusterIPs = []string{s.Spec.ClusterIP}
		}
		if errs = a.settleFamilies(s, old); len(errs) == 0 {
			errs = w.assignAddresses(s)
		}
	}
	errs = append(errs, w.assignPorts(s)...)
	if w.err != nil {
		return apierrors.NewInternalError(w.err)
	}
	if len(errs) > 0 {
		return apierrors.NewInvalid(corev1.SchemeGroupVersion.WithKind("Service").GroupKind(), s.Name, errs)
	}
	return nil
}

// writing is one attempt to write a Service.
type writing struct {
	a                        *Allocator
	ctx                      context.Context
	owner                    owner
	dryRun                   bool
	heldAddresses, heldPorts []string // by the stored Service
	attempt                  *attempt
	err                      error // of the store
}

// claim takes a value for this write; false means that another Service has it, or, with w.err set, that nobody knows.
func (w *writing) claim(c *claims, value string, held []string, taken *[]string, t tally) bool {
	if slices.Contains(held, value) || slices.Contains(*taken, value) {
		return true
	}
	if w.dryRun {
		free, err := c.free(w.ctx, value)
		w.err = errors.Join(w.err, err)
		return free
	}
	began := time.Now()
	err := c.take(w.ctx, value, w.owner)
	if err == nil {
		*taken = append(*taken, value)
		t.given(began)
		return true
	}
	t.refused()
	if !errors.Is(err, errTaken) {
		w.err = errors.Join(w.err, err)
	}
	return false
}

func (w *writing) claimAddress(value string, t tally) bool {
	return w.claim(w.a.addresses, value, w.heldAddresses, &w.attempt.addresses, t)
}

func (w *writing) claimPort(value int32, t tally) bool {
	return w.claim(w.a.ports, strconv.Itoa(int(value)), w.heldPorts, &w.attempt.ports, t)
}

// refuse counts a value that could not even be tried: there is none left, or it is of no range.
func (w *writing) refuse(t tally) {
	if !w.dryRun {
		t.refused()
	}
}

// assignAddresses gives the Service an address of each of its families.
func (w *writing) assignAddresses(s *corev1.Service) field.ErrorList {
	if s.Spec.ClusterIP == corev1.ClusterIPNone {
		return nil
	}
	var errs field.ErrorList
	ips := slices.Clone(s.Spec.ClusterIPs)
	// An address asked for is claimed before any is chosen.
	for _, ip := range ips {
		errs = appendIf(errs, w.checkAddress(ip, ips))
	}
	for i := len(ips); i < len(s.Spec.IPFamilies) && len(errs) == 0 && w.err == nil; i++ {
		ip, err := w.freeAddress(s.Spec.IPFamilies[i], i)
		ips, errs = append(ips, ip), appendIf(errs, err)
	}
	if len(errs) == 0 && w.err == nil {
		s.Spec.ClusterIP, s.Spec.ClusterIPs = ips[0], ips
	}
	return errs
}

// checkAddress claims an address that the Service asks for.
func (w *writing) checkAddress(asked string, all []string) *field.Error {
	path := field.NewPath("spec", "clusterIPs")
	ip, err := netip.ParseAddr(asked)
	if err != nil {
		return field.Invalid(path, all, fmt.Sprintf("%s is no IP address", asked))
	}
	if slices.Contains(w.heldAddresses, ip.String()) {
		return nil
	}
	ranges, err := w.a.ranges(resources.FamilyOf(ip))
	if err != nil {
		w.err = errors.Join(w.err, err)
		return nil
	}
	of := slices.IndexFunc(ranges, func(p netip.Prefix) bool { return gives(p, ip) })
	if of < 0 {
		return field.Invalid(path, all, fmt.Sprintf("failed to allocate IP %s: the provided IP is not in the valid range. The range of valid IPs is %s", asked, listed(ranges)))
	}
	if !w.claimAddress(ip.String(), addressTally(ranges[of], static)) && w.err == nil {
		return field.Invalid(path, all, fmt.Sprintf("failed to allocate IP %s: provided IP is already allocated", ip))
	}
	return nil
}

// freeAddress claims an address of its own choice, of the first range that has one.
func (w *writing) freeAddress(f corev1.IPFamily, index int) (string, *field.Error) {
	ranges, err := w.a.ranges(f)
	if err != nil {
		w.err = errors.Join(w.err, err)
		return "", nil
	}
	for _, p := range ranges {
		if ip := w.freeAddressOf(p); ip != "" || w.err != nil {
			return ip, nil
		}
	}
	return "", field.InternalError(field.NewPath("spec", "clusterIPs").Index(index), fmt.Errorf("range %s is full", listed(ranges)))
}

// freeAddressOf claims one of a range: from a random place on in its upper part, then in the lower part, which is left to who
// asks for a certain address. It returns the empty string if there is none, or the store failed.
func (w *writing) freeAddressOf(p netip.Prefix) string {
	low, t := reserved(size(p)), addressTally(p, dynamic)
	for _, span := range [][2]uint64{{low, size(p) - 1}, {1, low}} {
		n := span[1] - span[0]
		if span[1] <= span[0] {
			continue
		}
		start := rand.Uint64N(n)
		for i := range n {
			ip := nth(p, span[0]+(start+i)%n).String()
			if w.a.addresses.looksFree(ip) && w.claimAddress(ip, t) {
				return ip
			}
			if w.err != nil {
				return ""
			}
		}
	}
	w.refuse(t)
	return ""
}

// assignPorts settles the Service's node ports. A port asked for is claimed before any is chosen.
func (w *writing) assignPorts(s *corev1.Service) field.ErrorList {
	var errs field.ErrorList
	spec := field.NewPath("spec")
	if hasNodePorts(s) {
		for i, p := range s.Spec.Ports {
			errs = appendIf(errs, w.checkPort(p.NodePort, spec.Child("ports").Index(i).Child("nodePort")))
		}
	}
	if hasHealthCheckPort(s) {
		errs = appendIf(errs, w.checkPort(s.Spec.HealthCheckNodePort, spec.Child("healthCheckNodePort")))
	}
	if len(errs) > 0 || w.err != nil {
		return errs
	}
	if mustHaveNodePorts(s) {
		// One port number of several protocols is reached by one node port.
		chosen := map[int32]int32{}
		for i := range s.Spec.Ports {
			p := &s.Spec.Ports[i]
			if p.NodePort == 0 {
				p.NodePort = chosen[p.Port]
			}
			if p.NodePort == 0 {
				errs = appendIf(errs, w.choosePort(&p.NodePort, spec.Child("ports").Index(i).Child("nodePort")))
			}
			chosen[p.Port] = p.NodePort
		}
	}
	if hasHealthCheckPort(s) && s.Spec.HealthCheckNodePort == 0 {
		errs = appendIf(errs, w.choosePort(&s.Spec.HealthCheckNodePort, spec.Child("healthCheckNodePort")))
	}
	return errs
}

func appendIf(errs field.ErrorList, err *field.Error) field.ErrorList {
	if err == nil {
		return errs
	}
	return append(errs, err)
}

func (w *writing) checkPort(asked int32, path *field.Path) *field.Error {
	lo, hi := w.a.cfg.PortMin, w.a.cfg.PortMax
	switch {
	case asked == 0:
	case slices.Contains(w.heldPorts, strconv.Itoa(int(asked))):
	case asked < lo || asked > hi:
		w.refuse(tally{scope: static})
		return field.Invalid(path, asked, fmt.Sprintf("provided port is not in the valid range. The range of valid ports is %d-%d", lo, hi))
	case !w.claimPort(asked, tally{scope: static}) && w.err == nil:
		return field.Invalid(path, asked, "provided port is already allocated")
	}
	return nil
}

// choosePort claims a port of its own choice: from a random place on in the upper part of the range, then in the lower
// part, which is left to who asks for a certain port.
func (w *writing) choosePort(port *int32, path *field.Path) *field.Error {
	lo, hi := w.a.cfg.PortMin, w.a.cfg.PortMax+1
	band := lo + reservedPorts(hi-lo)
	for _, span := range [][2]int32{{band, hi}, {lo, band}} {
		n := span[1] - span[0]
		if n == 0 {
			continue
		}
		start := rand.Int32N(n)
		for i := range n {
			p := span[0] + (start+i)%n
			if v := strconv.Itoa(int(p)); w.a.ports.looksFree(v) && !slices.Contains(w.heldPorts, v) && w.claimPort(p, tally{scope: dynamic}) {
				*port = p
				return nil
			}
			if w.err != nil {
				return nil
			}
		}
	}
	w.refuse(tally{scope: dynamic})
	return field.InternalError(path, fmt.Errorf("range %d-%d is full", lo, hi-1))
}

// reservedPorts is how many node ports at the start of a range are only given when asked for: one thirty-second of it,
// 16 to 128, and none of a range of 16 or less (KEP-3668).
func reservedPorts(size int32) int32 {
	if size <= 16 {
		return 0
	}
	return min(max(size/32, 16), 128)
}
