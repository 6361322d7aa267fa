package allocator

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
)

// cluster plays the Services' storage around an allocator.
type cluster struct {
	*testing.T
	*Allocator
	store    *memory
	services map[string]*corev1.Service
	serial   int
	prefixes []netip.Prefix
	further  []*networkingv1.ServiceCIDR
}

func (c *cluster) list(context.Context) ([]corev1.Service, error) {
	var all []corev1.Service
	for _, s := range c.services {
		all = append(all, *s.DeepCopy())
	}
	return all, nil
}

// newCluster has the addresses .1 to .30 and five ports.
func newCluster(t *testing.T) *cluster {
	t.Helper()
	return newClusterOf(t, "10.0.0.0/27")
}

func newClusterOf(t *testing.T, prefixes ...string) *cluster {
	t.Helper()
	c := &cluster{T: t, store: newMemory(), services: map[string]*corev1.Service{}}
	for _, p := range prefixes {
		c.prefixes = append(c.prefixes, netip.MustParsePrefix(p))
	}
	c.restart()
	return c
}

// restart makes the allocator anew, as a process that was killed.
func (c *cluster) restart() {
	c.Helper()
	var err error
	c.Allocator, err = New(Config{Prefixes: c.prefixes, Further: func() ([]*networkingv1.ServiceCIDR, error) { return c.further, nil }, PortMin: 30000, PortMax: 30004, Addresses: c.store, Ports: c.store, WriteTimeout: time.Minute})
	if err != nil {
		c.Fatal(err)
	}
	c.repair()
}

func (c *cluster) repair() {
	c.Helper()
	if err := c.Repair(c.Context(), c.list); err != nil {
		c.Fatal(err)
	}
}

// crash is the end of a write that nobody lives to see.
var crash = errors.New("crash")

// write does what the storage does: it asks, stores unless the write fails, and settles.
func (c *cluster) write(s *corev1.Service, fail error) (*corev1.Service, error) {
	old := c.services[s.Name]
	s = s.DeepCopy()
	s.Namespace = "ns"
	if old != nil {
		s.UID = old.UID
	} else {
		c.serial++
		s.UID = types.UID(fmt.Sprint("uid-", c.serial))
	}
	t := &attempt{}
	err := c.assign(context.WithValue(c.Context(), attemptKey{}, t), s, old, false)
	if err == nil {
		err = fail
	}
	if errors.Is(err, crash) {
		return nil, err
	}
	if err == nil {
		c.services[s.Name] = s
	}
	c.settle(c.Context(), t, runtime.Object(s), err)
	return s, err
}

func (c *cluster) must(s *corev1.Service) *corev1.Service {
	c.Helper()
	s, err := c.write(s, nil)
	if err != nil {
		c.Fatal(err)
	}
	return s
}

func (c *cluster) delete(name string) {
	s := c.services[name]
	delete(c.services, name)
	c.Hooks().Delete(s)
}

// check compares what is claimed with what the Services hold.
func (c *cluster) check() {
	c.Helper()
	var want, have []string
	for _, s := range c.services {
		for _, v := range addresses(s) {
			want = append(want, addressForm.prefix+v)
		}
		for _, v := range ports(s) {
			want = append(want, portForm.prefix+v)
		}
	}
	for key := range c.store.keys {
		have = append(have, key)
	}
	slices.Sort(want)
	slices.Sort(have)
	if !slices.Equal(want, have) {
		c.Errorf("claims\n%s\nwant\n%s", strings.Join(have, "\n"), strings.Join(want, "\n"))
	}
}

func service(name string, change ...func(*corev1.ServiceSpec)) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeClusterIP, Ports: []corev1.ServicePort{{Name: "a", Port: 80, Protocol: corev1.ProtocolTCP}},
	}}
	for _, f := range change {
		f(&s.Spec)
	}
	return s
}

