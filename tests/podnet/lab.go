package podnet

import (
	"bufio"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/rlimit"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cni"
	"github.com/strake-io/strake/cni/plugin"
)

// All addresses are of both families: the first is IPv4, the second IPv6.
var (
	// OutsideIPs are those of the outside namespace, the nodes' default routes; it knows no way to the pods. The ranges are for
	// benchmarks (RFC 2544) and documentation (RFC 3849).
	OutsideIPs = [2]netip.Addr{netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("2001:db8::1")}
	// DNSAddrs are those of the nodes' cluster DNS.
	DNSAddrs = [2]netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:10:96::a")}
	// allPods hold the ranges of all nodes.
	allPods = [2]netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/56")}
)

// linkBits are the lengths of the link's prefixes.
var linkBits = [2]int{24, 64}

// Lab is nodes and a machine outside, on one link.
type Lab struct {
	Outside Space
	Nodes   []*Node
	dir     string
	spaces  []Space

	mu     sync.Mutex
	askers map[Space]*asker // of the places that have asked
}

// Node is a node's place, and its process when it runs.
type Node struct {
	Spec
	Space Space
	lab   *Lab
	cmd   *exec.Cmd
	log   *os.File
}

// Pod is a network namespace that the node has given an interface.
type Pod struct {
	Space
	Node  *Node
	ID    string
	Addrs []netip.Addr
}

// New makes n nodes; none runs yet, and what is desired of them is to be put into their Spec before Start. Close takes all away.
func New(n int) (l *Lab, err error) {
	l = &Lab{askers: map[Space]*asker{}}
	if l.dir, err = os.MkdirTemp("", "strake-podnet-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	if l.Outside, err = l.Space("outside"); err != nil {
		return l, err
	}
	if err := l.Outside.In(func() error {
		if err := trustAddresses(); err != nil {
			return err
		}
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "link"}}); err != nil {
			return fmt.Errorf("bridge: %w", err)
		}
		return setUp("link")
	}); err != nil {
		return l, err
	}
	if err := l.Outside.Address("link", onLink(OutsideIPs[:])...); err != nil {
		return l, err
	}
	root, err := cgroupRoot()
	if err != nil {
		return l, err
	}
	for i := 1; i <= n; i++ {
		if err := l.addNode(i, root); err != nil {
			return l, err
		}
	}
	var all []cni.NodeInfo
	for _, node := range l.Nodes {
		name := filepath.Base(node.Dir)
		all = append(all, cni.NodeInfo{Name: name, UID: "uid-" + name, PodCIDRs: node.PodCIDRs, Addrs: node.Addrs})
	}
	for _, node := range l.Nodes {
		node.Routing, node.Nodes = cni.VXLAN, all
	}
	return l, nil
}

func (l *Lab) addNode(i int, root string) error {
	name := fmt.Sprint("node", i)
	var id [4]byte
	rand.Read(id[:])
	n := &Node{lab: l, Spec: Spec{
		Dir: filepath.Join(l.dir, name), CgroupRoot: root, Cgroup: filepath.Join(root, "strake-podnet-"+hex.EncodeToString(id[:])),
		Addrs:    []netip.Addr{netip.AddrFrom4([4]byte{198, 18, 0, byte(10 + i)}), netip.MustParseAddr(fmt.Sprintf("2001:db8::1%d", i))},
		PodCIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i), 0}), 24), netip.MustParsePrefix(fmt.Sprintf("fd00:10:244:%x::/64", i))},
		DNSAddrs: DNSAddrs[:], NoMasquerade: allPods[:],
	}}
	l.Nodes = append(l.Nodes, n)
	for _, dir := range []string{n.Dir, n.Cgroup} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	if err := bpf.MountBPFFS(n.pins()); err != nil {
		return err
	}
	var err error
	if n.Space, err = l.Joined(name); err != nil {
		return err
	}
	if err := n.Space.Address(Uplink, onLink(n.Addrs)...); err != nil {
		return err
	}
	return n.Space.In(func() error {
		for _, gw := range OutsideIPs {
			if err := netlink.RouteAdd(&netlink.Route{Gw: gw.AsSlice()}); err != nil {
				return fmt.Errorf("default route over %s: %w", gw, err)
			}
		}
		return nil
	})
}

