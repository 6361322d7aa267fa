package clients

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/chart"
	"helm.sh/helm/v4/pkg/chart/loader"
	"helm.sh/helm/v4/pkg/kube"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/strake-io/strake/tests/lab"
	"github.com/strake-io/strake/tests/lab/labtest"
)

const namespace, release = "harbour", "app"

// helm is Helm at work in a cluster.
type helm struct {
	*testing.T
	conf   *action.Configuration
	client kubernetes.Interface
	chart  chart.Charter
}

// patience bounds what Helm waits for.
const patience = 2 * time.Minute

// TestHelm installs a chart with definitions, hooks of each sort and lookups into a cluster, and does with it what Helm can.
func TestHelm(t *testing.T) {
	l := startCluster(t, "strake-helm")
	rc, err := l.REST()
	if err != nil {
		t.Fatal(err)
	}
	h := &helm{T: t, conf: helmFor(t, l, namespace), client: kubernetes.NewForConfigOrDie(rc)}
	if h.chart, err = loader.Load("chart"); err != nil {
		t.Fatal(err)
	}

	install := action.NewInstall(h.conf)
	install.ReleaseName, install.Namespace, install.CreateNamespace = release, namespace, true
	install.WaitStrategy, install.WaitForJobs, install.Timeout = kube.StatusWatcherStrategy, true, patience
	if _, err := install.Run(h.chart, nil); err != nil {
		t.Fatalf("install: %v", err)
	}
	h.jobs("pre-install", "post-install")
	h.replicas(1)
	about, err := h.client.CoreV1().ConfigMaps(namespace).Get(t.Context(), "about", metav1.GetOptions{})
	if err != nil || about.Data["apps"] != "true" || !strings.HasPrefix(about.Data["kubernetes"], "v1.") || about.Data["revision"] != "1" {
		t.Errorf("what the chart was told of the cluster: %+v, %v", about, err)
	}
	password := h.password()

	if err := h.upgrade(map[string]any{"replicas": 2}, "auto"); err != nil {
		t.Fatalf("upgrade: %v", err)
	}
	h.jobs("pre-upgrade", "post-upgrade")
	h.replicas(2)
	if p := h.password(); p != password || len(p) != 20 {
		t.Errorf("the password was %q, and is %q: lookup did not find it", password, p)
	}
	for name, values := range map[string]map[string]any{
		"a value that its schema forbids":    {"replicas": 0},
		"an object that the cluster refuses": {"replicas": 2, "pier": 1000},
		"a hook that fails":                  {"replicas": 3, "upgradeFails": true},
	} {
		if err := h.upgrade(values, "auto"); err == nil {
			t.Errorf("%s: the upgrade succeeds", name)
		}
	}
	h.replicas(2)

	back := action.NewRollback(h.conf)
	back.Version, back.WaitStrategy, back.Timeout, back.ServerSideApply = 1, kube.StatusWatcherStrategy, patience, "auto"
	if err := back.Run(release); err != nil {
		t.Fatalf("rollback: %v", err)
	}
	h.jobs("pre-rollback")
	h.replicas(1)
	// As Helm 3 did: the difference is worked out by the client.
	if err := h.upgrade(map[string]any{"replicas": 2}, "false"); err != nil {
		t.Fatalf("upgrade by the client: %v", err)
	}
	h.replicas(2)

	test := action.NewReleaseTesting(h.conf)
	test.Namespace, test.Timeout = namespace, patience
	_, shutdown, err := test.Run(release)
	if shutdown != nil {
		if err := shutdown(); err != nil {
			t.Error(err)
		}
	}
	if err != nil {
		t.Errorf("test: %v", err)
	}

	list, err := action.NewHistory(h.conf).Run(release)
	if err != nil || len(list) < 5 {
		t.Errorf("%d releases, %v", len(list), err)
	}
	remove := action.NewUninstall(h.conf)
	// Helm's watcher takes what it has not been told of for gone: when all that it knows of is gone, it looks no further.
	remove.WaitStrategy, remove.Timeout, remove.DeletionPropagation = kube.LegacyStrategy, patience, "foreground"
	if _, err := remove.Run(release); err != nil {
		t.Fatalf("uninstall: %v", err)
	}
	h.jobs("pre-delete")
	for what, ask := range map[string]func() error{
		"Deployment": func() error {
			return get(h.client.AppsV1().Deployments(namespace).Get(t.Context(), "web", metav1.GetOptions{}))
		},
		"Service": func() error {
			return get(h.client.CoreV1().Services(namespace).Get(t.Context(), "web", metav1.GetOptions{}))
		},
		"Secret": func() error {
			return get(h.client.CoreV1().Secrets(namespace).Get(t.Context(), "password", metav1.GetOptions{}))
		},
	} {
		eventually(t, what+" after uninstall", func() error { return expectGone(ask()) })
	}
	// Definitions stay, so that nobody's objects are lost.
	if _, err := h.client.Discovery().ServerResourcesForGroupVersion("harbour.example.org/v1"); err != nil {
		t.Errorf("the definition: %v", err)
	}
}

// helmFor returns Helm's configuration for a namespace of a cluster.
func helmFor(t *testing.T, l *lab.Cluster, namespace string) *action.Configuration {
	t.Helper()
	flags := genericclioptions.NewConfigFlags(false).WithWrapConfigFn(func(c *rest.Config) *rest.Config {
		c.Dial = l.Dial
		return c
	})
	*flags.KubeConfig, *flags.Namespace = filepath.Join(l.Data, "admin.kubeconfig"), namespace
	conf := action.NewConfiguration()
	if err := conf.Init(flags, namespace, "secret"); err != nil {
		t.Fatal(err)
	}
	return conf
}

// startCluster starts a cluster of one node in a namespace of its own; it goes with the test.
func startCluster(t *testing.T, name string) *lab.Cluster {
	t.Helper()
	l := labtest.New(t, name, "../../bin/strake")
	if out, err := l.Strake("up", "--node-name", "node-1", "--wait", "120s"); err != nil {
		t.Fatalf("up: %v\n%s", err, out)
	}
	return l
}

func get(_ any, err error) error { return err }

func (h *helm) upgrade(values map[string]any, serverSide string) error {
	u := action.NewUpgrade(h.conf)
	u.Namespace, u.WaitStrategy, u.WaitForJobs, u.Timeout, u.ServerSideApply = namespace, kube.StatusWatcherStrategy, true, patience, serverSide
	_, err := u.RunWithContext(context.Background(), release, h.chart, values)
	return err
}

// jobs checks that hooks have run to their end.
func (h *helm) jobs(names ...string) {
	h.Helper()
	for _, name := range names {
		if job, err := h.client.BatchV1().Jobs(namespace).Get(h.Context(), name, metav1.GetOptions{}); err != nil || job.Status.Succeeded != 1 {
			h.Errorf("hook %s: %+v, %v", name, job, err)
		}
	}
}

func (h *helm) replicas(want int32) {
	h.Helper()
	if d, err := h.client.AppsV1().Deployments(namespace).Get(h.Context(), "web", metav1.GetOptions{}); err != nil || *d.Spec.Replicas != want || d.Status.AvailableReplicas < want {
		h.Errorf("want %d: %+v, %v", want, d, err)
	}
}

func (h *helm) password() string {
	h.Helper()
	s, err := h.client.CoreV1().Secrets(namespace).Get(h.Context(), "password", metav1.GetOptions{})
	if err != nil {
		h.Error(err)
		return ""
	}
	return string(s.Data["password"])
}
