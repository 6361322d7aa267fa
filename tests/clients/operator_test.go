package clients

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/strake-io/strake/controlplane/apiserver/apiservertest"
	"github.com/strake-io/strake/tests/freeport"
)

const finalizer = "fleet.example.org/scrapped"

// harbour is the operator: for each Ship it keeps a ConfigMap, and takes it away before the Ship may go. It stands in for something outside of the cluster, so
// nobody but the operator would do so.
type harbour struct {
	client.Client
	id string
}

// Reconcile implements reconcile.Reconciler.
func (h *harbour) Reconcile(ctx context.Context, r ctrl.Request) (ctrl.Result, error) {
	var ship Ship
	if err := h.Get(ctx, r.NamespacedName, &ship); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	berth := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: r.Namespace, Name: "berth-of-" + r.Name}}
	if !ship.DeletionTimestamp.IsZero() {
		if err := client.IgnoreNotFound(h.Delete(ctx, berth)); err != nil {
			return ctrl.Result{}, err
		}
		controllerutil.RemoveFinalizer(&ship, finalizer)
		return ctrl.Result{}, h.Update(ctx, &ship)
	}
	if controllerutil.AddFinalizer(&ship, finalizer) {
		if err := h.Update(ctx, &ship); err != nil {
			return ctrl.Result{}, err
		}
	}
	_, err := controllerutil.CreateOrUpdate(ctx, h.Client, berth, func() error {
		berth.Data = map[string]string{"captain": ship.Spec.Captain, "by": h.id}
		return nil
	})
	if err != nil || ship.Status.Ready {
		return ctrl.Result{}, err
	}
	before := ship.DeepCopyObject().(*Ship)
	ship.Status.Ready = true
	return ctrl.Result{}, h.Status().Patch(ctx, &ship, client.MergeFrom(before))
}

// rules are the operator's webhooks.
type rules struct{}

func (rules) Default(_ context.Context, s *Ship) error {
	if s.Spec.Captain == "" {
		s.Spec.Captain = "Ahab"
	}
	return nil
}

func (rules) ValidateCreate(_ context.Context, s *Ship) (admission.Warnings, error) {
	if s.Spec.Crew > 100 {
		return nil, fmt.Errorf("%d do not fit aboard", s.Spec.Crew)
	}
	return nil, nil
}

func (r rules) ValidateUpdate(ctx context.Context, _, s *Ship) (admission.Warnings, error) {
	return r.ValidateCreate(ctx, s)
}

func (rules) ValidateDelete(context.Context, *Ship) (admission.Warnings, error) { return nil, nil }

// startOperator starts one of several; stop ends it and waits for its end.
func startOperator(t *testing.T, s *apiservertest.Server, id string, port int, certs string) (m ctrl.Manager, stop func()) {
	t.Helper()
	scheme := runtime.NewScheme()
	addShips(scheme)
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), apiextensionsv1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	again := true
	m, err := ctrl.NewManager(s.Admin, ctrl.Options{
		Scheme: scheme, Metrics: server.Options{BindAddress: "0"}, Controller: config.Controller{SkipNameValidation: &again},
		LeaderElection: true, LeaderElectionID: "harbour", LeaderElectionNamespace: "default", LeaderElectionReleaseOnCancel: true,
		WebhookServer: webhook.NewServer(webhook.Options{Host: "127.0.0.1", Port: port, CertDir: certs}),
	})
	if err == nil {
		err = errors.Join(
			ctrl.NewControllerManagedBy(m).For(&Ship{}).Named("ships").Complete(&harbour{m.GetClient(), id}),
			ctrl.NewWebhookManagedBy(m, &Ship{}).WithDefaulter(rules{}).WithValidator(rules{}).Complete(),
		)
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Start(ctx) }()
	stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("operator %s: %v", id, err)
		}
		done <- nil
	}
	t.Cleanup(stop)
	return m, stop
}

