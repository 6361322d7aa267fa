package e2e

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/tests/podnet"
)

// soakVariable says how long TestServicesSoak changes Services under load; `make soak DURATION=1h` sets it.
const soakVariable = "STRAKE_SOAK"

const (
	soakServices = 6
	soakPort     = 9000  // of the backends of the first Service
	soakNodePort = 30400 // the first of the Services
	soakPatience = 20 * time.Second
)

// soak is two nodes whose Services are changed all the time, and clients that know what they may get. Each Service has backends of its own: who is
// answered by another one's has been led astray, whatever the API said and when. What else may happen follows from the states that the Service
// had while a client asked: from when the API was told until both nodes' kernels had the next one.
type soak struct {
	t        *testing.T
	client   kubernetes.Interface
	nodes    []*soakNode
	pods     []*soakPod
	outside  podnet.Space
	services []*soakService

	asked, strict, changed, killed, kept atomic.Int64
	stood                                atomic.Int64 // when the test last went on after it had stood still, in ns since 1970
	stalls                               atomic.Int64 // how often it has
	again                                atomic.Int64 // how often somebody lost patience meanwhile, and went on
	outcomes                             sync.Map     // outcome → *atomic.Int64
}

type soakNode struct {
	name  string
	space podnet.Space
	pins  string
	addrs [2]netip.Addr
}

type soakPod struct {
	node  *soakNode
	space podnet.Space
	addrs [2]netip.Addr
}

// soakState is what the API said of a Service at a time.
type soakState struct {
	since, until     time.Time // it was told; the next one was in all kernels (zero: it is not)
	absent           bool
	internal, extern bool                         // Local policies
	endpoints        map[netip.AddrPort]readiness // of IPv4; those of IPv6 are the same pods' other addresses
}

type readiness int

const (
	ready readiness = iota
	serving
	gone // terminating, and not serving
)

type soakService struct {
	index   int
	name    string
	ips     [2]netip.Addr
	backend map[netip.AddrPort]*soakPod // all that it ever has, by the IPv4 address
	v6      map[netip.AddrPort]netip.AddrPort

	mu     sync.Mutex
	uid    string
	states []*soakState
}

// TestServicesSoak changes Services under load and kills agents, and wants no answer and no error that the API does not explain.
func TestServicesSoak(t *testing.T) {
	duration := 15 * time.Second
	if text := os.Getenv(soakVariable); text != "" {
		var err error
		if duration, err = time.ParseDuration(text); err != nil {
			t.Fatalf("%s: %v", soakVariable, err)
		}
	}
	s := newSoak(t)
	ctx, cancel := context.WithTimeout(t.Context(), duration)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	for _, svc := range s.services {
		g.Go(func() error { return s.change(ctx, svc) })
		for family := range 2 {
			for _, c := range s.clients(svc, family) {
				g.Go(func() error { return s.ask(ctx, c) })
				g.Go(func() error { return s.hold(ctx, c) })
			}
		}
	}
	g.Go(func() error { return s.kill(ctx) })
	go s.watchTime(t.Context()) // also while the last changes settle
	if err := g.Wait(); err != nil {
		t.Error(err)
	} else {
		for _, svc := range s.services {
			if err := s.settle(context.Background(), svc); err != nil {
				t.Error(err)
			}
		}
	}
	var lines []string
	s.outcomes.Range(func(k, v any) bool {
		lines = append(lines, fmt.Sprint(v.(*atomic.Int64).Load(), " ", k))
		return true
	})
	slices.Sort(lines)
	t.Logf("%d questions (%d while their Service stood still), %d rounds of connections that were kept; %d changes, %d agents killed; %s; the machine stood still %d times, and patience was had anew %d times",
		s.asked.Load(), s.strict.Load(), s.kept.Load(), s.changed.Load(), s.killed.Load(), strings.Join(lines, ", "), s.stalls.Load(), s.again.Load())
	for what, n := range map[string]*atomic.Int64{"asked": &s.asked, "asked while its Service stood still": &s.strict, "changed": &s.changed, "kept": &s.kept, "killed": &s.killed} {
		if n.Load() == 0 {
			t.Errorf("nothing was %s", what)
		}
	}
}

