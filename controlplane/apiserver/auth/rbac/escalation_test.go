package rbac

import (
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/authentication/user"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
)

func TestEscalation(t *testing.T) {
	readPods, readSecrets := rule(read, "", "pods"), rule(read, "", "secrets")
	rbacWrite := rule(all, rbacv1.GroupName, "roles", "clusterroles", "rolebindings", "clusterrolebindings")
	rbacWrite.Verbs = []string{"get", "create", "update", "patch"} // not escalate, not bind
	objects := []runtime.Object{
		clusterRole("pods", readPods), clusterRole("secrets", readSecrets), clusterRole("write", rbacWrite), role("ns", "local", readSecrets),
		clusterRole("escalator", rule("escalate", rbacv1.GroupName, "roles", "clusterroles")),
		clusterRole("binder", only(rule("bind", rbacv1.GroupName, "clusterroles"), "secrets")),
		clusterRole("root", everything...),
		bindCluster("ann-pods", "pods", aUser("ann")), bindCluster("ann-write", "write", aUser("ann")),
		bindRole("ns", "bob", "ClusterRole", "pods", aUser("bob")),
		bindCluster("eve", "escalator", aUser("eve")), bindCluster("ben", "binder", aUser("ben")), bindCluster("root", "root", aUser("root")),
	}
	a := authorizerOf(t, objects...)
	sum := clusterRole("sum")
	sum.AggregationRule = &rbacv1.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{{}}}
	withFinalizer := role("ns", "r", readSecrets)
	withFinalizer.Finalizers, withFinalizer.ResourceVersion = []string{"x"}, "7"
	relabelled := role("ns", "r", readSecrets)
	relabelled.Labels = map[string]string{"a": "b"}
	filled := sum.DeepCopy()
	filled.Rules = []rbacv1.PolicyRule{readPods}
	for _, tc := range []struct {
		name     string
		who      user.Info
		obj, old runtime.Object
		ok       bool
	}{
		{"what one holds", u("ann"), role("ns", "r", readPods), nil, true},
		{"a part of what one holds", u("ann"), role("ns", "r", only(rule("get", "", "pods"), "a")), nil, true},
		{"what one doesn't hold", u("ann"), role("ns", "r", readSecrets), nil, false},
		{"one verb more", u("ann"), role("ns", "r", rule("get delete", "", "pods")), nil, false},
		{"everything", u("ann"), clusterRole("r", everything...), nil, false},
		{"held in this namespace", u("bob"), role("ns", "r", readPods), nil, true},
		{"held in another namespace", u("bob"), role("other", "r", readPods), nil, false},
		{"held in one namespace, for all", u("bob"), clusterRole("r", readPods), nil, false},
		{"may escalate", u("eve"), clusterRole("r", readSecrets), nil, true},
		{"may escalate, not bind", u("eve"), bindCluster("b", "secrets", aUser("eve")), nil, false},
		{"masters", u("m", user.SystemPrivilegedGroup), clusterRole("r", everything...), nil, true},

		{"bind what one holds", u("ann"), bindCluster("b", "pods", aUser("zoe")), nil, true},
		{"bind what one doesn't hold", u("ann"), bindCluster("b", "secrets", aUser("ann")), nil, false},
		{"bind a role one doesn't hold", u("ann"), bindRole("ns", "b", "Role", "local", aUser("ann")), nil, false},
		{"bind a missing role", u("ann"), bindCluster("b", "later", aUser("ann")), nil, false},
		{"bind a missing role, holding everything", u("root"), bindCluster("b", "later", aUser("ann")), nil, true},
		{"may bind this role", u("ben"), bindCluster("b", "secrets", aUser("ben")), nil, true},
		{"may bind this role in a namespace", u("ben"), bindRole("ns", "b", "ClusterRole", "secrets", aUser("ben")), nil, true},
		{"may bind another role", u("ben"), bindCluster("b", "root", aUser("ben")), nil, false},

		{"a sum of all roles", u("ann"), sum, nil, false},
		{"a sum of all roles, holding everything", u("root"), sum, nil, true},
		{"an update that leaves the sum", u("ann"), filled, sum, true},
		{"an update that makes it a sum", u("ann"), sum, clusterRole("sum"), false},
		{"an update that adds", u("ann"), role("ns", "r", readPods, readSecrets), role("ns", "r", readPods), false},
		{"a finalizer goes", u("ann"), role("ns", "r", readSecrets), withFinalizer, true},
		{"a label of a role one doesn't hold", u("ann"), relabelled, role("ns", "r", readSecrets), false},
		{"a finalizer goes and a rule comes", u("ann"), role("ns", "r", readSecrets, rule(all, "*", "*")), withFinalizer, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := a.ConfirmWrite(genericapirequest.WithUser(t.Context(), tc.who), a, tc.obj, tc.old)
			if tc.ok && err != nil || !tc.ok && !apierrors.IsForbidden(err) {
				t.Errorf("got %v, want ok=%v", err, tc.ok)
			}
		})
	}
	if err := a.ConfirmWrite(t.Context(), a, clusterRole("r", everything...), nil); err != nil {
		t.Errorf("the server's own write: %v", err)
	}
}
