package rbac

import (
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/apiserver/pkg/authentication/user"
)

const (
	read  = "get list watch"
	write = "create delete deletecollection patch update"
	all   = "*"
)

// rule allows verbs, which spaces part, on resources of API groups, which commas part.
func rule(verbs, groups string, resources ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{Verbs: strings.Fields(verbs), APIGroups: strings.Split(groups, ","), Resources: resources}
}

// only holds a rule to objects of these names.
func only(r rbacv1.PolicyRule, names ...string) rbacv1.PolicyRule {
	r.ResourceNames = names
	return r
}

func urls(paths ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{Verbs: []string{"get"}, NonResourceURLs: paths}
}

// writeEvents is what all components do.
func writeEvents() rbacv1.PolicyRule {
	return rule("create update patch", ",events.k8s.io", "events")
}

// viewRules is what the role view shows. Secrets are not in it: who reads one can act as whom it belongs to. The group
// extensions has been gone since 1.22; the reference's rules name it still.
func viewRules() []rbacv1.PolicyRule {
	return []rbacv1.PolicyRule{
		rule(read, "", "pods", "replicationcontrollers", "replicationcontrollers/scale", "serviceaccounts", "services", "services/status", "endpoints",
			"persistentvolumeclaims", "persistentvolumeclaims/status", "configmaps"),
		rule(read, "", "limitranges", "resourcequotas", "bindings", "pods/status", "resourcequotas/status", "namespaces/status", "replicationcontrollers/status", "pods/log"),
		rule(read, "", "namespaces"),
		rule(read, ",events.k8s.io", "events"),
		rule(read, "discovery.k8s.io", "endpointslices"),
		rule(read, "apps", "controllerrevisions", "statefulsets", "statefulsets/status", "statefulsets/scale", "daemonsets", "daemonsets/status",
			"deployments", "deployments/status", "deployments/scale", "replicasets", "replicasets/status", "replicasets/scale"),
		rule(read, "autoscaling", "horizontalpodautoscalers", "horizontalpodautoscalers/status"),
		rule(read, "batch", "jobs", "cronjobs", "cronjobs/status", "jobs/status"),
		rule(read, "extensions", "daemonsets", "daemonsets/status", "deployments", "deployments/scale", "deployments/status", "ingresses", "ingresses/status",
			"replicasets", "replicasets/scale", "replicasets/status", "replicationcontrollers/scale", "networkpolicies"),
		rule(read, "policy", "poddisruptionbudgets", "poddisruptionbudgets/status"),
		rule(read, "networking.k8s.io", "networkpolicies", "ingresses", "ingresses/status"),
		rule(read, "resource.k8s.io", "resourceclaims", "resourceclaims/status", "resourceclaimtemplates"),
	}
}

// editRules is what the role edit changes. Endpoints and EndpointSlices are not in it: they could lead a
// Service's traffic to other namespaces (CVE-2021-25740).
func editRules() []rbacv1.PolicyRule {
	return []rbacv1.PolicyRule{
		rule(read, "", "pods/attach", "pods/proxy", "pods/exec", "pods/portforward", "secrets", "services/proxy"),
		rule("impersonate", "", "serviceaccounts"),
		rule(write, "", "pods", "pods/attach", "pods/proxy", "pods/exec", "pods/portforward"),
		rule("create", "", "pods/eviction", "serviceaccounts/token"),
		rule(write, "", "replicationcontrollers", "replicationcontrollers/scale", "serviceaccounts", "services", "services/proxy", "persistentvolumeclaims", "configmaps", "secrets"),
		rule(write, ",events.k8s.io", "events"),
		rule(write, "apps", "statefulsets", "statefulsets/scale", "daemonsets", "deployments", "deployments/scale", "deployments/rollback", "replicasets", "replicasets/scale"),
		rule(write, "autoscaling", "horizontalpodautoscalers"),
		rule(write, "batch", "jobs", "cronjobs"),
		rule(write, "extensions", "daemonsets", "deployments", "deployments/scale", "deployments/rollback", "ingresses", "replicasets", "replicasets/scale",
			"replicationcontrollers/scale", "networkpolicies"),
		rule(write, "policy", "poddisruptionbudgets"),
		rule(write, "networking.k8s.io", "networkpolicies", "ingresses"),
		rule(read+" "+write, "coordination.k8s.io", "leases"),
		rule(write, "resource.k8s.io", "resourceclaims", "resourceclaimtemplates"),
	}
}

