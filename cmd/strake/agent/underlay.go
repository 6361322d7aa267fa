package agent

import (
	"sync/atomic"

	"k8s.io/klog/v2"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cni"
)

// underlay follows the node's links: the uplinks' programs, and what packets of pods may be large.
type underlay struct{ now atomic.Pointer[cni.Underlay] }

func (u *underlay) mtu() int {
	if now := u.now.Load(); now != nil {
		return now.MTU
	}
	return 0
}

// nodes returns the ways to the other nodes. The node's own links are known then, the others are not yet.
func (u *underlay) nodes(cfg Config, d *bpf.Datapath, server *cni.Server) (*cni.Nodes, error) {
	routing := cni.VXLAN
	if cfg.Native {
		routing = cni.Native
	}
	n, err := cni.NewNodes(cni.NodesConfig{
		Name: cfg.NodeName, Addrs: cfg.NodeAddrs, Uplinks: cfg.Uplinks, Routing: routing, Relay: cfg.Relay, TunnelPort: cfg.TunnelPort, Datapath: d,
		OnUnderlay: func(now cni.Underlay) error {
			if len(now.Uplinks) == 0 {
				klog.InfoS("The node's address is on lo: NodePorts answer on this machine only, and pods reach the outside only where it has a route to them")
			}
			left, err := d.ServeUplinks(now.Uplinks, now.Others)
			if err != nil {
				return err
			}
			if left != nil {
				klog.ErrorS(left, "Pods' packets may leave with another address than that of the link, or go unserved, by a link that has none of the node's; all else goes on")
			}
			u.now.Store(&now)
			server.ApplyMTU()
			return nil
		},
	})
	if err != nil {
		return nil, err
	}
	return n, n.Begin()
}
