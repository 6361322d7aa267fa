package apiserver

import (
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	registration "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"

	"github.com/strake-io/strake/controlplane/apiserver"
)

// TestWebhooksThatHangAndLie has webhooks that do whatever they like: each write gets a Status in bounded time, and none is stored that should not be.
func TestWebhooksThatHangAndLie(t *testing.T) {
	t.Parallel()
	s := serve(t, func(*apiserver.Config) {})
	client := clientOf(t, s.Admin)
	patch := func(ops string) func(http.ResponseWriter, types.UID) {
		return func(w http.ResponseWriter, id types.UID) {
			kind := admissionv1.PatchTypeJSONPatch
			json.NewEncoder(w).Encode(admissionv1.AdmissionReview{TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"}, Response: &admissionv1.AdmissionResponse{UID: id, Allowed: true, Patch: []byte(ops), PatchType: &kind}})
		}
	}
	ended := make(chan struct{})
	answers := map[string]func(http.ResponseWriter, types.UID){
		"hangs":                 func(http.ResponseWriter, types.UID) { <-ended },
		"says-nothing":          func(http.ResponseWriter, types.UID) {},
		"talks-rubbish":         func(w http.ResponseWriter, _ types.UID) { io.WriteString(w, "\x00{rubbish") },
		"means-another-request": func(w http.ResponseWriter, _ types.UID) { patch(`[]`)(w, "somebody-elses") },
		"sends-a-broken-patch":  patch(`[{"op":"fly","path":"/"}]`),
		"patches-into-nothing":  patch(`[{"op":"replace","path":"/no/such/place","value":1}]`),
		"makes-it-invalid":      patch(`[{"op":"replace","path":"/data","value":{"a/b":"c"}}]`),
		"renames-it":            patch(`[{"op":"replace","path":"/metadata/name","value":"renamed"}]`),
		"never-stops-talking": func(w http.ResponseWriter, _ types.UID) {
			for w != nil {
				if _, err := w.Write(make([]byte, 1<<20)); err != nil {
					return
				}
			}
		},
		"sends-it-elsewhere": func(w http.ResponseWriter, _ types.UID) {
			w.Header().Set("Location", "https://127.0.0.1:1/")
			w.WriteHeader(http.StatusTemporaryRedirect)
		},
	}
	hook := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var review admissionv1.AdmissionReview
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		answers[strings.TrimPrefix(r.URL.Path, "/")](w, review.Request.UID)
	}))
	t.Cleanup(hook.Close)
	t.Cleanup(func() { close(ended) })
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: hook.Certificate().Raw})
	none, fail, second := registration.SideEffectClassNone, registration.Fail, int32(1)
	conf := &registration.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "liars"}}
	for name := range answers {
		url := hook.URL + "/" + name
		conf.Webhooks = append(conf.Webhooks, registration.MutatingWebhook{
			Name: name + ".example.org", SideEffects: &none, FailurePolicy: &fail, TimeoutSeconds: &second, AdmissionReviewVersions: []string{"v1"},
			ClientConfig: registration.WebhookClientConfig{URL: &url, CABundle: ca}, ObjectSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"ask": name}},
			Rules: []registration.RuleWithOperations{{Operations: []registration.OperationType{registration.Create}, Rule: registration.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"configmaps"}}}},
		})
	}
	if _, err := client.AdmissionregistrationV1().MutatingWebhookConfigurations().Create(t.Context(), conf, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	maps := client.CoreV1().ConfigMaps(metav1.NamespaceDefault)
	for name := range answers {
		t.Run(name, func(t *testing.T) {
			m := configMap(name)
			m.Labels = map[string]string{"ask": name}
			var err error
			began := time.Now()
			// Until the server knows its webhooks, it takes the object.
			for ; ; maps.Delete(t.Context(), name, metav1.DeleteOptions{}) {
				if _, err = maps.Create(t.Context(), m, metav1.CreateOptions{}); err != nil {
					break
				}
				if time.Since(began) > 30*time.Second {
					t.Fatal("it is taken")
				}
			}
			if status := apierrors.APIStatus(nil); !errors.As(err, &status) || status.Status().Code < 400 {
				t.Errorf("%v, want a Status", err)
			}
			if _, err := maps.Get(t.Context(), name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
				t.Errorf("it is stored: %v", err)
			}
		})
	}
	// Others are not in their way.
	if _, err := maps.Create(t.Context(), configMap("honest"), metav1.CreateOptions{}); err != nil {
		t.Error(err)
	}
}

// TestSlowClients holds requests back: bodies that never come, and watches that nobody reads while events pour in.
func TestSlowClients(t *testing.T) {
	t.Parallel()
	s := serve(t, func(c *apiserver.Config) { c.Settings.RequestTimeout = 3 * time.Second })
	client := clientOf(t, s.Admin)
	for range 50 {
		body, keep := io.Pipe()
		defer keep.Close()
		go client.CoreV1().RESTClient().Post().Namespace(metav1.NamespaceDefault).Resource("configmaps").Body(body).Do(t.Context())
		stream, err := client.CoreV1().RESTClient().Get().Namespace(metav1.NamespaceDefault).Resource("configmaps").Param("watch", "1").Stream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer stream.Close() // and never read
	}
	maps := client.CoreV1().ConfigMaps(metav1.NamespaceDefault)
	list, err := maps.List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// Who reads may be ended too, where the machine has no time for it, and then goes on where it was, as all clients do.
	reader, err := watchtools.NewRetryWatcherWithContext(t.Context(), list.ResourceVersion, &cache.ListWatch{WatchFuncWithContext: maps.Watch})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Stop()
	big := strings.Repeat("x", 64<<10)
	go func() {
		for i := range 300 {
			m := configMap(fmt.Sprint("m-", i))
			m.Data["k"] = big
			if _, err := maps.Create(t.Context(), m, metav1.CreateOptions{}); err != nil {
				t.Errorf("beside slow clients: %v", err)
			}
		}
	}()
	late := time.After(5 * time.Minute)
	for seen := 0; seen < 300; {
		select {
		case e, ok := <-reader.ResultChan():
			if !ok {
				t.Fatalf("who reads is cut off after %d events", seen)
			}
			if e.Type == "ADDED" {
				seen++
			}
		case <-late:
			t.Fatalf("%d events in five minutes", seen)
		}
	}
	if err := lists(t.Context(), client); err != nil {
		t.Error(err)
	}
}