func adminRules() []rbacv1.PolicyRule {
	return []rbacv1.PolicyRule{
		rule(read+" "+write, "rbac.authorization.k8s.io", "roles", "rolebindings"),
		rule("create", "authorization.k8s.io", "localsubjectaccessreviews"),
	}
}

// nodeRules is what a kubelet may do whatever pods it has.
func nodeRules() []rbacv1.PolicyRule {
	return []rbacv1.PolicyRule{
		rule("create", "authentication.k8s.io", "tokenreviews"),
		rule("create", "authorization.k8s.io", "subjectaccessreviews", "localsubjectaccessreviews"),
		rule(read, "", "services"),
		rule("create get list watch update patch", "", "nodes"),
		rule("update patch", "", "nodes/status"),
		writeEvents(),
		rule("get list watch create delete", "", "pods"),
		rule("update patch", "", "pods/status"),
		rule("create", "", "pods/eviction"),
		rule("create get update patch delete", "coordination.k8s.io", "leases"),
		rule(read, "node.k8s.io", "runtimeclasses"),
		rule(read, "storage.k8s.io", "csidrivers"),
		rule("create get list watch", "certificates.k8s.io", "certificatesigningrequests"),
	}
}

// referencedRules is what the role system:node has beyond them. Nobody is bound to that role: the Node authorizer allows
// of these what a node's pods refer to, and nothing that needs a kubelet which does more than ours.
func referencedRules() []rbacv1.PolicyRule {
	return []rbacv1.PolicyRule{
		rule(read, "", "secrets", "configmaps"),
		rule("get", "", "persistentvolumeclaims", "persistentvolumes", "endpoints", "serviceaccounts"),
		rule("get update patch", "", "persistentvolumeclaims/status"),
		rule("create", "", "serviceaccounts/token"),
		rule("get", "storage.k8s.io", "volumeattachments"),
		rule("get create update patch delete", "storage.k8s.io", "csinodes"),
		rule("get", "resource.k8s.io", "resourceclaims"),
		rule("deletecollection", "resource.k8s.io", "resourceslices"),
		rule(read, "certificates.k8s.io", "clustertrustbundles"),
		rule("get list watch create", "certificates.k8s.io", "podcertificaterequests"),
	}
}

// schedulerRules is what system:kube-scheduler may do, but for volumes.
func schedulerRules() []rbacv1.PolicyRule {
	return []rbacv1.PolicyRule{
		writeEvents(),
		rule("create", "coordination.k8s.io", "leases"),
		only(rule("get update list watch", "coordination.k8s.io", "leases"), "kube-scheduler"),
		rule(read+" "+write, "coordination.k8s.io", "leasecandidates"),
		rule(read, "", "nodes", "namespaces", "services", "replicationcontrollers", "persistentvolumeclaims", "persistentvolumes"),
		rule("get list watch delete", "", "pods"),
		rule("create", "", "pods/binding", "bindings"),
		rule("patch update", "", "pods/status"),
		rule("update", "", "pods/finalizers"),
		rule(read, "apps,extensions", "replicasets"),
		rule(read, "apps", "statefulsets"),
		rule(read, "policy", "poddisruptionbudgets"),
		rule("create", "authentication.k8s.io", "tokenreviews"),
		rule("create", "authorization.k8s.io", "subjectaccessreviews"),
		rule(read, "storage.k8s.io", "csinodes", "volumeattachments", "csidrivers", "csistoragecapacities"),
		rule(read, "resource.k8s.io", "deviceclasses", "resourceslices", "devicetaintrules"),
		rule("get list watch update patch create delete", "resource.k8s.io", "resourceclaims"),
		rule("get list watch update patch", "resource.k8s.io", "resourceclaims/status"),
		rule("update patch", "resource.k8s.io", "resourceclaims/binding"),
	}
}

