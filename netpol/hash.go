package netpol

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"
)

// Hash is the sha256 of what a policy judges by, "sha256:" before it: of apiVersion, kind, namespace, name, the annotation that has it in shadow, and spec, as
// JSON with sorted keys. Labels, other annotations, and what the API adds make no difference. What is no policy has none.
func Hash(policy metav1.Object) string {
	switch p := policy.(type) {
	case *networkingv1.NetworkPolicy:
		return hash("networking.k8s.io/v1", "NetworkPolicy", p, p.Spec)
	case *policyv1alpha2.ClusterNetworkPolicy:
		return hash("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy", p, p.Spec)
	}
	return ""
}

// Hashes are those of the policies of a State, by their kinds and names.
func Hashes(s State) map[PolicyRef]string {
	out := map[PolicyRef]string{}
	for _, n := range s.NetworkPolicies {
		out[PolicyRef{Kind: "NetworkPolicy", Namespace: n.Namespace, Name: n.Name}] = Hash(n)
	}
	for _, c := range s.ClusterNetworkPolicies {
		out[PolicyRef{Kind: "ClusterNetworkPolicy", Name: c.Name}] = Hash(c)
	}
	return out
}

func hash(version, kind string, meta metav1.Object, spec any) string {
	m := map[string]any{"name": meta.GetName()}
	if ns := meta.GetNamespace(); ns != "" {
		m["namespace"] = ns
	}
	if mode, ok := meta.GetAnnotations()[ModeAnnotation]; ok {
		m["annotations"] = map[string]string{ModeAnnotation: mode}
	}
	text, err := json.Marshal(map[string]any{"apiVersion": version, "kind": kind, "metadata": m, "spec": spec})
	if err != nil { // of types that come from JSON there is none
		return "sha256:" + err.Error()
	}
	var sorted any // the spec's fields are in the order of their struct; a map's are sorted
	if err := json.Unmarshal(text, &sorted); err == nil {
		text, _ = json.Marshal(sorted) // of what Unmarshal gave
	}
	return Digest(text)
}

// Digest is the sha256 of a text, "sha256:" before it.
func Digest(text []byte) string {
	sum := sha256.Sum256(text)
	return "sha256:" + hex.EncodeToString(sum[:])
}
