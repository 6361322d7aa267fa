package dns

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
)

// maxWaiting is how many queries of one client may wait for their turn. It is less than a client's resolver has on its way in the time
// that it waits itself.
const maxWaiting = 200

// turns bounds how much goes on at a time. When all places are taken, clients get those that become free in turn: one that asks a lot
// holds up itself, and not the others.
type turns struct {
	mu      sync.Mutex
	free    int
	clients []netip.Addr // that wait, the next one first
	queues  map[netip.Addr][]chan struct{}
}

func newTurns(n int) *turns { return &turns{free: n, queues: map[netip.Addr][]chan struct{}{}} }

// take waits for a place.
func (t *turns) take(ctx context.Context, client netip.Addr) error {
	t.mu.Lock()
	if t.free > 0 {
		t.free--
		t.mu.Unlock()
		return nil
	}
	q, waits := t.queues[client]
	if len(q) >= maxWaiting {
		t.mu.Unlock()
		return errors.New("dns: too many queries of this client wait for upstream servers")
	}
	if !waits {
		t.clients = append(t.clients, client)
	}
	turn := make(chan struct{})
	t.queues[client] = append(q, turn)
	t.mu.Unlock()
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	q = t.queues[client]
	i := slices.Index(q, turn)
	if i >= 0 {
		t.set(client, slices.Delete(q, i, i+1))
	}
	t.mu.Unlock()
	if i < 0 { // its turn came just now
		t.leave()
	}
	return errors.New("dns: too many queries wait for upstream servers")
}

// set keeps the queue of a client, if there is anybody in it.
func (t *turns) set(client netip.Addr, q []chan struct{}) {
	if len(q) > 0 {
		t.queues[client] = q
		return
	}
	delete(t.queues, client)
	if i := slices.Index(t.clients, client); i >= 0 {
		t.clients = slices.Delete(t.clients, i, i+1)
	}
}

// leave gives the place to who is next.
func (t *turns) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.clients) == 0 {
		t.free++
		return
	}
	client := t.clients[0]
	q := t.queues[client]
	close(q[0])
	t.set(client, q[1:])
	if len(q) > 1 { // to the end of the line
		t.clients = append(t.clients[1:], client)
	}
}
