// Package controllers runs the cluster's controllers: ordinary clients of the
// API server, level-triggered, which may be ended and started anywhere at any
// time. Each has a folder of its own; Run wires them to shared informers.
package controllers

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"

	"github.com/strake-io/strake/controlplane/controllers/autoscaler"
	"github.com/strake-io/strake/controlplane/controllers/bootstraptoken"
	"github.com/strake-io/strake/controlplane/controllers/certificates"
	"github.com/strake-io/strake/controlplane/controllers/cronjob"
	"github.com/strake-io/strake/controlplane/controllers/daemonset"
	"github.com/strake-io/strake/controlplane/controllers/deployment"
	"github.com/strake-io/strake/controlplane/controllers/disruption"
	"github.com/strake-io/strake/controlplane/controllers/endpoints"
	"github.com/strake-io/strake/controlplane/controllers/endpointslice"
	"github.com/strake-io/strake/controlplane/controllers/endpointslicemirror"
	"github.com/strake-io/strake/controlplane/controllers/ephemeralvolume"
	"github.com/strake-io/strake/controlplane/controllers/garbage"
	"github.com/strake-io/strake/controlplane/controllers/job"
	"github.com/strake-io/strake/controlplane/controllers/namespace"
	"github.com/strake-io/strake/controlplane/controllers/node"
	"github.com/strake-io/strake/controlplane/controllers/persistentvolume"
	"github.com/strake-io/strake/controlplane/controllers/policytypes"
	"github.com/strake-io/strake/controlplane/controllers/replicaset"
	"github.com/strake-io/strake/controlplane/controllers/resourcequota"
	"github.com/strake-io/strake/controlplane/controllers/serviceaccount"
	"github.com/strake-io/strake/controlplane/controllers/servicecidr"
	"github.com/strake-io/strake/controlplane/controllers/statefulset"
	"github.com/strake-io/strake/controlplane/controllers/volumeprotection"
)

// Config says whom the controllers work for.
type Config struct {
	Client   kubernetes.Interface
	Metadata metadata.Interface
	// Metrics is by whom the metrics APIs are asked.
	Metrics  *rest.Config
	PodCIDRs []netip.Prefix // ranges of all pods, at most one of each family, the primary family's first
	// NodeBits is the prefix length of a node's part of a range; nil: 24 of IPv4, 64 of IPv6.
	NodeBits func(netip.Prefix) int
	// CAFile and CAKeyFile are the cluster's CA: published to every namespace, and what signs certificates of nodes and users.
	CAFile, CAKeyFile string
	Server            string // https URL of the API server, for machines that join
	Quota             resourcequota.Evaluators
}

// Run runs all controllers until ctx ends.
func Run(ctx context.Context, cfg Config) error {
	ca, err := os.ReadFile(cfg.CAFile)
	if err != nil {
		return fmt.Errorf("controllers: CA: %w", err)
	}
	f := informers.NewSharedInformerFactoryWithOptions(cfg.Client, 0, informers.WithTransform(func(obj any) (any, error) {
		if m, ok := obj.(metav1.Object); ok {
			m.SetManagedFields(nil)
		}
		return obj, nil
	}))
	events := record.NewBroadcaster(record.WithContext(ctx))
	defer events.Shutdown()
	events.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: cfg.Client.CoreV1().Events("")})
	recorder := func(component string) record.EventRecorder {
		return events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: component})
	}
	var runs []func(context.Context)
	for _, setup := range []func() (func(context.Context), error){
		func() (func(context.Context), error) { return namespace.Setup(cfg.Client, cfg.Metadata, f) },
		func() (func(context.Context), error) { return serviceaccount.Setup(cfg.Client, f, ca) },
		func() (func(context.Context), error) {
			return certificates.Setup(cfg.Client, f, cfg.CAFile, cfg.CAKeyFile)
		},
		func() (func(context.Context), error) { return bootstraptoken.Setup(cfg.Client, cfg.Server, ca) },
		func() (func(context.Context), error) {
			return node.Setup(cfg.Client, f, recorder("node-controller"), cfg.PodCIDRs, cfg.NodeBits)
		},
		func() (func(context.Context), error) {
			return deployment.Setup(cfg.Client, f, recorder("deployment-controller"))
		},
		func() (func(context.Context), error) {
			return replicaset.Setup(cfg.Client, f, recorder("replicaset-controller"))
		},
		func() (func(context.Context), error) {
			return replicaset.SetupReplicationControllers(cfg.Client, f, recorder("replication-controller"))
		},
		func() (func(context.Context), error) {
			return disruption.Setup(cfg.Client, f, recorder("controllermanager"))
		},
		func() (func(context.Context), error) {
			return statefulset.Setup(cfg.Client, f, recorder("statefulset-controller"))
		},
		func() (func(context.Context), error) {
			return daemonset.Setup(cfg.Client, f, recorder("daemonset-controller"))
		},
		func() (func(context.Context), error) { return job.Setup(cfg.Client, f, recorder("job-controller")) },
		func() (func(context.Context), error) {
			return cronjob.Setup(cfg.Client, f, recorder("cronjob-controller"))
		},
		func() (func(context.Context), error) {
			return endpointslice.Setup(cfg.Client, f, recorder("endpoint-slice-controller"))
		},
		func() (func(context.Context), error) { return endpoints.Setup(cfg.Client, f) },
		func() (func(context.Context), error) {
			return endpointslicemirror.Setup(cfg.Client, f, recorder("endpoint-slice-mirroring-controller"))
		},
		func() (func(context.Context), error) {
			return autoscaler.Setup(cfg.Client, cfg.Metrics, f, recorder("horizontal-pod-autoscaler"))
		},
		func() (func(context.Context), error) {
			return resourcequota.Setup(cfg.Client, cfg.Metadata, f, cfg.Quota)
		},
		func() (func(context.Context), error) {
			return persistentvolume.Setup(cfg.Client, f, recorder("persistentvolume-controller"))
		},
		func() (func(context.Context), error) {
			return ephemeralvolume.Setup(cfg.Client, f, recorder("ephemeral-volume-controller"))
		},
		func() (func(context.Context), error) { return servicecidr.Setup(cfg.Client, f) },
		func() (func(context.Context), error) { return volumeprotection.Setup(cfg.Client, f) },
		func() (func(context.Context), error) { return policytypes.Setup(cfg.Client, f) },
		func() (func(context.Context), error) { return garbage.Setup(cfg.Client, cfg.Metadata), nil },
	} {
		run, err := setup()
		if err != nil {
			return err
		}
		runs = append(runs, run)
	}
	f.Start(ctx.Done())
	var wg sync.WaitGroup
	for _, run := range runs {
		wg.Go(func() { run(ctx) })
	}
	wg.Wait()
	f.Shutdown()
	return nil
}
