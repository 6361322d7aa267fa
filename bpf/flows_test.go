package bpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

// traffic keeps flows of all kinds busy until the function that it returns is called, which fails unless each question was answered.
func (l *lab) traffic(t *testing.T) (end func()) {
	t.Helper()
	node := l.nodeIP + ":30080"
	l.service(t, node)
	l.out.serve(t, "out", 8080)
	stop, result := make(chan struct{}), make(chan error)
	n := 0
	watch := func(what string, once func(i int) error) {
		n++
		go func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					result <- nil
					return
				default:
				}
				if err := once(i); err != nil {
					result <- fmt.Errorf("%s: round %d: %w", what, i, err)
					return
				}
				time.Sleep(200 * time.Microsecond) // leaves the processors to what changes
			}
		}()
	}
	ask := func(c net.Conn, i int) error {
		got, err := exchange(c, fmt.Sprint(i))
		if err == nil && !strings.HasSuffix(got, fmt.Sprint(" ", i)) {
			err = fmt.Errorf("got %q", got)
		}
		return err
	}
	keep := func(what string, c net.Conn) { watch(what, func(i int) error { return ask(c, i) }) }
	for _, network := range []string{"tcp", "udp"} {
		keep("NodePort "+network, l.out.dial(t, network, node))
		keep("pod to outside "+network, l.pods[0].dial(t, network, outsideIP+":8080"))
	}
	idle := l.out.dial(t, "tcp", node)
	must(t, ask(idle, -1))
	return func() {
		t.Helper()
		close(stop)
		for range n {
			if err := <-result; err != nil {
				t.Error(err)
			}
		}
		if err := ask(idle, -2); err != nil {
			t.Errorf("a connection that was idle: %v", err)
		}
	}
}

// again starts the node network anew.
func (l *lab) again(t *testing.T) {
	t.Helper()
	must(t, l.d.Close())
	l.d = open(t, l.config)
	for _, i := range l.veths {
		must(t, l.d.AttachPod(i))
	}
	must(t, l.d.AttachUplink(l.uplink))
}

// flowRows reads both tables, in the order in which a flow that goes on goes through them: the other way round one that moves meanwhile is in neither.
func flowRows(t testing.TB, d *Datapath) map[netFlowKey]netFlow {
	t.Helper()
	out := map[netFlowKey]netFlow{}
	for _, name := range []string{flowsPassing, flowsOpen} {
		must(t, eachRow(d.net.Maps[name], name, func(k netFlowKey, f netFlow) { out[k] = f }))
	}
	return out
}

// Tables of another size take over while packets pass, and no row is lost.
func TestFlowsGrow(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Flows = 1000 })
	end := l.traffic(t)
	still := netFlowKey{Saddr: addr16(ap("198.51.100.1:1").Addr()), Proto: 6}
	must(t, l.d.net.Maps[flowsOpen].Put(still, netFlow{State: flowAgreed, Service: 77}))
	for i, flows := range []int{5000, 0, 2000, 2000, 300000} {
		before := flowRows(t, l.d)
		l.config.Flows = flows
		l.again(t)
		after := flowRows(t, l.d)
		for k := range before {
			if _, ok := after[k]; !ok {
				t.Errorf("size %d: %+v is lost", flows, k)
			}
		}
		if m := l.d.net.Maps[flowsOpen]; m.MaxEntries() != l.config.flowRows() || i == 0 && m.MaxEntries() != 10000 {
			t.Errorf("size %d: %s has room for %d rows", flows, m, m.MaxEntries())
		}
		if after[still].Service != 77 {
			t.Errorf("size %d: %+v", flows, after[still])
		}
		if left, _ := filepath.Glob(filepath.Join(l.config.PinDir, "*"+beforeSuffix)); len(left) > 0 {
			t.Errorf("size %d: %v are left", flows, left)
		}
	}
	end()
}

