package cni

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"reflect"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/vishvananda/netlink"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cni/plugin"
)

// Handle carries out one call.
func (s *Server) Handle(r plugin.Request) (*types100.Result, *types.Error) {
	result, err := s.handle(r)
	if err == nil {
		return result, nil
	}
	var ce *types.Error
	if errors.As(err, &ce) {
		return nil, ce
	}
	return nil, types.NewError(types.ErrInternal, fmt.Sprintf("%s of container %s: %v", r.Verb, r.ContainerID, err), "")
}

func (s *Server) handle(r plugin.Request) (*types100.Result, error) {
	switch r.Verb {
	case "ADD", "DEL", "CHECK":
		if err := valid(r); err != nil {
			return nil, err
		}
	}
	switch r.Verb {
	case "ADD":
		result, err := s.add(r)
		if errors.Is(err, errFull) {
			// Not within add: it holds its pod's lock, and collect takes those of others.
			if err := s.collect(); err != nil {
				return nil, err
			}
			if result, err = s.add(r); errors.Is(err, errFull) {
				return nil, types.NewError(types.ErrTryAgainLater, err.Error(), "addresses come free as pods go; a node with more pods needs a larger range (--node-cidr-mask-size of the controller manager)")
			}
		}
		return result, err
	case "DEL":
		defer s.calls.lock(r.ContainerID)()
		return nil, s.del(r.ContainerID, r.Ifname)
	case "CHECK":
		defer s.calls.lock(r.ContainerID)()
		return nil, s.check(r)
	case "GC":
		return nil, s.gc(r.Valid)
	case "STATUS":
		return nil, s.status()
	}
	return nil, types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("unknown verb %q", r.Verb), "")
}

// status tells whether an ADD can succeed now. Addresses that are all in use are no reason to call the node's network away: they come
// free, and nothing of the node's depends on it.
func (s *Server) status() error {
	ranges, ok := s.cfg.PodCIDRs()
	if !ok {
		return types.NewError(types.ErrPluginNotAvailable, "the node has no pod range yet", "the controller manager gives it one when the Node is registered")
	}
	for _, r := range ranges {
		name := forward6
		if r.Addr().Is4() {
			name = forward4
		}
		if v, err := readSysctl(name); err != nil || v != "1" {
			return types.NewError(types.ErrLimitedConnectivity, fmt.Sprintf("the node does not forward: sysctl %s is %q", name, v), "pods can't reach the outside; something changed what the agent set at its start")
		}
	}
	return nil
}

// maxContainerID bounds an id: it is part of a file's name.
const maxContainerID = 200

// valid refuses what CNI 1.1, section 2, does not allow; both names become part of file names.
func valid(r plugin.Request) error {
	if err := utils.ValidateContainerID(r.ContainerID); err != nil {
		return err
	}
	if len(r.ContainerID) > maxContainerID {
		return types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_CONTAINERID is longer than %d characters", maxContainerID), "")
	}
	if err := utils.ValidateInterfaceName(r.Ifname); err != nil {
		return err
	}
	if r.Verb != "DEL" && !filepath.IsAbs(r.Netns) {
		return types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_NETNS %q is not an absolute path", r.Netns), "")
	}
	return nil
}

