package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/netpol/flows"
)

// Line is one event, with names.
type Line struct {
	Time        time.Time `json:"time"`
	Reason      string    `json:"reason"`
	Drop        bool      `json:"drop"`
	Interface   string    `json:"interface,omitempty"` // where the program stood; none for a socket
	Direction   string    `json:"direction,omitempty"` // in or out, seen from the node
	Pod         string    `json:"pod,omitempty"`       // the pod that the interface leads to, or that the process is of
	Via         string    `json:"via,omitempty"`       // the interface that it came in by, if it leaves by another
	Protocol    string    `json:"protocol"`
	Source      *Peer     `json:"source,omitempty"`
	Destination *Peer     `json:"destination,omitempty"`
	Flags       string    `json:"tcpFlags,omitempty"`
	Length      int       `json:"length,omitempty"`
	Note        string    `json:"note,omitempty"`
	Policy      *Policy   `json:"policy,omitempty"` // that forbids it
	PID         int       `json:"pid,omitempty"`
	Command     string    `json:"command,omitempty"`
}

// Policy is what forbids a packet.
type Policy struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	Rule      *int   `json:"rule,omitempty"` // none: its isolation does
}

func (p Policy) String() string {
	name := p.Name
	if p.Namespace != "" {
		name = p.Namespace + "/" + name
	}
	if p.Rule == nil {
		return fmt.Sprintf("isolated by %s %s", p.Kind, name)
	}
	return fmt.Sprintf("rule %d of %s %s", *p.Rule, p.Kind, name)
}

// Filter chooses lines. Its zero value takes all.
type Filter struct {
	Pod     string // namespace/name, at either end; if no pod is called so, of the workload whose pod it is, such as a Deployment's
	Reasons []string
}

// takes is told whether there is a pod of the very name that is asked for.
func (f Filter) takes(l Line, exact bool) bool {
	if len(f.Reasons) > 0 && !slices.Contains(f.Reasons, l.Reason) {
		return false
	}
	if f.Pod == "" {
		return true
	}
	return flows.OfPod(l.Pod, f.Pod, exact) || l.Source != nil && flows.OfPod(l.Source.Pod, f.Pod, exact) || l.Destination != nil && flows.OfPod(l.Destination.Pod, f.Pod, exact)
}

// CheckReasons refuses names that no event has.
func CheckReasons(list []string) error {
	for _, r := range list {
		if !slices.Contains(bpf.Reasons(), r) {
			return fmt.Errorf("there is no reason %q; there are: %s", r, strings.Join(bpf.Reasons(), ", "))
		}
	}
	return nil
}

// Source is where events come from.
type Source interface {
	Read(deadline time.Time) (bpf.Event, error)
	Lost() (uint64, error)
}

// Config of Run.
type Config struct {
	Source Source
	Names  *Names
	Filter Filter
	Count  int  // lines to show; 0: until ctx ends
	JSON   bool // an object a line
	Clock  func() (wall time.Time, monotonic time.Duration)
	PodAt  func(ifindex int) string // the pod that an interface leads to
	// PolicyNames are those of the node's tables, by number.
	PolicyNames func() map[uint32]bpf.PolicyName
}

// Run shows events on out until ctx ends or so many are shown. What was lost is told on out as JSON, else on notes.
func Run(ctx context.Context, c Config, out, notes io.Writer) error {
	told, shown := uint64(0), 0
	tellLosses := func() error {
		lost, err := c.Source.Lost()
		if err != nil || lost == told {
			return err
		}
		if c.JSON {
			err = json.NewEncoder(out).Encode(map[string]uint64{"lost": lost})
		} else {
			_, err = fmt.Fprintf(notes, "%d events lost in all: they came faster than they were read\n", lost)
		}
		told = lost
		return err
	}
	next := time.Now().Add(time.Second)
	for ctx.Err() == nil {
		if now := time.Now(); now.After(next) {
			if err := tellLosses(); err != nil {
				return err
			}
			next = now.Add(time.Second)
		}
		e, err := c.Source.Read(time.Now().Add(200 * time.Millisecond))
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if err != nil {
			return err
		}
		l := c.line(e)
		if !c.Filter.takes(l, c.Names.HasPod(c.Filter.Pod)) {
			continue
		}
		if c.JSON {
			err = json.NewEncoder(out).Encode(l)
		} else {
			_, err = fmt.Fprintln(out, l)
		}
		if err != nil {
			return err
		}
		if shown++; shown == c.Count {
			break
		}
	}
	return tellLosses()
}

