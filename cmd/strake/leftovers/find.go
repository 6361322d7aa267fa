// Package leftovers finds what other network plugins and kube-proxy have left in the kernel, and removes kube-proxy's.
package leftovers

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/strake-io/strake/cni"
)

// Where the kernel tells the tables of iptables' older half.
const (
	Legacy4 = "/proc/thread-self/net/ip_tables_names"
	Legacy6 = "/proc/thread-self/net/ip6_tables_names"
)

// IPVSDevice is the interface that kube-proxy's mode ipvs gives all Service addresses to.
const IPVSDevice = "kube-ipvs0"

// nftTable is the table of kube-proxy's mode nftables, of either family.
const nftTable = "kube-proxy"

// Chains that kube-proxy makes in its modes iptables and ipvs (pkg/proxy/iptables and pkg/proxy/ipvs of Kubernetes 1.16 to 1.37). The kubelet's
// KUBE-KUBELET-CANARY, KUBE-IPTABLES-HINT, KUBE-MARK-DROP and KUBE-FIREWALL of the table filter are none of them.
var (
	ownChains = []string{
		"KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ", "KUBE-FORWARD", "KUBE-PROXY-FIREWALL",
		"KUBE-PROXY-CANARY", "KUBE-NODE-PORT", "KUBE-LOAD-BALANCER", "KUBE-SOURCE-RANGES-FIREWALL", "KUBE-IPVS-FILTER", "KUBE-IPVS-OUT-FILTER",
	}
	ownPrefixes = []string{"KUBE-SVC-", "KUBE-SVL-", "KUBE-FW-", "KUBE-EXT-", "KUBE-SEP-", "KUBE-XLB-"}
)

// Sets are patterns of the ipsets of kube-proxy's mode ipvs.
var Sets = []string{
	"KUBE-LOOP-BACK", "KUBE-CLUSTER-IP", "KUBE-EXTERNAL-IP", "KUBE-EXTERNAL-IP-LOCAL", "KUBE-LOAD-BALANCER*", "KUBE-NODE-PORT-*", "KUBE-HEALTH-CHECK-NODE-PORT",
	"KUBE-IPVS-IPS", "KUBE-6-*",
}

// OfKubeProxy tells whether a chain of a table of iptables is kube-proxy's. Without the table only those are that no kubelet has.
func OfKubeProxy(table, chain string) bool {
	return slices.Contains(ownChains, chain) || slices.ContainsFunc(ownPrefixes, func(p string) bool { return strings.HasPrefix(chain, p) }) ||
		table == "nat" && chain == "KUBE-FIREWALL" // of mode ipvs
}

// SetNames lists ipsets; a kernel without them has none.
func SetNames() ([]string, error) {
	sets, err := netlink.IpsetListAll()
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("ipset: %w", err)
	}
	var out []string
	for _, s := range sets {
		out = append(out, s.SetName)
	}
	return out, nil
}

func isSet(name string) bool {
	return slices.ContainsFunc(Sets, func(p string) bool {
		ok, err := filepath.Match(p, name)
		return err == nil && ok
	})
}

// KubeProxy is what kube-proxy left in a network namespace.
type KubeProxy struct {
	Tables, NFT     []string // tables of nftables; chains of iptables-nft
	Legacy, Legacy6 []string // chains
	Sets            []string
	Device          bool // IPVSDevice
}

// Found tells whether there is anything.
func (k KubeProxy) Found() bool {
	return k.Device || len(k.Tables)+len(k.NFT)+len(k.Legacy)+len(k.Legacy6)+len(k.Sets) > 0
}

func (k KubeProxy) String() string {
	var out []string
	for _, part := range []struct {
		what string
		n    []string
	}{{"tables of nftables", k.Tables}, {"chains of iptables-nft", k.NFT}, {"chains of iptables-legacy", k.Legacy}, {"chains of ip6tables-legacy", k.Legacy6}, {"ipsets", k.Sets}} {
		if len(part.n) > 0 {
			out = append(out, fmt.Sprintf("%d %s (%s…)", len(part.n), part.what, part.n[0]))
		}
	}
	if k.Device {
		out = append(out, "interface "+IPVSDevice)
	}
	return strings.Join(out, ", ")
}

// FindKubeProxy looks for it in the calling thread's network namespace, and runs no program.
func FindKubeProxy() (KubeProxy, error) {
	var k KubeProxy
	tables, tableErr := nftDump(unix.NFT_MSG_GETTABLE, unix.NFTA_TABLE_NAME)
	for _, t := range tables {
		if t[0] == nftTable {
			k.Tables = append(k.Tables, t[0])
		}
	}
	chains, chainErr := nftDump(unix.NFT_MSG_GETCHAIN, unix.NFTA_CHAIN_NAME, unix.NFTA_CHAIN_TABLE)
	for _, c := range chains {
		if slices.Contains(iptablesTables, c[1]) && OfKubeProxy(c[1], c[0]) {
			k.NFT = append(k.NFT, c[0])
		}
	}
	ours := func(l []string) []string {
		return slices.DeleteFunc(l, func(c string) bool { return !OfKubeProxy("", c) })
	}
	legacy, err4 := LegacyChains(Legacy4, unix.AF_INET)
	legacy6, err6 := LegacyChains(Legacy6, unix.AF_INET6)
	k.Legacy, k.Legacy6 = ours(legacy), ours(legacy6)
	sets, setErr := SetNames()
	k.Sets = slices.DeleteFunc(sets, func(s string) bool { return !isSet(s) })
	_, linkErr := netlink.LinkByName(IPVSDevice)
	if k.Device = linkErr == nil; errors.As(linkErr, new(netlink.LinkNotFoundError)) {
		linkErr = nil
	}
	return k, errors.Join(tableErr, chainErr, err4, err6, setErr, linkErr)
}

// Running finds a process of kube-proxy that this one can see; 0 if there is none.
func Running() int {
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return 0
	}
	for _, name := range names {
		var pid int
		if b, err := os.ReadFile(name); err == nil && strings.TrimSpace(string(b)) == "kube-proxy" {
			if _, err := fmt.Sscanf(name, "/proc/%d/", &pid); err == nil {
				return pid
			}
		}
	}
	return 0
}

// onIPVSDevice are the addresses of kube-proxy's Services in mode ipvs.
func onIPVSDevice() ([]netlink.Addr, netlink.Link, error) {
	l, err := netlink.LinkByName(IPVSDevice)
	if err != nil {
		return nil, nil, err
	}
	addrs, err := cni.Whole(func() ([]netlink.Addr, error) { return netlink.AddrList(l, netlink.FAMILY_ALL) })
	return addrs, l, err
}
