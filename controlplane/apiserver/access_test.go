package apiserver_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// testKubelets acts as kubelets do: what a pod names is asked for as soon as the pod is seen.
func testKubelets(a *api) {
	ctx, create := a.Context(), metav1.CreateOptions{}
	name := "n-" + a.ns
	kubelet := must(kubernetes.NewForConfig(a.server.As(a, "system:node:"+name, "system:nodes")))(a)
	w := must(kubelet.CoreV1().Pods("").Watch(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + name}))(a)
	defer w.Stop()
	const n = 20
	go func() {
		for i := range n {
			id := fmt.Sprint("p", i)
			_, secretErr := a.client.CoreV1().Secrets(a.ns).Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: id}}, create)
			_, err := a.client.CoreV1().Pods(a.ns).Create(ctx, a.pod(id, func(p *corev1.Pod) {
				p.Spec.Volumes = []corev1.Volume{{Name: "s", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: id}}}}
			}), create)
			bindErr := a.client.CoreV1().Pods(a.ns).Bind(ctx, &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: id}, Target: corev1.ObjectReference{Name: name}}, create)
			if err := errors.Join(secretErr, err, bindErr); err != nil {
				a.Error(err)
				w.Stop()
				return
			}
		}
	}()
	for range n {
		e, ok := <-w.ResultChan()
		if !ok {
			return
		}
		p := e.Object.(*corev1.Pod)
		if _, err := kubelet.CoreV1().Secrets(a.ns).Get(ctx, p.Name, metav1.GetOptions{}); err != nil {
			a.Errorf("Secret of pod %s: %v", p.Name, err)
		}
		_, err := kubelet.CoreV1().ServiceAccounts(a.ns).CreateToken(ctx, "default", &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
			BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: p.Name, UID: p.UID},
		}}, create)
		if err != nil {
			a.Errorf("token of pod %s: %v", p.Name, err)
		}
	}

	other := must(kubernetes.NewForConfig(a.server.As(a, "system:node:other", "system:nodes")))(a)
	for what, err := range map[string]error{
		"another's Secret":       get(other.CoreV1().Secrets(a.ns).Get(ctx, "p0", metav1.GetOptions{})),
		"another's pod":          get(other.CoreV1().Pods(a.ns).Get(ctx, "p0", metav1.GetOptions{})),
		"a Secret of its own":    get(kubelet.CoreV1().Secrets(a.ns).Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "x"}}, create)),
		"a role of its own":      get(kubelet.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "x"}}, create)),
		"a control plane's role": get(kubelet.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"node-role.kubernetes.io/control-plane": ""}}}, create)),
	} {
		if !apierrors.IsForbidden(err) {
			a.Errorf("%s: %v, want forbidden", what, err)
		}
	}
	labels := map[string]string{corev1.LabelHostname: name, corev1.LabelArchStable: "amd64", corev1.LabelOSStable: "linux", "example.org/rack": "7"}
	made := must(kubelet.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}, create))(a)
	made.Labels["node-role.kubernetes.io/worker"] = ""
	if _, err := kubelet.CoreV1().Nodes().Update(ctx, made, metav1.UpdateOptions{}); !apierrors.IsForbidden(err) {
		a.Errorf("a kubelet gives itself a role: %v", err)
	}
}

func get(_ any, err error) error { return err }

// bearer is a client with nothing but a token.
func (a *api) bearer(token string) kubernetes.Interface {
	c := rest.AnonymousClientConfig(a.server.Admin)
	c.BearerToken = token
	return must(kubernetes.NewForConfig(c))(a)
}

