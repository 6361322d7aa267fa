package policy

import (
	"cmp"
	"fmt"
	"sync"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/netpol"
	"github.com/strake-io/strake/netpol/compiler"
	"github.com/strake-io/strake/netpol/reference"
)

// engineNames are the witnesses that can be asked, the first is the default: the evaluator; the rows that nodes get, read in Go; and those rows in this machine's kernel, read
// by the programs that judge packets.
var engineNames = []string{"reference", "rows", "kernel"}

// engine is a witness.
type engine interface {
	// judge answers each flow, in order.
	judge(flows []netpol.Flow) []verdict
	close()
}

type verdict struct {
	netpol.Verdict
	shadow *netpol.Verdict // with policies in shadow enforced, where that is another one
	err    error
}

// newEngine makes a witness of a State. Problems of policies are told to warn.
func newEngine(name string, s netpol.State, warn func(problem string)) (engine, error) {
	if name == "reference" {
		e, err := reference.New(s)
		if err != nil {
			return nil, fmt.Errorf("read the cluster's state: %w", err)
		}
		for _, p := range e.Problems() {
			warn(p.String())
		}
		return evaluator{e, s.InShadow()}, nil
	}
	c := compiler.New(compiler.Options{})
	c.SetState(s)
	changes := c.Flush()
	for _, p := range c.Problems() {
		warn(fmt.Sprintf("%s %s: %s: %s", p.Policy.Kind, p.Policy, p.Field, p.Reason))
	}
	tables := compiler.Interpret(c.Rows())
	out := &rowsEngine{places: newPlaces(s, c.PodAddrs()), tables: tables}
	if name == "rows" {
		out.ask = func(queries []bpf.PolicyQuery) ([]bpf.PolicyDecision, error) {
			decisions := make([]bpf.PolicyDecision, len(queries))
			for i, q := range queries {
				decisions[i] = tables.Judge(q)
			}
			return decisions, nil
		}
		return out, nil
	}
	machine, err := bpf.OpenPolicyMachine()
	if err != nil {
		return nil, fmt.Errorf("--engine kernel: %w", err)
	}
	out.machine, out.ask = machine, machine.Judge
	for _, change := range changes {
		if err := machine.Apply(change); err != nil {
			out.close()
			return nil, fmt.Errorf("--engine kernel: write the tables: %w", err)
		}
	}
	return out, nil
}

// evaluator is the reference.
type evaluator struct {
	*reference.Evaluator
	shadow bool // there are policies in shadow
}

func (e evaluator) judge(flows []netpol.Flow) []verdict {
	out := make([]verdict, len(flows))
	var work sync.WaitGroup
	const share = 64
	for begin := 0; begin < len(flows); begin += share {
		work.Go(func() {
			for i := begin; i < min(begin+share, len(flows)); i++ {
				out[i] = e.one(flows[i])
			}
		})
	}
	work.Wait()
	return out
}

func (e evaluator) one(f netpol.Flow) verdict {
	v, err := e.Judge(f)
	out := verdict{Verdict: v, err: err}
	if !e.shadow || err != nil {
		return out
	}
	if with, err := e.JudgeShadow(f); err == nil && with.Allowed != v.Allowed {
		out.shadow = &with
	}
	return out
}

func (evaluator) close() {}

// rowsEngine asks rows: of addresses, as packets have them.
type rowsEngine struct {
	*places
	tables  *compiler.Tables
	machine *bpf.PolicyMachine // nil: the rows are read in Go
	ask     func([]bpf.PolicyQuery) ([]bpf.PolicyDecision, error)
}

func (e *rowsEngine) close() {
	if e.machine != nil {
		_ = e.machine.Close() // it only gives memory back
	}
}

