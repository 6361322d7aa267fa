// Package policytypes tells in the status of a ValidatingAdmissionPolicy which of its expressions don't fit to the types that it judges, such as one that
// asks for a field that there is not. The rules are the library's.
package policytypes

import (
	"context"
	"fmt"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/cel/openapi/resolver"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	admissionlisters "k8s.io/client-go/listers/admissionregistration/v1"
	"k8s.io/client-go/restmapper"

	"github.com/strake-io/strake/controlplane/controllers/queue"
)

type controller struct {
	client   kubernetes.Interface
	policies admissionlisters.ValidatingAdmissionPolicyLister
	checker  validating.TypeChecker
}

// Setup registers the controller with the informers and returns what runs it. It asks the API server for the schemas of the types, and only when there is a
// policy to look at.
func Setup(client kubernetes.Interface, f informers.SharedInformerFactory) (func(context.Context), error) {
	policies, q := f.Admissionregistration().V1().ValidatingAdmissionPolicies(), queue.New("policy-types")
	c := &controller{client: client, policies: policies.Lister(), checker: validating.TypeChecker{
		SchemaResolver: &resolver.ClientDiscoveryResolver{Discovery: client.Discovery()},
		RestMapper:     restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(client.Discovery())),
	}}
	if _, err := policies.Informer().AddEventHandler(q.Handlers()); err != nil {
		return nil, fmt.Errorf("types of admission policies: %w", err)
	}
	return func(ctx context.Context) { q.Run(ctx, 1, c.reconcile, policies.Informer().HasSynced) }, nil
}

// reconcile looks at a policy once for each generation of it.
func (c *controller) reconcile(ctx context.Context, _, name string) error {
	p, err := c.policies.Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil || p.Status.ObservedGeneration >= p.Generation {
		return err
	}
	p = p.DeepCopy()
	p.Status.TypeChecking = &admissionv1.TypeChecking{ExpressionWarnings: c.checker.Check(p)}
	p.Status.ObservedGeneration = p.Generation
	_, err = c.client.AdmissionregistrationV1().ValidatingAdmissionPolicies().UpdateStatus(ctx, p, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
