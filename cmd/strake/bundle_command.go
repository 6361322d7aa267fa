package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"

	"github.com/strake-io/strake/cmd/strake/bundle"
	"github.com/strake-io/strake/cmd/strake/cluster"
	"github.com/strake-io/strake/cmd/strake/doctor"
	"github.com/strake-io/strake/kubelet/cgroups"
)

func bundleCommand(place places) *cobra.Command {
	var file, output string
	cmd := &cobra.Command{
		Use:   "support-bundle",
		Short: "Collect what others need to find out what is wrong here",
		Long: `Writes an archive with versions, settings, status, the doctor's report, the ends of the logs, links, routes and sysctls, what the
tables in the kernel hold, and the API's nodes, pods, Services, EndpointSlices and events.

Secrets, data of ConfigMaps, keys, tokens, annotations, values of variables and arguments of containers are left out. Containers' logs are
not in it.`,
		Example: "  strake support-bundle\n  strake support-bundle -f /tmp/node-1.tgz --data-dir /var/lib/strake",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if os.Geteuid() != 0 {
				return errors.New("strake support-bundle needs root: run it with sudo")
			}
			l, err := place()
			if err != nil {
				return err
			}
			examined, err := examined(l)
			if err != nil {
				return err
			}
			if file == "" {
				file = fmt.Sprintf("strake-support-%s-%s.tgz", examined.Name, time.Now().UTC().Format("20060102T150405Z"))
			}
			if err := enterNode(l); err != nil {
				return err
			}
			root, _ := cgroups.UnifiedPath(l.Cgroup())
			entries, err := bundle.Write(cmd.Context(), file, bundle.Sections(bundle.Node{
				Layout: l, CgroupRoot: root, Version: ownVersion(),
				Status: func(ctx context.Context) (any, error) { return cluster.Inspect(ctx, l) },
				Doctor: func(ctx context.Context) (any, error) { return doctor.Examine(ctx, examined), nil },
				Client: func() (kubernetes.Interface, error) { return clientOf(examined) },
			}))
			if err != nil {
				return err
			}
			return show(cmd.OutOrStdout(), output, map[string]any{"file": file, "contents": entries}, func(w io.Writer) { bundle.Print(w, file, entries) })
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "the archive to write (a name with node and time, in this folder)")
	outputFlag(cmd, &output)
	return cmd
}
