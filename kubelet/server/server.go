// Package server is the kubelet's HTTPS API, which the API server and metrics
// collectors speak to: logs, exec, attach, port-forward, pods and health. Every
// request is authenticated by client certificate or token and authorized by the
// API server's own word (SubjectAccessReview).
package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/proxy"
	"k8s.io/client-go/kubernetes"
	cri "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-client/pkg/logs"
	"k8s.io/klog/v2"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// Pods is what the server asks about this node's pods.
type Pods interface {
	Get(namespace, name string) (*corev1.Pod, bool)
	List() []*corev1.Pod
	ContainerID(ctx context.Context, p *corev1.Pod, container string, previous bool) (*runtimeapi.ContainerStatus, bool)
	SandboxID(ctx context.Context, uid types.UID) (string, bool)
}

// Config says where to serve, and whom.
type Config struct {
	Addrs []netip.AddrPort
	// Certificate returns what to serve with; it is asked for every connection.
	Certificate  func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	ClientCAFile string
	NodeName     string
	Client       kubernetes.Interface
	Runtime      cri.RuntimeService
	Pods         Pods
	Stats        Stats
	Probes       prometheus.Collector // what probes have shown; nil: nothing
	// Healthy tells what is wrong with this kubelet; nil: nothing.
	Healthy func() error
	// RemoveVolume removes the data of a local volume of this node.
	RemoveVolume func(ctx context.Context, name string) error
	// CalledBy is told who has shown a certificate of the cluster's CA, and from where; nil: nobody is told. It must not wait.
	CalledBy func(user string, from netip.Addr)
}

// Stats tells what is used.
type Stats interface {
	Summary(context.Context) (*statsapi.Summary, error)
	WriteResource(context.Context, io.Writer) error
	WriteCadvisor(context.Context, io.Writer) error
}

type server struct {
	Config
	mu      sync.Mutex
	allowed map[string]time.Time // decisions of the API server, until when
}

// decisionTTL is how long an authorization is remembered.
const decisionTTL = 10 * time.Second

// Run serves until ctx ends.
func Run(ctx context.Context, cfg Config) error {
	ca, err := os.ReadFile(cfg.ClientCAFile)
	if err != nil {
		return fmt.Errorf("kubelet API: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return fmt.Errorf("kubelet API: %s holds no certificate", cfg.ClientCAFile)
	}
	srv := &http.Server{
		Handler: Handler(cfg), ReadHeaderTimeout: 10 * time.Second,
		// Streams are upgraded connections, which HTTP/2 does not have.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
		TLSConfig:    &tls.Config{MinVersion: tls.VersionTLS12, ClientCAs: pool, ClientAuth: tls.VerifyClientCertIfGiven, GetCertificate: cfg.Certificate},
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, a := range cfg.Addrs {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", a.String())
		if err != nil {
			srv.Close()
			return fmt.Errorf("kubelet API: %w", err)
		}
		g.Go(func() error {
			if err := srv.ServeTLS(l, "", ""); err != nil && !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("kubelet API: %w", err)
			}
			return nil
		})
	}
	g.Go(func() error {
		<-gctx.Done()
		srv.Close()
		return nil
	})
	return g.Wait()
}

// Handler serves the API to whom the API server allows it.
func Handler(cfg Config) http.Handler {
	s := &server{Config: cfg, allowed: map[string]time.Time{}}
	mux := http.NewServeMux()
	// What may be done is a subresource of the node: proxy allows everything that has none of its own ("Kubelet
	// authentication/authorization").
	handle := func(pattern string, h http.HandlerFunc, subresources ...string) {
		mux.Handle(pattern, s.guard(subresources, h))
	}
	for _, p := range []string{"/healthz", "/healthz/ping", "/healthz/log", "/healthz/syncloop"} {
		handle("GET "+p, s.healthz, "healthz", "proxy")
	}
	handle("GET /pods", s.pods, "pods", "proxy")
	handle("GET /runningpods/", s.pods, "pods", "proxy")
	handle("GET /stats/summary", s.summary, "stats")
	handle("GET /metrics", metrics(cfg).ServeHTTP, "metrics")
	handle("GET /metrics/resource", text(cfg.Stats.WriteResource), "metrics")
	handle("GET /metrics/cadvisor", text(cfg.Stats.WriteCadvisor), "metrics")
	handle("GET /metrics/probes", probes(cfg).ServeHTTP, "metrics")
	handle("GET /containerLogs/{namespace}/{pod}/{container}", s.logs, "proxy")
	for _, m := range []string{"GET", "POST"} {
		handle(m+" /exec/{namespace}/{pod}/{container}", s.exec, "proxy")
		handle(m+" /attach/{namespace}/{pod}/{container}", s.attach, "proxy")
		handle(m+" /portForward/{namespace}/{pod}", s.portForward, "proxy")
	}
	handle("DELETE /localVolumes/{name}", s.removeVolume, "proxy")
	handle("/", http.NotFound, "proxy")
	return mux
}

// guard lets in who may use one of these subresources of this node.
func (s *server) guard(subresources []string, next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, err := s.authenticate(r)
		if err != nil {
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
		for _, subresource := range subresources {
			ok, err := s.authorize(r.Context(), user, verb(r.Method), subresource)
			if err != nil {
				klog.ErrorS(err, "Authorization of a request to the kubelet", "user", user.Username)
				http.Error(w, "Authorization error: "+err.Error(), http.StatusInternalServerError)
				return
			}
			if ok {
				next(w, r)
				return
			}
		}
		http.Error(w, fmt.Sprintf("Forbidden (user=%s, verb=%s, resource=nodes, subresource(s)=%v)", user.Username, verb(r.Method), subresources), http.StatusForbidden)
	})
}

