package garbage

import (
	"context"
	"encoding/json"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/restmapper"
)

// server is the real API server.
type server struct {
	metadata metadata.Interface
	mapper   *restmapper.DeferredDiscoveryRESTMapper
}

func (s *server) reset() { s.mapper.Reset() }

func (s *server) get(ctx context.Context, gvr schema.GroupVersionResource, namespace, name string) (*metav1.PartialObjectMetadata, error) {
	return s.metadata.Resource(gvr).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
}

func (s *server) delete(ctx context.Context, o *object, version string, policy metav1.DeletionPropagation) error {
	err := s.metadata.Resource(o.gvr).Namespace(o.namespace).Delete(ctx, o.name, metav1.DeleteOptions{
		PropagationPolicy: &policy, Preconditions: &metav1.Preconditions{UID: &o.uid, ResourceVersion: &version},
	})
	return o.wrap("delete", err)
}

func (s *server) patch(ctx context.Context, o *object, version string, fields map[string]any) error {
	fields["resourceVersion"], fields["uid"] = version, o.uid
	patch, err := json.Marshal(map[string]any{"metadata": fields})
	if err != nil {
		return o.wrap("patch", err)
	}
	_, err = s.metadata.Resource(o.gvr).Namespace(o.namespace).Patch(ctx, o.name, types.MergePatchType, patch, metav1.PatchOptions{})
	return o.wrap("patch", err)
}

func (s *server) resolve(kind schema.GroupVersionKind) (schema.GroupVersionResource, bool, error) {
	m, err := s.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if err != nil {
		return schema.GroupVersionResource{}, false, err
	}
	return m.Resource, m.Scope.Name() == meta.RESTScopeNameNamespace, nil
}

func (o *object) wrap(operation string, err error) error {
	if err == nil || apierrors.IsNotFound(err) {
		return err
	}
	return fmt.Errorf("%s %s %s/%s: %w", operation, o.gvr.Resource, o.namespace, o.name, err)
}
