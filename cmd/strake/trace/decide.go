// Package trace tells what would happen to a connection, from the rows in the kernel's tables: which Service is asked, which backends can be
// chosen and by which rule, and how the packets go.
package trace

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/netpol/compiler"
)

// Client is who would connect.
type Client struct {
	Kind  string     `json:"kind"` // pod, node or outside
	Name  string     `json:"name,omitempty"`
	Addr  netip.Addr `json:"address"`
	Port  uint16     `json:"port,omitempty"` // 0: any
	Netns uint64     `json:"-"`              // cookie of a pod's network namespace; 0: not known
}

// Kinds of clients.
const (
	Pod     = "pod"
	Node    = "node"
	Outside = "outside"
)

// Question is a connection.
type Question struct {
	From     Client         `json:"from"`
	To       netip.AddrPort `json:"to"`
	Protocol uint8          `json:"protocol"`
}

// State is what the node's tables hold.
type State struct {
	Services   []bpf.ServiceRows
	Affinity   []bpf.AffinityRow
	Endpoints  []bpf.Endpoint
	Remotes    []bpf.Remote
	SocketsOff []uint64     // cookies of network namespaces whose sockets are left alone
	NodeAddrs  []netip.Addr // by which the node's packets are known
	Exempt     []netip.Prefix
	Who        func(netip.Addr) string // names an address; nil: nobody
	OtherPods  bool                    // another plugin makes the pods
	Behind     func(netip.Addr) Device // of addresses behind this node, where another plugin makes the pods
	DSR        bool                    // pods of other nodes answer clients outside by themselves
	Policies   *compiler.Tables        // of network policies; nil: nobody judges
}

// Device is where the node's routes lead for an address, and so where what it sends comes in. The zero one is nowhere.
type Device struct {
	Ifindex int
	Own     bool // a pod's own, with the programs for such a pod: others may be behind any other one, and count as outside
}

// Answer is what would happen.
type Answer struct {
	Question
	Service  string   `json:"service,omitempty"`  // namespace/name:port
	Frontend string   `json:"frontend,omitempty"` // as it is written in the kernel
	Place    string   `json:"place"`              // where it is decided: socket, packet, or nowhere
	Rule     string   `json:"rule"`               // by which a backend is chosen
	Backends []Choice `json:"backends,omitempty"` // that it can be
	Verdict  string   `json:"verdict"`            // delivered, refused or dropped
	Reason   string   `json:"reason,omitempty"`   // the counter of a drop, and why
}

// Choice is a backend, and the way to it.
type Choice struct {
	Address string  `json:"address"`
	Name    string  `json:"name,omitempty"`
	Chance  float64 `json:"chance"`
	Path    string  `json:"path"`
	Source  string  `json:"source"` // as whom the backend sees the client
	// Policy is what network policies say of the way, as far as this node judges it.
	Policy *Policy `json:"policy,omitempty"`
}

// Policy is the verdict of network policies at both ends.
type Policy struct {
	Allowed bool   `json:"allowed"`
	Egress  string `json:"egress"`
	Ingress string `json:"ingress"`
}

// Verdicts.
const (
	Delivered = "delivered"
	Refused   = "refused"
	Dropped   = "dropped"
)

// Decide is pure.
func Decide(q Question, s State) Answer {
	a := decide(q, s)
	if s.Policies == nil || a.Verdict != Delivered {
		return a
	}
	denied := 0
	for i := range a.Backends {
		c := &a.Backends[i]
		if c.Policy = s.judge(q, *c); c.Policy != nil && !c.Policy.Allowed {
			denied++
		}
	}
	if denied > 0 && denied == len(a.Backends) {
		p := a.Backends[0].Policy
		a.Verdict, a.Reason = Dropped, "drop_policy_egress: "+p.Egress
		if !strings.HasPrefix(p.Egress, forbidden) {
			a.Reason = "drop_policy_ingress: " + p.Ingress
		}
	}
	return a
}

// forbidden begins what is said of an end that forbids.
const forbidden = "forbidden"

