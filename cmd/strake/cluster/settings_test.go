package cluster

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"k8s.io/client-go/kubernetes/fake"

	"github.com/strake-io/strake/cmd/strake/layout"
)

func addrs(s string) []netip.Addr {
	list, err := ParseAddrs(s)
	if err != nil {
		panic(err)
	}
	return list
}

func ranges(s string) []netip.Prefix {
	list, err := ParsePrefixes(s)
	if err != nil {
		panic(err)
	}
	return list
}

func TestFamilies(t *testing.T) {
	const node4, node6 = "192.0.2.1", "2001:db8::1"
	for name, c := range map[string]struct {
		family                            IPFamily
		node, pods, services              string
		wantPods, wantServices, dns, fail string
	}{
		"by default":             {node: node4, wantPods: "10.244.0.0/16", wantServices: "10.96.0.0/16", dns: "10.96.0.10"},
		"IPv6":                   {family: IPv6, node: node6, wantPods: "fd00:10:244::/56", wantServices: "fd00:10:96::/112", dns: "fd00:10:96::a"},
		"IPv6 by its address":    {node: node6, wantPods: "fd00:10:244::/56", wantServices: "fd00:10:96::/112", dns: "fd00:10:96::a"},
		"dual":                   {family: DualStack, node: node4 + "," + node6, wantPods: "10.244.0.0/16,fd00:10:244::/56", wantServices: "10.96.0.0/16,fd00:10:96::/112", dns: "10.96.0.10,fd00:10:96::a"},
		"dual by the pods' IPv6": {pods: "fd00:1::/60,10.1.0.0/16", node: node6 + "," + node4, wantPods: "fd00:1::/60,10.1.0.0/16", wantServices: "fd00:10:96::/112,10.96.0.0/16", dns: "fd00:10:96::a,10.96.0.10"},
		"by the Services":        {services: "10.1.0.0/24", node: node4, wantPods: "10.244.0.0/16", wantServices: "10.1.0.0/24", dns: "10.1.0.10"},

		"two of one family":             {pods: "10.1.0.0/16,10.2.0.0/16", node: node4, fail: "two of different families"},
		"Services of other families":    {pods: "10.1.0.0/16", services: "fd00::/112", node: node4, fail: "name ranges of the same families"},
		"Services in another order":     {pods: "10.1.0.0/16,fd00::/56", services: "fd00:1::/112,10.2.0.0/16", node: node4 + "," + node6, fail: "same families in the same order"},
		"an address too few":            {family: DualStack, node: node4, fail: "an address of each family"},
		"addresses in another order":    {family: DualStack, node: node6 + "," + node4, fail: "in the same order"},
		"the flag against ranges":       {family: IPv6, pods: "10.1.0.0/16", node: node4, fail: "--ip-family ipv6 does not fit"},
		"less than a node's part":       {pods: "10.1.0.0/25", node: node4, fail: "a node's part of it is a /24"},
		"less than a node's part, IPv6": {pods: "fd00::/65", node: node6, fail: "a node's part of it is a /64"},
		"more nodes than can be":        {pods: "fd00::/47", node: node6, fail: "/48 to /64"},
		"Services without room":         {services: "10.1.0.0/29", node: node4, fail: "/8 to /28"},
		"bits behind the range":         {pods: "10.1.0.1/16", node: node4, fail: "--pod-cidr 10.1.0.1/16 is not"},
		"overlap":                       {pods: "10.0.0.0/8", node: node4, fail: "overlap"},
		"overlap of IPv6":               {pods: "10.1.0.0/16,fd00:10:96::/56", node: node4 + "," + node6, fail: "overlap"},
		"a node in a range":             {family: DualStack, node: node4 + ",fd00:10:96::7", fail: "lies in fd00:10:96::/112"},
		"a link's own address":          {node: "fe80::1", pods: "fd00::/56", fail: "other nodes could reach"},
	} {
		t.Run(name, func(t *testing.T) {
			s := Defaults()
			s.NodeName, s.IPFamily, s.NodeAddrs = "n", c.family, addrs(c.node)
			if c.pods != "" {
				s.PodCIDRs = ranges(c.pods)
			}
			if c.services != "" {
				s.ServiceCIDRs = ranges(c.services)
			}
			err := s.complete()
			if c.fail != "" {
				if err == nil || !strings.Contains(err.Error(), c.fail) {
					t.Fatalf("%v, want %q", err, c.fail)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if join(s.PodCIDRs) != c.wantPods || join(s.ServiceCIDRs) != c.wantServices || join(s.DNSAddrs) != c.dns {
				t.Errorf("pods %v, Services %v, DNS %v", s.PodCIDRs, s.ServiceCIDRs, s.DNSAddrs)
			}
		})
	}
}

// TestOldSettings: a cluster of before there were two families keeps what it was made with.
func TestOldSettings(t *testing.T) {
	l := at(t)
	write(t, l, `{"nodeName":"node-1","nodeAddr":"192.0.2.1","podCIDR":"10.244.0.0/16","serviceCIDR":"10.96.0.0/16","port":6443,"etcdPort":2379,
		"zone":"cluster.local","resolvConf":"/etc/resolv.conf","nonMasqueradeCIDRs":["192.168.0.0/16"]}`)
	s, err := settle(l, Defaults(), func(string) bool { return false })
	if err != nil {
		t.Fatal(err)
	}
	want := Settings{
		NodeName: "node-1", NodeAddrs: addrs("192.0.2.1"), ResolvConf: "/etc/resolv.conf", ServiceCIDRs: ranges("10.96.0.0/16"), Port: 6443, EtcdPort: 2379,
		Shared: Shared{Zone: "cluster.local", DNSAddrs: addrs("10.96.0.10"), PodCIDRs: ranges("10.244.0.0/16"), Routing: RoutingVXLAN, TunnelPort: 8472, NoMasquerade: ranges("192.168.0.0/16")},
	}
	if !reflect.DeepEqual(s, want) {
		t.Errorf("have %+v\nwant %+v", s, want)
	}
	if err := s.Save(l); err != nil {
		t.Fatal(err)
	}
	if again, _, err := Load(l); err != nil || !reflect.DeepEqual(again, want) {
		t.Errorf("saved and read again: %+v, %v", again, err)
	}
}

// TestNodePortRange: what the flag says is where NodePorts are, the demo's among them; it may change.
func TestNodePortRange(t *testing.T) {
	l := at(t)
	made := Defaults()
	made.NodeName, made.NodeAddrs = "n", addrs("192.0.2.1")
	for text, want := range map[string][3]int{"": {30000, 2768, 30080}, "20000-20099": {20000, 100, 20000}, "30080-30080": {30080, 1, 30080}, "0-10": {}, "9-1": {}, "1-70000": {}, "rubbish": {}} {
		s := made
		s.NodePortRange = text
		err := s.complete()
		if want == [3]int{} {
			if err == nil || !strings.Contains(err.Error(), "--"+FlagNodePortRange) {
				t.Errorf("%q: %v", text, err)
			}
			continue
		}
		if r, rerr := s.nodePorts(); err != nil || rerr != nil || [3]int{r.Base, r.Size, s.DemoPort()} != want {
			t.Errorf("%q: %v, %v, %+v and %d, want %v", text, err, rerr, r, s.DemoPort(), want)
		}
		if err := made.Save(l); err != nil {
			t.Fatal(err)
		}
		if now, err := settle(l, s, func(f string) bool { return f == FlagNodePortRange }); err != nil || now.NodePortRange != text {
			t.Errorf("%q is settled as %q, %v", text, now.NodePortRange, err)
		}
	}
}

// TestSettledFlags: what a cluster was made with can be said again, and not be changed.
func TestSettledFlags(t *testing.T) {
	l := at(t)
	made := Defaults()
	made.NodeName, made.IPFamily, made.NodeAddrs = "n", DualStack, addrs("192.0.2.1,2001:db8::1")
	if err := made.complete(); err != nil {
		t.Fatal(err)
	}
	if err := made.Save(l); err != nil {
		t.Fatal(err)
	}
	for flag, change := range map[string]func(*Settings){
		FlagNodeName: func(s *Settings) { s.NodeName = "m" },
		FlagIPFamily: func(s *Settings) { s.IPFamily = IPv4 }, FlagPodCIDR: func(s *Settings) { s.PodCIDRs = ranges("10.1.0.0/16,fd00::/56") },
		FlagServiceCIDR: func(s *Settings) { s.ServiceCIDRs = ranges("10.1.0.0/16,fd00::/112") }, FlagPort: func(s *Settings) { s.Port++ },
		FlagEtcdPort: func(s *Settings) { s.EtcdPort++ },
	} {
		flags, _, err := Load(l)
		if err != nil {
			t.Fatal(err)
		}
		flags.IPFamily = DualStack
		given := func(f string) bool { return f == flag }
		if s, err := settle(l, flags, given); err != nil || fmt.Sprint(s.Shared) != fmt.Sprint(made.Shared) {
			t.Errorf("--%s said again: %v", flag, err)
		}
		change(&flags)
		if _, err := settle(l, flags, given); err == nil || !strings.Contains(err.Error(), "--"+flag) {
			t.Errorf("--%s changed: %v", flag, err)
		}
	}
	flags := Defaults()
	flags.NoMasquerade, flags.ResolvConf, flags.NodeAddrs = ranges("192.168.0.0/16"), "/run/resolv.conf", addrs("192.0.2.2,2001:db8::2")
	flags.Routing, flags.TunnelPort = RoutingNative, 4789
	s, err := settle(l, flags, func(f string) bool {
		return slices.Contains([]string{FlagNoMasquerade, FlagResolvConf, FlagNodeIP, FlagRouting, FlagTunnelPort}, f)
	})
	if err != nil || len(s.NoMasquerade) != 1 || s.ResolvConf != "/run/resolv.conf" || join(s.NodeAddrs) != "192.0.2.2,2001:db8::2" || s.FoundAddrs || s.Routing != RoutingNative || s.TunnelPort != 4789 {
		t.Errorf("what may change: %+v, %v", s, err)
	}
}

func FuzzSettings(f *testing.F) {
	f.Add([]byte(`{"nodeAddr":"192.0.2.1","podCIDR":"10.244.0.0/16"}`))
	f.Add([]byte(`{"nodeName":"n","nodeAddrs":["2001:db8::1"],"podCIDRs":["fd00::/56"],"serviceCIDRs":["fd00:1::/112"],"server":"https://192.0.2.1:6443"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var s Settings
		if json.Unmarshal(data, &s) != nil {
			return
		}
		if s.NodeName == "" || s.completeAddresses() != nil || s.check() != nil {
			return
		}
		if len(s.NodeAddrs) != len(s.PodCIDRs) || len(s.PodCIDRs) == 0 || len(s.DNSAddrs) != len(s.PodCIDRs) {
			t.Errorf("accepted: %+v", s)
		}
	})
}

func at(t *testing.T) layout.Layout {
	t.Helper()
	l, err := layout.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func write(t *testing.T, l layout.Layout, settings string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(l.Data, "settings.json"), []byte(settings), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Whoever judges a cluster's policies learns where its nodes answer the DNS; a cluster of somebody else's tells nothing of it.
func TestDNSAddrs(t *testing.T) {
	m, err := Shared{DNSAddrs: addrs("10.96.0.10,fd00::a")}.ConfigMap()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := DNSAddrs(t.Context(), fake.NewClientset(m)); err != nil || join(got) != "10.96.0.10,fd00::a" {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := DNSAddrs(t.Context(), fake.NewClientset()); err != nil || len(got) != 0 {
		t.Errorf("another's cluster: %v, %v", got, err)
	}
	m.Data[settingsKey] = "rubbish"
	if got, err := DNSAddrs(t.Context(), fake.NewClientset(m)); err == nil {
		t.Errorf("of rubbish: %v", got)
	}
}
