package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"

	"github.com/spf13/pflag"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensionsapiserver "k8s.io/apiextensions-apiserver/pkg/apiserver"
	apiextensionsoptions "k8s.io/apiextensions-apiserver/pkg/cmd/server/options"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/plugin/resourcequota"
	"k8s.io/apiserver/pkg/endpoints/discovery/aggregated"
	"k8s.io/apiserver/pkg/endpoints/openapi"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/filters"
	"k8s.io/apiserver/pkg/server/flagz"
	"k8s.io/apiserver/pkg/server/options"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/apiserver/pkg/util/webhook"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	cliflag "k8s.io/component-base/cli/flag"
	_ "k8s.io/component-base/metrics/prometheus/restclient" // metrics of what the server asks itself and others
	_ "k8s.io/component-base/metrics/prometheus/version"    // kubernetes_build_info
	aggregatorapiserver "k8s.io/kube-aggregator/pkg/apiserver"
	aggregatorscheme "k8s.io/kube-aggregator/pkg/apiserver/scheme"
	openapicommon "k8s.io/kube-openapi/pkg/common"

	strakeadmission "github.com/strake-io/strake/controlplane/apiserver/admission"
	"github.com/strake-io/strake/controlplane/apiserver/allocator"
	"github.com/strake-io/strake/controlplane/apiserver/auth/rbac"
	"github.com/strake-io/strake/controlplane/apiserver/auth/token"
	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
	generatedopenapi "github.com/strake-io/strake/controlplane/apiserver/generated/openapi"
	"github.com/strake-io/strake/controlplane/apiserver/resources"
)

// Server is an assembled API server.
type Server struct {
	aggregator *aggregatorapiserver.APIAggregator
	loopback   *rest.Config
}

// LoopbackClientConfig is the server's own, all-powerful way in; it exists for as long as the process.
func (s *Server) LoopbackClientConfig() *rest.Config { return rest.CopyConfig(s.loopback) }

// builder carries what the steps of the assembly hand to each other.
type builder struct {
	cfg       Config
	all       []*descriptor.Resource
	scheme    *runtime.Scheme
	codecs    serializer.CodecFactory
	etcd      *options.EtcdOptions
	generic   *genericapiserver.Config
	client    kubernetes.Interface
	informers informers.SharedInformerFactory
	issuer    *token.Issuer
	rbac      *rbac.Authorizer
	services  *allocator.Allocator
	// rangesKnown tells whether the allocator has heard of all ServiceCIDRs.
	rangesKnown cache.InformerSynced
	resolver    webhook.ServiceResolver
	drain       *drain
	watches     *pace
	inside      *inside  // nil: the etcd is elsewhere
	destroy     []func() // of storages that no registry owns
}

// New assembles the server. It listens from here on; requests are answered once Run is called.
func New(cfg Config) (*Server, error) {
	if cfg.Settings == nil {
		cfg.Settings = NewSettings()
	}
	if err := cfg.Settings.Check(); err != nil {
		return nil, fmt.Errorf("API server: %w", err)
	}
	if len(cfg.BindAddresses) == 0 {
		return nil, errors.New("API server: no address to listen on")
	}
	if cfg.AdvertiseAddress == nil {
		cfg.AdvertiseAddress = cfg.BindAddresses[0]
	}
	if len(cfg.ServiceCIDRs) == 0 {
		return nil, errors.New("API server: no range of ClusterIPs")
	}
	if v4 := cfg.ServiceCIDRs[0].Addr().Is4(); v4 != (cfg.AdvertiseAddress.To4() != nil) {
		return nil, fmt.Errorf("API server: its address %s is not of the family of the first range of ClusterIPs, %s; put a range of that family first", cfg.AdvertiseAddress, cfg.ServiceCIDRs[0])
	}
	if err := utilfeature.DefaultMutableFeatureGate.SetFromMap(cfg.featureGates()); err != nil {
		return nil, fmt.Errorf("API server: --feature-gates: %w", err)
	}
	utilfeature.DefaultMutableFeatureGate.AddMetrics()
	b := &builder{cfg: cfg, all: resources.All()}
	for _, step := range []func() error{b.buildScheme, b.buildGeneric, b.buildAllocator, b.buildAuth, b.buildAdmission} {
		if err := step(); err != nil {
			return nil, fmt.Errorf("API server: %w", err)
		}
	}
	s, err := b.chain()
	if err != nil {
		return nil, fmt.Errorf("API server: %w", err)
	}
	return s, nil
}

// Run serves until ctx ends, then lets the requests under way finish.
func (s *Server) Run(ctx context.Context) error {
	prepared, err := s.aggregator.PrepareRun()
	if err != nil {
		return fmt.Errorf("API server: %w", err)
	}
	return prepared.Run(ctx)
}

func (b *builder) buildScheme() error {
	scheme, err := newScheme(b.all)
	if err != nil {
		return err
	}
	b.scheme, b.codecs = scheme, serializer.NewCodecFactory(scheme)
	return nil
}

// storagePrefix is the root of all keys in etcd.
const storagePrefix = "/registry"

