package apiserver_test

import (
	"context"
	"errors"
	"fmt"
	"slices"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// testClaims holds who may write what of a claim's status, and where admin access may be asked for, against KEP-4817 and KEP-5018.
func testClaims(a *api) {
	ctx, create := a.Context(), metav1.CreateOptions{}
	claims := a.client.ResourceV1().ResourceClaims(a.ns)
	claim := func(name string, admin bool) *resourcev1.ResourceClaim {
		c := &resourcev1.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Name: name}}
		c.Spec.Devices.Requests = []resourcev1.DeviceRequest{{Name: "r", Exactly: &resourcev1.ExactDeviceRequest{DeviceClassName: "gpus", AdminAccess: &admin}}}
		return c
	}

	const path = "spec.devices.requests[0].adminAccess"
	template := &resourcev1.ResourceClaimTemplate{ObjectMeta: metav1.ObjectMeta{Name: "t"}}
	template.Spec.Spec = claim("", true).Spec
	a.refused(get(claims.Create(ctx, claim("admin", true), create)), 422, path)
	a.refused(get(a.client.ResourceV1().ResourceClaimTemplates(a.ns).Create(ctx, template, create)), 422, path)
	must(claims.Create(ctx, claim("no-admin", false), create))(a)
	given := must(claims.Get(ctx, "no-admin", metav1.GetOptions{}))(a)
	yes := true
	given.Status.Allocation = &resourcev1.AllocationResult{Devices: resourcev1.DeviceAllocationResult{Results: []resourcev1.DeviceRequestAllocationResult{
		{Request: "r", Driver: "gpu.example.com", Pool: "p", Device: "d", AdminAccess: &yes},
	}}}
	a.refused(get(claims.UpdateStatus(ctx, given, metav1.UpdateOptions{})), 422, "status.allocation.devices.results[0].adminAccess")
	ns := must(a.client.CoreV1().Namespaces().Get(ctx, a.ns, metav1.GetOptions{}))(a)
	ns.Labels[resourcev1.DRAAdminNamespaceLabelKey] = "true"
	must(a.client.CoreV1().Namespaces().Update(ctx, ns, metav1.UpdateOptions{}))(a)
	must(claims.Create(ctx, claim("admin", true), create))(a)
	must(a.client.ResourceV1().ResourceClaimTemplates(a.ns).Create(ctx, template, create))(a)

	rule := func(verb, subresource string, names ...string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{Verbs: []string{verb}, APIGroups: []string{"resource.k8s.io"}, Resources: []string{"resourceclaims" + subresource}, ResourceNames: names}
	}
	who := func(name, node string, rules ...rbacv1.PolicyRule) kubernetes.Interface {
		a.Helper()
		role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: a.ns + "-" + name}, Rules: append(rules, rule("get", ""), rule("update", "/status"))}
		must(a.client.RbacV1().ClusterRoles().Create(ctx, role, create))(a)
		must(a.client.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: role.Name}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role.Name},
			Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: a.ns, Name: name}},
		}, create))(a)
		c := rest.CopyConfig(a.server.Admin)
		c.Impersonate = rest.ImpersonationConfig{UserName: "system:serviceaccount:" + a.ns + ":" + name, Groups: []string{"system:authenticated"}}
		if node != "" {
			c.Impersonate.Extra = map[string][]string{"authentication.kubernetes.io/node-name": {node}}
		}
		user := must(kubernetes.NewForConfig(c))(a)
		a.eventually("the role of "+name, func(ctx context.Context) error {
			review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
				Verb: "update", Group: "resource.k8s.io", Resource: "resourceclaims", Subresource: "status", Namespace: a.ns,
			}}}
			r, err := user.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, review, create)
			if err == nil && !r.Status.Allowed {
				err = errors.New(r.Status.Reason)
			}
			return err
		})
		return user
	}
	scheduler := who("scheduler", "", rule("update", "/binding"))
	nobody := who("nobody", "")
	driver := who("driver", "n1", rule("associated-node:update", "/driver", "gpu.example.com"))
	elsewhere := who("elsewhere", "n2", rule("associated-node:update", "/driver", "gpu.example.com"))
	central := who("central", "", rule("arbitrary-node:update", "/driver", "gpu.example.com"))

	write := func(by kubernetes.Interface, change func(*resourcev1.ResourceClaimStatus)) error {
		a.Helper()
		c := must(claims.Get(ctx, "no-admin", metav1.GetOptions{}))(a)
		change(&c.Status)
		return get(by.ResourceV1().ResourceClaims(a.ns).UpdateStatus(ctx, c, metav1.UpdateOptions{}))
	}
	allocate := func(s *resourcev1.ResourceClaimStatus) {
		s.Allocation = &resourcev1.AllocationResult{
			Devices: resourcev1.DeviceAllocationResult{Results: []resourcev1.DeviceRequestAllocationResult{
				{Request: "r", Driver: "gpu.example.com", Pool: "p", Device: "d"}, {Request: "r", Driver: "nic.example.com", Pool: "p", Device: "d"},
			}},
			NodeSelector: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchFields: []corev1.NodeSelectorRequirement{{Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: []string{"n1"}}},
			}}},
		}
	}
	n := 0
	tell := func(drivers ...string) func(s *resourcev1.ResourceClaimStatus) {
		return func(s *resourcev1.ResourceClaimStatus) {
			n++
			for _, d := range drivers {
				s.Devices = slices.DeleteFunc(s.Devices, func(x resourcev1.AllocatedDeviceStatus) bool { return x.Driver == d })
				s.Devices = append(s.Devices, resourcev1.AllocatedDeviceStatus{Driver: d, Pool: "p", Device: "d", NetworkData: &resourcev1.NetworkDeviceData{InterfaceName: fmt.Sprint("eth", n)}})
			}
		}
	}
	for _, step := range []struct {
		what   string
		by     kubernetes.Interface
		change func(*resourcev1.ResourceClaimStatus)
		fields []string
	}{
		{"who may only write the status allocates", nobody, allocate, []string{"status"}},
		{"a driver allocates", driver, allocate, []string{"status"}},
		{"the scheduler allocates", scheduler, allocate, nil},
		{"the scheduler tells about devices", scheduler, tell("gpu.example.com"), []string{"status.devices"}},
		{"a driver on another node", elsewhere, tell("gpu.example.com"), []string{"status.devices"}},
		{"a driver tells about another's", driver, tell("nic.example.com"), []string{"status.devices"}},
		{"a driver tells about its own", driver, tell("gpu.example.com"), nil},
		{"what it told again, from anywhere", central, tell("gpu.example.com"), nil},
		{"from anywhere, and another's", central, tell("gpu.example.com", "nic.example.com"), []string{"status.devices"}},
		{"a driver forgets another's, which nobody told", driver, func(s *resourcev1.ResourceClaimStatus) { s.Devices = nil }, nil},
		{"nothing changes", nobody, func(*resourcev1.ResourceClaimStatus) {}, nil},
		{"who administrates may all", a.client, tell("gpu.example.com", "nic.example.com"), nil},
		{"a driver takes another's away", driver, func(s *resourcev1.ResourceClaimStatus) { s.Devices = s.Devices[:1] }, []string{"status.devices"}},
		{"devices are given back, with what was told", scheduler, func(s *resourcev1.ResourceClaimStatus) { *s = resourcev1.ResourceClaimStatus{} }, nil},
	} {
		err := write(step.by, step.change)
		switch {
		case step.fields == nil && err != nil:
			a.Errorf("%s: %v", step.what, err)
		case step.fields != nil:
			a.refused(err, 422, step.fields...)
		}
	}
}
