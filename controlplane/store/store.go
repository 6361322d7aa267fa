package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Config says where the data lies and who may come in. The zero value of the ports is not usable.
type Config struct {
	Dir        string // data folder; made with mode 0700 if absent
	Name       string // member name
	ClientPort int    // on 127.0.0.1
	PeerPort   int    // on 127.0.0.1
	CAFile     string // signs every certificate that may connect
	CertFile   string // serves clients and peers
	KeyFile    string
}

// quotaBytes is etcd's recommended upper limit for the size of its database.
const quotaBytes = 8 << 30

// tickMs is how often raft looks at its clock, in ms. Its ticks tell members that others are gone, and here there are no others; the first election takes
// five ticks to nine, of which four are left out at the start of a lone member: 0.2 to 1 s are left.
const tickMs = 200

// startTimeout bounds recovery of the write-ahead log and the member's first election.
const startTimeout = 60 * time.Second

// Store is a running etcd member.
type Store struct {
	etcd *embed.Etcd
}

// Start recovers the data folder and serves; it returns once the member has a leader.
// What it logs is warnings and errors only, on standard error.
func Start(ctx context.Context, cfg Config) (*Store, error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("etcd data folder: %w", err)
	}
	ec, err := etcdConfig(cfg)
	if err != nil {
		return nil, err
	}
	if err := checkDatabase(filepath.Join(cfg.Dir, "member", "snap", "db")); err != nil {
		return nil, explain(cfg, err)
	}
	etcd, err := embed.StartEtcd(ec)
	if err != nil {
		return nil, explain(cfg, err)
	}
	timer := time.NewTimer(startTimeout)
	defer timer.Stop()
	select {
	case <-etcd.Server.ReadyNotify():
		return &Store{etcd: etcd}, nil
	case err = <-etcd.Err():
	case <-etcd.Server.StopNotify():
		err = errors.New("stopped before it was ready")
	case <-timer.C:
		err = fmt.Errorf("not ready after %s: is the disk of %s very slow?", startTimeout, cfg.Dir)
	case <-ctx.Done():
		err = ctx.Err()
	}
	etcd.Close()
	return nil, explain(cfg, err)
}

// checkDatabase opens the database as etcd will: etcd itself panics, in a goroutine of its own, if it can't.
func checkDatabase(path string) error {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second, ReadOnly: true})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return errors.New("another process has the database open: stop it")
	}
	if err != nil {
		return fmt.Errorf("database: %w", err)
	}
	return db.Close()
}

func etcdConfig(cfg Config) (*embed.Config, error) {
	client := url.URL{Scheme: "https", Host: fmt.Sprintf("127.0.0.1:%d", cfg.ClientPort)}
	peer := url.URL{Scheme: "https", Host: fmt.Sprintf("127.0.0.1:%d", cfg.PeerPort)}
	tls := transport.TLSInfo{
		CertFile: cfg.CertFile, KeyFile: cfg.KeyFile,
		TrustedCAFile: cfg.CAFile, ClientCertAuth: true,
	}
	ec := embed.NewConfig()
	ec.Name = cfg.Name
	ec.Dir = cfg.Dir
	ec.ListenClientUrls, ec.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	ec.ListenPeerUrls, ec.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	ec.InitialCluster = ec.InitialClusterFromName(cfg.Name)
	ec.ClientTLSInfo, ec.PeerTLSInfo = tls, tls
	ec.QuotaBackendBytes = quotaBytes
	ec.TickMs = tickMs
	// The API server compacts by revision; etcd's own compaction stays off so that there is one policy.
	ec.AutoCompactionRetention = "0"
	logger, err := logger()
	if err != nil {
		return nil, fmt.Errorf("etcd logger: %w", err)
	}
	ec.ZapLoggerBuilder = embed.NewZapLoggerBuilder(logger)
	return ec, nil
}

func logger() (*zap.Logger, error) {
	zc := zap.NewProductionConfig()
	zc.Level = zap.NewAtomicLevelAt(zapcore.WarnLevel)
	zc.EncoderConfig.EncodeTime = zapcore.ISO8601TimeEncoder
	return zc.Build()
}

// recovery is what to do when data is lost.
const recovery = "restore the folder from a backup, or remove the cluster with `strake down --purge` and begin anew"

// explain puts the cause and the cure that an operator can act on in front of etcd's own words.
func explain(cfg Config, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("etcd: port %d or %d of 127.0.0.1 is taken by another process; stop it, or start with other ports: %w", cfg.ClientPort, cfg.PeerPort, err)
	case errors.Is(err, syscall.ENOSPC):
		return fmt.Errorf("etcd: no space left on the disk of %s; free some: %w", cfg.Dir, err)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("etcd in %s: %w", cfg.Dir, err)
	}
	return fmt.Errorf("etcd in %s: %w; if its files are damaged, %s", cfg.Dir, err, recovery)
}

// Endpoint is the URL that clients connect to.
func (s *Store) Endpoint() string { return s.etcd.Config().AdvertiseClientUrls[0].String() }

// Client makes a client of the member that calls it without a connection. It is no user's: nothing is checked.
func (s *Store) Client() *clientv3.Client { return v3client.New(s.etcd.Server) }

// Err delivers an error if the member stops by itself.
func (s *Store) Err() <-chan error { return s.etcd.Err() }

// Close stops the member; what was acknowledged is on disk.
func (s *Store) Close() { s.etcd.Close() }
