package apiserver

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/rest"
	genericapiserver "k8s.io/apiserver/pkg/server"

	"github.com/strake-io/strake/controlplane/apiserver/auth/review"
	"github.com/strake-io/strake/controlplane/apiserver/auth/token"
	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
	"github.com/strake-io/strake/controlplane/apiserver/resources"
)

// storages are REST storages by group version and path.
type storages map[schema.GroupVersion]map[string]rest.Storage

func (s storages) add(gv schema.GroupVersion, more map[string]rest.Storage) {
	if s[gv] == nil {
		s[gv] = map[string]rest.Storage{}
	}
	maps.Copy(s[gv], more)
}

// core serves the built-in resources.
func (b *builder) core(next genericapiserver.DelegationTarget) (*genericapiserver.GenericAPIServer, error) {
	g := *b.generic
	for name, hook := range map[string]genericapiserver.PostStartHookFunc{
		"strake/rbac-defaults": b.rbacHook, "strake/system-objects": b.systemObjectsHook, "strake/definitions": b.crdHook,
	} {
		if err := g.AddPostStartHook(name, hook); err != nil {
			return nil, err
		}
	}
	g.SkipOpenAPIInstallation = true // see serveOpenAPI
	server, err := g.Complete(b.informers).New("kube-apiserver", next)
	if err != nil {
		return nil, err
	}
	all, err := b.storages()
	if err != nil {
		return nil, err
	}
	if err := b.install(server, all); err != nil {
		return nil, err
	}
	if err := b.serveOpenAPI(server); err != nil {
		return nil, err
	}
	server.RegisterDestroyFunc(func() {
		for _, destroy := range b.destroy {
			destroy()
		}
	})
	handlers, err := b.issuer.Handlers()
	if err != nil {
		return nil, err
	}
	for path, h := range handlers {
		server.Handler.NonGoRestfulMux.Handle(path, h)
	}
	// The informers that authorization and admission read run as long as the server does.
	err = server.AddPostStartHook("strake/informers", func(hook genericapiserver.PostStartHookContext) error {
		b.informers.Start(hook.Done())
		return nil
	})
	return server, err
}

func (b *builder) storages() (storages, error) {
	all, main := storages{}, map[schema.GroupResource]*descriptor.Store{}
	for _, r := range b.all {
		b.setHooks(r)
		s, store, err := descriptor.Build(r, b.scheme, b.generic.RESTOptionsGetter)
		if err != nil {
			return nil, err
		}
		all.add(r.GroupVersion, s)
		if r.GroupVersion == autoscalingv2.SchemeGroupVersion {
			all.add(autoscalingv1.SchemeGroupVersion, s) // the same objects in their old spelling
		}
		main[r.GroupResource()] = store
	}
	core := func(name string) *descriptor.Store { return main[corev1.Resource(name)] }
	kubelets, err := newKubelets(b.cfg)
	if err != nil {
		return nil, err
	}
	kubelets.pods, kubelets.nodes = core("pods"), core("nodes")
	binding := newBindingREST(core("pods"))
	all.add(corev1.SchemeGroupVersion, kubelets.podStorages())
	all.add(corev1.SchemeGroupVersion, map[string]rest.Storage{
		"services":   b.services.Settling(core("services")),
		"namespaces": &namespaceStore{core("namespaces")},
		// Where the namespace controller takes its finalizer off.
		"namespaces/finalize": newPartREST(core("namespaces"), func(n, old *corev1.Namespace) { n.Status = old.Status }, nil),
		"pods/binding":        binding,
		"bindings":            &legacyBindingREST{binding},
		"componentstatuses":   b.newComponentREST(),
		"pods/eviction":       &evictionREST{core("pods"), main[schema.GroupResource{Group: "policy", Resource: "poddisruptionbudgets"}]},
		"serviceaccounts/token": &token.REST{
			Issuer: b.issuer, ServiceAccounts: core("serviceaccounts"), Pods: core("pods"), Secrets: core("secrets"), Nodes: core("nodes"),
		},
	})
	transport := newProxyTransport()
	all.add(corev1.SchemeGroupVersion, map[string]rest.Storage{
		"pods/proxy":               newPodProxyREST(core("pods"), transport),
		"pods/ephemeralcontainers": readablePartREST{newPartREST(core("pods"), takeEphemeral, validateEphemeral)},
		// Where the resources of a running pod's containers change (`kubectl patch --subresource resize`).
		"pods/resize":    readablePartREST{newPartREST(core("pods"), resources.TakeResize, resources.ValidateResize)},
		"services/proxy": newServiceProxyREST(core("services"), main[discoveryv1.Resource("endpointslices")], transport),
	})
	requests := main[schema.GroupResource{Group: certificatesv1.GroupName, Resource: "certificatesigningrequests"}]
	all.add(certificatesv1.SchemeGroupVersion, map[string]rest.Storage{
		"certificatesigningrequests/approval": readablePartREST{newPartREST(requests, resources.PrepareApproval, resources.ValidateApproval)},
	})
	all.add(eventsv1.SchemeGroupVersion, map[string]rest.Storage{"events": core("events")})
	all.add(authenticationv1.SchemeGroupVersion, review.Authentication(b.generic.Authentication.Authenticator, b.generic.Authentication.APIAudiences))
	all.add(authorizationv1.SchemeGroupVersion, review.Authorization(b.generic.Authorization.Authorizer, b.generic.RuleResolver))
	return all, nil
}

