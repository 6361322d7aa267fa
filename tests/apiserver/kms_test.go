package apiserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	encryptionconfig "k8s.io/apiserver/pkg/server/options/encryptionconfig/controller"
	kms "k8s.io/kms/apis/v2"

	"github.com/strake-io/strake/controlplane/apiserver"
)

// keyService is a plugin for key management (KMS v2) at a Unix socket: its keys turn bytes over, each by another number.
type keyService struct {
	kms.UnimplementedKeyManagementServiceServer
	mu   sync.Mutex
	key  byte
	lost map[byte]bool
}

func (k *keyService) id(key byte) string { return fmt.Sprintf("key-%d", key) }

func turn(key byte, data []byte) []byte {
	out := bytes.Clone(data)
	for i := range out {
		out[i] ^= key
	}
	return out
}

func (k *keyService) Status(context.Context, *kms.StatusRequest) (*kms.StatusResponse, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return &kms.StatusResponse{Version: "v2", Healthz: "ok", KeyId: k.id(k.key)}, nil
}

func (k *keyService) Encrypt(_ context.Context, r *kms.EncryptRequest) (*kms.EncryptResponse, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return &kms.EncryptResponse{KeyId: k.id(k.key), Ciphertext: turn(k.key, r.Plaintext)}, nil
}

func (k *keyService) Decrypt(_ context.Context, r *kms.DecryptRequest) (*kms.DecryptResponse, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for key := k.key; key > 0; key-- {
		if k.id(key) == r.KeyId && !k.lost[key] {
			return &kms.DecryptResponse{Plaintext: turn(key, r.Ciphertext)}, nil
		}
	}
	return nil, fmt.Errorf("there is no %s", r.KeyId)
}

// rotate makes a new key, and forgets some.
func (k *keyService) rotate(forget ...byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.key++
	for _, key := range forget {
		k.lost[key] = true
	}
}

// serve listens until what it returns is called.
func (k *keyService) serve(t *testing.T, socket string) (stop func()) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	kms.RegisterKeyManagementServiceServer(s, k)
	go s.Serve(l)
	return s.Stop
}

// TestKeyService encrypts by keys of a key management service, which are rotated while the server runs, and which it does without for a while.
func TestKeyService(t *testing.T) {
	t.Parallel()
	poll := encryptionconfig.EncryptionConfigFileChangePollDuration
	encryptionconfig.EncryptionConfigFileChangePollDuration = 50 * time.Millisecond
	t.Cleanup(func() { encryptionconfig.EncryptionConfigFileChangePollDuration = poll })
	service := &keyService{key: 1, lost: map[byte]bool{}}
	socket, config := filepath.Join(t.TempDir(), "kms.sock"), filepath.Join(t.TempDir(), "encryption.yaml")
	stop := service.serve(t, socket)
	configure := func(name string, others ...string) {
		replace(t, config, fmt.Sprintf("apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  providers:\n  - kms: {apiVersion: v2, name: %s, endpoint: 'unix://%s', timeout: 3s}\n%s", name, socket, strings.Join(others, "")))
	}
	configure("vault")
	s := serve(t, func(c *apiserver.Config) {
		c.Settings.EncryptionConfig, c.Settings.EncryptionReload = config, true
	})
	client := clientOf(t, s.Admin)
	secrets := client.CoreV1().Secrets(metav1.NamespaceDefault)
	etcd, err := clientv3.New(clientv3.Config{Endpoints: []string{s.EtcdURL}})
	if err != nil {
		t.Fatal(err)
	}
	defer etcd.Close()
	stored := func(name string) string {
		got, err := etcd.Get(t.Context(), "/registry/secrets/default/"+name)
		if err != nil || len(got.Kvs) != 1 {
			t.Fatalf("%s: %v, %v", name, got, err)
		}
		return string(got.Kvs[0].Value)
	}
	put := func(ctx context.Context, name string) error {
		_, err := secrets.Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, StringData: map[string]string{"a": "the plain text"}}, metav1.CreateOptions{})
		return err
	}
	reads := func(ctx context.Context, name string) error {
		got, err := secrets.Get(ctx, name, metav1.GetOptions{})
		if err == nil && string(got.Data["a"]) != "the plain text" {
			err = fmt.Errorf("%q", got.Data["a"])
		}
		return err
	}
	if err := put(t.Context(), "first"); err != nil {
		t.Fatal(err)
	}
	if raw := stored("first"); !strings.HasPrefix(raw, "k8s:enc:kms:v2:vault:") || !strings.Contains(raw, "key-1") || strings.Contains(raw, "the plain text") {
		t.Errorf("stored as %q", raw)
	}

	// The service rotates its key. The server learns of it within a minute, or at once by a configuration that differs; what is
	// written from then on, be it the same as before, is encrypted by the new key.
	service.rotate()
	configure("vault", "  - identity: {}\n")
	eventually(t, "writes by the second key", func(ctx context.Context) error {
		got, err := secrets.Get(ctx, "first", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if _, err := secrets.Update(ctx, got, metav1.UpdateOptions{}); err != nil {
			return err
		}
		if raw := stored("first"); !strings.Contains(raw, "key-2") {
			return fmt.Errorf("stored as %.80q", raw)
		}
		return nil
	})
	// Then nobody needs the first one, not even a server that begins anew.
	service.rotate(1)
	s.Stop(t)
	s.Run(t)
	if err := errors.Join(reads(t.Context(), "first"), put(t.Context(), "third"), reads(t.Context(), "third")); err != nil {
		t.Error(err)
	}
	if raw := stored("third"); !strings.Contains(raw, "key-3") {
		t.Errorf("stored as %.80q", raw)
	}

	// Without the service what was read before is still read, and /readyz tells; it is well again with the service.
	readyz := func(ctx context.Context) (string, error) {
		data, err := client.Discovery().RESTClient().Get().AbsPath("/readyz/kms-providers").DoRaw(ctx)
		return string(data), err
	}
	stop()
	eventually(t, "/readyz tells", func(ctx context.Context) error {
		if _, err := readyz(ctx); err == nil {
			return errors.New("it is ready")
		}
		return reads(ctx, "first")
	})
	defer service.serve(t, socket)()
	eventually(t, "it is well again", func(ctx context.Context) error {
		_, err := readyz(ctx)
		return err
	})
	if err := put(t.Context(), "last"); err != nil {
		t.Error(err)
	}
}
