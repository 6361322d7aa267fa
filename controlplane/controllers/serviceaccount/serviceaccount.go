// Package serviceaccount gives every namespace its default ServiceAccount and
// the ConfigMap with the cluster's CA certificate, by which pods trust the API server.
package serviceaccount

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/strake-io/strake/controlplane/controllers/queue"
)

const (
	accountName = "default"
	rootCAName  = "kube-root-ca.crt"
	rootCAKey   = "ca.crt"
)

type controller struct {
	maker      kubernetes.Interface // of ServiceAccounts
	publisher  kubernetes.Interface // of the CA
	namespaces corelisters.NamespaceLister
	accounts   corelisters.ServiceAccountLister
	configMaps corelisters.ConfigMapLister
	rootCA     string
	queue      *queue.Queue
}

// Setup registers the controller with the informers and returns what runs it. It makes ServiceAccounts by one client and publishes the CA by another; all else is read by
// the third.
func Setup(maker, publisher, reader kubernetes.Interface, f informers.SharedInformerFactory, rootCA []byte) (func(context.Context), error) {
	// Of all ConfigMaps only those of this name are held, and are news.
	named := informers.NewSharedInformerFactoryWithOptions(reader, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, rootCAName).String()
	}))
	nss, sas, cms := f.Core().V1().Namespaces(), f.Core().V1().ServiceAccounts(), named.Core().V1().ConfigMaps()
	c := &controller{
		maker: maker, publisher: publisher, namespaces: nss.Lister(), accounts: sas.Lister(), configMaps: cms.Lister(),
		rootCA: string(rootCA), queue: queue.New("serviceaccount"),
	}
	// What is deleted or changed by hand comes back.
	ofNamespace := func(wanted string) cache.ResourceEventHandler {
		add := func(obj any) {
			if m, ok := queue.Object[metav1.Object](obj); ok && m.GetName() == wanted {
				c.queue.Add(m.GetNamespace())
			}
		}
		return cache.ResourceEventHandlerFuncs{UpdateFunc: func(_, obj any) { add(obj) }, DeleteFunc: add}
	}
	for _, h := range []struct {
		inf     cache.SharedIndexInformer
		handler cache.ResourceEventHandler
	}{{nss.Informer(), c.queue.Handlers()}, {sas.Informer(), ofNamespace(accountName)}, {cms.Informer(), ofNamespace(rootCAName)}} {
		if _, err := h.inf.AddEventHandler(h.handler); err != nil {
			return nil, fmt.Errorf("serviceaccount controller: %w", err)
		}
	}
	return func(ctx context.Context) {
		named.Start(ctx.Done())
		c.queue.Run(ctx, 2, c.reconcile, nss.Informer().HasSynced, sas.Informer().HasSynced, cms.Informer().HasSynced)
		named.Shutdown()
	}, nil
}

func (c *controller) reconcile(ctx context.Context, _, name string) error {
	ns, err := c.namespaces.Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil || ns.DeletionTimestamp != nil {
		return err
	}
	if _, err := c.accounts.ServiceAccounts(name).Get(accountName); apierrors.IsNotFound(err) {
		_, err = c.maker.CoreV1().ServiceAccounts(name).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: accountName}}, metav1.CreateOptions{})
		if err := harmless(err); err != nil {
			return err
		}
	}
	want := map[string]string{rootCAKey: c.rootCA}
	cm, err := c.configMaps.ConfigMaps(name).Get(rootCAName)
	switch {
	case apierrors.IsNotFound(err):
		_, err = c.publisher.CoreV1().ConfigMaps(name).Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: rootCAName, Annotations: map[string]string{"kubernetes.io/description": "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc."}},
			Data:       want,
		}, metav1.CreateOptions{})
	case err == nil && !labels.Equals(cm.Data, want):
		cm = cm.DeepCopy()
		cm.Data = want
		_, err = c.publisher.CoreV1().ConfigMaps(name).Update(ctx, cm, metav1.UpdateOptions{})
	}
	return harmless(err)
}

// harmless takes errors away that mean that there is nothing left to do.
func harmless(err error) error {
	if apierrors.IsAlreadyExists(err) || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return nil
	}
	return err
}