// judge tells what policies say of the way to a backend.
func (s State) judge(q Question, c Choice) *Policy {
	to, err := netip.ParseAddrPort(c.Address)
	if err != nil {
		return nil
	}
	addr := q.From.Addr
	if q.From.Kind == Outside { // a pod is judged before it gets the node's address
		seen, _, _ := strings.Cut(c.Source, " ")
		if a, err := netip.ParseAddr(seen); err == nil {
			addr = a
		}
	}
	d := s.Policies.Judge(bpf.PolicyQuery{From: addr, To: to.Addr(), Protocol: q.Protocol, Port: to.Port(), Node: q.From.Kind == Node})
	here := func(a netip.Addr) bool {
		return slices.ContainsFunc(s.Endpoints, func(e bpf.Endpoint) bool { return e.Addr == a })
	}
	say := func(v *bpf.PolicyVerdict, judged bool, elsewhere string) string {
		switch {
		case v == nil && judged:
			return "allowed: no policy selects it"
		case v == nil:
			return elsewhere
		}
		word := forbidden
		if v.Allow {
			word = "allowed"
		}
		if v.Tier == bpf.PolicyTierNetworkPolicy && !v.Allow && addr == to.Addr() {
			return "allowed: a pod may have itself"
		}
		ref, ok := s.Policies.Policy(v.Policy)
		switch {
		case !ok:
			return word + ": no policy has a say in it"
		case v.Rule == bpf.PolicyNoRoom:
			return fmt.Sprintf("%s: %s %s is closed for want of room: %s", word, ref.Kind, ref, compiler.MakesRoom)
		case v.Rule == bpf.PolicyNoRule:
			return fmt.Sprintf("%s: isolated by %s %s, and no rule admits it", word, ref.Kind, ref)
		}
		return fmt.Sprintf("%s by rule %d of %s %s", word, v.Rule, ref.Kind, ref)
	}
	p := &Policy{Allowed: d.Allowed}
	p.Egress = say(d.Egress, here(addr), "not judged: no pod of this node sends it")
	p.Ingress = say(d.Ingress, here(to.Addr()) && q.From.Kind != Node, "not judged here")
	if q.From.Kind == Node && here(to.Addr()) {
		p.Ingress = "allowed: the pod's own node sends it"
	}
	return p
}

// asker is as whom a client asks: the kernel's programs tell these apart (bpf/lib/service.h).
type asker int

const (
	nobody  asker = iota // no Service is asked
	socket               // its own, at which a backend is chosen
	packet               // of a pod, or of the node
	outside              // a packet that counts as from outside of the cluster
)

// asker of what no frontend's own rules turn away.
func (s State) asker(q Question, f bpf.Frontend) asker {
	switch {
	case s.atSocket(q, f):
		return socket
	case q.From.Kind == Outside, q.From.Kind == Pod && s.OtherPods && !s.behind(q.From.Addr).Own:
		return outside
	}
	return packet
}

func (s State) behind(a netip.Addr) Device {
	if s.Behind == nil {
		return Device{}
	}
	return s.Behind(a)
}

