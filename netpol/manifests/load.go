// Package manifests makes a netpol.State of files, without a cluster, or of a cluster's API.
package manifests

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	kjson "sigs.k8s.io/json"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/strake-io/strake/netpol"
	policyvalidation "github.com/strake-io/strake/netpol/validation"
)

// Problem is something in a file that can't be taken as it stands.
type Problem struct {
	File   string `json:"file"`
	Line   int    `json:"line,omitempty"`   // where the document begins, or what can't be read
	Object string `json:"object,omitempty"` // Kind namespace/name, where known
	Reason string `json:"reason"`
}

func (p Problem) String() string {
	at := p.File
	if p.Line > 0 {
		at = fmt.Sprintf("%s:%d", p.File, p.Line)
	}
	if p.Object != "" {
		return at + ": " + p.Object + ": " + p.Reason
	}
	return at + ": " + p.Reason
}

// Load reads the manifests in files, and in folders with all that is below them (.yaml, .yml and .json); "-" is the standard input. Of the kinds
// that have no part in policy nothing is said. What can be used of objects with problems is in the State too: a policy with an
// invalid rule still isolates. The error is that of a path that can't be read at all.
//
// Workloads become pods, as their controllers would make them, but only a few (see Workload); namespaces that objects name are there; pods
// without addresses get some that no block of the policies covers, but for those of length 0.
func Load(paths ...string) (netpol.State, []Problem, error) {
	return LoadWith(os.Stdin, paths...)
}

// LoadWith is Load with another standard input.
func LoadWith(stdin io.Reader, paths ...string) (netpol.State, []Problem, error) {
	l, err := LoadAll(stdin, nil, paths...)
	return l.State, l.Problems, err
}

// Loaded is what files say, and where they say it.
type Loaded struct {
	State    netpol.State
	Problems []Problem
	seen     map[string]document
	madeUp   map[*corev1.Pod]bool // pods whose addresses are not from the files
	podCIDRs []netip.Prefix
}

// Where tells the file of an object, and the line where its document begins.
func (l Loaded) Where(kind, namespace, name string) (file string, line int) {
	d := l.seen[describe(kind, &metav1.ObjectMeta{Namespace: namespace, Name: name})]
	return d.file, d.line
}

// LoadAll is LoadWith, and keeps where things are. podCIDRs are the ranges that pods have their addresses of, one of a family; those without an address get one of each,
// so that blocks that cover such a range whole cover them, and blocks of a part of it do not. None: no block covers them.
func LoadAll(stdin io.Reader, podCIDRs []netip.Prefix, paths ...string) (Loaded, error) {
	l := loader{seen: map[string]document{}, made: map[string]int{}, podCIDRs: podCIDRs}
	for _, path := range paths {
		names, err := files(path)
		if err != nil {
			return Loaded{}, fmt.Errorf("manifests: %w", err)
		}
		for _, name := range names {
			text, err := read(name, stdin, name != path)
			switch {
			case err == nil:
				l.text(name, text)
			case name != path: // beside it there may be others
				if wrong := (*fs.PathError)(nil); errors.As(err, &wrong) {
					err = wrong.Err
				}
				l.problems = append(l.problems, Problem{File: name, Reason: err.Error()})
			default:
				return Loaded{}, fmt.Errorf("manifests: %w", err)
			}
		}
	}
	state := l.state()
	return Loaded{state, l.problems, l.seen, l.madeUp, podCIDRs}, nil
}

// Parse is Load of a text that is not in a file; name is how problems call it.
func Parse(name string, text []byte) (netpol.State, []Problem) {
	l := loader{seen: map[string]document{}, made: map[string]int{}}
	l.text(name, text)
	return l.state(), l.problems
}