func newSoak(t *testing.T) *soak {
	c := &threeNodes{cluster: start(t, "--nodes", "2", "--ip-family", "dual")}
	eventually(t, 4*time.Minute, c.refresh)
	for i, n := range c.nodes {
		for k := range 2 {
			c.apply(residents(n.Name, 2*i+k))
		}
	}
	c.kubectl("wait", "--for=condition=Ready", "pod", "--all", "--timeout=90s")
	rc, err := c.REST()
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(rc)
	if err != nil {
		t.Fatal(err)
	}
	l, err := layout.New(c.Data)
	if err != nil {
		t.Fatal(err)
	}
	s := &soak{t: t, client: client, outside: podnet.Space("/run/netns/" + c.Outside)}
	for i, n := range c.nodes {
		node := &soakNode{name: n.Name, space: podnet.Space("/run/netns/" + c.Net), pins: n.DataDir + "/bpf", addrs: [2]netip.Addr{n.Addresses[0], n.Addresses[1]}}
		if i > 0 {
			node.space = podnet.Space(fmt.Sprintf("/run/netns/strake-%s-%d", l.ID, i+1))
		}
		s.nodes = append(s.nodes, node)
		for k := range 2 {
			name := fmt.Sprint("resident-", 2*i+k)
			uid := c.kubectl("get", "pod", name, "-o", "jsonpath={.metadata.uid}")
			pid := strings.TrimSpace(c.must(exec.Command("sh", "-c", "for f in $(grep -ls 'pod"+uid+"' /proc/[0-9]*/cgroup); do p=${f%/cgroup}; grep -qs sleep $p/cmdline && basename $p && exit; done; exit 1")))
			p := &soakPod{node: node, space: podnet.Space("/proc/" + pid + "/ns/net")}
			for f, a := range strings.Fields(c.kubectl("get", "pod", name, "-o", "jsonpath={.status.podIPs[0].ip} {.status.podIPs[1].ip}")) {
				p.addrs[f] = netip.MustParseAddr(a)
			}
			s.pods = append(s.pods, p)
		}
	}
	m := newNeighbour(t, c)
	s.outside = m.Space
	for i := range soakServices {
		svc := &soakService{index: i, name: fmt.Sprint("soak-", i), backend: map[netip.AddrPort]*soakPod{}, v6: map[netip.AddrPort]netip.AddrPort{}}
		for _, p := range s.pods {
			port := uint16(soakPort + i)
			v4 := netip.AddrPortFrom(p.addrs[0], port)
			svc.backend[v4], svc.v6[v4] = p, netip.AddrPortFrom(p.addrs[1], port)
			s.serve(p, v4.String(), port)
		}
		s.services = append(s.services, svc)
		s.create(t.Context(), svc, &soakState{since: time.Now(), endpoints: map[netip.AddrPort]readiness{}})
		if t.Failed() {
			t.FailNow()
		}
	}
	return s
}

// serve answers with a name for each line and datagram, as long as the test runs.
func (s *soak) serve(p *soakPod, name string, port uint16) {
	s.t.Helper()
	var l net.Listener
	var u net.PacketConn
	err := p.space.In(func() (err error) {
		if l, err = net.Listen("tcp", fmt.Sprint(":", port)); err != nil {
			return err
		}
		u, err = net.ListenPacket("udp", fmt.Sprint(":", port))
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { l.Close(); u.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b := make([]byte, 64)
				for {
					if _, err := c.Read(b); err != nil {
						return
					}
					if _, err := c.Write([]byte(name)); err != nil {
						return
					}
				}
			}()
		}
	}()
	go func() {
		b := make([]byte, 64)
		for {
			_, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			u.WriteTo([]byte(name), from) // who lost it asks again
		}
	}()
}

