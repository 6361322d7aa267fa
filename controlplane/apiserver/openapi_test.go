package apiserver

import (
	"errors"
	"fmt"
	"reflect"
	"sync"
	"testing"

	"github.com/emicklei/go-restful/v3"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/openapi"
	genericapiserver "k8s.io/apiserver/pkg/server"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/kube-openapi/pkg/spec3"
	"k8s.io/kube-openapi/pkg/validation/spec"

	generatedopenapi "github.com/strake-io/strake/controlplane/apiserver/generated/openapi"
)

func TestPassedDocumentIsTakenBack(t *testing.T) {
	fails := true
	v := passing(func() (*spec.Swagger, error) {
		if fails {
			return nil, errors.New("not yet")
		}
		return &spec.Swagger{SwaggerProps: spec.SwaggerProps{ID: "made"}}, nil
	})
	if _, _, err := v.Get(); err == nil {
		t.Error("a failure to build is no error")
	}
	fails = false
	doc, tag, err := v.Get()
	if err != nil || doc.ID != "made" {
		t.Fatalf("%v, %v", doc, err)
	}
	if again, same, err := v.Get(); again != nil || same != tag || err != nil {
		t.Errorf("the second time: %v, %q, %v, want nothing of the same tag %q", again, same, err, tag)
	}
	if doc.ID != "" {
		t.Error("the document is still there")
	}
}

func TestDocumentThatCannotBeEncodedIsBuiltAgain(t *testing.T) {
	var content any = func() {} // JSON knows no functions
	v := passing(func() (*spec.Schema, error) {
		if content == nil {
			panic("nothing")
		}
		return &spec.Schema{SchemaProps: spec.SchemaProps{Default: content}}, nil
	})
	for _, content = range []any{func() {}, func() {}, nil} {
		if doc, _, err := v.Get(); doc != nil || err == nil {
			t.Errorf("%T: %v, want an error", content, doc)
		}
	}
	content = "some"
	if doc, _, err := v.Get(); doc == nil || err != nil {
		t.Errorf("then: %v, %v", doc, err)
	}
}

// The index of the documents asks for all of them at once.
func TestDocumentsOfVersion3(t *testing.T) {
	config := genericapiserver.DefaultOpenAPIV3Config(generatedopenapi.GetOpenAPIDefinitions, openapi.NewDefinitionNamer(clientscheme.Scheme))
	service := func(path string, model any) *restful.WebService {
		s := new(restful.WebService).Path(path)
		return s.Route(s.GET("/it").Operation("readIt").To(func(*restful.Request, *restful.Response) {}).Returns(200, "OK", model).Produces("application/json"))
	}
	d := &documents3{config: config}
	made := make([]*spec3.OpenAPI, 20)
	var all sync.WaitGroup
	for i := range made {
		all.Go(func() { made[i] = d.of(service(fmt.Sprintf("/apis/test%d/v1", i), corev1.Pod{})) })
	}
	all.Wait()
	const pod = "io.k8s.api.core.v1.Pod"
	owners := map[uintptr]string{}
	for name, definition := range config.Definitions {
		if definition.Schema.Extensions != nil {
			owners[reflect.ValueOf(definition.Schema.Extensions).Pointer()] = name
		}
	}
	for i, doc := range made {
		if doc.Components == nil || doc.Components.Schemas[pod] == nil || doc.Components.Schemas[pod].Extensions == nil {
			t.Fatalf("%d has no pods: %v", i, doc.Components)
		}
		for name, s := range doc.Components.Schemas {
			if s.Extensions == nil {
				continue
			}
			at := reflect.ValueOf(s.Extensions).Pointer()
			if owner, shared := owners[at]; shared {
				t.Fatalf("the extensions of %s in document %d are those of %s, too", name, i, owner)
			}
			owners[at] = fmt.Sprintf("%s of %d", name, i)
		}
	}

	for name, broken := range map[string]*restful.WebService{"a kind without a definition": service("/apis/broken/v1", t), "a panic": nil} {
		d := &documents3{config: config}
		if broken == nil {
			c := *config
			c.GetDefinitionName = func(string) (string, spec.Extensions) { panic("of the test") }
			d.config, broken = &c, service("/apis/broken/v1", corev1.Pod{})
		}
		doc := d.of(broken)
		if doc == nil || doc.Version != "3.0.0" || doc.Info == nil || doc.Components != nil {
			t.Errorf("%s: %v, want an empty document", name, doc)
		}
	}
}

func TestKeepGroupVersion(t *testing.T) {
	kind := func(group, version, kind string) any {
		return map[string]any{"group": group, "version": version, "kind": kind}
	}
	doc := func(kinds ...any) *spec3.OpenAPI {
		s := &spec.Schema{}
		s.Extensions = spec.Extensions{"x-kubernetes-group-version-kind": kinds}
		return &spec3.OpenAPI{Components: &spec3.Components{Schemas: map[string]*spec.Schema{"it": s}}}
	}
	for name, c := range map[string]struct {
		kinds []any
		left  int
	}{
		"options of deletes":       {[]any{kind("", "v1", "DeleteOptions"), kind("apps", "v1", "DeleteOptions"), kind("batch", "v1", "DeleteOptions")}, 2},
		"a kind of several groups": {[]any{kind("apps", "v1", "Scale"), kind("batch", "v1", "Scale"), kind("autoscaling", "v1", "Scale")}, 3},
		"one only":                 {[]any{kind("batch", "v1", "WatchEvent")}, 1},
	} {
		d := doc(c.kinds...)
		keepGroupVersion(d, schema.GroupVersion{Group: "apps", Version: "v1"})
		if left := d.Components.Schemas["it"].Extensions["x-kubernetes-group-version-kind"].([]any); len(left) != c.left {
			t.Errorf("%s: %v, want %d", name, left, c.left)
		}
	}
	keepGroupVersion(&spec3.OpenAPI{}, schema.GroupVersion{}) // of no kinds
}
