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

// ServeEcho serves HTTP and UDP on addr until ctx ends: any request is answered with an Answer, as JSON
// where the client accepts that, else as one line of text; any datagram is answered with such a line.
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
	packets, err := net.ListenPacket("udp", addr)
	if err != nil {
		return fmt.Errorf("echo: %w", err)
	}
	defer packets.Close()
	go answerPackets(packets, pod)
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

func answerPackets(conn net.PacketConn, pod string) {
	var buf [1]byte // what a datagram says does not matter
	for {
		_, from, err := conn.ReadFrom(buf[:])
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error of an earlier answer
		}
		if _, err := conn.WriteTo(fmt.Appendf(nil, "%s answers UDP from %s\n", pod, from), from); err != nil {
			fmt.Fprintln(os.Stderr, "echo:", err)
		}
	}
}
