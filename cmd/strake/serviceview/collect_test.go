package serviceview

import (
	"net/netip"
	"testing"

	"github.com/strake-io/strake/bpf"
)

// Without the API a Service is what the kernel has, with what the node's processes and settings say of it.
func TestAlone(t *testing.T) {
	rows := []bpf.ServiceRows{{LoadBalancer: bpf.LoadBalancer{
		Owner: "uid", Name: "demo/echo:http", Protocol: 6,
		Frontends: []bpf.Frontend{{Addr: netip.MustParseAddrPort("10.96.0.1:80"), Kind: bpf.ClusterIP}, {Addr: netip.MustParseAddrPort("192.0.2.1:30080"), Kind: bpf.NodePort}},
		Backends:  []bpf.Backend{{Addr: netip.MustParseAddrPort("10.244.0.2:80"), All: true}},
	}}}
	found := Alone(rows)
	AddHeld(found, []bpf.HeldPort{{Owner: "uid"}, {Owner: "other"}})
	AddDSR(found, true)
	if len(found) != 1 {
		t.Fatalf("%+v", found)
	}
	s := found[0]
	if s.Namespace != "demo" || s.Name != "echo" || s.Note != "not compared" || s.Ports[0].Backends[0].State != "not compared" || len(s.Drift) > 0 {
		t.Errorf("%+v", s)
	}
	if len(s.Held) != 1 || !s.DSR {
		t.Errorf("held %q, DSR %v", s.Held, s.DSR)
	}
}