type loader struct {
	found     netpol.State
	workloads []workload
	seen      map[string]document // by kind, namespace and name
	made      map[string]int      // the last number of a generated name, by the object that has it without one
	problems  []Problem
	madeUp    map[*corev1.Pod]bool // pods that the files have no addresses of
	podCIDRs  []netip.Prefix       // as LoadAll has them
}

func (l *loader) text(file string, text []byte) {
	docs, problems := split(file, text)
	l.problems = append(l.problems, problems...)
	for _, d := range docs {
		l.document(d, metav1.TypeMeta{})
	}
}

func (l *loader) problem(d document, object, reason string) {
	l.problems = append(l.problems, Problem{File: d.file, Line: d.line, Object: object, Reason: reason})
}

// document takes an object up. What it does not say of its kind is that of the list that it is in.
func (l *loader) document(d document, of metav1.TypeMeta) {
	var head struct {
		APIVersion any               `json:"apiVersion"`
		Kind       any               `json:"kind"`
		Items      []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(d.json, &head); err != nil {
		reason := err.Error()
		if wrong := new(json.UnmarshalTypeError); errors.As(err, &wrong) {
			reason = strings.TrimPrefix(wrong.Field+" is of the type "+wrong.Value, " ")
		}
		l.problem(d, "", "not an object: "+reason)
		return
	}
	version, _ := head.APIVersion.(string)
	kind, _ := head.Kind.(string)
	if version == "" && kind == "" {
		version, kind = of.APIVersion, of.Kind
	}
	if version == "" || kind == "" {
		l.problem(d, "", "not an object: it has no apiVersion or no kind")
		return
	}
	gv, err := schema.ParseGroupVersion(version)
	if err != nil {
		l.problem(d, kind, err.Error())
		return
	}
	gvk := gv.WithKind(kind)
	if item, ok := strings.CutSuffix(kind, "List"); ok && (item == "" || known(gv.WithKind(item))) {
		var each metav1.TypeMeta
		if item != "" {
			each = metav1.TypeMeta{APIVersion: version, Kind: item}
		}
		for _, raw := range head.Items {
			l.document(document{d.file, d.line, raw}, each)
		}
		return
	}
	l.object(d, gvk)
}

func (l *loader) object(d document, gvk schema.GroupVersionKind) {
	s := &l.found
	switch gvk {
	case corev1.SchemeGroupVersion.WithKind("Namespace"):
		take(l, d, gvk, false, &s.Namespaces, func(n *corev1.Namespace) field.ErrorList {
			if v, ok := n.Labels[corev1.LabelMetadataName]; ok && v != n.Name {
				return field.ErrorList{field.Invalid(field.NewPath("metadata", "labels").Key(corev1.LabelMetadataName), v, "is always the namespace's name")}
			}
			return nil
		})
	case corev1.SchemeGroupVersion.WithKind("Pod"):
		take(l, d, gvk, true, &s.Pods, validatePod)
	case corev1.SchemeGroupVersion.WithKind("Node"):
		take(l, d, gvk, false, &s.Nodes, nil)
	case corev1.SchemeGroupVersion.WithKind("Service"):
		take(l, d, gvk, true, &s.Services, nil)
	case networkingv1.SchemeGroupVersion.WithKind("NetworkPolicy"):
		take(l, d, gvk, true, &s.NetworkPolicies, policyvalidation.NetworkPolicy)
	case policyv1alpha2.SchemeGroupVersion.WithKind("ClusterNetworkPolicy"):
		take(l, d, gvk, false, &s.ClusterNetworkPolicies, policyvalidation.ClusterNetworkPolicy)
	case appsv1.SchemeGroupVersion.WithKind("Deployment"):
		takeWorkload(l, d, gvk, func(w *appsv1.Deployment) (*corev1.PodTemplateSpec, int) {
			return &w.Spec.Template, replicas(w.Spec.Replicas)
		})
	case appsv1.SchemeGroupVersion.WithKind("ReplicaSet"):
		takeWorkload(l, d, gvk, func(w *appsv1.ReplicaSet) (*corev1.PodTemplateSpec, int) {
			return &w.Spec.Template, replicas(w.Spec.Replicas)
		})
	case appsv1.SchemeGroupVersion.WithKind("StatefulSet"):
		takeWorkload(l, d, gvk, func(w *appsv1.StatefulSet) (*corev1.PodTemplateSpec, int) {
			return &w.Spec.Template, replicas(w.Spec.Replicas)
		})
	case appsv1.SchemeGroupVersion.WithKind("DaemonSet"):
		takeWorkload(l, d, gvk, func(w *appsv1.DaemonSet) (*corev1.PodTemplateSpec, int) { return &w.Spec.Template, onePerNode })
	case corev1.SchemeGroupVersion.WithKind("ReplicationController"):
		takeWorkload(l, d, gvk, func(w *corev1.ReplicationController) (*corev1.PodTemplateSpec, int) {
			return w.Spec.Template, replicas(w.Spec.Replicas)
		})
	case batchv1.SchemeGroupVersion.WithKind("Job"):
		takeWorkload(l, d, gvk, func(w *batchv1.Job) (*corev1.PodTemplateSpec, int) {
			return &w.Spec.Template, replicas(w.Spec.Parallelism)
		})
	case batchv1.SchemeGroupVersion.WithKind("CronJob"):
		takeWorkload(l, d, gvk, func(w *batchv1.CronJob) (*corev1.PodTemplateSpec, int) { return &w.Spec.JobTemplate.Spec.Template, 1 })
	default:
		if strings.Contains(gvk.Kind, "NetworkPolicy") && !strings.HasSuffix(gvk.Kind, "List") || known(gvk) {
			l.problem(d, gvk.Kind, "apiVersion "+gvk.GroupVersion().String()+" of this kind is not judged")
		}
	}
}

// kinds that Load makes use of, and the groups that have them or had them once.
var kinds = map[string][]string{
	"Namespace": {""}, "Pod": {""}, "Node": {""}, "Service": {""}, "ReplicationController": {""},
	"Deployment": {"apps", "extensions"}, "ReplicaSet": {"apps", "extensions"}, "DaemonSet": {"apps", "extensions"}, "StatefulSet": {"apps"},
	"Job": {"batch"}, "CronJob": {"batch"}, "NetworkPolicy": {"networking.k8s.io", "extensions"}, "ClusterNetworkPolicy": {policyv1alpha2.GroupName},
}

func known(gvk schema.GroupVersionKind) bool { return slices.Contains(kinds[gvk.Kind], gvk.Group) }

// decode reads an object strictly. It tells whether there is one to be used.
func decode[T any, P interface {
	*T
	metav1.Object
}](l *loader, d document, gvk schema.GroupVersionKind, namespaced bool) (P, string, bool) {
	obj := P(new(T))
	strict, err := kjson.UnmarshalStrict(d.json, obj)
	if namespaced && obj.GetNamespace() == "" {
		obj.SetNamespace(metav1.NamespaceDefault)
	}
	name := describe(gvk.Kind, obj)
	if err != nil {
		l.problem(d, name, err.Error())
		return nil, name, false
	}
	for _, e := range strict {
		l.problem(d, name, e.Error())
	}
	if obj.GetName() == "" && obj.GetGenerateName() != "" {
		obj.SetName(obj.GetGenerateName() + "x")
		first := describe(gvk.Kind, obj)
		n := max(l.made[first], 1)
		for l.seen[describe(gvk.Kind, obj)].file != "" {
			n++
			obj.SetName(fmt.Sprint(obj.GetGenerateName(), "x", n))
		}
		l.made[first] = n
	}
	var errs field.ErrorList
	meta := field.NewPath("metadata")
	if obj.GetName() == "" {
		l.problem(d, gvk.Kind, field.Required(meta.Child("name"), "").Error())
		return nil, name, false
	}
	name = describe(gvk.Kind, obj)
	valid := validation.IsDNS1123Subdomain
	if gvk.Kind == "Namespace" {
		valid = validation.IsDNS1123Label
	}
	for _, m := range valid(obj.GetName()) {
		errs = append(errs, field.Invalid(meta.Child("name"), obj.GetName(), m))
	}
	if namespaced {
		for _, m := range validation.IsDNS1123Label(obj.GetNamespace()) {
			errs = append(errs, field.Invalid(meta.Child("namespace"), obj.GetNamespace(), m))
		}
	} else {
		obj.SetNamespace("")
	}
	if len(errs) > 0 { // such an object can't be in a cluster, and a name with a slash would be taken for another's
		for _, e := range errs {
			l.problem(d, name, e.Error())
		}
		return nil, name, false
	}
	for _, e := range metav1validation.ValidateLabels(obj.GetLabels(), meta.Child("labels")) {
		l.problem(d, name, e.Error())
	}
	if first, twice := l.seen[name]; twice {
		l.problem(d, name, fmt.Sprintf("is there already, from %s:%d, which is what counts", first.file, first.line))
		return nil, name, false
	}
	l.seen[name] = d
	return obj, name, true
}

func describe(kind string, obj metav1.Object) string {
	if ns := obj.GetNamespace(); ns != "" {
		return kind + " " + ns + "/" + obj.GetName()
	}
	return kind + " " + obj.GetName()
}

// take reads an object and keeps it. What validate finds are problems; the object counts nonetheless.
func take[T any, P interface {
	*T
	metav1.Object
}](l *loader, d document, gvk schema.GroupVersionKind, namespaced bool, to *[]P, validate func(P) field.ErrorList) {
	obj, name, ok := decode[T, P](l, d, gvk, namespaced)
	if !ok {
		return
	}
	if validate != nil {
		for _, e := range validate(obj) {
			l.problem(d, name, e.Error())
		}
	}
	*to = append(*to, obj)
}

func validatePod(p *corev1.Pod) field.ErrorList {
	errs := validateContainers(&p.Spec, field.NewPath("spec"))
	if len(p.Status.PodIPs) == 0 && p.Status.PodIP != "" {
		p.Status.PodIPs = []corev1.PodIP{{IP: p.Status.PodIP}}
	}
	for i, ip := range p.Status.PodIPs {
		if _, ok := address(ip.IP); !ok {
			errs = append(errs, field.Invalid(field.NewPath("status", "podIPs").Index(i).Child("ip"), ip.IP, "must be an IP address"))
		}
	}
	p.Status.PodIPs = slices.DeleteFunc(p.Status.PodIPs, func(ip corev1.PodIP) bool { _, ok := address(ip.IP); return !ok })
	if len(p.Status.PodIPs) > 0 {
		p.Status.PodIP = p.Status.PodIPs[0].IP
	}
	return errs
}

// validateContainers looks at what policies can refer to: the ports.
func validateContainers(s *corev1.PodSpec, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	check := func(list []corev1.Container, p *field.Path) {
		for i, c := range list {
			for j, port := range c.Ports {
				pp := p.Index(i).Child("ports").Index(j)
				for _, m := range validation.IsValidPortNum(int(port.ContainerPort)) {
					errs = append(errs, field.Invalid(pp.Child("containerPort"), port.ContainerPort, m))
				}
				if port.Name != "" {
					for _, m := range validation.IsValidPortName(port.Name) {
						errs = append(errs, field.Invalid(pp.Child("name"), port.Name, m))
					}
				}
				if _, err := netpol.ProtocolNumber(port.Protocol); err != nil {
					errs = append(errs, field.NotSupported(pp.Child("protocol"), port.Protocol, []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}))
				}
			}
		}
	}
	check(s.InitContainers, p.Child("initContainers"))
	check(s.Containers, p.Child("containers"))
	return errs
}
