package analysis

import (
	"fmt"
	"strings"
	"time"

	"github.com/strake-io/strake/netpol/history"
)

// Evidence is what was seen of enforcement when a report was made, and before.
type Evidence struct {
	// Proof is that of a node's kernel; nil: none was looked at.
	Proof *Proof `json:"proof,omitempty"`
	// Probes are packets that were sent.
	Probes []ProbeSent `json:"probes,omitempty"`
	// Drifts are Events of all nodes, as long as the API keeps them: their agents' own proofs found differences.
	Drifts []DriftEvent `json:"drifts,omitempty"`
	// History is what the agent of the node of Proof has enforced, and what its proofs found; Broken is where it was altered.
	History []history.Entry `json:"history,omitempty"`
	Broken  []string        `json:"historyBroken,omitempty"`
	// Limits tell what was not looked at, and why.
	Limits []string `json:"limits,omitempty"`
}

// Proof is of a node's kernel: whether it judges as the policies say.
type Proof struct {
	Node        string    `json:"node"`
	Time        time.Time `json:"time"`
	Questions   int       `json:"questions"`
	Of          int       `json:"of"` // questions that there are
	Differences int       `json:"differences"`
	Examples    []string  `json:"examples,omitempty"`
}

// ProbeSent is a packet, and what became of it.
type ProbeSent struct {
	From     string `json:"from"`
	To       string `json:"to"`
	Port     string `json:"port"` // 80/TCP
	Expected string `json:"expected"`
	Got      string `json:"got"`
	Why      string `json:"why"`
	OK       bool   `json:"ok"`
}

// DriftEvent is an Event about a node whose kernel did not judge as the policies said; its agent wrote the rows anew.
type DriftEvent struct {
	Node    string    `json:"node"`
	Time    time.Time `json:"time"` // of the last one
	Count   int32     `json:"count"`
	Message string    `json:"message"`
}

// claim is something that a report found to hold, or not.
type claim struct {
	part  string // check, proof, history or probe
	name  string
	holds bool
	text  string // why not, or what it rests on
}

// claims are those of the assertions and of what was seen, in the order of the report.
func (r *Report) claims() []claim {
	var out []claim
	for _, x := range r.Assertions {
		c := claim{"check", x.Text, x.Holds, x.Because}
		if !x.Holds {
			c.text = strings.Join(x.lines(), "\n")
		}
		out = append(out, c)
	}
	return append(out, r.Evidence.claims()...)
}

func (e *Evidence) claims() []claim {
	var out []claim
	if p := e.Proof; p != nil {
		c := claim{"proof", fmt.Sprintf("the kernel of node %s judges as the policies say", p.Node), p.Differences == 0, p.asked()}
		if p.Differences > 0 {
			c.text = fmt.Sprintf("%s (%s): %s", count(p.Differences, "difference"), c.text, strings.Join(p.Examples, "\n"))
		}
		out = append(out, c)
	}
	for _, d := range e.Drifts {
		out = append(out, claim{"proof", fmt.Sprintf("node %s never judged otherwise than the policies said", d.Node), false, fmt.Sprintf("%s, %s: %s", d.Time.UTC().Format(time.RFC3339), count(int(d.Count), "time"), d.Message)})
	}
	if len(e.History)+len(e.Broken) > 0 {
		out = append(out, claim{"history", "the node's history of policies was not altered", len(e.Broken) == 0, strings.Join(e.Broken, "\n")})
	}
	for _, p := range e.Probes {
		c := claim{"probe", fmt.Sprintf("%s -> %s, %s: %s", p.From, p.To, p.Port, p.Expected), p.OK, p.Why}
		if !p.OK {
			c.text = fmt.Sprintf("%s; expected: %s (%s)", p.Got, p.Expected, p.Why)
		}
		out = append(out, c)
	}
	return out
}

func (p *Proof) asked() string {
	if p.Questions < p.Of {
		return fmt.Sprintf("%d of %d questions, drawn by lot", p.Questions, p.Of)
	}
	return count(p.Questions, "question")
}

// fails tells whether something of it is not as it should be now. That a node once differed, and was mended, is told and does not fail.
func (e *Evidence) fails() bool {
	if e.Proof != nil && e.Proof.Differences > 0 || len(e.Broken) > 0 {
		return true
	}
	for _, p := range e.Probes {
		if !p.OK {
			return true
		}
	}
	return false
}

// lines are those of a table of a report.
func (e *Evidence) lines(line func(fields ...string)) {
	for _, c := range e.claims() {
		result := "holds"
		if !c.holds {
			result = "fails"
		}
		line(c.part, c.name, "", result, "", strings.ReplaceAll(c.text, "\n", "; "))
	}
	for _, h := range e.History {
		if h.Policy != nil {
			line("history", h.Policy.Kind, h.Policy.String(), h.What, h.Hash, historyWhen(h))
		} else {
			line("history", "", "", h.What, "", historyWhen(h)+": "+historyText(h))
		}
	}
	for _, l := range e.Limits {
		line("limit", "", "", "", l, "")
	}
}

func historyWhen(h history.Entry) string {
	at := h.Time.UTC().Format(time.RFC3339)
	if h.Away {
		return at + " or before: no agent was looking"
	}
	return at
}

// historyText is what an entry says that is of no policy.
func historyText(h history.Entry) string {
	switch h.What {
	case history.Proved:
		return count(h.Count, "question")
	case history.Drift:
		return count(h.Count, "difference") + ": " + h.Message
	case history.Untold:
		return count(h.Count, "change") + " could not be written"
	}
	return h.Message
}
