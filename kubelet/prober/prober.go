// Package prober runs the probes of containers. Each probe has a goroutine and a
// timer of its own while its container runs; results are told by a callback when
// they change.
package prober

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Kind of probe.
type Kind string

// The kinds of probes.
const (
	Liveness  Kind = "Liveness"
	Readiness Kind = "Readiness"
	Startup   Kind = "Startup"
)

// Result of a probe.
type Result struct {
	Pod       types.UID
	Container string
	ID        string // container id
	Kind      Kind
	OK        bool
	Settled   bool // it reached its threshold
	Message   string
}

// Seen is what was known of a running container before this manager began.
type Seen struct{ Started, Ready bool }

// Exec runs a command in a container and returns its output; a non-zero exit is an error.
type Exec func(ctx context.Context, containerID string, cmd []string, timeout time.Duration) (output string, err error)

// Manager runs the probes of this node.
type Manager struct {
	exec   Exec
	report func(Result)

	figures figures

	mu   sync.Mutex
	runs map[key]*run
}

type key struct {
	pod       types.UID
	container string
}

// run is the set of probes of one running container.
type run struct {
	id      string
	cancel  context.CancelFunc
	ready   bool
	started bool
}

// New returns a manager; report is called from probe goroutines.
func New(exec Exec, report func(Result)) *Manager {
	return &Manager{exec: exec, report: report, figures: newFigures(), runs: map[key]*run{}}
}