// ServeDrivers makes the link what programs at the drivers of nodes need: its ends at these nodes take the frames that they send back, which makes all that
// they send slower, and the machine outside makes its checksums itself.
func (l *Lab) ServeDrivers(nodes ...*Node) error {
	return l.Outside.In(func() error {
		var ports []string
		for _, n := range nodes {
			ports = append(ports, filepath.Base(n.Dir))
		}
		if err := TakeFrames(ports...); err != nil {
			return err
		}
		return SumItself("link")
	})
}

// TakeFrames makes ends of virtual pairs, of the calling thread's namespace, take the frames that programs at the other ends' drivers send back. It goes with the pair.
func TakeFrames(ports ...string) error {
	if err := rlimit.RemoveMemlock(); err != nil {
		return err
	}
	pass, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "podnet_pass", Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}})
	if err != nil {
		return err
	}
	defer pass.Close()
	for _, name := range ports {
		port, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkSetXdpFdWithFlags(port, pass.FD(), unix.XDP_FLAGS_DRV_MODE)
		}
		if err != nil {
			return fmt.Errorf("port %s: %w", name, err)
		}
	}
	return nil
}

// SumItself lets nobody behind a device make the checksums of what it sends.
func SumItself(device string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	off := struct{ command, on uint32 }{command: unix.ETHTOOL_STXCSUM}
	var r struct { // ifreq
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(r.name[:], device)
	r.data = unsafe.Pointer(&off)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&r))); errno != 0 {
		return fmt.Errorf("checksums of %s: %w", device, errno)
	}
	return nil
}

// onLink gives addresses of both families in CIDR notation.
func onLink(addrs []netip.Addr) (cidrs []string) {
	for i, a := range addrs {
		cidrs = append(cidrs, netip.PrefixFrom(a, linkBits[i]).String())
	}
	return cidrs
}

// Space makes a namespace that goes with the lab.
func (l *Lab) Space(name string) (Space, error) {
	s, err := NewSpace(filepath.Join(l.dir, name+".net"))
	if err == nil {
		l.spaces = append(l.spaces, s)
	}
	return s, err
}

// Joined makes a namespace that is on the lab's link by its interface Uplink; it has no address yet.
func (l *Lab) Joined(name string) (Space, error) {
	s, err := l.Space(name)
	if err != nil {
		return s, err
	}
	if err := s.In(trustAddresses); err != nil {
		return s, err
	}
	if err := l.Outside.Connect(name, s, Uplink); err != nil {
		return s, err
	}
	return s, l.Outside.In(func() error {
		port, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		bridge, err := netlink.LinkByName("link")
		if err != nil {
			return err
		}
		return netlink.LinkSetMasterByIndex(port, bridge.Attrs().Index)
	})
}

// trustAddresses lets interfaces of the namespace use their link-local addresses at once: for two seconds they would look for another
// user of theirs, and find no neighbour for others' packets.
func trustAddresses() error {
	for _, of := range []string{"all", "default"} {
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+of+"/accept_dad", []byte("0"), 0); err != nil {
			return err
		}
	}
	return nil
}

// Close ends the nodes and takes all away. Repeating it is fine.
func (l *Lab) Close() error {
	var errs []error
	for _, a := range l.askers {
		errs = append(errs, a.close())
	}
	clear(l.askers)
	for _, n := range l.Nodes {
		errs = append(errs, n.Stop())
		if n.Space != "" {
			errs = append(errs, n.Space.In(n.remove))
		}
		errs = append(errs, bpf.UnmountBPFFS(n.pins()))
		if err := os.Remove(n.Cgroup); err != nil && !os.IsNotExist(err) {
			errs = append(errs, err)
		}
	}
	for _, s := range l.spaces {
		errs = append(errs, s.Remove())
	}
	if err := errors.Join(errs...); err != nil {
		return err // the folder tells more
	}
	return os.RemoveAll(l.dir)
}

// Start starts the nodes that don't run and returns when they are as desired.
func (l *Lab) Start() error {
	for _, n := range l.Nodes {
		if err := n.Start(); err != nil {
			return err
		}
	}
	return nil
}