// Who holds these has certificates for a node's kubelet approved: for any node, or for the one that asks.
const (
	nodeClient     = "system:certificates.k8s.io:certificatesigningrequests:nodeclient"
	selfNodeClient = "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient"
)

// clusterRoles returns the roles that every cluster has.
func clusterRoles() []rbacv1.ClusterRole {
	roles := []rbacv1.ClusterRole{
		named("cluster-admin", rule(all, all, all), rbacv1.PolicyRule{Verbs: []string{all}, NonResourceURLs: []string{all}}),
		named("system:discovery", urls("/livez", "/readyz", "/healthz", "/version", "/version/", "/openapi", "/openapi/*", "/api", "/api/*", "/apis", "/apis/*")),
		named("system:public-info-viewer", urls("/livez", "/readyz", "/healthz", "/version", "/version/")),
		named("system:service-account-issuer-discovery", urls("/.well-known/openid-configuration", "/.well-known/openid-configuration/", "/openid/v1/jwks", "/openid/v1/jwks/")),
		named("system:monitoring",
			urls("/healthz", "/healthz/*", "/livez", "/livez/*", "/metrics", "/metrics/slis", "/readyz", "/readyz/*", "/flagz", "/statusz"), rule("get", "", "nodes/metrics")),
		named("system:basic-user",
			rule("create", "authorization.k8s.io", "selfsubjectaccessreviews", "selfsubjectrulesreviews"),
			rule("create", "authentication.k8s.io", "selfsubjectreviews")),
		named("system:auth-delegator", rule("create", "authentication.k8s.io", "tokenreviews"), rule("create", "authorization.k8s.io", "subjectaccessreviews")),
		named("system:heapster", rule(read, "", "events", "pods", "nodes", "namespaces"), rule(read, "extensions", "deployments")),
		named("system:kube-aggregator", rule(read, "", "services", "endpoints")),
		named("system:kubelet-api-admin",
			rule("get list watch proxy", "", "nodes"),
			rule(all, "", "nodes/proxy", "nodes/metrics", "nodes/stats", "nodes/log", "nodes/pods", "nodes/healthz", "nodes/configz")),
		named("system:node", slices.Concat(nodeRules(), referencedRules())...),
		named("system:node-problem-detector", rule("get", "", "nodes"), rule("patch", "", "nodes/status"), writeEvents()),
		named("system:node-proxier",
			rule("list watch", "", "services", "endpoints"), rule(read, "", "nodes"), rule("list watch", "networking.k8s.io", "servicecidrs"),
			rule("list watch", "discovery.k8s.io", "endpointslices"), writeEvents()),
		named("system:node-bootstrapper", rule("create get list watch", "certificates.k8s.io", "certificatesigningrequests")),
		named(nodeClient, rule("create", "certificates.k8s.io", "certificatesigningrequests/nodeclient")),
		named(selfNodeClient, rule("create", "certificates.k8s.io", "certificatesigningrequests/selfnodeclient")),
		named("system:cluster-trust-bundle-discovery", rule(read, "certificates.k8s.io", "clustertrustbundles")),
		named("system:kube-dns", rule("list watch", "", "endpoints", "services")),
		named("system:persistent-volume-provisioner",
			rule("get list watch create delete", "", "persistentvolumes"), rule("get list watch update", "", "persistentvolumeclaims"),
			rule(read, "storage.k8s.io", "storageclasses"), rule("watch", "", "events"), writeEvents()),
		named("system:volume-scheduler", rule("get list watch update patch", "", "persistentvolumes", "persistentvolumeclaims"), rule(read, "storage.k8s.io", "storageclasses")),
		named("system:kube-scheduler", schedulerRules()...),
		named("system:kube-controller-manager",
			writeEvents(),
			rule("create", "coordination.k8s.io", "leases"),
			only(rule("get update", "coordination.k8s.io", "leases"), "kube-controller-manager"),
			rule("create get update", "", "secrets", "serviceaccounts"),
			rule("delete", "", "secrets"),
			rule("get", "", "namespaces", "configmaps"),
			rule("create", "", "serviceaccounts/token"),
			rule("create", "authentication.k8s.io", "tokenreviews"),
			rule("create", "authorization.k8s.io", "subjectaccessreviews"),
			rule("list watch", all, all)),
		// The three roles for people are sums: anyone may add to them with a label.
		sum("view", "edit"), sum("edit", "admin"), sum("admin", ""),
		part("system:aggregate-to-view", "view", viewRules()...), part("system:aggregate-to-edit", "edit", editRules()...), part("system:aggregate-to-admin", "admin", adminRules()...),
	}
	for _, signer := range []string{"legacy-unknown", "kube-apiserver-client", "kube-apiserver-client-kubelet", "kubelet-serving"} {
		roles = append(roles, named("system:certificates.k8s.io:"+signer+"-approver", only(rule("approve", "certificates.k8s.io", "signers"), "kubernetes.io/"+signer)))
	}
	return slices.Concat(roles, controllerRoles(), strakeRoles())
}

