package dns

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/mirror"
)

// maxKernelAddrs is how many addresses of a family the kernel answers for a headless Service.
const maxKernelAddrs = 8

// Desired returns the names that the kernel knows of a Service: its own, with its addresses if they fit, and those of its endpoints by their hostname; if it
// is headless, by their dashed address as well. User space answers for a name whose addresses don't fit. Without a row for the Service the kernel denies
// its name and all below it: so it is for a headless one without endpoints, as Records has it.
func Desired(svc *corev1.Service, endpoints []*discoveryv1.EndpointSlice, zone string) []bpf.Name {
	owner, name := string(svc.UID), svc.Name+"."+svc.Namespace+".svc."+strings.Trim(strings.ToLower(zone), ".")+"."
	elsewhere := []bpf.Name{{Owner: owner, Name: name, Elsewhere: true}}
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return elsewhere
	}
	if svc.Spec.ClusterIP != corev1.ClusterIPNone {
		row := fitting(owner, name, mirror.ClusterIPs(svc))
		if len(row.Addrs) == 0 {
			return elsewhere
		}
		named := slices.DeleteFunc(endpointsOf(svc, endpoints), func(e endpoint) bool { _, isAddr := dashed(e.host); return isAddr })
		return append([]bpf.Name{row}, hostNames(owner, name, named)...)
	}
	eps := endpointsOf(svc, endpoints)
	if len(eps) == 0 {
		return nil
	}
	return append([]bpf.Name{fitting(owner, name, distinct(eps))}, hostNames(owner, name, eps)...)
}

// hostNames are those of a Service's endpoints.
func hostNames(owner, name string, eps []endpoint) []bpf.Name {
	var out []bpf.Name
	hosts := map[string][]endpoint{}
	for _, e := range eps {
		hosts[e.host] = append(hosts[e.host], e)
	}
	for _, host := range slices.Sorted(maps.Keys(hosts)) {
		_, isAddr := dashed(host) // of which some begin or end with a dash
		if whole := host + "." + name; (isAddr || len(validation.IsDNS1123Label(host)) == 0) && len(whole) <= maxName {
			out = append(out, fitting(owner, whole, distinct(hosts[host])))
		}
	}
	return out
}

// maxName is how long a name may be, with its last dot (RFC 1035 2.3.4: 255 octets, of which two more are not written).
const maxName = 254

// fitting is the row of a name with addresses. As the kernel denies a name what it has no addresses of, it has all of both families, or none.
func fitting(owner, name string, addrs []netip.Addr) bpf.Name {
	six := 0
	for _, a := range addrs {
		if a.Is4In6() || a.Zone() != "" {
			return bpf.Name{Owner: owner, Name: name, Elsewhere: true}
		}
		if a.Is6() {
			six++
		}
	}
	if max(six, len(addrs)-six) > maxKernelAddrs {
		return bpf.Name{Owner: owner, Name: name, Elsewhere: true}
	}
	addrs = slices.Clone(addrs)
	slices.SortFunc(addrs, netip.Addr.Compare)
	return bpf.Name{Owner: owner, Name: name, Addrs: addrs}
}

// DesiredNamespace returns the name of a namespace, which has no addresses.
func DesiredNamespace(ns *corev1.Namespace, zone string) []bpf.Name {
	return []bpf.Name{{Owner: string(ns.UID), Name: ns.Name + ".svc." + strings.Trim(strings.ToLower(zone), ".") + "."}}
}

// State tells the programs of all names together.
type State interface {
	SetNamesState(bpf.NamesState) error
	NamesState() (bpf.NamesState, error)
}

// Names keeps the kernel's names up to date, and tells it whether they are all.
type Names struct {
	table      bpf.Table[bpf.Name]
	zone       string
	services   *mirror.Services
	slices     *mirror.Slices
	namespaces *mirror.Namespaces
	queue      workqueue.TypedRateLimitingInterface[change]

	mu      sync.Mutex
	state   State
	known   bpf.NamesState
	first   bool            // all that there was at the start has been written
	missing map[change]bool // what could not be
}

// change is a Service or a namespace that changed: the UID tells a deleted one from its successor. A namespace's key has no slash.
// The one without a key comes after all that there was at the start.
type change struct{ key, uid string }

// NewNames follows a mirror, which is to run afterwards.
func NewNames(m *mirror.Mirror, table bpf.Table[bpf.Name], state State, zone string) (*Names, error) {
	known, err := state.NamesState()
	if err != nil {
		return nil, err
	}
	n := &Names{
		table: table, zone: zone, services: m.Services(), slices: m.Slices(), namespaces: m.Namespaces(), state: state, known: known, missing: map[change]bool{},
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[change](10*time.Millisecond, 30*time.Second)),
	}
	n.services.Follow(each(func(svc *corev1.Service) { n.queue.Add(change{mirror.KeyOf(svc), string(svc.UID)}) }))
	n.namespaces.Follow(each(func(ns *corev1.Namespace) { n.queue.Add(change{ns.Name, string(ns.UID)}) }))
	n.slices.Follow(mirror.Follower[*discoveryv1.EndpointSlice]{Added: n.ofService, Changed: func(old, now *discoveryv1.EndpointSlice) {
		for _, s := range []*discoveryv1.EndpointSlice{old, now} {
			if s != nil {
				n.ofService(mirror.ServiceOf(s))
			}
		}
	}})
	return n, nil
}

