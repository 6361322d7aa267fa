// Package bootstraptoken looks after the tokens with which machines join the
// cluster: Secrets of type bootstrap.kubernetes.io/token in kube-system. It
// removes those that have expired, and publishes the ConfigMap
// kube-public/cluster-info: where the API server is and which CA it has,
// signed with each token that is made for that, so that who has a token can
// tell that the information is the cluster's own
// (https://kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens/).
package bootstraptoken

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/controlplane/controllers/queue"
)

const (
	secretPrefix  = "bootstrap-token-"
	infoName      = "cluster-info"
	infoKey       = "kubeconfig"
	signatureKey  = "jws-kubeconfig-"
	infoQueueName = metav1.NamespacePublic + "/" + infoName
)

type controller struct {
	signer  kubernetes.Interface
	cleaner kubernetes.Interface
	secrets corelisters.SecretNamespaceLister
	infos   corelisters.ConfigMapNamespaceLister
	info    string // the content of cluster-info
	queue   *queue.Queue
	now     func() time.Time
}

// Setup returns what runs the controller. It has informers of its own, which hold tokens and cluster-info only. server is the
// URL of the API server and ca the PEM of its CA. cluster-info is the signer's, and tokens that have expired are the cleaner's.
func Setup(signer, cleaner kubernetes.Interface, server string, ca []byte) (func(context.Context), error) {
	info, err := clientcmd.Write(clientcmdapi.Config{Clusters: map[string]*clientcmdapi.Cluster{"": {Server: server, CertificateAuthorityData: ca}}})
	if err != nil {
		return nil, fmt.Errorf("bootstrap tokens: %w", err)
	}
	only := func(namespace, label, value string) informers.SharedInformerFactory {
		return informers.NewSharedInformerFactoryWithOptions(signer, 0, informers.WithNamespace(namespace), informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector(label, value).String()
		}))
	}
	tokens, public := only(metav1.NamespaceSystem, "type", string(corev1.SecretTypeBootstrapToken)), only(metav1.NamespacePublic, "metadata.name", infoName)
	secrets, infos := tokens.Core().V1().Secrets(), public.Core().V1().ConfigMaps()
	c := &controller{
		signer: signer, cleaner: cleaner, secrets: secrets.Lister().Secrets(metav1.NamespaceSystem), infos: infos.Lister().ConfigMaps(metav1.NamespacePublic), info: string(info),
		queue: queue.New("bootstrap-token"), now: time.Now,
	}
	changed := func(obj any) { c.queue.AddObject(obj); c.queue.Add(infoQueueName) }
	handlers := cache.ResourceEventHandlerFuncs{AddFunc: changed, UpdateFunc: func(_, obj any) { changed(obj) }, DeleteFunc: changed}
	_, secretsErr := secrets.Informer().AddEventHandler(handlers)
	_, infosErr := infos.Informer().AddEventHandler(c.queue.Handlers())
	if err := errors.Join(secretsErr, infosErr); err != nil {
		return nil, fmt.Errorf("bootstrap tokens: %w", err)
	}
	return func(ctx context.Context) {
		tokens.Start(ctx.Done())
		public.Start(ctx.Done())
		c.queue.Add(infoQueueName)
		c.queue.Run(ctx, 1, c.reconcile, secrets.Informer().HasSynced, infos.Informer().HasSynced)
		tokens.Shutdown()
		public.Shutdown()
	}, nil
}

func (c *controller) reconcile(ctx context.Context, namespace, name string) error {
	if namespace == metav1.NamespacePublic {
		return c.publish(ctx)
	}
	return c.clean(ctx, name)
}

// clean removes a token that has expired, or comes back when it does.
func (c *controller) clean(ctx context.Context, name string) error {
	s, err := c.secrets.Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	left, ends := lifetime(s, c.now())
	switch {
	case !ends:
		return nil
	case left > 0:
		c.queue.AddAfter(metav1.NamespaceSystem+"/"+name, left)
		return nil
	}
	klog.V(2).InfoS("Removing an expired bootstrap token", "secret", name)
	// Not if it was prolonged meanwhile.
	err = c.cleaner.CoreV1().Secrets(metav1.NamespaceSystem).Delete(ctx, name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &s.UID, ResourceVersion: &s.ResourceVersion}})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}

// lifetime is how long a token is still good, if it has an end. A time that can't be read has passed: so does who
// authenticates see it.
func lifetime(s *corev1.Secret, now time.Time) (time.Duration, bool) {
	at := string(s.Data["expiration"])
	if at == "" {
		return 0, false
	}
	until, err := time.Parse(time.RFC3339, at)
	if err != nil {
		return 0, true
	}
	return until.Sub(now), true
}

// publish keeps cluster-info: its content, and a signature for each token. What others put in beside stays.
func (c *controller) publish(ctx context.Context) error {
	all, err := c.secrets.List(labels.Everything())
	if err != nil {
		return err
	}
	have, err := c.infos.Get(infoName)
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	want := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespacePublic, Name: infoName}}
	if have != nil {
		want = have.DeepCopy()
	}
	if want.Data == nil {
		want.Data = map[string]string{}
	}
	maps.DeleteFunc(want.Data, func(k, _ string) bool { return strings.HasPrefix(k, signatureKey) })
	want.Data[infoKey] = c.info
	for _, s := range all {
		if id, secret, ok := signs(s, c.now()); ok {
			want.Data[signatureKey+id] = Sign(c.info, id, secret)
		}
	}
	switch {
	case have == nil:
		_, err = c.signer.CoreV1().ConfigMaps(metav1.NamespacePublic).Create(ctx, want, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			return nil // the informer is about to tell
		}
	case !maps.Equal(have.Data, want.Data):
		_, err = c.signer.CoreV1().ConfigMaps(metav1.NamespacePublic).Update(ctx, want, metav1.UpdateOptions{})
		if apierrors.IsConflict(err) {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("ConfigMap %s: %w", infoQueueName, err)
	}
	return nil
}

// signs tells whether a token is one that cluster-info is signed with, and its parts.
func signs(s *corev1.Secret, now time.Time) (id, secret string, ok bool) {
	id, secret = string(s.Data["token-id"]), string(s.Data["token-secret"])
	left, ends := lifetime(s, now)
	ok = s.DeletionTimestamp == nil && s.Name == secretPrefix+id && id != "" && secret != "" && string(s.Data["usage-bootstrap-signing"]) == "true" && (!ends || left > 0)
	return id, secret, ok
}

// Sign makes the detached signature (RFC 7515 with HS256, appendix F) of content with a token: the header names the token,
// and the content between the two dots is left out.
func Sign(content, id, secret string) string {
	header, err := json.Marshal(struct {
		Algorithm string `json:"alg"`
		Key       string `json:"kid"`
	}{"HS256", id})
	if err != nil {
		panic(err) // two strings
	}
	enc := base64.RawURLEncoding
	first := enc.EncodeToString(header)
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(first + "." + enc.EncodeToString([]byte(content))))
	return first + ".." + enc.EncodeToString(mac.Sum(nil))
}
