package apiserver

import (
	"maps"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/features"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/cacher"
	"k8s.io/apiserver/pkg/storage/etcd3"
	"k8s.io/apiserver/pkg/storage/feature"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/storagebackend/factory"
	"k8s.io/apiserver/pkg/storage/value/encrypt/identity"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/clock"
)

// inside keeps objects in an etcd of this process, which is called rather than asked over a connection: that would be one for each resource, with
// buffers and goroutines at both ends, and the way through TLS and HTTP/2 twice for each write. Otherwise it does what the library does with an
// etcd elsewhere (package storagebackend/factory), but that lists are read in pages: the client in the process knows no streams of ranges
// (EtcdRangeStream).
type inside struct {
	client    func() *clientv3.Client
	compactor etcd3.Compactor
	crowds    *crowds
}

// hasInside tells whether the etcd is in this process.
func (c Config) hasInside() bool { return c.EtcdClient != nil && len(c.Settings.EtcdServers) == 0 }

// featureGates are those of the settings, and what is best for the etcd. The watch cache would keep a copy of its tree of objects for each change of the last
// minute or more, to answer lists in pages and of former versions: a kilobyte of pointers for each write, which is more than half of what a load adds
// to a collection of garbage. An etcd in this process answers these lists as well; one elsewhere is spared them.
func (c Config) featureGates() map[string]bool {
	gates := map[string]bool{string(features.ListFromCacheSnapshot): !c.hasInside()}
	maps.Copy(gates, c.Settings.FeatureGates)
	return gates
}

// keepInside prepares the storages of an etcd in this process, if there is one.
func (b *builder) keepInside() {
	if !b.cfg.hasInside() {
		return
	}
	client := b.cfg.EtcdClient()
	compactor := etcd3.NewCompactor(client, b.etcd.StorageConfig.CompactionInterval, clock.RealClock{}, nil)
	b.destroy = append(b.destroy, func() {
		compactor.Stop()
		_ = client.Close() // it has no connection whose end could fail
	})
	feature.DefaultFeatureSupportChecker.CheckClient(client.Ctx(), named{client}, storage.RequestWatchProgress)
	b.inside = &inside{b.cfg.EtcdClient, compactor, &b.watches.crowds}
}

// named gives a client that needs no endpoint the one that the library asks for its version.
type named struct{ *clientv3.Client }

func (named) Endpoints() []string { return []string{"inside"} }

// options leads the storages of a getter to the etcd in this process, if there is one.
func (b *builder) options(getter generic.RESTOptionsGetter) generic.RESTOptionsGetter {
	if b.inside == nil {
		return getter
	}
	return insideGetter{getter, b.inside}
}

type insideGetter struct {
	generic.RESTOptionsGetter
	inside *inside
}

// GetRESTOptions implements generic.RESTOptionsGetter.
func (g insideGetter) GetRESTOptions(r schema.GroupResource, example runtime.Object) (generic.RESTOptions, error) {
	o, err := g.RESTOptionsGetter.GetRESTOptions(r, example)
	o.Decorator = g.inside.cached
	return o, err
}

// cached is the storage of a resource with its watch cache, as a generic.StorageDecorator.
func (i *inside) cached(c *storagebackend.ConfigForResource, prefix string, key func(runtime.Object) (string, error), newFunc, newListFunc func() runtime.Object,
	attrs storage.AttrFunc, triggers storage.IndexerFuncs, indexers *cache.Indexers) (storage.Interface, factory.DestroyFunc, error) {
	raw, closeRaw, err := i.raw(c, prefix, newFunc, newListFunc)
	if err != nil {
		return nil, nil, err
	}
	caches, err := cacher.NewCacherFromConfig(cacher.Config{
		Storage: gathering{raw, i.crowds.hold(c.GroupResource)}, Versioner: storage.APIObjectVersioner{}, GroupResource: c.GroupResource, EventsHistoryWindow: c.EventsHistoryWindow, ResourcePrefix: prefix,
		KeyFunc: key, NewFunc: newFunc, NewListFunc: newListFunc, GetAttrsFunc: attrs, IndexerFuncs: triggers, Indexers: indexers, Codec: c.Codec, Clock: together{},
	})
	if err != nil {
		closeRaw()
		return nil, nil, err
	}
	delegator := cacher.NewCacheDelegator(caches, raw)
	return delegator, sync.OnceFunc(func() { // subresources end the storage that they share, too
		delegator.Stop()
		caches.Stop()
		closeRaw()
	}), nil
}

// raw is the storage of a resource. It has a client of its own, so that its watch is a stream of its own: who asks how far that is asks no other.
func (i *inside) raw(c *storagebackend.ConfigForResource, prefix string, newFunc, newListFunc func() runtime.Object) (storage.Interface, func(), error) {
	client := &kubernetes.Client{Client: i.client()}
	client.Kubernetes = client
	client.KV = etcd3.NewETCDLatencyTracker(client.KV)
	transformer, versioner := c.Transformer, storage.APIObjectVersioner{}
	if transformer == nil {
		transformer = identity.NewEncryptCheckTransformer()
	}
	decoder := etcd3.NewDefaultDecoder(c.Codec, versioner)
	deleteMalformed := utilfeature.DefaultFeatureGate.Enabled(features.AllowUnsafeMalformedObjectDeletion)
	if deleteMalformed {
		transformer, decoder = etcd3.WithCorruptObjErrorHandlingTransformer(transformer), etcd3.WithCorruptObjErrorHandlingDecoder(decoder)
	}
	store, err := etcd3.New(client, i.compactor, c.Codec, newFunc, newListFunc, c.Prefix, prefix, c.GroupResource, transformer, c.LeaseManagerConfig, decoder, versioner)
	if err != nil {
		_ = client.Close()
		return nil, nil, err
	}
	var s storage.Interface = store
	if deleteMalformed {
		s = etcd3.NewStoreWithUnsafeCorruptObjectDeletion(s, c.GroupResource)
	}
	return s, func() {
		store.Close()
		_ = client.Close()
	}, nil
}
