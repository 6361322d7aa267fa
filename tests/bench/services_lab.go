package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cni"
	"github.com/strake-io/strake/tests/bench/kubeproxy"
	"github.com/strake-io/strake/tests/podnet"
)

// sizes are numbers of Services, each of so many endpoints.
var sizes = []int{1, 100, 1_000, 10_000, 50_000}

const (
	endpointsEach = 5
	nodePorts     = 2000  // Services that have a NodePort, of those that a node has: the range holds 2768
	firstNodePort = 30000 // of --service-node-port-range
	servicePort   = 80
	firstBackend  = 8001 // the endpoints of the Service that is asked are ports of one pod
)

// benchService is the i-th Service of a node whose server pod has an address. The first is the one that is asked; the others' endpoints don't exist.
func benchService(i int, server netip.Addr) kubeproxy.Service {
	s := kubeproxy.Service{
		Name:      fmt.Sprintf("bench/service-%d:http", i),
		ClusterIP: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96 + byte(i>>16), byte(i >> 8), byte(i)}), servicePort),
	}
	if i == 0 {
		s.ClusterIP = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 111, 0, 1}), servicePort)
	}
	for e := range endpointsEach {
		if i == 0 {
			s.Endpoints = append(s.Endpoints, netip.AddrPortFrom(server, firstBackend+uint16(e)))
		} else {
			s.Endpoints = append(s.Endpoints, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 200 + byte(e), byte(i >> 8), byte(i)}), 8080))
		}
	}
	if i < nodePorts {
		s.NodePort = firstNodePort + uint16(i)
	}
	return s
}

// rows are what the proxy would write for n Services.
func serviceRows(n int, server, node netip.Addr) []bpf.LoadBalancer {
	var all []bpf.LoadBalancer
	for i := range n {
		s := benchService(i, server)
		row := bpf.LoadBalancer{
			Owner: string(apiUID(i)), Name: s.Name, Protocol: unix.IPPROTO_TCP, Frontends: []bpf.Frontend{{Addr: s.ClusterIP, Kind: bpf.ClusterIP}},
		}
		if s.NodePort != 0 {
			row.Frontends = append(row.Frontends, bpf.Frontend{Addr: netip.AddrPortFrom(node, s.NodePort), Kind: bpf.NodePort})
		}
		for _, e := range s.Endpoints {
			row.Backends = append(row.Backends, bpf.Backend{Addr: e, All: true, Weight: 1})
		}
		all = append(all, row)
	}
	return all
}

// place is a node with a number of Services: ours, or a rival's.
type place struct {
	kind     string // ours, or the rival's name
	size     int
	client   *worker        // a pod's process
	outside  *worker        // a machine's outside
	direct   netip.AddrPort // the server's pod, without a Service
	service  netip.AddrPort
	nodePort netip.AddrPort
}

const (
	kindStrake   = "strake"
	kindDirect   = "direct" // ours without a Service: pod to pod
	kindIPTables = "iptables"
	kindNFTables = "nftables"
	kindRouted   = "routed alone" // the pod's own address, behind a machine that does nothing but route: no load balancer has less to do
)

// servicesLab is a node of every kind for every size, on one link.
type servicesLab struct {
	*podnet.Lab
	places map[string]map[int]*place // by kind, by size
	stops  []func() error
	ctx    context.Context // of what it runs
}

func newServicesLab(ctx context.Context, sizes []int) (l *servicesLab, err error) {
	l = &servicesLab{ctx: ctx, places: map[string]map[int]*place{kindStrake: {}, kindIPTables: {}, kindNFTables: {}, kindRouted: {}}}
	if l.Lab, err = podnet.New(len(sizes)); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	outside, err := l.worker(l.Outside, "")
	if err != nil {
		return l, err
	}
	for i, size := range sizes {
		n := l.Nodes[i]
		n.Routing = cni.Native // without a tunnel, for which pods' packets would be smaller
		if err := n.Start(); err != nil {
			return l, err
		}
		p := &place{kind: kindStrake, size: size, outside: outside}
		if err := l.ours(n, p); err != nil {
			return l, fmt.Errorf("strake with %d Services: %w", size, err)
		}
		l.places[p.kind][size] = p
		for _, kind := range []string{kindIPTables, kindNFTables} {
			p := &place{kind: kind, size: size, outside: outside}
			if err := l.rival(p, byte(10*i)); err != nil {
				return l, fmt.Errorf("%s with %d Services: %w", kind, size, err)
			}
			l.places[p.kind][size] = p
		}
	}
	p := &place{kind: kindRouted, size: sizes[0], outside: outside}
	if err := l.routed(p, byte(10*len(sizes))); err != nil {
		return l, fmt.Errorf("a machine that routes: %w", err)
	}
	l.places[p.kind][p.size] = p
	return l, settled(l.Nodes...)
}

// routed makes a machine that routes from the outside to a pod.
func (l *servicesLab) routed(p *place, id byte) error {
	m, err := l.machine("routed", id, "server")
	if err != nil {
		return err
	}
	server := m.pods[0]
	if err := (machine{Space: l.Outside}).way(server.addr, m.addr); err != nil {
		return err
	}
	p.address(server.addr, m.addr)
	return l.serve(server.Space)
}

