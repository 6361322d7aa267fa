package apiserver_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509/pkix"
	"encoding/pem"
	"strings"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	certutil "k8s.io/client-go/util/cert"
)

// signingRequest makes a PKCS #10 request, PEM.
func signingRequest(t testing.TB, user string, groups ...string) []byte {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	return must(certutil.MakeCSR(key, &pkix.Name{CommonName: user, Organization: groups}, nil, nil))(t)
}

func approved(status corev1.ConditionStatus) certificatesv1.CertificateSigningRequestCondition {
	return certificatesv1.CertificateSigningRequestCondition{Type: certificatesv1.CertificateApproved, Status: status, Reason: "Test"}
}

// testCertificates goes through a signing request's life: who may ask, approve and sign, and what stays.
func testCertificates(a *api) {
	ctx, create, update := a.Context(), metav1.CreateOptions{}, metav1.UpdateOptions{}
	api := func(c *rest.Config) kubernetes.Interface { return must(kubernetes.NewForConfig(c))(a) }
	request := func(user string, groups ...string) *certificatesv1.CertificateSigningRequest {
		seconds := int32(3600)
		return &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{GenerateName: a.ns + "-"}, Spec: certificatesv1.CertificateSigningRequestSpec{
			Request: signingRequest(a, user, groups...), SignerName: certificatesv1.KubeAPIServerClientSignerName, ExpirationSeconds: &seconds,
			Usages: []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth},
		}}
	}
	admin := a.client.CertificatesV1().CertificateSigningRequests()
	if _, err := admin.Create(ctx, request("eve", "system:masters"), create); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "system:masters") {
		a.Errorf("request for system:masters: %v", err)
	}
	c := must(admin.Create(ctx, request("eve"), create))(a)

	// Whoever may write requests still may not approve or sign for a signer.
	may := func(name string, rules ...rbacv1.PolicyRule) kubernetes.Interface {
		user := name + "-" + a.ns
		must(a.client.RbacV1().ClusterRoles().Create(ctx, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: user}, Rules: append(rules, rbacv1.PolicyRule{
			Verbs: []string{"get", "update"}, APIGroups: []string{certificatesv1.GroupName}, Resources: []string{"certificatesigningrequests", "certificatesigningrequests/approval", "certificatesigningrequests/status"},
		})}, create))(a)
		must(a.client.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: user},
			RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: user}, Subjects: []rbacv1.Subject{{Kind: "User", Name: user}}}, create))(a)
		client := api(a.server.As(a, user))
		a.eventually("rights of "+user, func(ctx context.Context) error {
			_, err := client.CertificatesV1().CertificateSigningRequests().Get(ctx, c.Name, metav1.GetOptions{})
			return err
		})
		return client
	}
	rule := func(verb, signer string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{Verbs: []string{verb}, APIGroups: []string{certificatesv1.GroupName}, Resources: []string{"signers"}, ResourceNames: []string{signer}}
	}
	writer, approver, signer := may("writer"), may("approver", rule("approve", "kubernetes.io/*")), may("signer", rule("sign", certificatesv1.KubeAPIServerClientSignerName))

	set := func(conditions ...certificatesv1.CertificateSigningRequestCondition) *certificatesv1.CertificateSigningRequest {
		want := c.DeepCopy()
		want.Status.Conditions = conditions
		return want
	}
	for who, client := range map[string]kubernetes.Interface{"writer": writer, "signer": signer} {
		if _, err := client.CertificatesV1().CertificateSigningRequests().UpdateApproval(ctx, c.Name, set(approved(corev1.ConditionTrue)), update); !apierrors.IsForbidden(err) {
			a.Errorf("%s approves: %v", who, err)
		}
	}
	_, err := admin.UpdateStatus(ctx, set(approved(corev1.ConditionTrue)), update)
	a.refused(err, 422, "status.conditions") // through the subresource approval only
	_, err = admin.UpdateApproval(ctx, c.Name, set(approved(corev1.ConditionFalse)), update)
	a.refused(err, 422, "status.conditions[0].status")
	denied := approved(corev1.ConditionTrue)
	denied.Type = certificatesv1.CertificateDenied
	_, err = admin.UpdateApproval(ctx, c.Name, set(approved(corev1.ConditionTrue), denied), update)
	a.refused(err, 422, "status.conditions")

	// An approval changes the conditions, and nothing else that comes with it.
	want := set(approved(corev1.ConditionTrue))
	want.Spec.SignerName, want.Status.Certificate = "example.com/other", []byte("x")
	c = must(approver.CertificatesV1().CertificateSigningRequests().UpdateApproval(ctx, c.Name, want, update))(a)
	if c.Spec.SignerName != certificatesv1.KubeAPIServerClientSignerName || c.Status.Certificate != nil || len(c.Status.Conditions) != 1 || c.Status.Conditions[0].LastUpdateTime.IsZero() || c.Status.Conditions[0].LastTransitionTime.IsZero() {
		a.Errorf("approved: %+v, %+v", c.Spec, c.Status)
	}
	_, err = admin.UpdateApproval(ctx, c.Name, set(), update)
	a.refused(err, 422, "status.conditions")

	issued := c.DeepCopy()
	issued.Status.Certificate = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: must(certutil.ParseCertsPEM(a.server.Admin.CertData))(a)[0].Raw})
	for who, client := range map[string]kubernetes.Interface{"writer": writer, "approver": approver} {
		if _, err := client.CertificatesV1().CertificateSigningRequests().UpdateStatus(ctx, issued, update); !apierrors.IsForbidden(err) {
			a.Errorf("%s signs: %v", who, err)
		}
	}
	bad := c.DeepCopy()
	bad.Status.Certificate = []byte("x")
	_, err = admin.UpdateStatus(ctx, bad, update)
	a.refused(err, 422, "status.certificate")
	c = must(signer.CertificatesV1().CertificateSigningRequests().UpdateStatus(ctx, issued, update))(a)
	again := c.DeepCopy()
	again.Status.Certificate = append(again.Status.Certificate, again.Status.Certificate...)
	_, err = admin.UpdateStatus(ctx, again, update)
	a.refused(err, 422, "status.certificate")
	changed := c.DeepCopy()
	changed.Spec.Usages = []certificatesv1.KeyUsage{certificatesv1.UsageServerAuth}
	_, err = admin.Update(ctx, changed, update)
	a.refused(err, 422, "spec")

	table := must(a.client.CertificatesV1().RESTClient().Get().Resource("certificatesigningrequests").Name(c.Name).SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").DoRaw(ctx))(a)
	for _, text := range []string{`"RequestedDuration"`, `"60m"`, `"Approved,Issued"`, `"admin"`} {
		if !strings.Contains(string(table), text) {
			a.Errorf("the table has no %s: %s", text, table)
		}
	}
	list := must(admin.List(ctx, metav1.ListOptions{FieldSelector: "spec.signerName=example.com/other"}))(a)
	if len(list.Items) != 0 {
		a.Errorf("%d requests of a signer that none names", len(list.Items))
	}
}

