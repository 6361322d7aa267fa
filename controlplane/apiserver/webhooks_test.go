package apiserver_test

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"

	admissionv1 "k8s.io/api/admission/v1"
	registration "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// reviewer is a server of webhooks: its paths answer as they are told, and it remembers what it was asked.
type reviewer struct {
	*httptest.Server
	mu    sync.Mutex
	asked map[string][]*admissionv1.AdmissionRequest
}

func (a *api) reviewer(answers map[string]func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse) *reviewer {
	r := &reviewer{asked: map[string][]*admissionv1.AdmissionRequest{}}
	r.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		var review admissionv1.AdmissionReview
		if err := json.NewDecoder(req.Body).Decode(&review); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		path := strings.TrimPrefix(req.URL.Path, "/")
		r.mu.Lock()
		r.asked[path] = append(r.asked[path], review.Request)
		r.mu.Unlock()
		review.Response = answers[path](review.Request)
		review.Response.UID, review.Request = review.Request.UID, nil
		json.NewEncoder(w).Encode(review)
	}))
	a.Cleanup(r.Close)
	return r
}

// took returns the requests that a path has got since the last time.
func (r *reviewer) took(path string) []*admissionv1.AdmissionRequest {
	r.mu.Lock()
	defer r.mu.Unlock()
	got := r.asked[path]
	delete(r.asked, path)
	return got
}

func (r *reviewer) client(path string) registration.WebhookClientConfig {
	url := r.URL + "/" + path
	return registration.WebhookClientConfig{URL: &url, CABundle: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.Certificate().Raw})}
}

func allowed(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	return &admissionv1.AdmissionResponse{Allowed: true}
}

// patched allows, and sets a label to what f makes of the object.
func patched(label string, f func(labels map[string]string) string) func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	return func(r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		var o metav1.PartialObjectMetadata
		if err := json.Unmarshal(r.Object.Raw, &o); err != nil {
			return &admissionv1.AdmissionResponse{Result: &metav1.Status{Message: err.Error()}}
		}
		kind := admissionv1.PatchTypeJSONPatch
		return &admissionv1.AdmissionResponse{Allowed: true, PatchType: &kind, Patch: fmt.Appendf(nil, `[{"op":"add","path":"/metadata/labels/%s","value":%q}]`, label, f(o.Labels))}
	}
}

