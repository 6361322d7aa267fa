package admission

import (
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/kubernetes/fake"
)

var (
	pods     = corev1.SchemeGroupVersion.WithResource("pods")
	leases   = coordinationv1.SchemeGroupVersion.WithResource("leases")
	accounts = corev1.SchemeGroupVersion.WithResource("serviceaccounts")
)

func boundTo(name, node string) *corev1.Pod {
	p := pod()
	p.Name, p.UID, p.Spec.NodeName = name, "uid-1", node
	p.Spec.Volumes = []corev1.Volume{{VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
		{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: "vault"}},
	}}}}}
	return p
}

// mirror is a mirror pod of n1, changed.
func mirror(change func(*corev1.Pod)) *corev1.Pod {
	p := pod()
	p.Annotations, p.Spec.NodeName = map[string]string{corev1.MirrorPodAnnotationKey: "x"}, "n1"
	change(p)
	return p
}

func nodeObj(name string, change func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: "node-uid", Labels: map[string]string{corev1.LabelHostname: name}}}
	if change != nil {
		change(n)
	}
	return n
}

func tokenRequest(audiences []string, ref *authenticationv1.BoundObjectReference) request {
	return request{name: "sa", resource: accounts, subresource: "token", obj: &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: audiences, BoundObjectRef: ref}}}
}

