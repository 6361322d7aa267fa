package clients

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/chart"
	"helm.sh/helm/v4/pkg/chart/loader"
	"helm.sh/helm/v4/pkg/kube"
	helmrelease "helm.sh/helm/v4/pkg/release"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/tests/lab"
	"github.com/strake-io/strake/tests/lab/labtest"
	"github.com/strake-io/strake/tests/lab/plainnode"
)

const (
	proxyChart    = "../../deploy/helm/strake-proxy"
	proxyManifest = "../../deploy/kube-proxy/strake-proxy.yaml"
)

// proxyValues fills the chart in as the manifest stands.
func proxyValues(more map[string]any) map[string]any {
	v := map[string]any{"image": map[string]any{"repository": "REGISTRY/strake", "tag": "VERSION"}, "apiServer": map[string]any{"host": "API-SERVER"}}
	for key, value := range more {
		v[key] = value
	}
	return v
}

// TestProxyChartSaysWhatTheManifestSays renders deploy/helm/strake-proxy and compares it, object by object, with deploy/kube-proxy's manifest: as it is,
// and with what it offers to uncomment.
func TestProxyChartSaysWhatTheManifestSays(t *testing.T) {
	data, err := os.ReadFile(proxyManifest)
	if err != nil {
		t.Fatal(err)
	}
	plain := string(data)
	uncomment := func(text, pattern string) string {
		t.Helper()
		re := regexp.MustCompile(`(?m)^( *)# (` + pattern + `)`)
		if !re.MatchString(text) {
			t.Fatalf("the manifest offers nothing like %s", pattern)
		}
		return re.ReplaceAllString(text, "$1$2")
	}
	clean := uncomment(uncomment(plain, "hostPID: true"), "- --clean-kube-proxy")
	legacy := uncomment(uncomment(clean, `add: \[.*NET_RAW\]`), `- \{name: xtables-lock,`)
	legacy = strings.Replace(legacy, "            add: [BPF, PERFMON, NET_ADMIN, SYS_RESOURCE, SYS_ADMIN]\n", "", 1)
	for name, c := range map[string]struct {
		manifest string
		values   map[string]any
	}{
		"as it is":           {plain, nil},
		"names":              {uncomment(plain, "- --dns"), map[string]any{"dns": map[string]any{"enabled": true}}},
		"kube-proxy cleaned": {clean, map[string]any{"cleanKubeProxy": map[string]any{"enabled": true}}},
		"iptables-legacy":    {legacy, map[string]any{"cleanKubeProxy": map[string]any{"enabled": true, "iptablesLegacy": true}}},
	} {
		t.Run(name, func(t *testing.T) {
			want, got := objectsOf(t, c.manifest), objectsOf(t, render(t, proxyValues(c.values)))
			for key, object := range want {
				if !reflect.DeepEqual(got[key], object) {
					t.Errorf("%s: the chart says\n%v\nand the manifest\n%v", key, got[key], object)
				}
			}
			if len(got) != len(want) {
				t.Errorf("the chart has %d objects, the manifest %d", len(got), len(want))
			}
		})
	}
	for name, values := range map[string]map[string]any{
		"no image":           {"apiServer": map[string]any{"host": "192.0.2.1"}},
		"no API server":      {"image": map[string]any{"repository": "strake", "tag": "1"}},
		"an unknown value":   proxyValues(map[string]any{"hostNetwork": false}),
		"a path that is not": proxyValues(map[string]any{"paths": map[string]any{"bpffs": "sys/fs/bpf"}}),
	} {
		if _, err := rendered(t, values); err == nil || !strings.Contains(err.Error(), "schema") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestProxyChart installs the chart in a cluster where nobody serves Services: then they are served. Uninstalled, they go on.
func TestProxyChart(t *testing.T) {
	l := labtest.New(t, "strake-chart", "../../bin/strake")
	plainnode.Start(t, l)
	plainnode.LoadStrake(t, l, "registry.example/strake:test")
	bpffs := plainnode.BPFFS(t)
	places, err := layout.New(l.Data)
	if err != nil {
		t.Fatal(err)
	}
	// The API server is behind a Service without any pod.
	ask := func() error {
		out, err := l.Strake("kubectl", "get", "service", "kubernetes", "-o", "jsonpath={.spec.clusterIP}")
		if err != nil {
			return errors.New(out)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		c, err := l.Dial(ctx, "tcp", net.JoinHostPort(out, "443"))
		if err == nil {
			c.Close()
		}
		return err
	}
	if err := ask(); err == nil {
		t.Fatal("somebody serves Services already")
	}
	const release, namespace = "services", "kube-system"
	conf := helmFor(t, l, namespace)
	install := action.NewInstall(conf)
	install.ReleaseName, install.Namespace, install.WaitStrategy, install.Timeout = release, namespace, kube.StatusWatcherStrategy, patience
	if _, err := install.Run(proxyCharter(t), map[string]any{
		"image":     map[string]any{"repository": "registry.example/strake", "tag": "test"},
		"apiServer": map[string]any{"host": lab.NodeIP},
		"paths":     map[string]any{"bpffs": bpffs},
		"extraArgs": []any{"--cgroup=" + places.Cgroup()}, // this node is not the whole machine
		// What is not to be had on the machine can't be given.
		"sysResource": plainnode.MayLiftLimits(t),
	}); err != nil {
		out, _ := l.Strake("kubectl", "-n", namespace, "describe", "pods")
		t.Fatalf("install: %v\n%s", err, out)
	}
	eventually(t, "a ClusterIP", ask)
	remove := action.NewUninstall(conf)
	remove.WaitStrategy, remove.Timeout, remove.DeletionPropagation = kube.StatusWatcherStrategy, patience, "foreground"
	if _, err := remove.Run(release); err != nil {
		t.Fatalf("uninstall: %v", err)
	}
	if err := ask(); err != nil {
		t.Errorf("the kernel does not go on: %v", err)
	}
	if out, err := l.Command(t.Context(), l.Binary, "--data-dir", filepath.Join(bpffs, "strake"), "agent", "--only", "proxy", "--cleanup").CombinedOutput(); err != nil {
		t.Errorf("cleanup: %v\n%s", err, out)
	}
	if err := ask(); err == nil {
		t.Error("a ClusterIP is served after the cleanup")
	}
}

func proxyCharter(t *testing.T) chart.Charter {
	t.Helper()
	c, err := loader.Load(proxyChart)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func render(t *testing.T, values map[string]any) string {
	t.Helper()
	text, err := rendered(t, values)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// rendered is what the chart says with such values, as `helm template` does it.
func rendered(t *testing.T, values map[string]any) (string, error) {
	t.Helper()
	install := action.NewInstall(action.NewConfiguration())
	install.ReleaseName, install.Namespace, install.DryRunStrategy = "services", "kube-system", action.DryRunClient
	made, err := install.Run(proxyCharter(t), values)
	if err != nil {
		return "", err
	}
	r, err := helmrelease.NewAccessor(made)
	if err != nil {
		return "", err
	}
	return r.Manifest(), nil
}

// objectsOf reads objects by kind, namespace and name.
func objectsOf(t *testing.T, text string) map[string]map[string]any {
	t.Helper()
	out := map[string]map[string]any{}
	for d := yaml.NewYAMLOrJSONDecoder(bytes.NewReader([]byte(text)), 4096); ; {
		var o unstructured.Unstructured
		if err := d.Decode(&o.Object); errors.Is(err, io.EOF) {
			return out
		} else if err != nil {
			t.Fatal(err)
		}
		if len(o.Object) > 0 {
			out[o.GetKind()+" "+o.GetNamespace()+"/"+o.GetName()] = o.Object
		}
	}
}
