package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/utils/ptr"

	"github.com/strake-io/strake/cmd/strake/agent"
	"github.com/strake-io/strake/cmd/strake/containerd"
	"github.com/strake-io/strake/cmd/strake/demo"
	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/cmd/strake/ociimage"
	"github.com/strake-io/strake/cmd/strake/supervisor"
)

// Up brings the cluster up, or what of it does not run, and returns when the demo is served. flags are the settings of a new
// cluster, and given tells which of them the user named. Steps are told on out. A first start that fails leaves nothing but its
// logs, a later one that fails leaves the cluster stopped, with its data.
func Up(ctx context.Context, l layout.Layout, flags Settings, given func(flag string) bool, out io.Writer) error {
	if os.Geteuid() != 0 {
		return errors.New("strake up needs root: run it with sudo")
	}
	u := &start{l: l, fresh: !anyRunning(l), processes: map[string]map[supervisor.Process]bool{}}
	for _, st := range []step{
		{"check the machine", func(context.Context) error { return u.check(flags, given) }},
		{"certificates and settings", u.prepare},
		{"start containerd, server and agent", u.supervise},
		{"load the demo's image", u.loadImage},
		{"API server ready", u.apiReady},
		{"deploy the demo", func(ctx context.Context) error { return u.poll(ctx, func() error { return demo.Deploy(ctx, u.admin) }) }},
		{"node Ready", func(ctx context.Context) error { return u.poll(ctx, func() error { return u.nodeReady(ctx) }) }},
		{"DNS answers", func(ctx context.Context) error { return u.poll(ctx, func() error { return dnsAnswers(ctx, u.s) }) }},
		{"demo served", func(ctx context.Context) error {
			return u.poll(ctx, func() error { return u.demoServed(ctx) })
		}},
	} {
		if err := st.run(ctx, out); err != nil {
			if full := enoughSpace(l.Data, fullFree); u.touched && full != nil {
				err = full // whatever was said of it
			}
			return errors.Join(fmt.Errorf("%s: %w", st.name, err), u.undo(ctx, err))
		}
	}
	return nil
}

// start is one `up`.
type start struct {
	l         layout.Layout
	fresh     bool // nothing runs yet
	isNew     bool // there was no cluster in the data folder
	touched   bool // the data folder has been written to
	s         Settings
	admin     *rest.Config
	client    kubernetes.Interface
	processes map[string]map[supervisor.Process]bool // seen so far, by component
}

func (u *start) prepare(context.Context) error {
	u.touched = true
	if err := u.l.Prepare(); err != nil {
		return err
	}
	if err := u.s.Save(u.l); err != nil {
		return err
	}
	_, err := u.s.certificates(u.l)
	return err
}

func (u *start) apiReady(ctx context.Context) error {
	var err error
	if u.admin, err = clientcmd.BuildConfigFromFlags("", u.l.AdminKubeconfig()); err != nil {
		return err
	}
	u.admin.QPS, u.admin.Burst = -1, -1
	if u.client, err = kubernetes.NewForConfig(u.admin); err != nil {
		return err
	}
	return u.poll(ctx, func() error {
		_, err := u.client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		return err
	})
}

// undo takes back what a failed start has started.
func (u *start) undo(ctx context.Context, cause error) error {
	if !u.fresh || !u.touched {
		return nil
	}
	var words error
	if !errors.As(cause, new(*crash)) {
		words = u.lastWords()
	}
	if err := Down(context.WithoutCancel(ctx), u.l, false); err != nil {
		return errors.Join(words, err)
	}
	if u.isNew {
		return errors.Join(words, u.l.Clear())
	}
	return words
}

type step struct {
	name string
	do   func(context.Context) error
}

func (s step) run(ctx context.Context, out io.Writer) error {
	began := time.Now()
	err := s.do(ctx)
	mark := "✓"
	if err != nil {
		mark = "✗"
	}
	fmt.Fprintf(out, "%s %-36s %5.1f s\n", mark, s.name, time.Since(began).Seconds())
	return err
}

