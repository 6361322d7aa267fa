package apiserver

import (
	"errors"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kube-openapi/pkg/spec3"
	"k8s.io/kube-openapi/pkg/validation/spec"
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
