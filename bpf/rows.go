package bpf

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"
)

// HostPortOwner begins the owners of host ports in the load balancer's table; all others there are UIDs of Services. Each of the two
// that write the table prunes its own.
const HostPortOwner = "hostport:"

// LoadBalancer is one port of a Service of one family, or a host port of a pod: what asks one of the frontends gets one of the backends.
type LoadBalancer struct {
	Owner     string // Service UID, or HostPortOwner with the pod's sandbox
	Name      string // namespace/name:port, for humans
	Protocol  uint8  // IPPROTO_TCP, IPPROTO_UDP or IPPROTO_SCTP
	Frontends []Frontend
	Backends  []Backend     // none: connections are refused
	Affinity  time.Duration // for how long a client keeps its backend after it used it last: whole seconds up to a day; 0: each connection chooses
}

// Frontend is an address and port under which a LoadBalancer is asked.
type Frontend struct {
	Addr netip.AddrPort
	Kind FrontendKind
	// Inside and Outside are the backends that clients of the cluster (pods, processes of nodes) and clients from outside get.
	Inside, Outside Scope
	// Sources are who may ask from outside of this node; empty: everybody. Those frontends of a LoadBalancer that have sources have the same.
	Sources []netip.Prefix
}

func (f Frontend) String() string {
	s := f.Kind.String() + " " + f.Addr.String()
	if f.Inside == Local {
		s += " inside Local"
	}
	if f.Outside == Local {
		s += " outside Local"
	}
	if len(f.Sources) > 0 {
		s += fmt.Sprint(" from ", f.Sources)
	}
	return s
}

// FrontendKind is what a frontend's address is.
type FrontendKind uint8

const (
	ClusterIP FrontendKind = iota
	NodePort
	ExternalIP
	LoadBalancerIP
	HostPort
)

func (k FrontendKind) String() string {
	if int(k) < len(kinds) {
		return kinds[k]
	}
	return "FrontendKind(" + strconv.Itoa(int(k)) + ")"
}

var kinds = [...]string{"ClusterIP", "NodePort", "ExternalIP", "LoadBalancerIP", "HostPort"}

// Scope is a set of backends.
type Scope uint8

const (
	All   Scope = iota // of all nodes
	Local              // of this node; if there are none but others are, packets are dropped (Service.spec.externalTrafficPolicy, internalTrafficPolicy)
)

func (s Scope) String() string {
	if s == Local {
		return "Local"
	}
	return "All"
}

// Backend is an address that answers for a LoadBalancer.
type Backend struct {
	Addr       netip.AddrPort
	All, Local bool   // whether it is of the set of each scope; of none: it is draining, its flows go on but no new one reaches it
	Weight     uint16 // how often it is chosen by consistent hashing, against the others; 0 is 1
}

func (b Backend) String() string {
	s := b.Addr.String()
	switch {
	case b.All && b.Local:
		s += " (here)"
	case b.Local:
		s += " (here alone)"
	case !b.All:
		s += " (draining)"
	}
	if b.Weight > 1 {
		s += " weight " + strconv.Itoa(int(b.Weight))
	}
	return s
}

// Endpoint is one address of a pod on this node.
type Endpoint struct {
	Owner   string // sandbox id
	Addr    netip.Addr
	Ifindex int // host-side veth
	PodMAC  net.HardwareAddr
	HostMAC net.HardwareAddr
	Queued  bool  // packets to the pod pass the queue (qdisc) of Ifindex instead of going straight into its namespace
	Egress  Limit // of what the pod sends; one for all addresses behind Ifindex
}

// Limit bounds what passes in a time. What is beyond it is dropped (drop_bandwidth).
type Limit struct {
	Rate  uint64        // bytes per second; 0: no limit
	Ahead time.Duration // how far ahead of the rate it may be: bursts are no more than that, and a packet
}

// SocketsOff is a network namespace whose sockets are left alone: what its processes ask of Services is translated at their packets.
type SocketsOff struct {
	Owner string // sandbox id
	Netns uint64 // cookie, see Datapath.NetnsCookie
}

// Name is a DNS name that the kernel answers.
type Name struct {
	Owner     string       // UID of a Service or namespace
	Name      string       // lower-case, fully qualified, with the trailing dot
	Addrs     []netip.Addr // of either family or both, at most eight of each; none: the name exists, and that is all
	Elsewhere bool         // user space answers for it
}

// Record is an answer of the cluster that the kernel gives as it is.
type Record struct {
	Owner   string // UID of a Service, or what else its writer knows it by: at most 40 bytes
	Message []byte // a response in wire format with one question, whose names are lower-case, and no OPT record
}

// Changes counts the rows that a call wrote.
type Changes struct{ Added, Updated, Deleted int }

// Table is a typed view of one BPF map, or of a few that change together.
type Table[R any] interface {
	// Replace makes the rows of owner exactly want and writes only the differences. An error means that some are not written yet:
	// call it again.
	Replace(owner string, want []R) (Changes, error)
	// Prune deletes the rows of every owner that keep refuses. Call it after a first full sync.
	Prune(keep func(owner string) bool) (Changes, error)
	// Dump returns what the kernel holds.
	Dump() ([]R, error)
}

// LoadBalancerTable is the table of load balancers, where many owners' rows can be written at once.
type LoadBalancerTable interface {
	Table[LoadBalancer]
	// ReplaceAll is Replace for many owners, and quicker than one by one. It returns the errors by owner; a frontend that another owner
	// has is a TakenError.
	ReplaceAll(want map[string][]LoadBalancer) (Changes, map[string]error)
}
