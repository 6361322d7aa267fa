package bpf

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

func maglevService(weights ...uint16) *service {
	lb := LoadBalancer{Name: "s", Protocol: 6, Frontends: fronts(NodePort, ap("192.0.2.1:30080"))}
	for i, w := range weights {
		lb.Backends = append(lb.Backends, Backend{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(i)}), 8080), All: true, Weight: w})
	}
	s, err := normal("u", lb)
	if err != nil {
		panic(err)
	}
	s.settle(nil)
	return s
}

// named is a table with the backends for the slots.
func named(s *service) []netip.AddrPort {
	at := map[uint16]netip.AddrPort{}
	for _, m := range s.members {
		at[m.slot[All]] = netip.AddrPortFrom(netip.AddrFrom16(m.addr).Unmap(), m.port)
	}
	var out []netip.AddrPort
	for _, slot := range s.maglevTable(All) {
		out = append(out, at[slot])
	}
	return out
}

func ones(n int) []uint16 {
	w := make([]uint16, n)
	for i := range w {
		w[i] = 1
	}
	return w
}

// Each backend has its share, by its weight.
// MaglevEntry finds what the programs find.
func TestMaglevEntry(t *testing.T) {
	l := newServiceLab(t)
	for _, f := range families {
		for _, affinity := range []time.Duration{0, time.Hour} {
			for _, proto := range protocols {
				front := at(f.vip(), 80)
				l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: proto, Affinity: affinity, Frontends: []Frontend{{Addr: front, Kind: ExternalIP}}, Backends: backs(at(f.pod, 8080), at(f.other, 8080), at(f.other, 8081))})
				rows, err := ReadServices(l.d.pinDir)
				must(t, err)
				var row ServiceRows
				for _, r := range rows {
					if r.Protocol == proto && r.Frontends[0].Addr == front {
						row = r
					}
				}
				must(t, clearFlows(l.d))
				seen := map[netip.AddrPort]bool{}
				for i := range 40 {
					addr := netip.MustParseAddr(f.far)
					for range i {
						addr = addr.Next()
					}
					client := netip.AddrPortFrom(addr, uint16(4000+7*i))
					_, out := l.run(t, uplinkProgram, l.uplink, frame(proto, client, front, []byte("question")))
					_, got := ends(out)
					want := row.Slots[All][row.Maglev[All][MaglevEntry(client, 80, proto, affinity > 0, len(row.Maglev[All]))]]
					if seen[got] = true; got != want {
						t.Fatalf("%s by %d, affinity %v: %s goes to %s, and the table says %s", f.name, proto, affinity, client, got, want)
					}
				}
				if len(seen) < 2 {
					t.Errorf("all go to %v", seen)
				}
			}
		}
	}
}

func TestMaglevShares(t *testing.T) {
	for _, weights := range [][]uint16{ones(2), ones(5), ones(100), ones(1000), {1, 2, 3}, {1, 0xffff}, {10, 10, 5}} {
		s := maglevService(weights...)
		shares := map[netip.AddrPort]int{}
		table := named(s)
		for _, b := range table {
			shares[b]++
		}
		sum := 0
		for _, w := range weights {
			sum += int(w)
		}
		for i, m := range s.members {
			want := float64(len(table)) * float64(weights[i]) / float64(sum)
			got := float64(shares[netip.AddrPortFrom(netip.AddrFrom16(m.addr).Unmap(), m.port)])
			if got < want-2 || got > want+2 {
				t.Errorf("%d backends: one of weight %d has %.0f entries of %d, want %.1f", len(weights), weights[i], got, len(table), want)
				break
			}
		}
	}
}

// Nodes that gave their slots in another order have the same table, and most flows stay where they are when a backend goes.
func TestMaglevOnAllNodesAndUnderChange(t *testing.T) {
	for _, n := range []int{3, 20, 300} {
		s, other := maglevService(ones(n)...), maglevService(ones(n)...)
		perm := rand.New(rand.NewPCG(7, 8)).Perm(n)
		for i := range other.members {
			other.members[i].slot[All] = uint16(perm[i])
		}
		was, same := named(s), named(other)
		for i := range was {
			if was[i] != same[i] {
				t.Fatalf("%d backends: entry %d is %v on one node, %v on another", n, i, was[i], same[i])
			}
		}
		gone := s.members[n/2]
		s.members = append(s.members[:n/2:n/2], s.members[n/2+1:]...)
		for i := range s.members {
			s.members[i].slot[All] = uint16(i)
		}
		moved := 0
		for i, b := range named(s) {
			if was[i] != b && was[i] != netip.AddrPortFrom(netip.AddrFrom16(gone.addr).Unmap(), gone.port) {
				moved++
			}
		}
		if moved > len(was)/20 {
			t.Errorf("%d backends: one goes, and %d of %d entries of the others move", n, moved, len(was))
		}
	}
}

// A table is there only where somebody outside chooses among several.
func TestMaglevSize(t *testing.T) {
	front := func(kind FrontendKind, outside Scope) []Frontend {
		return []Frontend{{Addr: ap("192.0.2.1:80"), Kind: kind, Outside: outside}}
	}
	for name, c := range map[string]struct {
		fronts     []Frontend
		all, local int
		want       [sets]uint32
	}{
		"ClusterIP":             {front(ClusterIP, All), 5, 2, [sets]uint32{}},
		"NodePort":              {front(NodePort, All), 5, 2, [sets]uint32{251, 0}},
		"NodePort, local":       {front(NodePort, Local), 5, 2, [sets]uint32{0, 251}},
		"local, one here":       {front(NodePort, Local), 5, 1, [sets]uint32{}},
		"of one":                {front(NodePort, All), 1, 1, [sets]uint32{}},
		"many":                  {front(LoadBalancerIP, All), 100, 1, [sets]uint32{8191, 0}},
		"more than have shares": {front(LoadBalancerIP, All), 5000, 1, [sets]uint32{65521, 0}},
	} {
		lb := LoadBalancer{Name: "s", Protocol: 6, Frontends: c.fronts}
		for i := range c.all {
			lb.Backends = append(lb.Backends, Backend{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(i)}), 8080), All: true, Local: i < c.local})
		}
		s, err := normal("u", lb)
		must(t, err)
		s.settle(nil)
		if s.maglev != c.want {
			t.Errorf("%s: %v, want %v", name, s.maglev, c.want)
		}
	}
}
