package apiserver_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

func testSystem(a *api) {
	ctx, get := a.Context(), metav1.GetOptions{}
	s := must(a.client.CoreV1().Services("default").Get(ctx, "kubernetes", get))(a)
	if s.Spec.ClusterIP != "10.96.0.1" || s.Spec.Ports[0].Port != 443 || s.Spec.Ports[0].Name != "https" {
		a.Errorf("Service kubernetes %+v", s.Spec)
	}
	e := must(a.client.CoreV1().Endpoints("default").Get(ctx, "kubernetes", get))(a)
	if len(e.Subsets) != 1 || e.Subsets[0].Addresses[0].IP != "192.0.2.1" || !strings.HasSuffix(a.server.Admin.Host, fmt.Sprintf(":%d", e.Subsets[0].Ports[0].Port)) {
		a.Errorf("Endpoints kubernetes %+v", e.Subsets)
	}
	slices := must(a.client.DiscoveryV1().EndpointSlices("default").List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=kubernetes"}))(a)
	if len(slices.Items) != 1 || slices.Items[0].Endpoints[0].Addresses[0] != "192.0.2.1" {
		a.Errorf("EndpointSlices of kubernetes %+v", slices.Items)
	}
	for _, name := range []string{"default", "kube-system", "kube-public", "kube-node-lease"} {
		if ns := must(a.client.CoreV1().Namespaces().Get(ctx, name, get))(a); ns.Status.Phase != corev1.NamespaceActive || ns.Labels[corev1.LabelMetadataName] != name {
			a.Errorf("namespace %s: %+v", name, ns)
		}
	}
	for name, value := range map[string]int32{"system-node-critical": 2000001000, "system-cluster-critical": 2000000000} {
		if c := must(a.client.SchedulingV1().PriorityClasses().Get(ctx, name, get))(a); c.Value != value {
			a.Errorf("PriorityClass %s: %d", name, c.Value)
		}
	}
	for _, name := range []string{"cluster-admin", "system:node", "system:kube-scheduler", "system:discovery", "view"} {
		must(a.client.RbacV1().ClusterRoles().Get(ctx, name, get))(a)
	}
	a.eventually("flow schemas", func(ctx context.Context) error {
		_, err := a.client.FlowcontrolV1().FlowSchemas().Get(ctx, "system-leader-election", get)
		return err
	})
	// The reference's sums hold what their parts hold.
	a.eventually("sums of roles", func(ctx context.Context) error {
		for _, name := range []string{"view", "edit", "admin"} {
			r, err := a.client.RbacV1().ClusterRoles().Get(ctx, name, get)
			if err != nil || len(r.Rules) == 0 {
				return fmt.Errorf("ClusterRole %s: %d rules, %w", name, len(r.Rules), err)
			}
		}
		return nil
	})

	// What an extension API server reads when it starts, with the right that its documentation tells to give it.
	info := must(a.client.CoreV1().ConfigMaps("kube-system").Get(ctx, "extension-apiserver-authentication", get))(a)
	for _, key := range []string{"client-ca-file", "requestheader-client-ca-file"} {
		if !strings.HasPrefix(info.Data[key], "-----BEGIN CERTIFICATE-----") {
			a.Errorf("%s: %q", key, info.Data[key])
		}
	}
	for key, want := range map[string]string{
		"requestheader-username-headers": `["X-Remote-User"]`, "requestheader-uid-headers": `["X-Remote-Uid"]`, "requestheader-group-headers": `["X-Remote-Group"]`,
		"requestheader-extra-headers-prefix": `["X-Remote-Extra-"]`, "requestheader-allowed-names": `["front-proxy-client"]`,
	} {
		if info.Data[key] != want {
			a.Errorf("%s: %q, want %q", key, info.Data[key], want)
		}
	}
	scheduler := must(kubernetes.NewForConfig(a.server.As(a, "system:kube-scheduler")))(a)
	must(scheduler.CoreV1().ConfigMaps("kube-system").Get(ctx, "extension-apiserver-authentication", get))(a)

	if v := must(a.client.Discovery().ServerVersion())(a); v.Major != "1" || !strings.HasPrefix(v.GitVersion, "v1."+v.Minor+".") {
		a.Errorf("version %+v", v)
	}
}

func testNamespaces(a *api) {
	api, ctx := a.client.CoreV1().Namespaces(), a.Context()
	name := a.ns
	must(a.client.CoreV1().ConfigMaps(name).Create(ctx, configMap("left", nil), metav1.CreateOptions{}))(a)
	ns := must(api.Get(ctx, name, metav1.GetOptions{}))(a)
	if ns.Status.Phase != corev1.NamespaceActive || ns.Labels[corev1.LabelMetadataName] != name || !slices.Contains(ns.Spec.Finalizers, corev1.FinalizerKubernetes) {
		a.Errorf("namespace %+v", ns)
	}
	// The label by which policies select a namespace by its name can't lie.
	relabelled := must(api.Patch(ctx, name, types.MergePatchType, []byte(`{"metadata":{"labels":{"kubernetes.io/metadata.name":"other","team":"x"}}}`), metav1.PatchOptions{}))(a)
	if relabelled.Labels[corev1.LabelMetadataName] != name || relabelled.Labels["team"] != "x" {
		a.Errorf("labels %v", relabelled.Labels)
	}
	// Only the finalize subresource takes the finalizer off.
	ns = relabelled.DeepCopy()
	ns.Spec.Finalizers = nil
	if got := must(api.Update(ctx, ns, metav1.UpdateOptions{}))(a); len(got.Spec.Finalizers) != 1 {
		a.Errorf("finalizers %v", got.Spec.Finalizers)
	}
	if err := api.Delete(ctx, name, metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}}); err != nil {
		a.Error(err)
	}
	if got := must(api.Get(ctx, name, metav1.GetOptions{}))(a); got.DeletionTimestamp != nil {
		a.Error("a dry run deleted the namespace")
	}
	if err := api.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
		a.Fatal(err)
	}
	ns = must(api.Get(ctx, name, metav1.GetOptions{}))(a)
	if ns.Status.Phase != corev1.NamespaceTerminating || ns.DeletionTimestamp == nil {
		a.Errorf("after the delete %+v", ns)
	}
	a.eventually("nothing new in a namespace that goes", func(ctx context.Context) error {
		m := configMap("", nil)
		m.GenerateName = "late-"
		_, err := a.client.CoreV1().ConfigMaps(name).Create(ctx, m, metav1.CreateOptions{})
		if !apierrors.IsForbidden(err) || !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			return fmt.Errorf("got %w", err)
		}
		return nil
	})
	must(a.client.CoreV1().ConfigMaps(name).Get(ctx, "left", metav1.GetOptions{}))(a)
	// What the namespace controller does at last.
	ns.Spec.Finalizers = nil
	must(api.Finalize(ctx, ns, metav1.UpdateOptions{}))(a)
	if _, err := api.Get(ctx, name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		a.Errorf("after finalize: %v", err)
	}
	for _, name := range []string{"default", "kube-system", "kube-public"} {
		a.refused(api.Delete(ctx, name, metav1.DeleteOptions{}), 403)
	}
	_, err := api.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "A.b"}}, metav1.CreateOptions{})
	a.refused(err, 422, "metadata.name")
}

