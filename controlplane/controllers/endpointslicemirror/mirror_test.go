package endpointslicemirror

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

// Subsets of the same ports share slices, of which none holds more than the API takes. What has not changed is not written.
func TestSubsetsOfTheSamePorts(t *testing.T) {
	e := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web"}} //nolint:staticcheck // still served
	for subset := range 3 {
		s := corev1.EndpointSubset{Ports: []corev1.EndpointPort{{Port: 80, Protocol: corev1.ProtocolTCP}}} //nolint:staticcheck // still served
		for i := range 600 {
			s.Addresses = append(s.Addresses, corev1.EndpointAddress{IP: fmt.Sprintf("10.%d.%d.%d", subset, i/250, i%250+1)}) //nolint:staticcheck // still served
		}
		e.Subsets = append(e.Subsets, s)
	}
	want, skipped := desired(e)
	if len(want) != 2 || skipped != 0 || len(want[0].Endpoints) != maxEndpoints || len(want[1].Endpoints) != 800 {
		t.Fatalf("%d slices, %d skipped", len(want), skipped)
	}
	var have []*discoveryv1.EndpointSlice
	for i, s := range want {
		s = s.DeepCopy()
		s.Name, s.GenerateName = fmt.Sprint("web-", i), ""
		have = append([]*discoveryv1.EndpointSlice{s}, have...) // the cache has no order
	}
	client := fake.NewClientset(have[0], have[1])
	c := &controller{client: client}
	if err := c.apply(t.Context(), "ns", have, want); err != nil || len(client.Actions()) != 0 {
		t.Fatalf("%v, %v, want nothing to be done", err, client.Actions())
	}
	e.Subsets[2].Addresses = e.Subsets[2].Addresses[:500]
	want, _ = desired(e)
	if err := c.apply(t.Context(), "ns", have, want); err != nil || len(client.Actions()) != 1 || client.Actions()[0].GetVerb() != "update" {
		t.Fatalf("%v, %v, want one update", err, client.Actions())
	}
	got, err := client.DiscoveryV1().EndpointSlices("ns").Get(t.Context(), "web-1", metav1.GetOptions{})
	if err != nil || len(got.Endpoints) != 700 {
		t.Errorf("%v, %d endpoints in the second slice, want 700", err, len(got.Endpoints))
	}
}
