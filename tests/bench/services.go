package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/strake-io/strake/tests/bench/turns"
)

// servicesParts measure Services: what a connection costs at any number of them, and what they cost the node.
var servicesParts = []part{
	{"clusterip", (*bench).clusterIP},
	{"nodeport", (*bench).nodePort},
	{"forwarded", (*bench).forwarded},
	{"api", (*bench).follow},
	{"sync", (*bench).sync},
	{"programs", (*bench).programs},
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
	turn   time.Duration
	rounds int
	least  leasts
}

// leasts are the least ratios to reach; 0: none.
type leasts struct{ direct, one, iptables, nftables, nftablesAt10k float64 }

func (l leasts) against(kind string, size int) float64 {
	switch {
	case kind == kindDirect:
		return l.direct
	case size == 10_000 && l.nftablesAt10k != 0:
		return l.nftablesAt10k
	case kind == kindIPTables:
		return l.iptables
	}
	return l.nftables
}

// withServices makes the lab for a part.
func (b *bench) withServices(ctx context.Context, f func(*servicesLab) error) (err error) {
	l, err := newServicesLab(ctx, sizes)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	return f(l)
}

// clusterIP compares a pod's ways to a Service with its way to the Service's endpoints, with the rivals' ways, and with its own way
// when there is one Service.
func (b *bench) clusterIP(ctx context.Context) error {
	connections := leasts{direct: 0.98, one: 0.97, iptables: 1, nftables: 1, nftablesAt10k: 1.3}
	return b.withServices(ctx, func(l *servicesLab) error {
		for _, m := range []measure{
			{"connect+request", modeConnect, 1, 10 * time.Millisecond, 120, connections},
			{"connect+request, 8 at a time", modeConnect, 8, 10 * time.Millisecond, 80, connections},
			{"TCP_RR", modeRequest, 1, 5 * time.Millisecond, 80, leasts{}},
			{"TCP stream", modeStream, 1, 20 * time.Millisecond, 40, leasts{}},
		} {
			if err := b.rotate(ctx, l, "pod → ClusterIP, "+m.name, m, true); err != nil {
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
			{"connect+request", modeConnect, 1, 10 * time.Millisecond, 120, leasts{}},
			{"connections, 8 at a time", modeConnect, 8, 10 * time.Millisecond, 120, leasts{nftables: 1.5}},
			{"TCP_RR", modeRequest, 1, 5 * time.Millisecond, 80, leasts{}},
			{"TCP stream", modeStream, 1, 20 * time.Millisecond, 40, leasts{}},
		} {
			if err := b.rotate(ctx, l, "outside → NodePort, "+m.name, m, false); err != nil {
				return err
			}
		}
		return nil
	})
}

// rotate asks over all ways in turns, of all sizes and kinds, and adds the rows.
func (b *bench) rotate(ctx context.Context, l *servicesLab, what string, m measure, inside bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var ways []turns.Way
	type key struct {
		kind string
		size int
	}
	index := map[key]int{}
	add := func(kind string, p *place, w *worker, to netip.AddrPort, ports int) {
		index[key{kind, p.size}] = len(ways)
		ways = append(ways, w.way(fmt.Sprintf("%s, %s, %s", what, kind, count(p.size)), order{Mode: m.mode, To: to, Ports: ports, AtOnce: m.atOnce}))
	}
	for _, size := range sizes {
		for _, kind := range []string{kindDirect, kindStrake, kindIPTables, kindNFTables, kindRouted} {
			switch p := l.places[kind][size]; {
			case kind == kindRouted && (inside || p == nil):
			case kind == kindRouted:
				add(kind, p, p.outside, p.direct, endpointsEach)
			case kind == kindDirect && inside:
				p = l.places[kindStrake][size]
				add(kind, p, p.client, p.direct, endpointsEach)
			case kind == kindDirect:
			case inside:
				add(kind, p, p.client, p.service, 1)
			default:
				add(kind, p, p.outside, p.nodePort, 1)
			}
		}
	}
	series, err := turns.Rotate(ways, m.turn, b.times(m.rounds))
	if err != nil {
		return err
	}
	unit, perAsk := m.unit()
	if i, ok := index[key{kindRouted, sizes[0]}]; ok {
		b.against(m, fmt.Sprintf("%s, %s, against %s", what, kindRouted, kindNFTables), series[i], series[index[key{kindNFTables, sizes[0]}]], 0)
	}
	for _, size := range sizes {
		ours := series[index[key{kindStrake, size}]]
		for _, kind := range []string{kindStrake, kindDirect, kindIPTables, kindNFTables} {
			i, ok := index[key{kind, size}]
			if !ok {
				continue
			}
			b.draw(what, unit, kind, size, series[i].Rate*perAsk)
			if kind != kindStrake {
				b.against(m, fmt.Sprintf("%s, %s, against %s", what, count(size), kind), ours, series[i], m.least.against(kind, size))
			}
		}
		if size != sizes[0] {
			least := 0.0
			if size == sizes[len(sizes)-1] {
				least = m.least.one
			}
			b.against(m, fmt.Sprintf("%s, %s, against 1 Service", what, count(size)), ours, series[index[key{kindStrake, sizes[0]}]], least)
		}
	}
	return nil
}

// unit is what rates are told in, and how much of it an ask is.
func (m measure) unit() (name string, perAsk float64) {
	if m.mode == modeStream {
		return "Gbit/s", 8 * blockSize / 1e9
	}
	return "1/s", 1
}

// against reports one way beside another, with what the slowest answers took where one is waited for at a time.
func (b *bench) against(m measure, name string, a, other turns.Series, least float64) {
	r := a.Against(other)
	unit, perAsk := m.unit()
	b.report.rates(name, r, unit, perAsk, least)
	if m.atOnce == 1 && m.mode != modeStream {
		b.report.tails(name, r)
	}
}

// costLine is what the tests of ./bpf print of a program.
var costLine = regexp.MustCompile(`cost of TestProgramCosts/(\S+): (strake_\w+): (\d+) ns`)

// programs takes the time of each program for a packet; tests/kernel does so on other kernels.
func (b *bench) programs(ctx context.Context) error {
	best := map[string]float64{}
	var names []string
	for range b.times(10) {
		c := exec.CommandContext(ctx, b.bpfTests, "-test.run", "^TestProgramCosts$", "-test.v")
		c.Env = append(os.Environ(), "TMPDIR="+os.TempDir())
		out, err := c.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s (`make bench-services` builds it): %w\n%s", b.bpfTests, err, out)
		}
		for _, m := range costLine.FindAllStringSubmatch(string(out), -1) {
			name := fmt.Sprintf("%s for a packet: %s", m[2], strings.ReplaceAll(m[1], "_", " "))
			ns, err := strconv.ParseFloat(m[3], 64)
			if err != nil {
				return err
			}
			if was, ok := best[name]; !ok {
				names = append(names, name)
				best[name] = ns
			} else {
				best[name] = min(was, ns)
			}
		}
	}
	if len(names) == 0 {
		return fmt.Errorf("%s told no costs", b.bpfTests)
	}
	for _, name := range names {
		b.report.figure(name, best[name], "ns")
	}
	return nil
}
