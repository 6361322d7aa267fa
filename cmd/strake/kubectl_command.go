package main

import (
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/client-go/rest"
	"k8s.io/component-base/logs"
	"k8s.io/kubectl/pkg/cmd"
	cmdutil "k8s.io/kubectl/pkg/cmd/util"

	"github.com/strake-io/strake/cmd/strake/layout"
)

// kubectlName is the command that is kubectl.
const kubectlName = "kubectl"

// nobodysHost is what kubectl asks where nothing tells it whom. A kubeconfig may say the same.
const nobodysHost = "http://localhost:8080"

// nobody is the way to the host that kubectl asks where nothing tells it whom, of a folder without a cluster: who goes it, and is no dry run, ends there.
// RoundTrip ends the process, because kubectl takes an error for a server that is away: it would ask five times, and say that.
type nobody string

func (dir nobody) RoundTrip(*http.Request) (*http.Response, error) {
	err := fmt.Errorf("there is no cluster in %s: run `strake up`, or name the right folder with --data-dir, or a kubeconfig with --kubeconfig", string(dir))
	cmdutil.CheckErr(err)
	return nil, err
}

// kubectlCommand is kubectl itself, pointed at the cluster's administrator unless told otherwise. For a command line that does not name it, it is no
// more than its line in the help: its hundred commands take time and memory, in every process of a node.
func kubectlCommand(args []string) *cobra.Command {
	const short = "kubectl, pointed at this cluster"
	if !slices.Contains(args, kubectlName) {
		return &cobra.Command{Use: kubectlName, Short: short, Run: func(*cobra.Command, []string) {}}
	}
	flags := genericclioptions.NewConfigFlags(true).WithDeprecatedPasswordFlag().WithDiscoveryBurst(300).WithDiscoveryQPS(50)
	if path := adminKubeconfig(args); path != "" {
		*flags.KubeConfig = path // the default of --kubeconfig
	}
	flags.WithWrapConfigFn(func(c *rest.Config) *rest.Config {
		if c.Host == nobodysHost && *flags.APIServer == "" && os.Getenv("KUBERNETES_MASTER") == "" && namesNobody(flags) {
			c.Wrap(func(http.RoundTripper) http.RoundTripper { return nobody(dataDir(args)) })
		}
		return c
	})
	k := cmd.NewKubectlCommand(cmd.KubectlOptions{
		ConfigFlags: flags,
		IOStreams:   genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr},
	})
	logs.AddFlags(k.PersistentFlags()) // -v, as kubectl's main does
	k.Short = short
	before := k.PersistentPreRunE
	k.PersistentPreRunE = func(c *cobra.Command, args []string) error {
		signal.Reset(os.Interrupt, syscall.SIGTERM) // most of its commands take no context: they end by these
		return before(c, args)
	}
	return k
}

// namesNobody tells whether kubeconfigs name no cluster.
func namesNobody(flags *genericclioptions.ConfigFlags) bool {
	raw, err := flags.ToRawKubeConfigLoader().RawConfig()
	return err == nil && len(raw.Clusters) == 0
}

// adminKubeconfig finds the administrator's kubeconfig of the node that a command line is about; without one (in a pod, say) it
// is empty. It looks before cobra does, because the shell's completions run without any hook of a command.
func adminKubeconfig(args []string) string {
	l, err := layout.New(dataDir(args))
	if err != nil {
		return ""
	}
	if _, err := os.Stat(l.AdminKubeconfig()); err != nil {
		return ""
	}
	return l.AdminKubeconfig()
}

// dataDir is what a command line says of --data-dir.
func dataDir(args []string) string {
	f := pflag.NewFlagSet("", pflag.ContinueOnError)
	f.ParseErrorsAllowlist.UnknownFlags = true
	f.Usage = func() {}
	dir := f.String("data-dir", layout.DefaultDataDir, "")
	_ = f.Parse(args) // cobra tells what is wrong with them
	return *dir
}
