package resources

import (
	"fmt"
	"math"
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
	errs := validatePodSpec(&p.Spec, field.NewPath("spec"))
	// A pod can't be bound while it has gates, nor get gates later.
	if p.Spec.NodeName != "" && len(p.Spec.SchedulingGates) > 0 {
		errs = append(errs, field.Forbidden(field.NewPath("spec", "nodeName"), "cannot be set until all schedulingGates have been cleared"))
	}
	return errs
}

// validatePodTemplate is for everything that makes pods.
func validatePodTemplate(t *corev1.PodTemplateSpec, p *field.Path) field.ErrorList {
	errs := metav1validation.ValidateLabels(t.Labels, p.Child("metadata", "labels"))
	errs = append(errs, apivalidation.ValidateAnnotations(t.Annotations, p.Child("metadata", "annotations"))...)
	errs = append(errs, validatePodSpec(&t.Spec, p.Child("spec"))...)
	if len(t.Spec.EphemeralContainers) > 0 {
		errs = append(errs, field.Forbidden(p.Child("spec", "ephemeralContainers"), "ephemeral containers not allowed in pod template"))
	}
	return errs
}

func validatePodSpec(s *corev1.PodSpec, p *field.Path) field.ErrorList {
	errs := oneOf(s.RestartPolicy, p.Child("restartPolicy"), corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)
	if s.TerminationGracePeriodSeconds == nil {
		errs = append(errs, field.Required(p.Child("terminationGracePeriodSeconds"), ""))
	}
	if d := s.ActiveDeadlineSeconds; d != nil && (*d < 1 || *d > math.MaxInt32) {
		errs = append(errs, field.Invalid(p.Child("activeDeadlineSeconds"), *d, validation.InclusiveRangeError(1, math.MaxInt32)))
	}
	errs = append(errs, validateNames(s, p)...)
	errs = append(errs, validateDNS(s, p)...)
	errs = append(errs, validateHostAliases(s.HostAliases, p.Child("hostAliases"))...)
	errs = append(errs, validatePlacement(s, p)...)
	errs = append(errs, validateReadinessGates(s.ReadinessGates, p.Child("readinessGates"))...)
	errs = append(errs, validatePodSecurity(s.SecurityContext, p.Child("securityContext"))...)
	if c := s.SecurityContext; s.ShareProcessNamespace != nil && *s.ShareProcessNamespace && s.HostPID && c != nil {
		errs = append(errs, field.Invalid(p.Child("shareProcessNamespace"), true, "ShareProcessNamespace and HostPID cannot both be enabled"))
	}
	volumes, volumeErrs := validateVolumes(s.Volumes, p.Child("volumes"))
	errs = append(errs, volumeErrs...)
	if len(s.Containers) == 0 {
		errs = append(errs, field.Required(p.Child("containers"), ""))
	}
	seen := sets.New[string]()
	hostPorts := sets.New[string]()
	for i := range s.Containers {
		c, cp := &s.Containers[i], p.Child("containers").Index(i)
		errs = append(errs, validateContainer(c, cp, volumes, seen, s.TerminationGracePeriodSeconds)...)
		errs = append(errs, validateResizePolicy(c.ResizePolicy, cp.Child("resizePolicy"), s.RestartPolicy)...)
		for j, port := range c.Ports {
			if port.HostPort == 0 {
				continue
			}
			if s.HostNetwork && port.HostPort != port.ContainerPort {
				errs = append(errs, field.Invalid(cp.Child("ports").Index(j).Child("hostPort"), port.HostPort, "must match `containerPort` when `hostNetwork` is true"))
			}
			key := strings.Join([]string{string(port.Protocol), port.HostIP, strconv.Itoa(int(port.HostPort))}, "/")
			if hostPorts.Has(key) {
				errs = append(errs, field.Duplicate(cp.Child("ports").Index(j).Child("hostPort"), key))
			}
			hostPorts.Insert(key)
		}
	}
	for i := range s.InitContainers {
		c, cp := &s.InitContainers[i], p.Child("initContainers").Index(i)
		errs = append(errs, validateInitContainer(c, cp, volumes, seen, s.TerminationGracePeriodSeconds)...)
		if resizable(c, true) {
			errs = append(errs, validateResizePolicy(c.ResizePolicy, cp.Child("resizePolicy"), s.RestartPolicy)...)
		} else if len(c.ResizePolicy) > 0 {
			errs = append(errs, field.Invalid(cp.Child("resizePolicy"), c.ResizePolicy, "must not be set for init containers"))
		}
	}
	return errs
}

