package kubeproxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/cni"
)

// Device is an interface of the node, as far as it matters whether packets for Services come in there.
type Device struct {
	Name     string
	Index    int
	Kind     string // of the driver, such as veth; empty for hardware
	Loopback bool
	Ethernet bool // its packets have a MAC header
	Global   bool // it has an address that is neither of the link nor of the host alone
	Node     bool // it has one of the node's addresses
	Gateway  bool // a route with a gateway leads out of it
	Far      bool // its other end is in another network namespace
	Port     bool // of a bridge or the like, which gets what comes in
}

// Wanted are the indices of the devices where the programs belong. Patterns (shell patterns, such as "eth*") choose by name; without any it is
// every device with an address, but no pod's: a veth counts if it has an address of the node, or if a gateway is behind it.
func Wanted(devices []Device, patterns []string) []int {
	var out []int
	for _, d := range devices {
		if d.Loopback || !d.Ethernet {
			continue
		}
		wanted := d.Global && (d.Kind != "veth" || d.Node || d.Gateway)
		if len(patterns) > 0 {
			wanted = slices.ContainsFunc(patterns, func(p string) bool {
				ok, err := filepath.Match(p, d.Name)
				return err == nil && ok
			})
		}
		if wanted {
			out = append(out, d.Index)
		}
	}
	slices.Sort(out)
	return out
}

// ofPods are the indices of the devices that lead to pods: veths whose other end is elsewhere, and by which the node itself is not reached.
func ofPods(devices []Device) []int {
	var out []int
	for _, d := range devices {
		if d.Kind == "veth" && d.Far && d.Ethernet && !d.Node && !d.Gateway {
			out = append(out, d.Index)
		}
	}
	return out
}

// ofOnePod are those of ofPods that are no port of a bridge, which is a device of its own, and that have no programs of Services already.
func ofOnePod(devices []Device, served []int) []int {
	ports := slices.DeleteFunc(slices.Clone(devices), func(d Device) bool { return d.Port || slices.Contains(served, d.Index) })
	return ofPods(ports)
}

// checkPatterns refuses those that match nothing by their form.
func checkPatterns(patterns []string) error {
	for _, p := range patterns {
		if _, err := filepath.Match(p, ""); err != nil || strings.ContainsRune(p, '/') {
			return fmt.Errorf("--devices %s is no pattern of interface names, such as eth0 or en*", p)
		}
	}
	return nil
}

// Devices reads the interfaces of the calling thread's network namespace.
func Devices(node []netip.Addr) ([]Device, error) {
	links, err := cni.Whole(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("interfaces: %w", err)
	}
	addrs, err := cni.Whole(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("addresses: %w", err)
	}
	routes, err := cni.Whole(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("routes: %w", err)
	}
	out := make([]Device, 0, len(links))
	at := map[int]int{}
	for _, l := range links {
		a := l.Attrs()
		kind := l.Type()
		if kind == "device" {
			kind = ""
		}
		at[a.Index] = len(out)
		out = append(out, Device{Name: a.Name, Index: a.Index, Kind: kind, Loopback: a.RawFlags&unix.IFF_LOOPBACK != 0, Ethernet: a.EncapType == "ether", Far: a.NetNsID >= 0, Port: a.MasterIndex != 0})
	}
	for _, a := range addrs {
		i, ok := at[a.LinkIndex]
		ip, valid := netip.AddrFromSlice(a.IP)
		if !ok || !valid {
			continue
		}
		out[i].Global = out[i].Global || a.Scope == unix.RT_SCOPE_UNIVERSE && !ip.Unmap().IsLinkLocalUnicast()
		out[i].Node = out[i].Node || slices.Contains(node, ip.Unmap())
	}
	for _, r := range routes {
		hops := r.MultiPath
		if len(r.Gw) > 0 || r.Via != nil {
			hops = append(hops, &netlink.NexthopInfo{LinkIndex: r.LinkIndex, Gw: r.Gw, Via: r.Via})
		}
		for _, h := range hops {
			if i, ok := at[h.LinkIndex]; ok && (len(h.Gw) > 0 || h.Via != nil) {
				out[i].Gateway = true
			}
		}
	}
	return out, nil
}

