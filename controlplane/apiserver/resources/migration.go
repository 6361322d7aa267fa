package resources

import (
	storagemigrationv1 "k8s.io/api/storagemigration/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
)

func storageMigrations() []*descriptor.Resource {
	return []*descriptor.Resource{kind[storagemigrationv1.StorageVersionMigration, storagemigrationv1.StorageVersionMigrationList]("StorageVersionMigration", descriptor.Resource{
		GroupVersion: storagemigrationv1.SchemeGroupVersion, Generation: true, Status: true,
		Validate: descriptor.Check(func(m *storagemigrationv1.StorageVersionMigration) field.ErrorList {
			r, p := m.Spec.Resource, field.NewPath("spec", "resource")
			var errs field.ErrorList
			if r.Resource == "" {
				errs = append(errs, field.Required(p.Child("resource"), "resource is required"))
			} else {
				errs = append(errs, invalidIf(validation.IsDNS1035Label(r.Resource), p.Child("resource"), r.Resource)...)
			}
			if r.Group != "" {
				errs = append(errs, invalidIf(validation.IsDNS1123Subdomain(r.Group), p.Child("group"), r.Group)...)
			}
			return errs
		}),
		ValidateUpdate: descriptor.CheckUpdate(func(m, old *storagemigrationv1.StorageVersionMigration) field.ErrorList {
			return apivalidation.ValidateImmutableField(m.Spec, old.Spec, field.NewPath("spec"))
		}),
		Columns: []descriptor.Column{
			{Name: "Resource", Cell: descriptor.Cell(func(m *storagemigrationv1.StorageVersionMigration) string {
				return m.Spec.Resource.String()
			})},
			descriptor.Age,
		},
	})}
}
