package bundle

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/cni"
)

// Node is what a bundle is made of. It is collected in the node's network namespace.
type Node struct {
	Layout     layout.Layout
	CgroupRoot string
	Version    any                                  // of this program
	Status     func(context.Context) (any, error)   // as `strake status -o json`
	Doctor     func(context.Context) (any, error)   // as `strake doctor -o json`
	Client     func() (kubernetes.Interface, error) // the API
}

// Sections are all that there is to be collected.
func Sections(n Node) []Section {
	asJSON := func(f func(context.Context) (any, error)) func(context.Context) ([]byte, error) {
		return func(ctx context.Context) ([]byte, error) {
			v, err := f(ctx)
			if v == nil {
				return nil, err
			}
			b, jerr := json.MarshalIndent(v, "", "  ")
			return []byte(Text(string(b))), errors.Join(err, jerr)
		}
	}
	file := func(path string) func(context.Context) ([]byte, error) {
		return func(context.Context) ([]byte, error) { return logTail(path, maxLog) }
	}
	out := []Section{
		{"version.json", asJSON(func(context.Context) (any, error) { return n.version() })},
		{"settings.json", file(n.Layout.Settings())},
		{"status.json", asJSON(n.Status)},
		{"doctor.json", asJSON(n.Doctor)},
		{"network/links.json", asJSON(func(context.Context) (any, error) { return links() })},
		{"network/routes.json", asJSON(func(context.Context) (any, error) { return routes() })},
		{"network/rules.json", asJSON(func(context.Context) (any, error) { return rules() })},
		{"network/neighbours.json", asJSON(func(context.Context) (any, error) { return neighbours() })},
		{"network/sysctls.txt", func(context.Context) ([]byte, error) {
			return sysctls("/proc/sys", "net/ipv4", "net/ipv6", "net/core", "net/netfilter", "kernel/bpf_stats_enabled", "kernel/unprivileged_bpf_disabled")
		}},
		{"network/counters.txt", file("/proc/thread-self/net/snmp")},
		{"network/counters-more.txt", file("/proc/thread-self/net/netstat")},
		{"kernel/mounts.txt", file("/proc/self/mounts")},
		{"kernel/modules.txt", file("/proc/modules")},
		{"bpf/rows.json", asJSON(func(context.Context) (any, error) { return rows(n.Layout) })},
		{"bpf/hooks.json", asJSON(func(context.Context) (any, error) { return bpf.ReadHooks(n.Layout.BPF(), n.CgroupRoot) })},
		{"cni/allocations.json", asJSON(func(context.Context) (any, error) { return jsonFiles(n.Layout.CNIState()) })},
		{"cni/configurations.json", asJSON(func(context.Context) (any, error) { return jsonFiles(n.Layout.CNIConf()) })},
	}
	for _, component := range []string{"supervisor", "containerd", "server", "agent"} {
		out = append(out, Section{"log/" + component + ".log", file(n.Layout.Log(component))})
	}
	for _, kind := range []string{"nodes", "pods", "services", "endpointslices", "events"} {
		out = append(out, Section{"api/" + kind + ".json", asJSON(func(ctx context.Context) (any, error) { return n.objects(ctx, kind) })})
	}
	return out
}

func rows(l layout.Layout) (any, error) {
	r, err := bpf.ReadRows(l.BPF())
	if err != nil {
		return nil, err
	}
	return r, nil
}

func (n Node) version() (any, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, err
	}
	release, err := os.ReadFile("/etc/os-release")
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return map[string]any{
		"strake": n.Version, "kernel": unix.ByteSliceToString(u.Release[:]), "kernelVersion": unix.ByteSliceToString(u.Version[:]), "machine": unix.ByteSliceToString(u.Machine[:]),
		"osRelease": strings.Split(strings.TrimSpace(string(release)), "\n"),
	}, err
}

// objects lists one kind of the API, without what may be secret.
func (n Node) objects(ctx context.Context, kind string) (any, error) {
	c, err := n.Client()
	if err != nil {
		return nil, err
	}
	all := metav1.ListOptions{}
	switch kind {
	case "nodes":
		l, err := c.CoreV1().Nodes().List(ctx, all)
		if err != nil {
			return nil, err
		}
		for i := range l.Items {
			cleanMeta(&l.Items[i].ObjectMeta)
		}
		return l.Items, nil
	case "pods":
		l, err := c.CoreV1().Pods("").List(ctx, all)
		if err != nil {
			return nil, err
		}
		for i := range l.Items {
			cleanPod(&l.Items[i])
		}
		return l.Items, nil
	case "services":
		l, err := c.CoreV1().Services("").List(ctx, all)
		if err != nil {
			return nil, err
		}
		for i := range l.Items {
			cleanMeta(&l.Items[i].ObjectMeta)
		}
		return l.Items, nil
	case "endpointslices":
		l, err := c.DiscoveryV1().EndpointSlices("").List(ctx, all)
		if err != nil {
			return nil, err
		}
		for i := range l.Items {
			cleanMeta(&l.Items[i].ObjectMeta)
		}
		return l.Items, nil
	case "events":
		l, err := c.CoreV1().Events("").List(ctx, all)
		if err != nil {
			return nil, err
		}
		for i := range l.Items {
			cleanMeta(&l.Items[i].ObjectMeta)
		}
		return l.Items, nil
	}
	return nil, fmt.Errorf("there is no kind %s", kind)
}

