package node_test

import (
	"context"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"

	"github.com/strake-io/strake/controlplane/apiserver/auth/node"
	"github.com/strake-io/strake/controlplane/apiserver/auth/rbac"
)

// onNode is a pod that names one object by each way there is.
func onNode(name, nodeName string) *corev1.Pod {
	ref := func(n string) corev1.LocalObjectReference { return corev1.LocalObjectReference{Name: name + "-" + n} }
	env := func(n string) []corev1.EnvVar {
		return []corev1.EnvVar{
			{Name: "PLAIN", Value: "x"},
			{Name: "S", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: ref(n + "-key")}}},
			{Name: "C", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: ref(n + "-key")}}},
		}
	}
	pull, publish := ref("pull"), ref("publish")
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, Spec: corev1.PodSpec{
		NodeName: nodeName, ServiceAccountName: name + "-sa", ImagePullSecrets: []corev1.LocalObjectReference{pull},
		InitContainers: []corev1.Container{{Env: env("init")}},
		Containers: []corev1.Container{{Env: env("main"), EnvFrom: []corev1.EnvFromSource{
			{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: ref("all")}}, {ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: ref("all")}},
		}}},
		EphemeralContainers: []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Env: env("debug")}}},
		Volumes: []corev1.Volume{
			{VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: name + "-vol"}}},
			{VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: ref("vol")}}},
			{VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name + "-claim"}}},
			{Name: "scratch", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}},
			{VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{NodePublishSecretRef: &publish}}},
			{VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
				{Secret: &corev1.SecretProjection{LocalObjectReference: ref("proj")}}, {ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: ref("proj")}},
			}}}},
		},
	}}
}

func newAuthorizer(t *testing.T, pods ...*corev1.Pod) (*node.Authorizer, cache.Indexer) {
	t.Helper()
	inf := informers.NewSharedInformerFactory(nil, 0).Core().V1().Pods().Informer()
	a, err := node.New(inf, rbac.NodeRules(), func(context.Context, string) ([]corev1.Pod, error) { return nil, nil },
		func(_ context.Context, name string) (*corev1.PersistentVolume, error) {
			v := &corev1.PersistentVolume{}
			switch claim, bound := strings.CutPrefix(name, "of-"); {
			case name == "absent":
				return nil, apierrors.NewNotFound(corev1.Resource("persistentvolumes"), name)
			case bound:
				v.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "ns", Name: claim}
			}
			return v, nil
		})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pods {
		if err := inf.GetIndexer().Add(p); err != nil {
			t.Fatal(err)
		}
	}
	return a, inf.GetIndexer()
}

func kubelet(n string) user.Info {
	return &user.DefaultInfo{Name: "system:node:" + n, Groups: []string{user.NodesGroup, user.AllAuthenticated}}
}

func allowed(t *testing.T, a authorizer.Authorizer, r authorizer.AttributesRecord) bool {
	t.Helper()
	d, _, err := a.Authorize(context.Background(), r)
	if err != nil {
		t.Fatal(err)
	}
	if d == authorizer.DecisionDeny {
		t.Fatal("the Node authorizer must leave the last word to others")
	}
	return d == authorizer.DecisionAllow
}

func TestReferencedObjects(t *testing.T) {
	a, _ := newAuthorizer(t, onNode("p1", "n1"), onNode("p2", "n2"), onNode("pending", ""))
	for resource, names := range map[string][]string{
		"secrets":                {"pull", "publish", "init-key", "main-key", "debug-key", "all", "vol", "proj"},
		"configmaps":             {"init-key", "main-key", "debug-key", "all", "vol", "proj"},
		"persistentvolumeclaims": {"claim", "scratch"},
	} {
		for _, n := range names {
			for _, verb := range []string{"get", "list", "watch"} {
				r := authorizer.AttributesRecord{User: kubelet("n1"), Verb: verb, Resource: resource, Namespace: "ns", Name: "p1-" + n, ResourceRequest: true}
				if !allowed(t, a, r) {
					t.Errorf("%s %s %s: a pod of the node needs it", verb, resource, r.Name)
				}
				for _, bad := range []string{"p2-" + n, "pending-" + n, "", "n1", "p1"} {
					if r.Name = bad; allowed(t, a, r) {
						t.Errorf("%s %s %q: no pod of the node needs it", verb, resource, bad)
					}
				}
				if r.Name, r.Namespace = "p1-"+n, "other"; allowed(t, a, r) {
					t.Errorf("%s %s in another namespace", verb, resource)
				}
			}
			for _, verb := range []string{"create", "update", "patch", "delete", "deletecollection"} {
				if allowed(t, a, authorizer.AttributesRecord{User: kubelet("n1"), Verb: verb, Resource: resource, Namespace: "ns", Name: "p1-" + n, ResourceRequest: true}) {
					t.Errorf("%s %s %s", verb, resource, n)
				}
			}
		}
	}
}

