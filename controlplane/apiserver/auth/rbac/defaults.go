package rbac

import (
	"context"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
)

var (
	read  = []string{"get", "list", "watch"}
	write = []string{"create", "delete", "deletecollection", "patch", "update"}
	all   = []string{"*"}
)

func rule(verbs []string, group string, resources ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{Verbs: verbs, APIGroups: []string{group}, Resources: resources}
}

// only holds a rule to objects of these names.
func only(r rbacv1.PolicyRule, names ...string) rbacv1.PolicyRule {
	r.ResourceNames = names
	return r
}

func urls(paths ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{Verbs: []string{"get"}, NonResourceURLs: paths}
}

// groups are the API groups that people work with in a namespace, in the order of their rules.
var groups = []string{"", "apps", "autoscaling", "batch", "discovery.k8s.io", "networking.k8s.io", "policy", "policy.networking.k8s.io"}

// readable is what the role view shows of each. Secrets are not in it: who reads one can act as whom it belongs to.
// ClusterNetworkPolicies are, for who is bound in the whole cluster; writing them is for cluster-admin, as they stand above what
// owners of namespaces allow.
var readable = map[string][]string{
	"": {
		"bindings", "configmaps", "endpoints", "events", "limitranges", "namespaces", "namespaces/status", "persistentvolumeclaims", "persistentvolumeclaims/status",
		"pods", "pods/log", "pods/status", "replicationcontrollers", "replicationcontrollers/scale", "replicationcontrollers/status",
		"resourcequotas", "resourcequotas/status", "serviceaccounts", "services", "services/status",
	},
	"apps": {
		"controllerrevisions", "daemonsets", "daemonsets/status", "deployments", "deployments/scale", "deployments/status",
		"replicasets", "replicasets/scale", "replicasets/status", "statefulsets", "statefulsets/scale", "statefulsets/status",
	},
	"autoscaling":       {"horizontalpodautoscalers", "horizontalpodautoscalers/status"},
	"batch":             {"cronjobs", "cronjobs/status", "jobs", "jobs/status"},
	"discovery.k8s.io":  {"endpointslices"},
	"networking.k8s.io": {"ingresses", "ingresses/status", "networkpolicies"},
	"policy":            {"poddisruptionbudgets", "poddisruptionbudgets/status"},

	"policy.networking.k8s.io": {"clusternetworkpolicies", "clusternetworkpolicies/status"},
}

// writable is what the role edit changes. Endpoints and EndpointSlices are not in it: they could lead a
// Service's traffic to other namespaces (CVE-2021-25740).
var writable = map[string][]string{
	"": {
		"configmaps", "events", "persistentvolumeclaims", "pods", "pods/attach", "pods/exec", "pods/portforward", "pods/proxy", "pods/resize",
		"replicationcontrollers", "replicationcontrollers/scale", "secrets", "serviceaccounts", "services", "services/proxy",
	},
	"apps":              {"daemonsets", "deployments", "deployments/rollback", "deployments/scale", "replicasets", "replicasets/scale", "statefulsets", "statefulsets/scale"},
	"autoscaling":       {"horizontalpodautoscalers"},
	"batch":             {"cronjobs", "jobs"},
	"networking.k8s.io": {"ingresses", "networkpolicies"},
	"policy":            {"poddisruptionbudgets"},
}

func over(resources map[string][]string, verbs []string) []rbacv1.PolicyRule {
	var rules []rbacv1.PolicyRule
	for _, group := range groups {
		if len(resources[group]) > 0 {
			rules = append(rules, rule(verbs, group, resources[group]...))
		}
	}
	return rules
}

