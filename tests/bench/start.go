package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"k8s.io/client-go/kubernetes"
)

// started is how long a start took, in seconds from exec of `strake up`.
type started struct{ nodeReady, demoServed float64 }

// up brings the cluster up and takes the time of the lines that `up` writes.
func (b *bench) up(ctx context.Context) (started, error) {
	var s started
	cmd := b.cluster.StrakeCommand(ctx, "up", "--node-name", "node-1", "--wait", "90s")
	// Interrupted, `up` takes its half-started cluster down by itself, and Close does so again.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	out, err := cmd.StdoutPipe()
	if err != nil {
		return s, err
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return s, err
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "✓ node Ready") {
			s.nodeReady = time.Since(began).Seconds()
		}
	}
	if err := cmd.Wait(); err != nil {
		return s, fmt.Errorf("up: %w\n%s", err, stderr.String())
	}
	s.demoServed = time.Since(began).Seconds()
	if s.nodeReady == 0 {
		return s, errors.New("up did not tell when the node was Ready")
	}
	rc, err := b.cluster.REST()
	if err != nil {
		return s, err
	}
	rc.ContentType = "application/vnd.kubernetes.protobuf"
	b.client, err = kubernetes.NewForConfig(rc)
	return s, err
}

// coldStart starts clusters from nothing (no data folder, no image) and leaves the last one running.
func (b *bench) coldStart(ctx context.Context) error {
	var ready, served []float64
	for i := range b.times(5) {
		if i > 0 {
			if out, err := b.cluster.Strake("down", "--purge"); err != nil {
				return fmt.Errorf("down --purge: %w\n%s", err, out)
			}
		}
		s, err := b.up(ctx)
		if err != nil {
			return err
		}
		ready, served = append(ready, s.nodeReady), append(served, s.demoServed)
	}
	b.report.aim("cold start to node Ready, median", quantile(ready, 0.5), "s", atMost, 8)
	b.report.aim("cold start to demo served, median", quantile(served, 0.5), "s", atMost, 15)
	b.report.figure("cold start to demo served, slowest", quantile(served, 1), "s")
	return nil
}

// quantile is the value below which the part q of the sorted values lies (nearest rank).
func quantile(values []float64, q float64) float64 {
	s := slices.Sorted(slices.Values(values))
	return s[int(q*float64(len(s)-1)+0.5)]
}
