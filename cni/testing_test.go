package cni

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cni/plugin"
	"github.com/strake-io/strake/tests/netns"
)

// The tests leave threads in namespaces, to end with their goroutines. The main thread would stay until the process ends, and keep the
// namespace alive: it is for the main goroutine alone.
func init() { runtime.LockOSThread() }

// TestMain runs the tests in a process with a network namespace of its own, since a server works in its process's
// namespace, on any thread.
func TestMain(m *testing.M) {
	netns.Process()
	code := m.Run()
	if removeAtEnd != "" {
		os.RemoveAll(removeAtEnd)
	}
	os.Exit(code)
}

// fakeDatapath keeps rows and attachments in memory, and refuses what the kernel's tables refuse.
type fakeDatapath struct {
	mu       sync.Mutex
	rows     map[netip.Addr]bpf.Endpoint
	attached map[int]bool
	quick    map[int]bool // by AttachNewPod
	fail     error        // of AttachPod
	hold     func()       // called by AttachPod
	ports    *fakePorts
	off      *fakeTable[bpf.SocketsOff]
}

func newFake() *fakeDatapath {
	return &fakeDatapath{rows: map[netip.Addr]bpf.Endpoint{}, attached: map[int]bool{}, quick: map[int]bool{}, ports: newFakePorts(), off: &fakeTable[bpf.SocketsOff]{rows: map[string][]bpf.SocketsOff{}}}
}

func (f *fakeDatapath) Endpoints() bpf.Table[bpf.Endpoint] { return f }

func (f *fakeDatapath) LoadBalancers() bpf.LoadBalancerTable { return f.ports }

func (f *fakeDatapath) SocketsOff() bpf.Table[bpf.SocketsOff] { return f.off }

func (f *fakeDatapath) NetnsCookie(path string) (uint64, error) {
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	return st.Ino, err
}

func (f *fakeDatapath) AttachPod(i int) error {
	if f.hold != nil {
		f.hold()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return f.fail
	}
	if _, err := netlink.LinkByIndex(i); err != nil {
		return err
	}
	f.attached[i] = true
	delete(f.quick, i)
	return nil
}

func (f *fakeDatapath) PodAttached(i int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.attached[i] {
		return errors.New("no program there")
	}
	return nil
}

func (f *fakeDatapath) AttachNewPod(i int) error {
	err := f.AttachPod(i)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.quick[i] = err == nil
	return err
}

func (f *fakeDatapath) DetachPod(i int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.attached, i)
	return nil
}

func (f *fakeDatapath) Replace(owner string, want []bpf.Endpoint) (bpf.Changes, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(owner) > maxOwner {
		return bpf.Changes{}, fmt.Errorf("owner %q is too long", owner)
	}
	for _, w := range want {
		if have, ok := f.rows[w.Addr]; ok && have.Owner != owner {
			return bpf.Changes{}, fmt.Errorf("%s belongs to %s", w.Addr, have.Owner)
		}
	}
	for a, r := range f.rows {
		if r.Owner == owner {
			delete(f.rows, a)
		}
	}
	for _, w := range want {
		w.Owner = owner
		f.rows[w.Addr] = w
	}
	return bpf.Changes{}, nil
}

func (f *fakeDatapath) Prune(keep func(string) bool) (bpf.Changes, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for a, r := range f.rows {
		if !keep(r.Owner) {
			delete(f.rows, a)
		}
	}
	return bpf.Changes{}, nil
}

func (f *fakeDatapath) Dump() ([]bpf.Endpoint, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []bpf.Endpoint
	for _, r := range f.rows {
		out = append(out, r)
	}
	return out, nil
}

var (
	nodeAddr  = netip.MustParseAddr("192.0.2.1")
	nodeAddrs = []netip.Addr{nodeAddr, netip.MustParseAddr("2001:db8::1")}
	dnsAddrs  = []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:10:96::a")}
)

const testAlias = "strake-test"

// node is a Server on a node of the test.
type node struct {
	*Server
	cfg  Config
	fake *fakeDatapath
}