// testWebhooks has honest webhooks asked: about what, in which version, how often, and by whom not.
func testWebhooks(a *api) {
	ctx, create := a.Context(), metav1.CreateOptions{}
	hooks := a.reviewer(map[string]func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse{
		"first":  patched("first", func(l map[string]string) string { return "saw-" + l["second"] }),
		"second": patched("second", func(map[string]string) string { return "was-there" }),
		"judge": func(r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
			if strings.HasPrefix(r.Name, "bad") {
				return &admissionv1.AdmissionResponse{Result: &metav1.Status{Code: 418, Reason: "Teapot", Message: "no coffee"}}
			}
			return &admissionv1.AdmissionResponse{Allowed: true, Warnings: []string{"it is hot"}}
		},
		"scale": allowed, "exec": allowed,
	})
	none, fail, ignore, second := registration.SideEffectClassNone, registration.Fail, registration.Ignore, int32(5)
	ifNeeded, equivalent, exact := registration.IfNeededReinvocationPolicy, registration.Equivalent, registration.Exact
	here := &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": a.ns}}
	rule := func(group, version, resource string, ops ...registration.OperationType) []registration.RuleWithOperations {
		return []registration.RuleWithOperations{{Operations: ops, Rule: registration.Rule{APIGroups: []string{group}, APIVersions: []string{version}, Resources: []string{resource}}}}
	}
	mutating := func(name string) registration.MutatingWebhook {
		return registration.MutatingWebhook{Name: name + ".example.org", SideEffects: &none, FailurePolicy: &fail, TimeoutSeconds: &second, AdmissionReviewVersions: []string{"v1"}, ClientConfig: hooks.client(name),
			NamespaceSelector: here, ObjectSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"mutate": "yes"}}, ReinvocationPolicy: &ifNeeded, Rules: rule("", "v1", "configmaps", registration.Create)}
	}
	validating := func(name, path string, rules []registration.RuleWithOperations, change func(*registration.ValidatingWebhook)) registration.ValidatingWebhook {
		w := registration.ValidatingWebhook{Name: name + ".example.org", SideEffects: &none, FailurePolicy: &fail, TimeoutSeconds: &second, AdmissionReviewVersions: []string{"v1"}, ClientConfig: hooks.client(path), NamespaceSelector: here, Rules: rules}
		change(&w)
		return w
	}
	away := "https://127.0.0.1:1/"
	mutators := &registration.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "m-" + a.ns}, Webhooks: []registration.MutatingWebhook{mutating("first"), mutating("second")}}
	judges := &registration.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "v-" + a.ns}, Webhooks: []registration.ValidatingWebhook{
		validating("judge", "judge", rule("", "v1", "configmaps", registration.Create, registration.Update, registration.Delete), func(w *registration.ValidatingWebhook) {
			w.MatchConditions = []registration.MatchCondition{{Name: "not-exempt", Expression: "request.operation == 'DELETE' || !(has(object.metadata.labels) && 'exempt' in object.metadata.labels)"}}
		}),
		validating("away", "judge", rule("", "v1", "configmaps", registration.Create), func(w *registration.ValidatingWebhook) {
			w.ClientConfig, w.FailurePolicy = registration.WebhookClientConfig{URL: &away}, &ignore
		}),
		// Whoever registered for the old version is asked in it about what comes in the new one.
		validating("old", "scale", rule("autoscaling", "v1", "horizontalpodautoscalers", registration.Create), func(w *registration.ValidatingWebhook) { w.MatchPolicy = &equivalent }),
		validating("only-old", "exec", rule("autoscaling", "v1", "horizontalpodautoscalers", registration.Create), func(w *registration.ValidatingWebhook) { w.MatchPolicy = &exact }),
		validating("scales", "scale", rule("apps", "v1", "deployments/scale", registration.Update), func(*registration.ValidatingWebhook) {}),
	}}
	must(a.client.AdmissionregistrationV1().MutatingWebhookConfigurations().Create(ctx, mutators, create))(a)
	must(a.client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Create(ctx, judges, create))(a)
	a.Cleanup(func() {
		err := errors.Join(a.client.AdmissionregistrationV1().MutatingWebhookConfigurations().Delete(context.Background(), mutators.Name, metav1.DeleteOptions{}),
			a.client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Delete(context.Background(), judges.Name, metav1.DeleteOptions{}))
		if err != nil {
			a.Error(err)
		}
	})
	client, warned := a.warned()
	maps := client.CoreV1().ConfigMaps(a.ns)
	a.eventually("the webhooks are asked", func(ctx context.Context) error {
		_, err := maps.Create(ctx, configMap("bad", map[string]string{"mutate": "yes"}), create)
		if err == nil {
			err = errors.Join(errors.New("it is taken"), maps.Delete(ctx, "bad", metav1.DeleteOptions{}))
		}
		var status apierrors.APIStatus
		if !errors.As(err, &status) || status.Status().Code != 418 || !strings.Contains(err.Error(), `admission webhook "judge.example.org" denied the request: no coffee`) {
			return err
		}
		if len(hooks.took("second")) == 0 {
			return errors.New("the mutating ones are not")
		}
		return nil
	})
	for _, path := range []string{"first", "judge"} {
		hooks.took(path)
	}
	// Who has asked to be asked again is, when a later one has changed the object.
	*warned = nil
	m := must(maps.Create(ctx, configMap("good", map[string]string{"mutate": "yes"}), create))(a)
	if m.Labels["first"] != "saw-was-there" || m.Labels["second"] != "was-there" || len(hooks.took("first")) != 2 {
		a.Errorf("labels %v", m.Labels)
	}
	if len(*warned) != 1 || (*warned)[0] != "it is hot" {
		a.Errorf("warnings %q", *warned)
	}
	if r := hooks.took("judge"); len(r) != 1 || r[0].Operation != admissionv1.Create || r[0].UserInfo.Username != "admin" || r[0].Namespace != a.ns || r[0].Name != "good" || r[0].OldObject.Raw != nil || !strings.Contains(string(r[0].Object.Raw), "saw-was-there") {
		a.Errorf("asked for %+v", r)
	}
	must(maps.Create(ctx, configMap("bad-but-exempt", map[string]string{"exempt": ""}), create))(a)
	must(maps.Patch(ctx, "good", types.MergePatchType, []byte(`{"data":{"k":"w"}}`), metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}}))(a)
	if r := hooks.took("judge"); len(r) != 1 || r[0].Operation != admissionv1.Update || r[0].DryRun == nil || !*r[0].DryRun || !strings.Contains(string(r[0].OldObject.Raw), `"k":"v"`) {
		a.Errorf("asked for %+v", r)
	}
	if err := maps.Delete(ctx, "good", metav1.DeleteOptions{}); err != nil {
		a.Error(err)
	}
	if r := hooks.took("judge"); len(r) != 1 || r[0].Operation != admissionv1.Delete || r[0].Object.Raw != nil || !strings.Contains(string(r[0].OldObject.Raw), `"good"`) {
		a.Errorf("asked for %+v", r)
	}
	a.create(schema.GroupVersionResource{Group: "autoscaling", Version: "v2", Resource: "horizontalpodautoscalers"}, `
kind: HorizontalPodAutoscaler
metadata: {name: h, namespace: @NS@}
spec: {maxReplicas: 3, scaleTargetRef: {kind: Deployment, name: d, apiVersion: apps/v1}, metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 44}}}]}
`)
	if r := hooks.took("scale"); len(r) != 1 || r[0].Kind.Version != "v1" || r[0].RequestKind.Version != "v2" || !strings.Contains(string(r[0].Object.Raw), `"targetCPUUtilizationPercentage":44`) {
		a.Errorf("asked for %+v", r)
	}
	if r := hooks.took("exec"); len(r) != 0 {
		a.Errorf("asked for %+v, which it is not about", r)
	}
	must(client.AppsV1().Deployments(a.ns).Create(ctx, deployment("d"), create))(a)
	must(client.AppsV1().Deployments(a.ns).Patch(ctx, "d", types.MergePatchType, []byte(`{"spec":{"replicas":2}}`), metav1.PatchOptions{}, "scale"))(a)
	if r := hooks.took("scale"); len(r) != 1 || r[0].SubResource != "scale" || r[0].Kind.Kind != "Scale" || !strings.Contains(string(r[0].Object.Raw), `"replicas":2`) {
		a.Errorf("asked for %+v", r)
	}
}
