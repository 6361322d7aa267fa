package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
)

// healthChecks serve the healthCheckNodePorts of Services: there load balancers ask whether this node has endpoints.
type healthChecks struct {
	healthy func() bool

	mu    sync.Mutex
	addrs []netip.Addr
	ports map[types.NamespacedName]*healthCheck
}

// healthCheck is that of one Service.
type healthCheck struct {
	port    uint16
	local   int
	servers map[netip.Addr]*server
}

// healthCheckPort is where load balancers ask for a Service; 0: nowhere.
func healthCheckPort(svc *corev1.Service) uint16 {
	if svc.Spec.Type != corev1.ServiceTypeLoadBalancer || svc.Spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal {
		return 0
	}
	if p := svc.Spec.HealthCheckNodePort; p > 0 && p < 1<<16 {
		return uint16(p)
	}
	return 0
}

func newHealthChecks(addrs []netip.Addr, healthy func() bool) *healthChecks {
	return &healthChecks{healthy: healthy, addrs: addrs, ports: map[types.NamespacedName]*healthCheck{}}
}

// set serves a Service's port from now on, with its number of endpoints on this node; port 0 ends it. On an error it serves on what
// addresses it could get; call it again.
func (h *healthChecks) set(name types.NamespacedName, port uint16, local int) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.ports[name]
	if c != nil && c.port != port {
		c.close()
		delete(h.ports, name)
		c = nil
	}
	if port == 0 {
		return nil
	}
	if c == nil {
		c = &healthCheck{port: port, servers: map[netip.Addr]*server{}}
		h.ports[name] = c
	}
	c.local = local
	for a, s := range c.servers {
		if !slices.Contains(h.addrs, a) {
			s.Close()
			delete(c.servers, a)
		}
	}
	var errs []error
	for _, a := range h.addrs {
		if c.servers[a] != nil {
			continue // who asks there notices nothing of changes elsewhere
		}
		l, err := listen(netip.AddrPortFrom(a, port))
		if err != nil {
			errs = append(errs, fmt.Errorf("healthCheckNodePort %d of Service %s: %w", port, name, err))
			continue
		}
		c.servers[a] = serve(l, h.handler(name))
	}
	return errors.Join(errs...)
}

// move says where the ports are served from now on; set must follow for each Service.
func (h *healthChecks) move(addrs []netip.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.addrs = addrs
}

// close ends all of them.
func (h *healthChecks) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.ports {
		c.close()
	}
	clear(h.ports)
}

func (c *healthCheck) close() {
	for _, s := range c.servers {
		s.Close()
	}
	clear(c.servers)
}

// handler answers as kube-proxy does.
func (h *healthChecks) handler(name types.NamespacedName) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		h.mu.Lock()
		local := 0
		if c := h.ports[name]; c != nil {
			local = c.local
		}
		h.mu.Unlock()
		var body struct {
			Service struct {
				Namespace string `json:"namespace"`
				Name      string `json:"name"`
			} `json:"service"`
			LocalEndpoints      int  `json:"localEndpoints"`
			ServiceProxyHealthy bool `json:"serviceProxyHealthy"`
		}
		body.Service.Namespace, body.Service.Name, body.LocalEndpoints, body.ServiceProxyHealthy = name.Namespace, name.Name, local, h.healthy()
		w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(local))
		code := http.StatusOK
		if local == 0 || !body.ServiceProxyHealthy {
			code = http.StatusServiceUnavailable
		}
		respond(w, code, body)
	})
}

// respond writes an object as JSON.
func respond(w http.ResponseWriter, code int, body any) {
	text, err := json.MarshalIndent(body, "", "\t")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_, _ = w.Write(append(text, '\n')) // who asked has gone otherwise
}

func listen(at netip.AddrPort) (net.Listener, error) {
	return (&net.ListenConfig{}).Listen(context.Background(), "tcp", at.String())
}

// server answers on a listener of its own.
type server struct {
	*http.Server
	listener net.Listener
}

// Close ends it. Its port is free then, also if it had not begun to answer: the http.Server would not know the listener yet.
func (s *server) Close() {
	s.Server.Close()
	s.listener.Close()
}

// serve answers on l until it is closed. Whoever sends its request slowly does not get to finish it.
func serve(l net.Listener, h http.Handler) *server {
	s := &http.Server{Handler: h, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	go func() {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			klog.ErrorS(err, "No more answers", "address", l.Addr())
		}
	}()
	return &server{s, l}
}
