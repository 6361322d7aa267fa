package resources

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
)

func storage() []*descriptor.Resource {
	return []*descriptor.Resource{storageClasses(), volumeAttributesClasses(), csiDrivers(), csiNodes(), csiCapacities(), volumeAttachments()}
}

func storageClasses() *descriptor.Resource {
	return kind[storagev1.StorageClass, storagev1.StorageClassList]("StorageClass", descriptor.Resource{
		GroupVersion: storagev1.SchemeGroupVersion, Plural: "storageclasses", ShortNames: []string{"sc"},
		Default: descriptor.Each(func(s *storagev1.StorageClass) {
			set(&s.ReclaimPolicy, corev1.PersistentVolumeReclaimDelete)
			set(&s.VolumeBindingMode, storagev1.VolumeBindingImmediate)
		}),
		Validate: descriptor.Check(func(s *storagev1.StorageClass) field.ErrorList {
			var errs field.ErrorList
			if s.Provisioner == "" {
				errs = append(errs, field.Required(field.NewPath("provisioner"), ""))
			} else {
				errs = append(errs, invalidIf(validation.IsQualifiedName(strings.ToLower(s.Provisioner)), field.NewPath("provisioner"), s.Provisioner)...)
			}
			errs = append(errs, validateParameters(s.Parameters, field.NewPath("parameters"))...)
			if r := s.ReclaimPolicy; r != nil {
				errs = append(errs, oneOf(*r, field.NewPath("reclaimPolicy"), corev1.PersistentVolumeReclaimDelete, corev1.PersistentVolumeReclaimRetain)...)
			}
			if m := s.VolumeBindingMode; m != nil {
				errs = append(errs, oneOf(*m, field.NewPath("volumeBindingMode"), storagev1.VolumeBindingImmediate, storagev1.VolumeBindingWaitForFirstConsumer)...)
			}
			for i, t := range s.AllowedTopologies {
				errs = append(errs, validateTopologyTerm(t, field.NewPath("allowedTopologies").Index(i))...)
			}
			return errs
		}),
		ValidateUpdate: descriptor.CheckUpdate(func(s, old *storagev1.StorageClass) field.ErrorList {
			var errs field.ErrorList
			forbid := func(name string, now, was any) {
				if bad := apivalidation.ValidateImmutableField(now, was, field.NewPath(name)); len(bad) > 0 {
					errs = append(errs, field.Forbidden(field.NewPath(name), "updates to "+name+" are forbidden."))
				}
			}
			forbid("parameters", s.Parameters, old.Parameters)
			forbid("provisioner", s.Provisioner, old.Provisioner)
			forbid("reclaimPolicy", s.ReclaimPolicy, old.ReclaimPolicy)
			return append(errs, apivalidation.ValidateImmutableField(s.VolumeBindingMode, old.VolumeBindingMode, field.NewPath("volumeBindingMode"))...)
		}),
		Columns: []descriptor.Column{
			classColumn("storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"),
			{Name: "Provisioner", Cell: descriptor.Cell(func(s *storagev1.StorageClass) string { return s.Provisioner })},
			{Name: "ReclaimPolicy", Cell: descriptor.Cell(func(s *storagev1.StorageClass) string { return valueOr(s.ReclaimPolicy, "Delete") })},
			{Name: "VolumeBindingMode", Cell: descriptor.Cell(func(s *storagev1.StorageClass) string { return valueOr(s.VolumeBindingMode, "Immediate") })},
			{Name: "AllowVolumeExpansion", Cell: descriptor.Cell(func(s *storagev1.StorageClass) string { return valueOr(s.AllowVolumeExpansion, "false") })},
			descriptor.Age,
		},
	})
}

// Limits of a class's parameters, by number and by bytes of all keys and values.
const (
	maxParameters    = 512
	maxParameterSize = 256 << 10
)

func validateParameters(parameters map[string]string, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	if len(parameters) > maxParameters {
		errs = append(errs, field.TooLong(p, "", maxParameters))
	}
	size := 0
	for k, v := range parameters {
		if k == "" {
			errs = append(errs, field.Invalid(p, k, "field can not be empty."))
		}
		size += len(k) + len(v)
	}
	if size > maxParameterSize {
		errs = append(errs, field.TooLong(p, "", maxParameterSize))
	}
	return errs
}

