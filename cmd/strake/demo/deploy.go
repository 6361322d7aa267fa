package demo

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
)

//go:embed demo.yaml
var manifests []byte

// Image is the name of the image that the demo's pods run.
const Image = "strake.io/demo:1"

const nodePortService = "echo-nodeport" // of the manifests

// Namespace is where the demo lives.
const Namespace = "demo"

// NodePort is where the echo server answers on every node address, unless Deploy is told another port.
const NodePort = 30080

// Deploy applies the demo's manifests (server-side apply, so that repeating it changes nothing), with a NodePort.
func Deploy(ctx context.Context, cfg *rest.Config, port int) error {
	client, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	disco, err := discovery.NewDiscoveryClientForConfig(cfg)
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(disco))
	docs := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(manifests), 4096)
	for {
		obj := &unstructured.Unstructured{}
		if err := docs.Decode(obj); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("demo: %w", err)
		}
		if ports, ok, _ := unstructured.NestedSlice(obj.Object, "spec", "ports"); ok && obj.GetName() == nodePortService {
			ports[0].(map[string]any)["nodePort"] = int64(port)
			if err := unstructured.SetNestedSlice(obj.Object, ports, "spec", "ports"); err != nil {
				return fmt.Errorf("demo: %w", err)
			}
		}
		gvk := obj.GroupVersionKind()
		mapping, err := mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
		if err != nil {
			return fmt.Errorf("demo: %s %s: %w", gvk.Kind, obj.GetName(), err)
		}
		_, err = client.Resource(mapping.Resource).Namespace(obj.GetNamespace()).Apply(ctx, obj.GetName(), obj,
			metav1.ApplyOptions{FieldManager: "strake-up", Force: true})
		if err != nil {
			return fmt.Errorf("demo: %s %s: %w", gvk.Kind, obj.GetName(), err)
		}
	}
}