func nodePort(n int32) func(*corev1.ServiceSpec) {
	return func(s *corev1.ServiceSpec) { s.Type, s.Ports[0].NodePort = corev1.ServiceTypeNodePort, n }
}

func clusterIP(ip string) func(*corev1.ServiceSpec) {
	return func(s *corev1.ServiceSpec) { s.ClusterIP = ip }
}

func TestAssign(t *testing.T) {
	for _, test := range []struct {
		name  string
		given []*corev1.Service
		s     *corev1.Service
		want  string // the field that is refused; empty: the write succeeds
	}{
		{name: "an address of the server's choice", s: service("s")},
		{name: "an address that is free", s: service("s", clusterIP("10.0.0.5"))},
		{name: "headless", s: service("s", clusterIP("None"))},
		{name: "an address that another holds", given: []*corev1.Service{service("o", clusterIP("10.0.0.5"))}, s: service("s", clusterIP("10.0.0.5")), want: "spec.clusterIPs"},
		{name: "an address outside", s: service("s", clusterIP("10.0.1.5")), want: "spec.clusterIPs"},
		{name: "the network's address", s: service("s", clusterIP("10.0.0.0")), want: "spec.clusterIPs"},
		{name: "the broadcast address", s: service("s", clusterIP("10.0.0.31")), want: "spec.clusterIPs"},
		{name: "IPv6", s: service("s", func(s *corev1.ServiceSpec) { s.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol} }), want: "spec.ipFamilies[0]"},
		{name: "two families", s: service("s", func(s *corev1.ServiceSpec) {
			p := corev1.IPFamilyPolicyRequireDualStack
			s.IPFamilyPolicy = &p
		}), want: "spec.ipFamilyPolicy"},
		{name: "clusterIPs without clusterIP", s: service("s", func(s *corev1.ServiceSpec) { s.ClusterIPs = []string{"10.0.0.7"} }), want: "spec.clusterIPs"},
		{name: "clusterIPs of another address", s: service("s", func(s *corev1.ServiceSpec) { s.ClusterIP, s.ClusterIPs = "10.0.0.6", []string{"10.0.0.7"} }), want: "spec.clusterIPs"},
		{name: "a node port of the server's choice", s: service("s", nodePort(0))},
		{name: "a node port that another holds", given: []*corev1.Service{service("o", nodePort(30002))}, s: service("s", nodePort(30002)), want: "spec.ports[0].nodePort"},
		{name: "a node port outside", s: service("s", nodePort(29999)), want: "spec.ports[0].nodePort"},
		{name: "more ports than there are", s: service("s", nodePort(0), func(s *corev1.ServiceSpec) {
			for i := range int32(5) {
				s.Ports = append(s.Ports, corev1.ServicePort{Port: 81 + i, Protocol: corev1.ProtocolTCP})
			}
		}), want: "spec.ports[5].nodePort"},
		{name: "a refused port gives the others back", given: []*corev1.Service{service("o", nodePort(30002))}, s: service("s", nodePort(30001), func(s *corev1.ServiceSpec) {
			s.Ports = append(s.Ports, corev1.ServicePort{Port: 81, NodePort: 30002, Protocol: corev1.ProtocolTCP})
		}), want: "spec.ports[1].nodePort"},
		{name: "a load balancer with a health check port", s: service("s", func(s *corev1.ServiceSpec) {
			s.Type, s.ExternalTrafficPolicy = corev1.ServiceTypeLoadBalancer, corev1.ServiceExternalTrafficPolicyLocal
		})},
		{name: "external names hold nothing", s: service("s", func(s *corev1.ServiceSpec) { s.Type = corev1.ServiceTypeExternalName })},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newCluster(t)
			for _, g := range test.given {
				c.must(g)
			}
			s, err := c.write(test.s, nil)
			switch {
			case test.want == "" && err != nil:
				t.Fatal(err)
			case test.want != "":
				var status apierrors.APIStatus
				if !errors.As(err, &status) || status.Status().Details == nil || len(status.Status().Details.Causes) != 1 || status.Status().Details.Causes[0].Field != test.want {
					t.Errorf("error %v, want one of field %s", err, test.want)
				}
			case s.Spec.Type != corev1.ServiceTypeExternalName && (s.Spec.ClusterIP == "" || !slices.Equal(s.Spec.ClusterIPs, []string{s.Spec.ClusterIP})):
				t.Errorf("clusterIP %q, clusterIPs %q", s.Spec.ClusterIP, s.Spec.ClusterIPs)
			}
			c.check()
		})
	}
}

