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
	look(8, 50, 200) // in turns of more and of less
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

func TestRoomIsAPartOfTheMachine(t *testing.T) {
	for memory, want := range map[uint64]uint64{0: 256 << 20, 1 << 30: 256 << 20, 8 << 30: 512 << 20, 64 << 30: 1 << 30} {
		if got := roomOf(memory); got != want {
			t.Errorf("room of %d on a machine of %d, want %d", got, memory, want)
		}
	}
}
