package cni

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/bpf"
)

// NodesDatapath is what the routing between nodes needs of the kernel half.
type NodesDatapath interface {
	Remotes() bpf.Table[bpf.Remote]
	AttachTunnel(ifindex, mtu int) error
}

// NodesConfig says how this node gets to the others.
type NodesConfig struct {
	Name       string       // of this node
	Addrs      []netip.Addr // its own: at most one of each family
	Uplinks    []string     // interfaces that lead to other nodes besides those that have the node's addresses; they may come and go
	Routing    Routing
	Relay      Relay
	TunnelPort int // UDP, with VXLAN; the same on all nodes
	Datapath   NodesDatapath
	// OnUnderlay is called, from Begin, Apply or Run, with the node's links at first and whenever something in them changes. An error means: again.
	OnUnderlay func(Underlay) error
}

// Nodes keeps the ways to the other nodes: rows for the programs, routes for the node's own processes, and the tunnel's device.
// All calls that reach the kernel work in the network namespace of the thread that makes them.
type Nodes struct {
	cfg    NodesConfig
	wake   chan struct{}
	synced cache.InformerSynced // nil: Set, Delete and Apply tell of nodes

	mu       sync.Mutex
	dir      *directory
	dirty    map[string]bool   // nodes to be written
	owners   map[string]string // by name: the UID whose rows are written
	routes   map[netip.Prefix]nodeRoute
	byNode   map[string][]netip.Prefix // what of routes is for which node
	over6    map[string]bool           // nodes whose tunnel goes over IPv6
	told     map[string]string         // problems, as logged last
	underlay Underlay
	tunnel   int                              // index of its device
	looked   bool                             // underlay and tunnel are as the kernel has them
	all      bool                             // routes are to be compared with the kernel's
	written  map[string]map[netip.Prefix]bool // rows in the table, by owner; nil: not read yet
}

// NewNodes returns the routing of a node that knows no other yet. Nothing in the kernel is changed before Begin, Apply or Run.
func NewNodes(cfg NodesConfig) (*Nodes, error) {
	if cfg.Routing != VXLAN && cfg.Routing != Native {
		return nil, fmt.Errorf("cni: routing %q is neither %q nor %q", cfg.Routing, VXLAN, Native)
	}
	if cfg.Routing == VXLAN && (cfg.TunnelPort < 1 || cfg.TunnelPort > 65535) {
		return nil, fmt.Errorf("cni: tunnel port %d is none", cfg.TunnelPort)
	}
	if len(cfg.Addrs) == 0 || cfg.Name == "" {
		return nil, errors.New("cni: a node has a name and an address")
	}
	return &Nodes{
		cfg: cfg, wake: make(chan struct{}, 1), dir: newDirectory(cfg.Name, cfg.Addrs, cfg.Routing, cfg.Relay), dirty: map[string]bool{}, owners: map[string]string{},
		routes: map[netip.Prefix]nodeRoute{}, byNode: map[string][]netip.Prefix{}, over6: map[string]bool{}, told: map[string]string{}, all: true,
	}, nil
}

// Follow registers with the informer of Nodes; start it afterwards.
func (n *Nodes) Follow(f informers.SharedInformerFactory) error {
	seen := func(obj any) {
		if node, ok := obj.(*corev1.Node); ok {
			n.Set(node)
		}
	}
	registration, err := f.Core().V1().Nodes().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: seen, UpdateFunc: func(_, obj any) { seen(obj) },
		DeleteFunc: func(obj any) {
			if t, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = t.Obj
			}
			if node, ok := obj.(*corev1.Node); ok {
				n.Delete(node.Name)
			}
		},
	})
	if err != nil {
		return fmt.Errorf("cni: %w", err)
	}
	n.synced = registration.HasSynced
	return nil
}

// Set notes a Node that is new or has changed.
func (n *Nodes) Set(node *corev1.Node) {
	info, problems := ReadNode(node)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tell(info.Name, "reads", problems)
	n.change(info.Name, &info)
}

// Delete notes that a Node is gone.
func (n *Nodes) Delete(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.change(name, nil)
}

func (n *Nodes) change(name string, info *NodeInfo) {
	affected := n.dir.set(name, info)
	if len(affected) == 0 {
		return
	}
	maps.Copy(n.dirty, affected)
	n.signal()
}

func (n *Nodes) signal() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// tell logs problems of a node once, until they are others.
func (n *Nodes) tell(name, kind string, problems []string) {
	key, text := kind+" "+name, strings.Join(problems, "; ")
	if n.told[key] == text {
		return
	}
	n.told[key] = text
	if text != "" {
		klog.InfoS("A node is not reached, or not wholly", "node", name, "because", text)
	} else {
		delete(n.told, key)
	}
}

