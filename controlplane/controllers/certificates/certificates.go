package certificates

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	certificateslisters "k8s.io/client-go/listers/certificates/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/cert"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/controlplane/controllers/queue"
)

// How long requests are kept after they were decided, and without a decision (the reference's).
const (
	keepDecided = time.Hour
	keepPending = 24 * time.Hour
)

type controller struct {
	client   kubernetes.Interface
	requests certificateslisters.CertificateSigningRequestLister
	nodes    corelisters.NodeLister
	ca       *authority
	queue    *queue.Queue
	now      func() time.Time
}

// Setup registers the controller with the informers and returns what runs it. certFile and keyFile are the cluster's CA.
func Setup(client kubernetes.Interface, f informers.SharedInformerFactory, certFile, keyFile string) (func(context.Context), error) {
	ca, err := loadAuthority(certFile, keyFile)
	if err != nil {
		return nil, err
	}
	requests, nodes := f.Certificates().V1().CertificateSigningRequests(), f.Core().V1().Nodes()
	c := &controller{client: client, requests: requests.Lister(), nodes: nodes.Lister(), ca: ca, queue: queue.New("certificates"), now: time.Now}
	if _, err := requests.Informer().AddEventHandler(c.queue.Handlers()); err != nil {
		return nil, fmt.Errorf("certificates controller: %w", err)
	}
	// A node that comes, or gets an address, may now have the certificate that it asked for before.
	_, err = nodes.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) { c.wake(obj.(*corev1.Node)) },
		UpdateFunc: func(old, obj any) {
			if was, n := old.(*corev1.Node), obj.(*corev1.Node); !slices.Equal(was.Status.Addresses, n.Status.Addresses) {
				c.wake(n)
			}
		},
	})
	if err != nil {
		return nil, fmt.Errorf("certificates controller: %w", err)
	}
	return func(ctx context.Context) {
		c.queue.Run(ctx, 2, c.reconcile, requests.Informer().HasSynced, nodes.Informer().HasSynced)
	}, nil
}

// wake looks again at what a node waits for.
func (c *controller) wake(n *corev1.Node) {
	all, err := c.requests.List(labels.Everything())
	if err != nil {
		return // a lister of a cache never fails
	}
	for _, r := range all {
		if r.Spec.Username == nodePrefix+n.Name && len(r.Status.Conditions) == 0 {
			c.queue.Add(r.Name)
		}
	}
}

func (c *controller) reconcile(ctx context.Context, _, name string) error {
	r, err := c.requests.Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	left, gone := c.left(r)
	if left <= 0 {
		klog.V(2).InfoS("Removing a signing request", "request", name, "why", gone)
		err := c.client.CertificatesV1().CertificateSigningRequests().Delete(ctx, name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(r.UID))})
		if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			return nil
		}
		return err
	}
	c.queue.AddAfter(name, left)
	r = r.DeepCopy()
	if !decided(r) {
		if r, err = c.decide(ctx, r); err != nil {
			return ignoreGone(err)
		}
	}
	return ignoreGone(c.issue(ctx, r))
}

// ignoreGone leaves requests alone that somebody deleted or changed meanwhile: the change comes by itself.
func ignoreGone(err error) error {
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}

func condition(r *certificatesv1.CertificateSigningRequest, t certificatesv1.RequestConditionType) *certificatesv1.CertificateSigningRequestCondition {
	i := slices.IndexFunc(r.Status.Conditions, func(c certificatesv1.CertificateSigningRequestCondition) bool { return c.Type == t })
	if i < 0 {
		return nil
	}
	return &r.Status.Conditions[i]
}

func decided(r *certificatesv1.CertificateSigningRequest) bool {
	return condition(r, certificatesv1.CertificateApproved) != nil || condition(r, certificatesv1.CertificateDenied) != nil
}

// left is how long a request is kept from now on, and why it goes then.
func (c *controller) left(r *certificatesv1.CertificateSigningRequest) (time.Duration, string) {
	now := c.now()
	left, why := r.CreationTimestamp.Add(keepPending).Sub(now), "nobody decided about it"
	if decided(r) {
		left, why = keepDecided, "it was decided long ago"
	}
	for _, cond := range r.Status.Conditions {
		if d := cond.LastUpdateTime.Add(keepDecided).Sub(now); slices.Contains([]certificatesv1.RequestConditionType{certificatesv1.CertificateApproved, certificatesv1.CertificateDenied, certificatesv1.CertificateFailed}, cond.Type) && d < left {
			left, why = d, "it was decided long ago"
		}
	}
	if certs, err := cert.ParseCertsPEM(r.Status.Certificate); err == nil {
		if d := certs[0].NotAfter.Sub(now); d < left {
			left, why = d, "its certificate has expired"
		}
	}
	return left, why
}

