// Package dnsserve runs the resolver alone, without root and without BPF, against any API server.
package dnsserve

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/cmd/strake/memory"
	"github.com/strake-io/strake/dns"
	"github.com/strake-io/strake/mirror"
)

// Config says what is served and where.
type Config struct {
	Kubeconfig string // none: that of the pod's ServiceAccount
	Listen     []netip.AddrPort
	DNS        dns.Config
	ConfigMap  string // NAMESPACE/NAME of one that is followed, and counts instead of DNS where it is there; none: no such
	// Where it is asked how it is, and for metrics: IP:port or :port; none: nowhere.
	Health, Ready, Metrics string
	// Lameduck is how long it goes on answering after it was told to end, so that clients can be told to go elsewhere.
	Lameduck time.Duration
}

// gcPercent makes the heap grow by half between collections: most of what there is stays.
const gcPercent = 50

// Run serves until ctx ends.
func Run(ctx context.Context, c Config) error {
	client, err := connect(c.Kubeconfig)
	if err != nil {
		return err
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	return run(ctx, c, client, true)
}

func connect(kubeconfig string) (kubernetes.Interface, error) {
	cfg, err := rest.InClusterConfig()
	if kubeconfig != "" {
		cfg, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	if errors.Is(err, rest.ErrNotInCluster) {
		return nil, errors.New("no way to an API server: this is no pod; give one with --kubeconfig")
	}
	if err != nil {
		return nil, fmt.Errorf("way to the API server: %w", err)
	}
	cfg.UserAgent = "strake-dns"
	cfg.ContentType, cfg.AcceptContentTypes = "application/vnd.kubernetes.protobuf", "application/vnd.kubernetes.protobuf,application/json"
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("way to the API server: %w", err)
	}
	return client, nil
}

// run serves; alone: nobody else on this machine may have the ports.
func run(ctx context.Context, c Config, client kubernetes.Interface, alone bool) error {
	objects := mirror.New(client, "")
	var self []netip.Addr
	for _, a := range c.Listen {
		if !a.Addr().IsUnspecified() {
			self = append(self, a.Addr())
		}
		// A server on another port of the address may well be the upstream: only ours is avoided.
		c.DNS.Avoid = append(c.DNS.Avoid, a)
	}
	records := dns.NewRecords(objects, self...)
	if c.DNS.Pods == dns.PodsVerified {
		records.FollowPods(objects)
	}
	server, err := dns.NewServer(records, c.DNS, c.Listen...)
	if err != nil {
		return err
	}
	server.Alone = alone
	registry := prometheus.NewRegistry()
	registry.MustRegister(append(server.Collectors(), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))...)

	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	context.AfterFunc(ctx, func() {
		if c.Lameduck > 0 {
			klog.InfoS("Told to end; answering on for a while", "lameduck", c.Lameduck)
			time.Sleep(c.Lameduck)
		}
		stop()
	})
	g, serving := errgroup.WithContext(serving)
	handlers := map[string]*http.ServeMux{}
	for path, e := range map[string]struct {
		at string
		h  http.Handler
	}{
		"/health":  {c.Health, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "OK") })},
		"/ready":   {c.Ready, readiness(ctx, server)},
		"/metrics": {c.Metrics, promhttp.HandlerFor(registry, promhttp.HandlerOpts{})},
	} {
		if e.at == "" {
			continue
		}
		if handlers[e.at] == nil {
			handlers[e.at] = http.NewServeMux()
		}
		handlers[e.at].Handle(path, e.h)
	}
	for at, mux := range handlers {
		h := &http.Server{Addr: at, Handler: mux, ReadHeaderTimeout: 10 * time.Second}
		g.Go(func() error {
			if err := h.ListenAndServe(); err != nil && !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("health, readiness or metrics on %s: %w", at, err)
			}
			return nil
		})
		g.Go(func() error {
			<-serving.Done()
			return h.Close()
		})
	}
	g.Go(func() error { objects.Run(serving); return nil })
	g.Go(func() error {
		if objects.Wait(serving) {
			memory.GiveBack() // lists of a large cluster take several times what is kept of them
		}
		return nil
	})
	if c.ConfigMap != "" {
		namespace, name, _ := strings.Cut(c.ConfigMap, "/")
		g.Go(func() error { return dns.FollowConfigMap(serving, client, namespace, name, server, c.DNS) })
	}
	g.Go(func() error {
		klog.InfoS("Answering", "at", c.Listen, "zones", server.Config().Zones, "upstream", server.Config().Upstream.Servers)
		err := server.Run(serving)
		if errors.Is(err, os.ErrPermission) {
			err = fmt.Errorf("%w: ports below 1024 need root or CAP_NET_BIND_SERVICE; choose another with --listen, such as :1053", err)
		}
		return err
	})
	return g.Wait()
}

func readiness(ctx context.Context, s *dns.Server) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		switch {
		case ctx.Err() != nil:
			http.Error(w, "ending", http.StatusServiceUnavailable)
		case !s.Ready():
			http.Error(w, "kubernetes", http.StatusServiceUnavailable) // what is not ready, as CoreDNS says it
		default:
			fmt.Fprint(w, "OK")
		}
	})
}
