// Command prometheus is Prometheus 3.9 without what its own command brings with it, its web interface and discovery in a dozen clouds: what it is told to
// scrape it discovers, scrapes and stores by Prometheus' libraries, and PromQL it answers at /api/v1/query, a line for each element. Of newer releases the
// module proxy lacks modules.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/discovery"
	_ "github.com/prometheus/prometheus/discovery/kubernetes"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/scrape"
	"github.com/prometheus/prometheus/tsdb"
)

func main() {
	file := flag.String("config.file", "prometheus.yml", "")
	folder := flag.String("storage.tsdb.path", "data", "")
	address := flag.String("web.listen-address", ":9090", "")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, *file, *folder, *address); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, file, folder, address string) error {
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	cfg, err := config.LoadFile(file, false, logger)
	if err != nil {
		return err
	}
	db, err := tsdb.Open(folder, logger, prometheus.DefaultRegisterer, tsdb.DefaultOptions(), nil)
	if err != nil {
		return err
	}
	defer db.Close()
	figures, err := discovery.CreateAndRegisterSDMetrics(prometheus.DefaultRegisterer)
	if err != nil {
		return err
	}
	found := discovery.NewManager(ctx, logger, prometheus.DefaultRegisterer, figures)
	scraper, err := scrape.NewManager(&scrape.Options{}, logger, nil, db, prometheus.DefaultRegisterer)
	if err != nil {
		return err
	}
	if err := scraper.ApplyConfig(cfg); err != nil {
		return err
	}
	jobs := map[string]discovery.Configs{}
	for _, j := range cfg.ScrapeConfigs {
		jobs[j.JobName] = j.ServiceDiscoveryConfigs
	}
	if err := found.ApplyConfig(jobs); err != nil {
		return err
	}

	engine := promql.NewEngine(promql.EngineOpts{
		Logger: logger, Reg: prometheus.DefaultRegisterer, MaxSamples: 1e6, Timeout: time.Minute, EnableAtModifier: true, EnableNegativeOffset: true,
	})
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.Handler())
	mux.HandleFunc("/api/v1/query", func(w http.ResponseWriter, r *http.Request) {
		q, err := engine.NewInstantQuery(r.Context(), db, promql.NewPrometheusQueryOpts(false, 0), r.FormValue("query"), time.Now())
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		defer q.Close()
		result := q.Exec(r.Context())
		if result.Err != nil {
			http.Error(w, result.Err.Error(), http.StatusUnprocessableEntity)
			return
		}
		fmt.Fprintln(w, result.Value)
	})
	srv := &http.Server{Addr: address, Handler: mux}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(found.Run)
	g.Go(func() error { return scraper.Run(found.SyncCh()) })
	g.Go(srv.ListenAndServe)
	g.Go(func() error {
		<-ctx.Done()
		scraper.Stop()
		return srv.Close()
	})
	return g.Wait()
}
