package proof

import (
	"context"
	"fmt"
	"time"

	"github.com/strake-io/strake/netpol/analysis"
	"github.com/strake-io/strake/netpol/history"
)

// reportQuestions bounds the proof of a report: what a large node has of questions takes minutes.
const reportQuestions = 200000

// Look is what a report says of a node: the proof of its kernel, probes if some are wanted, and its history.
func Look(ctx context.Context, n Node, probes int) (analysis.Evidence, error) {
	n.Questions = reportQuestions
	r, err := Verify(ctx, n)
	if err != nil {
		return analysis.Evidence{}, err
	}
	e := analysis.Evidence{Proof: &analysis.Proof{Node: r.Node, Time: time.Now().UTC(), Questions: r.Asked, Of: r.Of, Differences: r.Drifts}}
	if crowded := r.Crowded(); crowded != "" {
		e.Limits = append(e.Limits, fmt.Sprintf("On node %s %s", n.Name, crowded))
	}
	for _, d := range r.Examples {
		e.Proof.Examples = append(e.Proof.Examples, d.String())
	}
	e.Limits = append(e.Limits, fmt.Sprintf("Proof and history are of node %s: those of other nodes are theirs", n.Name))
	if probes > 0 {
		sent, err := Send(ctx, n, probes)
		if err != nil {
			return e, err
		}
		for _, p := range sent {
			e.Probes = append(e.Probes, analysis.ProbeSent{From: p.From, To: p.To, Port: fmt.Sprintf("%d/TCP", p.Port), Expected: p.Expected, Got: p.Got, Why: p.Why, OK: p.OK})
		}
	} else {
		e.Limits = append(e.Limits, "No packets were sent: --probes sends some")
	}
	e.History, e.Broken, err = history.Read(n.Layout.PolicyHistory())
	return e, err
}
