package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/strake-io/strake/cmd/strake/cluster"
	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/cmd/strake/policy"
	"github.com/strake-io/strake/netpol/analysis"
)

// flowRecords are the folders of records of flows that this machine's nodes have: the node's that is meant, and if it is the first one those of the nodes
// beside it. Those that have none yet it says to notes.
func flowRecords(place places, notes io.Writer) ([]string, error) {
	l, err := place()
	if err != nil {
		return nil, err
	}
	nodes := []layout.Layout{l}
	if _, _, beside := l.LabNode(); !beside {
		numbers, err := l.LabNodes()
		if err != nil {
			return nil, err
		}
		for _, n := range numbers {
			nodes = append(nodes, l.Node(n))
		}
	}
	var dirs []string
	var waiting []error
	for _, n := range nodes {
		if _, err := os.Stat(n.FlowRecord()); err == nil {
			dirs = append(dirs, n.FlowRecord())
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		} else if s, _, err := cluster.Load(n); err == nil && s.Recording.On {
			waiting = append(waiting, fmt.Errorf("node %s has recorded nothing yet: its agent makes the record when it has started (%s)", s.NodeName, n.Log("agent")))
		}
	}
	if len(dirs) == 0 {
		return nil, errors.Join(waiting...)
	}
	for _, err := range waiting {
		fmt.Fprintln(notes, "strake: left out:", err)
	}
	return dirs, nil
}

// policyCommand is the workbench of network policies, with what looks at this node. How it is asked wrongly is no answer either: exit code 2, as
// diff(1) has it.
func policyCommand(place places) *cobra.Command {
	group := policy.Command(adminKubeconfig(os.Args[1:]), func(ctx context.Context, probes int) (analysis.Evidence, error) {
		return lookAtNode(ctx, place, probes)
	}, func() ([]string, error) { return flowRecords(place, os.Stderr) }, cluster.DNSAddrs)
	group.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return exitError{2, badFlag(cmd, err)} })
	for _, cmd := range group.Commands() {
		if run := cmd.RunE; run != nil {
			cmd.RunE = func(cmd *cobra.Command, a []string) error {
				err := run(cmd, a)
				if e := (policy.Exit{}); errors.As(err, &e) {
					return exitError{e.Code, e.Err}
				}
				if err != nil {
					return exitError{2, err}
				}
				return nil
			}
		}
	}
	group.Args = cobra.NoArgs
	group.AddCommand(policyVerifyCommand(place), policyProbeCommand(place)) // they choose their exit codes themselves
	for _, cmd := range append(group.Commands(), group) {
		if args := cmd.Args; args != nil {
			cmd.Args = func(cmd *cobra.Command, a []string) error {
				if err := args(cmd, a); err != nil {
					return exitError{2, err}
				}
				return nil
			}
		}
	}
	return group
}
