package podnet

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/strake-io/strake/cni"
)

// TestNeighboursAreFoundAgain: whoever on the way of a NodePort's connection has forgotten, or doubts, the neighbours that it found, asks for them anew, and
// the next connection is made. Those of pods are fixed.
func TestNeighboursAreFoundAgain(t *testing.T) {
	states := map[string]int{"failed": netlink.NUD_FAILED, "stale": netlink.NUD_STALE, "asked for": netlink.NUD_PROBE, "forgotten": netlink.NUD_NONE}
	for _, routing := range []cni.Routing{cni.VXLAN, cni.Native} {
		t.Run(string(routing), func(t *testing.T) {
			c := start(t, 2, routing)
			connect := func(what string) {
				for family := range 2 {
					for _, n := range c.Nodes {
						to := netip.AddrPortFrom(n.Addrs[family], nodePort)
						for range 4 { // to pods of either node
							ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
							conn, err := c.Outside.Dial(ctx, "tcp", to.String())
							cancel()
							if err != nil {
								t.Fatalf("%s: %v", what, err)
							}
							conn.Close()
						}
					}
				}
			}
			connect("at first")
			for name, s := range map[string]Space{"the client": c.Outside, "node 1": c.Nodes[0].Space, "node 2": c.Nodes[1].Space} {
				for how, state := range states {
					changed := 0
					must(t, s.In(func() (err error) { changed, err = neighbours(state); return err }))
					if changed == 0 {
						t.Errorf("%s has no neighbours", name)
					}
					connect(fmt.Sprintf("the neighbours of %s are %s", name, how))
				}
			}
			for _, p := range c.pods {
				must(t, p.Space.In(func() error {
					if n, err := neighbours(netlink.NUD_FAILED); err != nil || n != 0 {
						return fmt.Errorf("%s has %d neighbours that are not fixed (%v)", p.ID, n, err)
					}
					return nil
				}))
			}
		})
	}
}

// neighbours gives the namespace's neighbours that were found a state, and tells how many they are; with NUD_NONE it takes them away.
func neighbours(state int) (changed int, err error) {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		list, err := netlink.NeighList(0, family)
		if err != nil {
			return changed, err
		}
		for _, e := range list {
			if e.State&(netlink.NUD_PERMANENT|netlink.NUD_NOARP) != 0 || len(e.HardwareAddr) == 0 { // one that failed, or is looked for, has no address to be doubted
				continue
			}
			if state == netlink.NUD_NONE {
				err = netlink.NeighDel(&e)
			} else {
				if e.State = state; state == netlink.NUD_FAILED {
					e.HardwareAddr = nil
				}
				err = netlink.NeighSet(&e)
			}
			if err != nil && err != unix.ENOENT { // it may just have gone
				return changed, fmt.Errorf("neighbour %s: %w", e.IP, err)
			}
			changed++
		}
	}
	return changed, nil
}