func validateTopologyTerm(t corev1.TopologySelectorTerm, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	seen := sets.New[string]()
	for i, e := range t.MatchLabelExpressions {
		ep := p.Child("matchLabelExpressions").Index(i)
		errs = append(errs, metav1validation.ValidateLabelName(e.Key, ep.Child("key"))...)
		if seen.Has(e.Key) {
			errs = append(errs, field.Duplicate(ep.Child("key"), e.Key))
		}
		seen.Insert(e.Key)
		if len(e.Values) == 0 {
			errs = append(errs, field.Required(ep.Child("values"), ""))
		}
		values := sets.New[string]()
		for j, v := range e.Values {
			if values.Has(v) {
				errs = append(errs, field.Duplicate(ep.Child("values").Index(j), v))
			}
			values.Insert(v)
		}
	}
	return errs
}

func volumeAttributesClasses() *descriptor.Resource {
	return kind[storagev1.VolumeAttributesClass, storagev1.VolumeAttributesClassList]("VolumeAttributesClass", descriptor.Resource{
		GroupVersion: storagev1.SchemeGroupVersion, Plural: "volumeattributesclasses", ShortNames: []string{"vac"},
		Validate: descriptor.Check(func(c *storagev1.VolumeAttributesClass) field.ErrorList {
			errs := validateDriverName(c.DriverName, field.NewPath("driverName"))
			if len(c.Parameters) == 0 {
				errs = append(errs, field.Required(field.NewPath("parameters"), "must contain at least one key/value pair"))
			}
			return append(errs, validateParameters(c.Parameters, field.NewPath("parameters"))...)
		}),
		ValidateUpdate: descriptor.CheckUpdate(func(c, old *storagev1.VolumeAttributesClass) field.ErrorList {
			return append(apivalidation.ValidateImmutableField(c.DriverName, old.DriverName, field.NewPath("driverName")),
				apivalidation.ValidateImmutableField(c.Parameters, old.Parameters, field.NewPath("parameters"))...)
		}),
		Columns: []descriptor.Column{
			{Name: "DriverName", Cell: descriptor.Cell(func(c *storagev1.VolumeAttributesClass) string { return c.DriverName })},
			descriptor.Age,
		},
	})
}

// validateDriverName checks the name of a CSI driver (CSI: at most 63 characters, of a domain's).
func validateDriverName(name string, p *field.Path) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(p, "")}
	}
	var errs field.ErrorList
	if len(name) > validation.DNS1123LabelMaxLength {
		errs = append(errs, field.TooLong(p, "", validation.DNS1123LabelMaxLength))
	}
	return append(errs, invalidIf(validation.IsDNS1123Subdomain(strings.ToLower(name)), p, name)...)
}

