package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cni/plugin"
)

// Datapath is what the server needs of the kernel half.
type Datapath interface {
	Endpoints() bpf.Table[bpf.Endpoint]
	AttachPod(ifindex int) error
	DetachPod(ifindex int) error
}

// Config says where the server listens and what it hands out.
type Config struct {
	Socket   string // unix socket, 0600
	StateDir string
	Alias    string     // marks our interfaces, one value for each node
	NodeAddr netip.Addr // source address of host processes that talk to pods
	MTU      int        // zero: the kernel's default
	Datapath Datapath
	// PodCIDR returns the node's range, once it is known.
	PodCIDR func() (netip.Prefix, bool)
}

// Server answers the plugin.
type Server struct {
	cfg  Config
	ipam *ipam

	mu    sync.Mutex
	locks map[string]*sync.Mutex // by container: calls about one pod wait for each other
}

// New reads the state of a former run and brings the kernel in line with it.
func New(cfg Config) (*Server, error) {
	p, err := openIPAM(cfg.StateDir)
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, ipam: p, locks: map[string]*sync.Mutex{}}
	return s, s.reconcile()
}

// reconcile attaches the pods that are there, and releases what pods that are gone had (after a reboot, all).
func (s *Server) reconcile() error {
	var errs []error
	for _, a := range s.ipam.list() {
		link, err := find(a, "")
		if err == nil {
			err = s.attach(a, link)
			errs = append(errs, err)
			continue
		}
		klog.InfoS("Releasing the address of a pod that is gone", "container", a.ContainerID, "address", a.Addr)
		errs = append(errs, disconnect(a.Host), s.ipam.release(a.ContainerID, a.Ifname))
	}
	live := map[string]bool{}
	for _, a := range s.ipam.list() {
		live[owner(a.ContainerID, a.Ifname)] = true
	}
	_, err := s.cfg.Datapath.Endpoints().Prune(func(owner string) bool { return live[owner] })
	return errors.Join(append(errs, err)...)
}

// owner names an interface in the endpoint table, cut so that it fits: container ids are 64 hex digits.
func owner(container, ifname string) string {
	return container[:min(len(container), 48)] + "/" + ifname
}

func (s *Server) attach(a Allocation, link podLink) error {
	_, err := s.cfg.Datapath.Endpoints().Replace(owner(a.ContainerID, a.Ifname), []bpf.Endpoint{{Addr: a.Addr, Ifindex: link.ifindex, PodMAC: link.podMAC, HostMAC: link.hostMAC}})
	if err == nil {
		err = s.cfg.Datapath.AttachPod(link.ifindex)
	}
	return err
}

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	if err := os.Remove(s.cfg.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cni: socket: %w", err)
	}
	l, err := net.Listen("unix", s.cfg.Socket)
	if err != nil {
		return fmt.Errorf("cni: socket: %w", err)
	}
	if err := os.Chmod(s.cfg.Socket, 0o600); err != nil {
		l.Close()
		return fmt.Errorf("cni: socket: %w", err)
	}
	go func() {
		<-ctx.Done()
		l.Close()
	}()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("cni: socket: %w", err)
		}
		wg.Go(func() {
			defer conn.Close()
			s.serve(conn)
		})
	}
}

// maxRequest bounds what is read of a request.
const maxRequest = 4 << 20

func (s *Server) serve(conn net.Conn) {
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return
	}
	var r plugin.Request
	var resp plugin.Response
	if err := json.NewDecoder(io.LimitReader(conn, maxRequest)).Decode(&r); err != nil {
		resp.Error = types.NewError(types.ErrDecodingFailure, "the request is no JSON object", err.Error())
	} else {
		resp.Result, resp.Error = s.Handle(r)
	}
	if err := json.NewEncoder(conn).Encode(resp); err != nil {
		klog.V(2).InfoS("The plugin went away before its answer", "verb", r.Verb, "err", err)
	}
}

// Handle carries out one call.
func (s *Server) Handle(r plugin.Request) (*types100.Result, *types.Error) {
	if r.Verb == "ADD" || r.Verb == "DEL" || r.Verb == "CHECK" {
		if r.ContainerID == "" || strings.ContainsAny(r.ContainerID+r.Ifname, "/\x00") || r.Ifname == "" || len(r.Ifname) > 15 {
			return nil, types.NewError(types.ErrInvalidEnvironmentVariables, "CNI_CONTAINERID or CNI_IFNAME is missing or malformed", "")
		}
		lock := s.lock(r.ContainerID)
		lock.Lock()
		defer lock.Unlock()
	}
	var result *types100.Result
	var err error
	switch r.Verb {
	case "ADD":
		result, err = s.add(r)
	case "DEL":
		err = s.del(r.ContainerID, r.Ifname)
	case "CHECK":
		err = s.check(r)
	case "GC":
		err = s.gc(r.Valid)
	case "STATUS":
		if _, ok := s.cfg.PodCIDR(); !ok {
			return nil, types.NewError(50, "the node has no pod range yet", "the controller manager gives it one when the Node is registered")
		}
	default:
		return nil, types.NewError(types.ErrInvalidEnvironmentVariables, "unknown verb "+r.Verb, "")
	}
	if err != nil {
		var ce *types.Error
		if errors.As(err, &ce) {
			return nil, ce
		}
		return nil, types.NewError(types.ErrInternal, fmt.Sprintf("%s of container %s: %v", r.Verb, r.ContainerID, err), "")
	}
	return result, nil
}

