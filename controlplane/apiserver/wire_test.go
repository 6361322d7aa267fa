package apiserver_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
)

// wire is a client that says itself in which format it speaks.
type wire struct {
	*api
	client *http.Client
}

// send makes a request with these headers ("name: value") and returns its answer, whose body the caller closes.
func (w wire) send(method, path string, body []byte, headers ...string) *http.Response {
	w.Helper()
	req := must(http.NewRequestWithContext(w.Context(), method, w.server.Admin.Host+path, bytes.NewReader(body)))(w)
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	return must(w.client.Do(req))(w)
}

// ask reads the whole answer, which must have this code and type of content.
func (w wire) ask(method, path string, body []byte, code int, contentType string, headers ...string) []byte {
	w.Helper()
	res := w.send(method, path, body, headers...)
	defer res.Body.Close()
	data := must(io.ReadAll(res.Body))(w)
	if got, _, _ := strings.Cut(res.Header.Get("Content-Type"), ";"); res.StatusCode != code || got != contentType {
		w.Errorf("%s %s %q: %s, %s, want %d, %s: %.300q", method, path, headers, res.Status, got, code, contentType, data)
	}
	return data
}

// testWire says the same in every format that the API has.
func testWire(a *api) {
	w := wire{a, must(rest.HTTPClientFor(a.server.Admin))(a)}
	maps := "/api/v1/namespaces/" + a.ns + "/configmaps"
	codecs := serializer.NewCodecFactory(clientscheme.Scheme)
	var formats []string
	for _, info := range codecs.SupportedMediaTypes() {
		formats = append(formats, info.MediaType)
		a.Run(info.MediaType, func(t *testing.T) { testFormat(wire{a.in(t), w.client}, codecs, info) })
	}
	slices.Sort(formats)
	if want := []string{"application/json", "application/vnd.kubernetes.protobuf", "application/yaml"}; !slices.Equal(formats, want) {
		a.Errorf("formats %q, want %q", formats, want)
	}

	// The first of the formats that the client names and the server has is taken.
	w.ask("GET", maps, nil, 200, "application/yaml", "Accept: text/html, application/yaml, application/json")
	w.ask("GET", maps, nil, 200, "application/json", "Accept: */*")
	w.ask("GET", maps, nil, 406, "application/json", "Accept: text/html")
	w.ask("POST", maps, []byte("<p>"), 415, "application/json", "Content-Type: text/html")
	// CBOR is for who switches it on, as with the reference (tests/apiserver).
	w.ask("GET", maps, nil, 406, "application/json", "Accept: application/cbor")

	// What is large is compressed for who asks for it.
	large := configMap("large", nil)
	large.Data["k"] = strings.Repeat("x", 300<<10)
	must(a.client.CoreV1().ConfigMaps(a.ns).Create(a.Context(), large, metav1.CreateOptions{}))(a)
	res := w.send("GET", maps+"/large", nil, "Accept-Encoding: gzip")
	defer res.Body.Close()
	packed := must(io.ReadAll(res.Body))(a)
	if res.Header.Get("Content-Encoding") != "gzip" || len(packed) > 10<<10 {
		a.Errorf("%d bytes of encoding %q", len(packed), res.Header.Get("Content-Encoding"))
	}
	var got corev1.ConfigMap
	if err := json.NewDecoder(must(gzip.NewReader(bytes.NewReader(packed)))(a)).Decode(&got); err != nil || got.Data["k"] != large.Data["k"] {
		a.Errorf("unpacked: %v, %d bytes", err, len(got.Data["k"]))
	}
	if plain := w.ask("GET", maps+"/large", nil, 200, "application/json", "Accept-Encoding: identity"); len(plain) < 300<<10 {
		a.Errorf("%d bytes without compression", len(plain))
	}
}