func csiDrivers() *descriptor.Resource {
	return kind[storagev1.CSIDriver, storagev1.CSIDriverList]("CSIDriver", descriptor.Resource{
		GroupVersion: storagev1.SchemeGroupVersion, Generation: true,
		Default: descriptor.Each(func(d *storagev1.CSIDriver) {
			s := &d.Spec
			set(&s.AttachRequired, true)
			set(&s.PodInfoOnMount, false)
			set(&s.StorageCapacity, false)
			set(&s.FSGroupPolicy, storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy)
			set(&s.RequiresRepublish, false)
			set(&s.SELinuxMount, false)
			if len(s.VolumeLifecycleModes) == 0 {
				s.VolumeLifecycleModes = []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecyclePersistent}
			}
		}),
		Validate: descriptor.Check(func(d *storagev1.CSIDriver) field.ErrorList {
			p := field.NewPath("spec")
			errs := validateDriverName(d.Name, field.NewPath("name"))
			for _, m := range d.Spec.VolumeLifecycleModes {
				errs = append(errs, oneOf(m, p.Child("volumeLifecycleModes"), storagev1.VolumeLifecycleEphemeral, storagev1.VolumeLifecyclePersistent)...)
			}
			if g := d.Spec.FSGroupPolicy; g != nil {
				errs = append(errs, oneOf(*g, p.Child("fsGroupPolicy"), storagev1.FileFSGroupPolicy, storagev1.NoneFSGroupPolicy, storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy)...)
			}
			const shortest = 600 // seconds
			audiences := sets.New[string]()
			for i, t := range d.Spec.TokenRequests {
				tp := p.Child("tokenRequests").Index(i)
				if audiences.Has(t.Audience) {
					errs = append(errs, field.Duplicate(tp.Child("audience"), t.Audience))
				}
				audiences.Insert(t.Audience)
				if e := t.ExpirationSeconds; e != nil && (*e < shortest || *e > 1<<32) {
					errs = append(errs, field.Invalid(tp.Child("expirationSeconds"), *e, "may not be less than 10 minutes or larger than 1<<32 seconds"))
				}
			}
			return errs
		}),
		ValidateUpdate: descriptor.CheckUpdate(func(d, old *storagev1.CSIDriver) field.ErrorList {
			p := field.NewPath("spec")
			return append(apivalidation.ValidateImmutableField(d.Spec.AttachRequired, old.Spec.AttachRequired, p.Child("attachRequired")),
				apivalidation.ValidateImmutableField(d.Spec.VolumeLifecycleModes, old.Spec.VolumeLifecycleModes, p.Child("volumeLifecycleModes"))...)
		}),
		Columns: []descriptor.Column{
			{Name: "AttachRequired", Type: "boolean", Cell: descriptor.Cell(func(d *storagev1.CSIDriver) bool { return d.Spec.AttachRequired == nil || *d.Spec.AttachRequired })},
			{Name: "PodInfoOnMount", Type: "boolean", Cell: descriptor.Cell(func(d *storagev1.CSIDriver) bool { return isTrue(d.Spec.PodInfoOnMount) })},
			{Name: "StorageCapacity", Type: "boolean", Cell: descriptor.Cell(func(d *storagev1.CSIDriver) bool { return isTrue(d.Spec.StorageCapacity) })},
			{Name: "TokenRequests", Cell: descriptor.Cell(func(d *storagev1.CSIDriver) string {
				var out []string
				for _, t := range d.Spec.TokenRequests {
					out = append(out, t.Audience)
				}
				return unset(out)
			})},
			{Name: "RequiresRepublish", Type: "boolean", Cell: descriptor.Cell(func(d *storagev1.CSIDriver) bool { return isTrue(d.Spec.RequiresRepublish) })},
			{Name: "Modes", Cell: descriptor.Cell(func(d *storagev1.CSIDriver) string {
				var out []string
				for _, m := range d.Spec.VolumeLifecycleModes {
					out = append(out, string(m))
				}
				return joined(out)
			})},
			descriptor.Age,
		},
	})
}

func isTrue(b *bool) bool { return b != nil && *b }

func csiNodes() *descriptor.Resource {
	return kind[storagev1.CSINode, storagev1.CSINodeList]("CSINode", descriptor.Resource{
		GroupVersion: storagev1.SchemeGroupVersion,
		Validate: descriptor.Check(func(n *storagev1.CSINode) field.ErrorList {
			var errs field.ErrorList
			names := sets.New[string]()
			for i, d := range n.Spec.Drivers {
				p := field.NewPath("spec", "drivers").Index(i)
				errs = append(errs, validateDriverName(d.Name, p.Child("name"))...)
				if names.Has(d.Name) {
					errs = append(errs, field.Duplicate(p.Child("name"), d.Name))
				}
				names.Insert(d.Name)
				const longest = 192 // what CSI allows for a node's id since v1.4
				switch {
				case d.NodeID == "":
					errs = append(errs, field.Required(p.Child("nodeID"), d.NodeID))
				case len(d.NodeID) > longest:
					errs = append(errs, field.Invalid(p.Child("nodeID"), d.NodeID, fmt.Sprintf("must be %d characters or less", longest)))
				}
				if a := d.Allocatable; a != nil && a.Count != nil && *a.Count < 0 {
					errs = append(errs, field.Invalid(p.Child("allocatable", "count"), *a.Count, "must be greater than or equal to 0"))
				}
				keys := sets.New[string]()
				for j, k := range d.TopologyKeys {
					kp := p.Child("topologyKeys").Index(j)
					errs = append(errs, invalidIf(validation.IsQualifiedName(k), kp, k)...)
					if keys.Has(k) {
						errs = append(errs, field.Duplicate(kp, k))
					}
					keys.Insert(k)
				}
			}
			return errs
		}),
		ValidateUpdate: descriptor.CheckUpdate(func(n, old *storagev1.CSINode) field.ErrorList {
			var errs field.ErrorList
			for i, d := range n.Spec.Drivers {
				for _, was := range old.Spec.Drivers {
					if was.Name == d.Name {
						was.Allocatable = d.Allocatable // a driver may learn how much it can hold
						errs = append(errs, apivalidation.ValidateImmutableField(d, was, field.NewPath("spec", "drivers").Index(i))...)
					}
				}
			}
			return errs
		}),
		Columns: []descriptor.Column{
			{Name: "Drivers", Type: "integer", Cell: descriptor.Cell(func(n *storagev1.CSINode) int64 { return int64(len(n.Spec.Drivers)) })},
			descriptor.Age,
		},
	})
}

