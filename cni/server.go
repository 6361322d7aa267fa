package cni

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cni/plugin"
)

// Datapath is what the server needs of the kernel half.
type Datapath interface {
	Endpoints() bpf.Table[bpf.Endpoint]
	LoadBalancers() bpf.LoadBalancerTable
	SocketsOff() bpf.Table[bpf.SocketsOff]
	NetnsCookie(path string) (uint64, error)
	AttachPod(ifindex int) error
	AttachNewPod(ifindex int) error // quick, for the time until AttachPod
	DetachPod(ifindex int) error
	PodAttached(ifindex int) error // nil if it is
}

// Config says where the server listens and what it hands out.
type Config struct {
	Socket    string // unix socket, 0600
	StateDir  string
	ConfDir   string       // where the runtime finds its network configuration; looked at for plugins that would meet ours
	Alias     string       // marks our interfaces, one value for each node
	NodeAddrs []netip.Addr // at most one of each family: sources of host processes that talk to pods
	Datapath  Datapath
	// MTU returns that of both sides of a new pod's veth; zero is the kernel's default.
	MTU func() int
	// PodCIDRs returns the node's ranges, once they are known: one, or two of different families, the primary first. A pod has an
	// address of each.
	PodCIDRs func() ([]netip.Prefix, bool)
	// Sandboxes lists the ids of the runtime's. What others have is released after a time (leaks.go); without it, only what goes with
	// its network namespace is.
	Sandboxes func(context.Context) ([]string, error)
	// LeavesSockets tells whether the sockets of a pod, named namespace/name, are to be left alone, and whether that is known; nil: of none.
	LeavesSockets func(pod string) (off, known bool)
	// Guard judges pods' packets; nil: nobody does.
	Guard Guard
}

// Server answers the plugin.
type Server struct {
	cfg   Config
	ipam  *ipam
	calls keyLocks // by container: calls about one pod wait for each other

	mu      sync.Mutex
	ifindex map[string]int // by attachment: an interface that went with its namespace is still to be detached

	fresh chan Allocation // attached by AttachNewPod
}

// Namespaces are the paths of the pods' network namespaces.
func (s *Server) Namespaces() []string {
	var out []string
	for _, a := range s.ipam.list() {
		if a.Netns != "" {
			out = append(out, a.Netns)
		}
	}
	return out
}

// New reads the state of a former run and brings the kernel in line with it. Call it in the node's network namespace.
func New(cfg Config) (*Server, error) {
	p, err := openIPAM(cfg.StateDir)
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, ipam: p, calls: keyLocks{m: map[string]*keyLock{}}, ifindex: map[string]int{}, fresh: make(chan Allocation, 1024)}
	return s, s.reconcile()
}

// reconcile attaches the pods that are there, and releases what pods that are gone had (after a reboot, all). A pod
// that can't be mended keeps what it has: its neighbours must not be without network for its sake.
func (s *Server) reconcile() error {
	for _, a := range s.ipam.list() {
		outside, err := netlink.LinkByName(a.Host)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			klog.InfoS("Releasing the address of a pod that is gone", "container", a.ContainerID, "addresses", a.Addrs)
			err = s.del(a.ContainerID, a.Ifname)
		} else if err == nil {
			if err = hostSide(outside, a, s.cfg.NodeAddrs); err == nil {
				err = errors.Join(s.attach(a, outside.Attrs().Index, s.cfg.Datapath.AttachPod), limitPod(a))
			}
		}
		if err != nil {
			klog.ErrorS(err, "The network of a pod could not be brought up to date", "container", a.ContainerID, "addresses", a.Addrs)
		}
	}
	if err := s.sweep(); err != nil {
		return err
	}
	live := map[string]bool{}
	for _, a := range s.ipam.list() {
		live[owner(a.ContainerID, a.Ifname)], live[socketsOwner(a.ContainerID)] = true, true
	}
	if _, err := s.cfg.Datapath.SocketsOff().Prune(func(owner string) bool { return live[owner] }); err != nil {
		return err
	}
	if _, err := s.cfg.Datapath.Endpoints().Prune(func(owner string) bool { return live[owner] }); err != nil {
		return err
	}
	return s.prunePorts()
}

// sweep removes interfaces that no allocation names. As an allocation comes before its interface, none of them is about
// to be used; and they are removed by index, so that a successor of the same name stays.
func (s *Server) sweep() error {
	links, err := ours(s.cfg.Alias)
	if err != nil {
		return fmt.Errorf("cni: %w", err)
	}
	known := map[string]bool{}
	for _, a := range s.ipam.list() {
		known[a.Host] = true
	}
	var errs []error
	for _, l := range links {
		if known[l.Attrs().Name] {
			continue
		}
		klog.InfoS("Removing an interface without a pod", "interface", l.Attrs().Name)
		errs = append(errs, s.cfg.Datapath.DetachPod(l.Attrs().Index))
		if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("cni: remove %s: %w", l.Attrs().Name, err))
		}
	}
	return errors.Join(errs...)
}

