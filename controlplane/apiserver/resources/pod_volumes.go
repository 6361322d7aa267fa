package resources

import (
	"path"
	"reflect"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// oneMember checks that of a struct of pointers exactly one is set. The first one counts, the others are forbidden.
func oneMember(union any, p *field.Path, what string) field.ErrorList {
	var errs field.ErrorList
	v := reflect.ValueOf(union)
	found := false
	for i := range v.NumField() {
		if v.Field(i).Kind() != reflect.Pointer || v.Field(i).IsNil() {
			continue
		}
		if found {
			name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
			errs = append(errs, field.Forbidden(p.Child(name), "may not specify more than 1 "+what+" type"))
		}
		found = true
	}
	if !found {
		errs = append(errs, field.Required(p, "must specify a "+what+" type"))
	}
	return errs
}

// validateVolumes checks a pod's volumes and returns their names.
func validateVolumes(vols []corev1.Volume, p *field.Path) (sets.Set[string], field.ErrorList) {
	var errs field.ErrorList
	names := sets.New[string]()
	for i := range vols {
		v, vp := &vols[i], p.Index(i)
		if v.Name == "" {
			errs = append(errs, field.Required(vp.Child("name"), ""))
		} else {
			errs = append(errs, invalidIf(validation.IsDNS1123Label(v.Name), vp.Child("name"), v.Name)...)
		}
		if v.Name != "" && names.Has(v.Name) {
			errs = append(errs, field.Duplicate(vp.Child("name"), v.Name))
		}
		names.Insert(v.Name)
		errs = append(errs, oneMember(v.VolumeSource, vp, "volume")...)
		errs = append(errs, validateVolumeSource(&v.VolumeSource, vp)...)
	}
	return names, errs
}

func validateVolumeSource(s *corev1.VolumeSource, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	required := func(value string, path *field.Path) {
		if value == "" {
			errs = append(errs, field.Required(path, ""))
		}
	}
	if v := s.Secret; v != nil {
		required(v.SecretName, p.Child("secret", "secretName"))
		errs = append(errs, validateMode(v.DefaultMode, p.Child("secret", "defaultMode"))...)
		errs = append(errs, validateItems(v.Items, p.Child("secret", "items"))...)
	}
	if v := s.ConfigMap; v != nil {
		required(v.Name, p.Child("configMap", "name"))
		errs = append(errs, validateMode(v.DefaultMode, p.Child("configMap", "defaultMode"))...)
		errs = append(errs, validateItems(v.Items, p.Child("configMap", "items"))...)
	}
	if v := s.HostPath; v != nil {
		required(v.Path, p.Child("hostPath", "path"))
		errs = append(errs, validateNoBacksteps(v.Path, p.Child("hostPath", "path"))...)
		if v.Type != nil && *v.Type != corev1.HostPathUnset {
			errs = append(errs, oneOf(*v.Type, p.Child("hostPath", "type"), corev1.HostPathBlockDev, corev1.HostPathCharDev, corev1.HostPathDirectory,
				corev1.HostPathDirectoryOrCreate, corev1.HostPathFile, corev1.HostPathFileOrCreate, corev1.HostPathSocket)...)
		}
	}
	if v := s.PersistentVolumeClaim; v != nil {
		required(v.ClaimName, p.Child("persistentVolumeClaim", "claimName"))
	}
	if v := s.EmptyDir; v != nil && v.SizeLimit != nil && v.SizeLimit.Sign() < 0 {
		errs = append(errs, field.Forbidden(p.Child("emptyDir", "sizeLimit"), "SizeLimit field must be a valid resource quantity"))
	}
	if v := s.NFS; v != nil {
		required(v.Server, p.Child("nfs", "server"))
		required(v.Path, p.Child("nfs", "path"))
	}
	if v := s.CSI; v != nil {
		required(v.Driver, p.Child("csi", "driver"))
	}
	if v := s.Image; v != nil {
		required(v.Reference, p.Child("image", "reference"))
	}
	if v := s.DownwardAPI; v != nil {
		errs = append(errs, validateMode(v.DefaultMode, p.Child("downwardAPI", "defaultMode"))...)
		for i := range v.Items {
			errs = append(errs, validateDownwardFile(&v.Items[i], p.Child("downwardAPI"))...)
		}
	}
	if v := s.Projected; v != nil {
		errs = append(errs, validateProjected(v, p.Child("projected"))...)
	}
	return errs
}

func validateProjected(v *corev1.ProjectedVolumeSource, p *field.Path) field.ErrorList {
	errs := validateMode(v.DefaultMode, p.Child("defaultMode"))
	paths := sets.New[string]()
	unique := func(path string) {
		if path != "" && paths.Has(path) {
			errs = append(errs, field.Invalid(p, path, "conflicting duplicate paths"))
		}
		paths.Insert(path)
	}
	items := func(name string, list []corev1.KeyToPath, path *field.Path) {
		if name == "" {
			errs = append(errs, field.Required(path.Child("name"), ""))
		}
		errs = append(errs, validateItems(list, path.Child("items"))...)
		for _, item := range list {
			unique(item.Path)
		}
	}
	for i := range v.Sources {
		src, sp := &v.Sources[i], p.Child("sources").Index(i)
		if src.Secret != nil {
			items(src.Secret.Name, src.Secret.Items, sp.Child("secret"))
		}
		if src.ConfigMap != nil {
			items(src.ConfigMap.Name, src.ConfigMap.Items, sp.Child("configMap"))
		}
		if src.DownwardAPI != nil {
			for j := range src.DownwardAPI.Items {
				errs = append(errs, validateDownwardFile(&src.DownwardAPI.Items[j], sp.Child("downwardAPI"))...)
				unique(src.DownwardAPI.Items[j].Path)
			}
		}
		if t := src.ServiceAccountToken; t != nil {
			tp := sp.Child("serviceAccountToken")
			if t.ExpirationSeconds != nil && *t.ExpirationSeconds < 10*60 {
				errs = append(errs, field.Invalid(tp.Child("expirationSeconds"), *t.ExpirationSeconds, "may not specify a duration less than 10 minutes"))
			}
			if t.ExpirationSeconds != nil && *t.ExpirationSeconds > 1<<32 {
				errs = append(errs, field.Invalid(tp.Child("expirationSeconds"), *t.ExpirationSeconds, "may not specify a duration larger than 2^32 seconds"))
			}
			if t.Path == "" { // the reference leaves the source out of this path
				errs = append(errs, field.Required(p.Child("path"), ""))
			} else {
				errs = append(errs, validateLocalPath(t.Path, p.Child("path"))...)
			}
			unique(t.Path)
		}
		if count(src.Secret != nil, src.ConfigMap != nil, src.DownwardAPI != nil, src.ServiceAccountToken != nil, src.ClusterTrustBundle != nil) > 1 {
			errs = append(errs, field.Forbidden(sp, "may not specify more than 1 volume type per source"))
		}
	}
	return errs
}

const badMode = "must be a number between 0 and 0777 (octal), both inclusive"

func validateMode(mode *int32, p *field.Path) field.ErrorList {
	if mode != nil && (*mode < 0 || *mode > 0o777) {
		return field.ErrorList{field.Invalid(p, *mode, badMode)}
	}
	return nil
}

func validateItems(items []corev1.KeyToPath, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, item := range items {
		ip := p.Index(i)
		if item.Key == "" {
			errs = append(errs, field.Required(ip.Child("key"), ""))
		}
		if item.Path == "" {
			errs = append(errs, field.Required(ip.Child("path"), ""))
		}
		errs = append(errs, validateLocalPath(item.Path, ip.Child("path"))...)
		errs = append(errs, validateMode(item.Mode, ip.Child("mode"))...)
	}
	return errs
}

func validateDownwardFile(f *corev1.DownwardAPIVolumeFile, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	if f.Path == "" {
		errs = append(errs, field.Required(p.Child("path"), ""))
	}
	errs = append(errs, validateLocalPath(f.Path, p.Child("path"))...)
	errs = append(errs, validateMode(f.Mode, p.Child("mode"))...)
	switch {
	case f.FieldRef != nil && f.ResourceFieldRef != nil:
		errs = append(errs, field.Invalid(p, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously"))
	case f.FieldRef != nil:
		errs = append(errs, validateFieldRef(f.FieldRef, p.Child("fieldRef"), volumeFields)...)
	case f.ResourceFieldRef != nil:
		if f.ResourceFieldRef.ContainerName == "" {
			errs = append(errs, field.Required(p.Child("resourceFieldRef", "containerName"), ""))
		}
		errs = append(errs, validateResourceFieldRef(f.ResourceFieldRef, p.Child("resourceFieldRef"))...)
	default:
		errs = append(errs, field.Required(p, "one of fieldRef and resourceFieldRef is required"))
	}
	return errs
}

func validateNoBacksteps(name string, p *field.Path) field.ErrorList {
	for _, part := range strings.Split(name, "/") {
		if part == ".." {
			return field.ErrorList{field.Invalid(p, name, "must not contain '..'")}
		}
	}
	return nil
}

func validateDescendingPath(name string, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	if path.IsAbs(name) {
		errs = append(errs, field.Invalid(p, name, "must be a relative path"))
	}
	return append(errs, validateNoBacksteps(name, p)...)
}

// validateLocalPath is for files that the kubelet writes; it keeps names that start with two dots for itself.
func validateLocalPath(name string, p *field.Path) field.ErrorList {
	errs := validateDescendingPath(name, p)
	if len(errs) == 0 && strings.HasPrefix(name, "..") {
		errs = append(errs, field.Invalid(p, name, "must not start with '..'"))
	}
	return errs
}