// line puts names to an event.
func (c Config) line(e bpf.Event) Line {
	wall, mono := c.Clock()
	l := Line{Time: wall.Add(e.Time - mono), Reason: e.Reason, Drop: strings.HasPrefix(e.Reason, "drop_"), Length: e.Length}
	if s := e.Socket; s != nil {
		l.PID, l.Command, l.Pod = s.PID, s.Command, c.Names.PodOfProcess(s.PID)
		l.Protocol = map[uint8]string{6: "TCP", 17: "UDP"}[s.Protocol]
		l.Destination = c.Names.Of(s.To.Addr(), s.To.Port())
		return l
	}
	l.Interface = interfaceName(e.Ifindex)
	if e.From == e.Ifindex {
		l.Direction = "in"
	} else {
		l.Direction = "out"
		if e.From != 0 {
			l.Via = interfaceName(e.From)
		}
	}
	for _, i := range []int{e.Ifindex, e.From} {
		if l.Pod == "" && i != 0 && c.PodAt != nil {
			l.Pod = c.PodAt(i)
		}
	}
	l.Policy = c.policy(e)
	p := Decode(e.Packet)
	l.Protocol, l.Flags, l.Note = p.Protocol, p.Flags, p.Note
	l.Source, l.Destination = c.Names.Of(p.Source, p.SrcPort), c.Names.Of(p.Dest, p.DstPort)
	return l
}

// policy names what forbids an event's packet.
func (c Config) policy(e bpf.Event) *Policy {
	if e.Policy == 0 || c.PolicyNames == nil {
		return nil
	}
	n, ok := c.PolicyNames()[e.Policy]
	if !ok {
		return nil
	}
	p := &Policy{Kind: n.Kind, Namespace: n.Namespace, Name: n.Name}
	if e.Rule < bpf.PolicyNoRoom {
		rule := int(e.Rule)
		p.Rule = &rule
	}
	return p
}

func interfaceName(index int) string {
	if i, err := net.InterfaceByIndex(index); err == nil {
		return i.Name
	}
	return fmt.Sprintf("interface %d", index)
}

// String is the line for people.
func (l Line) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %-22s ", l.Time.Local().Format("15:04:05.000000"), l.Reason)
	if l.PID != 0 {
		fmt.Fprintf(&b, "socket of %s (pid %d", l.Command, l.PID)
		if l.Pod != "" {
			fmt.Fprintf(&b, ", %s", l.Pod)
		}
		fmt.Fprintf(&b, ") %s → %s", l.Protocol, l.Destination)
		return b.String()
	}
	fmt.Fprintf(&b, "%s %s", l.Direction, l.Interface)
	if l.Via != "" {
		fmt.Fprintf(&b, " from %s", l.Via)
	}
	if l.Pod != "" {
		fmt.Fprintf(&b, " of %s", l.Pod)
	}
	fmt.Fprintf(&b, ": %s", l.Protocol)
	if l.Source != nil {
		fmt.Fprintf(&b, " %s → %s", l.Source, l.Destination)
	}
	for _, s := range []string{l.Flags, l.Note} {
		if s != "" {
			fmt.Fprintf(&b, " %s", s)
		}
	}
	fmt.Fprintf(&b, ", %d bytes", l.Length)
	if l.Policy != nil {
		fmt.Fprintf(&b, ", %s", l.Policy)
	}
	return b.String()
}
