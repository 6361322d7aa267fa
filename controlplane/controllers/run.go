// Package controllers runs the cluster's controllers: ordinary clients of the
// API server, level-triggered, which may be ended and started anywhere at any
// time. Each has a folder of its own; Run wires them to shared informers, and
// gives each the identity by which it writes.
package controllers

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/strake-io/strake/controlplane/controllers/accounts"
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
	// API is how the API server is reached as system:kube-controller-manager. As that user is only read what controllers share, and
	// tokens are made for the ServiceAccounts by which they act.
	API *rest.Config
	// Metrics is by whom the metrics APIs are asked; nil: API, by the autoscaler's ServiceAccount.
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
	shared, err := kubernetes.NewForConfig(protobuf(cfg.API))
	if err != nil {
		return fmt.Errorf("controllers: %w", err)
	}
	own, err := accounts.New(ctx, cfg.API)
	if err != nil {
		return err
	}
	as := &identities{ctx: ctx, accounts: own, clients: map[string]kubernetes.Interface{}}
	defer as.shutdown()
	f := informers.NewSharedInformerFactoryWithOptions(shared, 0, informers.WithTransform(func(obj any) (any, error) {
		if m, ok := obj.(metav1.Object); ok {
			m.SetManagedFields(nil)
		}
		return obj, nil
	}))
	var runs []func(context.Context)
	for _, setup := range []func() (func(context.Context), error){
		func() (func(context.Context), error) {
			return namespace.Setup(as.client("namespace-controller"), as.metadata("namespace-controller"), f)
		},
		func() (func(context.Context), error) {
			return serviceaccount.Setup(as.client("service-account-controller"), as.client("root-ca-cert-publisher"), shared, f, ca)
		},
		func() (func(context.Context), error) {
			return certificates.Setup(as.client("certificate-controller"), f, cfg.CAFile, cfg.CAKeyFile)
		},
		func() (func(context.Context), error) {
			return bootstraptoken.Setup(as.client("bootstrap-signer"), as.client("token-cleaner"), cfg.Server, ca)
		},
		func() (func(context.Context), error) {
			return node.Setup(as.client("node-controller"), as.client("pod-garbage-collector"), f, as.recorder("node-controller", "node-controller"), cfg.PodCIDRs, cfg.NodeBits)
		},
		func() (func(context.Context), error) {
			return deployment.Setup(as.client("deployment-controller"), f, as.recorder("deployment-controller", "deployment-controller"))
		},
		func() (func(context.Context), error) {
			return replicaset.Setup(as.client("replicaset-controller"), f, as.recorder("replicaset-controller", "replicaset-controller"))
		},
		func() (func(context.Context), error) {
			return replicaset.SetupReplicationControllers(as.client("replication-controller"), f, as.recorder("replication-controller", "replication-controller"))
		},
		func() (func(context.Context), error) {
			return disruption.Setup(as.client("disruption-controller"), f, as.recorder("disruption-controller", "controllermanager"))
		},
		func() (func(context.Context), error) {
			return statefulset.Setup(as.client("statefulset-controller"), f, as.recorder("statefulset-controller", "statefulset-controller"))
		},
		func() (func(context.Context), error) {
			return daemonset.Setup(as.client("daemon-set-controller"), f, as.recorder("daemon-set-controller", "daemonset-controller"))
		},
		func() (func(context.Context), error) {
			return job.Setup(as.client("job-controller"), as.client("ttl-after-finished-controller"), f, as.recorder("job-controller", "job-controller"))
		},
		func() (func(context.Context), error) {
			return cronjob.Setup(as.client("cronjob-controller"), f, as.recorder("cronjob-controller", "cronjob-controller"))
		},
		func() (func(context.Context), error) {
			return endpointslice.Setup(as.client("endpointslice-controller"), f, as.recorder("endpointslice-controller", "endpoint-slice-controller"))
		},
		func() (func(context.Context), error) { return endpoints.Setup(as.client("endpoint-controller"), f) },
		func() (func(context.Context), error) {
			return endpointslicemirror.Setup(as.client("endpointslicemirroring-controller"), f, as.recorder("endpointslicemirroring-controller", "endpoint-slice-mirroring-controller"))
		},
		func() (func(context.Context), error) {
			metrics := cfg.Metrics
			if metrics == nil {
				metrics = own.Config("horizontal-pod-autoscaler")
			}
			return autoscaler.Setup(as.client("horizontal-pod-autoscaler"), metrics, f, as.recorder("horizontal-pod-autoscaler", "horizontal-pod-autoscaler"))
		},
		func() (func(context.Context), error) {
			return resourcequota.Setup(as.client("resourcequota-controller"), as.metadata("resourcequota-controller"), f, cfg.Quota)
		},
		func() (func(context.Context), error) {
			return persistentvolume.Setup(as.client("persistent-volume-binder"), as.client("local-volume-provisioner"), f, as.recorder("persistent-volume-binder", "persistentvolume-controller"))
		},
		func() (func(context.Context), error) {
			return ephemeralvolume.Setup(as.client("ephemeral-volume-controller"), f, as.recorder("ephemeral-volume-controller", "ephemeral-volume-controller"))
		},
		func() (func(context.Context), error) {
			return servicecidr.Setup(as.client("service-cidrs-controller"), f)
		},
		func() (func(context.Context), error) {
			return volumeprotection.Setup(as.client("pvc-protection-controller"), as.client("pv-protection-controller"), f)
		},
		func() (func(context.Context), error) {
			return policytypes.Setup(as.client("validatingadmissionpolicy-status-controller"), f)
		},
		func() (func(context.Context), error) {
			return garbage.Setup(as.client("generic-garbage-collector"), as.metadata("generic-garbage-collector")), nil
		},
	} {
		run, err := setup()
		if err != nil {
			return err
		}
		runs = append(runs, run)
	}
	if as.err != nil {
		return as.err
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