// controllerRules are what this distribution's controllers need, all run as one user. Deleting a
// namespace and collecting garbage touch any resource, also ones that only a CRD knows.
var controllerRules = []rbacv1.PolicyRule{
	rule([]string{"get", "list", "watch", "delete", "deletecollection", "patch", "update"}, "*", "*"),
	rule([]string{"create"}, "", "pods", "events", "serviceaccounts", "configmaps", "endpoints", "secrets", "serviceaccounts/token", "persistentvolumeclaims", "persistentvolumes"),
	rule([]string{"create"}, "storage.k8s.io", "storageclasses"),
	rule([]string{"create"}, "apps", "replicasets", "controllerrevisions"),
	rule([]string{"create"}, "batch", "jobs"),
	rule([]string{"create"}, "discovery.k8s.io", "endpointslices"),
	rule([]string{"create"}, "coordination.k8s.io", "leases"),
	rule([]string{"create"}, "events.k8s.io", "events"),
	rule([]string{"create"}, "authentication.k8s.io", "tokenreviews"),
	rule([]string{"create"}, "authorization.k8s.io", "subjectaccessreviews"),
	only(rule([]string{"approve", "sign"}, "certificates.k8s.io", "signers"), nodeSigners...),
	urls("/api", "/api/*", "/apis", "/apis/*", "/version", "/healthz", "/livez", "/readyz", "/openapi/*"),
}

// nodeSigners sign what a node needs, and what people ask for to reach the API server.
var nodeSigners = []string{"kubernetes.io/kube-apiserver-client", "kubernetes.io/kube-apiserver-client-kubelet", "kubernetes.io/kubelet-serving"}

// Who holds these has certificates for a node's kubelet approved: for any node, or for the one that asks.
const (
	nodeClient     = "system:certificates.k8s.io:certificatesigningrequests:nodeclient"
	selfNodeClient = "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient"
)

