package rbac

import (
	"context"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	rbaclisters "k8s.io/client-go/listers/rbac/v1"
	"k8s.io/client-go/tools/cache"
)

// authorizerOf returns an authorizer of these objects.
func authorizerOf(t *testing.T, objects ...runtime.Object) *Authorizer {
	t.Helper()
	stores := map[string]cache.Indexer{}
	for _, kind := range []string{"role", "clusterrole", "binding", "clusterbinding"} {
		stores[kind] = cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
	}
	for _, o := range objects {
		kind := "role"
		switch o.(type) {
		case *rbacv1.ClusterRole:
			kind = "clusterrole"
		case *rbacv1.RoleBinding:
			kind = "binding"
		case *rbacv1.ClusterRoleBinding:
			kind = "clusterbinding"
		}
		if err := stores[kind].Add(o); err != nil {
			t.Fatal(err)
		}
	}
	return &Authorizer{
		Roles: rbaclisters.NewRoleLister(stores["role"]), ClusterRoles: rbaclisters.NewClusterRoleLister(stores["clusterrole"]),
		RoleBindings: rbaclisters.NewRoleBindingLister(stores["binding"]), ClusterRoleBindings: rbaclisters.NewClusterRoleBindingLister(stores["clusterbinding"]),
	}
}

func role(ns, name string, rules ...rbacv1.PolicyRule) *rbacv1.Role {
	return &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Rules: rules}
}

func clusterRole(name string, rules ...rbacv1.PolicyRule) *rbacv1.ClusterRole {
	return &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: rules}
}

func bindRole(ns, name, kind, ref string, subjects ...rbacv1.Subject) *rbacv1.RoleBinding {
	return &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: kind, Name: ref}, Subjects: subjects}
}

func bindCluster(name, ref string, subjects ...rbacv1.Subject) *rbacv1.ClusterRoleBinding {
	return &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: ref}, Subjects: subjects}
}

func aUser(name string) rbacv1.Subject  { return rbacv1.Subject{Kind: "User", Name: name} }
func aGroup(name string) rbacv1.Subject { return rbacv1.Subject{Kind: "Group", Name: name} }

func u(name string, groups ...string) user.Info {
	return &user.DefaultInfo{Name: name, Groups: groups}
}

func may(t *testing.T, a authorizer.Authorizer, r authorizer.AttributesRecord) bool {
	t.Helper()
	d, _, err := a.Authorize(context.Background(), r)
	if err != nil {
		t.Fatal(err)
	}
	if d == authorizer.DecisionDeny {
		t.Fatal("RBAC never denies, it has no opinion")
	}
	return d == authorizer.DecisionAllow
}

