package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/strake-io/strake/cmd/strake/jointoken"
)

// tokenTimeout bounds what a command about tokens waits for the API server.
const tokenTimeout = 30 * time.Second

func tokenCommand(place places) *cobra.Command {
	var output string
	token := &cobra.Command{Use: "token", Short: "Tokens with which machines join the cluster"}
	// with runs a command against the cluster of the data folder.
	with := func(run func(ctx context.Context, cmd *cobra.Command, c *jointoken.Cluster, args []string) error) func(*cobra.Command, []string) error {
		return func(cmd *cobra.Command, args []string) error {
			l, err := place()
			if err != nil {
				return err
			}
			c, err := jointoken.Connect(l.AdminKubeconfig())
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), tokenTimeout)
			defer cancel()
			return run(ctx, cmd, c, args)
		}
	}

	var r jointoken.Request
	var printJoin bool
	create := &cobra.Command{
		Use:   "create",
		Short: "Make a token",
		Long: `Makes a token and prints it. Who has it can join the cluster as a node until it expires: hand it on with care. On the machine that
joins, others see the arguments of commands: --token-file keeps the token out of them.`,
		Example: "  strake token create --print-join-command\n  strake token create --ttl 1h --description 'for rack 7'",
		Args:    cobra.NoArgs,
		RunE: with(func(ctx context.Context, cmd *cobra.Command, c *jointoken.Cluster, _ []string) error {
			t, err := c.Create(ctx, r, time.Now())
			if err != nil {
				return err
			}
			return show(cmd.OutOrStdout(), output, t, func(w io.Writer) {
				if printJoin {
					fmt.Fprintln(w, t.JoinCommand)
				} else {
					fmt.Fprintln(w, t.Token)
				}
			})
		}),
	}
	f := create.Flags()
	f.DurationVar(&r.TTL, "ttl", 24*time.Hour, "how long the token is good (0: without an end)")
	f.StringSliceVar(&r.Usages, "usages", jointoken.Usages, "what it is good for: authentication (joining), signing (of cluster-info)")
	f.StringSliceVar(&r.Groups, "groups", nil, "groups of its bearers, beside system:bootstrappers")
	f.StringVar(&r.Description, "description", "", "a note for people")
	f.BoolVar(&printJoin, "print-join-command", false, "print the whole command that a machine joins with")

	var secrets bool
	list := &cobra.Command{
		Use:     "list",
		Short:   "List the tokens, without their secrets",
		Example: "  strake token list\n  strake token list -o json",
		Args:    cobra.NoArgs,
		RunE: with(func(ctx context.Context, cmd *cobra.Command, c *jointoken.Cluster, _ []string) error {
			tokens, err := c.List(ctx, secrets)
			if err != nil {
				return err
			}
			return show(cmd.OutOrStdout(), output, map[string]any{"tokens": tokens}, func(w io.Writer) { jointoken.Print(w, tokens, time.Now()) })
		}),
	}
	list.Flags().BoolVar(&secrets, "show-secrets", false, "show the tokens whole")

	remove := &cobra.Command{
		Use:               "delete ID",
		Short:             "Delete a token; who has joined with it stays",
		Example:           "  strake token delete abcdef",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: once(tokenIDs(place)),
		RunE: with(func(ctx context.Context, cmd *cobra.Command, c *jointoken.Cluster, args []string) error {
			return c.Delete(ctx, args[0])
		}),
	}
	fixed(create, "usages", jointoken.Usages...)
	outputFlag(create, &output)
	outputFlag(list, &output)
	token.AddCommand(create, list, remove)
	return token
}
