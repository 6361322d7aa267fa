package proxy

import (
	"sync"
	"time"
)

// change is what the API told of a Service since its rows were last written.
type change struct {
	since               time.Time // of the oldest
	services, endpoints int
	triggers            []time.Time // when pods changed, as the EndpointSlice controller tells
}

// changes are those that are not in the kernel yet, by Service key.
type changes struct {
	mu      sync.Mutex
	waiting map[string]*change
	working map[*change]bool // of Services that are being written
	metrics *instruments
}

func newChanges(m *instruments) *changes {
	return &changes{waiting: map[string]*change{}, working: map[*change]bool{}, metrics: m}
}

// note adds a change of a Service, or of its slices.
func (c *changes) note(key string, services, endpoints int, trigger time.Time) {
	now := time.Now()
	c.mu.Lock()
	w := c.waiting[key]
	if w == nil {
		w = &change{since: now}
		c.waiting[key] = w
	}
	w.services, w.endpoints = w.services+services, w.endpoints+endpoints
	if !trigger.IsZero() {
		w.triggers = append(w.triggers, trigger)
	}
	c.mu.Unlock()
	c.metrics.services.Add(float64(services))
	c.metrics.endpoints.Add(float64(endpoints))
	c.metrics.servicesPending.Add(float64(services))
	c.metrics.endpointsPending.Add(float64(endpoints))
	c.metrics.lastQueued.Set(seconds(now))
}

// take hands out what is to be written now. settle must follow.
func (c *changes) take(key string) *change {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.waiting[key]
	if w == nil {
		w = &change{since: time.Now()} // asked for again, without news
	}
	delete(c.waiting, key)
	c.working[w] = true
	return w
}

// settle says what became of it: written, or to be tried again.
func (c *changes) settle(key string, w *change, written bool) {
	c.mu.Lock()
	delete(c.working, w)
	if !written {
		if newer := c.waiting[key]; newer != nil {
			w.services, w.endpoints, w.triggers = w.services+newer.services, w.endpoints+newer.endpoints, append(w.triggers, newer.triggers...)
		}
		c.waiting[key] = w
	}
	c.mu.Unlock()
	if !written {
		return
	}
	now := time.Now()
	c.metrics.servicesPending.Add(-float64(w.services))
	c.metrics.endpointsPending.Add(-float64(w.endpoints))
	c.metrics.last.Set(seconds(now))
	for _, t := range w.triggers {
		c.metrics.programming.Observe(now.Sub(t).Seconds())
	}
}

// oldest is the time since which a change waits; zero if none does.
func (c *changes) oldest() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	var first time.Time
	older := func(w *change) {
		if first.IsZero() || w.since.Before(first) {
			first = w.since
		}
	}
	for w := range c.working {
		older(w)
	}
	for _, w := range c.waiting {
		older(w)
	}
	return first
}