func testTokens(a *api) {
	ctx, create := a.Context(), metav1.CreateOptions{}
	accounts := a.client.CoreV1().ServiceAccounts(a.ns)
	must(accounts.Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "robot"}}, create))(a)
	issue := func(spec authenticationv1.TokenRequestSpec) string {
		a.Helper()
		return must(accounts.CreateToken(ctx, "robot", &authenticationv1.TokenRequest{Spec: spec}, create))(a).Status.Token
	}
	who := func(token string) (string, error) {
		r, err := a.bearer(token).AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, create)
		if err != nil {
			return "", err
		}
		return r.Status.UserInfo.Username, nil
	}
	robot := "system:serviceaccount:" + a.ns + ":robot"
	token := issue(authenticationv1.TokenRequestSpec{})
	if user, err := who(token); err != nil || user != robot {
		a.Errorf("user %q, %v", user, err)
	}

	// Nothing is allowed until a Role says so.
	c := a.bearer(token)
	if _, err := c.CoreV1().ConfigMaps(a.ns).List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), `User "`+robot+`" cannot list resource "configmaps"`) {
		a.Errorf("without a Role: %v", err)
	}
	must(a.client.RbacV1().Roles(a.ns).Create(ctx, &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "reader"}, Rules: []rbacv1.PolicyRule{
		{Verbs: []string{"get", "list"}, APIGroups: []string{""}, Resources: []string{"configmaps"}},
	}}, create))(a)
	must(a.client.RbacV1().RoleBindings(a.ns).Create(ctx, &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "reader"}, RoleRef: rbacv1.RoleRef{Kind: "Role", Name: "reader"}, Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Name: "robot", Namespace: a.ns}},
	}, create))(a)
	a.eventually("with a Role", func(ctx context.Context) error {
		_, err := c.CoreV1().ConfigMaps(a.ns).List(ctx, metav1.ListOptions{})
		return err
	})
	for what, err := range map[string]error{
		"another verb":      get(c.CoreV1().ConfigMaps(a.ns).Create(ctx, configMap("x", nil), create)),
		"another resource":  get(c.CoreV1().Secrets(a.ns).List(ctx, metav1.ListOptions{})),
		"another namespace": get(c.CoreV1().ConfigMaps("default").List(ctx, metav1.ListOptions{})),
	} {
		if !apierrors.IsForbidden(err) {
			a.Errorf("%s: %v, want forbidden", what, err)
		}
	}

	// A token is good for its audience, and lives as long as what it is bound to.
	vault := issue(authenticationv1.TokenRequestSpec{Audiences: []string{"vault"}})
	if _, err := who(vault); !apierrors.IsUnauthorized(err) {
		a.Errorf("a token for another audience: %v", err)
	}
	review := func(audiences ...string) authenticationv1.TokenReviewStatus {
		return must(a.client.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: vault, Audiences: audiences}}, create))(a).Status
	}
	if s := review("vault", "bank"); !s.Authenticated || s.User.Username != robot || len(s.Audiences) != 1 || s.Audiences[0] != "vault" {
		a.Errorf("review by its audience %+v", s)
	}
	if s := review("bank"); s.Authenticated {
		a.Errorf("review by another %+v", s)
	}
	pod := a.makePod("p", func(p *corev1.Pod) { p.Spec.ServiceAccountName = "robot" })
	bound := authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: "p", UID: pod.UID}}
	// Answers are cached for a while: each look needs a token that was not shown before.
	const looks = 100
	var ofPod, ofAccount []string
	for range looks {
		ofPod, ofAccount = append(ofPod, issue(bound)), append(ofAccount, issue(authenticationv1.TokenRequestSpec{}))
	}
	endsWith := func(what string, tokens []string, drop func(context.Context, string, metav1.DeleteOptions) error, name string) {
		a.Helper()
		if _, err := who(tokens[0]); err != nil {
			a.Errorf("%s, while that is there: %v", what, err)
		}
		if err := drop(ctx, name, metav1.DeleteOptions{}); err != nil {
			a.Fatal(err)
		}
		next := 1
		a.eventually(what+" ends with it", func(context.Context) error {
			user, err := who(tokens[min(next, looks-1)])
			next++
			if !apierrors.IsUnauthorized(err) {
				return fmt.Errorf("user %q, %w", user, err)
			}
			return nil
		})
	}
	endsWith("a pod's token", ofPod, a.client.CoreV1().Pods(a.ns).Delete, "p")
	endsWith("an account's token", ofAccount, accounts.Delete, "robot")
	if _, err := who("rubbish"); !apierrors.IsUnauthorized(err) {
		a.Errorf("rubbish: %v", err)
	}
	short := int64(60)
	_, err := accounts.CreateToken(ctx, "default", &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &short}}, create)
	a.refused(err, 422, "spec.expirationSeconds")
}

