package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/strake-io/strake/netpol"
	"github.com/strake-io/strake/netpol/flows"
)

// Records are the folders with this machine's nodes' records of flows.
type Records func() ([]string, error)

// recordFlags are those of commands that read records.
type recordFlags struct {
	folders []string
	since   time.Duration
	filter  flows.Filter
}

func (r *recordFlags) flags(cmd *cobra.Command, since time.Duration) {
	f := cmd.Flags()
	f.StringArrayVar(&r.folders, "record", nil, "folder with a node's record of flows; repeatable (those of this machine's nodes)")
	f.DurationVar(&r.since, "since", since, "how far to look back; 0: as far as the record goes")
}

func (r *recordFlags) filterFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&r.filter.Verdict, "verdict", "", "only flows that are "+list(flows.Verdicts())+"; the latter two by policies in shadow")
	f.StringVar(&r.filter.Pod, "pod", "", "only flows from or to this pod, or, if none is called so, this workload's pods: NAMESPACE/NAME")
	f.StringVarP(&r.filter.Namespace, "namespace", "n", "", "only flows from or to pods of this namespace")
	f.StringVar(&r.filter.Policy, "policy", "", "only flows on which this policy decided, or would have: NAMESPACE/NAME, or NAME of a ClusterNetworkPolicy")
	_ = cmd.RegisterFlagCompletionFunc("verdict", cobra.FixedCompletions(flows.Verdicts(), cobra.ShellCompDirectiveNoFileComp)) // fails for unknown flags only
}

// places are the folders to read.
func (r *recordFlags) places(records Records) ([]string, error) {
	if r.since < 0 {
		return nil, Exit{broken, fmt.Errorf("--since %s: how far to look back, such as 1h", r.since)}
	}
	if len(r.folders) > 0 {
		return r.folders, nil
	}
	dirs, err := records()
	if err != nil {
		return nil, Exit{broken, err}
	}
	if len(dirs) == 0 {
		return nil, Exit{broken, errors.New("no node on this machine records flows: start it with `strake up --record-flows`, or name a record with --record")}
	}
	return dirs, nil
}

func (r *recordFlags) options(counts bool) flows.Options {
	o := flows.Options{Counts: counts}
	if r.since > 0 {
		o.Since = time.Now().Add(-r.since)
	}
	return o
}

// told makes an error of a record one of the command's.
func told(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, fs.ErrPermission) {
		err = fmt.Errorf("%w: records are root's; run it with sudo", err)
	}
	return Exit{broken, err}
}

func flowsCommand(records Records) *cobra.Command {
	var r recordFlags
	var follow bool
	var by, output string
	cmd := &cobra.Command{
		Use:   "flows",
		Short: "Show the recorded flows of this machine's pods, and what policies said of them",
		Long: `Shows new flows and denied packets of this machine's nodes as they were recorded (strake up --record-flows): who asked whom, by which Service, the
verdict, and the policy and rule behind it in each direction. Flows between pods of two nodes are there twice: each node judges its pod's side.

A storm of flows is recorded by samples, and what is left out is said. Counts are exact, whatever is left out of the samples: --by class adds them up.
They are written every ten seconds.`,
		Example: `  strake policy flows -f --verdict dropped
  strake policy flows --since 1h --pod default/web
  strake policy flows --since 0 --verdict would-drop --policy default/lockdown
  strake policy flows --by class --since 24h -o json
  strake policy flows --by shadow --since 24h`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := r.filter.Check(); err != nil {
				return Exit{broken, err}
			}
			dirs, err := r.places(records)
			if err != nil {
				return err
			}
			switch by {
			case "":
			case "class", "shadow":
				if follow {
					return Exit{broken, errors.New("--by adds up what there is: it goes without --follow")}
				}
				sums, err := r.sums(dirs)
				if err == nil {
					err = tellUncounted(cmd.ErrOrStderr(), dirs, r.options(false))
				}
				if err == nil && by == "shadow" {
					err = printShadows(cmd.OutOrStdout(), output, flows.Shadows(sums))
				} else if err == nil {
					err = printSums(cmd.OutOrStdout(), output, sums)
				}
				return told(err)
			default:
				return Exit{broken, fmt.Errorf("--by %s: class and shadow are known", by)}
			}
			if err := r.meet(dirs, false); err != nil {
				return told(err)
			}
			show := func(l flows.Line) error {
				if l.Flow != nil {
					if r.filter.Meet(l.Flow); !r.filter.Takes(l.Flow) {
						return nil
					}
				}
				if output == "json" {
					return json.NewEncoder(cmd.OutOrStdout()).Encode(l)
				}
				_, err := fmt.Fprintln(cmd.OutOrStdout(), l.Text())
				return err
			}
			if follow {
				return told(flows.Follow(cmd.Context(), dirs, r.options(false), show))
			}
			return told(flows.Read(dirs, r.options(false), show))
		},
	}
	r.flags(cmd, 10*time.Minute)
	r.filterFlags(cmd)
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what is recorded, until Ctrl-C")
	cmd.Flags().StringVar(&by, "by", "", "class: how many flows and denied packets there were of each class, exactly; shadow: what each policy in shadow would have dropped, or allowed")
	_ = cmd.RegisterFlagCompletionFunc("by", cobra.FixedCompletions([]string{"class", "shadow"}, cobra.ShellCompDirectiveNoFileComp)) // fails for unknown flags only
	formats(cmd, &output, "text", "json")
	return cmd
}