// Start begins the probes of a container that runs, unless they run already. podIP is where network probes go. seen is
// where they go on; nil: the container is new.
func (m *Manager) Start(pod *corev1.Pod, c *corev1.Container, id, podIP string, seen *Seen) {
	k := key{pod.UID, c.Name}
	m.mu.Lock()
	defer m.mu.Unlock()
	if r := m.runs[k]; r != nil {
		if r.id == id {
			return
		}
		r.cancel()
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &run{id: id, cancel: cancel, ready: c.ReadinessProbe == nil, started: c.StartupProbe == nil}
	if seen != nil {
		r.ready, r.started = r.ready || seen.Ready, r.started || seen.Started
	}
	startup := !r.started
	m.runs[k] = r
	t := target{pod: pod, container: c, id: id, ip: podIP}
	begin := func() {
		if c.LivenessProbe != nil {
			go m.loop(ctx, k, r, t, Liveness, c.LivenessProbe)
		}
		if c.ReadinessProbe != nil {
			go m.loop(ctx, k, r, t, Readiness, c.ReadinessProbe)
		}
	}
	if !startup {
		begin()
		return
	}
	go func() {
		if m.loop(ctx, k, r, t, Startup, c.StartupProbe) {
			begin()
		}
	}()
}

// Stop ends the probes of a container.
func (m *Manager) Stop(pod types.UID, container string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := key{pod, container}
	if r := m.runs[k]; r != nil {
		r.cancel()
		delete(m.runs, k)
	}
}

// StopPod ends the probes of all containers of a pod.
func (m *Manager) StopPod(pod types.UID) {
	defer m.figures.forget(pod)
	m.mu.Lock()
	defer m.mu.Unlock()
	for k, r := range m.runs {
		if k.pod == pod {
			r.cancel()
			delete(m.runs, k)
		}
	}
}

// State tells whether a container with this id has started and is ready, by its probes.
func (m *Manager) State(pod types.UID, container, id string) (started, ready bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.runs[key{pod, container}]
	if r == nil || r.id != id {
		return false, false
	}
	return r.started, r.started && r.ready
}

type target struct {
	pod       *corev1.Pod
	container *corev1.Container
	id, ip    string
}

// While a container is not ready, its readiness probe runs more often than its period says, for a short while: most
// servers listen a few milliseconds after they start (API: "While a container is not Ready, the ReadinessProbe may be
// executed at times other than the configured periodSeconds interval").
const (
	eager      = 3 * time.Second
	eagerFirst = 10 * time.Millisecond
	eagerLast  = 200 * time.Millisecond
)

// verdict is the state machine of one probe.
type verdict struct {
	kind      Kind
	success   int32 // thresholds
	failure   int32
	current   bool
	good, bad int32
}

// newVerdict: a container lives until shown otherwise; readiness and start have to be shown.
func newVerdict(kind Kind, p *corev1.Probe, current bool) *verdict {
	return &verdict{kind: kind, success: max(p.SuccessThreshold, 1), failure: max(p.FailureThreshold, 1), current: current || kind == Liveness}
}

// add counts a result. It tells whether a threshold is reached by it that changes something: each further failure of
// one that failed counts, too, for liveness and startup.
func (v *verdict) add(ok bool) (settled bool) {
	if ok {
		v.good, v.bad = v.good+1, 0
		if v.good >= v.success && !v.current {
			v.current = true
			return true
		}
		return false
	}
	v.good, v.bad = 0, v.bad+1
	if v.bad >= v.failure && (v.current || v.kind != Readiness) {
		v.current = false
		return true
	}
	return false
}

// loop probes until ctx ends; for a startup probe, until it succeeded (true) or failed for good.
func (m *Manager) loop(ctx context.Context, k key, r *run, t target, kind Kind, p *corev1.Probe) bool {
	if !sleep(ctx, time.Duration(p.InitialDelaySeconds)*time.Second) {
		return false
	}
	period := time.Duration(max(p.PeriodSeconds, 1)) * time.Second
	m.mu.Lock()
	v := newVerdict(kind, p, kind == Readiness && r.ready)
	m.mu.Unlock()
	first, next, pause := time.Now(), time.Now(), eagerFirst
	for {
		began := time.Now()
		message, err := m.probe(ctx, t, p)
		if ctx.Err() != nil {
			return false
		}
		m.count(k, r, t, kind, err == nil, time.Since(began))
		result := Result{Pod: k.pod, Container: k.container, ID: r.id, Kind: kind, OK: err == nil, Message: message}
		if err != nil {
			result.Message = err.Error()
		}
		// What was tried in between periods counts only if it is good news.
		onTime := !time.Now().Before(next)
		if err == nil || onTime {
			if result.Settled = v.add(err == nil); result.Settled {
				m.note(k, r, kind, err == nil)
			}
			if result.Settled || err != nil {
				m.report(result)
			}
			if result.Settled && (kind == Startup || kind == Liveness && err != nil) {
				return err == nil // it started, or is about to be restarted
			}
		}
		if onTime {
			next = next.Add(period)
			if next.Before(time.Now()) {
				next = time.Now().Add(period)
			}
		}
		wait := time.Until(next)
		if kind == Readiness && !v.current && err != nil && time.Since(first) < eager {
			wait = min(wait, pause)
			pause = min(2*pause, eagerLast)
		}
		if !sleep(ctx, wait) {
			return false
		}
	}
}

// count adds to the figures, unless the probe's end came meanwhile: a pod that is forgotten must not come back.
func (m *Manager) count(k key, r *run, t target, kind Kind, ok bool, took time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.runs[k] == r {
		m.figures.add(t, kind, ok, took)
	}
}

func (m *Manager) note(k key, r *run, kind Kind, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.runs[k] != r {
		return
	}
	switch kind {
	case Readiness:
		r.ready = ok
	case Startup:
		r.started = ok
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// probe tries once.
func (m *Manager) probe(ctx context.Context, t target, p *corev1.Probe) (string, error) {
	timeout := time.Duration(max(p.TimeoutSeconds, 1)) * time.Second
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	switch {
	case p.Exec != nil:
		out, err := m.exec(ctx, t.id, p.Exec.Command, timeout)
		if err != nil {
			return "", fmt.Errorf("%w: %s", err, out)
		}
		return out, nil
	case p.HTTPGet != nil:
		return HTTPGet(ctx, t.ip, p.HTTPGet, t.container)
	case p.TCPSocket != nil:
		return probeTCP(ctx, t, p.TCPSocket)
	case p.GRPC != nil:
		return probeGRPC(ctx, t, p.GRPC)
	}
	return "", errors.New("the probe has no handler")
}

// Port finds a port by number, or by name among the container's.
func Port(ref intstr.IntOrString, c *corev1.Container) (int, error) {
	if ref.Type == intstr.Int {
		return ref.IntValue(), nil
	}
	for _, p := range c.Ports {
		if p.Name == ref.StrVal {
			return int(p.ContainerPort), nil
		}
	}
	if n, err := strconv.Atoi(ref.StrVal); err == nil {
		return n, nil
	}
	return 0, fmt.Errorf("container %s has no port named %q", c.Name, ref.StrVal)
}

// maxBody bounds what is read of a probe's answer.
const maxBody = 10 << 10

var transport = &http.Transport{
	// The API: certificates of probes are not verified.
	TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
	DisableKeepAlives: true,
	Proxy:             nil,
}

// HTTPGet makes the request of a probe or a lifecycle hook; 200 to 399 is success.
func HTTPGet(ctx context.Context, ip string, h *corev1.HTTPGetAction, c *corev1.Container) (string, error) {
	port, err := Port(h.Port, c)
	if err != nil {
		return "", err
	}
	host := h.Host
	if host == "" {
		host = ip
	}
	u, err := url.Parse(h.Path)
	if err != nil {
		u = &url.URL{Path: h.Path}
	}
	u.Scheme, u.Host = "http", net.JoinHostPort(host, strconv.Itoa(port))
	if h.Scheme == corev1.URISchemeHTTPS {
		u.Scheme = "https"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("User-Agent", "kube-probe/1")
	req.Header.Set("Accept", "*/*")
	for _, x := range h.HTTPHeaders {
		if http.CanonicalHeaderKey(x.Name) == "Host" {
			req.Host = x.Value
		} else {
			req.Header.Add(x.Name, x.Value)
		}
	}
	client := &http.Client{Transport: transport, CheckRedirect: func(r *http.Request, via []*http.Request) error {
		if r.URL.Hostname() != via[0].URL.Hostname() || len(via) >= 10 {
			return http.ErrUseLastResponse // to another host: the answer stands for itself
		}
		return nil
	}}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return "", err
	}
	if resp.StatusCode < 200 || resp.StatusCode >= 400 {
		return "", fmt.Errorf("HTTP probe failed with statuscode: %d", resp.StatusCode)
	}
	return string(body), nil
}

func probeTCP(ctx context.Context, t target, a *corev1.TCPSocketAction) (string, error) {
	port, err := Port(a.Port, t.container)
	if err != nil {
		return "", err
	}
	host := a.Host
	if host == "" {
		host = t.ip
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return "", err
	}
	return "", conn.Close()
}

func probeGRPC(ctx context.Context, t target, a *corev1.GRPCAction) (string, error) {
	conn, err := grpc.NewClient(net.JoinHostPort(t.ip, strconv.Itoa(int(a.Port))), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithUserAgent("kube-probe/1"), grpc.WithNoProxy())
	if err != nil {
		return "", err
	}
	defer conn.Close()
	req := &grpc_health_v1.HealthCheckRequest{}
	if a.Service != nil {
		req.Service = *a.Service
	}
	resp, err := grpc_health_v1.NewHealthClient(conn).Check(metadata.NewOutgoingContext(ctx, nil), req)
	if err != nil {
		return "", err
	}
	if resp.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		return "", fmt.Errorf("service unhealthy (responded with %q)", resp.Status)
	}
	return resp.Status.String(), nil
}