func testUsers(a *api) {
	ctx, create := a.Context(), metav1.CreateOptions{}
	must(a.client.RbacV1().RoleBindings(a.ns).Create(ctx, &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "edit"}, RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: "edit"}, Subjects: []rbacv1.Subject{{Kind: "Group", Name: "devs-" + a.ns}},
	}, create))(a)
	ann := must(kubernetes.NewForConfig(a.server.As(a, "ann", "devs-"+a.ns)))(a)
	a.eventually("by her group", func(ctx context.Context) error {
		m := configMap("", nil)
		m.GenerateName = "of-ann-"
		_, err := ann.CoreV1().ConfigMaps(a.ns).Create(ctx, m, create)
		return err
	})
	impersonating := a.server.As(a, "ann", "devs-"+a.ns)
	impersonating.Impersonate = rest.ImpersonationConfig{UserName: "root", Groups: []string{"system:masters"}}
	root := must(kubernetes.NewForConfig(impersonating))(a)
	for what, err := range map[string]error{
		"a Role, which edit does not hold": get(ann.RbacV1().Roles(a.ns).Create(ctx, &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "x"}}, create)),
		"another namespace":                get(ann.CoreV1().ConfigMaps("default").List(ctx, metav1.ListOptions{})),
		"nodes":                            get(ann.CoreV1().Nodes().List(ctx, metav1.ListOptions{})),
		"root's name":                      get(root.CoreV1().Nodes().List(ctx, metav1.ListOptions{})),
	} {
		if !apierrors.IsForbidden(err) {
			a.Errorf("%s: %v, want forbidden", what, err)
		}
	}
	// What kubectl auth can-i asks.
	can := func(verb, resource string) bool {
		r := must(ann.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
			ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: a.ns, Verb: verb, Group: "apps", Resource: resource},
		}}, create))(a)
		return r.Status.Allowed
	}
	if !can("create", "deployments") || can("escalate", "deployments") {
		a.Error("ann can't tell what she may do")
	}
	// Who asks for a certificate can't say who he is.
	csr := must(a.client.CertificatesV1().CertificateSigningRequests().Create(ctx, &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{Name: a.ns}, Spec: certificatesv1.CertificateSigningRequestSpec{
			Request: signingRequest(a, "root"), SignerName: "test.strake.io/x", Usages: []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth}, Username: "root", Groups: []string{"wheel"},
		},
	}, create))(a)
	if csr.Spec.Username != "admin" || slices.Contains(csr.Spec.Groups, "wheel") || !slices.Contains(csr.Spec.Groups, "system:masters") {
		a.Errorf("asked by %q of %q", csr.Spec.Username, csr.Spec.Groups)
	}
	// Who may, acts as others: kubectl --as.
	asAnn := rest.CopyConfig(a.server.Admin)
	asAnn.Impersonate = rest.ImpersonationConfig{UserName: "ann"}
	me := must(must(kubernetes.NewForConfig(asAnn))(a).AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, create))(a)
	if me.Status.UserInfo.Username != "ann" {
		a.Errorf("as ann: %+v", me.Status.UserInfo)
	}
	// Without any credential there are only the paths of probes.
	anonymous := must(rest.HTTPClientFor(rest.AnonymousClientConfig(a.server.Admin)))(a)
	for path, want := range map[string]int{"/livez": 200, "/readyz": 200, "/version": 200, "/": 401, "/api/v1/namespaces": 401, "/openapi/v2": 401, "/livez/etcd": 401} {
		resp, err := anonymous.Get(a.server.Admin.Host + path)
		if err != nil {
			a.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			a.Errorf("%s: %s, want %d %s", path, resp.Status, want, http.StatusText(want))
		}
	}
}
