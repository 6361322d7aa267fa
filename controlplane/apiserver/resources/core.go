package resources

import (
	"cmp"
	"encoding/json"
	"net"
	"net/netip"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
)

func namespaces() *descriptor.Resource {
	return kind[corev1.Namespace, corev1.NamespaceList]("Namespace", descriptor.Resource{
		GroupVersion: corev1.SchemeGroupVersion, ShortNames: []string{"ns"},
		ValidName: apivalidation.NameIsDNSLabel,
		// The label makes a namespace selectable by its name (KEP-2161); it can't be changed.
		Default: descriptor.Each(func(n *corev1.Namespace) {
			if n.Name != "" {
				if n.Labels == nil {
					n.Labels = map[string]string{}
				}
				n.Labels[corev1.LabelMetadataName] = n.Name
			}
		}),
		PrepareCreate: descriptor.Prepare(func(n *corev1.Namespace) {
			n.Status.Phase = corev1.NamespaceActive
			for _, f := range n.Spec.Finalizers {
				if f == corev1.FinalizerKubernetes {
					return
				}
			}
			n.Spec.Finalizers = append(n.Spec.Finalizers, corev1.FinalizerKubernetes)
		}),
		PrepareUpdate: descriptor.PrepareChange(func(n, old *corev1.Namespace) { n.Spec.Finalizers = old.Spec.Finalizers }),
		// spec.finalizers hold it until its content is gone.
		KeepWhile: func(o runtime.Object) bool { return len(o.(*corev1.Namespace).Spec.Finalizers) > 0 },
		Status:    true,
		Selectable: func(o runtime.Object) fields.Set {
			return fields.Set{"status.phase": string(o.(*corev1.Namespace).Status.Phase), "name": o.(*corev1.Namespace).Name}
		},
		Columns: []descriptor.Column{
			{Name: "Status", Cell: descriptor.Cell(func(n *corev1.Namespace) string { return string(n.Status.Phase) })},
			descriptor.Age,
		},
	})
}

func nodes() *descriptor.Resource {
	return kind[corev1.Node, corev1.NodeList]("Node", descriptor.Resource{
		GroupVersion: corev1.SchemeGroupVersion, ShortNames: []string{"no"}, StoragePrefix: "minions",
		Status: true,
		// The old field and the first of the list are the same; clients know only one of them.
		Default: descriptor.Each(func(n *corev1.Node) {
			switch s := &n.Spec; {
			case s.PodCIDR != "" && (len(s.PodCIDRs) == 0 || s.PodCIDRs[0] != s.PodCIDR):
				s.PodCIDRs = []string{s.PodCIDR}
			case s.PodCIDR == "" && len(s.PodCIDRs) > 0:
				s.PodCIDR = s.PodCIDRs[0]
			}
		}),
		Validate: descriptor.Check(func(n *corev1.Node) field.ErrorList {
			var errs field.ErrorList
			seen := sets.New[string]()
			for i, t := range n.Spec.Taints {
				p := field.NewPath("spec", "taints").Index(i)
				errs = append(errs, invalidIf(validation.IsQualifiedName(t.Key), p.Child("key"), t.Key)...)
				errs = append(errs, oneOf(t.Effect, p.Child("effect"), corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute)...)
				if key := t.Key + ":" + string(t.Effect); seen.Has(key) {
					errs = append(errs, field.Duplicate(p, key))
				} else {
					seen.Insert(key)
				}
			}
			return append(errs, validatePodCIDRs(n.Spec.PodCIDRs, field.NewPath("spec", "podCIDRs"))...)
		}),
		ValidateUpdate: descriptor.CheckUpdate(func(n, old *corev1.Node) field.ErrorList {
			// Unlike with the reference, a node may get a range of the other family later: a cluster that becomes
			// dual-stack need not lose its nodes.
			if now, was := n.Spec.PodCIDRs, old.Spec.PodCIDRs; len(now) < len(was) || !slices.Equal(now[:len(was)], was) {
				return field.ErrorList{field.Forbidden(field.NewPath("spec", "podCIDRs"), "node updates may not change podCIDR except from \"\" to valid")}
			}
			return nil
		}),
		Selectable: func(o runtime.Object) fields.Set {
			return fields.Set{"spec.unschedulable": boolText(o.(*corev1.Node).Spec.Unschedulable)}
		},
		Columns: []descriptor.Column{
			{Name: "Status", Cell: descriptor.Cell(nodeStatus)},
			{Name: "Roles", Cell: descriptor.Cell(nodeRoles)},
			descriptor.Age,
			{Name: "Version", Cell: descriptor.Cell(func(n *corev1.Node) string { return n.Status.NodeInfo.KubeletVersion })},
			{Name: "Internal-IP", Wide: true, Cell: descriptor.Cell(func(n *corev1.Node) string { return nodeAddress(n, corev1.NodeInternalIP) })},
			{Name: "External-IP", Wide: true, Cell: descriptor.Cell(func(n *corev1.Node) string { return nodeAddress(n, corev1.NodeExternalIP) })},
			{Name: "OS-Image", Wide: true, Cell: descriptor.Cell(func(n *corev1.Node) string { return orUnknown(n.Status.NodeInfo.OSImage) })},
			{Name: "Kernel-Version", Wide: true, Cell: descriptor.Cell(func(n *corev1.Node) string { return orUnknown(n.Status.NodeInfo.KernelVersion) })},
			{Name: "Container-Runtime", Wide: true, Cell: descriptor.Cell(func(n *corev1.Node) string { return orUnknown(n.Status.NodeInfo.ContainerRuntimeVersion) })},
		},
	})
}

