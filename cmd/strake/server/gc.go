package server

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"github.com/strake-io/strake/cmd/strake/memory"
)

const (
	// idleGCPercent makes the heap grow by half between collections rather than to the double. Of an idle control plane's heap
	// some 75 MiB are alive; what it allocates is little, so collecting more often costs no CPU to speak of.
	idleGCPercent = 50
	// busyRoom is by how many bytes the heap may grow between collections under load, when half of so small a heap is used up several times a second.
	busyRoom = 256 << 20
	// paceEvery is how often the pace is looked at; so many collections in that time are a load.
	paceEvery       = 2 * time.Second
	busyCollections = 2
	// idleAfter so many looks without a load the heap is small again, and what is not needed is given back.
	idleAfter = 8
)

// paceGC trades memory for CPU while there is much to do, until ctx ends.
func paceGC(ctx context.Context) {
	debug.SetGCPercent(idleGCPercent)
	tick := time.NewTicker(paceEvery)
	defer tick.Stop()
	sample := []metrics.Sample{{Name: "/gc/cycles/automatic:gc-cycles"}, {Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	collections, percent, quiet := sample[0].Value.Uint64(), idleGCPercent, 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		metrics.Read(sample)
		now := sample[0].Value.Uint64()
		next := nextGCPercent(percent, now-collections, sample[1].Value.Uint64(), &quiet)
		collections = now
		if next != percent {
			debug.SetGCPercent(next)
			percent = next
		}
		if quiet == idleAfter {
			memory.GiveBack()
		}
	}
}

// nextGCPercent is the pace after a look that found so many collections and so much live heap; quiet counts the looks without a load.
func nextGCPercent(percent int, collections, live uint64, quiet *int) int {
	// With more room there are fewer collections of the same load.
	if collections >= busyCollections || percent > idleGCPercent && collections > 0 {
		*quiet = 0
		return max(idleGCPercent, int(100*busyRoom/max(live, 1<<20)))
	}
	if *quiet++; *quiet >= idleAfter {
		return idleGCPercent
	}
	return percent
}
