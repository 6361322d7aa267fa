package certificates

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"
)

var now = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// request makes what a node may ask for, after change.
func request(t testing.TB, signer string, change func(r *x509.CertificateRequest, c *certificatesv1.CertificateSigningRequest)) *certificatesv1.CertificateSigningRequest {
	t.Helper()
	c := &certificatesv1.CertificateSigningRequest{Spec: certificatesv1.CertificateSigningRequestSpec{
		SignerName: signer, Usages: []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageClientAuth},
		Username: "system:node:n", Groups: []string{"system:nodes", "system:authenticated"},
	}}
	r := &x509.CertificateRequest{Subject: pkix.Name{CommonName: "system:node:n", Organization: []string{"system:nodes"}}}
	switch signer {
	case certificatesv1.KubeAPIServerClientSignerName:
		r.Subject = pkix.Name{CommonName: "system:strake-agent:n", Organization: []string{"system:strake-agents"}}
	case certificatesv1.KubeletServingSignerName:
		c.Spec.Usages[1] = certificatesv1.UsageServerAuth
		r.DNSNames, r.IPAddresses = []string{"n"}, []net.IP{net.ParseIP("192.0.2.1")}
	}
	if change != nil {
		change(r, c)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, r, newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	c.Spec.Request = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	return c
}

const (
	kubeletSigner = certificatesv1.KubeAPIServerClientKubeletSignerName
	userSigner    = certificatesv1.KubeAPIServerClientSignerName
	servingSigner = certificatesv1.KubeletServingSignerName
)

func TestRecognize(t *testing.T) {
	type change = func(r *x509.CertificateRequest, c *certificatesv1.CertificateSigningRequest)
	usages := func(u ...certificatesv1.KeyUsage) change {
		return func(_ *x509.CertificateRequest, c *certificatesv1.CertificateSigningRequest) { c.Spec.Usages = u }
	}
	subject := func(cn string, orgs ...string) change {
		return func(r *x509.CertificateRequest, _ *certificatesv1.CertificateSigningRequest) {
			r.Subject = pkix.Name{CommonName: cn, Organization: orgs}
		}
	}
	names := func(f func(r *x509.CertificateRequest)) change {
		return func(r *x509.CertificateRequest, _ *certificatesv1.CertificateSigningRequest) { f(r) }
	}
	const signature, encipherment, clientAuth, serverAuth = certificatesv1.UsageDigitalSignature, certificatesv1.UsageKeyEncipherment, certificatesv1.UsageClientAuth, certificatesv1.UsageServerAuth
	for _, c := range []struct {
		name, signer string
		change       change
		want         purpose
	}{
		{"kubelet", kubeletSigner, nil, kubeletClient},
		{"network", userSigner, nil, agentClient},
		{"serving", servingSigner, nil, kubeletServer},
		{"usages in another order", kubeletSigner, usages(clientAuth, signature), kubeletClient},
		{"an RSA key's usages", servingSigner, usages(encipherment, serverAuth, signature), kubeletServer},
		{"serving, by address only", servingSigner, names(func(r *x509.CertificateRequest) { r.DNSNames = nil }), kubeletServer},
		{"another signer", "example.com/x", nil, unknown},
		{"no usage", kubeletSigner, usages(), unknown},
		{"no signature", kubeletSigner, usages(clientAuth), unknown},
		{"a usage twice", kubeletSigner, usages(signature, clientAuth, clientAuth), unknown},
		{"a CA", kubeletSigner, usages(signature, clientAuth, certificatesv1.UsageCertSign), unknown},
		{"any usage", servingSigner, usages(signature, serverAuth, certificatesv1.UsageAny), unknown},
		{"client that serves", kubeletSigner, usages(signature, serverAuth), unknown},
		{"no node's name", kubeletSigner, subject("system:node:", "system:nodes"), unknown},
		{"a name that no Node has", kubeletSigner, subject("system:node:a/b", "system:nodes"), unknown},
		{"a user", kubeletSigner, subject("bob", "system:nodes"), unknown},
		{"no group", kubeletSigner, subject("system:node:n"), unknown},
		{"the group of all rights", kubeletSigner, subject("system:node:n", "system:masters"), unknown},
		{"a group besides", kubeletSigner, subject("system:node:n", "system:nodes", "system:masters"), unknown},
		{"a network in the nodes' group", userSigner, subject("system:strake-agent:n", "system:nodes"), unknown},
		{"a node by the users' signer", userSigner, subject("system:node:n", "system:nodes"), unknown},
		{"a client with a name", kubeletSigner, names(func(r *x509.CertificateRequest) { r.DNSNames = []string{"n"} }), unknown},
		{"a client with an address", userSigner, names(func(r *x509.CertificateRequest) { r.IPAddresses = []net.IP{net.IPv6loopback} }), unknown},
		{"serving without a name", servingSigner, names(func(r *x509.CertificateRequest) { r.DNSNames, r.IPAddresses = nil, nil }), unknown},
		{"e-mail", servingSigner, names(func(r *x509.CertificateRequest) { r.EmailAddresses = []string{"a@example.com"} }), unknown},
		{"URI", kubeletSigner, names(func(r *x509.CertificateRequest) { r.URIs = []*url.URL{{Scheme: "spiffe", Host: "x"}} }), unknown},
	} {
		p, node, _, err := recognize(request(t, c.signer, c.change))
		if p != c.want || (err == nil) != (c.want != unknown) || err == nil && node != "n" {
			t.Errorf("%s: %v, node %q, %v; want %v", c.name, p, node, err, c.want)
		}
	}
}

