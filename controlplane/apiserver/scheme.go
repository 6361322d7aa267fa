package apiserver

import (
	"fmt"
	"maps"
	"slices"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	networkingv1 "k8s.io/api/networking/v1"
	nodev1 "k8s.io/api/node/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	resourcev1 "k8s.io/api/resource/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
	storagemigrationv1 "k8s.io/api/storagemigration/v1"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
)

// newScheme registers the served types: each external type is its group's internal version as well.
func newScheme(all []*descriptor.Resource) (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, appsv1.AddToScheme, batchv1.AddToScheme, authenticationv1.AddToScheme, authorizationv1.AddToScheme,
		autoscalingv1.AddToScheme, autoscalingv2.AddToScheme, certificatesv1.AddToScheme, coordinationv1.AddToScheme, discoveryv1.AddToScheme,
		flowcontrolv1.AddToScheme, networkingv1.AddToScheme, nodev1.AddToScheme, policyv1.AddToScheme, rbacv1.AddToScheme,
		schedulingv1.AddToScheme, storagev1.AddToScheme, admissionregistrationv1.AddToScheme, metainternalversion.AddToScheme,
		resourcev1.AddToScheme, storagemigrationv1.AddToScheme, addOptionConversions, addEvents, addAutoscalers,
	} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("API scheme: %w", err)
		}
	}
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	groups := map[string][]schema.GroupVersion{
		authenticationv1.GroupName: {authenticationv1.SchemeGroupVersion},
		authorizationv1.GroupName:  {authorizationv1.SchemeGroupVersion},
		autoscalingv1.GroupName:    {autoscalingv2.SchemeGroupVersion, autoscalingv1.SchemeGroupVersion},
	}
	for _, r := range all {
		if err := r.Register(scheme); err != nil {
			return nil, fmt.Errorf("API scheme: %s: %w", r.Kind, err)
		}
		if gv := r.GroupVersion; !slices.Contains(groups[gv.Group], gv) {
			groups[gv.Group] = append(groups[gv.Group], gv)
		}
	}
	// Kinds that are answered or passed on, never stored.
	for gv, objs := range map[schema.GroupVersion][]runtime.Object{
		corev1.SchemeGroupVersion:        {&corev1.Binding{}, &corev1.PodAttachOptions{}, &corev1.PodExecOptions{}, &corev1.PodLogOptions{}, &corev1.PodPortForwardOptions{}, &corev1.PodProxyOptions{}, &corev1.NodeProxyOptions{}, &corev1.ServiceProxyOptions{}},
		autoscalingv1.SchemeGroupVersion: {&autoscalingv1.Scale{}},
		policyv1.SchemeGroupVersion:      {&policyv1.Eviction{}},
		authenticationv1.SchemeGroupVersion: {
			&authenticationv1.TokenRequest{}, &authenticationv1.TokenReview{}, &authenticationv1.SelfSubjectReview{},
		},
		authorizationv1.SchemeGroupVersion: {
			&authorizationv1.SubjectAccessReview{}, &authorizationv1.LocalSubjectAccessReview{}, &authorizationv1.SelfSubjectAccessReview{}, &authorizationv1.SelfSubjectRulesReview{},
		},
	} {
		scheme.AddKnownTypes(schema.GroupVersion{Group: gv.Group, Version: runtime.APIVersionInternal}, objs...)
	}
	for _, g := range slices.Sorted(maps.Keys(groups)) {
		if err := scheme.SetVersionPriority(groups[g]...); err != nil {
			return nil, fmt.Errorf("API scheme: group %q: %w", g, err)
		}
	}
	return scheme, nil
}
