package apiserver

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/strake-io/strake/controlplane/apiserver"
	"github.com/strake-io/strake/controlplane/store"
	"github.com/strake-io/strake/tests/freeport"
)

// TestEtcdOfSomebodyElse keeps its objects, by TLS and below a prefix, in an etcd that runs apart, and that goes away and comes back.
func TestEtcdOfSomebodyElse(t *testing.T) {
	t.Parallel()
	var conf store.Config
	var etcd *store.Store
	run := func() {
		var err error
		if etcd, err = store.Start(t.Context(), conf); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { etcd.Close() })
	s := serve(t, func(c *apiserver.Config) {
		conf = store.Config{Dir: filepath.Join(t.TempDir(), "etcd"), Name: "theirs", ClientPort: freeport.Find(t), PeerPort: freeport.Find(t), CAFile: c.ClientCAFile, CertFile: c.ServingCertFile, KeyFile: c.ServingKeyFile}
		run()
		c.EtcdServers = nil
		set := c.Settings
		set.EtcdServers, set.EtcdPrefix = []string{etcd.Endpoint()}, "/theirs"
		set.EtcdCAFile, set.EtcdCertFile, set.EtcdKeyFile = c.ClientCAFile, c.ServingCertFile, c.ServingKeyFile
	})
	client := clientOf(t, s.Admin)
	maps := client.CoreV1().ConfigMaps(metav1.NamespaceDefault)
	if _, err := maps.Create(t.Context(), configMap("kept"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	tls, err := (transport.TLSInfo{TrustedCAFile: conf.CAFile, CertFile: conf.CertFile, KeyFile: conf.KeyFile}).ClientConfig()
	if err != nil {
		t.Fatal(err)
	}
	keys, err := clientv3.New(clientv3.Config{Endpoints: []string{etcd.Endpoint()}, TLS: tls})
	if err != nil {
		t.Fatal(err)
	}
	defer keys.Close()
	if got, err := keys.Get(t.Context(), "/theirs/configmaps/default/kept"); err != nil || got.Count != 1 {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := keys.Get(t.Context(), "/registry", clientv3.WithPrefix(), clientv3.WithCountOnly()); err != nil || got.Count != 0 {
		t.Errorf("outside of the prefix: %v, %v", got, err)
	}
	ready := func(ctx context.Context) (string, error) {
		data, err := client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		return string(data), err
	}
	etcd.Close()
	eventually(t, "/readyz tells of the lost store", func(ctx context.Context) error {
		if text, err := ready(ctx); err == nil || !strings.Contains(text, "[-]etcd") {
			return errors.New(text)
		}
		return nil
	})
	run()
	eventually(t, "the server comes back with its store", func(ctx context.Context) error {
		_, err := ready(ctx)
		if err == nil {
			_, err = maps.Update(ctx, configMap("kept"), metav1.UpdateOptions{})
		}
		return err
	})
}
