package apiserver_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/strake-io/strake/controlplane/apiserver"
	"github.com/strake-io/strake/controlplane/apiserver/apiservertest"
)

var (
	services4 = netip.MustParsePrefix("10.96.0.0/16")
	services6 = netip.MustParsePrefix("fd00:10:96::/112")
)

// TestFamilies runs an API server with Service ranges of both families, and one with IPv6 only.
func TestFamilies(t *testing.T) {
	t.Run("both", func(t *testing.T) {
		a := newAPI(t, apiservertest.Start(t, func(c *apiserver.Config) { c.ServiceCIDRs = []netip.Prefix{services4, services6} }))
		a.kubernetesService("10.96.0.1", discoveryv1.AddressTypeIPv4, "192.0.2.1")
		testSecondFamily(a)
		testPodIPs(a)
		testPodCIDRs(a)
	})
	t.Run("IPv6", func(t *testing.T) {
		a := newAPI(t, apiservertest.Start(t, func(c *apiserver.Config) {
			c.ServiceCIDRs = []netip.Prefix{services6}
			c.BindAddresses, c.AdvertiseAddress = []net.IP{net.IPv6unspecified}, net.ParseIP("2001:db8::1")
		}))
		a.kubernetesService("fd00:10:96::1", discoveryv1.AddressTypeIPv6, "2001:db8::1")
		s := must(a.client.CoreV1().Services(a.ns).Create(t.Context(), service("web"), metav1.CreateOptions{}))(t)
		if ip, err := netip.ParseAddr(s.Spec.ClusterIP); err != nil || !services6.Contains(ip) || !slices.Equal(s.Spec.IPFamilies, []corev1.IPFamily{corev1.IPv6Protocol}) {
			t.Errorf("Service %+v", s.Spec)
		}
	})
	t.Run("of two minds", func(t *testing.T) {
		_, err := apiserver.New(apiserver.Config{BindAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ServiceCIDRs: []netip.Prefix{services6, services4}})
		if err == nil {
			t.Error("an API server with an IPv4 address gives its Service an IPv6 address")
		}
	})
}