func TestRuleMatching(t *testing.T) {
	res := func(verb, group, resource, sub, name string) authorizer.AttributesRecord {
		return authorizer.AttributesRecord{User: u("x"), Verb: verb, APIGroup: group, Resource: resource, Subresource: sub, Name: name, ResourceRequest: true}
	}
	path := func(verb, p string) authorizer.AttributesRecord {
		return authorizer.AttributesRecord{User: u("x"), Verb: verb, Path: p}
	}
	named := func(r rbacv1.PolicyRule) rbacv1.PolicyRule { return only(r, "a", "b") }
	for _, tc := range []struct {
		name string
		rule rbacv1.PolicyRule
		req  authorizer.AttributesRecord
		want bool
	}{
		{"exact", rule("get", "apps", "deployments"), res("get", "apps", "deployments", "", "x"), true},
		{"other verb", rule("get", "apps", "deployments"), res("list", "apps", "deployments", "", ""), false},
		{"other group", rule("get", "apps", "deployments"), res("get", "", "deployments", "", ""), false},
		{"other resource", rule("get", "apps", "deployments"), res("get", "apps", "replicasets", "", ""), false},
		{"all verbs", rule(all, "", "pods"), res("anything", "", "pods", "", ""), true},
		{"all groups", rule(all, "*", "pods"), res("get", "example.com", "pods", "", ""), true},
		{"all resources take in subresources", rule(all, "", "*"), res("get", "", "pods", "log", ""), true},
		{"resource does not take in its subresource", rule(all, "", "pods"), res("get", "", "pods", "log", ""), false},
		{"subresource does not take in its resource", rule(all, "", "pods/log"), res("get", "", "pods", "", ""), false},
		{"subresource", rule(all, "", "pods/log"), res("get", "", "pods", "log", ""), true},
		{"subresource of any", rule(all, "", "*/scale"), res("get", "", "things", "scale", ""), true},
		{"subresource of any is no resource", rule(all, "", "*/scale"), res("get", "", "things", "", ""), false},
		{"name", named(rule(all, "", "secrets")), res("get", "", "secrets", "", "b"), true},
		{"other name", named(rule(all, "", "secrets")), res("get", "", "secrets", "", "c"), false},
		{"no name, as in list and create", named(rule(all, "", "secrets")), res("list", "", "secrets", "", ""), false},
		{"path", urls("/healthz"), path("get", "/healthz"), true},
		{"path below", urls("/healthz"), path("get", "/healthz/etcd"), false},
		{"path prefix", urls("/healthz/*"), path("get", "/healthz/etcd"), true},
		{"star in the middle is no wildcard", urls("/a/*/c"), path("get", "/a/b/c"), false},
		{"all paths", urls("*"), path("get", "/x"), true},
		{"path, other verb", urls("/healthz"), path("post", "/healthz"), false},
		{"a resource rule says nothing of paths", rule(all, "*", "*"), path("get", "/healthz"), false},
		{"a path rule says nothing of resources", rbacv1.PolicyRule{Verbs: []string{all}, NonResourceURLs: []string{all}}, res("get", "", "pods", "", ""), false},
		{"empty rule", rbacv1.PolicyRule{}, res("get", "", "pods", "", ""), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := ruleAllows(tc.req, &tc.rule); got != tc.want {
				t.Errorf("allows = %v, want %v", got, tc.want)
			}
		})
	}
}

func TestBindings(t *testing.T) {
	pods := rule(read, "", "pods")
	a := authorizerOf(t,
		clusterRole("reader", pods), role("ns", "local", pods), role("other", "local", rule(read, "", "secrets")),
		bindCluster("everywhere", "reader", aUser("ann"), aGroup("staff"), rbacv1.Subject{Kind: "ServiceAccount", Namespace: "ns", Name: "robot"}),
		bindRole("ns", "role", "Role", "local", aUser("bob")),
		bindRole("ns", "clusterrole", "ClusterRole", "reader", aUser("cleo"), rbacv1.Subject{Kind: "ServiceAccount", Name: "default"}),
		bindCluster("nowhere", "missing", aUser("ann")),
		bindRole("ns", "nowhere", "Role", "missing", aUser("bob")),
	)
	for _, tc := range []struct {
		who  user.Info
		ns   string
		want bool
	}{
		{u("ann"), "ns", true}, {u("ann"), "", true}, {u("ann"), "other", true},
		{u("zoe", "staff"), "other", true}, {u("staff"), "other", false}, {u("zoe", "ann"), "ns", false},
		{u("system:serviceaccount:ns:robot"), "other", true}, {u("system:serviceaccount:other:robot"), "ns", false},
		{u("bob"), "ns", true}, {u("bob"), "other", false}, {u("bob"), "", false},
		{u("cleo"), "ns", true}, {u("cleo"), "other", false}, {u("cleo"), "", false},
		{u("system:serviceaccount:ns:default"), "ns", true}, {u("system:serviceaccount:other:default"), "ns", false},
		{u(""), "ns", false}, {nil, "ns", false},
	} {
		got := may(t, a, authorizer.AttributesRecord{User: tc.who, Verb: "list", Resource: "pods", Namespace: tc.ns, ResourceRequest: true})
		if got != tc.want {
			t.Errorf("%v in %q: %v, want %v", tc.who, tc.ns, got, tc.want)
		}
	}
	_, reason, _ := a.Authorize(t.Context(), authorizer.AttributesRecord{User: u("ann"), Verb: "list", Resource: "pods", ResourceRequest: true})
	if reason != `RBAC: allowed by ClusterRoleBinding "everywhere" of ClusterRole "reader"` {
		t.Errorf("reason %q", reason)
	}
	resources, paths, incomplete, err := a.RulesFor(t.Context(), u("bob"), "ns")
	if len(resources) != 1 || len(paths) != 0 || !incomplete || err == nil {
		t.Errorf("rules of bob: %v %v, incomplete %v, %v: want one, and a word about the missing role", resources, paths, incomplete, err)
	}
}
