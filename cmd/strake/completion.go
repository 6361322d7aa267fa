package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/strake-io/strake/cmd/strake/jointoken"
)

// completionPatience is how long a shell waits for names.
const completionPatience = 3 * time.Second

// fixed completes a flag by words that are always the same.
func fixed(cmd *cobra.Command, flag string, words ...string) {
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)) // fails for unknown flags only
}

// completed completes a flag by names. The command's words say nothing of it.
func completed(cmd *cobra.Command, flag string, names cobra.CompletionFunc) {
	_ = cmd.RegisterFlagCompletionFunc(flag, func(cmd *cobra.Command, _ []string, begun string) ([]string, cobra.ShellCompDirective) { // fails for unknown flags only
		return names(cmd, nil, begun)
	})
}

// named completes by the names that list finds, but for those that stand there already; by none where it can't.
func named(list func(context.Context) ([]string, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), completionPatience)
		defer cancel()
		all, _ := list(ctx) // a shell has no place for errors
		var out []string
		for _, name := range all {
			if strings.HasPrefix(name, begun) && !slices.Contains(args, name) && !slices.Contains(out, name) {
				out = append(out, name)
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

// once completes the first word alone.
func once(names cobra.CompletionFunc) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return names(cmd, args, begun)
	}
}

// nodeClient asks the API server as the node may that --data-dir names, from within its network namespace.
func nodeClient(place places) (kubernetes.Interface, error) {
	node, err := entered(place)
	if err != nil {
		return nil, err
	}
	return clientOf(node)
}

// podNames are those that the node may see, as NAMESPACE/NAME.
func podNames(place places) cobra.CompletionFunc {
	return named(func(ctx context.Context) ([]string, error) {
		client, err := nodeClient(place)
		if err != nil {
			return nil, err
		}
		pods, err := client.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil, err
		}
		var out []string
		for _, p := range pods.Items {
			out = append(out, p.Namespace+"/"+p.Name)
		}
		return out, nil
	})
}

// nodeNames are those of the cluster.
func nodeNames(place places) cobra.CompletionFunc {
	return named(func(ctx context.Context) ([]string, error) {
		client, err := nodeClient(place)
		if err != nil {
			return nil, err
		}
		nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil, err
		}
		var out []string
		for _, n := range nodes.Items {
			out = append(out, n.Name)
		}
		return out, nil
	})
}

// tokenIDs are those of the tokens with which machines join.
func tokenIDs(place places) cobra.CompletionFunc {
	return named(func(ctx context.Context) ([]string, error) {
		l, err := place()
		if err != nil {
			return nil, err
		}
		c, err := jointoken.Connect(l.AdminKubeconfig())
		if err != nil {
			return nil, err
		}
		tokens, err := c.List(ctx, false)
		var out []string
		for _, t := range tokens {
			out = append(out, t.ID)
		}
		return out, err
	})
}
