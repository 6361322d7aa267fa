package dns

import (
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

// Keys of a ConfigMap: it has one of them.
const (
	keyConfig   = "config.yaml"
	keyCorefile = "Corefile"
)

// FromConfigMap reads a configuration. What of a Corefile is not done is returned beside it.
func FromConfigMap(m *corev1.ConfigMap) (Config, []string, error) {
	own, hasOwn := m.Data[keyConfig]
	core, hasCore := m.Data[keyCorefile]
	switch {
	case hasOwn && hasCore:
		return Config{}, nil, fmt.Errorf("dns: it has both %s and %s: one is to be", keyConfig, keyCorefile)
	case hasOwn:
		c, err := ParseConfig([]byte(own))
		return c, nil, err
	case hasCore:
		return FromCorefile(core)
	}
	return Config{}, nil, fmt.Errorf("dns: it has neither %s nor %s", keyConfig, keyCorefile)
}

// FollowConfigMap configures a server by a ConfigMap until ctx ends. What that does not set is as in base, which also counts while there is
// no such ConfigMap. One that is wrong is told in the log, and changes nothing.
func FollowConfigMap(ctx context.Context, client kubernetes.Interface, namespace, name string, s *Server, base Config) error {
	return followConfigMap(ctx, client, namespace, name, func(m *corev1.ConfigMap) {
		cfg := base
		if m != nil {
			var skipped []string
			var err error
			if cfg, skipped, err = FromConfigMap(m); err != nil {
				klog.ErrorS(err, "The DNS configuration is wrong, the former goes on", "configMap", klog.KObj(m))
				return
			}
			for _, what := range skipped {
				klog.InfoS("Of the DNS configuration this is not done", "configMap", klog.KObj(m), "what", what)
			}
			cfg = cfg.Over(base)
			cfg.Zones = slices.Concat(base.Zones, cfg.Zones)
		}
		if err := s.Configure(cfg); err != nil {
			klog.ErrorS(err, "The DNS configuration is wrong, the former goes on", "configMap", namespace+"/"+name)
			return
		}
		klog.InfoS("DNS configuration", "configMap", namespace+"/"+name, "zones", s.Config().Zones, "upstream", s.Config().Upstream.Servers)
	})
}

// followConfigMap calls use with each version of a ConfigMap until ctx ends, and with nil when there is none.
func followConfigMap(ctx context.Context, client kubernetes.Interface, namespace, name string, use func(*corev1.ConfigMap)) error {
	f := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(namespace), informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector("metadata.name", name).String()
	}))
	seen := func(obj any) {
		if m, ok := obj.(*corev1.ConfigMap); ok && m.Name == name {
			use(m)
		}
	}
	if _, err := f.Core().V1().ConfigMaps().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: seen, UpdateFunc: func(_, obj any) { seen(obj) },
		DeleteFunc: func(obj any) {
			if t, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = t.Obj
			}
			if m, ok := obj.(*corev1.ConfigMap); ok && m.Name == name {
				use(nil)
			}
		},
	}); err != nil {
		return errors.Join(errors.New("dns: follow the configuration"), err)
	}
	f.Start(ctx.Done())
	defer f.Shutdown()
	f.WaitForCacheSync(ctx.Done())
	if ctx.Err() == nil && len(f.Core().V1().ConfigMaps().Informer().GetStore().ListKeys()) == 0 {
		use(nil)
	}
	<-ctx.Done()
	return nil
}

// Over fills what is not set from another configuration. Hosts, stubs and rewrites of both count, its own first.
func (c Config) Over(base Config) Config {
	if len(c.Zones) == 0 {
		c.Zones = base.Zones
	}
	set(&c.TTL, base.TTL)
	set(&c.Pods, base.Pods)
	set(&c.HostsTTL, base.HostsTTL)
	if len(c.Upstream.Servers) == 0 {
		servers := base.Upstream
		set(&servers.Policy, c.Upstream.Policy)
		c.Upstream = servers
	}
	for _, s := range base.Stubs {
		if !slices.ContainsFunc(c.Stubs, func(own Stub) bool { return canonical(own.Zone) == canonical(s.Zone) }) {
			c.Stubs = append(slices.Clone(c.Stubs), s)
		}
	}
	c.Hosts = slices.Concat(c.Hosts, base.Hosts)
	c.Rewrites = slices.Concat(c.Rewrites, base.Rewrites)
	if sameLimits(c.Cache, CacheLimits{}) {
		c.Cache = base.Cache
	}
	c.Log = c.Log || base.Log
	c.Avoid = base.Avoid
	return c
}