// What was killed while tables of another size took over is finished by the next start, whatever had been done, and to whatever size.
func TestGrowthThatWasKilled(t *testing.T) {
	for name, next := range map[string]int{"the same size": 5000, "another one": 7000} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, func(c *Config) { c.Flows = 1000 })
			end := l.traffic(t)
			l.config.Flows = 5000
			for _, table := range flowTables {
				before, _, err := l.config.growTable(table)
				must(t, err)
				defer before.Close()
				late := netFlowKey{Saddr: addr16(ap("198.51.100.1:1").Addr()), Proto: 6}
				must(t, before.Put(late, netFlow{State: flowAgreed, Service: 78})) // by programs that were not replaced yet
				if table == flowsOpen {
					defer func() {
						if f := flowRows(t, l.d)[late]; f.Service != 78 {
							t.Errorf("what came late is lost: %+v", f)
						}
					}()
				}
			}
			l.config.Flows = next
			l.again(t)
			end()
		})
	}
}

// What ended while a table of another size took over stays ended, and what began follows.
func TestFlowsThatEndWhileTablesGrow(t *testing.T) {
	d := open(t, tablesConfig(t))
	spec, err := loadNet()
	must(t, err)
	table := func(name string) *ebpf.Map {
		m, err := ebpf.NewMap(flowSpec(spec, name, 64))
		must(t, err)
		t.Cleanup(func() { m.Close() })
		return m
	}
	before, now := table(flowsOpen), table(flowsOpen)
	const began = 1000
	rows := map[netFlowKey]netFlow{}
	for i, f := range []netFlow{{Seen: began - 2}, {Seen: began + 1}, {Seen: began + 1}} {
		k := netFlowKey{Sport: uint16(i), Proto: 6}
		rows[k] = f
		must(t, before.Put(k, f))
	}
	must(t, d.net.Maps[flowsPassing].Put(netFlowKey{Sport: 2, Proto: 6}, netFlow{State: flowReset, Seen: began + 2}))
	must(t, followRows(before, now, d.net.Maps[flowsPassing], began))
	for k := range rows {
		var f netFlow
		if got, want := now.Lookup(k, &f) == nil, k.Sport == 1; got != want {
			t.Errorf("row %d is taken over: %v, want %v", k.Sport, got, want)
		}
	}
}

// A table that would have no room for the connections that there are does not take over.
func TestFlowsDontShrinkBelowTheirNumber(t *testing.T) {
	c := tablesConfig(t)
	c.Flows = 1000
	d := open(t, c)
	for i := range 900 {
		must(t, d.net.Maps[flowsOpen].Put(netFlowKey{Sport: uint16(i), Proto: 6}, netFlow{State: flowAgreed}))
	}
	must(t, d.Close())
	c.Flows = 500
	if _, err := Open(c); err == nil || !strings.Contains(err.Error(), "900 rows are in use") || !strings.Contains(err.Error(), "at least 600 flows") {
		t.Errorf("error %v", err)
	}
	c.Flows = 700
	d = open(t, c)
	if n := len(flowRows(t, d)); n != 900 {
		t.Errorf("%d rows", n)
	}
}

// Connections live through a release with layout 2 and back, also if the way down was killed in the middle.
func TestFlowsGoDownAndUp(t *testing.T) {
	l := newLab(t)
	end := l.traffic(t)
	before := flowRows(t, l.d)
	for round := range 3 {
		must(t, l.d.Close())
		if round > 0 {
			maps, err := mapsOfLayout2(l.config.PinDir)
			must(t, err)
			version, _, err := readVersion(l.config.PinDir)
			must(t, err)
			must(t, version.Put(uint32(0), uint32(2)))
			version.Close()
			for i, name := range converted2 {
				if i%2 == round-1 {
					must(t, pinOver(maps[name], filepath.Join(l.config.PinDir, name)))
				}
				maps[name].Close()
			}
		}
		notLocking(t)
		must(t, Downgrade(l.config.PinDir, 2))
		must(t, Downgrade(l.config.PinDir, 2)) // there is nothing left to do
		for name, want := range layout2 {
			m, err := ebpf.LoadPinnedMap(filepath.Join(l.config.PinDir, name), nil)
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			must(t, err)
			if !hasForm(m, want) {
				t.Errorf("%s is %s, %d, %d, %d; want %+v", name, m.Type(), m.KeySize(), m.ValueSize(), m.MaxEntries(), want)
			}
			m.Close()
		}
		entries, err := os.ReadDir(l.config.PinDir)
		must(t, err)
		for _, e := range entries {
			if _, ok := layout2[e.Name()]; !ok && !strings.HasPrefix(e.Name(), linkPrefix) && !strings.HasPrefix(e.Name(), filterPrefix) && e.Name() != versionPin && !strings.HasSuffix(e.Name(), ".debug") {
				t.Errorf("%s is not of layout 2", e.Name())
			}
		}
		l.again(t)
		after := flowRows(t, l.d)
		for k, f := range before {
			g, ok := after[k]
			if f.Service == 0 {
				f.Ifindex = 0 // layout 2 does not know it, and it matters for answers of frontends alone
			}
			f.State, f.Seen, f.Generation, g.State, g.Seen, g.Generation = 0, 0, 0, 0, 0, 0
			f.Service, g.Service = min(f.Service, 1), min(g.Service, 1) // numbers are given anew
			if !ok || f != g {
				t.Errorf("%+v was %+v, and is %+v (%v)", k, f, g, ok)
			}
		}
		for _, name := range []string{oldFlows, oldMasq} {
			if _, err := os.Stat(filepath.Join(l.config.PinDir, name)); err == nil {
				t.Errorf("%s is left", name)
			}
		}
	}
	end()
	rows, err := l.d.LoadBalancers().Dump()
	if err != nil || len(rows) != 2 || len(rows[0].Backends) != 2 {
		t.Errorf("%+v, %v", rows, err)
	}
}

