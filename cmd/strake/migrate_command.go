package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/strake-io/strake/bpf"
)

func migrateCommand(place places) *cobra.Command {
	var layout uint32
	cmd := &cobra.Command{
		Use:   "migrate --to-layout N",
		Short: "Prepare this node's network for an older release",
		Long: `Writes what the kernel holds for this node (Services, pods, connections) as an older release reads it. Run it with the newer
release right before the older one starts: packets pass all the time, and connections live on, but for those that begin in between. A newer
release that starts brings everything to its own layout by itself.

An older release that finds the maps of a newer one refuses to start, and says which layout it wants.`,
		Example: "  strake migrate --to-layout 2",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !cmd.Flags().Changed("to-layout") {
				return fmt.Errorf("--to-layout is missing: the older release names it when it refuses to start; %d is the oldest that this one knows", bpf.OldestLayout)
			}
			if os.Geteuid() != 0 {
				return errors.New("strake migrate needs root: run it with sudo")
			}
			l, err := place()
			if err != nil {
				return err
			}
			if err := enterNode(l); err != nil {
				return err
			}
			if err := bpf.Downgrade(l.BPF(), layout); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "The node's network has layout %d now. Start the older release.\n", layout)
			return err
		},
	}
	cmd.Flags().Uint32Var(&layout, "to-layout", 0, "the layout that the older release knows")
	return cmd
}
