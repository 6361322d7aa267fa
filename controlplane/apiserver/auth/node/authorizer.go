// Package node holds a kubelet to what its node needs: its own Node and Lease,
// and of Secrets, ConfigMaps and claims only those that pods bound to it name
// (the Node authorizer).
package node

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/client-go/tools/cache"
)

const indexName = "strake-node-references"

// Authorizer decides requests of the group system:nodes. It has no opinion about others.
type Authorizer struct {
	pods cache.Indexer
	// Rules decides what every node may do, whatever its pods are.
	Rules authorizer.Authorizer
}

var _ authorizer.Authorizer = (*Authorizer)(nil)

// New adds an index to a pod informer that has not started yet: from node and referenced object to pods.
func New(pods cache.SharedIndexInformer, rules authorizer.Authorizer) (*Authorizer, error) {
	err := pods.AddIndexers(cache.Indexers{indexName: func(obj any) ([]string, error) {
		pod, ok := obj.(*corev1.Pod)
		if !ok || pod.Spec.NodeName == "" {
			return nil, nil
		}
		return references(pod), nil
	}})
	if err != nil {
		return nil, fmt.Errorf("node authorizer: %w", err)
	}
	return &Authorizer{pods: pods.GetIndexer(), Rules: rules}, nil
}

func key(node, resource, namespace, name string) string {
	return strings.Join([]string{node, resource, namespace, name}, "/")
}

// references lists what a pod's kubelet must read to run it.
func references(p *corev1.Pod) []string {
	var keys []string
	add := func(resource, name string) {
		if name != "" {
			keys = append(keys, key(p.Spec.NodeName, resource, p.Namespace, name))
		}
	}
	add("serviceaccounts", p.Spec.ServiceAccountName)
	for _, s := range p.Spec.ImagePullSecrets {
		add("secrets", s.Name)
	}
	for _, v := range p.Spec.Volumes {
		switch {
		case v.Secret != nil:
			add("secrets", v.Secret.SecretName)
		case v.ConfigMap != nil:
			add("configmaps", v.ConfigMap.Name)
		case v.PersistentVolumeClaim != nil:
			add("persistentvolumeclaims", v.PersistentVolumeClaim.ClaimName)
		case v.Projected != nil:
			for _, src := range v.Projected.Sources {
				if src.Secret != nil {
					add("secrets", src.Secret.Name)
				}
				if src.ConfigMap != nil {
					add("configmaps", src.ConfigMap.Name)
				}
			}
		}
	}
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for _, c := range list {
			for _, e := range c.EnvFrom {
				if e.SecretRef != nil {
					add("secrets", e.SecretRef.Name)
				}
				if e.ConfigMapRef != nil {
					add("configmaps", e.ConfigMapRef.Name)
				}
			}
			for _, e := range c.Env {
				if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil {
					add("secrets", e.ValueFrom.SecretKeyRef.Name)
				}
				if e.ValueFrom != nil && e.ValueFrom.ConfigMapKeyRef != nil {
					add("configmaps", e.ValueFrom.ConfigMapKeyRef.Name)
				}
			}
		}
	}
	return keys
}

// Name returns the node that a user is the kubelet of.
func Name(u user.Info) (string, bool) {
	if u == nil || !slices.Contains(u.GetGroups(), user.NodesGroup) {
		return "", false
	}
	return strings.CutPrefix(u.GetName(), "system:node:")
}

// Authorize implements authorizer.Authorizer.
func (a *Authorizer) Authorize(ctx context.Context, attr authorizer.Attributes) (authorizer.Decision, string, error) {
	node, ok := Name(attr.GetUser())
	if !ok {
		return authorizer.DecisionNoOpinion, "", nil
	}
	if attr.IsResourceRequest() {
		switch attr.GetAPIGroup() + "/" + attr.GetResource() {
		case "/secrets", "/configmaps", "/persistentvolumeclaims":
			if !slices.Contains([]string{"get", "list", "watch"}, attr.GetVerb()) || attr.GetSubresource() != "" {
				return authorizer.DecisionNoOpinion, "a node can only read " + attr.GetResource(), nil
			}
			return a.referenced(node, attr)
		case "/serviceaccounts":
			if attr.GetVerb() != "create" || attr.GetSubresource() != "token" {
				return authorizer.DecisionNoOpinion, "a node can only create tokens of ServiceAccounts", nil
			}
			return a.referenced(node, attr)
		case "/nodes":
			if attr.GetName() != "" && attr.GetName() != node {
				return authorizer.DecisionNoOpinion, fmt.Sprintf("node %q can only access its own Node", node), nil
			}
		case "coordination.k8s.io/leases":
			if attr.GetNamespace() != corev1.NamespaceNodeLease || attr.GetName() != "" && attr.GetName() != node {
				return authorizer.DecisionNoOpinion, fmt.Sprintf("node %q can only access its own Lease", node), nil
			}
		}
	}
	return a.Rules.Authorize(ctx, attr)
}

func (a *Authorizer) referenced(node string, attr authorizer.Attributes) (authorizer.Decision, string, error) {
	if attr.GetName() == "" {
		return authorizer.DecisionNoOpinion, "a node must name the object", nil
	}
	pods, err := a.pods.ByIndex(indexName, key(node, attr.GetResource(), attr.GetNamespace(), attr.GetName()))
	if err != nil {
		return authorizer.DecisionNoOpinion, "", err
	}
	if len(pods) == 0 {
		return authorizer.DecisionNoOpinion, fmt.Sprintf("no pod bound to node %q uses %s %s/%s", node, attr.GetResource(), attr.GetNamespace(), attr.GetName()), nil
	}
	return authorizer.DecisionAllow, "", nil
}

// ConditionsAwareAuthorize implements authorizer.Authorizer; there are no conditions here.
func (a *Authorizer) ConditionsAwareAuthorize(ctx context.Context, attr authorizer.Attributes) authorizer.ConditionsAwareDecision {
	return authorizer.ConditionsAwareDecisionFromParts(a.Authorize(ctx, attr))
}

// EvaluateConditions implements authorizer.Authorizer; there are no conditions here.
func (a *Authorizer) EvaluateConditions(context.Context, authorizer.ConditionsAwareDecision, authorizer.ConditionsData) (authorizer.Decision, string, error) {
	return authorizer.DecisionDeny, "", authorizer.ErrorConditionEvaluationNotSupported
}
