package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cni"
	"github.com/strake-io/strake/tests/bench/turns"
	"github.com/strake-io/strake/tests/podnet"
)

// netpolParts measure network policies: what they cost packets at any number of them, what a change of them costs, and what the recording of flows.
var netpolParts = []part{
	{"packets", (*bench).policyPackets},
	{"changes", (*bench).policyChanges},
	{"agent", (*bench).policyAgent},
	{"answers", (*bench).policyAnswers},
	{"recording", (*bench).policyRecording},
}

// policySizes are numbers of policies on a node.
var policySizes = []int{0, 1, 1_000, 10_000}

// policies writes a number of policies with its unit.
func policies(n int) string {
	switch n {
	case 0:
		return "no policy"
	case 1:
		return "1 policy"
	}
	return fmt.Sprint(n, " policies")
}

// guardedWay is from a pod to another, by a worker.
type guardedWay struct {
	client *worker
	at     netip.AddrPort
}

// policyPackets compares a node's way from pod to pod at growing numbers of policies with its own without one, and with a bridge's whose policies are
// rules of nftables.
func (b *bench) policyPackets(ctx context.Context) (err error) {
	lab, err := podnet.New(1 + len(policySizes))
	if err != nil {
		return err
	}
	l := &servicesLab{Lab: lab, ctx: ctx}
	defer func() { err = errors.Join(err, l.Close()) }()
	ours, rivals := make([]guardedWay, len(policySizes)), make([]guardedWay, len(policySizes))
	same, err := guardedNode(l, l.Nodes[len(policySizes)], 0) // what two nodes differ by that are the same
	if err != nil {
		return err
	}
	for i, n := range policySizes {
		if ours[i], err = guardedNode(l, l.Nodes[i], n); err != nil {
			return fmt.Errorf("strake with %s: %w", policies(n), err)
		}
		if rivals[i], err = guardedBridge(l, n); err != nil {
			return fmt.Errorf("nftables with %s: %w", policies(n), err)
		}
	}
	if err := settled(l.Nodes...); err != nil {
		return err
	}
	for _, m := range []measure{
		{name: "connect+request", mode: modeConnect, atOnce: 1, turn: 20 * time.Millisecond, rounds: 300},
		{name: "connect+request, 8 at a time", mode: modeConnect, atOnce: 8, turn: 20 * time.Millisecond, rounds: 400},
		{name: "TCP_RR", mode: modeRequest, atOnce: 1, turn: 10 * time.Millisecond, rounds: 300},
		{name: "TCP stream", mode: modeStream, atOnce: 1, turn: 40 * time.Millisecond, rounds: 100},
	} {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := b.rotatePolicies(m, same, ours, rivals); err != nil {
			return err
		}
	}
	return nil
}

// rotatePolicies asks over all ways in turns and adds the rows. same is a second node without a policy.
func (b *bench) rotatePolicies(m measure, same guardedWay, ours, rivals []guardedWay) error {
	what := "pod → pod, " + m.name
	var ways []turns.Way // ours and the rival's of each size
	for i, n := range policySizes {
		for _, w := range []struct {
			kind string
			guardedWay
		}{{kindStrake, ours[i]}, {kindNFTables, rivals[i]}} {
			ways = append(ways, w.client.way(fmt.Sprintf("%s, %s, %s", what, w.kind, policies(n)), order{Mode: m.mode, To: w.at, Ports: 1, AtOnce: m.atOnce}))
		}
	}
	ways = append(ways, same.client.way(what+", the same", order{Mode: m.mode, To: same.at, Ports: 1, AtOnce: m.atOnce}))
	series, err := turns.Rotate(ways, m.turn, b.times(m.rounds))
	if err != nil {
		return err
	}
	b.against(m, what+", no policy, against another node without", series[len(ways)-1], series[0], 0)
	without := series[0].With(series[len(ways)-1])
	for i, n := range policySizes {
		mine, rival := series[2*i], series[2*i+1]
		if n > 0 {
			b.against(m, fmt.Sprintf("%s, %s, against no policy", what, policies(n)), mine, without, 0.97)
		}
		if n > 1 {
			b.against(m, fmt.Sprintf("%s, %s, against 1 policy", what, policies(n)), mine, series[2], 0.97)
		}
		b.against(m, fmt.Sprintf("%s, %s, against %s", what, policies(n), kindNFTables), mine, rival, 0)
	}
	return nil
}

// guardedNode makes a node of ours with so many policies, and two of its pods. The rows name the pods' addresses, so the node's process learns of them
// when it starts anew.
func guardedNode(l *servicesLab, n *podnet.Node, size int) (w guardedWay, err error) {
	n.Routing = cni.Native // without a tunnel, for which pods' packets would be smaller
	n.Policies = &bpf.PolicyChange{}
	if err := n.Start(); err != nil {
		return w, err
	}
	client, err := n.NewPod("client")
	if err != nil {
		return w, err
	}
	server, err := n.NewPod("server")
	if err != nil {
		return w, err
	}
	if err := n.Stop(); err != nil {
		return w, err
	}
	n.Policies = guards{size, server.Addrs, client.Addrs}.rows()
	if err := n.Start(); err != nil {
		return w, err
	}
	return guardedPair(l, size, client.Space, server.Space, server.Addrs[0], n.Cgroup)
}

// guardedBridge makes a bridge's node with the rules of as many policies.
func guardedBridge(l *servicesLab, size int) (w guardedWay, err error) {
	name := fmt.Sprint("bridge", size)
	bridge, err := newBridgeNode(l.Lab, name)
	if err != nil {
		return w, err
	}
	var pods [2]podnet.Space
	var addrs [2]netip.Addr
	for i, pod := range []string{"client", "server"} {
		if pods[i], err = l.Space(name + "-" + pod); err != nil {
			return w, err
		}
		if addrs[i], err = bridge.call("ADD", pod, pods[i]); err != nil {
			return w, err
		}
	}
	// What a bridge forwards meets no rule without it; kube-proxy asks for it too.
	if err := bridge.space.In(func() error { return os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-iptables", []byte("1"), 0) }); err != nil {
		return w, err
	}
	if size > 0 {
		if err := l.load(bridge.space, name, guards{size, addrs[1:], addrs[:1]}.nftables, "nft -f -"); err != nil {
			return w, err
		}
	}
	return guardedPair(l, size, pods[0], pods[1], addrs[1], "")
}

// guardedPair starts both ends, and sees that a port that no policy names is closed where there is a policy, and open where there is none.
func guardedPair(l *servicesLab, size int, client, server podnet.Space, addr netip.Addr, cgroup string) (w guardedWay, err error) {
	if err := l.serve(server); err != nil {
		return w, err
	}
	if w.client, err = l.worker(client, cgroup); err != nil {
		return w, err
	}
	w.at = netip.AddrPortFrom(addr, guardedPort)
	open, wait := false, 500 // ms, for what is to be closed
	if size == 0 {
		wait = 1000 * patience
	}
	err = client.In(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Connect(fd, sockaddr(netip.AddrPortFrom(addr, guardedPort+1))); err != unix.EINPROGRESS {
			return fmt.Errorf("connect: %w", err)
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, wait)
		open = n > 0
		return err
	})
	if err == nil && open != (size == 0) {
		err = fmt.Errorf("a port that no policy names is open: %v", open)
	}
	return w, err
}
