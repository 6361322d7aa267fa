package resources

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"

	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
)

type signingRequest = certificatesv1.CertificateSigningRequest

func certificates() []*descriptor.Resource {
	return []*descriptor.Resource{kind[signingRequest, certificatesv1.CertificateSigningRequestList]("CertificateSigningRequest", descriptor.Resource{
		GroupVersion: certificatesv1.SchemeGroupVersion, ShortNames: []string{"csr"}, Status: true,
		PrepareCreate: func(ctx context.Context, o runtime.Object) { setRequestor(ctx, o.(*signingRequest)) },
		Validate:      descriptor.Check(validateSigningRequest),
		ValidateUpdate: descriptor.CheckUpdate(func(c, old *signingRequest) field.ErrorList {
			return apivalidation.ValidateImmutableField(c.Spec, old.Spec, field.NewPath("spec"))
		}),
		PrepareStatus: descriptor.PrepareChange(stampConditions),
		ValidateStatus: descriptor.CheckUpdate(func(c, old *signingRequest) field.ErrorList {
			errs := append(validateSigningConditions(c, old, false), validateIssued(c.Status.Certificate)...)
			if len(old.Status.Certificate) > 0 && !bytes.Equal(c.Status.Certificate, old.Status.Certificate) {
				errs = append(errs, field.Forbidden(field.NewPath("status", "certificate"), "updates may not modify existing certificate content"))
			}
			return errs
		}),
		Selectable: func(o runtime.Object) fields.Set {
			return fields.Set{"spec.signerName": o.(*signingRequest).Spec.SignerName}
		},
		Columns: []descriptor.Column{
			descriptor.Age,
			{Name: "SignerName", Cell: descriptor.Cell(func(c *signingRequest) string { return c.Spec.SignerName })},
			{Name: "Requestor", Cell: descriptor.Cell(func(c *signingRequest) string { return c.Spec.Username })},
			{Name: "RequestedDuration", Cell: descriptor.Cell(func(c *signingRequest) string {
				if s := c.Spec.ExpirationSeconds; s != nil {
					return duration.HumanDuration(time.Duration(*s) * time.Second)
				}
				return "<none>"
			})},
			{Name: "Condition", Cell: descriptor.Cell(signingCell)},
		},
	})}
}

// setRequestor notes who asks: that is not for the asker to say.
func setRequestor(ctx context.Context, c *signingRequest) {
	s := &c.Spec
	s.Username, s.UID, s.Groups, s.Extra = "", "", nil, nil
	u, ok := genericapirequest.UserFrom(ctx)
	if !ok {
		return
	}
	s.Username, s.UID, s.Groups = u.GetName(), u.GetUID(), u.GetGroups()
	for k, v := range u.GetExtra() {
		if s.Extra == nil {
			s.Extra = map[string]certificatesv1.ExtraValue{}
		}
		s.Extra[k] = v
	}
}

func signingCell(c *signingRequest) string {
	has := func(t certificatesv1.RequestConditionType) bool {
		return slices.ContainsFunc(c.Status.Conditions, func(c certificatesv1.CertificateSigningRequestCondition) bool { return c.Type == t })
	}
	state := "Pending"
	switch {
	case has(certificatesv1.CertificateDenied):
		state = "Denied"
	case has(certificatesv1.CertificateApproved):
		state = "Approved"
	}
	if has(certificatesv1.CertificateFailed) {
		state += ",Failed"
	}
	if len(c.Status.Certificate) > 0 {
		state += ",Issued"
	}
	return state
}

