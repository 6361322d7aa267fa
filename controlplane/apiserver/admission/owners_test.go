package admission

import (
	"context"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authorization/authorizer"
)

// TestOwnerReferences: whose object it becomes decides who has it deleted, and what blocks an owner decides how long that stays.
func TestOwnerReferences(t *testing.T) {
	mapper := meta.NewDefaultRESTMapper(nil)
	mapper.Add(appsv1.SchemeGroupVersion.WithKind("Deployment"), meta.RESTScopeNamespace)
	mapper.Add(corev1.SchemeGroupVersion.WithKind("Node"), meta.RESTScopeRoot)
	yes := true
	owner := func(version, kind string, change ...func(*metav1.OwnerReference)) metav1.OwnerReference {
		r := metav1.OwnerReference{APIVersion: version, Kind: kind, Name: "o", UID: types.UID(kind)}
		for _, f := range change {
			f(&r)
		}
		return r
	}
	blocks := func(r *metav1.OwnerReference) { r.BlockOwnerDeletion = &yes }
	controls := func(r *metav1.OwnerReference) { r.Controller = &yes }
	const finalizers, deletes = "update deployments.apps/finalizers ns/o", "delete pods ns/p"
	for _, c := range []struct {
		name     string
		now, was []metav1.OwnerReference
		update   bool
		may      []string
		want     string // of the error
	}{
		{name: "who makes an object may give it an owner", now: []metav1.OwnerReference{owner("apps/v1", "Deployment")}},
		{name: "blocking it takes the right to its finalizers", now: []metav1.OwnerReference{owner("apps/v1", "Deployment", blocks)}, want: "can't set finalizers"},
		{name: "which this user has", now: []metav1.OwnerReference{owner("apps/v1", "Deployment", blocks)}, may: []string{finalizers}},
		{name: "an owner of no namespace", now: []metav1.OwnerReference{owner("v1", "Node", blocks)}, may: []string{"update nodes/finalizers /o"}},
		{name: "the right to one of the namespace is none to it", now: []metav1.OwnerReference{owner("v1", "Node", blocks)}, may: []string{"update nodes/finalizers ns/o"}, want: "can't set finalizers"},
		{name: "an owner of a kind that there is not", now: []metav1.OwnerReference{owner("example.org/v1", "Ghost", blocks)}, may: []string{finalizers}, want: "RESTMapping"},
		{name: "a new owner", update: true, now: []metav1.OwnerReference{owner("apps/v1", "Deployment")}, want: "can't delete"},
		{name: "of what the user may delete", update: true, now: []metav1.OwnerReference{owner("apps/v1", "Deployment")}, may: []string{deletes}},
		{name: "one less", update: true, was: []metav1.OwnerReference{owner("apps/v1", "Deployment")}, want: "can't delete"},
		{name: "another controller", update: true, was: []metav1.OwnerReference{owner("apps/v1", "Deployment")}, now: []metav1.OwnerReference{owner("apps/v1", "Deployment", controls)}, want: "can't delete"},
		{name: "the same owners", update: true, was: []metav1.OwnerReference{owner("apps/v1", "Deployment", blocks)}, now: []metav1.OwnerReference{owner("apps/v1", "Deployment", blocks)}},
		{name: "one that blocks already", update: true, was: []metav1.OwnerReference{owner("apps/v1", "Deployment", blocks)}, now: []metav1.OwnerReference{owner("apps/v1", "Deployment", blocks), owner("v1", "Node")}, may: []string{deletes}},
		{name: "one that blocks now", update: true, was: []metav1.OwnerReference{owner("apps/v1", "Deployment")}, now: []metav1.OwnerReference{owner("apps/v1", "Deployment", blocks)}, may: []string{deletes}, want: "can't set finalizers"},
	} {
		plugin, err := newOwnerReferences()
		if err != nil {
			t.Fatal(err)
		}
		p := plugin.(*ownerReferences)
		p.SetRESTMapper(mapper)
		p.SetAuthorizer(authorizer.AuthorizerFunc(func(_ context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
			resource := a.GetResource()
			if a.GetAPIGroup() != "" {
				resource += "." + a.GetAPIGroup()
			}
			if a.GetSubresource() != "" {
				resource += "/" + a.GetSubresource()
			}
			if a.GetUser().GetName() == "someone" && slices.Contains(c.may, a.GetVerb()+" "+resource+" "+a.GetNamespace()+"/"+a.GetName()) {
				return authorizer.DecisionAllow, "", nil
			}
			return authorizer.DecisionNoOpinion, "", nil
		}))
		now := pod()
		now.OwnerReferences = c.now
		r := request{obj: now}
		if c.update {
			was := pod()
			was.OwnerReferences = c.was
			r.op, r.old = admission.Update, was
		}
		if err := run(t, p, r); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}
