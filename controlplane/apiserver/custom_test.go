package apiserver_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"
)

var (
	crdResource        = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	apiServiceResource = schema.GroupVersionResource{Group: "apiregistration.k8s.io", Version: "v1", Resource: "apiservices"}
)

// boats is a CustomResourceDefinition as users write them.
const boats = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: boats.test.strake.io}
spec:
  group: test.strake.io
  scope: Namespaced
  names: {plural: boats, singular: boat, kind: Boat, shortNames: [bt], categories: [all]}
  versions:
  - name: v1
    served: true
    storage: true
    additionalPrinterColumns: [{name: Length, type: integer, jsonPath: .spec.length}]
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.crew, statusReplicasPath: .status.crew}
    schema:
      openAPIV3Schema:
        type: object
        description: A Boat floats.
        properties:
          spec:
            type: object
            required: [length]
            x-kubernetes-validations: [{rule: "!has(self.mast) || self.mast < self.length", message: a mast is shorter than its boat}]
            properties:
              length: {type: integer, minimum: 1}
              mast: {type: integer}
              crew: {type: integer, default: 2}
              rig: {type: string, enum: [sloop, ketch]}
          status:
            type: object
            properties: {crew: {type: integer}}
`

func testCustomResources(a *api) {
	ctx := a.Context()
	crd := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(boats), &crd.Object); err != nil {
		a.Fatal(err)
	}
	must(a.dynamic.Resource(crdResource).Create(ctx, crd, metav1.CreateOptions{}))(a)
	boat := schema.GroupVersionResource{Group: "test.strake.io", Version: "v1", Resource: "boats"}
	api := a.dynamic.Resource(boat).Namespace(a.ns)
	a.eventually("the resource is served", func(ctx context.Context) error {
		_, err := api.List(ctx, metav1.ListOptions{})
		return err
	})
	a.eventually("kubectl finds it", func(context.Context) error {
		list, err := a.client.Discovery().ServerResourcesForGroupVersion("test.strake.io/v1")
		if err != nil {
			return err
		}
		for _, r := range list.APIResources {
			if r.Name == "boats" && r.Kind == "Boat" && slices.Equal(r.ShortNames, []string{"bt"}) {
				return nil
			}
		}
		return fmt.Errorf("only %+v", list.APIResources)
	})
	a.eventually("in the list of groups", func(context.Context) error {
		groups, err := a.client.Discovery().ServerGroups()
		if err == nil && !slices.ContainsFunc(groups.Groups, func(g metav1.APIGroup) bool { return g.Name == "test.strake.io" }) {
			err = errors.New("not there")
		}
		return err
	})
	a.eventually("its schema, which kubectl explain prints", func(ctx context.Context) error {
		raw, err := a.client.Discovery().RESTClient().Get().AbsPath("/openapi/v3/apis/test.strake.io/v1").DoRaw(ctx)
		if err == nil && !strings.Contains(string(raw), "A Boat floats.") {
			err = fmt.Errorf("schema %.200s", raw)
		}
		return err
	})

	object := func(name string, spec map[string]any) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "test.strake.io/v1", "kind": "Boat", "metadata": map[string]any{"name": name}, "spec": spec}}
	}
	strict := metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict}
	for _, test := range []struct {
		spec   map[string]any
		code   int32
		fields []string
	}{
		// "<nil>" says that rules were not looked at, as the object's shape is wrong.
		{map[string]any{}, 422, []string{"<nil>", "spec.length"}},
		{map[string]any{"length": "long"}, 422, []string{"<nil>", "spec.length"}},
		{map[string]any{"length": int64(0), "rig": "raft"}, 422, []string{"<nil>", "spec.length", "spec.rig"}},
		{map[string]any{"length": int64(5), "mast": int64(6)}, 422, []string{"spec"}},
		{map[string]any{"length": int64(5), "sail": "red"}, 400, nil},
	} {
		_, err := api.Create(ctx, object("bad", test.spec), strict)
		a.refused(err, test.code, test.fields...)
	}
	made := must(api.Create(ctx, object("one", map[string]any{"length": int64(9), "sail": "red"}), metav1.CreateOptions{}))(a)
	spec := made.Object["spec"].(map[string]any)
	if spec["crew"] != int64(2) || spec["sail"] != nil || made.GetGeneration() != 1 {
		a.Errorf("made %v", made.Object)
	}
	must(api.Patch(ctx, "one", types.MergePatchType, []byte(`{"status":{"crew":1}}`), metav1.PatchOptions{}, "status"))(a)
	scaled := must(api.Patch(ctx, "one", types.MergePatchType, []byte(`{"spec":{"replicas":7}}`), metav1.PatchOptions{}, "scale"))(a)
	if n, _, _ := unstructured.NestedInt64(scaled.Object, "status", "replicas"); n != 1 {
		a.Errorf("scale %v", scaled.Object)
	}
	applied := must(api.Apply(ctx, "one", object("one", map[string]any{"length": int64(10), "rig": "ketch"}), metav1.ApplyOptions{FieldManager: "test", Force: true}))(a)
	if spec := applied.Object["spec"].(map[string]any); spec["crew"] != int64(7) || spec["rig"] != "ketch" || applied.GetGeneration() != 3 {
		a.Errorf("applied %v", applied.Object)
	}
	table := a.table("/apis/test.strake.io/v1/namespaces/" + a.ns + "/boats")
	if len(table.Rows) != 1 || table.ColumnDefinitions[1].Name != "Length" || fmt.Sprint(table.Rows[0].Cells[1]) != "10" {
		a.Errorf("table %+v", table)
	}

	if err := a.dynamic.Resource(crdResource).Delete(ctx, "boats.test.strake.io", metav1.DeleteOptions{}); err != nil {
		a.Fatal(err)
	}
	a.eventually("the resource goes with its definition", func(ctx context.Context) error {
		if _, err := api.List(ctx, metav1.ListOptions{}); !apierrors.IsNotFound(err) {
			return fmt.Errorf("list: %w", err)
		}
		_, err := a.dynamic.Resource(apiServiceResource).Get(ctx, "v1.test.strake.io", metav1.GetOptions{})
		if !apierrors.IsNotFound(err) {
			return fmt.Errorf("APIService: %w", err)
		}
		return nil
	})
}

// logbooks is a definition whose rules compare an object with what it was, and parts of which have no schema.
const logbooks = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: logbooks.test.strake.io}
spec:
  group: test.strake.io
  scope: Namespaced
  names: {plural: logbooks, singular: logbook, kind: Logbook}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        x-kubernetes-validations: [{rule: "!has(oldSelf.spec.closed) || !oldSelf.spec.closed || has(self.spec.closed)", message: it was closed}]
        properties:
          spec:
            type: object
            properties:
              boat: {type: string, x-kubernetes-validations: [{rule: self == oldSelf, message: a logbook stays with its boat, reason: FieldValueForbidden}]}
              miles:
                type: integer
                x-kubernetes-validations: [{rule: "self >= oldSelf", messageExpression: "'%d miles were %d'.format([self, oldSelf])"}]
              closed: {type: boolean}
              captain:
                type: string
                x-kubernetes-validations: [{rule: "oldSelf.hasValue() || self == 'the owner'", optionalOldSelf: true, message: the owner is the first captain}]
              stops:
                type: array
                maxItems: 10
                x-kubernetes-list-type: map
                x-kubernetes-list-map-keys: [port]
                items:
                  type: object
                  required: [port]
                  properties:
                    port: {type: string}
                    day: {type: integer, x-kubernetes-validations: [{rule: "self >= oldSelf"}]}
              notes:
                type: object
                x-kubernetes-preserve-unknown-fields: true
                properties:
                  weather: {type: object, properties: {wind: {type: integer}}}
              raw: {x-kubernetes-preserve-unknown-fields: true}
              attached: {type: object, x-kubernetes-embedded-resource: true, x-kubernetes-preserve-unknown-fields: true}
`

