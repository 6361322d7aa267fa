package resources

import (
	"path"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func validatePod(p *corev1.Pod) field.ErrorList {
	return validatePodSpec(&p.Spec, field.NewPath("spec"))
}

// validatePodTemplate is for everything that makes pods. allowed lists the restart policies that fit the owner.
func validatePodTemplate(t *corev1.PodTemplateSpec, p *field.Path, allowed ...corev1.RestartPolicy) field.ErrorList {
	errs := metav1validation.ValidateLabels(t.Labels, p.Child("metadata", "labels"))
	errs = append(errs, apivalidation.ValidateAnnotations(t.Annotations, p.Child("metadata", "annotations"))...)
	errs = append(errs, validatePodSpec(&t.Spec, p.Child("spec"))...)
	if s := sets.New(allowed...); t.Spec.RestartPolicy != "" && !s.Has(t.Spec.RestartPolicy) {
		errs = append(errs, field.NotSupported(p.Child("spec", "restartPolicy"), t.Spec.RestartPolicy, sets.List(s)))
	}
	return errs
}

func validatePodSpec(s *corev1.PodSpec, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	errs = append(errs, oneOf(s.RestartPolicy, p.Child("restartPolicy"), corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)...)
	errs = append(errs, oneOf(s.DNSPolicy, p.Child("dnsPolicy"), corev1.DNSClusterFirst, corev1.DNSClusterFirstWithHostNet, corev1.DNSDefault, corev1.DNSNone)...)
	if s.DNSPolicy == corev1.DNSNone && (s.DNSConfig == nil || len(s.DNSConfig.Nameservers) == 0) {
		errs = append(errs, field.Required(p.Child("dnsConfig", "nameservers"), "must provide at least one DNS nameserver when `dnsPolicy` is None"))
	}
	if s.TerminationGracePeriodSeconds == nil {
		errs = append(errs, field.Required(p.Child("terminationGracePeriodSeconds"), ""))
	}
	if s.ActiveDeadlineSeconds != nil && *s.ActiveDeadlineSeconds < 1 {
		errs = append(errs, field.Invalid(p.Child("activeDeadlineSeconds"), *s.ActiveDeadlineSeconds, "must be between 1 and 2147483647, inclusive"))
	}
	errs = append(errs, metav1validation.ValidateLabels(s.NodeSelector, p.Child("nodeSelector"))...)
	if s.ServiceAccountName != "" {
		errs = append(errs, invalidIf(apivalidation.ValidateServiceAccountName(s.ServiceAccountName, false), p.Child("serviceAccountName"), s.ServiceAccountName)...)
	}
	if s.Hostname != "" {
		errs = append(errs, invalidIf(validation.IsDNS1123Label(s.Hostname), p.Child("hostname"), s.Hostname)...)
	}
	if s.Subdomain != "" {
		errs = append(errs, invalidIf(validation.IsDNS1123Label(s.Subdomain), p.Child("subdomain"), s.Subdomain)...)
	}
	for i, t := range s.Tolerations {
		errs = append(errs, validateToleration(t, p.Child("tolerations").Index(i))...)
	}
	names := volumeNames(s.Volumes, p.Child("volumes"), &errs)
	if len(s.Containers) == 0 {
		errs = append(errs, field.Required(p.Child("containers"), ""))
	}
	seen := sets.New[string]()
	hostPorts := sets.New[string]()
	for i := range s.InitContainers {
		c, cp := &s.InitContainers[i], p.Child("initContainers").Index(i)
		errs = append(errs, validateContainer(c, cp, names, seen)...)
		if c.RestartPolicy == nil {
			for name, set := range map[string]bool{"livenessProbe": c.LivenessProbe != nil, "readinessProbe": c.ReadinessProbe != nil, "startupProbe": c.StartupProbe != nil, "lifecycle": c.Lifecycle != nil} {
				if set {
					errs = append(errs, field.Forbidden(cp.Child(name), "may not be set for init containers without restartPolicy=Always"))
				}
			}
		}
	}
	for i := range s.Containers {
		c, cp := &s.Containers[i], p.Child("containers").Index(i)
		errs = append(errs, validateContainer(c, cp, names, seen)...)
		for j, port := range c.Ports {
			if port.HostPort == 0 {
				continue
			}
			key := strings.Join([]string{string(port.Protocol), port.HostIP, strconv.Itoa(int(port.HostPort))}, "/")
			if hostPorts.Has(key) {
				errs = append(errs, field.Duplicate(cp.Child("ports").Index(j).Child("hostPort"), key))
			}
			hostPorts.Insert(key)
		}
	}
	return errs
}

func validateToleration(t corev1.Toleration, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	if t.Key != "" {
		errs = append(errs, metav1validation.ValidateLabelName(t.Key, p.Child("key"))...)
	} else if t.Operator != corev1.TolerationOpExists {
		errs = append(errs, field.Invalid(p.Child("operator"), t.Operator, "operator must be Exists when `key` is empty, which means \"match all values and all keys\""))
	}
	switch t.Operator {
	case corev1.TolerationOpEqual, "":
	case corev1.TolerationOpExists:
		if t.Value != "" {
			errs = append(errs, field.Invalid(p.Child("operator"), t, "value must be empty when `operator` is 'Exists'"))
		}
	default:
		errs = append(errs, field.NotSupported(p.Child("operator"), t.Operator, []corev1.TolerationOperator{corev1.TolerationOpEqual, corev1.TolerationOpExists}))
	}
	if t.Effect != "" {
		errs = append(errs, oneOf(t.Effect, p.Child("effect"), corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute)...)
	}
	return errs
}

// volumeNames checks the volumes and returns their names.
func volumeNames(vols []corev1.Volume, p *field.Path, errs *field.ErrorList) sets.Set[string] {
	names := sets.New[string]()
	for i, v := range vols {
		vp := p.Index(i)
		if v.Name == "" {
			*errs = append(*errs, field.Required(vp.Child("name"), ""))
		} else {
			*errs = append(*errs, invalidIf(validation.IsDNS1123Label(v.Name), vp.Child("name"), v.Name)...)
		}
		if names.Has(v.Name) {
			*errs = append(*errs, field.Duplicate(vp.Child("name"), v.Name))
		}
		names.Insert(v.Name)
		switch {
		case v.Secret != nil && v.Secret.SecretName == "":
			*errs = append(*errs, field.Required(vp.Child("secret", "secretName"), ""))
		case v.ConfigMap != nil && v.ConfigMap.Name == "":
			*errs = append(*errs, field.Required(vp.Child("configMap", "name"), ""))
		case v.HostPath != nil && v.HostPath.Path == "":
			*errs = append(*errs, field.Required(vp.Child("hostPath", "path"), ""))
		case v.HostPath != nil && hasDotDot(v.HostPath.Path):
			*errs = append(*errs, field.Invalid(vp.Child("hostPath", "path"), v.HostPath.Path, "must not contain '..'"))
		case v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ClaimName == "":
			*errs = append(*errs, field.Required(vp.Child("persistentVolumeClaim", "claimName"), ""))
		case v.EmptyDir != nil && v.EmptyDir.SizeLimit != nil && v.EmptyDir.SizeLimit.Sign() < 0:
			*errs = append(*errs, field.Forbidden(vp.Child("emptyDir", "sizeLimit"), "SizeLimit field must be a valid resource quantity"))
		}
	}
	return names
}

func hasDotDot(p string) bool {
	for _, part := range strings.Split(p, "/") {
		if part == ".." {
			return true
		}
	}
	return false
}

func validateContainer(c *corev1.Container, p *field.Path, volumes, seen sets.Set[string]) field.ErrorList {
	var errs field.ErrorList
	if c.Name == "" {
		errs = append(errs, field.Required(p.Child("name"), ""))
	} else {
		errs = append(errs, invalidIf(validation.IsDNS1123Label(c.Name), p.Child("name"), c.Name)...)
	}
	if seen.Has(c.Name) {
		errs = append(errs, field.Duplicate(p.Child("name"), c.Name))
	}
	seen.Insert(c.Name)
	if c.Image == "" {
		errs = append(errs, field.Required(p.Child("image"), ""))
	} else if strings.TrimSpace(c.Image) != c.Image {
		errs = append(errs, field.Invalid(p.Child("image"), c.Image, "must not have leading or trailing whitespace"))
	}
	errs = append(errs, oneOf(c.ImagePullPolicy, p.Child("imagePullPolicy"), corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)...)
	errs = append(errs, oneOf(c.TerminationMessagePolicy, p.Child("terminationMessagePolicy"), corev1.TerminationMessageReadFile, corev1.TerminationMessageFallbackToLogsOnError)...)
	portNames := sets.New[string]()
	for i, port := range c.Ports {
		pp := p.Child("ports").Index(i)
		if port.Name != "" {
			errs = append(errs, invalidIf(validation.IsValidPortName(port.Name), pp.Child("name"), port.Name)...)
			if portNames.Has(port.Name) {
				errs = append(errs, field.Duplicate(pp.Child("name"), port.Name))
			}
			portNames.Insert(port.Name)
		}
		if port.ContainerPort == 0 {
			errs = append(errs, field.Required(pp.Child("containerPort"), ""))
		} else {
			errs = append(errs, invalidIf(validation.IsValidPortNum(int(port.ContainerPort)), pp.Child("containerPort"), port.ContainerPort)...)
		}
		if port.HostPort != 0 {
			errs = append(errs, invalidIf(validation.IsValidPortNum(int(port.HostPort)), pp.Child("hostPort"), port.HostPort)...)
		}
		errs = append(errs, oneOf(port.Protocol, pp.Child("protocol"), corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)...)
	}
	for i, e := range c.Env {
		errs = append(errs, validateEnv(e, p.Child("env").Index(i))...)
	}
	mounts := sets.New[string]()
	for i, m := range c.VolumeMounts {
		mp := p.Child("volumeMounts").Index(i)
		if m.Name == "" {
			errs = append(errs, field.Required(mp.Child("name"), ""))
		} else if !volumes.Has(m.Name) {
			errs = append(errs, field.NotFound(mp.Child("name"), m.Name))
		}
		if m.MountPath == "" {
			errs = append(errs, field.Required(mp.Child("mountPath"), ""))
		}
		if mounts.Has(m.MountPath) {
			errs = append(errs, field.Invalid(mp.Child("mountPath"), m.MountPath, "must be unique"))
		}
		mounts.Insert(m.MountPath)
		if path.IsAbs(m.SubPath) {
			errs = append(errs, field.Invalid(mp.Child("subPath"), m.SubPath, "must be a relative path"))
		} else if hasDotDot(m.SubPath) {
			errs = append(errs, field.Invalid(mp.Child("subPath"), m.SubPath, "must not contain '..'"))
		}
	}
	errs = append(errs, validateResources(c.Resources, p.Child("resources"))...)
	for name, probe := range map[string]*corev1.Probe{"livenessProbe": c.LivenessProbe, "readinessProbe": c.ReadinessProbe, "startupProbe": c.StartupProbe} {
		if probe != nil {
			errs = append(errs, validateProbe(probe, p.Child(name), name != "readinessProbe")...)
		}
	}
	if c.Lifecycle != nil {
		for name, h := range map[string]*corev1.LifecycleHandler{"postStart": c.Lifecycle.PostStart, "preStop": c.Lifecycle.PreStop} {
			if h != nil {
				n := count(h.Exec != nil, h.HTTPGet != nil, h.TCPSocket != nil, h.Sleep != nil)
				errs = append(errs, exactlyOne(n, p.Child("lifecycle", name), "must specify a handler type", "may not specify more than 1 handler type")...)
			}
		}
	}
	return errs
}

func validateEnv(e corev1.EnvVar, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	if e.Name == "" {
		errs = append(errs, field.Required(p.Child("name"), ""))
	} else {
		errs = append(errs, invalidIf(validation.IsRelaxedEnvVarName(e.Name), p.Child("name"), e.Name)...)
	}
	if v := e.ValueFrom; v != nil {
		vp := p.Child("valueFrom")
		if e.Value != "" {
			errs = append(errs, field.Invalid(vp, "", "may not be specified when `value` is not empty"))
		}
		n := count(v.FieldRef != nil, v.ResourceFieldRef != nil, v.ConfigMapKeyRef != nil, v.SecretKeyRef != nil, v.FileKeyRef != nil)
		errs = append(errs, exactlyOne(n, vp, "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`", "may not have more than one field specified at a time")...)
		if v.ConfigMapKeyRef != nil && v.ConfigMapKeyRef.Key == "" {
			errs = append(errs, field.Required(vp.Child("configMapKeyRef", "key"), ""))
		}
		if v.SecretKeyRef != nil && v.SecretKeyRef.Key == "" {
			errs = append(errs, field.Required(vp.Child("secretKeyRef", "key"), ""))
		}
	}
	return errs
}

func validateProbe(b *corev1.Probe, p *field.Path, successMustBeOne bool) field.ErrorList {
	n := count(b.Exec != nil, b.HTTPGet != nil, b.TCPSocket != nil, b.GRPC != nil)
	errs := exactlyOne(n, p, "must specify a handler type", "may not specify more than 1 handler type")
	for name, v := range map[string]int32{"initialDelaySeconds": b.InitialDelaySeconds, "timeoutSeconds": b.TimeoutSeconds, "periodSeconds": b.PeriodSeconds, "successThreshold": b.SuccessThreshold, "failureThreshold": b.FailureThreshold} {
		errs = append(errs, apivalidation.ValidateNonnegativeField(int64(v), p.Child(name))...)
	}
	if b.Exec != nil && len(b.Exec.Command) == 0 {
		errs = append(errs, field.Required(p.Child("exec", "command"), ""))
	}
	if b.HTTPGet != nil {
		errs = append(errs, validatePortRef(b.HTTPGet.Port, p.Child("httpGet", "port"))...)
		errs = append(errs, oneOf(b.HTTPGet.Scheme, p.Child("httpGet", "scheme"), corev1.URISchemeHTTP, corev1.URISchemeHTTPS)...)
	}
	if b.TCPSocket != nil {
		errs = append(errs, validatePortRef(b.TCPSocket.Port, p.Child("tcpSocket", "port"))...)
	}
	if b.GRPC != nil {
		errs = append(errs, invalidIf(validation.IsValidPortNum(int(b.GRPC.Port)), p.Child("grpc", "port"), b.GRPC.Port)...)
	}
	if successMustBeOne && b.SuccessThreshold != 1 {
		errs = append(errs, field.Invalid(p.Child("successThreshold"), b.SuccessThreshold, "must be 1"))
	}
	return errs
}

func validatePortRef(port intstr.IntOrString, p *field.Path) field.ErrorList {
	if port.Type == intstr.String {
		return invalidIf(validation.IsValidPortName(port.StrVal), p, port.StrVal)
	}
	return invalidIf(validation.IsValidPortNum(port.IntValue()), p, port.IntValue())
}

func validateResources(r corev1.ResourceRequirements, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	check := func(l corev1.ResourceList, lp *field.Path) {
		for name, q := range l {
			errs = append(errs, validateResourceName(string(name), lp.Key(string(name)))...)
			if q.Cmp(resource.Quantity{}) < 0 {
				errs = append(errs, field.Invalid(lp.Key(string(name)), q.String(), apivalidation.IsNegativeErrorMsg))
			}
		}
	}
	check(r.Limits, p.Child("limits"))
	check(r.Requests, p.Child("requests"))
	for name, q := range r.Requests {
		if limit, ok := r.Limits[name]; ok && q.Cmp(limit) > 0 {
			errs = append(errs, field.Invalid(p.Child("requests"), q.String(), "must be less than or equal to "+string(name)+" limit of "+limit.String()))
		}
	}
	return errs
}

// validateResourceName allows the standard resources of a container and qualified extended ones.
func validateResourceName(name string, p *field.Path) field.ErrorList {
	errs := invalidIf(validation.IsQualifiedName(name), p, name)
	if len(errs) == 0 && !strings.Contains(name, "/") && !strings.HasPrefix(name, corev1.ResourceHugePagesPrefix) {
		switch corev1.ResourceName(name) {
		case corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage:
		default:
			errs = append(errs, field.Invalid(p, name, "must be a standard resource for containers"))
		}
	}
	return errs
}

// oneOf reports a missing or unknown value of an enumeration.
func oneOf[V ~string](v V, p *field.Path, allowed ...V) field.ErrorList {
	if v == "" {
		return field.ErrorList{field.Required(p, "")}
	}
	for _, a := range allowed {
		if v == a {
			return nil
		}
	}
	return field.ErrorList{field.NotSupported(p, v, allowed)}
}

// invalidIf turns the messages of a name check into errors.
func invalidIf(msgs []string, p *field.Path, value any) field.ErrorList {
	var errs field.ErrorList
	for _, m := range msgs {
		errs = append(errs, field.Invalid(p, value, m))
	}
	return errs
}

func count(conditions ...bool) int {
	n := 0
	for _, c := range conditions {
		if c {
			n++
		}
	}
	return n
}

func exactlyOne(n int, p *field.Path, none, many string) field.ErrorList {
	switch {
	case n == 0:
		return field.ErrorList{field.Required(p, none)}
	case n > 1:
		return field.ErrorList{field.Forbidden(p, many)}
	}
	return nil
}
