package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/etcdutl/v3/snapshot"
)

// Snapshot is what a snapshot file says of itself.
type Snapshot struct {
	Revision int64
	Keys     int
	Bytes    int64
}

// revisionMargin is added to the highest revision that is known when a snapshot is restored: clients may have seen later
// ones, which a new object must never get again. It is what etcd's own documentation suggests.
const revisionMargin = 1_000_000_000

// Save writes the store of a running member, as it is at one moment, into a new file. Writes go on meanwhile. The
// file is whole and on disk when Save returns, or it is not there.
func Save(ctx context.Context, cfg Config, path string) (Snapshot, error) {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return Snapshot{}, fmt.Errorf("snapshot %s: the file is there already; name another one", path)
	}
	tls, err := transport.TLSInfo{CertFile: cfg.CertFile, KeyFile: cfg.KeyFile, TrustedCAFile: cfg.CAFile}.ClientConfig()
	if err != nil {
		return Snapshot{}, fmt.Errorf("snapshot: certificates of the store: %w", err)
	}
	logger, err := logger()
	if err != nil {
		return Snapshot{}, err
	}
	client := clientv3.Config{Endpoints: []string{fmt.Sprintf("https://127.0.0.1:%d", cfg.ClientPort)}, TLS: tls, DialTimeout: 5 * time.Second, Logger: logger}
	probe, err := clientv3.New(client)
	if err != nil {
		return Snapshot{}, fmt.Errorf("snapshot: %w", err)
	}
	defer probe.Close()
	patience, cancel := context.WithTimeout(ctx, client.DialTimeout)
	defer cancel()
	if _, err := probe.Status(patience, client.Endpoints[0]); err != nil {
		return Snapshot{}, fmt.Errorf("snapshot: the store on port %d of 127.0.0.1 does not answer: is `strake server` running? %w", cfg.ClientPort, err)
	}
	if _, err := snapshot.NewV3(logger).Save(ctx, client, path); err != nil {
		os.Remove(path + ".part")
		return Snapshot{}, fmt.Errorf("snapshot %s: %w", path, err)
	}
	s, err := Verify(path)
	if err != nil {
		os.Remove(path)
	}
	return s, err
}

// Verify reads a snapshot file whole: its hash must be that which the member that made it wrote at its end.
func Verify(path string) (Snapshot, error) {
	f, err := os.Open(path)
	if err != nil {
		return Snapshot{}, fmt.Errorf("snapshot: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Snapshot{}, fmt.Errorf("snapshot %s: %w", path, err)
	}
	// etcd appends a SHA-256 sum to a database, which is a number of 512-byte blocks.
	size := info.Size() - sha256.Size
	if size <= 0 || size%512 != 0 {
		return Snapshot{}, fmt.Errorf("snapshot %s: %d bytes are no snapshot with a hash: was it cut off, or copied from a data folder?", path, info.Size())
	}
	h, sum := sha256.New(), make([]byte, sha256.Size)
	if _, err := io.CopyN(h, f, size); err == nil {
		_, err = io.ReadFull(f, sum)
	} else {
		return Snapshot{}, fmt.Errorf("snapshot %s: %w", path, err)
	}
	if !bytes.Equal(h.Sum(nil), sum) {
		return Snapshot{}, fmt.Errorf("snapshot %s: its hash is not that of its content: it is damaged; use another one", path)
	}
	s := Snapshot{Bytes: info.Size()}
	s.Revision, s.Keys, err = revision(path)
	if err != nil {
		return s, fmt.Errorf("snapshot %s: %w", path, err)
	}
	return s, nil
}

// revision reads the last revision of a database, and counts the revisions of keys that it holds.
func revision(path string) (last int64, keys int, err error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second, ReadOnly: true})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return 0, 0, errors.New("another process has the database open: stop it")
	}
	if err != nil {
		return 0, 0, fmt.Errorf("database: %w", err)
	}
	defer db.Close()
	err = db.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte("key"))
		if b == nil {
			return errors.New("database: no bucket of keys: it is not one of etcd's")
		}
		keys = b.Stats().KeyN
		// A key here is the revision: eight bytes of its number, an underscore, eight bytes of its part.
		if k, _ := b.Cursor().Last(); len(k) >= 8 {
			last = int64(binary.BigEndian.Uint64(k))
		}
		return nil
	})
	return last, keys, err
}

// Restored is what Restore did.
type Restored struct {
	From     Snapshot
	Revision int64  // after which the store goes on
	Old      string // where the old data folder lies now; empty: there was none
}

// Restore puts a snapshot in the place of a stopped member's data folder, which it keeps beside it. Revisions
// that were given before, also after the snapshot was made, are never given again, and clients that know one of them
// are told to list anew.
func Restore(cfg Config, path string) (Restored, error) {
	from, err := Verify(path)
	if err != nil {
		return Restored{}, err
	}
	highest := from.Revision
	db := filepath.Join(cfg.Dir, "member", "snap", "db")
	if _, err := os.Stat(db); err == nil {
		now, _, err := revision(db)
		switch {
		case err == nil:
			highest = max(highest, now)
		case !damaged(err):
			return Restored{}, fmt.Errorf("store in %s: %w", cfg.Dir, err)
		}
	}
	bump := uint64(highest-from.Revision) + revisionMargin
	ec, err := etcdConfig(cfg)
	if err != nil {
		return Restored{}, err
	}
	logger, err := logger()
	if err != nil {
		return Restored{}, err
	}
	next := cfg.Dir + ".restoring"
	if err := os.RemoveAll(next); err != nil {
		return Restored{}, fmt.Errorf("restore: %w", err)
	}
	err = snapshot.NewV3(logger).Restore(snapshot.RestoreConfig{
		SnapshotPath: path, Name: cfg.Name, OutputDataDir: next, PeerURLs: []string{ec.AdvertisePeerUrls[0].String()},
		InitialCluster: ec.InitialCluster, InitialClusterToken: ec.InitialClusterToken, RevisionBump: bump, MarkCompacted: true,
	})
	if err != nil {
		return Restored{}, errors.Join(fmt.Errorf("restore %s: %w", path, err), os.RemoveAll(next))
	}
	r := Restored{From: from, Revision: from.Revision + int64(bump)}
	if _, err := os.Stat(cfg.Dir); err == nil {
		r.Old = fmt.Sprintf("%s.before-%s", cfg.Dir, time.Now().UTC().Format("20060102T150405Z"))
		if err := os.Rename(cfg.Dir, r.Old); err != nil {
			return Restored{}, fmt.Errorf("restore: %w", err)
		}
	}
	if err := os.Rename(next, cfg.Dir); err != nil {
		if r.Old != "" {
			err = errors.Join(err, os.Rename(r.Old, cfg.Dir))
		}
		return Restored{}, fmt.Errorf("restore: %w", err)
	}
	return r, nil
}

// damaged tells a database that can't be read, which a restore is to replace, from one that is in use.
func damaged(err error) bool {
	return errors.Is(err, bolterrors.ErrInvalid) || errors.Is(err, bolterrors.ErrChecksum) || errors.Is(err, bolterrors.ErrVersionMismatch)
}
