package reference

import (
	"sync"
	"sync/atomic"
)

// answers remembers of which pods a selector has been asked, and what it said: with many policies the same is asked again and again.
type answers struct {
	pods  int // how many there are
	once  sync.Once
	words []atomic.Uint64 // two bits a pod: asked, and yes
}

func (a *answers) of(p *pod, ask func(*pod) bool) bool {
	const podsOfWord = 32
	a.once.Do(func() { a.words = make([]atomic.Uint64, a.pods/podsOfWord+1) })
	word, shift := &a.words[p.number/podsOfWord], p.number%podsOfWord*2
	if have := word.Load() >> shift; have&1 != 0 {
		return have&2 != 0
	}
	yes := ask(p)
	if yes {
		word.Or(3 << shift)
	} else {
		word.Or(1 << shift)
	}
	return yes
}