// now notes a new state.
func (svc *soakService) now(st *soakState) {
	svc.mu.Lock()
	defer svc.mu.Unlock()
	svc.states = append(svc.states, st)
}

// waits is how long the last state has not been in all kernels.
func (svc *soakService) waits() time.Duration {
	svc.mu.Lock()
	defer svc.mu.Unlock()
	if n := len(svc.states); n > 1 && svc.states[n-2].until.IsZero() {
		return time.Since(svc.states[n-1].since)
	}
	return 0
}

// during are the states that a client may have met between two times.
func (svc *soakService) during(from, to time.Time) []*soakState {
	svc.mu.Lock()
	defer svc.mu.Unlock()
	var out []*soakState
	for _, st := range svc.states {
		if !st.since.After(to) && (st.until.IsZero() || st.until.After(from)) {
			out = append(out, st)
		}
	}
	return out
}

func (st *soakState) spec(svc *soakService) corev1.ServiceSpec {
	policy := func(local bool) string {
		if local {
			return "Local"
		}
		return "Cluster"
	}
	both, internal := corev1.IPFamilyPolicyRequireDualStack, corev1.ServiceInternalTrafficPolicy(policy(st.internal))
	spec := corev1.ServiceSpec{
		Type: corev1.ServiceTypeNodePort, IPFamilyPolicy: &both, InternalTrafficPolicy: &internal, ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicy(policy(st.extern)),
		Ports: []corev1.ServicePort{{Name: "t", Port: 80, Protocol: corev1.ProtocolTCP, NodePort: int32(soakNodePort + svc.index)}, {Name: "u", Port: 80, Protocol: corev1.ProtocolUDP, NodePort: int32(soakNodePort + svc.index)}},
	}
	if svc.ips[0].IsValid() {
		spec.ClusterIP = svc.ips[0].String()
		spec.ClusterIPs = []string{svc.ips[0].String(), svc.ips[1].String()}
	}
	return spec
}

// create makes a Service and its slices. Between the two it is a Service without endpoints.
func (s *soak) create(ctx context.Context, svc *soakService, st *soakState) {
	svc.now(&soakState{since: st.since, internal: st.internal, extern: st.extern})
	made, err := s.client.CoreV1().Services("default").Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: svc.name}, Spec: st.spec(svc)}, metav1.CreateOptions{})
	if err != nil {
		if ctx.Err() == nil {
			s.t.Error(err)
		}
		return
	}
	for i, ip := range made.Spec.ClusterIPs {
		svc.ips[i] = netip.MustParseAddr(ip)
	}
	svc.mu.Lock()
	svc.uid = string(made.UID)
	svc.mu.Unlock()
	st.since = time.Now()
	svc.now(st)
	s.slices(ctx, svc, st)
}

// slices writes the endpoints, those of each family at once.
func (s *soak) slices(ctx context.Context, svc *soakService, st *soakState) {
	number := int32(soakPort + svc.index)
	for family, kind := range []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6} {
		slice := &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", svc.name, family), Labels: map[string]string{discoveryv1.LabelServiceName: svc.name}},
			AddressType: kind, Endpoints: []discoveryv1.Endpoint{},
		}
		for name, proto := range map[string]corev1.Protocol{"t": corev1.ProtocolTCP, "u": corev1.ProtocolUDP} {
			slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: &name, Port: &number, Protocol: &proto})
		}
		for _, v4 := range slices.SortedFunc(maps.Keys(st.endpoints), netip.AddrPort.Compare) {
			how, pod := st.endpoints[v4], svc.backend[v4]
			isReady, isServing, ending := how == ready, how != gone, how != ready
			slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
				Addresses: []string{pod.addrs[family].String()}, NodeName: &pod.node.name,
				Conditions: discoveryv1.EndpointConditions{Ready: &isReady, Serving: &isServing, Terminating: &ending},
			})
		}
		api := s.client.DiscoveryV1().EndpointSlices("default")
		_, err := api.Update(ctx, slice, metav1.UpdateOptions{})
		if apierrors.IsNotFound(err) {
			_, err = api.Create(ctx, slice, metav1.CreateOptions{})
		}
		if err != nil && ctx.Err() == nil {
			s.t.Error(err)
		}
	}
}