// validatePodCIDRs wants at most one range of each family.
func validatePodCIDRs(cidrs []string, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	families := sets.New[corev1.IPFamily]()
	for i, c := range cidrs {
		errs = append(errs, validation.IsValidCIDRForLegacyField(p.Index(i), c, true, nil)...)
		if prefix, err := netip.ParsePrefix(c); err == nil {
			families.Insert(FamilyOf(prefix.Addr()))
		}
	}
	if len(errs) == 0 && families.Len() < len(cidrs) {
		errs = append(errs, field.Invalid(p, cidrs, "may specify no more than one CIDR for each IP family"))
	}
	return errs
}

func orUnknown(s string) string {
	if s == "" {
		return "<unknown>"
	}
	return s
}

func nodeStatus(n *corev1.Node) string {
	status := "Unknown"
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			status = "NotReady"
			if c.Status == corev1.ConditionTrue {
				status = "Ready"
			}
		}
	}
	if n.Spec.Unschedulable {
		status += ",SchedulingDisabled"
	}
	return status
}

func nodeRoles(n *corev1.Node) string {
	const prefix, old = "node-role.kubernetes.io/", "kubernetes.io/role"
	var roles []string
	for k, v := range n.Labels {
		if role, ok := strings.CutPrefix(k, prefix); ok && role != "" {
			roles = append(roles, role)
		} else if k == old && v != "" {
			roles = append(roles, v)
		}
	}
	sort.Strings(roles)
	return joined(roles)
}

func nodeAddress(n *corev1.Node, t corev1.NodeAddressType) string {
	for _, a := range n.Status.Addresses {
		if a.Type == t {
			return a.Address
		}
	}
	return "<none>"
}

