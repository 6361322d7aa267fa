package node

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// defaultNodeBits are the reference's.
func defaultNodeBits(p netip.Prefix) int {
	if p.Addr().Is4() {
		return 24
	}
	return 64
}

// subnets hands out the parts of the cluster's pod ranges, one of each family to each node. What is given is what the
// Nodes say; a restart reads it from them.
type subnets struct {
	mu     sync.Mutex
	ranges []split                   // the primary family's first
	of     map[string][]netip.Prefix // by node
}

// split is one range and how long the prefixes of its parts are.
type split struct {
	prefix netip.Prefix
	bits   int
}

func newSubnets(prefixes []netip.Prefix, nodeBits func(netip.Prefix) int) (*subnets, error) {
	if nodeBits == nil {
		nodeBits = defaultNodeBits
	}
	s := &subnets{of: map[string][]netip.Prefix{}}
	for _, p := range prefixes {
		bits := nodeBits(p)
		// A part has four addresses at least, and is numbered by 31 bits at most.
		if p.Addr().Is4In6() || bits < p.Bits() || bits > p.Addr().BitLen()-2 || bits-p.Bits() > 31 {
			return nil, fmt.Errorf("pod range %s can't be split into parts of /%d", p, bits)
		}
		for _, r := range s.ranges {
			if r.prefix.Addr().Is4() == p.Addr().Is4() {
				return nil, fmt.Errorf("pod ranges %s and %s are of one family; give one of each", r.prefix, p)
			}
		}
		s.ranges = append(s.ranges, split{p.Masked(), bits})
	}
	if len(s.ranges) == 0 {
		return nil, fmt.Errorf("no pod range")
	}
	return s, nil
}

// nth is a range's part of that number.
func (r split) nth(n uint32) netip.Prefix {
	b := r.prefix.Addr().AsSlice()
	// The number's lowest bit is the last of the part's prefix.
	for at := r.bits - 1; n > 0; at, n = at-1, n>>1 {
		b[at/8] |= byte(n&1) << (7 - at%8)
	}
	a, _ := netip.AddrFromSlice(b) // four or sixteen bytes it is
	return netip.PrefixFrom(a, r.bits)
}

