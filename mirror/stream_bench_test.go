package mirror

import (
	"math/rand/v2"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// BenchmarkPack is what a list costs for each object of it.
func BenchmarkPack(b *testing.B) {
	s := slice("web-1", "web", "http", "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5")
	s.ObjectMeta = decorated("web-1", rand.New(rand.NewPCG(1, 2)))
	v := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", UID: "1"}, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeClusterIP, ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1"}, Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}}}}
	m := New(nil, "n1")
	b.Run("EndpointSlice", func(b *testing.B) { benchmarkPack(b, newSet[discoveryv1.EndpointSlice](m, keptSlice), s) })
	b.Run("Service", func(b *testing.B) { benchmarkPack(b, newSet[corev1.Service](m, keptService), v) })
}

func benchmarkPack[T any, P object[T]](b *testing.B, s *Set[T, P], obj P) {
	data, err := obj.Marshal()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.packBytes(data); err != nil {
			b.Fatal(err)
		}
	}
}