func csiCapacities() *descriptor.Resource {
	return kind[storagev1.CSIStorageCapacity, storagev1.CSIStorageCapacityList]("CSIStorageCapacity", descriptor.Resource{
		GroupVersion: storagev1.SchemeGroupVersion, Plural: "csistoragecapacities", Namespaced: true,
		Validate: descriptor.Check(func(c *storagev1.CSIStorageCapacity) field.ErrorList {
			errs := invalidIf(subdomain(c.StorageClassName), field.NewPath("storageClassName"), c.StorageClassName)
			if c.NodeTopology != nil {
				errs = append(errs, metav1validation.ValidateLabelSelector(c.NodeTopology, metav1validation.LabelSelectorValidationOptions{}, field.NewPath("nodeTopology"))...)
			}
			if q := c.Capacity; q != nil && q.Sign() < 0 {
				errs = append(errs, field.Invalid(field.NewPath("capacity"), q.String(), "must be greater than or equal to 0"))
			}
			if q := c.MaximumVolumeSize; q != nil && q.Sign() < 0 {
				errs = append(errs, field.Invalid(field.NewPath("maximumVolumeSize"), q.String(), "must be greater than or equal to 0"))
			}
			return errs
		}),
		ValidateUpdate: descriptor.CheckUpdate(func(c, old *storagev1.CSIStorageCapacity) field.ErrorList {
			return append(apivalidation.ValidateImmutableField(c.NodeTopology, old.NodeTopology, field.NewPath("nodeTopology")),
				apivalidation.ValidateImmutableField(c.StorageClassName, old.StorageClassName, field.NewPath("storageClassName"))...)
		}),
		Columns: []descriptor.Column{
			{Name: "StorageClassName", Cell: descriptor.Cell(func(c *storagev1.CSIStorageCapacity) string { return c.StorageClassName })},
			{Name: "Capacity", Cell: descriptor.Cell(func(c *storagev1.CSIStorageCapacity) string {
				if c.Capacity == nil {
					return "<unset>"
				}
				return c.Capacity.String()
			})},
		},
	})
}

func volumeAttachments() *descriptor.Resource {
	return kind[storagev1.VolumeAttachment, storagev1.VolumeAttachmentList]("VolumeAttachment", descriptor.Resource{
		GroupVersion: storagev1.SchemeGroupVersion, Status: true,
		Validate: descriptor.Check(func(a *storagev1.VolumeAttachment) field.ErrorList {
			p := field.NewPath("spec")
			errs := validateDriverName(a.Spec.Attacher, p.Child("attacher"))
			if a.Spec.NodeName == "" {
				errs = append(errs, field.Required(p.Child("nodeName"), ""))
			} else {
				errs = append(errs, invalidIf(subdomain(a.Spec.NodeName), p.Child("nodeName"), a.Spec.NodeName)...)
			}
			name, inline := a.Spec.Source.PersistentVolumeName, a.Spec.Source.InlineVolumeSpec
			switch {
			case name == nil && inline == nil:
				errs = append(errs, field.Required(p.Child("source"), "must specify exactly one of inlineVolumeSpec and persistentVolumeName"))
			case name != nil && inline != nil:
				errs = append(errs, field.Forbidden(p.Child("source"), "must specify exactly one of inlineVolumeSpec and persistentVolumeName"))
			case name != nil && *name == "":
				errs = append(errs, field.Required(p.Child("source", "persistentVolumeName"), "must specify non empty persistentVolumeName"))
			}
			return errs
		}),
		ValidateUpdate: descriptor.CheckUpdate(func(a, old *storagev1.VolumeAttachment) field.ErrorList {
			return apivalidation.ValidateImmutableField(a.Spec, old.Spec, field.NewPath("spec"))
		}),
		Columns: []descriptor.Column{
			{Name: "Attacher", Cell: descriptor.Cell(func(a *storagev1.VolumeAttachment) string { return a.Spec.Attacher })},
			{Name: "PV", Cell: descriptor.Cell(func(a *storagev1.VolumeAttachment) string { return valueOr(a.Spec.Source.PersistentVolumeName, "") })},
			{Name: "Node", Cell: descriptor.Cell(func(a *storagev1.VolumeAttachment) string { return a.Spec.NodeName })},
			{Name: "Attached", Type: "boolean", Cell: descriptor.Cell(func(a *storagev1.VolumeAttachment) bool { return a.Status.Attached })},
			descriptor.Age,
		},
	})
}
