// Package turns compares two servers by asking them in turns, so that both have the same share of whatever else the machine does.
package turns

import (
	"fmt"
	"math"
	"slices"
	"sync"
	"time"
)

// A Session is one worker's way to one server. Each Ask is a request and its answer, checked.
type Session interface {
	Ask() error
}

// Side is what one server did.
type Side struct {
	Asked  int     `json:"asked"`  // requests, those of the warm-up too
	Rate   float64 `json:"rate"`   // requests per second, the median of the turns
	Median float64 `json:"median"` // of a request, microseconds
	P95    float64 `json:"p95"`    // of a request, microseconds
	P99    float64 `json:"p99"`
}

// Result compares two servers.
type Result struct {
	A Side `json:"a"`
	B Side `json:"b"`
	// Ratio is A's rate by B's: the median over pairs of neighbouring turns, so that what slows the whole
	// machine for a while touches both halves of a pair.
	Ratio float64 `json:"ratio"`
	// Between Low and High lies the ratio's true median with 95 % confidence.
	Low  float64 `json:"low"`
	High float64 `json:"high"`
}

// Compare asks both servers in turns, in the order A B, B A, A B …: a drift of the machine touches both alike.
func Compare(addrs [2]string, open func(addr string, second bool) (Session, error), workers int, turn time.Duration, turns int) (Result, error) {
	var sessions [2][]Session
	for side, addr := range addrs {
		for range workers {
			s, err := open(addr, side == 1)
			if err != nil {
				return Result{}, fmt.Errorf("server %s: %w", addr, err)
			}
			sessions[side] = append(sessions[side], s)
		}
	}
	var took [2][]time.Duration
	var rates [2][]float64
	var asked [2]int
	for i := -2; i < turns; i++ { // two pairs to warm up
		for half := range 2 {
			side := (half + i&1) % 2
			samples, elapsed, err := takeTurn(sessions[side], turn)
			if err != nil {
				return Result{}, fmt.Errorf("server %s: %w", addrs[side], err)
			}
			asked[side] += len(samples)
			if i >= 0 {
				took[side] = append(took[side], samples...)
				rates[side] = append(rates[side], float64(len(samples))/elapsed.Seconds())
			}
		}
	}
	ratios := make([]float64, turns)
	for i := range ratios {
		ratios[i] = rates[0][i] / rates[1][i]
	}
	r := Result{A: summary(asked[0], took[0], rates[0]), B: summary(asked[1], took[1], rates[1])}
	r.Ratio, r.Low, r.High = median(ratios)
	return r, nil
}

// median sorts samples and returns their median with its confidence limits.
func median(samples []float64) (median, low, high float64) {
	slices.Sort(samples)
	l, h := confidence(len(samples))
	return samples[len(samples)/2], samples[l], samples[h]
}

// confidence returns which of n sorted samples enclose the median with 95 % confidence: the rank of the median is binomial,
// near to normal with a deviation of √n/2.
func confidence(n int) (low, high int) {
	d := int(math.Ceil(1.96 * math.Sqrt(float64(n)) / 2))
	return max(0, n/2-d), min(n-1, n/2+d)
}

// takeTurn lets every session ask, one request after the other, until the turn is over.
func takeTurn(sessions []Session, turn time.Duration) ([]time.Duration, time.Duration, error) {
	samples := make([][]time.Duration, len(sessions))
	errs := make([]error, len(sessions))
	began := time.Now()
	var wg sync.WaitGroup
	for i, s := range sessions {
		wg.Go(func() {
			mine := make([]time.Duration, 0, 1<<14)
			for last := began; last.Sub(began) < turn; {
				if errs[i] = s.Ask(); errs[i] != nil {
					return
				}
				now := time.Now()
				mine = append(mine, now.Sub(last))
				last = now
			}
			samples[i] = mine
		})
	}
	wg.Wait()
	elapsed := time.Since(began)
	for _, err := range errs {
		if err != nil {
			return nil, 0, err
		}
	}
	return slices.Concat(samples...), elapsed, nil
}

func summary(asked int, took []time.Duration, rates []float64) Side {
	slices.Sort(took)
	slices.Sort(rates)
	at := func(q float64) float64 { return float64(took[int(q*float64(len(took)-1))].Nanoseconds()) / 1000 }
	return Side{Asked: asked, Rate: rates[len(rates)/2], Median: at(0.5), P95: at(0.95), P99: at(0.99)}
}
