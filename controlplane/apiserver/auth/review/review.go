package review

import (
	"context"
	"net/http"
	"net/url"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
)

// Reviewer is the storage of one kind of review.
type Reviewer struct {
	new        func() runtime.Object
	singular   string
	namespaced bool
	answer     func(ctx context.Context, obj runtime.Object) error
}

var (
	_ rest.Creater              = (*Reviewer)(nil)
	_ rest.Scoper               = (*Reviewer)(nil)
	_ rest.SingularNameProvider = (*Reviewer)(nil)
)

// New implements rest.Storage.
func (r *Reviewer) New() runtime.Object { return r.new() }

// Destroy implements rest.Storage.
func (r *Reviewer) Destroy() {}

// NamespaceScoped implements rest.Scoper.
func (r *Reviewer) NamespaceScoped() bool { return r.namespaced }

// GetSingularName implements rest.SingularNameProvider.
func (r *Reviewer) GetSingularName() string { return r.singular }

// Create answers the review and returns it.
func (r *Reviewer) Create(ctx context.Context, obj runtime.Object, validate rest.ValidateObjectFunc, _ *metav1.CreateOptions) (runtime.Object, error) {
	if validate != nil {
		if err := validate(ctx, obj.DeepCopyObject()); err != nil {
			return nil, err
		}
	}
	if err := r.answer(ctx, obj); err != nil {
		return nil, err
	}
	return obj, nil
}

// Authentication returns the storages of authentication.k8s.io/v1.
func Authentication(auth authenticator.Request, audiences authenticator.Audiences) map[string]rest.Storage {
	return map[string]rest.Storage{
		"tokenreviews": &Reviewer{new: func() runtime.Object { return &authenticationv1.TokenReview{} }, singular: "tokenreview", answer: func(ctx context.Context, obj runtime.Object) error {
			r := obj.(*authenticationv1.TokenReview)
			if r.Spec.Token == "" {
				return apierrors.NewBadRequest("token is required for TokenReview in authentication")
			}
			asked := authenticator.Audiences(r.Spec.Audiences)
			if len(asked) == 0 {
				asked = audiences
			}
			// The URL is nobody's: authenticators that open some paths to everybody look at it.
			req := (&http.Request{URL: &url.URL{}, Header: http.Header{"Authorization": {"Bearer " + r.Spec.Token}}}).WithContext(authenticator.WithAudiences(ctx, asked))
			resp, ok, err := auth.AuthenticateRequest(req)
			r.Status = authenticationv1.TokenReviewStatus{Authenticated: ok}
			if err != nil {
				r.Status.Error = err.Error()
			}
			if ok && resp != nil {
				r.Status.User = userInfo(resp.User)
				r.Status.Audiences = asked
				if resp.Audiences != nil {
					r.Status.Audiences = resp.Audiences
				}
			}
			return nil
		}},
		"selfsubjectreviews": &Reviewer{new: func() runtime.Object { return &authenticationv1.SelfSubjectReview{} }, singular: "selfsubjectreview", answer: func(ctx context.Context, obj runtime.Object) error {
			u, err := asker(ctx)
			if err != nil {
				return err
			}
			obj.(*authenticationv1.SelfSubjectReview).Status.UserInfo = userInfo(u)
			return nil
		}},
	}
}

func asker(ctx context.Context) (user.Info, error) {
	u, ok := genericapirequest.UserFrom(ctx)
	if !ok {
		return nil, apierrors.NewBadRequest("no user present on request")
	}
	return u, nil
}

func userInfo(u user.Info) authenticationv1.UserInfo {
	info := authenticationv1.UserInfo{Username: u.GetName(), UID: u.GetUID(), Groups: u.GetGroups()}
	for k, v := range u.GetExtra() {
		if info.Extra == nil {
			info.Extra = map[string]authenticationv1.ExtraValue{}
		}
		info.Extra[k] = v
	}
	return info
}