func verb(method string) string {
	switch method {
	case http.MethodPost:
		return "create"
	case http.MethodPut:
		return "update"
	case http.MethodPatch:
		return "patch"
	case http.MethodDelete:
		return "delete"
	}
	return "get"
}

// authenticate knows client certificates of the cluster's CA, and bearer tokens that the API server knows.
func (s *server) authenticate(r *http.Request) (authenticationv1.UserInfo, error) {
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		c := r.TLS.VerifiedChains[0][0]
		if from, err := netip.ParseAddrPort(r.RemoteAddr); err == nil && s.CalledBy != nil {
			s.CalledBy(c.Subject.CommonName, from.Addr().Unmap())
		}
		return authenticationv1.UserInfo{Username: c.Subject.CommonName, Groups: append(c.Subject.Organization, "system:authenticated")}, nil
	}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return authenticationv1.UserInfo{}, errors.New("no credentials")
	}
	review, err := s.Client.AuthenticationV1().TokenReviews().Create(r.Context(), &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}, metav1.CreateOptions{})
	if err != nil {
		return authenticationv1.UserInfo{}, err
	}
	if !review.Status.Authenticated {
		return authenticationv1.UserInfo{}, errors.New("the token is not known")
	}
	return review.Status.User, nil
}

func (s *server) authorize(ctx context.Context, u authenticationv1.UserInfo, verb, subresource string) (bool, error) {
	key := strings.Join(append([]string{u.Username, verb, subresource}, u.Groups...), "\x00")
	s.mu.Lock()
	until, known := s.allowed[key]
	s.mu.Unlock()
	if known && time.Now().Before(until) {
		return true, nil
	}
	review, err := s.Client.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: u.Username, UID: u.UID, Groups: u.Groups,
		ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: verb, Version: "v1", Resource: "nodes", Subresource: subresource, Name: s.NodeName},
	}}, metav1.CreateOptions{})
	if err != nil {
		return false, err
	}
	if review.Status.Allowed {
		s.mu.Lock()
		s.allowed[key] = time.Now().Add(decisionTTL)
		s.mu.Unlock()
	}
	return review.Status.Allowed, nil
}

// container finds what a path names.
func (s *server) container(w http.ResponseWriter, r *http.Request, previous bool) (*runtimeapi.ContainerStatus, bool) {
	namespace, name, container := r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("container")
	p, ok := s.Pods.Get(namespace, name)
	if !ok {
		http.Error(w, fmt.Sprintf("pod %q does not exist on this node", namespace+"/"+name), http.StatusNotFound)
		return nil, false
	}
	c, ok := s.Pods.ContainerID(r.Context(), p, container, previous)
	if !ok {
		what := "container"
		if previous {
			what = "previous terminated container"
		}
		http.Error(w, fmt.Sprintf("%s %q in pod %q not found", what, container, name), http.StatusBadRequest)
	}
	return c, ok
}

