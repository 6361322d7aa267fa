package resources

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// What a pod may tell its containers about itself: as variables, and as files.
var (
	envFields    = []string{"metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs"}
	volumeFields = []string{"metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"}
	refResources = []string{"limits.cpu", "limits.ephemeral-storage", "limits.memory", "requests.cpu", "requests.ephemeral-storage", "requests.memory"}
)

func validateEnv(e corev1.EnvVar, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	if e.Name == "" {
		errs = append(errs, field.Required(p.Child("name"), ""))
	} else {
		errs = append(errs, invalidIf(validation.IsRelaxedEnvVarName(e.Name), p.Child("name"), e.Name)...)
	}
	v, p := e.ValueFrom, p.Child("valueFrom")
	if v == nil {
		return errs
	}
	if v.FieldRef != nil {
		errs = append(errs, validateFieldRef(v.FieldRef, p.Child("fieldRef"), envFields)...)
	}
	if v.ResourceFieldRef != nil {
		errs = append(errs, validateResourceFieldRef(v.ResourceFieldRef, p.Child("resourceFieldRef"))...)
	}
	if r := v.ConfigMapKeyRef; r != nil {
		errs = append(errs, validateKeyRef(r.Name, r.Key, p.Child("configMapKeyRef"))...)
	}
	if r := v.SecretKeyRef; r != nil {
		errs = append(errs, validateKeyRef(r.Name, r.Key, p.Child("secretKeyRef"))...)
	}
	switch n := count(v.FieldRef != nil, v.ResourceFieldRef != nil, v.ConfigMapKeyRef != nil, v.SecretKeyRef != nil, v.FileKeyRef != nil); {
	case n == 0:
		errs = append(errs, field.Invalid(p, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"))
	case e.Value != "":
		errs = append(errs, field.Invalid(p, "", "may not be specified when `value` is not empty"))
	case n > 1:
		errs = append(errs, field.Invalid(p, "", "may not have more than one field specified at a time"))
	}
	return errs
}

func validateEnvFrom(e corev1.EnvFromSource, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	if e.Prefix != "" {
		errs = append(errs, invalidIf(validation.IsRelaxedEnvVarName(e.Prefix), p.Child("prefix"), e.Prefix)...)
	}
	if e.ConfigMapRef != nil && e.ConfigMapRef.Name == "" {
		errs = append(errs, field.Required(p.Child("configMapRef", "name"), ""))
	}
	if e.SecretRef != nil && e.SecretRef.Name == "" {
		errs = append(errs, field.Required(p.Child("secretRef", "name"), ""))
	}
	switch count(e.ConfigMapRef != nil, e.SecretRef != nil) {
	case 0:
		errs = append(errs, field.Invalid(p, "", "must specify one of: `configMapRef` or `secretRef`"))
	case 2:
		errs = append(errs, field.Invalid(p, "", "may not have more than one field specified at a time"))
	}
	return errs
}

func validateKeyRef(name, key string, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	if name == "" {
		errs = append(errs, field.Required(p.Child("name"), ""))
	}
	if key == "" {
		return append(errs, field.Required(p.Child("key"), ""))
	}
	return append(errs, invalidIf(validation.IsConfigMapKey(key), p.Child("key"), key)...)
}

func validateFieldRef(r *corev1.ObjectFieldSelector, p *field.Path, allowed []string) field.ErrorList {
	if r.APIVersion == "" {
		return field.ErrorList{field.Required(p.Child("apiVersion"), "")}
	}
	p = p.Child("fieldPath")
	if r.FieldPath == "" {
		return field.ErrorList{field.Required(p, "")}
	}
	// One label or annotation: metadata.labels['key'].
	if base, key, ok := strings.Cut(r.FieldPath, "['"); ok && strings.HasSuffix(key, "']") {
		key = strings.TrimSuffix(key, "']")
		switch base {
		case "metadata.annotations":
			key = strings.ToLower(key)
			fallthrough
		case "metadata.labels":
			return metav1validation.ValidateLabelName(key, p)
		}
		return field.ErrorList{field.Invalid(p, r.FieldPath, "does not support subscript")}
	}
	if !slices.Contains(allowed, r.FieldPath) {
		return field.ErrorList{field.NotSupported(p, r.FieldPath, allowed)}
	}
	return nil
}

func validateResourceFieldRef(r *corev1.ResourceFieldSelector, p *field.Path) field.ErrorList {
	p = p.Child("resource")
	if r.Resource == "" {
		return field.ErrorList{field.Required(p, "")}
	}
	if !slices.Contains(refResources, r.Resource) && !strings.HasPrefix(r.Resource, "limits."+corev1.ResourceHugePagesPrefix) && !strings.HasPrefix(r.Resource, "requests."+corev1.ResourceHugePagesPrefix) {
		return field.ErrorList{field.NotSupported(p, r.Resource, refResources)}
	}
	return nil
}