// install serves the storages, the core group below /api and each other one below /apis.
func (b *builder) install(server *genericapiserver.GenericAPIServer, all storages) error {
	var groups []*genericapiserver.APIGroupInfo
	for _, gv := range b.scheme.PrioritizedVersionsAllGroups() {
		if all[gv] == nil {
			continue
		}
		i := slices.IndexFunc(groups, func(g *genericapiserver.APIGroupInfo) bool { return g.PrioritizedVersions[0].Group == gv.Group })
		if i < 0 {
			info := genericapiserver.NewDefaultAPIGroupInfo(gv.Group, b.scheme, runtime.NewParameterCodec(b.scheme), b.codecs)
			info.PrioritizedVersions = nil
			groups, i = append(groups, &info), len(groups)
		}
		groups[i].PrioritizedVersions = append(groups[i].PrioritizedVersions, gv)
		groups[i].VersionedResourcesStorageMap[gv.Version] = all[gv]
		delete(all, gv)
	}
	if len(all) > 0 {
		return fmt.Errorf("versions without a priority: %v", slices.Collect(maps.Keys(all)))
	}
	core := slices.IndexFunc(groups, func(g *genericapiserver.APIGroupInfo) bool { return g.PrioritizedVersions[0].Group == corev1.GroupName })
	if err := server.InstallLegacyAPIGroup(genericapiserver.DefaultLegacyAPIPrefix, groups[core]); err != nil {
		return fmt.Errorf("install the core group: %w", err)
	}
	if err := server.InstallAPIGroups(slices.Delete(groups, core, core+1)...); err != nil {
		return fmt.Errorf("install the API groups: %w", err)
	}
	return nil
}

// setHooks ties resources to what their writes affect elsewhere.
func (b *builder) setHooks(r *descriptor.Resource) {
	switch r.GroupResource() {
	case corev1.Resource("services"):
		r.Hooks = b.services.Hooks()
	case rbacv1.Resource("roles"), rbacv1.Resource("clusterroles"), rbacv1.Resource("rolebindings"), rbacv1.Resource("clusterrolebindings"):
		r.Hooks = b.escalationHooks()
	case resourcev1.Resource("resourceclaims"), resourcev1.Resource("resourceclaimtemplates"):
		r.Hooks = b.claimHooks()
	}
}

// escalationHooks keep users from granting what they don't hold.
func (b *builder) escalationHooks() descriptor.Hooks {
	return descriptor.Hooks{
		Create: func(ctx context.Context, obj runtime.Object, _ bool) error {
			return b.rbac.ConfirmWrite(ctx, b.generic.Authorization.Authorizer, obj, nil)
		},
		Update: func(ctx context.Context, obj, old runtime.Object, _ bool) error {
			return b.rbac.ConfirmWrite(ctx, b.generic.Authorization.Authorizer, obj, old)
		},
	}
}

// retryEvery is the pause between attempts of a hook that the store refused.
const retryEvery = 500 * time.Millisecond

// until repeats f until it succeeds or ctx ends, and returns its last error then.
func until(ctx context.Context, f func() error) error {
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (last error: %w)", ctx.Err(), err)
		case <-time.After(retryEvery):
		}
	}
}