// Flows of direct server return have no form in layout 2, and are left out.
func TestDowngradeLeavesDirectFlowsOut(t *testing.T) {
	key := netFlowKey{Saddr: addr16(netip.MustParseAddr("198.51.100.1")), Daddr: addr16(netip.MustParseAddr(nodeIP)), Sport: 5000, Dport: 80, Proto: 6}
	for flags, want := range map[uint8]bool{flowHere: true, flowAway: false, flowHere | flowDirect: false} {
		spec := layout2[oldFlows]
		flows, err := ebpf.NewMap(&spec)
		must(t, err)
		defer flows.Close()
		must(t, flow2(map[string]*ebpf.Map{oldFlows: flows}, key, netFlow{Saddr: key.Saddr, Sport: key.Sport, Daddr: addr16(netip.MustParseAddr(pod)), Dport: 8080, Service: 1, Flags: flags}))
		var row oldFlow
		if is := flows.Lookup(key, &row) == nil; is != want {
			t.Errorf("flags %d: in layout 2: %v", flags, is)
		}
	}
}

// The longest name of a row of this release finds its place.
func TestLongestNameGoesDown(t *testing.T) {
	c := tablesConfig(t)
	d := open(t, c)
	name := strings.Repeat("n", 191) + "~"
	front := Frontend{Addr: ap("[fd00:10:96::5]:80"), Inside: Local}
	_, err := d.LoadBalancers().Replace("u", []LoadBalancer{{Name: name, Protocol: 6, Frontends: []Frontend{front}, Backends: []Backend{{Addr: ap("[fd00::1]:80"), All: true, Local: true}}}})
	must(t, err)
	must(t, d.Close())
	must(t, Downgrade(c.PinDir, OldestLayout))
}

func TestDowngradeRefuses(t *testing.T) {
	c := tablesConfig(t)
	if err := Downgrade(c.PinDir, 2); err == nil {
		t.Error("nothing is there, and no error")
	}
	open(t, c).Close()
	if err := Downgrade(c.PinDir, 1); err == nil || !strings.Contains(err.Error(), "only layout 2") {
		t.Errorf("error %v", err)
	}
	m, _, err := readVersion(c.PinDir)
	must(t, err)
	defer m.Close()
	must(t, m.Put(uint32(0), layoutVersion+1))
	var wrong *LayoutError
	if err := Downgrade(c.PinDir, 2); !errors.As(err, &wrong) {
		t.Errorf("error %v", err)
	}
}

// Tables of policies that hold more than their default go on: the older release knows none.
func TestDowngradeWithManyPolicyRows(t *testing.T) {
	c := tablesConfig(t)
	c.MaxPolicyPeers = DefaultMaxPolicyPeers + 100
	d := open(t, c)
	var many PolicyChange
	for i := range DefaultMaxPolicyPeers + 1 {
		many.Peers = append(many.Peers, PolicyPeer{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32), Identity: 1})
	}
	must(t, d.Policies().Apply(many))
	must(t, d.Close())
	must(t, Downgrade(c.PinDir, 2))
}