const protobuf = "application/vnd.kubernetes.protobuf"

func (b *builder) buildGeneric() error {
	g := genericapiserver.NewConfig(b.codecs)
	g.EffectiveVersion = newVersion()
	set := b.cfg.Settings
	g.RequestTimeout, g.ShutdownDelayDuration, g.GoawayChance = set.RequestTimeout, set.ShutdownDelay, set.GoawayChance
	g.ShutdownWatchTerminationGracePeriod = set.ShutdownWatchGrace
	g.MaxRequestsInFlight, g.MaxMutatingRequestsInFlight = set.MaxRequestsInflight, set.MaxMutatingInflight
	g.EnableIndex, g.EnableDiscovery, g.EnableMetrics, g.EnableProfiling = true, true, true, set.EnableProfiling
	g.LongRunningFunc = filters.BasicLongRunningRequestCheck(sets.NewString("watch", "proxy"), sets.NewString("attach", "exec", "proxy", "log", "portforward"))
	g.PublicAddress = b.cfg.AdvertiseAddress
	g.ExternalAddress = net.JoinHostPort(b.cfg.AdvertiseAddress.String(), strconv.Itoa(b.cfg.Port))
	g.AggregatedDiscoveryGroupManager = aggregated.NewResourceManager("apis")
	namer := openapi.NewDefinitionNamer(b.scheme, apiextensionsapiserver.Scheme, aggregatorscheme.Scheme)
	defs := openapicommon.GetOpenAPIDefinitions(generatedopenapi.GetOpenAPIDefinitions)
	if set.flags != nil {
		g.Flagz = flagz.NamedFlagSetsReader{FlagSets: cliflag.NamedFlagSets{FlagSets: map[string]*pflag.FlagSet{"strake server": set.flags}}}
	}
	g.OpenAPIConfig = genericapiserver.DefaultOpenAPIConfig(defs, namer)
	g.OpenAPIConfig.Info.Title, g.OpenAPIConfig.GetDefinitionName = "Kubernetes", external(namer)
	g.OpenAPIV3Config = genericapiserver.DefaultOpenAPIV3Config(defs, namer)
	g.OpenAPIV3Config.Info.Title, g.OpenAPIV3Config.GetDefinitionName = "Kubernetes", external(namer)

	serving := options.NewSecureServingOptions().WithLoopback()
	var err error
	if serving.Listener, err = listen(b.cfg.BindAddresses, b.cfg.Port); err != nil {
		return err
	}
	serving.ServerCert.CertKey = options.CertKey{CertFile: b.cfg.ServingCertFile, KeyFile: b.cfg.ServingKeyFile}
	if err := serving.ApplyTo(&g.SecureServing, &g.LoopbackClientConfig); err != nil {
		return errors.Join(err, serving.Listener.Close())
	}
	b.drain = newDrain(g.SecureServing.Listener)
	g.SecureServing.Listener = b.drain
	b.watches = newPace()
	g.BuildHandlerChainFunc = func(api http.Handler, c *genericapiserver.Config) http.Handler {
		return b.drain.handler(genericapiserver.DefaultBuildHandlerChain(b.watches.handler(api), c))
	}
	g.LoopbackClientConfig.ContentType = protobuf
	// Post-start hooks and admission must not wait for each other's turn.
	g.LoopbackClientConfig.QPS, g.LoopbackClientConfig.Burst = -1, -1
	// Within the process there is nothing to save, and every watch would keep a decompressor.
	g.LoopbackClientConfig.DisableCompression = true

	b.etcd = options.NewEtcdOptions(storagebackend.NewDefaultConfig(set.EtcdPrefix, nil))
	b.etcd.EncryptionProviderConfigFilepath, b.etcd.EncryptionProviderConfigAutomaticReload = set.EncryptionConfig, set.EncryptionReload
	b.etcd.DefaultStorageMediaType = protobuf
	t := &b.etcd.StorageConfig.Transport
	t.ServerList, t.TrustedCAFile, t.CertFile, t.KeyFile = b.cfg.EtcdServers, b.cfg.EtcdCAFile, b.cfg.EtcdCertFile, b.cfg.EtcdKeyFile
	if len(set.EtcdServers) > 0 {
		t.ServerList, t.TrustedCAFile, t.CertFile, t.KeyFile = set.EtcdServers, set.EtcdCAFile, set.EtcdCertFile, set.EtcdKeyFile
	}
	b.etcd.StorageConfig.StorageObjectCountTracker = g.StorageObjectCountTracker
	if err := b.etcd.ApplyWithStorageFactoryTo(b.storageFactory(), g); err != nil {
		return err
	}
	b.keepInside()
	g.RESTOptionsGetter = b.options(g.RESTOptionsGetter)
	if b.client, err = kubernetes.NewForConfig(g.LoopbackClientConfig); err != nil {
		return err
	}
	b.informers = informers.NewSharedInformerFactoryWithOptions(b.client, 0, informers.WithTransform(dropManagedFields))
	b.resolver = aggregatorapiserver.NewClusterIPServiceResolver(b.informers.Core().V1().Services().Lister())
	b.generic = g
	if err := set.Audit.ApplyTo(g); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	features := options.NewFeatureOptions()
	features.EnableProfiling = set.EnableProfiling
	return features.ApplyTo(g, b.client, b.informers)
}

