package resources

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
)

// trust is what pods trust and by what they are known: bundles of CAs, and certificates of pods.
func trust() []*descriptor.Resource {
	gv := certificatesv1.SchemeGroupVersion
	return []*descriptor.Resource{
		kind[certificatesv1.ClusterTrustBundle, certificatesv1.ClusterTrustBundleList]("ClusterTrustBundle", descriptor.Resource{
			GroupVersion: gv,
			// The name begins with that of the signer, with colons for its slashes.
			ValidName: func(name string, prefix bool) []string {
				return apivalidation.NameIsDNSSubdomain(strings.ReplaceAll(name, ":", "."), prefix)
			},
			Validate: descriptor.Check(validateTrustBundle),
			ValidateUpdate: descriptor.CheckUpdate(func(b, old *certificatesv1.ClusterTrustBundle) field.ErrorList {
				return apivalidation.ValidateImmutableField(b.Spec.SignerName, old.Spec.SignerName, field.NewPath("spec", "signerName"))
			}),
			Selectable: func(o runtime.Object) fields.Set {
				return fields.Set{"spec.signerName": o.(*certificatesv1.ClusterTrustBundle).Spec.SignerName}
			},
			Columns: []descriptor.Column{{Name: "SignerName", Cell: descriptor.Cell(func(b *certificatesv1.ClusterTrustBundle) string { return orNone(b.Spec.SignerName) })}},
		}),
		kind[certificatesv1.PodCertificateRequest, certificatesv1.PodCertificateRequestList]("PodCertificateRequest", descriptor.Resource{
			GroupVersion: gv, Namespaced: true, Status: true,
			Default: descriptor.Each(func(r *certificatesv1.PodCertificateRequest) {
				set(&r.Spec.MaxExpirationSeconds, int32(24*time.Hour/time.Second))
			}),
			Validate: descriptor.Check(validatePodCertificate),
			ValidateUpdate: descriptor.CheckUpdate(func(r, old *certificatesv1.PodCertificateRequest) field.ErrorList {
				return apivalidation.ValidateImmutableField(r.Spec, old.Spec, field.NewPath("spec"))
			}),
			ValidateStatus: descriptor.CheckUpdate(validatePodCertificateStatus),
			Selectable: func(o runtime.Object) fields.Set {
				s := &o.(*certificatesv1.PodCertificateRequest).Spec
				return fields.Set{"spec.signerName": s.SignerName, "spec.podName": s.PodName, "spec.nodeName": string(s.NodeName)}
			},
			IndexField: "spec.nodeName",
			Columns: []descriptor.Column{
				{Name: "PodName", Cell: descriptor.Cell(func(r *certificatesv1.PodCertificateRequest) string { return r.Spec.PodName })},
				{Name: "ServiceAccountName", Cell: descriptor.Cell(func(r *certificatesv1.PodCertificateRequest) string { return r.Spec.ServiceAccountName })},
				{Name: "NodeName", Cell: descriptor.Cell(func(r *certificatesv1.PodCertificateRequest) string { return string(r.Spec.NodeName) })},
				{Name: "SignerName", Cell: descriptor.Cell(func(r *certificatesv1.PodCertificateRequest) string { return r.Spec.SignerName })},
				{Name: "State", Cell: descriptor.Cell(func(r *certificatesv1.PodCertificateRequest) string {
					for _, c := range r.Status.Conditions {
						if slices.Contains(podCertificateEnds, c.Type) {
							return c.Type
						}
					}
					return "Pending"
				})},
				descriptor.Age,
			},
		}),
	}
}

func validateTrustBundle(b *certificatesv1.ClusterTrustBundle) field.ErrorList {
	p := field.NewPath("spec")
	var errs field.ErrorList
	if signer := b.Spec.SignerName; signer == "" {
		if strings.Contains(b.Name, ":") {
			errs = append(errs, field.Invalid(field.NewPath("metadata", "name"), b.Name, "ClusterTrustBundle without signer name must not have \":\" in its name"))
		}
	} else {
		if prefix := strings.ReplaceAll(signer, "/", ":") + ":"; !strings.HasPrefix(b.Name, prefix) {
			errs = append(errs, field.Invalid(field.NewPath("metadata", "name"), b.Name, fmt.Sprintf("ClusterTrustBundle for signerName %s must be named with prefix %s", signer, prefix)))
		}
		errs = append(errs, validateSignerName(signer, p.Child("signerName"))...)
	}
	const largest = 1 << 20
	tp := p.Child("trustBundle")
	if len(b.Spec.TrustBundle) > largest {
		return append(errs, field.TooLong(tp, "", largest))
	}
	rest := []byte(b.Spec.TrustBundle)
	seen := sets.New[string]()
	for n := 0; ; n++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			if n == 0 {
				errs = append(errs, field.Invalid(tp, "<value omitted>", "at least one trust anchor must be provided"))
			}
			return errs
		}
		bad := func(format string, args ...any) {
			errs = append(errs, field.Invalid(tp, "<value omitted>", fmt.Sprintf(format, args...)))
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		switch {
		case block.Type != "CERTIFICATE":
			bad("entry %d has bad block type: %v", n, block.Type)
		case len(block.Headers) != 0:
			bad("entry %d has PEM block headers", n)
		case err != nil:
			bad("entry %d does not parse as X.509", n)
		case !cert.IsCA:
			bad("entry %d does not have the CA bit set", n)
		case seen.Has(string(block.Bytes)):
			bad("duplicate trust anchor (entry %d)", n)
		}
		seen.Insert(string(block.Bytes))
	}
}