func TestNodeRestriction(t *testing.T) {
	yes := true
	label := func(k string) func(*corev1.Node) { return func(n *corev1.Node) { n.Labels[k] = "v" } }
	owner := func(change func(*metav1.OwnerReference)) *corev1.Pod {
		return mirror(func(p *corev1.Pod) {
			o := metav1.OwnerReference{APIVersion: "v1", Kind: "Node", Name: "n1", UID: "node-uid", Controller: &yes}
			change(&o)
			p.OwnerReferences = []metav1.OwnerReference{o}
		})
	}
	ref := func(name string) *authenticationv1.BoundObjectReference {
		return &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: name, UID: "uid-1"}
	}
	lease := func(ns, name string) *coordinationv1.Lease {
		return &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}}
	}
	updateNode := func(change func(*corev1.Node)) request {
		return request{op: admission.Update, obj: nodeObj("n1", change), old: nodeObj("n1", nil)}
	}
	for _, tc := range []struct {
		name    string
		req     request
		refused string // part of the message; empty: admitted
	}{
		{"register itself", request{obj: nodeObj("n1", func(n *corev1.Node) { n.Spec.Taints = []corev1.Taint{{Key: "gpu"}} })}, ""},
		{"register another", request{obj: nodeObj("n2", nil)}, `node "n1" is not allowed to modify node "n2"`},
		{"register with a reserved label", request{obj: nodeObj("n1", label("node-restriction.kubernetes.io/trusted"))}, "not allowed to modify labels: node-restriction.kubernetes.io/trusted"},
		{"its own label", updateNode(label("example.com/x")), ""},
		{"a plain label", updateNode(label("disk")), ""},
		{"a kubelet's label", updateNode(label("node.kubernetes.io/instance-type")), ""},
		{"another label of Kubernetes", updateNode(label("node-role.kubernetes.io/control-plane")), "not allowed to modify labels"},
		{"a reserved label below a prefix", updateNode(label("a.node-restriction.kubernetes.io/x")), "not allowed to modify labels"},
		{"drop its host name", updateNode(func(n *corev1.Node) { n.Labels = nil }), ""},
		{"change taints", updateNode(func(n *corev1.Node) { n.Spec.Taints = []corev1.Taint{{Key: "x"}} }), "not allowed to modify taints"},
		{"change owners", updateNode(func(n *corev1.Node) { n.OwnerReferences = []metav1.OwnerReference{{Name: "x"}} }), "not allowed to modify ownerReferences"},
		{"another's status", request{op: admission.Update, subresource: "status", obj: nodeObj("n2", nil), old: nodeObj("n2", nil)}, "not allowed to modify node"},

		{"its lease", request{obj: lease("kube-node-lease", "n1"), resource: leases}, ""},
		{"another's lease", request{obj: lease("kube-node-lease", "n2"), resource: leases}, "same name as the requesting node"},
		{"a lease elsewhere", request{obj: lease("kube-system", "n1"), resource: leases}, `"kube-node-lease" system namespace`},

		{"mirror pod", request{obj: mirror(func(*corev1.Pod) {})}, ""},
		{"mirror pod it owns", request{obj: owner(func(*metav1.OwnerReference) {})}, ""},
		{"plain pod", request{obj: boundTo("new", "n1")}, "can only create mirror pods"},
		{"mirror pod of another node", request{obj: mirror(func(p *corev1.Pod) { p.Spec.NodeName = "n2" })}, "spec.nodeName set to itself"},
		{"mirror pod with a secret", request{obj: mirror(func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "loot"}}}}
		})}, "reference secrets"},
		{"mirror pod with an account", request{obj: mirror(func(p *corev1.Pod) { p.Spec.ServiceAccountName = "admin" })}, "reference serviceaccounts"},
		{"mirror pod with a token", request{obj: mirror(func(p *corev1.Pod) { p.Spec.Volumes = boundTo("x", "n1").Spec.Volumes })}, "reference serviceaccounts"},
		{"mirror pod owned by another node", request{obj: owner(func(o *metav1.OwnerReference) { o.Name = "n2" })}, "owner reference set to itself"},
		{"mirror pod owned by an earlier self", request{obj: owner(func(o *metav1.OwnerReference) { o.UID = "old" })}, "UID mismatch"},
		{"mirror pod that blocks its owner", request{obj: owner(func(o *metav1.OwnerReference) { o.BlockOwnerDeletion = &yes })}, "blockOwnerDeletion"},

		{"status of its pod", request{op: admission.Update, subresource: "status", obj: boundTo("mine", "n1"), old: boundTo("mine", "n1")}, ""},
		{"status of another's pod", request{op: admission.Update, subresource: "status", obj: boundTo("theirs", "n2"), old: boundTo("theirs", "n2")}, "spec.nodeName set to itself"},
		{"status that claims the pod", request{op: admission.Update, subresource: "status", obj: boundTo("theirs", "n1"), old: boundTo("theirs", "n2")}, "spec.nodeName set to itself"},
		{"labels through status", request{op: admission.Update, subresource: "status", old: boundTo("mine", "n1"), obj: func() *corev1.Pod {
			p := boundTo("mine", "n1")
			p.Labels = map[string]string{"app": "web"}
			return p
		}()}, "cannot update labels"},
		{"spec of its pod", request{op: admission.Update, obj: boundTo("mine", "n1"), old: boundTo("mine", "n1")}, "unexpected operation"},
		{"delete its pod", request{op: admission.Delete, name: "mine", resource: pods}, ""},
		{"delete another's pod", request{op: admission.Delete, name: "theirs", resource: pods}, "spec.nodeName set to itself"},
		{"evict its pod", request{name: "mine", resource: pods, subresource: "eviction", obj: pod()}, ""},
		{"evict another's pod", request{name: "theirs", resource: pods, subresource: "eviction", obj: pod()}, "spec.nodeName set to itself"},
		{"bind a pod", request{name: "mine", resource: pods, subresource: "binding", obj: pod()}, "unexpected pod subresource"},

		{"token of its pod", tokenRequest(nil, ref("mine")), ""},
		{"token for an audience that the pod asks for", tokenRequest([]string{"vault"}, ref("mine")), ""},
		{"token for another audience", tokenRequest([]string{"bank"}, ref("mine")), `audience "bank" not found`},
		{"token for two audiences", tokenRequest([]string{"vault", ""}, ref("mine")), "0 or 1 audiences"},
		{"token of another's pod", tokenRequest(nil, ref("theirs")), "scheduled on a different node"},
		{"token of no pod", tokenRequest(nil, nil), "not bound to a pod"},
		{"token of a secret", tokenRequest(nil, &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Secret", Name: "s", UID: "u"}), "not bound to a pod"},
		{"token without UID", tokenRequest(nil, &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: "mine"}), "without a uid"},
		{"token of a pod of old", tokenRequest(nil, &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: "mine", UID: "old"}), "does not match the UID in record"},
		{"other resources are the authorizer's", request{name: "c", obj: lease("ns", "c"), resource: schema.GroupVersionResource{Version: "v1", Resource: "events"}}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := started(t, "NodeRestriction", nodeObj("n1", nil), boundTo("mine", "n1"), boundTo("theirs", "n2"))
			tc.req.user = &user.DefaultInfo{Name: "system:node:n1", Groups: []string{user.NodesGroup}}
			err := run(t, p, tc.req)
			if tc.refused == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), tc.refused) {
				t.Errorf("got %v, want forbidden: %s", err, tc.refused)
			}
			// The same from anybody else isn't this plugin's business.
			tc.req.user = &user.DefaultInfo{Name: "system:node:n1"}
			if err := run(t, p, tc.req); err != nil {
				t.Errorf("of a user who is no node: %v", err)
			}
		})
	}
	p := started(t, "NodeRestriction")
	kubelet := &user.DefaultInfo{Name: "system:node:n1", Groups: []string{user.NodesGroup}}
	if err := run(t, p, request{op: admission.Delete, name: "gone", resource: pods, user: kubelet}); !apierrors.IsNotFound(err) {
		t.Errorf("delete of a pod that is gone: %v, want not found", err)
	}
	if err := run(t, p, request{obj: nodeObj("n1", nil), user: &user.DefaultInfo{Name: "eve", Groups: []string{user.NodesGroup}}}); !apierrors.IsForbidden(err) {
		t.Errorf("a member of system:nodes that is no node: %v", err)
	}
}

// A kubelet may have heard of a binding before the plugin's cache has.
func TestNodeRestrictionLooksAgain(t *testing.T) {
	p := started(t, "NodeRestriction", boundTo("late", ""), boundTo("theirs", "n2"))
	p.(*nodeRestriction).client = fake.NewClientset(boundTo("late", "n1"), boundTo("new", "n1"), boundTo("theirs", "n2"))
	kubelet := &user.DefaultInfo{Name: "system:node:n1", Groups: []string{user.NodesGroup}}
	for name, want := range map[string]bool{"late": true, "new": true, "theirs": false} {
		token := tokenRequest(nil, &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: name, UID: "uid-1"})
		for _, r := range []request{token, {name: name, resource: pods, subresource: "eviction", obj: pod()}} {
			r.user = kubelet
			if err := run(t, p, r); (err == nil) != want {
				t.Errorf("%s of pod %s: %v", r.resource.Resource, name, err)
			}
		}
	}
}
