// Package endpointslicemirror makes EndpointSlices of the Endpoints that users write for Services without a selector.
package endpointslicemirror

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/client-go/tools/record"

	"github.com/strake-io/strake/controlplane/controllers/queue"
)

const (
	managedBy    = "endpointslicemirroring-controller.k8s.io"
	maxEndpoints = 1000 // of a subset: what is more is left out, as the reference does; and of a slice: the API takes no more
)

type controller struct {
	client    kubernetes.Interface
	services  corelisters.ServiceLister
	endpoints corelisters.EndpointsLister //nolint:staticcheck // still served
	slices    cache.Indexer
	recorder  record.EventRecorder
	queue     *queue.Queue
}

// Setup registers the controller with the informers and returns what runs it.
func Setup(client kubernetes.Interface, f informers.SharedInformerFactory, recorder record.EventRecorder) (func(context.Context), error) {
	services, endpoints, slices := f.Core().V1().Services(), f.Core().V1().Endpoints(), f.Discovery().V1().EndpointSlices()
	c := &controller{
		client: client, services: services.Lister(), endpoints: endpoints.Lister(), slices: slices.Informer().GetIndexer(), recorder: recorder, queue: queue.New("endpointslicemirror"),
	}
	err := slices.Informer().AddIndexers(cache.Indexers{mirroredIndex: func(obj any) ([]string, error) {
		if s, ok := obj.(*discoveryv1.EndpointSlice); ok && serviceOf(s) != "" {
			return []string{serviceOf(s)}, nil
		}
		return nil, nil
	}})
	if err != nil {
		return nil, fmt.Errorf("endpointslicemirror controller: %w", err)
	}
	ofService := func(obj any) {
		if s, ok := queue.Object[*discoveryv1.EndpointSlice](obj); ok && serviceOf(s) != "" {
			c.queue.Add(serviceOf(s))
		}
	}
	for informer, handler := range map[cache.SharedIndexInformer]cache.ResourceEventHandler{
		services.Informer():  c.queue.Handlers(),
		endpoints.Informer(): c.queue.Handlers(),
		slices.Informer():    cache.ResourceEventHandlerFuncs{AddFunc: ofService, UpdateFunc: func(old, obj any) { ofService(old); ofService(obj) }, DeleteFunc: ofService},
	} {
		if _, err := informer.AddEventHandler(handler); err != nil {
			return nil, fmt.Errorf("endpointslicemirror controller: %w", err)
		}
	}
	return func(ctx context.Context) {
		c.queue.Run(ctx, 2, c.reconcile, services.Informer().HasSynced, endpoints.Informer().HasSynced, slices.Informer().HasSynced)
	}, nil
}

// mirroredIndex is of our slices, by the key of their Service: a search among all of a namespace takes as long as there are Services.
const mirroredIndex = "endpointslicemirror-service"

// serviceOf is the key of the Service that a slice of ours belongs to, or empty.
func serviceOf(s *discoveryv1.EndpointSlice) string {
	if s.Labels[discoveryv1.LabelManagedBy] != managedBy || s.Labels[discoveryv1.LabelServiceName] == "" {
		return ""
	}
	return s.Namespace + "/" + s.Labels[discoveryv1.LabelServiceName]
}

func (c *controller) reconcile(ctx context.Context, namespace, name string) error {
	objs, err := c.slices.ByIndex(mirroredIndex, namespace+"/"+name)
	if err != nil {
		return err
	}
	var have []*discoveryv1.EndpointSlice
	for _, obj := range objs {
		if s, ok := obj.(*discoveryv1.EndpointSlice); ok {
			have = append(have, s)
		}
	}
	e, err := c.mirrored(namespace, name)
	if err != nil {
		return err
	}
	var want []*discoveryv1.EndpointSlice
	if e != nil {
		var skipped int
		if want, skipped = desired(e); skipped > 0 && len(have) == 0 {
			c.recorder.Eventf(e, corev1.EventTypeWarning, "TooManyAddressesToMirror", "A max of %d addresses can be mirrored to EndpointSlices per Endpoints subset. %d addresses were skipped", maxEndpoints, skipped)
		}
	}
	return c.apply(ctx, namespace, have, want)
}

