package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cni/plugin"
)

const longID = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestAddGivesAWorkingPod(t *testing.T) {
	for name, ranges := range map[string][]string{"IPv4": {"10.244.0.0/24"}, "IPv6": {"fd00:10:244::/64"}, "both": {"fd00:10:244::/64", "10.244.0.0/24"}} {
		t.Run(name, func(t *testing.T) { testWorkingPod(t, ranges) })
	}
}

func testWorkingPod(t *testing.T, ranges []string) {
	n := newNode(t, ranges...)
	must(t, Prepare(n.cfg.StateDir, nodeAddrs, nil))
	ns1, ns2 := newNetns(t), newNetns(t)
	for _, ns := range []string{ns1, ns2} { // as some runtimes leave it
		must(t, within(t, ns, func() error { return os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0) }))
	}
	a1 := n.addAll(t, longID, ns1)
	a2 := n.addAll(t, "b", ns2)
	if len(a1) != len(ranges) || len(a2) != len(ranges) {
		t.Fatalf("addresses %v and %v of %v", a1, a2, ranges)
	}
	must(t, n.check(longID, ns1))
	for i := range a1 {
		if !netip.MustParsePrefix(ranges[i]).Contains(a1[i]) {
			t.Errorf("%s is not of %s", a1[i], ranges[i])
		}
		testTalk(t, ns1, ns2, a1[i], a2[i])
	}
	a, _ := n.ipam.get(longID, "eth0")
	outside, err := netlink.LinkByName(a.Host)
	must(t, err)
	if outside.Attrs().MTU != 1400 {
		t.Errorf("MTU %d outside, want 1400", outside.Attrs().MTU)
	}
	if addrs, err := netlink.AddrList(outside, netlink.FAMILY_ALL); err != nil || len(addrs) != 0 {
		t.Errorf("the host's side has addresses %v, %v", addrs, err)
	}
	must(t, within(t, ns1, func() error {
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		if eth0.MTU != 1400 {
			t.Errorf("MTU %d inside, want 1400", eth0.MTU)
		}
		// Nothing but what was given: above all no address of the kernel's own making.
		addrs, err := eth0.Addrs()
		if err != nil || len(addrs) != len(ranges) {
			t.Errorf("the pod has %v, %v", addrs, err)
		}
		if _, ipv6 := a.addr(false); ipv6 {
			for name, want := range map[string]string{"accept_ra": "0", "autoconf": "0", "router_solicitations": "0", "accept_dad": "0", "addr_gen_mode": "1", "disable_ipv6": "0"} {
				if got, err := readSysctl("net/ipv6/conf/eth0/" + name); err != nil || got != want {
					t.Errorf("%s of the pod: %q, %v, want %s", name, got, err, want)
				}
			}
			if l, err := net.Listen("tcp6", "[::1]:0"); err != nil {
				t.Errorf("lo of the pod: %v", err)
			} else {
				l.Close()
			}
		}
		return nil
	}))
	if !n.fake.attached[outside.Attrs().Index] {
		t.Error("the program is not attached")
	}
	rows, err := n.fake.Dump()
	must(t, err)
	if len(rows) != 2*len(ranges) {
		t.Errorf("rows %v, want one an address", rows)
	}
}

