package admission

import (
	"context"
	"errors"
	"fmt"
	"io"

	admissionv1 "k8s.io/api/admission/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/warning"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/klog/v2"
	podsecurityadmission "k8s.io/pod-security-admission/admission"
	podsecurityconfig "k8s.io/pod-security-admission/admission/api/load"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/metrics"
	"k8s.io/pod-security-admission/policy"
)

// podSecurity holds pods to the Pod Security Standard that their namespace's labels name; privileged (all is
// allowed) where there is no label. The rules are the library's.
type podSecurity struct {
	*admission.Handler
	client     kubernetes.Interface
	namespaces corelisters.NamespaceLister
	pods       corelisters.PodLister
	delegate   *podsecurityadmission.Admission
}

func newPodSecurity(file io.Reader) (admission.Interface, error) {
	config, err := podsecurityconfig.LoadFromReader(file)
	if err != nil {
		return nil, fmt.Errorf("PodSecurity admission: %w", err)
	}
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		return nil, fmt.Errorf("PodSecurity admission: %w", err)
	}
	return &podSecurity{
		Handler: admission.NewHandler(admission.Create, admission.Update),
		delegate: &podsecurityadmission.Admission{
			Configuration: config, Evaluator: evaluator, Metrics: metrics.NewPrometheusRecorder(api.GetAPIVersion()), PodSpecExtractor: podsecurityadmission.DefaultPodSpecExtractor{},
		},
	}, nil
}

func (p *podSecurity) SetExternalKubeClientSet(c kubernetes.Interface) { p.client = c }

func (p *podSecurity) SetExternalKubeInformerFactory(f informers.SharedInformerFactory) {
	namespaces, pods := f.Core().V1().Namespaces(), f.Core().V1().Pods()
	p.namespaces, p.pods = namespaces.Lister(), pods.Lister()
	namespacesSynced, podsSynced := namespaces.Informer().HasSynced, pods.Informer().HasSynced
	p.SetReadyFunc(func() bool { return namespacesSynced() && podsSynced() })
}

func (p *podSecurity) ValidateInitialization() error {
	if p.client == nil || p.namespaces == nil {
		return errors.New("PodSecurity admission: no informers or no client")
	}
	p.delegate.NamespaceGetter = podsecurityadmission.NamespaceGetterFromListerAndClient(p.namespaces, p.client)
	p.delegate.PodLister = podsecurityadmission.PodListerFromInformer(p.pods)
	if err := p.delegate.CompleteConfiguration(); err != nil {
		return fmt.Errorf("PodSecurity admission: %w", err)
	}
	return p.delegate.ValidateConfiguration()
}

func (p *podSecurity) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	resource := a.GetResource().GroupResource()
	if resource.Group != "" || resource.Resource != "namespaces" {
		if !p.delegate.PodSpecExtractor.HasPodSpec(resource) {
			return nil
		}
	}
	if err := ready(p.Handler, a); err != nil {
		return err
	}
	result := p.delegate.Validate(ctx, &api.AttributesRecord{
		Name: a.GetName(), Namespace: a.GetNamespace(), Kind: a.GetKind(), Resource: a.GetResource(), Subresource: a.GetSubresource(),
		Operation: admissionv1.Operation(a.GetOperation()), Object: a.GetObject(), OldObject: a.GetOldObject(), Username: a.GetUserInfo().GetName(),
	})
	for _, w := range result.Warnings {
		warning.AddWarning(ctx, "", w)
	}
	for k, v := range result.AuditAnnotations {
		if err := a.AddAnnotation("pod-security.kubernetes.io/"+k, v); err != nil {
			klog.FromContext(ctx).Error(err, "Cannot add audit annotation", "key", k)
		}
	}
	if result.Allowed {
		return nil
	}
	err := admission.NewForbidden(a, errors.New("not allowed by PodSecurity"))
	var status *apierrors.StatusError
	if r := result.Result; r != nil && errors.As(err, &status) {
		// The library says it better: with the field's path for a bad label, with the checks that failed for a pod.
		if r.Message != "" {
			status.ErrStatus.Message = r.Message
		}
		if r.Reason != "" {
			status.ErrStatus.Reason = r.Reason
		}
		if r.Code != 0 {
			status.ErrStatus.Code = r.Code
		}
		if r.Details != nil {
			status.ErrStatus.Details = r.Details
		}
		return status
	}
	return err
}
