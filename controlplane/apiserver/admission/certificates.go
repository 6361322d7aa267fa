package admission

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/initializer"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"github.com/strake-io/strake/controlplane/apiserver/resources"
)

var signingRequests = schema.GroupResource{Group: certificatesv1.GroupName, Resource: "certificatesigningrequests"}

// signers asks whether a user may do something in the name of a signer. RBAC grants verbs on the resource "signers", which
// exists for this alone; its names are those of signers, or all of a domain ("example.com/*").
type signers struct {
	*admission.Handler
	verb, subresource string
	// touched tells whether an update does what the verb is about.
	touched func(c, old *certificatesv1.CertificateSigningRequest) bool
	authz   authorizer.Authorizer
}

var (
	_ admission.ValidationInterface = (*signers)(nil)
	_ initializer.WantsAuthorizer   = (*signers)(nil)
)

// newCertificateApproval wants the verb "approve" of who approves or denies.
func newCertificateApproval() (admission.Interface, error) {
	always := func(_, _ *certificatesv1.CertificateSigningRequest) bool { return true }
	return &signers{Handler: admission.NewHandler(admission.Update), verb: "approve", subresource: "approval", touched: always}, nil
}

// newCertificateSigning wants the verb "sign" of who issues a certificate or says why there is none.
func newCertificateSigning() (admission.Interface, error) {
	issued := func(c, old *certificatesv1.CertificateSigningRequest) bool {
		return !apiequality.Semantic.DeepEqual(c.Status, old.Status)
	}
	return &signers{Handler: admission.NewHandler(admission.Update), verb: "sign", subresource: "status", touched: issued}, nil
}

func (s *signers) SetAuthorizer(a authorizer.Authorizer) { s.authz = a }

func (s *signers) ValidateInitialization() error {
	if s.authz == nil {
		return errors.New("admission of certificates: no authorizer")
	}
	return nil
}

func (s *signers) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if a.GetResource().GroupResource() != signingRequests || a.GetSubresource() != s.subresource {
		return nil
	}
	c, ok := a.GetObject().(*certificatesv1.CertificateSigningRequest)
	old, was := a.GetOldObject().(*certificatesv1.CertificateSigningRequest)
	if !ok || !was {
		return admission.NewForbidden(a, fmt.Errorf("unexpected types %T, %T", a.GetObject(), a.GetOldObject()))
	}
	if !s.touched(c, old) {
		return nil
	}
	return permitted(ctx, s.authz, a, s.verb, old.Spec.SignerName)
}

// permitted refuses who may not do this in the name of a signer.
func permitted(ctx context.Context, authz authorizer.Authorizer, a admission.Attributes, verb, name string) error {
	domain, _, _ := strings.Cut(name, "/")
	for _, n := range []string{name, domain + "/*"} {
		decision, _, err := authz.Authorize(ctx, authorizer.AttributesRecord{
			User: a.GetUserInfo(), Verb: verb, Name: n, APIGroup: certificatesv1.GroupName, APIVersion: "*", Resource: "signers", ResourceRequest: true,
		})
		switch {
		case decision == authorizer.DecisionAllow:
			return nil
		case err != nil:
			return admission.NewForbidden(a, fmt.Errorf("may %s of signer %q: %w", verb, name, err))
		}
	}
	return admission.NewForbidden(a, fmt.Errorf("user not permitted to %s requests with signerName %q", verb, name))
}

// bundleAttest wants the verb "attest" of who publishes what to trust in the name of a signer.
type bundleAttest struct {
	*admission.Handler
	authz authorizer.Authorizer
}

var (
	_ admission.ValidationInterface = (*bundleAttest)(nil)
	_ initializer.WantsAuthorizer   = (*bundleAttest)(nil)
)

func newBundleAttest() (admission.Interface, error) {
	return &bundleAttest{Handler: admission.NewHandler(admission.Create, admission.Update)}, nil
}

func (b *bundleAttest) SetAuthorizer(a authorizer.Authorizer) { b.authz = a }

func (b *bundleAttest) ValidateInitialization() error {
	if b.authz == nil {
		return errors.New("ClusterTrustBundleAttest admission: no authorizer")
	}
	return nil
}

func (b *bundleAttest) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	bundle, ok := a.GetObject().(*certificatesv1.ClusterTrustBundle)
	if !ok || bundle.Spec.SignerName == "" {
		return nil
	}
	if old, ok := a.GetOldObject().(*certificatesv1.ClusterTrustBundle); ok && apiequality.Semantic.DeepEqual(bundle.Spec, old.Spec) {
		return nil // finalizers and labels
	}
	return permitted(ctx, b.authz, a, "attest", bundle.Spec.SignerName)
}

// subjectRestriction keeps requests for client certificates from asking for the group that may do everything.
type subjectRestriction struct{ *admission.Handler }

var _ admission.ValidationInterface = subjectRestriction{}

func newSubjectRestriction() (admission.Interface, error) {
	return subjectRestriction{admission.NewHandler(admission.Create)}, nil
}

func (s subjectRestriction) Validate(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if a.GetResource().GroupResource() != signingRequests || a.GetSubresource() != "" {
		return nil
	}
	c, ok := a.GetObject().(*certificatesv1.CertificateSigningRequest)
	if !ok || c.Spec.SignerName != certificatesv1.KubeAPIServerClientSignerName {
		return nil
	}
	r, err := resources.ParseRequest(c.Spec.Request)
	if err != nil {
		return admission.NewForbidden(a, fmt.Errorf("failed to parse the request: %w", err))
	}
	if slices.Contains(r.Subject.Organization, user.SystemPrivilegedGroup) {
		return admission.NewForbidden(a, fmt.Errorf("use of %s signer with %s group is not allowed", certificatesv1.KubeAPIServerClientSignerName, user.SystemPrivilegedGroup))
	}
	return nil
}