// testTalk lets a pod talk to its node and to another pod, and the node to a pod. The pod's programs are a fake's, so all goes over the
// host's stack: routes and neighbours alone carry it.
func testTalk(t *testing.T, ns1, ns2 string, a1, a2 netip.Addr) {
	t.Helper()
	node := nodeAddrs[0]
	if !a1.Is4() {
		node = nodeAddrs[1]
	}
	l, err := net.Listen("tcp", netip.AddrPortFrom(node, 0).String())
	must(t, err)
	defer l.Close()
	talk := func(from string, to net.Addr, want netip.Addr) {
		t.Helper()
		must(t, within(t, from, func() error {
			c, err := net.Dial("tcp", to.String())
			if err == nil {
				c.Close()
			}
			return err
		}))
		if want.IsValid() {
			c, err := l.Accept()
			must(t, err)
			defer c.Close()
			if got := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); got != want {
				t.Errorf("the node sees %s, want the pod's %s", got, want)
			}
		}
	}
	talk(ns1, l.Addr(), a1)
	var podL net.Listener
	must(t, within(t, ns2, func() (err error) {
		podL, err = net.Listen("tcp", netip.AddrPortFrom(a2, 0).String())
		return err
	}))
	defer podL.Close()
	talk(ns1, podL.Addr(), netip.Addr{})
	c, err := net.Dial("tcp", podL.Addr().String())
	must(t, err)
	if got := c.LocalAddr().(*net.TCPAddr).AddrPort().Addr(); got != node {
		t.Errorf("the node talks to pods as %s, want %s", got, node)
	}
	c.Close()
}

func TestVerbs(t *testing.T) {
	ns := newNetns(t)
	ready := "10.244.0.0/24"
	for name, c := range map[string]struct {
		cidr string
		r    plugin.Request
		code uint // zero: no error
	}{
		"STATUS":                       {ready, plugin.Request{Verb: "STATUS"}, 0},
		"STATUS, two families":         {ready + " fd00::/64", plugin.Request{Verb: "STATUS"}, 0},
		"STATUS without a range":       {"", plugin.Request{Verb: "STATUS"}, types.ErrPluginNotAvailable},
		"ADD without a range":          {"", plugin.Request{Verb: "ADD", ContainerID: "a", Netns: ns, Ifname: "eth0"}, types.ErrTryAgainLater},
		"ADD without a namespace":      {ready, plugin.Request{Verb: "ADD", ContainerID: "a", Ifname: "eth0"}, types.ErrInvalidEnvironmentVariables},
		"ADD to a missing namespace":   {ready, plugin.Request{Verb: "ADD", ContainerID: "a", Netns: "/nowhere", Ifname: "eth0"}, types.ErrInvalidEnvironmentVariables},
		"ADD to what is no namespace":  {ready, plugin.Request{Verb: "ADD", ContainerID: "a", Netns: "/etc/passwd", Ifname: "eth0"}, types.ErrInvalidEnvironmentVariables},
		"ADD without an id":            {ready, plugin.Request{Verb: "ADD", Netns: ns, Ifname: "eth0"}, types.ErrUnknownContainer},
		"ADD with a path for an id":    {ready, plugin.Request{Verb: "ADD", ContainerID: "../x", Netns: ns, Ifname: "eth0"}, types.ErrInvalidEnvironmentVariables},
		"ADD with an endless id":       {ready, plugin.Request{Verb: "ADD", ContainerID: strings.Repeat("a", 300), Netns: ns, Ifname: "eth0"}, types.ErrInvalidEnvironmentVariables},
		"ADD with a long interface":    {ready, plugin.Request{Verb: "ADD", ContainerID: "a", Netns: ns, Ifname: "sixteencharacter"}, types.ErrInvalidEnvironmentVariables},
		"ADD of lo, which is there":    {ready, plugin.Request{Verb: "ADD", ContainerID: "a", Netns: ns, Ifname: "lo"}, types.ErrInternal},
		"DEL of the unknown":           {ready, plugin.Request{Verb: "DEL", ContainerID: "a", Netns: "/nowhere", Ifname: "eth0"}, 0},
		"DEL without a namespace":      {ready, plugin.Request{Verb: "DEL", ContainerID: "a", Ifname: "eth0"}, 0},
		"CHECK of the unknown":         {ready, plugin.Request{Verb: "CHECK", ContainerID: "a", Netns: ns, Ifname: "eth0"}, types.ErrUnknownContainer},
		"GC of nothing":                {ready, plugin.Request{Verb: "GC"}, 0},
		"a verb that is none":          {ready, plugin.Request{Verb: "EAT"}, types.ErrInvalidEnvironmentVariables},
		"an empty request":             {ready, plugin.Request{}, types.ErrInvalidEnvironmentVariables},
		"ADD in a range without hosts": {"10.0.0.0/31", plugin.Request{Verb: "ADD", ContainerID: "a", Netns: ns, Ifname: "eth0"}, types.ErrInternal},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, strings.Fields(c.cidr)...)
			must(t, Prepare(n.cfg.StateDir, nodeAddrs, nil))
			_, err := n.Handle(c.r)
			if err == nil && c.code != 0 || err != nil && err.Code != c.code {
				t.Errorf("error %v, want code %d", err, c.code)
			}
			n.wantEmpty(t)
			if len(n.fake.rows) != 0 {
				t.Errorf("rows %v are left", n.fake.rows)
			}
		})
	}
}