func (e *rowsEngine) judge(flows []netpol.Flow) []verdict {
	out := make([]verdict, len(flows))
	var queries []bpf.PolicyQuery
	var of []int // query -> flow
	for i, f := range flows {
		q, err := e.query(f)
		switch {
		case err != nil:
			out[i].err = err
		case e.unasked(f, q):
			out[i].Verdict = netpol.Verdict{Allowed: true, Egress: unasked, Ingress: unasked}
		default:
			queries, of = append(queries, q), append(of, i)
		}
	}
	decisions, err := e.ask(queries)
	for i, to := range of {
		if err != nil {
			out[to].err = err
			continue
		}
		out[to] = e.verdict(queries[i], decisions[i])
	}
	return out
}

var unasked = netpol.Side{Allowed: true, Rule: netpol.NoRule, Why: "no packet that programs judge"}

// unasked tells of flows that the programs never see as such, or pass before they ask rows.
func (e *rowsEngine) unasked(f netpol.Flow, q bpf.PolicyQuery) bool {
	own := e.pods[q.From]
	return netpol.PassesAlways(f.Protocol, f.ICMPType, own != nil) || own != nil && (own == e.pods[q.To] && !f.ViaService || q.To.IsLoopback())
}

func (e *rowsEngine) verdict(q bpf.PolicyQuery, d bpf.PolicyDecision) verdict {
	if d.NoVerdict {
		return verdict{err: fmt.Errorf("rows are missing for %s -> %s: the packet would be dropped", q.From, q.To)}
	}
	enforced, err := e.sides(d.Egress, d.Ingress, q.From == q.To)
	if err != nil {
		return verdict{err: err}
	}
	out := verdict{Verdict: enforced}
	out.Allowed = d.Allowed
	if d.ShadowEgress == nil && d.ShadowIngress == nil {
		return out
	}
	with, err := e.sides(cmp.Or(d.ShadowEgress, d.Egress), cmp.Or(d.ShadowIngress, d.Ingress), q.From == q.To)
	if err != nil {
		return verdict{err: err}
	}
	if with.Allowed != out.Allowed {
		out.shadow = &with
	}
	return out
}

func (e *rowsEngine) sides(egress, ingress *bpf.PolicyVerdict, itself bool) (netpol.Verdict, error) {
	var out netpol.Verdict
	var err error
	if out.Egress, err = e.side(egress, itself); err != nil {
		return out, err
	}
	out.Ingress, err = e.side(ingress, itself)
	out.Allowed = out.Egress.Allowed && out.Ingress.Allowed
	return out, err
}

var tiers = map[bpf.PolicyTier]netpol.Tier{bpf.PolicyTierAdmin: netpol.TierAdmin, bpf.PolicyTierNetworkPolicy: netpol.TierNetworkPolicy, bpf.PolicyTierBaseline: netpol.TierBaseline}

// side says in words what a row says. itself: a pod gets itself by a Service, which NetworkPolicies allow.
func (e *rowsEngine) side(v *bpf.PolicyVerdict, itself bool) (netpol.Side, error) {
	if v == nil || v.Policy == 0 && v.Allow {
		return netpol.Side{Allowed: true, Rule: netpol.NoRule, Why: "no policy decides"}, nil
	}
	ref, there := e.tables.Policy(v.Policy)
	if !there {
		return netpol.Side{}, fmt.Errorf("a row names policy %d, which has no name", v.Policy)
	}
	out := netpol.Side{Allowed: v.Allow, Tier: tiers[v.Tier], Policy: &ref, Rule: int(v.Rule)}
	if v.Rule < bpf.PolicyNoRoom {
		out.Why = fmt.Sprintf("rule %d of %s", v.Rule, ref)
		return out, nil
	}
	out.Rule, out.Why = netpol.NoRule, "isolated by "+ref.String()
	if v.Rule == bpf.PolicyNoRoom {
		out.Why = fmt.Sprintf("%s is closed for want of room: %s", ref, compiler.MakesRoom)
	}
	if itself && v.Tier == bpf.PolicyTierNetworkPolicy {
		out.Allowed = true
		out.Why = "itself by way of a Service: NetworkPolicies always allow that"
	}
	return out, nil
}
