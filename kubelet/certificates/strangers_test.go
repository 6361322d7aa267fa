package certificates

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	certutil "k8s.io/client-go/util/cert"
)

// testStrangers asks for what is not one's own. None of it is approved; the last request of each, which may be, shows that
// the controller has been there.
func testStrangers(c *cluster) {
	token := c.token("strang")
	with := func(config *rest.Config) kubernetes.Interface { return kubernetes.NewForConfigOrDie(config) }
	bootstrapper := rest.AnonymousClientConfig(c.server.Admin)
	bootstrapper.BearerToken = token
	n1 := with(c.server.As(c, "system:node:stranger1", "system:nodes"))
	if _, err := n1.CoreV1().Nodes().Create(c.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "stranger1"}}, metav1.CreateOptions{}); err != nil {
		c.Fatal(err)
	}
	c.patchStatus(n1, "stranger1", `{"addresses":[{"type":"InternalIP","address":"192.0.2.1"},{"type":"Hostname","address":"stranger1.example.com"}]}`)
	const kubeletSigner, userSigner, servingSigner = certificatesv1.KubeAPIServerClientKubeletSignerName, certificatesv1.KubeAPIServerClientSignerName, certificatesv1.KubeletServingSignerName
	client, serving := clientUsages, []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageServerAuth}
	nodeName := func(n string) pkix.Name {
		return pkix.Name{CommonName: "system:node:" + n, Organization: []string{"system:nodes"}}
	}
	agentName := func(n string) pkix.Name {
		return pkix.Name{CommonName: "system:strake-agent:" + n, Organization: []string{"system:strake-agents"}}
	}
	type ask struct {
		name    string
		who     kubernetes.Interface
		signer  string
		subject pkix.Name
		usages  []certificatesv1.KeyUsage
		names   []string
		ips     []string
		never   bool // may not even ask
		ok      bool
	}
	joining, agent := with(bootstrapper), with(c.server.As(c, "system:strake-agent:stranger1", "system:strake-agents"))
	var made []string
	asks := []ask{
		{name: "token: the network's certificate", who: joining, signer: userSigner, subject: agentName("n"), usages: client},
		{name: "token: a user's certificate", who: joining, signer: userSigner, subject: pkix.Name{CommonName: "admin"}, usages: client},
		{name: "token: a serving certificate", who: joining, signer: servingSigner, subject: nodeName("stranger1"), usages: serving, ips: []string{"192.0.2.1"}},
		{name: "token: another group", who: joining, signer: kubeletSigner, subject: pkix.Name{CommonName: "system:node:n", Organization: []string{"system:masters"}}, usages: client},
		{name: "token: one group more", who: joining, signer: kubeletSigner, subject: pkix.Name{CommonName: "system:node:n", Organization: []string{"system:nodes", "system:masters"}}, usages: client},
		{name: "token: no node's name", who: joining, signer: kubeletSigner, subject: pkix.Name{CommonName: "system:node:", Organization: []string{"system:nodes"}}, usages: client},
		{name: "token: usages of a server", who: joining, signer: kubeletSigner, subject: nodeName("n"), usages: serving},
		{name: "token: one usage more", who: joining, signer: kubeletSigner, subject: nodeName("n"), usages: append(client[:2:2], certificatesv1.UsageServerAuth)},
		{name: "token: names", who: joining, signer: kubeletSigner, subject: nodeName("n"), usages: client, names: []string{"n"}},
		{name: "node: another node's certificate", who: n1, signer: kubeletSigner, subject: nodeName("stranger2"), usages: client, never: true},
		{name: "node: another node's network", who: n1, signer: userSigner, subject: agentName("stranger2"), usages: client},
		{name: "node: a user's certificate", who: n1, signer: userSigner, subject: pkix.Name{CommonName: "admin"}, usages: client},
		{name: "node: another node's serving certificate", who: n1, signer: servingSigner, subject: nodeName("stranger2"), usages: serving, ips: []string{"192.0.2.1"}, never: true},
		{name: "node: a foreign address", who: n1, signer: servingSigner, subject: nodeName("stranger1"), usages: serving, ips: []string{"192.0.2.1", "192.0.2.99"}},
		{name: "node: a foreign name", who: n1, signer: servingSigner, subject: nodeName("stranger1"), usages: serving, names: []string{"kubernetes.default.svc"}},
		{name: "node: no name", who: n1, signer: servingSigner, subject: nodeName("stranger1"), usages: serving},
		{name: "node: another signer", who: n1, signer: "example.com/x", subject: nodeName("stranger1"), usages: client},
		{name: "network: its kubelet's certificate", who: agent, signer: kubeletSigner, subject: nodeName("stranger1"), usages: client, never: true},
		{name: "token: a node's certificate", who: joining, signer: kubeletSigner, subject: nodeName("stranger3"), usages: client, ok: true},
		{name: "node: its certificate", who: n1, signer: kubeletSigner, subject: nodeName("stranger1"), usages: client, ok: true},
		{name: "node: its certificate, as with an RSA key", who: n1, signer: kubeletSigner, subject: nodeName("stranger1"), usages: append(client[:2:2], certificatesv1.UsageKeyEncipherment), ok: true},
		{name: "node: its network's", who: n1, signer: userSigner, subject: agentName("stranger1"), usages: client, ok: true},
		{name: "node: its serving certificate", who: n1, signer: servingSigner, subject: nodeName("stranger1"), usages: serving, names: []string{"stranger1", "stranger1.example.com"}, ips: []string{"192.0.2.1"}, ok: true},
	}
	for i, a := range asks {
		key := must[*ecdsa.PrivateKey](c)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
		var ips []net.IP
		for _, ip := range a.ips {
			ips = append(ips, net.ParseIP(ip))
		}
		seconds := int32(700)
		r := &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("stranger-%d", i)}, Spec: certificatesv1.CertificateSigningRequestSpec{
			Request: must[[]byte](c)(certutil.MakeCSR(key, &a.subject, a.names, ips)), SignerName: a.signer, Usages: a.usages, ExpirationSeconds: &seconds,
		}}
		c.eventually(a.name, func(ctx context.Context) error {
			_, err := a.who.CertificatesV1().CertificateSigningRequests().Create(ctx, r, metav1.CreateOptions{})
			if a.never && apierrors.IsForbidden(err) {
				return nil
			}
			if a.never && err == nil {
				c.Errorf("%s: could be asked for", a.name)
			}
			return err
		})
		made = append(made, r.Name)
	}
	for i := len(asks) - 1; i >= 0; i-- {
		if !asks[i].ok {
			continue
		}
		c.eventually(asks[i].name, func(ctx context.Context) error {
			r, err := c.admin.CertificatesV1().CertificateSigningRequests().Get(ctx, made[i], metav1.GetOptions{})
			if err != nil {
				return err
			}
			certs, err := certutil.ParseCertsPEM(r.Status.Certificate)
			if err != nil {
				return err
			}
			if d := time.Until(certs[0].NotAfter); d > 700*time.Second {
				c.Errorf("%s: asked for 700 s, got %s", asks[i].name, d)
			}
			return nil
		})
	}
	for i, a := range asks {
		r, err := c.admin.CertificatesV1().CertificateSigningRequests().Get(c.Context(), made[i], metav1.GetOptions{})
		if a.ok || a.never && apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			c.Fatal(err)
		}
		if len(r.Status.Conditions) > 0 || len(r.Status.Certificate) > 0 {
			c.Errorf("%s: %+v", a.name, r.Status)
		}
	}
}

