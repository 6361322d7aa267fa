package main

import (
	"os"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/component-base/logs"
	"k8s.io/kubectl/pkg/cmd"
)

// kubectlCommand is kubectl itself, pointed at the cluster's administrator unless told otherwise.
func kubectlCommand(place places) *cobra.Command {
	flags := genericclioptions.NewConfigFlags(true).WithDeprecatedPasswordFlag().WithDiscoveryBurst(300).WithDiscoveryQPS(50)
	k := cmd.NewKubectlCommand(cmd.KubectlOptions{
		ConfigFlags: flags,
		IOStreams:   genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr},
	})
	logs.AddFlags(k.PersistentFlags()) // -v, as kubectl's main does
	k.Short = "kubectl, pointed at this cluster"
	before := k.PersistentPreRunE
	k.PersistentPreRunE = func(c *cobra.Command, args []string) error {
		if flags.KubeConfig == nil || *flags.KubeConfig == "" {
			l, err := place()
			if err != nil {
				return err
			}
			if _, err := os.Stat(l.AdminKubeconfig()); err == nil {
				*flags.KubeConfig = l.AdminKubeconfig()
			}
		}
		if before != nil {
			return before(c, args)
		}
		return nil
	}
	return k
}