// Start starts the node's process, if it doesn't run, and returns when the kernel holds what is desired.
func (n *Node) Start() error {
	if n.cmd != nil {
		return nil
	}
	data, err := json.Marshal(n.Spec)
	if err != nil {
		return err
	}
	file := filepath.Join(n.Dir, "spec.json")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return err
	}
	if n.log == nil {
		if n.log, err = os.Create(filepath.Join(n.Dir, "log")); err != nil {
			return err
		}
	}
	c := exec.Command("/proc/self/exe", file)
	c.Env = append(os.Environ(), roleVariable+"=node")
	c.Stderr = n.log
	out, err := c.StdoutPipe()
	if err != nil {
		return err
	}
	if err := n.Space.In(c.Start); err != nil {
		return err
	}
	n.cmd = c
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		log, _ := os.ReadFile(n.log.Name()) // it may have said nothing
		return fmt.Errorf("node %s did not start (%v):\n%s%s", filepath.Base(n.Dir), err, line, log)
	}
	return nil
}

// Stop ends the node's process as a service manager does; what it has put into the kernel stays.
func (n *Node) Stop() error {
	return n.end(unix.SIGTERM)
}

// Kill ends the node's process at once.
func (n *Node) Kill() error {
	err := n.end(unix.SIGKILL)
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == unix.SIGKILL {
		return nil
	}
	return err
}

func (n *Node) end(s os.Signal) error {
	if n.cmd == nil {
		return nil
	}
	c := n.cmd
	n.cmd = nil
	if err := c.Process.Signal(s); err != nil {
		return err
	}
	return c.Wait()
}

// NewPod makes a pod on the node, as a runtime does by its plugin.
func (n *Node) NewPod(name string) (*Pod, error) {
	p := &Pod{Node: n, ID: filepath.Base(n.Dir) + "-" + name}
	var err error
	if p.Space, err = n.lab.Space(p.ID); err != nil {
		return nil, err
	}
	resp, err := n.Call(plugin.Request{Verb: "ADD", ContainerID: p.ID, Netns: string(p.Space), Ifname: "eth0"})
	if err != nil {
		return nil, fmt.Errorf("pod %s: %w", p.ID, err)
	}
	for _, a := range resp.IPs {
		addr, ok := netip.AddrFromSlice(a.Address.IP)
		if !ok {
			return nil, fmt.Errorf("pod %s: address %v", p.ID, a.Address)
		}
		p.Addrs = append(p.Addrs, addr.Unmap())
	}
	return p, nil
}

// Call asks the node's CNI server.
func (n *Node) Call(r plugin.Request) (*types100.Result, error) {
	c, err := net.Dial("unix", n.Socket())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := json.NewEncoder(c).Encode(r); err != nil {
		return nil, err
	}
	var resp plugin.Response
	if err := json.NewDecoder(c).Decode(&resp); err != nil {
		return nil, err
	}
	if resp.Error != nil {
		return nil, (*types.Error)(resp.Error)
	}
	return resp.Result, nil
}

// cgroupRoot finds the cgroup2 mount.
func cgroupRoot() (string, error) {
	data, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			return f[1], nil
		}
	}
	return "", errors.New("no cgroup2 mount")
}

// Ask sends n messages from the pod, each over a connection or socket of its own, and returns what came back, line by line: who
// answered, and as whom it saw the pod. As a process of the node, it meets the socket hooks.
func (p *Pod) Ask(network string, to netip.AddrPort, n int) (string, error) {
	return p.Node.lab.ask(p.Space, p.Node.Cgroup, network, to, n)
}

// Ask is the same from a process of the node itself.
func (n *Node) Ask(network string, to netip.AddrPort, times int) (string, error) {
	return n.lab.ask(n.Space, n.Cgroup, network, to, times)
}

// AskOutside is the same from outside.
func (l *Lab) AskOutside(network string, to netip.AddrPort, times int) (string, error) {
	return l.ask(l.Outside, "", network, to, times)
}

func (l *Lab) ask(s Space, cgroup, network string, to netip.AddrPort, times int) (string, error) {
	l.mu.Lock()
	a := l.askers[s]
	if a == nil {
		var err error
		if a, err = newAsker(s, cgroup); err != nil {
			l.mu.Unlock()
			return "", fmt.Errorf("client in %s: %w", s, err)
		}
		l.askers[s] = a
	}
	l.mu.Unlock()
	return a.ask(network, to, times)
}

// patience is how long a client waits for an answer: an emulated machine is slow.
const patience = 20 * time.Second
