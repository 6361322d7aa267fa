package policy

import (
	"encoding/json"
	"errors"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/strake-io/strake/netpol"
	"github.com/strake-io/strake/netpol/analysis"
	"github.com/strake-io/strake/netpol/manifests"
)

func diffCommand(s *source) *cobra.Command {
	var output string
	var replace bool
	cmd := &cobra.Command{
		Use:   "diff [BEFORE] AFTER",
		Short: "Tell what a change of policies opens and closes",
		Long: `Compares what is allowed by two folders of manifests (or files), pair of workloads by pair: what may be reached afterwards that could not before, and the
reverse, with exact ranges of ports. How policies are written makes no difference, only what they allow.

A folder without pods gets those of the other. With one folder, the cluster is compared with what it would be if the folder's policies and namespaces were
applied to it; with --replace, if they were all that there are.

Exit code: 0 if the same is allowed, 1 if not, 2 if that can't be told.`,
		Example: `  git worktree add /tmp/main main && strake policy diff /tmp/main/deploy deploy
  strake policy diff policies/
  strake policy diff --replace policies/ -o json`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			before, after, err := s.both(cmd, args, replace)
			if err != nil {
				return err
			}
			d := analysis.Compare(before, after)
			if output == "json" {
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				err = e.Encode(d)
			} else {
				err = d.WriteText(cmd.OutOrStdout())
			}
			if err == nil && d.Differs() {
				return Exit{Code: differs}
			}
			return err
		},
	}
	s.liveFlags(cmd)
	cmd.Flags().BoolVar(&replace, "replace", false, "the folder has all policies: others of the cluster would be gone")
	formats(cmd, &output, "text", "json")
	return cmd
}

// both gives the States before and after.
func (s *source) both(cmd *cobra.Command, args []string, replace bool) (before, after netpol.State, err error) {
	if len(args) == 1 {
		if before, err = s.live(cmd); err != nil {
			return before, after, err
		}
		folder, err := s.manifests(cmd, args[0])
		if err != nil {
			return before, after, err
		}
		after = before
		after.Namespaces = manifests.Overlay(before.Namespaces, folder.Namespaces, func(n *corev1.Namespace) bool { return len(n.Labels) > 1 })
		if replace {
			after.NetworkPolicies, after.ClusterNetworkPolicies = folder.NetworkPolicies, folder.ClusterNetworkPolicies
		} else {
			after.NetworkPolicies = manifests.Overlay(before.NetworkPolicies, folder.NetworkPolicies, nil)
			after.ClusterNetworkPolicies = manifests.Overlay(before.ClusterNetworkPolicies, folder.ClusterNetworkPolicies, nil)
		}
		return before, after, nil
	}
	if replace {
		return before, after, Exit{broken, errors.New("--replace is about the cluster: it goes with one folder")}
	}
	if err = errors.Join(once(args...), s.offline()); err != nil {
		return before, after, err
	}
	if before, err = s.manifests(cmd, args[0]); err != nil {
		return before, after, err
	}
	first := s.loaded
	if after, err = s.manifests(cmd, args[1]); err != nil {
		return before, after, err
	}
	second := s.loaded
	switch {
	case len(before.Pods) == 0 && len(after.Pods) > 0:
		before = first.Borrow(second)
	case len(after.Pods) == 0 && len(before.Pods) > 0:
		after = second.Borrow(first)
	}
	return before, after, nil
}
