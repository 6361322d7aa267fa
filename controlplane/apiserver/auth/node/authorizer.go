package node

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/selection"
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
	// Bound lists a node's pods as its kubelet sees them. It is asked before a request is turned down: the index
	// may not have heard yet of a pod whose kubelet has.
	Bound func(ctx context.Context, node string) ([]corev1.Pod, error)
	// Volume reads a PersistentVolume: a node may know those that its pods' claims are bound to.
	Volume func(ctx context.Context, name string) (*corev1.PersistentVolume, error)
}

var _ authorizer.Authorizer = (*Authorizer)(nil)

// New adds an index to a pod informer that has not started yet: from node and referenced object to pods.
func New(pods cache.SharedIndexInformer, rules authorizer.Authorizer, bound func(ctx context.Context, node string) ([]corev1.Pod, error),
	volume func(ctx context.Context, name string) (*corev1.PersistentVolume, error)) (*Authorizer, error) {
	if err := pods.AddIndexers(cache.Indexers{indexName: index}); err != nil {
		return nil, fmt.Errorf("node authorizer: %w", err)
	}
	return &Authorizer{pods: pods.GetIndexer(), Rules: rules, Bound: bound, Volume: volume}, nil
}

func index(obj any) ([]string, error) {
	pod, ok := obj.(*corev1.Pod)
	if !ok || pod.Spec.NodeName == "" {
		return nil, nil
	}
	keys := []string{key(pod.Spec.NodeName, "pods", pod.Namespace, pod.Name)}
	References(pod, func(resource, name string) {
		keys = append(keys, key(pod.Spec.NodeName, resource, pod.Namespace, name))
	})
	slices.Sort(keys)
	return slices.Compact(keys), nil
}

// Name returns the node that a user is the kubelet of; "" with true is a member of system:nodes that is no node.
func Name(u user.Info) (string, bool) {
	if u == nil || !slices.Contains(u.GetGroups(), user.NodesGroup) {
		return "", false
	}
	name, _ := strings.CutPrefix(u.GetName(), "system:node:")
	if name == u.GetName() {
		return "", true
	}
	return name, true
}

// Authorize implements authorizer.Authorizer.
func (a *Authorizer) Authorize(ctx context.Context, attr authorizer.Attributes) (authorizer.Decision, string, error) {
	node, ok := Name(attr.GetUser())
	if !ok {
		return authorizer.DecisionNoOpinion, "", nil
	}
	if node == "" {
		return authorizer.DecisionNoOpinion, fmt.Sprintf("user %q of group %s is no node", attr.GetUser().GetName(), user.NodesGroup), nil
	}
	if !attr.IsResourceRequest() {
		return a.Rules.Authorize(ctx, attr)
	}
	reads := slices.Contains([]string{"get", "list", "watch"}, attr.GetVerb())
	switch attr.GetAPIGroup() + "/" + attr.GetResource() {
	case "/secrets", "/configmaps", "/persistentvolumeclaims":
		if !reads || attr.GetSubresource() != "" {
			return authorizer.DecisionNoOpinion, "a node can only read " + attr.GetResource(), nil
		}
		return a.referenced(ctx, node, attr.GetResource(), attr.GetNamespace(), attr.GetName())
	case "/persistentvolumes":
		if attr.GetVerb() != "get" || attr.GetSubresource() != "" || attr.GetName() == "" {
			return authorizer.DecisionNoOpinion, "a node can only get single PersistentVolumes", nil
		}
		v, err := a.Volume(ctx, attr.GetName())
		if apierrors.IsNotFound(err) || err == nil && v.Spec.ClaimRef == nil {
			return authorizer.DecisionNoOpinion, fmt.Sprintf("no pod bound to node %q uses PersistentVolume %s", node, attr.GetName()), nil
		}
		if err != nil {
			return authorizer.DecisionNoOpinion, "", fmt.Errorf("PersistentVolume %s: %w", attr.GetName(), err)
		}
		return a.referenced(ctx, node, "persistentvolumeclaims", v.Spec.ClaimRef.Namespace, v.Spec.ClaimRef.Name)
	case "/serviceaccounts":
		if attr.GetVerb() != "create" || attr.GetSubresource() != "token" {
			return authorizer.DecisionNoOpinion, "a node can only create tokens of ServiceAccounts", nil
		}
		return a.referenced(ctx, node, attr.GetResource(), attr.GetNamespace(), attr.GetName())
	case "/pods":
		if reads && attr.GetSubresource() == "" {
			return a.readPods(ctx, node, attr)
		}
	case "/nodes":
		// A list by field selector metadata.name carries that name.
		if attr.GetName() != node && (attr.GetName() != "" || attr.GetVerb() != "create") {
			return authorizer.DecisionNoOpinion, fmt.Sprintf("node %q can only access its own Node (list with field selector metadata.name)", node), nil
		}
	case "coordination.k8s.io/leases":
		if attr.GetNamespace() != corev1.NamespaceNodeLease || attr.GetName() != node && (attr.GetName() != "" || attr.GetVerb() != "create") {
			return authorizer.DecisionNoOpinion, fmt.Sprintf("node %q can only access its own Lease", node), nil
		}
	}
	return a.Rules.Authorize(ctx, attr)
}