func TestSecondAddFailsAndHarmsNothing(t *testing.T) {
	n := newNode(t, "10.244.0.0/24")
	ns := newNetns(t)
	n.add(t, "a", ns)
	if _, err := n.Handle(plugin.Request{Verb: "ADD", ContainerID: "a", Netns: ns, Ifname: "eth0"}); err == nil {
		t.Error("a second ADD succeeded")
	}
	must(t, n.check("a", ns))
}

func TestAddAfterACrashInTheMiddle(t *testing.T) {
	n := newNode(t, "10.244.0.0/24")
	ns := newNetns(t)
	// An allocation, and no interface.
	_, durable, err := n.ipam.allocate([]netip.Prefix{netip.MustParsePrefix("10.244.0.0/24")}, Allocation{ContainerID: "a", Ifname: "eth0", Host: hostName("a", "eth0")})
	must(t, err)
	must(t, durable())
	n.add(t, "a", ns)
	must(t, n.check("a", ns))
}

func TestFailedAddLeavesNothing(t *testing.T) {
	n := newNode(t, "10.244.0.0/24")
	ns := newNetns(t)
	n.fake.fail = errors.New("the verifier is in a bad mood")
	_, err := n.Handle(plugin.Request{Verb: "ADD", ContainerID: "a", Netns: ns, Ifname: "eth0"})
	if err == nil || !strings.Contains(err.Msg, "bad mood") {
		t.Fatalf("error %v, want the cause", err)
	}
	n.wantEmpty(t)
	if there, err := present(ns, "eth0"); err != nil || there {
		t.Errorf("eth0 in the pod: %v, %v", there, err)
	}
	n.fake.fail = nil
	n.add(t, "a", ns)
}

func TestDel(t *testing.T) {
	for name, before := range map[string]func(*testing.T, *node, string) string{
		"of a whole pod":                 func(_ *testing.T, _ *node, ns string) string { return ns },
		"without a namespace":            func(*testing.T, *node, string) string { return "" },
		"with the namespace gone":        func(t *testing.T, _ *node, ns string) string { removeNetns(t, ns); return ns },
		"after a restart":                func(t *testing.T, n *node, ns string) string { n.restart(t); return ns },
		"with the state lost":            func(t *testing.T, n *node, ns string) string { must(t, n.ipam.release("a", "eth0")); return ns },
		"with the host's interface gone": func(t *testing.T, n *node, ns string) string { must(t, disconnect(hostName("a", "eth0"))); return ns },
		"with the kernel's row gone also": func(t *testing.T, n *node, ns string) string {
			_, err := n.fake.Replace(owner("a", "eth0"), nil)
			must(t, err)
			return ns
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, "10.244.0.0/24")
			ns := newNetns(t)
			n.add(t, "a", ns)
			ns = before(t, n, ns)
			n.del(t, "a", ns)
			n.wantEmpty(t)
			if len(n.fake.rows) != 0 || len(n.fake.attached) != 0 {
				t.Errorf("left in the kernel: %v, attached %v", n.fake.rows, n.fake.attached)
			}
			n.del(t, "a", ns)
		})
	}
}