// Authorization returns the storages of authorization.k8s.io/v1.
func Authorization(auth authorizer.Authorizer, rules authorizer.RuleResolver) map[string]rest.Storage {
	decide := func(ctx context.Context, a authorizer.AttributesRecord) authorizationv1.SubjectAccessReviewStatus {
		decision, reason, err := auth.Authorize(ctx, a)
		s := authorizationv1.SubjectAccessReviewStatus{Allowed: decision == authorizer.DecisionAllow, Denied: decision == authorizer.DecisionDeny, Reason: reason}
		if err != nil {
			s.EvaluationError = err.Error()
		}
		return s
	}
	return map[string]rest.Storage{
		"subjectaccessreviews": &Reviewer{new: func() runtime.Object { return &authorizationv1.SubjectAccessReview{} }, singular: "subjectaccessreview", answer: func(ctx context.Context, obj runtime.Object) error {
			r := obj.(*authorizationv1.SubjectAccessReview)
			errs := append(validateSubject(r.Spec), validateAttributes(r.Spec.ResourceAttributes, r.Spec.NonResourceAttributes)...)
			if len(errs) > 0 {
				return invalid("SubjectAccessReview", errs)
			}
			r.Status = decide(ctx, attributes(subject(r.Spec), r.Spec.ResourceAttributes, r.Spec.NonResourceAttributes))
			return nil
		}},
		"localsubjectaccessreviews": &Reviewer{new: func() runtime.Object { return &authorizationv1.LocalSubjectAccessReview{} }, singular: "localsubjectaccessreview", namespaced: true, answer: func(ctx context.Context, obj runtime.Object) error {
			r := obj.(*authorizationv1.LocalSubjectAccessReview)
			errs := append(validateSubject(r.Spec), validateAttributes(r.Spec.ResourceAttributes, r.Spec.NonResourceAttributes)...)
			if r.Spec.NonResourceAttributes != nil {
				errs = append(errs, field.Invalid(field.NewPath("spec", "nonResourceAttributes"), r.Spec.NonResourceAttributes, "disallowed on this kind of request"))
			}
			// Whoever may ask within a namespace must not learn of others.
			if ns := genericapirequest.NamespaceValue(ctx); r.Spec.ResourceAttributes != nil && r.Spec.ResourceAttributes.Namespace != ns {
				errs = append(errs, field.Invalid(field.NewPath("spec", "resourceAttributes", "namespace"), r.Spec.ResourceAttributes.Namespace, "must match metadata.namespace"))
			}
			if len(errs) > 0 {
				return invalid("LocalSubjectAccessReview", errs)
			}
			r.Status = decide(ctx, attributes(subject(r.Spec), r.Spec.ResourceAttributes, nil))
			return nil
		}},
		"selfsubjectaccessreviews": &Reviewer{new: func() runtime.Object { return &authorizationv1.SelfSubjectAccessReview{} }, singular: "selfsubjectaccessreview", answer: func(ctx context.Context, obj runtime.Object) error {
			r := obj.(*authorizationv1.SelfSubjectAccessReview)
			u, err := asker(ctx)
			if err != nil {
				return err
			}
			if errs := validateAttributes(r.Spec.ResourceAttributes, r.Spec.NonResourceAttributes); len(errs) > 0 {
				return invalid("SelfSubjectAccessReview", errs)
			}
			r.Status = decide(ctx, attributes(u, r.Spec.ResourceAttributes, r.Spec.NonResourceAttributes))
			return nil
		}},
		"selfsubjectrulesreviews": &Reviewer{new: func() runtime.Object { return &authorizationv1.SelfSubjectRulesReview{} }, singular: "selfsubjectrulesreview", answer: func(ctx context.Context, obj runtime.Object) error {
			r := obj.(*authorizationv1.SelfSubjectRulesReview)
			u, err := asker(ctx)
			if err != nil {
				return err
			}
			if r.Spec.Namespace == "" {
				return apierrors.NewBadRequest("no namespace on request")
			}
			res, urls, incomplete, err := rules.RulesFor(ctx, u, r.Spec.Namespace)
			r.Status = authorizationv1.SubjectRulesReviewStatus{Incomplete: incomplete, ResourceRules: []authorizationv1.ResourceRule{}, NonResourceRules: []authorizationv1.NonResourceRule{}}
			if err != nil {
				r.Status.EvaluationError = err.Error()
			}
			for _, x := range res {
				r.Status.ResourceRules = append(r.Status.ResourceRules, authorizationv1.ResourceRule{Verbs: x.GetVerbs(), APIGroups: x.GetAPIGroups(), Resources: x.GetResources(), ResourceNames: x.GetResourceNames()})
			}
			for _, x := range urls {
				r.Status.NonResourceRules = append(r.Status.NonResourceRules, authorizationv1.NonResourceRule{Verbs: x.GetVerbs(), NonResourceURLs: x.GetNonResourceURLs()})
			}
			return nil
		}},
	}
}