var keyUsages = []certificatesv1.KeyUsage{
	certificatesv1.UsageSigning, certificatesv1.UsageDigitalSignature, certificatesv1.UsageContentCommitment, certificatesv1.UsageKeyEncipherment,
	certificatesv1.UsageKeyAgreement, certificatesv1.UsageDataEncipherment, certificatesv1.UsageCertSign, certificatesv1.UsageCRLSign,
	certificatesv1.UsageEncipherOnly, certificatesv1.UsageDecipherOnly, certificatesv1.UsageAny, certificatesv1.UsageServerAuth,
	certificatesv1.UsageClientAuth, certificatesv1.UsageCodeSigning, certificatesv1.UsageEmailProtection, certificatesv1.UsageSMIME,
	certificatesv1.UsageIPsecEndSystem, certificatesv1.UsageIPsecTunnel, certificatesv1.UsageIPsecUser, certificatesv1.UsageTimestamping,
	certificatesv1.UsageOCSPSigning, certificatesv1.UsageMicrosoftSGC, certificatesv1.UsageNetscapeSGC,
}

func validateSigningRequest(c *signingRequest) field.ErrorList {
	var errs field.ErrorList
	p := field.NewPath("spec")
	if _, err := ParseRequest(c.Spec.Request); err != nil {
		errs = append(errs, field.Invalid(p.Child("request"), c.Spec.Request, err.Error()))
	}
	if c.Spec.SignerName == "kubernetes.io/legacy-unknown" {
		errs = append(errs, field.Invalid(p.Child("signerName"), c.Spec.SignerName, "the legacy signerName is not allowed via this API version"))
	} else {
		errs = append(errs, validateSignerName(c.Spec.SignerName, p.Child("signerName"))...)
	}
	if len(c.Spec.Usages) == 0 {
		errs = append(errs, field.Required(p.Child("usages"), ""))
	}
	for i, u := range c.Spec.Usages {
		if !slices.Contains(keyUsages, u) {
			errs = append(errs, field.NotSupported(p.Child("usages").Index(i), u, keyUsages))
		}
		if slices.Index(c.Spec.Usages, u) < i {
			errs = append(errs, field.Duplicate(p.Child("usages").Index(i), u))
		}
	}
	if s := c.Spec.ExpirationSeconds; s != nil && *s < 600 {
		errs = append(errs, field.Invalid(p.Child("expirationSeconds"), *s, "may not specify a duration less than 600 seconds (10 minutes)"))
	}
	return errs
}

// ParseRequest reads a PKCS #10 request in PEM, and sees that whoever made it has the key.
func ParseRequest(data []byte) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("PEM block type must be CERTIFICATE REQUEST")
	}
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err == nil {
		err = r.CheckSignature()
	}
	return r, err
}

// validateSignerName wants domain/path; the longest is what fits into a name of RBAC (CertificateSigningRequestSpec's documentation).
func validateSignerName(name string, p *field.Path) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(p, "")}
	}
	domain, path, ok := strings.Cut(name, "/")
	if !ok {
		return field.ErrorList{field.Invalid(p, name, "must be a fully qualified domain and path of the form 'example.com/signer-name'")}
	}
	var errs field.ErrorList
	for _, part := range []string{domain, path} {
		for _, msg := range validation.IsDNS1123Subdomain(part) {
			errs = append(errs, field.Invalid(p, name, fmt.Sprintf("%q: %s", part, msg)))
		}
	}
	if !strings.Contains(domain, ".") {
		errs = append(errs, field.Invalid(p, name, "should be a domain with at least two segments separated by dots"))
	}
	const longest = 571 // a domain, a slash and a path: 253, 1 and 317
	if len(name) > longest {
		errs = append(errs, field.TooLong(p, name, longest))
	}
	return errs
}

// final are the conditions that stay once they are there.
var final = []certificatesv1.RequestConditionType{certificatesv1.CertificateApproved, certificatesv1.CertificateDenied, certificatesv1.CertificateFailed}

