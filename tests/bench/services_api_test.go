package main

import (
	"context"
	"testing"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

// Every change changes something, however often a Service has its turn: an update that does not is none, and nothing is written for it.
func TestEveryChangeIsOne(t *testing.T) {
	_, slice := apiObjects(7)
	client := fake.NewClientset(slice)
	c := &changer{client, map[int]int{}}
	was := slice
	for n := range 3 * endpointsEach {
		if err := c.change(context.Background(), 7); err != nil {
			t.Fatal(err)
		}
		now, err := client.DiscoveryV1().EndpointSlices(apiNamespace).Get(context.Background(), slice.Name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if equality.Semantic.DeepEqual(was.Endpoints, now.Endpoints) {
			t.Fatalf("change %d changed nothing", n)
		}
		was = now
	}
}
