package cni

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cni/plugin"
)

func TestHostPorts(t *testing.T) {
	port := func(addr string, port, container uint16, protocol uint8) []HostPort {
		var out []HostPort
		for _, a := range strings.Fields(addr) {
			out = append(out, HostPort{Addr: netip.MustParseAddr(a), Any: !strings.HasSuffix(a, "9"), Port: port, Container: container, Protocol: protocol})
		}
		return out
	}
	const v4, v6, both = "10.244.0.0/24", "fd00::/64", "10.244.0.0/24 fd00::/64"
	for name, c := range map[string]struct {
		m      plugin.PortMapping
		ranges string
		want   []HostPort
		err    string
	}{
		"plain":               {plugin.PortMapping{HostPort: 80, ContainerPort: 8080}, v4, port("192.0.2.1", 80, 8080, unix.IPPROTO_TCP), ""},
		"plain, IPv6":         {plugin.PortMapping{HostPort: 80, ContainerPort: 8080}, v6, port("2001:db8::1", 80, 8080, unix.IPPROTO_TCP), ""},
		"plain, both":         {plugin.PortMapping{HostPort: 80, ContainerPort: 8080}, both, port("192.0.2.1 2001:db8::1", 80, 8080, unix.IPPROTO_TCP), ""},
		"UDP":                 {plugin.PortMapping{HostPort: 53, ContainerPort: 5353, Protocol: "udp"}, v4, port("192.0.2.1", 53, 5353, unix.IPPROTO_UDP), ""},
		"as Kubernetes says":  {plugin.PortMapping{HostPort: 53, ContainerPort: 5353, Protocol: "UDP"}, v4, port("192.0.2.1", 53, 5353, unix.IPPROTO_UDP), ""},
		"an address":          {plugin.PortMapping{HostPort: 80, ContainerPort: 80, HostIP: "192.0.2.9"}, both, port("192.0.2.9", 80, 80, unix.IPPROTO_TCP), ""},
		"an IPv6 address":     {plugin.PortMapping{HostPort: 80, ContainerPort: 80, HostIP: "2001:db8::9"}, both, port("2001:db8::9", 80, 80, unix.IPPROTO_TCP), ""},
		"any of IPv4":         {plugin.PortMapping{HostPort: 80, ContainerPort: 80, HostIP: "0.0.0.0"}, both, port("192.0.2.1", 80, 80, unix.IPPROTO_TCP), ""},
		"any of both":         {plugin.PortMapping{HostPort: 80, ContainerPort: 80, HostIP: "::"}, both, port("192.0.2.1 2001:db8::1", 80, 80, unix.IPPROTO_TCP), ""},
		"any of those there":  {plugin.PortMapping{HostPort: 80, ContainerPort: 80, HostIP: "::"}, v4, port("192.0.2.1", 80, 80, unix.IPPROTO_TCP), ""},
		"mapped":              {plugin.PortMapping{HostPort: 80, ContainerPort: 80, HostIP: "::ffff:192.0.2.9"}, v4, port("192.0.2.9", 80, 80, unix.IPPROTO_TCP), ""},
		"none":                {plugin.PortMapping{ContainerPort: 80}, v4, nil, ""},
		"loopback":            {plugin.PortMapping{HostPort: 80, ContainerPort: 80, HostIP: "127.0.0.9"}, v4, port("127.0.0.9", 80, 80, unix.IPPROTO_TCP), ""},
		"IPv6 of an IPv4":     {plugin.PortMapping{HostPort: 80, ContainerPort: 80, HostIP: "2001:db8::1"}, v4, nil, "another family"},
		"any IPv4 of an IPv6": {plugin.PortMapping{HostPort: 80, ContainerPort: 80, HostIP: "0.0.0.0"}, v6, nil, "another family"},
		"with a zone":         {plugin.PortMapping{HostPort: 80, ContainerPort: 80, HostIP: "fe80::1%eth0"}, both, nil, "not an IP address"},
		"no address":          {plugin.PortMapping{HostPort: 80, ContainerPort: 80, HostIP: "node"}, v4, nil, "not an IP address"},
		"SCTP":                {plugin.PortMapping{HostPort: 80, ContainerPort: 80, Protocol: "SCTP"}, v4, nil, "SCTP"},
		"too high":            {plugin.PortMapping{HostPort: 65536, ContainerPort: 80}, v4, nil, "1 to 65535"},
		"negative":            {plugin.PortMapping{HostPort: -1, ContainerPort: 80}, v4, nil, "1 to 65535"},
		"no container port":   {plugin.PortMapping{HostPort: 80}, v4, nil, "1 to 65535"},
	} {
		t.Run(name, func(t *testing.T) {
			var ranges []netip.Prefix
			for _, r := range strings.Fields(c.ranges) {
				ranges = append(ranges, netip.MustParsePrefix(r))
			}
			got, err := hostPorts([]plugin.PortMapping{c.m}, nodeAddrs, ranges)
			if !reflect.DeepEqual(got, c.want) || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
}

// TestHostPortsLiveWithTheirPod: rows come with ADD, survive the agent, and go with DEL; those of Services are not touched.
func TestHostPortsLiveWithTheirPod(t *testing.T) {
	n := newNode(t, "10.244.0.0/24", "fd00::/64")
	id := strings.Repeat("a", 64)
	ns, other := newNetns(t), newNetns(t)
	ports := n.fake.ports
	ports.rows["service-uid"] = []bpf.LoadBalancer{{Name: "ns/s:http", Protocol: 6, Frontends: []bpf.Frontend{{Addr: netip.MustParseAddrPort("192.0.2.1:30080")}}}}
	add := func(id, ns string, port int) error {
		_, err := n.Handle(plugin.Request{Verb: "ADD", ContainerID: id, Netns: ns, Ifname: "eth0", Ports: []plugin.PortMapping{{HostPort: port, ContainerPort: 8080}}})
		if err != nil {
			return err
		}
		return nil
	}
	must(t, add(id, ns, 80))
	a, _ := n.ipam.get(id, "eth0")
	want := map[string][]bpf.LoadBalancer{
		"service-uid": ports.rows["service-uid"],
		portOwner(id, "eth0"): {
			{Owner: portOwner(id, "eth0"), Name: "192.0.2.1:80", Protocol: 6, Frontends: []bpf.Frontend{{Addr: netip.MustParseAddrPort("192.0.2.1:80"), Kind: bpf.HostPort}}, Backends: []bpf.Backend{{Addr: netip.AddrPortFrom(a.Addrs[0], 8080), All: true, Local: true}}},
			{Owner: portOwner(id, "eth0"), Name: "[2001:db8::1]:80", Protocol: 6, Frontends: []bpf.Frontend{{Addr: netip.MustParseAddrPort("[2001:db8::1]:80"), Kind: bpf.HostPort}}, Backends: []bpf.Backend{{Addr: netip.AddrPortFrom(a.Addrs[1], 8080), All: true, Local: true}}},
		},
	}
	equal := func(when string) {
		t.Helper()
		if !reflect.DeepEqual(ports.rows, want) {
			t.Errorf("%s: %+v, want %+v", when, ports.rows, want)
		}
	}
	equal("after ADD")
	for _, taken := range []int{80, 30080} {
		if err := add("b", other, taken); err == nil || !strings.Contains(err.Error(), "belongs to") {
			t.Errorf("port %d a second time: %v", taken, err)
		}
	}
	equal("after an ADD that failed")
	if _, ok := n.ipam.get("b", "eth0"); ok {
		t.Error("an ADD that failed keeps its address")
	}
	delete(ports.rows, portOwner(id, "eth0"))
	ports.rows[bpf.HostPortOwner+"gone/eth0"] = nil
	n.restart(t)
	equal("after a restart")
	n.del(t, id, ns)
	delete(want, portOwner(id, "eth0"))
	equal("after DEL")
}

// A port that nobody asked for on one address follows the node's; one that somebody did stays.
func TestHostPortsFollowTheNode(t *testing.T) {
	addr := netip.MustParseAddr
	a := Allocation{ContainerID: "a", Ifname: "eth0", Addrs: []netip.Addr{addr("10.244.0.2"), addr("fd00::2")}, Ports: []HostPort{
		{Addr: addr("192.0.2.1"), Any: true, Port: 80, Container: 80, Protocol: unix.IPPROTO_TCP},
		{Addr: addr("2001:db8::1"), Any: true, Port: 80, Container: 80, Protocol: unix.IPPROTO_TCP},
		{Addr: addr("192.0.2.1"), Port: 81, Container: 80, Protocol: unix.IPPROTO_TCP},
	}}
	var got []string
	for _, row := range portRows(a, []netip.Addr{addr("192.0.2.7")}) {
		got = append(got, row.Frontends[0].Addr.String()+" "+row.Backends[0].Addr.String())
	}
	if want := []string{"192.0.2.7:80 10.244.0.2:80", "192.0.2.1:81 10.244.0.2:80"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