// change gives a Service another state again and again, each time when the one before is in the kernels of all nodes.
func (s *soak) change(ctx context.Context, svc *soakService) error {
	rng := rand.New(rand.NewPCG(uint64(svc.index), uint64(time.Now().UnixNano())))
	all := slices.SortedFunc(maps.Keys(svc.backend), netip.AddrPort.Compare)
	services := s.client.CoreV1().Services("default")
	for ctx.Err() == nil {
		svc.mu.Lock()
		before := *svc.states[len(svc.states)-1]
		svc.mu.Unlock()
		st := &soakState{since: time.Now(), internal: before.internal, extern: before.extern, endpoints: maps.Clone(before.endpoints)}
		some := func() {
			for range 1 + rng.IntN(4) {
				b := all[rng.IntN(len(all))]
				switch rng.IntN(6) {
				case 0:
					delete(st.endpoints, b)
				case 1:
					st.endpoints[b] = serving
				case 2:
					st.endpoints[b] = gone
				default:
					st.endpoints[b] = ready
				}
			}
		}
		var err error
		switch dice := rng.IntN(12); {
		case before.absent:
			some()
			s.create(ctx, svc, st)
		case dice == 0:
			st.absent, st.endpoints = true, map[netip.AddrPort]readiness{}
			svc.now(st)
			if err = services.Delete(ctx, svc.name, metav1.DeleteOptions{}); err == nil {
				s.slices(ctx, svc, st) // nobody else takes them away
			}
		case dice == 1:
			st.endpoints = map[netip.AddrPort]readiness{}
			svc.now(st)
			s.slices(ctx, svc, st)
		case dice < 4:
			st.internal, st.extern = rng.IntN(3) == 0, rng.IntN(3) == 0
			svc.now(st)
			var have *corev1.Service
			if have, err = services.Get(ctx, svc.name, metav1.GetOptions{}); err == nil {
				spec := st.spec(svc)
				have.Spec.InternalTrafficPolicy, have.Spec.ExternalTrafficPolicy = spec.InternalTrafficPolicy, spec.ExternalTrafficPolicy
				_, err = services.Update(ctx, have, metav1.UpdateOptions{})
			}
		default:
			some()
			svc.now(st)
			s.slices(ctx, svc, st)
		}
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("change %s: %w", svc.name, err)
		}
		if ctx.Err() != nil {
			break
		}
		s.changed.Add(1)
		if err := s.settle(ctx, svc); err != nil {
			return err
		}
		pause := time.After(time.Duration(200+rng.IntN(1300)) * time.Millisecond)
		select {
		case <-ctx.Done():
		case <-pause:
		}
	}
	return nil
}

// settle waits until all nodes' kernels have the last state, and notes when. A minute is given anew when the machine has stood still, but no more than ten.
func (s *soak) settle(ctx context.Context, svc *soakService) error {
	svc.mu.Lock()
	st := svc.states[len(svc.states)-1]
	uid := svc.uid
	svc.mu.Unlock()
	first := time.Now()
	for began := first; ; {
		var missing []string
		for _, n := range s.nodes {
			if d := n.differs(svc, uid, st); d != "" {
				missing = append(missing, n.name+": "+d)
			}
		}
		if len(missing) == 0 {
			break
		}
		if late := time.Since(began) > time.Minute; late && time.Since(first) < 10*time.Minute && s.stoodSince(began) {
			began = time.Now()
		} else if late {
			return fmt.Errorf("the kernel does not get what the API says of %s: %s", svc.name, strings.Join(missing, "; "))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(20 * time.Millisecond):
		}
	}
	svc.mu.Lock()
	defer svc.mu.Unlock()
	now := time.Now()
	for _, old := range svc.states {
		if old != st && old.until.IsZero() {
			old.until = now
		}
	}
	return nil
}