func (l *servicesLab) worker(s podnet.Space, cgroup string) (*worker, error) {
	w, err := startWorker(s, cgroup)
	if err == nil {
		l.stops = append(l.stops, w.stop)
	}
	return w, err
}

// Close takes all away.
func (l *servicesLab) Close() error {
	var errs []error
	for _, stop := range l.stops {
		errs = append(errs, stop())
	}
	return errors.Join(append(errs, l.Lab.Close())...)
}

// serve starts the endpoints of the Service that is asked.
func (l *servicesLab) serve(s podnet.Space) error {
	for e := range endpointsEach {
		stop, err := echo(s, firstBackend+e, nil)
		if err != nil {
			return err
		}
		l.stops = append(l.stops, func() error { stop(); return nil })
	}
	return nil
}

// ours makes the pods of a node, and the Services: they name a pod's address, so the node's process learns of them when it starts anew.
func (l *servicesLab) ours(n *podnet.Node, p *place) error {
	client, err := n.NewPod("client")
	if err != nil {
		return err
	}
	server, err := n.NewPod("server")
	if err != nil {
		return err
	}
	if err := n.Stop(); err != nil {
		return err
	}
	n.LoadBalancers = serviceRows(p.size, server.Addrs[0], n.Addrs[0])
	if err := n.Start(); err != nil {
		return err
	}
	if p.client, err = l.worker(client.Space, n.Cgroup); err != nil {
		return err
	}
	p.address(server.Addrs[0], n.Addrs[0])
	return l.serve(server.Space)
}

func (p *place) address(server, node netip.Addr) {
	s := benchService(0, server)
	p.direct, p.service, p.nodePort = s.Endpoints[0], s.ClusterIP, netip.AddrPortFrom(node, s.NodePort)
}

// rival makes a namespace with the ruleset that kube-proxy would write, which routes between two pods and to the outside.
func (l *servicesLab) rival(p *place, id byte) error {
	if p.kind == kindNFTables {
		id++
	}
	m, err := l.machine(fmt.Sprintf("%.3s-%d", p.kind, p.size), id, "client", "server")
	if err != nil {
		return err
	}
	server := m.pods[1].addr
	if err := l.rules(m, p.kind, p.size, server); err != nil {
		return err
	}
	if p.client, err = l.worker(m.pods[0].Space, ""); err != nil {
		return err
	}
	p.address(server, m.addr)
	return l.serve(m.pods[1].Space)
}

// machine is a node of nobody's: a namespace on the link that routes for pods behind it.
type machine struct {
	podnet.Space
	name string
	addr netip.Addr
	pods []plainPod
}

type plainPod struct {
	podnet.Space
	addr netip.Addr
}

func (l *servicesLab) machine(name string, id byte, pods ...string) (m machine, err error) {
	m = machine{name: name, addr: netip.AddrFrom4([4]byte{198, 18, 0, 100 + id})}
	if m.Space, err = l.Joined(name); err != nil {
		return m, err
	}
	if err := m.Address(podnet.Uplink, m.addr.String()+"/24"); err != nil {
		return m, err
	}
	for i, pod := range pods {
		addr := func(last int) netip.Addr { return netip.AddrFrom4([4]byte{10, 89, id, byte(64*i + last)}) }
		gateway, own := addr(1), plainPod{addr: addr(2)}
		if own.Space, err = l.Space(name + "-" + pod); err != nil {
			return m, err
		}
		if err := errors.Join(
			m.Connect(pod, own.Space, "eth0"), m.Address(pod, gateway.String()+"/26"), own.Address("eth0", own.addr.String()+"/26"),
			own.In(func() error { return netlink.RouteAdd(&netlink.Route{Gw: gateway.AsSlice()}) }),
		); err != nil {
			return m, err
		}
		m.pods = append(m.pods, own)
	}
	return m, m.In(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) })
}

// rules gives a machine the ruleset of a kind for so many Services, the first one's endpoints at a server.
func (l *servicesLab) rules(m machine, kind string, size int, server netip.Addr) error {
	set := kubeproxy.Ruleset{PodCIDR: netip.MustParsePrefix("10.89.0.0/16"), NodeAddrs: []netip.Addr{m.addr}, Services: []kubeproxy.Service{benchService(0, server)}}
	for i := range size - 1 {
		set.Others = append(set.Others, benchService(i+1, server))
	}
	if kind == kindNFTables {
		return l.load(m.Space, m.name, set.NFTables, "nft -f -")
	}
	return l.load(m.Space, m.name, set.IPTables, "iptables-restore")
}

// load gives a ruleset to the program that loads it.
func (l *servicesLab) load(node podnet.Space, name string, write func(io.Writer) error, program string) error {
	var rules bytes.Buffer
	if err := write(&rules); err != nil {
		return err
	}
	file := filepath.Join(filepath.Dir(string(node)), name+".rules")
	if err := os.WriteFile(file, rules.Bytes(), 0o600); err != nil {
		return err
	}
	defer os.Remove(file)
	var out []byte
	if err := node.In(func() (err error) {
		out, err = exec.CommandContext(l.ctx, "sh", "-c", program+` <"$1"`, "sh", file).CombinedOutput()
		return err
	}); err != nil {
		return fmt.Errorf("%s (iptables and nftables are packages that this benchmark's make target installs): %w\n%s", program, err, out)
	}
	return nil
}
