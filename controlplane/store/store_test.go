package store

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/strake-io/strake/tests/freeport"
)

// selfSigned writes one certificate that is its own CA, server and client.
func selfSigned(t *testing.T, dir string) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "c.crt"), filepath.Join(dir, "c.key")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "EC PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

func testConfig(t *testing.T) Config {
	dir := t.TempDir()
	cert, key := selfSigned(t, dir)
	return Config{Dir: filepath.Join(dir, "etcd"), Name: "m", ClientPort: freeport.Find(t), PeerPort: freeport.Find(t), CAFile: cert, CertFile: cert, KeyFile: key}
}

func connect(t *testing.T, s *Store, cfg Config, withCert bool) *clientv3.Client {
	t.Helper()
	tc := &tls.Config{RootCAs: x509.NewCertPool()}
	ca, err := os.ReadFile(cfg.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	tc.RootCAs.AppendCertsFromPEM(ca)
	if withCert {
		pair, err := tls.LoadX509KeyPair(cfg.CertFile, cfg.KeyFile)
		if err != nil {
			t.Fatal(err)
		}
		tc.Certificates = []tls.Certificate{pair}
	}
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{s.Endpoint()}, TLS: tc})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestDataSurvivesARestart(t *testing.T) {
	cfg := testConfig(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	s, err := Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := connect(t, s, cfg, true).Put(ctx, "k", "v"); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s, err = Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	got, err := connect(t, s, cfg, true).Get(ctx, "k")
	if err != nil || len(got.Kvs) != 1 || string(got.Kvs[0].Value) != "v" {
		t.Fatalf("got %v, %v", got, err)
	}
}

func TestNoEntryWithoutACertificate(t *testing.T) {
	cfg := testConfig(t)
	s, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := connect(t, s, cfg, false).Get(ctx, "k"); err == nil {
		t.Fatal("a client without a certificate was served")
	}
}

func TestTakenPortIsNamed(t *testing.T) {
	cfg := testConfig(t)
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: cfg.ClientPort})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := Start(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "is taken by another process") {
		t.Fatalf("error %v", err)
	}
}

func TestDamagedDataIsTold(t *testing.T) {
	for name, c := range map[string]struct {
		file string // below member/, with a pattern
		at   int64
		want string
	}{
		"database":        {"snap/db", 0, "database:"},
		"write-ahead log": {"wal/*.wal", 300, "etcd in"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(t)
			s, err := Start(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			kv := connect(t, s, cfg, true)
			for range 20 {
				if _, err := kv.Put(t.Context(), "k", strings.Repeat("v", 100)); err != nil {
					t.Fatal(err)
				}
			}
			s.Close()
			files, err := filepath.Glob(filepath.Join(cfg.Dir, "member", c.file))
			if err != nil || len(files) != 1 {
				t.Fatalf("%v: %v", files, err)
			}
			f, err := os.OpenFile(files[0], os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt(bytes.Repeat([]byte{0xa5}, 9000), c.at); err != nil {
				t.Fatal(err)
			}
			f.Close()
			if _, err := Start(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "backup") {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestOneProcessPerFolder(t *testing.T) {
	cfg := testConfig(t)
	s, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	cfg.ClientPort, cfg.PeerPort = freeport.Find(t), freeport.Find(t)
	if _, err := Start(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "another process has the database open") {
		t.Errorf("error %v", err)
	}
}