// newNode starts with an empty node; what a test leaves is removed after it.
func newNode(t testing.TB, cidrs ...string) *node {
	t.Helper()
	fake := newFake()
	var ranges []netip.Prefix
	for _, c := range cidrs {
		ranges = append(ranges, netip.MustParsePrefix(c))
	}
	n := &node{fake: fake, cfg: Config{
		Socket: filepath.Join(t.TempDir(), "s"), StateDir: filepath.Join(t.TempDir(), "state"), ConfDir: t.TempDir(), Alias: testAlias, NodeAddrs: nodeAddrs, Datapath: fake,
		MTU:      func() int { return 1400 },
		PodCIDRs: func() ([]netip.Prefix, bool) { return ranges, len(ranges) > 0 },
	}}
	for _, a := range nodeAddrs {
		must(t, AddLocalAddress(a))
	}
	n.restart(t)
	t.Cleanup(func() {
		must(t, RemoveAll(n.cfg.StateDir, testAlias, nodeAddrs))
		must(t, RemoveAll(n.cfg.StateDir, testAlias, nodeAddrs)) // twice is fine
		n.wantEmpty(t)
	})
	return n
}

// restart is the agent's: the kernel's rows stay.
func (n *node) restart(t testing.TB) {
	t.Helper()
	s, err := New(n.cfg)
	must(t, err)
	n.Server = s
}

// run serves until stop or the test's end; after stop no call is under way.
func (n *node) run(t testing.TB) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	for {
		c, err := net.Dial("unix", n.cfg.Socket)
		if err == nil {
			c.Close()
			break
		}
		select {
		case err := <-done:
			t.Fatalf("the server ended: %v", err)
		default:
			runtime.Gosched()
		}
	}
	stop = sync.OnceFunc(func() { cancel(); must(t, <-done) })
	t.Cleanup(stop)
	return stop
}

// wantEmpty fails if an interface or allocation of ours is left.
func (n *node) wantEmpty(t testing.TB) {
	t.Helper()
	links, err := ours(testAlias)
	must(t, err)
	for _, l := range links {
		t.Errorf("interface %s is left", l.Attrs().Name)
	}
	left, err := readAllocations(n.cfg.StateDir)
	must(t, err)
	for _, a := range left {
		t.Errorf("allocation %+v is left", a)
	}
}

// add returns the pod's address of the primary family.
func (n *node) add(t testing.TB, id, ns string) netip.Addr {
	t.Helper()
	return n.addAll(t, id, ns)[0]
}

func (n *node) addAll(t testing.TB, id, ns string) []netip.Addr {
	t.Helper()
	r, err := n.Handle(plugin.Request{Verb: "ADD", ContainerID: id, Netns: ns, Ifname: "eth0"})
	if err != nil {
		t.Fatalf("ADD %s: %v", id, err)
	}
	var out []netip.Addr
	for _, ip := range r.IPs {
		out = append(out, toAddr(ip.Address.IP))
	}
	return out
}

func (n *node) del(t testing.TB, id, ns string) {
	t.Helper()
	if _, err := n.Handle(plugin.Request{Verb: "DEL", ContainerID: id, Netns: ns, Ifname: "eth0"}); err != nil {
		t.Fatalf("DEL %s: %v", id, err)
	}
}

func (n *node) check(id, ns string) error {
	if _, err := n.Handle(plugin.Request{Verb: "CHECK", ContainerID: id, Netns: ns, Ifname: "eth0"}); err != nil {
		return err
	}
	return nil
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newNetns makes a network namespace, as a file.
func newNetns(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ns")
	must(t, os.WriteFile(path, nil, 0o600))
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
		}
		done <- err
	}()
	must(t, <-done)
	t.Cleanup(func() { removeNetns(t, path) })
	return path
}

func removeNetns(t testing.TB, path string) {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		t.Error(err)
	}
}

// within runs f on a thread in a namespace.
func within(t testing.TB, path string, f func() error) error {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		ns, err := os.Open(path)
		if err == nil {
			defer ns.Close()
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}
