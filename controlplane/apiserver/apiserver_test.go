package apiserver_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"github.com/strake-io/strake/controlplane/apiserver"
	"github.com/strake-io/strake/controlplane/apiserver/apiservertest"
)

// api is a server that the tests of a run share, each in a namespace of its own.
type api struct {
	*testing.T
	server  *apiservertest.Server
	client  kubernetes.Interface
	dynamic dynamic.Interface
	ns      string
}

// TestAPI runs what can share a server.
func TestAPI(t *testing.T) {
	s := apiservertest.Start(t, func(c *apiserver.Config) {
		c.Components = map[string]func(context.Context) error{
			"scheduler": func(context.Context) error { return nil }, "controller-manager": func(context.Context) error { return errors.New("it hangs") },
		}
		c.Settings = apiserver.NewSettings()
		c.Settings.AddFlags(pflag.NewFlagSet("server", pflag.ContinueOnError))
	})
	for name, test := range map[string]func(*api){
		"components": testComponents, "table": testTableOfTheAPI, "kinds": testKinds, "hostile": testHostile, "objects": testObjects, "watch": testWatch, "watchList": testWatchList, "patches": testPatches, "apply": testApply, "tables": testTables, "dryRun": testDryRun,
		"collections": testCollections, "refusals": testRefusals, "immutable": testImmutable, "status": testStatus, "scale": testScale, "events": testEvents,
		"storage": testStorage, "system": testSystem, "namespaces": testNamespaces, "services": testServices, "manyServices": testManyServices,
		"binding": testBinding, "eviction": testEviction, "gracefulDelete": testGracefulDelete, "ephemeral": testEphemeral,
		"customResources": testCustomResources, "customRules": testCustomRules, "clusterNetworkPolicies": testClusterNetworkPolicies, "aggregator": testAggregator, "schemas": testSchemas,
		"streams": testStreams, "logs": testLogs, "portForward": testPortForward, "pathTricks": testPathTricks, "nodeProxy": testNodeProxy,
		"kubelets": testKubelets, "claims": testClaims, "tokens": testTokens, "users": testUsers, "certificates": testCertificates, "wire": testWire, "sockets": testSockets, "partial": testPartial, "discovery": testDiscovery, "operation": testOperation,
		"versions": testVersions, "bookmarks": testBookmarks, "dryRuns": testDryRuns, "propagation": testPropagation,
		"webhooks": testWebhooks, "conversion": testConversion, "validatingPolicies": testValidatingPolicies, "mutatingPolicies": testMutatingPolicies, "bootstrapTokens": testBootstrapTokens,
	} {
		t.Run(name, func(t *testing.T) { test(newAPI(t, s)) })
	}
}

// newAPI makes a namespace, with the ServiceAccount that its controller would make.
func newAPI(t *testing.T, s *apiservertest.Server) *api {
	t.Helper()
	a := &api{T: t, server: s, client: must(kubernetes.NewForConfig(s.Admin))(t), dynamic: must(dynamic.NewForConfig(s.Admin))(t)}
	made := must(a.client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"}}, metav1.CreateOptions{}))(t)
	a.ns = made.Name
	must(a.client.CoreV1().ServiceAccounts(a.ns).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{}))(t)
	return a
}

// in is the same in a sub-test.
func (a *api) in(t *testing.T) *api {
	sub := *a
	sub.T = t
	return &sub
}

// must unpacks what can't fail in a test that goes on.
func must[V any](v V, err error) func(testing.TB) V {
	return func(t testing.TB) V {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// eventually waits for what caches and controllers bring about.
func (a *api) eventually(what string, f func(ctx context.Context) error) {
	a.Helper()
	ctx, cancel := context.WithTimeout(a.Context(), 5*time.Minute)
	defer cancel()
	var last error
	for {
		err := f(ctx)
		if err == nil {
			return
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			a.Fatalf("%s: %v", what, last)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// refused checks that an error is the API's own Status with this code, naming these fields and no others.
func (a *api) refused(err error, code int32, fields ...string) {
	a.Helper()
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		a.Errorf("error %v, want a Status", err)
		return
	}
	var have []string
	if d := status.Status().Details; d != nil {
		for _, c := range d.Causes {
			have = append(have, c.Field)
		}
	}
	slices.Sort(have)
	slices.Sort(fields)
	if status.Status().Code != code || !slices.Equal(slices.Compact(have), fields) {
		a.Errorf("code %d, fields %q, want %d, %q: %v", status.Status().Code, have, code, fields, err)
	}
}

func (a *api) pod(name string, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
	for _, f := range change {
		f(p)
	}
	return p
}

// makePod creates a pod once admission's caches know the namespace's ServiceAccount.
func (a *api) makePod(name string, change ...func(*corev1.Pod)) *corev1.Pod {
	a.Helper()
	var made *corev1.Pod
	a.eventually("pod "+name, func(ctx context.Context) (err error) {
		made, err = a.client.CoreV1().Pods(a.ns).Create(ctx, a.pod(name, change...), metav1.CreateOptions{})
		return err
	})
	return made
}