// A node may get the volumes that its pods' claims are bound to, and no others.
func TestVolumesOfClaims(t *testing.T) {
	a, _ := newAuthorizer(t, onNode("p1", "n1"), onNode("p2", "n2"))
	for _, c := range []struct {
		verb, name string
		want       bool
	}{
		{"get", "of-p1-claim", true}, {"get", "of-p1-scratch", true}, {"get", "of-p2-claim", false}, {"get", "free", false}, {"get", "absent", false}, {"get", "", false},
		{"list", "of-p1-claim", false}, {"watch", "of-p1-claim", false}, {"update", "of-p1-claim", false}, {"delete", "of-p1-claim", false},
	} {
		if got := allowed(t, a, authorizer.AttributesRecord{User: kubelet("n1"), Verb: c.verb, Resource: "persistentvolumes", Name: c.name, ResourceRequest: true}); got != c.want {
			t.Errorf("%s %s: %v", c.verb, c.name, got)
		}
	}
}

func TestAccessEndsWithThePod(t *testing.T) {
	p := onNode("p1", "n1")
	a, store := newAuthorizer(t, p)
	r := authorizer.AttributesRecord{User: kubelet("n1"), Verb: "get", Resource: "secrets", Namespace: "ns", Name: "p1-vol", ResourceRequest: true}
	if !allowed(t, a, r) {
		t.Fatal("not allowed while the pod is there")
	}
	if err := store.Delete(p); err != nil {
		t.Fatal(err)
	}
	if allowed(t, a, r) {
		t.Error("allowed although the pod is gone")
	}
}

// A kubelet may have heard of a pod before the index has.
func TestPodThatTheIndexDoesNotKnowYet(t *testing.T) {
	waiting := onNode("late", "")
	a, _ := newAuthorizer(t, waiting)
	a.Bound = func(_ context.Context, n string) ([]corev1.Pod, error) {
		if n != "n1" {
			return nil, nil
		}
		return []corev1.Pod{*onNode("late", "n1")}, nil
	}
	for name, want := range map[string]bool{"n1": true, "n2": false} {
		for _, r := range []authorizer.AttributesRecord{
			{Verb: "get", Resource: "secrets", Namespace: "ns", Name: "late-vol"},
			{Verb: "create", Resource: "serviceaccounts", Subresource: "token", Namespace: "ns", Name: "late-sa"},
			{Verb: "get", Resource: "pods", Namespace: "ns", Name: "late"},
		} {
			r.User, r.ResourceRequest = kubelet(name), true
			if got := allowed(t, a, r); got != want {
				t.Errorf("%s: %s %s %s: %v", name, r.Verb, r.Resource, r.Name, got)
			}
		}
	}
	r := authorizer.AttributesRecord{User: kubelet("n1"), Verb: "get", Resource: "secrets", Namespace: "ns", Name: "other", ResourceRequest: true}
	if allowed(t, a, r) {
		t.Error("what none of its pods names")
	}
	a.Bound = func(context.Context, string) ([]corev1.Pod, error) { return nil, context.DeadlineExceeded }
	if d, _, err := a.Authorize(context.Background(), r); d != authorizer.DecisionNoOpinion || err == nil {
		t.Errorf("where nobody knows: %v, %v", d, err)
	}
}

