package dns

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/wait"
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
	return followConfigMap(ctx, client, namespace, name, func(m *corev1.ConfigMap) error {
		cfg := base
		var skipped []string
		if m != nil {
			var err error
			if cfg, skipped, err = FromConfigMap(m); err != nil {
				klog.ErrorS(err, "The DNS configuration is wrong, the former goes on", "configMap", klog.KObj(m))
				return nil
			}
			cfg = cfg.Over(base)
			cfg.Zones = slices.Concat(base.Zones, cfg.Zones)
		}
		if err := s.check(cfg); err != nil {
			klog.ErrorS(err, "The DNS configuration is wrong, the former goes on", "configMap", klog.KRef(namespace, name))
			return nil
		}
		if err := s.Configure(cfg); err != nil {
			return err
		}
		for _, what := range skipped {
			klog.InfoS("Of the DNS configuration this is not done", "configMap", klog.KObj(m), "what", what)
		}
		klog.InfoS("DNS configuration", "configMap", namespace+"/"+name, "zones", s.Config().Zones, "upstream", s.Config().Upstream.Servers)
		return nil
	})
}

// followConfigMap calls use with a ConfigMap as it is, and whenever it has changed, until ctx ends, and with nil while there is none. Of versions that follow
// fast one may be left out. What use could not do is tried again.
func followConfigMap(ctx context.Context, client kubernetes.Interface, namespace, name string, use func(*corev1.ConfigMap) error) error {
	f := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(namespace), informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector("metadata.name", name).String()
	}))
	informer := f.Core().V1().ConfigMaps().Informer()
	changed := make(chan struct{}, 1)
	note := func(any) {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: note, DeleteFunc: note, UpdateFunc: func(_, obj any) { note(obj) }}); err != nil {
		return errors.Join(errors.New("dns: follow the configuration"), err)
	}
	f.Start(ctx.Done())
	defer f.Shutdown()
	f.WaitForCacheSync(ctx.Done())
	var used *corev1.ConfigMap
	retry := (<-chan time.Time)(nil)
	backoff := newBackoff()
	for done := false; ctx.Err() == nil; {
		obj, _, _ := informer.GetStore().GetByKey(namespace + "/" + name) // no error: it is a map
		m, _ := obj.(*corev1.ConfigMap)
		if !done || m != used {
			err := use(m)
			if used, done, retry = m, err == nil, nil; done {
				backoff = newBackoff()
			} else {
				klog.ErrorS(err, "The former DNS configuration still counts, trying again", "configMap", klog.KRef(namespace, name))
				retry = time.After(backoff.Step())
			}
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-retry:
		}
	}
	return nil
}

// newBackoff is how what failed is tried again.
func newBackoff() wait.Backoff {
	return wait.Backoff{Duration: 10 * time.Millisecond, Factor: 2, Steps: 12, Cap: 30 * time.Second}
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
