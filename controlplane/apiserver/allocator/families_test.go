package allocator

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

const (
	range4 = "10.0.0.0/27"
	range6 = "fd00::/112"

	single  = corev1.IPFamilyPolicySingleStack
	prefer  = corev1.IPFamilyPolicyPreferDualStack
	require = corev1.IPFamilyPolicyRequireDualStack
	none    = corev1.IPFamilyPolicy("")
)

// spec is what a client says of addresses: the policy, families such as "46", addresses.
func spec(policy corev1.IPFamilyPolicy, families string, ips ...string) func(*corev1.ServiceSpec) {
	return func(s *corev1.ServiceSpec) {
		s.Selector = map[string]string{"a": "b"}
		s.IPFamilyPolicy, s.IPFamilies, s.ClusterIP, s.ClusterIPs = nil, nil, "", ips
		if policy != none {
			s.IPFamilyPolicy = &policy
		}
		for _, f := range families {
			s.IPFamilies = append(s.IPFamilies, corev1.IPFamily("IPv"+string(f)))
		}
		if len(ips) > 0 {
			s.ClusterIP = ips[0]
		}
	}
}

func noSelector(s *corev1.ServiceSpec) { s.Selector = nil }

// said is a Service's policy, families and the families of its addresses.
func said(s *corev1.Service) string {
	out := []string{"", "", ""}
	if p := s.Spec.IPFamilyPolicy; p != nil {
		out[0] = string(*p)
	}
	for _, f := range s.Spec.IPFamilies {
		out[1] += strings.TrimPrefix(string(f), "IPv")
	}
	for _, ip := range s.Spec.ClusterIPs {
		switch a, err := netip.ParseAddr(ip); {
		case err != nil:
			out[2] += ip
		case a.Is4():
			out[2] += "4"
		default:
			out[2] += "6"
		}
	}
	return strings.Join(out, " ")
}

func refusedField(err error) string {
	var status apierrors.APIStatus
	if !errors.As(err, &status) || status.Status().Details == nil {
		return ""
	}
	var fields []string
	for _, c := range status.Status().Details.Causes {
		fields = append(fields, c.Field)
	}
	return strings.Join(fields, ",")
}