// decide approves what a node may have, and denies what can be nothing but a mistake. The rest waits for people.
func (c *controller) decide(ctx context.Context, r *certificatesv1.CertificateSigningRequest) (*certificatesv1.CertificateSigningRequest, error) {
	p, node, x, err := recognize(r)
	if err != nil {
		return r, nil // no node's
	}
	verdict, message := certificatesv1.CertificateApproved, ""
	switch p {
	case kubeletClient:
		own := r.Spec.Username == x.Subject.CommonName
		ok, err := c.allowed(ctx, r, map[bool]string{true: "selfnodeclient", false: "nodeclient"}[own])
		if err != nil {
			return r, err
		}
		if !ok {
			return r, nil
		}
		message = "Auto approving kubelet client certificate after SubjectAccessReview."
		if n, err := c.nodes.Get(node); !own && err == nil && ready(n) {
			// Two machines of one name would take turns at being the node.
			verdict = certificatesv1.CertificateDenied
			message = fmt.Sprintf("node %s is in the cluster and Ready: join by another name, or delete the Node first", node)
		}
	case agentClient:
		if !isNode(r, node) {
			return r, nil
		}
		message = "Auto approving the client certificate of a node's network."
	case kubeletServer:
		if !isNode(r, node) {
			return r, nil
		}
		n, err := c.nodes.Get(node)
		if apierrors.IsNotFound(err) {
			return r, nil // wake comes back to it
		}
		if err != nil {
			return r, err
		}
		if foreign, ok := namesOnly(x, n); !ok {
			klog.V(2).InfoS("A serving certificate is asked for what its node is not called", "request", r.Name, "node", node, "name", foreign)
			return r, nil
		}
		message = "Auto approving the serving certificate of a kubelet for its own names and addresses."
	}
	reason := map[certificatesv1.RequestConditionType]string{certificatesv1.CertificateApproved: "AutoApproved", certificatesv1.CertificateDenied: "NodeExists"}[verdict]
	r.Status.Conditions = append(r.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{Type: verdict, Status: corev1.ConditionTrue, Reason: reason, Message: message})
	updated, err := c.client.CertificatesV1().CertificateSigningRequests().UpdateApproval(ctx, r.Name, r, metav1.UpdateOptions{})
	if err != nil {
		return r, fmt.Errorf("decision about signing request %s: %w", r.Name, err)
	}
	return updated, nil
}

func ready(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

// allowed asks whether the one who asks holds the right to have such a request approved.
func (c *controller) allowed(ctx context.Context, r *certificatesv1.CertificateSigningRequest, subresource string) (bool, error) {
	extra := map[string]authorizationv1.ExtraValue{}
	for k, v := range r.Spec.Extra {
		extra[k] = authorizationv1.ExtraValue(v)
	}
	review, err := c.client.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: r.Spec.Username, UID: r.Spec.UID, Groups: r.Spec.Groups, Extra: extra,
		ResourceAttributes: &authorizationv1.ResourceAttributes{Group: certificatesv1.GroupName, Resource: "certificatesigningrequests", Verb: "create", Subresource: subresource, Version: "*"},
	}}, metav1.CreateOptions{})
	if err != nil {
		return false, fmt.Errorf("rights of %s, who asks for a certificate: %w", r.Spec.Username, err)
	}
	return review.Status.Allowed, nil
}

// issue signs what is approved for a signer of ours, once.
func (c *controller) issue(ctx context.Context, r *certificatesv1.CertificateSigningRequest) error {
	_, ours := mayHave[r.Spec.SignerName]
	if !ours || condition(r, certificatesv1.CertificateApproved) == nil || condition(r, certificatesv1.CertificateFailed) != nil || len(r.Status.Certificate) > 0 {
		return nil
	}
	x, err := permitted(r)
	if err == nil {
		r.Status.Certificate, err = c.ca.sign(r, x, c.now())
	}
	if err != nil {
		r.Status.Conditions = append(r.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
			Type: certificatesv1.CertificateFailed, Status: corev1.ConditionTrue, Reason: "SignerValidationFailure",
			Message: strings.TrimSpace("not signed by " + r.Spec.SignerName + ": " + err.Error()),
		})
	}
	if _, err := c.client.CertificatesV1().CertificateSigningRequests().UpdateStatus(ctx, r, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("certificate of signing request %s: %w", r.Name, err)
	}
	return nil
}
