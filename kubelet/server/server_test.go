package server

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	cri "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// node is the kubelet's API with one pod, ns/p, whose container c logs into a file.
type node struct {
	cri.RuntimeService
	srv     *httptest.Server
	dir     string
	mu      sync.Mutex
	done    bool // the container has ended
	sars    []string
	callers []string
}

func (n *node) Get(namespace, name string) (*corev1.Pod, bool) {
	return n.List()[0], namespace == "ns" && name == "p"
}

func (n *node) List() []*corev1.Pod {
	return []*corev1.Pod{{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "u"}, Status: corev1.PodStatus{Phase: corev1.PodRunning}}}
}

func (n *node) ContainerID(_ context.Context, _ *corev1.Pod, name string, previous bool) (*runtimeapi.ContainerStatus, bool) {
	id, file := "now", "1.log"
	if previous {
		id, file = "before", "0.log"
	}
	return &runtimeapi.ContainerStatus{Id: id, LogPath: filepath.Join(n.dir, file)}, name == "c"
}

func (n *node) SandboxID(context.Context, types.UID) (string, bool) { return "", false }

func (n *node) ContainerStatus(context.Context, string, bool) (*runtimeapi.ContainerStatusResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := &runtimeapi.ContainerStatus{State: runtimeapi.ContainerState_CONTAINER_RUNNING}
	if n.done {
		s.State = runtimeapi.ContainerState_CONTAINER_EXITED
	}
	return &runtimeapi.ContainerStatusResponse{Status: s}, nil
}

func (n *node) Exec(context.Context, *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	return &runtimeapi.ExecResponse{Url: "http://192.0.2.1:1/exec"}, nil
}

func (n *node) Attach(context.Context, *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	return nil, errors.New("no such container")
}

type figures struct{}

func (figures) Summary(context.Context) (*statsapi.Summary, error) {
	return &statsapi.Summary{Node: statsapi.NodeStats{NodeName: "node-1"}}, nil
}
func (figures) WriteResource(_ context.Context, w io.Writer) error {
	_, err := fmt.Fprintln(w, "resource_scrape_error 0")
	return err
}
func (figures) WriteCadvisor(_ context.Context, w io.Writer) error {
	_, err := fmt.Fprintln(w, "container_scrape_error 0")
	return err
}

// allowed is what each user may do: verb and subresource.
var allowed = map[string][]string{
	"admin":  {"get proxy", "create proxy", "get stats", "get metrics"},
	"prom":   {"get metrics"},
	"viewer": {"get pods", "get healthz"},
	"nobody": {},
}

func serve(t *testing.T) *node {
	n := &node{dir: t.TempDir()}
	client := fake.NewClientset()
	client.PrependReactor("create", "tokenreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
		r := a.(clienttesting.CreateAction).GetObject().(*authenticationv1.TokenReview)
		if user, ok := strings.CutPrefix(r.Spec.Token, "token-of-"); ok {
			r.Status = authenticationv1.TokenReviewStatus{Authenticated: true, User: authenticationv1.UserInfo{Username: user}}
		}
		return true, r, nil
	})
	client.PrependReactor("create", "subjectaccessreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
		r := a.(clienttesting.CreateAction).GetObject().(*authorizationv1.SubjectAccessReview)
		x := r.Spec.ResourceAttributes
		if r.Spec.User == "trouble" {
			return true, nil, errors.New("the API server is down")
		}
		n.mu.Lock()
		n.sars = append(n.sars, r.Spec.User+" "+x.Verb+" "+x.Subresource)
		n.mu.Unlock()
		r.Status.Allowed = x.Resource == "nodes" && x.Name == "node-1" && slices.Contains(allowed[r.Spec.User], x.Verb+" "+x.Subresource)
		return true, r, nil
	})
	n.srv = httptest.NewUnstartedServer(Handler(Config{NodeName: "node-1", Client: client, Runtime: n, Pods: n, Stats: figures{}, CalledBy: func(user string, from netip.Addr) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.callers = append(n.callers, user+" "+from.String())
	}}))
	n.srv.TLS = &tls.Config{ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: x509.NewCertPool()}
	n.srv.StartTLS()
	t.Cleanup(n.srv.Close)
	return n
}