// testFormat writes, reads, lists, changes and watches objects in one format.
func testFormat(w wire, codecs serializer.CodecFactory, info runtime.SerializerInfo) {
	maps, kind := "/api/v1/namespaces/"+w.ns+"/configmaps", info.MediaType
	name := "in-" + strings.ToLower(info.MediaTypeSubType[strings.LastIndex(info.MediaTypeSubType, ".")+1:])
	encode := func(o runtime.Object) []byte {
		w.Helper()
		return must(runtime.Encode(codecs.EncoderForVersion(info.Serializer, corev1.SchemeGroupVersion), o))(w)
	}
	decode := func(data []byte, into runtime.Object) {
		w.Helper()
		if _, _, err := info.Serializer.Decode(data, nil, into); err != nil {
			w.Errorf("%.200q: %v", data, err)
		}
	}
	m := configMap(name, map[string]string{"format": name})
	m.BinaryData = map[string][]byte{"bytes": {0, 255, 10}}
	var made, changed corev1.ConfigMap
	decode(w.ask("POST", maps, encode(m), 201, kind, "Content-Type: "+kind, "Accept: "+kind), &made)
	if made.UID == "" || made.Data["k"] != "v" || !bytes.Equal(made.BinaryData["bytes"], m.BinaryData["bytes"]) {
		w.Errorf("made %+v", &made)
	}
	made.Data["k"] = "w"
	decode(w.ask("PUT", maps+"/"+name, encode(&made), 200, kind, "Content-Type: "+kind, "Accept: "+kind), &changed)
	decode(w.ask("GET", maps+"/"+name, nil, 200, kind, "Accept: "+kind), &changed)
	if changed.Data["k"] != "w" || changed.UID != made.UID {
		w.Errorf("changed to %+v", &changed)
	}
	var list corev1.ConfigMapList
	decode(w.ask("GET", maps+"?labelSelector=format="+name, nil, 200, kind, "Accept: "+kind), &list)
	if len(list.Items) != 1 || list.Items[0].UID != made.UID || list.ResourceVersion == "" {
		w.Errorf("list %+v", &list)
	}
	var status metav1.Status
	decode(w.ask("GET", maps+"/nosuch", nil, 404, kind, "Accept: "+kind), &status)
	if status.Reason != metav1.StatusReasonNotFound || status.Details.Name != "nosuch" {
		w.Errorf("status %+v", &status)
	}
	if info.StreamSerializer == nil {
		w.ask("GET", maps+"?watch=1", nil, 406, kind, "Accept: "+kind)
		return
	}
	res := w.send("GET", maps+"?watch=1&labelSelector=format="+name, nil, "Accept: "+kind+";stream=watch")
	defer res.Body.Close()
	frames := info.StreamSerializer.NewFrameReader(res.Body)
	frame := make([]byte, 1<<16)
	n := must(frames.Read(frame))(w)
	var e metav1.WatchEvent
	if _, _, err := info.StreamSerializer.Decode(frame[:n], nil, &e); err != nil || e.Type != string(watch.Added) {
		w.Fatalf("event %q: %v", frame[:n], err)
	}
	var seen corev1.ConfigMap
	if decode(e.Object.Raw, &seen); seen.UID != made.UID {
		w.Errorf("watched %+v", &seen)
	}
}

