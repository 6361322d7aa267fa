package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/controlplane/pki"
	"github.com/strake-io/strake/tests/lab"
)

// relayVariable makes this program a relay that serves by a cluster's certificates, from the folder that it names.
const relayVariable = "STRAKE_BENCH_RELAY"

const relayPort = 22443

// runRelay is the least that a server of watches can do: by TLS and HTTP, what is posted to it goes to all who get it, as it is. It does not return in
// such a process.
func runRelay() {
	certs := os.Getenv(relayVariable)
	if certs == "" {
		return
	}
	f := pki.Files{Dir: certs}
	s := &http.Server{Addr: fmt.Sprintf("%s:%d", lab.NodeIP, relayPort), Handler: &relay{all: map[chan []byte]bool{}}}
	fmt.Fprintln(os.Stderr, "relay:", s.ListenAndServeTLS(f.APIServer().Cert, f.APIServer().Key))
	os.Exit(1)
}

type relay struct {
	mu  sync.Mutex
	all map[chan []byte]bool
}

func (r *relay) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.Method == http.MethodPost {
		event, err := io.ReadAll(req.Body)
		if err != nil {
			return
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		for c := range r.all {
			select {
			case c <- event:
			default: // it reads no more: its watch ends, which it takes for an error, and the others go on
				delete(r.all, c)
				close(c)
			}
		}
		return
	}
	c := make(chan []byte, 10_000)
	r.mu.Lock()
	r.all[c] = true
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.all, c)
	}()
	w.(http.Flusher).Flush()
	for {
		select {
		case <-req.Context().Done():
			return
		case event, ok := <-c:
			if !ok {
				return
			}
			if _, err := w.Write(event); err != nil {
				return
			}
			if len(c) == 0 {
				w.(http.Flusher).Flush()
			}
		}
	}
}

// startRelay runs a relay in the lab. Its address is returned, its process, and how to end it.
func (p *plane) startRelay(ctx context.Context, client http.RoundTripper) (host string, pid int, stop func(), err error) {
	exe, err := os.Executable()
	if err != nil {
		return "", 0, nil, err
	}
	l, err := layout.New(p.lab.Data)
	if err != nil {
		return "", 0, nil, err
	}
	cmd := p.lab.Command(context.Background(), exe)
	cmd.Env, cmd.Stderr = append(os.Environ(), relayVariable+"="+l.PKI()), os.Stderr
	if err := cmd.Start(); err != nil {
		return "", 0, nil, err
	}
	stop = func() {
		cmd.Process.Kill()
		cmd.Wait() // it was killed
	}
	host = fmt.Sprintf("https://%s:%d", lab.NodeIP, relayPort)
	for began := time.Now(); ; {
		err := post(ctx, client, host, nil)
		if err == nil {
			return host, cmd.Process.Pid, stop, nil
		}
		if ctx.Err() != nil || time.Since(began) > 30*time.Second {
			stop()
			return "", 0, nil, fmt.Errorf("relay: %w", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func post(ctx context.Context, client http.RoundTripper, url string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	res, err := client.RoundTrip(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("POST %s: %s", url, res.Status)
	}
	return nil
}