func configMaps() *descriptor.Resource {
	return kind[corev1.ConfigMap, corev1.ConfigMapList]("ConfigMap", descriptor.Resource{
		GroupVersion: corev1.SchemeGroupVersion, ShortNames: []string{"cm"}, Namespaced: true,
		Validate: descriptor.Check(func(c *corev1.ConfigMap) field.ErrorList {
			var errs field.ErrorList
			size := 0
			for k, v := range c.Data {
				errs = append(errs, invalidIf(validation.IsConfigMapKey(k), field.NewPath("data").Key(k), k)...)
				if _, ok := c.BinaryData[k]; ok {
					errs = append(errs, field.Invalid(field.NewPath("data").Key(k), k, "duplicate of key present in binaryData"))
				}
				size += len(v)
			}
			for k, v := range c.BinaryData {
				errs = append(errs, invalidIf(validation.IsConfigMapKey(k), field.NewPath("binaryData").Key(k), k)...)
				size += len(v)
			}
			return append(errs, tooLarge(size, field.NewPath(""))...)
		}),
		ValidateUpdate: descriptor.CheckUpdate(func(c, old *corev1.ConfigMap) field.ErrorList {
			var errs field.ErrorList
			if old.Immutable != nil && *old.Immutable {
				if c.Immutable == nil || !*c.Immutable {
					errs = append(errs, field.Forbidden(field.NewPath("immutable"), "field is immutable when `immutable` is set"))
				}
				if !apiequality.Semantic.DeepEqual(c.Data, old.Data) || !apiequality.Semantic.DeepEqual(c.BinaryData, old.BinaryData) {
					errs = append(errs, field.Forbidden(field.NewPath("data"), "field is immutable when `immutable` is set"))
				}
			}
			return errs
		}),
		Columns: []descriptor.Column{
			{Name: "Data", Type: "integer", Cell: descriptor.Cell(func(c *corev1.ConfigMap) int64 { return int64(len(c.Data) + len(c.BinaryData)) })},
			descriptor.Age,
		},
	})
}

// tooLarge holds the size of a Secret or ConfigMap below what etcd takes in one request.
func tooLarge(size int, p *field.Path) field.ErrorList {
	if size > corev1.MaxSecretSize {
		return field.ErrorList{field.TooLong(p, "", corev1.MaxSecretSize)}
	}
	return nil
}

func secrets() *descriptor.Resource {
	return kind[corev1.Secret, corev1.SecretList]("Secret", descriptor.Resource{
		GroupVersion: corev1.SchemeGroupVersion, Namespaced: true,
		Default: descriptor.Each(func(s *corev1.Secret) {
			fill(&s.Type, corev1.SecretTypeOpaque)
			for k, v := range s.StringData {
				if s.Data == nil {
					s.Data = map[string][]byte{}
				}
				s.Data[k] = []byte(v)
			}
			s.StringData = nil
		}),
		Validate: descriptor.Check(validateSecret),
		ValidateUpdate: descriptor.CheckUpdate(func(s, old *corev1.Secret) field.ErrorList {
			errs := apivalidation.ValidateImmutableField(s.Type, old.Type, field.NewPath("type"))
			if old.Immutable != nil && *old.Immutable {
				if s.Immutable == nil || !*s.Immutable {
					errs = append(errs, field.Forbidden(field.NewPath("immutable"), "field is immutable when `immutable` is set"))
				}
				if !apiequality.Semantic.DeepEqual(s.Data, old.Data) {
					errs = append(errs, field.Forbidden(field.NewPath("data"), "field is immutable when `immutable` is set"))
				}
			}
			return errs
		}),
		Selectable: func(o runtime.Object) fields.Set { return fields.Set{"type": string(o.(*corev1.Secret).Type)} },
		Columns: []descriptor.Column{
			{Name: "Type", Cell: descriptor.Cell(func(s *corev1.Secret) string { return string(s.Type) })},
			{Name: "Data", Type: "integer", Cell: descriptor.Cell(func(s *corev1.Secret) int64 { return int64(len(s.Data)) })},
			descriptor.Age,
		},
	})
}

