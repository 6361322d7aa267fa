package dns

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/miekg/dns"
	"k8s.io/klog/v2"
)

// Forgotten is how many answers of servers outside are remembered no more.
type Forgotten struct {
	Kernel   int `json:"kernel"`
	Resolver int `json:"resolver"`
}

// Forget makes resolver and kernel forget what servers outside have said of a name and all names below it, "." for all. What is being asked
// is not remembered either.
func (s *Server) Forget(name string) (f Forgotten, err error) {
	name = canonical(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	f.Resolver = s.settings.Load().cache.forget(name) // first: what is in neither place comes from a server
	if s.kernel != nil {
		f.Kernel, err = s.kernel.Forget(name)
	}
	return f, err
}

const lookEvery = time.Second // for other upstream servers

// followServers forgets what servers have said when others take their place, until ctx ends.
func (s *Server) followServers(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for again := false; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, f := range s.settings.Load().forwarders() {
			again = f.servers.changed() || again
		}
		if !again {
			continue
		}
		n, err := s.Forget(".")
		if again = err != nil; again {
			klog.ErrorS(err, "There are other upstream DNS servers, and what the former have said is not all forgotten yet, trying again")
			continue
		}
		klog.InfoS("There are other upstream DNS servers: what the former have said is forgotten", "answers", n.Resolver, "in the kernel", n.Kernel)
	}
}

// forgetting is what comes of a line of ServeForget.
type forgetting struct {
	Forgotten
	Error string `json:"error,omitempty"`
}

const patienceOfForget = 10 * time.Second // with who connects and does not ask, or does not answer

// ServeForget forgets names, one a line, and says in JSON what came of each, to who connects to a unix socket, until ctx ends. The socket is its
// user's alone.
func (s *Server) ServeForget(ctx context.Context, path string) {
	serve(ctx, path, func(conn net.Conn) {
		lines, out := bufio.NewScanner(io.LimitReader(conn, 1<<20)), json.NewEncoder(conn)
		for conn.SetDeadline(time.Now().Add(patienceOfForget)) == nil && lines.Scan() {
			var f forgetting
			name, err := Forgettable(lines.Text())
			if err == nil {
				f.Forgotten, err = s.Forget(name)
			}
			if err != nil {
				f.Error = err.Error()
			}
			if out.Encode(f) != nil {
				return
			}
		}
	})
}

// Forgettable is a name as Forget takes it: lower-case, with the trailing dot. All is ".", and nothing else is.
func Forgettable(text string) (string, error) {
	name := strings.TrimSpace(text)
	if _, ok := dns.IsDomainName(name); !ok || name == "" {
		return "", fmt.Errorf("dns: %q is no domain name", text)
	}
	return canonical(name), nil
}

// AskToForget asks who serves ServeForget at a socket to forget a name and all names below it, "." for all.
func AskToForget(ctx context.Context, socket, name string) (Forgotten, error) {
	name, err := Forgettable(name)
	if err != nil {
		return Forgotten{}, err
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return Forgotten{}, fmt.Errorf("dns: the resolver's socket: %w", err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	var f forgetting
	if err = conn.SetDeadline(time.Now().Add(patienceOfForget)); err == nil {
		if _, err = fmt.Fprintln(conn, name); err == nil {
			err = json.NewDecoder(conn).Decode(&f)
		}
	}
	if err != nil {
		return Forgotten{}, fmt.Errorf("dns: the resolver at %s did not say that it forgot: %w", socket, err)
	}
	if f.Error != "" {
		return f.Forgotten, errors.New(f.Error)
	}
	return f.Forgotten, nil
}
