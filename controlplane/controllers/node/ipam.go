package node

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// subnets hands out the parts of the cluster's pod range, one to each node. What is given is what the Nodes
// say; a restart reads it from them.
type subnets struct {
	mu     sync.Mutex
	prefix netip.Prefix
	bits   int
	owner  map[netip.Prefix]string
	of     map[string]netip.Prefix
}

func newSubnets(prefix netip.Prefix, bits int) (*subnets, error) {
	if !prefix.Addr().Is4() || bits <= prefix.Bits() || bits > 30 {
		return nil, fmt.Errorf("pod range %s can't be split into parts of /%d", prefix, bits)
	}
	return &subnets{prefix: prefix.Masked(), bits: bits, owner: map[netip.Prefix]string{}, of: map[string]netip.Prefix{}}, nil
}

// occupy notes what a node holds already.
func (s *subnets) occupy(node string, p netip.Prefix) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if other, ok := s.owner[p]; ok && other != node {
		return fmt.Errorf("pod range %s belongs to nodes %s and %s; delete one of them", p, other, node)
	}
	s.owner[p], s.of[node] = node, p
	return nil
}

// next gives a node a free part, the lowest; the same one if it is asked again.
func (s *subnets) next(node string) (netip.Prefix, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p, ok := s.of[node]; ok {
		return p, nil
	}
	base := binary.BigEndian.Uint32(s.prefix.Addr().AsSlice())
	for i := range uint32(1) << (s.bits - s.prefix.Bits()) {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], base+i<<(32-s.bits))
		p := netip.PrefixFrom(netip.AddrFrom4(b), s.bits)
		if _, taken := s.owner[p]; !taken {
			s.owner[p], s.of[node] = node, p
			return p, nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("pod range %s has no free /%d left for node %s; use a larger one", s.prefix, s.bits, node)
}

// release takes back what a deleted node held.
func (s *subnets) release(node string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p, ok := s.of[node]; ok {
		delete(s.owner, p)
		delete(s.of, node)
	}
}

// ensurePodCIDR gives the node its part of the pod range.
func (c *controller) ensurePodCIDR(ctx context.Context, n *corev1.Node) error {
	if n.Spec.PodCIDR != "" {
		p, err := netip.ParsePrefix(n.Spec.PodCIDR)
		if err != nil {
			return fmt.Errorf("node %s: spec.podCIDR: %w", n.Name, err)
		}
		return c.subnets.occupy(n.Name, p)
	}
	p, err := c.subnets.next(n.Name)
	if err != nil {
		c.recorder.Event(n, corev1.EventTypeWarning, "CIDRNotAvailable", err.Error())
		return err
	}
	patch := fmt.Sprintf(`{"metadata":{"uid":%q},"spec":{"podCIDR":%q,"podCIDRs":[%q]}}`, n.UID, p, p)
	_, err = c.client.CoreV1().Nodes().Patch(ctx, n.Name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
	if apierrors.IsNotFound(err) {
		c.subnets.release(n.Name)
		return nil
	}
	return err
}
