// Package env makes a container's environment: literal values, references to
// ConfigMaps, Secrets, the pod's own fields and resources, and the addresses of
// Services. It is pure: what it reads is passed in.
package env

import (
	"errors"
	"fmt"
	"net"
	"sort"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"
)

// Var is one variable.
type Var struct{ Name, Value string }

// Sources are what references lead to.
type Sources struct {
	ConfigMap func(name string) (*corev1.ConfigMap, error)
	Secret    func(name string) (*corev1.Secret, error)
	Services  []*corev1.Service // of the pod's namespace, and default/kubernetes
	PodIPs    []string
	HostIPs   []string
	Node      corev1.ResourceList // allocatable, for limits that are not set
}

// Make returns the environment of a container, in the order of its declaration, services first so that they can be
// overridden. Invalid keys of envFrom are skipped and returned.
func Make(pod *corev1.Pod, c *corev1.Container, src Sources) (vars []Var, skipped []string, err error) {
	values := map[string]string{}
	set := func(name, value string) {
		if _, ok := values[name]; !ok {
			vars = append(vars, Var{Name: name})
		}
		values[name] = value
	}
	services := serviceVars(pod, src.Services)
	for _, v := range services {
		set(v.Name, v.Value)
	}
	for _, from := range c.EnvFrom {
		data, optional, ferr := envFrom(from, src)
		if ferr != nil {
			if optional && apierrors.IsNotFound(ferr) {
				continue
			}
			return nil, nil, ferr
		}
		for _, k := range sortedKeys(data) {
			name := from.Prefix + k
			if len(validation.IsRelaxedEnvVarName(name)) > 0 {
				skipped = append(skipped, name)
				continue
			}
			set(name, data[k])
		}
	}
	for _, e := range c.Env {
		value := e.Value
		if e.ValueFrom != nil {
			var skip bool
			if value, skip, err = valueFrom(pod, c, e.ValueFrom, src); err != nil {
				return nil, nil, fmt.Errorf("env %s: %w", e.Name, err)
			}
			if skip {
				continue
			}
		} else {
			value = Expand(value, values)
		}
		set(e.Name, value)
	}
	for i := range vars {
		vars[i].Value = values[vars[i].Name]
	}
	return vars, skipped, nil
}

func envFrom(from corev1.EnvFromSource, src Sources) (data map[string]string, optional bool, err error) {
	switch {
	case from.ConfigMapRef != nil:
		cm, err := src.ConfigMap(from.ConfigMapRef.Name)
		if err != nil {
			return nil, yes(from.ConfigMapRef.Optional), err
		}
		return cm.Data, false, nil
	case from.SecretRef != nil:
		s, err := src.Secret(from.SecretRef.Name)
		if err != nil {
			return nil, yes(from.SecretRef.Optional), err
		}
		data = map[string]string{}
		for k, v := range s.Data {
			data[k] = string(v)
		}
		return data, false, nil
	}
	return nil, false, nil
}

func yes(b *bool) bool { return b != nil && *b }

func valueFrom(pod *corev1.Pod, c *corev1.Container, v *corev1.EnvVarSource, src Sources) (value string, skip bool, err error) {
	switch {
	case v.FieldRef != nil:
		value, err = Field(pod, v.FieldRef.FieldPath, src.PodIPs, src.HostIPs)
		return value, false, err
	case v.ResourceFieldRef != nil:
		value, err = Resource(pod, c, v.ResourceFieldRef, src.Node)
		return value, false, err
	case v.ConfigMapKeyRef != nil:
		cm, err := src.ConfigMap(v.ConfigMapKeyRef.Name)
		if err != nil {
			return absent(v.ConfigMapKeyRef.Optional, err)
		}
		value, ok := cm.Data[v.ConfigMapKeyRef.Key]
		if !ok {
			return absent(v.ConfigMapKeyRef.Optional, noKey{fmt.Sprintf("couldn't find key %s in ConfigMap %s/%s", v.ConfigMapKeyRef.Key, pod.Namespace, cm.Name)})
		}
		return value, false, nil
	case v.SecretKeyRef != nil:
		s, err := src.Secret(v.SecretKeyRef.Name)
		if err != nil {
			return absent(v.SecretKeyRef.Optional, err)
		}
		data, ok := s.Data[v.SecretKeyRef.Key]
		if !ok {
			return absent(v.SecretKeyRef.Optional, noKey{fmt.Sprintf("couldn't find key %s in Secret %s/%s", v.SecretKeyRef.Key, pod.Namespace, s.Name)})
		}
		return string(data), false, nil
	}
	return "", false, fmt.Errorf("its source is of a kind that this kubelet does not know")
}

// noKey is an object without the key that a reference names.
type noKey struct{ message string }

func (e noKey) Error() string { return e.message }

// absent is the answer to a reference that leads nowhere: an optional one is skipped, if that is the trouble.
func absent(optional *bool, err error) (value string, skip bool, _ error) {
	var k noKey
	if yes(optional) && (apierrors.IsNotFound(err) || errors.As(err, &k)) {
		return "", true, nil
	}
	return "", false, err
}