// TestFamilies follows the tables of KEP-563.
func TestFamilies(t *testing.T) {
	only4, only6, both, sixFirst := []string{range4}, []string{range6}, []string{range4, range6}, []string{range6, range4}
	for _, test := range []struct {
		name    string
		cluster []string
		s       func(*corev1.ServiceSpec)
		more    func(*corev1.ServiceSpec)
		want    string // as said; or the fields that are refused
	}{
		{"nothing said", only4, spec(none, ""), nil, "SingleStack 4 4"},
		{"nothing said", only6, spec(none, ""), nil, "SingleStack 6 6"},
		{"nothing said", both, spec(none, ""), nil, "SingleStack 4 4"},
		{"nothing said", sixFirst, spec(none, ""), nil, "SingleStack 6 6"},
		{"the other family", both, spec(none, "6"), nil, "SingleStack 6 6"},
		{"a family that is not there", only4, spec(none, "6"), nil, "spec.ipFamilies[0]"},
		{"a family that is not there", only6, spec(prefer, "4"), nil, "spec.ipFamilies[0]"},
		{"prefers two", only4, spec(prefer, ""), nil, "PreferDualStack 4 4"},
		{"prefers two", both, spec(prefer, ""), nil, "PreferDualStack 46 46"},
		{"prefers two", sixFirst, spec(prefer, ""), nil, "PreferDualStack 64 64"},
		{"prefers two, one first", both, spec(prefer, "6"), nil, "PreferDualStack 64 64"},
		{"prefers two that are not there", only4, spec(prefer, "46"), nil, "spec.ipFamilies[1]"},
		{"requires two", only4, spec(require, ""), nil, "spec.ipFamilyPolicy"},
		{"requires two", both, spec(require, ""), nil, "RequireDualStack 46 46"},
		{"requires two, one first", both, spec(require, "6"), nil, "RequireDualStack 64 64"},
		{"two families without a policy", both, spec(none, "46"), nil, "spec.ipFamilyPolicy"},
		{"two families of one", both, spec(single, "46"), nil, "spec.ipFamilyPolicy"},
		{"two addresses of one", both, spec(single, "", "10.0.0.3", "fd00::3"), nil, "spec.ipFamilyPolicy"},
		{"a family twice", both, spec(require, "44"), nil, "spec.ipFamilies[1]"},
		{"a family that is none", both, spec(none, "5"), nil, "spec.ipFamilies[0]"},
		{"a policy that is none", both, spec("Dual", ""), nil, "spec.ipFamilyPolicy"},
		{"an address says the family", both, spec(none, "", "fd00::7"), nil, "SingleStack 6 6"},
		{"an address against the family", both, spec(none, "4", "fd00::7"), nil, "spec.clusterIPs[0]"},
		{"an address of a family that is not there", only4, spec(none, "", "fd00::7"), nil, "spec.clusterIPs[0]"},
		{"addresses say the families", both, spec(require, "", "fd00::7", "10.0.0.7"), nil, "RequireDualStack 64 64"},
		{"one address of two", both, spec(require, "", "fd00::7"), nil, "RequireDualStack 64 64"},
		{"two addresses of a family", both, spec(require, "", "10.0.0.7", "10.0.0.8"), nil, "spec.clusterIPs"},
		{"three addresses", both, spec(require, "", "10.0.0.7", "fd00::7", "fd00::8"), nil, "spec.clusterIPs"},
		{"None and an address", both, spec(require, "", "None", "fd00::7"), nil, "spec.clusterIPs"},
		{"a mapped address", both, spec(none, "", "::ffff:10.0.0.7"), nil, "spec.clusterIPs[0]"},
		{"a second address that is out of range", both, spec(require, "", "10.0.0.7", "fd01::7"), nil, "spec.clusterIPs"},
		{"the subnet router's address", both, spec(none, "", "fd00::"), nil, "spec.clusterIPs"},
		{"the last address of IPv6 is one", both, spec(none, "", "fd00::ffff"), nil, "SingleStack 6 6"},
		{"headless", both, spec(none, "", "None"), nil, "SingleStack 4 None"},
		{"headless of the other", both, spec(none, "6", "None"), nil, "SingleStack 6 None"},
		{"headless of two", both, spec(prefer, "", "None"), nil, "PreferDualStack 46 None"},
		{"headless of two", sixFirst, spec(require, "", "None"), nil, "RequireDualStack 64 None"},
		{"headless of two", only6, spec(require, "", "None"), nil, "spec.ipFamilyPolicy"},
		{"headless without selector", only4, spec(none, "", "None"), noSelector, "RequireDualStack 46 None"},
		{"headless without selector", only6, spec(none, "", "None"), noSelector, "RequireDualStack 64 None"},
		{"headless without selector of one", only4, spec(single, "6", "None"), noSelector, "SingleStack 6 None"},
		{"headless without selector prefers", only4, spec(prefer, "6", "None"), noSelector, "PreferDualStack 64 None"},
	} {
		t.Run(strings.Join(append([]string{test.name}, test.cluster...), " "), func(t *testing.T) {
			c := newClusterOf(t, test.cluster...)
			change := []func(*corev1.ServiceSpec){test.s}
			if test.more != nil {
				change = append(change, test.more)
			}
			s, err := c.write(service("s", change...), nil)
			got := refusedField(err)
			if err == nil {
				got = said(s)
			}
			if got != test.want {
				t.Errorf("%s, want %s (%v)", got, test.want, err)
			}
			c.check()
		})
	}
}

