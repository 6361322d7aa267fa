package doctor

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cmd/strake/proof"
	"github.com/strake-io/strake/cmd/strake/supervisor"
)

// almostFull is the part of a table that is told, in percent.
const almostFull = 90

// dropByPolicy begins the reasons of what network policies forbid.
const dropByPolicy = "drop_policy_"

// policyQuestions bounds what is asked about network policies; `strake policy verify` asks more.
const policyQuestions = 20000

// settle is how long a difference may last: the cluster changes while it is looked at.
const settle = 4 * time.Second

func (e *examination) network(ctx context.Context, g group, o *objects) {
	if p, ok := supervisor.Find(e.Layout.Pid("agent")); ok {
		g.ok("agent", "runs, process %d", p.PID)
	} else {
		start := "`strake up`"
		if e.ProxyOnly {
			start = "`strake agent --only proxy`, or its DaemonSet"
		}
		g.fail("agent", "start it ("+start+"); what is loaded goes on meanwhile, but nothing is brought up to date", "it does not run")
	}
	s, err := bpf.ReadStatus(e.Layout.BPF())
	if err != nil {
		g.unknown("tables", err, "")
		return
	}
	g.judgeFill(s.Maps)
	e.held(g)
	e.drift(ctx, g, o)
	if !e.ProxyOnly && o != nil {
		e.policies(ctx, g)
	}
	if wait := time.Until(e.began.Add(time.Second)); wait > 0 { // a second at least to see counters grow
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	if s, err = bpf.ReadStatus(e.Layout.BPF()); err != nil {
		g.unknown("drops", err, "")
		return
	}
	g.judgeDrops(e.before, s.Counters, time.Since(e.began))
}

// policies holds the tables of network policies against the policies of the API.
func (e *examination) policies(ctx context.Context, g group) {
	const what = "network policies"
	rc, err := e.REST()
	if err != nil {
		g.unknown(what, err, "")
		return
	}
	r, err := proof.Verify(ctx, proof.Node{Layout: e.Layout, Name: e.Name, DNSAddrs: e.DNSAddrs, REST: rc, Questions: policyQuestions})
	switch {
	case err != nil:
		g.unknown(what, err, "")
	case r.Drifts > 0:
		lines := []string{fmt.Sprintf("%d differences between what the kernel judges and what the policies say", r.Drifts)}
		for _, d := range r.Examples {
			lines = append(lines, d.String())
		}
		g.fail(what, "restart the agent, which writes what is missing; `strake policy verify` tells more", "%s", strings.Join(firstOf(lines, 10), "\n"))
	case len(r.Closed) > 0:
		g.warn(what, "start the nodes with larger tables", "%s", r.Crowded())
	default:
		g.ok(what, "the kernel judges as they say: %d questions about %d addresses of pods", r.Asked, r.Pods)
	}
}

// held looks for processes on ports of the node that lead to Services and pods.
func (e *examination) held(g group) {
	services, err := bpf.ReadServices(e.Layout.BPF())
	var rows []bpf.LoadBalancer
	for _, s := range services {
		rows = append(rows, s.LoadBalancer)
	}
	var list []bpf.HeldPort
	if err == nil {
		list, err = bpf.HeldPorts(rows)
	}
	if err != nil {
		g.unknown("node ports", err, "")
		return
	}
	if len(list) == 0 {
		g.ok("node ports", "no process has one that leads to a Service or pod")
	}
	for _, h := range list {
		g.warn("node ports", "have the process listen on another port, or the Service use another one", "%s", h)
	}
}

func (g group) judgeFill(tables []bpf.MapStatus) {
	var full []string
	for _, m := range tables {
		limit := uint64(almostFull)
		if m.Grows { // it will, unless it could not
			limit = 100
		}
		if m.Max > 0 && uint64(m.Rows)*100 >= uint64(m.Max)*limit {
			full = append(full, fmt.Sprintf("%s has %d of %d rows", m.Name, m.Rows, m.Max))
		}
	}
	switch {
	case len(tables) == 0:
		g.fail("tables", "the agent makes them when it starts", "none are loaded")
	case len(full) > 0:
		g.fail("tables", "what does not fit is not served: have fewer Services, endpoints or pods", "almost full: %s", strings.Join(full, "; "))
	default:
		g.ok("tables", "%d, none over %d %% full", len(tables), almostFull)
	}
}

func (g group) judgeDrops(before, after map[string]uint64, during time.Duration) {
	var grown, ever []string
	for _, name := range slices.Sorted(maps.Keys(after)) {
		if !strings.HasPrefix(name, "drop_") || after[name] == 0 {
			continue
		}
		ever = append(ever, fmt.Sprintf("%s %d", name, after[name]))
		if after[name] > before[name] && !strings.HasPrefix(name, dropByPolicy) { // those are meant
			grown = append(grown, fmt.Sprintf("%s by %d", name, after[name]-before[name]))
		}
	}
	switch {
	case len(grown) > 0:
		g.warn("drops", "`strake monitor` shows the packets", "in %s: %s", during.Round(100*time.Millisecond), strings.Join(grown, ", "))
	case len(ever) > 0:
		g.ok("drops", "none now; since the start: %s", strings.Join(ever, ", "))
	default:
		g.ok("drops", "none")
	}
}

// drift compares the tables with what the API says, until they agree or have differed for long enough.
func (e *examination) drift(ctx context.Context, g group, o *objects) {
	if o == nil {
		g.unknown("tables against the API", fmt.Errorf("the API server does not answer"), "")
		return
	}
	var last []comparison
	for deadline := time.Now().Add(settle); ; {
		rows, err := bpf.ReadRows(e.Layout.BPF())
		if err != nil {
			g.unknown("tables against the API", err, "")
			return
		}
		last = e.compare(o, rows)
		if !slices.ContainsFunc(last, func(c comparison) bool { return len(c.drift) > 0 || c.err != nil }) || time.Now().After(deadline) {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(settle / 8):
		}
		if fresh, err := e.list(ctx, nil); err == nil {
			o = fresh
		}
	}
	for _, c := range last {
		switch {
		case c.err != nil:
			g.unknown(c.table, c.err, "")
		case len(c.drift) > 0:
			g.fail(c.table, "restart the agent, which writes what is missing; if it comes back, agent.log tells why", "%s", strings.Join(firstOf(c.drift, 10), "\n"))
		default:
			g.ok(c.table, "%d, as they should be", c.rows)
		}
	}
}

func firstOf(l []string, n int) []string {
	if len(l) > n {
		return append(slices.Clone(l[:n]), fmt.Sprintf("and %d more", len(l)-n))
	}
	return l
}