func TestOnePortNumberOfTwoProtocolsSharesItsNodePort(t *testing.T) {
	c := newCluster(t)
	s := c.must(service("dns", nodePort(0), func(s *corev1.ServiceSpec) {
		s.Ports = append(s.Ports, corev1.ServicePort{Name: "b", Port: 80, Protocol: corev1.ProtocolUDP})
	}))
	if s.Spec.Ports[0].NodePort == 0 || s.Spec.Ports[0].NodePort != s.Spec.Ports[1].NodePort {
		t.Errorf("node ports %d and %d", s.Spec.Ports[0].NodePort, s.Spec.Ports[1].NodePort)
	}
	c.check()
}

func TestChange(t *testing.T) {
	change := func(f func(s, was *corev1.ServiceSpec)) func(s *corev1.Service) *corev1.Service {
		return func(was *corev1.Service) *corev1.Service {
			s := was.DeepCopy()
			f(&s.Spec, &was.Spec)
			return s
		}
	}
	for _, test := range []struct {
		name   string
		from   *corev1.Service
		change func(*corev1.Service) *corev1.Service
		want   func(was, is *corev1.ServiceSpec) bool
	}{
		{"what the first file did not say stays", service("s", nodePort(0)), func(*corev1.Service) *corev1.Service { return service("s", nodePort(0)) }, func(was, is *corev1.ServiceSpec) bool {
			return is.ClusterIP == was.ClusterIP && is.Ports[0].NodePort == was.Ports[0].NodePort
		}},
		{"another node port frees the first", service("s", nodePort(30001)), change(func(s, _ *corev1.ServiceSpec) { s.Ports[0].NodePort = 30003 }), func(_, is *corev1.ServiceSpec) bool {
			return is.Ports[0].NodePort == 30003
		}},
		{"no node port any more", service("s", nodePort(0)), change(func(s, _ *corev1.ServiceSpec) { s.Type = corev1.ServiceTypeClusterIP }), func(was, is *corev1.ServiceSpec) bool {
			return is.Ports[0].NodePort == 0 && is.ClusterIP == was.ClusterIP
		}},
		{"a node port now", service("s"), change(func(s, _ *corev1.ServiceSpec) { s.Type = corev1.ServiceTypeNodePort }), func(was, is *corev1.ServiceSpec) bool {
			return is.Ports[0].NodePort != 0 && is.ClusterIP == was.ClusterIP
		}},
		{"an external name", service("s", nodePort(0)), change(func(s, _ *corev1.ServiceSpec) { s.Type = corev1.ServiceTypeExternalName }), func(_, is *corev1.ServiceSpec) bool {
			return is.ClusterIP == "" && is.ClusterIPs == nil && is.IPFamilies == nil && is.Ports[0].NodePort == 0
		}},
		{"from an external name", service("s", func(s *corev1.ServiceSpec) { s.Type, s.ExternalName = corev1.ServiceTypeExternalName, "x.y" }), change(func(s, _ *corev1.ServiceSpec) { s.Type = corev1.ServiceTypeClusterIP }), func(_, is *corev1.ServiceSpec) bool {
			return is.ClusterIP != "" && is.ExternalName == ""
		}},
		{"a port more keeps the first's", service("s", nodePort(0)), change(func(s, _ *corev1.ServiceSpec) {
			s.Ports = append([]corev1.ServicePort{{Name: "b", Port: 443, Protocol: corev1.ProtocolTCP}}, s.Ports...)
		}), func(was, is *corev1.ServiceSpec) bool {
			return is.Ports[1].NodePort == was.Ports[0].NodePort && is.Ports[0].NodePort != 0 && is.Ports[0].NodePort != is.Ports[1].NodePort
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newCluster(t)
			was := c.must(test.from)
			is := c.must(test.change(was))
			if !test.want(&was.Spec, &is.Spec) {
				t.Errorf("was %+v\nis  %+v", was.Spec, is.Spec)
			}
			c.check()
		})
	}
}

