package ui

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/strake-io/strake/netpol"
	"github.com/strake-io/strake/netpol/analysis"
)

//go:embed page
var page embed.FS

// maxBody is how much a browser may send, in bytes.
const maxBody = 4 << 20

// Config is what the page shows.
type Config struct {
	Source string                                 // for people: "the cluster", "manifests/"
	Read   func(context.Context) (Reading, error) // called at the start, and when the user asks for it; never twice at a time
	// Records tells the folders with records of flows; nil: there are none.
	Records func() ([]string, error)
}

// Reading is a State, and where its objects stand: a file and a line, where it is from files.
type Reading struct {
	State netpol.State
	Where func(kind, namespace, name string) (file string, line int)
}

// Server serves the page.
type Server struct {
	config Config
	token  string
	hosts  map[string]bool // by which it may be asked
	files  http.Handler
	open   chan struct{} // has one of each stream of flows

	reading sync.Mutex
	mu      sync.Mutex
	now     *snapshot
}

// snapshot is a State that was read, with what was made of it.
type snapshot struct {
	Reading
	matrix []byte // JSON
}

// New reads the State, and makes a server that is to be reached at an address of its own.
func New(ctx context.Context, c Config, listener net.Addr) (*Server, error) {
	addr, err := netip.ParseAddrPort(listener.String())
	if err != nil {
		return nil, fmt.Errorf("policy ui: %s is no address with a port: %w", listener, err)
	}
	secret := make([]byte, 32)
	if _, err := rand.Read(secret); err != nil {
		return nil, err
	}
	files, err := fs.Sub(page, "page")
	if err != nil {
		return nil, err
	}
	s := &Server{config: c, token: hex.EncodeToString(secret), hosts: map[string]bool{addr.String(): true}, files: http.FileServerFS(files), open: make(chan struct{}, maxStreams)}
	if addr.Addr().IsLoopback() {
		s.hosts[net.JoinHostPort("localhost", fmt.Sprint(addr.Port()))] = true
	}
	_, err = s.read(ctx)
	return s, err
}

// Path is that by which a browser is let in: it has the token.
func (s *Server) Path() string { return "/?token=" + s.token }

const cookie = "strake-policy"

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	if !s.hosts[r.Host] {
		fail(w, http.StatusMisdirectedRequest, fmt.Errorf("this is not %s: open the address that `strake policy ui` has printed", r.Host))
		return
	}
	if origin := r.Header.Get("Origin"); origin != "" && origin != "http://"+r.Host {
		fail(w, http.StatusForbidden, fmt.Errorf("%s is another site", origin))
		return
	}
	if r.URL.Path == "/" && r.URL.Query().Has("token") {
		if !s.knows(r.URL.Query().Get("token")) {
			fail(w, http.StatusUnauthorized, errToken)
			return
		}
		http.SetCookie(w, &http.Cookie{Name: s.cookie(r), Value: s.token, Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode})
		http.Redirect(w, r, "/", http.StatusSeeOther)
		return
	}
	if c, err := r.Cookie(s.cookie(r)); err != nil || !s.knows(c.Value) {
		fail(w, http.StatusUnauthorized, errToken)
		return
	}
	s.route(w, r)
}

var errToken = errors.New("open the address that `strake policy ui` has printed: it has the token")

// cookie is the name of the cookie: ports of one host share cookies, and several pages may be open.
func (s *Server) cookie(r *http.Request) string {
	_, port, err := net.SplitHostPort(r.Host)
	if err != nil {
		return cookie
	}
	return cookie + "-" + port
}

func (s *Server) knows(token string) bool {
	return subtle.ConstantTimeCompare([]byte(token), []byte(s.token)) == 1
}

func (s *Server) route(w http.ResponseWriter, r *http.Request) {
	routes := map[string]struct {
		method string
		serve  func(*http.Request) (any, error)
	}{
		"/api/matrix":   {http.MethodGet, s.matrix},
		"/api/reload":   {http.MethodPost, s.reload},
		"/api/policy":   {http.MethodGet, s.policy},
		"/api/findings": {http.MethodGet, s.findings},
		"/api/try":      {http.MethodPost, s.try},
		"/api/shadow":   {http.MethodGet, s.shadow},
	}
	if r.URL.Path == "/api/flows" && r.Method == http.MethodGet {
		s.flows(w, r)
		return
	}
	route, ok := routes[r.URL.Path]
	if !ok {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			fail(w, http.StatusMethodNotAllowed, fmt.Errorf("%s %s is not served", r.Method, r.URL.Path))
			return
		}
		s.files.ServeHTTP(w, r)
		return
	}
	if r.Method != route.method {
		w.Header().Set("Allow", route.method)
		fail(w, http.StatusMethodNotAllowed, fmt.Errorf("%s wants %s", r.URL.Path, route.method))
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	answer, err := route.serve(r)
	if err != nil {
		code := http.StatusInternalServerError
		var asked badRequest
		if errors.As(err, &asked) {
			code = asked.code
		}
		fail(w, code, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if raw, ok := answer.([]byte); ok {
		_, _ = w.Write(raw) // a browser that has gone
		return
	}
	_ = json.NewEncoder(w).Encode(answer)
}

// badRequest is an error of who asks.
type badRequest struct {
	code int
	err  error
}

func (b badRequest) Error() string { return b.err.Error() }

func fail(w http.ResponseWriter, code int, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": err.Error()})
}

// read reads the State and makes its matrix. What there was stays if that fails.
func (s *Server) read(ctx context.Context) (*snapshot, error) {
	s.reading.Lock()
	defer s.reading.Unlock()
	reading, err := s.config.Read(ctx)
	if err != nil {
		return nil, err
	}
	m := analysis.New(reading.State, analysis.Options{}).Matrix(nil, nil)
	raw, err := json.Marshal(struct {
		Source  string             `json:"source"`
		Read    time.Time          `json:"read"`
		Ends    []analysis.End     `json:"ends"`
		Answers []*analysis.Answer `json:"answers"`
		Rows    [][]int32          `json:"rows"`
		Counts  analysis.Counts    `json:"counts"`
		Known   []known            `json:"policies"`
	}{s.config.Source, time.Now(), m.Ends, m.Answers, m.Rows, m.Counts, policiesOf(reading.State)})
	if err != nil {
		return nil, err
	}
	n := &snapshot{reading, raw}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = n
	return n, nil
}

func (s *Server) current() *snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}