// poll repeats f until it succeeds, ctx ends (f's last error is the cause), or a component has ended too often to hope.
func (u *start) poll(ctx context.Context, f func() error) error {
	for {
		err := f()
		if err == nil {
			return nil
		}
		if err := u.crashing(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not in time: %w", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// crash is the end of a start: one component does not stay alive.
type crash struct {
	component string
	lives     int
	log       string
}

func (c *crash) Error() string {
	data, err := os.ReadFile(c.log)
	if err != nil {
		return fmt.Sprintf("%s ended %d times; its log: %v", c.component, c.lives, err)
	}
	return fmt.Sprintf("%s ended %d times, saying (%s): %s", c.component, c.lives, c.log, lastError(string(data)))
}

// maxLives is how often a component may be started before a start of the cluster is given up.
const maxLives = 3

func (u *start) crashing() error {
	for _, name := range components {
		p, ok := supervisor.Find(u.l.Pid(name))
		if !ok {
			continue
		}
		if u.processes[name] == nil {
			u.processes[name] = map[supervisor.Process]bool{}
		}
		u.processes[name][p] = true
		if n := len(u.processes[name]); n > maxLives {
			return &crash{component: name, lives: n - 1, log: u.l.Log(name)}
		}
	}
	return nil
}

func running(l layout.Layout, component string) bool {
	_, ok := supervisor.Find(l.Pid(component))
	return ok
}

// anyRunning tells whether something of the cluster runs, with or without a supervisor.
func anyRunning(l layout.Layout) bool {
	return slices.ContainsFunc(append([]string{"supervisor"}, components...), func(c string) bool { return running(l, c) })
}

// supervise starts the background process, unless it runs.
func (u *start) supervise(context.Context) error {
	l := u.l
	if running(l, "supervisor") {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	small, err := agent.SmallBinary()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(l.Log("supervisor"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(small, l.Data, self)
	cmd.Args[0] = supervisor.Program
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

// components are what a supervisor keeps running.
var components = supervisor.Names

// loadImage makes the demo's image of our own binary.
func (u *start) loadImage(ctx context.Context) error {
	c, err := containerd.Connect(ctx, u.l)
	if err != nil {
		return err
	}
	defer c.Close()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return agent.LoadImage(ctx, c, ociimage.Image{Name: demo.Image, Files: map[string]string{"/strake": self}, Entrypoint: []string{"/strake"}, User: "65532"})
}

func (u *start) nodeReady(ctx context.Context) error {
	name := u.s.NodeName
	n, err := u.client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
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
	c := &dns.Client{Timeout: 200 * time.Millisecond} // before the address is there, a query gets no answer and no error
	m, _, err := c.ExchangeContext(ctx, q, netip.AddrPortFrom(s.DNSAddrs[0], 53).String())
	if err != nil {
		return err
	}
	if len(m.Answer) == 0 {
		return fmt.Errorf("the cluster DNS has no answer for %s (%s)", q.Question[0].Name, dns.RcodeToString[m.Rcode])
	}
	return nil
}

// demoServed asks the demo by its NodePort, and wants all of its pods to be available.
func (u *start) demoServed(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	deployments, err := u.client.AppsV1().Deployments(demo.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, d := range deployments.Items {
		if want := ptr.Deref(d.Spec.Replicas, 1); d.Status.AvailableReplicas < want {
			return fmt.Errorf("%d of %d pods of Deployment %s/%s are available", d.Status.AvailableReplicas, want, d.Namespace, d.Name)
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s/", netip.AddrPortFrom(u.s.NodeAddrs[0], demo.NodePort)), nil)
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

// lastWords are what the components said last, for somebody whose start failed.
func (u *start) lastWords() error {
	var words []error
	for _, name := range supervisor.Names {
		data, err := os.ReadFile(u.l.Log(name))
		if err != nil {
			continue // it has not been started
		}
		if line := lastError(string(data)); line != "" {
			words = append(words, fmt.Errorf("%s said (%s): %s", name, u.l.Log(name), line))
		}
	}
	return errors.Join(words...)
}

// lastError finds the line that tells why a process ended: the last of ours (main prints it), else the start of a panic, else the last.
func lastError(log string) string {
	lines := strings.Split(strings.TrimSpace(log), "\n")
	for _, prefix := range []string{"strake:", "panic:", "containerd:"} {
		for i := len(lines) - 1; i >= 0; i-- {
			if strings.HasPrefix(lines[i], prefix) {
				return lines[i]
			}
		}
	}
	return lines[len(lines)-1]
}
