package bpf

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
)

// A process that listens where a NodePort is, is found by its name; one that listens elsewhere is none.
func TestHeldPorts(t *testing.T) {
	l := newLab(t)
	rows := []LoadBalancer{
		{Owner: "u", Name: "ns/web:http", Protocol: 6, Frontends: fronts(NodePort, at(nodeIP, 30080), at("192.0.2.99", 30080))},
		{Owner: "u", Name: "ns/web:dns", Protocol: 17, Frontends: fronts(NodePort, at(nodeIP, 30053))},
		{Owner: "h", Name: "hostport", Protocol: 6, Frontends: fronts(HostPort, at(nodeIP, 8081))},
		{Owner: "u", Name: "ns/web:local", Protocol: 6, Frontends: fronts(NodePort, at(nodeIP, 30082))},
		{Owner: "u", Name: "ns/web:cluster", Protocol: 6, Frontends: fronts(ClusterIP, at("10.96.0.5", 8083))},
	}
	held := func() (got []HeldPort) {
		t.Helper()
		l.node.within(t, func() (err error) { got, err = HeldPorts(rows); return err })
		return got
	}
	if got := held(); len(got) > 0 {
		t.Errorf("nobody listens: %v", got)
	}
	l.node.within(t, func() error {
		for _, a := range []string{":30080", nodeIP + ":8081", "127.0.0.1:30082", ":8083"} {
			s, err := net.Listen("tcp", a)
			if err != nil {
				return err
			}
			t.Cleanup(func() { s.Close() })
		}
		s, err := net.ListenPacket("udp4", ":30053")
		if err == nil {
			t.Cleanup(func() { s.Close() })
		}
		return err
	})
	var lines []string
	for _, h := range held() {
		lines = append(lines, fmt.Sprintf("%s %s %d/%d", h.Owner, h.Name, h.Port, h.Protocol))
		if !strings.Contains(h.Process, fmt.Sprintf("(process %d)", os.Getpid())) {
			t.Errorf("%v: it is this process, %d", h, os.Getpid())
		}
	}
	if got, want := strings.Join(lines, "; "), "u ns/web:dns 30053/17; u ns/web:http 30080/6; h hostport 8081/6"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
