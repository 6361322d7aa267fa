package monitor

import (
	"net/netip"
	"sync"
	"time"

	"github.com/strake-io/strake/bpf"
)

// Interfaces knows which address is behind which interface of the node, as the node network has it.
type Interfaces struct {
	Read func() ([]bpf.Endpoint, error)

	mu    sync.Mutex
	addrs map[int]netip.Addr
	read  time.Time
}

// Addr is an address of the pod behind an interface, if there is one. An interface that is not known is looked for once a second at most.
func (i *Interfaces) Addr(ifindex int) (netip.Addr, bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	a, ok := i.addrs[ifindex]
	if ok || time.Since(i.read) < time.Second {
		return a, ok
	}
	i.read = time.Now()
	rows, err := i.Read()
	if err != nil {
		return a, false // the line is shown without the pod
	}
	i.addrs = map[int]netip.Addr{}
	for _, ep := range rows {
		i.addrs[ep.Ifindex] = ep.Addr
	}
	a, ok = i.addrs[ifindex]
	return a, ok
}
