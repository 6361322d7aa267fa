package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/strake-io/strake/cni"
	"github.com/strake-io/strake/tests/bench/turns"
	"github.com/strake-io/strake/tests/podnet"
)

// podnetParts need no cluster: they measure the node network alone, as tests/podnet sets it up.
var podnetParts = []part{
	{"path", (*bench).podPath},
	{"nodes", (*bench).nodePath},
	{"cni", (*bench).cniAdd},
	{"restart", (*bench).agentRestart},
}

// way is from a client's place to a server's address.
type way struct {
	name           string
	client, server podnet.Space
	addr           netip.Addr
}

// podPath compares pod → pod on a node with a bridge CNI's pods, and with a bare veth pair.
func (b *bench) podPath(ctx context.Context) (err error) {
	l, err := podnet.New(1)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	l.Nodes[0].Routing = cni.Native // without a tunnel, for which pods' packets would be smaller
	if err := l.Start(); err != nil {
		return err
	}
	ours, err := ourPods(l.Nodes[0], l.Nodes[0])
	if err != nil {
		return err
	}
	bridge, err := newBridgeNode(l, "bridge-node")
	if err != nil {
		return err
	}
	rival, err := bridge.pods()
	if err != nil {
		return err
	}
	bare, err := barePair(l)
	if err != nil {
		return err
	}
	if err := sameMTU(ours, rival, bare); err != nil {
		return err
	}
	for _, r := range []struct {
		way
		target float64
	}{{rival, 1.15}, {bare, 0.9}} {
		if err := b.compareWays(ctx, "pod → pod on a node", ours, r.way, r.target); err != nil {
			return err
		}
	}
	return nil
}

// compareWays adds the rows of a round trip and a stream.
func (b *bench) compareWays(ctx context.Context, what string, ours, rival way, target float64) error {
	for _, m := range []struct {
		name     string
		ask      int
		unit     string
		perAsk   float64
		turn     time.Duration
		latency  bool
		sessions int
	}{
		{"TCP_RR", requestSize, "1/s", 1, 10 * time.Millisecond, true, 1},
		{"TCP stream", blockSize, "Gbit/s", 8 * blockSize / 1e9, 20 * time.Millisecond, false, 1},
	} {
		if err := ctx.Err(); err != nil {
			return err
		}
		name := fmt.Sprintf("%s, %s, against %s", what, m.name, rival.name)
		c, err := b.inTurns([2]way{ours, rival}, m.ask, m.turn)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		b.report.rates(name, c, m.unit, m.perAsk, target)
		if m.latency {
			b.report.latencies(name, c)
		}
	}
	return nil
}

// inTurns asks over both ways in turns. All threads are in this process, each in its own namespace.
func (b *bench) inTurns(ways [2]way, ask int, turn time.Duration) (c turns.Result, err error) {
	// A thread that waits in the kernel keeps its P for a while: with more of them nobody waits for one.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(16))
	var names [2]string
	var at [2]netip.AddrPort
	for i, w := range ways {
		var stop func()
		if at[i], stop, err = listen(w.server, w.addr, ask); err != nil {
			return c, fmt.Errorf("%s: %w", w.name, err)
		}
		defer stop()
		names[i] = w.name
	}
	var open []conn
	defer func() {
		for _, c := range open {
			c.close()
		}
	}()
	return turns.Compare(names, func(_ string, second bool) (turns.Session, error) {
		i := 0
		if second {
			i = 1
		}
		s, err := connect(ways[i].client, at[i])
		open = append(open, s)
		return &asker{conn: s, out: make([]byte, ask)}, err
	}, 1, turn, b.times(400))
}

// ourPods are a pod on either node.
func ourPods(from, to *podnet.Node) (way, error) {
	client, err := from.NewPod("client")
	if err != nil {
		return way{}, err
	}
	server, err := to.NewPod("server")
	if err != nil {
		return way{}, err
	}
	return way{"strake", client.Space, server.Space, server.Addrs[0]}, settled(from, to)
}

// settled waits until the programs of the nodes' pods are links, as those of pods are after a while. Linux before 6.6 has none.
func settled(nodes ...*podnet.Node) error {
	late := time.Now().Add(10 * time.Second)
	for _, n := range nodes {
		for time.Now().Before(late) {
			filters, err := filepath.Glob(filepath.Join(n.Dir, "bpf", "filter_strake_pod_*"))
			if err != nil {
				return err
			}
			if len(filters) == 0 {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	return nil
}

// barePair is two namespaces with a veth pair between them.
func barePair(l *podnet.Lab) (way, error) {
	w := way{name: "a bare veth pair", addr: netip.MustParseAddr("192.0.2.2")}
	var err error
	if w.client, err = l.Space("bare-client"); err != nil {
		return w, err
	}
	if w.server, err = l.Space("bare-server"); err != nil {
		return w, err
	}
	return w, errors.Join(w.client.Connect("eth0", w.server, "eth0"), w.client.Address("eth0", "192.0.2.1/24"), w.server.Address("eth0", "192.0.2.2/24"))
}

// bridgeNode is a namespace whose pods a bridge connects: what containernetworking's plugins make of their usual configuration.
type bridgeNode struct {
	lab   *podnet.Lab
	space podnet.Space
	conf  string
}

// plugins is where Debian puts them.
const plugins = "/usr/lib/cni"

func newBridgeNode(l *podnet.Lab, name string) (*bridgeNode, error) {
	if _, err := os.Stat(filepath.Join(plugins, "bridge")); err != nil {
		return nil, fmt.Errorf("%w: install containernetworking-plugins (`make bench-podnet` does)", err)
	}
	s, err := l.Space(name)
	if err != nil {
		return nil, err
	}
	return &bridgeNode{lab: l, space: s, conf: `{"cniVersion":"1.0.0","name":"rival","type":"bridge","bridge":"cni0","isGateway":true,"hairpinMode":true,
		"ipam":{"type":"host-local","dataDir":"` + filepath.Dir(string(s)) + `/host-local-` + name + `","ranges":[[{"subnet":"10.88.0.0/16"}]],"routes":[{"dst":"0.0.0.0/0"}]}}`}, nil
}

func (n *bridgeNode) pods() (way, error) {
	w := way{name: "bridge + host-local"}
	var err error
	if w.client, err = n.lab.Space("bridge-client"); err != nil {
		return w, err
	}
	if w.server, err = n.lab.Space("bridge-server"); err != nil {
		return w, err
	}
	if _, err := n.call("ADD", "client", w.client); err != nil {
		return w, err
	}
	w.addr, err = n.call("ADD", "server", w.server)
	return w, err
}

// sameMTU tells that both ways have interfaces of the same MTU: else a stream's figures would compare packets' sizes.
func sameMTU(ways ...way) error {
	mtu := 0
	for _, w := range ways {
		for _, s := range []podnet.Space{w.client, w.server} {
			if err := s.In(func() error {
				link, err := netlink.LinkByName("eth0")
				if err != nil {
					return err
				}
				if mtu == 0 {
					mtu = link.Attrs().MTU
				}
				if link.Attrs().MTU != mtu {
					return fmt.Errorf("%s has an MTU of %d, others %d", w.name, link.Attrs().MTU, mtu)
				}
				return nil
			}); err != nil {
				return err
			}
		}
	}
	return nil
}