// errMet ends a look at records.
var errMet = errors.New("the pod is met")

// meet has the filter look for its pod in what is to be read.
func (r *recordFlags) meet(dirs []string, counts bool) error {
	if r.filter.Pod == "" {
		return nil
	}
	err := flows.Read(dirs, r.options(counts), func(l flows.Line) error {
		if l.Flow != nil {
			if r.filter.Meet(l.Flow); r.filter.Exact {
				return errMet
			}
		}
		return nil
	})
	if errors.Is(err, errMet) {
		return nil
	}
	return err
}

func (r *recordFlags) sums(dirs []string) ([]*flows.Sum, error) {
	if err := r.meet(dirs, true); err != nil {
		return nil, err
	}
	var sums flows.Sums
	err := flows.Read(dirs, r.options(true), func(l flows.Line) error {
		if l.Flow != nil && r.filter.Takes(l.Flow) {
			sums.Add(l)
		}
		return nil
	})
	return sums.Sums(), err
}

// tellUncounted tells of what no count has.
func tellUncounted(w io.Writer, dirs []string, o flows.Options) error {
	var all flows.Loss
	err := flows.Read(dirs, o, func(l flows.Line) error {
		if l.Loss != nil {
			all.Add(*l.Loss)
		}
		return nil
	})
	if text := all.Uncounted(); text != "" {
		fmt.Fprintln(w, "not in these counts:", text)
	}
	return err
}

func printSums(w io.Writer, output string, sums []*flows.Sum) error {
	if output == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(slices.Concat([]*flows.Sum{}, sums))
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "FLOWS\tDENIED\tVERDICT\tFROM\tTO\tPORT\tNODE\tWHY")
	for _, s := range sums {
		port := s.Protocol
		if s.Port != 0 {
			port = fmt.Sprintf("%d/%s", s.Port, s.Protocol)
		}
		fmt.Fprintf(t, "%d\t%d\t%s\t%s\t%s\t%s\t%s\t%s\n", s.Flows, s.Packets, s.Verdict, s.From.Name(), s.To.Name(), port, s.Node, s.Why())
	}
	return t.Flush()
}

func printShadows(w io.Writer, output string, list []flows.Shadow) error {
	if output == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(list)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "POLICY\tDIRECTION\tRULE\tWOULD\tCOUNT\tFROM\tTO\tPORT")
	for _, s := range list {
		rule, port := "isolation", s.Protocol
		if s.Rule != netpol.NoRule {
			rule = fmt.Sprint(s.Rule)
		}
		if s.Port != 0 {
			port = fmt.Sprintf("%d/%s", s.Port, s.Protocol)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\n", s.Policy, s.Direction, rule, s.Would, s.Count, s.From, s.To, port)
	}
	return t.Flush()
}
