package policy

import (
	"bufio"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/strake-io/strake/netpol/analysis"
)

func matrixCommand(s *source) *cobra.Command {
	var output, from, to string
	var wide bool
	cmd := &cobra.Command{
		Use:   "matrix",
		Short: "Tell who can reach whom on what",
		Long: `Tells for each pair of workloads, and of workloads and the addresses outside, which protocols and ports the policies allow: exact ranges, with
the rules that decided (json, csv, html). Pods of a workload that policies treat differently have lines of their own. Outside are the nodes,
each block that a policy names ("world" is all that none names) and what is treated alike.

What a node sends to its own pods is always allowed, and so is what a pod sends to itself: neither is shown.`,
		Example: `  strake policy matrix -f manifests/
  strake policy matrix --from world --to 'cde/*'
  strake policy matrix -f manifests/ -o html > matrix.html
  strake policy matrix -o json | jq -r '.answers as $a | .pairs[] | select($a[.answer].verdict == "all") | "\(.from) \(.to)"'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			chooseFrom, err := analysis.Named(from)
			if err != nil {
				return Exit{broken, fmt.Errorf("--from %s: %w", from, err)}
			}
			chooseTo, err := analysis.Named(to)
			if err != nil {
				return Exit{broken, fmt.Errorf("--to %s: %w", to, err)}
			}
			state, err := s.load(cmd)
			if err != nil {
				return err
			}
			m := analysis.New(state, analysis.Options{}).Matrix(chooseFrom, chooseTo)
			w := bufio.NewWriterSize(cmd.OutOrStdout(), 1<<16)
			switch output {
			case "json":
				err = m.WriteJSON(w)
			case "csv":
				err = m.WriteCSV(w)
			case "html":
				err = m.WriteHTML(w, "What network policies allow")
			case "dot":
				err = m.WriteDot(w)
			default:
				err = m.WriteText(w, wide)
			}
			if err != nil {
				return err
			}
			return w.Flush()
		},
	}
	s.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&from, "from", "", "only of these: NAMESPACE/WORKLOAD, with * and ?, world, nodes or a block")
	f.StringVar(&to, "to", "", "only to these")
	f.BoolVar(&wide, "wide", false, "name all in the text, however many")
	formats(cmd, &output, "text", "json", "csv", "html", "dot")
	return cmd
}