// add gives a pod its interface. It answers when packets flow, or undoes all.
func (s *Server) add(r plugin.Request) (*types100.Result, error) {
	defer s.calls.lock(r.ContainerID)()
	ranges, ok := s.cfg.PodCIDRs()
	if !ok {
		return nil, types.NewError(types.ErrTryAgainLater, "the node has no pod range yet", "the controller manager gives it one when the Node is registered")
	}
	if _, ok := s.ipam.get(r.ContainerID, r.Ifname); ok {
		// A second ADD is an error (CNI 1.1, section ADD) that must not harm the first. But if the interface is not
		// there, a crash cut the first short, and this is its repetition.
		if there, err := present(r.Netns, r.Ifname); err != nil {
			return nil, err
		} else if there {
			return nil, fmt.Errorf("%w: %s", errExists, r.Ifname)
		}
		if err := s.del(r.ContainerID, r.Ifname); err != nil {
			return nil, err
		}
	}
	if err := first(r); err != nil {
		return nil, err
	}
	ports, err := hostPorts(r.Ports, s.cfg.NodeAddrs, ranges)
	if err != nil {
		return nil, err
	}
	if err := checkBandwidth(r.Bandwidth); err != nil {
		return nil, err
	}
	for capability, asked := range map[string]bool{"portMappings": len(ports) > 0, "bandwidth": r.Bandwidth != plugin.Bandwidth{}} {
		if !asked {
			continue
		}
		if err := withoutRival(s.cfg.ConfDir, capability); err != nil {
			return nil, err
		}
	}
	p, err := inPod(r.Netns)
	if err != nil {
		return nil, err
	}
	defer p.close()
	name, uid := podOf(r)
	a, durable, err := s.ipam.allocate(ranges, Allocation{ContainerID: r.ContainerID, Ifname: r.Ifname, Host: hostName(r.ContainerID, r.Ifname), Netns: r.Netns, Pod: name, UID: uid, Ports: ports, Bandwidth: r.Bandwidth})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), admitTimeout)
	defer cancel()
	admitted := make(chan error, 1)
	go func() { admitted <- s.admit(ctx, a) }() // meanwhile the link is made
	mtu, err := s.connect(p, a)
	if derr := durable(); err == nil {
		err = derr
	}
	if err != nil {
		cancel()
	}
	if aerr := <-admitted; err == nil {
		err = aerr
	}
	if errors.Is(err, errExists) {
		s.release(r.ContainerID, r.Ifname)
		return nil, errors.Join(err, s.ipam.release(r.ContainerID, r.Ifname))
	}
	if err != nil {
		return nil, errors.Join(err, s.del(r.ContainerID, r.Ifname))
	}
	select {
	case s.fresh <- a:
	default: // so many at once wait for the next start
	}
	return result(r, a, mtu), nil
}

// connect makes a pod's link and returns its MTU. The programs are there before any packet can be.
func (s *Server) connect(p *pod, a Allocation) (mtu int, err error) {
	outside, err := makeLink(p, a, s.cfg.Alias, s.cfg.MTU())
	if err != nil {
		return 0, err
	}
	if err := s.attach(a, outside.Attrs().Index, s.cfg.Datapath.AttachNewPod); err != nil {
		return 0, err
	}
	if err := hostSide(outside, a, s.cfg.NodeAddrs); err != nil {
		return 0, err
	}
	return outside.Attrs().MTU, podSide(p, a)
}

// first refuses an ADD behind a plugin that made the pod's interface: strake-cni makes it, and others may follow.
func first(r plugin.Request) error {
	if r.Prev == nil {
		return nil
	}
	for _, i := range r.Prev.Interfaces {
		if i != nil && i.Name == r.Ifname && i.Sandbox != "" {
			return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("a plugin before strake-cni made the pod's interface %s", r.Ifname), "strake-cni makes it itself: it must be the first plugin of the list")
		}
	}
	return nil
}

// result is what ADD answers: what plugins before made, if there were any, and a pod's interface.
func result(r plugin.Request, a Allocation, mtu int) *types100.Result {
	podMAC, hostMAC := macs(a)
	out := &types100.Result{}
	if r.Prev != nil {
		*out = *r.Prev
	}
	out.CNIVersion = types100.ImplementedSpecVersion
	out.Interfaces = append(out.Interfaces,
		&types100.Interface{Name: a.Host, Mac: hostMAC.String(), Mtu: mtu},
		&types100.Interface{Name: a.Ifname, Mac: podMAC.String(), Mtu: mtu, Sandbox: r.Netns})
	index := len(out.Interfaces) - 1
	for _, addr := range a.Addrs {
		gw, all := gateway(addr.Is4()).AsSlice(), everything(addr.Is4())
		out.IPs = append(out.IPs, &types100.IPConfig{Interface: types100.Int(index), Address: *ipNet(addr), Gateway: gw})
		out.Routes = append(out.Routes, &types.Route{Dst: net.IPNet{IP: all.Addr().AsSlice(), Mask: net.CIDRMask(0, all.Addr().BitLen())}, GW: gw})
	}
	return out
}

// del undoes add, whatever of it is left. The address is free for others only when all else is gone.
func (s *Server) del(container, ifname string) error {
	k, host := key(container, ifname), hostName(container, ifname)
	s.mu.Lock()
	ifindex, attached := s.ifindex[k]
	s.mu.Unlock()
	// The row goes before the interface: a packet is dropped rather than sent to a stranger with the same index.
	err := s.closePorts(container, ifname)
	_, rerr := s.cfg.Datapath.Endpoints().Replace(owner(container, ifname), nil)
	_, serr := s.cfg.Datapath.SocketsOff().Replace(socketsOwner(container), nil)
	err = errors.Join(err, rerr, serr)
	if attached {
		err = errors.Join(err, s.cfg.Datapath.DetachPod(ifindex))
	}
	if err = errors.Join(err, disconnect(host)); err != nil {
		return err
	}
	s.mu.Lock()
	delete(s.ifindex, k)
	s.mu.Unlock()
	s.release(container, ifname)
	return s.ipam.release(container, ifname)
}