// dropManagedFields keeps bookkeeping that no reader of the caches looks at out of memory.
func dropManagedFields(obj any) (any, error) {
	if m, ok := obj.(metav1.Object); ok {
		m.SetManagedFields(nil)
	}
	return obj, nil
}

// storageFactory says where and as what each resource is stored.
func (b *builder) storageFactory() *serverstorage.DefaultStorageFactory {
	served := serverstorage.NewResourceConfig()
	prefixes := map[schema.GroupResource]string{}
	for _, r := range b.all {
		served.EnableVersions(r.GroupVersion)
		if r.StoragePrefix != "" {
			prefixes[r.GroupResource()] = r.StoragePrefix
		}
	}
	return serverstorage.NewDefaultStorageFactory(b.etcd.StorageConfig, protobuf, b.codecs, serverstorage.NewDefaultResourceEncodingConfig(b.scheme), served, prefixes)
}

func (b *builder) buildAdmission() error {
	o := options.NewAdmissionOptions()
	ours := strakeadmission.Register(o.Plugins)
	resourcequota.Register(o.Plugins)
	o.RecommendedPluginOrder = append([]string{"NamespaceLifecycle"}, append(ours, "MutatingAdmissionPolicy", "MutatingAdmissionWebhook", "ValidatingAdmissionPolicy", "ValidatingAdmissionWebhook", resourcequota.PluginName)...)
	o.DefaultOffPlugins = sets.New(strakeadmission.Optional...)
	o.EnablePlugins, o.DisablePlugins, o.ConfigFile = b.cfg.Settings.EnableAdmission, b.cfg.Settings.DisableAdmission, b.cfg.Settings.AdmissionConfig
	if errs := o.Validate(); len(errs) > 0 {
		return fmt.Errorf("admission plugins: %w", errors.Join(errs...))
	}
	dyn, err := dynamic.NewForConfig(b.generic.LoopbackClientConfig)
	if err != nil {
		return err
	}
	return o.ApplyTo(b.generic, b.informers, b.client, dyn, utilfeature.DefaultFeatureGate, b.generic.EffectiveVersion, webhookInitializer(b), quotaInit{})
}

// webhookInitializer tells the webhook plugins how to reach Services and as whom.
func webhookInitializer(b *builder) admission.PluginInitializer {
	return webhookInit{resolver: b.resolver, auth: webhook.NewDefaultAuthenticationInfoResolverWrapper(nil, nil, b.generic.LoopbackClientConfig, nil)}
}

// chain builds custom resources, built-in resources and the aggregator, each handing on what it does not know.
func (b *builder) chain() (*Server, error) {
	extensions, err := b.extensions()
	if err != nil {
		return nil, err
	}
	core, err := b.core(extensions.GenericAPIServer)
	if err != nil {
		return nil, err
	}
	aggregator, err := b.aggregator(core, extensions)
	if err != nil {
		return nil, err
	}
	return &Server{aggregator: aggregator, loopback: b.generic.LoopbackClientConfig}, nil
}

// extensions serves CustomResourceDefinitions and their resources.
func (b *builder) extensions() (*apiextensionsapiserver.CustomResourceDefinitions, error) {
	g := *b.generic
	g.PostStartHooks = map[string]genericapiserver.PostStartHookConfigEntry{}
	g.MergedResourceConfig = serverstorage.NewResourceConfig()
	g.MergedResourceConfig.EnableVersions(apiextensionsv1.SchemeGroupVersion)
	etcd := *b.etcd
	etcd.StorageConfig.Codec = apiextensionsapiserver.Codecs.LegacyCodec(apiextensionsv1.SchemeGroupVersion)
	etcd.StorageConfig.EncodeVersioner = runtime.NewMultiGroupVersioner(apiextensionsv1.SchemeGroupVersion, schema.GroupKind{Group: apiextensionsv1.GroupName})
	etcd.SkipHealthEndpoints = true
	g.RESTOptionsGetter = b.options(etcd.CreateRESTOptionsGetter(&options.SimpleStorageFactory{StorageConfig: etcd.StorageConfig}, g.ResourceTransformers))
	cfg := &apiextensionsapiserver.Config{
		GenericConfig: &genericapiserver.RecommendedConfig{Config: g, SharedInformerFactory: b.informers},
		ExtraConfig: apiextensionsapiserver.ExtraConfig{
			CRDRESTOptionsGetter: b.options(apiextensionsoptions.NewCRDRESTOptionsGetter(etcd, g.ResourceTransformers, g.StorageObjectCountTracker)),
			MasterCount:          1,
			ServiceResolver:      b.resolver,
			AuthResolverWrapper:  webhook.NewDefaultAuthenticationInfoResolverWrapper(nil, nil, g.LoopbackClientConfig, nil),
		},
	}
	notFound := genericapiserver.NewEmptyDelegateWithCustomHandler(http.NotFoundHandler())
	return cfg.Complete().New(notFound)
}
