package admission

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	kubeletapis "k8s.io/kubelet/pkg/apis"

	"github.com/strake-io/strake/controlplane/apiserver/auth/node"
	"github.com/strake-io/strake/controlplane/apiserver/resources"
)

// nodeRestriction holds a kubelet's writes to its own node and the pods bound to it; what it may name is
// the Node authorizer's business, what it may write is decided here, where the object is seen.
type nodeRestriction struct {
	*admission.Handler
	client kubernetes.Interface
	pods   corelisters.PodLister
	nodes  corelisters.NodeLister
}

func newNodeRestriction() (admission.Interface, error) {
	return &nodeRestriction{Handler: admission.NewHandler(admission.Create, admission.Update, admission.Delete)}, nil
}

func (n *nodeRestriction) SetExternalKubeClientSet(c kubernetes.Interface) { n.client = c }

func (n *nodeRestriction) SetExternalKubeInformerFactory(f informers.SharedInformerFactory) {
	pods, nodes := f.Core().V1().Pods(), f.Core().V1().Nodes()
	n.pods, n.nodes = pods.Lister(), nodes.Lister()
	podsSynced, nodesSynced := pods.Informer().HasSynced, nodes.Informer().HasSynced
	n.SetReadyFunc(func() bool { return podsSynced() && nodesSynced() })
}

func (n *nodeRestriction) ValidateInitialization() error {
	if n.pods == nil || n.nodes == nil || n.client == nil {
		return errors.New("NodeRestriction admission: no informers or no client")
	}
	return nil
}

// Admit sees a TokenRequest as the kubelet sent it: later, audiences that it left out have the API server's in their place.
func (n *nodeRestriction) Admit(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if a.GetResource().GroupResource() != corev1.Resource("serviceaccounts") || a.GetSubresource() != "token" {
		return nil
	}
	return n.decide(ctx, a, n.token)
}

func (n *nodeRestriction) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	switch a.GetResource().GroupResource() {
	case corev1.Resource("nodes"):
		return n.decide(ctx, a, n.node)
	case corev1.Resource("pods"):
		return n.decide(ctx, a, n.pod)
	case coordinationv1.Resource("leases"):
		return n.decide(ctx, a, n.lease)
	case signingRequests:
		return n.decide(ctx, a, n.signingRequest)
	}
	return nil
}

// decide asks check about requests of kubelets, and has nothing against others.
func (n *nodeRestriction) decide(ctx context.Context, a admission.Attributes, check func(ctx context.Context, a admission.Attributes, node string) error) error {
	name, ok := node.Name(a.GetUserInfo())
	if !ok {
		return nil
	}
	if name == "" {
		return admission.NewForbidden(a, fmt.Errorf("could not determine node from user %q", a.GetUserInfo().GetName()))
	}
	if err := ready(n.Handler, a); err != nil {
		return err
	}
	err := check(ctx, a, name)
	if err == nil || apierrors.IsNotFound(err) {
		return err // a kubelet must learn that a pod is gone
	}
	return admission.NewForbidden(a, err)
}

// node lets a kubelet describe its node, but not change what attracts or repels other people's pods.
func (n *nodeRestriction) node(_ context.Context, a admission.Attributes, name string) error {
	obj, _ := a.GetObject().(*corev1.Node)
	if a.GetName() != "" && a.GetName() != name || obj != nil && obj.Name != name {
		return fmt.Errorf("node %q is not allowed to modify node %q", name, a.GetName())
	}
	if obj == nil {
		return nil
	}
	old, update := a.GetOldObject().(*corev1.Node)
	if a.GetOperation() != admission.Update || !update {
		old = &corev1.Node{Spec: corev1.NodeSpec{Taints: obj.Spec.Taints}} // a new node brings its taints
	}
	if !apiequality.Semantic.DeepEqual(obj.Spec.Taints, old.Spec.Taints) {
		return fmt.Errorf("node %q is not allowed to modify taints", name)
	}
	if !apiequality.Semantic.DeepEqual(obj.OwnerReferences, old.OwnerReferences) {
		return fmt.Errorf("node %q is not allowed to modify ownerReferences", name)
	}
	var bad []string
	for _, key := range changed(obj.Labels, old.Labels) {
		if !mayLabel(key) {
			bad = append(bad, key)
		}
	}
	if len(bad) > 0 {
		return fmt.Errorf("is not allowed to modify labels: %s", strings.Join(bad, ", "))
	}
	return nil
}

