package analysis

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/strake-io/strake/netpol"
)

// hashes are those of the policies of a State: sha256 of what they say, as JSON with sorted keys: kind, name, labels, annotations and spec, nothing that the
// API adds.
func hashes(s netpol.State) map[netpol.PolicyRef]string {
	out := map[netpol.PolicyRef]string{}
	for _, n := range s.NetworkPolicies {
		out[netpol.PolicyRef{Kind: "NetworkPolicy", Namespace: n.Namespace, Name: n.Name}] = hash("networking.k8s.io/v1", "NetworkPolicy", n, n.Spec)
	}
	for _, c := range s.ClusterNetworkPolicies {
		out[netpol.PolicyRef{Kind: "ClusterNetworkPolicy", Name: c.Name}] = hash("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy", c, c.Spec)
	}
	return out
}

// lastApplied is what kubectl keeps of what it applied: the policy again, not a part of it.
const lastApplied = "kubectl.kubernetes.io/last-applied-configuration"

func hash(version, kind string, meta metav1.Object, spec any) string {
	m := map[string]any{"name": meta.GetName()}
	if ns := meta.GetNamespace(); ns != "" {
		m["namespace"] = ns
	}
	if l := meta.GetLabels(); len(l) > 0 {
		m["labels"] = l
	}
	notes := map[string]string{}
	for k, v := range meta.GetAnnotations() {
		if k != lastApplied {
			notes[k] = v
		}
	}
	if len(notes) > 0 {
		m["annotations"] = notes
	}
	text, err := json.Marshal(map[string]any{"apiVersion": version, "kind": kind, "metadata": m, "spec": spec})
	if err != nil { // of types that come from JSON there is none
		return "sha256:" + err.Error()
	}
	var sorted any // the spec's fields are in the order of their struct; a map's are sorted
	if err := json.Unmarshal(text, &sorted); err == nil {
		text, _ = json.Marshal(sorted) // of what Unmarshal gave
	}
	sum := sha256.Sum256(text)
	return "sha256:" + hex.EncodeToString(sum[:])
}