func TestCheckSeesDamage(t *testing.T) {
	link := func(name string) netlink.Link {
		l, err := netlink.LinkByName(name)
		if err != nil {
			panic(err)
		}
		return l
	}
	host := hostName("a", "eth0")
	type damage struct {
		do  func(n *node, ns string, a netip.Addr) error
		say string // what CHECK names
	}
	// inside is done in the pod, to its interface.
	inside := func(f func(eth0 netlink.Link, a netip.Addr) error) func(*node, string, netip.Addr) error {
		return func(_ *node, ns string, a netip.Addr) error {
			return within(t, ns, func() error { return f(link("eth0"), a) })
		}
	}
	outside := func(f func(host netlink.Link, a netip.Addr) error) func(*node, string, netip.Addr) error {
		return func(_ *node, _ string, a netip.Addr) error { return f(link(host), a) }
	}
	for name, c := range map[string]damage{
		"the pod's address": {inside(func(l netlink.Link, a netip.Addr) error { return netlink.AddrDel(l, &netlink.Addr{IPNet: ipNet(a)}) }), "address"},
		"the pod's default route": {inside(func(l netlink.Link, a netip.Addr) error {
			return netlink.RouteDel(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: gateway(a.Is4()).AsSlice()})
		}), "route to"},
		"the pod's neighbour entry": {inside(func(l netlink.Link, a netip.Addr) error {
			return netlink.NeighDel(&netlink.Neigh{LinkIndex: l.Attrs().Index, IP: gateway(a.Is4()).AsSlice()})
		}), "neighbour entry"},
		"the pod's link, down": {inside(func(l netlink.Link, _ netip.Addr) error { return netlink.LinkSetDown(l) }), "eth0 of the pod: it is down"},
		"the pod's MTU":        {inside(func(l netlink.Link, _ netip.Addr) error { return netlink.LinkSetMTU(l, 1500) }), "MTU is 1500"},
		"the pod's MAC": {inside(func(l netlink.Link, _ netip.Addr) error {
			return netlink.LinkSetHardwareAddr(l, net.HardwareAddr{2, 0, 0, 0, 0, 1})
		}), "02:00:00:00:00:01"},
		"the pod's link":        {outside(func(l netlink.Link, _ netip.Addr) error { return netlink.LinkDel(l) }), host},
		"the host's link, down": {outside(func(l netlink.Link, _ netip.Addr) error { return netlink.LinkSetDown(l) }), host + ": it is down"},
		"the host's MTU":        {outside(func(l netlink.Link, _ netip.Addr) error { return netlink.LinkSetMTU(l, 1300) }), host + ": its MTU is 1300"},
		"the host's route": {outside(func(_ netlink.Link, a netip.Addr) error {
			return netlink.RouteDel(&netlink.Route{Dst: ipNet(a), Scope: netlink.SCOPE_LINK})
		}), "route to"},
		"the host's neighbour": {outside(func(l netlink.Link, a netip.Addr) error {
			return netlink.NeighDel(&netlink.Neigh{LinkIndex: l.Attrs().Index, IP: a.AsSlice()})
		}), "neighbour entry"},
		"the host's MAC": {outside(func(l netlink.Link, _ netip.Addr) error {
			return netlink.LinkSetHardwareAddr(l, net.HardwareAddr{2, 0, 0, 0, 0, 1})
		}), "02:00:00:00:00:01"},
		"the program": {func(n *node, _ string, _ netip.Addr) error { n.fake.attached = map[int]bool{}; return nil }, "program"},
		"the kernel's row": {func(n *node, _ string, a netip.Addr) error {
			delete(n.fake.rows, a)
			return nil
		}, "no endpoint"},
		"the kernel's row, other": {func(n *node, _ string, a netip.Addr) error {
			r := n.fake.rows[a]
			r.Ifindex++
			n.fake.rows[a] = r
			return nil
		}, "no endpoint"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, "10.244.0.0/24", "fd00::/64")
			for i := range 2 { // of each family
				ns := newNetns(t)
				a := n.addAll(t, "a", ns)
				must(t, n.check("a", ns))
				must(t, c.do(n, ns, a[i]))
				if err := n.check("a", ns); err == nil || !strings.Contains(err.Error(), c.say) {
					t.Errorf("%s: CHECK says %v, want %q", a[i], err, c.say)
				}
				n.del(t, "a", ns)
			}
		})
	}
}

