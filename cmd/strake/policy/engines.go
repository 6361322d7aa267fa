package policy

import (
	"fmt"

	"github.com/strake-io/strake/netpol"
	"github.com/strake-io/strake/netpol/reference"
)

// engineNames are the witnesses that can be asked, the first is the default.
var engineNames = []string{"reference"}

// engine is a witness.
type engine interface {
	// judge answers each flow, in order.
	judge(flows []netpol.Flow) []verdict
	close()
}

type verdict struct {
	netpol.Verdict
	err error
}

// newEngine makes a witness of a State. Problems of policies are told to warn.
func newEngine(name string, s netpol.State, warn func(problem string)) (engine, error) {
	e, err := reference.New(s)
	if err != nil {
		return nil, fmt.Errorf("read the cluster's state: %w", err)
	}
	for _, p := range e.Problems() {
		warn(p.String())
	}
	return evaluator{e}, nil
}

// evaluator is the reference.
type evaluator struct{ *reference.Evaluator }

func (e evaluator) judge(flows []netpol.Flow) []verdict {
	out := make([]verdict, len(flows))
	for i, f := range flows {
		out[i].Verdict, out[i].err = e.Judge(f)
	}
	return out
}

func (evaluator) close() {}