// mirrored returns the Endpoints of a Service if they are to be mirrored: a user's, for a Service without a selector.
func (c *controller) mirrored(namespace, name string) (*corev1.Endpoints, error) { //nolint:staticcheck // still served
	e, err := c.endpoints.Endpoints(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	_, election := e.Annotations[resourcelock.LeaderElectionRecordAnnotationKey]
	if election || e.Labels[discoveryv1.LabelSkipMirror] == "true" || e.DeletionTimestamp != nil {
		return nil, nil
	}
	s, err := c.services.Services(namespace).Get(name)
	if apierrors.IsNotFound(err) || err == nil && s.Spec.Selector != nil {
		return nil, nil
	}
	return e, err
}

// desired are the slices of Endpoints, one for each family and set of ports (more if they are full), and how many addresses did not fit.
func desired(e *corev1.Endpoints) (out []*discoveryv1.EndpointSlice, skipped int) { //nolint:staticcheck // still served
	for _, subset := range e.Subsets {
		var ports []discoveryv1.EndpointPort
		for _, p := range subset.Ports {
			ports = append(ports, discoveryv1.EndpointPort{Name: &p.Name, Port: &p.Port, Protocol: &p.Protocol, AppProtocol: p.AppProtocol})
		}
		slices.SortFunc(ports, func(a, b discoveryv1.EndpointPort) int { return strings.Compare(*a.Name, *b.Name) })
		taken := 0
		add := func(list []corev1.EndpointAddress, ready bool) {
			for _, a := range list {
				ip, err := netip.ParseAddr(a.IP)
				if err != nil {
					continue // the API server lets none in
				}
				if taken++; taken > maxEndpoints {
					skipped++
					continue
				}
				kind := discoveryv1.AddressTypeIPv6
				if ip = ip.Unmap(); ip.Is4() {
					kind = discoveryv1.AddressTypeIPv4
				}
				i := slices.IndexFunc(out, func(s *discoveryv1.EndpointSlice) bool {
					return s.AddressType == kind && len(s.Endpoints) < maxEndpoints && apiequality.Semantic.DeepEqual(s.Ports, ports)
				})
				if i < 0 {
					out, i = append(out, empty(e, kind, ports)), len(out)
				}
				endpoint := discoveryv1.Endpoint{Addresses: []string{ip.String()}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}, NodeName: a.NodeName, TargetRef: a.TargetRef}
				if a.Hostname != "" {
					endpoint.Hostname = &a.Hostname
				}
				out[i].Endpoints = append(out[i].Endpoints, endpoint)
			}
		}
		add(subset.Addresses, true)
		add(subset.NotReadyAddresses, false)
	}
	return out, skipped
}

// empty is a slice for Endpoints without any of them in it: it goes with them, and says what they say.
func empty(e *corev1.Endpoints, kind discoveryv1.AddressType, ports []discoveryv1.EndpointPort) *discoveryv1.EndpointSlice { //nolint:staticcheck // still served
	s := &discoveryv1.EndpointSlice{AddressType: kind, Ports: ports}
	s.Namespace, s.GenerateName = e.Namespace, e.Name+"-"
	s.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(e, corev1.SchemeGroupVersion.WithKind("Endpoints"))}
	s.Labels, s.Annotations = map[string]string{}, map[string]string{}
	for k, v := range e.Labels {
		s.Labels[k] = v
	}
	s.Labels[discoveryv1.LabelServiceName], s.Labels[discoveryv1.LabelManagedBy] = e.Name, managedBy
	for k, v := range e.Annotations {
		if k != corev1.EndpointsLastChangeTriggerTime && k != corev1.LastAppliedConfigAnnotation {
			s.Annotations[k] = v
		}
	}
	return s
}

// apply makes the slices that are there what they should be. Those with the same ports stay, and of several with the same ports each has
// its endpoints still.
func (c *controller) apply(ctx context.Context, namespace string, have, want []*discoveryv1.EndpointSlice) error {
	api := c.client.DiscoveryV1().EndpointSlices(namespace)
	var errs []error
	left := slices.Clone(have)
	alike := func(h, w *discoveryv1.EndpointSlice) bool {
		return h.AddressType == w.AddressType && apiequality.Semantic.DeepEqual(h.Ports, w.Ports)
	}
	same := func(h, w *discoveryv1.EndpointSlice) bool {
		return alike(h, w) && apiequality.Semantic.DeepEqual(h.Endpoints, w.Endpoints)
	}
	for _, w := range want {
		i := slices.IndexFunc(left, func(h *discoveryv1.EndpointSlice) bool { return same(h, w) })
		if i < 0 {
			i = slices.IndexFunc(left, func(h *discoveryv1.EndpointSlice) bool {
				return alike(h, w) && !slices.ContainsFunc(want, func(o *discoveryv1.EndpointSlice) bool { return same(h, o) })
			})
		}
		if i < 0 {
			i = slices.IndexFunc(left, func(h *discoveryv1.EndpointSlice) bool {
				return h.AddressType == w.AddressType && !slices.ContainsFunc(want, func(o *discoveryv1.EndpointSlice) bool { return apiequality.Semantic.DeepEqual(h.Ports, o.Ports) })
			})
		}
		if i < 0 {
			_, err := api.Create(ctx, w, metav1.CreateOptions{})
			if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
				return nil
			}
			errs = append(errs, err)
			continue
		}
		h := left[i]
		left = slices.Delete(left, i, i+1)
		if apiequality.Semantic.DeepEqual(h.Endpoints, w.Endpoints) && apiequality.Semantic.DeepEqual(h.Ports, w.Ports) &&
			apiequality.Semantic.DeepEqual(h.Labels, w.Labels) && apiequality.Semantic.DeepEqual(h.Annotations, w.Annotations) && apiequality.Semantic.DeepEqual(h.OwnerReferences, w.OwnerReferences) {
			continue
		}
		w.Name, w.GenerateName, w.ResourceVersion = h.Name, "", h.ResourceVersion
		_, err := api.Update(ctx, w, metav1.UpdateOptions{})
		errs = append(errs, err)
	}
	for _, h := range left {
		if err := api.Delete(ctx, h.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(h.UID))}); !apierrors.IsNotFound(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
