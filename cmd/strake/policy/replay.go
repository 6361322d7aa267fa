package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/strake-io/strake/netpol/manifests"
	"github.com/strake-io/strake/netpol/observed"
)

// observed reads the records.
func (r *recordFlags) observed(records Records) (*observed.Record, error) {
	dirs, err := r.places(records)
	if err != nil {
		return nil, err
	}
	seen, err := observed.Read(dirs, r.options(true).Since)
	if err != nil {
		return nil, told(err)
	}
	if len(seen.Flows) == 0 {
		return nil, Exit{broken, errors.New("there are no flows in the record of that time (--since looks further back; counts are written every ten seconds)")}
	}
	return seen, nil
}

func replayCommand(s *source, records Records) *cobra.Command {
	var r recordFlags
	var output string
	var paths []string
	var add bool
	cmd := &cobra.Command{
		Use:   "replay --policies FOLDER",
		Short: "Tell what other policies would have made of recorded flows",
		Long: `Judges the flows that this machine's nodes have recorded (strake up --record-flows) by other policies than those of then: what would have been dropped
that was allowed, and the reverse, by workload. The folder has all policies; with --add it has those that come to the cluster's, or replace them by name.

Pods, namespaces and nodes are the cluster's, or with -f those of manifests; pods that are gone are as the record has them. Of a flow between nodes each
node's side is judged by its own record. All flows count, whatever samples were left out; clients outside of the cluster are known by the
samples, and those beyond them by their network, of which the first address is judged.

Exit code: 0 if the same would have been allowed, 1 if not, 2 if that can't be told.`,
		Example: `  strake policy replay --policies policies/ --since 24h
  strake policy replay --policies new.yaml --add
  strake policy replay --policies policies/ -f manifests/ --record /tmp/node-7/flows -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(paths) == 0 {
				return Exit{broken, errors.New("--policies is missing: a folder or file with the policies to judge by")}
			}
			if err := once(slices.Concat(s.files, paths)...); err != nil {
				return err
			}
			seen, err := r.observed(records)
			if err != nil {
				return err
			}
			state, err := s.load(cmd)
			if err != nil {
				return err
			}
			folder, err := s.manifests(cmd, paths...)
			if err != nil {
				return err
			}
			state.Namespaces = manifests.Overlay(state.Namespaces, folder.Namespaces, nil)
			if add {
				state.NetworkPolicies = manifests.Overlay(state.NetworkPolicies, folder.NetworkPolicies, nil)
				state.ClusterNetworkPolicies = manifests.Overlay(state.ClusterNetworkPolicies, folder.ClusterNetworkPolicies, nil)
			} else {
				state.NetworkPolicies, state.ClusterNetworkPolicies = folder.NetworkPolicies, folder.ClusterNetworkPolicies
			}
			replayed, err := observed.Replay(seen, state)
			if err != nil {
				return Exit{broken, err}
			}
			if output == "json" {
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				err = e.Encode(replayed)
			} else {
				err = replayed.WriteText(cmd.OutOrStdout())
			}
			if err == nil && replayed.Differs() {
				return Exit{Code: differs}
			}
			return err
		},
	}
	s.flags(cmd)
	r.flags(cmd, 24*time.Hour)
	cmd.Flags().StringArrayVar(&paths, "policies", nil, "folder or file of policies to judge by; repeatable")
	cmd.Flags().BoolVar(&add, "add", false, "the policies come to those that there are")
	formats(cmd, &output, "text", "json")
	return cmd
}

func recommendCommand(s *source, records Records) *cobra.Command {
	var r recordFlags
	var namespace, output string
	cmd := &cobra.Command{
		Use:   "recommend",
		Short: "Write the policies that admit the recorded flows, and no others",
		Long: `Writes a NetworkPolicy for each workload whose pods this machine's nodes have recorded (strake up --record-flows): what was allowed in that time is
admitted, and nothing else. Workloads are chosen by as few labels of their template as single them out in their namespace, the cluster's DNS as
the pods k8s-app=kube-dns in kube-system, others by their addresses. What the policies rest on, and what they leave out, stands in comments.

They are to be read before they are applied: what happens once a month was perhaps not seen, and what was tried (strake policy probe, connectivity
test) was seen as all else. Try them in shadow first (annotation strake.io/policy-mode: shadow), or by "strake policy replay".`,
		Example: `  strake policy recommend --since 168h -n shop > shop.yaml
  strake policy replay --add --policies shop.yaml --since 168h`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			seen, err := r.observed(records)
			if err != nil {
				return err
			}
			state, err := s.load(cmd)
			if err != nil {
				return err
			}
			rec := observed.Recommend(seen, state.Pods, namespace)
			if len(rec.Policies) == 0 {
				return Exit{broken, fmt.Errorf("the record of that time has no pods of namespace %q (empty: of any) on these nodes", namespace)}
			}
			if output == "json" {
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				return e.Encode(rec)
			}
			text, err := rec.WriteYAML()
			if err == nil {
				_, err = cmd.OutOrStdout().Write(text)
			}
			return err
		},
	}
	s.flags(cmd)
	r.flags(cmd, 24*time.Hour)
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "only workloads of this namespace")
	formats(cmd, &output, "yaml", "json")
	return cmd
}
