package podnet

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cni"
	"github.com/strake-io/strake/cni/plugin"
)

// TestStormWithKilledAgent lets pods come and go while the agent is killed again and again, with a runtime that repeats what failed, as
// kubelets do: no two pods have an address at once, a pod that got its network has all of it, and in the end nothing is left anywhere.
func TestStormWithKilledAgent(t *testing.T) {
	const workers, kills = 20, 4
	l, err := New(1)
	must(t, err)
	t.Cleanup(func() { must(t, l.Close()) })
	n := l.Nodes[0]
	must(t, l.Start())
	before, err := bpf.ReadStatus(n.pins())
	must(t, err)

	var live sync.Map // address to pod
	var pods atomic.Int64
	stop := make(chan struct{})
	deadline := time.Now().Add(10 * time.Minute)
	// again repeats a call until the agent is there and does it.
	again := func(r plugin.Request) error {
		for {
			_, err := n.Call(r)
			if cause := (*types.Error)(nil); err == nil || errors.As(err, &cause) {
				return err // the agent's own word
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("the agent does not come back: %w", err)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	var wg sync.WaitGroup
	for i := range workers {
		space, err := l.Space(fmt.Sprint("storm", i))
		must(t, err)
		wg.Go(func() {
			id := fmt.Sprint("storm", i)
			add := plugin.Request{Verb: "ADD", ContainerID: id, Netns: string(space), Ifname: "eth0", Ports: []plugin.PortMapping{{HostPort: 20000 + i, ContainerPort: 80}}}
			del := plugin.Request{Verb: "DEL", ContainerID: id, Netns: string(space), Ifname: "eth0"}
			for {
				select {
				case <-stop:
					return
				default:
				}
				r, err := n.Call(add)
				if err == nil {
					for _, ip := range r.IPs {
						a, _ := netip.AddrFromSlice(ip.Address.IP)
						if other, taken := live.LoadOrStore(a, id); taken {
							t.Errorf("%s is %s's and %s's", a, id, other)
						}
					}
					// The agent may be another by now, which took the pod over.
					if err := again(plugin.Request{Verb: "CHECK", ContainerID: id, Netns: string(space), Ifname: "eth0"}); err != nil {
						t.Errorf("CHECK: %v", err)
					}
					for _, ip := range r.IPs {
						a, _ := netip.AddrFromSlice(ip.Address.IP)
						live.Delete(a)
					}
					pods.Add(1)
				} else if cause := (*types.Error)(nil); errors.As(err, &cause) {
					t.Errorf("ADD: %v", err) // refused, and not for want of an agent
				}
				if err := again(del); err != nil {
					t.Errorf("DEL: %v", err)
					return
				}
			}
		})
	}
	for range kills {
		for had := pods.Load(); pods.Load() < had+workers/2 && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		must(t, n.Kill())
		must(t, n.Start())
	}
	close(stop)
	wg.Wait()
	t.Logf("%d pods", pods.Load())

	after, err := bpf.ReadStatus(n.pins())
	must(t, err)
	if len(after.Links) != len(before.Links) || fmt.Sprint(after.Maps) != fmt.Sprint(before.Maps) {
		t.Errorf("left in the kernel: %+v %+v, was %+v %+v", after.Links, after.Maps, before.Links, before.Maps)
	}
	must(t, n.Space.In(func() error {
		links, err := cni.Whole(netlink.LinkList)
		for _, l := range links {
			if strings.HasPrefix(l.Attrs().Name, "stk") {
				t.Errorf("interface %s is left", l.Attrs().Name)
			}
		}
		return err
	}))
	files, err := os.ReadDir(n.state())
	must(t, err)
	for _, f := range files {
		if filepath.Ext(f.Name()) == ".json" || strings.HasPrefix(f.Name(), ".tmp") {
			t.Errorf("%s is left", f.Name())
		}
	}
}