// TestOperator runs two operators made with controller-runtime against the API server: definition, defaulting, validation, conversion, status, finalizer,
// caches, and another leader when the first one ends.
func TestOperator(t *testing.T) {
	log.SetLogger(log.Log.WithSink(log.NullLogSink{}))
	s := apiservertest.Start(t)
	certs := t.TempDir()
	cert, key := s.Sign(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "harbour"}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	})
	if err := errors.Join(os.WriteFile(filepath.Join(certs, "tls.crt"), cert, 0o600), os.WriteFile(filepath.Join(certs, "tls.key"), key, 0o600)); err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(s.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	port := freeport.Find(t)
	url := func(path string) *string {
		u := fmt.Sprintf("https://127.0.0.1:%d%s", port, path)
		return &u
	}
	scheme := runtime.NewScheme()
	addShips(scheme)
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), apiextensionsv1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(s.Admin, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if err := c.Create(ctx, shipDefinition(*url("/convert"), ca)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the definition is established", func() error {
		var d apiextensionsv1.CustomResourceDefinition
		if err := c.Get(ctx, client.ObjectKey{Name: "ships.fleet.example.org"}, &d); err != nil {
			return err
		}
		for _, cond := range d.Status.Conditions {
			if cond.Type == apiextensionsv1.Established && cond.Status == apiextensionsv1.ConditionTrue {
				return nil
			}
		}
		return fmt.Errorf("%+v", d.Status.Conditions)
	})

	_, stopFirst := startOperator(t, s, "first", port, certs)
	none, fail, all := admissionv1.SideEffectClassNone, admissionv1.Fail, []admissionv1.OperationType{admissionv1.Create, admissionv1.Update}
	ships := []admissionv1.RuleWithOperations{{Operations: all, Rule: admissionv1.Rule{APIGroups: []string{shipVersion.Group}, APIVersions: []string{"v1"}, Resources: []string{"ships"}}}}
	mutating := &admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "ships"}, Webhooks: []admissionv1.MutatingWebhook{{
		Name: "default.fleet.example.org", Rules: ships, SideEffects: &none, FailurePolicy: &fail, AdmissionReviewVersions: []string{"v1"},
		ClientConfig: admissionv1.WebhookClientConfig{URL: url("/mutate-fleet-example-org-v1-ship"), CABundle: ca},
	}}}
	validating := &admissionv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "ships"}, Webhooks: []admissionv1.ValidatingWebhook{{
		Name: "validate.fleet.example.org", Rules: ships, SideEffects: &none, FailurePolicy: &fail, AdmissionReviewVersions: []string{"v1"},
		ClientConfig: admissionv1.WebhookClientConfig{URL: url("/validate-fleet-example-org-v1-ship"), CABundle: ca},
	}}}
	if err := errors.Join(c.Create(ctx, mutating), c.Create(ctx, validating)); err != nil {
		t.Fatal(err)
	}

	eventually(t, "a ship that is too full is refused", func() error {
		err := c.Create(ctx, &Ship{ObjectMeta: metav1.ObjectMeta{Namespace: "default", GenerateName: "full-"}, Spec: ShipSpec{Crew: 101}})
		if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "101 do not fit aboard") {
			return fmt.Errorf("%w", errOr(err, "it is taken"))
		}
		return nil
	})
	pequod := &Ship{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "pequod"}, Spec: ShipSpec{Crew: 30}}
	if err := c.Create(ctx, pequod); err != nil {
		t.Fatal(err)
	}
	if pequod.Spec.Captain != "Ahab" {
		t.Errorf("defaulted to %+v", pequod.Spec)
	}
	berth := func(name, captain, by string) {
		t.Helper()
		eventually(t, "the berth of "+name, func() error {
			var m corev1.ConfigMap
			if err := c.Get(ctx, client.ObjectKey{Namespace: "default", Name: "berth-of-" + name}, &m); err != nil {
				return err
			}
			if m.Data["captain"] != captain || m.Data["by"] != by {
				return fmt.Errorf("%v", m.Data)
			}
			return nil
		})
	}
	berth("pequod", "Ahab", "first")
	eventually(t, "the status", func() error {
		if err := c.Get(ctx, client.ObjectKeyFromObject(pequod), pequod); err != nil || !pequod.Status.Ready || !controllerutil.ContainsFinalizer(pequod, finalizer) {
			return fmt.Errorf("%+v, %w", pequod, err)
		}
		return nil
	})
	if pequod.Generation != 1 {
		t.Errorf("generation %d: the status counts", pequod.Generation)
	}

	// The old spelling, there and back.
	var old OldShip
	if err := c.Get(ctx, client.ObjectKeyFromObject(pequod), &old); err != nil || !strings.HasPrefix(old.Spec.Crew, "Ahab,a sailor,") || !old.Status.Ready {
		t.Errorf("%+v, %v", old, err)
	}
	beagle := &OldShip{TypeMeta: metav1.TypeMeta{APIVersion: oldShipVersion.String(), Kind: "Ship"}, ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "beagle"}, Spec: OldShipSpec{Crew: "FitzRoy,Darwin"}}
	if err := c.Create(ctx, beagle); err != nil {
		t.Fatal(err)
	}
	berth("beagle", "FitzRoy", "first")

	// The second operator waits until the first one gives up its lease.
	secondPort := freeport.Find(t)
	second, _ := startOperator(t, s, "second", secondPort, certs)
	if !second.GetCache().WaitForCacheSync(ctx) {
		t.Fatal("the second one's caches are not filled")
	}
	select {
	case <-second.Elected():
		t.Error("two leaders")
	default:
	}
	stopFirst()
	<-second.Elected()
	berth("pequod", "Ahab", "second")

	// While nobody answers at the webhooks' address no ship is taken; with another address they are again.
	if err := c.Create(ctx, &Ship{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "ghost"}}); !apierrors.IsInternalError(err) {
		t.Errorf("without the webhook: %v", err)
	}
	port = secondPort
	mutating.Webhooks[0].ClientConfig.URL, validating.Webhooks[0].ClientConfig.URL = url("/mutate-fleet-example-org-v1-ship"), url("/validate-fleet-example-org-v1-ship")
	if err := errors.Join(c.Update(ctx, mutating), c.Update(ctx, validating)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a ship by the second operator", func() error {
		return c.Create(ctx, &Ship{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "titanic"}, Spec: ShipSpec{Captain: "Smith"}})
	})
	berth("titanic", "Smith", "second")

	// A ship goes when its berth is gone.
	if err := c.Delete(ctx, pequod); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the ship is gone", func() error {
		return expectGone(c.Get(ctx, client.ObjectKeyFromObject(pequod), &Ship{}))
	})
	if err := expectGone(c.Get(ctx, client.ObjectKey{Namespace: "default", Name: "berth-of-pequod"}, &corev1.ConfigMap{})); err != nil {
		t.Errorf("its berth: %v", err)
	}
}