// testPartial asks for less than whole objects: their metadata, as garbage collectors do, and tables.
func testPartial(a *api) {
	ctx := a.Context()
	pods := corev1.SchemeGroupVersion.WithResource("pods")
	client := must(metadata.NewForConfig(a.server.Admin))(a).Resource(pods).Namespace(a.ns)
	made := a.makePod("p", func(p *corev1.Pod) { p.Labels = map[string]string{"a": "b"} })
	if got := must(client.Get(ctx, "p", metav1.GetOptions{}))(a); got.UID != made.UID || got.Labels["a"] != "b" {
		a.Errorf("metadata %+v", got)
	}
	list := must(client.List(ctx, metav1.ListOptions{LabelSelector: "a=b"}))(a)
	if len(list.Items) != 1 || list.Items[0].UID != made.UID || list.ResourceVersion == "" {
		a.Errorf("list %+v", list)
	}
	events := must(client.Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion}))(a)
	defer events.Stop()
	if got := must(client.Patch(ctx, "p", types.MergePatchType, []byte(`{"metadata":{"labels":{"a":"c"}}}`), metav1.PatchOptions{}))(a); got.Labels["a"] != "c" {
		a.Errorf("patched %+v", got)
	}
	if e := <-events.ResultChan(); e.Type != watch.Modified || e.Object.(*metav1.PartialObjectMetadata).Labels["a"] != "c" {
		a.Errorf("event %+v", e)
	}

	w := wire{a, must(rest.HTTPClientFor(a.server.Admin))(a)}
	path := "/api/v1/namespaces/" + a.ns + "/pods"
	for include, want := range map[string]string{"None": "", "Metadata": "PartialObjectMetadata", "Object": "Pod", "": "PartialObjectMetadata"} {
		var table metav1.Table
		data := w.ask("GET", path+"?includeObject="+include, nil, 200, "application/json", "Accept: application/json;as=Table;v=v1;g=meta.k8s.io")
		if err := json.Unmarshal(data, &table); err != nil || len(table.Rows) != 1 {
			a.Errorf("table with %q: %v, %s", include, err, data)
			continue
		}
		var object metav1.TypeMeta
		if raw := table.Rows[0].Object.Raw; want != "" && (json.Unmarshal(raw, &object) != nil || object.Kind != want) || want == "" && raw != nil {
			a.Errorf("with %q: object %.100s, want a %q", include, raw, want)
		}
	}
	w.ask("GET", path+"?includeObject=Everything", nil, 400, "application/json", "Accept: application/json;as=Table;v=v1;g=meta.k8s.io")
	// Who names another form as well gets that one where there is no table.
	w.ask("GET", path, nil, 406, "application/json", "Accept: application/json;as=Chair;v=v1;g=meta.k8s.io")
	var event struct{ Object metav1.Table }
	res := w.send("GET", path+"?watch=1", nil, "Accept: application/json;as=Table;v=v1;g=meta.k8s.io,application/json")
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(&event); err != nil || event.Object.Kind != "Table" || len(event.Object.Rows) != 1 || len(event.Object.ColumnDefinitions) == 0 {
		a.Errorf("watched table: %v, %+v", err, event.Object)
	}
}

// testDiscovery asks once for all there is, as clients of today do.
func testDiscovery(a *api) {
	w := wire{a, must(rest.HTTPClientFor(a.server.Admin))(a)}
	found := map[string]apidiscoveryv2.APIResourceDiscovery{}
	for _, path := range []string{"/api", "/apis"} {
		const accept = "Accept: application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
		res := w.send("GET", path, nil, accept)
		var list apidiscoveryv2.APIGroupDiscoveryList
		err := json.NewDecoder(res.Body).Decode(&list)
		res.Body.Close()
		if err != nil || list.Kind != "APIGroupDiscoveryList" {
			a.Fatalf("%s: %v, %s", path, err, list.Kind)
		}
		for _, g := range list.Items {
			for _, v := range g.Versions {
				if v.Freshness != apidiscoveryv2.DiscoveryFreshnessCurrent {
					a.Errorf("%s %s is %s", g.Name, v.Version, v.Freshness)
				}
				for _, r := range v.Resources {
					found[strings.TrimPrefix(g.Name+"/", "/")+v.Version+" "+r.Resource] = r
				}
			}
		}
		tag := res.Header.Get("ETag")
		again := w.send("GET", path, nil, accept, "If-None-Match: "+tag)
		again.Body.Close()
		if tag == "" || again.StatusCode != http.StatusNotModified {
			a.Errorf("%s with the tag %q: %s", path, tag, again.Status)
		}
	}
	for gv, resources := range reference {
		for name, subresources := range resources {
			r, ok := found[gv+" "+name]
			if !ok || r.ResponseKind == nil || r.ResponseKind.Kind == "" || r.SingularResource == "" || len(r.Verbs) == 0 {
				a.Errorf("%s %s: %+v", gv, name, r)
			}
			var have []string
			for _, s := range r.Subresources {
				have = append(have, s.Subresource)
			}
			slices.Sort(have)
			if !slices.Equal(have, strings.Fields(subresources)) {
				a.Errorf("%s %s: subresources %q, want %q", gv, name, have, subresources)
			}
		}
	}
	// Every kind has its category, as the reference has it.
	for _, name := range []string{"v1 pods", "v1 replicationcontrollers", "v1 services", "apps/v1 daemonsets", "apps/v1 deployments", "apps/v1 replicasets", "apps/v1 statefulsets", "autoscaling/v2 horizontalpodautoscalers", "batch/v1 cronjobs", "batch/v1 jobs"} {
		if !slices.Equal(found[name].Categories, []string{"all"}) {
			a.Errorf("%s: categories %q", name, found[name].Categories)
		}
	}
	for _, name := range []string{
		"admissionregistration.k8s.io/v1 mutatingadmissionpolicies", "admissionregistration.k8s.io/v1 mutatingadmissionpolicybindings", "admissionregistration.k8s.io/v1 mutatingwebhookconfigurations", "admissionregistration.k8s.io/v1 validatingadmissionpolicies",
		"admissionregistration.k8s.io/v1 validatingadmissionpolicybindings", "admissionregistration.k8s.io/v1 validatingwebhookconfigurations", "apiextensions.k8s.io/v1 customresourcedefinitions", "apiregistration.k8s.io/v1 apiservices",
	} {
		if !slices.Equal(found[name].Categories, []string{"api-extensions"}) {
			a.Errorf("%s: categories %q", name, found[name].Categories)
		}
	}
}

