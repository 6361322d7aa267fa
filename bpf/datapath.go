package bpf

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
)

// Config says where a node's datapath lives and what it serves itself.
type Config struct {
	PinDir     string       // a bpffs of this node's own
	CgroupRoot string       // cgroup2 mount
	NodeCgroup string       // the node's cgroup2 folder; CgroupRoot itself if the machine is this node's alone
	DNSAddrs   []netip.Addr // cluster DNS addresses, at most one of each family; none if DNS is somebody else's
	Zone       string       // cluster zone, such as cluster.local
	DNSTTL     uint32       // seconds

	// NodeAddrs are what pods' packets leave the node's uplink as, at most one of each family; packets of a family without one leave with the
	// pods' addresses.
	NodeAddrs []netip.Addr
	// NoMasquerade are destinations that get them with the pods' addresses all the same: at least the pods of the other nodes.
	NoMasquerade []netip.Prefix
	// MasqueradeSources are ranges behind this node that are not its pods, and leave its uplink as pods do: machines that have no other way out.
	// Among themselves and with pods they are known by their own addresses.
	MasqueradeSources []netip.Prefix
	// AllowLinkLocal are link-local destinations that pods reach. By default there are none: what a node offers on its links is for the node,
	// such as the metadata of many clouds at 169.254.169.254, with the node's own credentials. Who runs a DNS cache for pods on a link-local
	// address (169.254.20.10 by custom) lists that.
	AllowLinkLocal []netip.Prefix

	// Flows is how many connections the node follows at a time, and as many flows of all other kinds; zero: DefaultFlows. Each takes some 300
	// bytes of kernel memory.
	Flows int

	// MaxFrontends and MaxBackends bound the tables of Services: addresses with a port that are asked, and those that answer (one that is both of
	// this node's set and of all counts twice). 0: DefaultMaxFrontends, DefaultMaxBackends. Tables that are there get another size with their rows.
	MaxFrontends, MaxBackends int

	// DSR: what clients outside ask of Services, and pods of other nodes are to answer, goes there as it came, and their nodes answer by themselves
	// (direct server return); without it, this node asks in its own name and passes the answers back. All nodes take what others send so.
	DSR bool
	// XDP tells whether packets that only pass the node go on at its uplinks' drivers.
	XDP XDPMode

	// Policy: packets of pods are judged by the rows of Policies, and a pod without a row there sends and gets nothing. Without it no program looks at
	// them.
	Policy bool
	// MaxPolicyPeers bounds the addresses, and the blocks, that policies tell apart, MaxPolicyRules the answers, and the ports, of all rule sets. 0:
	// DefaultMaxPolicyPeers, DefaultMaxPolicyRules.
	MaxPolicyPeers, MaxPolicyRules int

	// RecordFlows: each new flow of a pod, and each packet that policies deny, is counted in its class, and so many of a kind in a second are told, by
	// each processor (DefaultRecordFlows). 0: nothing is recorded. It needs Policy.
	RecordFlows int

	// Beside: the node has pods that another plugin has made, and AttachNames and AttachBeside work for them. Without, their programs are not loaded,
	// which are a third of the verifier's work.
	Beside bool

	noPackets   bool      // tests: without the programs of packets, which are nearly all of the verifier's work
	nameRows    uint32    // tests: room of each table of names, before its overflow
	newestRows  uint32    // tests: places of policy_places
	noSetRetval bool      // tests: as on Linux before 6.1
	noV6Only    bool      // tests: as on a kernel without BTF
	masqPorts   portRange // tests: instead of those that the kernel leaves

	newCollection func(*ebpf.CollectionSpec, ebpf.CollectionOptions) (*ebpf.Collection, error) // tests: instead of ebpf.NewCollectionWithOptions
}

// Datapath is the loaded and attached node network.
type Datapath struct {
	sources       []netip.Prefix
	pinDir        string
	sock, net     *ebpf.Collection
	loadBalancers *loadBalancers
	endpoints     *endpointTable
	names         *nameTable
	records       *recordTable
	remotes       *remoteTable
	socketsOff    *socketsOffTable
	policies      *PolicyTables
	mu            sync.Mutex // of attachments
	xdp           XDPMode
	noTCX         bool   // tests: as on Linux before 6.6
	netns         uint64 // cookie of the node's namespace
	cgroupRoot    string
	stopReaper    func()
}

