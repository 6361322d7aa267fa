package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/strake-io/strake/cmd/strake/containerd"
	"github.com/strake-io/strake/cmd/strake/demo"
	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/cmd/strake/ociimage"
	"github.com/strake-io/strake/cmd/strake/supervisor"
)

// Up brings the cluster up, or what of it does not run, and returns when the demo is served. Steps are told on out.
// If the first start fails, what was started is stopped again.
func Up(ctx context.Context, l layout.Layout, s Settings, out io.Writer) error {
	fresh := true
	if _, ok := supervisor.Find(l.Pid("supervisor")); ok {
		fresh = false
	}
	p := &printer{out: out}
	var rc *rest.Config
	var client kubernetes.Interface
	steps := []step{
		{"check the machine", func(context.Context) error { return preflight(l, s, fresh) }},
		{"certificates and settings", func(context.Context) error {
			if err := s.complete(); err != nil {
				return err
			}
			if err := l.Prepare(); err != nil {
				return err
			}
			if err := s.Save(l); err != nil {
				return err
			}
			if _, err := s.certificates(l); err != nil {
				return err
			}
			return installPlugin(l)
		}},
		{"start containerd, server and agent", func(context.Context) error { return startSupervisor(l) }},
		{"load the images", func(ctx context.Context) error { return loadImages(ctx, l) }},
		{"API server ready", func(ctx context.Context) error {
			var err error
			if rc, err = clientcmd.BuildConfigFromFlags("", l.AdminKubeconfig()); err != nil {
				return err
			}
			rc.QPS, rc.Burst = -1, -1
			if client, err = kubernetes.NewForConfig(rc); err != nil {
				return err
			}
			return poll(ctx, func() error {
				_, err := client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
				return err
			})
		}},
		{"deploy the demo", func(ctx context.Context) error { return poll(ctx, func() error { return demo.Deploy(ctx, rc) }) }},
		{"node Ready", func(ctx context.Context) error {
			return poll(ctx, func() error { return nodeReady(ctx, client, s.NodeName) })
		}},
		{"DNS answers", func(ctx context.Context) error { return poll(ctx, func() error { return dnsAnswers(ctx, s) }) }},
		{"demo served", func(ctx context.Context) error { return poll(ctx, func() error { return demoServed(ctx, s.NodeAddr) }) }},
	}
	for _, st := range steps {
		if err := p.run(ctx, st); err != nil {
			if fresh && supervisorRuns(l) {
				err = fmt.Errorf("%w\n%s", err, lastWords(l))
				if derr := Down(context.WithoutCancel(ctx), l, false); derr != nil {
					err = errors.Join(err, derr)
				}
			}
			return fmt.Errorf("%s: %w", st.name, err)
		}
	}
	return nil
}

type step struct {
	name string
	do   func(context.Context) error
}

type printer struct{ out io.Writer }

func (p *printer) run(ctx context.Context, s step) error {
	began := time.Now()
	err := s.do(ctx)
	mark := "✓"
	if err != nil {
		mark = "✗"
	}
	fmt.Fprintf(p.out, "%s %-36s %5.1f s\n", mark, s.name, time.Since(began).Seconds())
	return err
}

// poll repeats f until it succeeds or ctx ends; then f's last error is the cause.
func poll(ctx context.Context, f func() error) error {
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not in time: %w", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// minFree is the disk space that a start wants.
const minFree = 1 << 30

// preflight finds what would make a start fail, before anything is touched.
func preflight(l layout.Layout, s Settings, fresh bool) error {
	if os.Geteuid() != 0 {
		return errors.New("strake up needs root: run it with sudo")
	}
	if err := l.Check(); err != nil {
		return err
	}
	if _, err := containerd.Binaries(); err != nil {
		return err
	}
	if !fresh {
		return nil
	}
	dir := l.Data
	for {
		var st syscall.Statfs_t
		err := syscall.Statfs(dir, &st)
		if err == nil {
			if free := st.Bavail * uint64(st.Bsize); free < minFree {
				return fmt.Errorf("the disk of %s has %d MiB left, a cluster wants %d MiB; free some, or choose another folder with --data-dir", l.Data, free>>20, minFree>>20)
			}
			break
		}
		if !errors.Is(err, syscall.ENOENT) || dir == "/" {
			return fmt.Errorf("data folder %s: %w", l.Data, err)
		}
		dir = filepath.Dir(dir)
	}
	if err := s.complete(); err != nil {
		return err
	}
	for _, a := range []struct {
		addr netip.AddrPort
		what string
	}{
		{netip.AddrPortFrom(s.NodeAddr, uint16(s.Port)), "the API server (another: --port)"},
		{netip.AddrPortFrom(s.NodeAddr, 10250), "the kubelet"},
		{netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(s.EtcdPort)), "etcd (another: --etcd-port)"},
	} {
		ln, err := net.Listen("tcp", a.addr.String())
		if errors.Is(err, syscall.EADDRINUSE) {
			return fmt.Errorf("%s is taken by another process, but %s needs it; stop that process", a.addr, a.what)
		}
		if err != nil {
			return fmt.Errorf("listen on %s: %w", a.addr, err)
		}
		ln.Close()
	}
	return nil
}

