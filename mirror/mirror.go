package mirror

import (
	"context"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// Sets of the kinds that are held.
type (
	Services   = Set[corev1.Service, *corev1.Service]
	Slices     = Set[discoveryv1.EndpointSlice, *discoveryv1.EndpointSlice]
	Namespaces = Set[corev1.Namespace, *corev1.Namespace]
	Pods       = Set[corev1.Pod, *corev1.Pod]
)

// Mirror follows the kinds that somebody has asked for. All but Run is for before Run.
type Mirror struct {
	client      kubernetes.Interface
	node        string
	short, long map[string]string // names of labels and annotations that are held, and what stands for them in packed objects
	services    *Services
	slices      *Slices
	namespaces  *Namespaces
	pods        *Pods
	all         []Synced
	reflectors  []*cache.Reflector
}

// New makes a mirror that follows nothing yet. Of the names of nodes in EndpointSlices it holds that of node alone.
func New(client kubernetes.Interface, node string) *Mirror {
	m := &Mirror{client: client, node: node, short: map[string]string{}, long: map[string]string{}}
	m.Keep(discoveryv1.LabelServiceName)
	return m
}

// firstShort is the short name of the first label or annotation that is kept. All are of one byte, and have a bit each (shortBit).
const (
	firstShort = 'a'
	mostShort  = 0x80 - firstShort
)

// Keep names labels and annotations that somebody asks for, 31 at most with discoveryv1.LabelServiceName, which is always held. No others are.
func (m *Mirror) Keep(names ...string) {
	for _, name := range names {
		if m.short[name] == "" {
			if len(m.short) == mostShort {
				panic(fmt.Sprintf("mirror: %s is one label or annotation more than can be held, %d", name, mostShort))
			}
			short := string(rune(firstShort + len(m.short)))
			m.short[name], m.long[short] = short, name
		}
	}
}

// Services are all but their selectors and families.
func (m *Mirror) Services() *Services {
	if m.services == nil {
		api := m.client.CoreV1().Services(metav1.NamespaceAll)
		m.services = newSet[corev1.Service](m, keptService)
		m.services.service, m.services.addresses = KeyOf[*corev1.Service], serviceAddresses
		follow[*corev1.ServiceList](m, m.services, api, m.client.CoreV1().RESTClient(), "services")
	}
	return m.services
}

// Slices are those of EndpointSlices, without UIDs, and what their endpoints are of.
func (m *Mirror) Slices() *Slices {
	if m.slices == nil {
		api := m.client.DiscoveryV1().EndpointSlices(metav1.NamespaceAll)
		m.slices = newSet[discoveryv1.EndpointSlice](m, keptSlice)
		m.slices.service, m.slices.addresses, m.slices.belong = ServiceOf, sliceAddresses, true
		follow[*discoveryv1.EndpointSliceList](m, m.slices, api, m.client.DiscoveryV1().RESTClient(), "endpointslices")
	}
	return m.slices
}

// Namespaces are their names and UIDs.
func (m *Mirror) Namespaces() *Namespaces {
	if m.namespaces == nil {
		api := m.client.CoreV1().Namespaces()
		m.namespaces = newSet[corev1.Namespace](m, keptNamespace)
		follow[*corev1.NamespaceList](m, m.namespaces, api, m.client.CoreV1().RESTClient(), "namespaces")
	}
	return m.namespaces
}

// Pods are their names, UIDs and addresses, and whether they run in a network of their own.
func (m *Mirror) Pods() *Pods {
	if m.pods == nil {
		api := m.client.CoreV1().Pods(metav1.NamespaceAll)
		m.pods = newSet[corev1.Pod](m, keptPod)
		m.pods.addresses = podAddresses
		follow[*corev1.PodList](m, m.pods, api, m.client.CoreV1().RESTClient(), "pods")
	}
	return m.pods
}

// follow makes a mirror follow a kind. From a client of an API server its objects come as bytes (stream). A fake client, as most tests have, gives objects,
// and has no RESTClient: they go by Reflector's pages, and are packed as those of watches are.
func follow[L runtime.Object, T any, P object[T]](m *Mirror, s *Set[T, P], from Source[L], client rest.Interface, resource string) {
	m.all = append(m.all, s)
	if c, ok := client.(*rest.RESTClient); ok && c != nil {
		m.reflectors = append(m.reflectors, streaming(P(new(T)), s, from.Watch, &stream{client: client, resource: resource}, s.listedBytes))
	} else {
		m.reflectors = append(m.reflectors, Reflector(P(new(T)), s, from, pageSize, s.listed, nil))
	}
}

// Run follows the API server until ctx ends. What is held stays.
func (m *Mirror) Run(ctx context.Context) {
	var following sync.WaitGroup
	for _, r := range m.reflectors {
		following.Go(func() { r.RunWithContext(ctx) })
	}
	following.Wait()
}

// Wait waits until all that there was at the start is held and told of. It tells whether that came before ctx ended.
func (m *Mirror) Wait(ctx context.Context) bool { return Wait(ctx, m.all...) }

// Synced closes a channel when all that there was of it at the start is held and told of.
type Synced interface{ Synced() <-chan struct{} }

// Wait is for some sets alone.
func Wait(ctx context.Context, sets ...Synced) bool {
	for _, s := range sets {
		select {
		case <-ctx.Done():
			return false
		case <-s.Synced():
		}
	}
	return true
}

// Seen tells whether all that there was of some sets at the start is held and told of.
func Seen(sets ...Synced) bool {
	for _, s := range sets {
		select {
		case <-s.Synced():
		default:
			return false
		}
	}
	return true
}
