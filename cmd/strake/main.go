// Command strake is a complete Kubernetes whose node network is eBPF. Every
// role is a subcommand; `strake up` runs them all on this machine.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/strake-io/strake/cmd/strake/layout"
	_ "github.com/strake-io/strake/cmd/strake/translations" // before kubectl
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := rootCommand(os.Args[1:]).ExecuteContext(ctx); err != nil {
		exit := exitError{code: 1, err: err}
		errors.As(err, &exit)
		if exit.err != nil {
			fmt.Fprintln(os.Stderr, "strake:", err)
		}
		os.Exit(exit.code)
	}
}

// rootCommand makes the commands for a command line.
func rootCommand(args []string) *cobra.Command {
	root := &cobra.Command{
		Use:           "strake",
		Short:         "A Kubernetes whose node network is eBPF",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	dataDir := root.PersistentFlags().String("data-dir", layout.DefaultDataDir, "where the node keeps its data")
	place := func() (layout.Layout, error) { return layout.New(*dataDir) }
	root.AddCommand(upCommand(place), joinCommand(place), nodeCommand(place), downCommand(place), statusCommand(place), imageCommand(place), serverCommand(place), agentCommand(place), containerdCommand(place), tokenCommand(place), snapshotCommand(place),
		demoCommand(), versionCommand(), kubectlCommand(args))
	root.AddCommand(toolCommands(place)...)
	root.SetFlagErrorFunc(badFlag)
	_ = root.MarkPersistentFlagDirname("data-dir") // fails for unknown flags only
	explained(root)
	return root
}

// places finds the node that --data-dir names.
type places func() (layout.Layout, error)