// release has the guard forget an attachment, if there is one.
func (s *Server) release(container, ifname string) {
	if a, ok := s.ipam.get(container, ifname); ok && s.cfg.Guard != nil {
		s.cfg.Guard.Release(a)
	}
}

// check reports damage.
func (s *Server) check(r plugin.Request) error {
	a, ok := s.ipam.get(r.ContainerID, r.Ifname)
	if !ok {
		return types.NewError(types.ErrUnknownContainer, fmt.Sprintf("container %s has no interface %s of strake", r.ContainerID, r.Ifname), "")
	}
	if err := matches(r, a); err != nil {
		return err
	}
	ifindex, err := verify(a, r.Netns, s.cfg.MTU())
	if err != nil {
		return err
	}
	if err := s.cfg.Datapath.PodAttached(ifindex); err != nil {
		return err
	}
	rows, err := s.cfg.Datapath.Endpoints().Dump()
	if err != nil {
		return err
	}
	for _, want := range endpoints(a, ifindex) {
		if !slices.ContainsFunc(rows, func(have bpf.Endpoint) bool { return reflect.DeepEqual(have, want) }) {
			return fmt.Errorf("the kernel has no endpoint %s on interface %d", want.Addr, want.Ifindex)
		}
	}
	return nil
}

// matches compares what ADD answered, as the runtime kept it and plugins behind this one changed it, with what the pod has here. They
// may have changed much, but not the addresses by which packets find the pod.
func matches(r plugin.Request, a Allocation) error {
	if r.Prev == nil {
		return nil
	}
	podMAC, _ := macs(a)
	index := slices.IndexFunc(r.Prev.Interfaces, func(i *types100.Interface) bool { return i != nil && i.Name == a.Ifname && i.Sandbox != "" })
	if index < 0 {
		return fmt.Errorf("prevResult has no interface %s of the pod", a.Ifname)
	}
	if mac := r.Prev.Interfaces[index].Mac; mac != "" && mac != podMAC.String() {
		return fmt.Errorf("prevResult gives %s the Ethernet address %s, but packets are sent to %s; a plugin behind strake-cni can't change it", a.Ifname, mac, podMAC)
	}
	for _, addr := range a.Addrs {
		if !slices.ContainsFunc(r.Prev.IPs, func(ip *types100.IPConfig) bool {
			return ip != nil && toAddr(ip.Address.IP) == addr && (ip.Interface == nil || *ip.Interface == index)
		}) {
			return fmt.Errorf("prevResult does not give %s the address %s", a.Ifname, addr)
		}
	}
	return nil
}

// collect releases what pods had whose interface went with their namespace and for whom no DEL came: a runtime that
// lost its state sends none, and one of CNI 1.0 no GC either.
func (s *Server) collect() error {
	var errs []error
	for _, a := range s.ipam.list() {
		unlock := s.calls.lock(a.ContainerID)
		if _, ok := s.ipam.get(a.ContainerID, a.Ifname); ok { // still: nothing is under way
			if _, err := netlink.LinkByName(a.Host); errors.As(err, new(netlink.LinkNotFoundError)) {
				klog.InfoS("Releasing the address of a pod that is gone", "container", a.ContainerID, "addresses", a.Addrs)
				errs = append(errs, s.del(a.ContainerID, a.Ifname))
			}
		}
		unlock()
	}
	return errors.Join(errs...)
}

// gc removes all attachments but the valid ones.
func (s *Server) gc(valid []string) error {
	keep := map[string]bool{}
	for _, v := range valid {
		keep[v] = true
	}
	var errs []error
	for _, a := range s.ipam.list() {
		if !keep[a.ContainerID+"/"+a.Ifname] {
			unlock := s.calls.lock(a.ContainerID)
			errs = append(errs, s.del(a.ContainerID, a.Ifname))
			unlock()
		}
	}
	return errors.Join(append(errs, s.sweep())...)
}
