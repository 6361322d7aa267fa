package compiler

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/strake-io/strake/bpf"
)

// tape is chance that a fuzzer writes: when it is at its end it goes on by itself.
type tape struct {
	left []byte
	rest *rand.PCG
}

func (t *tape) Uint64() uint64 {
	if len(t.left) < 2 {
		return t.rest.Uint64()
	}
	n := uint64(binary.LittleEndian.Uint16(t.left))
	t.left = t.left[2:]
	return n<<48 | n<<16
}

// FuzzWitnesses holds rows against the evaluator, of clusters and changes that the fuzzer makes up.
func FuzzWitnesses(f *testing.F) {
	for seed := range uint64(20) {
		f.Add(seed, []byte{})
	}
	f.Fuzz(func(t *testing.T, seed uint64, chance []byte) {
		r := &random{Rand: rand.New(&tape{chance, rand.NewPCG(seed, 2)})}
		node := pick(r, "", "node-0")
		s := r.state()
		c := New(Options{NodeName: node})
		c.SetState(s)
		tables := Interpret(bpf.PolicyRows{})
		for range 6 {
			for _, change := range c.Flush() {
				tables.Apply(change)
			}
			tr := newTrial(t, s, node)
			ends := ends(s)
			for range 60 {
				f := r.flow(ends)
				q := tr.query(f)
				if d := differs(tr.expect(t, f), f, q, tables.Judge(q), tables); d != "" {
					t.Fatal(d)
				}
			}
			r.step(&s, c)
		}
	})
}