// Apply makes the kernel's state that of exactly these nodes, once and for all: for who follows no API.
func (n *Nodes) Apply(nodes []NodeInfo) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	named := map[string]bool{}
	for _, info := range nodes {
		named[info.Name] = true
		n.change(info.Name, &info)
	}
	for name := range maps.Clone(n.dir.nodes) {
		if !named[name] {
			n.change(name, nil)
		}
	}
	n.looked = false
	return n.sync()
}

// Begin looks at the node's links and makes the tunnel's device, before any other node is known.
func (n *Nodes) Begin() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, err := n.look()
	return err
}

// Run writes what Nodes and links ask for until ctx ends. What it has written stays.
func (n *Nodes) Run(ctx context.Context) error {
	if n.synced != nil && !cache.WaitForCacheSync(ctx.Done(), n.synced) {
		return nil
	}
	backoff := func() *wait.Backoff {
		return &wait.Backoff{Duration: 50 * time.Millisecond, Factor: 2, Steps: 10, Cap: 15 * time.Second}
	}
	failed := backoff()
	for ctx.Err() == nil {
		events, err := watchKernel(ctx)
		if err == nil {
			n.again()
			err = n.loop(ctx, events, failed)
		}
		if err != nil {
			klog.ErrorS(err, "Watching links and routes, beginning anew")
			pause(ctx, failed.Step())
			continue
		}
		failed = backoff()
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// again makes the next sync compare everything with the kernel.
func (n *Nodes) again() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.looked, n.all = false, true
}

func (n *Nodes) loop(ctx context.Context, events *kernelEvents, failed *wait.Backoff) error {
	defer events.stop()
	var retry <-chan time.Time
	steps := *failed
	for {
		n.mu.Lock()
		err := n.sync()
		n.mu.Unlock()
		retry = nil
		if err != nil {
			klog.ErrorS(err, "The ways to other nodes are not all in the kernel yet, trying again")
			retry = time.After(steps.Step())
		} else {
			steps = *failed
		}
		for wait := true; wait; {
			select {
			case <-ctx.Done():
				return nil
			case <-n.wake:
				wait = false
			case <-retry:
				wait = false
			case err := <-events.failed:
				return err
			case u, ok := <-events.routes:
				wait = ok && !n.lost(u)
			case u, ok := <-events.links:
				wait = ok && !n.linkChanged(u)
			case u, ok := <-events.addrs:
				wait = ok && !n.addrChanged(u)
			}
		}
	}
}

// lost tells whether a route of ours went that should be there.
func (n *Nodes) lost(u netlink.RouteUpdate) bool {
	if u.Protocol != RouteProtocol {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	want, wanted := n.routes[netPrefix(u.Dst)]
	if u.Type == unix.RTM_DELROUTE && wanted && routeOf(&u.Route, n.tunnel) == want {
		n.all = true
		return true
	}
	return false
}

// linkChanged tells whether the tunnel or an uplink changed. Routes that go with a link do so silently.
func (n *Nodes) linkChanged(u netlink.LinkUpdate) bool {
	index := int(u.Index)
	n.mu.Lock()
	defer n.mu.Unlock()
	name := u.Attrs().Name
	if _, other := n.underlay.Others[index]; !other && name != TunnelDevice && index != n.tunnel && !slices.Contains(n.underlay.Uplinks, index) && !slices.Contains(n.cfg.Uplinks, name) {
		return false
	}
	n.looked, n.all = false, true
	return true
}

// addrChanged tells whether an address of the node came or went, or an uplink has others, or another link has some.
func (n *Nodes) addrChanged(u netlink.AddrUpdate) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if ip := toAddr(u.LinkAddress.IP); !slices.Contains(n.underlay.Uplinks, u.LinkIndex) && !slices.Contains(n.cfg.Addrs, ip) && !ip.IsGlobalUnicast() {
		return false
	}
	n.looked, n.all = false, true
	return true
}

// sync writes what is not written yet.
func (n *Nodes) sync() error {
	if err := n.prune(); err != nil {
		return err
	}
	wants, err := n.look()
	if err != nil {
		return err
	}
	// Rows that a node loses go before another one gets them.
	for _, grow := range []bool{false, true} {
		for name, w := range wants {
			if was := n.owners[name]; was != "" && was != n.dir.nodes[name].UID {
				if err := n.write(was, nil, true); err != nil {
					return err
				}
				delete(n.owners, name)
			}
			if uid := n.dir.nodes[name].UID; uid != "" {
				n.owners[name] = uid
				if err := n.write(uid, w.remotes, grow); err != nil {
					return err
				}
			}
		}
	}
	if err := n.route(wants); err != nil {
		return err
	}
	clear(n.dirty)
	return nil
}

// prune reads what is written, and deletes the rows of nodes that went while nobody watched.
func (n *Nodes) prune() error {
	if n.written != nil {
		return nil
	}
	live := map[string]bool{}
	for _, info := range n.dir.nodes {
		live[info.UID] = true
	}
	table := n.cfg.Datapath.Remotes()
	if _, err := table.Prune(func(owner string) bool { return live[owner] }); err != nil {
		return err
	}
	rows, err := table.Dump()
	if err != nil {
		return err
	}
	n.written = map[string]map[netip.Prefix]bool{}
	for _, r := range rows {
		n.wrote(r.Owner, r)
	}
	return nil
}

func (n *Nodes) wrote(uid string, rows ...bpf.Remote) {
	for _, r := range rows {
		if n.written[uid] == nil {
			n.written[uid] = map[netip.Prefix]bool{}
		}
		n.written[uid][r.Prefix] = true
	}
}

// look brings underlay and tunnel up to date, and computes what the dirty nodes want.
func (n *Nodes) look() (map[string]want, error) {
	before := n.underlay
	if !n.looked {
		u, err := readUnderlay(n.cfg.Addrs, n.cfg.Uplinks)
		if err != nil {
			return nil, err
		}
		if len(u.missing) == len(n.cfg.Addrs) {
			return nil, fmt.Errorf("cni: no interface has any of the node's addresses %v", n.cfg.Addrs)
		}
		if len(u.missing) > 0 && !slices.Equal(u.missing, before.missing) {
			klog.InfoS("No interface has an address of the node", "addresses", u.missing)
		}
		if !u.equal(before) {
			for name := range n.dir.nodes {
				n.dirty[name] = true
			}
		}
		u.MTU = before.MTU
		n.underlay = u
	}
	wants := map[string]want{}
	for name := range n.dirty {
		w := n.dir.desired(name, n.underlay.onLinks)
		w.routes = n.underlay.withoutMissing(w.routes)
		wants[name] = w
		n.tell(name, "wants", w.problems)
		delete(n.over6, name)
		if w.over6 {
			n.over6[name] = true
		}
	}
	mtu := pathMTU(n.underlay.mtu, n.cfg.Routing, n.cfg.Addrs, len(n.over6) > 0)
	if n.looked && mtu == n.underlay.MTU {
		return wants, nil
	}
	return wants, n.settle(mtu)
}

// settle gives the tunnel its device and tells of the node's links. Where packets get smaller, pods come first; where they may get larger, last.
func (n *Nodes) settle(mtu int) error {
	smaller := n.underlay.MTU > mtu
	n.underlay.MTU = mtu
	n.looked = false
	tell := func() error {
		if n.cfg.OnUnderlay == nil {
			return nil
		}
		return n.cfg.OnUnderlay(n.underlay)
	}
	if smaller {
		if err := tell(); err != nil {
			return err
		}
	}
	was := n.tunnel
	n.tunnel = 0
	if n.cfg.Routing == VXLAN {
		var err error
		if n.tunnel, err = ensureTunnel(n.cfg.TunnelPort, mtu); err != nil {
			return err
		}
		n.all = n.all || n.tunnel != was // what led through another went with it
	} else if err := removeTunnel(); err != nil {
		return err
	}
	if err := n.cfg.Datapath.AttachTunnel(n.tunnel, mtu); err != nil {
		return err
	}
	if !smaller {
		if err := tell(); err != nil {
			return err
		}
	}
	n.looked = true
	return nil
}

// write makes the rows of a Node those. Without grow, only those of them that it has already.
func (n *Nodes) write(uid string, rows []bpf.Remote, grow bool) error {
	if !grow {
		rows = slices.DeleteFunc(slices.Clone(rows), func(r bpf.Remote) bool { return !n.written[uid][r.Prefix] })
	}
	if len(rows) == 0 && len(n.written[uid]) == 0 {
		return nil
	}
	if _, err := n.cfg.Datapath.Remotes().Replace(uid, rows); err != nil {
		return err
	}
	delete(n.written, uid)
	n.wrote(uid, rows...)
	return nil
}

// route makes the routes of the dirty nodes those that they want.
func (n *Nodes) route(wants map[string]want) error {
	old := map[netip.Prefix]nodeRoute{}
	for name := range wants {
		for _, dst := range n.byNode[name] {
			old[dst] = n.routes[dst]
			delete(n.routes, dst)
		}
		delete(n.byNode, name)
	}
	put := map[netip.Prefix]bool{}
	for name, w := range wants {
		for _, r := range w.routes {
			n.routes[r.Dst] = r
			n.byNode[name] = append(n.byNode[name], r.Dst)
			put[r.Dst] = old[r.Dst] != r
		}
	}
	if !n.all {
		var errs []error
		for dst, r := range old {
			if _, stays := n.routes[dst]; !stays {
				errs = append(errs, deleteRoute(r.netlink(n.tunnel)))
			}
		}
		for dst, differs := range put {
			if differs {
				errs = append(errs, putRoute(n.routes[dst], n.tunnel))
			}
		}
		if err := errors.Join(errs...); err != nil {
			n.all = true
			return err
		}
		return nil
	}
	if err := syncRoutes(n.routes, n.tunnel); err != nil {
		return err
	}
	n.all = false
	return nil
}