func testCustomRules(a *api) {
	ctx := a.Context()
	crd := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(logbooks), &crd.Object); err != nil {
		a.Fatal(err)
	}
	must(a.dynamic.Resource(crdResource).Create(ctx, crd, metav1.CreateOptions{}))(a)
	api := a.dynamic.Resource(schema.GroupVersionResource{Group: "test.strake.io", Version: "v1", Resource: "logbooks"}).Namespace(a.ns)
	a.eventually("the resource is served", func(ctx context.Context) error {
		_, err := api.List(ctx, metav1.ListOptions{})
		return err
	})
	object := func(spec string) *unstructured.Unstructured {
		o := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte("{apiVersion: test.strake.io/v1, kind: Logbook, metadata: {name: one}, spec: "+spec+"}"), &o.Object); err != nil {
			a.Fatal(err)
		}
		return o
	}
	text := func(v any) string { return string(must(json.Marshal(v))(a)) }
	create := metav1.CreateOptions{FieldValidation: metav1.FieldValidationIgnore}
	_, err := api.Create(ctx, object(`{captain: somebody}`), create)
	a.refused(err, 422, "spec.captain")

	// Rules about what was say nothing of what is new. Of what has no schema nothing is taken away, but of what is below that and has one.
	made := must(api.Create(ctx, object(`{boat: ketch, miles: 5, captain: the owner, closed: true, unknown: gone, stops: [{port: Kiel, day: 2, unknown: gone}], notes: {mood: good, weather: {wind: 4, unknown: gone}, deep: {er: [1, {a: b}]}}, raw: [1, {a: b}],
		attached: {apiVersion: v1, kind: Thing, metadata: {name: t, unknown: gone}, more: 1}}`), create))(a)
	want := object(`{boat: ketch, miles: 5, captain: the owner, closed: true, stops: [{port: Kiel, day: 2}], notes: {mood: good, weather: {wind: 4}, deep: {er: [1, {a: b}]}}, raw: [1, {a: b}], attached: {apiVersion: v1, kind: Thing, metadata: {name: t}, more: 1}}`)
	if got, want := text(made.Object["spec"]), text(want.Object["spec"]); got != want {
		a.Errorf("made\n%s\nwant\n%s", got, want)
	}
	for _, test := range []struct {
		patch, message string
		fields         []string
	}{
		{`{"spec":{"boat":"sloop"}}`, "a logbook stays with its boat", []string{"spec.boat"}},
		{`{"spec":{"miles":4}}`, "4 miles were 5", []string{"spec.miles"}},
		{`{"spec":{"closed":null}}`, "it was closed", []string{"<nil>"}},
		{`{"spec":{"stops":[{"port":"Oslo","day":1},{"port":"Kiel","day":1}]}}`, "self >= oldSelf", []string{"spec.stops[1].day"}}, // the same stop, by its key
		{`{"spec":{"notes":{"weather":{"wind":"strong"}}}}`, "must be of type integer", []string{"<nil>", "spec.notes.weather.wind"}},
		{`{"spec":{"attached":{"kind":null}}}`, "Required", []string{"<nil>", "spec.attached.kind"}},
	} {
		_, err := api.Patch(ctx, "one", types.MergePatchType, []byte(test.patch), metav1.PatchOptions{})
		a.refused(err, 422, test.fields...)
		if err != nil && !strings.Contains(err.Error(), test.message) {
			a.Errorf("%s: %v, want %q", test.patch, err, test.message)
		}
	}
	changed := must(api.Patch(ctx, "one", types.MergePatchType, []byte(`{"spec":{"miles":6,"boat":null,"captain":"somebody","stops":[{"port":"Oslo","day":1}],"notes":{"deep":{"er":null},"new":1}}}`), metav1.PatchOptions{}))(a)
	want = object(`{miles: 6, captain: somebody, closed: true, stops: [{port: Oslo, day: 1}], notes: {mood: good, weather: {wind: 4}, deep: {}, new: 1}, raw: [1, {a: b}], attached: {apiVersion: v1, kind: Thing, metadata: {name: t}, more: 1}}`)
	if got, want := text(changed.Object["spec"]), text(want.Object["spec"]); got != want {
		a.Errorf("changed\n%s\nwant\n%s", got, want)
	}
	if err := a.dynamic.Resource(crdResource).Delete(ctx, crd.GetName(), metav1.DeleteOptions{}); err != nil {
		a.Error(err)
	}
}