// free is the lowest part that nothing in taken overlaps. It steps over a larger one at once.
func (r split) free(taken []netip.Prefix) (netip.Prefix, bool) {
	used := map[netip.Prefix]bool{}
	var odd []netip.Prefix // not of our making: given by hand, or when parts had another length
	for _, t := range taken {
		switch {
		case !r.prefix.Overlaps(t):
		case t.Bits() == r.bits:
			used[t] = true
		default:
			odd = append(odd, t)
		}
	}
	for i := range uint32(1) << (r.bits - r.prefix.Bits()) {
		p := r.nth(i)
		if !used[p] && !slices.ContainsFunc(odd, p.Overlaps) {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

// occupy notes what a node holds already. What was given, but does not show in the Node yet, stays given.
func (s *subnets) occupy(node string, cidrs []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var own []netip.Prefix
	for _, c := range cidrs {
		p, err := netip.ParsePrefix(c)
		if err != nil {
			return fmt.Errorf("node %s: spec.podCIDRs: %w", node, err)
		}
		own = append(own, p.Masked())
	}
	if held := s.of[node]; len(held) >= len(own) && slices.Equal(held[:len(own)], own) {
		return nil
	}
	s.of[node] = own
	for other, theirs := range s.of {
		if other == node {
			continue
		}
		for _, p := range own {
			if slices.ContainsFunc(theirs, p.Overlaps) {
				return fmt.Errorf("pod range %s belongs to nodes %s and %s; delete one of them", p, other, node)
			}
		}
	}
	return nil
}

// complete gives a node a free part, the lowest, of each family that it has none of, and returns all that it has then. What
// it had stays first. Without a free part of some family it gives nothing.
func (s *subnets) complete(node string) ([]netip.Prefix, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	own := slices.Clone(s.of[node])
	if len(own) >= len(s.ranges) {
		return own, nil
	}
	var taken []netip.Prefix
	for _, theirs := range s.of {
		taken = append(taken, theirs...)
	}
	for _, r := range s.ranges {
		if slices.ContainsFunc(own, func(p netip.Prefix) bool { return p.Addr().Is4() == r.prefix.Addr().Is4() }) {
			continue
		}
		p, ok := r.free(taken)
		if !ok {
			return nil, fmt.Errorf("pod range %s has no free /%d left for node %s; use a larger one", r.prefix, r.bits, node)
		}
		own = append(own, p)
	}
	s.of[node] = own
	return own, nil
}

// release takes back what a deleted node held, and tells whether that was anything.
func (s *subnets) release(node string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	held := len(s.of[node]) > 0
	delete(s.of, node)
	return held
}

// reasonNoRange is the reason of the condition and of the event that say that the pod range is used up.
const reasonNoRange = "CIDRNotAvailable"

// feedStarving looks again at nodes without a part of some range, after another has left its parts.
func (c *controller) feedStarving() error {
	nodes, err := c.nodes.List(labels.Everything())
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if len(n.Spec.PodCIDRs) < len(c.subnets.ranges) {
			c.queue.Add(n.Name)
		}
	}
	return nil
}

// ensurePodCIDRs gives the node its parts of the pod ranges, or says on it that there are none left.
func (c *controller) ensurePodCIDRs(ctx context.Context, n *corev1.Node) error {
	if err := c.subnets.occupy(n.Name, n.Spec.PodCIDRs); err != nil {
		c.recorder.Event(n, corev1.EventTypeWarning, "CIDROverlap", err.Error())
	}
	all, err := c.subnets.complete(n.Name)
	if err != nil {
		c.recorder.Event(n, corev1.EventTypeWarning, reasonNoRange, err.Error())
		return c.setNoRange(ctx, n, corev1.ConditionTrue, err.Error())
	}
	if len(all) > len(n.Spec.PodCIDRs) {
		var cidrs []string
		for _, p := range all {
			cidrs = append(cidrs, p.String())
		}
		list, err := json.Marshal(cidrs)
		if err != nil {
			return fmt.Errorf("node %s: pod ranges: %w", n.Name, err)
		}
		patch := fmt.Sprintf(`{"metadata":{"uid":%q},"spec":{"podCIDR":%q,"podCIDRs":%s}}`, n.UID, cidrs[0], list)
		_, err = c.client.CoreV1().Nodes().Patch(ctx, n.Name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
		if apierrors.IsNotFound(err) {
			c.subnets.release(n.Name)
			return nil
		}
		if err != nil {
			return fmt.Errorf("node %s: give it %s: %w", n.Name, strings.Join(cidrs, ", "), err)
		}
	}
	return c.setNoRange(ctx, n, corev1.ConditionFalse, "the node has its parts of the pod ranges")
}

// setNoRange says in the node's condition NetworkUnavailable that it has no pod range, or no longer; of that
// condition with another reason somebody else takes care.
func (c *controller) setNoRange(ctx context.Context, n *corev1.Node, status corev1.ConditionStatus, message string) error {
	i := slices.IndexFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool { return c.Type == corev1.NodeNetworkUnavailable })
	switch {
	case i < 0 && status == corev1.ConditionFalse:
		return nil
	case i >= 0 && (n.Status.Conditions[i].Reason != reasonNoRange || n.Status.Conditions[i].Status == status):
		return nil
	}
	now := metav1.Now()
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": n.UID},
		"status": map[string]any{"conditions": []corev1.NodeCondition{{
			Type: corev1.NodeNetworkUnavailable, Status: status, Reason: reasonNoRange, Message: message, LastHeartbeatTime: now, LastTransitionTime: now,
		}}},
	})
	if err != nil {
		return fmt.Errorf("node %s: condition: %w", n.Name, err)
	}
	_, err = c.client.CoreV1().Nodes().Patch(ctx, n.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