func TestAuthorize(t *testing.T) {
	a, _ := newAuthorizer(t, onNode("p1", "n1"), onNode("p2", "n2"), onNode("pending", ""))
	sel := func(s string) fields.Requirements { return fields.ParseSelectorOrDie(s).Requirements() }
	type req = authorizer.AttributesRecord
	for _, tc := range []struct {
		name string
		req  req
		want bool
	}{
		{"token of its pod's account", req{Verb: "create", Resource: "serviceaccounts", Subresource: "token", Namespace: "ns", Name: "p1-sa"}, true},
		{"token of another node's account", req{Verb: "create", Resource: "serviceaccounts", Subresource: "token", Namespace: "ns", Name: "p2-sa"}, false},
		{"read an account", req{Verb: "get", Resource: "serviceaccounts", Namespace: "ns", Name: "p1-sa"}, false},
		{"create an account", req{Verb: "create", Resource: "serviceaccounts", Namespace: "ns", Name: "p1-sa"}, false},
		{"its pod", req{Verb: "get", Resource: "pods", Namespace: "ns", Name: "p1"}, true},
		{"another node's pod", req{Verb: "get", Resource: "pods", Namespace: "ns", Name: "p2"}, false},
		{"a pod of no node", req{Verb: "get", Resource: "pods", Namespace: "ns", Name: "pending"}, false},
		{"a pod that is gone", req{Verb: "get", Resource: "pods", Namespace: "ns", Name: "gone"}, true},
		{"all pods", req{Verb: "list", Resource: "pods"}, false},
		{"its pods", req{Verb: "list", Resource: "pods", FieldSelectorRequirements: sel("spec.nodeName=n1")}, true},
		{"watch its pods", req{Verb: "watch", Resource: "pods", FieldSelectorRequirements: sel("spec.nodeName=n1,status.phase!=Failed")}, true},
		{"another node's pods", req{Verb: "list", Resource: "pods", FieldSelectorRequirements: sel("spec.nodeName=n2")}, false},
		{"all but its pods", req{Verb: "list", Resource: "pods", FieldSelectorRequirements: sel("spec.nodeName!=n1")}, false},
		{"status of pods", req{Verb: "patch", Resource: "pods", Subresource: "status", Namespace: "ns", Name: "p1"}, true},
		{"write a pod", req{Verb: "patch", Resource: "pods", Namespace: "ns", Name: "p1"}, false},
		{"exec into a pod", req{Verb: "create", Resource: "pods", Subresource: "exec", Namespace: "ns", Name: "p1"}, false},
		{"bind a pod", req{Verb: "create", Resource: "pods", Subresource: "binding", Namespace: "ns", Name: "pending"}, false},
		{"create its node", req{Verb: "create", Resource: "nodes"}, true},
		{"its node", req{Verb: "get", Resource: "nodes", Name: "n1"}, true},
		{"watch its node", req{Verb: "watch", Resource: "nodes", Name: "n1"}, true},
		{"all nodes", req{Verb: "list", Resource: "nodes"}, false},
		{"another node", req{Verb: "get", Resource: "nodes", Name: "n2"}, false},
		{"its node's status", req{Verb: "patch", Resource: "nodes", Subresource: "status", Name: "n1"}, true},
		{"another node's status", req{Verb: "patch", Resource: "nodes", Subresource: "status", Name: "n2"}, false},
		{"delete its node", req{Verb: "delete", Resource: "nodes", Name: "n1"}, false},
		{"its lease", req{Verb: "update", APIGroup: "coordination.k8s.io", Resource: "leases", Namespace: "kube-node-lease", Name: "n1"}, true},
		{"create its lease", req{Verb: "create", APIGroup: "coordination.k8s.io", Resource: "leases", Namespace: "kube-node-lease"}, true},
		{"another's lease", req{Verb: "update", APIGroup: "coordination.k8s.io", Resource: "leases", Namespace: "kube-node-lease", Name: "n2"}, false},
		{"a lease elsewhere", req{Verb: "update", APIGroup: "coordination.k8s.io", Resource: "leases", Namespace: "kube-system", Name: "n1"}, false},
		{"services", req{Verb: "watch", Resource: "services"}, true},
		{"roles", req{Verb: "create", APIGroup: "rbac.authorization.k8s.io", Resource: "clusterrolebindings"}, false},
		{"secrets of another group", req{Verb: "get", APIGroup: "example.com", Resource: "secrets", Namespace: "ns", Name: "p1-vol"}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.req.User, tc.req.ResourceRequest = kubelet("n1"), true
			if got := allowed(t, a, tc.req); got != tc.want {
				t.Errorf("allowed = %v, want %v", got, tc.want)
			}
		})
	}
	for _, u := range []user.Info{
		&user.DefaultInfo{Name: "system:node:n1"},
		&user.DefaultInfo{Name: "n1", Groups: []string{user.NodesGroup}},
		&user.DefaultInfo{Name: "system:node:", Groups: []string{user.NodesGroup}},
	} {
		if allowed(t, a, req{User: u, Verb: "watch", Resource: "services", ResourceRequest: true}) {
			t.Errorf("%v is no kubelet", u)
		}
	}
}
