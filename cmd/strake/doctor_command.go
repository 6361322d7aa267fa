package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/strake-io/strake/cmd/strake/cluster"
	"github.com/strake-io/strake/cmd/strake/doctor"
	"github.com/strake-io/strake/cmd/strake/kubeproxy"
	"github.com/strake-io/strake/cmd/strake/layout"
)

func doctorCommand(place places) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Examine this node: kernel, network and cluster state",
		Long: `Looks at the node's kernel, mounts, sysctls, uplink, clock, at what other network plugins left, and compares what the kernel
holds with what the API says that it should. It changes nothing.

Exit code: 0 if nothing failed (warnings are no failure), 1 if something failed, 2 if something could not be looked at.`,
		Example: "  strake doctor\n  strake doctor --data-dir /var/lib/strake/nodes/2\n  strake doctor -o json | jq '.checks[] | select(.status != \"ok\")'",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			n, err := entered(place)
			if err != nil {
				return exitError{2, err}
			}
			r := doctor.Examine(cmd.Context(), n)
			if err := show(cmd.OutOrStdout(), output, r, r.Print); err != nil {
				return err
			}
			if code := r.Code(); code != 0 {
				return exitError{code: code}
			}
			return nil
		},
	}
	outputFlag(cmd, &output)
	return cmd
}

// examined finds out what the doctor is to know of a node.
func examined(l layout.Layout) (doctor.Node, error) {
	if os.Geteuid() != 0 {
		return doctor.Node{}, errors.New("looking at a node needs root: run it with sudo")
	}
	if p, alone, err := kubeproxy.Load(l); err != nil || alone {
		n := doctor.Node{Layout: l, Name: p.NodeName, Addrs: p.Addrs, ProxyOnly: true, Cgroup: p.Cgroup, NodePorts: p.NodePorts}
		if p.Kubeconfig != "" {
			n.Kubeconfigs = []string{p.Kubeconfig}
		}
		return n, err
	}
	s, saved, err := cluster.Load(l)
	if err == nil && !saved {
		err = fmt.Errorf("there is no node in %s: run `strake up`, or name another folder with --data-dir", l.Data)
	}
	if err != nil {
		return doctor.Node{}, err
	}
	c := s.Agent(l)
	return doctor.Node{
		NoMasquerade: c.NoMasquerade, Datapath: c.Datapath, DSR: c.DSR,
		Layout: l, Name: c.NodeName, Addrs: c.NodeAddrs, NodePorts: c.NodePortAddrs, DNSAddrs: c.DNSAddrs, Zone: c.Zone, Native: c.Native, Relay: c.Relay, TunnelPort: c.TunnelPort, Uplinks: c.Uplinks,
		Kubeconfigs: []string{l.AdminKubeconfig(), l.Kubeconfig("node-network")}, Certificates: []string{l.PKI(), l.AdminKubeconfig()},
	}, nil
}