func validateSecret(s *corev1.Secret) field.ErrorList {
	var errs field.ErrorList
	data := field.NewPath("data")
	size := 0
	for k, v := range s.Data {
		errs = append(errs, invalidIf(validation.IsConfigMapKey(k), data.Key(k), k)...)
		size += len(v)
	}
	errs = append(errs, tooLarge(size, data)...)
	var required []string
	switch s.Type {
	case corev1.SecretTypeDockerConfigJson:
		errs = append(errs, validateJSON(s.Data, corev1.DockerConfigJsonKey)...)
	case corev1.SecretTypeDockercfg:
		errs = append(errs, validateJSON(s.Data, corev1.DockerConfigKey)...)
	case corev1.SecretTypeBasicAuth:
		_, user := s.Data[corev1.BasicAuthUsernameKey]
		if _, password := s.Data[corev1.BasicAuthPasswordKey]; !user && !password {
			required = []string{corev1.BasicAuthUsernameKey, corev1.BasicAuthPasswordKey}
		}
	case corev1.SecretTypeTLS:
		required = []string{corev1.TLSCertKey, corev1.TLSPrivateKeyKey}
	case corev1.SecretTypeSSHAuth:
		required = []string{corev1.SSHAuthPrivateKey}
	case corev1.SecretTypeServiceAccountToken:
		if s.Annotations[corev1.ServiceAccountNameKey] == "" {
			errs = append(errs, field.Required(field.NewPath("metadata", "annotations").Key(corev1.ServiceAccountNameKey), ""))
		}
	}
	for _, k := range required {
		if _, ok := s.Data[k]; !ok {
			errs = append(errs, field.Required(data.Key(k), ""))
		}
	}
	return errs
}

// validateJSON looks for a JSON object without ever repeating it: it is a secret.
func validateJSON(data map[string][]byte, key string) field.ErrorList {
	p := field.NewPath("data").Key(key)
	raw, ok := data[key]
	if !ok {
		return field.ErrorList{field.Required(p, "")}
	}
	if err := json.Unmarshal(raw, &map[string]any{}); err != nil {
		return field.ErrorList{field.Invalid(p, "<secret contents redacted>", err.Error())}
	}
	return nil
}

func serviceAccounts() *descriptor.Resource {
	return kind[corev1.ServiceAccount, corev1.ServiceAccountList]("ServiceAccount", descriptor.Resource{
		GroupVersion: corev1.SchemeGroupVersion, ShortNames: []string{"sa"}, Namespaced: true,
		PrepareCreate: descriptor.Prepare(nameSecrets),
		PrepareUpdate: descriptor.PrepareChange(func(s, _ *corev1.ServiceAccount) { nameSecrets(s) }),
		Columns: []descriptor.Column{
			{Name: "Secrets", Type: "integer", Cell: descriptor.Cell(func(s *corev1.ServiceAccount) int64 { return int64(len(s.Secrets)) })},
			descriptor.Age,
		},
	})
}

// nameSecrets keeps of an account's Secrets what counts: their names.
func nameSecrets(s *corev1.ServiceAccount) {
	for i := range s.Secrets {
		s.Secrets[i] = corev1.ObjectReference{Name: s.Secrets[i].Name}
	}
}

func endpoints() *descriptor.Resource {
	return kind[corev1.Endpoints, corev1.EndpointsList]("Endpoints", descriptor.Resource{
		GroupVersion: corev1.SchemeGroupVersion, Plural: "endpoints", ShortNames: []string{"ep"}, Namespaced: true, StoragePrefix: "services/endpoints",
		Default: descriptor.Each(func(e *corev1.Endpoints) {
			for i := range e.Subsets {
				for j := range e.Subsets[i].Ports {
					fill(&e.Subsets[i].Ports[j].Protocol, corev1.ProtocolTCP)
				}
			}
		}),
		AllowCreateOnUpdate: true,
		Validate:            descriptor.Check(validateEndpoints),
		Columns: []descriptor.Column{
			{Name: "Endpoints", Cell: descriptor.Cell(func(e *corev1.Endpoints) string {
				if len(e.Subsets) == 0 {
					return "<none>"
				}
				var out []string
				for _, s := range e.Subsets {
					if len(s.Ports) == 0 { // of a headless Service
						for _, a := range s.Addresses {
							out = append(out, a.IP)
						}
					}
					for _, p := range s.Ports {
						for _, a := range s.Addresses {
							out = append(out, net.JoinHostPort(a.IP, strconv.Itoa(int(p.Port))))
						}
					}
				}
				return few(out, "")
			})},
			descriptor.Age,
		},
	})
}