func decide(q Question, s State) Answer {
	a := Answer{Question: q, Verdict: Delivered}
	row, front := s.frontend(q)
	if row == nil {
		a.Place, a.Rule = "none", "no Service has this address and port: the packet goes where it says"
		a.Backends = []Choice{s.way(q, q.To, nobody, false)}
		return a
	}
	a.Service, a.Frontend = row.Name, front.String()
	by := s.asker(q, front)
	a.Place = "packet"
	if by == socket {
		a.Place = "socket"
	}
	if by != socket && len(front.Sources) > 0 && !slices.ContainsFunc(front.Sources, func(p netip.Prefix) bool { return p.Contains(q.From.Addr) }) {
		return a.drop("drop_source_range", "loadBalancerSourceRanges don't hold %s", q.From.Addr)
	}
	set := front.Inside
	if by == outside {
		set = front.Outside
	}
	slots := row.Slots[set]
	if len(slots) == 0 {
		if set == bpf.Local && len(row.Slots[bpf.All]) > 0 {
			return a.drop("drop_no_local_backend", "the policy is Local and all %d backends are on other nodes", len(row.Slots[bpf.All]))
		}
		a.Verdict, a.Reason, a.Rule = Refused, "drop_no_backend: no endpoint is ready", "no backend"
		return a
	}
	if kept, ok := s.kept(q, row, set, by == socket); ok {
		a.Rule = fmt.Sprintf("session affinity: this client chose it %s ago and keeps it for %s", kept.Ago.Round(time.Second), row.Affinity)
		a.Backends = []Choice{s.way(q, kept.Backend, by, s.here(row, kept.Backend))}
		a.Backends[0].Chance = 1
		return a
	}
	chance := map[netip.AddrPort]float64{}
	if table := row.Maglev[set]; by == outside && len(table) > 0 {
		for _, slot := range table {
			if int(slot) < len(slots) {
				chance[slots[slot]] += 1 / float64(len(table))
			}
		}
		a.Rule = fmt.Sprintf("consistent hashing of the client's address and port: a table of %d entries, the same on every node", len(table))
		if row.Affinity > 0 {
			a.Rule = fmt.Sprintf("consistent hashing of the client's address: a table of %d entries, the same on every node", len(table))
		}
		if q.From.Port != 0 || row.Affinity > 0 { // what is hashed is known
			at := bpf.MaglevEntry(netip.AddrPortFrom(q.From.Addr, q.From.Port), q.To.Port(), q.Protocol, row.Affinity > 0, len(table))
			if slot := int(table[at]); slot < len(slots) {
				a.Rule += fmt.Sprintf(", of which this client's is number %d", at)
				chance = map[netip.AddrPort]float64{slots[slot]: 1}
				slots = slots[slot : slot+1]
			}
		}
	} else {
		for _, b := range slots {
			chance[b] += 1 / float64(len(slots))
		}
		a.Rule = fmt.Sprintf("one of %d by chance", len(slots))
		if len(slots) == 1 {
			a.Rule = "the only one"
		}
	}
	if row.Affinity > 0 {
		a.Rule += fmt.Sprintf(", then kept for %s after its last use (session affinity)", row.Affinity)
		if by == socket && q.From.Kind == Pod && q.From.Netns == 0 {
			a.Rule += "; whether this pod keeps one already is not known here"
		}
	}
	for _, b := range slices.SortedFunc(slices.Values(slots), netip.AddrPort.Compare) {
		c := s.way(q, b, by, s.here(row, b))
		c.Chance = chance[b]
		a.Backends = append(a.Backends, c)
	}
	return a
}

func (a Answer) drop(reason, why string, args ...any) Answer {
	a.Verdict, a.Reason, a.Rule = Dropped, reason+": "+fmt.Sprintf(why, args...), "none is chosen"
	return a
}

func (s State) frontend(q Question) (*bpf.ServiceRows, bpf.Frontend) {
	for i := range s.Services {
		if r := &s.Services[i]; r.Protocol == q.Protocol {
			for _, f := range r.Frontends {
				if f.Addr == q.To {
					return r, f
				}
			}
		}
	}
	return nil, bpf.Frontend{}
}

// atSocket tells whether the socket hooks choose: for TCP and UDP of this node's processes, pods' unless their sockets are left alone or the
// packet's source is to be judged.
func (s State) atSocket(q Question, f bpf.Frontend) bool {
	switch {
	case q.From.Kind == Outside || q.Protocol != 6 && q.Protocol != 17:
		return false
	case q.From.Kind == Node:
		return true
	}
	return len(f.Sources) == 0 && (q.From.Netns == 0 || !slices.Contains(s.SocketsOff, q.From.Netns))
}

// kept is the backend that the client may have again.
func (s State) kept(q Question, row *bpf.ServiceRows, set bpf.Scope, socket bool) (bpf.AffinityRow, bool) {
	if row.Affinity == 0 {
		return bpf.AffinityRow{}, false
	}
	i := slices.IndexFunc(s.Affinity, func(r bpf.AffinityRow) bool {
		mine := r.Client == q.From.Addr
		if socket {
			mine = r.Netns != 0 && r.Netns == q.From.Netns
		}
		return mine && r.Service == row.ID && r.Ago <= row.Affinity && slices.Contains(row.Slots[set], r.Backend)
	})
	if i < 0 {
		return bpf.AffinityRow{}, false
	}
	return s.Affinity[i], true
}