// Field is the downward API: a field of the pod by its path.
func Field(pod *corev1.Pod, path string, podIPs, hostIPs []string) (string, error) {
	first := func(l []string) string {
		if len(l) == 0 {
			return ""
		}
		return l[0]
	}
	if name, key, ok := strings.Cut(path, "['"); ok {
		key = strings.TrimSuffix(key, "']")
		switch name {
		case "metadata.labels":
			return pod.Labels[key], nil
		case "metadata.annotations":
			return pod.Annotations[key], nil
		}
	}
	switch path {
	case "metadata.name":
		return pod.Name, nil
	case "metadata.namespace":
		return pod.Namespace, nil
	case "metadata.uid":
		return string(pod.UID), nil
	case "metadata.labels":
		return formatMap(pod.Labels), nil
	case "metadata.annotations":
		return formatMap(pod.Annotations), nil
	case "spec.nodeName":
		return pod.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	case "status.podIP":
		return first(podIPs), nil
	case "status.podIPs":
		return strings.Join(podIPs, ","), nil
	case "status.hostIP":
		return first(hostIPs), nil
	case "status.hostIPs":
		return strings.Join(hostIPs, ","), nil
	}
	return "", fmt.Errorf("unsupported fieldPath: %s", path)
}

func formatMap(m map[string]string) string {
	var b strings.Builder
	for _, k := range sortedKeys(m) {
		fmt.Fprintf(&b, "%s=%q\n", k, m[k])
	}
	return strings.TrimSuffix(b.String(), "\n")
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// Resource is a request or limit of a container, divided (rounded up) by the selector's divisor. A limit that is
// not set is what the node has.
func Resource(pod *corev1.Pod, c *corev1.Container, sel *corev1.ResourceFieldSelector, node corev1.ResourceList) (string, error) {
	if sel.ContainerName != "" {
		c = nil
		for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
			for i := range list {
				if list[i].Name == sel.ContainerName {
					c = &list[i]
				}
			}
		}
	}
	if c == nil {
		return "", fmt.Errorf("container %s not found", sel.ContainerName)
	}
	kind, name, _ := strings.Cut(sel.Resource, ".")
	var q resource.Quantity
	switch kind {
	case "limits":
		var ok bool
		if q, ok = c.Resources.Limits[corev1.ResourceName(name)]; !ok {
			q = node[corev1.ResourceName(name)]
		}
	case "requests":
		q = c.Resources.Requests[corev1.ResourceName(name)]
	default:
		return "", fmt.Errorf("unsupported container resource: %s", sel.Resource)
	}
	divisor := sel.Divisor
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	if name == string(corev1.ResourceCPU) {
		return strconv.FormatInt(ceilDiv(q.MilliValue(), divisor.MilliValue()), 10), nil
	}
	return strconv.FormatInt(ceilDiv(q.Value(), divisor.Value()), 10), nil
}

func ceilDiv(a, b int64) int64 {
	if b <= 0 {
		return a
	}
	return (a + b - 1) / b
}

// Expand replaces $(NAME) by a variable that is defined already; $$ stands for $, so that $$(NAME) stands for $(NAME)
// itself, and what is not defined stays as it is (API: EnvVar.value).
func Expand(s string, values map[string]string) string {
	out, _ := expand(s, values)
	return out
}

// ExpandAll is Expand where all that is named has to be defined (API: VolumeMount.subPathExpr).
func ExpandAll(s string, values map[string]string) (string, error) {
	out, missing := expand(s, values)
	if len(missing) > 0 {
		return "", fmt.Errorf("missing value for %q", missing[0])
	}
	return out, nil
}

func expand(s string, values map[string]string) (out string, missing []string) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '$' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		switch s[i+1] {
		case '$':
			b.WriteByte('$')
			i++
		case '(':
			end := strings.IndexByte(s[i:], ')')
			if end < 0 {
				b.WriteByte('$')
				continue
			}
			name := s[i+2 : i+end]
			if v, ok := values[name]; ok {
				b.WriteString(v)
			} else {
				b.WriteString(s[i : i+end+1])
				missing = append(missing, name)
			}
			i += end
		default:
			b.WriteByte('$')
		}
	}
	return b.String(), missing
}

// serviceVars are the variables of the Services of the pod's namespace (if it wants them) and of the API server.
func serviceVars(pod *corev1.Pod, services []*corev1.Service) []Var {
	byName := map[string]*corev1.Service{}
	for _, s := range services {
		if s.Spec.ClusterIP == "" || s.Spec.ClusterIP == corev1.ClusterIPNone || len(s.Spec.Ports) == 0 {
			continue
		}
		api := s.Namespace == "default" && s.Name == "kubernetes"
		if api || s.Namespace == pod.Namespace && (pod.Spec.EnableServiceLinks == nil || *pod.Spec.EnableServiceLinks) {
			if _, ok := byName[s.Name]; !ok || s.Namespace == pod.Namespace {
				byName[s.Name] = s
			}
		}
	}
	names := make([]string, 0, len(byName))
	for n := range byName {
		names = append(names, n)
	}
	sort.Strings(names)
	var out []Var
	for _, n := range names {
		s := byName[n]
		p := strings.ToUpper(strings.ReplaceAll(n, "-", "_"))
		add := func(name, value string) { out = append(out, Var{p + name, value}) }
		add("_SERVICE_HOST", s.Spec.ClusterIP)
		add("_SERVICE_PORT", strconv.Itoa(int(s.Spec.Ports[0].Port)))
		for i, port := range s.Spec.Ports {
			if port.Name != "" {
				add("_SERVICE_PORT_"+strings.ToUpper(strings.ReplaceAll(port.Name, "-", "_")), strconv.Itoa(int(port.Port)))
			}
			proto := strings.ToLower(string(port.Protocol))
			url := proto + "://" + net.JoinHostPort(s.Spec.ClusterIP, strconv.Itoa(int(port.Port)))
			if i == 0 {
				add("_PORT", url)
			}
			prefix := fmt.Sprintf("_PORT_%d_%s", port.Port, strings.ToUpper(proto))
			add(prefix, url)
			add(prefix+"_PROTO", proto)
			add(prefix+"_PORT", strconv.Itoa(int(port.Port)))
			add(prefix+"_ADDR", s.Spec.ClusterIP)
		}
	}
	return out
}