// clusterRoles returns the roles that every cluster has.
func clusterRoles() []rbacv1.ClusterRole {
	view := over(readable, read)
	edit := append(over(writable, write),
		rule(read, "", "secrets", "pods/attach", "pods/exec", "pods/portforward", "pods/proxy", "services/proxy"),
		rule([]string{"impersonate"}, "", "serviceaccounts"),
		rule([]string{"create"}, "", "pods/eviction", "serviceaccounts/token"),
		rule(slices.Concat(read, write), "coordination.k8s.io", "leases"))
	admin := []rbacv1.PolicyRule{
		rule(slices.Concat(read, write), "rbac.authorization.k8s.io", "roles", "rolebindings"),
		rule([]string{"create"}, "authorization.k8s.io", "localsubjectaccessreviews"),
	}
	node := []rbacv1.PolicyRule{
		rule([]string{"create"}, "authentication.k8s.io", "tokenreviews"),
		rule([]string{"create"}, "authorization.k8s.io", "subjectaccessreviews", "localsubjectaccessreviews"),
		rule(read, "", "services"),
		rule([]string{"create", "get", "list", "watch"}, "", "nodes"),
		rule([]string{"update", "patch"}, "", "nodes", "nodes/status"),
		rule([]string{"create", "update", "patch"}, "", "events"),
		rule([]string{"get", "list", "watch", "create", "delete"}, "", "pods"),
		rule([]string{"update", "patch"}, "", "pods/status"),
		rule([]string{"create"}, "", "pods/eviction"),
		rule([]string{"create", "get", "update", "patch", "delete"}, "coordination.k8s.io", "leases"),
		rule(read, "node.k8s.io", "runtimeclasses"),
		rule(read, "storage.k8s.io", "csidrivers"),
		rule([]string{"create", "get", "list", "watch"}, "certificates.k8s.io", "certificatesigningrequests"),
	}
	roles := []rbacv1.ClusterRole{
		named("cluster-admin", rbacv1.PolicyRule{Verbs: all, APIGroups: all, Resources: all}, rbacv1.PolicyRule{Verbs: all, NonResourceURLs: all}),
		named("system:discovery", urls("/livez", "/readyz", "/healthz", "/version", "/version/", "/openapi", "/openapi/*", "/api", "/api/*", "/apis", "/apis/*")),
		named("system:public-info-viewer", urls("/livez", "/readyz", "/healthz", "/version", "/version/")),
		named("system:service-account-issuer-discovery", urls("/.well-known/openid-configuration", "/.well-known/openid-configuration/", "/openid/v1/jwks", "/openid/v1/jwks/")),
		named("system:monitoring", urls("/healthz", "/healthz/*", "/livez", "/livez/*", "/metrics", "/metrics/slis", "/readyz", "/readyz/*")),
		named("system:basic-user",
			rule([]string{"create"}, "authorization.k8s.io", "selfsubjectaccessreviews", "selfsubjectrulesreviews"),
			rule([]string{"create"}, "authentication.k8s.io", "selfsubjectreviews")),
		named("system:auth-delegator",
			rule([]string{"create"}, "authentication.k8s.io", "tokenreviews"), rule([]string{"create"}, "authorization.k8s.io", "subjectaccessreviews")),
		named("system:kubelet-api-admin",
			rule([]string{"get", "list", "watch", "proxy"}, "", "nodes"),
			rule(all, "", "nodes/proxy", "nodes/log", "nodes/metrics", "nodes/stats", "nodes/configz", "nodes/healthz", "nodes/pods", "nodes/checkpoint")),
		named("system:node", node...),
		named("system:node-proxier", rule(read, "", "services", "endpoints", "nodes"), rule(read, "discovery.k8s.io", "endpointslices"), rule([]string{"create", "patch", "update"}, "", "events")),
		named("system:node-bootstrapper", rule([]string{"create", "get", "list", "watch"}, "certificates.k8s.io", "certificatesigningrequests")),
		named(nodeClient, rule([]string{"create"}, "certificates.k8s.io", "certificatesigningrequests/nodeclient")),
		named(selfNodeClient, rule([]string{"create"}, "certificates.k8s.io", "certificatesigningrequests/selfnodeclient")),
		named("system:kube-dns", rule([]string{"list", "watch"}, "", "endpoints", "services", "namespaces"), rule([]string{"list", "watch"}, "discovery.k8s.io", "endpointslices")),
		named("strake:node-network",
			rule(read, "", "nodes", "services", "endpoints", "pods", "namespaces"),
			rule(read, "discovery.k8s.io", "endpointslices"), rule(read, "networking.k8s.io", "networkpolicies"),
			rule(read, "policy.networking.k8s.io", "clusternetworkpolicies"), rule([]string{"update"}, "policy.networking.k8s.io", "clusternetworkpolicies/status"),
			rule([]string{"create", "patch", "update"}, "", "events"),
			only(rule([]string{"list", "watch"}, "apiextensions.k8s.io", "customresourcedefinitions"), "clusternetworkpolicies.policy.networking.k8s.io")),
		named("system:kube-scheduler",
			rule([]string{"create", "patch", "update"}, "", "events"), rule([]string{"create", "patch", "update"}, "events.k8s.io", "events"),
			rule([]string{"create"}, "coordination.k8s.io", "leases"),
			only(rule([]string{"get", "update", "patch"}, "coordination.k8s.io", "leases"), "kube-scheduler"),
			rule(read, "", "nodes", "namespaces", "persistentvolumeclaims", "persistentvolumes", "services", "replicationcontrollers"),
			rule([]string{"get", "list", "watch", "delete"}, "", "pods"), rule([]string{"create"}, "", "bindings", "pods/binding"),
			rule([]string{"patch", "update"}, "", "pods/status", "persistentvolumeclaims", "persistentvolumes"), rule(read, "apps", "replicasets", "statefulsets"),
			rule(read, "policy", "poddisruptionbudgets"), rule(read, "storage.k8s.io", "csinodes", "storageclasses", "csidrivers", "csistoragecapacities", "volumeattachments")),
		named("system:kube-controller-manager", controllerRules...),
		// The three roles for people are sums: anyone may add to them with a label.
		named("system:aggregate-to-view", view...), named("system:aggregate-to-edit", edit...), named("system:aggregate-to-admin", admin...),
	}
	for _, signer := range nodeSigners {
		short := strings.TrimPrefix(signer, "kubernetes.io/")
		roles = append(roles, named("system:certificates.k8s.io:"+short+"-approver", only(rule([]string{"approve"}, "certificates.k8s.io", "signers"), signer)))
	}
	for i := range roles {
		if to, ok := map[string]string{"system:aggregate-to-view": "view", "system:aggregate-to-edit": "edit", "system:aggregate-to-admin": "admin"}[roles[i].Name]; ok {
			roles[i].Labels["rbac.authorization.k8s.io/aggregate-to-"+to] = "true"
		}
	}
	sum := func(name string, to ...string) rbacv1.ClusterRole {
		r := named(name)
		r.AggregationRule = &rbacv1.AggregationRule{}
		for _, t := range to {
			r.AggregationRule.ClusterRoleSelectors = append(r.AggregationRule.ClusterRoleSelectors, metav1.LabelSelector{MatchLabels: map[string]string{"rbac.authorization.k8s.io/aggregate-to-" + t: "true"}})
		}
		return r
	}
	return append(roles, sum("view", "view"), sum("edit", "edit", "view"), sum("admin", "admin", "edit", "view"))
}

