package podnet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cni"
	"github.com/strake-io/strake/netpol"
	"github.com/strake-io/strake/netpol/compiler"
	"github.com/strake-io/strake/netpol/flows"
)

// Spec is a node and all that is desired of it.
type Spec struct {
	Dir           string // of its state
	Cgroup        string // its folder in the cgroup2 tree
	CgroupRoot    string
	Addrs         []netip.Addr   // the node's, of either family or both
	PodCIDRs      []netip.Prefix // of the same families, as are all others
	DNSAddrs      []netip.Addr
	NoMasquerade  []netip.Prefix
	Routing       cni.Routing
	Relay         cni.Relay
	Nodes         []cni.NodeInfo // all of the cluster, this one too
	LoadBalancers []bpf.LoadBalancer
	DSR           bool // what clients outside ask goes to other nodes' pods so
	XDP           bpf.XDPMode
	Names         []bpf.Name
	Policies      *bpf.PolicyChange // written at each start; with Judged nil, too: nobody is judged
	Judged        *netpol.State     // whose policies are in force once the node has started, whatever was in force before
	RecordFlows   bool              // in the node's folder; with Policies alone
}

// Uplink is the interface of a node's namespace that has the node's address.
const Uplink = "up0"

const zone = "cluster.local"

func (s Spec) pins() string { return filepath.Join(s.Dir, "bpf") }

// Socket is where the node's CNI server listens.
func (s Spec) Socket() string { return filepath.Join(s.Dir, "cni.sock") }

func (s Spec) state() string { return filepath.Join(s.Dir, "cni") }

func (s Spec) alias() string { return "podnet-" + filepath.Base(s.Dir) }

// roleVariable says what Main makes of this process.
const roleVariable = "STRAKE_PODNET_ROLE"

