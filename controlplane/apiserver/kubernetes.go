package apiserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/strake-io/strake/controlplane/apiserver/resources"
)

// keepKubernetesService keeps the Service by which pods find this server.
func (b *builder) keepKubernetesService(ctx context.Context) error {
	const name, portName, namespace = "kubernetes", "https", metav1.NamespaceDefault
	port := int32(b.cfg.Port)
	ip := b.cfg.ServiceCIDRs[0].Masked().Addr().Next().String()
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"component": "apiserver", "provider": "kubernetes"}},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip},
			Ports: []corev1.ServicePort{{Name: portName, Port: 443, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(port)}},
		},
	}
	services := b.client.CoreV1().Services(namespace)
	err := keep(ctx, name, service, func(have *corev1.Service) bool {
		changed := !apiequality.Semantic.DeepEqual(have.Spec.Ports, service.Spec.Ports)
		have.Spec.Ports = service.Spec.Ports
		return changed
	}, services.Get, services.Create, services.Update)

	// The EndpointSlice for who watches those, the Endpoints for older clients; nothing is to mirror one to the other.
	advertised := b.cfg.AdvertiseAddress.String()
	ready, protocol, slicePort := true, corev1.ProtocolTCP, portName
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: name}}, AddressType: discoveryv1.AddressType(resources.FamilyOf(b.cfg.ServiceCIDRs[0].Addr())),
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{advertised}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}},
		Ports:     []discoveryv1.EndpointPort{{Name: &slicePort, Port: &port, Protocol: &protocol}},
	}
	slices := b.client.DiscoveryV1().EndpointSlices(namespace)
	sliceErr := keep(ctx, name, slice, func(have *discoveryv1.EndpointSlice) bool {
		changed := !apiequality.Semantic.DeepEqual(have.Endpoints, slice.Endpoints) || !apiequality.Semantic.DeepEqual(have.Ports, slice.Ports)
		have.Endpoints, have.Ports = slice.Endpoints, slice.Ports
		return changed
	}, slices.Get, slices.Create, slices.Update)
	endpoints := &corev1.Endpoints{ //nolint:staticcheck // deprecated, and what many clients still read
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{discoveryv1.LabelSkipMirror: "true"}},
		Subsets: []corev1.EndpointSubset{{
			Addresses: []corev1.EndpointAddress{{IP: advertised}}, Ports: []corev1.EndpointPort{{Name: portName, Port: port, Protocol: protocol}},
		}},
	}
	api := b.client.CoreV1().Endpoints(namespace)
	endpointsErr := keep(ctx, name, endpoints, func(have *corev1.Endpoints) bool {
		changed := !apiequality.Semantic.DeepEqual(have.Subsets, endpoints.Subsets)
		have.Subsets = endpoints.Subsets
		return changed
	}, api.Get, api.Create, api.Update)
	return errors.Join(err, sliceErr, endpointsErr)
}

// keepServiceRanges keeps the ServiceCIDR that tells of the cluster's ranges of ClusterIPs.
func (b *builder) keepServiceRanges(ctx context.Context) error {
	const name = "kubernetes"
	var cidrs []string
	for _, p := range b.cfg.ServiceCIDRs {
		cidrs = append(cidrs, p.Masked().String())
	}
	api := b.client.NetworkingV1().ServiceCIDRs()
	have, err := api.Get(ctx, name, metav1.GetOptions{})
	if err == nil && len(have.Spec.CIDRs) > 0 && have.Spec.CIDRs[0] != cidrs[0] {
		// The cluster has other ranges than before, which an object can't follow: another one takes its place, and what is in use of
		// the former range is kept by who uses it.
		have.Finalizers = nil
		if have, err = api.Update(ctx, have, metav1.UpdateOptions{}); err == nil {
			err = api.Delete(ctx, name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(have.UID))})
		}
		have = nil
	}
	switch {
	case apierrors.IsNotFound(err), err == nil && have == nil:
		have, err = api.Create(ctx, &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: cidrs}}, metav1.CreateOptions{})
	case err == nil && len(have.Spec.CIDRs) < len(cidrs):
		have.Spec.CIDRs = cidrs
		have, err = api.Update(ctx, have, metav1.UpdateOptions{})
	}
	if err == nil && have.DeletionTimestamp == nil && meta.SetStatusCondition(&have.Status.Conditions, metav1.Condition{
		Type: networkingv1.ServiceCIDRConditionReady, Status: metav1.ConditionTrue, Reason: "Allocating", Message: "Kubernetes Service CIDR is ready", ObservedGeneration: have.Generation,
	}) {
		_, err = api.UpdateStatus(ctx, have, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("ServiceCIDR %s: %w", name, err)
	}
	return nil
}

// keepAuthenticationInfo keeps the ConfigMap from which extension API servers learn whose certificates count and
// which headers this server vouches for users in; the library that they are built on reads it under this name.
func (b *builder) keepAuthenticationInfo(ctx context.Context) error {
	const name = "extension-apiserver-authentication"
	clientCA, err := os.ReadFile(b.cfg.ClientCAFile)
	if err != nil {
		return fmt.Errorf("ConfigMap %s: %w", name, err)
	}
	proxyCA, err := os.ReadFile(b.cfg.FrontProxyCAFile)
	if err != nil {
		return fmt.Errorf("ConfigMap %s: %w", name, err)
	}
	data := map[string]string{"client-ca-file": string(clientCA), "requestheader-client-ca-file": string(proxyCA)}
	h := b.generic.Authentication.RequestHeaderConfig
	for key, values := range map[string][]string{
		"requestheader-username-headers": h.UsernameHeaders.Value(), "requestheader-uid-headers": h.UIDHeaders.Value(),
		"requestheader-group-headers": h.GroupHeaders.Value(), "requestheader-extra-headers-prefix": h.ExtraHeaderPrefixes.Value(),
		"requestheader-allowed-names": h.AllowedClientNames.Value(),
	} {
		list, err := json.Marshal(values)
		if err != nil {
			return fmt.Errorf("ConfigMap %s: %s: %w", name, key, err)
		}
		data[key] = string(list)
	}
	api := b.client.CoreV1().ConfigMaps(metav1.NamespaceSystem)
	return keep(ctx, name, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: data}, func(have *corev1.ConfigMap) bool {
		changed := !apiequality.Semantic.DeepEqual(have.Data, data)
		have.Data = data
		return changed
	}, api.Get, api.Create, api.Update)
}
