package server

import "testing"

func TestPaceOfCollections(t *testing.T) {
	p := gcPace{percent: idleGCPercent, room: 512 << 20}
	allocated := uint64(0)
	look := func(moreMiB, liveMiB uint64, want int) {
		t.Helper()
		allocated += moreMiB << 20
		if p.look(allocated, liveMiB<<20); p.percent != want {
			t.Errorf("%d %%, want %d", p.percent, want)
		}
	}
	look(2, 64, 50) // 10 MiB until the next collection are no load
	look(20, 100, 100)
	look(8, 50, 175) // in turns of more and of less
	look(300, 64, 800)
	look(300, 1024, 50) // never less than at rest
	look(2, 128, 400)   // still the same load, in a heap of another size
	look(300, 64, 800)
	for range idleAfter - 1 {
		look(2, 64, 800)
	}
	look(2, 64, 50)
	if p.quiet != idleAfter {
		t.Errorf("quiet for %d looks, want %d: then memory is given back", p.quiet, idleAfter)
	}
	look(0, 0, 50)
	look(20, 100, 100) // the load before is forgotten
}

// A burst must not pin the heap at its size on a server that always has a little to do.
func TestPaceForgetsABurst(t *testing.T) {
	const live = 100 << 20
	p, allocated := gcPace{percent: idleGCPercent, room: 512 << 20}, uint64(0)
	look := func(more uint64) {
		allocated += more
		p.look(allocated, live)
	}
	look(300 << 20)
	if p.percent != 512 {
		t.Fatalf("%d %% under a burst, want 512: all the room", p.percent)
	}
	for range 30 {
		look(12 << 20) // enough not to be quiet
	}
	if p.quiet > 0 || p.percent != 60 {
		t.Errorf("%d %% a minute after a burst, quiet for %d looks, want 60 %% and no quiet", p.percent, p.quiet)
	}
}

func TestRoomIsAPartOfTheMachine(t *testing.T) {
	for memory, want := range map[uint64]uint64{0: 256 << 20, 1 << 30: 256 << 20, 8 << 30: 512 << 20, 64 << 30: 1 << 30} {
		if got := roomOf(memory); got != want {
			t.Errorf("room of %d on a machine of %d, want %d", got, memory, want)
		}
	}
}
