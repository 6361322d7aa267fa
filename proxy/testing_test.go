package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/record"
	"k8s.io/component-base/metrics"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/mirror"
	"github.com/strake-io/strake/tests/netns"
)

// TestMain runs the tests in a process with a network namespace of its own, which has the addresses of testNode.
func TestMain(m *testing.M) {
	netns.Process()
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	for _, a := range []string{"192.0.2.1/32", "192.0.2.2/32", "2001:db8::1/128"} {
		if err == nil {
			p := netip.MustParsePrefix(a)
			err = netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Bits())}})
		}
		if errors.Is(err, unix.EEXIST) {
			err = nil
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "addresses for tests of the proxy:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// openDatapath loads the real tables.
func openDatapath(t *testing.T) *bpf.Datapath {
	t.Helper()
	pins := filepath.Join(t.TempDir(), "bpf")
	must(t, bpf.MountBPFFS(pins))
	t.Cleanup(func() { must(t, bpf.Remove(pins)); must(t, bpf.UnmountBPFFS(pins)) })
	root := "/sys/fs/cgroup/unified" // hybrid
	if _, err := os.Stat(root); err != nil {
		root = "/sys/fs/cgroup"
	}
	group, err := os.MkdirTemp(root, "strake-test-proxy-")
	must(t, err)
	t.Cleanup(func() { must(t, os.Remove(group)) })
	d, err := bpf.Open(bpf.Config{PinDir: pins, CgroupRoot: root, NodeCgroup: group, Zone: "cluster.local", DNSAddrs: addrs("10.96.0.10")})
	must(t, err)
	t.Cleanup(func() { must(t, d.Close()) })
	return d
}

// watchedTable tells when something was written.
type watchedTable struct {
	bpf.LoadBalancerTable
	changed chan struct{}
}

func watched(t bpf.LoadBalancerTable) *watchedTable { return &watchedTable{t, make(chan struct{}, 1)} }

func (w *watchedTable) ReplaceAll(want map[string][]bpf.LoadBalancer) (bpf.Changes, map[string]error) {
	c, errs := w.LoadBalancerTable.ReplaceAll(want)
	select {
	case w.changed <- struct{}{}:
	default:
	}
	return c, errs
}

// running is a Proxy that runs against a fake API.
type running struct {
	*Proxy
	table    *watchedTable
	registry metrics.KubeRegistry
	events   *record.FakeRecorder
	synced   atomic.Int32 // how often it was told that all is written
	done     chan error
	stop     func()
}

// start runs a proxy, and returns when all changes from now on will reach it.
func start(t *testing.T, client *fake.Clientset, table bpf.LoadBalancerTable, node Node) *running {
	t.Helper()
	opened := make(chan struct{}, 16)
	var mu sync.Mutex
	active := true
	// Unlike the real API the fake one can't replay what happened between an informer's list and its watch, so a change before the watch
	// is open is lost for ever.
	client.PrependWatchReactor("*", func(action clienttesting.Action) (bool, watch.Interface, error) {
		mu.Lock()
		defer mu.Unlock()
		if !active {
			return false, nil, nil
		}
		w, err := client.Tracker().Watch(action.GetResource(), action.GetNamespace())
		opened <- struct{}{}
		return true, w, err
	})
	ctx, cancel := context.WithCancel(t.Context())
	f := informers.NewSharedInformerFactory(client, 0)
	r := &running{table: watched(table), registry: metrics.NewKubeRegistry(), events: record.NewFakeRecorder(10000), done: make(chan error, 1)}
	var err error
	objects := mirror.New(client, node.Name)
	r.Proxy, err = New(Config{Objects: objects, Informers: f, Table: r.table, Node: node, Recorder: r.events, Registry: r.registry, Synced: func() { r.synced.Add(1) }})
	must(t, err)
	f.Start(ctx.Done())
	var following sync.WaitGroup
	following.Go(func() { objects.Run(ctx) })
	go func() { r.done <- r.Run(ctx) }()
	for range 3 { // of Services, of EndpointSlices, of Nodes
		<-opened
	}
	mu.Lock()
	active = false
	mu.Unlock()
	r.stop = sync.OnceFunc(func() {
		cancel()
		must(t, <-r.done)
		following.Wait()
		f.Shutdown()
	})
	t.Cleanup(r.stop)
	return r
}

// until waits for a state that follows from what is written.
func (r *running) until(t *testing.T, reached func() bool) {
	t.Helper()
	for !reached() {
		select {
		case <-r.table.changed:
		case <-time.After(5 * time.Millisecond): // what follows the rows is not told of
		case <-t.Context().Done():
			t.Fatal("the test was ended")
		}
	}
}
