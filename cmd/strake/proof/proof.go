// Package proof holds a node's policy tables, as they are in the kernel, against the policies that the API has.
package proof

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/cni"
	"github.com/strake-io/strake/netpol"
	"github.com/strake-io/strake/netpol/manifests"
	"github.com/strake-io/strake/netpol/verify"
)

// Node says whose tables are looked at. No agent need run.
type Node struct {
	Layout    layout.Layout
	Name      string
	DNSAddrs  []netip.Addr // those at which the node network answers for the cluster's DNS
	REST      *rest.Config
	Questions int // as verify.Options has it
}

// settle is how long a difference may last: the cluster changes while it is looked at.
const settle = 5 * time.Second

// state is what the API has, with the addresses that this node's pods have here, and what they are attached by.
func (n Node) state(ctx context.Context) (netpol.State, []cni.Allocation, error) {
	config := rest.CopyConfig(n.REST)
	config.QPS, config.Burst = -1, -1 // a few lists, in pages
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		return netpol.State{}, nil, err
	}
	custom, err := dynamic.NewForConfig(config)
	if err != nil {
		return netpol.State{}, nil, err
	}
	s, _, err := manifests.FromAPI(ctx, kube, custom) // what can't be read closes here as it does in the kernel
	if err != nil {
		return s, nil, err
	}
	s.DNSAddrs = n.DNSAddrs
	attached, err := cni.Attachments(n.Layout.CNIState())
	return s, attached, err
}

// Verify asks until tables and policies agree, or have differed for long enough.
func Verify(ctx context.Context, n Node) (verify.Report, error) {
	for deadline := time.Now().Add(settle); ; {
		r, err := once(ctx, n)
		if err != nil || r.Drifts == 0 || time.Now().After(deadline) {
			return r, err
		}
		select {
		case <-ctx.Done():
			return r, ctx.Err()
		case <-time.After(settle / 8):
		}
	}
}

func once(ctx context.Context, n Node) (verify.Report, error) {
	state, attached, err := n.state(ctx)
	if err != nil {
		return verify.Report{}, err
	}
	others := Place(&state, n.Name, attached)
	rows, err := bpf.ReadPolicies(n.Layout.BPF())
	if err != nil {
		return verify.Report{}, err
	}
	return verify.Verify(ctx, rows, state, verify.Options{Node: n.Name, Questions: n.Questions, Others: others})
}

// Place gives the pods of a node the addresses that they have there, which the API learns later and forgets at another time, and returns the
// addresses of attachments that are no pods.
func Place(s *netpol.State, node string, attached []cni.Allocation) (others []netip.Addr) {
	var pods []*corev1.Pod
	placed := make([]bool, len(attached))
	for _, p := range s.Pods {
		if p.Spec.NodeName != node || p.Spec.HostNetwork {
			pods = append(pods, p)
			continue
		}
		here := *p
		here.Status.PodIP, here.Status.PodIPs = "", nil
		for i, a := range attached {
			if a.Pod != p.Namespace+"/"+p.Name || a.UID != "" && a.UID != string(p.UID) && a.UID != p.Annotations[corev1.MirrorPodAnnotationKey] {
				continue
			}
			placed[i] = true
			for _, addr := range a.Addrs {
				here.Status.PodIPs = append(here.Status.PodIPs, corev1.PodIP{IP: addr.String()})
			}
		}
		if len(here.Status.PodIPs) > 0 {
			pods = append(pods, &here)
		}
	}
	s.Pods = pods
	for i, a := range attached {
		if !placed[i] {
			others = append(others, a.Addrs...) // a container that is no pod, or a pod that is deleted but not ended
		}
	}
	return others
}

// Line tells a report in one line.
func Line(r verify.Report) string {
	asked := fmt.Sprintf("%d questions", r.Asked)
	if r.Asked < r.Of {
		asked = fmt.Sprintf("%d of %d questions, drawn by lot", r.Asked, r.Of)
	}
	if r.Drifts > 0 {
		return fmt.Sprintf("node %s: %d differences (%s)", r.Node, r.Drifts, asked)
	}
	return fmt.Sprintf("node %s: the kernel judges as the policies say: %d addresses of pods, %d other ends, %d ports, %s", r.Node, r.Pods, r.Ends, r.Ports, asked)
}
