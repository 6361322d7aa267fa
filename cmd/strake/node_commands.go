package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/strake-io/strake/cmd/strake/cluster"
)

func joinCommand(place places) *cobra.Command {
	var wait time.Duration
	var ticket cluster.Ticket
	var tokenFile string
	flags := cluster.Defaults()
	cmd := &cobra.Command{
		Use:   "join [https://ADDRESS:PORT]",
		Short: "Make this machine a node of a cluster",
		Long: `Makes this machine a node of the cluster whose API server has the URL, in the background: containerd of its own and the agent. The
token is good for the first time only: then the node has certificates, and "strake join" or "strake up" starts it without one.`,
		Example: "  strake join https://192.0.2.1:6443 --token-file token --ca-cert-hash sha256:…\n  strake up    (after a reboot)",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := place()
			if err != nil {
				return err
			}
			if len(args) > 0 {
				ticket.Server = args[0]
			}
			if tokenFile != "" {
				if ticket.Token != "" {
					return errors.New("--token and --token-file: give one of them")
				}
				if ticket.Token, err = readToken(cmd.InOrStdin(), tokenFile); err != nil {
					return err
				}
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), wait)
			defer cancel()
			return cluster.Join(ctx, l, flags, cmd.Flags().Changed, ticket, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.DurationVar(&wait, "wait", 120*time.Second, "how long to wait for the node")
	f.StringVar(&ticket.Token, "token", "", "bootstrap token; a file doesn't show it to the machine's other users")
	f.StringVar(&tokenFile, "token-file", "", "file with the bootstrap token; - reads it from standard input")
	f.StringArrayVar(&ticket.CAHashes, "ca-cert-hash", nil, "hash of the public key of the cluster's CA, sha256:…; repeatable")
	nodeFlags(f, &flags)
	fixed(cmd, cluster.FlagXDP, xdpModes...)
	return cmd
}

// maxToken is more than any token has.
const maxToken = 1 << 10

func readToken(stdin io.Reader, path string) (string, error) {
	from := stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return "", fmt.Errorf("token: %w", err)
		}
		defer f.Close()
		from = f
	}
	data, err := io.ReadAll(io.LimitReader(from, maxToken))
	if err != nil {
		return "", fmt.Errorf("token: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}

func nodeCommand(place places) *cobra.Command {
	var wait time.Duration
	node := &cobra.Command{Use: "node", Short: "Nodes of the cluster"}
	remove := &cobra.Command{
		Use:   "remove NAME...",
		Short: "Move a node's pods elsewhere and take the node out of the cluster",
		Long: `Evicts the pods of each node, so that controllers make them anew on others, and removes the node from the cluster. One on this machine
is stopped and all of it removed; on another machine, "strake down --purge" does that.`,
		Example:           "  strake node remove node-1-3",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: nodeNames(place),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := place()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), wait)
			defer cancel()
			for _, name := range args {
				if err := cluster.RemoveNode(ctx, l, name, cmd.OutOrStdout()); err != nil {
					return err
				}
			}
			return nil
		},
	}
	remove.Flags().DurationVar(&wait, "wait", 5*time.Minute, "how long the pods may take to end")
	node.AddCommand(remove)
	return node
}