// changed returns the keys that two maps do not agree about, sorted.
func changed(a, b map[string]string) []string {
	keys := map[string]bool{}
	for _, m := range []map[string]string{a, b} {
		for k := range m {
			va, inA := a[k]
			vb, inB := b[k]
			if inA != inB || va != vb {
				keys[k] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(keys))
}

// mayLabel tells whether a kubelet may set a label on its node: of Kubernetes' own prefixes only those for kubelets
// (https://kubernetes.io/docs/reference/access-authn-authz/admission-controllers/#noderestriction).
func mayLabel(key string) bool {
	prefix, _, ok := strings.Cut(key, "/")
	if !ok {
		return true
	}
	below := func(domain string) bool { return prefix == domain || strings.HasSuffix(prefix, "."+domain) }
	switch {
	case below(corev1.LabelNamespaceNodeRestriction):
		return false
	case below("kubernetes.io"), below("k8s.io"):
		return kubeletapis.IsKubeletLabel(key)
	}
	return true
}

func (n *nodeRestriction) lease(_ context.Context, a admission.Attributes, name string) error {
	if a.GetNamespace() != corev1.NamespaceNodeLease {
		return fmt.Errorf("can only access leases in the %q system namespace", corev1.NamespaceNodeLease)
	}
	if obj, ok := a.GetObject().(*coordinationv1.Lease); ok && obj.Name != name || a.GetName() != "" && a.GetName() != name {
		return errors.New("can only access node lease with the same name as the requesting node")
	}
	return nil
}

// signingRequest lets a kubelet ask for certificates of its own name only, of the signers that make a node of one.
func (n *nodeRestriction) signingRequest(_ context.Context, a admission.Attributes, name string) error {
	c, ok := a.GetObject().(*certificatesv1.CertificateSigningRequest)
	if a.GetOperation() != admission.Create || a.GetSubresource() != "" || !ok {
		return nil // the Node authorizer's
	}
	if c.Spec.SignerName != certificatesv1.KubeletServingSignerName && c.Spec.SignerName != certificatesv1.KubeAPIServerClientKubeletSignerName {
		return nil
	}
	r, err := resources.ParseRequest(c.Spec.Request)
	if err != nil {
		return err
	}
	if own := a.GetUserInfo().GetName(); r.Subject.CommonName != own {
		return fmt.Errorf("can only create a node CSR with CN=%s", own)
	}
	return nil
}

func (n *nodeRestriction) pod(ctx context.Context, a admission.Attributes, name string) error {
	switch a.GetSubresource() {
	case "":
		switch a.GetOperation() {
		case admission.Create:
			return n.mirrorPod(a, name)
		case admission.Delete:
			return n.bound(ctx, a, a.GetName(), name)
		}
		return fmt.Errorf("unexpected operation %q, node %q can only create and delete mirror pods", a.GetOperation(), name)
	case "status":
		if err := n.bound(ctx, a, a.GetName(), name); err != nil {
			return err
		}
		obj, ok := a.GetObject().(*corev1.Pod)
		if old, was := a.GetOldObject().(*corev1.Pod); ok && was && len(changed(obj.Labels, old.Labels)) > 0 {
			return fmt.Errorf("node %q cannot update labels through pod status", name)
		}
		return nil
	case "eviction":
		pod := a.GetName()
		if e, ok := a.GetObject().(*policyv1.Eviction); ok && e.Name != "" && pod == "" {
			pod = e.Name
		}
		return n.bound(ctx, a, pod, name)
	}
	return fmt.Errorf("unexpected pod subresource %q, only \"status\" and \"eviction\" are allowed", a.GetSubresource())
}

// mirrorPod lets a kubelet show a pod that it runs from a file. Such a pod may name nothing that would open to
// the kubelet what pods of its own choice refer to.
func (n *nodeRestriction) mirrorPod(a admission.Attributes, name string) error {
	pod, ok := a.GetObject().(*corev1.Pod)
	if !ok {
		return fmt.Errorf("unexpected type %T", a.GetObject())
	}
	if pod.Annotations[corev1.MirrorPodAnnotationKey] == "" {
		return fmt.Errorf("pod does not have %q annotation, node %q can only create mirror pods", corev1.MirrorPodAnnotationKey, name)
	}
	if pod.Spec.NodeName != name {
		return fmt.Errorf("node %q can only create pods with spec.nodeName set to itself", name)
	}
	var refused error
	node.References(pod, func(resource, _ string) {
		refused = fmt.Errorf("node %q can not create pods that reference %s", name, resource)
	})
	if refused != nil {
		return refused
	}
	for _, v := range pod.Spec.Volumes {
		if v.Projected != nil && slices.ContainsFunc(v.Projected.Sources, func(s corev1.VolumeProjection) bool { return s.ServiceAccountToken != nil }) {
			return fmt.Errorf("node %q can not create pods that reference serviceaccounts", name)
		}
	}
	if len(pod.OwnerReferences) > 1 {
		return fmt.Errorf("node %q can only create pods with a single owner reference set to itself", name)
	}
	for _, o := range pod.OwnerReferences {
		if o.APIVersion != "v1" || o.Kind != "Node" || o.Name != name || o.Controller == nil || !*o.Controller || o.BlockOwnerDeletion != nil && *o.BlockOwnerDeletion {
			return fmt.Errorf("node %q can only create pods with an owner reference set to itself, as controller and without blockOwnerDeletion", name)
		}
		self, err := n.nodes.Get(name)
		if err != nil {
			return err
		}
		if self.UID != o.UID {
			return fmt.Errorf("node %q UID mismatch: expected %s got %s", name, self.UID, o.UID)
		}
	}
	return nil
}

// bound tells whether a pod belongs to a node, as far as is known: a request names a pod that is there, or
// the store will say that it isn't.
func (n *nodeRestriction) bound(ctx context.Context, a admission.Attributes, pod, name string) error {
	old, ok := a.GetOldObject().(*corev1.Pod)
	if !ok {
		var err error
		if old, err = n.find(ctx, a.GetNamespace(), pod, name); err != nil {
			return err
		}
	}
	if old.Spec.NodeName != name {
		return fmt.Errorf("node %q can only touch pods with spec.nodeName set to itself", name)
	}
	return nil
}

// find looks a pod up. What the cache says of a pod that is not the node's may be old news: the node's kubelet can
// have learnt of a binding before.
func (n *nodeRestriction) find(ctx context.Context, namespace, pod, node string) (*corev1.Pod, error) {
	p, err := n.pods.Pods(namespace).Get(pod)
	if err == nil && p.Spec.NodeName == node {
		return p, nil
	}
	return n.client.CoreV1().Pods(namespace).Get(ctx, pod, metav1.GetOptions{ResourceVersion: "0"})
}

// token lets a kubelet get tokens that die with one of its pods, for the audiences that this pod asks for.
func (n *nodeRestriction) token(ctx context.Context, a admission.Attributes, name string) error {
	r, ok := a.GetObject().(*authenticationv1.TokenRequest)
	if !ok {
		return fmt.Errorf("unexpected type %T", a.GetObject())
	}
	ref := r.Spec.BoundObjectRef
	if ref == nil || ref.APIVersion != "v1" || ref.Kind != "Pod" || ref.Name == "" {
		return errors.New("node requested token not bound to a pod")
	}
	if ref.UID == "" {
		return errors.New("node requested token with a pod binding without a uid")
	}
	pod, err := n.find(ctx, a.GetNamespace(), ref.Name, name)
	if err != nil {
		return err
	}
	if ref.UID != pod.UID {
		return fmt.Errorf("the UID in the bound object reference (%s) does not match the UID in record (%s). The object might have been deleted and then recreated", ref.UID, pod.UID)
	}
	if pod.Spec.NodeName != name {
		return errors.New("node requested token bound to a pod scheduled on a different node")
	}
	return audience(r.Spec.Audiences, pod)
}

// audience holds tokens to the audiences of the pod's projected volumes (KEP-4412); "" is the API server's.
func audience(asked []string, pod *corev1.Pod) error {
	want := ""
	switch {
	case len(asked) > 1:
		return errors.New("node may only request 0 or 1 audiences")
	case len(asked) == 1:
		want = asked[0]
	}
	if want == "" {
		return nil
	}
	for _, v := range pod.Spec.Volumes {
		if v.Projected == nil {
			continue
		}
		for _, s := range v.Projected.Sources {
			if s.ServiceAccountToken != nil && s.ServiceAccountToken.Audience == want {
				return nil
			}
		}
	}
	return fmt.Errorf("audience %q not found in pod spec volume", want)
}
