package server

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/cmd/strake/memory"
	"github.com/strake-io/strake/kubelet/cgroups"
)

const (
	// idleGrowth is the part of what is alive by which the heap grows between collections while there is little to do. Of an idle control plane's heap some
	// 60 MiB are alive; what it allocates is little, so collecting more often costs no CPU to speak of.
	idleGrowth = 2
	// collectEvery is how much time there is to be between collections, as far as there is memory for what is allocated meanwhile. On two CPUs the
	// collector takes part of them for tenths of a second, and who calls in these waits.
	collectEvery = 15 * time.Second
	// roomAtLeast and roomAtMost bound the memory for that; between them it is a part of the machine's.
	roomAtLeast, roomAtMost, roomPart = 256 << 20, 2 << 30, 16
	// lookEvery is how often it is looked at whether to collect.
	lookEvery = time.Second
	// idleAfter so many looks without a load what is not needed is given back.
	idleAfter = 16
)

// paceGC decides when garbage is collected, until ctx ends: while there is little to do, so that a load finds a heap with room, and before the room is
// used up. The runtime by itself begins when the heap has all but reached its bound, at a distance that it has learned from former collections, and who
// allocates meanwhile has to mark so much that the bound is kept. When those came while there was little to do, that is most of the work.
func paceGC(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	p, h := gcPace{room: roomOf(machineMemory())}, readHeap()
	for percent := 0; ; {
		if now := p.percent(h); now != percent {
			percent = now
			debug.SetGCPercent(percent)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		h = readHeap()
		if p.look(h) {
			runtime.GC()
			h = readHeap()
		}
		if p.quiet == idleAfter {
			memory.GiveBack()
		}
	}
}

// heap is what the runtime tells of it, in bytes.
type heap struct {
	allocated   uint64 // since the start
	live, roots uint64 // found by the last collection, and the stacks and variables from which it began
	collections uint64 // that have ended, since the start
}

func readHeap() heap {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}, {Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"}, {Name: "/gc/scan/globals:bytes"}, {Name: "/gc/cycles/total:gc-cycles"}}
	metrics.Read(s)
	n := func(i int) uint64 { return s[i].Value.Uint64() }
	return heap{allocated: n(0), live: max(n(1), 1<<20), roots: n(2) + n(3), collections: n(4)}
}

// gcPace is when garbage is collected.
type gcPace struct {
	room  uint64 // by how much the heap may grow at most, in bytes
	last  heap   // at the last look
	since uint64 // what had been allocated when the last collection began
	most  uint64 // allocated between two looks under the present load; what was more long ago counts less and less
	quiet int    // looks without a load
}

// look tells whether to collect now.
func (p *gcPace) look(h heap) bool {
	more := h.allocated - p.last.allocated
	if h.collections != p.last.collections {
		p.since = p.last.allocated
	}
	p.last = h
	const looks = uint64(collectEvery / lookEvery)
	// A burst does not keep its room for as long as there is any load.
	p.most = max(more, p.most*15/16)
	if idleGrowth*looks*more <= h.live { // little to do
		if p.quiet++; p.quiet >= idleAfter {
			p.most = 0
		}
		return h.allocated-p.since >= h.live/idleGrowth
	}
	p.quiet = 0
	// An eighth is left for what is allocated while it is collected.
	return h.allocated-p.since+more > min(looks*p.most, p.bound(h)/8*7)
}

// bound is by how much the heap may grow.
func (p *gcPace) bound(h heap) uint64 { return max(p.room, h.live/idleGrowth) }

// percent is the runtime's measure of that, for when it has to begin by itself.
func (p *gcPace) percent(h heap) int { return int(100 * p.bound(h) / (h.live + h.roots)) }

// roomOf is the heap's room for growth on a machine of so much memory.
func roomOf(memory uint64) uint64 { return min(max(memory/roomPart, roomAtLeast), roomAtMost) }

// machineMemory is in bytes how much this process may use: what the machine has, or less where its cgroup is limited. 0 if it is not known.
func machineMemory() uint64 {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		klog.V(2).InfoS("How much memory there is is not known", "err", fmt.Errorf("sysinfo: %w", err))
		return 0
	}
	memory := uint64(info.Totalram) * uint64(info.Unit)
	limit, limited, err := cgroups.Machine().MemoryLimit("/proc/self/cgroup")
	if err != nil {
		klog.V(2).InfoS("Whether the cgroup limits the memory is not known", "err", err)
	}
	if limited {
		memory = min(memory, limit)
	}
	return memory
}