// Bounds of a pod's certificate, in seconds.
const (
	shortestPodCertificate = int32(time.Hour / time.Second)
	longestPodCertificate  = int32(91 * 24 * time.Hour / time.Second)
)

func validatePodCertificate(r *certificatesv1.PodCertificateRequest) field.ErrorList {
	s, p := &r.Spec, field.NewPath("spec")
	errs := validateSignerName(s.SignerName, p.Child("signerName"))
	for _, f := range []struct{ name, value string }{
		{"podName", s.PodName}, {"podUID", string(s.PodUID)}, {"serviceAccountName", s.ServiceAccountName}, {"serviceAccountUID", string(s.ServiceAccountUID)}, {"nodeName", string(s.NodeName)}, {"nodeUID", string(s.NodeUID)},
	} {
		switch {
		case f.value == "":
			errs = append(errs, field.Required(p.Child(f.name), ""))
		case strings.HasSuffix(f.name, "Name"):
			errs = append(errs, invalidIf(subdomain(f.value), p.Child(f.name), f.value)...)
		case len(f.value) > 128:
			errs = append(errs, field.TooLong(p.Child(f.name), "", 128))
		}
	}
	if m := s.MaxExpirationSeconds; m == nil {
		errs = append(errs, field.Required(p.Child("maxExpirationSeconds"), "must be set"))
	} else if *m < shortestPodCertificate || *m > longestPodCertificate {
		errs = append(errs, field.Invalid(p.Child("maxExpirationSeconds"), *m, fmt.Sprintf("must be in the range [%d, %d]", shortestPodCertificate, longestPodCertificate)))
	}
	rp := p.Child("stubPKCS10Request")
	const largest = 10 << 10
	if len(s.StubPKCS10Request) > largest {
		return append(errs, field.TooLong(rp, "", largest))
	}
	csr, err := x509.ParseCertificateRequest(s.StubPKCS10Request)
	switch {
	case err != nil:
		return append(errs, field.Invalid(rp, "<value omitted>", "must be a valid PKCS#10 certificate signing request"))
	case csr.CheckSignature() != nil:
		errs = append(errs, field.Invalid(rp, "<value omitted>", "the signature is not by the key that is asked for"))
	}
	switch k := csr.PublicKey.(type) {
	case ed25519.PublicKey:
		return errs
	case *ecdsa.PublicKey:
		if slices.Contains([]elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()}, k.Curve) {
			return errs
		}
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n == 3072 || n == 4096 {
			return errs
		}
	}
	return append(errs, field.Invalid(rp, "<value omitted>", "the key must be one of RSA3072, RSA4096, ECDSAP256, ECDSAP384, ECDSAP521, ED25519"))
}

var podCertificateEnds = []string{certificatesv1.PodCertificateRequestConditionTypeIssued, certificatesv1.PodCertificateRequestConditionTypeDenied, certificatesv1.PodCertificateRequestConditionTypeFailed}

func validatePodCertificateStatus(r, old *certificatesv1.PodCertificateRequest) field.ErrorList {
	p := field.NewPath("status")
	end := func(conditions []metav1.Condition) (ends int, issued bool) {
		for _, c := range conditions {
			if slices.Contains(podCertificateEnds, c.Type) {
				ends++
				issued = issued || c.Type == certificatesv1.PodCertificateRequestConditionTypeIssued
			}
		}
		return ends, issued
	}
	if n, _ := end(old.Status.Conditions); n > 0 {
		return apivalidation.ValidateImmutableField(r.Status, old.Status, p)
	}
	var errs field.ErrorList
	ends, issued := end(r.Status.Conditions)
	if ends > 1 {
		errs = append(errs, field.Invalid(p.Child("conditions"), r.Status.Conditions, `there may be at most one condition with type "Issued", "Denied", or "Failed"`))
	}
	for i, c := range r.Status.Conditions {
		cp := p.Child("conditions").Index(i)
		errs = append(errs, oneOf(c.Type, cp.Child("type"), podCertificateEnds...)...)
		if c.Status != metav1.ConditionTrue {
			errs = append(errs, field.NotSupported(cp.Child("status"), c.Status, []metav1.ConditionStatus{metav1.ConditionTrue}))
		}
	}
	if !issued {
		if r.Status.CertificateChain != "" {
			errs = append(errs, field.Invalid(p.Child("certificateChain"), "<value omitted>", "must be empty unless the request is issued"))
		}
		return errs
	}
	block, _ := pem.Decode([]byte(r.Status.CertificateChain))
	if block == nil {
		return append(errs, field.Invalid(p.Child("certificateChain"), "<value omitted>", "issued certificate must be non-empty"))
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return append(errs, field.Invalid(p.Child("certificateChain"), "<value omitted>", "leaf certificate does not parse as valid X.509"))
	}
	for _, t := range []struct {
		name string
		said *metav1.Time
		is   time.Time
	}{{"notBefore", r.Status.NotBefore, leaf.NotBefore}, {"notAfter", r.Status.NotAfter, leaf.NotAfter}} {
		switch {
		case t.said == nil:
			errs = append(errs, field.Required(p.Child(t.name), "must be present and consistent with the issued certificate"))
		case !t.said.Time.Equal(t.is):
			errs = append(errs, field.Invalid(p.Child(t.name), t.said, "must be that of the leaf certificate"))
		}
	}
	if r.Status.BeginRefreshAt == nil {
		errs = append(errs, field.Required(p.Child("beginRefreshAt"), "must be present and consistent with the issued certificate"))
	}
	return errs
}