func testSchemas(a *api) {
	ctx, c := a.Context(), a.client.Discovery().RESTClient()
	var v2 struct {
		Definitions map[string]struct {
			Properties map[string]struct{ Description string }
			GVK        []map[string]string `json:"x-kubernetes-group-version-kind"`
		}
		Paths map[string]any
	}
	decode := func(path string, into any) {
		a.Helper()
		raw, err := c.Get().AbsPath(path).SetHeader("Accept", "application/json").DoRaw(ctx)
		if err == nil {
			err = json.Unmarshal(raw, into)
		}
		if err != nil {
			a.Fatalf("%s: %v", path, err)
		}
	}
	decode("/openapi/v2", &v2)
	for name, gvk := range map[string]string{
		"io.k8s.api.core.v1.Pod": "/v1 Pod", "io.k8s.api.apps.v1.Deployment": "apps/v1 Deployment", "io.k8s.api.batch.v1.Job": "batch/v1 Job",
		"io.k8s.api.networking.v1.NetworkPolicy": "networking.k8s.io/v1 NetworkPolicy", "io.k8s.api.rbac.v1.Role": "rbac.authorization.k8s.io/v1 Role",
		"io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition": "apiextensions.k8s.io/v1 CustomResourceDefinition",
		"io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.APIService":                     "apiregistration.k8s.io/v1 APIService",
	} {
		d, ok := v2.Definitions[name]
		if !ok || len(d.GVK) != 1 || d.GVK[0]["group"]+"/"+d.GVK[0]["version"]+" "+d.GVK[0]["kind"] != gvk {
			a.Errorf("%s: %v, want %s", name, d.GVK, gvk)
		}
		if d.Properties["metadata"].Description == "" { // what kubectl explain prints
			a.Errorf("%s: no descriptions", name)
		}
	}
	for _, path := range []string{"/api/v1/namespaces/{namespace}/pods/{name}/log", "/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"} {
		if v2.Paths[path] == nil {
			a.Errorf("no path %s", path)
		}
	}

	var index struct {
		Paths map[string]struct{ ServerRelativeURL string }
	}
	decode("/openapi/v3", &index)
	for group, schema := range map[string]string{
		"api/v1": "io.k8s.api.core.v1.Pod", "apis/apps/v1": "io.k8s.api.apps.v1.Deployment", "apis/batch/v1": "io.k8s.api.batch.v1.CronJob",
		"apis/discovery.k8s.io/v1": "io.k8s.api.discovery.v1.EndpointSlice", "apis/events.k8s.io/v1": "io.k8s.api.events.v1.Event",
	} {
		var doc struct {
			Components struct {
				Schemas map[string]struct{ Properties map[string]any }
			}
		}
		url, _, _ := strings.Cut(index.Paths[group].ServerRelativeURL, "?")
		if url == "" {
			a.Errorf("no OpenAPI v3 of %s", group)
			continue
		}
		decode(url, &doc)
		if doc.Components.Schemas[schema].Properties["metadata"] == nil {
			a.Errorf("OpenAPI v3 of %s has no %s", group, schema)
		}
	}

	described := map[string]bool{}
	for group, at := range index.Paths {
		if strings.Contains(group, ".strake.io/") {
			continue // definitions of other tests come and go
		}
		var doc struct {
			Paths      map[string]any
			Components struct {
				Schemas map[string]struct {
					Description string
					GVK         []struct{ Group, Version, Kind string } `json:"x-kubernetes-group-version-kind"`
				}
			}
		}
		url, _, _ := strings.Cut(at.ServerRelativeURL, "?")
		if decode(url, &doc); len(doc.Paths) == 0 {
			a.Errorf("OpenAPI v3 of %s is empty", group)
		}
		for _, s := range doc.Components.Schemas {
			for _, k := range s.GVK {
				described[strings.TrimPrefix(k.Group+"/"+k.Version, "/")+" "+k.Kind] = s.Description != ""
			}
		}
	}

	// Discovery, as kubectl reads it.
	_, lists, err := a.client.Discovery().ServerGroupsAndResources()
	if err != nil {
		a.Fatal(err)
	}
	found := map[string]metav1.APIResource{}
	for _, l := range lists {
		for _, r := range l.APIResources {
			found[l.GroupVersion+" "+r.Name] = r
		}
	}
	for name, short := range map[string]string{
		"v1 pods": "po", "v1 services": "svc", "v1 nodes": "no", "v1 configmaps": "cm", "apps/v1 deployments": "deploy", "apps/v1 replicasets": "rs",
		"batch/v1 cronjobs": "cj", "networking.k8s.io/v1 networkpolicies": "netpol", "policy/v1 poddisruptionbudgets": "pdb",
		"apiextensions.k8s.io/v1 customresourcedefinitions": "crd", "events.k8s.io/v1 events": "ev",
	} {
		if r := found[name]; !slices.Contains(r.ShortNames, short) || !slices.Contains(r.Verbs, "watch") {
			a.Errorf("%s: short names %q, verbs %q", name, r.ShortNames, r.Verbs)
		}
	}
	for _, name := range []string{
		"v1 pods/exec", "v1 pods/eviction", "v1 pods/ephemeralcontainers", "v1 serviceaccounts/token", "v1 namespaces/finalize", "apps/v1 deployments/scale",
		"authorization.k8s.io/v1 selfsubjectaccessreviews", "authentication.k8s.io/v1 tokenreviews", "apiregistration.k8s.io/v1 apiservices",
	} {
		if _, ok := found[name]; !ok {
			a.Errorf("no %s", name)
		}
	}
	// kubectl explain finds every kind.
	for gv, resources := range reference {
		for name := range resources {
			if kind := found[gv+" "+name].Kind; !described[gv+" "+kind] {
				a.Errorf("%s %s: kind %q is not described", gv, name, kind)
			}
		}
	}
	if r := found["v1 namespaces"]; slices.Contains(r.Verbs, "deletecollection") {
		a.Errorf("namespaces can be deleted in bulk: %q", r.Verbs)
	}
}
