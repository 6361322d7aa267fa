package e2e

import (
	"context"
	order "encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/cni"
	"github.com/strake-io/strake/tests/podnet"
)

// allocation is what the node's CNI server gave the pod with an address.
func (n labNode) allocation(t *testing.T, addr netip.Addr) cni.Allocation {
	t.Helper()
	l, err := layout.New(n.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(l.CNIState(), "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if errors.Is(err, os.ErrNotExist) {
			continue // that pod has gone
		}
		var a cni.Allocation
		if err == nil {
			err = json.Unmarshal(data, &a)
		}
		if err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		for _, has := range a.Addrs {
			if has == addr {
				return a
			}
		}
	}
	t.Fatalf("node %s has no pod with %s: %q", n.Name, addr, files)
	return cni.Allocation{}
}

// podAddrs are a pod's, of both families.
func (c *threeNodes) podAddrs(pod string) (addrs []netip.Addr) {
	c.t.Helper()
	for _, a := range strings.Fields(c.kubectl("get", "pod", pod, "-o", "jsonpath={.status.podIPs[*].ip}")) {
		addrs = append(addrs, netip.MustParseAddr(a))
	}
	if len(addrs) != 2 {
		c.t.Fatalf("pod %s has %v", pod, addrs)
	}
	return addrs
}

// countPackets sends numbered datagrams from a pod to one on another node, ten thousand a second, while the agents of both nodes are killed and
// come back. None is lost.
func countPackets(t *testing.T, c *threeNodes) {
	from, to := c.podAddrs("resident-0"), c.podAddrs("resident-2")
	places := [2]podnet.Space{podnet.Space(c.nodes[0].allocation(t, from[0]).Netns), podnet.Space(c.nodes[2].allocation(t, to[0]).Netns)}
	sending, stop := context.WithCancel(t.Context())
	defer stop()
	var g errgroup.Group
	var sent, got [2]int
	for family, network := range []string{"udp4", "udp6"} {
		var sink *net.UDPConn
		if err := places[1].In(func() (err error) {
			sink, err = net.ListenUDP(network, &net.UDPAddr{IP: to[family].AsSlice()})
			return err
		}); err != nil {
			t.Fatal(err)
		}
		defer sink.Close()
		raw, err := sink.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 256<<20) }); errors.Join(err, cerr) != nil {
			t.Fatal(errors.Join(err, cerr))
		}
		conn, err := places[0].Dial(t.Context(), network, sink.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		g.Go(func() error {
			seen := map[uint64]bool{}
			b := make([]byte, 64)
			for {
				n, err := sink.Read(b)
				if errors.Is(err, os.ErrDeadlineExceeded) {
					got[family] = len(seen)
					return nil
				}
				if err != nil {
					return err
				}
				if n == 64 {
					seen[order.BigEndian.Uint64(b)] = true
				}
			}
		})
		g.Go(func() error {
			b := make([]byte, 64)
			for began, tick := time.Now(), time.Tick(time.Millisecond); sending.Err() == nil; <-tick {
				// No more at once than the kernel queues for a CPU, after this thread was held up.
				for range min(50, int(time.Since(began).Microseconds()/200)-sent[family]) {
					order.BigEndian.PutUint64(b, uint64(sent[family]))
					if _, err := conn.Write(b); err != nil {
						return errors.Join(fmt.Errorf("packet %d: %w", sent[family], err), sink.Close())
					}
					sent[family]++
				}
			}
			return sink.SetReadDeadline(time.Now().Add(2 * time.Second)) // for what is on its way
		})
	}
	began := time.Now()
	for _, i := range []int{0, 2} {
		if err := syscall.Kill(c.nodes[i].agent(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	was := c.nodes
	eventually(t, 90*time.Second, func() string {
		if trouble := c.refresh(); trouble != "" {
			return trouble
		}
		for _, i := range []int{0, 2} {
			if c.nodes[i].agent() == was[i].agent() {
				return "the agent of " + was[i].Name + " did not come back"
			}
			if out, err := c.try("exec", fmt.Sprint("resident-", i), "-c", "shell", "--", "true"); err != nil {
				return out
			}
		}
		return ""
	})
	took := time.Since(began)
	stop()
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	for family := range sent {
		line := fmt.Sprintf("%s: %d of %d packets arrived, %.0f a second", to[family], got[family], sent[family], float64(sent[family])/took.Seconds())
		if t.Log(line); got[family] != sent[family] || sent[family] < 1000 {
			t.Error(line)
		}
	}
}

// limitedPod: a pod's annotations reach its interface through kubelet, containerd and the plugin.
func limitedPod(t *testing.T, c *threeNodes) {
	n := c.nodes[1]
	c.apply(strings.Replace(residents(n.Name, 8), "labels: {app: resident, kind: pod}",
		`labels: {app: limited}, annotations: {kubernetes.io/ingress-bandwidth: 40M, kubernetes.io/egress-bandwidth: 20M}`, 1))
	c.kubectl("wait", "--for=condition=Ready", "pod/resident-8", "--timeout=60s")
	addr := c.podAddrs("resident-8")[0]
	a := n.allocation(t, addr)
	if a.Bandwidth.Ingress != 40_000_000 || a.Bandwidth.Egress != 20_000_000 {
		t.Errorf("the pod has %+v", a.Bandwidth)
	}
	l, err := layout.New(n.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	rows, err := bpf.ReadRows(l.BPF())
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, row := range rows.Endpoints {
		if row.Addr != addr {
			continue
		}
		found++
		if row.Egress.Rate != 20_000_000/8 || !row.Queued {
			t.Errorf("row %+v", row)
		}
	}
	if found != 1 {
		t.Errorf("%d rows of %s", found, addr)
	}
	if out := c.must(n.command(t, "tc", "qdisc", "show", "dev", a.Host)); !strings.Contains(out, "tbf") || !strings.Contains(out, "rate 40Mbit") {
		t.Errorf("queues of %s:\n%s", a.Host, out)
	}
	c.kubectl("delete", "pod", "resident-8", "--timeout=60s")
}

// transfer lets a pod ask another for a file, over and over: each time all of its bytes come.
func (c *threeNodes) transfer(ctx context.Context, from string, to netip.Addr, size int) error {
	url := "http://" + netip.AddrPortFrom(to, 9100).String() + "/big"
	for ctx.Err() == nil {
		out, err := c.try("exec", from, "-c", "shell", "--", "sh", "-c", "timeout 60 wget -q -O - "+url+" | wc -c")
		if err != nil || strings.TrimSpace(out) != fmt.Sprint(size) {
			return fmt.Errorf("%s from %s: %q (%v)", url, from, out, err)
		}
	}
	return nil
}
