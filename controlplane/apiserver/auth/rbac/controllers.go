package rbac

import (
	rbacv1 "k8s.io/api/rbac/v1"
)

// controllerPrefix begins the names of roles that are bound to a controller's ServiceAccount in kube-system.
const controllerPrefix = "system:controller:"

// controllers are the ServiceAccounts of the reference's controllers and what each may do: Strake's own
// controllers are these ServiceAccounts, too; what they need beyond stands in strake.go.
func controllers() []rbacv1.ClusterRole {
	finalizers := func(groups, resource string) rbacv1.PolicyRule { return rule("update", groups, resource+"/finalizers") }
	status := func(groups, resource string) rbacv1.PolicyRule { return rule("update", groups, resource+"/status") }
	return []rbacv1.ClusterRole{
		named("attachdetach-controller",
			rule("list watch", "", "persistentvolumes", "persistentvolumeclaims", "pods"), rule(read, "", "nodes"), rule("patch update", "", "nodes/status"),
			rule("get create delete list watch", "storage.k8s.io", "volumeattachments"), rule(read, "storage.k8s.io", "csidrivers", "csinodes"), writeEvents()),
		named("certificate-controller",
			rule("get list watch delete", "certificates.k8s.io", "certificatesigningrequests"),
			rule("update", "certificates.k8s.io", "certificatesigningrequests/status", "certificatesigningrequests/approval"),
			only(rule("approve", "certificates.k8s.io", "signers"), "kubernetes.io/kube-apiserver-client-kubelet"),
			only(rule("sign", "certificates.k8s.io", "signers"),
				"kubernetes.io/legacy-unknown", "kubernetes.io/kube-apiserver-client", "kubernetes.io/kube-apiserver-client-kubelet", "kubernetes.io/kubelet-serving"),
			rule("create", "authorization.k8s.io", "subjectaccessreviews"), writeEvents()),
		named("clusterrole-aggregation-controller", rule("escalate get list watch update patch", "rbac.authorization.k8s.io", "clusterroles")),
		named("cronjob-controller",
			rule("get list watch update", "batch", "cronjobs"), rule("get list watch create update delete patch", "batch", "jobs"),
			status("batch", "cronjobs"), finalizers("batch", "cronjobs"), rule("list watch delete", "", "pods"), writeEvents()),
		named("daemon-set-controller",
			rule(read, "extensions,apps", "daemonsets"), status("extensions,apps", "daemonsets"), finalizers("extensions,apps", "daemonsets"),
			rule("list watch", "", "nodes"), rule("list watch create delete patch", "", "pods"), rule("create", "", "pods/binding"),
			rule("get list watch create delete update patch", "apps", "controllerrevisions"), writeEvents()),
		named("deployment-controller",
			rule("get list watch update", "extensions,apps", "deployments"), status("extensions,apps", "deployments"), finalizers("extensions,apps", "deployments"),
			rule("get list watch create update patch delete", "apps,extensions", "replicasets"), rule("get list watch update", "", "pods"), writeEvents()),
		named("device-taint-eviction-controller",
			rule("get list watch delete", "", "pods"), rule("update patch", "", "pods/status"),
			rule(read, "resource.k8s.io", "resourceclaims", "resourceslices", "deviceclasses", "devicetaintrules"),
			rule("update patch", "resource.k8s.io", "devicetaintrules/status"), writeEvents()),
		named("disruption-controller",
			rule(read, "extensions,apps", "deployments", "replicasets"), rule(read, "", "replicationcontrollers"), rule(read, "policy", "poddisruptionbudgets"),
			rule(read, "apps", "statefulsets"), status("policy", "poddisruptionbudgets"), rule("patch update", "", "pods/status"), rule("get", all, "*/scale"), writeEvents()),
		named("endpoint-controller",
			rule(read, "", "services", "pods"), rule("get list watch create update delete", "", "endpoints"), rule("create", "", "endpoints/restricted"), writeEvents()),
		named("endpointslice-controller",
			rule(read, "", "services", "pods", "nodes"), finalizers("", "services"), rule("get list watch create update delete", "discovery.k8s.io", "endpointslices"), writeEvents()),
		named("endpointslicemirroring-controller",
			rule(read, "", "services", "endpoints"), finalizers("", "services"), finalizers("", "endpoints"),
			rule("get list watch create update delete", "discovery.k8s.io", "endpointslices"), writeEvents()),
		named("ephemeral-volume-controller",
			rule(read, "", "pods"), finalizers("", "pods"), rule("get list watch create", "", "persistentvolumeclaims"), writeEvents()),
		named("expand-controller",
			rule("get list watch update patch", "", "persistentvolumes"), rule("update patch", "", "persistentvolumeclaims/status"),
			rule(read, "", "persistentvolumeclaims"), writeEvents()),
		named("generic-garbage-collector", rule("get list watch patch update delete", all, all), writeEvents()),
		named("horizontal-pod-autoscaler",
			rule(read, "autoscaling", "horizontalpodautoscalers"), status("autoscaling", "horizontalpodautoscalers"), rule("get update", all, "*/scale"),
			rule("list watch", "", "pods"), rule("list watch", "metrics.k8s.io", "pods"), rule(read, "custom.metrics.k8s.io,external.metrics.k8s.io", all), writeEvents()),
		named("job-controller",
			rule("get list watch update patch", "batch", "jobs"), status("batch", "jobs"), finalizers("batch", "jobs"),
			rule("list watch create delete patch", "", "pods"), writeEvents()),
		named("kube-apiserver-serving-clustertrustbundle-publisher",
			only(rule("attest", "certificates.k8s.io", "signers"), "kubernetes.io/kube-apiserver-serving"),
			rule("create update delete list watch", "certificates.k8s.io", "clustertrustbundles"), writeEvents()),
		named("legacy-service-account-token-cleaner",
			only(rule("get", "", "configmaps"), "kube-apiserver-legacy-service-account-token-tracking"), rule("patch delete", "", "secrets")),
		named("namespace-controller",
			rule("get list watch delete", "", "namespaces"), rule("update", "", "namespaces/finalize", "namespaces/status"),
			rule("get list watch delete deletecollection", all, all)),
		named("node-controller",
			rule("get list watch update delete patch", "", "nodes"), rule("patch update", "", "nodes/status", "pods/status"),
			rule("list watch get delete", "", "pods"), rule(read, "coordination.k8s.io", "leases"), writeEvents()),
		named("persistent-volume-binder",
			rule("get list watch update create delete", "", "persistentvolumes"), status("", "persistentvolumes"),
			rule("get list watch update", "", "persistentvolumeclaims"), status("", "persistentvolumeclaims"),
			rule("list watch get create delete", "", "pods"), rule(read, "storage.k8s.io", "storageclasses"), rule("list watch", "", "nodes"),
			rule("watch", "", "events"), writeEvents()),
		named("pod-garbage-collector", rule("list watch delete", "", "pods"), rule(read, "", "nodes"), rule("patch", "", "pods/status")),
		named("podcertificaterequestcleaner", rule("get list watch delete", "certificates.k8s.io", "podcertificaterequests")),
		named("pv-protection-controller", rule("get list watch update", "", "persistentvolumes"), writeEvents()),
		named("pvc-protection-controller",
			rule("get list watch update", "", "persistentvolumeclaims"), status("", "persistentvolumeclaims"), rule(read, "", "pods"), writeEvents()),
		named("replicaset-controller",
			rule("get list watch update", "apps,extensions", "replicasets"), status("apps,extensions", "replicasets"), finalizers("apps,extensions", "replicasets"),
			rule("list watch patch create delete", "", "pods"), writeEvents()),
		named("replication-controller",
			rule("get list watch update", "", "replicationcontrollers"), status("", "replicationcontrollers"), finalizers("", "replicationcontrollers"),
			rule("list watch patch create delete", "", "pods"), writeEvents()),
		named("resource-claim-controller",
			rule(read, "", "pods"), finalizers("", "pods"), rule("get list watch create delete", "resource.k8s.io", "resourceclaims"),
			rule("update patch", "resource.k8s.io", "resourceclaims", "resourceclaims/status", "resourceclaims/binding"), rule("update patch", "", "pods/status"), writeEvents()),
		named("resourcequota-controller", rule("list watch", all, all), status("", "resourcequotas"), writeEvents()),
		named("root-ca-cert-publisher", rule("create update", "", "configmaps"), writeEvents()),
		named("route-controller", rule("list watch", "", "nodes"), rule("patch", "", "nodes/status"), writeEvents()),
		named("selinux-warning-controller",
			rule(read, "", "persistentvolumes", "persistentvolumeclaims", "pods"), rule(read, "storage.k8s.io", "csidrivers"), writeEvents()),
		named("service-account-controller", rule("create", "", "serviceaccounts"), writeEvents()),
		named("service-cidrs-controller",
			rule("get list watch patch update", "networking.k8s.io", "servicecidrs"), rule("patch update", "networking.k8s.io", "servicecidrs/finalizers", "servicecidrs/status"),
			rule(read, "networking.k8s.io", "ipaddresses"), writeEvents()),
		named("service-controller", rule(read, "", "services"), rule("patch update", "", "services/status"), rule("list watch", "", "nodes"), writeEvents()),
		named("statefulset-controller",
			rule("get list watch create delete update patch", "", "pods"), rule(read, "apps", "statefulsets"), status("apps", "statefulsets"), finalizers("apps", "statefulsets"),
			rule("get create delete update patch list watch", "apps", "controllerrevisions"), rule("get create list watch update delete", "", "persistentvolumeclaims"),
			finalizers("", "pods"), writeEvents()),
		named("storage-version-migrator-controller",
			rule("list patch", all, all), rule("get", "apiextensions.k8s.io", "customresourcedefinitions"),
			rule("patch", "apiextensions.k8s.io", "customresourcedefinitions/status"), status("storagemigration.k8s.io", "storageversionmigrations")),
		named("ttl-after-finished-controller", rule("get list watch delete", "batch", "jobs"), writeEvents()),
		named("ttl-controller", rule("update patch list watch", "", "nodes"), writeEvents()),
		named("validatingadmissionpolicy-status-controller",
			rule(read, "admissionregistration.k8s.io", "validatingadmissionpolicies"),
			rule("get patch update", "admissionregistration.k8s.io", "validatingadmissionpolicies/status"), writeEvents()),
		named("volumeattributesclass-protection-controller",
			rule(read, "", "persistentvolumeclaims", "persistentvolumes"), rule("get list watch update", "storage.k8s.io", "volumeattributesclasses"), writeEvents()),
	}
}

func controllerRoles() []rbacv1.ClusterRole {
	roles := controllers()
	for i := range roles {
		roles[i].Name = controllerPrefix + roles[i].Name
	}
	return roles
}

func controllerBindings() []rbacv1.ClusterRoleBinding {
	var b []rbacv1.ClusterRoleBinding
	for _, c := range controllers() {
		b = append(b, bindClusterRole(controllerPrefix+c.Name, accounts(c.Name)...))
	}
	return b
}
