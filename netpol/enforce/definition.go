package enforce

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/strake-io/strake/netpol"
)

// ClusterNetworkPolicies exist where their definition is installed: in every cluster of ours, and perhaps in others. Their definition is
// watched, so that it may come and go.
var (
	definitions    = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	customPolicies = schema.GroupVersionResource{Group: policyv1alpha2.GroupName, Version: policyv1alpha2.GroupVersion.Version, Resource: "clusternetworkpolicies"}
)

// definition is a store for the reflector of the one definition.
type definition struct {
	mu      sync.Mutex
	served  bool
	known   bool
	changed chan struct{} // closed and replaced at every change
	api     lastError
}

func newDefinition() *definition { return &definition{changed: make(chan struct{})} }

// now tells whether the definition is there and serves the version that is read, whether that is known yet, and what ends when it changes.
func (d *definition) now() (served, known bool, changed <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.served, d.known, d.changed
}

func (d *definition) set(served bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.known && d.served == served {
		return
	}
	d.served, d.known = served, true
	close(d.changed)
	d.changed = make(chan struct{})
}

func (d *definition) put(obj any) error {
	u, ok := obj.(*unstructured.Unstructured)
	if !ok {
		return fmt.Errorf("%T is no definition", obj)
	}
	versions, _, err := unstructured.NestedSlice(u.Object, "spec", "versions")
	if err != nil {
		return err
	}
	served := false
	for _, v := range versions {
		m, _ := v.(map[string]any)
		if m["name"] == customPolicies.Version && m["served"] == true {
			served = true
		}
	}
	switch {
	case !served:
		klog.InfoS("ClusterNetworkPolicies are defined, but not in the version that is enforced: they are not", "crd", u.GetName(), "version", customPolicies.Version)
	case !established(u):
		klog.InfoS("ClusterNetworkPolicies are defined, but the API does not serve them yet", "crd", u.GetName(), "cause", "its condition Established is not True")
		served = false
	}
	d.set(served)
	return nil
}

// established tells whether the API serves what is defined: a definition whose names are another's is never served.
func established(crd *unstructured.Unstructured) bool {
	conditions, _, _ := unstructured.NestedSlice(crd.Object, "status", "conditions") // of another shape: there are none
	for _, c := range conditions {
		if m, _ := c.(map[string]any); m["type"] == "Established" && m["status"] == "True" {
			return true
		}
	}
	return false
}

// Add implements cache.ReflectorStore, as do the next ones.
func (d *definition) Add(obj any) error { return d.put(obj) }

func (d *definition) Update(obj any) error { return d.put(obj) }

func (d *definition) Delete(any) error { d.set(false); return nil }

func (d *definition) Resync() error { return nil }

func (d *definition) Replace(list []any, _ string) error {
	for _, obj := range list {
		return d.put(obj)
	}
	d.set(false)
	return nil
}

// of lists and watches a resource of the dynamic client, and notes what comes of it.
func of(c dynamic.Interface, r schema.GroupVersionResource, name string, api *lastError) cache.ListerWatcher {
	tweak := func(o metav1.ListOptions) metav1.ListOptions {
		if name != "" {
			o.FieldSelector = fields.OneTermEqualSelector("metadata.name", name).String()
		}
		return o
	}
	return cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			list, err := c.Resource(r).List(ctx, tweak(o))
			return list, api.note(err)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			w, err := c.Resource(r).Watch(ctx, tweak(o))
			return w, api.note(err)
		},
	}, c)
}

// keptCustom reads a ClusterNetworkPolicy. What it has that is not known is left out: a peer without anything in it closes its rule. One that can't be
// read as a whole is read as far as it can be, so that it holds up no other.
func keptCustom(obj any) (metav1.Object, error) {
	switch o := obj.(type) {
	case *policyv1alpha2.ClusterNetworkPolicy:
		return keptClusterNetworkPolicy(o), nil
	case *unstructured.Unstructured:
		p, err := netpol.ReadClusterNetworkPolicy(o)
		if err != nil {
			klog.ErrorS(err, "A ClusterNetworkPolicy can't be read: what of it is not understood denies", "policy", o.GetName())
		}
		return keptClusterNetworkPolicy(p), nil
	}
	return nil, fmt.Errorf("%T is no ClusterNetworkPolicy", obj)
}

// customCodec is that of ClusterNetworkPolicies.
var customCodec = codec{
	keep: keptCustom,
	pack: func(o metav1.Object) ([]byte, error) {
		p, ok := o.(*policyv1alpha2.ClusterNetworkPolicy)
		if !ok {
			return nil, fmt.Errorf("%T is no ClusterNetworkPolicy", o)
		}
		held := *p
		held.Status = policyv1alpha2.ClusterNetworkPolicyStatus{} // no verdict follows from it
		return json.Marshal(&held)
	},
	unpack: func(data string) (metav1.Object, error) {
		var p policyv1alpha2.ClusterNetworkPolicy
		return &p, json.Unmarshal([]byte(data), &p)
	},
}

// followClusterPolicies follows ClusterNetworkPolicies while they are defined.
func (e *Enforcer) followClusterPolicies(ctx context.Context) {
	var following sync.WaitGroup
	defer following.Wait()
	watched := cache.NewReflectorWithOptions(of(e.cfg.Dynamic, definitions, customPolicies.GroupResource().String(), &e.definition.api), &unstructured.Unstructured{}, e.definition, cache.ReflectorOptions{TypeDescription: "definition of ClusterNetworkPolicies"})
	following.Go(func() { watched.RunWithContext(ctx) })
	for {
		served, known, changed := e.definition.now()
		end := func() {}
		switch {
		case served:
			within, stop := context.WithCancel(ctx)
			r := cache.NewReflectorWithOptions(of(e.cfg.Dynamic, customPolicies, "", &e.clusterPolicies.api), &unstructured.Unstructured{}, e.clusterPolicies, cache.ReflectorOptions{TypeDescription: kindClusterNetworkPolicy})
			done := make(chan struct{})
			go func() { defer close(done); r.RunWithContext(within) }()
			end = func() { stop(); <-done }
		case known:
			_ = e.clusterPolicies.Replace(nil, "") // fails for what is in the list
		}
		select {
		case <-ctx.Done():
			end()
			return
		case <-changed:
			end()
		}
	}
}
