package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestSnapshotUnderLoad saves while others write, restores twice, and looks for revisions that were given before.
func TestSnapshotUnderLoad(t *testing.T) {
	cfg := testConfig(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	c := connect(t, s, cfg, true)
	put := func(c *clientv3.Client, key string) int64 {
		t.Helper()
		r, err := c.Put(ctx, key, strings.Repeat("v", 1000))
		if err != nil {
			t.Fatal(err)
		}
		return r.Header.Revision
	}
	put(c, "before")
	var written atomic.Int64
	loadCtx, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; loadCtx.Err() == nil; i++ {
			if _, err := c.Put(loadCtx, fmt.Sprintf("load-%d", i), strings.Repeat("v", 1000)); err == nil {
				written.Add(1)
			}
		}
	}()
	for written.Load() < 50 {
		time.Sleep(time.Millisecond)
	}
	path := filepath.Join(t.TempDir(), "s.db")
	saved, err := Save(ctx, cfg, path)
	if err != nil {
		t.Fatal(err)
	}
	for mark := written.Load(); written.Load() < mark+50; {
		time.Sleep(time.Millisecond)
	}
	stop()
	<-done
	if saved.Revision < 50 || saved.Keys < 50 {
		t.Errorf("saved %+v", saved)
	}
	if _, err := Save(ctx, cfg, path); err == nil {
		t.Error("a snapshot was written over another")
	}
	last := put(c, "after")
	if _, err := Restore(cfg, path); err == nil || !strings.Contains(err.Error(), "stop it") {
		t.Errorf("restored under a running member: %v", err)
	}
	c.Close()
	s.Close()
	for round := range 2 {
		r, err := Restore(cfg, path)
		if err != nil {
			t.Fatal(err)
		}
		if r.Revision <= last || r.Old == "" {
			t.Errorf("round %d: %+v, where revision %d was given", round, r, last)
		}
		if s, err = Start(ctx, cfg); err != nil {
			t.Fatal(err)
		}
		c := connect(t, s, cfg, true)
		if got, err := c.Get(ctx, "before"); err != nil || got.Count != 1 {
			t.Errorf("round %d: before: %v, %v", round, got, err)
		}
		if got, err := c.Get(ctx, "after"); err != nil || got.Count != 0 {
			t.Errorf("round %d: after: %v, %v", round, got, err)
		}
		// Who knows a revision from before is told that it is gone, and lists anew.
		w := <-c.Watch(ctx, "load", clientv3.WithPrefix(), clientv3.WithRev(last))
		if !errors.Is(w.Err(), rpctypes.ErrCompacted) {
			t.Errorf("round %d: a watch from revision %d: %v", round, last, w.Err())
		}
		next := put(c, "new")
		if next <= last {
			t.Errorf("round %d: revision %d after %d", round, next, last)
		}
		last = next
		c.Close()
		s.Close()
		if err := os.RemoveAll(r.Old); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDamagedSnapshots(t *testing.T) {
	cfg := testConfig(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := Save(ctx, cfg, filepath.Join(t.TempDir(), "x")); err == nil || !strings.Contains(err.Error(), "is `strake server` running?") {
		t.Errorf("saved of nothing: %v", err)
	}
	s, err := Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "s.db")
	if _, err := Save(ctx, cfg, path); err != nil {
		t.Fatal(err)
	}
	s.Close()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	flipped := append([]byte(nil), whole...)
	flipped[len(flipped)/2] ^= 1
	for name, data := range map[string][]byte{"cut": whole[:len(whole)-100], "half": whole[:len(whole)/2], "flipped": flipped, "empty": nil, "text": []byte("hello")} {
		bad := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(bad, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Restore(cfg, bad); err == nil {
			t.Errorf("%s: restored", name)
		}
	}
	// The data folder is as it was.
	if s, err = Start(ctx, cfg); err != nil {
		t.Fatal(err)
	}
	s.Close()
}
