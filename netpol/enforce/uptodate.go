package enforce

import (
	"context"
	"fmt"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/resourceversion"
)

// lookAgain is how long what was listed is waited for before it is listed anew: it may have been deleted meanwhile.
const lookAgain = time.Second

// askWithin bounds a question to the API: those who wait for it have bounds of their own.
const askWithin = 10 * time.Second

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

// versions are those of objects of a kind that the API has, by their keys.
type versions struct {
	of *followed
	by map[string]string // resourceVersion
}

// compareVersions asks what a new pod of a namespace is judged by, and tells whether all of it is known, for which it waits a while.
func (e *Enforcer) compareVersions(ctx context.Context, namespace string) (bool, error) {
	all, err := e.asked.get(ctx, "", e.clusterVersions)
	if err == nil && namespace != "" {
		var own []versions
		own, err = e.asked.get(ctx, namespace, func(ctx context.Context) ([]versions, error) { return e.namespaceVersions(ctx, namespace) })
		all = append(all[:len(all):len(all)], own...)
	}
	if err != nil {
		return false, err
	}
	soon, cancel := context.WithTimeout(ctx, lookAgain)
	defer cancel()
	for _, v := range all {
		for key, version := range v.by {
			if !v.of.await(soon, key, version) {
				return false, nil
			}
		}
	}
	return true, nil
}

// clusterVersions are those of the ClusterNetworkPolicies; none where they are not defined, which the API itself says: what is followed may be behind.
func (e *Enforcer) clusterVersions(ctx context.Context) ([]versions, error) {
	list, err := e.cfg.Dynamic.Resource(customPolicies).List(ctx, metav1.ListOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list ClusterNetworkPolicies: %w", err)
	}
	v := versions{e.clusterPolicies, make(map[string]string, len(list.Items))}
	for i := range list.Items {
		v.by[keyOf(&list.Items[i])] = list.Items[i].GetResourceVersion()
	}
	return []versions{v}, nil
}

// namespaceVersions are those of a namespace and of its NetworkPolicies.
func (e *Enforcer) namespaceVersions(ctx context.Context, namespace string) ([]versions, error) {
	var all []versions
	ns, err := e.cfg.Client.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{})
	if err == nil {
		all = append(all, versions{e.namespaces, map[string]string{keyOf(ns): ns.ResourceVersion}})
	} else if !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("namespace %s: %w", namespace, err)
	}
	list, err := e.cfg.Client.NetworkingV1().NetworkPolicies(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list NetworkPolicies of %s: %w", namespace, err)
	}
	v := versions{e.policies, make(map[string]string, len(list.Items))}
	for i := range list.Items {
		v.by[keyOf(&list.Items[i])] = list.Items[i].ResourceVersion
	}
	return append(all, v), nil
}

// asked are questions to the API, one of a key at a time: who comes while it is asked waits for the next, together with all others who do. So many pods that start
// at once ask twice, and each gets an answer from after it asked.
type asked struct {
	mu      sync.Mutex
	waiting map[string]*question // not asked yet
	asking  map[string]*question
}

// question is one.
type question struct {
	done chan struct{}
	all  []versions
	err  error
}

func newAsked() *asked {
	return &asked{waiting: map[string]*question{}, asking: map[string]*question{}}
}

// get returns what ask, begun after the call, says.
func (a *asked) get(ctx context.Context, key string, ask func(context.Context) ([]versions, error)) ([]versions, error) {
	a.mu.Lock()
	q := a.waiting[key]
	if q == nil {
		q = &question{done: make(chan struct{})}
		a.waiting[key] = q
		go a.run(key, q, a.asking[key], ask)
	}
	a.mu.Unlock()
	select {
	case <-q.done:
		return q.all, q.err
	case <-ctx.Done():
		return nil, fmt.Errorf("the API does not tell which policies there are: %w", ctx.Err())
	}
}

func (a *asked) run(key string, q, before *question, ask func(context.Context) ([]versions, error)) {
	if before != nil {
		<-before.done
	}
	a.mu.Lock()
	delete(a.waiting, key)
	a.asking[key] = q
	a.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), askWithin) // who asked first may give up, and others not
	defer cancel()
	q.all, q.err = ask(ctx)
	a.mu.Lock()
	delete(a.asking, key)
	a.mu.Unlock()
	close(q.done)
}

// await waits until an object is passed on in a version, or a newer one.
func (f *followed) await(ctx context.Context, key, version string) bool {
	for {
		f.mu.Lock()
		have, ok := f.known[key]
		changed := f.changed
		f.mu.Unlock()
		if ok && notOlder(have.version, version) {
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
