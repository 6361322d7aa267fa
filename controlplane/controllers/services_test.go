package controllers_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// endpoints waits until what is known of a Service's endpoints, one line each and sorted, is want.
func (c *cluster) endpoints(ns, service string, tell func(discoveryv1.EndpointSlice, discoveryv1.Endpoint) string, want ...string) {
	c.Helper()
	c.eventually(fmt.Sprintf("endpoints of %s: %q", service, want), func() error {
		l, err := c.client.DiscoveryV1().EndpointSlices(ns).List(c.Context(), metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=" + service})
		if err != nil {
			return err
		}
		var got []string
		for _, s := range l.Items {
			for _, e := range s.Endpoints {
				got = append(got, tell(s, e))
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			return fmt.Errorf("%q", got)
		}
		return nil
	})
}

func (c *cluster) service(ns string, change func(*corev1.Service)) {
	c.Helper()
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "web"}, Ports: []corev1.ServicePort{{Name: "http", Port: 80}}}}
	change(s)
	if _, err := c.client.CoreV1().Services(ns).Create(c.Context(), s, metav1.CreateOptions{}); err != nil {
		c.Fatal(err)
	}
}

func (c *cluster) patchService(ns, patch string) {
	c.Helper()
	if _, err := c.client.CoreV1().Services(ns).Patch(c.Context(), "web", types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		c.Fatal(err)
	}
}

