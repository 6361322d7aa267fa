// Command certmanager is cert-manager's controller, webhook and CA injector in one binary, with the issuers that need nobody outside the cluster: those
// that sign themselves, and CAs. cert-manager's own commands are modules of their own that the module proxy does not have; what they call is taken
// from its library, which is why this module's name lies below its.
package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/cert-manager/cert-manager/internal/apis/config/shared"
	config "github.com/cert-manager/cert-manager/internal/apis/config/webhook"
	"github.com/cert-manager/cert-manager/internal/webhook"
	cmscheme "github.com/cert-manager/cert-manager/pkg/client/clientset/versioned/scheme"
	"github.com/cert-manager/cert-manager/pkg/controller"
	"github.com/cert-manager/cert-manager/pkg/controller/cainjector"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/approver"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/ca"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/selfsigned"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/issuing"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/keymanager"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/readiness"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/requestmanager"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/revisionmanager"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/trigger"
	_ "github.com/cert-manager/cert-manager/pkg/controller/clusterissuers"
	_ "github.com/cert-manager/cert-manager/pkg/controller/issuers"
	_ "github.com/cert-manager/cert-manager/pkg/issuer/ca"
	_ "github.com/cert-manager/cert-manager/pkg/issuer/selfsigned"
	logf "github.com/cert-manager/cert-manager/pkg/logs"
	"github.com/cert-manager/cert-manager/pkg/util"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	runs := map[string]func(context.Context, *pflag.FlagSet) error{"controller": runController, "webhook": runWebhook, "cainjector": runInjector}
	if len(os.Args) < 2 || runs[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "certmanager controller|webhook|cainjector")
		os.Exit(2)
	}
	// The chart gives flags of cert-manager's; those that matter here are read.
	f := pflag.NewFlagSet(os.Args[1], pflag.ExitOnError)
	f.ParseErrorsAllowlist.UnknownFlags = true
	if err := runs[os.Args[1]](ctx, f); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func runController(ctx context.Context, f *pflag.FlagSet) error {
	namespace := f.String("cluster-resource-namespace", "", "")
	if err := f.Parse(os.Args[2:]); err != nil {
		return err
	}
	factory, err := controller.NewContextFactory(ctx, controller.ContextOptions{
		IssuerOptions: controller.IssuerOptions{ClusterResourceNamespace: *namespace},
		CertificateOptions: controller.CertificateOptions{
			EnableOwnerRef: true, CertificateRequestMinimumBackoffDuration: time.Hour, CertificateRequestMaximumBackoffDuration: 32 * time.Hour,
		},
	})
	if err != nil {
		return err
	}
	shared, err := factory.Build()
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	for name, build := range controller.Known() {
		c, err := build(factory)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		wg.Go(func() {
			if err := c.Run(5, ctx); err != nil {
				logf.FromContext(ctx).Error(err, "controller ended", "controller", name)
			}
		})
	}
	shared.SharedInformerFactory.Start(ctx.Done())
	shared.KubeSharedInformerFactory.Start(ctx.Done())
	go func() { // the chart's liveness probe
		_ = http.ListenAndServe(":9403", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	}()
	wg.Wait()
	return nil
}

func runWebhook(ctx context.Context, f *pflag.FlagSet) error {
	dynamic := shared.DynamicServingConfig{LeafDuration: 7 * 24 * time.Hour}
	f.StringVar(&dynamic.SecretNamespace, "dynamic-serving-ca-secret-namespace", "", "")
	f.StringVar(&dynamic.SecretName, "dynamic-serving-ca-secret-name", "", "")
	f.StringSliceVar(&dynamic.DNSNames, "dynamic-serving-dns-names", nil, "")
	port := f.Int32("secure-port", 10250, "")
	if err := f.Parse(os.Args[2:]); err != nil {
		return err
	}
	s, err := webhook.NewCertManagerWebhookServer(logf.Log, config.WebhookConfiguration{
		SecurePort: *port, HealthzPort: 6080, MetricsListenAddress: "0", TLSConfig: shared.TLSConfig{Dynamic: dynamic},
	})
	if err != nil {
		return err
	}
	return s.Run(ctx)
}

func runInjector(ctx context.Context, f *pflag.FlagSet) error {
	election := f.String("leader-election-namespace", "", "")
	if err := f.Parse(os.Args[2:]); err != nil {
		return err
	}
	types := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{scheme.AddToScheme, cmscheme.AddToScheme, apiextensionsv1.AddToScheme, apiregistrationv1.AddToScheme} {
		if err := add(types); err != nil {
			return err
		}
	}
	ctrl.SetLogger(logf.Log)
	rc, err := ctrl.GetConfig()
	if err != nil {
		return err
	}
	mgr, err := ctrl.NewManager(util.RestConfigWithUserAgent(rc, "cainjector"), ctrl.Options{
		Scheme: types, Metrics: server.Options{BindAddress: "0"},
		// The injectors watch the metadata of Secrets, and take one that they don't find for one that is not there yet: a cache of Secrets, which
		// may learn of it later than they do, would have them wait for ever.
		Client:         client.Options{Cache: &client.CacheOptions{DisableFor: []client.Object{&corev1.Secret{}}}},
		LeaderElection: true, LeaderElectionID: "cert-manager-cainjector-leader-election", LeaderElectionNamespace: *election, LeaderElectionReleaseOnCancel: true,
	})
	if err != nil {
		return err
	}
	if err := cainjector.RegisterAllInjectors(ctx, mgr, cainjector.SetupOptions{EnableCertificatesDataSource: true, EnabledReconcilersFor: map[string]bool{
		"mutatingwebhookconfiguration": true, "validatingwebhookconfiguration": true, "apiservice": true, "customresourcedefinition": true,
	}}); err != nil {
		return err
	}
	return mgr.Start(ctx)
}