func named(name string, rules ...rbacv1.PolicyRule) rbacv1.ClusterRole {
	return rbacv1.ClusterRole{ObjectMeta: defaultMeta(name), Rules: rules}
}

// part is a role whose rules the sum `to` has.
func part(name, to string, rules ...rbacv1.PolicyRule) rbacv1.ClusterRole {
	r := named(name, rules...)
	r.Labels[aggregateTo(to)] = "true"
	return r
}

// sum is a role that has the rules of all of its parts, and is a part of another one itself unless that is "".
func sum(name, of string) rbacv1.ClusterRole {
	r := named(name)
	if of != "" {
		r.Labels[aggregateTo(of)] = "true"
	}
	r.AggregationRule = &rbacv1.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{{MatchLabels: map[string]string{aggregateTo(name): "true"}}}}
	return r
}

func aggregateTo(role string) string { return rbacv1.GroupName + "/aggregate-to-" + role }

// defaultMeta marks an object as one of the defaults that are put back at every start.
func defaultMeta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name:        name,
		Labels:      map[string]string{"kubernetes.io/bootstrapping": "rbac-defaults"},
		Annotations: map[string]string{rbacv1.AutoUpdateAnnotationKey: "true"},
	}
}

func groups(names ...string) []rbacv1.Subject { return subjects(rbacv1.GroupKind, names) }
func users(names ...string) []rbacv1.Subject  { return subjects(rbacv1.UserKind, names) }

func subjects(kind string, names []string) []rbacv1.Subject {
	var s []rbacv1.Subject
	for _, n := range names {
		s = append(s, rbacv1.Subject{Kind: kind, APIGroup: rbacv1.GroupName, Name: n})
	}
	return s
}

// accounts are ServiceAccounts of kube-system.
func accounts(names ...string) []rbacv1.Subject {
	var s []rbacv1.Subject
	for _, n := range names {
		s = append(s, rbacv1.Subject{Kind: rbacv1.ServiceAccountKind, Namespace: metav1.NamespaceSystem, Name: n})
	}
	return s
}

// bindClusterRole binds a role of the cluster by its own name.
func bindClusterRole(role string, subjects ...rbacv1.Subject) rbacv1.ClusterRoleBinding {
	return rbacv1.ClusterRoleBinding{ObjectMeta: defaultMeta(role), RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role}, Subjects: subjects}
}

