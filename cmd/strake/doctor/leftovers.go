package doctor

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/strake-io/strake/cmd/strake/leftovers"

	"github.com/strake-io/strake/cni"
)

// Names by which other network plugins and kube-proxy are known.
var (
	foreignLinks = []string{"cali*", "vxlan.calico", "vxlan-v6.calico", "wireguard.cali", "cilium_*", "lxc_health", "flannel*", "cni0", "kube-ipvs0", "kube-bridge", "kube-dummy-if",
		"weave", "vethwe-*", "antrea-gw0", "antrea-tun0", "ovn-k8s-mp0", "nodelocaldns", "dummy0.cilium"}
	foreignChains = []string{"KUBE-*", "cali-*", "CILIUM_*", "FLANNEL-*", "CNI-*", "WEAVE*", "ANTREA-*", "cilium_*"}
	foreignTables = []string{"kube-proxy", "calico", "cilium*", "flannel-*", "cni_hostport", "antrea*"}
	foreignSets   = []string{"KUBE-*", "cali40*", "cali60*", "cilium_*", "weave-*", "ANTREA-*"}
)

func matches(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		ok, err := filepath.Match(p, name)
		return err == nil && ok
	})
}

func pick(patterns, names []string) []string {
	var out []string
	for _, n := range names {
		if matches(patterns, n) && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}

func (e *examination) leftovers(g group) {
	links, chains, tables, sets := foreignLinks, foreignChains, foreignTables, foreignSets
	if e.ProxyOnly { // another plugin's network is what this node has
		links, tables, sets = []string{leftovers.IPVSDevice}, []string{"kube-proxy"}, leftovers.Sets
	}
	judge := func(name, hint string, patterns []string, found []string, err error) {
		if err != nil {
			g.unknown(name, err, "")
			return
		}
		if e.ProxyOnly { // a kubelet's chains are no leftovers, nor are another plugin's
			found = slices.DeleteFunc(found, func(n string) bool {
				return strings.Contains(name, "tables") && strings.HasPrefix(n, "KUBE-") && !leftovers.OfKubeProxy("", n)
			})
		}
		if left := pick(patterns, found); len(left) > 0 {
			g.fail(name, hint, "%s", shorten(left))
			return
		}
		g.ok(name, "none")
	}
	if e.ProxyOnly {
		chains = []string{"KUBE-*"}
	}
	have, err := linkNames()
	judge("interfaces", "remove that plugin, then its interfaces with `ip link del NAME`", links, have, err)
	const flush = "stop kube-proxy or that plugin and remove its rules (`strake agent --only proxy --clean-kube-proxy`, `kube-proxy --cleanup`, or `nft delete table`); they work on the same packets"
	haveTables, haveChains, err := leftovers.NFTNames()
	judge("nftables tables", flush, tables, haveTables, err)
	judge("nftables chains", flush, chains, haveChains, err)
	for _, f := range []struct {
		name, proc string
		family     int
	}{{"iptables (legacy)", leftovers.Legacy4, unix.AF_INET}, {"ip6tables (legacy)", leftovers.Legacy6, unix.AF_INET6}} {
		found, err := leftovers.LegacyChains(f.proc, f.family)
		judge(f.name, flush, chains, found, err)
	}
	haveSets, err := leftovers.SetNames()
	judge("ipsets", "remove them with `ipset destroy NAME`", sets, haveSets, err)
	e.ipvs(g)
	if !e.ProxyOnly {
		e.cniConfigs(g)
	}
}

// shorten names some of a long list.
func shorten(l []string) string {
	const most = 8
	if len(l) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(l[:most], ", "), len(l)-most)
	}
	return strings.Join(l, ", ")
}

func linkNames() ([]string, error) {
	links, err := cni.Whole(netlink.LinkList)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, l := range links {
		out = append(out, l.Attrs().Name)
	}
	return out, nil
}

// ipvs looks for virtual servers: kube-proxy's in its mode ipvs.
func (e *examination) ipvs(g group) {
	b, err := os.ReadFile("/proc/thread-self/net/ip_vs")
	if errors.Is(err, os.ErrNotExist) {
		g.ok("IPVS", "none: the module is not loaded")
		return
	}
	if err != nil {
		g.unknown("IPVS", err, "")
		return
	}
	if n := virtualServers(b); n > 0 {
		g.fail("IPVS", "stop kube-proxy and run `ipvsadm --clear`", "%d virtual servers", n)
		return
	}
	g.ok("IPVS", "none")
}

// virtualServers counts the lines of services in /proc/thread-self/net/ip_vs.
func virtualServers(b []byte) int {
	n := 0
	for line := range bytes.Lines(b) {
		for _, p := range []string{"TCP ", "UDP ", "SCTP ", "FWM "} {
			if bytes.HasPrefix(line, []byte(p)) {
				n++
			}
		}
	}
	return n
}

// cniConfigs looks for configurations of other plugins where this node's runtime reads them: it takes the first by name.
func (e *examination) cniConfigs(g group) {
	const name = "CNI configurations"
	entries, err := os.ReadDir(e.Layout.CNIConf())
	if err != nil {
		g.unknown(name, err, "")
		return
	}
	var names []string
	for _, f := range entries {
		names = append(names, f.Name())
	}
	g.judgeConfigs(e.Layout.CNIConf(), names)
}

func (g group) judgeConfigs(dir string, names []string) {
	const name = "CNI configurations"
	slices.Sort(names)
	var ours string
	var before, after []string
	for _, n := range names {
		switch {
		case !slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(n)):
		case strings.Contains(n, "strake"):
			ours = n
		case ours == "":
			before = append(before, n)
		default:
			after = append(after, n)
		}
	}
	hint := "remove what other plugins left in " + dir
	switch {
	case ours == "":
		g.fail(name, "the agent writes it once the node has a pod range: `strake kubectl get nodes`, agent.log", "ours is missing in %s", dir)
	case len(before) > 0:
		g.fail(name, hint, "%s comes before %s: pods get the network of another plugin", strings.Join(before, ", "), ours)
	case len(after) > 0:
		g.warn(name, hint, "%s comes after %s and is not used", strings.Join(after, ", "), ours)
	default:
		g.ok(name, "%s alone", ours)
	}
}
