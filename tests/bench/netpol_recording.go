package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/strake-io/strake/tests/bench/turns"
	"github.com/strake-io/strake/tests/podnet"
)

// policyRecording compares a node that records flows, in the kernel and in files, with one that does not: the rate of connections from pod to pod, where nobody is
// judged and where a policy is.
func (b *bench) policyRecording(ctx context.Context) (err error) {
	sizes := []int{0, 1}
	lab, err := podnet.New(2 * len(sizes))
	if err != nil {
		return err
	}
	l := &servicesLab{Lab: lab, ctx: ctx}
	defer func() { err = errors.Join(err, l.Close()) }()
	guarded := make([]guardedWay, len(l.Nodes)) // of each size one that does not record, and one that does
	for i, n := range l.Nodes {
		n.RecordFlows = i%2 == 1
		if guarded[i], err = guardedNode(l, n, sizes[i/2]); err != nil {
			return fmt.Errorf("%s, recording %v: %w", policies(sizes[i/2]), n.RecordFlows, err)
		}
	}
	if err := settled(l.Nodes...); err != nil {
		return err
	}
	// What is told of single flows is bounded by the second, and who is told works on behind the turn, by 20 ms: so turns are far longer than that. In a quarter of
	// the time a node may still be told as many as in all of it.
	for _, m := range []measure{
		{name: "connect+request", mode: modeConnect, atOnce: 1, turn: 250 * time.Millisecond, rounds: 60},
		{name: "connect+request, 8 at a time", mode: modeConnect, atOnce: 8, turn: 250 * time.Millisecond, rounds: 60},
	} {
		var ways []turns.Way
		for i, w := range guarded {
			ways = append(ways, w.client.way(fmt.Sprintf("%s, %s, recording %v", m.name, policies(sizes[i/2]), i%2 == 1), order{Mode: m.mode, To: w.at, Ports: 1, AtOnce: m.atOnce}))
		}
		series, err := turns.Rotate(ways, m.turn, b.times(m.rounds))
		if err != nil {
			return err
		}
		for i, n := range sizes {
			b.report.rates(fmt.Sprintf("pod → pod, %s, %s, flows recorded, against not recorded", m.name, policies(n)), series[2*i+1].Against(series[2*i]), "1/s", 1, 0.97)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}
