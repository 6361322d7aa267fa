package rbac

import (
	"slices"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/client-go/kubernetes/fake"
)

// defaults returns an authorizer of the default roles, sums summed up.
func defaults(t *testing.T, more ...runtime.Object) *Authorizer {
	t.Helper()
	var objects []runtime.Object
	for _, r := range summed(t) {
		objects = append(objects, r)
	}
	for _, b := range clusterRoleBindings() {
		objects = append(objects, &b)
	}
	for _, r := range roles() {
		objects = append(objects, &r)
	}
	for _, b := range roleBindings() {
		objects = append(objects, &b)
	}
	return authorizerOf(t, append(objects, more...)...)
}

// summed returns the default roles as they are when all sums have been written: a sum may be part of another.
func summed(t *testing.T) []*rbacv1.ClusterRole {
	t.Helper()
	var roles []*rbacv1.ClusterRole
	for _, r := range clusterRoles() {
		roles = append(roles, &r)
	}
	for range 3 {
		for _, r := range roles {
			if r.AggregationRule == nil {
				continue
			}
			rules, err := Aggregate(r, roles)
			if err != nil {
				t.Fatal(err)
			}
			r.Rules = rules
		}
	}
	return roles
}

func TestDefaults(t *testing.T) {
	a := defaults(t,
		bindRole("ns", "v", "ClusterRole", "view", aUser("viewer")), bindRole("ns", "e", "ClusterRole", "edit", aUser("editor")), bindRole("ns", "a", "ClusterRole", "admin", aUser("admin")))
	res := func(verb, group, resource, sub string) authorizer.AttributesRecord {
		return authorizer.AttributesRecord{Verb: verb, APIGroup: group, Resource: resource, Subresource: sub, Namespace: "ns", ResourceRequest: true}
	}
	path := func(p string) authorizer.AttributesRecord { return authorizer.AttributesRecord{Verb: "get", Path: p} }
	named := func(r authorizer.AttributesRecord, ns, name string) authorizer.AttributesRecord {
		r.Namespace, r.Name = ns, name
		return r
	}
	const any, anon = "system:authenticated", "system:unauthenticated"
	for _, tc := range []struct {
		who, group string
		req        authorizer.AttributesRecord
		want       bool
	}{
		{"x", "system:masters", res("delete", "example.com", "things", ""), true},
		{"x", "system:masters", path("/metrics"), true},
		{"x", any, path("/apis/apps/v1"), true},
		{"x", any, path("/openapi/v3"), true},
		{"x", any, path("/metrics"), false},
		{"x", any, res("create", "authorization.k8s.io", "selfsubjectaccessreviews", ""), true},
		{"x", any, res("create", "authorization.k8s.io", "subjectaccessreviews", ""), false},
		{"x", any, res("list", "", "pods", ""), false},
		{"", anon, path("/version"), true},
		{"", anon, path("/apis"), false},
		{"system:serviceaccount:ns:x", "system:serviceaccounts", path("/openid/v1/jwks"), true},

		{"viewer", "", res("list", "", "pods", ""), true},
		{"viewer", "", res("get", "", "pods", "log"), true},
		{"viewer", "", res("get", "apps", "deployments", "status"), true},
		{"viewer", "", res("get", "", "secrets", ""), false},
		{"viewer", "", res("get", "rbac.authorization.k8s.io", "roles", ""), false},
		{"viewer", "", res("create", "", "pods", ""), false},
		{"viewer", "", res("create", "", "pods", "exec"), false},
		{"editor", "", res("create", "apps", "deployments", ""), true},
		{"editor", "", res("get", "", "secrets", ""), true},
		{"editor", "", res("list", "", "events", ""), true},
		{"editor", "", res("create", "", "pods", "exec"), true},
		{"editor", "", res("update", "discovery.k8s.io", "endpointslices", ""), false},
		{"editor", "", res("update", "", "endpoints", ""), false},
		{"editor", "", res("create", "rbac.authorization.k8s.io", "rolebindings", ""), false},
		{"editor", "", res("update", "", "resourcequotas", ""), false},
		{"admin", "", res("create", "rbac.authorization.k8s.io", "rolebindings", ""), true},
		{"admin", "", res("update", "", "namespaces", ""), false},
		{"admin", "", res("escalate", "rbac.authorization.k8s.io", "roles", ""), false},

		{"x", "strake:kubelet-api-admins", res("create", "", "nodes", "proxy"), true},
		{"x", "strake:kubelet-api-admins", res("list", "", "pods", ""), false},
		{"system:strake-agent:n1", "system:strake-agents", res("watch", "discovery.k8s.io", "endpointslices", ""), true},
		{"system:strake-agent:n1", "system:strake-agents", res("watch", "networking.k8s.io", "networkpolicies", ""), true},
		{"system:strake-agent:n1", "system:strake-agents", res("list", "", "namespaces", ""), true},
		{"system:strake-agent:n1", "system:strake-agents", res("list", "", "secrets", ""), false},
		{"system:strake-agent:n1", "system:strake-agents", res("update", "", "services", ""), false},
		{"system:strake-agent", any, res("list", "", "namespaces", ""), false},
		{"system:strake-agent:n1", "system:strake-agents", named(res("watch", "", "configmaps", ""), "kube-system", "strake-cluster"), true},
		{"system:strake-agent:n1", "system:strake-agents", named(res("watch", "", "configmaps", ""), "kube-system", "strake-dns"), true},
		{"system:bootstrap:abcdef", "system:bootstrappers", named(res("get", "", "configmaps", ""), "kube-system", "strake-cluster"), true},
		{"system:bootstrap:abcdef", "system:bootstrappers", res("create", "certificates.k8s.io", "certificatesigningrequests", ""), true},
		{"system:bootstrap:abcdef", "system:bootstrappers", res("create", "certificates.k8s.io", "certificatesigningrequests", "nodeclient"), true},
		{"system:bootstrap:abcdef", "system:bootstrappers", res("create", "certificates.k8s.io", "certificatesigningrequests", "selfnodeclient"), false},
		{"system:bootstrap:abcdef", "system:bootstrappers", res("update", "certificates.k8s.io", "certificatesigningrequests", "approval"), false},
		{"system:bootstrap:abcdef", "system:bootstrappers", named(res("approve", "certificates.k8s.io", "signers", ""), "", "kubernetes.io/kube-apiserver-client-kubelet"), false},
		{"system:bootstrap:abcdef", "system:bootstrappers", res("list", "", "nodes", ""), false},
		{"system:node:n1", "system:nodes", res("create", "certificates.k8s.io", "certificatesigningrequests", "selfnodeclient"), true},
		{"system:node:n1", "system:nodes", res("create", "certificates.k8s.io", "certificatesigningrequests", "nodeclient"), false},
		{"system:anonymous", anon, named(res("get", "", "configmaps", ""), "kube-public", "cluster-info"), true},
		{"system:anonymous", anon, named(res("list", "", "configmaps", ""), "kube-public", "cluster-info"), false},
		{"system:serviceaccount:kube-system:certificate-controller", any, named(res("sign", "certificates.k8s.io", "signers", ""), "", "kubernetes.io/kubelet-serving"), true},
		{"system:serviceaccount:kube-system:certificate-controller", any, named(res("sign", "certificates.k8s.io", "signers", ""), "", "example.com/x"), false},
		{"system:node:n1", "system:nodes", res("list", "", "services", ""), false}, // the Node authorizer's, no binding's

		{"system:kube-scheduler", any, res("create", "", "pods", "binding"), true},
		{"system:kube-scheduler", any, res("watch", "", "nodes", ""), true},
		{"system:kube-scheduler", any, res("patch", "", "pods", "status"), true},
		{"system:kube-scheduler", any, res("get", "", "secrets", ""), false},
		{"system:kube-scheduler", any, named(res("update", "coordination.k8s.io", "leases", ""), "kube-system", "kube-scheduler"), true},
		{"system:kube-scheduler", any, named(res("update", "coordination.k8s.io", "leases", ""), "kube-node-lease", "n1"), false},
		{"system:kube-scheduler", any, named(res("get", "", "configmaps", ""), "kube-system", "extension-apiserver-authentication"), true},
		{"system:kube-scheduler", any, named(res("get", "", "configmaps", ""), "kube-system", "other"), false},
		// Who reads for all controllers, and makes their tokens, does nothing of what they do.
		{"system:kube-controller-manager", any, res("watch", "example.com", "things", ""), true},
		{"system:kube-controller-manager", any, named(res("create", "", "serviceaccounts", "token"), "kube-system", "deployment-controller"), true},
		{"system:kube-controller-manager", any, res("delete", "example.com", "things", ""), false},
		{"system:kube-controller-manager", any, res("update", "", "namespaces", "finalize"), false},
		{"system:kube-controller-manager", any, res("create", "apps", "replicasets", ""), false},
		{"system:kube-controller-manager", any, named(res("sign", "certificates.k8s.io", "signers", ""), "", "kubernetes.io/kubelet-serving"), false},
		{"system:kube-controller-manager", any, res("create", "rbac.authorization.k8s.io", "clusterrolebindings", ""), false},
		{"system:serviceaccount:kube-system:generic-garbage-collector", any, res("delete", "example.com", "things", ""), true},
		{"system:serviceaccount:kube-system:namespace-controller", any, res("update", "", "namespaces", "finalize"), true},
		{"system:serviceaccount:kube-system:deployment-controller", any, res("create", "apps", "replicasets", ""), true},
		{"system:serviceaccount:kube-system:deployment-controller", any, res("create", "", "pods", ""), false},
		{"system:serviceaccount:kube-system:local-volume-provisioner", any, res("delete", "", "nodes", "proxy"), true},
		{"system:serviceaccount:kube-system:local-volume-provisioner", any, res("create", "", "nodes", "proxy"), false},
		{"system:serviceaccount:kube-system:strake-server", any, named(res("update", "", "configmaps", ""), "kube-system", "strake-cluster"), true},
		{"system:serviceaccount:kube-system:strake-server", any, named(res("update", "", "configmaps", ""), "kube-system", "other"), false},
		{"system:kube-controller-manager", any, res("escalate", "rbac.authorization.k8s.io", "clusterroles", ""), false},
		{"system:serviceaccount:kube-system:kube-dns", any, res("watch", "", "services", ""), true},
		{"system:serviceaccount:default:kube-dns", any, res("watch", "", "services", ""), false},
	} {
		tc.req.User = u(tc.who, tc.group)
		if got := may(t, a, tc.req); got != tc.want {
			t.Errorf("%s (%s): %s %s%s/%s %s = %v, want %v", tc.who, tc.group, tc.req.Verb, tc.req.Path, tc.req.APIGroup, tc.req.Resource, tc.req.Subresource, got, tc.want)
		}
	}
}