func named(name string, rules ...rbacv1.PolicyRule) rbacv1.ClusterRole {
	return rbacv1.ClusterRole{ObjectMeta: defaultMeta(name), Rules: rules}
}

// defaultMeta marks an object as one of the defaults that are put back at every start.
func defaultMeta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name:        name,
		Labels:      map[string]string{"kubernetes.io/bootstrapping": "rbac-defaults"},
		Annotations: map[string]string{rbacv1.AutoUpdateAnnotationKey: "true"},
	}
}

// clusterRoleBindings returns the bindings that every cluster has.
func clusterRoleBindings() []rbacv1.ClusterRoleBinding {
	bind := func(role, kind, subject string) rbacv1.ClusterRoleBinding {
		return rbacv1.ClusterRoleBinding{
			ObjectMeta: defaultMeta(role),
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
			Subjects:   []rbacv1.Subject{{Kind: kind, APIGroup: rbacv1.GroupName, Name: subject}},
		}
	}
	public := bind("system:public-info-viewer", rbacv1.GroupKind, "system:authenticated")
	public.Subjects = append(public.Subjects, rbacv1.Subject{Kind: rbacv1.GroupKind, APIGroup: rbacv1.GroupName, Name: "system:unauthenticated"})
	dns := bind("system:kube-dns", rbacv1.ServiceAccountKind, "kube-dns")
	dns.Subjects[0].APIGroup, dns.Subjects[0].Namespace = "", metav1.NamespaceSystem
	return []rbacv1.ClusterRoleBinding{
		public,
		bind("cluster-admin", rbacv1.GroupKind, "system:masters"),
		bind("system:discovery", rbacv1.GroupKind, "system:authenticated"),
		bind("system:basic-user", rbacv1.GroupKind, "system:authenticated"),
		bind("system:service-account-issuer-discovery", rbacv1.GroupKind, "system:serviceaccounts"),
		bind("system:monitoring", rbacv1.GroupKind, "system:monitoring"),
		bind("system:kubelet-api-admin", rbacv1.GroupKind, "strake:kubelet-api-admins"),
		bind("system:kube-scheduler", rbacv1.UserKind, "system:kube-scheduler"),
		bind("system:kube-controller-manager", rbacv1.UserKind, "system:kube-controller-manager"),
		bind("system:node-proxier", rbacv1.UserKind, "system:kube-proxy"),
		dns,
		bind("strake:node-network", rbacv1.GroupKind, agents),
		bind("system:node-bootstrapper", rbacv1.GroupKind, bootstrappers),
		bind(nodeClient, rbacv1.GroupKind, bootstrappers),
		bind(selfNodeClient, rbacv1.GroupKind, user.NodesGroup),
	}
}

