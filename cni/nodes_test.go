package cni

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// info is a node that is as many seconds old as its name's last letter is late in the alphabet.
func info(name string, ranges []netip.Prefix, own []netip.Addr) NodeInfo {
	return NodeInfo{Name: name, UID: "uid-" + name, Created: time.Unix(int64(name[len(name)-1]), 0), PodCIDRs: ranges, Addrs: own}
}

// show writes a desired state as lines.
func (w want) show() string {
	var lines []string
	for _, r := range w.remotes {
		line := fmt.Sprintf("%s %s at %s", r.Owner, r.Prefix, r.Node)
		if r.Behind {
			line += ", behind"
		}
		lines = append(lines, line)
	}
	for _, r := range w.routes {
		switch {
		case r.Unreachable:
			lines = append(lines, fmt.Sprintf("route %s unreachable", r.Dst))
		case r.Tunnel:
			lines = append(lines, fmt.Sprintf("route %s tunnel src %s", r.Dst, r.Src))
		default:
			lines = append(lines, fmt.Sprintf("route %s via %s dev %d src %s", r.Dst, r.Gw, r.Ifindex, r.Src))
		}
	}
	for _, p := range w.problems {
		lines = append(lines, "problem "+p)
	}
	return strings.Join(lines, "\n")
}

