package server

import "testing"

// paced is a pace of a heap that allocates and is collected.
type paced struct {
	*testing.T
	gcPace
	heap
}

func newPaced(t *testing.T, liveMiB uint64) *paced {
	return &paced{t, gcPace{room: 512 << 20}, heap{live: liveMiB << 20}}
}

// looks so often, with so much allocated before each, and returns how many collections that makes.
func (p *paced) looks(times int, eachMiB uint64) (collections int) {
	for range times {
		p.allocated += eachMiB << 20
		if p.look(p.heap) {
			collections++
			p.collections++
		}
	}
	return collections
}

func (p *paced) want(what string, got, want int) {
	p.Helper()
	if got != want {
		p.Errorf("%s: %d collections, want %d", what, got, want)
	}
}

func TestPaceOfCollections(t *testing.T) {
	p := newPaced(t, 100)
	p.want("at rest, until half of what is alive is garbage", p.looks(49, 1), 0)
	p.want("at rest, then", p.looks(1, 1), 1)
	p.want("a load, for fourteen seconds", p.looks(14, 20), 0)
	p.want("a load, in the fifteenth", p.looks(1, 20), 1)
	p.want("a load whose fifteen seconds have no room, for two", p.looks(2, 140), 0)
	p.want("that load, in the third, as there is no room for a fourth", p.looks(1, 140), 1)
	p.want("that load goes on", p.looks(30, 140), 10)
	p.looks(2, 140)
	p.want("a gap", p.looks(1, 1), 1)
	p.want("behind which the room is whole", p.looks(2, 140), 0)
	p.collections++
	p.want("the runtime has collected by itself", p.looks(2, 140), 0)
	if p.quiet > 0 {
		t.Errorf("quiet for %d looks under a load", p.quiet)
	}
	p.looks(idleAfter, 1)
	if p.quiet != idleAfter || p.most != 0 {
		t.Errorf("quiet for %d looks, want %d: then memory is given back; the load before is forgotten, not %d", p.quiet, idleAfter, p.most)
	}
}

// The room is what a heap may grow by, however little of it is alive; a large one grows by half.
func TestPaceBoundsTheHeap(t *testing.T) {
	for _, test := range []struct {
		live, roots uint64
		want        int // in percent, of both
	}{{60, 20, 640}, {256, 0, 200}, {4096, 0, 50}, {1, 0, 51200}} {
		p := newPaced(t, test.live)
		p.roots = test.roots << 20
		if got := p.percent(p.heap); got != test.want {
			t.Errorf("%d MiB alive, with %d of roots: %d %%, want %d", test.live, test.roots, got, test.want)
		}
	}
}

// A burst must not pin the heap at its size on a server that always has a little to do.
func TestPaceForgetsABurst(t *testing.T) {
	p := newPaced(t, 100)
	p.looks(1, 60)
	p.looks(60, 6)
	p.want("a minute after a burst, fifteen seconds of what is allocated now", p.looks(30, 6), 2)
}

func TestRoomIsAPartOfTheMachine(t *testing.T) {
	for memory, want := range map[uint64]uint64{0: 256 << 20, 1 << 30: 256 << 20, 8 << 30: 512 << 20, 24 << 30: 1536 << 20, 64 << 30: 2 << 30} {
		if got := roomOf(memory); got != want {
			t.Errorf("room of %d on a machine of %d, want %d", got, memory, want)
		}
	}
}
