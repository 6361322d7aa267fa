package main

import (
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/component-base/logs"
	"k8s.io/kubectl/pkg/cmd"

	"github.com/strake-io/strake/cmd/strake/layout"
)

// kubectlCommand is kubectl itself, pointed at the cluster's administrator unless told otherwise.
func kubectlCommand() *cobra.Command {
	flags := genericclioptions.NewConfigFlags(true).WithDeprecatedPasswordFlag().WithDiscoveryBurst(300).WithDiscoveryQPS(50)
	if path := adminKubeconfig(os.Args[1:]); path != "" {
		*flags.KubeConfig = path // the default of --kubeconfig
	}
	k := cmd.NewKubectlCommand(cmd.KubectlOptions{
		ConfigFlags: flags,
		IOStreams:   genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr},
	})
	logs.AddFlags(k.PersistentFlags()) // -v, as kubectl's main does
	k.Short = "kubectl, pointed at this cluster"
	return k
}

// adminKubeconfig finds the administrator's kubeconfig of the node that a command line is about; without one (in a pod, say) it
// is empty. It looks before cobra does, because the shell's completions run without any hook of a command.
func adminKubeconfig(args []string) string {
	f := pflag.NewFlagSet("", pflag.ContinueOnError)
	f.ParseErrorsAllowlist.UnknownFlags = true
	f.Usage = func() {}
	dir := f.String("data-dir", layout.DefaultDataDir, "")
	_ = f.Parse(args) // cobra tells what is wrong with them
	l, err := layout.New(*dir)
	if err != nil {
		return ""
	}
	if _, err := os.Stat(l.AdminKubeconfig()); err != nil {
		return ""
	}
	return l.AdminKubeconfig()
}