// FuzzRecognize feeds requests that are no requests.
func FuzzRecognize(f *testing.F) {
	for _, signer := range []string{kubeletSigner, userSigner, servingSigner} {
		f.Add(request(f, signer, nil).Spec.Request, signer, "client auth")
	}
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\nMA==\n-----END CERTIFICATE REQUEST-----\n"), kubeletSigner, "")
	f.Fuzz(func(t *testing.T, data []byte, signer, usage string) {
		c := &certificatesv1.CertificateSigningRequest{Spec: certificatesv1.CertificateSigningRequestSpec{Request: data, SignerName: signer, Usages: []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.KeyUsage(usage)}}}
		p, node, r, err := recognize(c)
		if err == nil && (p == unknown || node == "" || r == nil || len(r.Subject.Organization) != 1 || strings.Contains(r.Subject.Organization[0], "masters")) {
			t.Errorf("recognized as %v of node %q", p, node)
		}
	})
}

func TestNamesOnly(t *testing.T) {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{corev1.LabelHostname: "host"}}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
		{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}, {Type: corev1.NodeInternalIP, Address: "2001:db8::1"}, {Type: corev1.NodeHostName, Address: "n.example.com"},
	}}}
	for _, c := range []struct {
		names, ips []string
		foreign    string
	}{
		{names: []string{"n", "host", "n.example.com"}, ips: []string{"192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1"}},
		{names: []string{"n", "m"}, foreign: "m"},
		{names: []string{"*.example.com"}, foreign: "*.example.com"},
		{ips: []string{"192.0.2.1", "127.0.0.1"}, foreign: "127.0.0.1"},
		{names: []string{"192.0.2.2"}, foreign: "192.0.2.2"},
	} {
		r := &x509.CertificateRequest{DNSNames: c.names}
		for _, ip := range c.ips {
			r.IPAddresses = append(r.IPAddresses, net.ParseIP(ip))
		}
		if foreign, ok := namesOnly(r, n); foreign != c.foreign || ok != (c.foreign == "") {
			t.Errorf("%v %v: %q %v, want %q", c.names, c.ips, foreign, ok, c.foreign)
		}
	}
}