func TestRestartMendsAndReleases(t *testing.T) {
	n := newNode(t, "10.244.0.0/24")
	nsA, nsB := newNetns(t), newNetns(t)
	a := n.add(t, longID, nsA)
	b := n.add(t, "b", nsB)
	// What happens while no agent runs: b goes, a loses its host side's settings, the datapath is loaded anew, and an
	// interface and a row are left by somebody long gone.
	removeNetns(t, nsB)
	must(t, disconnect(hostName("b", "eth0"))) // as the kernel does when a namespace ends, sooner or later
	must(t, netlink.RouteDel(&netlink.Route{Dst: ipNet(a), Scope: netlink.SCOPE_LINK}))
	host, err := netlink.LinkByName(hostName(longID, "eth0"))
	must(t, err)
	must(t, netlink.NeighDel(&netlink.Neigh{LinkIndex: host.Attrs().Index, IP: a.AsSlice()}))
	n.fake.attached = map[int]bool{}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = hostPrefix + "stray"
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "stkpeer"}))
	stray, err := netlink.LinkByName(attrs.Name)
	must(t, err)
	must(t, netlink.LinkSetAlias(stray, testAlias))
	_, err = n.fake.Replace("gone/eth0", []bpf.Endpoint{{Addr: netip.MustParseAddr("10.244.0.99")}})
	must(t, err)

	n.restart(t)

	must(t, n.check(longID, nsA))
	if !n.fake.attached[host.Attrs().Index] {
		t.Error("the pod that stayed is not attached")
	}
	if _, ok := n.ipam.get("b", "eth0"); ok {
		t.Error("the pod that went has its address still")
	}
	if _, ok := n.fake.rows[b]; ok || len(n.fake.rows) != 1 {
		t.Errorf("rows %v, want one", n.fake.rows)
	}
	if _, err := netlink.LinkByName(attrs.Name); err == nil {
		t.Error("the interface without a pod is there still")
	}
}

func TestRestartKeepsAPodThatCannotBeMended(t *testing.T) {
	n := newNode(t, "10.244.0.0/24")
	ns := newNetns(t)
	n.add(t, "a", ns)
	n.fake.fail = errors.New("no memory")
	n.restart(t)
	must(t, n.check("a", ns))
}

func TestGC(t *testing.T) {
	n := newNode(t, "10.244.0.0/24")
	nsA, nsB := newNetns(t), newNetns(t)
	n.add(t, "a", nsA)
	n.add(t, "b", nsB)
	if _, err := n.Handle(plugin.Request{Verb: "GC", Valid: []string{"a/eth0", "zzz/eth0"}}); err != nil {
		t.Fatal(err)
	}
	must(t, n.check("a", nsA))
	if err := n.check("b", nsB); err == nil {
		t.Error("b is there still")
	}
	if there, err := present(nsB, "eth0"); err != nil || there {
		t.Errorf("b's interface: %v, %v", there, err)
	}
}

func TestExhaustionNamesTheRange(t *testing.T) {
	n := newNode(t, "fd00::/64", "10.244.0.0/30")
	n.add(t, "a", newNetns(t))
	_, err := n.Handle(plugin.Request{Verb: "ADD", ContainerID: "b", Netns: newNetns(t), Ifname: "eth0"})
	if err == nil || err.Code != types.ErrTryAgainLater || !strings.Contains(err.Msg, "10.244.0.0/30") {
		t.Errorf("error %v, want one that names the range", err)
	}
	n.del(t, "a", "")
	n.add(t, "b", newNetns(t))
}