// place is a kind of devices that have programs.
type place struct {
	what           string // for the log
	want           func([]Device) []int
	attach, detach func(ifindex int) error
	have           func() ([]int, error)
	attached       map[int]bool // by this process, with its programs
}

// devices keeps the programs where they belong.
type devices struct {
	node   []netip.Addr
	places []*place
}

// apply brings the programs to where they belong now, and takes them from where they don't any more.
func (d *devices) apply() error {
	list, err := Devices(d.node)
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range d.places {
		errs = append(errs, p.apply(list))
	}
	return errors.Join(errs...)
}

func (p *place) apply(list []Device) error {
	want := p.want(list)
	var errs []error
	for _, index := range want {
		if p.attached[index] {
			continue
		}
		name := list[slices.IndexFunc(list, func(v Device) bool { return v.Index == index })].Name
		if err := p.attach(index); err != nil {
			if _, gone := netlink.LinkByIndex(index); !errors.As(gone, new(netlink.LinkNotFoundError)) {
				errs = append(errs, fmt.Errorf("device %s: %w", name, err))
			}
			continue
		}
		p.attached[index] = true
		klog.InfoS(p.what+" at a device", "device", name)
	}
	have, err := p.have()
	errs = append(errs, err)
	for _, index := range have {
		if slices.Contains(want, index) {
			continue
		}
		if err := p.detach(index); err != nil {
			errs = append(errs, err)
			continue
		}
		delete(p.attached, index)
		klog.InfoS("A device is gone, or is none of ours any more", "index", index)
	}
	return errors.Join(errs...)
}

// Pauses between an event and a look at the devices: events come in flocks.
const (
	settle = 100 * time.Millisecond
	again  = 5 * time.Second // after a failure
)

// run follows the kernel's events until ctx ends.
func (d *devices) run(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := d.follow(ctx); err != nil && ctx.Err() == nil {
			klog.ErrorS(err, "The kernel's events were lost, looking anew")
			select {
			case <-ctx.Done():
			case <-time.After(settle):
			}
		}
	}
	return nil
}

func (d *devices) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, 3)
	fail := func(err error) {
		select {
		case failed <- err:
		default:
		}
	}
	changed := make(chan struct{}, 1)
	const buffer = 1 << 20
	links, addrs, routes := make(chan netlink.LinkUpdate, 64), make(chan netlink.AddrUpdate, 64), make(chan netlink.RouteUpdate, 64)
	if err := netlink.LinkSubscribeWithOptions(links, ctx.Done(), netlink.LinkSubscribeOptions{ErrorCallback: fail, ReceiveBufferSize: buffer}); err != nil {
		return fmt.Errorf("watch links: %w", err)
	}
	go forward(links, changed)
	if err := netlink.AddrSubscribeWithOptions(addrs, ctx.Done(), netlink.AddrSubscribeOptions{ErrorCallback: fail, ReceiveBufferSize: buffer}); err != nil {
		return fmt.Errorf("watch addresses: %w", err)
	}
	go forward(addrs, changed)
	if err := netlink.RouteSubscribeWithOptions(routes, ctx.Done(), netlink.RouteSubscribeOptions{ErrorCallback: fail, ReceiveBufferSize: buffer}); err != nil {
		return fmt.Errorf("watch routes: %w", err)
	}
	go forward(routes, changed)
	timer := time.NewTimer(0) // what changed before we watched
	defer timer.Stop()
	soon := true // the timer runs for an event: more of them don't put it off, there may be no end of them
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case <-changed:
			if !soon {
				soon = true
				timer.Reset(settle)
			}
		case <-timer.C:
			soon = false
			if err := d.apply(); err != nil {
				klog.ErrorS(err, "Not all devices have their programs, trying again")
				timer.Reset(again)
			}
		}
	}
}

// forward tells that something came, until its sender has ended.
func forward[T any](from <-chan T, to chan<- struct{}) {
	for range from {
		select {
		case to <- struct{}{}:
		default:
		}
	}
}
