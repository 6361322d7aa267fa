package cni

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cni/plugin"
)

// A pod's limits are a token bucket (tc-tbf(8)) at each side of its veth, where packets leave it: at the pod's own side what it sends, to
// wherever that goes, and before its sockets lose sight of it; at the host's side what is sent to it. For that, packets to such a pod pass
// the host's side instead of going straight into its namespace (bpf.Endpoint.Queued). A pod that administers its own network can take its
// side's bucket away: the pod program drops what is then more than the limit (bpf.Endpoint.Egress).

// Limits that Kubernetes allows, in bits per second.
const minRate, maxRate = 1_000, 1_000_000_000_000_000

// Sizes in bytes, beside those that follow from the rate: of the bucket at least two jumbo frames, of the queue behind it a packet as
// large as the kernel's segmentation makes them.
const (
	minBurst = 20 << 10
	minQueue = 64 << 10
)

func checkBandwidth(b plugin.Bandwidth) error {
	for name, rate := range map[string]uint64{"ingress": b.Ingress, "egress": b.Egress} {
		if rate != 0 && (rate < minRate || rate > maxRate) {
			return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("%s bandwidth %d bit/s: a limit is 1k to 1P", name, rate), "")
		}
	}
	return nil
}

// burst is the size of the bucket for a rate in bytes per second: 10 ms.
func burst(rate uint64) uint64 { return min(max(rate/100, minBurst), math.MaxInt32) }

// unevenness is how much later one packet behind the bucket may be seen than the next: a busy machine serves them in heaps.
const unevenness = 100 * time.Millisecond

// egress is the limit that the pod program keeps to, for one in bits per second. What the bucket lets through never meets it.
func egress(bits uint64) bpf.Limit {
	rate := bits / 8
	if rate == 0 {
		return bpf.Limit{}
	}
	return bpf.Limit{Rate: rate, Ahead: time.Duration(burst(rate)*uint64(time.Second)/rate) + unevenness}
}

// bucket is the queue that keeps to a rate in bits per second, and 50 ms behind it.
func bucket(ifindex int, bits uint64) *netlink.Tbf {
	rate := bits / 8
	size := burst(rate)
	return &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: ifindex, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       rate,
		Buffer:     netlink.Xmittime(rate, uint32(size)),
		Limit:      uint32(min(size+max(rate/20, minQueue), math.MaxInt32)),
	}
}

// limit makes a side of a pod's veth keep to a rate; zero is none.
func limit(h *netlink.Handle, link netlink.Link, bits uint64) error {
	if bits == 0 {
		return nil
	}
	err := h.QdiscReplace(bucket(link.Attrs().Index, bits))
	if errors.Is(err, unix.ENOENT) {
		err = errors.New("the kernel has no sch_tbf, which limits need: load the module, or take the annotations kubernetes.io/ingress-bandwidth and egress-bandwidth from the pod")
	}
	if err != nil {
		return fmt.Errorf("limit of %s: %w", link.Attrs().Name, err)
	}
	return nil
}

// limitPod puts the limit of what a pod sends back into the pod.
func limitPod(a Allocation) error {
	if a.Bandwidth.Egress == 0 {
		return nil
	}
	p, err := inPod(a.Netns)
	if err != nil {
		return err
	}
	defer p.close()
	inside, err := p.LinkByName(a.Ifname)
	if err != nil {
		return fmt.Errorf("interface %s of the pod: %w", a.Ifname, err)
	}
	return limit(p.Handle, inside, a.Bandwidth.Egress)
}

// hasLimit tells what is wrong of it.
func hasLimit(h *netlink.Handle, link netlink.Link, bits uint64) error {
	if bits == 0 {
		return nil
	}
	list, err := Whole(func() ([]netlink.Qdisc, error) { return h.QdiscList(link) })
	if err != nil {
		return fmt.Errorf("queues: %w", err)
	}
	for _, q := range list {
		if q, ok := q.(*netlink.Tbf); ok && q.Parent == netlink.HANDLE_ROOT && q.Rate == bits/8 {
			return nil
		}
	}
	return fmt.Errorf("its limit of %d bit/s is gone", bits)
}
