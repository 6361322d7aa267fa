package cni

import (
	"context"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"github.com/strake-io/strake/cni/plugin"
)

// chainPath has the plugins of containernetworking/plugins (Debian: containernetworking-plugins).
const chainPath = "/usr/lib/cni"

// libcni runs lists as runtimes do: strake first, then another that needs its result.
func TestOthersFollowInAChain(t *testing.T) {
	if _, err := os.Stat(filepath.Join(chainPath, "tuning")); err != nil {
		t.Fatalf("the test needs containernetworking-plugins: %v", err)
	}
	n := newNode(t, "10.244.0.0/24", "fd00::/64")
	n.run(t)
	binary, err := built()
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := libcni.NewCNIConfigWithCacheDir([]string{filepath.Dir(binary), chainPath}, t.TempDir(), nil)
	for _, version := range []string{"0.4.0", "1.0.0"} {
		list, err := libcni.ConfListFromBytes(fmt.Appendf(nil, `{"cniVersion":%q,"name":"chain","plugins":[
			{"type":"strake-cni","socket":%q,"capabilities":{"portMappings":true}},
			{"type":"tuning","mtu":1300,"sysctl":{"net.ipv4.conf.eth0.arp_filter":"1"}}]}`, version, n.cfg.Socket))
		must(t, err)
		ns := newNetns(t)
		rt := &libcni.RuntimeConf{ContainerID: "chained", NetNS: ns, IfName: "eth0"}
		r, err := c.AddNetworkList(ctx, list, rt)
		if err != nil {
			t.Fatalf("%s: ADD: %v", version, err)
		}
		result, err := types100.NewResultFromResult(r)
		must(t, err)
		if len(result.IPs) != 2 || len(result.Routes) != 2 || len(result.Interfaces) < 2 || result.Interfaces[1].Name != "eth0" {
			t.Errorf("%s: result %+v", version, result)
		}
		must(t, within(t, ns, func() error {
			eth0, err := net.InterfaceByName("eth0")
			if err == nil && eth0.MTU != 1300 {
				t.Errorf("%s: MTU %d", version, eth0.MTU)
			}
			if v, err := readSysctl("net/ipv4/conf/eth0/arp_filter"); err != nil || v != "1" {
				t.Errorf("%s: the pod's sysctl is %q, %v", version, v, err)
			}
			return err
		}))
		if err := c.CheckNetworkList(ctx, list, rt); err != nil {
			t.Errorf("%s: CHECK: %v", version, err)
		}
		for range 2 {
			if err := c.DelNetworkList(ctx, list, rt); err != nil {
				t.Errorf("%s: DEL: %v", version, err)
			}
		}
		n.wantNothing(t)
	}
	if links, err := netlink.LinkList(); err != nil || len(links) != 1 {
		t.Errorf("interfaces %v, %v, want lo", links, err)
	}
}

// What WriteConfig writes is read by libcni at the newest version that both know, and all of its verbs are served.
func TestWrittenConfigIsServed(t *testing.T) {
	n := newNode(t, "10.244.0.0/24")
	must(t, Prepare(n.cfg.StateDir, nodeAddrs, nil))
	n.run(t)
	must(t, WriteConfig(n.cfg.ConfDir, n.cfg.Socket))
	list, err := libcni.ConfListFromFile(filepath.Join(n.cfg.ConfDir, confFile))
	must(t, err)
	if list.CNIVersion != newestVersion {
		t.Errorf("a runtime that knows %s takes %s", newestVersion, list.CNIVersion)
	}
	binary, err := built()
	must(t, err)
	c := libcni.NewCNIConfigWithCacheDir([]string{filepath.Dir(binary)}, t.TempDir(), nil)
	ns := newNetns(t)
	rt := &libcni.RuntimeConf{ContainerID: "a", NetNS: ns, IfName: "eth0", CapabilityArgs: map[string]any{
		"portMappings": []map[string]any{{"hostPort": 80, "containerPort": 8080, "protocol": "tcp"}},
		"bandwidth":    map[string]uint64{"ingressRate": 20_000_000, "ingressBurst": math.MaxUint32, "egressRate": 10_000_000, "egressBurst": math.MaxUint32}, // as containerd says it
	}}
	must(t, c.GetStatusNetworkList(t.Context(), list))
	_, err = c.AddNetworkList(t.Context(), list, rt)
	must(t, err)
	if a, _ := n.ipam.get("a", "eth0"); len(a.Ports) != 1 || a.Bandwidth != (plugin.Bandwidth{Ingress: 20_000_000, Egress: 10_000_000}) {
		t.Errorf("%+v", a)
	}
	must(t, c.CheckNetworkList(t.Context(), list, rt))
	must(t, c.GCNetworkList(t.Context(), list, &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: "a", IfName: "eth0"}}}))
	must(t, c.CheckNetworkList(t.Context(), list, rt))
	must(t, c.GCNetworkList(t.Context(), list, &libcni.GCArgs{}))
	n.wantNothing(t)
	must(t, c.DelNetworkList(t.Context(), list, rt))
}

// Two that serve hostPorts, or limits, don't stand in one list; a list in which only one is given them is fine.
func TestRivalsAreRefused(t *testing.T) {
	file := func(dir, plugins string) {
		must(t, os.WriteFile(filepath.Join(dir, "05-mine.conflist"), []byte(`{"cniVersion":"1.0.0","name":"x","plugins":[`+plugins+`]}`), 0o600))
	}
	const (
		ours, plain        = `{"type":"strake-cni","capabilities":{"portMappings":true,"bandwidth":true}}`, `{"type":"strake-cni"}`
		portmap, bandwidth = `{"type":"portmap","capabilities":{"portMappings":true}}`, `{"type":"bandwidth","capabilities":{"bandwidth":true}}`
	)
	for _, c := range []struct{ plugins, capability, refused string }{
		{ours, "portMappings", ""}, {ours + "," + portmap, "portMappings", "portmap"}, {ours + "," + portmap, "bandwidth", ""},
		{ours + "," + bandwidth, "bandwidth", "bandwidth"}, {plain + "," + portmap, "portMappings", ""}, {plain + "," + bandwidth, "bandwidth", ""},
		{`{"type":"bridge"},` + portmap, "portMappings", ""}, {ours + `,{"type":"portmap"}`, "portMappings", ""}, {"rubbish", "portMappings", ""},
	} {
		dir := t.TempDir()
		file(dir, c.plugins)
		err := withoutRival(dir, c.capability)
		if (err != nil) != (c.refused != "") || err != nil && (!strings.Contains(err.Error(), "05-mine.conflist") || !strings.Contains(err.Error(), c.refused)) {
			t.Errorf("%s: %v", c.plugins, err)
		}
	}
	must(t, withoutRival(t.TempDir(), "portMappings"))
	n := newNode(t, "10.244.0.0/24")
	file(n.cfg.ConfDir, ours+","+portmap+","+bandwidth)
	ns := newNetns(t)
	for _, r := range []plugin.Request{{Ports: []plugin.PortMapping{{HostPort: 80, ContainerPort: 80}}}, {Bandwidth: plugin.Bandwidth{Egress: minRate}}} {
		r.Verb, r.ContainerID, r.Netns, r.Ifname = "ADD", "a", ns, "eth0"
		if _, err := n.Handle(r); err == nil || err.Code != types.ErrInvalidNetworkConfig {
			t.Errorf("a pod with %+v: %v", r, err)
		}
	}
	n.wantEmpty(t)
	n.add(t, "a", ns) // without either
}
