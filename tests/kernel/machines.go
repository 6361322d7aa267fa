package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// machine is one boot of a kernel, for one suite or a part of it.
type machine struct {
	kernel
	suite
	part    int  // of the suite's parts, from 0
	objects bool // whether it counts the verifier's work as well
	result  *result
}

// name is that of the files of the machine.
func (m machine) name() string {
	name := m.series + "-" + strings.ReplaceAll(m.folder, "/", "-")
	if m.parts > 1 {
		name += fmt.Sprint("-", m.part+1)
	}
	return name
}

// plan gives every suite of every kernel its machines. The first machine of a kernel counts the verifier's work. Parts of the largest suites
// begin first, for no machine should be at work alone at the end.
func plan(kernels []kernel, suites []suite, results map[string]*result) (out []machine) {
	for i, s := range suites {
		for _, k := range kernels {
			for part := range s.parts {
				out = append(out, machine{kernel: k, suite: s, part: part, objects: i == 0 && part == 0, result: results[k.series]})
			}
		}
	}
	slices.SortStableFunc(out, func(a, b machine) int { return -cmp.Compare(a.parts, b.parts) })
	return out
}

// runAll boots the machines, so many at a time, each for the timeout at most, and adds what came of each to the result of its kernel.
func runAll(ctx context.Context, w io.Writer, machines []machine, atOnce int, timeout time.Duration, guest string, objects []string) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	var mu sync.Mutex
	for _, m := range machines {
		g.Go(func() error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			initramfs := filepath.Join(work, "build", m.name()+".img")
			if err := m.pack(initramfs, guest, objects); err != nil {
				return err
			}
			bounded, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("%s: not done after %v", m.name(), timeout))
			defer cancel()
			var r result
			r.boot(bounded, m, initramfs, filepath.Join(work, m.name()+".log"))
			if ctx.Err() != nil {
				return ctx.Err()
			}
			mu.Lock()
			defer mu.Unlock()
			fmt.Fprintf(w, "%s %s\n", m.name(), r.outcome())
			m.result.add(&r)
			return nil
		})
	}
	return g.Wait()
}