// testAggregator serves a group from a process of its own.
func testAggregator(a *api) {
	ctx := a.Context()
	seen := make(chan http.Header, 1)
	backend := a.tlsServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch r.URL.Path {
		case "/apis/outside.strake.io/v1":
			fmt.Fprint(w, `{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"outside.strake.io/v1","resources":[{"name":"winds","singularName":"wind","namespaced":false,"kind":"Wind","verbs":["list"]}]}`)
		case "/apis/outside.strake.io/v1/winds":
			select {
			case seen <- r.Header:
			default:
			}
			fmt.Fprint(w, `{"kind":"WindList","apiVersion":"outside.strake.io/v1","metadata":{},"items":[{"kind":"Wind","apiVersion":"outside.strake.io/v1","metadata":{"name":"bora"}}]}`)
		default:
			http.NotFound(w, r)
		}
	}))
	defer backend.Close()
	port := backend.Listener.Addr().(*net.TCPAddr).Port
	must(a.client.CoreV1().Services(a.ns).Create(ctx, service("winds", func(s *corev1.ServiceSpec) {
		s.Type, s.ExternalName, s.Ports = corev1.ServiceTypeExternalName, "127.0.0.1", nil
	}), metav1.CreateOptions{}))(a)
	must(a.dynamic.Resource(apiServiceResource).Create(ctx, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": map[string]any{"name": "v1.outside.strake.io"},
		"spec": map[string]any{
			"group": "outside.strake.io", "version": "v1", "groupPriorityMinimum": int64(100), "versionPriority": int64(10), "insecureSkipTLSVerify": true,
			"service": map[string]any{"namespace": a.ns, "name": "winds", "port": int64(port)},
		},
	}}, metav1.CreateOptions{}))(a)
	winds := schema.GroupVersionResource{Group: "outside.strake.io", Version: "v1", Resource: "winds"}
	a.eventually("its objects", func(ctx context.Context) error {
		list, err := a.dynamic.Resource(winds).List(ctx, metav1.ListOptions{})
		if err == nil && (len(list.Items) != 1 || list.Items[0].GetName() != "bora") {
			err = fmt.Errorf("list %v", list)
		}
		return err
	})
	// The backend learns who asks, from headers that only the front proxy's certificate makes worth something.
	h := <-seen
	if h.Get("X-Remote-User") != "admin" || !slices.Contains(h.Values("X-Remote-Group"), "system:masters") || h.Get("Authorization") != "" {
		a.Errorf("headers %v", h)
	}
	a.eventually("discovery", func(context.Context) error {
		_, lists, err := a.client.Discovery().ServerGroupsAndResources()
		for _, l := range lists {
			if l.GroupVersion == "outside.strake.io/v1" && len(l.APIResources) == 1 {
				return nil
			}
		}
		return fmt.Errorf("not there: %w", err)
	})
	// Away, it is unavailable and says so; the rest goes on.
	backend.CloseClientConnections()
	backend.Close()
	_, err := a.dynamic.Resource(winds).List(ctx, metav1.ListOptions{})
	if !apierrors.IsServiceUnavailable(err) {
		a.Errorf("without a backend: %v", err)
	}
	if err := a.dynamic.Resource(apiServiceResource).Delete(ctx, "v1.outside.strake.io", metav1.DeleteOptions{}); err != nil {
		a.Error(err)
	}
	a.eventually("the group goes with its APIService", func(ctx context.Context) error {
		_, err := a.dynamic.Resource(winds).List(ctx, metav1.ListOptions{})
		if !apierrors.IsNotFound(err) {
			return fmt.Errorf("list: %w", err)
		}
		return nil
	})
}

// tlsServer serves on 127.0.0.1 with a certificate of the test's CA.
func (a *api) tlsServer(h http.Handler) *httptest.Server {
	a.Helper()
	s := httptest.NewUnstartedServer(h)
	s.TLS = a.server.ServerTLS(a)
	s.StartTLS()
	return s
}

// table gets a list as kubectl does.
func (a *api) table(path string) *metav1.Table {
	a.Helper()
	raw, err := a.client.Discovery().RESTClient().Get().AbsPath(path).SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").DoRaw(a.Context())
	var t metav1.Table
	if err == nil {
		err = json.Unmarshal(raw, &t)
	}
	if err != nil {
		a.Fatalf("table of %s: %v", path, err)
	}
	return &t
}
