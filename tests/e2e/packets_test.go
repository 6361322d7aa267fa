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
	"slices"
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

// packets are numbered datagrams from a pod to one on another node, of both families, each ten thousand in two seconds.
type packets struct {
	to        []netip.Addr
	began     time.Time
	stop      func()
	run       errgroup.Group
	sent, got [2]int
}

// send begins to send packets from the resident on a node to that on another.
func (c *threeNodes) send(from, to int) *packets {
	c.t.Helper()
	ends := [2][]netip.Addr{c.podAddrs(fmt.Sprint("resident-", from)), c.podAddrs(fmt.Sprint("resident-", to))}
	places := [2]podnet.Space{podnet.Space(c.nodes[from].allocation(c.t, ends[0][0]).Netns), podnet.Space(c.nodes[to].allocation(c.t, ends[1][0]).Netns)}
	sending, stop := context.WithCancel(c.t.Context())
	c.t.Cleanup(stop)
	p := &packets{to: ends[1], began: time.Now(), stop: stop}
	for family, network := range []string{"udp4", "udp6"} {
		var sink *net.UDPConn
		if err := places[1].In(func() (err error) {
			sink, err = net.ListenUDP(network, &net.UDPAddr{IP: p.to[family].AsSlice()})
			return err
		}); err != nil {
			c.t.Fatal(err)
		}
		c.t.Cleanup(func() { sink.Close() })
		raw, err := sink.SyscallConn()
		if err != nil {
			c.t.Fatal(err)
		}
		if cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 256<<20) }); errors.Join(err, cerr) != nil {
			c.t.Fatal(errors.Join(err, cerr))
		}
		conn, err := places[0].Dial(c.t.Context(), network, sink.LocalAddr().String())
		if err != nil {
			c.t.Fatal(err)
		}
		c.t.Cleanup(func() { conn.Close() })
		p.run.Go(func() error {
			seen := map[uint64]bool{}
			b := make([]byte, 64)
			for {
				n, err := sink.Read(b)
				if errors.Is(err, os.ErrDeadlineExceeded) {
					p.got[family] = len(seen)
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
		p.run.Go(func() error {
			b := make([]byte, 64)
			for began, tick := time.Now(), time.Tick(time.Millisecond); sending.Err() == nil; <-tick {
				// No more at once than the kernel queues for a CPU, after this thread was held up.
				for range min(50, int(time.Since(began).Microseconds()/200)-p.sent[family]) {
					order.BigEndian.PutUint64(b, uint64(p.sent[family]))
					if _, err := conn.Write(b); err != nil {
						return errors.Join(fmt.Errorf("packet %d: %w", p.sent[family], err), sink.Close())
					}
					p.sent[family]++
				}
			}
			return sink.SetReadDeadline(time.Now().Add(2 * time.Second)) // for what is on its way
		})
	}
	return p
}

// allArrive ends the sending: not one packet was lost.
func (p *packets) allArrive(t *testing.T) {
	t.Helper()
	took := time.Since(p.began)
	p.stop()
	if err := p.run.Wait(); err != nil {
		t.Fatal(err)
	}
	for family := range p.sent {
		line := fmt.Sprintf("%s: %d of %d packets arrived, %.0f a second", p.to[family], p.got[family], p.sent[family], float64(p.sent[family])/took.Seconds())
		if t.Log(line); p.got[family] != p.sent[family] || p.sent[family] < 1000 {
			t.Error(line)
		}
	}
}

// countPackets counts packets between two nodes while the agents of both are killed and come back. None is lost.
func countPackets(t *testing.T, c *threeNodes) {
	packets := c.send(0, 2)
	for _, i := range []int{0, 2} {
		if err := syscall.Kill(c.nodes[i].agent(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	was := c.nodes
	eventually(t, 6*time.Minute, func() string {
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
	packets.allArrive(t)
}

// rebootNode reboots a node whose pod, among others, serves a Service that is called all the time. Its pods come back with a clean network, no
// address is left behind, and what passes between the other nodes loses nothing.
func rebootNode(t *testing.T, c *threeNodes) {
	const gone = 2
	l, err := layout.New(c.nodes[gone].DataDir)
	if err != nil {
		t.Fatal(err)
	}
	others := c.send(0, 1)
	calls := "http://" + netip.AddrPortFrom(netip.MustParseAddr(c.kubectl("get", "service", "residents", "-o", "jsonpath={.spec.clusterIP}")), 80).String()
	all := func() string { // the client on a node that stays gets answers of all three
		out, err := c.try("exec", "resident-1", "-c", "echo", "--", "/strake", "demo", "client", "--interval", "1ms", "--count", "60", "--url", calls)
		if seen := answersOf(out); err != nil || strings.Contains(out, "error") || !only(seen, "resident-0", "resident-1", "resident-2") {
			return fmt.Sprintf("%v, answers of %v:\n%s", err, seen, out)
		}
		return ""
	}
	eventually(t, 4*time.Minute, all)
	was := c.podAddrs("resident-2")
	c.powerOff(l)
	if out, err := c.Strake("up", "--wait", "120s"); err != nil {
		t.Fatalf("up: %v\n%s", err, out)
	}
	eventually(t, 6*time.Minute, c.refresh)
	eventually(t, 6*time.Minute, all)
	if now := c.podAddrs("resident-2"); slices.Equal(now, was) {
		t.Errorf("the pod has the addresses that it had before, %v, though others are free", now)
	}
	others.allArrive(t)
	// What is allocated is what pods have, and the kernel's tables say the same.
	eventually(t, 4*time.Minute, func() string {
		var of, pods []string
		files, err := filepath.Glob(filepath.Join(l.CNIState(), "*.json"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if data, err := os.ReadFile(f); err == nil {
				var a cni.Allocation
				if json.Unmarshal(data, &a) == nil && len(a.Addrs) > 0 {
					of = append(of, a.Addrs[0].String())
				}
			}
		}
		for _, ip := range strings.Fields(c.kubectl("get", "pods", "-A", "--field-selector", "spec.nodeName="+c.nodes[gone].Name, "-o", `jsonpath={range .items[?(@.status.phase=="Running")]}{.status.podIP}{" "}{end}`)) {
			pods = append(pods, ip)
		}
		slices.Sort(of)
		slices.Sort(pods)
		if !slices.Equal(of, pods) {
			return fmt.Sprintf("allocated are %v, pods have %v", of, pods)
		}
		return ""
	})
	eventually(t, 4*time.Minute, func() string {
		if out, err := c.nodes[gone].command(t, c.Binary, "doctor", "--data-dir", l.Data).CombinedOutput(); err != nil {
			return string(out)
		}
		return ""
	})
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
