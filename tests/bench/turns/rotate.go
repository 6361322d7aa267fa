package turns

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// Way is one of several that are asked in turns. Turn asks it for about so long and returns how long each request took and all of it.
type Way struct {
	Name string
	Turn func(time.Duration) (samples []time.Duration, elapsed time.Duration, err error)
}

// Series is what one way did in a rotation.
type Series struct {
	Side
	rates []float64 // by round
}

// Rotate gives every way a turn in each round, in an order that is drawn for each: what a way leaves in caches is met by all others alike, and a drift of the
// machine touches all alike. The orders are the same in each run.
func Rotate(ways []Way, turn time.Duration, rounds int) ([]Series, error) {
	all := make([]Series, len(ways))
	took := make([][]time.Duration, len(ways))
	orders := rand.New(rand.NewPCG(1, 2))
	for round := -2; round < rounds; round++ { // two to warm up
		for _, i := range orders.Perm(len(ways)) {
			samples, elapsed, err := ways[i].Turn(turn)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", ways[i].Name, err)
			}
			all[i].Asked += len(samples)
			if round >= 0 {
				took[i] = append(took[i], samples...)
				all[i].rates = append(all[i].rates, float64(len(samples))/elapsed.Seconds())
			}
		}
	}
	for i := range all {
		all[i].Side = summary(all[i].Asked, took[i], slices.Clone(all[i].rates))
	}
	return all, nil
}

// With is two ways of one rotation that are the same, as one: what it did in a round is the mean of both.
func (s Series) With(same Series) Series {
	mean := func(a, b float64) float64 { return (a + b) / 2 }
	both := Series{Side: Side{
		Asked: s.Asked + same.Asked, Rate: mean(s.Rate, same.Rate), Median: mean(s.Median, same.Median), P95: mean(s.P95, same.P95), P99: mean(s.P99, same.P99),
	}}
	for i := range s.rates {
		both.rates = append(both.rates, mean(s.rates[i], same.rates[i]))
	}
	return both
}

// Against compares two ways of one rotation, round by round.
func (s Series) Against(rival Series) Result {
	r := Result{A: s.Side, B: rival.Side}
	ratios := make([]float64, len(s.rates))
	for i := range ratios {
		ratios[i] = s.rates[i] / rival.rates[i]
	}
	r.Ratio, r.Low, r.High = median(ratios)
	return r
}