// testTokens watches a token expire: it goes, and so does its signature.
func testTokens(c *cluster) {
	token := c.token("shorty", func(d map[string]string) {
		d["expiration"] = time.Now().Add(2 * time.Second).UTC().Format(time.RFC3339)
	})
	id, _, err := ParseToken(token)
	if err != nil {
		c.Fatal(err)
	}
	c.token("longer")
	c.eventually("expired token", func(ctx context.Context) error {
		_, err := c.admin.CoreV1().Secrets(metav1.NamespaceSystem).Get(ctx, "bootstrap-token-"+id, metav1.GetOptions{})
		if !apierrors.IsNotFound(err) {
			return fmt.Errorf("still there: %w", err)
		}
		return nil
	})
	c.eventually("signatures", func(ctx context.Context) error {
		cm, err := c.admin.CoreV1().ConfigMaps(metav1.NamespacePublic).Get(ctx, "cluster-info", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if cm.Data["jws-kubeconfig-longer"] == "" || cm.Data["jws-kubeconfig-"+id] != "" {
			return errors.New("not as the tokens are")
		}
		return nil
	})
	if _, err := c.admin.CoreV1().Secrets(metav1.NamespaceSystem).Get(c.Context(), "bootstrap-token-longer", metav1.GetOptions{}); err != nil {
		c.Error(err)
	}
}