// kubernetesService is the way for pods to the server.
func (a *api) kubernetesService(ip string, kind discoveryv1.AddressType, advertised string) {
	a.Helper()
	a.eventually("the Service kubernetes", func(ctx context.Context) error {
		s, err := a.client.CoreV1().Services(metav1.NamespaceDefault).Get(ctx, "kubernetes", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if s.Spec.ClusterIP != ip || *s.Spec.IPFamilyPolicy != corev1.IPFamilyPolicySingleStack {
			a.Errorf("Service %+v", s.Spec)
		}
		slice, err := a.client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).Get(ctx, "kubernetes", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if slice.AddressType != kind || slice.Endpoints[0].Addresses[0] != advertised {
			return fmt.Errorf("EndpointSlice of %s: %v", slice.AddressType, slice.Endpoints)
		}
		return nil
	})
}

// testSecondFamily gives a Service a second family and takes it away again.
func testSecondFamily(a *api) {
	api, ctx := a.client.CoreV1().Services(a.ns), a.Context()
	first := must(api.Create(ctx, service("web"), metav1.CreateOptions{}))(a).Spec.ClusterIP
	patch := func(policy string) (*corev1.Service, error) {
		return api.Patch(ctx, "web", types.MergePatchType, fmt.Appendf(nil, `{"spec":{"ipFamilyPolicy":%q}}`, policy), metav1.PatchOptions{})
	}
	var second string
	for range 2 {
		s := must(patch("RequireDualStack"))(a)
		if len(s.Spec.ClusterIPs) != 2 || s.Spec.ClusterIPs[0] != first || len(s.Spec.IPFamilies) != 2 || s.Spec.IPFamilies[1] != corev1.IPv6Protocol {
			a.Fatalf("two families: %+v", s.Spec)
		}
		if second != "" && s.Spec.ClusterIPs[1] != second {
			a.Errorf("the second address %s became %s", second, s.Spec.ClusterIPs[1])
		}
		second = s.Spec.ClusterIPs[1]
	}
	_, err := api.Create(ctx, service("thief", withIP(second)), metav1.CreateOptions{})
	a.refused(err, 422, "spec.clusterIPs")
	moved := must(api.Get(ctx, "web", metav1.GetOptions{}))(a)
	moved.Spec.ClusterIPs[1] = "fd00:10:96::aaaa"
	_, err = api.Update(ctx, moved, metav1.UpdateOptions{})
	a.refused(err, 422, "spec.clusterIPs[1]")
	s := must(patch("SingleStack"))(a)
	if !slices.Equal(s.Spec.ClusterIPs, []string{first}) || len(s.Spec.IPFamilies) != 1 {
		a.Errorf("one family again: %+v", s.Spec)
	}
	heir := must(api.Create(ctx, service("heir", withIP(second)), metav1.CreateOptions{}))(a)
	// The first of a Service's families is for life, also of one whose first is not the cluster's.
	heir.Spec.IPFamilies, heir.Spec.ClusterIPs, heir.Spec.ClusterIP = []corev1.IPFamily{corev1.IPv4Protocol}, []string{"10.96.0.200"}, "10.96.0.200"
	_, err = api.Update(ctx, heir, metav1.UpdateOptions{})
	a.refused(err, 422, "spec.clusterIPs[0]", "spec.ipFamilies[0]")
}

func testPodIPs(a *api) {
	made := a.makePod("pod", func(p *corev1.Pod) { p.Spec.NodeName = "n" })
	ips := func(texts ...string) (out []corev1.PodIP) {
		for _, t := range texts {
			out = append(out, corev1.PodIP{IP: t})
		}
		return out
	}
	update := func(change func(*corev1.PodStatus)) (*corev1.Pod, error) {
		p := made.DeepCopy()
		p.ResourceVersion = ""
		p.Status = corev1.PodStatus{Phase: corev1.PodRunning}
		change(&p.Status)
		return a.client.CoreV1().Pods(a.ns).UpdateStatus(a.Context(), p, metav1.UpdateOptions{})
	}
	p := must(update(func(s *corev1.PodStatus) {
		s.PodIPs, s.HostIPs = ips("fd00::5", "10.244.0.5"), []corev1.HostIP{{IP: "fd00::1"}, {IP: "192.0.2.1"}}
	}))(a)
	if p.Status.PodIP != "fd00::5" || p.Status.HostIP != "fd00::1" || len(p.Status.PodIPs) != 2 {
		a.Errorf("status %+v", p.Status)
	}
	for name, test := range map[string]struct {
		change func(*corev1.PodStatus)
		fields []string
	}{
		"two of a family":  {func(s *corev1.PodStatus) { s.PodIPs = ips("10.244.0.5", "10.244.0.6") }, []string{"status.podIPs"}},
		"three":            {func(s *corev1.PodStatus) { s.PodIPs = ips("10.244.0.5", "fd00::5", "fd00::6") }, []string{"status.podIPs"}},
		"one twice":        {func(s *corev1.PodStatus) { s.PodIPs = ips("10.244.0.5", "10.244.0.5") }, []string{"status.podIPs[1]"}},
		"none":             {func(s *corev1.PodStatus) { s.PodIPs = ips("pod") }, []string{"status.podIPs[0]"}},
		"nodes of one":     {func(s *corev1.PodStatus) { s.HostIPs = []corev1.HostIP{{IP: "192.0.2.1"}, {IP: "192.0.2.2"}} }, []string{"status.hostIPs"}},
		"no node's at all": {func(s *corev1.PodStatus) { s.HostIPs = []corev1.HostIP{{IP: "node"}} }, []string{"status.hostIPs[0]"}},
	} {
		a.Run(name, func(t *testing.T) {
			_, err := update(test.change)
			a.in(t).refused(err, 422, test.fields...)
		})
	}
}

func testPodCIDRs(a *api) {
	api, ctx, name := a.client.CoreV1().Nodes(), a.Context(), "n-"+a.ns
	must(api.Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}))(a)
	patch := func(cidrs string) (*corev1.Node, error) {
		return api.Patch(ctx, name, types.StrategicMergePatchType, fmt.Appendf(nil, `{"spec":{"podCIDRs":%s}}`, cidrs), metav1.PatchOptions{})
	}
	if n := must(patch(`["10.244.7.0/24"]`))(a); n.Spec.PodCIDR != "10.244.7.0/24" {
		a.Errorf("spec %+v", n.Spec)
	}
	if n := must(patch(`["10.244.7.0/24","fd00:10:244:7::/64"]`))(a); n.Spec.PodCIDR != "10.244.7.0/24" || len(n.Spec.PodCIDRs) != 2 {
		a.Errorf("a second family makes of spec %+v", n.Spec)
	}
	n := must(api.Get(ctx, name, metav1.GetOptions{}))(a)
	for _, cidrs := range [][]string{{"10.244.8.0/24", "fd00:10:244:7::/64"}, {"10.244.7.0/24"}, {"fd00:10:244:7::/64", "10.244.7.0/24"}} {
		n.Spec.PodCIDR, n.Spec.PodCIDRs = cidrs[0], cidrs
		if _, err := api.Update(ctx, n, metav1.UpdateOptions{}); !apierrors.IsInvalid(err) {
			a.Errorf("ranges became %s: %v", cidrs, err)
		}
	}
}