// readPods allows a node its own pods only (KEP-4601).
func (a *Authorizer) readPods(ctx context.Context, node string, attr authorizer.Attributes) (authorizer.Decision, string, error) {
	reqs, _ := attr.GetFieldSelector() // what can't be parsed doesn't narrow the request
	if slices.Contains(reqs, fields.Requirement{Operator: selection.Equals, Field: "spec.nodeName", Value: node}) ||
		slices.Contains(reqs, fields.Requirement{Operator: selection.DoubleEquals, Field: "spec.nodeName", Value: node}) {
		return authorizer.DecisionAllow, "", nil
	}
	if attr.GetVerb() != "get" {
		return authorizer.DecisionNoOpinion, fmt.Sprintf("node %q can only list pods with field selector spec.nodeName", node), nil
	}
	obj, exists, err := a.pods.GetByKey(attr.GetNamespace() + "/" + attr.GetName())
	if err != nil {
		return authorizer.DecisionNoOpinion, "", err
	}
	// A kubelet asks for pods that are gone to learn just that: 404 tells it, 403 would not.
	if pod, ok := obj.(*corev1.Pod); !exists || !ok || pod.Spec.NodeName == node {
		return authorizer.DecisionAllow, "", nil
	}
	return a.lately(ctx, node, key(node, "pods", attr.GetNamespace(), attr.GetName()), fmt.Sprintf("pod %s/%s is not bound to node %q", attr.GetNamespace(), attr.GetName(), node))
}

func (a *Authorizer) referenced(ctx context.Context, node, resource, namespace, name string) (authorizer.Decision, string, error) {
	if name == "" || namespace == "" {
		return authorizer.DecisionNoOpinion, "a node must name the object", nil
	}
	wanted := key(node, resource, namespace, name)
	pods, err := a.pods.IndexKeys(indexName, wanted)
	if err != nil {
		return authorizer.DecisionNoOpinion, "", err
	}
	if len(pods) > 0 {
		return authorizer.DecisionAllow, "", nil
	}
	return a.lately(ctx, node, wanted, fmt.Sprintf("no pod bound to node %q uses %s %s/%s", node, resource, namespace, name))
}

// lately allows what a pod that the index does not know yet opens.
func (a *Authorizer) lately(ctx context.Context, node, wanted, refusal string) (authorizer.Decision, string, error) {
	pods, err := a.Bound(ctx, node)
	if err != nil {
		return authorizer.DecisionNoOpinion, refusal, fmt.Errorf("pods of node %s: %w", node, err)
	}
	for i := range pods {
		keys, err := index(&pods[i])
		if err == nil && slices.Contains(keys, wanted) {
			return authorizer.DecisionAllow, "", nil
		}
	}
	return authorizer.DecisionNoOpinion, refusal, nil
}

// ConditionsAwareAuthorize implements authorizer.Authorizer; there are no conditions here.
func (a *Authorizer) ConditionsAwareAuthorize(ctx context.Context, attr authorizer.Attributes) authorizer.ConditionsAwareDecision {
	return authorizer.ConditionsAwareDecisionFromParts(a.Authorize(ctx, attr))
}

// EvaluateConditions implements authorizer.Authorizer; there are no conditions here.
func (a *Authorizer) EvaluateConditions(context.Context, authorizer.ConditionsAwareDecision, authorizer.ConditionsData) (authorizer.Decision, string, error) {
	return authorizer.DecisionDeny, "", authorizer.ErrorConditionEvaluationNotSupported
}