// cgroupHooks are the programs at the root of the cgroup2 tree.
var cgroupHooks = map[string]ebpf.AttachType{
	"strake_connect4": ebpf.AttachCGroupInet4Connect, "strake_sendmsg4": ebpf.AttachCGroupUDP4Sendmsg,
	"strake_recvmsg4": ebpf.AttachCGroupUDP4Recvmsg, "strake_getpeername4": ebpf.AttachCgroupInet4GetPeername,
	"strake_connect6": ebpf.AttachCGroupInet6Connect, "strake_sendmsg6": ebpf.AttachCGroupUDP6Sendmsg,
	"strake_recvmsg6": ebpf.AttachCGroupUDP6Recvmsg, "strake_getpeername6": ebpf.AttachCgroupInet6GetPeername,
	"strake_bind4": ebpf.AttachCGroupInet4Bind, "strake_bind6": ebpf.AttachCGroupInet6Bind, "strake_sock_release": ebpf.AttachCgroupInetSockRelease,
}

// Names of the tc programs, and of the pins of their links: link_<program>_<ifindex>.
const (
	podProgram    = "strake_pod"
	toPodProgram  = "strake_to_pod"
	uplinkProgram = "strake_uplink"
	egressProgram = "strake_egress"
	namesProgram  = "strake_dns"
	besideProgram = "strake_beside"
	xdpProgram    = "strake_xdp"
	tunnelIn      = "strake_tunnel_in"
	tunnelOut     = "strake_tunnel_out"
	linkPrefix    = "link_"

	toBesideProgram = "strake_to_beside"
)

// Open loads the programs and attaches the socket hooks. Maps that are pinned are taken over with their rows, and
// links are switched to the new programs in place, so that a restart loses no packet. It is to be called in the
// node's network namespace.
func Open(c Config) (*Datapath, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("bpf: locked memory limit: %w", err)
	}
	if err := checkVersion(c.PinDir); err != nil {
		return nil, err
	}
	if err := errors.Join(resizeCounters(c.PinDir), resizeTables(c.PinDir, slices.Concat(lbPins, policyTables), c.sizes())); err != nil {
		return nil, err
	}
	if err := c.forgetRecord(); err != nil {
		return nil, err
	}
	if err := c.seedPolicies(); err != nil {
		return nil, err
	}
	if err := c.resizePolicyFlows(); err != nil {
		return nil, err
	}
	if err := c.growFlows(); err != nil {
		return nil, err
	}
	d := &Datapath{pinDir: c.PinDir, sources: c.MasqueradeSources, xdp: c.XDP}
	if err := d.load(c, nil); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	err := d.takeOldFlows()
	if err == nil {
		d.loadBalancers, err = openLoadBalancers(d.net.Maps)
	}
	if err == nil {
		d.endpoints, err = openEndpoints(d.net.Maps)
	}
	if err == nil {
		d.names, err = openNames(d.net.Maps, c.PinDir)
	}
	if err == nil {
		d.records, err = openRecords(d.net.Maps, c.PinDir)
	}
	if err == nil {
		err = errors.Join(d.names.takeOver(), d.records.short.takeOver(), d.records.long.takeOver())
	}
	if err == nil {
		d.remotes, err = openRemotes(d.net.Maps)
	}
	if err == nil {
		d.socketsOff, err = openSocketsOff(d.sock.Maps)
	}
	if err == nil {
		d.policies, err = openPolicies(d.net.Maps, c.Policy)
	}
	if err == nil {
		err = d.sweep()
	}
	if err == nil {
		err = d.attachCgroup(c.CgroupRoot)
	}
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func (c Config) check() error {
	if err := errors.Join(ofEachFamily("DNSAddrs", c.DNSAddrs), ofEachFamily("NodeAddrs", c.NodeAddrs)); err != nil {
		return err
	}
	if err := CheckFlows(c.Flows); err != nil {
		return fmt.Errorf("bpf: %w", err)
	}
	if err := c.XDP.Check(); err != nil {
		return fmt.Errorf("bpf: XDP: %w", err)
	}
	if c.MaxFrontends < 0 || c.MaxBackends < 0 || c.MaxFrontends > maxRows || c.MaxBackends > maxRows {
		return fmt.Errorf("bpf: tables of %d frontends and %d backends: each is 0 to %d", c.MaxFrontends, c.MaxBackends, maxRows)
	}
	if c.MaxPolicyPeers < 0 || c.MaxPolicyRules < 0 || c.MaxPolicyPeers > maxRows || c.MaxPolicyRules > maxRows {
		return fmt.Errorf("bpf: tables of %d peers and %d rules of policies: each is 0 to %d", c.MaxPolicyPeers, c.MaxPolicyRules, maxRows)
	}
	if c.RecordFlows < 0 || c.RecordFlows > maxRecordFlows || c.RecordFlows > 0 && !c.Policy {
		return fmt.Errorf("bpf: %d flows recorded in a second: it is 0 to %d, and 0 without Policy", c.RecordFlows, maxRecordFlows)
	}
	if c.Zone == "" && len(c.DNSAddrs) > 0 {
		return errors.New("bpf: Zone is empty")
	}
	if err := wantFS(c.PinDir, bpffsMagic, "bpffs"); err != nil {
		return err
	}
	if err := wantFS(c.CgroupRoot, cgroup2Magic, "cgroup2"); err != nil {
		return err
	}
	return wantFS(c.NodeCgroup, cgroup2Magic, "cgroup2")
}