// validateSigningConditions holds a change of the conditions to what the API promises: of a decision there is one, only the
// subresource approval makes it, and no condition that is final goes.
func validateSigningConditions(c, old *signingRequest, approval bool) field.ErrorList {
	var errs field.ErrorList
	p := field.NewPath("status", "conditions")
	seen := map[certificatesv1.RequestConditionType]bool{}
	for i, cond := range c.Status.Conditions {
		ip := p.Index(i)
		switch {
		case cond.Type == "":
			errs = append(errs, field.Required(ip.Child("type"), ""))
		case seen[cond.Type]:
			errs = append(errs, field.Duplicate(ip.Child("type"), cond.Type))
		}
		seen[cond.Type] = true
		if slices.Contains(final, cond.Type) {
			errs = append(errs, oneOf(cond.Status, ip.Child("status"), corev1.ConditionTrue)...)
		} else {
			errs = append(errs, oneOf(cond.Status, ip.Child("status"), corev1.ConditionTrue, corev1.ConditionFalse, corev1.ConditionUnknown)...)
		}
	}
	if seen[certificatesv1.CertificateApproved] && seen[certificatesv1.CertificateDenied] {
		errs = append(errs, field.Invalid(p, c.Status.Conditions, "Approved and Denied conditions are mutually exclusive"))
	}
	of := func(c *signingRequest, t certificatesv1.RequestConditionType) *certificatesv1.CertificateSigningRequestCondition {
		i := slices.IndexFunc(c.Status.Conditions, func(c certificatesv1.CertificateSigningRequestCondition) bool { return c.Type == t })
		if i < 0 {
			return nil
		}
		return &c.Status.Conditions[i]
	}
	for _, t := range final {
		now, was := of(c, t), of(old, t)
		switch {
		case now == nil && was != nil:
			errs = append(errs, field.Forbidden(p, fmt.Sprintf("updates may not remove a condition of type %q", t)))
		case approval || t == certificatesv1.CertificateFailed:
		case now != nil && was == nil:
			errs = append(errs, field.Forbidden(p, fmt.Sprintf("updates may not add a condition of type %q", t)))
		case now != nil && !apiequality.Semantic.DeepEqual(*now, *was):
			errs = append(errs, field.Forbidden(p, fmt.Sprintf("updates may not modify a condition of type %q", t)))
		}
	}
	return errs
}

// stampConditions fills in when a condition changed.
func stampConditions(c, old *signingRequest) {
	now := metav1.Now()
	for i := range c.Status.Conditions {
		cond := &c.Status.Conditions[i]
		if cond.LastUpdateTime.IsZero() {
			cond.LastUpdateTime = now
		}
		if !cond.LastTransitionTime.IsZero() {
			continue
		}
		cond.LastTransitionTime = now
		for _, was := range old.Status.Conditions {
			if was.Type == cond.Type && was.Status == cond.Status && !was.LastTransitionTime.IsZero() {
				cond.LastTransitionTime = was.LastTransitionTime
			}
		}
	}
}

// validateIssued wants certificates in PEM and nothing else.
func validateIssued(data []byte) field.ErrorList {
	p := field.NewPath("status", "certificate")
	bad := func(msg string) field.ErrorList { return field.ErrorList{field.Invalid(p, "<certificate data>", msg)} }
	if len(data) == 0 {
		return nil
	}
	blocks := 0
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			break
		}
		blocks, data = blocks+1, rest
		if block.Type != "CERTIFICATE" {
			return bad(fmt.Sprintf("only CERTIFICATE PEM blocks are allowed, found %q", block.Type))
		}
		if len(block.Headers) > 0 {
			return bad("no PEM block headers are permitted")
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return bad(err.Error())
		}
	}
	if blocks == 0 {
		return bad("must contain at least one CERTIFICATE PEM block")
	}
	return nil
}

// PrepareApproval leaves of an update of the subresource approval the conditions alone.
func PrepareApproval(c, old *signingRequest) {
	stampConditions(c, old)
	conditions := c.Status.Conditions
	c.Spec, c.Status = old.Spec, old.Status
	c.Status.Conditions = conditions
}

// ValidateApproval checks an update of the subresource approval.
func ValidateApproval(c, old *signingRequest) field.ErrorList {
	return validateSigningConditions(c, old, true)
}
