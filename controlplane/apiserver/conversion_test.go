package apiserver_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// rockets is a definition of two versions, in which a field has two names; a webhook knows which.
const rockets = `
kind: CustomResourceDefinition
metadata: {name: rockets.space.strake.io}
spec:
  group: space.strake.io
  scope: Namespaced
  names: {plural: rockets, singular: rocket, kind: Rocket, categories: [fleet]}
  conversion: {strategy: Webhook, webhook: {conversionReviewVersions: [v1], clientConfig: {url: "URL", caBundle: CA}}}
  versions:
  - name: v1
    served: true
    storage: true
    selectableFields: [{jsonPath: .spec.stages}]
    schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {stages: {type: integer}}}}}}
  - name: v1old
    served: true
    storage: false
    deprecated: true
    deprecationWarning: old rockets fall
    schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {steps: {type: integer}}}}}}
`

// testConversion reads and writes custom objects in two versions, by a webhook that at last begins to lie.
func testConversion(a *api) {
	ctx := a.Context()
	var lie atomic.Pointer[string]
	honest := ""
	lie.Store(&honest)
	hook := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var review apiextensionsv1.ConversionReview
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		res := &apiextensionsv1.ConversionResponse{UID: review.Request.UID, Result: metav1.Status{Status: metav1.StatusSuccess}}
		for _, raw := range review.Request.Objects {
			text := strings.NewReplacer(`"stages"`, `"steps"`, `"steps"`, `"stages"`).Replace(string(raw.Raw))
			var o map[string]any
			if err := json.Unmarshal([]byte(text), &o); err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			o["apiVersion"] = review.Request.DesiredAPIVersion
			switch *lie.Load() {
			case "renames":
				o["metadata"].(map[string]any)["name"] = "other"
			case "takes the identity":
				o["metadata"].(map[string]any)["uid"] = "other"
			case "leaves the version":
				o["apiVersion"] = "space.strake.io/v7"
			case "makes another kind":
				o["kind"] = "Boat"
			}
			converted, err := json.Marshal(o)
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			res.ConvertedObjects = append(res.ConvertedObjects, runtime.RawExtension{Raw: converted})
		}
		switch *lie.Load() {
		case "loses all":
			res.ConvertedObjects = nil
		case "means another":
			res.UID = "other"
		case "fails":
			res.ConvertedObjects, res.Result = nil, metav1.Status{Status: metav1.StatusFailure, Message: "the engine is cold"}
		}
		json.NewEncoder(w).Encode(apiextensionsv1.ConversionReview{TypeMeta: review.TypeMeta, Response: res})
	}))
	defer hook.Close()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: hook.Certificate().Raw})
	a.create(crdResource, strings.NewReplacer("URL", hook.URL, "CA", base64.StdEncoding.EncodeToString(ca)).Replace(rockets))
	group := schema.GroupVersion{Group: "space.strake.io", Version: "v1"}
	v1 := a.dynamic.Resource(group.WithResource("rockets")).Namespace(a.ns)
	old := a.dynamic.Resource(schema.GroupVersionResource{Group: group.Group, Version: "v1old", Resource: "rockets"}).Namespace(a.ns)
	a.eventually("both versions are served", func(ctx context.Context) error {
		if _, err := v1.List(ctx, metav1.ListOptions{}); err != nil {
			return err
		}
		_, err := old.List(ctx, metav1.ListOptions{})
		return err
	})
	for i, name := range []string{"one", "two"} {
		must(old.Create(ctx, &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "space.strake.io/v1old", "kind": "Rocket", "metadata": map[string]any{"name": name}, "spec": map[string]any{"steps": int64(i + 1)},
		}}, metav1.CreateOptions{}))(a)
	}
	spec := func(o *unstructured.Unstructured, field string) int64 {
		n, _, _ := unstructured.NestedInt64(o.Object, "spec", field)
		return n
	}
	if o := must(v1.Get(ctx, "two", metav1.GetOptions{}))(a); spec(o, "stages") != 2 {
		a.Errorf("as v1: %v", o.Object)
	}
	if o := must(old.Get(ctx, "two", metav1.GetOptions{}))(a); spec(o, "steps") != 2 {
		a.Errorf("as v1old: %v", o.Object)
	}
	if list := must(v1.List(ctx, metav1.ListOptions{FieldSelector: "spec.stages=2"}))(a); len(list.Items) != 1 || list.Items[0].GetName() != "two" {
		a.Errorf("by a field: %v", list.Items)
	}
	_, err := v1.List(ctx, metav1.ListOptions{FieldSelector: "spec.fuel=2"})
	a.refused(err, 400)
	client, warned := a.warned()
	if err := client.CoreV1().RESTClient().Get().AbsPath("/apis/space.strake.io/v1old/namespaces", a.ns, "rockets").Do(ctx).Error(); err != nil || len(*warned) != 1 || (*warned)[0] != "old rockets fall" {
		a.Errorf("%v, warnings %q", err, *warned)
	}
	before := must(v1.Get(ctx, "one", metav1.GetOptions{}))(a)
	for _, how := range []string{"renames", "takes the identity", "leaves the version", "makes another kind", "loses all", "means another", "fails"} {
		lie.Store(&how)
		if _, err := old.Get(ctx, "one", metav1.GetOptions{}); !apierrors.IsInternalError(err) {
			a.Errorf("%s: %v, want an internal error", how, err)
		}
		if o, err := v1.Get(ctx, "one", metav1.GetOptions{}); err != nil || o.GetResourceVersion() != before.GetResourceVersion() {
			a.Errorf("%s: what needs no conversion: %v", how, err)
		}
	}
	lie.Store(&honest)
	hook.CloseClientConnections()
	hook.Close()
	if _, err := old.Get(ctx, "one", metav1.GetOptions{}); err == nil {
		a.Error("converted by nobody")
	}
}