// testTrafficDistribution: endpoints say for whom they are, as the Service asks, and follow the zones of nodes.
func testTrafficDistribution(t *testing.T, c *cluster) {
	ns := c.namespace(t, "distribution")
	c.podOn(ns, "web-1", nodeName, func(p *corev1.Pod) { p.Labels = map[string]string{"app": "web"} })
	c.service(ns, func(s *corev1.Service) {
		s.Spec.TrafficDistribution = new(string)
		*s.Spec.TrafficDistribution = corev1.ServiceTrafficDistributionPreferSameNode
	})
	hints := func(_ discoveryv1.EndpointSlice, e discoveryv1.Endpoint) string {
		text := "zone"
		if e.Zone != nil {
			text += " " + *e.Zone
		}
		if e.Hints != nil {
			for _, z := range e.Hints.ForZones {
				text += ", for zone " + z.Name
			}
			for _, n := range e.Hints.ForNodes {
				text += ", for node " + n.Name
			}
		}
		return text
	}
	c.endpoints(ns, "web", hints, "zone, for node "+nodeName)
	zone := func(name string) {
		t.Helper()
		patch := `{"metadata":{"labels":{"topology.kubernetes.io/zone":` + name + `}}}`
		if _, err := c.client.CoreV1().Nodes().Patch(t.Context(), nodeName, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	zone(`"za"`)
	c.endpoints(ns, "web", hints, "zone za, for zone za, for node "+nodeName)
	for _, d := range []string{corev1.ServiceTrafficDistributionPreferSameZone, corev1.ServiceTrafficDistributionPreferClose} {
		c.patchService(ns, fmt.Sprintf(`{"spec":{"trafficDistribution":%q}}`, d))
		c.endpoints(ns, "web", hints, "zone za, for zone za")
	}
	zone(`"zb"`)
	c.endpoints(ns, "web", hints, "zone zb, for zone zb")
	c.patchService(ns, `{"spec":{"trafficDistribution":null}}`)
	c.endpoints(ns, "web", hints, "zone zb")
	zone("null")
	c.endpoints(ns, "web", hints, "zone")
}

// testConditions: what endpoints say of pods that are not ready, that are published all the same, and that terminate. The slices tell when
// that changed.
func testConditions(t *testing.T, c *cluster) {
	ns := c.namespace(t, "conditions")
	c.silentNode("silent-conditions")
	c.podOn(ns, "web-1", nodeName, func(p *corev1.Pod) { p.Labels = map[string]string{"app": "web", unready: "true"} })
	c.podOn(ns, "web-2", "silent-conditions", func(p *corev1.Pod) { p.Labels = map[string]string{"app": "web"} })
	two, err := c.client.CoreV1().Pods(ns).Get(t.Context(), "web-2", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	two.Status.Phase, two.Status.PodIP, two.Status.PodIPs = corev1.PodRunning, "10.244.9.9", []corev1.PodIP{{IP: "10.244.9.9"}}
	two.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()}}
	if _, err := c.client.CoreV1().Pods(ns).UpdateStatus(t.Context(), two, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.service(ns, func(*corev1.Service) {})
	tell := func(_ discoveryv1.EndpointSlice, e discoveryv1.Endpoint) string {
		return fmt.Sprintf("%s ready %t serving %t terminating %t", e.TargetRef.Name, *e.Conditions.Ready, *e.Conditions.Serving, *e.Conditions.Terminating)
	}
	// A change of the Service alone takes the time away again: nothing became of a pod.
	dated := func(s discoveryv1.EndpointSlice, e discoveryv1.Endpoint) string {
		if s.Annotations[corev1.EndpointsLastChangeTriggerTime] == "" {
			return "a slice that does not tell when it changed"
		}
		return tell(s, e)
	}
	c.endpoints(ns, "web", dated, "web-1 ready false serving false terminating false", "web-2 ready true serving true terminating false")
	c.patchService(ns, `{"spec":{"publishNotReadyAddresses":true}}`)
	c.endpoints(ns, "web", tell, "web-1 ready true serving false terminating false", "web-2 ready true serving true terminating false")
	c.patchService(ns, `{"spec":{"publishNotReadyAddresses":false}}`)
	if err := c.client.CoreV1().Pods(ns).Delete(t.Context(), "web-2", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.endpoints(ns, "web", tell, "web-1 ready false serving false terminating false", "web-2 ready false serving true terminating true")
}

// testMirror: Endpoints that a user writes become EndpointSlices, and go on as such.
func testMirror(t *testing.T, c *cluster) {
	ns := c.namespace(t, "mirror")
	c.service(ns, func(s *corev1.Service) { s.Spec.Selector = nil })
	api := c.client.CoreV1().Endpoints(ns)                  //nolint:staticcheck // still served
	made, err := api.Create(t.Context(), &corev1.Endpoints{ //nolint:staticcheck // still served
		ObjectMeta: metav1.ObjectMeta{Name: "web", Labels: map[string]string{"mine": "yes"}, Annotations: map[string]string{"told": "too"}},
		Subsets: []corev1.EndpointSubset{{ //nolint:staticcheck // still served
			Addresses:         []corev1.EndpointAddress{{IP: "198.51.100.1", Hostname: "one"}, {IP: "2001:db8::1"}},
			NotReadyAddresses: []corev1.EndpointAddress{{IP: "198.51.100.2"}},
			Ports:             []corev1.EndpointPort{{Name: "http", Port: 8080}, {Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP}},
		}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	tell := func(s discoveryv1.EndpointSlice, e discoveryv1.Endpoint) string {
		var ports []string
		for _, p := range s.Ports {
			ports = append(ports, fmt.Sprintf("%s %s/%d", *p.Name, *p.Protocol, *p.Port))
		}
		if o := metav1.GetControllerOf(&s); o == nil || o.Kind != "Endpoints" || o.UID != made.UID || s.Labels["mine"] != "yes" || s.Annotations["told"] != "too" ||
			s.Labels[discoveryv1.LabelManagedBy] != "endpointslicemirroring-controller.k8s.io" || !strings.HasPrefix(s.Name, "web-") {
			return fmt.Sprintf("a slice of %+v", s.ObjectMeta)
		}
		text := fmt.Sprintf("%s %s ready %t at %s", s.AddressType, e.Addresses, *e.Conditions.Ready, strings.Join(ports, " "))
		if e.Hostname != nil {
			text += " as " + *e.Hostname
		}
		return text
	}
	const both = "dns UDP/53 http TCP/8080"
	c.endpoints(ns, "web", tell, "IPv4 [198.51.100.1] ready true at "+both+" as one", "IPv4 [198.51.100.2] ready false at "+both, "IPv6 [2001:db8::1] ready true at "+both)
	made.Subsets = []corev1.EndpointSubset{ //nolint:staticcheck // still served
		{Addresses: []corev1.EndpointAddress{{IP: "198.51.100.1"}}, Ports: []corev1.EndpointPort{{Name: "http", Port: 8080}}},
		{Addresses: []corev1.EndpointAddress{{IP: "198.51.100.3"}}, Ports: []corev1.EndpointPort{{Name: "http", Port: 9090}}},
	}
	if made, err = api.Update(t.Context(), made, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.endpoints(ns, "web", tell, "IPv4 [198.51.100.1] ready true at http TCP/8080", "IPv4 [198.51.100.3] ready true at http TCP/9090")
	// What somebody takes away or changes comes back.
	slices := c.client.DiscoveryV1().EndpointSlices(ns)
	l, err := slices.List(t.Context(), metav1.ListOptions{})
	if err != nil || len(l.Items) != 2 {
		t.Fatalf("%d slices, %v", len(l.Items), err)
	}
	l.Items[0].Endpoints = nil
	if _, err := slices.Update(t.Context(), &l.Items[0], metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := slices.Delete(t.Context(), l.Items[1].Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.endpoints(ns, "web", tell, "IPv4 [198.51.100.1] ready true at http TCP/8080", "IPv4 [198.51.100.3] ready true at http TCP/9090")
	// Neither for a Service with a selector, nor if they ask to be left alone.
	c.patchService(ns, `{"spec":{"selector":{"app":"nobody"}}}`)
	c.endpoints(ns, "web", tell)
	c.patchService(ns, `{"spec":{"selector":null}}`)
	// The controller of Endpoints took them over with the selector: they are the user's again with what is written now.
	c.eventually("Endpoints written anew", func() error {
		made.ResourceVersion = ""
		now, err := api.Update(t.Context(), made, metav1.UpdateOptions{})
		if err == nil {
			made = now
		}
		return err
	})
	c.endpoints(ns, "web", tell, "IPv4 [198.51.100.1] ready true at http TCP/8080", "IPv4 [198.51.100.3] ready true at http TCP/9090")
	made.Labels[discoveryv1.LabelSkipMirror] = "true"
	if _, err := api.Update(t.Context(), made, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.endpoints(ns, "web", tell)
}

// testServiceRanges: a further range gives addresses once it is ready, none any more when it is being deleted, and goes when the last
// Service that has one of it alone gives it up.
func testServiceRanges(t *testing.T, c *cluster) {
	ns := c.namespace(t, "service-ranges")
	api := c.client.NetworkingV1().ServiceCIDRs()
	state := func(name string) (string, error) {
		r, err := api.Get(t.Context(), name, metav1.GetOptions{})
		if err != nil || len(r.Status.Conditions) != 1 {
			return "", errors.Join(err, fmt.Errorf("conditions %+v", r.Status.Conditions))
		}
		return string(r.Status.Conditions[0].Status) + " " + r.Status.Conditions[0].Reason, nil
	}
	is := func(name, want string) {
		t.Helper()
		c.eventually(name+" is "+want, func() error {
			got, err := state(name)
			if err == nil && got != want {
				err = fmt.Errorf("%s", got)
			}
			return err
		})
	}
	add := func(name, cidr string) {
		t.Helper()
		if _, err := api.Create(t.Context(), &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{cidr}}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		is(name, "True Allocating")
	}
	take := func(name, ip string) error {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{ClusterIP: ip, Ports: []corev1.ServicePort{{Port: 80}}}}
		_, err := c.client.CoreV1().Services(ns).Create(t.Context(), s, metav1.CreateOptions{})
		return err
	}
	if err := take("early", "10.97.0.5"); !apierrors.IsInvalid(err) {
		t.Fatalf("an address of a range that there is not: %v", err)
	}
	add("more", "10.97.0.0/24")
	// The API server hears of a range as the controller does, and not before it.
	c.eventually("an address of the further range", func() error { return take("first", "10.97.0.5") })
	if err := take("second", "10.97.0.5"); !apierrors.IsInvalid(err) {
		t.Errorf("an address that is taken: %v", err)
	}
	if err := api.Delete(t.Context(), "more", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	is("more", "False Terminating")
	if err := take("late", "10.97.0.6"); !apierrors.IsInvalid(err) {
		t.Errorf("an address of a range that is being deleted: %v", err)
	}
	// A range that covers it makes it needless.
	add("most", "10.97.0.0/20")
	gone := func(name string) {
		t.Helper()
		c.eventually(name+" is gone", func() error {
			_, err := api.Get(t.Context(), name, metav1.GetOptions{})
			if !apierrors.IsNotFound(err) {
				return fmt.Errorf("it is there: %v", err)
			}
			return nil
		})
	}
	gone("more")
	if err := api.Delete(t.Context(), "most", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	is("most", "False Terminating")
	if err := c.client.CoreV1().Services(ns).Delete(t.Context(), "first", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	gone("most")
}