type link struct {
	Index     int      `json:"index"`
	Name      string   `json:"name"`
	Type      string   `json:"type"`
	State     string   `json:"state"`
	Flags     string   `json:"flags"`
	MTU       int      `json:"mtu"`
	MAC       string   `json:"mac,omitempty"`
	Alias     string   `json:"alias,omitempty"`
	Master    int      `json:"master,omitempty"`
	Addresses []string `json:"addresses,omitempty"`
	Received  uint64   `json:"receivedPackets,omitempty"`
	Sent      uint64   `json:"sentPackets,omitempty"`
	Lost      uint64   `json:"lostPackets,omitempty"` // errors and drops, both ways
}

func links() (any, error) {
	list, err := cni.Whole(netlink.LinkList)
	if err != nil {
		return nil, err
	}
	out := []link{}
	for _, l := range list {
		a := l.Attrs()
		row := link{Index: a.Index, Name: a.Name, Type: l.Type(), State: a.OperState.String(), Flags: a.Flags.String(), MTU: a.MTU, MAC: a.HardwareAddr.String(), Alias: a.Alias, Master: a.MasterIndex}
		if s := a.Statistics; s != nil {
			row.Received, row.Sent, row.Lost = s.RxPackets, s.TxPackets, s.RxErrors+s.TxErrors+s.RxDropped+s.TxDropped
		}
		addrs, aerr := cni.Whole(func() ([]netlink.Addr, error) { return netlink.AddrList(l, netlink.FAMILY_ALL) })
		err = errors.Join(err, aerr)
		for _, addr := range addrs {
			row.Addresses = append(row.Addresses, addr.IPNet.String())
		}
		out = append(out, row)
	}
	return out, err
}

func routes() (any, error) {
	out := []string{}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := cni.Whole(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return out, err
		}
		for _, r := range list {
			out = append(out, fmt.Sprintf("table %d type %d %s", r.Table, r.Type, r))
		}
	}
	return out, nil
}

func rules() (any, error) {
	out := []string{}
	list, err := cni.Whole(func() ([]netlink.Rule, error) { return netlink.RuleList(netlink.FAMILY_ALL) })
	for _, r := range list {
		out = append(out, fmt.Sprintf("%s table %d", r, r.Table))
	}
	return out, err
}

type neighbour struct {
	Link    int    `json:"link"`
	Address string `json:"address"`
	MAC     string `json:"mac"`
	State   int    `json:"state"`
}

func neighbours() (any, error) {
	out := []neighbour{}
	list, err := cni.Whole(func() ([]netlink.Neigh, error) { return netlink.NeighList(0, netlink.FAMILY_ALL) })
	for _, n := range list {
		out = append(out, neighbour{n.LinkIndex, n.IP.String(), n.HardwareAddr.String(), n.State})
	}
	return out, err
}

// sysctls reads what is readable of some branches.
func sysctls(root string, branches ...string) ([]byte, error) {
	var b bytes.Buffer
	for _, branch := range branches {
		err := filepath.WalkDir(filepath.Join(root, branch), func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil || d.IsDir() {
				return err
			}
			name := strings.ReplaceAll(strings.TrimPrefix(path, root+"/"), "/", ".")
			if strings.Contains(name, "secret") || strings.Contains(name, "_key") { // net.ipv6.conf.*.stable_secret, net.ipv4.tcp_fastopen_key
				return nil
			}
			if data, err := os.ReadFile(path); err == nil { // some can be written alone
				fmt.Fprintf(&b, "%s = %s\n", name, strings.Join(strings.Fields(string(data)), " "))
			}
			return nil
		})
		if err != nil {
			return b.Bytes(), err
		}
	}
	return b.Bytes(), nil
}

// jsonFiles are the JSON files of a folder.
func jsonFiles(dir string) (any, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	out := map[string]any{}
	for _, e := range entries {
		if !slices.Contains([]string{".json", ".conf", ".conflist"}, filepath.Ext(e.Name())) {
			continue
		}
		data, rerr := os.ReadFile(filepath.Join(dir, e.Name()))
		if rerr != nil {
			err = errors.Join(err, rerr)
			continue
		}
		var v any
		if json.Unmarshal(data, &v) != nil {
			v = string(data)
		}
		out[e.Name()] = v
	}
	return out, err
}
