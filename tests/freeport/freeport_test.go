package freeport

import (
	"fmt"
	"net"
	"testing"
)

func TestFind(t *testing.T) {
	seen := map[int]bool{}
	for range 300 {
		port := Find(t)
		if seen[port] {
			t.Errorf("port %d is given twice", port)
		}
		seen[port] = true
	}
	for _, network := range []string{"tcp", "udp"} {
		t.Run(network, func(t *testing.T) {
			port := Find(t)
			at := fmt.Sprint("127.0.0.1:", port)
			if network == "tcp" {
				l, err := net.Listen(network, at)
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
			} else {
				p, err := net.ListenPacket(network, at)
				if err != nil {
					t.Fatal(err)
				}
				defer p.Close()
			}
			if free(port) {
				t.Errorf("port %d is taken, and said to be free", port)
			}
		})
	}
}
