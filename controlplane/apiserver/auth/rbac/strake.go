package rbac

import (
	"context"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
)

// Groups of those who join and of those who have.
const (
	bootstrappers = "system:bootstrappers"
	agents        = "system:strake-agents"
)

// controllerRules are what this distribution's controllers need, all run as one user. Deleting a
// namespace and collecting garbage touch any resource, also ones that only a CRD knows.
var controllerRules = []rbacv1.PolicyRule{
	rule("get list watch delete deletecollection patch update", all, all),
	rule("create", "", "pods", "events", "serviceaccounts", "configmaps", "endpoints", "secrets", "serviceaccounts/token", "persistentvolumeclaims", "persistentvolumes"),
	rule("create", "storage.k8s.io", "storageclasses"),
	rule("create", "apps", "replicasets", "controllerrevisions"),
	rule("create", "batch", "jobs"),
	rule("create", "discovery.k8s.io", "endpointslices"),
	rule("create", "coordination.k8s.io", "leases"),
	rule("create", "events.k8s.io", "events"),
	rule("create", "authentication.k8s.io", "tokenreviews"),
	rule("create", "authorization.k8s.io", "subjectaccessreviews"),
	// They sign what a node needs, and what people ask for to reach the API server.
	only(rule("approve sign", "certificates.k8s.io", "signers"), "kubernetes.io/kube-apiserver-client", "kubernetes.io/kube-apiserver-client-kubelet", "kubernetes.io/kubelet-serving"),
	urls("/api", "/api/*", "/apis", "/apis/*", "/version", "/healthz", "/livez", "/readyz", "/openapi/*"),
}

// strakeRoles are the roles that the reference doesn't have.
func strakeRoles() []rbacv1.ClusterRole {
	return []rbacv1.ClusterRole{
		named("strake:controllers", controllerRules...),
		named("strake:node-network",
			rule(read, "", "nodes", "services", "endpoints", "pods", "namespaces"),
			rule(read, "discovery.k8s.io", "endpointslices"), rule(read, "networking.k8s.io", "networkpolicies"),
			rule(read, "policy.networking.k8s.io", "clusternetworkpolicies"), rule("update", "policy.networking.k8s.io", "clusternetworkpolicies/status"),
			rule("create patch update", "", "events"),
			only(rule("list watch", "apiextensions.k8s.io", "customresourcedefinitions"), "clusternetworkpolicies.policy.networking.k8s.io")),
		// ClusterNetworkPolicies are seen by who is bound in the whole cluster; writing them is for cluster-admin, as they stand
		// above what owners of namespaces allow.
		part("strake:aggregate-to-view", "view", rule(read, "policy.networking.k8s.io", "clusternetworkpolicies", "clusternetworkpolicies/status")),
		// Who may replace a pod may as well change what it is given.
		part("strake:aggregate-to-edit", "edit", rule(write, "", "pods/resize")),
	}
}

func strakeBindings() []rbacv1.ClusterRoleBinding {
	return []rbacv1.ClusterRoleBinding{
		bindClusterRole("strake:controllers", users(user.KubeControllerManager)...),
		bindClusterRole("strake:node-network", groups(agents)...),
		bindClusterRole("system:kubelet-api-admin", groups("strake:kubelet-api-admins")...),
		bindClusterRole("system:node-bootstrapper", groups(bootstrappers)...),
		bindClusterRole(nodeClient, groups(bootstrappers)...),
		bindClusterRole(selfNodeClient, groups(user.NodesGroup)...),
	}
}

// Roles in the system's namespaces, each for a few ConfigMaps.
const (
	// clusterInfo lets everybody read by which CA the cluster is known: who joins has no more than a token.
	clusterInfo = "strake:cluster-info"
	// clusterSettings lets nodes read what they have in common, and what their DNS is to do.
	clusterSettings = "strake:cluster-settings"
)

func strakeNamespaced() []rbacv1.Role {
	return []rbacv1.Role{
		namespaced(metav1.NamespacePublic, clusterInfo, only(rule("get", "", "configmaps"), "cluster-info")),
		namespaced(metav1.NamespaceSystem, clusterSettings, only(rule(read, "", "configmaps"), "strake-cluster", "strake-dns")),
	}
}

func strakeNamespacedBindings() []rbacv1.RoleBinding {
	return []rbacv1.RoleBinding{
		bindRoleOf(metav1.NamespacePublic, clusterInfo, clusterInfo, users(user.Anonymous)...),
		bindRoleOf(metav1.NamespaceSystem, clusterSettings, clusterSettings, groups(bootstrappers, user.NodesGroup, agents)...),
	}
}

// NodeRules returns an authorizer of what every kubelet may do, for the Node authorizer to ask: no
// binding grants these rules, so that a node's other limits can't be gone around.
func NodeRules() authorizer.Authorizer { return fixed(nodeRules()) }

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