func TestDesiredOfNodes(t *testing.T) {
	self := info("a", prefixes("10.244.0.0/24"), addrs("192.0.2.1"))
	dualSelf := info("a", prefixes("10.244.0.0/24", "fd00:10:244::/64"), addrs("192.0.2.1", "2001:db8::1"))
	links := []onLink{{netip.MustParsePrefix("192.0.2.0/24"), 3}, {netip.MustParsePrefix("2001:db8::/64"), 4}}
	relay, hidden := info("r", prefixes("10.244.9.0/24"), addrs("192.0.2.9")), info("b", prefixes("10.244.1.0/24"), addrs("172.31.0.2"))
	for _, c := range []struct {
		name    string
		routing Routing
		self    NodeInfo
		others  []NodeInfo
		of      string
		want    string
	}{
		{"from beyond the relay", VXLAN, self, []NodeInfo{relay, hidden}, "b", "uid-b 10.244.1.0/24 at 192.0.2.9\nuid-b 172.31.0.2/32 at 192.0.2.9\n" +
			"route 10.244.1.0/24 tunnel src 192.0.2.1\nroute 172.31.0.2/32 tunnel src 192.0.2.1"},
		{"from behind the relay", VXLAN, hidden, []NodeInfo{relay, self}, "a", "uid-a 10.244.0.0/24 at 192.0.2.9\nuid-a 192.0.2.1/32 at 192.0.2.9\n" +
			"route 10.244.0.0/24 tunnel src 172.31.0.2\nroute 192.0.2.1/32 tunnel src 172.31.0.2"},
		{"the relay from behind it", VXLAN, hidden, []NodeInfo{relay}, "r", "uid-r 10.244.9.0/24 at 192.0.2.9\nuid-r 192.0.2.9/32 at 192.0.2.9\nroute 10.244.9.0/24 tunnel src 172.31.0.2"},
		{"two behind the relay", VXLAN, hidden, []NodeInfo{relay, info("c", prefixes("10.244.2.0/24"), addrs("172.31.0.3"))}, "c",
			"uid-c 10.244.2.0/24 at 172.31.0.3\nuid-c 172.31.0.3/32 at 172.31.0.3\nroute 10.244.2.0/24 tunnel src 172.31.0.2"},
		{"at the relay, behind it", VXLAN, relay, []NodeInfo{hidden}, "b", "uid-b 10.244.1.0/24 at 172.31.0.2, behind\nuid-b 172.31.0.2/32 at 172.31.0.2, behind\nroute 10.244.1.0/24 tunnel src 192.0.2.9"},
		{"at the relay, beyond it", VXLAN, relay, []NodeInfo{self}, "a", "uid-a 10.244.0.0/24 at 192.0.2.1\nuid-a 192.0.2.1/32 at 192.0.2.1\nroute 10.244.0.0/24 tunnel src 192.0.2.9"},
		{"a relay that is not there yet", VXLAN, self, []NodeInfo{hidden}, "b", "problem the node r, by which it is reached, has no address that we can use"},
		{"native, from beyond a relay on our link", Native, self, []NodeInfo{relay, hidden}, "b", "uid-b 10.244.1.0/24 at invalid IP\nuid-b 172.31.0.2/32 at invalid IP\n" +
			"route 10.244.1.0/24 via 192.0.2.9 dev 3 src 192.0.2.1\nroute 172.31.0.2/32 via 192.0.2.9 dev 3 src 192.0.2.1"},
		{"native, by a relay that no link of ours reaches", Native, hidden, []NodeInfo{info("r", prefixes("10.244.9.0/24"), addrs("198.51.100.9")), self}, "a", "uid-a 10.244.0.0/24 at invalid IP\nuid-a 192.0.2.1/32 at invalid IP"},
		{"our own range", VXLAN, dualSelf, nil, "a", "route 10.244.0.0/24 unreachable\nroute fd00:10:244::/64 unreachable"},
		{"a tunnel", VXLAN, self, []NodeInfo{info("b", prefixes("10.244.1.0/24"), addrs("192.0.2.2"))}, "b",
			"uid-b 10.244.1.0/24 at 192.0.2.2\nuid-b 192.0.2.2/32 at 192.0.2.2\nroute 10.244.1.0/24 tunnel src 192.0.2.1"},
		{"two families, IPv4 carries both", VXLAN, dualSelf, []NodeInfo{info("b", prefixes("fd00:10:244:1::/64", "10.244.1.0/24"), addrs("2001:db8::2", "192.0.2.2"))}, "b",
			"uid-b 10.244.1.0/24 at 192.0.2.2\nuid-b 192.0.2.2/32 at 192.0.2.2\nuid-b 2001:db8::2/128 at 192.0.2.2\nuid-b fd00:10:244:1::/64 at 192.0.2.2\n" +
				"route 10.244.1.0/24 tunnel src 192.0.2.1\nroute fd00:10:244:1::/64 tunnel src 2001:db8::1"},
		{"IPv6 where one end has no other", VXLAN, dualSelf, []NodeInfo{info("b", prefixes("10.244.1.0/24"), addrs("2001:db8::2"))}, "b",
			"uid-b 10.244.1.0/24 at 2001:db8::2\nuid-b 2001:db8::2/128 at 2001:db8::2\nroute 10.244.1.0/24 tunnel src 192.0.2.1"},
		{"IPv6 pods of nodes without IPv6", VXLAN, info("a", prefixes("fd00::/64"), addrs("192.0.2.1")), []NodeInfo{info("b", prefixes("fd00:0:0:1::/64"), addrs("192.0.2.2"))}, "b",
			"uid-b 192.0.2.2/32 at 192.0.2.2\nuid-b fd00:0:0:1::/64 at 192.0.2.2\nroute fd00:0:0:1::/64 tunnel src invalid IP"},
		{"a family that we don't speak", VXLAN, self, []NodeInfo{info("b", prefixes("10.244.1.0/24", "fd00:0:0:1::/64"), addrs("192.0.2.2", "2001:db8::2"))}, "b",
			"uid-b 10.244.1.0/24 at 192.0.2.2\nuid-b 192.0.2.2/32 at 192.0.2.2\nroute 10.244.1.0/24 tunnel src 192.0.2.1"},
		{"no family in common", VXLAN, self, []NodeInfo{info("b", prefixes("10.244.1.0/24"), addrs("2001:db8::2"))}, "b",
			"problem it has none of our address families: its InternalIPs are [2001:db8::2], ours [192.0.2.1]"},
		{"without a pod range", VXLAN, self, []NodeInfo{info("b", nil, addrs("192.0.2.2"))}, "b", ""},
		{"without an address", VXLAN, self, []NodeInfo{info("b", prefixes("10.244.1.0/24"), nil)}, "b", ""},
		{"native on our link", Native, dualSelf, []NodeInfo{info("b", prefixes("10.244.1.0/24", "fd00:10:244:1::/64"), addrs("192.0.2.2", "2001:db8::2"))}, "b",
			"uid-b 10.244.1.0/24 at invalid IP\nuid-b 192.0.2.2/32 at invalid IP\nuid-b 2001:db8::2/128 at invalid IP\nuid-b fd00:10:244:1::/64 at invalid IP\n" +
				"route 10.244.1.0/24 via 192.0.2.2 dev 3 src 192.0.2.1\nroute fd00:10:244:1::/64 via 2001:db8::2 dev 4 src 2001:db8::1"},
		{"native behind a router", Native, self, []NodeInfo{info("b", prefixes("10.244.1.0/24"), addrs("198.51.100.2"))}, "b",
			"uid-b 10.244.1.0/24 at invalid IP\nuid-b 198.51.100.2/32 at invalid IP"},
		{"the older of two with one range", VXLAN, self, []NodeInfo{info("c", prefixes("10.244.1.0/24"), addrs("192.0.2.3")), info("b", prefixes("10.244.1.0/24"), addrs("192.0.2.2"))}, "b",
			"uid-b 10.244.1.0/24 at 192.0.2.2\nuid-b 192.0.2.2/32 at 192.0.2.2\nroute 10.244.1.0/24 tunnel src 192.0.2.1"},
		{"the younger of two with one range", VXLAN, self, []NodeInfo{info("c", prefixes("10.244.1.0/24"), addrs("192.0.2.3")), info("b", prefixes("10.244.1.0/24"), addrs("192.0.2.2"))}, "c",
			"uid-c 192.0.2.3/32 at 192.0.2.3\nproblem 10.244.1.0/24 overlaps 10.244.1.0/24 of node b"},
		{"a range around another", VXLAN, self, []NodeInfo{info("b", prefixes("10.244.1.0/24"), addrs("192.0.2.2")), info("c", prefixes("10.244.0.0/20", "10.244.1.128/25"), addrs("192.0.2.3"))}, "c",
			"uid-c 192.0.2.3/32 at 192.0.2.3\nproblem 10.244.0.0/20 overlaps 10.244.1.0/24 of node b\nproblem 10.244.1.128/25 overlaps 10.244.1.0/24 of node b"},
		{"our own range is ours whoever is older", VXLAN, info("z", prefixes("10.244.0.0/24"), addrs("192.0.2.1")), []NodeInfo{info("b", prefixes("10.244.0.0/24"), addrs("192.0.2.2"))}, "b",
			"uid-b 192.0.2.2/32 at 192.0.2.2\nproblem 10.244.0.0/24 overlaps 10.244.0.0/24 of node z"},
		{"our own address", VXLAN, self, []NodeInfo{info("b", prefixes("10.244.1.0/24"), addrs("192.0.2.1"))}, "b", "problem 192.0.2.1/32 overlaps 192.0.2.1/32 of node a"},
		{"another node's address", VXLAN, self, []NodeInfo{info("b", prefixes("10.244.1.0/24"), addrs("192.0.2.2")), info("c", prefixes("10.244.2.0/24"), addrs("192.0.2.2"))}, "c",
			"problem 192.0.2.2/32 overlaps 192.0.2.2/32 of node b"},
		{"an address in a pod range", VXLAN, self, []NodeInfo{info("b", prefixes("10.244.1.0/24"), addrs("192.0.2.2")), info("c", prefixes("10.244.2.0/24"), addrs("192.0.2.3", "10.244.1.9"))}, "c",
			"uid-c 10.244.2.0/24 at 192.0.2.3\nuid-c 192.0.2.3/32 at 192.0.2.3\nroute 10.244.2.0/24 tunnel src 192.0.2.1\nproblem 10.244.1.9/32 overlaps 10.244.1.0/24 of node b"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDirectory(c.self.Name, c.self.Addrs, c.routing, Relay{"r", prefixes("172.31.0.0/24")})
			for _, n := range append([]NodeInfo{c.self}, c.others...) {
				d.set(n.Name, &n)
			}
			if got := d.desired(c.of, links).show(); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

// Whatever the order in which nodes come, change and go: the state is that of the nodes that are there, and who isn't named as affected
// has not changed.
func TestDesiredDependsOnNodesOnly(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		relay := Relay{string(rune('a' + rng.IntN(4))), prefixes("192.0.2.4/30")}
		d := newDirectory("a", addrs("192.0.2.1"), VXLAN, relay)
		present := map[string]NodeInfo{}
		state := map[string]want{}
		for range 30 {
			name := string(rune('a' + rng.IntN(6)))
			var now *NodeInfo
			if rng.IntN(4) > 0 {
				n := info(name, nil, addrs(fmt.Sprintf("192.0.2.%d", 1+rng.IntN(6))))
				n.UID += fmt.Sprint(rng.IntN(2))
				n.Created = time.Unix(int64(rng.IntN(4)), 0)
				for range rng.IntN(3) {
					a := netip.AddrFrom4([4]byte{10, 244, byte(rng.IntN(2)), byte(rng.IntN(2) << 7)})
					n.PodCIDRs = append(n.PodCIDRs, netip.PrefixFrom(a, 22+rng.IntN(5)).Masked())
				}
				now = &n
				present[name] = n
			} else {
				delete(present, name)
			}
			for n := range d.set(name, now) {
				state[n] = d.desired(n, nil)
			}
		}
		fresh := newDirectory("a", addrs("192.0.2.1"), VXLAN, relay)
		for _, n := range slices.SortedFunc(maps.Values(present), func(a, b NodeInfo) int { return strings.Compare(b.Name, a.Name) }) {
			fresh.set(n.Name, &n)
		}
		for name := range state {
			got, want := state[name].show(), fresh.desired(name, nil).show()
			if strings.Split(got, "problem")[0] != strings.Split(want, "problem")[0] {
				t.Fatalf("%s of %+v:\n%s\nwant\n%s", name, present, got, want)
			}
		}
		// No address has two owners.
		seen := map[netip.Prefix]string{}
		for name := range present {
			for _, r := range fresh.desired(name, nil).remotes {
				for p, other := range seen {
					if p.Overlaps(r.Prefix) && other != r.Owner {
						t.Fatalf("%s of %s and %s of %s", p, other, r.Prefix, r.Owner)
					}
				}
				seen[r.Prefix] = r.Owner
			}
		}
	}
}

func TestReadNode(t *testing.T) {
	node := func(ranges []string, internal ...string) *corev1.Node {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", UID: types.UID("u")}, Spec: corev1.NodeSpec{PodCIDRs: ranges}}
		for _, a := range internal {
			n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
		}
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeExternalIP, Address: "203.0.113.1"}, corev1.NodeAddress{Type: corev1.NodeHostName, Address: "n"})
		return n
	}
	old := node(nil, "192.0.2.1")
	old.Spec.PodCIDR = "10.244.3.7/24"
	for name, c := range map[string]struct {
		in       *corev1.Node
		ranges   []netip.Prefix
		addrs    []netip.Addr
		problems int
	}{
		"two families":     {node([]string{"10.244.1.0/24", "fd00::/64"}, "192.0.2.1", "2001:db8::1"), prefixes("10.244.1.0/24", "fd00::/64"), addrs("192.0.2.1", "2001:db8::1"), 0},
		"the older field":  {old, prefixes("10.244.3.0/24"), addrs("192.0.2.1"), 0},
		"nothing yet":      {node(nil), nil, nil, 2},
		"rubbish":          {node([]string{"x", "0.0.0.0/0", "10.244.1.0/24"}, "y", "127.0.0.1", "::", "fe80::1%eth0", "224.0.0.1", "192.0.2.1"), prefixes("10.244.1.0/24"), addrs("192.0.2.1"), 7},
		"a mapped address": {node([]string{"10.244.1.0/24"}, "::ffff:192.0.2.1"), prefixes("10.244.1.0/24"), addrs("192.0.2.1"), 0},
	} {
		got, problems := ReadNode(c.in)
		if !reflect.DeepEqual(got.PodCIDRs, c.ranges) || !reflect.DeepEqual(got.Addrs, c.addrs) || len(problems) != c.problems {
			t.Errorf("%s: %+v, %q", name, got, problems)
		}
	}
}
