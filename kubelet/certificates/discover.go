package certificates

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/clientcmd"
	certutil "k8s.io/client-go/util/cert"
)

var hashForm = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// CAHash is the hash that says which CA is believed: of its public key (SubjectPublicKeyInfo), so that it outlives a
// renewal of the CA with the same key.
func CAHash(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// believed returns those of the certificates that one of the hashes is of.
func believed(certs []*x509.Certificate, hashes []string) []*x509.Certificate {
	var out []*x509.Certificate
	for _, c := range certs {
		if slices.Contains(hashes, CAHash(c)) {
			out = append(out, c)
		}
	}
	return out
}

// clusterInfo is the ConfigMap that everybody may read: https://kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens/.
const clusterInfo = "/api/v1/namespaces/kube-public/configmaps/cluster-info"

// infoLimit is far more than a cluster-info takes.
const infoLimit = 1 << 20

// discover gets the cluster's CA (PEM) from its API server. Until the CA is known the server could be anybody: nothing is
// sent but the question, and the answer counts only if the CA in it is one that a hash names and the server that gave it
// has a certificate of that CA for the name that it was asked by.
func discover(ctx context.Context, server string, hashes []string, now time.Time) ([]byte, error) {
	u, err := url.Parse(server)
	if err != nil {
		return nil, permanent{err}
	}
	var shown []*x509.Certificate
	client := &http.Client{Timeout: callTimeout, Transport: &http.Transport{
		Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true, VerifyConnection: func(s tls.ConnectionState) error {
			shown = s.PeerCertificates
			return nil
		}},
	}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(server, "/")+clusterInfo, nil)
	if err != nil {
		return nil, permanent{err}
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, infoLimit))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("it has no ConfigMap kube-public/cluster-info for who joins: %s", resp.Status)
	}
	cas, err := parseInfo(body)
	if err != nil {
		return nil, fmt.Errorf("ConfigMap kube-public/cluster-info: %w", err)
	}
	cas = believed(cas, hashes)
	if len(cas) == 0 {
		return nil, permanent{errors.New("its CA is not the one that the hash says: this is another cluster, or somebody is in between; " +
			"compare the hash with what `strake token create --print-join-command` prints on the first node")}
	}
	pool := x509.NewCertPool()
	var data []byte
	for _, ca := range cas {
		pool.AddCert(ca)
		data = append(data, pem.EncodeToMemory(&pem.Block{Type: certutil.CertificateBlockType, Bytes: ca.Raw})...)
	}
	return data, verify(shown, pool, u.Hostname(), now)
}

// verify checks the certificates that a server showed.
func verify(shown []*x509.Certificate, roots *x509.CertPool, host string, now time.Time) error {
	if len(shown) == 0 {
		return permanent{errors.New("it showed no certificate")}
	}
	between := x509.NewCertPool()
	for _, c := range shown[1:] {
		between.AddCert(c)
	}
	_, err := shown[0].Verify(x509.VerifyOptions{DNSName: host, Roots: roots, Intermediates: between, CurrentTime: now})
	var invalid x509.CertificateInvalidError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return clockError(err, now)
	}
	return permanent{fmt.Errorf("its certificate is not the cluster's: %w", err)}
}

// parseInfo returns the CAs in a cluster-info ConfigMap, JSON.
func parseInfo(data []byte) ([]*x509.Certificate, error) {
	var cm corev1.ConfigMap
	if err := json.Unmarshal(data, &cm); err != nil {
		return nil, err
	}
	kubeconfig, err := clientcmd.Load([]byte(cm.Data["kubeconfig"]))
	if err != nil {
		return nil, err
	}
	for _, c := range kubeconfig.Clusters { // there is one
		return certutil.ParseCertsPEM(c.CertificateAuthorityData)
	}
	return nil, errors.New("its kubeconfig names no cluster")
}