func TestFailedWrites(t *testing.T) {
	conflict := apierrors.NewConflict(corev1.Resource("services"), "s", errors.New("x"))
	c := newCluster(t)
	c.must(service("s", nodePort(30001)))
	if _, err := c.write(service("s", nodePort(30002)), conflict); err == nil {
		t.Fatal("no error")
	}
	c.check() // gave 30002 back, kept 30001
	if _, err := c.write(service("n", nodePort(0)), conflict); err == nil {
		t.Fatal("no error")
	}
	c.check()
	// After a time-out nobody knows whether the write took place: its claims must stay.
	if _, err := c.write(service("n", nodePort(30004)), apierrors.NewTimeoutError("x", 1)); err == nil {
		t.Fatal("no error")
	}
	if c.store.keys[portForm.prefix+"30004"] == nil {
		t.Error("the claim of a write that may have succeeded is gone")
	}
}

func TestDryRunClaimsNothing(t *testing.T) {
	c := newCluster(t)
	c.must(service("o", nodePort(30001)))
	for _, test := range []struct {
		s  *corev1.Service
		ok bool
	}{{service("s", nodePort(0)), true}, {service("s", nodePort(30001)), false}} {
		if err := c.assign(t.Context(), test.s, nil, true); (err == nil) != test.ok {
			t.Errorf("node port %d: %v", test.s.Spec.Ports[0].NodePort, err)
		}
	}
	c.check()
}

func TestFullRange(t *testing.T) {
	c := newCluster(t)
	seen := map[string]bool{}
	for i := range 30 {
		ip := c.must(service(fmt.Sprint("s", i))).Spec.ClusterIP
		if seen[ip] {
			t.Errorf("%s was given twice", ip)
		}
		seen[ip] = true
		// The lower half of so small a range is given last.
		if low := netip.MustParseAddr(ip).As4()[3] < 16; low != (i >= 15) {
			t.Errorf("address %d is %s", i, ip)
		}
	}
	if _, err := c.write(service("more"), nil); err == nil || !strings.Contains(err.Error(), "full") {
		t.Errorf("a 31st address: %v", err)
	}
	c.delete("s7")
	c.must(service("more"))
	c.check()
}

func TestPortsAskedForAreGivenLast(t *testing.T) {
	c := newCluster(t)
	c.cfg.PortMin, c.cfg.PortMax = 30000, 30019
	for i := range 20 {
		p := c.must(service(fmt.Sprint("s", i), nodePort(0))).Spec.Ports[0].NodePort
		if low := p < 30016; low != (i >= 4) {
			t.Errorf("port %d is %d", i, p)
		}
	}
	if _, err := c.write(service("more", nodePort(0)), nil); err == nil || !strings.Contains(err.Error(), "full") {
		t.Errorf("a 21st port: %v", err)
	}
	c.check()
}

func TestDeleteReleasesItsOwn(t *testing.T) {
	c := newCluster(t)
	old := c.must(service("s", clusterIP("10.0.0.5")))
	c.delete("s")
	c.check()
	// The same name and address again; then the news of the first deletion comes a second time.
	c.must(service("s", clusterIP("10.0.0.5")))
	c.Hooks().Delete(old)
	c.check()
}