func TestFamiliesChange(t *testing.T) {
	policy := func(p corev1.IPFamilyPolicy) func(*corev1.ServiceSpec) {
		return func(s *corev1.ServiceSpec) { s.IPFamilyPolicy = &p }
	}
	all := func(fs ...func(*corev1.ServiceSpec)) func(*corev1.ServiceSpec) {
		return func(s *corev1.ServiceSpec) {
			for _, f := range fs {
				f(s)
			}
		}
	}
	fewerIPs := func(s *corev1.ServiceSpec) { s.ClusterIPs = s.ClusterIPs[:1] }
	fewerFamilies := func(s *corev1.ServiceSpec) { s.IPFamilies = s.IPFamilies[:1] }
	for _, test := range []struct {
		name   string
		from   func(*corev1.ServiceSpec)
		change func(*corev1.ServiceSpec)
		want   string
	}{
		{"a second family", spec(none, ""), policy(require), "RequireDualStack 46 46"},
		{"a second family if there is one", spec(none, "6"), policy(prefer), "PreferDualStack 64 64"},
		{"a certain second address", spec(none, ""), all(policy(require), func(s *corev1.ServiceSpec) { s.ClusterIPs = append(s.ClusterIPs, "fd00::99") }), "RequireDualStack 46 46"},
		{"a second family without a policy", spec(none, ""), func(s *corev1.ServiceSpec) { s.IPFamilies = append(s.IPFamilies, corev1.IPv6Protocol) }, "spec.ipFamilyPolicy"},
		{"a second address of the first's family", spec(none, ""), all(policy(require), func(s *corev1.ServiceSpec) { s.ClusterIPs = append(s.ClusterIPs, "10.0.0.9") }), "spec.clusterIPs"},
		{"one is enough", spec(require, ""), policy(single), "SingleStack 4 4"},
		{"one is enough, and says so", spec(require, ""), all(policy(single), fewerIPs, fewerFamilies), "SingleStack 4 4"},
		{"one is enough, and says half of it", spec(require, "6"), all(policy(single), fewerFamilies), "SingleStack 6 6"},
		{"an address less", spec(require, ""), fewerIPs, "spec.ipFamilyPolicy"},
		{"a family less", spec(prefer, ""), fewerFamilies, "spec.ipFamilyPolicy"},
		{"a file that says nothing", spec(require, "6"), spec(none, ""), "RequireDualStack 64 64"},
		{"a file that says only one", spec(require, "6"), spec(single, ""), "SingleStack 6 6"},
		{"headless, one family", spec(require, "", "None"), policy(single), "SingleStack 4 None"},
		{"headless, two families", spec(none, "", "None"), policy(require), "RequireDualStack 46 None"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newClusterOf(t, range4, range6)
			was := c.must(service("s", test.from))
			s := was.DeepCopy()
			test.change(&s.Spec)
			s, err := c.write(s, nil)
			got := refusedField(err)
			if err == nil {
				got = said(s)
				if n := min(len(s.Spec.ClusterIPs), len(was.Spec.ClusterIPs)); !slices.Equal(s.Spec.ClusterIPs[:n], was.Spec.ClusterIPs[:n]) {
					t.Errorf("addresses %q, they were %q", s.Spec.ClusterIPs, was.Spec.ClusterIPs)
				}
			}
			if got != test.want {
				t.Errorf("%s, want %s (%v)", got, test.want, err)
			}
			c.check()
		})
	}
}

// A cluster that gets a second family, or loses it, leaves the Services that it has as they are.
func TestClusterOfOtherFamilies(t *testing.T) {
	c := newClusterOf(t, range4)
	c.must(service("s", spec(prefer, "")))
	label := func() *corev1.Service {
		s := c.services["s"].DeepCopy()
		s.Labels = map[string]string{"changed": time.Now().String()}
		return c.must(s)
	}
	both, only4 := []netip.Prefix{netip.MustParsePrefix(range4), netip.MustParsePrefix(range6)}, c.prefixes
	c.prefixes = both
	c.restart()
	if got := said(label()); got != "PreferDualStack 4 4" {
		t.Errorf("after the second family came: %s", got)
	}
	s := c.services["s"].DeepCopy()
	require := require
	s.Spec.IPFamilyPolicy = &require
	c.must(s)
	prefer := prefer
	s = c.services["s"].DeepCopy()
	s.Spec.IPFamilyPolicy = &prefer
	if got := said(c.must(s)); got != "PreferDualStack 46 46" {
		t.Errorf("asked for two: %s", got)
	}
	c.prefixes = only4
	c.restart()
	if got := said(label()); got != "PreferDualStack 46 46" {
		t.Errorf("after the second family went: %s", got)
	}
	c.check()
}

// An address has many spellings in IPv6, and one owner.
func TestSpellings(t *testing.T) {
	c := newClusterOf(t, range6)
	c.must(service("a", clusterIP("fd00:0:0::00AB")))
	if _, err := c.write(service("b", clusterIP("fd00::ab")), nil); refusedField(err) != "spec.clusterIPs" {
		t.Errorf("one address for two Services: %v", err)
	}
	c.must(service("a", clusterIP("fd00:0:0::00AB"), func(s *corev1.ServiceSpec) { s.Ports[0].Port = 81 }))
	c.check()
	c.delete("a")
	c.must(service("b", clusterIP("fd00::ab")))
	c.check()
}

func TestRanges(t *testing.T) {
	for name, test := range map[string]struct {
		ranges []string
		ok     bool
	}{
		"IPv4": {[]string{"10.0.0.0/30"}, true}, "IPv6": {[]string{"fd00::/64"}, true}, "both": {[]string{"fd00::/112", "10.0.0.0/8"}, true},
		"none": {nil, false}, "two of a family": {[]string{"10.0.0.0/24", "10.1.0.0/24"}, false}, "too small": {[]string{"fd00::/127"}, false},
		"too large": {[]string{"fd00::/48"}, false}, "mapped": {[]string{"::ffff:10.0.0.0/120"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			var ps []netip.Prefix
			for _, r := range test.ranges {
				ps = append(ps, netip.MustParsePrefix(r))
			}
			if _, err := New(Config{Prefixes: ps, PortMin: 1, PortMax: 2}); (err == nil) != test.ok {
				t.Errorf("error %v", err)
			}
		})
	}
}
