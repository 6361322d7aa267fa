package flows

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/strake-io/strake/netpol"
)

// Kinds of lines.
const (
	KindFlow  = "flow"  // a new flow, or a packet that was denied
	KindCount = "count" // of a class of flows
	KindLoss  = "loss"  // something is not in the record
	KindStart = "start" // the agent started: what it had not written of the second before is not there
)

// Verdicts.
const (
	Allowed = "allowed"
	Dropped = "dropped"
)

// Line is a line of the record. Of its parts there are those of its Kind.
type Line struct {
	Seq  uint64    `json:"seq"` // grows by one with each line of a sort of files
	Time time.Time `json:"time"`
	Node string    `json:"node"`
	Kind string    `json:"kind"`
	*Flow
	*Sample
	*Count
	*Loss
}

// Flow is what a flow and a class of flows have.
type Flow struct {
	Verdict  string `json:"verdict"` // Allowed or Dropped
	From     End    `json:"from"`
	To       End    `json:"to"` // behind the translation of Services
	Protocol string `json:"protocol"`
	Port     uint16 `json:"port,omitempty"` // of To; none: the protocol has none, or the packet was amid a connection of which nobody knows who began it
	// Sides are the ends that the node judged: "source" and "destination" are pods of it; "node": its own stack began the flow, and ingress is not
	// judged.
	Sides []string `json:"sides"`
	// Egress and Ingress are what was decided for who began the flow and who is asked; none: no policy selects the pod there.
	Egress  *Decision `json:"egress,omitempty"`
	Ingress *Decision `json:"ingress,omitempty"`
	// ShadowEgress and ShadowIngress are what would have been decided if policies in shadow were enforced.
	ShadowEgress  *Decision `json:"shadowEgress,omitempty"`
	ShadowIngress *Decision `json:"shadowIngress,omitempty"`
}

// End is an end of a flow.
type End struct {
	Addr      string            `json:"addr"` // of classes, where it is outside of the cluster and asks: its network
	Namespace string            `json:"namespace,omitempty"`
	Pod       string            `json:"pod,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
	Node      string            `json:"node,omitempty"` // the address is a node's
}

// Decision is the verdict of a direction.
type Decision struct {
	Allowed bool              `json:"allowed"`
	Tier    netpol.Tier       `json:"tier,omitempty"`
	Policy  *netpol.PolicyRef `json:"policy,omitempty"` // none: no policy had a say, or its name is not known any more
	Rule    int               `json:"rule"`             // its index in the policy's list of the direction; netpol.NoRule: isolation
}

// Sample is what a single flow has besides.
type Sample struct {
	Event   string   `json:"event"` // new, again (judged anew behind a change of policies, and still allowed), drop
	Sport   uint16   `json:"sourcePort,omitempty"`
	Dport   uint16   `json:"packetPort,omitempty"` // the destination's port of a packet amid an unknown connection
	Service *Service `json:"service,omitempty"`
	Bytes   int      `json:"bytes"` // of the packet with its Ethernet header
}

// Service is what was asked for, and became the flow's To.
type Service struct {
	Name string `json:"name,omitempty"` // NAMESPACE/NAME:PORT
	Addr string `json:"addr"`
	Port uint16 `json:"port"`
}

// Count is how often a class of flows was seen since the line before of the same class. Lines that follow each other tell everything once.
type Count struct {
	Class   string `json:"class"` // its name on this node
	Flows   uint64 `json:"flows,omitempty"`
	Again   uint64 `json:"again,omitempty"`
	Packets uint64 `json:"packets,omitempty"` // denied
	Bytes   uint64 `json:"countBytes,omitempty"`
	// Since is when the agent looked before, at the latest: all of it was between Since and Time.
	Since time.Time `json:"since"`
	// Began and Total let the next agent go on: when the kernel saw the class first (its clock, ns), and what it has counted since.
	Began int64     `json:"began"`
	Total [4]uint64 `json:"total"`
}

// Loss is what is not in the record since the line before that told of losses.
type Loss struct {
	Lost    uint64 `json:"lost,omitempty"`    // samples that were not read fast enough
	Skipped uint64 `json:"skipped,omitempty"` // samples beyond the rate; counts have them
	Full    uint64 `json:"full,omitempty"`    // flows and packets that no count has: there were too many classes
	// Pruned are counts for which the files had no room among others of the same ten seconds. Restarted are classes of flows of which it is not known what
	// was between two agents: their counts were too old to be there.
	Pruned    uint64 `json:"pruned,omitempty"`
	Restarted uint64 `json:"restarted,omitempty"`
}

// Add takes another one up.
func (l *Loss) Add(o Loss) {
	l.Lost += o.Lost
	l.Skipped += o.Skipped
	l.Full += o.Full
	l.Pruned += o.Pruned
	l.Restarted += o.Restarted
}

// Uncounted tells what is in no count; empty: all is.
func (l Loss) Uncounted() string {
	var parts []string
	if l.Full > 0 {
		parts = append(parts, fmt.Sprintf("%d flows and packets for which the kernel's table had no room", l.Full))
	}
	if l.Pruned > 0 {
		parts = append(parts, fmt.Sprintf("%d counts for which the files had no room", l.Pruned))
	}
	if l.Restarted > 0 {
		parts = append(parts, fmt.Sprintf("what %d classes had between two agents", l.Restarted))
	}
	return strings.Join(parts, ", ")
}

// WouldDrop tells whether policies in shadow would drop what was allowed, WouldAllow the reverse.
func (f *Flow) WouldDrop() bool {
	return f.Verdict == Allowed && (f.ShadowEgress != nil && !f.ShadowEgress.Allowed || f.ShadowIngress != nil && !f.ShadowIngress.Allowed)
}

// WouldAllow is asked of the direction that dropped.
func (f *Flow) WouldAllow() bool {
	if f.Verdict != Dropped {
		return false
	}
	ok := func(is, shadow *Decision) bool {
		return is == nil || is.Allowed || shadow != nil && shadow.Allowed
	}
	return (f.ShadowEgress != nil || f.ShadowIngress != nil) && ok(f.Egress, f.ShadowEgress) && ok(f.Ingress, f.ShadowIngress)
}

// Judged tells which directions the node judged.
func (f *Flow) Judged() (egress, ingress bool) {
	node := false
	for _, s := range f.Sides {
		switch s {
		case sideSource:
			egress = true
		case sideDest:
			ingress = true
		case sideNode:
			node = true
		}
	}
	return egress, ingress && !node
}

const (
	sideSource = "source"
	sideDest   = "destination"
	sideNode   = "node"
)

// Name is how an end is called: its pod, its node or its address.
func (e End) Name() string {
	switch {
	case e.Pod != "":
		return e.Namespace + "/" + e.Pod
	case e.Node != "":
		return "node " + e.Node
	}
	return e.Addr
}

// Address is that of an end, or the first of its network.
func (e End) Address() (netip.Addr, error) {
	if p, err := netip.ParsePrefix(e.Addr); err == nil {
		return p.Addr(), nil
	}
	a, err := netip.ParseAddr(e.Addr)
	if err != nil {
		return a, fmt.Errorf("record of flows: %q is no address", e.Addr)
	}
	return a, nil
}