func expectGone(err error) error {
	if !apierrors.IsNotFound(err) {
		return errOr(err, "it is there")
	}
	return nil
}

func errOr(err error, what string) error {
	if err != nil {
		return err
	}
	return errors.New(what)
}

func shipDefinition(convert string, ca []byte) *apiextensionsv1.CustomResourceDefinition {
	keep := true
	schema := &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{Type: "object", Properties: map[string]apiextensionsv1.JSONSchemaProps{
		"spec":   {Type: "object", XPreserveUnknownFields: &keep},
		"status": {Type: "object", XPreserveUnknownFields: &keep},
	}}}
	version := func(name string, stored bool) apiextensionsv1.CustomResourceDefinitionVersion {
		return apiextensionsv1.CustomResourceDefinitionVersion{Name: name, Served: true, Storage: stored, Schema: schema, Subresources: &apiextensionsv1.CustomResourceSubresources{Status: &apiextensionsv1.CustomResourceSubresourceStatus{}}}
	}
	return &apiextensionsv1.CustomResourceDefinition{
		ObjectMeta: metav1.ObjectMeta{Name: "ships.fleet.example.org"},
		Spec: apiextensionsv1.CustomResourceDefinitionSpec{
			Group: shipVersion.Group, Scope: apiextensionsv1.NamespaceScoped, Names: apiextensionsv1.CustomResourceDefinitionNames{Plural: "ships", Kind: "Ship"},
			Versions: []apiextensionsv1.CustomResourceDefinitionVersion{version("v1", true), version("v1alpha1", false)},
			Conversion: &apiextensionsv1.CustomResourceConversion{Strategy: apiextensionsv1.WebhookConverter, Webhook: &apiextensionsv1.WebhookConversion{
				ConversionReviewVersions: []string{"v1"}, ClientConfig: &apiextensionsv1.WebhookClientConfig{URL: &convert, CABundle: ca},
			}},
		},
	}
}

// eventually waits until f finds nothing wrong.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	for late := time.Now().Add(time.Minute); ; {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(late) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
