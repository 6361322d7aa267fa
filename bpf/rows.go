package bpf

import (
	"net"
	"net/netip"
	"time"
)

// HostPortOwner begins the owners of host ports in the load balancer's table; all others there are UIDs of Services. Each of the two
// that write the table prunes its own.
const HostPortOwner = "hostport:"

// LoadBalancer is one port of a Service, or a host port of a pod: each frontend is spread evenly over the backends. All of them are of one
// family.
type LoadBalancer struct {
	Owner     string // Service UID, or HostPortOwner with the pod's sandbox
	Name      string // namespace/name:port, for humans
	Protocol  uint8  // IPPROTO_TCP or IPPROTO_UDP
	Frontends []netip.AddrPort
	Backends  []netip.AddrPort // none: connections are refused
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

// Name is a DNS name that the kernel answers.
type Name struct {
	Owner string       // Service UID
	Name  string       // lower-case, fully qualified, with the trailing dot
	Addrs []netip.Addr // of either family or both, at most eight of each; never empty
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