// ofEachFamily fails unless there is at most one address of each family.
func ofEachFamily(what string, addrs []netip.Addr) error {
	seen := map[bool]bool{}
	for _, a := range addrs {
		if !plain(a) {
			return fmt.Errorf("bpf: %s: %v is not an address", what, a)
		}
		if seen[a.Is4()] {
			return fmt.Errorf("bpf: %s: %v has two addresses of one family", what, addrs)
		}
		seen[a.Is4()] = true
	}
	return nil
}

// load brings both objects into the kernel, with their constants set. before are tables of flows from which the programs take what is not in
// theirs.
func (d *Datapath) load(c Config, before map[string]*ebpf.Map) error {
	newCollection := c.newCollection
	if newCollection == nil {
		newCollection = ebpf.NewCollectionWithOptions
	}
	load := func(spec func() (*ebpf.CollectionSpec, error), constants map[string]any) (*ebpf.Collection, error) {
		s, err := spec()
		if err != nil {
			return nil, fmt.Errorf("bpf: object: %w", err)
		}
		replaced := map[string]*ebpf.Map{}
		for _, name := range flowTables {
			if s.Maps[name] == nil {
				continue
			}
			s.Maps[name].MaxEntries = c.flowRows()
			if before[name] != nil {
				s.Maps[name+beforeSuffix].MaxEntries = before[name].MaxEntries()
				replaced[name+beforeSuffix] = before[name]
			}
		}
		for name, size := range c.sizes() {
			if m := s.Maps[name]; m != nil {
				m.MaxEntries = size
			}
		}
		for _, name := range []string{namesPin, recordsPin, listsPin} {
			if m := s.Maps[name]; m != nil && c.nameRows > 0 {
				m.MaxEntries = c.nameRows
			}
		}
		for name, m := range s.Maps {
			if strings.HasSuffix(name, moreSuffix) { // what is put there later has no types, and Linux 5.15 to 6.1 want it to be like this
				m.InnerMap.Key, m.InnerMap.Value = nil, nil
			}
		}
		if !c.XDP.on() {
			delete(s.Programs, xdpProgram)
		}
		if c.noPackets {
			maps.DeleteFunc(s.Programs, func(_ string, p *ebpf.ProgramSpec) bool { return p.Type == ebpf.SchedCLS || p.Type == ebpf.XDP })
		}
		if !c.Beside {
			delete(s.Programs, namesProgram)
			delete(s.Programs, besideProgram)
			delete(s.Programs, toBesideProgram)
		}
		for name, v := range constants {
			if err := s.Variables[name].Set(v); err != nil {
				return nil, fmt.Errorf("bpf: constant %s: %w", name, err)
			}
		}
		coll, err := newCollection(s, ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: c.PinDir}, MapReplacements: replaced})
		if err != nil {
			return nil, fmt.Errorf("bpf: load (the kernel must be Linux 5.10 or newer, with BPF): %w", err)
		}
		return coll, nil
	}
	constants, err := c.netConstants()
	if err != nil {
		return err
	}
	constants["flows_have_before"] = before != nil
	// This comes first: tests have these programs from one another (testing_test.go) where no map of theirs is pinned yet, and sock.c shares some.
	if d.net, err = load(loadNet, constants); err != nil {
		return err
	}
	if constants, err = c.sockConstants(); err != nil {
		return err
	}
	d.netns, d.cgroupRoot = constants["node_netns"].(uint64), c.CgroupRoot
	if d.sock, err = load(loadSock, constants); err != nil {
		return err
	}
	for _, t := range c.ranges() {
		if err := fillRanges(d.net.Maps[t.name], t.what, t.ranges); err != nil {
			return err
		}
	}
	return nil
}