// eventTTL is how long the store keeps an event.
const eventTTL = time.Hour

func events() *descriptor.Resource {
	return kind[corev1.Event, corev1.EventList]("Event", descriptor.Resource{
		GroupVersion: corev1.SchemeGroupVersion, ShortNames: []string{"ev"}, Namespaced: true, TTL: eventTTL, AllowCreateOnUpdate: true,
		Validate: descriptor.Check(func(e *corev1.Event) field.ErrorList {
			if e.Namespace != e.InvolvedObject.Namespace && !(e.InvolvedObject.Namespace == "" && e.Namespace == "default") {
				return field.ErrorList{field.Invalid(field.NewPath("involvedObject", "namespace"), e.InvolvedObject.Namespace, "does not match event.namespace")}
			}
			return nil
		}),
		Selectable: func(o runtime.Object) fields.Set {
			e := o.(*corev1.Event)
			source := e.Source.Component
			if source == "" {
				source = e.ReportingController
			}
			return fields.Set{
				"involvedObject.kind": e.InvolvedObject.Kind, "involvedObject.namespace": e.InvolvedObject.Namespace, "involvedObject.name": e.InvolvedObject.Name,
				"involvedObject.uid": string(e.InvolvedObject.UID), "involvedObject.apiVersion": e.InvolvedObject.APIVersion,
				"involvedObject.resourceVersion": e.InvolvedObject.ResourceVersion, "involvedObject.fieldPath": e.InvolvedObject.FieldPath,
				"reason": e.Reason, "reportingComponent": e.ReportingController, "source": source, "type": e.Type,
			}
		},
		Columns: []descriptor.Column{
			{Name: "Last Seen", Cell: descriptor.Cell(func(e *corev1.Event) string {
				switch {
				case e.Series != nil:
					return descriptor.Since(metaTime(e.Series.LastObservedTime))
				case !e.LastTimestamp.IsZero():
					return descriptor.Since(e.LastTimestamp)
				}
				return descriptor.Since(firstSeen(e))
			})},
			{Name: "Type", Cell: descriptor.Cell(func(e *corev1.Event) string { return e.Type })},
			{Name: "Reason", Cell: descriptor.Cell(func(e *corev1.Event) string { return e.Reason })},
			{Name: "Object", Cell: descriptor.Cell(func(e *corev1.Event) string {
				return strings.Join(nonEmpty(strings.ToLower(e.InvolvedObject.Kind), e.InvolvedObject.Name), "/")
			})},
			{Name: "Subobject", Wide: true, Cell: descriptor.Cell(func(e *corev1.Event) string { return e.InvolvedObject.FieldPath })},
			{Name: "Source", Wide: true, Cell: descriptor.Cell(func(e *corev1.Event) string {
				// Who writes by the one API fills in the fields of the other one, too.
				return strings.Join(append([]string{cmp.Or(e.Source.Component, e.ReportingController)}, nonEmpty(cmp.Or(e.Source.Host, e.ReportingInstance))...), ", ")
			})},
			{Name: "Message", Cell: descriptor.Cell(func(e *corev1.Event) string { return strings.TrimSpace(e.Message) })},
			{Name: "First Seen", Wide: true, Cell: descriptor.Cell(func(e *corev1.Event) string { return descriptor.Since(firstSeen(e)) })},
			{Name: "Count", Wide: true, Cell: descriptor.Cell(func(e *corev1.Event) int64 {
				if e.Series != nil {
					return int64(e.Series.Count)
				}
				return max(1, int64(e.Count))
			})},
			eventName,
		},
	})
}

// eventName is the last column of events: who looks at them hardly ever wants it.
var eventName = func() descriptor.Column {
	c := descriptor.NameColumn(func(m metav1.Object) string { return m.GetName() })
	c.Wide = true
	return c
}()

func firstSeen(e *corev1.Event) metav1.Time {
	if e.FirstTimestamp.IsZero() {
		return metaTime(e.EventTime)
	}
	return e.FirstTimestamp
}
