package cni

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// BenchmarkAdd is one pod's ADD by the plugin's process, with an agent that runs; the DEL after it does not count.
func BenchmarkAdd(b *testing.B) {
	n := newNode(b, "10.244.0.0/16", "fd00::/64")
	n.run(b)
	_, err := built()
	must(b, err)
	var took []time.Duration
	for i := range b.N {
		id, ns := fmt.Sprint("pod", i), newNetns(b)
		start := time.Now()
		_, err := n.call(b, n.conf(), vars("ADD", id, ns)...)
		took = append(took, time.Since(start))
		must(b, err)
		_, err = n.call(b, n.conf(), vars("DEL", id, ns)...)
		must(b, err)
		removeNetns(b, ns)
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms/ADD-median")
}

// BenchmarkHandleAdd is the agent's part of it.
func BenchmarkHandleAdd(b *testing.B) {
	n := newNode(b, "10.244.0.0/16", "fd00::/64")
	var took []time.Duration
	for i := range b.N {
		id, ns := fmt.Sprint("pod", i), newNetns(b)
		start := time.Now()
		n.add(b, id, ns)
		took = append(took, time.Since(start))
		n.del(b, id, ns)
		removeNetns(b, ns)
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms/ADD-median")
}