func (s *Server) lock(container string) *sync.Mutex {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.locks[container]
	if l == nil {
		l = &sync.Mutex{}
		s.locks[container] = l
	}
	return l
}

func (s *Server) add(r plugin.Request) (*types100.Result, error) {
	if r.Netns == "" {
		return nil, types.NewError(types.ErrInvalidEnvironmentVariables, "CNI_NETNS is missing", "")
	}
	prefix, ok := s.cfg.PodCIDR()
	if !ok {
		return nil, types.NewError(types.ErrTryAgainLater, "the node has no pod range yet", "")
	}
	if a, ok := s.ipam.get(r.ContainerID, r.Ifname); ok {
		// The spec forbids a second ADD without a DEL; after a crash of the runtime it happens, and the first is whole or not.
		if link, err := find(a, r.Netns); err == nil {
			return result(a, r.Netns, link), s.attach(a, link)
		}
		if err := s.del(r.ContainerID, r.Ifname); err != nil {
			return nil, err
		}
	}
	a, err := s.ipam.allocate(prefix, r.ContainerID, r.Ifname, hostName(r.ContainerID, r.Ifname))
	if err != nil {
		return nil, err
	}
	link, err := connect(a, r.Netns, s.cfg.Alias, s.cfg.MTU, s.cfg.NodeAddr)
	if err == nil {
		err = s.attach(a, link)
	}
	if err != nil {
		return nil, errors.Join(err, s.del(r.ContainerID, r.Ifname))
	}
	return result(a, r.Netns, link), nil
}

func result(a Allocation, netns string, link podLink) *types100.Result {
	inside := 1
	return &types100.Result{
		CNIVersion: types100.ImplementedSpecVersion,
		Interfaces: []*types100.Interface{{Name: a.Host, Mac: link.hostMAC.String()}, {Name: a.Ifname, Mac: link.podMAC.String(), Sandbox: netns}},
		IPs:        []*types100.IPConfig{{Interface: &inside, Address: *ipNet(a.Addr), Gateway: Gateway.AsSlice()}},
		Routes:     []*types.Route{{Dst: net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}, GW: Gateway.AsSlice()}},
	}
}

// del undoes add, whatever of it is left.
func (s *Server) del(container, ifname string) error {
	a, ok := s.ipam.get(container, ifname)
	if !ok {
		a.Host = hostName(container, ifname)
	}
	if link, err := find(a, ""); err == nil {
		if err := s.cfg.Datapath.DetachPod(link.ifindex); err != nil {
			return err
		}
	}
	// The row goes before the interface: a packet is dropped rather than sent to a stranger with the same index.
	if _, err := s.cfg.Datapath.Endpoints().Replace(owner(container, ifname), nil); err != nil {
		return err
	}
	if err := disconnect(a.Host); err != nil {
		return err
	}
	return s.ipam.release(container, ifname)
}

func (s *Server) check(r plugin.Request) error {
	a, ok := s.ipam.get(r.ContainerID, r.Ifname)
	if !ok {
		return types.NewError(types.ErrUnknownContainer, "no such attachment", r.ContainerID+"/"+r.Ifname)
	}
	link, err := find(a, r.Netns)
	if err != nil {
		return err
	}
	rows, err := s.cfg.Datapath.Endpoints().Dump()
	if err != nil {
		return err
	}
	for _, row := range rows {
		if row.Addr == a.Addr && row.Ifindex == link.ifindex {
			return nil
		}
	}
	return fmt.Errorf("the kernel has no endpoint %s on interface %d", a.Addr, link.ifindex)
}

// gc removes all attachments but the valid ones.
func (s *Server) gc(valid []string) error {
	var errs []error
	for _, a := range s.ipam.list() {
		if slices.Contains(valid, a.ContainerID+"/"+a.Ifname) {
			continue
		}
		lock := s.lock(a.ContainerID)
		lock.Lock()
		errs = append(errs, s.del(a.ContainerID, a.Ifname))
		lock.Unlock()
	}
	return errors.Join(errs...)
}

// conflist is version 1.0.0: Debian 12's containerd reads no newer one.
const conflist = `{
  "cniVersion": "1.0.0",
  "name": "strake",
  "plugins": [{"type": "strake-cni", "socket": %q}]
}
`

// WriteConfig tells the container runtime of the plugin. From then on the runtime calls the network ready.
func WriteConfig(dir, socket string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("cni: configuration: %w", err)
	}
	path := filepath.Join(dir, "10-strake.conflist")
	want := fmt.Appendf(nil, conflist, socket)
	if have, err := os.ReadFile(path); err == nil && string(have) == string(want) {
		return nil
	}
	if err := writeFile(path, want); err != nil {
		return fmt.Errorf("cni: configuration: %w", err)
	}
	return nil
}
