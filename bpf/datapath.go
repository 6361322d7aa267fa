package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
)

// ErrNoPrograms is returned by Open: this build has no BPF programs in it.
var ErrNoPrograms = errors.New("bpf: this build carries no kernel programs")

// Config says where a node's datapath lives and what it serves itself.
type Config struct {
	PinDir     string       // a bpffs of this node's own
	CgroupRoot string       // cgroup2 mount
	NodeCgroup string       // the node's cgroup2 folder
	NodeAddrs  []netip.Addr // addresses on which NodePorts answer
	DNSAddr    netip.Addr   // cluster DNS address
	Zone       string       // cluster zone, such as cluster.local
	DNSTTL     uint32       // seconds
}

// Datapath is the loaded and attached node network.
type Datapath struct {
	loadBalancers Table[LoadBalancer]
	endpoints     Table[Endpoint]
	names         Table[Name]
}

// Status is what the kernel holds of ours.
type Status struct {
	Programs []ProgramStatus   `json:"programs"`
	Links    []LinkStatus      `json:"links"`
	Maps     []MapStatus       `json:"maps"`
	Counters map[string]uint64 `json:"counters"` // by reason, packets
}

// ProgramStatus is one loaded program.
type ProgramStatus struct {
	Name string `json:"name"`
	ID   uint32 `json:"id"`
}

// LinkStatus is one attachment; Ifindex is zero for a cgroup hook.
type LinkStatus struct {
	Program string `json:"program"`
	Kind    string `json:"kind"` // cgroup, tcx or clsact
	Ifindex int    `json:"ifindex,omitempty"`
}

// MapStatus is the fill of one map, in rows.
type MapStatus struct {
	Name  string `json:"name"`
	Count uint32 `json:"count"`
	Max   uint32 `json:"max"`
}

// Open checks c and the mounts it names. It always ends in an error: ErrNoPrograms if all else is in order.
func Open(c Config) (*Datapath, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	return nil, ErrNoPrograms
}

func (c Config) check() error {
	if !c.DNSAddr.Is4() {
		return fmt.Errorf("bpf: DNSAddr %v is not an IPv4 address", c.DNSAddr)
	}
	if c.Zone == "" {
		return errors.New("bpf: Zone is empty")
	}
	for _, a := range c.NodeAddrs {
		if !a.Is4() {
			return fmt.Errorf("bpf: node address %v is not an IPv4 address", a)
		}
	}
	if err := wantFS(c.PinDir, bpffsMagic, "bpffs"); err != nil {
		return err
	}
	if err := wantFS(c.CgroupRoot, cgroup2Magic, "cgroup2"); err != nil {
		return err
	}
	return wantFS(c.NodeCgroup, cgroup2Magic, "cgroup2")
}

// LoadBalancers is the table of Service ports.
func (d *Datapath) LoadBalancers() Table[LoadBalancer] { return d.loadBalancers }

// Endpoints is the table of local pod addresses.
func (d *Datapath) Endpoints() Table[Endpoint] { return d.endpoints }

// Names is the table of DNS names answered in the kernel.
func (d *Datapath) Names() Table[Name] { return d.names }

// AttachPod puts the pod program on a host-side veth.
func (d *Datapath) AttachPod(ifindex int) error {
	return fmt.Errorf("attach pod interface %d: %w", ifindex, ErrNoPrograms)
}

// DetachPod takes the pod program and its pin away; an interface that is gone is no error.
func (d *Datapath) DetachPod(ifindex int) error {
	return fmt.Errorf("detach pod interface %d: %w", ifindex, ErrNoPrograms)
}

// AttachUplink puts the uplink program on an interface.
func (d *Datapath) AttachUplink(ifindex int) error {
	return fmt.Errorf("attach uplink %d: %w", ifindex, ErrNoPrograms)
}

// Status reads programs, links, map fill and counters from the kernel.
func (d *Datapath) Status() (Status, error) { return Status{}, ErrNoPrograms }

// Close closes file descriptors only: everything pinned goes on working.
func (d *Datapath) Close() error { return nil }

// Remove detaches and unpins everything of ours below pinDir. A folder that is absent is no error, and neither is one with
// nothing in it. As Open pins nothing in this build, anything found there is not ours, so it is named and left alone.
func Remove(pinDir string) error {
	found, err := os.ReadDir(pinDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("bpf: remove %s: %w", pinDir, err)
	}
	for _, f := range found {
		switch f.Name() {
		case "maps.debug", "progs.debug": // the kernel puts them into every new bpffs
		default:
			return fmt.Errorf("bpf: remove %s: holds %s, which this build did not pin: %w", pinDir, f.Name(), ErrNoPrograms)
		}
	}
	return nil
}
