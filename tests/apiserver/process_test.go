package apiserver

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/strake-io/strake/controlplane/apiserver"
	"github.com/strake-io/strake/controlplane/apiserver/apiservertest"
	"github.com/strake-io/strake/tests/freeport"
)

// serveFile is the environment variable by which this test's binary is told to be a server.
const serveFile = "STRAKE_TEST_SERVE"

// served is what the file of that variable holds.
type served struct {
	Config         apiserver.Config
	RequestTimeout time.Duration
	FeatureGates   map[string]bool
}

func TestMain(m *testing.M) {
	if path := os.Getenv(serveFile); path != "" {
		fmt.Fprintln(os.Stderr, serveFrom(path))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// serveFrom serves until the process is killed.
func serveFrom(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var s served
	if err := json.Unmarshal(data, &s); err != nil {
		return err
	}
	s.Config.Settings = apiserver.NewSettings()
	s.Config.Settings.RequestTimeout, s.Config.Settings.FeatureGates = s.RequestTimeout, s.FeatureGates
	api, err := apiserver.New(s.Config)
	if err != nil {
		return err
	}
	return api.Run(context.Background())
}

// process is an API server that is a process of its own, which can be killed.
type process struct {
	file   string
	client kubernetes.Interface
	cmd    *exec.Cmd
	ended  chan struct{} // closed when cmd has
	stderr bytes.Buffer
}

// newProcess prepares a server beside s, on its store and with these features switched on, which ends with the test.
func newProcess(t *testing.T, s *apiservertest.Server, requestTimeout time.Duration, features ...string) *process {
	t.Helper()
	conf := served{Config: s.Config(), RequestTimeout: requestTimeout, FeatureGates: map[string]bool{}}
	for _, f := range features {
		conf.FeatureGates[f] = true
	}
	conf.Config.Settings, conf.Config.Port = nil, freeport.Find(t)
	data, err := json.Marshal(conf)
	if err != nil {
		t.Fatal(err)
	}
	p := &process{file: filepath.Join(t.TempDir(), "serve.json")}
	if err := os.WriteFile(p.file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	rc := rest.CopyConfig(s.Admin)
	rc.Host = "https://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(conf.Config.Port))
	p.client = clientOf(t, rc)
	t.Cleanup(p.kill)
	return p
}

// start starts the process; serving is another matter.
func (p *process) start(t *testing.T) {
	t.Helper()
	p.stderr.Reset()
	p.cmd = exec.Command(os.Args[0])
	p.cmd.Env, p.cmd.Stderr = append(os.Environ(), serveFile+"="+p.file), &p.stderr
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cmd, ended := p.cmd, make(chan struct{})
	p.ended = ended
	go func() {
		cmd.Wait()
		close(ended)
	}()
}

// ready waits until the process serves.
func (p *process) ready(t *testing.T) {
	t.Helper()
	eventually(t, "a server that is a process is ready", func(ctx context.Context) error {
		_, err := p.client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		return err
	})
}

// kill ends the process as kill -9 does.
func (p *process) kill() {
	if p.cmd != nil {
		p.cmd.Process.Kill()
		<-p.ended
		p.cmd = nil
	}
}
