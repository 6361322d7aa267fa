package auth_test

import (
	"context"
	"net/http"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/strake-io/strake/controlplane/apiserver/apiservertest"
)

// What a server makes of requests with a token, and with nothing.
func TestCredentials(t *testing.T) {
	s := apiservertest.Start(t)
	admin := kubernetes.NewForConfigOrDie(s.Admin)
	ctx, create := t.Context(), metav1.CreateOptions{}
	eventually(t, "ServiceAccount", func(ctx context.Context) error {
		_, err := admin.CoreV1().ServiceAccounts("default").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "robot"}}, create)
		return err
	})

	t.Run("a token", func(t *testing.T) {
		tr := must[*authenticationv1.TokenRequest](t)(admin.CoreV1().ServiceAccounts("default").CreateToken(ctx, "robot", &authenticationv1.TokenRequest{}, create))
		c := rest.AnonymousClientConfig(s.Admin)
		c.BearerToken = tr.Status.Token
		robot := kubernetes.NewForConfigOrDie(c)
		me := must[*authenticationv1.SelfSubjectReview](t)(robot.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, create))
		if u := me.Status.UserInfo; u.Username != "system:serviceaccount:default:robot" {
			t.Errorf("who am I: %+v", u)
		}
		review := must[*authenticationv1.TokenReview](t)(admin.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: tr.Status.Token}}, create))
		if !review.Status.Authenticated || review.Status.User.Username != "system:serviceaccount:default:robot" {
			t.Errorf("review %+v", review.Status)
		}
		can := must[*authorizationv1.SelfSubjectAccessReview](t)(robot.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authorizationv1.SelfSubjectAccessReview{
			Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "list", Resource: "pods", Namespace: "default"}},
		}, create))
		if can.Status.Allowed {
			t.Error("a new ServiceAccount can list pods")
		}
	})

	t.Run("nobody", func(t *testing.T) {
		c, err := rest.HTTPClientFor(rest.AnonymousClientConfig(s.Admin))
		if err != nil {
			t.Fatal(err)
		}
		for path, want := range map[string]int{"/readyz": 200, "/version": 200, "/api": 401, "/metrics": 401, "/api/v1/secrets": 401} {
			resp, err := c.Get(s.Admin.Host + path)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != want {
				t.Errorf("%s: %s, want %d", path, resp.Status, want)
			}
		}
		req, err := http.NewRequest("GET", s.Admin.Host+"/api/v1/secrets", nil)
		if err != nil {
			t.Fatal(err)
		}
		// Only the front proxy's own certificate makes these headers worth anything.
		req.Header.Set("X-Remote-User", "root")
		req.Header.Set("X-Remote-Group", "system:masters")
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 401 {
			t.Errorf("headers of a front proxy without its certificate: %s", resp.Status)
		}
	})
}
