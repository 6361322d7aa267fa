package review

import (
	"context"
	"errors"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	apiserverconfig "k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/request/anonymous"
	"k8s.io/apiserver/pkg/authentication/request/bearertoken"
	"k8s.io/apiserver/pkg/authentication/request/union"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
)

var alice = &user.DefaultInfo{Name: "alice", Groups: []string{"dev"}, Extra: map[string][]string{"k": {"v"}}}

func create(t *testing.T, s rest.Storage, ctx context.Context, obj runtime.Object) error {
	t.Helper()
	_, err := s.(rest.Creater).Create(ctx, obj, rest.ValidateAllObjectFunc, &metav1.CreateOptions{})
	return err
}

// tokens knows one good and one expired token, as the API server's chain does: with anonymous at its end.
func tokens() authenticator.Request {
	known := bearertoken.New(authenticator.TokenFunc(func(ctx context.Context, tok string) (*authenticator.Response, bool, error) {
		switch tok {
		case "good":
			auds, _ := authenticator.AudiencesFrom(ctx)
			return &authenticator.Response{User: alice, Audiences: auds}, true, nil
		case "expired":
			return nil, false, errors.New("token is expired")
		}
		return nil, false, nil
	}))
	return union.NewFailOnError(known, anonymous.NewAuthenticator([]apiserverconfig.AnonymousAuthCondition{{Path: "/healthz"}}))
}

func TestTokenReview(t *testing.T) {
	for _, tc := range []struct {
		name, token string
		audiences   []string
		ok          bool
		errHas      string
	}{
		{name: "good", token: "good", ok: true},
		{name: "for another audience", token: "good", audiences: []string{"vault"}, ok: true},
		{name: "expired says why", token: "expired", errHas: "expired"},
		{name: "unknown is nobody, not anonymous", token: "rubbish", errHas: "invalid bearer token"},
		{name: "control characters", token: "a\nb\x00c", errHas: "invalid bearer token"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: tc.token, Audiences: tc.audiences}}
			if err := create(t, Authentication(tokens(), authenticator.Audiences{"api"})["tokenreviews"], t.Context(), r); err != nil {
				t.Fatal(err)
			}
			if r.Status.Authenticated != tc.ok || !strings.Contains(r.Status.Error, tc.errHas) || (tc.errHas == "") != (r.Status.Error == "") {
				t.Fatalf("status %+v", r.Status)
			}
			want := tc.audiences
			if want == nil {
				want = []string{"api"}
			}
			if tc.ok && (r.Status.User.Username != "alice" || r.Status.Audiences[0] != want[0]) {
				t.Errorf("status %+v, want audiences %v", r.Status, want)
			}
		})
	}
	err := create(t, Authentication(tokens(), nil)["tokenreviews"], t.Context(), &authenticationv1.TokenReview{})
	if !apierrors.IsBadRequest(err) {
		t.Errorf("without a token: %v", err)
	}
}

func TestSelfSubjectReview(t *testing.T) {
	s := Authentication(tokens(), nil)["selfsubjectreviews"]
	r := &authenticationv1.SelfSubjectReview{}
	if err := create(t, s, genericapirequest.WithUser(t.Context(), alice), r); err != nil {
		t.Fatal(err)
	}
	if u := r.Status.UserInfo; u.Username != "alice" || u.Groups[0] != "dev" || u.Extra["k"][0] != "v" {
		t.Errorf("who am I: %+v", u)
	}
	if err := create(t, s, t.Context(), r); !apierrors.IsBadRequest(err) {
		t.Errorf("without a user: %v", err)
	}
}

// recorder allows all requests of alice and keeps the last one asked about.
type recorder struct{ last authorizer.Attributes }

func (r *recorder) authorizer() authorizer.Authorizer {
	return authorizer.AuthorizerFunc(func(_ context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
		r.last = a
		if a.GetUser().GetName() == "alice" {
			return authorizer.DecisionAllow, "because", nil
		}
		return authorizer.DecisionNoOpinion, "", nil
	})
}