// switchLinks brings the programs that stand on interfaces up to date.
func (d *Datapath) switchLinks() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	entries, err := os.ReadDir(d.pinDir)
	if err != nil {
		return fmt.Errorf("bpf: %w", err)
	}
	for _, e := range entries {
		if program, ifindex, ok := filterOf(e.Name()); ok && d.net.Programs[program] != nil {
			if err := attachClsact(d.pinDir, ifindex, program, d.net.Programs[program]); err != nil {
				return err
			}
		}
		rest, ok := strings.CutPrefix(e.Name(), linkPrefix)
		i := strings.LastIndexByte(rest, '_')
		if !ok || i < 0 || d.net.Programs[rest[:i]] == nil {
			continue
		}
		if _, err := updatePinned(filepath.Join(d.pinDir, e.Name()), d.net.Programs[rest[:i]]); err != nil {
			return err
		}
	}
	return nil
}

// levelOf is how far a folder of the cgroup tree is below its root.
func levelOf(rel string) uint32 {
	if rel == "." {
		return 0
	}
	return uint32(len(strings.Split(rel, "/")))
}

// LoadBalancers is the table of Service ports.
func (d *Datapath) LoadBalancers() LoadBalancerTable { return d.loadBalancers }

// Endpoints is the table of local pod addresses.
func (d *Datapath) Endpoints() Table[Endpoint] { return d.endpoints }

// Names is the table of DNS names answered in the kernel.
func (d *Datapath) Names() Table[Name] { return d.names }

// Records is the table of answers that are more than a few addresses. One that is longer than the kernel gives has no row: user space answers.
func (d *Datapath) Records() Table[Record] { return d.records }

// Outside is the cache of what servers outside have answered.
func (d *Datapath) Outside() *Outside { return openOutside(d.net.Maps) }

// Remotes is the table of what other nodes have.
func (d *Datapath) Remotes() Table[Remote] { return d.remotes }

// Policies are the rows by which packets of pods are judged.
func (d *Datapath) Policies() *PolicyTables { return d.policies }

// sweep removes the pins of links whose interface is gone.
func (d *Datapath) sweep() error {
	pins, err := filepath.Glob(filepath.Join(d.pinDir, linkPrefix+"*_*[0-9]"))
	if err != nil {
		return err
	}
	for _, pin := range pins {
		l, err := link.LoadPinnedLink(pin, nil)
		if err != nil {
			return fmt.Errorf("bpf: %s: %w", pin, err)
		}
		info, err := l.Info()
		if err == nil {
			if tcx := info.TCX(); tcx != nil && tcx.Ifindex == 0 {
				err = l.Unpin()
			}
			if xdp := info.XDP(); xdp != nil && xdp.Ifindex == 0 {
				err = l.Unpin()
			}
		}
		l.Close()
		if err != nil {
			return fmt.Errorf("bpf: %s: %w", pin, err)
		}
	}
	return sweepClsact(d.pinDir)
}

// Close closes file descriptors only: everything pinned goes on working.
func (d *Datapath) Close() error {
	if d.stopReaper != nil {
		d.stopReaper()
		d.stopReaper = nil
	}
	for _, c := range []*ebpf.Collection{d.sock, d.net} {
		if c != nil {
			c.Close()
		}
	}
	var err error
	if d.names != nil {
		err = d.names.more.close()
	}
	if d.records != nil {
		err = errors.Join(err, d.records.short.more.close(), d.records.long.more.close())
	}
	return err
}

// Remove detaches and unpins everything of ours below pinDir; it is to be called in the node's network namespace. A folder that is absent is no error; what is not ours is left.
func Remove(pinDir string) error {
	found, err := os.ReadDir(pinDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("bpf: remove %s: %w", pinDir, err)
	}
	if ok, err := isFS(pinDir, bpffsMagic); err != nil || !ok {
		return err
	}
	for _, f := range found {
		if f.Name() == "maps.debug" || f.Name() == "progs.debug" { // the kernel puts them into every new bpffs
			continue
		}
		if program, ifindex, ok := filterOf(f.Name()); ok {
			if err := detachClsact(pinDir, ifindex, program); err != nil {
				return err
			}
			continue
		}
		if strings.HasPrefix(f.Name(), linkPrefix) {
			if err := detachPinned(filepath.Join(pinDir, f.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			continue
		}
		if err := os.Remove(filepath.Join(pinDir, f.Name())); err != nil && !errors.Is(err, syscall.ENOENT) {
			return fmt.Errorf("bpf: remove %s: %w", pinDir, err)
		}
	}
	return nil
}
