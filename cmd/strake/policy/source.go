package policy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/strake-io/strake/netpol"
	"github.com/strake-io/strake/netpol/manifests"
)

// source is where a command's State comes from.
type source struct {
	files      []string
	kubeconfig string
	context    string
	ignore     bool
	podCIDRs   []netip.Prefix // of pods that manifests have no addresses of
	fallback   string         // kubeconfig, if none is named
	loaded     manifests.Loaded
	server     string // of the cluster that was asked
	kube       kubernetes.Interface
	look       Look
	dns        DNS
}

// DNS tells at which addresses the nodes of a cluster answer its DNS, for which there is neither a Service nor a pod; none: they don't.
type DNS func(context.Context, kubernetes.Interface) ([]netip.Addr, error)

// flags adds those that choose a source to a command.
func (s *source) flags(cmd *cobra.Command) {
	cmd.Flags().StringArrayVarP(&s.files, "filename", "f", nil, "folder (with all below it) or file of manifests, - for the standard input; repeatable (the cluster)")
	s.liveFlags(cmd)
}

func (s *source) liveFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&s.kubeconfig, "kubeconfig", "", "way to the cluster (this node's administrator's, or what kubectl takes)")
	f.StringVar(&s.context, "context", "", "context of the kubeconfig")
	f.Func("pod-cidr", "range that pods of manifests without addresses are in, one of a family: blocks that cover it whole cover them (no block does but 0.0.0.0/0 and ::/0); repeatable", s.addPodCIDR)
	f.BoolVar(&s.ignore, "ignore-problems", false, "judge what can be read of manifests with problems; an invalid rule admits nothing")
}

// load reads the State. Problems of manifests are told to the command's standard error, all of them.
func (s *source) load(cmd *cobra.Command) (netpol.State, error) {
	if err := once(s.files...); err != nil {
		return netpol.State{}, err
	}
	if len(s.files) == 0 {
		return s.live(cmd)
	}
	if err := s.offline(); err != nil {
		return netpol.State{}, err
	}
	state, err := s.manifests(cmd, s.files...)
	if err == nil && len(state.Pods)+len(state.NetworkPolicies)+len(state.ClusterNetworkPolicies) == 0 {
		err = Exit{broken, fmt.Errorf("%s: neither pods, workloads nor policies are there: nothing that could be judged", strings.Join(s.files, ", "))}
	}
	return state, err
}

// offline is an error if a cluster is named beside manifests: nobody asks it.
func (s *source) offline() error {
	if s.kubeconfig+s.context != "" {
		return Exit{broken, errors.New("--kubeconfig and --context name a cluster, which is not asked where manifests are judged")}
	}
	return nil
}

// once is an error if the standard input is named twice: whoever reads second would find nothing, and take it for no objects.
func once(names ...string) error {
	named := 0
	for _, n := range names {
		if n == "-" {
			named++
		}
	}
	if named > 1 {
		return Exit{broken, errors.New("- is named twice: the standard input can be read once")}
	}
	return nil
}

// addPodCIDR takes a value of --pod-cidr.
func (s *source) addPodCIDR(text string) error {
	p, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		return errors.New("a range such as 10.244.0.0/16 is wanted")
	case p != p.Masked() || p.Addr().Is4In6():
		return fmt.Errorf("that is in the range %s", p.Masked())
	case slices.ContainsFunc(s.podCIDRs, func(o netip.Prefix) bool { return o.Addr().Is4() == p.Addr().Is4() }):
		return errors.New("there is another one of its family")
	}
	s.podCIDRs = append(s.podCIDRs, p)
	return nil
}

func (s *source) manifests(cmd *cobra.Command, paths ...string) (netpol.State, error) {
	loaded, err := manifests.LoadAll(cmd.InOrStdin(), s.podCIDRs, paths...)
	if err != nil {
		return netpol.State{}, Exit{broken, err}
	}
	s.loaded = loaded
	tell(cmd.ErrOrStderr(), loaded.Problems)
	if len(loaded.Problems) > 0 && !s.ignore {
		return netpol.State{}, Exit{broken, errProblems}
	}
	return loaded.State, nil
}

// where tells the file of an object that was loaded last, and its line.
func (s *source) where(kind, namespace, name string) (string, int) {
	return s.loaded.Where(kind, namespace, name)
}

func tell(w io.Writer, problems []manifests.Problem) {
	for _, p := range problems {
		fmt.Fprintln(w, p)
	}
}

func (s *source) live(cmd *cobra.Command) (netpol.State, error) {
	if len(s.podCIDRs) > 0 {
		return netpol.State{}, Exit{broken, errors.New("--pod-cidr is about manifests without a cluster: its pods have their addresses")}
	}
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = s.kubeconfig
	if s.kubeconfig == "" {
		rules.ExplicitPath = s.fallback
	}
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: s.context}).ClientConfig()
	if err != nil {
		return netpol.State{}, Exit{broken, fmt.Errorf("no cluster to ask (-f names manifests instead): %w", err)}
	}
	s.server = config.Host
	config.QPS, config.Burst = -1, -1 // a few lists, in pages
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		return netpol.State{}, Exit{broken, err}
	}
	s.kube = kube
	custom, err := dynamic.NewForConfig(config)
	if err != nil {
		return netpol.State{}, Exit{broken, err}
	}
	state, problems, err := manifests.FromAPI(cmd.Context(), kube, custom)
	if err != nil {
		return state, Exit{broken, err}
	}
	switch addrs, err := s.dns(cmd.Context(), kube); {
	case err != nil:
		fmt.Fprintln(cmd.ErrOrStderr(), "warning: the cluster's DNS is not known, if nodes answer it, and taken for an address outside:", err)
	case len(addrs) > 0:
		state.DNSAddrs = addrs
	}
	s.loaded.Problems = problems
	tell(cmd.ErrOrStderr(), problems)
	return state, nil
}