// plugin finds strake-cni beside our own binary.
func plugin() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	path := filepath.Join(filepath.Dir(self), "strake-cni")
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("strake-cni is not beside %s: run `make build`", self)
	}
	return path, nil
}

func installPlugin(l layout.Layout) error {
	src, err := plugin()
	if err != nil {
		return err
	}
	data, err := os.ReadFile(src)
	if err != nil {
		return err
	}
	// Runtimes before containerd 2.1 want a plugin called loopback as well; it is the same binary by another name.
	for _, name := range []string{"strake-cni", "loopback"} {
		if err := layout.WriteFile(filepath.Join(l.CNIBin(), name), data, 0o755); err != nil {
			return err
		}
	}
	return nil
}

func supervisorRuns(l layout.Layout) bool {
	_, ok := supervisor.Find(l.Pid("supervisor"))
	return ok
}

// startSupervisor starts the background process, unless it runs.
func startSupervisor(l layout.Layout) error {
	if supervisorRuns(l) {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(l.Log("supervisor"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(self, "supervise", "--data-dir", l.Data)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	if _, err := supervisor.Record(l.Pid("supervisor"), cmd.Process.Pid); err != nil {
		return err
	}
	return cmd.Process.Release()
}

// Supervise keeps the cluster's processes running until ctx ends.
func Supervise(ctx context.Context, l layout.Layout) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	runtime, err := containerd.Command(l)
	if err != nil {
		return err
	}
	return supervisor.Run(ctx, l, []supervisor.Component{
		{Name: "containerd", Command: runtime, Grace: 10 * time.Second},
		{Name: "server", Command: []string{self, "server", "--data-dir", l.Data}, Grace: 20 * time.Second},
		{Name: "agent", Command: []string{self, "agent", "--data-dir", l.Data}, Grace: 10 * time.Second},
	}, "containerd")
}

// loadImages makes the sandbox's and the demo's images of our own binaries, unless they are there.
func loadImages(ctx context.Context, l layout.Layout) error {
	c, err := containerd.Connect(ctx, l)
	if err != nil {
		return err
	}
	defer c.Close()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	pause, err := plugin()
	if err != nil {
		return err
	}
	for _, img := range []ociimage.Image{
		{Name: containerd.PauseImage, Files: map[string]string{"/pause": pause}, Entrypoint: []string{"/pause"}, User: "65535"},
		{Name: demo.Image, Files: map[string]string{"/strake": self}, Entrypoint: []string{"/strake"}, User: "65532"},
	} {
		if c.Has(ctx, img.Name) {
			continue
		}
		r, w := io.Pipe()
		go func() { w.CloseWithError(ociimage.Write(w, img)) }()
		if _, err := c.Import(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

func nodeReady(ctx context.Context, c kubernetes.Interface, name string) error {
	n, err := c.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	for _, cond := range n.Status.Conditions {
		if cond.Type == corev1.NodeReady {
			if cond.Status == corev1.ConditionTrue {
				return nil
			}
			return fmt.Errorf("node %s is not Ready: %s", name, cond.Message)
		}
	}
	return fmt.Errorf("node %s has not told how it is", name)
}

// dnsAnswers asks the cluster DNS for the API server's name.
func dnsAnswers(ctx context.Context, s Settings) error {
	q := new(dns.Msg)
	q.SetQuestion("kubernetes.default.svc."+s.Zone+".", dns.TypeA)
	c := &dns.Client{Timeout: time.Second}
	m, _, err := c.ExchangeContext(ctx, q, netip.AddrPortFrom(s.DNSAddr(), 53).String())
	if err != nil {
		return err
	}
	if len(m.Answer) == 0 {
		return fmt.Errorf("the cluster DNS has no answer for %s (%s)", q.Question[0].Name, dns.RcodeToString[m.Rcode])
	}
	return nil
}

func demoServed(ctx context.Context, addr netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s/", netip.AddrPortFrom(addr, demo.NodePort)), nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the demo answers %s", resp.Status)
	}
	return nil
}

// lastWords are the ends of the logs, for somebody whose start failed.
func lastWords(l layout.Layout) string {
	var b strings.Builder
	for _, name := range []string{"containerd", "server", "agent"} {
		data, err := os.ReadFile(l.Log(name))
		if err != nil || len(data) == 0 {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(data)), "\n")
		fmt.Fprintf(&b, "%s (%s): %s\n", name, l.Log(name), lines[len(lines)-1])
	}
	return strings.TrimSpace(b.String())
}
