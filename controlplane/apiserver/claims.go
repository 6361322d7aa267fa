package apiserver

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	resourcev1 "k8s.io/api/resource/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/request"

	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
)

// claimHooks guard what a claim to devices is given. Admin access is for namespaces that are marked for it (KEP-5018). Who may
// write a claim's status needs a right of its own for each part of it: to allocate and reserve devices, and to tell about those of a
// driver, which that driver's pod on the claim's node may have for this node alone (KEP-4817).
func (b *builder) claimHooks() descriptor.Hooks {
	return descriptor.Hooks{
		Create: func(ctx context.Context, obj runtime.Object, _ bool) error {
			o, requests := metav1.Object(nil), []resourcev1.DeviceRequest(nil)
			kind := "ResourceClaim"
			switch c := obj.(type) {
			case *resourcev1.ResourceClaim:
				o, requests = c, c.Spec.Devices.Requests
			case *resourcev1.ResourceClaimTemplate:
				o, requests, kind = c, c.Spec.Spec.Devices.Requests, "ResourceClaimTemplate"
			}
			return invalidObject(kind, o.GetName(), b.adminAccess(ctx, request.NamespaceValue(ctx), adminRequest(requests)))
		},
		Status: func(ctx context.Context, obj, old runtime.Object) error {
			c, before := obj.(*resourcev1.ResourceClaim), &old.(*resourcev1.ResourceClaim).Status
			var errs field.ErrorList
			if adminResult(before) == nil {
				errs = b.adminAccess(ctx, c.Namespace, adminResult(&c.Status))
			}
			return invalidObject("ResourceClaim", c.Name, append(errs, claimStatusRights(ctx, b.generic.Authorization.Authorizer, c.Namespace, &c.Status, before)...))
		},
	}
}

func invalidObject(kind, name string, errs field.ErrorList) error {
	if len(errs) == 0 {
		return nil
	}
	return apierrors.NewInvalid(resourcev1.SchemeGroupVersion.WithKind(kind).GroupKind(), name, errs)
}

// adminRequest returns where admin access is asked for, or nil.
func adminRequest(requests []resourcev1.DeviceRequest) *field.Path {
	for i, r := range requests {
		if r.Exactly != nil && r.Exactly.AdminAccess != nil && *r.Exactly.AdminAccess {
			return field.NewPath("spec", "devices", "requests").Index(i).Child("adminAccess")
		}
	}
	return nil
}

// adminResult returns where admin access has been given, or nil.
func adminResult(s *resourcev1.ResourceClaimStatus) *field.Path {
	if s.Allocation == nil {
		return nil
	}
	for i, r := range s.Allocation.Devices.Results {
		if r.AdminAccess != nil && *r.AdminAccess {
			return field.NewPath("status", "allocation", "devices", "results").Index(i).Child("adminAccess")
		}
	}
	return nil
}

// adminAccess refuses what is asked for at a path, if that is any, in a namespace that is not marked.
func (b *builder) adminAccess(ctx context.Context, namespace string, path *field.Path) field.ErrorList {
	if path == nil {
		return nil
	}
	ns, err := b.client.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{})
	if err != nil {
		return field.ErrorList{field.InternalError(path, fmt.Errorf("could not retrieve namespace to verify admin access: %w", err))}
	}
	if ns.Labels[resourcev1.DRAAdminNamespaceLabelKey] != "true" {
		return field.ErrorList{field.Forbidden(path, fmt.Sprintf("admin access to devices requires the `%s: true` label on the containing namespace", resourcev1.DRAAdminNamespaceLabelKey))}
	}
	return nil
}