// age makes all claims look as if they were made long ago.
func (c *cluster) age() {
	for _, obj := range c.store.keys {
		obj.(metav1.Object).SetCreationTimestamp(metav1.NewTime(time.Now().Add(-time.Hour)))
	}
}

func TestRepair(t *testing.T) {
	c := newCluster(t)
	c.must(service("kept", nodePort(30000)))
	if _, err := c.write(service("lost", nodePort(30003), clusterIP("10.0.0.9")), crash); !errors.Is(err, crash) {
		t.Fatal(err)
	}
	c.restart()
	// The claims are young: they may be those of another server's write.
	if c.store.keys[addressForm.prefix+"10.0.0.9"] == nil || c.store.keys[portForm.prefix+"30003"] == nil {
		t.Fatal("young claims were removed")
	}
	if _, err := c.write(service("s", clusterIP("10.0.0.9")), nil); err == nil {
		t.Error("a claimed address was given")
	}
	c.age()
	c.restart()
	c.check()
	c.must(service("s", clusterIP("10.0.0.9")))

	// A backup came back without claims.
	clear(c.store.keys)
	c.restart()
	c.check()
	if _, err := c.write(service("t", clusterIP("10.0.0.9")), nil); err == nil {
		t.Error("an address was given twice")
	}
}

func TestNothingIsGivenBeforeTheFirstRepair(t *testing.T) {
	a, err := New(Config{Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/27")}, PortMin: 1, PortMax: 2, Addresses: newMemory(), Ports: newMemory(), WriteTimeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.Hooks().Create(ctx, service("s"), false); !apierrors.IsServerTimeout(err) {
		t.Errorf("error %v", err)
	}
}

func TestLostStore(t *testing.T) {
	c := newCluster(t)
	c.store.fail = errors.New("gone")
	if _, err := c.write(service("s", nodePort(0)), nil); !apierrors.IsInternalError(err) || !strings.Contains(err.Error(), "gone") {
		t.Errorf("error %v", err)
	}
}

func TestTwoServersNeverGiveTheSame(t *testing.T) {
	store := newMemory()
	const servers, each = 3, 10
	var wg sync.WaitGroup
	given := make(chan string, servers*each)
	for n := range servers {
		a, err := New(Config{Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/27")}, PortMin: 30000, PortMax: 30000 + servers*each - 1, Addresses: store, Ports: store, WriteTimeout: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Repair(t.Context(), func(context.Context) ([]corev1.Service, error) { return nil, nil }); err != nil {
			t.Fatal(err)
		}
		for i := range each {
			wg.Go(func() {
				s := service(fmt.Sprint(n, "-", i), nodePort(0))
				s.UID = types.UID(s.Name)
				if err := a.Hooks().Create(t.Context(), s, false); err != nil {
					t.Error(err)
				}
				given <- s.Spec.ClusterIP
				given <- fmt.Sprint(s.Spec.Ports[0].NodePort)
			})
		}
	}
	go func() { wg.Wait(); close(given) }()
	seen := map[string]bool{}
	for v := range given {
		if seen[v] {
			t.Errorf("%s was given twice", v)
		}
		seen[v] = true
	}
}

func TestNewRefuses(t *testing.T) {
	prefix := func(p string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(p)} }
	for _, c := range []Config{
		{Prefixes: prefix("10.0.0.0/31"), PortMin: 1, PortMax: 2},
		{Prefixes: prefix("10.0.0.0/24"), PortMin: 3, PortMax: 2},
		{Prefixes: prefix("10.0.0.0/24"), PortMin: 0, PortMax: 2},
		{Prefixes: prefix("10.0.0.0/24"), PortMin: 1, PortMax: 65536},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("%v, ports %d-%d: no error", c.Prefixes, c.PortMin, c.PortMax)
		}
	}
}
