package analysis

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/strake-io/strake/netpol"
)

// protocols that have ports, in the order of all lists here.
var protocols = [3]uint8{netpol.TCP, netpol.UDP, netpol.SCTP}

var protocolNames = [3]string{"TCP", "UDP", "SCTP"}

const lastPort = 65535

// Ports is a range of ports, both ends within.
type Ports struct {
	From uint16 `json:"from"`
	To   uint16 `json:"to"`
}

func (p Ports) String() string {
	if p.From == p.To {
		return fmt.Sprint(p.From)
	}
	return fmt.Sprintf("%d-%d", p.From, p.To)
}

var everyPort = Ports{0, lastPort}

// PortSet is a set of what a flow can ask for: protocols with their ports, sorted and apart, and all other protocols at once.
type PortSet struct {
	Of    [3][]Ports // TCP, UDP, SCTP
	Other bool       // ICMP echo and protocols without ports
}

func allPorts() PortSet {
	return PortSet{Of: [3][]Ports{{everyPort}, {everyPort}, {everyPort}}, Other: true}
}

// Empty tells whether nothing is in the set.
func (s PortSet) Empty() bool {
	return !s.Other && len(s.Of[0]) == 0 && len(s.Of[1]) == 0 && len(s.Of[2]) == 0
}

// Full tells whether everything is in the set.
func (s PortSet) Full() bool {
	for _, l := range s.Of {
		if len(l) != 1 || l[0] != everyPort {
			return false
		}
	}
	return s.Other
}

// Has tells whether a port is in the set. Of protocols without ports the port says nothing.
func (s PortSet) Has(protocol uint8, port uint16) bool {
	i := slices.Index(protocols[:], protocol)
	if i < 0 {
		return s.Other
	}
	l := s.Of[i]
	at := sort.Search(len(l), func(i int) bool { return l[i].To >= port })
	return at < len(l) && l[at].From <= port
}

func (s PortSet) minus(o PortSet) PortSet { return s.with(o, func(a, b bool) bool { return a && !b }) }
func (s PortSet) and(o PortSet) PortSet   { return s.with(o, func(a, b bool) bool { return a && b }) }
func (s PortSet) or(o PortSet) PortSet    { return s.with(o, func(a, b bool) bool { return a || b }) }

// with combines two sets port by port.
func (s PortSet) with(o PortSet, f func(a, b bool) bool) PortSet {
	out := PortSet{Other: f(s.Other, o.Other)}
	for i := range s.Of {
		cuts := cutsOf(s.Of[i], o.Of[i])
		for j, from := range cuts[:len(cuts)-1] {
			if f(contains(s.Of[i], uint16(from)), contains(o.Of[i], uint16(from))) {
				out.Of[i] = appendPorts(out.Of[i], Ports{uint16(from), uint16(cuts[j+1] - 1)})
			}
		}
	}
	return out
}

// cutsOf are the ports at which one of the lists begins or ends, sorted, with 0 and one more than the last.
func cutsOf(lists ...[]Ports) []int {
	cuts := []int{0, lastPort + 1}
	for _, l := range lists {
		for _, p := range l {
			cuts = append(cuts, int(p.From), int(p.To)+1)
		}
	}
	slices.Sort(cuts)
	return slices.Compact(cuts)
}

func contains(list []Ports, port uint16) bool {
	return slices.ContainsFunc(list, func(p Ports) bool { return p.From <= port && port <= p.To })
}

// appendPorts appends a range that comes after all others.
func appendPorts(list []Ports, p Ports) []Ports {
	if n := len(list); n > 0 && int(list[n-1].To)+1 == int(p.From) {
		list[n-1].To = p.To
		return list
	}
	return append(list, p)
}

// String is for people: "all", "none", "TCP 80,8000-9000; UDP 53", "all but TCP 22".
func (s PortSet) String() string {
	switch {
	case s.Empty():
		return "none"
	case s.Full():
		return "all"
	case s.Other:
		return "all but " + allPorts().minus(s).list()
	}
	return s.list()
}

func (s PortSet) list() string {
	var out []string
	for i, l := range s.Of {
		switch {
		case len(l) == 0:
		case l[0] == everyPort:
			out = append(out, "all "+protocolNames[i])
		default:
			var words []string
			for _, p := range l {
				if p.From == 0 && p.To > 0 {
					p.From = 1 // port 0 is no port to name
				}
				words = append(words, p.String())
			}
			out = append(out, protocolNames[i]+" "+strings.Join(words, ","))
		}
	}
	if s.Other {
		out = append(out, "other protocols")
	}
	return strings.Join(out, "; ")
}

// first is something that is in the set; of ports those are preferred that are not 0.
func (s PortSet) first() (protocol uint8, port uint16, ok bool) {
	for i, l := range s.Of {
		for _, p := range l {
			if p.To > 0 {
				return protocols[i], max(p.From, 1), true
			}
		}
	}
	if s.Other {
		return netpol.ICMP, 0, true
	}
	for i, l := range s.Of {
		if len(l) > 0 {
			return protocols[i], 0, true
		}
	}
	return 0, 0, false
}
