package pki

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/client-go/tools/clientcmd"
)

func testConfig(t *testing.T) Config {
	return Config{
		Dir: filepath.Join(t.TempDir(), "pki"), ServerAddrs: []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")},
		ServiceIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")}, Zone: "cluster.local", Hostname: "node-1",
	}
}

func mustEnsure(t *testing.T, cfg Config) Files {
	t.Helper()
	f, err := Ensure(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestEnsureIsIdempotent(t *testing.T) {
	cfg := testConfig(t)
	f := mustEnsure(t, cfg)
	before := map[string]string{}
	filepath.Walk(cfg.Dir, func(p string, i os.FileInfo, err error) error {
		if err == nil && !i.IsDir() {
			before[p] = read(t, p)
			if strings.HasSuffix(p, ".key") && i.Mode().Perm() != 0o600 {
				t.Errorf("%s has mode %o", p, i.Mode().Perm())
			}
		}
		return nil
	})
	mustEnsure(t, cfg)
	for p, data := range before {
		if read(t, p) != data {
			t.Errorf("%s was written again", p)
		}
	}
	if _, err := tls.LoadX509KeyPair(f.APIServer().Cert, f.APIServer().Key); err != nil {
		t.Error(err)
	}
}

func TestServingCertificateFollowsTheAddress(t *testing.T) {
	cfg := testConfig(t)
	f := mustEnsure(t, cfg)
	ca := read(t, f.CA().Cert)
	cfg.ServerAddrs[0] = netip.MustParseAddr("192.0.2.8")
	mustEnsure(t, cfg)
	if read(t, f.CA().Cert) != ca {
		t.Fatal("the CA was replaced")
	}
	cert, err := parseCertificate([]byte(read(t, f.APIServer().Cert)))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(ca))
	for _, name := range []string{"192.0.2.8", "2001:db8::7", "10.96.0.1", "::1", "127.0.0.1", "kubernetes.default.svc.cluster.local", "node-1"} {
		if _, err := cert.Verify(x509.VerifyOptions{DNSName: name, Roots: roots}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if cert.VerifyHostname("192.0.2.7") == nil {
		t.Error("the certificate still names the old address")
	}
}

func TestLeafIsRenewedBeforeItEnds(t *testing.T) {
	cfg := testConfig(t)
	f := mustEnsure(t, cfg)
	ca, err := ensureAuthority(f.CA(), "", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	want := leaf{commonName: "x", client: true}
	pair := KeyPair{Cert: filepath.Join(cfg.Dir, "x.crt"), Key: filepath.Join(cfg.Dir, "x.key")}
	for _, step := range []struct {
		at      time.Time
		renewed bool
	}{
		{time.Now(), true},
		{time.Now().Add(leafLifetime - renewBefore - time.Hour), false},
		{time.Now().Add(leafLifetime - renewBefore + time.Hour), true},
	} {
		before, _ := os.ReadFile(pair.Cert)
		end, err := ca.ensureLeaf(pair, want, step.at)
		if err != nil {
			t.Fatal(err)
		}
		if cert, err := parseCertificate([]byte(read(t, pair.Cert))); err != nil || end.Sub(cert.NotAfter).Abs() > time.Second {
			t.Errorf("at %s: said to end %s: %v, %v", step.at, end, cert.NotAfter, err)
		}
		if got := read(t, pair.Cert) != string(before); got != step.renewed {
			t.Errorf("at %s: renewed %v, want %v", step.at, got, step.renewed)
		}
	}
}

func TestHalfAnAuthorityIsAnError(t *testing.T) {
	for _, broken := range []string{"missing key", "missing certificate", "foreign key", "rubbish"} {
		t.Run(broken, func(t *testing.T) {
			cfg := testConfig(t)
			f := mustEnsure(t, cfg)
			switch broken {
			case "missing key":
				os.Remove(f.CA().Key)
			case "missing certificate":
				os.Remove(f.CA().Cert)
			case "foreign key":
				os.WriteFile(f.CA().Key, []byte(read(t, f.EtcdCA().Key)), 0o600)
			case "rubbish":
				os.WriteFile(f.CA().Cert, []byte("rubbish"), 0o600)
			}
			if _, err := Ensure(cfg); err == nil || !strings.Contains(err.Error(), f.CA().Cert) {
				t.Errorf("error %v does not name %s", err, f.CA().Cert)
			}
		})
	}
}

func TestKubeconfig(t *testing.T) {
	for _, portable := range []bool{true, false} {
		cfg := testConfig(t)
		k := Kubeconfig{Path: filepath.Join(cfg.Dir, "admin.kubeconfig"), Identity: Admin, Portable: portable}
		cfg.Kubeconfigs = []Kubeconfig{k}
		ensure := func(server string) string {
			t.Helper()
			cfg.Server = server
			mustEnsure(t, cfg)
			return read(t, k.Path)
		}
		first := ensure("https://192.0.2.7:6443")
		if ensure("https://192.0.2.7:6443") != first {
			t.Error("written again without need")
		}
		if ensure("https://192.0.2.8:6443") == first {
			t.Error("not written for another server")
		}
		if err := os.Chmod(k.Path, 0o644); err != nil {
			t.Fatal(err)
		}
		ensure("https://192.0.2.8:6443")
		if info, err := os.Stat(k.Path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v", info, err)
		}
		rest, err := clientcmd.BuildConfigFromFlags("", k.Path)
		if err != nil {
			t.Fatal(err)
		}
		if got := rest.CertFile == ""; got != portable {
			t.Errorf("portable %v: certificate in file %q", portable, rest.CertFile)
		}
		data := rest.CertData
		if !portable {
			data = []byte(read(t, rest.CertFile))
		}
		cert, err := parseCertificate(data)
		if err != nil {
			t.Fatal(err)
		}
		if cert.Subject.CommonName != "strake-admin" || cert.Subject.Organization[0] != "system:masters" {
			t.Errorf("subject %s", cert.Subject)
		}
	}
}

// TestKeep lets a server run for more than a year.
func TestKeep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig(t)
		admin, scheduler := filepath.Join(cfg.Dir, "admin.kubeconfig"), filepath.Join(cfg.Dir, "scheduler.kubeconfig")
		cfg.Server, cfg.Kubeconfigs = "https://192.0.2.7:6443", []Kubeconfig{{Path: admin, Identity: Admin, Portable: true}, {Path: scheduler, Identity: Scheduler}}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- Keep(ctx, cfg) }()
		synctest.Wait()
		f := Files{Dir: cfg.Dir}
		ca, config := read(t, f.CA().Cert), read(t, scheduler)
		for day := range 400 {
			time.Sleep(24 * time.Hour)
			synctest.Wait()
			user, err := clientcmd.LoadFromFile(admin)
			if err != nil {
				t.Fatal(err)
			}
			for name, data := range map[string][]byte{
				"the API server": []byte(read(t, f.APIServer().Cert)), "its client of etcd": []byte(read(t, f.EtcdClient().Cert)),
				"the scheduler": []byte(read(t, filepath.Join(cfg.Dir, "scheduler.crt"))), "the administrator": user.AuthInfos[Admin.User].ClientCertificateData,
			} {
				cert, err := parseCertificate(data)
				if err != nil {
					t.Fatal(err)
				}
				if left := time.Until(cert.NotAfter); left < renewBefore-longestPause {
					t.Fatalf("day %d: %s has %s left", day, name, left)
				}
			}
		}
		if read(t, f.CA().Cert) != ca || read(t, scheduler) != config {
			t.Error("the CA or the scheduler's kubeconfig was written again")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestSign(t *testing.T) {
	f := mustEnsure(t, testConfig(t))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, server := range []bool{true, false} {
		data, err := Sign(f, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "system:node:n", Organization: []string{"system:nodes"}}, DNSNames: []string{"n"}, PublicKey: key.Public()}, server)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := parseCertificate(data)
		if err != nil {
			t.Fatal(err)
		}
		usage := x509.ExtKeyUsageClientAuth
		if server {
			usage = x509.ExtKeyUsageServerAuth
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM([]byte(read(t, f.CA().Cert)))
		if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: "n", KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil || len(cert.ExtKeyUsage) != 1 {
			t.Errorf("usages %v: %v", cert.ExtKeyUsage, err)
		}
	}
}