func (n *node) ask(t *testing.T, method, path, user string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, n.srv.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if user != "" {
		req.Header.Set("Authorization", "Bearer "+user)
	}
	resp, err := n.srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// Nothing is served to strangers, and to others only what the API server says.
func TestAccess(t *testing.T) {
	n := serve(t)
	if err := os.WriteFile(filepath.Join(n.dir, "1.log"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	paths := []struct{ method, path, who string }{
		{"GET", "/healthz", "viewer"}, {"GET", "/healthz/ping", "viewer"}, {"GET", "/pods", "viewer"}, {"GET", "/runningpods/", "viewer"}, {"GET", "/stats/summary", ""}, {"GET", "/metrics", "prom"},
		{"GET", "/metrics/resource", "prom"}, {"GET", "/metrics/cadvisor", "prom"}, {"GET", "/metrics/probes", "prom"}, {"GET", "/containerLogs/ns/p/c", ""}, {"GET", "/exec/ns/p/c?command=x", ""}, {"POST", "/exec/ns/p/c?command=x", ""},
		{"GET", "/attach/ns/p/c", ""}, {"POST", "/attach/ns/p/c", ""}, {"GET", "/portForward/ns/p", ""}, {"POST", "/portForward/ns/p", ""}, {"GET", "/debug/pprof/", ""}, {"GET", "/", ""}, {"DELETE", "/pods", ""},
	}
	for _, p := range paths {
		for user, want := range map[string]int{"": 401, "rubbish": 401, "token-of-nobody": 403, "token-of-trouble": 500} {
			if code, body := n.ask(t, p.method, p.path, user); code != want && code != http.StatusMethodNotAllowed {
				t.Errorf("%s %s by %q: %d %s, want %d", p.method, p.path, user, code, body, want)
			}
		}
		for _, user := range []string{"admin", "viewer", "prom"} {
			code, body := n.ask(t, p.method, p.path, "token-of-"+user)
			may := user == p.who || user == "admin" && p.method != "DELETE"
			if (code != 403) != may && code != http.StatusMethodNotAllowed {
				t.Errorf("%s %s by %s: %d %s", p.method, p.path, user, code, body)
			}
		}
	}
}

// TestPathTricks comes by paths that mean something else to who judges them than to who serves them, as a user who may only see figures.
func TestPathTricks(t *testing.T) {
	n := serve(t)
	if err := os.WriteFile(filepath.Join(n.dir, "1.log"), []byte("2026-01-01T00:00:00Z stdout F private\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{
		"/metrics/../containerLogs/ns/p/c", "/metrics/..%2fcontainerLogs/ns/p/c", "/metrics%2f..%2fcontainerLogs%2fns%2fp%2fc", "//containerLogs/ns/p/c", "/./containerLogs/ns/p/c",
		"/metrics/%2e%2e/containerLogs/ns/p/c", "/containerLogs//ns/p/c", "/containerLogs/ns/p/c/", "/containerLogs/ns/p/c;/metrics", "/containerLogs/ns/p/c?/metrics", "/metrics/resource/../../pods",
		"/METRICS/../pods", "/pods/", "/exec/ns/p/c?command=x&/metrics", "/metrics/../exec/ns/p/c?command=x", "/metrics\\..\\pods",
	} {
		if code, body := n.ask(t, "GET", path, "token-of-prom"); code < 400 || strings.Contains(body, "private") || strings.Contains(body, "PodList") {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	// Names are looked up, not put together to paths: one that is a path is nobody's.
	for _, path := range []string{"/containerLogs/ns/..%2fns%2fp/c", "/containerLogs/ns/p/..%2fc", "/containerLogs/ns/p/c%2f..%2fc", "/containerLogs/ns%00/p/c", "/containerLogs/%2e%2e/p/c"} {
		if code, body := n.ask(t, "GET", path, "token-of-admin"); code < 400 || strings.Contains(body, "private") {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	// The proof that there was something to be found.
	if code, body := n.ask(t, "GET", "/containerLogs/ns/p/c", "token-of-admin"); code != http.StatusOK || !strings.Contains(body, "private") {
		t.Errorf("the log itself: %d %s", code, body)
	}
}

func TestDecisionIsRemembered(t *testing.T) {
	n := serve(t)
	for range 3 {
		n.ask(t, "GET", "/stats/summary", "token-of-admin")
		n.ask(t, "GET", "/stats/summary", "token-of-nobody")
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	var yes, no int
	for _, s := range n.sars {
		switch s {
		case "admin get stats":
			yes++
		case "nobody get stats":
			no++
		}
	}
	if yes != 1 || no != 3 {
		t.Errorf("asked %d times for who may, %d times for who may not: a refusal must not be remembered", yes, no)
	}
}

// A client certificate of the cluster's CA is as good as a token; one of another CA is not let in.
func TestClientCertificate(t *testing.T) {
	n := serve(t)
	ca, caKey := authority(t, "cluster")
	other, otherKey := authority(t, "other")
	n.srv.TLS.ClientCAs.AddCert(ca)
	get := func(cert tls.Certificate) (int, error) {
		transport := n.srv.Client().Transport.(*http.Transport).Clone()
		transport.TLSClientConfig.Certificates = []tls.Certificate{cert}
		defer transport.CloseIdleConnections()
		resp, err := (&http.Client{Transport: transport}).Get(n.srv.URL + "/stats/summary")
		if err != nil {
			return 0, err
		}
		resp.Body.Close()
		return resp.StatusCode, nil
	}
	for user, want := range map[string]int{"admin": 200, "nobody": 403} {
		if code, err := get(issue(t, user, ca, caKey)); err != nil || code != want {
			t.Errorf("%s: %d, %v, want %d", user, code, err, want)
		}
	}
	if code, err := get(issue(t, "admin", other, otherKey)); err == nil && code != 401 {
		t.Errorf("a certificate of another authority: %d", code)
	}
	n.ask(t, "GET", "/pods", "token-of-admin")
	// Who calls is told by certificate alone, and only by those of the cluster.
	slices.Sort(n.callers)
	if want := []string{"admin 127.0.0.1", "nobody 127.0.0.1"}; !slices.Equal(n.callers, want) {
		t.Errorf("called by %q, want %q", n.callers, want)
	}
}

func authority(t *testing.T, name string) (*x509.Certificate, *ecdsa.PrivateKey) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func issue(t *testing.T, user string, ca *x509.Certificate, caKey *ecdsa.PrivateKey) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: user}, NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca, &key.PublicKey, caKey)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestAnswers(t *testing.T) {
	n := serve(t)
	for path, want := range map[string]string{"/healthz": "ok", "/stats/summary": `"nodeName":"node-1"`, "/metrics/resource": "resource_scrape_error 0", "/metrics": "kubelet_running_pods 1"} {
		if code, body := n.ask(t, "GET", path, "token-of-admin"); code != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %.200s, want %s", path, code, body, want)
		}
	}
	var list corev1.PodList
	_, body := n.ask(t, "GET", "/pods", "token-of-admin")
	if err := json.Unmarshal([]byte(body), &list); err != nil || list.Kind != "PodList" || len(list.Items) != 1 || list.Items[0].Name != "p" {
		t.Errorf("/pods: %s, %v", body, err)
	}
	for path, want := range map[string]struct {
		code int
		text string
	}{
		"/containerLogs/ns/other/c":            {404, `pod "ns/other" does not exist`},
		"/containerLogs/ns/p/other":            {400, `container "other" in pod "p" not found`},
		"/containerLogs/ns/p/x?previous=true":  {400, `previous terminated container "x" in pod "p" not found`},
		"/containerLogs/ns/p/c?tailLines=-1":   {400, "tailLines"},
		"/containerLogs/ns/p/c?tailLines=x":    {400, "tailLines"},
		"/containerLogs/ns/p/c?sinceTime=x":    {400, "sinceTime"},
		"/containerLogs/ns/p/c?sinceSeconds=x": {400, "sinceSeconds"},
		"/exec/ns/p/c?command=x&output=1":      {500, "which is not loopback"},
		"/exec/ns/none/c":                      {404, "does not exist"},
		"/attach/ns/p/c?output=1":              {500, "no such container"},
		"/portForward/ns/p":                    {400, "is not running"},
	} {
		if code, body := n.ask(t, "GET", path, "token-of-admin"); code != want.code || !strings.Contains(body, want.text) {
			t.Errorf("%s: %d %s, want %d %s", path, code, body, want.code, want.text)
		}
	}
}

func TestLogs(t *testing.T) {
	n := serve(t)
	old := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	recent := time.Now().Add(-5 * time.Second).UTC()
	line := func(at time.Time, stream, tag, text string) string {
		return fmt.Sprintf("%s %s %s %s\n", at.Format("2006-01-02T15:04:05.000000000Z07:00"), stream, tag, text)
	}
	write := func(name string, lines ...string) {
		if err := os.WriteFile(filepath.Join(n.dir, name), []byte(strings.Join(lines, "")), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("0.log", line(old, "stdout", "F", "before"))
	write("1.log", line(old, "stdout", "F", "one"), line(old.Add(time.Second), "stderr", "F", "two"), line(old.Add(2*time.Second), "stdout", "P", "thr"), line(old.Add(2*time.Second), "stdout", "F", "ee"), line(recent, "stdout", "F", "now"))
	n.done = true
	for query, want := range map[string]string{
		"":                                "one\ntwo\nthree\nnow\n",
		"?previous=true":                  "before\n",
		"?tailLines=1":                    "now\n",
		"?tailLines=0":                    "",
		"?limitBytes=5":                   "one\nt",
		"?sinceSeconds=60":                "now\n",
		"?sinceTime=2026-01-02T03:04:06Z": "two\nthree\nnow\n",
		"?tailLines=5&timestamps=true&limitBytes=36": "2026-01-02T03:04:05.000000000Z one\n2",
		"?follow=true": "one\ntwo\nthree\nnow\n",
	} {
		if code, body := n.ask(t, "GET", "/containerLogs/ns/p/c"+query, "token-of-admin"); code != 200 || body != want {
			t.Errorf("%s: %d %q, want %q", query, code, body, want)
		}
	}
}

// Following goes on through a rotation, and ends with the container.
func TestFollow(t *testing.T) {
	n := serve(t)
	path := filepath.Join(n.dir, "1.log")
	add := func(text string) {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		fmt.Fprintf(f, "%s stdout F %s\n", time.Now().UTC().Format(time.RFC3339Nano), text)
	}
	add("first")
	req, err := http.NewRequestWithContext(t.Context(), "GET", n.srv.URL+"/containerLogs/ns/p/c?follow=true", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer token-of-admin")
	resp, err := n.srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	r := bufio.NewReader(resp.Body)
	expect := func(want string) {
		t.Helper()
		if got, err := r.ReadString('\n'); err != nil || got != want+"\n" {
			t.Fatalf("%q, %v, want %q", got, err, want)
		}
	}
	expect("first")
	add("second")
	expect("second")
	watched(t, n.dir) // the reader notices a rotation only from then on
	if err := os.Rename(path, path+".20260101-000000"); err != nil {
		t.Fatal(err)
	}
	add("third")
	expect("third")
	n.mu.Lock()
	n.done = true
	n.mu.Unlock()
	if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
		t.Errorf("after its end: %q, %v", rest, err)
	}
}

// watched waits until somebody watches a folder by inotify.
func watched(t *testing.T, dir string) {
	t.Helper()
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	mark := fmt.Sprintf("ino:%x ", info.Sys().(*syscall.Stat_t).Ino)
	for t.Context().Err() == nil {
		files, err := filepath.Glob("/proc/self/fdinfo/*")
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if data, err := os.ReadFile(f); err == nil && strings.Contains(string(data), "inotify") && strings.Contains(string(data), mark) {
				return
			}
		}
		time.Sleep(time.Millisecond)
	}
}