// clusterRoleBindings returns the bindings that every cluster has.
func clusterRoleBindings() []rbacv1.ClusterRoleBinding {
	bindings := []rbacv1.ClusterRoleBinding{
		bindClusterRole("cluster-admin", groups(user.SystemPrivilegedGroup)...),
		bindClusterRole("system:monitoring", groups(user.MonitoringGroup)...),
		bindClusterRole("system:discovery", groups(user.AllAuthenticated)...),
		bindClusterRole("system:basic-user", groups(user.AllAuthenticated)...),
		bindClusterRole("system:public-info-viewer", groups(user.AllAuthenticated, user.AllUnauthenticated)...),
		bindClusterRole("system:service-account-issuer-discovery", groups(serviceaccount.AllServiceAccountsGroup)...),
		bindClusterRole("system:cluster-trust-bundle-discovery", groups(serviceaccount.AllServiceAccountsGroup)...),
		bindClusterRole("system:node-proxier", users(user.KubeProxy)...),
		bindClusterRole("system:kube-controller-manager", users(user.KubeControllerManager)...),
		bindClusterRole("system:kube-dns", accounts("kube-dns")...),
		bindClusterRole("system:kube-scheduler", users(user.KubeScheduler)...),
		bindClusterRole("system:volume-scheduler", users(user.KubeScheduler)...),
		bindClusterRole("system:node"), // of nobody: the Node authorizer decides what nodes may do
	}
	return slices.Concat(bindings, controllerBindings(), strakeBindings())
}

// authenticationReader lets extension API servers read how this one knows its users.
const authenticationReader = "extension-apiserver-authentication-reader"

func namespaced(namespace, name string, rules ...rbacv1.PolicyRule) rbacv1.Role {
	r := rbacv1.Role{ObjectMeta: defaultMeta(name), Rules: rules}
	r.Namespace = namespace
	return r
}

func bindRoleOf(namespace, name, role string, subjects ...rbacv1.Subject) rbacv1.RoleBinding {
	b := rbacv1.RoleBinding{ObjectMeta: defaultMeta(name), RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: role}, Subjects: subjects}
	b.Namespace = namespace
	return b
}

// roles returns the roles that every cluster has in its system's namespaces.
func roles() []rbacv1.Role {
	const system, public = metav1.NamespaceSystem, metav1.NamespacePublic
	return append(strakeNamespaced(),
		namespaced(system, authenticationReader, only(rule(read, "", "configmaps"), "extension-apiserver-authentication")),
		namespaced(system, controllerPrefix+"bootstrap-signer", rule(read, "", "secrets")),
		namespaced(public, controllerPrefix+"bootstrap-signer", rule(read, "", "configmaps"), only(rule("update", "", "configmaps"), "cluster-info"), writeEvents()),
		namespaced(system, controllerPrefix+"cloud-provider", rule("create get list watch", "", "configmaps")),
		namespaced(system, controllerPrefix+"token-cleaner", rule("get list watch delete", "", "secrets"), writeEvents()),
		namespaced(system, "system::leader-locking-kube-controller-manager", rule("watch", "", "configmaps"), only(rule("get update", "", "configmaps"), "kube-controller-manager")),
		namespaced(system, "system::leader-locking-kube-scheduler", rule("watch", "", "configmaps"), only(rule("get update", "", "configmaps"), "kube-scheduler")),
	)
}

// roleBindings returns the bindings that every cluster has in its system's namespaces.
func roleBindings() []rbacv1.RoleBinding {
	const system, public = metav1.NamespaceSystem, metav1.NamespacePublic
	b := append(strakeNamespacedBindings(),
		bindRoleOf(system, "system::"+authenticationReader, authenticationReader, users(user.KubeControllerManager, user.KubeScheduler)...),
		bindRoleOf(public, controllerPrefix+"bootstrap-signer", controllerPrefix+"bootstrap-signer", accounts("bootstrap-signer")...),
	)
	for _, c := range []string{"bootstrap-signer", "cloud-provider", "token-cleaner"} {
		b = append(b, bindRoleOf(system, controllerPrefix+c, controllerPrefix+c, accounts(c)...))
	}
	for _, c := range []string{"kube-controller-manager", "kube-scheduler"} {
		b = append(b, bindRoleOf(system, "system::leader-locking-"+c, "system::leader-locking-"+c, slices.Concat(users("system:"+c), accounts(c))...))
	}
	return b
}
