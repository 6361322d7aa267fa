package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

// Answer is what the echo server says of itself and of the request.
type Answer struct {
	Pod    string `json:"pod"`
	Node   string `json:"node,omitempty"`
	Client string `json:"client"`
	Method string `json:"method"`
	Path   string `json:"path"`
}

// ServeEcho serves HTTP on addr until ctx ends: any request is answered with an Answer, as JSON
// where the client accepts that, else as one line of text.
func ServeEcho(ctx context.Context, addr string) error {
	pod, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("echo: %w", err)
	}
	node := os.Getenv("NODE_NAME")
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.RemoteAddr)
		if err != nil {
			host = r.RemoteAddr
		}
		a := Answer{Pod: pod, Node: node, Client: host, Method: r.Method, Path: r.URL.Path}
		if strings.Contains(r.Header.Get("Accept"), "application/json") {
			w.Header().Set("Content-Type", "application/json")
			json.NewEncoder(w).Encode(a)
			return
		}
		fmt.Fprintf(w, "%s answers %s %s from %s\n", a.Pod, a.Method, a.Path, a.Client)
	})
	srv := &http.Server{Addr: addr, Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		<-ctx.Done()
		sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		srv.Shutdown(sctx)
	}()
	if err := srv.ListenAndServe(); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("echo: %w", err)
	}
	return nil
}
