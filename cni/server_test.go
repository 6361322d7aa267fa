package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
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
	n := newNode(t, "10.244.0.0/24")
	must(t, Prepare(n.cfg.StateDir, nodeAddr))
	ns1, ns2 := newNetns(t), newNetns(t)
	a1 := n.add(t, longID, ns1)
	a2 := n.add(t, "b", ns2)
	must(t, n.check(longID, ns1))
	// The pod's programs are a fake's, so all goes over the host's stack: routes and neighbours alone carry it.
	l, err := net.Listen("tcp4", netip.AddrPortFrom(nodeAddr, 0).String())
	must(t, err)
	defer l.Close()
	talk := func(from string, to net.Addr, want netip.Addr) {
		t.Helper()
		must(t, within(t, from, func() error {
			c, err := net.Dial("tcp4", to.String())
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
		podL, err = net.Listen("tcp4", netip.AddrPortFrom(a2, 0).String())
		return err
	}))
	defer podL.Close()
	talk(ns1, podL.Addr(), netip.Addr{})
	c, err := net.Dial("tcp4", podL.Addr().String())
	must(t, err)
	if got := c.LocalAddr().(*net.TCPAddr).AddrPort().Addr(); got != nodeAddr {
		t.Errorf("the node talks to pods as %s, want %s", got, nodeAddr)
	}
	c.Close()
	a, _ := n.ipam.get(longID, "eth0")
	outside, err := netlink.LinkByName(a.Host)
	must(t, err)
	if outside.Attrs().MTU != 1400 {
		t.Errorf("MTU %d outside, want 1400", outside.Attrs().MTU)
	}
	must(t, within(t, ns1, func() error {
		eth0, err := net.InterfaceByName("eth0")
		if err == nil && eth0.MTU != 1400 {
			err = fmt.Errorf("MTU %d inside, want 1400", eth0.MTU)
		}
		return err
	}))
	if !n.fake.attached[outside.Attrs().Index] {
		t.Error("the program is not attached")
	}
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
		"STATUS without a range":       {"", plugin.Request{Verb: "STATUS"}, plugin.ErrUnavailable},
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
			n := newNode(t, c.cidr)
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
	_, err := n.ipam.allocate(netip.MustParsePrefix("10.244.0.0/24"), "a", "eth0", hostName("a", "eth0"))
	must(t, err)
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
	for name, damage := range map[string]func(n *node, ns string, a netip.Addr) error{
		"the pod's address": func(n *node, ns string, a netip.Addr) error {
			return within(t, ns, func() error { return netlink.AddrDel(link("eth0"), &netlink.Addr{IPNet: ipNet(a)}) })
		},
		"the pod's default route": func(n *node, ns string, _ netip.Addr) error {
			return within(t, ns, func() error {
				return netlink.RouteDel(&netlink.Route{LinkIndex: link("eth0").Attrs().Index, Gw: Gateway.AsSlice()})
			})
		},
		"the pod's neighbour entry": func(n *node, ns string, _ netip.Addr) error {
			return within(t, ns, func() error {
				return netlink.NeighDel(&netlink.Neigh{LinkIndex: link("eth0").Attrs().Index, IP: Gateway.AsSlice()})
			})
		},
		"the pod's link, down": func(n *node, ns string, _ netip.Addr) error {
			return within(t, ns, func() error { return netlink.LinkSetDown(link("eth0")) })
		},
		"the pod's link":        func(*node, string, netip.Addr) error { return netlink.LinkDel(link(host)) },
		"the host's link, down": func(*node, string, netip.Addr) error { return netlink.LinkSetDown(link(host)) },
		"the host's route": func(_ *node, _ string, a netip.Addr) error {
			return netlink.RouteDel(&netlink.Route{Dst: ipNet(a), Scope: netlink.SCOPE_LINK})
		},
		"the host's neighbour": func(_ *node, _ string, a netip.Addr) error {
			return netlink.NeighDel(&netlink.Neigh{LinkIndex: link(host).Attrs().Index, IP: a.AsSlice()})
		},
		"the host's MAC": func(*node, string, netip.Addr) error {
			return netlink.LinkSetHardwareAddr(link(host), net.HardwareAddr{2, 0, 0, 0, 0, 1})
		},
		"the kernel's row": func(n *node, _ string, _ netip.Addr) error {
			_, err := n.fake.Replace(owner("a", "eth0"), nil)
			return err
		},
		"the kernel's row, other": func(n *node, _ string, a netip.Addr) error {
			r := n.fake.rows[a]
			r.Ifindex++
			n.fake.rows[a] = r
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, "10.244.0.0/24")
			ns := newNetns(t)
			a := n.add(t, "a", ns)
			must(t, n.check("a", ns))
			must(t, damage(n, ns, a))
			if err := n.check("a", ns); err == nil {
				t.Error("CHECK sees nothing")
			} else {
				t.Log(err)
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
	n := newNode(t, "10.244.0.0/30")
	n.add(t, "a", newNetns(t))
	_, err := n.Handle(plugin.Request{Verb: "ADD", ContainerID: "b", Netns: newNetns(t), Ifname: "eth0"})
	if err == nil || !strings.Contains(err.Msg, "10.244.0.0/30") {
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

func TestPrepareAndRemoveAll(t *testing.T) {
	forward := func() string {
		t.Helper()
		data, err := os.ReadFile(forwardSysctl)
		must(t, err)
		return strings.TrimSpace(string(data))
	}
	has := func() bool {
		t.Helper()
		lo, err := netlink.LinkByName("lo")
		must(t, err)
		addrs, err := netlink.AddrList(lo, netlink.FAMILY_V4)
		must(t, err)
		for _, a := range addrs {
			if toAddr(a.IP) == dnsAddr {
				return true
			}
		}
		return false
	}
	for _, before := range []string{"0", "1"} {
		must(t, os.WriteFile(forwardSysctl, []byte(before), 0))
		dir := filepath.Join(t.TempDir(), "state")
		for range 2 { // an agent starts more than once
			must(t, Prepare(dir, dnsAddr))
			if forward() != "1" || !has() {
				t.Errorf("after Prepare: forwarding %s, address there: %v", forward(), has())
			}
		}
		must(t, RemoveAll(dir, testAlias, dnsAddr))
		if forward() != before || has() {
			t.Errorf("after RemoveAll: forwarding %s, want %s; address there: %v", forward(), before, has())
		}
	}
	must(t, os.WriteFile(forwardSysctl, []byte("0"), 0))
	must(t, RemoveAll(filepath.Join(t.TempDir(), "never"), testAlias, dnsAddr))
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
		Plugins          []struct{ Type, Socket string }
	}
	must(t, json.Unmarshal(data, &list))
	if list.CNIVersion != "1.0.0" || list.Name == "" || len(list.Plugins) != 1 || list.Plugins[0].Type != "strake-cni" || list.Plugins[0].Socket != socket {
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
