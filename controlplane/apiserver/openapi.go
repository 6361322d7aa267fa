package apiserver

import (
	"encoding/json"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"strings"
	"sync"

	"github.com/emicklei/go-restful/v3"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/openapi"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/klog/v2"
	builder2 "k8s.io/kube-openapi/pkg/builder"
	"k8s.io/kube-openapi/pkg/builder3"
	"k8s.io/kube-openapi/pkg/cached"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/common/restfuladapter"
	"k8s.io/kube-openapi/pkg/handler"
	"k8s.io/kube-openapi/pkg/handler3"
	"k8s.io/kube-openapi/pkg/spec3"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// external names types for OpenAPI, as of their served versions only: the internal ones, which are the same Go types
// here, are nothing that a client could send.
func external(namer *openapi.DefinitionNamer) func(name string) (string, spec.Extensions) {
	return func(name string) (string, spec.Extensions) {
		name, extensions := namer.GetDefinitionName(name)
		for key, value := range extensions {
			if gvks, ok := value.([]any); ok {
				extensions[key] = slices.DeleteFunc(gvks, func(gvk any) bool {
					m, ok := gvk.(map[string]any)
					return ok && m["version"] == runtime.APIVersionInternal
				})
			}
		}
		return name, extensions
	}
}

// serveOpenAPI serves the documents of the built-in resources, once all are installed. The library's way (package server/routes) builds the document of
// version 2 at the start, which few ask for, and keeps what the documents are encoded from, some 25 MiB, as long as the server runs.
func (b *builder) serveOpenAPI(server *genericapiserver.GenericAPIServer) error {
	services, mux := server.Handler.GoRestfulContainer.RegisteredWebServices(), server.Handler.NonGoRestfulMux
	handler.NewOpenAPIServiceLazy(passing(func() (*spec.Swagger, error) {
		doc, err := builder2.BuildOpenAPISpecFromRoutes(restfuladapter.AdaptWebServices(services), b.generic.OpenAPIConfig)
		if err != nil {
			return nil, fmt.Errorf("OpenAPI v2: %w", err)
		}
		doc.Definitions = handler.PruneDefaults(doc.Definitions)
		return doc, nil
	})).RegisterOpenAPIVersionedService("/openapi/v2", mux)
	v3, documents := handler3.NewOpenAPIService(), &documents3{config: b.generic.OpenAPIV3Config}
	for _, s := range services {
		v3.UpdateGroupVersionLazy(strings.TrimPrefix(s.RootPath(), "/"), passing(func() (*spec3.OpenAPI, error) { return documents.of(s), nil }))
	}
	return v3.RegisterOpenAPIV3VersionedService("/openapi/v3", mux)
}

// documents3 builds the documents of version 3, one of each group and version. The index asks for all of them at once, and their builder changes the
// definitions that they share.
type documents3 struct {
	mu     sync.Mutex
	config *common.OpenAPIV3Config
}

// of returns the document of a service, which shares with others only what nobody changes. If it can't be built, it is empty: the index, which holds
// all, would be an error otherwise.
func (d *documents3) of(s *restful.WebService) *spec3.OpenAPI {
	d.mu.Lock()
	defer d.mu.Unlock()
	path := strings.TrimPrefix(s.RootPath(), "/")
	doc, err := recovered(func() (*spec3.OpenAPI, error) {
		return builder3.BuildOpenAPISpecFromRoutes(restfuladapter.AdaptWebServices([]*restful.WebService{s}), d.config)
	})
	if err != nil {
		klog.ErrorS(err, "The OpenAPI v3 document of a group can't be built: an empty one is served", "path", path)
		return &spec3.OpenAPI{Version: "3.0.0", Info: d.config.Info, Paths: &spec3.Paths{}}
	}
	if doc.Components != nil {
		for _, schema := range doc.Components.Schemas {
			schema.Extensions = maps.Clone(schema.Extensions)
		}
	}
	if gv, ok := groupVersionOf(path); ok {
		keepGroupVersion(doc, gv)
	}
	return doc
}

// recovered calls build, whose panic is an error: a cached.Value is asked in goroutines that nobody recovers.
func recovered[T any](build func() (*T, error)) (doc *T, err error) {
	defer func() {
		if r := recover(); r != nil {
			doc, err = nil, fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	return build()
}

// keepGroupVersion leaves of the groups and versions of kinds that belong to each of them only the document's own and the core group's.
func keepGroupVersion(doc *spec3.OpenAPI, gv schema.GroupVersion) {
	const extension = "x-kubernetes-group-version-kind"
	if doc.Components == nil {
		return
	}
	for _, s := range doc.Components.Schemas {
		gvks, ok := s.Extensions[extension].([]any)
		if !ok || len(gvks) < 2 {
			continue
		}
		if first, ok := gvks[0].(map[string]any); !ok || first["kind"] != "WatchEvent" && first["kind"] != "DeleteOptions" {
			continue
		}
		s.Extensions[extension] = slices.DeleteFunc(slices.Clone(gvks), func(gvk any) bool {
			m, ok := gvk.(map[string]any)
			of := schema.GroupVersion{Group: fmt.Sprint(m["group"]), Version: fmt.Sprint(m["version"])}
			return !ok || of != gv && of != corev1.SchemeGroupVersion
		})
	}
}

// passing builds a document when it is asked for first, and takes it back with the next question, so it stays until then: the one who asks, a
// cached.Value of a service, has encoded it then, and sees by the unchanged tag that what it has encoded still holds. A document that can't be encoded is
// an error here already, and built again with the next question: a service asks again for what it couldn't encode.
func passing[T any](build func() (*T, error)) cached.Value[*T] {
	var mu sync.Mutex
	var passed *T
	built := false
	return cached.Func(func() (*T, string, error) {
		mu.Lock()
		defer mu.Unlock()
		if !built {
			doc, err := recovered(func() (*T, error) {
				doc, err := build()
				if err == nil {
					_, err = json.Marshal(doc)
				}
				return doc, err
			})
			if err != nil {
				return nil, "", err
			}
			passed, built = doc, true
			return doc, "built", nil
		}
		if passed != nil {
			var none T
			*passed, passed = none, nil // the caches hold on to the pointer
		}
		return nil, "built", nil
	})
}
