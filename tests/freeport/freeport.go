// Package freeport finds ports for servers of tests that have to be told theirs.
package freeport

import (
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
)

// The ports are below those that the kernel gives to whoever asks for any (net.ipv4.ip_local_port_range, from 32768), so that nobody's connection
// takes one between its choice and its use, and below those of NodePorts.
const first, end = 12000, 30000

var given sync.Map // each is given once in a process

// Find is a port that nobody has for TCP and UDP. Which one is left to chance: tests of other packages run at the same time.
func Find(t testing.TB) int {
	t.Helper()
	for range 200 {
		port := first + rand.IntN(end-first)
		if _, taken := given.LoadOrStore(port, true); !taken && free(port) {
			return port
		}
	}
	t.Fatalf("no free port was found from %d to %d", first, end-1)
	return 0
}

func free(port int) bool {
	at := fmt.Sprint(":", port) // also those who have it at one address are in the way of some test
	l, err := net.Listen("tcp", at)
	if err != nil {
		return false
	}
	defer l.Close()
	p, err := net.ListenPacket("udp", at)
	if err != nil {
		return false
	}
	return p.Close() == nil
}
