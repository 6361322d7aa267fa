package prober

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Of each result, - or +, is shown what it settles: . nothing, U up, D down.
func TestVerdict(t *testing.T) {
	for _, c := range []struct {
		kind             Kind
		success, failure int32
		current          bool
		results, want    string
	}{
		{Readiness, 1, 3, false, "-+--+---+", ".U.....DU"},
		{Readiness, 3, 1, false, "++-+++-+", ".....UD."},
		{Readiness, 1, 1, true, "+-+", ".DU"},
		{Readiness, 0, 0, false, "+-", "UD"}, // what no default was put into
		{Liveness, 1, 3, false, "+--+---", "......D"},
		{Liveness, 1, 1, false, "-", "D"},
		{Startup, 1, 3, false, "--+", "..U"},
		{Startup, 1, 3, false, "---", "..D"},
	} {
		v := newVerdict(c.kind, &corev1.Probe{SuccessThreshold: c.success, FailureThreshold: c.failure}, c.current)
		got := ""
		for _, r := range c.results {
			mark := "."
			if v.add(r == '+') {
				mark = map[bool]string{true: "U", false: "D"}[r == '+']
			}
			got += mark
		}
		if got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}

// rig runs exec probes of one container whose answers the test gives, in the time of a bubble.
type rig struct {
	m       *Manager
	began   time.Time
	mu      sync.Mutex
	err     error
	times   []time.Duration // of tries
	results []string
}

func newRig() *rig {
	r := &rig{began: time.Now(), err: errors.New("no")}
	r.m = New(func(context.Context, string, []string, time.Duration) (string, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.times = append(r.times, time.Since(r.began))
		return "", r.err
	}, func(x Result) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.results = append(r.results, fmt.Sprintf("%s %v %v", x.Kind, x.OK, x.Settled))
	})
	return r
}

func (r *rig) answer(err error) { r.mu.Lock(); r.err = err; r.mu.Unlock() }

func (r *rig) tries() int { r.mu.Lock(); defer r.mu.Unlock(); return len(r.times) }

func execProbe() *corev1.Probe {
	return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{}}, PeriodSeconds: 10, TimeoutSeconds: 1, SuccessThreshold: 1, FailureThreshold: 3}
}

func (r *rig) start(c *corev1.Container, seen *Seen) {
	c.Name = "c"
	r.m.Start(&corev1.Pod{}, c, "id", "", seen)
}

func TestReadinessComesQuickly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig()
		defer r.m.StopPod("")
		r.start(&corev1.Container{ReadinessProbe: execProbe()}, nil)
		time.Sleep(300 * time.Millisecond)
		r.answer(nil)
		time.Sleep(200 * time.Millisecond)
		if _, ok := r.m.State("", "c", "id"); !ok {
			t.Error("not ready half a second after its start")
		}
		n := r.tries()
		time.Sleep(30 * time.Second)
		if got := r.tries() - n; got != 3 {
			t.Errorf("%d tries in 30 s once ready, want one in a period", got)
		}
	})
}

func TestFigures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig()
		figures := prometheus.NewRegistry()
		figures.MustRegister(r.m)
		r.start(&corev1.Container{LivenessProbe: execProbe()}, nil)
		time.Sleep(15 * time.Second) // a failure at once and one after a period
		r.answer(nil)
		time.Sleep(10 * time.Second)
		told := func() (results []string) {
			families, err := figures.Gather()
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range families {
				for _, x := range f.Metric {
					results = append(results, fmt.Sprintf("%s %s %v %d", f.GetName(), x.Label[len(x.Label)-1].GetValue(), x.GetCounter().GetValue(), x.GetHistogram().GetSampleCount()))
				}
			}
			return results
		}
		if got, want := told(), []string{"prober_probe_duration_seconds Liveness 0 3", "prober_probe_total failed 2 0", "prober_probe_total successful 1 0"}; !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
		r.m.mu.Lock()
		gone := r.m.runs[key{container: "c"}]
		r.m.mu.Unlock()
		r.m.StopPod("")
		r.m.count(key{container: "c"}, gone, target{pod: &corev1.Pod{}, container: &corev1.Container{}}, Liveness, true, time.Second) // a probe that ended meanwhile
		if got := told(); len(got) > 0 {
			t.Errorf("of a pod that is gone: %q", got)
		}
	})
}

// Failures between periods do not make a threshold come earlier.
func TestEagerFailuresDoNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig()
		defer r.m.StopPod("")
		r.start(&corev1.Container{ReadinessProbe: execProbe(), LivenessProbe: execProbe()}, nil)
		time.Sleep(19 * time.Second)
		r.mu.Lock()
		if slices.Contains(r.results, "Liveness false true") {
			t.Error("killed before three periods")
		}
		r.mu.Unlock()
		time.Sleep(2 * time.Second)
		r.mu.Lock()
		defer r.mu.Unlock()
		var told int
		for _, x := range r.results {
			if x == "Readiness false false" {
				told++
			}
		}
		if told != 3 || !slices.Contains(r.results, "Liveness false true") {
			t.Errorf("results %q, want three failures of readiness, and death", r.results)
		}
	})
}

func TestInitialDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig()
		defer r.m.StopPod("")
		p := execProbe()
		p.InitialDelaySeconds = 7
		r.start(&corev1.Container{ReadinessProbe: p}, nil)
		time.Sleep(6900 * time.Millisecond)
		if r.tries() != 0 {
			t.Error("tried before its delay")
		}
		time.Sleep(200 * time.Millisecond)
		if r.tries() == 0 {
			t.Error("not tried after its delay")
		}
	})
}

func TestStartupGoesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig()
		defer r.m.StopPod("")
		r.start(&corev1.Container{StartupProbe: execProbe(), LivenessProbe: execProbe()}, nil)
		time.Sleep(15 * time.Second)
		if r.tries() != 2 {
			t.Errorf("%d tries in 15 s", r.tries())
		}
		if started, _ := r.m.State("", "c", "id"); started {
			t.Error("started")
		}
		r.answer(nil)
		time.Sleep(10 * time.Second)
		if started, ready := r.m.State("", "c", "id"); !started || !ready {
			t.Errorf("started %v, ready %v", started, ready)
		}
	})
}

func TestTakeOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig()
		defer r.m.StopPod("")
		r.start(&corev1.Container{StartupProbe: execProbe(), ReadinessProbe: execProbe()}, &Seen{Started: true, Ready: true})
		time.Sleep(time.Second)
		if _, ready := r.m.State("", "c", "id"); !ready {
			t.Error("not ready, though it was, and failed but once")
		}
		time.Sleep(25 * time.Second)
		if _, ready := r.m.State("", "c", "id"); ready {
			t.Error("still ready after three failures")
		}
		if started, _ := r.m.State("", "c", "id"); !started {
			t.Error("its startup was forgotten")
		}
	})
}

func TestOtherIncarnation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig()
		defer r.m.StopPod("")
		r.answer(nil)
		r.start(&corev1.Container{ReadinessProbe: execProbe()}, nil)
		time.Sleep(time.Second)
		if _, ready := r.m.State("", "c", "other"); ready {
			t.Error("another container is ready")
		}
	})
}

func TestHandlers(t *testing.T) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/ok":
			fmt.Fprintf(w, "%s %s", r.Host, r.Header.Get("X-Test"))
		case "/away":
			http.Redirect(w, r, "http://198.51.100.1/", http.StatusFound)
		case "/loop":
			http.Redirect(w, r, "/ok", http.StatusFound)
		case "/slow":
			<-r.Context().Done()
		case "/big":
			fmt.Fprint(w, strings.Repeat("x", 100_000))
		default:
			http.Error(w, "no", http.StatusTeapot)
		}
	}))
	defer web.Close()
	secure := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "tls") }))
	defer secure.Close()
	port := func(url string) int {
		_, p, err := net.SplitHostPort(strings.TrimPrefix(strings.TrimPrefix(url, "http://"), "https://"))
		if err != nil {
			t.Fatal(err)
		}
		n, _ := strconv.Atoi(p)
		return n
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv, checks := grpc.NewServer(), health.NewServer()
	checks.SetServingStatus("ill", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	grpc_health_v1.RegisterHealthServer(srv, checks)
	go srv.Serve(listener)
	defer srv.Stop()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closedPort := closed.Addr().(*net.TCPAddr).Port
	closed.Close()

	get := func(path string, change func(*corev1.HTTPGetAction)) corev1.ProbeHandler {
		a := &corev1.HTTPGetAction{Path: path, Port: intstr.FromInt(port(web.URL))}
		if change != nil {
			change(a)
		}
		return corev1.ProbeHandler{HTTPGet: a}
	}
	ill, gone := "ill", "gone"
	grpcPort := int32(listener.Addr().(*net.TCPAddr).Port)
	for name, c := range map[string]struct {
		h         corev1.ProbeHandler
		says, err string
	}{
		"ok": {get("/ok", func(a *corev1.HTTPGetAction) {
			a.HTTPHeaders = []corev1.HTTPHeader{{Name: "host", Value: "x.example"}, {Name: "X-Test", Value: "1"}}
		}), "x.example 1", ""},
		"named port":       {get("/ok", func(a *corev1.HTTPGetAction) { a.Port = intstr.FromString("web") }), "", ""},
		"no such port":     {get("/ok", func(a *corev1.HTTPGetAction) { a.Port = intstr.FromString("nope") }), "", `no port named "nope"`},
		"bad status":       {get("/nope", nil), "", "HTTP probe failed with statuscode: 418"},
		"followed":         {get("/loop", nil), "127.0.0.1", ""},
		"to another host":  {get("/away", nil), "", ""},
		"slow":             {get("/slow", nil), "", "context deadline exceeded"},
		"body is bounded":  {get("/big", nil), "x", ""},
		"odd path":         {get("%zz:", nil), "", "418"},
		"tls, unverified":  {corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Scheme: corev1.URISchemeHTTPS, Port: intstr.FromInt(port(secure.URL))}}, "tls", ""},
		"tcp":              {corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt(port(web.URL))}}, "", ""},
		"tcp, refused":     {corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt(closedPort)}}, "", "refused"},
		"grpc":             {corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: grpcPort}}, "SERVING", ""},
		"grpc, ill":        {corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: grpcPort, Service: &ill}}, "", "NOT_SERVING"},
		"grpc, no service": {corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: grpcPort, Service: &gone}}, "", "unknown service"},
		"nothing":          {corev1.ProbeHandler{}, "", "no handler"},
	} {
		t.Run(name, func(t *testing.T) {
			m := New(nil, nil)
			tg := target{pod: &corev1.Pod{}, container: &corev1.Container{Name: "c", Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: int32(port(web.URL))}}}, ip: "127.0.0.1"}
			got, err := m.probe(t.Context(), tg, &corev1.Probe{ProbeHandler: c.h, TimeoutSeconds: 1})
			switch {
			case c.err == "" && (err != nil || !strings.Contains(got, c.says)):
				t.Errorf("%q, %v, want %q", got, err, c.says)
			case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)):
				t.Errorf("%q, %v, want error %q", got, err, c.err)
			}
			if len(got) > maxBody {
				t.Errorf("%d bytes were read", len(got))
			}
		})
	}
}
