package token

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
)

// afterlife is how long a token works on after the moment at which its object was to be gone: a pod that
// overruns its grace period may still say goodbye, as in the reference.
const afterlife = time.Minute

// Objects finds what tokens are bound to; a token whose object is gone is dead.
type Objects struct {
	ServiceAccounts corelisters.ServiceAccountLister
	Pods            corelisters.PodLister
	Secrets         corelisters.SecretLister
	Nodes           corelisters.NodeLister
	// Live is asked about what the listers don't know (yet): a token may come back sooner than the event of the
	// object that it was made for. Optional; nil trusts the listers.
	Live corev1client.CoreV1Interface
}

// find gets the object that r names: from a cache, or live where the cache has none or another of the name.
func find[T metav1.Object](kind, namespace string, r ref, now time.Time, cached func(string) (T, error), live func() (T, error)) error {
	obj, err := cached(r.Name)
	if live != nil && (apierrors.IsNotFound(err) || err == nil && obj.GetUID() != r.UID) {
		obj, err = live()
	}
	if err != nil {
		return fmt.Errorf("%s %s/%s: %w", kind, namespace, r.Name, err)
	}
	if obj.GetUID() != r.UID {
		return fmt.Errorf("%s %s/%s was made anew", kind, namespace, r.Name)
	}
	if d := obj.GetDeletionTimestamp(); d != nil && now.After(d.Add(afterlife)) {
		return fmt.Errorf("%s %s/%s has been deleted", kind, namespace, r.Name)
	}
	return nil
}

// ask returns a live getter, nil where there is no client.
func ask[C any, T metav1.Object](o *Objects, ctx context.Context, name string, client func(corev1client.CoreV1Interface) C, get func(C, context.Context, string, metav1.GetOptions) (T, error)) func() (T, error) {
	if o.Live == nil {
		return nil
	}
	return func() (T, error) { return get(client(o.Live), ctx, name, metav1.GetOptions{}) }
}

// live checks that everything that the token is bound to is still there, by UID.
func (i *Issuer) live(ctx context.Context, p private) (*serviceaccount.ServiceAccountInfo, error) {
	o, now, sa := &i.objects, i.now(), p.ServiceAccount
	err := find("ServiceAccount", p.Namespace, sa, now, o.ServiceAccounts.ServiceAccounts(p.Namespace).Get,
		ask(o, ctx, sa.Name, func(c corev1client.CoreV1Interface) corev1client.ServiceAccountInterface {
			return c.ServiceAccounts(p.Namespace)
		}, corev1client.ServiceAccountInterface.Get))
	if err != nil {
		return nil, err
	}
	info := &serviceaccount.ServiceAccountInfo{Namespace: p.Namespace, Name: sa.Name, UID: string(sa.UID)}
	if r := p.Pod; r != nil {
		err := find("Pod", p.Namespace, *r, now, o.Pods.Pods(p.Namespace).Get,
			ask(o, ctx, r.Name, func(c corev1client.CoreV1Interface) corev1client.PodInterface { return c.Pods(p.Namespace) }, corev1client.PodInterface.Get))
		if err != nil {
			return nil, err
		}
		info.PodName, info.PodUID = r.Name, string(r.UID)
	}
	if r := p.Secret; r != nil {
		err := find("Secret", p.Namespace, *r, now, o.Secrets.Secrets(p.Namespace).Get,
			ask(o, ctx, r.Name, func(c corev1client.CoreV1Interface) corev1client.SecretInterface { return c.Secrets(p.Namespace) }, corev1client.SecretInterface.Get))
		if err != nil {
			return nil, err
		}
	}
	if r := p.Node; r != nil {
		info.NodeName, info.NodeUID = r.Name, string(r.UID)
		// A pod's token names its node for the auditor; it lives as long as the pod.
		if p.Pod == nil {
			err := find("Node", "", *r, now, o.Nodes.Get,
				ask(o, ctx, r.Name, func(c corev1client.CoreV1Interface) corev1client.NodeInterface { return c.Nodes() }, corev1client.NodeInterface.Get))
			if err != nil {
				return nil, err
			}
		}
	}
	return info, nil
}