// here tells whether the row says that a backend is on this node.
func (s State) here(row *bpf.ServiceRows, b netip.AddrPort) bool {
	return slices.ContainsFunc(row.Backends, func(v bpf.Backend) bool { return v.Addr == b && v.Local })
}

// direct tells whether a pod of another node answers by itself, as dsr_begin in bpf/lib/dsr.h has it: one of a pod range, a client that is
// in no node's, and a frontend that the other node knows.
func (s State) direct(q Question, to bpf.Remote) bool {
	inside := func(r bpf.Remote) bool { return r.Prefix.Contains(q.From.Addr) }
	if !s.DSR || q.From.Kind != Outside || to.Prefix.IsSingleIP() || slices.ContainsFunc(s.Remotes, inside) {
		return false
	}
	_, front := s.frontend(q)
	return front.Kind != bpf.HostPort && (front.Kind != bpf.NodePort || slices.Contains(s.NodeAddrs, front.Addr.Addr()))
}

// way is how packets come to an address: those of who asked a Service, or that went there by themselves. local: the Service says that it is here.
func (s State) way(q Question, to netip.AddrPort, by asker, local bool) Choice {
	c := Choice{Address: to.String(), Chance: 1, Source: q.From.Addr.String()}
	addr := to.Addr()
	if s.Who != nil {
		c.Name = s.Who(addr)
	}
	node := netip.Addr{}
	for _, a := range s.NodeAddrs {
		if a.Is4() == addr.Is4() {
			node = a
		}
	}
	var remote *bpf.Remote
	for i := range s.Remotes {
		if r := &s.Remotes[i]; r.Prefix.Contains(addr) && (remote == nil || r.Prefix.Bits() > remote.Prefix.Bits()) {
			remote = r
		}
	}
	masqueraded := node.String() + " (masqueraded, so that the answer comes back here)"
	from := s.behind(q.From.Addr)
	beside := (by == outside || by == packet) && from.Ifindex != 0 && from.Ifindex == s.behind(addr).Ifindex
	switch {
	case slices.ContainsFunc(s.Endpoints, func(e bpf.Endpoint) bool { return e.Addr == addr }):
		c.Path = "a pod of this node: redirected into its namespace"
		if by != nobody && addr == q.From.Addr {
			c.Path = "the client itself"
		}
	case addr == node:
		c.Path = "this node's own processes"
	case remote != nil && by != nobody && s.direct(q, *remote):
		c.Path = "within a packet to the pod, by native routing to another node, which answers the client itself (dsr)"
		if remote.Node.IsValid() {
			c.Path = "within a packet to the pod, by the tunnel to the node " + remote.Node.String() + ", which answers the client itself (dsr)"
		}
	case remote != nil && remote.Node.IsValid():
		c.Path = "by the tunnel to the node " + remote.Node.String()
		if by == outside {
			c.Source = masqueraded
		}
	case remote != nil:
		c.Path = "by native routing to another node"
		if by == outside {
			c.Source = masqueraded
		}
	case s.OtherPods && local:
		c.Path = "on this node, by the host's routes"
		if beside {
			c.Path, c.Source = "on this node, by the interface where it came in", masqueraded
		}
	case by == outside:
		c.Path, c.Source = "by the host's routes", masqueraded
	case s.OtherPods:
		c.Path = "by the host's routes"
		if q.From.Kind == Pod {
			c.Source += " (its own, unless the CNI plugin of this node masquerades it)"
		}
	default:
		c.Path = "out of the cluster by the host's routes"
		exempt := slices.ContainsFunc(s.Exempt, func(p netip.Prefix) bool { return p.Contains(addr) })
		if q.From.Kind == Pod && node.IsValid() && !exempt {
			c.Source = node.String() + " (masqueraded)"
		}
	}
	return c
}