// each calls f with what an object was and with what it is.
func each[P comparable](f func(P)) mirror.Follower[P] {
	return mirror.Follower[P]{Changed: func(old, now P) {
		var none P
		for _, obj := range []P{old, now} {
			if obj != none {
				f(obj)
			}
		}
	}}
}

// ofService notes a Service whose slices have changed. One that is not known yet sees them when it comes; one that is gone has no use for them.
func (n *Names) ofService(key string) {
	if svc := n.services.Get(key); svc != nil {
		n.queue.Add(change{key, string(svc.UID)})
	}
}

// Configure makes the kernel answer as a resolver does that has a configuration: with its TTL, and not at all if it says something of names
// in the zone.
func (n *Names) Configure(cfg Config) error {
	cfg = cfg.withDefaults()
	n.mu.Lock()
	defer n.mu.Unlock()
	state := n.known
	state.Off, state.TTL, state.Pods = cfg.inZone(n.zone), uint16(cfg.TTL), cfg.Pods == PodsInsecure
	return n.tell(state)
}

// tell wants the mutex.
func (n *Names) tell(state bpf.NamesState) error {
	if state == n.known {
		return nil
	}
	if err := n.state.SetNamesState(state); err != nil {
		return err
	}
	n.known = state
	return nil
}

// note keeps the kernel from denying what it could not be told, and makes it deny what is not there once it knows all the rest.
func (n *Names) note(c change, written bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if c == (change{}) {
		n.first = true
	} else if written {
		delete(n.missing, c)
	} else {
		n.missing[c] = true
	}
	state := n.known
	// What an earlier agent has said counts until all is written anew: the kernel goes on while this one begins.
	state.Whole = len(n.missing) == 0 && (n.first || n.known.Whole)
	return n.tell(state)
}

// Run writes names until ctx ends. What it has written stays.
func (n *Names) Run(ctx context.Context) error {
	defer n.queue.ShutDown()
	if !mirror.Wait(ctx, n.services, n.slices, n.namespaces) {
		return nil
	}
	backoff := wait.Backoff{Duration: 10 * time.Millisecond, Factor: 2, Steps: 12, Cap: 30 * time.Second}
	for {
		err := n.prune()
		if err == nil {
			break
		}
		klog.ErrorS(err, "Names of Services that are gone are in the kernel still, trying again")
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(backoff.Step()):
		}
	}
	n.queue.Add(change{}) // behind all that there is
	defer context.AfterFunc(ctx, n.queue.ShutDown)()
	for {
		c, quit := n.queue.Get()
		if quit {
			return nil
		}
		var err error
		if c != (change{}) {
			err = n.sync(c)
		}
		if err := errors.Join(err, n.note(c, err == nil)); err != nil {
			klog.ErrorS(err, "Name is not in the kernel yet, trying again", "of", c.key)
			n.queue.AddRateLimited(c)
		} else {
			n.queue.Forget(c)
		}
		n.queue.Done(c)
	}
}

// prune deletes the names of Services and namespaces that went while nobody watched.
func (n *Names) prune() error {
	live := map[string]bool{}
	for svc := range n.services.All() {
		live[string(svc.UID)] = true
	}
	for ns := range n.namespaces.All() {
		live[string(ns.UID)] = true
	}
	_, err := n.table.Prune(func(owner string) bool { return live[owner] })
	return err
}

func (n *Names) sync(c change) error {
	var want []bpf.Name
	if strings.Contains(c.key, "/") {
		if svc := n.services.Get(c.key); svc != nil && string(svc.UID) == c.uid {
			want = Desired(svc, endpointSlices(svc, n.slices), n.zone)
		}
	} else if ns := n.namespaces.Get(c.key); ns != nil && string(ns.UID) == c.uid {
		want = DesiredNamespace(ns, n.zone)
	}
	_, err := n.table.Replace(c.uid, want)
	return err
}

// endpointSlices are those of a Service that have a part in its names.
func endpointSlices(svc *corev1.Service, all *mirror.Slices) []*discoveryv1.EndpointSlice {
	if svc.Spec.ClusterIP != corev1.ClusterIPNone {
		return all.NamedOfService(mirror.KeyOf(svc))
	}
	return all.OfService(mirror.KeyOf(svc))
}