func TestStorm(t *testing.T) {
	n := newNode(t, "10.244.0.0/24")
	n.run(t)
	const pods = 50
	namespaces := make([]string, pods)
	for i := range namespaces {
		namespaces[i] = newNetns(t)
	}
	ask := func(r plugin.Request) (plugin.Response, error) {
		var resp plugin.Response
		c, err := net.Dial("unix", n.cfg.Socket)
		if err != nil {
			return resp, err
		}
		defer c.Close()
		if err := json.NewEncoder(c).Encode(r); err != nil {
			return resp, err
		}
		if err := json.NewDecoder(c).Decode(&resp); err != nil {
			return resp, err
		}
		if resp.Error != nil {
			return resp, resp.Error
		}
		return resp, nil
	}
	all := func(verb string) []netip.Addr {
		t.Helper()
		addrs := make([]netip.Addr, pods)
		var wg sync.WaitGroup
		for i := range pods {
			wg.Go(func() {
				resp, err := ask(plugin.Request{Verb: verb, ContainerID: fmt.Sprintf("pod%d", i), Netns: namespaces[i], Ifname: "eth0"})
				if err != nil {
					t.Errorf("%s %d: %v", verb, i, err)
				} else if resp.Result != nil {
					addrs[i] = toAddr(resp.Result.IPs[0].Address.IP)
				}
			})
		}
		wg.Wait()
		return addrs
	}
	seen := map[netip.Addr]bool{}
	for _, a := range all("ADD") {
		if !a.IsValid() || seen[a] {
			t.Errorf("address %s twice or not at all", a)
		}
		seen[a] = true
	}
	all("CHECK")
	if len(n.fake.rows) != pods {
		t.Errorf("%d rows, want %d", len(n.fake.rows), pods)
	}
	all("DEL")
	n.wantEmpty(t)
	if len(n.fake.rows)+len(n.fake.attached)+len(n.calls.m)+len(n.ifindex) != 0 {
		t.Errorf("left: rows %v, attached %v, locks %v, interfaces %v", n.fake.rows, n.fake.attached, n.calls.m, n.ifindex)
	}
}

func TestWriteConfig(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "net.d")
	socket := `/run/a "strange" place/cni.sock`
	for range 2 {
		must(t, WriteConfig(dir, socket))
	}
	data, err := os.ReadFile(filepath.Join(dir, confFile))
	must(t, err)
	var list struct {
		CNIVersion, Name string
		CNIVersions      []string
		Plugins          []struct{ Type, Socket string }
	}
	must(t, json.Unmarshal(data, &list))
	if list.CNIVersion != "1.0.0" || !slices.Contains(list.CNIVersions, "1.1.0") || list.Name == "" || len(list.Plugins) != 1 || list.Plugins[0].Type != "strake-cni" || list.Plugins[0].Socket != socket {
		t.Errorf("configuration %s", data)
	}
	entries, err := os.ReadDir(dir)
	must(t, err)
	if len(entries) != 1 {
		t.Errorf("files %v, want one", entries)
	}
}

func FuzzRequest(f *testing.F) {
	for _, s := range []string{`{"verb":"ADD","containerID":"a","netns":"/x","ifname":"eth0"}`, `{"verb":"GC","valid":["a/b",""]}`, `{"verb":"DEL","containerID":"../..","ifname":"/"}`, `{`, ``, `null`, `[]`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := readRequest(strings.NewReader(string(data)))
		if err != nil {
			return
		}
		if err := valid(r); err != nil {
			return
		}
		// What is valid can be a file's name and an interface's.
		k := key(r.ContainerID, r.Ifname) + allocationSuffix
		if filepath.Base(k) != k || len(k) > 255 || len(hostName(r.ContainerID, r.Ifname)) > 15 || len(owner(r.ContainerID, r.Ifname)) > maxOwner {
			t.Errorf("%+v passed", r)
		}
	})
}
