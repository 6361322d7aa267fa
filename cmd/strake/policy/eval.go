package policy

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/strake-io/strake/netpol"
)

// Exit codes of eval: unlike the rest of the group, a denial is an answer as good as any, unless --exit-code asks for more.
const (
	evalFailed = 1
	evalDenied = 2
)

// evaluation is how eval is asked.
type evaluation struct {
	from, to, port string
	batch          string
	engine         string
	output         string
	exitCode       bool
}

func evalCommand(s *source) *cobra.Command {
	e := &evaluation{}
	cmd := &cobra.Command{
		Use:   "eval --from NAMESPACE/POD|IP --to NAMESPACE/POD|IP --port N/PROTOCOL",
		Short: "Tell whether a flow is allowed, and why",
		Long: `Tells whether policies allow a flow, and why: the policy and the rule that decide on each side, or who isolates the pod and which rule
comes nearest to admitting the flow. The flow is meant as pods see it: behind a Service, at the backend's address and port.

The ends are pods, workloads (any pod of them), or addresses; an address that is a pod's is that pod. The port is a number or the name of a
port of the pod that is asked. Protocols are TCP (the default), UDP, SCTP, ICMP, ICMPv6 or a number.

--batch answers a JSON array of queries, {"from":"ns/pod","to":"ns/pod","port":80,"protocol":"TCP"}, by a JSON array in the same order, which
repeats each query beside its verdict. A query that can't be answered has "error", and "allowed" false. Of the policies that isolate a
pod, it names the first 20.

Policies in shadow do not count. Where they would make a difference, that is told besides ("shadow").

Exit code: 0 if all was answered, 1 if not; with --exit-code 2 if the flow is denied.`,
		Example: `  strake policy eval -f manifests/ --from default/web --to default/db --port 5432/TCP
  strake policy eval --from 198.51.100.7 --to shop/frontend --port http
  strake policy eval -f manifests/ --from default/web --to default/db --port 53/UDP -o json | jq -r .egress.why
  echo '[{"from":"default/web","to":"default/db","port":5432}]' | strake policy eval -f manifests/ --batch -
  strake policy eval --from default/web --to kube-system/dns --port ICMP --exit-code && echo pings`,
		RunE: func(cmd *cobra.Command, args []string) error {
			err := e.run(cmd, s, args)
			if exit := (Exit{}); err == nil || errors.As(err, &exit) && exit.Code == evalDenied && exit.Err == nil {
				return err
			}
			return Exit{evalFailed, err}
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return err })
	f := cmd.Flags()
	f.StringVar(&e.from, "from", "", "who begins the flow: NAMESPACE/POD or an address")
	f.StringVar(&e.to, "to", "", "who is asked: NAMESPACE/POD or an address")
	f.StringVar(&e.port, "port", "", "of who is asked: 80, 53/UDP, http, ICMP")
	f.StringVar(&e.batch, "batch", "", "file of a JSON array of queries, - for the standard input")
	f.StringVar(&e.engine, "engine", engineNames[0], "who judges: "+list(engineNames))
	f.StringVarP(&e.output, "output", "o", "text", "format: text or json")
	f.BoolVar(&e.exitCode, "exit-code", false, "exit with 2 if the flow is denied")
	for flag, words := range map[string][]string{"engine": engineNames, "output": {"text", "json"}} {
		_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)) // fails for unknown flags only
	}
	s.flags(cmd)
	return cmd
}

func (e *evaluation) run(cmd *cobra.Command, s *source, args []string) error {
	if err := e.check(args); err != nil {
		return err
	}
	if err := once(append(slices.Clone(s.files), e.batch)...); err != nil {
		return err
	}
	state, err := s.load(cmd)
	if err != nil {
		return err
	}
	judge, err := newEngine(e.engine, state, func(problem string) {
		if len(s.files) == 0 { // those of manifests are told already
			fmt.Fprintln(cmd.ErrOrStderr(), "warning:", problem)
		}
	})
	if err != nil {
		return err
	}
	defer judge.close()
	asked := newResolver(state)
	if e.batch != "" {
		return e.answerBatch(cmd, asked, judge)
	}
	q, err := singleQuery(e.from, e.to, e.port)
	if err != nil {
		return err
	}
	a := answerAll(asked, judge, []query{q})[0]
	if a.Error != "" {
		return errors.New(a.Error)
	}
	if name, is := asked.services[a.To]; is && name != a.To { // a workload of that name is no address
		fmt.Fprintf(cmd.ErrOrStderr(), "note: %s is the address of the Service %s; policies judge packets with the address and port of the pod behind it: ask about that\n", a.To, name)
	}
	if e.output == "json" {
		w := json.NewEncoder(cmd.OutOrStdout())
		w.SetEscapeHTML(false)
		w.SetIndent("", "  ")
		err = w.Encode(a)
	} else {
		err = a.print(cmd.OutOrStdout())
	}
	if err == nil && e.exitCode && !a.Allowed {
		return Exit{Code: evalDenied}
	}
	return err
}

func (e *evaluation) check(args []string) error {
	switch {
	case len(args) > 0:
		return fmt.Errorf("%q is no flag: eval wants --from, --to and --port", args[0])
	case !slices.Contains([]string{"text", "json"}, e.output):
		return fmt.Errorf("-o %s: this command knows text and json", e.output)
	case !slices.Contains(engineNames, e.engine):
		return fmt.Errorf("--engine %s: this command knows %s", e.engine, list(engineNames))
	case e.batch != "" && (e.from != "" || e.to != "" || e.port != ""):
		return errors.New("--batch has its own from, to and port")
	case e.batch != "" && e.exitCode:
		return errors.New("--exit-code is for one question, not for --batch")
	case e.batch == "" && (e.from == "" || e.to == "" || e.port == ""):
		return errors.New("eval wants --from, --to and --port, or --batch")
	}
	return nil
}

