package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/strake-io/strake/tests/lab"
)

// nodeJoin takes the time from a token to a Ready node: of a machine that is none yet, with nothing but the binaries.
func (b *bench) nodeJoin(ctx context.Context) error {
	var ready []float64
	for range b.times(5) {
		took, err := b.join(ctx)
		if err != nil {
			return err
		}
		ready = append(ready, took)
	}
	b.report.aim("node join, token to Ready, median", quantile(ready, 0.5), "s", atMost, 5)
	b.report.figure("node join, token to Ready, slowest", quantile(ready, 1), "s")
	return nil
}

// join lets a machine join, takes the time, and removes it again.
func (b *bench) join(ctx context.Context) (seconds float64, err error) {
	const name = "joined"
	dir, err := os.MkdirTemp("", "strake-bench-join-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	m, err := b.cluster.Machine(1, filepath.Join(dir, "data"))
	if err != nil {
		return 0, err
	}
	defer func() {
		err = errors.Join(err, m.Close())
		if out, rerr := b.cluster.Strake("node", "remove", name); rerr != nil && err == nil {
			err = fmt.Errorf("node remove: %w\n%s", rerr, out)
		}
	}()
	out, err := b.cluster.StrakeCommand(ctx, "token", "create", "-o", "json").Output()
	if err != nil {
		return 0, fmt.Errorf("token create: %w", err)
	}
	var t struct{ Token, CACertHash string }
	if err := json.Unmarshal(out, &t); err != nil {
		return 0, fmt.Errorf("token create: %w: %s", err, out)
	}
	cmd := m.StrakeCommand(ctx, "join", "https://"+lab.NodeIP+":6443", "--token", t.Token, "--ca-cert-hash", t.CACertHash, "--node-name", name, "--wait", "90s")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	for lines := bufio.NewScanner(pipe); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "✓ node Ready") {
			seconds = time.Since(began).Seconds()
		}
	}
	if err := cmd.Wait(); err != nil {
		return 0, fmt.Errorf("join: %w\n%s", err, stderr.String())
	}
	if seconds == 0 {
		return 0, errors.New("join did not tell when the node was Ready")
	}
	return seconds, nil
}