// testOperation looks at what operators of a server look at.
func testOperation(a *api) {
	w := wire{a, must(rest.HTTPClientFor(a.server.Admin))(a)}
	metrics := string(w.ask("GET", "/metrics", nil, 200, "text/plain"))
	for _, name := range []string{
		"apiserver_request_total", "apiserver_request_duration_seconds_bucket", "apiserver_current_inflight_requests", "apiserver_longrunning_requests", "apiserver_response_sizes_bucket",
		"apiserver_storage_objects", "apiserver_watch_events_total", "apiserver_admission_controller_admission_duration_seconds_bucket",
		"apiserver_flowcontrol_dispatched_requests_total", "apiserver_flowcontrol_nominal_limit_seats", "apiserver_audit_event_total", "apiserver_tls_handshake_errors_total",
		"authenticated_user_requests", "authentication_attempts", "authorization_attempts_total", "etcd_request_duration_seconds_bucket",
		"workqueue_depth", "rest_client_requests_total", "go_goroutines", "process_resident_memory_bytes",
		"kubernetes_build_info", "kubernetes_feature_enabled",
	} {
		if !strings.Contains(metrics, "\n"+name+"{") && !strings.Contains(metrics, "\n"+name+" ") {
			a.Errorf("no metric %s", name)
		}
	}
	w.ask("GET", "/metrics/slis", nil, 200, "text/plain")
	for path, says := range map[string]string{
		"/healthz": "ok", "/livez": "ok", "/readyz": "ok", "/readyz?verbose": "[+]etcd ok", "/livez/etcd": "ok", "/readyz?verbose&exclude=etcd": "[+]etcd excluded: ok", "/debug/pprof/goroutine?debug=1": "goroutine profile",
		"/statusz": "apiserver statusz", "/flagz": "goaway-chance",
	} {
		if got := string(w.ask("GET", path, nil, 200, "text/plain")); !strings.Contains(got, says) {
			a.Errorf("%s: %.200s", path, got)
		}
	}
	w.ask("GET", "/debug/pprof/", nil, 200, "text/html")
	// Who runs nothing learns nothing of how it runs; who watches over it reads its metrics.
	guest := wire{a, must(rest.HTTPClientFor(a.server.As(a, "guest")))(a)}
	for _, path := range []string{"/metrics", "/debug/pprof/goroutine", "/logs/", "/configz", "/flagz", "/statusz"} {
		guest.ask("GET", path, nil, 403, "application/json")
	}
	guest.ask("GET", "/readyz", nil, 200, "text/plain")
	monitor := wire{a, must(rest.HTTPClientFor(a.server.As(a, "monitor", "system:monitoring")))(a)}
	for _, path := range []string{"/metrics", "/flagz", "/statusz", "/livez/etcd"} {
		monitor.ask("GET", path, nil, 200, "text/plain")
	}
}