func (s *server) logs(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	c, ok := s.container(w, r, q.Get("previous") == "true")
	if !ok {
		return
	}
	o := &logs.LogOptions{Follow: q.Get("follow") == "true", Timestamp: q.Get("timestamps") == "true"}
	var seconds *int64
	for name, dst := range map[string]**int64{"tailLines": &o.TailLines, "limitBytes": &o.LimitBytes, "sinceSeconds": &seconds} {
		if v := q.Get(name); v != "" {
			n, err := strconv.ParseInt(v, 10, 64)
			if err != nil || n < 0 {
				http.Error(w, fmt.Sprintf("%s: %q is no number", name, v), http.StatusBadRequest)
				return
			}
			*dst = &n
		}
	}
	if seconds != nil {
		o.Since = time.Now().Add(-time.Duration(*seconds) * time.Second)
	}
	if v := q.Get("sinceTime"); v != "" {
		t, err := time.Parse(time.RFC3339Nano, v)
		if err != nil {
			http.Error(w, fmt.Sprintf("sinceTime: %v", err), http.StatusBadRequest)
			return
		}
		o.Since = t
	}
	out := &flusher{w: w}
	if f, ok := w.(http.Flusher); ok {
		out.f = f
		f.Flush() // the client sees that it is connected before the first line
	}
	err := logs.ReadLogs(r.Context(), c.LogPath, c.Id, o, s.Runtime, out, out)
	if err != nil && r.Context().Err() == nil {
		fmt.Fprintf(w, "%v\n", err)
	}
}

// flusher sends each line at once.
type flusher struct {
	mu sync.Mutex
	w  io.Writer
	f  http.Flusher
}

func (f *flusher) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.w.Write(p)
	if f.f != nil {
		f.f.Flush()
	}
	return n, err
}

func on(q url.Values, name string) bool { return q.Get(name) == "1" || q.Get(name) == "true" }

func (s *server) exec(w http.ResponseWriter, r *http.Request) {
	c, ok := s.container(w, r, false)
	if !ok {
		return
	}
	q := r.URL.Query()
	resp, err := s.Runtime.Exec(r.Context(), &runtimeapi.ExecRequest{
		ContainerId: c.Id, Cmd: q["command"], Tty: on(q, "tty"), Stdin: on(q, "input"), Stdout: on(q, "output"), Stderr: on(q, "error"),
	})
	s.stream(w, r, resp.GetUrl(), err)
}

func (s *server) attach(w http.ResponseWriter, r *http.Request) {
	c, ok := s.container(w, r, false)
	if !ok {
		return
	}
	q := r.URL.Query()
	resp, err := s.Runtime.Attach(r.Context(), &runtimeapi.AttachRequest{
		ContainerId: c.Id, Tty: on(q, "tty"), Stdin: on(q, "input"), Stdout: on(q, "output"), Stderr: on(q, "error"),
	})
	s.stream(w, r, resp.GetUrl(), err)
}

func (s *server) portForward(w http.ResponseWriter, r *http.Request) {
	namespace, name := r.PathValue("namespace"), r.PathValue("pod")
	p, ok := s.Pods.Get(namespace, name)
	if !ok {
		http.Error(w, fmt.Sprintf("pod %q does not exist on this node", namespace+"/"+name), http.StatusNotFound)
		return
	}
	id, ok := s.Pods.SandboxID(r.Context(), p.UID)
	if !ok {
		http.Error(w, fmt.Sprintf("pod %q is not running", name), http.StatusBadRequest)
		return
	}
	var ports []int32
	for _, v := range r.URL.Query()["port"] {
		if n, err := strconv.ParseInt(v, 10, 32); err == nil {
			ports = append(ports, int32(n))
		}
	}
	resp, err := s.Runtime.PortForward(r.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: id, Port: ports})
	s.stream(w, r, resp.GetUrl(), err)
}

// removeVolume is for the controller of volumes, once a volume's claim is gone.
func (s *server) removeVolume(w http.ResponseWriter, r *http.Request) {
	if err := s.RemoveVolume(r.Context(), r.PathValue("name")); err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
	}
}

// stream passes the connection on to the container runtime's streaming server, which listens on loopback.
func (s *server) stream(w http.ResponseWriter, r *http.Request, target string, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	u, err := url.Parse(target)
	if err == nil && u.Hostname() != "" {
		if ip := net.ParseIP(u.Hostname()); ip == nil || !ip.IsLoopback() {
			err = fmt.Errorf("the container runtime streams from %s, which is not loopback", u.Host)
		}
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	h := proxy.NewUpgradeAwareHandler(u, nil, false, true, responder{})
	h.UseLocationHost = true
	h.ServeHTTP(w, r)
}

type responder struct{}

func (responder) Error(w http.ResponseWriter, _ *http.Request, err error) {
	klog.V(2).InfoS("Stream failed", "err", err)
	http.Error(w, err.Error(), http.StatusInternalServerError)
}
