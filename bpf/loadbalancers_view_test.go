package bpf

import (
	"net/netip"
	"slices"
	"testing"
	"time"
)

// What is read of Services from outside of the agent: rows with their numbers, slots, tables and hits.
func TestReadServices(t *testing.T) {
	l := newServiceLab(t)
	f := families[0]
	front, nodePort := at(f.vip(), 80), at(f.node, 30080)
	here, there, drains := at(f.other, 8080), at(f.remote(), 8080), at(f.pod, 8080)
	l.service(t, LoadBalancer{
		Name: "ns/web:http", Protocol: 17, Affinity: time.Hour,
		Frontends: []Frontend{{Addr: front, Inside: Local}, {Addr: nodePort, Kind: NodePort}},
		Backends:  []Backend{{Addr: here, All: true, Local: true}, {Addr: there, All: true, Weight: 3}, {Addr: drains}},
	}, LoadBalancer{Name: "ns/none:http", Protocol: 6, Frontends: []Frontend{{Addr: front}}})
	clients := map[netip.Addr]bool{}
	for i := range 20 {
		client := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i + 1)}), 4000)
		clients[client.Addr()] = true
		l.run(t, uplinkProgram, l.uplink, frame(17, client, nodePort, nil))
	}
	rows, err := ReadServices(l.d.pinDir)
	must(t, err)
	if len(rows) != 2 {
		t.Fatalf("%d rows", len(rows))
	}
	slices.SortFunc(rows, func(a, b ServiceRows) int { return int(b.Protocol) - int(a.Protocol) })
	web, none := rows[0], rows[1]
	if web.Owner != "u" || web.Name != "ns/web:http" || web.ID == 0 || web.Affinity != time.Hour || len(web.Frontends) != 2 || len(web.Backends) != 3 {
		t.Errorf("%+v", web)
	}
	all := slices.SortedFunc(slices.Values(web.Slots[All]), netip.AddrPort.Compare)
	if !slices.Equal(all, []netip.AddrPort{here, there}) || !slices.Equal(web.Slots[Local], []netip.AddrPort{here}) {
		t.Errorf("slots %v", web.Slots)
	}
	share := map[netip.AddrPort]int{}
	for _, slot := range web.Maglev[All] {
		share[web.Slots[All][slot]]++
	}
	if share[there] < 2*share[here] || share[here] == 0 || len(web.Maglev[Local]) != 0 {
		t.Errorf("shares %v of %d, and %d of this node's", share, len(web.Maglev[All]), len(web.Maglev[Local]))
	}
	if n := web.Hits[here] + web.Hits[there]; n != 20 || web.Hits[drains] != 0 {
		t.Errorf("hits %v", web.Hits)
	}
	if len(none.Backends) != 0 || len(none.Slots[All]) != 0 || none.ID == web.ID {
		t.Errorf("%+v", none)
	}

	kept, err := ReadAffinity(l.d.pinDir)
	must(t, err)
	for _, r := range kept {
		if !clients[r.Client] || r.Netns != 0 || r.Service != web.ID || r.Backend != here && r.Backend != there || r.Ago < 0 || r.Ago > time.Hour {
			t.Errorf("%+v", r)
		}
		delete(clients, r.Client)
	}
	if len(clients) > 0 {
		t.Errorf("nothing is known of %v", clients)
	}
}

// Clients at the socket are namespaces, and those whose sockets are left alone are told.
func TestReadAffinityOfSockets(t *testing.T) {
	l := newLab(t)
	l.node.serve(t, "node", 8081)
	l.write(t, LoadBalancer{Name: "ns/web:http", Protocol: 6, Affinity: time.Hour, Frontends: fronts(ClusterIP, ap("10.96.0.5:80")), Backends: backs(at(nodeIP, 8081))})
	if _, err := exchange(l.node.dial(t, "tcp", "10.96.0.5:80"), "hello"); err != nil {
		t.Fatal(err)
	}
	kept, err := ReadAffinity(l.config.PinDir)
	must(t, err)
	if len(kept) != 1 || kept[0].Netns != l.d.netns || kept[0].Client.IsValid() || kept[0].Backend != at(nodeIP, 8081) {
		t.Errorf("%+v, and the node's namespace is %d", kept, l.d.netns)
	}
	if off, err := ReadSocketsOff(l.config.PinDir); err != nil || len(off) != 0 {
		t.Errorf("%v, %v", off, err)
	}
	_, err = l.d.SocketsOff().Replace("sandbox", []SocketsOff{{Owner: "sandbox", Netns: 77}})
	must(t, err)
	if off, err := ReadSocketsOff(l.config.PinDir); err != nil || !slices.Equal(off, []uint64{77}) {
		t.Errorf("%v, %v", off, err)
	}
	if _, err := ReadServices(t.TempDir()); err == nil {
		t.Error("nothing is pinned there, and no error")
	}
}