// newCA makes an authority that ends at end, by way of its files.
func newCA(t *testing.T, end time.Time) *authority {
	t.Helper()
	key := newKey(t)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotBefore: now.Add(-time.Hour), NotAfter: end, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyPEM, err := keyutil.MarshalPrivateKeyToPEM(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile := filepath.Join(t.TempDir(), "ca.crt"), filepath.Join(t.TempDir(), "ca.key")
	if err := errors.Join(os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600), os.WriteFile(keyFile, keyPEM, 0o600)); err != nil {
		t.Fatal(err)
	}
	ca, err := loadAuthority(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func TestSign(t *testing.T) {
	const year = 365 * 24 * time.Hour
	for _, c := range []struct {
		name    string
		ca      time.Duration // that the CA is still good
		seconds int32         // asked for; zero: none
		want    time.Duration
	}{
		{"as long as we think", 10 * year, 0, year},
		{"shorter", 10 * year, 3600, time.Hour},
		{"too short", 10 * year, 60, 10 * time.Minute},
		{"too long", 10 * year, 10 * 365 * 24 * 3600 / 4, year},
		{"never longer than the CA", time.Hour, 0, time.Hour},
		{"nor if asked for", time.Hour, 7200, time.Hour},
	} {
		ca := newCA(t, now.Add(c.ca))
		r := request(t, servingSigner, nil)
		if c.seconds > 0 {
			r.Spec.ExpirationSeconds = &c.seconds
		}
		x, err := permitted(r)
		if err != nil {
			t.Fatal(err)
		}
		data, err := ca.sign(r, x, now)
		if err != nil {
			t.Fatal(err)
		}
		certs, err := cert.ParseCertsPEM(data)
		if err != nil {
			t.Fatal(err)
		}
		got := certs[0]
		if !got.NotAfter.Equal(now.Add(c.want)) || !got.NotBefore.Before(now) {
			t.Errorf("%s: from %s to %s, want %s", c.name, got.NotBefore, got.NotAfter, c.want)
		}
		if got.IsCA || got.Subject.CommonName != "system:node:n" || !slices.Equal(got.DNSNames, []string{"n"}) || got.KeyUsage != x509.KeyUsageDigitalSignature || !slices.Equal(got.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}) {
			t.Errorf("%s: %+v", c.name, got)
		}
		pool := x509.NewCertPool()
		pool.AddCert(ca.cert)
		if _, err := got.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, DNSName: "192.0.2.1"}); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	r := request(t, kubeletSigner, nil)
	x, err := permitted(r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := newCA(t, now.Add(-time.Second)).sign(r, x, now); err == nil {
		t.Error("a CA that has expired signs")
	}
}

// What people approve is still held to what its signer is for.
func TestPermitted(t *testing.T) {
	for _, c := range []struct {
		name, signer string
		change       func(r *x509.CertificateRequest, c *certificatesv1.CertificateSigningRequest)
		ok           bool
	}{
		{"kubelet", kubeletSigner, nil, true},
		{"a user", userSigner, func(r *x509.CertificateRequest, _ *certificatesv1.CertificateSigningRequest) {
			r.Subject = pkix.Name{CommonName: "ann", Organization: []string{"dev"}}
		}, true},
		{"a user, for client authentication only", userSigner, func(_ *x509.CertificateRequest, c *certificatesv1.CertificateSigningRequest) {
			c.Spec.Usages = []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth}
		}, true},
		{"a user who serves", userSigner, func(_ *x509.CertificateRequest, c *certificatesv1.CertificateSigningRequest) {
			c.Spec.Usages = append(c.Spec.Usages, certificatesv1.UsageServerAuth)
		}, false},
		{"a user without a use", userSigner, func(_ *x509.CertificateRequest, c *certificatesv1.CertificateSigningRequest) {
			c.Spec.Usages = []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature}
		}, false},
		{"a user by the kubelets' signer", kubeletSigner, func(r *x509.CertificateRequest, _ *certificatesv1.CertificateSigningRequest) {
			r.Subject = pkix.Name{CommonName: "ann"}
		}, false},
		{"another's serving certificate", servingSigner, func(_ *x509.CertificateRequest, c *certificatesv1.CertificateSigningRequest) {
			c.Spec.Username = "system:node:m"
		}, false},
	} {
		if _, err := permitted(request(t, c.signer, c.change)); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestLeft(t *testing.T) {
	at := func(ago time.Duration) metav1.Time { return metav1.Time{Time: now.Add(-ago)} }
	cond := func(typ certificatesv1.RequestConditionType, ago time.Duration) []certificatesv1.CertificateSigningRequestCondition {
		return []certificatesv1.CertificateSigningRequestCondition{{Type: typ, LastUpdateTime: at(ago)}}
	}
	for _, c := range []struct {
		name       string
		made       time.Duration // ago
		conditions []certificatesv1.CertificateSigningRequestCondition
		want       time.Duration
	}{
		{"pending", time.Hour, nil, 23 * time.Hour},
		{"pending for a day", 24 * time.Hour, nil, 0},
		{"approved", 30 * time.Hour, cond(certificatesv1.CertificateApproved, 20*time.Minute), 40 * time.Minute},
		{"denied", 30 * time.Hour, cond(certificatesv1.CertificateDenied, time.Hour), 0},
		{"failed", time.Hour, cond(certificatesv1.CertificateFailed, 30*time.Minute), 30 * time.Minute},
		{"something that somebody noted", time.Hour, cond("Noted", 2*time.Hour), 23 * time.Hour},
	} {
		r := &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{CreationTimestamp: at(c.made)}, Status: certificatesv1.CertificateSigningRequestStatus{Conditions: c.conditions}}
		if got, _ := (&controller{now: func() time.Time { return now }}).left(r); got != c.want {
			t.Errorf("%s: %s left, want %s", c.name, got, c.want)
		}
	}
	// A certificate that has expired takes its request along.
	ca := newCA(t, now.Add(time.Hour))
	r := request(t, kubeletSigner, nil)
	x, err := permitted(r)
	if err != nil {
		t.Fatal(err)
	}
	ten := int32(600)
	r.Spec.ExpirationSeconds, r.CreationTimestamp, r.Status.Conditions = &ten, at(0), cond(certificatesv1.CertificateApproved, 0)
	if r.Status.Certificate, err = ca.sign(r, x, now); err != nil {
		t.Fatal(err)
	}
	if got, _ := (&controller{now: func() time.Time { return now }}).left(r); got != 10*time.Minute {
		t.Errorf("with a certificate of ten minutes: %s left", got)
	}
}