// validateInitContainer holds those that end to what makes sense for them; those that stay (sidecars) may have it all.
func validateInitContainer(c *corev1.Container, p *field.Path, volumes, seen sets.Set[string], grace *int64) field.ErrorList {
	errs := validateContainer(c, p, volumes, seen, grace)
	if c.RestartPolicy != nil {
		if *c.RestartPolicy != corev1.ContainerRestartPolicyAlways {
			errs = append(errs, field.NotSupported(p.Child("restartPolicy"), *c.RestartPolicy, []corev1.ContainerRestartPolicy{corev1.ContainerRestartPolicyAlways}))
		}
		return errs
	}
	for name, set := range map[string]bool{"livenessProbe": c.LivenessProbe != nil, "readinessProbe": c.ReadinessProbe != nil, "startupProbe": c.StartupProbe != nil, "lifecycle": c.Lifecycle != nil} {
		if set {
			errs = append(errs, field.Forbidden(p.Child(name), "may not be set for init containers without restartPolicy=Always"))
		}
	}
	return errs
}

func validateContainer(c *corev1.Container, p *field.Path, volumes, seen sets.Set[string], grace *int64) field.ErrorList {
	var errs field.ErrorList
	if c.Name == "" {
		errs = append(errs, field.Required(p.Child("name"), ""))
	} else {
		errs = append(errs, invalidIf(validation.IsDNS1123Label(c.Name), p.Child("name"), c.Name)...)
	}
	if c.Name != "" && seen.Has(c.Name) {
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
	for i, e := range c.EnvFrom {
		errs = append(errs, validateEnvFrom(e, p.Child("envFrom").Index(i))...)
	}
	errs = append(errs, validateMounts(c, p.Child("volumeMounts"), volumes)...)
	errs = append(errs, validateResources(c.Resources, p.Child("resources"))...)
	errs = append(errs, validateSecurity(c.SecurityContext, p.Child("securityContext"))...)
	for name, probe := range map[string]*corev1.Probe{"livenessProbe": c.LivenessProbe, "readinessProbe": c.ReadinessProbe, "startupProbe": c.StartupProbe} {
		if probe != nil {
			errs = append(errs, validateProbe(probe, p.Child(name), name == "readinessProbe")...)
		}
	}
	if c.Lifecycle != nil {
		for name, h := range map[string]*corev1.LifecycleHandler{"postStart": c.Lifecycle.PostStart, "preStop": c.Lifecycle.PreStop} {
			if h == nil {
				continue
			}
			hp := p.Child("lifecycle", name)
			errs = append(errs, oneMember(*h, hp, "handler")...)
			errs = append(errs, validateHandler(h.Exec, h.HTTPGet, h.TCPSocket, hp)...)
			if h.Sleep != nil && grace != nil && (h.Sleep.Seconds < 0 || h.Sleep.Seconds > *grace) {
				errs = append(errs, field.Invalid(hp.Child("sleep"), h.Sleep.Seconds, fmt.Sprintf("must be non-negative and less than terminationGracePeriodSeconds (%d)", *grace)))
			}
		}
	}
	return errs
}

func validateMounts(c *corev1.Container, p *field.Path, volumes sets.Set[string]) field.ErrorList {
	var errs field.ErrorList
	paths := sets.New[string]()
	for i, m := range c.VolumeMounts {
		mp := p.Index(i)
		if m.Name == "" {
			errs = append(errs, field.Required(mp.Child("name"), ""))
		} else if !volumes.Has(m.Name) {
			errs = append(errs, field.NotFound(mp.Child("name"), m.Name))
		}
		if m.MountPath == "" {
			errs = append(errs, field.Required(mp.Child("mountPath"), ""))
		}
		if paths.Has(m.MountPath) {
			errs = append(errs, field.Invalid(mp.Child("mountPath"), m.MountPath, "must be unique"))
		}
		paths.Insert(m.MountPath)
		if m.SubPath != "" && m.SubPathExpr != "" {
			errs = append(errs, field.Invalid(mp.Child("subPathExpr"), m.SubPathExpr, "subPathExpr and subPath are mutually exclusive"))
		}
		errs = append(errs, validateDescendingPath(m.SubPath, mp.Child("subPath"))...)
		errs = append(errs, validateDescendingPath(m.SubPathExpr, mp.Child("subPathExpr"))...)
		if m.MountPropagation != nil {
			mode, mpp := *m.MountPropagation, mp.Child("mountPropagation")
			errs = append(errs, oneOf(mode, mpp, corev1.MountPropagationBidirectional, corev1.MountPropagationHostToContainer, corev1.MountPropagationNone)...)
			privileged := c.SecurityContext != nil && c.SecurityContext.Privileged != nil && *c.SecurityContext.Privileged
			if mode == corev1.MountPropagationBidirectional && !privileged {
				errs = append(errs, field.Forbidden(mpp, "Bidirectional mount propagation is available only to privileged containers"))
			}
		}
	}
	return errs
}

func validateProbe(b *corev1.Probe, p *field.Path, readiness bool) field.ErrorList {
	errs := oneMember(b.ProbeHandler, p, "handler")
	errs = append(errs, validateHandler(b.Exec, b.HTTPGet, b.TCPSocket, p)...)
	for name, v := range map[string]int32{"initialDelaySeconds": b.InitialDelaySeconds, "timeoutSeconds": b.TimeoutSeconds, "periodSeconds": b.PeriodSeconds, "successThreshold": b.SuccessThreshold, "failureThreshold": b.FailureThreshold} {
		errs = append(errs, apivalidation.ValidateNonnegativeField(int64(v), p.Child(name))...)
	}
	if b.GRPC != nil {
		errs = append(errs, invalidIf(validation.IsValidPortNum(int(b.GRPC.Port)), p.Child("grpc", "port"), b.GRPC.Port)...)
	}
	switch t := b.TerminationGracePeriodSeconds; {
	case t == nil:
	case readiness:
		errs = append(errs, field.Invalid(p.Child("terminationGracePeriodSeconds"), *t, "must not be set for readinessProbes"))
	case *t <= 0:
		errs = append(errs, field.Invalid(p.Child("terminationGracePeriodSeconds"), *t, "must be greater than 0"))
	}
	if !readiness && b.SuccessThreshold != 1 {
		errs = append(errs, field.Invalid(p.Child("successThreshold"), b.SuccessThreshold, "must be 1"))
	}
	return errs
}

func validateHandler(exec *corev1.ExecAction, get *corev1.HTTPGetAction, tcp *corev1.TCPSocketAction, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	if exec != nil && len(exec.Command) == 0 {
		errs = append(errs, field.Required(p.Child("exec", "command"), ""))
	}
	if get != nil {
		gp := p.Child("httpGet")
		if get.Path == "" {
			errs = append(errs, field.Required(gp.Child("path"), ""))
		}
		errs = append(errs, validatePortRef(get.Port, gp.Child("port"))...)
		errs = append(errs, oneOf(get.Scheme, gp.Child("scheme"), corev1.URISchemeHTTP, corev1.URISchemeHTTPS)...)
		for _, h := range get.HTTPHeaders {
			errs = append(errs, invalidIf(validation.IsHTTPHeaderName(h.Name), gp.Child("httpHeaders"), h.Name)...)
		}
	}
	if tcp != nil {
		errs = append(errs, validatePortRef(tcp.Port, p.Child("tcpSocket", "port"))...)
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
		limit, ok := r.Limits[name]
		shared := !strings.Contains(string(name), "/") && !strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix)
		switch {
		case !ok && !shared:
			errs = append(errs, field.Required(p.Child("limits"), "Limit must be set for non overcommitable resources"))
		case ok && !shared && q.Cmp(limit) != 0:
			errs = append(errs, field.Invalid(p.Child("requests"), q.String(), fmt.Sprintf("must be equal to %s limit of %s", name, limit.String())))
		case ok && q.Cmp(limit) > 0:
			errs = append(errs, field.Invalid(p.Child("requests"), q.String(), fmt.Sprintf("must be less than or equal to %s limit of %s", name, limit.String())))
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
