package enforce

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/resourceversion"
)

// lookAgain is how long what was listed is waited for before it is listed anew: it may have been deleted meanwhile.
const lookAgain = time.Second

// upToDate returns when all policies that the API has for a namespace at the time of the call are on their way to the tables. The kinds of objects are
// watched one by one, so that a pod may well be seen before a policy that is older: without this it could run before it is isolated.
func (e *Enforcer) upToDate(ctx context.Context, namespace string) error {
	for backoff := newBackoff(); ; {
		there, err := e.compareVersions(ctx, namespace)
		if there {
			return nil
		}
		pause := lookAgain
		if err != nil {
			pause = backoff.Step()
		}
		select {
		case <-ctx.Done():
			if err == nil {
				err = fmt.Errorf("what the API has of namespace %s is not known here yet", namespace)
			}
			return err
		case <-time.After(pause):
		}
	}
}

// compareVersions lists what a new pod of a namespace is judged by, and tells whether all of it is known, for which it waits a while.
func (e *Enforcer) compareVersions(ctx context.Context, namespace string) (bool, error) {
	custom, err := e.definedClusterPolicies(ctx)
	if err != nil {
		return false, fmt.Errorf("list ClusterNetworkPolicies: %w", err)
	}
	waits := []func(context.Context) bool{}
	for i := range custom {
		waits = append(waits, func(ctx context.Context) bool { return e.clusterPolicies.await(ctx, &custom[i]) })
	}
	if namespace != "" {
		ns, err := e.cfg.Client.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{})
		if err == nil {
			waits = append(waits, func(ctx context.Context) bool { return e.namespaces.await(ctx, ns) })
		} else if !apierrors.IsNotFound(err) {
			return false, fmt.Errorf("namespace %s: %w", namespace, err)
		}
		list, err := e.cfg.Client.NetworkingV1().NetworkPolicies(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return false, fmt.Errorf("list NetworkPolicies of %s: %w", namespace, err)
		}
		for i := range list.Items {
			waits = append(waits, func(ctx context.Context) bool { return e.policies.await(ctx, &list.Items[i]) })
		}
	}
	soon, cancel := context.WithTimeout(ctx, lookAgain)
	defer cancel()
	for _, wait := range waits {
		if !wait(soon) {
			return false, nil
		}
	}
	return true, nil
}

// await waits until an object is passed on in the version that it has, or a newer one.
func (f *followed) await(ctx context.Context, obj metav1.Object) bool {
	for {
		f.mu.Lock()
		have, ok := f.known[keyOf(obj)]
		changed := f.changed
		f.mu.Unlock()
		if ok && notOlder(have.version, obj.GetResourceVersion()) {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-changed:
		}
	}
}

func notOlder(have, want string) bool {
	if have == want {
		return true
	}
	order, err := resourceversion.CompareResourceVersion(have, want)
	return err == nil && order >= 0
}
