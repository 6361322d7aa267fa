package allocator

import (
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// serviceCIDR is a range; state is "ready", "refused", "going" or empty: nobody has judged it yet.
func serviceCIDR(state string, cidrs ...string) *networkingv1.ServiceCIDR {
	c := &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: cidrs[0]}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: cidrs}}
	ready := func(s metav1.ConditionStatus) {
		c.Status.Conditions = []metav1.Condition{{Type: networkingv1.ServiceCIDRConditionReady, Status: s}}
	}
	switch state {
	case "ready":
		ready(metav1.ConditionTrue)
	case "refused":
		ready(metav1.ConditionFalse)
	case "going":
		ready(metav1.ConditionTrue)
		now := metav1.Now()
		c.DeletionTimestamp = &now
	}
	return c
}

func TestRangesOfAddresses(t *testing.T) {
	for _, test := range []struct {
		name    string
		further []*networkingv1.ServiceCIDR
		want    string // of IPv4
	}{
		{"none", nil, "10.0.0.0/27"},
		{"the cluster's own", []*networkingv1.ServiceCIDR{serviceCIDR("ready", "10.0.0.0/27")}, "10.0.0.0/27"},
		{"further ones", []*networkingv1.ServiceCIDR{serviceCIDR("ready", "10.2.0.0/24"), serviceCIDR("", "fd01::/112", "10.1.0.0/24"), serviceCIDR("ready", "10.0.0.0/27")}, "10.0.0.0/27, 10.1.0.0/24, 10.2.0.0/24"},
		{"one twice", []*networkingv1.ServiceCIDR{serviceCIDR("ready", "10.2.0.0/24"), serviceCIDR("ready", "10.2.0.0/24")}, "10.0.0.0/27, 10.2.0.0/24"},
		{"not ready", []*networkingv1.ServiceCIDR{serviceCIDR("refused", "10.2.0.0/24")}, "10.0.0.0/27"},
		{"going", []*networkingv1.ServiceCIDR{serviceCIDR("going", "10.2.0.0/24")}, "10.0.0.0/27"},
		{"the cluster's own is going", []*networkingv1.ServiceCIDR{serviceCIDR("going", "10.0.0.0/27"), serviceCIDR("ready", "10.2.0.0/24")}, "10.2.0.0/24"},
		{"another tells of the cluster's own", []*networkingv1.ServiceCIDR{serviceCIDR("going", "10.0.0.0/27"), serviceCIDR("ready", "10.0.0.0/27")}, "10.0.0.0/27"},
		{"of the other family", []*networkingv1.ServiceCIDR{serviceCIDR("ready", "fd01::/112")}, "10.0.0.0/27"},
		{"rubbish", []*networkingv1.ServiceCIDR{serviceCIDR("ready", "10.2.0.0/24/3")}, "10.0.0.0/27"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newCluster(t)
			c.further = test.further
			if got, err := c.ranges(corev1.IPv4Protocol); err != nil || listed(got) != test.want {
				t.Errorf("%s, %v, want %s", listed(got), err, test.want)
			}
		})
	}
}

// TestFurtherRanges fills the cluster's own range, and goes on in a further one, which may overlap it.
func TestFurtherRanges(t *testing.T) {
	c := newClusterOf(t, "10.0.0.0/30")
	c.must(service("a"))
	c.must(service("b"))
	if _, err := c.write(service("c"), nil); err == nil {
		t.Fatal("a third address of two")
	}
	c.further = []*networkingv1.ServiceCIDR{serviceCIDR("ready", "10.0.0.0/29"), serviceCIDR("ready", "10.9.0.0/32"), serviceCIDR("ready", "10.9.0.0/31")}
	seen := map[string]bool{}
	for _, name := range []string{"c", "d", "e", "f"} { // .3 to .6, the last of the small range among them
		ip := c.must(service(name)).Spec.ClusterIP
		if seen[ip] || !netip.MustParsePrefix("10.0.0.0/29").Contains(netip.MustParseAddr(ip)) {
			t.Errorf("%s is given", ip)
		}
		seen[ip] = true
	}
	if _, err := c.write(service("g"), nil); err == nil {
		t.Error("a seventh address of six")
	}
	for ip, ok := range map[string]bool{"10.9.0.0": false, "10.9.0.1": false, "10.9.0.2": false} {
		if _, err := c.write(service("h", clusterIP(ip)), nil); (err == nil) != ok {
			t.Errorf("%s: %v", ip, err)
		}
	}
	// Who has an address keeps it when its range goes.
	c.further = nil
	c.must(service("c", clusterIP(c.services["c"].Spec.ClusterIP)))
	c.check()
}
