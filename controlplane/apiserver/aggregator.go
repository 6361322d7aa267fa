package apiserver

import (
	"fmt"
	"strings"
	"sync"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensionsapiserver "k8s.io/apiextensions-apiserver/pkg/apiserver"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/sets"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/options"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	"k8s.io/client-go/tools/cache"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	aggregatorapiserver "k8s.io/kube-aggregator/pkg/apiserver"
	aggregatorscheme "k8s.io/kube-aggregator/pkg/apiserver/scheme"
	aggregatorclient "k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset/typed/apiregistration/v1"
	"k8s.io/kube-aggregator/pkg/controllers/autoregister"
)

// aggregator stands before the others: it serves APIServices and passes the groups of extension servers on.
func (b *builder) aggregator(core *genericapiserver.GenericAPIServer, extensions *apiextensionsapiserver.CustomResourceDefinitions) (*aggregatorapiserver.APIAggregator, error) {
	g := *b.generic
	g.PostStartHooks = map[string]genericapiserver.PostStartHookConfigEntry{}
	g.SkipOpenAPIInstallation = true
	g.MergedResourceConfig = serverstorage.NewResourceConfig()
	g.MergedResourceConfig.EnableVersions(apiregistrationv1.SchemeGroupVersion)
	etcd := *b.etcd
	etcd.StorageConfig.Codec = aggregatorscheme.Codecs.LegacyCodec(apiregistrationv1.SchemeGroupVersion)
	etcd.StorageConfig.EncodeVersioner = runtime.NewMultiGroupVersioner(apiregistrationv1.SchemeGroupVersion, schema.GroupKind{Group: apiregistrationv1.GroupName})
	etcd.SkipHealthEndpoints = true
	g.RESTOptionsGetter = b.options(etcd.CreateRESTOptionsGetter(&options.SimpleStorageFactory{StorageConfig: etcd.StorageConfig}, g.ResourceTransformers))
	cfg := aggregatorapiserver.Config{
		GenericConfig: &genericapiserver.RecommendedConfig{Config: g, SharedInformerFactory: b.informers},
		ExtraConfig: aggregatorapiserver.ExtraConfig{
			ProxyClientCertFile: b.cfg.ProxyClientCertFile, ProxyClientKeyFile: b.cfg.ProxyClientKeyFile,
			ServiceResolver: b.resolver, RejectForwardingRedirects: true,
		},
	}
	a, err := cfg.Complete().NewWithDelegate(core)
	if err != nil {
		return nil, err
	}
	if err := a.GenericAPIServer.AddPreShutdownHook("strake/drain", func() error { return b.drain.run(b.cfg.Settings.ShutdownDelay) }); err != nil {
		return nil, err
	}
	return a, b.registerLocal(a, core, extensions)
}

// registerLocal keeps an APIService for each group version that this process serves itself.
func (b *builder) registerLocal(a *aggregatorapiserver.APIAggregator, core *genericapiserver.GenericAPIServer, extensions *apiextensionsapiserver.CustomResourceDefinitions) error {
	client, err := aggregatorclient.NewForConfig(b.generic.LoopbackClientConfig)
	if err != nil {
		return err
	}
	auto := autoregister.NewAutoRegisterController(a.APIRegistrationInformers.Apiregistration().V1().APIServices(), client)
	seen := sets.New[schema.GroupVersion]()
	for _, path := range core.ListedPaths() {
		gv, ok := groupVersionOf(path)
		if ok && !seen.Has(gv) {
			seen.Insert(gv)
			auto.AddAPIServiceToSyncOnStart(localAPIService(gv, 17000))
		}
	}
	crds := extensions.Informers.Apiextensions().V1().CustomResourceDefinitions()
	services := a.APIRegistrationInformers.Apiregistration().V1().APIServices()
	var mu sync.Mutex
	registered := sets.New[schema.GroupVersion]()
	update := func() {
		mu.Lock()
		defer mu.Unlock()
		// Before all CRDs are known none may be taken for gone.
		if !crds.Informer().HasSynced() || !services.Informer().HasSynced() {
			return
		}
		list, err := crds.Lister().List(labels.Everything())
		if err != nil {
			return // a lister of a cache never fails
		}
		served := sets.New[schema.GroupVersion]()
		for _, c := range list {
			for _, v := range c.Spec.Versions {
				if v.Served {
					served.Insert(schema.GroupVersion{Group: c.Spec.Group, Version: v.Name})
				}
			}
		}
		for gv := range served.Difference(seen).Difference(registered) {
			auto.AddAPIServiceToSync(localAPIService(gv, 1000))
			registered.Insert(gv)
		}
		// What no CRD serves any more: registered by this process or by one before it.
		for gv := range registered.Difference(served) {
			auto.RemoveAPIServiceToSync(localAPIService(gv, 1000).Name)
			registered.Delete(gv)
		}
		have, err := services.Lister().List(labels.Everything())
		if err != nil {
			return
		}
		for _, s := range have {
			gv := schema.GroupVersion{Group: s.Spec.Group, Version: s.Spec.Version}
			if s.Spec.Service == nil && !seen.Has(gv) && !served.Has(gv) {
				auto.RemoveAPIServiceToSync(s.Name)
			}
		}
	}
	_, err = crds.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { update() },
		UpdateFunc: func(old, obj any) {
			if old.(*apiextensionsv1.CustomResourceDefinition).Generation != obj.(*apiextensionsv1.CustomResourceDefinition).Generation {
				update()
			}
		},
		DeleteFunc: func(any) { update() },
	})
	if err != nil {
		return err
	}
	return a.GenericAPIServer.AddPostStartHook("strake/local-apiservices", func(hook genericapiserver.PostStartHookContext) error {
		go auto.Run(2, hook.Done())
		go func() {
			if cache.WaitForCacheSync(hook.Done(), crds.Informer().HasSynced, services.Informer().HasSynced) {
				update()
			}
		}()
		return nil
	})
}

// groupVersionOf reads "/api/v1" and "/apis/GROUP/VERSION".
func groupVersionOf(path string) (schema.GroupVersion, bool) {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	switch {
	case len(parts) == 2 && parts[0] == "api":
		return schema.GroupVersion{Version: parts[1]}, true
	case len(parts) == 3 && parts[0] == "apis":
		return schema.GroupVersion{Group: parts[1], Version: parts[2]}, true
	}
	return schema.GroupVersion{}, false
}

func localAPIService(gv schema.GroupVersion, groupPriority int32) *apiregistrationv1.APIService {
	if gv.Group == "" {
		groupPriority = 18000 // the core group comes first in discovery
	}
	return &apiregistrationv1.APIService{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s.%s", gv.Version, gv.Group)},
		Spec:       apiregistrationv1.APIServiceSpec{Group: gv.Group, Version: gv.Version, GroupPriorityMinimum: groupPriority, VersionPriority: 15},
	}
}
