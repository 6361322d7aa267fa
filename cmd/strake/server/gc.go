package server

import (
	"context"
	"fmt"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/cmd/strake/memory"
	"github.com/strake-io/strake/kubelet/cgroups"
)

const (
	// idleGCPercent makes the heap grow by half between collections rather than to the double. Of an idle control plane's heap
	// some 75 MiB are alive; what it allocates is little, so collecting more often costs no CPU to speak of.
	idleGCPercent = 50
	// collectEvery is how much time there is to be between collections, as far as there is memory for what is allocated meanwhile. On two CPUs the
	// collector takes them in pieces of 10 to 20 ms, and who calls in these tenths of a second waits.
	collectEvery = 10 * time.Second
	// roomAtLeast and roomAtMost bound the memory for that; between them it is a part of the machine's.
	roomAtLeast, roomAtMost, roomPart = 256 << 20, 1 << 30, 16
	// paceEvery is how often the pace is looked at.
	paceEvery = 2 * time.Second
	// idleAfter so many looks without a load the heap is small again, and what is not needed is given back.
	idleAfter = 8
)

// paceGC trades memory for CPU while there is much to do, until ctx ends.
func paceGC(ctx context.Context) {
	debug.SetGCPercent(idleGCPercent)
	tick := time.NewTicker(paceEvery)
	defer tick.Stop()
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}, {Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	p := gcPace{percent: idleGCPercent, room: roomOf(machineMemory()), allocated: sample[0].Value.Uint64()}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		metrics.Read(sample)
		before := p.percent
		p.look(sample[0].Value.Uint64(), sample[1].Value.Uint64())
		if p.percent != before {
			debug.SetGCPercent(p.percent)
		}
		if p.quiet == idleAfter {
			memory.GiveBack()
		}
	}
}

// gcPace is by how much of what is alive the heap grows between collections.
type gcPace struct {
	percent   int
	room      uint64 // by how much it may grow at most, in bytes
	allocated uint64 // by the last look
	most      uint64 // allocated between two looks under the present load; what was more long ago counts less and less
	quiet     int    // looks without a load
}

// look adjusts the pace to what has been allocated since the start, and how much of it was alive at the last collection.
func (p *gcPace) look(allocated, live uint64) {
	more := allocated - p.allocated
	p.allocated = allocated
	live = max(live, 1<<20)
	const looks = uint64(collectEvery / paceEvery)
	// What is allocated in turns of a few seconds is not collected in the same turns; but a burst does not keep its room for as long as there is any load.
	p.most = max(more, p.most*7/8)
	if 100*looks*more > idleGCPercent*live {
		p.quiet = 0
	} else if p.quiet++; p.quiet >= idleAfter {
		p.most = 0
	}
	p.percent = max(idleGCPercent, int(100*min(p.room, looks*p.most)/live))
}

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
