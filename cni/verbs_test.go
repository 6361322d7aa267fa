package cni

import (
	"encoding/json"
	"net"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/strake-io/strake/cni/plugin"
)

// The answer to ADD is all that CNI 1.1 asks of it.
func TestResult(t *testing.T) {
	n := newNode(t, "10.244.0.0/24", "fd00::/64")
	ns := newNetns(t)
	r, cerr := n.Handle(plugin.Request{Verb: "ADD", ContainerID: "a", Netns: ns, Ifname: "net0"})
	if cerr != nil {
		t.Fatal(cerr)
	}
	got, err := json.Marshal(r)
	must(t, err)
	a, _ := n.ipam.get("a", "net0")
	podMAC, hostMAC := macs(a)
	want := `{"cniVersion":"1.1.0","interfaces":[{"name":"` + a.Host + `","mac":"` + hostMAC.String() + `","mtu":1400},{"name":"net0","mac":"` + podMAC.String() + `","mtu":1400,"sandbox":"` + ns + `"}],` +
		`"ips":[{"interface":1,"address":"10.244.0.2/32","gateway":"169.254.1.1"},{"interface":1,"address":"fd00::2/128","gateway":"fe80::1"}],` +
		`"routes":[{"dst":"0.0.0.0/0","gw":"169.254.1.1"},{"dst":"::/0","gw":"fe80::1"}],"dns":{}}`
	var g, w any
	must(t, json.Unmarshal(got, &g))
	must(t, json.Unmarshal([]byte(want), &w))
	delete(g.(map[string]any), "dns")
	delete(w.(map[string]any), "dns")
	if !reflect.DeepEqual(g, w) {
		t.Errorf("result %s, want %s", got, want)
	}
	// What it says is so.
	must(t, within(t, ns, func() error {
		l, err := net.InterfaceByName("net0")
		if err == nil && (l.HardwareAddr.String() != podMAC.String() || l.MTU != 1400) {
			t.Errorf("the interface is %+v", l)
		}
		return err
	}))
	n.Handle(plugin.Request{Verb: "DEL", ContainerID: "a", Netns: ns, Ifname: "net0"})
}

// Behind a plugin that made something else, our part is added; behind one that made the interface, ADD is refused with the reason.
func TestAddInAChain(t *testing.T) {
	n := newNode(t, "10.244.0.0/24")
	ns := newNetns(t)
	_, lo, err := net.ParseCIDR("127.0.0.1/8")
	must(t, err)
	prev := &types100.Result{
		CNIVersion: "1.0.0",
		Interfaces: []*types100.Interface{{Name: "eth0"}, {Name: "lo", Sandbox: ns}}, // the node may well have an eth0
		IPs:        []*types100.IPConfig{{Interface: types100.Int(1), Address: *lo}},
		Routes:     []*types.Route{{Dst: *lo}}, DNS: types.DNS{Domain: "example.org"},
	}
	r, cerr := n.Handle(plugin.Request{Verb: "ADD", ContainerID: "a", Netns: ns, Ifname: "eth0", Prev: prev})
	if cerr != nil {
		t.Fatal(cerr)
	}
	if len(r.Interfaces) != 4 || r.Interfaces[3].Name != "eth0" || len(r.IPs) != 2 || *r.IPs[0].Interface != 1 || *r.IPs[1].Interface != 3 || len(r.Routes) != 2 || r.DNS.Domain != "example.org" {
		t.Errorf("result %+v", r)
	}
	if _, err := n.Handle(plugin.Request{Verb: "CHECK", ContainerID: "a", Netns: ns, Ifname: "eth0", Prev: r}); err != nil {
		t.Errorf("CHECK of it: %v", err)
	}
	prev.Interfaces[1].Name = "eth0"
	_, cerr = n.Handle(plugin.Request{Verb: "ADD", ContainerID: "b", Netns: newNetns(t), Ifname: "eth0", Prev: prev})
	if cerr == nil || cerr.Code != types.ErrInvalidNetworkConfig || !strings.Contains(cerr.Details, "first") {
		t.Errorf("behind another's eth0: %v", cerr)
	}
	if len(n.ipam.list()) != 1 {
		t.Errorf("allocations %v", n.ipam.list())
	}
}

// CHECK is handed the list's last result.
func TestCheckComparesTheResult(t *testing.T) {
	n := newNode(t, "10.244.0.0/24", "fd00::/64")
	ns := newNetns(t)
	r, cerr := n.Handle(plugin.Request{Verb: "ADD", ContainerID: "a", Netns: ns, Ifname: "eth0"})
	if cerr != nil {
		t.Fatal(cerr)
	}
	for name, c := range map[string]struct {
		change func(*types100.Result)
		say    string
	}{
		"nothing":           {func(*types100.Result) {}, ""},
		"a further route":   {func(r *types100.Result) { r.Routes = append(r.Routes, &types.Route{}) }, ""},
		"a lower MTU":       {func(r *types100.Result) { r.Interfaces[1].Mtu = 1300 }, ""},
		"ips of no place":   {func(r *types100.Result) { r.IPs[0].Interface = nil }, ""},
		"another MAC":       {func(r *types100.Result) { r.Interfaces[1].Mac = "02:00:00:00:00:01" }, "02:00:00:00:00:01"},
		"no interface":      {func(r *types100.Result) { r.Interfaces = r.Interfaces[:1] }, "no interface eth0"},
		"another address":   {func(r *types100.Result) { r.IPs[1].Address.IP = net.ParseIP("fd00::9") }, "fd00::2"},
		"another's address": {func(r *types100.Result) { r.IPs[0].Interface = types100.Int(0) }, "10.244.0.2"},
		"rubbish":           {func(r *types100.Result) { r.IPs, r.Interfaces = []*types100.IPConfig{nil}, []*types100.Interface{nil} }, "no interface"},
	} {
		t.Run(name, func(t *testing.T) {
			prev := &types100.Result{}
			data, err := json.Marshal(r)
			must(t, err)
			must(t, json.Unmarshal(data, prev))
			c.change(prev)
			_, cerr := n.Handle(plugin.Request{Verb: "CHECK", ContainerID: "a", Netns: ns, Ifname: "eth0", Prev: prev})
			if (cerr == nil) != (c.say == "") || cerr != nil && !strings.Contains(cerr.Error(), c.say) {
				t.Errorf("CHECK says %v, want %q", cerr, c.say)
			}
		})
	}
}

// A node that does not forward has limited connectivity, which STATUS tells by a code of its own.
func TestStatusOfANodeThatDoesNotForward(t *testing.T) {
	n := newNode(t, "10.244.0.0/24", "fd00::/64")
	must(t, Prepare(n.cfg.StateDir, nodeAddrs, nil))
	status := func() *types.Error { _, err := n.Handle(plugin.Request{Verb: "STATUS"}); return err }
	if err := status(); err != nil {
		t.Error(err)
	}
	for _, name := range []string{forward4, forward6} {
		must(t, os.WriteFile(procSys+name, []byte("0"), 0))
		if err := status(); err == nil || err.Code != types.ErrLimitedConnectivity || !strings.Contains(err.Msg, name) {
			t.Errorf("%s is 0: %v", name, err)
		}
		must(t, os.WriteFile(procSys+name, []byte("1"), 0))
	}
}
