package apiserver

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	registration "k8s.io/api/admissionregistration/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/strake-io/strake/controlplane/apiserver"
)

// TestFloodOfOneUser has one user ask for more than the server takes, and slowly: what is too much is refused, and told to come later; another user, of the same
// priority level, is served as if there were no flood.
func TestFloodOfOneUser(t *testing.T) {
	t.Parallel()
	s := serve(t, func(c *apiserver.Config) { c.Settings.MaxRequestsInflight, c.Settings.MaxMutatingInflight = 10, 10 })
	admin := clientOf(t, s.Admin)
	if _, err := admin.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "users"}, RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: "edit"}, Subjects: []rbacv1.Subject{{Kind: "Group", Name: "users"}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	// A webhook makes each request take its time, without any work for this machine.
	var slow atomic.Int64
	hook := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var review admissionv1.AdmissionReview
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		slow.Add(1)
		time.Sleep(50 * time.Millisecond)
		review.Response = &admissionv1.AdmissionResponse{UID: review.Request.UID, Allowed: true}
		json.NewEncoder(w).Encode(review)
	}))
	t.Cleanup(hook.Close)
	none, ignore := registration.SideEffectClassNone, registration.Ignore
	if _, err := admin.AdmissionregistrationV1().ValidatingWebhookConfigurations().Create(t.Context(), &registration.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "slow"}, Webhooks: []registration.ValidatingWebhook{{
		Name: "slow.example.org", SideEffects: &none, FailurePolicy: &ignore, AdmissionReviewVersions: []string{"v1"},
		ClientConfig: registration.WebhookClientConfig{URL: &hook.URL, CABundle: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: hook.Certificate().Raw})},
		Rules:        []registration.RuleWithOperations{{Operations: []registration.OperationType{registration.Create}, Rule: registration.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"configmaps"}}}},
	}}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	// write is a request as a user makes it, and what there is to know of a refusal; nothing is stored.
	write := func(ctx context.Context, client kubernetes.Interface) error {
		return client.CoreV1().RESTClient().Post().MaxRetries(0).Namespace(metav1.NamespaceDefault).Resource("configmaps").Param("dryRun", "All").Body(configMap("m")).Do(ctx).Error()
	}
	flooder, other := clientOf(t, s.As(t, "flooder", "users")), clientOf(t, s.As(t, "other", "users"))
	for name, client := range map[string]kubernetes.Interface{"flooder": flooder, "other": other} {
		eventually(t, name+" may write, by the webhook", func(ctx context.Context) error {
			before := slow.Load()
			err := write(ctx, client)
			if err == nil && slow.Load() == before {
				err = errors.New("it is not asked")
			}
			return err
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	var flood sync.WaitGroup
	defer flood.Wait()
	defer cancel()
	var refused, later atomic.Int64
	for range 400 {
		flood.Go(func() {
			for ctx.Err() == nil {
				err := write(ctx, flooder)
				if !apierrors.IsTooManyRequests(err) {
					continue
				}
				refused.Add(1)
				if seconds, told := apierrors.SuggestsClientDelay(err); told && seconds > 0 {
					later.Add(1)
				}
				select { // or refusals were all that this machine does
				case <-ctx.Done():
				case <-time.After(200 * time.Millisecond):
				}
			}
		})
	}
	eventually(t, "what is too much is refused", func(context.Context) error {
		if refused.Load() < 10 {
			return errors.New("not yet")
		}
		return nil
	})
	for range 5 {
		if err := write(t.Context(), other); err != nil {
			t.Errorf("beside the flood: %v", err)
		}
	}
	cancel()
	flood.Wait()
	if refused.Load() != later.Load() {
		t.Errorf("%d requests refused, but only %d told when to come again", refused.Load(), later.Load())
	}
	if m := metricsOf(t, admin); !strings.Contains(m, `apiserver_flowcontrol_rejected_requests_total{flow_schema="global-default",priority_level="global-default",reason="queue-full"}`) {
		t.Error("the metrics don't tell of the flood")
	}
}