// maxOwner is what the endpoint table takes of an owner's name.
const maxOwner = 64

// owner names an interface in the endpoint table. A runtime's id of 64 hex digits is too long and gives its beginning
// and a digest.
func owner(container, ifname string) string {
	o := container + "/" + ifname
	if len(o) <= maxOwner {
		return o
	}
	sum := sha256.Sum256([]byte(container))
	return container[:32] + "~" + hex.EncodeToString(sum[:6]) + "/" + ifname
}

// attach makes a pod's datapath live: its own packets first, then those to it.
func (s *Server) attach(a Allocation, ifindex int, program func(ifindex int) error) error {
	s.mu.Lock()
	s.ifindex[a.key()] = ifindex
	s.mu.Unlock()
	if err := program(ifindex); err != nil {
		return err
	}
	if _, err := s.cfg.Datapath.Endpoints().Replace(owner(a.ContainerID, a.Ifname), endpoints(a, ifindex)); err != nil {
		return err
	}
	if err := s.switchSockets(a); err != nil {
		return err
	}
	return s.openPorts(a)
}

// endpoints are the rows of a pod's addresses.
func endpoints(a Allocation, ifindex int) []bpf.Endpoint {
	podMAC, hostMAC := macs(a)
	var out []bpf.Endpoint
	for _, addr := range a.Addrs {
		out = append(out, bpf.Endpoint{Owner: owner(a.ContainerID, a.Ifname), Addr: addr, Ifindex: ifindex, PodMAC: podMAC, HostMAC: hostMAC, Queued: a.Bandwidth.Ingress != 0, Egress: egress(a.Bandwidth.Egress)})
	}
	return out
}

// Run serves until ctx ends, and lets calls that have begun come to their end.
func (s *Server) Run(ctx context.Context) error {
	if err := os.Remove(s.cfg.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cni: socket: %w", err)
	}
	l, err := net.Listen("unix", s.cfg.Socket)
	if err != nil {
		return fmt.Errorf("cni: socket: %w", err)
	}
	defer l.Close()
	if err := os.Chmod(s.cfg.Socket, 0o600); err != nil {
		return fmt.Errorf("cni: socket: %w", err)
	}
	defer context.AfterFunc(ctx, func() { l.Close() })()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { s.settle(ctx) })
	if s.cfg.Sandboxes != nil {
		wg.Go(func() { s.releaseLeaks(ctx) })
	}
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return nil
		}
		if err != nil {
			// Out of descriptors, most likely: it passes.
			klog.ErrorS(err, "CNI socket")
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		wg.Go(func() {
			defer conn.Close()
			s.serve(ctx, conn.(*net.UnixConn))
		})
	}
}

// maxRequest bounds what is read of a request. The longest is a GC: some 100 bytes a pod.
const maxRequest = 4 << 20

func (s *Server) serve(ctx context.Context, conn *net.UnixConn) {
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return
	}
	// A caller that says nothing doesn't hold up the end.
	defer context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Now()) })()
	var r plugin.Request
	var resp plugin.Response
	if err := rootOnly(conn); err != nil {
		resp.Error = types.NewError(types.ErrInternal, err.Error(), "")
	} else if r, err = readRequest(conn); err != nil {
		resp.Error = types.NewError(types.ErrDecodingFailure, "the request is no JSON object", err.Error())
	} else {
		resp.Result, resp.Error = s.Handle(r)
	}
	if err := json.NewEncoder(conn).Encode(resp); err != nil {
		klog.V(2).InfoS("The plugin went away before its answer", "verb", r.Verb, "err", err)
	}
}

func readRequest(from io.Reader) (plugin.Request, error) {
	var r plugin.Request
	err := json.NewDecoder(io.LimitReader(from, maxRequest)).Decode(&r)
	return r, err
}

// rootOnly refuses callers that are not root, whatever the socket's mode lets in.
func rootOnly(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return err
	}
	if cerr != nil {
		return cerr
	}
	if cred.Uid != 0 {
		return fmt.Errorf("user %d may not call the strake agent", cred.Uid)
	}
	return nil
}

// keyLocks is a lock for each key in use.
type keyLocks struct {
	mu sync.Mutex
	m  map[string]*keyLock
}

type keyLock struct {
	sync.Mutex
	users int
}

func (k *keyLocks) lock(key string) (unlock func()) {
	k.mu.Lock()
	l := k.m[key]
	if l == nil {
		l = &keyLock{}
		k.m[key] = l
	}
	l.users++
	k.mu.Unlock()
	l.Lock()
	return func() {
		l.Unlock()
		k.mu.Lock()
		defer k.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(k.m, key)
		}
	}
}