// Main makes the process a node or a client if it was started as one, and does not return then. Call it before all else.
func Main() {
	var err error
	switch os.Getenv(roleVariable) {
	case "":
		return
	case "node":
		err = serve(os.Args[1])
	case "client":
		err = client(os.Stdin, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// serve runs the node whose Spec is in a file until it is told to end, and prints a line once all that is desired is in the kernel and
// the CNI server listens. It is to be started in the node's network namespace.
func serve(file string) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var s Spec
	if err := json.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	rate := 0
	if s.RecordFlows {
		rate = bpf.DefaultRecordFlows
	}
	d, err := bpf.Open(bpf.Config{
		PinDir: s.pins(), CgroupRoot: s.CgroupRoot, NodeCgroup: s.Cgroup, DNSAddrs: s.DNSAddrs, Zone: zone, DNSTTL: 30,
		NodeAddrs: s.Addrs, NoMasquerade: s.NoMasquerade, Policy: s.Policies != nil || s.Judged != nil, DSR: s.DSR, XDP: s.XDP, RecordFlows: rate,
	})
	if err != nil {
		return err
	}
	defer d.Close()
	if s.Policies != nil {
		if err := d.Policies().Apply(*s.Policies); err != nil {
			return err
		}
	}
	if s.Judged != nil {
		if err := s.enforce(d.Policies()); err != nil {
			return err
		}
	}
	if err := cni.Prepare(s.state(), s.Addrs, s.DNSAddrs); err != nil {
		return err
	}
	var mtu atomic.Int64
	var server *cni.Server
	nodes, err := cni.NewNodes(cni.NodesConfig{
		Name: filepath.Base(s.Dir), Addrs: s.Addrs, Routing: s.Routing, Relay: s.Relay, TunnelPort: cni.DefaultTunnelPort, Datapath: d,
		OnUnderlay: func(u cni.Underlay) error {
			mtu.Store(int64(u.MTU))
			if left, err := d.ServeUplinks(u.Uplinks, u.Others); left != nil || err != nil {
				return errors.Join(left, err)
			}
			if server != nil { // it begins with the right one
				server.ApplyMTU()
			}
			return nil
		},
	})
	if err != nil {
		return err
	}
	if err := nodes.Apply(s.Nodes); err != nil {
		return err
	}
	server, err = cni.New(cni.Config{
		Socket: s.Socket(), StateDir: s.state(), Alias: s.alias(), NodeAddrs: s.Addrs, MTU: func() int { return int(mtu.Load()) }, Datapath: d,
		PodCIDRs: func() ([]netip.Prefix, bool) { return s.PodCIDRs, true },
	})
	if err != nil {
		return err
	}
	if err := replaceAll(d.LoadBalancers(), s.LoadBalancers, func(r bpf.LoadBalancer) string { return r.Owner }); err != nil {
		return err
	}
	if err := replaceAll(d.Names(), s.Names, func(r bpf.Name) string { return r.Owner }); err != nil {
		return err
	}
	record := func(context.Context) error { return nil }
	if s.RecordFlows {
		r, err := s.recorder(d)
		if err != nil {
			return err
		}
		record = r.Run
	}
	ended := make(chan error, 3)
	go func() { ended <- server.Run(ctx) }()
	go func() { ended <- nodes.Run(ctx) }()
	go func() {
		if err := record(ctx); err != nil {
			ended <- err
			return
		}
		<-ctx.Done()
		ended <- nil
	}()
	for {
		c, err := net.Dial("unix", s.Socket())
		if err == nil {
			c.Close()
			break
		}
		select {
		case err := <-ended:
			return err
		case <-time.After(time.Millisecond):
		}
	}
	fmt.Println("ready")
	return errors.Join(<-ended, <-ended, <-ended)
}

// enforce has the tables say what the policies say, as an agent does that goes on from the rows of the one before.
func (s Spec) enforce(tables *bpf.PolicyTables) error {
	rows, err := tables.Dump()
	if err != nil {
		return err
	}
	c := compiler.New(compiler.Options{NodeName: filepath.Base(s.Dir)})
	c.Continue(rows)
	c.SetState(*s.Judged)
	for _, change := range c.Flush() {
		if err := tables.Apply(change); err != nil {
			return err
		}
	}
	if p := c.Problems(); len(p) > 0 {
		return fmt.Errorf("policies that are not enforced as they are written: %v", p)
	}
	return nil
}

// recorder writes the record of flows as an agent does. A pod is known by its address.
func (s Spec) recorder(d *bpf.Datapath) (*flows.Recorder, error) {
	source, err := d.FlowRecord()
	if err != nil {
		return nil, err
	}
	names := map[uint32]bpf.PolicyName{}
	for _, n := range s.Policies.Names {
		names[n.Policy] = n
	}
	r, err := flows.New(flows.Config{Dir: filepath.Join(s.Dir, "flows"), Node: filepath.Base(s.Dir), Source: source, Names: flows.Names{
		End: func(a netip.Addr, _ time.Time) (flows.End, bool) {
			return flows.End{Namespace: "podnet", Pod: a.String()}, true
		},
		Policy:  func(number uint32) (bpf.PolicyName, bool) { n, ok := names[number]; return n, ok },
		Service: d.ServiceAt,
	}})
	if err != nil {
		return nil, errors.Join(err, source.Close())
	}
	return r, nil
}

func replaceAll[R any](t bpf.Table[R], rows []R, owner func(R) string) error {
	owned := map[string][]R{}
	for _, r := range rows {
		owned[owner(r)] = append(owned[owner(r)], r)
	}
	for o, rows := range owned {
		if _, err := t.Replace(o, rows); err != nil {
			return err
		}
	}
	return nil
}

// remove takes all of the node's away; its process has ended.
func (s Spec) remove() error {
	if err := cni.RemoveAll(s.state(), s.alias(), s.DNSAddrs); err != nil {
		return err
	}
	return bpf.Remove(s.pins())
}