// Groups of those who join and of those who have.
const (
	bootstrappers = "system:bootstrappers"
	agents        = "system:strake-agents"
)

// Roles in the system's namespaces, each for a few ConfigMaps.
const (
	// authenticationReader lets extension API servers read how this one knows its users.
	authenticationReader = "extension-apiserver-authentication-reader"
	// clusterInfo lets everybody read by which CA the cluster is known: who joins has no more than a token.
	clusterInfo = "strake:cluster-info"
	// clusterSettings lets nodes read what they have in common, and what their DNS is to do.
	clusterSettings = "strake:cluster-settings"
)

// roles returns the roles that every cluster has in its system's namespaces.
func roles() []rbacv1.Role {
	in := func(namespace, name string, verbs []string, configMaps ...string) rbacv1.Role {
		r := rbacv1.Role{ObjectMeta: defaultMeta(name), Rules: []rbacv1.PolicyRule{only(rule(verbs, "", "configmaps"), configMaps...)}}
		r.Namespace = namespace
		return r
	}
	return []rbacv1.Role{
		in(metav1.NamespaceSystem, authenticationReader, read, "extension-apiserver-authentication"),
		in(metav1.NamespacePublic, clusterInfo, []string{"get"}, "cluster-info"),
		in(metav1.NamespaceSystem, clusterSettings, read, "strake-cluster", "strake-dns"),
	}
}

// roleBindings returns the bindings that every cluster has in its system's namespaces.
func roleBindings() []rbacv1.RoleBinding {
	bind := func(namespace, name, role, kind string, subjects ...string) rbacv1.RoleBinding {
		b := rbacv1.RoleBinding{ObjectMeta: defaultMeta(name), RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: role}}
		b.Namespace = namespace
		for _, s := range subjects {
			b.Subjects = append(b.Subjects, rbacv1.Subject{Kind: kind, APIGroup: rbacv1.GroupName, Name: s})
		}
		return b
	}
	return []rbacv1.RoleBinding{
		bind(metav1.NamespaceSystem, "system::"+authenticationReader, authenticationReader, rbacv1.UserKind, "system:kube-controller-manager", "system:kube-scheduler"),
		bind(metav1.NamespacePublic, clusterInfo, clusterInfo, rbacv1.UserKind, user.Anonymous),
		bind(metav1.NamespaceSystem, clusterSettings, clusterSettings, rbacv1.GroupKind, bootstrappers, user.NodesGroup, agents),
	}
}

// NodeRules returns an authorizer of what every kubelet may do, for the Node authorizer to ask: no
// binding grants these rules, so that a node's other limits can't be gone around.
func NodeRules() authorizer.Authorizer {
	for _, r := range clusterRoles() {
		if r.Name == "system:node" {
			return fixed(r.Rules)
		}
	}
	return fixed(nil)
}

// fixed authorizes by a list of rules, whoever asks.
type fixed []rbacv1.PolicyRule

func (f fixed) Authorize(_ context.Context, attr authorizer.Attributes) (authorizer.Decision, string, error) {
	for i := range f {
		if ruleAllows(attr, &f[i]) {
			return authorizer.DecisionAllow, "", nil
		}
	}
	return authorizer.DecisionNoOpinion, "", nil
}

func (f fixed) ConditionsAwareAuthorize(ctx context.Context, attr authorizer.Attributes) authorizer.ConditionsAwareDecision {
	return authorizer.ConditionsAwareDecisionFromParts(f.Authorize(ctx, attr))
}

func (f fixed) EvaluateConditions(context.Context, authorizer.ConditionsAwareDecision, authorizer.ConditionsData) (authorizer.Decision, string, error) {
	return authorizer.DecisionDeny, "", authorizer.ErrorConditionEvaluationNotSupported
}
