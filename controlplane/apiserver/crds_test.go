package apiserver_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	apiextensionsclient "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/strake-io/strake/controlplane/apiserver"
)

var clusterNetworkPolicies = schema.GroupVersionResource{Group: "policy.networking.k8s.io", Version: "v1alpha2", Resource: "clusternetworkpolicies"}

const clusterNetworkPolicyCRD = "clusternetworkpolicies.policy.networking.k8s.io"

// What is installed is what the types that the node network reads belong to.
func TestClusterNetworkPolicyDefinition(t *testing.T) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/network-policy-api").Output()
	if err != nil {
		t.Fatal(err)
	}
	want := must(os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "config/crd/standard/policy.networking.k8s.io_clusternetworkpolicies.yaml")))(t)
	have := must(os.ReadFile("crds/clusternetworkpolicies.yaml"))(t)
	if _, have, _ = bytes.Cut(have, []byte("\n")); !bytes.Equal(have, want) {
		t.Error("crds/clusternetworkpolicies.yaml is not that of the module in go.mod: copy it anew, below its first line")
	}
}

func clusterNetworkPolicy(name, spec string) *unstructured.Unstructured {
	o := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte("{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {name: "+name+"}, spec: "+spec+"}"), &o.Object); err != nil {
		panic(err)
	}
	return o
}

func testClusterNetworkPolicies(a *api) {
	api := a.dynamic.Resource(clusterNetworkPolicies)
	a.eventually("the definition is there from the start", func(ctx context.Context) error {
		_, err := api.List(ctx, metav1.ListOptions{})
		return err
	})
	made, err := api.Create(a.Context(), clusterNetworkPolicy("deny", `{tier: Admin, priority: 5, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{pods: {podSelector: {}}}]}]}`), metav1.CreateOptions{})
	if err != nil {
		a.Fatal(err)
	}
	if table := a.table("/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies"); !slices.ContainsFunc(table.Rows, func(r metav1.TableRow) bool { return slices.Equal(r.Cells[:3], []any{"deny", "Admin", "5"}) }) {
		a.Errorf("table %+v", table.Rows)
	}
	if err := api.Delete(a.Context(), made.GetName(), metav1.DeleteOptions{}); err != nil {
		a.Error(err)
	}
	// Domain names are of the experimental channel: a peer that had nothing else is none, and not everybody.
	for _, action := range []string{"Accept", "Deny"} {
		_, err := api.Create(a.Context(), clusterNetworkPolicy("names", `{tier: Admin, priority: 6, subject: {namespaces: {}}, egress: [{action: `+action+`, to: [{namespaces: {}}, {domainNames: [example.org]}]}]}`), metav1.CreateOptions{})
		if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "spec.egress[0].to[1]") {
			a.Errorf("%s with domain names: %v", action, err)
		}
	}
	// Another version, that somebody installed over ours, stays at the next start.
	crds := a.dynamic.Resource(crdResource)
	const version = "policy.networking.k8s.io/bundle-version"
	change := func(to string) {
		must(crds.Patch(a.Context(), clusterNetworkPolicyCRD, types.MergePatchType, []byte(`{"metadata":{"annotations":{"`+version+`":"`+to+`"}}}`), metav1.PatchOptions{FieldManager: "kubectl"}))(a)
	}
	was := must(crds.Get(a.Context(), clusterNetworkPolicyCRD, metav1.GetOptions{}))(a).GetAnnotations()[version]
	change("v9.0.0")
	client := must(apiextensionsclient.NewForConfig(a.server.Admin))(a)
	if err := apiserver.InstallDefinitions(a.Context(), client); err != nil {
		a.Error(err)
	}
	if have := must(crds.Get(a.Context(), clusterNetworkPolicyCRD, metav1.GetOptions{}))(a).GetAnnotations()[version]; have != "v9.0.0" {
		a.Errorf("version %q, was set to v9.0.0", have)
	}
	change(was)
	if err := apiserver.InstallDefinitions(a.Context(), client); err != nil {
		a.Error(err)
	}
	for _, spec := range []string{
		`{tier: Middle, priority: 5, subject: {namespaces: {}}}`, `{tier: Admin, priority: 1001, subject: {namespaces: {}}}`, `{tier: Admin, priority: 5, subject: {}}`,
		`{tier: Admin, priority: 5, subject: {namespaces: {}}, egress: [{action: Deny, to: [{networks: [10.0.0.0/33]}]}]}`,
	} {
		if _, err := api.Create(a.Context(), clusterNetworkPolicy("bad", spec), metav1.CreateOptions{}); !apierrors.IsInvalid(err) {
			a.Errorf("%s: %v", spec, err)
		}
	}
}