func TestReconcile(t *testing.T) {
	ctx := t.Context()
	mine := clusterRole("system:basic-user", rule(read, "", "pods"))               // lacks its rules, has one more
	taken := clusterRole("system:discovery")                                       // the user's own now
	taken.Annotations = map[string]string{rbacv1.AutoUpdateAnnotationKey: "false"} //
	wrongRef := bindCluster("system:monitoring", "cluster-admin", aGroup("system:monitoring"))
	moreSubjects := bindCluster("cluster-admin", "cluster-admin", aUser("ann"))
	moreSubjects.RoleRef = rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cluster-admin"}
	c := fake.NewClientset(mine, taken, wrongRef, moreSubjects).RbacV1()
	if err := Reconcile(ctx, c); err != nil {
		t.Fatal(err)
	}
	for _, want := range clusterRoles() {
		got, err := c.ClusterRoles().Get(ctx, want.Name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		switch want.Name {
		case "system:basic-user":
			if len(got.Rules) <= 1 || got.Rules[0].Resources[0] != "pods" || got.Labels["kubernetes.io/bootstrapping"] == "" {
				t.Errorf("%s: %+v", want.Name, got)
			}
		case "system:discovery":
			if len(got.Rules) != 0 {
				t.Errorf("%s was taken back: %v", want.Name, got.Rules)
			}
		}
	}
	got, err := c.ClusterRoleBindings().Get(ctx, "system:monitoring", metav1.GetOptions{})
	if err != nil || got.RoleRef.Name != "system:monitoring" {
		t.Errorf("a default binding leads to %v, %v", got.RoleRef, err)
	}
	got, err = c.ClusterRoleBindings().Get(ctx, "cluster-admin", metav1.GetOptions{})
	if err != nil || len(got.Subjects) != 2 || got.Subjects[0].Name != "ann" {
		t.Errorf("subjects %v, %v", got.Subjects, err)
	}
	if _, err := c.Roles("kube-system").Get(ctx, authenticationReader, metav1.GetOptions{}); err != nil {
		t.Error(err)
	}

	again := fake.NewClientset()
	if err := Reconcile(ctx, again.RbacV1()); err != nil {
		t.Fatal(err)
	}
	again.ClearActions()
	if err := Reconcile(ctx, again.RbacV1()); err != nil {
		t.Fatal(err)
	}
	for _, act := range again.Actions() {
		if act.GetVerb() != "get" {
			t.Errorf("the second run does %s of %s", act.GetVerb(), act.GetResource().Resource)
		}
	}
}

func TestAggregate(t *testing.T) {
	part := func(name, to string, rules ...rbacv1.PolicyRule) *rbacv1.ClusterRole {
		r := clusterRole(name, rules...)
		r.Labels = map[string]string{to: "true"}
		return r
	}
	sum := part("sum", "a")
	sum.AggregationRule = &rbacv1.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{{MatchLabels: map[string]string{"b": "true"}}, {MatchLabels: map[string]string{"a": "true"}}}}
	sum.Rules = []rbacv1.PolicyRule{rule(all, "", "of-old")}
	roles := []*rbacv1.ClusterRole{part("z", "a", rule(read, "", "z")), sum, part("y", "a", rule(read, "", "y"), rule(read, "", "x")), part("x", "b", rule(read, "", "x")), part("w", "c", rule(read, "", "w"))}
	rules, err := Aggregate(sum, roles)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range rules {
		got = append(got, r.Resources...)
	}
	if want := []string{"x", "y", "z"}; !slices.Equal(got, want) {
		t.Errorf("resources %v, want %v: by selector, then name, each rule once, not its own", got, want)
	}
	if roles[0].Name != "z" {
		t.Error("the caller's list was reordered")
	}
	c := fake.NewClientset(sum)
	if err := ReconcileAggregates(t.Context(), c.RbacV1(), roles); err != nil {
		t.Fatal(err)
	}
	stored, err := c.RbacV1().ClusterRoles().Get(t.Context(), "sum", metav1.GetOptions{})
	if err != nil || len(stored.Rules) != 3 {
		t.Errorf("stored %v, %v", stored, err)
	}
}
