package apiserver

import (
	"slices"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/endpoints/openapi"
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
