package ui

import (
	"fmt"

	yamlnodes "go.yaml.in/yaml/v3"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"
	"sigs.k8s.io/yaml"

	"github.com/strake-io/strake/netpol"
)

const (
	kindNetworkPolicy        = "NetworkPolicy"
	kindClusterNetworkPolicy = "ClusterNetworkPolicy"
)

// manifest is a policy without what only the API server writes.
type manifest struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        metadata `json:"metadata"`
	Spec            any      `json:"spec"`
}

type metadata struct {
	Name        string            `json:"name"`
	Namespace   string            `json:"namespace,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

func write(object runtime.Object) (string, error) {
	var m manifest
	meta := func(o *metav1.ObjectMeta) metadata {
		annotations := map[string]string{}
		for k, v := range o.Annotations {
			if k != "kubectl.kubernetes.io/last-applied-configuration" {
				annotations[k] = v
			}
		}
		return metadata{o.Name, o.Namespace, o.Labels, annotations}
	}
	switch p := object.(type) {
	case *networkingv1.NetworkPolicy:
		m = manifest{metav1.TypeMeta{APIVersion: networkingv1.SchemeGroupVersion.String(), Kind: kindNetworkPolicy}, meta(&p.ObjectMeta), p.Spec}
	case *policyv1alpha2.ClusterNetworkPolicy:
		m = manifest{metav1.TypeMeta{APIVersion: policyv1alpha2.SchemeGroupVersion.String(), Kind: kindClusterNetworkPolicy}, meta(&p.ObjectMeta), p.Spec}
	}
	text, err := yaml.Marshal(m)
	if err != nil {
		return "", fmt.Errorf("%s %s as YAML: %w", m.Kind, netpol.PolicyRef{Namespace: m.Metadata.Namespace, Name: m.Metadata.Name}, err)
	}
	return string(text), nil
}

// ruleLines are the first and the last line of a rule in a policy's text, from 0. With netpol.NoRule they are those of what selects
// pods. -1: it is not there.
func ruleLines(text, direction string, rule int) (first, last int) {
	var doc yamlnodes.Node
	if err := yamlnodes.Unmarshal([]byte(text), &doc); err != nil || len(doc.Content) == 0 {
		return -1, -1
	}
	spec := field(doc.Content[0], "spec")
	if rule == netpol.NoRule {
		for _, name := range []string{"podSelector", "subject"} {
			if key := key(spec, name); key != nil {
				return key.Line - 1, lastLine(key, field(spec, name))
			}
		}
		return -1, -1
	}
	rules := field(spec, direction)
	if rules == nil || rules.Kind != yamlnodes.SequenceNode || rule < 0 || rule >= len(rules.Content) {
		return -1, -1
	}
	n := rules.Content[rule]
	return n.Line - 1, lastLine(n)
}

func key(of *yamlnodes.Node, name string) *yamlnodes.Node {
	if of == nil || of.Kind != yamlnodes.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(of.Content); i += 2 {
		if of.Content[i].Value == name {
			return of.Content[i]
		}
	}
	return nil
}

func field(of *yamlnodes.Node, name string) *yamlnodes.Node {
	if of == nil || of.Kind != yamlnodes.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(of.Content); i += 2 {
		if of.Content[i].Value == name {
			return of.Content[i+1]
		}
	}
	return nil
}

// lastLine is the last line on which something of the nodes begins, from 0.
func lastLine(nodes ...*yamlnodes.Node) int {
	last := 0
	for _, n := range nodes {
		if n != nil {
			last = max(last, n.Line-1, lastLine(n.Content...))
		}
	}
	return last
}
