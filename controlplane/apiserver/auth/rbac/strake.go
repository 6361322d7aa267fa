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

// ServiceAccounts of kube-system that the reference doesn't have.
const (
	localVolumes = "local-volume-provisioner"
	server       = "strake-server"
)

// strakeRoles are the roles that the reference doesn't have.
func strakeRoles() []rbacv1.ClusterRole {
	return []rbacv1.ClusterRole{
		// What nodes may have is approved here, where the reference leaves it to people but for the kubelet's client certificate.
		named("strake:node-certificates", only(rule("approve", "certificates.k8s.io", "signers"), "kubernetes.io/kube-apiserver-client", "kubernetes.io/kubelet-serving")),
		// The class "local" is made at the start, and nodes are asked to remove what its volumes held.
		named("strake:"+localVolumes, rule("get create", "storage.k8s.io", "storageclasses"), rule("get", "", "nodes"), rule("delete", "", "nodes/proxy")),
		// The server tells nodes where it is, and marks its own.
		named("strake:server", rule("get list patch", "", "nodes")),
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
		bindClusterRole("strake:node-certificates", accounts("certificate-controller")...),
		bindClusterRole("strake:"+localVolumes, accounts(localVolumes)...),
		bindClusterRole("strake:server", accounts(server)...),
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
	// settingsWriter writes what nodes have in common.
	settingsWriter = "strake:cluster-settings-writer"
	// infoWriter makes cluster-info, which the reference's installer does; from then on it is kept by the reference's rights.
	infoWriter = "strake:cluster-info-writer"
)

func strakeNamespaced() []rbacv1.Role {
	return []rbacv1.Role{
		namespaced(metav1.NamespacePublic, clusterInfo, only(rule("get", "", "configmaps"), "cluster-info")),
		namespaced(metav1.NamespaceSystem, clusterSettings, only(rule(read, "", "configmaps"), "strake-cluster", "strake-dns")),
		namespaced(metav1.NamespaceSystem, settingsWriter, rule("create", "", "configmaps"), only(rule("get update", "", "configmaps"), "strake-cluster")),
		namespaced(metav1.NamespacePublic, infoWriter, rule("create", "", "configmaps")),
	}
}

func strakeNamespacedBindings() []rbacv1.RoleBinding {
	return []rbacv1.RoleBinding{
		bindRoleOf(metav1.NamespacePublic, clusterInfo, clusterInfo, users(user.Anonymous)...),
		bindRoleOf(metav1.NamespaceSystem, clusterSettings, clusterSettings, groups(bootstrappers, user.NodesGroup, agents)...),
		bindRoleOf(metav1.NamespaceSystem, settingsWriter, settingsWriter, accounts(server)...),
		bindRoleOf(metav1.NamespacePublic, infoWriter, infoWriter, accounts("bootstrap-signer")...),
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
