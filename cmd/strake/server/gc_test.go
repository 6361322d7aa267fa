package server

import "testing"

func TestPaceOfCollections(t *testing.T) {
	percent, quiet := idleGCPercent, 0
	look := func(collections, liveMiB uint64, want int) {
		t.Helper()
		if percent = nextGCPercent(percent, collections, liveMiB<<20, &quiet); percent != want {
			t.Errorf("%d %%, want %d", percent, want)
		}
	}
	look(1, 64, 50) // one in a while is no load
	look(9, 64, 400)
	look(1, 128, 200) // still the same load, in a heap that has grown
	look(3, 1024, 50) // never less than at rest
	look(9, 64, 400)
	for range idleAfter - 1 {
		look(0, 64, 400)
	}
	look(0, 64, 50)
	look(0, 0, 50)
}
