package resources

import (
	"fmt"
	"regexp"
	"strings"

	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// validateAttributes checks what a driver tells of a device: names, in a domain or in that of the driver, and one value for each attribute.
func validateAttributes(d resourcev1.Device, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	values := 0
	for name, a := range d.Attributes {
		values += max(1, len(a.IntValues)+len(a.BoolValues)+len(a.StringValues)+len(a.VersionValues))
		ap := p.Child("attributes").Key(string(name))
		errs = append(errs, validateAttributeName(string(name), ap)...)
		errs = append(errs, validateAttribute(a, ap)...)
	}
	if values > resourcev1.ResourceSliceMaxAttributeValuesPerDevice {
		errs = append(errs, field.Invalid(p.Child("attributes"), values, fmt.Sprintf("the total number of values must not exceed %d", resourcev1.ResourceSliceMaxAttributeValuesPerDevice)))
	}
	for name := range d.Capacity {
		errs = append(errs, validateAttributeName(string(name), p.Child("capacity").Key(string(name)))...)
	}
	return errs
}

// validateAttributeName wants a C identifier, behind a domain if there is a slash.
func validateAttributeName(name string, p *field.Path) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(p, "name required")}
	}
	domain, id, has := strings.Cut(name, "/")
	if !has {
		return validateIdentifier(name, p)
	}
	var errs field.ErrorList
	if domain == "" {
		errs = append(errs, field.Required(p, "the domain must not be empty"))
	} else {
		errs = append(errs, validateDriverName(domain, p)...)
	}
	if id == "" {
		return append(errs, field.Required(p, "the name must not be empty"))
	}
	return append(errs, validateIdentifier(id, p)...)
}

// validateFullAttributeName is for who asks for attributes of any driver: there must be a domain.
func validateFullAttributeName(name string, p *field.Path) field.ErrorList {
	errs := validateAttributeName(name, p)
	if name != "" && !strings.Contains(name, "/") {
		errs = append(errs, field.Invalid(p, name, "must include a domain"))
	}
	return errs
}

func validateIdentifier(id string, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	if len(id) > resourcev1.DeviceMaxIDLength {
		errs = append(errs, field.TooLong(p, "", resourcev1.DeviceMaxIDLength))
	}
	for _, msg := range validation.IsCIdentifier(id) {
		errs = append(errs, field.TypeInvalid(p, id, msg))
	}
	return errs
}

// semantic is a version as semver.org 2.0.0 defines it.
var semantic = regexp.MustCompile(`^(0|[1-9]\d*)(\.(0|[1-9]\d*)){2}(-` + prerelease + `(\.` + prerelease + `)*)?(\+[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?$`)

const prerelease = `(0|[1-9]\d*|\d*[A-Za-z-][0-9A-Za-z-]*)`

func validateAttribute(a resourcev1.DeviceAttribute, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	text := func(v string, vp *field.Path) {
		if len(v) > resourcev1.DeviceAttributeMaxValueLength {
			errs = append(errs, field.TooLong(vp, "", resourcev1.DeviceAttributeMaxValueLength))
		}
	}
	version := func(v string, vp *field.Path) {
		text(v, vp)
		if !semantic.MatchString(v) {
			errs = append(errs, field.Invalid(vp, v, "must be a string compatible with semver.org spec 2.0.0"))
		}
	}
	if a.StringValue != nil {
		text(*a.StringValue, p.Child("string"))
	}
	if a.VersionValue != nil {
		version(*a.VersionValue, p.Child("version"))
	}
	for i, v := range a.StringValues {
		text(v, p.Child("strings").Index(i))
	}
	for i, v := range a.VersionValues {
		version(v, p.Child("versions").Index(i))
	}
	switch count(a.IntValue != nil, a.BoolValue != nil, a.StringValue != nil, a.VersionValue != nil, len(a.IntValues) > 0, len(a.BoolValues) > 0, len(a.StringValues) > 0, len(a.VersionValues) > 0) {
	case 0:
		errs = append(errs, field.Invalid(p, "", "exactly one value must be specified"))
	case 1:
	default:
		errs = append(errs, field.Invalid(p, a, "exactly one value must be specified"))
	}
	return errs
}
