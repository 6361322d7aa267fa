package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/strake-io/strake/tests/bench/turns"
)

// servicesParts measure Services: what a connection costs at any number of them, and what they cost the node.
var servicesParts = []part{
	{"clusterip", (*bench).clusterIP},
	{"nodeport", (*bench).nodePort},
	{"api", (*bench).follow},
}

// count writes a number of Services with its unit.
func count(n int) string {
	if n == 1 {
		return "1 Service"
	}
	return fmt.Sprint(n, " Services")
}

// measure is what is asked of every way.
type measure struct {
	name   string
	mode   string
	atOnce int
	unit   string
	perAsk float64
	turn   time.Duration
	rounds int
	// least ratios, 0: no target
	direct, rival float64
}

// servicesLab is made by the first part that wants it.
func (b *bench) withServices(ctx context.Context, f func(*servicesLab) error) (err error) {
	l, err := newServicesLab(ctx, sizes)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	return f(l)
}

// clusterIP compares a pod's ways to a Service with its way to the Service's endpoint, with the rivals' ways, and with its own way
// when there is one Service.
func (b *bench) clusterIP(ctx context.Context) error {
	return b.withServices(ctx, func(l *servicesLab) error {
		for _, m := range []measure{
			{"connect+request", modeConnect, 1, "1/s", 1, 10 * time.Millisecond, 100, 0.98, 1},
			{"connect+request, 8 at a time", modeConnect, 8, "1/s", 1, 10 * time.Millisecond, 60, 0.98, 1},
			{"TCP_RR", modeRequest, 1, "1/s", 1, 5 * time.Millisecond, 60, 0, 0},
			{"TCP stream", modeStream, 1, "Gbit/s", 8 * blockSize / 1e9, 20 * time.Millisecond, 30, 0, 0},
		} {
			if err := b.rotate(ctx, l, "pod → ClusterIP, "+m.name, m, func(p *place) *worker { return p.client }, func(p *place) netip.AddrPort { return p.service }); err != nil {
				return err
			}
		}
		return nil
	})
}

// nodePort compares the way from outside to a NodePort with the rivals', and with itself when there is one Service.
func (b *bench) nodePort(ctx context.Context) error {
	return b.withServices(ctx, func(l *servicesLab) error {
		for _, m := range []measure{
			{"connect+request", modeConnect, 1, "1/s", 1, 10 * time.Millisecond, 100, 0, 0},
			{"connections, 8 at a time", modeConnect, 8, "1/s", 1, 10 * time.Millisecond, 100, 0, 1.5},
			{"TCP_RR", modeRequest, 1, "1/s", 1, 5 * time.Millisecond, 60, 0, 0},
			{"TCP stream", modeStream, 1, "Gbit/s", 8 * blockSize / 1e9, 20 * time.Millisecond, 30, 0, 0},
		} {
			if err := b.rotate(ctx, l, "outside → NodePort, "+m.name, m, func(p *place) *worker { return p.outside }, func(p *place) netip.AddrPort { return p.nodePort }); err != nil {
				return err
			}
		}
		return nil
	})
}

// rotate asks over all ways in turns, of all sizes and kinds, and adds the rows.
func (b *bench) rotate(ctx context.Context, l *servicesLab, what string, m measure, from func(*place) *worker, to func(*place) netip.AddrPort) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var ways []turns.Way
	index := map[string]int{}
	add := func(kind string, size int, w *worker, addr netip.AddrPort, ports int) {
		name := kind + ", " + count(size)
		index[name] = len(ways)
		ways = append(ways, w.way(what+", "+name, order{Mode: m.mode, To: addr, Ports: ports, AtOnce: m.atOnce}))
	}
	kinds := []string{kindIPTables, kindNFTables}
	inside := from(l.places[kindStrake][sizes[0]]) == l.places[kindStrake][sizes[0]].client
	for _, size := range sizes {
		p := l.places[kindStrake][size]
		if inside {
			add("direct", size, p.client, p.direct, endpointsEach)
		}
		for _, kind := range slices.Concat([]string{kindStrake}, kinds) {
			p := l.places[kind][size]
			add(kind, size, from(p), to(p), 1)
		}
	}
	if inside {
		kinds = slices.Concat([]string{"direct"}, kinds)
	}
	series, err := turns.Rotate(ways, m.turn, b.times(m.rounds))
	if err != nil {
		return err
	}
	of := func(kind string, size int) turns.Series {
		return series[index[kind+", "+count(size)]]
	}
	for _, size := range sizes {
		ours := of(kindStrake, size)
		for _, kind := range kinds {
			target := m.rival
			if kind == "direct" {
				target = m.direct
			}
			if kind == kindIPTables && m.rival > 1 {
				target = 0
			}
			if inside && m.rival != 0 && size == 10_000 && kind != "direct" {
				target = 1.3
			}
			r := ours.Against(of(kind, size))
			c := comparison{A: side(r.A), B: side(r.B), Ratio: r.Ratio, Low: r.Low, High: r.High}
			name := fmt.Sprintf("%s, %s, against %s", what, count(size), kind)
			b.report.rates(name, c, m.unit, m.perAsk, target)
			if m.atOnce == 1 && m.mode != modeStream {
				b.report.latencies(name, c)
			}
		}
		if size != sizes[0] {
			r := ours.Against(of(kindStrake, sizes[0]))
			c := comparison{A: side(r.A), B: side(r.B), Ratio: r.Ratio, Low: r.Low, High: r.High}
			target := 0.0
			if m.direct != 0 && size == sizes[len(sizes)-1] {
				target = 0.97
			}
			b.report.rates(fmt.Sprintf("%s, %s, against 1 Service", what, count(size)), c, m.unit, m.perAsk, target)
		}
	}
	return nil
}
