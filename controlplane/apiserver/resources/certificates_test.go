package resources

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509/pkix"
	"strings"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	certutil "k8s.io/client-go/util/cert"
)

func request(t testing.TB) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	data, err := certutil.MakeCSR(key, &pkix.Name{CommonName: "x"}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestSigningRequests(t *testing.T) {
	good := request(t)
	torn := []byte(strings.Replace(string(good), "MI", "MJ", 1))
	short, long := int32(599), int32(600)
	for _, c := range []struct {
		name   string
		change func(s *certificatesv1.CertificateSigningRequestSpec)
		want   []string
	}{
		{"good", func(*certificatesv1.CertificateSigningRequestSpec) {}, nil},
		{"no request", func(s *certificatesv1.CertificateSigningRequestSpec) { s.Request = nil }, []string{"spec.request: Invalid value"}},
		{"torn request", func(s *certificatesv1.CertificateSigningRequestSpec) { s.Request = torn }, []string{"spec.request: Invalid value"}},
		{"another kind of PEM", func(s *certificatesv1.CertificateSigningRequestSpec) {
			s.Request = []byte(strings.ReplaceAll(string(good), "CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"))
		}, []string{"spec.request: Invalid value"}},
		{"no signer", func(s *certificatesv1.CertificateSigningRequestSpec) { s.SignerName = "" }, []string{"spec.signerName: Required value"}},
		{"legacy signer", func(s *certificatesv1.CertificateSigningRequestSpec) { s.SignerName = "kubernetes.io/legacy-unknown" }, []string{"spec.signerName: Invalid value"}},
		{"no path", func(s *certificatesv1.CertificateSigningRequestSpec) { s.SignerName = "example.com" }, []string{"spec.signerName: Invalid value"}},
		{"empty path", func(s *certificatesv1.CertificateSigningRequestSpec) { s.SignerName = "example.com/" }, []string{"spec.signerName: Invalid value"}},
		{"two slashes", func(s *certificatesv1.CertificateSigningRequestSpec) { s.SignerName = "example.com/a/b" }, []string{"spec.signerName: Invalid value"}},
		{"no domain", func(s *certificatesv1.CertificateSigningRequestSpec) { s.SignerName = "example/a" }, []string{"spec.signerName: Invalid value"}},
		{"no usages", func(s *certificatesv1.CertificateSigningRequestSpec) { s.Usages = nil }, []string{"spec.usages: Required value"}},
		{"usages", func(s *certificatesv1.CertificateSigningRequestSpec) {
			s.Usages = []certificatesv1.KeyUsage{certificatesv1.UsageAny, "flying", certificatesv1.UsageAny}
		}, []string{"spec.usages[1]: Unsupported value", "spec.usages[2]: Duplicate value"}},
		{"too short", func(s *certificatesv1.CertificateSigningRequestSpec) { s.ExpirationSeconds = &short }, []string{"spec.expirationSeconds: Invalid value"}},
		{"short", func(s *certificatesv1.CertificateSigningRequestSpec) { s.ExpirationSeconds = &long }, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := &certificatesv1.CertificateSigningRequest{Spec: certificatesv1.CertificateSigningRequestSpec{
				Request: good, SignerName: "example.com/a", Usages: []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth},
			}}
			o.Name = "x"
			c.change(&o.Spec)
			refused(t, o, c.want...)
		})
	}
}

// FuzzParseRequest feeds what anybody may send: it must say yes or no, and of a yes the content must be whole.
func FuzzParseRequest(f *testing.F) {
	f.Add(request(f))
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n"))
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := ParseRequest(data)
		if err == nil && (r == nil || r.PublicKey == nil) {
			t.Error("accepted, without a key")
		}
	})
}