// mostIsolating is how many policies that isolate a pod an answer of a batch names: of a pod with hundreds, hundreds of thousands of answers would be gigabytes.
const mostIsolating = 20

// atOnce is how many queries of a batch are answered before their answers are written.
const atOnce = 1 << 12

// answerBatch writes an answer a line.
func (e *evaluation) answerBatch(cmd *cobra.Command, asked *resolver, judge engine) error {
	queries, err := readBatch(cmd.InOrStdin(), e.batch)
	if err != nil {
		return err
	}
	out := bufio.NewWriterSize(cmd.OutOrStdout(), 1<<20)
	lead := "[\n"
	failed, why := 0, ""
	for begin := 0; begin < len(queries); begin += atOnce {
		for i, a := range answerAll(asked, judge, queries[begin:min(begin+atOnce, len(queries))]) {
			if a.Error != "" {
				if failed == 0 {
					why = fmt.Sprintf("the first is number %d: %s", begin+i, a.Error)
				}
				failed++
			}
			for _, side := range []*netpol.Side{a.Egress, a.Ingress} {
				if side != nil && len(side.Isolating) > mostIsolating {
					side.Isolating = side.Isolating[:mostIsolating]
				}
			}
			line, err := marshal(a)
			if err != nil {
				return err
			}
			out.WriteString(lead) // its error is Flush's too
			out.Write(line)
			lead = ",\n"
		}
	}
	end := "\n]\n"
	if len(queries) == 0 {
		end = "[]\n"
	}
	out.WriteString(end)
	if err := out.Flush(); err != nil {
		return fmt.Errorf("write answers: %w", err)
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d queries have no answer; %s", failed, len(queries), why)
	}
	return nil
}

// marshal leaves <, > and & as they are: policies' reasons are for people.
func marshal(a answer) ([]byte, error) {
	var out bytes.Buffer
	w := json.NewEncoder(&out)
	w.SetEscapeHTML(false)
	err := w.Encode(a)
	return bytes.TrimSuffix(out.Bytes(), []byte("\n")), err
}

// readBatch reads an array of queries. What is no query at all is one with an error; only what is no array of JSON fails.
func readBatch(stdin io.Reader, name string) ([]query, error) {
	var text []byte
	var err error
	if name == "-" {
		name = "standard input"
		text, err = io.ReadAll(stdin)
	} else {
		text, err = os.ReadFile(name)
	}
	if err != nil {
		return nil, fmt.Errorf("read queries: %w", err)
	}
	var raw []json.RawMessage
	if err := json.Unmarshal(text, &raw); err != nil {
		return nil, fmt.Errorf("%s: not a JSON array of queries: %w", name, err)
	}
	out := make([]query, len(raw))
	for i := range raw {
		out[i] = readQuery(raw[i])
	}
	return out, nil
}

// answer is a query with its verdict.
type answer struct {
	query
	// The pods that stand for workloads.
	FromPod string       `json:"fromPod,omitempty"`
	ToPod   string       `json:"toPod,omitempty"`
	Allowed bool         `json:"allowed"`
	Egress  *netpol.Side `json:"egress,omitempty"`
	Ingress *netpol.Side `json:"ingress,omitempty"`
	// Shadow is the verdict with policies in shadow enforced, where that is another one.
	Shadow *netpol.Verdict `json:"shadow,omitempty"`
	Error  string          `json:"error,omitempty"`
}

// answerAll answers queries in their order.
func answerAll(asked *resolver, judge engine, queries []query) []answer {
	out := make([]answer, len(queries))
	var flows []netpol.Flow
	var of []int // flow -> query
	for i, q := range queries {
		out[i].query = q
		f, err := asked.flow(q)
		if err != nil {
			out[i].Error = err.Error()
			continue
		}
		out[i].FromPod, out[i].ToPod = standIn(q.From, f.From), standIn(q.To, f.To)
		flows, of = append(flows, f), append(of, i)
	}
	for i, v := range judge.judge(flows) {
		a := &out[of[i]]
		if v.err != nil {
			a.Error = v.err.Error()
			continue
		}
		a.Allowed, a.Egress, a.Ingress, a.Shadow = v.Allowed, &v.Egress, &v.Ingress, v.shadow
	}
	return out
}

func standIn(asked string, e netpol.End) string {
	if e.Pod.Name == "" || asked == e.Pod.String() {
		return ""
	}
	return e.Pod.String()
}

func (a answer) print(w io.Writer) error {
	name := func(asked, pod string) string {
		if pod != "" {
			return asked + " (" + pod + ")"
		}
		return asked
	}
	what := a.Port.text
	if what != "" {
		what += "/"
	}
	text := fmt.Sprintf("%s: %s -> %s %s%s\n  egress   %s\n  ingress  %s\n", word(a.Allowed), name(a.From, a.FromPod), name(a.To, a.ToPod), what, strings.ToUpper(a.Protocol), sideText(a.Egress), sideText(a.Ingress))
	if s := a.Shadow; s != nil {
		text += fmt.Sprintf("with the policies in shadow: %s\n  egress   %s\n  ingress  %s\n", word(s.Allowed), sideText(&s.Egress), sideText(&s.Ingress))
	}
	_, err := io.WriteString(w, text)
	return err
}

func word(allowed bool) string {
	if allowed {
		return "allowed"
	}
	return "denied"
}

func sideText(s *netpol.Side) string { return word(s.Allowed) + ": " + s.Why }