func TestAccessReviews(t *testing.T) {
	res := func(ns string) *authorizationv1.ResourceAttributes {
		return &authorizationv1.ResourceAttributes{Namespace: ns, Verb: "get", Resource: "pods", Subresource: "log", Name: "a"}
	}
	non := &authorizationv1.NonResourceAttributes{Path: "/metrics", Verb: "get"}
	sar := func(s authorizationv1.SubjectAccessReviewSpec) runtime.Object {
		return &authorizationv1.SubjectAccessReview{Spec: s}
	}
	local := func(s authorizationv1.SubjectAccessReviewSpec) runtime.Object {
		return &authorizationv1.LocalSubjectAccessReview{Spec: s}
	}
	self := func(r *authorizationv1.ResourceAttributes, n *authorizationv1.NonResourceAttributes) runtime.Object {
		return &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: r, NonResourceAttributes: n}}
	}
	for _, tc := range []struct {
		name, resource string
		obj            runtime.Object
		allowed        bool
		invalid        string // field that is refused
	}{
		{"alice may", "subjectaccessreviews", sar(authorizationv1.SubjectAccessReviewSpec{User: "alice", ResourceAttributes: res("x")}), true, ""},
		{"bob may not", "subjectaccessreviews", sar(authorizationv1.SubjectAccessReviewSpec{User: "bob", ResourceAttributes: res("x")}), false, ""},
		{"group alone is a subject", "subjectaccessreviews", sar(authorizationv1.SubjectAccessReviewSpec{Groups: []string{"g"}, ResourceAttributes: res("x")}), false, ""},
		{"a path", "subjectaccessreviews", sar(authorizationv1.SubjectAccessReviewSpec{User: "alice", NonResourceAttributes: non}), true, ""},
		{"no subject", "subjectaccessreviews", sar(authorizationv1.SubjectAccessReviewSpec{ResourceAttributes: res("x")}), false, "spec.user"},
		{"no question", "subjectaccessreviews", sar(authorizationv1.SubjectAccessReviewSpec{User: "alice"}), false, "spec.resourceAttributes"},
		{"two questions", "subjectaccessreviews", sar(authorizationv1.SubjectAccessReviewSpec{User: "alice", ResourceAttributes: res("x"), NonResourceAttributes: non}), false, "spec.nonResourceAttributes"},
		{"local, its namespace", "localsubjectaccessreviews", local(authorizationv1.SubjectAccessReviewSpec{User: "alice", ResourceAttributes: res("here")}), true, ""},
		{"local, another namespace", "localsubjectaccessreviews", local(authorizationv1.SubjectAccessReviewSpec{User: "alice", ResourceAttributes: res("there")}), false, "spec.resourceAttributes.namespace"},
		{"local, a path", "localsubjectaccessreviews", local(authorizationv1.SubjectAccessReviewSpec{User: "alice", NonResourceAttributes: non}), false, "spec.nonResourceAttributes"},
		{"self", "selfsubjectaccessreviews", self(res("x"), nil), true, ""},
		{"self, no question", "selfsubjectaccessreviews", self(nil, nil), false, "spec.resourceAttributes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			rec := &recorder{}
			ctx := genericapirequest.WithNamespace(genericapirequest.WithUser(t.Context(), alice), "here")
			err := create(t, Authorization(rec.authorizer(), nil)[tc.resource], ctx, tc.obj)
			if tc.invalid != "" {
				if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), tc.invalid+":") {
					t.Fatalf("got %v, want %s invalid", err, tc.invalid)
				}
				if rec.last != nil {
					t.Error("an invalid question was asked")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var s authorizationv1.SubjectAccessReviewStatus
			switch o := tc.obj.(type) {
			case *authorizationv1.SubjectAccessReview:
				s = o.Status
			case *authorizationv1.LocalSubjectAccessReview:
				s = o.Status
			case *authorizationv1.SelfSubjectAccessReview:
				s = o.Status
			}
			if s.Allowed != tc.allowed || s.Denied {
				t.Errorf("status %+v, want allowed=%v", s, tc.allowed)
			}
			if rec.last.IsResourceRequest() && rec.last.GetSubresource() != "log" {
				t.Errorf("asked about %+v", rec.last)
			}
		})
	}
}

func TestSelectorsReachTheAuthorizer(t *testing.T) {
	rec := &recorder{}
	r := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{User: "alice", ResourceAttributes: &authorizationv1.ResourceAttributes{
		Verb: "list", Resource: "pods",
		FieldSelector: &authorizationv1.FieldSelectorAttributes{Requirements: []metav1.FieldSelectorRequirement{
			{Key: "spec.nodeName", Operator: metav1.FieldSelectorOpIn, Values: []string{"n1"}},
			{Key: "status.phase", Operator: metav1.FieldSelectorOpIn, Values: []string{"a", "b"}},
		}},
		LabelSelector: &authorizationv1.LabelSelectorAttributes{RawSelector: "app in (a,b)"},
	}}}
	if err := create(t, Authorization(rec.authorizer(), nil)["subjectaccessreviews"], t.Context(), r); err != nil {
		t.Fatal(err)
	}
	fs, err := rec.last.GetFieldSelector()
	if len(fs) != 1 || fs[0].Field != "spec.nodeName" || fs[0].Value != "n1" || err == nil {
		t.Errorf("field selector %v, %v: want the expressible one and an error for the other", fs, err)
	}
	ls, err := rec.last.GetLabelSelector()
	if len(ls) != 1 || err != nil {
		t.Errorf("label selector %v, %v", ls, err)
	}
}

type oneRule struct{}

func (oneRule) RulesFor(_ context.Context, _ user.Info, ns string) ([]authorizer.ResourceRuleInfo, []authorizer.NonResourceRuleInfo, bool, error) {
	return []authorizer.ResourceRuleInfo{&authorizer.DefaultResourceRuleInfo{Verbs: []string{"get"}, Resources: []string{ns}}},
		[]authorizer.NonResourceRuleInfo{&authorizer.DefaultNonResourceRuleInfo{Verbs: []string{"get"}, NonResourceURLs: []string{"/x"}}}, true, errors.New("half")
}

func TestRulesReview(t *testing.T) {
	s, ctx := Authorization(nil, oneRule{})["selfsubjectrulesreviews"], genericapirequest.WithUser(t.Context(), alice)
	r := &authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: "ns"}}
	if err := create(t, s, ctx, r); err != nil {
		t.Fatal(err)
	}
	if st := r.Status; len(st.ResourceRules) != 1 || st.ResourceRules[0].Resources[0] != "ns" || len(st.NonResourceRules) != 1 || !st.Incomplete || st.EvaluationError != "half" {
		t.Errorf("status %+v", st)
	}
	if err := create(t, s, ctx, &authorizationv1.SelfSubjectRulesReview{}); !apierrors.IsBadRequest(err) {
		t.Errorf("without a namespace: %v", err)
	}
}

func TestValidationIsAsked(t *testing.T) {
	refused := apierrors.NewBadRequest("no")
	s := Authentication(tokens(), nil)["tokenreviews"].(rest.Creater)
	_, err := s.Create(t.Context(), &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: "good"}}, func(context.Context, runtime.Object) error { return refused }, nil)
	if !errors.Is(err, refused) {
		t.Errorf("got %v", err)
	}
}
