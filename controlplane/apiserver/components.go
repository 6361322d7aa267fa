package apiserver

import (
	"context"
	"maps"
	"net/http"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
)

// componentREST tells of the parts of the control plane as they are when somebody asks. Nothing of it is stored.
type componentREST struct {
	rest.TableConvertor
	parts map[string]func(context.Context) error
}

var (
	_ rest.Getter               = (*componentREST)(nil)
	_ rest.Lister               = (*componentREST)(nil)
	_ rest.Scoper               = (*componentREST)(nil)
	_ rest.ShortNamesProvider   = (*componentREST)(nil)
	_ rest.SingularNameProvider = (*componentREST)(nil)
)

// newComponentREST adds the store to the parts that the configuration names, by the check that /readyz has of it.
func (b *builder) newComponentREST() *componentREST {
	parts := maps.Clone(b.cfg.Components)
	if parts == nil {
		parts = map[string]func(context.Context) error{}
	}
	for _, check := range b.generic.ReadyzChecks {
		if check.Name() == "etcd" {
			parts["etcd-0"] = func(ctx context.Context) error { return check.Check((&http.Request{}).WithContext(ctx)) }
		}
	}
	return &componentREST{parts: parts, TableConvertor: descriptor.Table(
		descriptor.Column{Name: "Status", Description: "Status of the component conditions", Cell: descriptor.Cell(func(s *corev1.ComponentStatus) string {
			for _, c := range s.Conditions {
				if c.Type == corev1.ComponentHealthy && c.Status == corev1.ConditionTrue {
					return "Healthy"
				}
			}
			return "Unhealthy"
		})},
		descriptor.Column{Name: "Message", Description: "Message of the component conditions", Cell: descriptor.Cell(func(s *corev1.ComponentStatus) string { return s.Conditions[0].Message })},
		descriptor.Column{Name: "Error", Description: "Error of the component conditions", Cell: descriptor.Cell(func(s *corev1.ComponentStatus) string { return s.Conditions[0].Error })},
	)}
}

func (r *componentREST) New() runtime.Object     { return &corev1.ComponentStatus{} }
func (r *componentREST) NewList() runtime.Object { return &corev1.ComponentStatusList{} }
func (r *componentREST) Destroy()                {}
func (r *componentREST) NamespaceScoped() bool   { return false }
func (r *componentREST) ShortNames() []string    { return []string{"cs"} }
func (r *componentREST) GetSingularName() string { return "componentstatus" }

func (r *componentREST) Get(ctx context.Context, name string, _ *metav1.GetOptions) (runtime.Object, error) {
	check, ok := r.parts[name]
	if !ok {
		return nil, apierrors.NewNotFound(corev1.Resource("componentstatuses"), name)
	}
	return componentStatus(ctx, name, check), nil
}

func (r *componentREST) List(ctx context.Context, options *internalversion.ListOptions) (runtime.Object, error) {
	list := &corev1.ComponentStatusList{Items: []corev1.ComponentStatus{}}
	if s := options.LabelSelector; s != nil && !s.Matches(labels.Set{}) {
		return list, nil
	}
	for _, name := range slices.Sorted(maps.Keys(r.parts)) {
		if s := options.FieldSelector; s == nil || s.Matches(fields.Set{"metadata.name": name, "metadata.namespace": ""}) {
			list.Items = append(list.Items, *componentStatus(ctx, name, r.parts[name]))
		}
	}
	return list, nil
}

func componentStatus(ctx context.Context, name string, check func(context.Context) error) *corev1.ComponentStatus {
	c := corev1.ComponentCondition{Type: corev1.ComponentHealthy, Status: corev1.ConditionTrue, Message: "ok"}
	if err := check(ctx); err != nil {
		c.Status, c.Message, c.Error = corev1.ConditionFalse, "", err.Error()
	}
	return &corev1.ComponentStatus{ObjectMeta: metav1.ObjectMeta{Name: name}, Conditions: []corev1.ComponentCondition{c}}
}
