package apiserver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/strake-io/strake/controlplane/apiserver"
)

// holders are the Services that hold addresses and node ports, as clients were told.
type holders struct {
	mu    sync.Mutex
	of    map[string]string
	count int // acknowledged creations
}

// given notes what a created Service was given, and returns what another one holds too.
func (h *holders) given(s *corev1.Service) (twice []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.count++
	for _, v := range valuesOf(s) {
		if other, ok := h.of[v]; ok && other != s.Name {
			twice = append(twice, fmt.Sprintf("%s is given to %s and to %s", v, other, s.Name))
		}
		h.of[v] = s.Name
	}
	return twice
}

// leaving is called before a Service is deleted.
func (h *holders) leaving(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	maps.DeleteFunc(h.of, func(_, holder string) bool { return holder == name })
}

func (h *holders) acknowledged() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.count
}

// valuesOf are a Service's addresses and node ports.
func valuesOf(s *corev1.Service) []string {
	var all []string
	for _, ip := range s.Spec.ClusterIPs {
		if ip != corev1.ClusterIPNone {
			all = append(all, ip)
		}
	}
	for _, p := range s.Spec.Ports {
		if p.NodePort != 0 {
			all = append(all, strconv.Itoa(int(p.NodePort)))
		}
	}
	return all
}

// TestServicesOverCrashes makes and deletes Services through two servers, which are killed in between: no address and no node port is ever of
// two Services, and what the dead had claimed for nobody is given up.
func TestServicesOverCrashes(t *testing.T) {
	t.Parallel()
	s := serve(t, func(c *apiserver.Config) {
		c.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/24")}
		c.NodePortMin, c.NodePortMax = 30000, 30255
	})
	s.Stop(t) // its store is what counts
	// A claim is taken for a leak when no request can be under way any more that made it.
	const timeout = 2 * time.Second
	servers := []*process{newProcess(t, s, timeout), newProcess(t, s, timeout)}
	for _, p := range servers {
		p.start(t)
	}
	for _, p := range servers {
		p.ready(t)
	}
	etcd, err := clientv3.New(clientv3.Config{Endpoints: []string{s.EtcdURL}})
	if err != nil {
		t.Fatal(err)
	}
	defer etcd.Close()
	// A leak that is there for certain, whatever the kills hit: an address for a Service that never came to be.
	leak := &networkingv1.IPAddress{ObjectMeta: metav1.ObjectMeta{Name: "10.96.0.99", Annotations: map[string]string{"strake.io/service-uid": "nobody"}}, Spec: networkingv1.IPAddressSpec{ParentRef: &networkingv1.ParentReference{Resource: "services", Namespace: "default", Name: "nobody"}}}
	if _, err := servers[0].client.NetworkingV1().IPAddresses().Create(t.Context(), leak, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}

	held := &holders{of: map[string]string{}}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var load sync.WaitGroup
	for w := range 8 {
		load.Go(func() {
			var mine []string
			for n := 0; ctx.Err() == nil; n++ {
				client := servers[rand.IntN(len(servers))].client
				name := fmt.Sprintf("s-%d-%d", w, n)
				made, err := create(ctx, client, name)
				if err == nil {
					mine = append(mine, name)
					for _, message := range held.given(made) {
						t.Error(message)
					}
				}
				// Errors are those of servers that are away: what became of such a Service nobody knows, and its values are checked at the end.
				if len(mine) > 6 {
					held.leaving(mine[0])
					if err := client.CoreV1().Services(metav1.NamespaceDefault).Delete(ctx, mine[0], metav1.DeleteOptions{}); err == nil || apierrors.IsNotFound(err) {
						mine = mine[1:]
					}
				}
			}
		})
	}
	for kill := range 4 {
		p, before := servers[kill%2], held.acknowledged()
		eventually(t, "load before a kill", func(context.Context) error {
			if n := held.acknowledged(); n < before+60 {
				return fmt.Errorf("%d Services more", n-before)
			}
			return nil
		})
		p.kill()
		p.start(t)
		p.ready(t)
	}
	cancel()
	load.Wait()

	// All at rest: what is claimed is what Services hold. A server looks when it starts.
	eventually(t, "nothing leaks", func(ctx context.Context) error {
		servers[0].kill()
		servers[0].start(t)
		servers[0].ready(t)
		return claimsAreHeld(ctx, etcd, servers[0].client)
	})
}

func create(ctx context.Context, client kubernetes.Interface, name string) (*corev1.Service, error) {
	return client.CoreV1().Services(metav1.NamespaceDefault).Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Name: "a", Port: 80}, {Name: "b", Port: 81}},
	}}, metav1.CreateOptions{})
}

// claimsAreHeld compares what is claimed with what Services hold, and each value with all others.
func claimsAreHeld(ctx context.Context, etcd *clientv3.Client, client kubernetes.Interface) error {
	list, err := client.CoreV1().Services("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	want := map[string]string{}
	var errs []error
	for i := range list.Items {
		for _, v := range valuesOf(&list.Items[i]) {
			if other, ok := want[v]; ok {
				errs = append(errs, fmt.Errorf("%s is of %s and of %s", v, other, list.Items[i].Name))
			}
			want[v] = list.Items[i].Name
		}
	}
	var claimed []string
	for _, prefix := range []string{"/registry/ipaddresses/", "/registry/ranges/servicenodeports/"} {
		got, err := etcd.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
		if err != nil {
			return err
		}
		for _, kv := range got.Kvs {
			claimed = append(claimed, strings.TrimPrefix(string(kv.Key), prefix))
		}
	}
	slices.Sort(claimed)
	if held := slices.Sorted(maps.Keys(want)); !slices.Equal(held, claimed) {
		errs = append(errs, fmt.Errorf("Services hold\n%q, claimed are\n%q", held, claimed))
	}
	return errors.Join(errs...)
}