// claimStatusRights tells what of a change of a claim's status its user may not do.
func claimStatusRights(ctx context.Context, a authorizer.Authorizer, namespace string, now, before *resourcev1.ResourceClaimStatus) field.ErrorList {
	u, _ := request.UserFrom(ctx)
	info, ok := request.RequestInfoFrom(ctx)
	if u == nil || !ok {
		return field.ErrorList{field.InternalError(field.NewPath("status"), fmt.Errorf("who changes it is not known"))}
	}
	may := func(verb, subresource, namespace, name string) error {
		decision, reason, err := a.Authorize(ctx, authorizer.AttributesRecord{
			User: u, Verb: verb, APIGroup: resourcev1.GroupName, APIVersion: info.APIVersion, Resource: "resourceclaims", Subresource: subresource,
			Namespace: namespace, Name: name, ResourceRequest: true,
		})
		if decision == authorizer.DecisionAllow {
			return nil
		}
		scope := "at the cluster scope"
		if namespace != "" {
			scope = fmt.Sprintf("in the namespace %q", namespace)
		}
		if err != nil {
			reason = err.Error()
		}
		return fmt.Errorf("User %q cannot %s resource %q in API group %q %s: %s", u.GetName(), verb, "resourceclaims/"+subresource, resourcev1.GroupName, scope, reason)
	}
	var errs field.ErrorList
	status := field.NewPath("status")
	if !apiequality.Semantic.DeepEqual(now.Allocation, before.Allocation) || !apiequality.Semantic.DeepEqual(now.ReservedFor, before.ReservedFor) {
		if err := may(info.Verb, resourcev1.SubresourceBinding, "", ""); err != nil {
			errs = append(errs, field.Forbidden(status, "changing status.allocation or status.reservedFor requires extra permission: "+err.Error()))
		}
	}
	for _, driver := range changedDrivers(now, before) {
		if onNode(u, allocatedNode(now.Allocation)) && may(resourcev1.VerbPrefixAssociatedNode+info.Verb, resourcev1.SubresourceDriver, namespace, driver) == nil {
			continue
		}
		if err := may(resourcev1.VerbPrefixArbitraryNode+info.Verb, resourcev1.SubresourceDriver, namespace, driver); err != nil {
			errs = append(errs, field.Forbidden(status.Child("devices"), "changing status.devices requires extra permission: "+err.Error()))
		}
	}
	return errs
}

// changedDrivers returns those about whose devices the two tell something else. Who gives a claim's devices back takes away what was told about
// them by that.
func changedDrivers(now, before *resourcev1.ResourceClaimStatus) []string {
	type device struct{ driver, pool, name, share string }
	told := func(s *resourcev1.ResourceClaimStatus) map[device]*resourcev1.AllocatedDeviceStatus {
		m := map[device]*resourcev1.AllocatedDeviceStatus{}
		for i, d := range s.Devices {
			k := device{driver: d.Driver, pool: d.Pool, name: d.Device}
			if d.ShareID != nil {
				k.share = *d.ShareID
			}
			m[k] = &s.Devices[i]
		}
		return m
	}
	is, was := told(now), told(before)
	changed := map[string]bool{}
	for k, d := range is {
		if was[k] == nil || !apiequality.Semantic.DeepEqual(d, was[k]) {
			changed[k.driver] = true
		}
	}
	for k := range was {
		if is[k] == nil && now.Allocation != nil {
			changed[k.driver] = true
		}
	}
	return slices.Sorted(maps.Keys(changed))
}

// allocatedNode returns the one node that has a claim's devices, or "".
func allocatedNode(a *resourcev1.AllocationResult) string {
	if a == nil || a.NodeSelector == nil || len(a.NodeSelector.NodeSelectorTerms) != 1 {
		return ""
	}
	t := a.NodeSelector.NodeSelectorTerms[0]
	if len(t.MatchExpressions) != 0 || len(t.MatchFields) != 1 {
		return ""
	}
	if f := t.MatchFields[0]; f.Key == metav1.ObjectNameField && f.Operator == "In" && len(f.Values) == 1 {
		return f.Values[0]
	}
	return ""
}

// onNode tells whether a user is a ServiceAccount whose token is that of a pod of a node.
func onNode(u user.Info, node string) bool {
	return node != "" && strings.HasPrefix(u.GetName(), serviceaccount.ServiceAccountUsernamePrefix) && slices.Equal(u.GetExtra()[serviceaccount.NodeNameKey], []string{node})
}
