package leftovers

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// keptTable holds on to the kernel's connection tracking and translation while connections that kube-proxy's rules have translated are open:
// with the last rule that needs them the kernel would take both out of packets' way, and those connections would hang.
const keptTable = "strake-kept-flows"

// keepScript makes it for one family. The last chain is nobody's: what it says makes the kernel track.
const keepScript = `add table %[1]s %[2]s
add chain %[1]s %[2]s prerouting { type nat hook prerouting priority -100 ; }
add chain %[1]s %[2]s input { type nat hook input priority 100 ; }
add chain %[1]s %[2]s output { type nat hook output priority -100 ; }
add chain %[1]s %[2]s postrouting { type nat hook postrouting priority 100 ; }
add chain %[1]s %[2]s tracks
flush chain %[1]s %[2]s tracks
add rule %[1]s %[2]s tracks ct state new return
`

func keepFlows(ctx context.Context) error {
	_, err := run(ctx, fmt.Sprintf(keepScript, "ip", keptTable)+fmt.Sprintf(keepScript, "ip6", keptTable), "nft", "-f", "-")
	return err
}

// ReleaseFlows takes away what CleanKubeProxy left for connections that were open, once there are no translated ones any more. It tells whether
// nothing is left. It lists all that the kernel tracks: once a minute is enough.
func ReleaseFlows(ctx context.Context) (bool, error) {
	if kept, err := flowsAreKept(); err != nil || !kept {
		return err == nil, err
	}
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		list, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return false, fmt.Errorf("tracked connections: %w", err)
		}
		if err != nil || slices.ContainsFunc(list, translated) {
			return false, nil
		}
	}
	return true, DropFlows(ctx)
}

func flowsAreKept() (bool, error) {
	tables, _, err := NFTNames()
	return slices.Contains(tables, keptTable), err
}

// DropFlows takes it away at once: connections that kube-proxy translated end.
func DropFlows(ctx context.Context) error {
	if kept, err := flowsAreKept(); err != nil || !kept {
		return err
	}
	_, err := run(ctx, fmt.Sprintf("delete table ip %[1]s\ndelete table ip6 %[1]s\n", keptTable), "nft", "-f", "-")
	return err
}

// translated tells whether a tracked connection goes somewhere else than its client asked for.
func translated(f *netlink.ConntrackFlow) bool {
	return !f.Forward.DstIP.Equal(f.Reverse.SrcIP) || f.Forward.DstPort != f.Reverse.SrcPort
}
