package cni

import (
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
		if _, ok := s.cfg.PodCIDRs(); !ok {
			return nil, types.NewError(plugin.ErrUnavailable, "the node has no pod range yet", "the controller manager gives it one when the Node is registered")
		}
		return nil, nil
	}
	return nil, types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("unknown verb %q", r.Verb), "")
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
	ports, err := hostPorts(r.Ports, s.cfg.NodeAddrs, ranges)
	if err != nil {
		return nil, err
	}
	p, err := inPod(r.Netns)
	if err != nil {
		return nil, err
	}
	defer p.close()
	a, err := s.ipam.allocate(ranges, Allocation{ContainerID: r.ContainerID, Ifname: r.Ifname, Host: hostName(r.ContainerID, r.Ifname), Netns: r.Netns, Ports: ports})
	if err != nil {
		return nil, err
	}
	mtu, err := s.connect(p, a)
	if errors.Is(err, errExists) {
		return nil, errors.Join(err, s.ipam.release(r.ContainerID, r.Ifname))
	}
	if err != nil {
		return nil, errors.Join(err, s.del(r.ContainerID, r.Ifname))
	}
	return result(a, r.Netns, mtu), nil
}

// connect makes a pod's link and returns its MTU. The programs are there before any packet can be.
func (s *Server) connect(p *pod, a Allocation) (mtu int, err error) {
	outside, err := makeLink(p, a, s.cfg.Alias, s.cfg.MTU())
	if err != nil {
		return 0, err
	}
	if err := s.attach(a, outside.Attrs().Index); err != nil {
		return 0, err
	}
	if err := hostSide(outside, a, s.cfg.NodeAddrs); err != nil {
		return 0, err
	}
	return outside.Attrs().MTU, podSide(p, a)
}

func result(a Allocation, netns string, mtu int) *types100.Result {
	podMAC, hostMAC := macs(a)
	r := &types100.Result{
		CNIVersion: types100.ImplementedSpecVersion,
		Interfaces: []*types100.Interface{{Name: a.Host, Mac: hostMAC.String(), Mtu: mtu}, {Name: a.Ifname, Mac: podMAC.String(), Mtu: mtu, Sandbox: netns}},
	}
	for _, addr := range a.Addrs {
		gw, all := gateway(addr.Is4()).AsSlice(), everything(addr.Is4())
		r.IPs = append(r.IPs, &types100.IPConfig{Interface: types100.Int(1), Address: *ipNet(addr), Gateway: gw})
		r.Routes = append(r.Routes, &types.Route{Dst: net.IPNet{IP: all.Addr().AsSlice(), Mask: net.CIDRMask(0, all.Addr().BitLen())}, GW: gw})
	}
	return r
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
	err = errors.Join(err, rerr)
	if attached {
		err = errors.Join(err, s.cfg.Datapath.DetachPod(ifindex))
	}
	if err = errors.Join(err, disconnect(host)); err != nil {
		return err
	}
	s.mu.Lock()
	delete(s.ifindex, k)
	s.mu.Unlock()
	return s.ipam.release(container, ifname)
}

// check reports damage.
func (s *Server) check(r plugin.Request) error {
	a, ok := s.ipam.get(r.ContainerID, r.Ifname)
	if !ok {
		return types.NewError(types.ErrUnknownContainer, "no such attachment", r.ContainerID+"/"+r.Ifname)
	}
	ifindex, err := verify(a, r.Netns, []int{s.cfg.MTU()})
	if err != nil {
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