// testBootstrapTokens joins with a token: it opens what a machine needs to join, and nothing else.
func testBootstrapTokens(a *api) {
	ctx, create := a.Context(), metav1.CreateOptions{}
	id := strings.Repeat("0", 6-len("a1")) + "a1"
	const secret = "0123456789abcdef"
	must(a.client.CoreV1().Secrets(metav1.NamespaceSystem).Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "bootstrap-token-" + id}, Type: corev1.SecretTypeBootstrapToken,
		StringData: map[string]string{"token-id": id, "token-secret": secret, "usage-bootstrap-authentication": "true"},
	}, create))(a)
	with := func(token string) kubernetes.Interface {
		c := rest.AnonymousClientConfig(a.server.Admin)
		c.BearerToken = token
		return must(kubernetes.NewForConfig(c))(a)
	}
	joining := with(id + "." + secret)
	a.eventually("request with a token", func(ctx context.Context) error {
		c, err := joining.CertificatesV1().CertificateSigningRequests().Create(ctx, &certificatesv1.CertificateSigningRequest{
			ObjectMeta: metav1.ObjectMeta{GenerateName: a.ns + "-"}, Spec: certificatesv1.CertificateSigningRequestSpec{
				Request: signingRequest(a, "system:node:n", "system:nodes"), SignerName: certificatesv1.KubeAPIServerClientKubeletSignerName, Usages: []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth},
			},
		}, create)
		if err == nil && c.Spec.Username != "system:bootstrap:"+id {
			a.Errorf("asked by %q", c.Spec.Username)
		}
		return err
	})
	if _, err := joining.CoreV1().Nodes().List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		a.Errorf("nodes, with a token: %v", err)
	}
	if _, err := with(id+".0123456789abcdee").CertificatesV1().CertificateSigningRequests().List(ctx, metav1.ListOptions{}); !apierrors.IsUnauthorized(err) {
		a.Errorf("wrong secret: %v", err)
	}
	// What everybody may read to learn the cluster's CA, and what only who joins.
	for _, cm := range []*corev1.ConfigMap{
		{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespacePublic, Name: "cluster-info"}}, {ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: "strake-cluster"}},
	} {
		must(a.client.CoreV1().ConfigMaps(cm.Namespace).Create(ctx, cm, create))(a)
	}
	nobody := with("")
	a.eventually("cluster-info for everybody", func(ctx context.Context) error {
		_, err := nobody.CoreV1().ConfigMaps(metav1.NamespacePublic).Get(ctx, "cluster-info", metav1.GetOptions{})
		return err
	})
	if _, err := nobody.CoreV1().ConfigMaps(metav1.NamespacePublic).Update(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "cluster-info"}}, metav1.UpdateOptions{}); err == nil {
		a.Error("everybody writes cluster-info")
	}
	if _, err := joining.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(ctx, "strake-cluster", metav1.GetOptions{}); err != nil {
		a.Error(err)
	}
	if _, err := nobody.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(ctx, "strake-cluster", metav1.GetOptions{}); !apierrors.IsUnauthorized(err) {
		a.Errorf("settings, for nobody: %v", err)
	}
}
