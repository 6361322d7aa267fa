package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/controlplane/pki"
	"github.com/strake-io/strake/controlplane/store"
	"github.com/strake-io/strake/tests/lab"
)

// plane is a control plane alone (`strake server`) in a lab, and, once it is asked for, an etcd alone beside it.
type plane struct {
	lab          *lab.Cluster
	dir          string
	server, etcd *exec.Cmd
	client       *kubernetes.Clientset
}

func newPlane(dir, strake string) (*plane, error) {
	c, err := lab.New("strake-bench", filepath.Join(dir, "data"), strake)
	return &plane{lab: c, dir: dir}, err
}

// start starts the server and returns how long it took from exec until it was ready, in seconds.
func (p *plane) start(ctx context.Context) (float64, error) {
	log, err := os.OpenFile(filepath.Join(p.dir, "server.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	p.server = p.lab.StrakeCommand(context.Background(), "server")
	p.server.Stderr = log
	transport := &http.Transport{DialContext: p.lab.Dial, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} // it has no certificate yet
	defer transport.CloseIdleConnections()
	began := time.Now()
	if err := p.server.Start(); err != nil {
		return 0, err
	}
	for {
		res, err := (&http.Client{Transport: transport, Timeout: 5 * time.Second}).Get("https://" + lab.NodeIP + ":6443/readyz")
		if err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				break
			}
		}
		if time.Since(began) > 90*time.Second {
			return 0, fmt.Errorf("the API server is not ready: %w; see %s", err, log.Name())
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return 0, err
		}
	}
	took := time.Since(began).Seconds()
	rc, err := p.rest()
	if err != nil {
		return 0, err
	}
	p.client, err = kubernetes.NewForConfig(rc)
	return took, err
}

// rest is the administrator's way in, by protobuf.
func (p *plane) rest() (*rest.Config, error) {
	rc, err := p.lab.REST()
	if err != nil {
		return nil, err
	}
	rc.ContentType, rc.DisableCompression = "application/vnd.kubernetes.protobuf", true
	return rc, nil
}

// stop ends the server.
func (p *plane) stop() {
	for _, cmd := range []**exec.Cmd{&p.server, &p.etcd} {
		if *cmd == nil {
			continue
		}
		(*cmd).Process.Signal(syscall.SIGTERM)
		late := time.AfterFunc(20*time.Second, func() { (*cmd).Process.Kill() })
		(*cmd).Wait() // it was asked to end
		late.Stop()
		*cmd = nil
	}
}

func (p *plane) close() error {
	p.stop()
	return p.lab.Close()
}

// counter is a metric of the server without labels.
func (p *plane) counter(ctx context.Context, name string) (float64, error) {
	text, err := p.client.Discovery().RESTClient().Get().AbsPath("/metrics").DoRaw(ctx)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strconv.ParseFloat(strings.TrimSpace(value), 64)
		}
	}
	return 0, fmt.Errorf("the server has no metric %s", name)
}

// collected is the server's live heap in bytes, after it was made to collect garbage.
func (p *plane) collected(ctx context.Context) (float64, error) {
	if _, err := p.client.Discovery().RESTClient().Get().AbsPath("/debug/pprof/heap").Param("gc", "1").DoRaw(ctx); err != nil {
		return 0, err
	}
	return p.counter(ctx, "go_memstats_heap_alloc_bytes")
}

// etcdVariable makes this program an etcd that serves a cluster's certificates from a folder; what follows is both, a colon between.
const etcdVariable = "STRAKE_BENCH_ETCD"

const etcdPort = 22379

// alone starts the etcd that the server is compared with, on the same disk, with the same settings and by TLS too.
func (p *plane) alone(ctx context.Context) (*clientv3.Client, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	l, err := layout.New(p.lab.Data)
	if err != nil {
		return nil, err
	}
	if p.etcd == nil {
		p.etcd = p.lab.Command(context.Background(), exe)
		p.etcd.Env = append(os.Environ(), etcdVariable+"="+l.PKI()+":"+filepath.Join(p.dir, "etcd"))
		p.etcd.Stderr = os.Stderr
		if err := p.etcd.Start(); err != nil {
			return nil, err
		}
	}
	client, err := etcdClient(p.lab, fmt.Sprint("127.0.0.1:", etcdPort))
	if err != nil {
		return nil, err
	}
	// The first answer comes once it serves.
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		_, err := client.Get(ctx, "/")
		if err == nil {
			return client, nil
		}
		if ctx.Err() != nil {
			return nil, errors.Join(err, client.Close())
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return nil, errors.Join(err, client.Close())
		}
	}
}

// runEtcd is that etcd's process; it does not return in one.
func runEtcd() {
	certs, dir, ok := strings.Cut(os.Getenv(etcdVariable), ":")
	if !ok {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	f := pki.Files{Dir: certs}
	s, err := store.Start(ctx, store.Config{
		Dir: dir, Name: "alone", ClientPort: etcdPort, PeerPort: etcdPort + 1,
		CAFile: f.EtcdCA().Cert, CertFile: f.EtcdServer().Cert, KeyFile: f.EtcdServer().Key,
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "etcd:", err)
		os.Exit(1)
	}
	<-ctx.Done()
	s.Close()
	os.Exit(0)
}
