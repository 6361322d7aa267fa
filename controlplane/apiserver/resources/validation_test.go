package resources

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
)

// of finds the descriptor of an object's type.
func of(t testing.TB, obj runtime.Object) *descriptor.Resource {
	t.Helper()
	for _, r := range All() {
		if fmt.Sprintf("%T", r.New()) == fmt.Sprintf("%T", obj) {
			return r
		}
	}
	t.Fatalf("no descriptor of %T", obj)
	return nil
}

// told is how errors are compared: what is wrong with which field.
func told(errs field.ErrorList) []string {
	var out []string
	for _, e := range errs {
		out = append(out, e.Field+": "+e.Type.String())
	}
	slices.Sort(out)
	return out
}

// refused checks what a new object's validation says of it, once it is defaulted.
func refused(t *testing.T, obj runtime.Object, want ...string) {
	t.Helper()
	r := of(t, obj)
	if r.Default != nil {
		r.Default(obj)
	}
	if r.PrepareCreate != nil {
		r.PrepareCreate(t.Context(), obj)
	}
	errs := r.Validate(obj)
	slices.Sort(want)
	if got := told(errs); !slices.Equal(got, want) {
		t.Errorf("got\n  %s\nwant\n  %s\n%v", strings.Join(got, "\n  "), strings.Join(want, "\n  "), errs.ToAggregate())
	}
}

func ptr[V any](v V) *V { return &v }

func podSpec() corev1.PodSpec {
	return corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}
}

func TestPods(t *testing.T) {
	one := func(f func(*corev1.Container)) func(*corev1.PodSpec) {
		return func(s *corev1.PodSpec) { f(&s.Containers[0]) }
	}
	env := func(e corev1.EnvVar) func(*corev1.PodSpec) {
		return one(func(c *corev1.Container) { c.Env = []corev1.EnvVar{e} })
	}
	volume := func(v corev1.VolumeSource) func(*corev1.PodSpec) {
		return func(s *corev1.PodSpec) { s.Volumes = []corev1.Volume{{Name: "v", VolumeSource: v}} }
	}
	mount := func(m ...corev1.VolumeMount) func(*corev1.PodSpec) {
		return func(s *corev1.PodSpec) {
			s.Volumes, s.Containers[0].VolumeMounts = []corev1.Volume{{Name: "v"}}, m
		}
	}
	probe := func(p corev1.Probe) func(*corev1.PodSpec) {
		return one(func(c *corev1.Container) { c.LivenessProbe = &p })
	}
	term := func(e corev1.NodeSelectorRequirement) func(*corev1.PodSpec) {
		return func(s *corev1.PodSpec) {
			s.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
				NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{e}}},
			}}}
		}
	}
	const container, nodeTerms = "spec.containers[0].", "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms"
	for _, test := range []struct {
		name   string
		change func(*corev1.PodSpec)
		want   []string
	}{
		{"good", func(*corev1.PodSpec) {}, nil},
		{"no containers", func(s *corev1.PodSpec) { s.Containers = nil }, []string{"spec.containers: Required value"}},
		{"empty container", one(func(c *corev1.Container) { *c = corev1.Container{} }), []string{container + "name: Required value", container + "image: Required value"}},
		{"image with a blank", one(func(c *corev1.Container) { c.Image = " i" }), []string{container + "image: Invalid value"}},
		{"name twice", func(s *corev1.PodSpec) { s.Containers = append(s.Containers, s.Containers[0]) }, []string{"spec.containers[1].name: Duplicate value"}},
		{"init container of the same name", func(s *corev1.PodSpec) { s.InitContainers = podSpec().Containers }, []string{"spec.initContainers[0].name: Duplicate value"}},
		{"policies", func(s *corev1.PodSpec) {
			s.RestartPolicy, s.DNSPolicy, s.Containers[0].ImagePullPolicy, s.Containers[0].TerminationMessagePolicy = "a", "b", "c", "d"
		}, []string{"spec.restartPolicy: Unsupported value", "spec.dnsPolicy: Unsupported value", container + "imagePullPolicy: Unsupported value", container + "terminationMessagePolicy: Unsupported value"}},
		{"names", func(s *corev1.PodSpec) {
			s.Hostname, s.Subdomain, s.ServiceAccountName, s.NodeName, s.PriorityClassName, s.RuntimeClassName = "A", "b.c", "D", "E", "F", ptr("G")
		}, []string{"spec.hostname: Invalid value", "spec.subdomain: Invalid value", "spec.serviceAccountName: Invalid value", "spec.nodeName: Invalid value", "spec.priorityClassName: Invalid value", "spec.runtimeClassName: Invalid value"}},
		{"deadline", func(s *corev1.PodSpec) { s.ActiveDeadlineSeconds = ptr(int64(0)) }, []string{"spec.activeDeadlineSeconds: Invalid value"}},

		{"ports", one(func(c *corev1.Container) {
			c.Ports = []corev1.ContainerPort{{}, {ContainerPort: 70000, HostPort: -1, Protocol: "ICMP", Name: "Too_Long_For_A_Port"}, {Name: "a", ContainerPort: 1, HostPort: 5}, {Name: "a", ContainerPort: 2, HostPort: 5}}
		}), []string{
			container + "ports[0].containerPort: Required value", container + "ports[1].containerPort: Invalid value", container + "ports[1].hostPort: Invalid value", container + "ports[1].protocol: Unsupported value",
			container + "ports[1].name: Invalid value", container + "ports[1].name: Invalid value", container + "ports[3].name: Duplicate value", container + "ports[3].hostPort: Duplicate value",
		}},
		{"another port of the host than of the container", func(s *corev1.PodSpec) {
			s.HostNetwork, s.Containers[0].Ports = true, []corev1.ContainerPort{{ContainerPort: 80}, {ContainerPort: 81, HostPort: 82}}
		}, []string{container + "ports[1].hostPort: Invalid value"}},

		{"variable without a name", env(corev1.EnvVar{}), []string{container + "env[0].name: Required value"}},
		{"variable with an equals sign", env(corev1.EnvVar{Name: "A=B"}), []string{container + "env[0].name: Invalid value"}},
		{"variable from nowhere", env(corev1.EnvVar{Name: "A", ValueFrom: &corev1.EnvVarSource{}}), []string{container + "env[0].valueFrom: Invalid value"}},
		{"variable from two places", env(corev1.EnvVar{Name: "A", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{}, FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.podIP"}}}),
			[]string{container + "env[0].valueFrom: Invalid value", container + "env[0].valueFrom.secretKeyRef.name: Required value", container + "env[0].valueFrom.secretKeyRef.key: Required value"}},
		{"variable with a value and from somewhere", env(corev1.EnvVar{Name: "A", Value: "x", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels['a']"}}}), []string{container + "env[0].valueFrom: Invalid value"}},
		{"variable from an unknown field", env(corev1.EnvVar{Name: "A", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "spec.everything"}}}), []string{container + "env[0].valueFrom.fieldRef.fieldPath: Unsupported value"}},
		{"variable from an unknown resource", env(corev1.EnvVar{Name: "A", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.time"}}}), []string{container + "env[0].valueFrom.resourceFieldRef.resource: Unsupported value"}},
		{"variables from nowhere, and of no object", one(func(c *corev1.Container) {
			c.EnvFrom = []corev1.EnvFromSource{{}, {SecretRef: &corev1.SecretEnvSource{}}}
		}), []string{container + "envFrom[0]: Invalid value", container + "envFrom[1].secretRef.name: Required value"}},

		{"volume names", func(s *corev1.PodSpec) { s.Volumes = []corev1.Volume{{Name: "a"}, {Name: "a"}, {Name: "B"}, {}} },
			[]string{"spec.volumes[1].name: Duplicate value", "spec.volumes[2].name: Invalid value", "spec.volumes[3].name: Required value"}},
		{"two kinds of volume", volume(corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}, Secret: &corev1.SecretVolumeSource{SecretName: "s"}}), []string{"spec.volumes[0].secret: Forbidden"}},
		{"secret", volume(corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{DefaultMode: ptr(int32(0o1000)), Items: []corev1.KeyToPath{{}, {Key: "k", Path: "../p", Mode: ptr(int32(-1))}}}}), []string{
			"spec.volumes[0].secret.secretName: Required value", "spec.volumes[0].secret.defaultMode: Invalid value", "spec.volumes[0].secret.items[0].key: Required value",
			"spec.volumes[0].secret.items[0].path: Required value", "spec.volumes[0].secret.items[1].path: Invalid value", "spec.volumes[0].secret.items[1].mode: Invalid value",
		}},
		{"configMap", volume(corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{Items: []corev1.KeyToPath{{Key: "k", Path: "/p"}, {Key: "k", Path: "..p"}}}}), []string{
			"spec.volumes[0].configMap.name: Required value", "spec.volumes[0].configMap.items[0].path: Invalid value", "spec.volumes[0].configMap.items[1].path: Invalid value",
		}},
		{"hostPath", volume(corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/a/../b", Type: ptr(corev1.HostPathType("Pipe"))}}), []string{"spec.volumes[0].hostPath.path: Invalid value", "spec.volumes[0].hostPath.type: Unsupported value"}},
		{"emptyDir", volume(corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: ptr(resource.MustParse("-1"))}}), []string{"spec.volumes[0].emptyDir.sizeLimit: Forbidden"}},
		{"downwardAPI", volume(corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{{Path: "a"}, {Path: "b", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.podIP"}}}}}),
			[]string{"spec.volumes[0].downwardAPI: Required value", "spec.volumes[0].downwardAPI.fieldRef.fieldPath: Unsupported value"}},
		{"projected", volume(corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{ExpirationSeconds: ptr(int64(60)), Path: "t"}},
			{Secret: &corev1.SecretProjection{Items: []corev1.KeyToPath{{Key: "k", Path: "t"}}}, ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "m"}}},
		}}}), []string{
			"spec.volumes[0].projected.sources[0].serviceAccountToken.expirationSeconds: Invalid value", "spec.volumes[0].projected.sources[1].secret.name: Required value",
			"spec.volumes[0].projected: Invalid value", "spec.volumes[0].projected.sources[1]: Forbidden",
		}},
		{"claim", volume(corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{}}), []string{"spec.volumes[0].persistentVolumeClaim.claimName: Required value"}},
		{"mounts", mount(corev1.VolumeMount{}, corev1.VolumeMount{Name: "w", MountPath: "/a"}, corev1.VolumeMount{Name: "v", MountPath: "/a", SubPath: "/s", SubPathExpr: "..", MountPropagation: ptr(corev1.MountPropagationBidirectional)}), []string{
			container + "volumeMounts[0].name: Required value", container + "volumeMounts[0].mountPath: Required value", container + "volumeMounts[1].name: Not found", container + "volumeMounts[2].mountPath: Invalid value",
			container + "volumeMounts[2].subPath: Invalid value", container + "volumeMounts[2].subPathExpr: Invalid value", container + "volumeMounts[2].subPathExpr: Invalid value", container + "volumeMounts[2].mountPropagation: Forbidden",
		}},

		{"probe of nothing", probe(corev1.Probe{SuccessThreshold: 2, PeriodSeconds: -1}), []string{container + "livenessProbe: Required value", container + "livenessProbe.successThreshold: Invalid value", container + "livenessProbe.periodSeconds: Invalid value"}},
		{"probe of two things", probe(corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{}, HTTPGet: &corev1.HTTPGetAction{Scheme: "FTP", Port: intstr.FromInt32(0)}}}), []string{
			container + "livenessProbe.exec.command: Required value", container + "livenessProbe.httpGet: Forbidden", container + "livenessProbe.httpGet.scheme: Unsupported value", container + "livenessProbe.httpGet.port: Invalid value",
		}},
		{"readiness probe with a grace period", one(func(c *corev1.Container) {
			c.ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{}}, TerminationGracePeriodSeconds: ptr(int64(1)), SuccessThreshold: 3}
		}), []string{container + "readinessProbe.grpc.port: Invalid value", container + "readinessProbe.terminationGracePeriodSeconds: Invalid value"}},
		{"hook of nothing", one(func(c *corev1.Container) { c.Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{}} }), []string{container + "lifecycle.preStop: Required value"}},
		{"hook that sleeps for ever", one(func(c *corev1.Container) {
			c.Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 31}}}
		}), []string{container + "lifecycle.preStop.sleep: Invalid value"}},
		{"init container with a probe", func(s *corev1.PodSpec) {
			s.InitContainers = []corev1.Container{{Name: "a", Image: "i", StartupProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"x"}}}}}, {Name: "b", Image: "i", RestartPolicy: ptr(corev1.ContainerRestartPolicy("Sometimes"))}}
		}, []string{"spec.initContainers[0].startupProbe: Forbidden", "spec.initContainers[1].restartPolicy: Unsupported value"}},
		{"sidecar with a probe", func(s *corev1.PodSpec) {
			s.InitContainers = []corev1.Container{{Name: "a", Image: "i", RestartPolicy: ptr(corev1.ContainerRestartPolicyAlways), StartupProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"x"}}}}}}
		}, nil},

		{"resources", one(func(c *corev1.Container) {
			c.Resources = corev1.ResourceRequirements{
				Requests: corev1.ResourceList{"cpu": resource.MustParse("2"), "memory": resource.MustParse("-1"), "time": resource.MustParse("1"), "example.org/gpu": resource.MustParse("1")},
				Limits:   corev1.ResourceList{"cpu": resource.MustParse("1"), "example.org/gpu": resource.MustParse("2")},
			}
		}), []string{
			container + "resources.requests: Invalid value", container + "resources.requests[memory]: Invalid value", container + "resources.requests[time]: Invalid value", container + "resources.requests: Invalid value",
		}},
		{"security", func(s *corev1.PodSpec) {
			s.SecurityContext = &corev1.PodSecurityContext{RunAsUser: ptr(int64(-1)), FSGroup: ptr(int64(1 << 40)), SupplementalGroups: []int64{1, -1}, SeccompProfile: &corev1.SeccompProfile{Type: "Localhost"}, Sysctls: []corev1.Sysctl{{}}}
			s.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: ptr(true), AllowPrivilegeEscalation: ptr(false), RunAsGroup: ptr(int64(-1))}
		}, []string{
			"spec.securityContext.runAsUser: Invalid value", "spec.securityContext.fsGroup: Invalid value", "spec.securityContext.supplementalGroups[1]: Invalid value", "spec.securityContext.seccompProfile.localhostProfile: Required value",
			"spec.securityContext.sysctls[0].name: Required value", container + "securityContext: Invalid value", container + "securityContext.runAsGroup: Invalid value",
		}},
		{"DNS of its own without any", func(s *corev1.PodSpec) { s.DNSPolicy = corev1.DNSNone }, []string{"spec.dnsConfig: Required value"}},
		{"DNS", func(s *corev1.PodSpec) {
			s.DNSConfig = &corev1.PodDNSConfig{Nameservers: []string{"1.1.1.1", "x", "2.2.2.2", "3.3.3.3"}, Searches: []string{"_srv.example.org.", "-"}, Options: []corev1.PodDNSConfigOption{{}}}
		}, []string{"spec.dnsConfig.nameservers: Invalid value", "spec.dnsConfig.nameservers[1]: Invalid value", "spec.dnsConfig.searches[1]: Invalid value", "spec.dnsConfig.options[0]: Required value"}},
		{"host aliases", func(s *corev1.PodSpec) { s.HostAliases = []corev1.HostAlias{{IP: "x", Hostnames: []string{"A"}}} }, []string{"spec.hostAliases[0].ip: Invalid value", "spec.hostAliases[0].hostnames: Invalid value"}},

		{"tolerations", func(s *corev1.PodSpec) {
			s.Tolerations = []corev1.Toleration{{}, {Key: "k", Operator: "Exists", Value: "v"}, {Key: "k", Operator: "Like"}, {Key: "k", Effect: "Never"}, {Key: "k", TolerationSeconds: ptr(int64(1))}}
		}, []string{
			"spec.tolerations[0].operator: Invalid value", "spec.tolerations[1].operator: Invalid value", "spec.tolerations[2].operator: Unsupported value", "spec.tolerations[3].effect: Unsupported value", "spec.tolerations[4].effect: Invalid value",
		}},
		{"selector of nodes", func(s *corev1.PodSpec) { s.NodeSelector = map[string]string{"a b": "c"} }, []string{"spec.nodeSelector: Invalid value"}},
		{"affinity to nothing", func(s *corev1.PodSpec) {
			s.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{}}}
		}, []string{nodeTerms + ": Required value"}},
		{"affinity to none of nothing", term(corev1.NodeSelectorRequirement{Key: "k", Operator: "In"}), []string{nodeTerms + "[0].matchExpressions[0].values: Required value"}},
		{"affinity by existence of a value", term(corev1.NodeSelectorRequirement{Key: "k", Operator: "Exists", Values: []string{"v"}}), []string{nodeTerms + "[0].matchExpressions[0].values: Forbidden"}},
		{"affinity by an unknown operator", term(corev1.NodeSelectorRequirement{Key: "k", Operator: "Near"}), []string{nodeTerms + "[0].matchExpressions[0].operator: Invalid value"}},
		{"affinity to pods without a topology", func(s *corev1.PodSpec) {
			s.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{{Weight: 101}}}}
		}, []string{
			"spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight: Invalid value",
			"spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].podAffinityTerm.topologyKey: Required value",
		}},
		{"spread", func(s *corev1.PodSpec) {
			s.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{}, {MaxSkew: 1, TopologyKey: "zone", WhenUnsatisfiable: "ScheduleAnyway", MinDomains: ptr(int32(0))}}
		}, []string{
			"spec.topologySpreadConstraints[0].maxSkew: Invalid value", "spec.topologySpreadConstraints[0].topologyKey: Required value", "spec.topologySpreadConstraints[0].whenUnsatisfiable: Unsupported value",
			"spec.topologySpreadConstraints[1].minDomains: Invalid value", "spec.topologySpreadConstraints[1].minDomains: Invalid value",
		}},
		{"gates", func(s *corev1.PodSpec) { s.SchedulingGates = []corev1.PodSchedulingGate{{Name: "a"}, {Name: "a"}} }, []string{"spec.schedulingGates[1]: Duplicate value"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns"}, Spec: podSpec()}
			test.change(&p.Spec)
			refused(t, p, test.want...)
			// What a pod may not be, nothing may make.
			d := deployment(func(s *appsv1.DeploymentSpec) { test.change(&s.Template.Spec) })
			if r := of(t, d); test.want != nil {
				r.Default(d)
				if errs := r.Validate(d); len(errs) == 0 {
					t.Error("a Deployment may make such pods")
				}
			}
		})
	}
}

func deployment(change func(*appsv1.DeploymentSpec)) *appsv1.Deployment {
	l := map[string]string{"a": "b"}
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "d", Namespace: "ns"}, Spec: appsv1.DeploymentSpec{
		Selector: &metav1.LabelSelector{MatchLabels: l}, Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: l}, Spec: podSpec()},
	}}
	change(&d.Spec)
	return d
}

func TestWorkloads(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*appsv1.DeploymentSpec)
		want   []string
	}{
		"good":         {func(*appsv1.DeploymentSpec) {}, nil},
		"no selector":  {func(s *appsv1.DeploymentSpec) { s.Selector = nil }, []string{"spec.selector: Required value"}},
		"all pods":     {func(s *appsv1.DeploymentSpec) { s.Selector = &metav1.LabelSelector{} }, []string{"spec.selector: Invalid value"}},
		"other labels": {func(s *appsv1.DeploymentSpec) { s.Template.Labels = nil }, []string{"spec.template.metadata.labels: Invalid value"}},
		"less than 0": {func(s *appsv1.DeploymentSpec) {
			s.Replicas, s.RevisionHistoryLimit, s.MinReadySeconds = ptr(int32(-1)), ptr(int32(-1)), -1
		},
			[]string{"spec.replicas: Invalid value", "spec.revisionHistoryLimit: Invalid value", "spec.minReadySeconds: Invalid value"}},
		"progress before it is ready": {func(s *appsv1.DeploymentSpec) { s.ProgressDeadlineSeconds, s.MinReadySeconds = ptr(int32(5)), 5 }, []string{"spec.progressDeadlineSeconds: Invalid value"}},
		"pods that end": {func(s *appsv1.DeploymentSpec) {
			s.Template.Spec.RestartPolicy, s.Template.Spec.ActiveDeadlineSeconds = "Never", ptr(int64(1))
		}, []string{"spec.template.spec.restartPolicy: Unsupported value", "spec.template.spec.activeDeadlineSeconds: Forbidden"}},
		"strategy": {func(s *appsv1.DeploymentSpec) { s.Strategy.Type = "Hope" }, []string{"spec.strategy.type: Unsupported value"}},
		"recreate with a rolling update": {func(s *appsv1.DeploymentSpec) {
			s.Strategy.Type, s.Strategy.RollingUpdate = "Recreate", &appsv1.RollingUpdateDeployment{MaxSurge: ptr(intstr.FromInt32(1)), MaxUnavailable: ptr(intstr.FromInt32(1))}
		}, []string{"spec.strategy.rollingUpdate: Forbidden"}},
		"neither more nor less": {func(s *appsv1.DeploymentSpec) {
			s.Strategy.RollingUpdate = &appsv1.RollingUpdateDeployment{MaxSurge: ptr(intstr.FromString("0%")), MaxUnavailable: ptr(intstr.FromInt32(0))}
		}, []string{"spec.strategy.rollingUpdate.maxUnavailable: Invalid value"}},
		"shares": {func(s *appsv1.DeploymentSpec) {
			s.Strategy.RollingUpdate = &appsv1.RollingUpdateDeployment{MaxSurge: ptr(intstr.FromString("half")), MaxUnavailable: ptr(intstr.FromString("101%"))}
		}, []string{"spec.strategy.rollingUpdate.maxSurge: Invalid value", "spec.strategy.rollingUpdate.maxUnavailable: Invalid value"}},
		"template": {func(s *appsv1.DeploymentSpec) {
			s.Template.Annotations, s.Template.Spec.EphemeralContainers = map[string]string{"a b": ""}, []corev1.EphemeralContainer{{}}
		}, []string{"spec.template.metadata.annotations: Invalid value", "spec.template.spec.ephemeralContainers: Forbidden"}},
	} {
		t.Run(name, func(t *testing.T) { refused(t, deployment(test.change), test.want...) })
	}
	for name, test := range map[string]struct {
		change func(*batchv1.JobSpec)
		want   []string
	}{
		"good":      {func(*batchv1.JobSpec) {}, nil},
		"pods anew": {func(s *batchv1.JobSpec) { s.Template.Spec.RestartPolicy = "" }, []string{"spec.template.spec.restartPolicy: Required value"}},
		"less than 0": {func(s *batchv1.JobSpec) {
			s.Parallelism, s.Completions, s.BackoffLimit, s.TTLSecondsAfterFinished, s.ActiveDeadlineSeconds = ptr(int32(-1)), ptr(int32(-1)), ptr(int32(-1)), ptr(int32(-1)), ptr(int64(-1))
		},
			[]string{"spec.parallelism: Invalid value", "spec.completions: Invalid value", "spec.backoffLimit: Invalid value", "spec.ttlSecondsAfterFinished: Invalid value", "spec.activeDeadlineSeconds: Invalid value"}},
		"mode": {func(s *batchv1.JobSpec) { s.CompletionMode = ptr(batchv1.CompletionMode("x")) }, []string{"spec.completionMode: Unsupported value"}},
		"indexes of what": {func(s *batchv1.JobSpec) {
			s.CompletionMode, s.Parallelism = ptr(batchv1.IndexedCompletion), ptr(int32(100_001))
		}, []string{"spec.completions: Required value", "spec.parallelism: Invalid value"}},
		"limits of indexes":     {func(s *batchv1.JobSpec) { s.BackoffLimitPerIndex = ptr(int32(1)) }, []string{"spec.backoffLimitPerIndex: Invalid value"}},
		"failed indexes":        {func(s *batchv1.JobSpec) { s.MaxFailedIndexes = ptr(int32(1)) }, []string{"spec.backoffLimitPerIndex: Required value"}},
		"a selector of its own": {func(s *batchv1.JobSpec) { s.ManualSelector = ptr(true) }, []string{"spec.selector: Required value"}},
		"a failure policy": {func(s *batchv1.JobSpec) {
			s.PodFailurePolicy, s.Template.Spec.RestartPolicy = &batchv1.PodFailurePolicy{}, "OnFailure"
		}, []string{"spec.template.spec.restartPolicy: Invalid value"}},
	} {
		t.Run("Job/"+name, func(t *testing.T) {
			j := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "j", UID: "u"}, Spec: batchv1.JobSpec{Template: corev1.PodTemplateSpec{Spec: podSpec()}}}
			j.Spec.Template.Spec.RestartPolicy = "Never"
			test.change(&j.Spec)
			refused(t, j, test.want...)
		})
	}
	c := &batchv1.CronJob{ObjectMeta: metav1.ObjectMeta{Name: strings.Repeat("x", 53)}, Spec: batchv1.CronJobSpec{
		ConcurrencyPolicy: "Perhaps", TimeZone: ptr("Moon/Crater"), StartingDeadlineSeconds: ptr(int64(-1)), FailedJobsHistoryLimit: ptr(int32(-1)),
	}}
	refused(t, c, "spec.schedule: Required value", "metadata.name: Invalid value", "spec.concurrencyPolicy: Unsupported value", "spec.timeZone: Invalid value", "spec.startingDeadlineSeconds: Invalid value", "spec.failedJobsHistoryLimit: Invalid value",
		"spec.jobTemplate.spec.template.spec.containers: Required value", "spec.jobTemplate.spec.template.spec.restartPolicy: Required value")
	for _, zone := range []string{"Etc/UTC", "Europe/Ljubljana"} {
		good := &batchv1.CronJob{Spec: batchv1.CronJobSpec{Schedule: "@daily", TimeZone: &zone, JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{Template: corev1.PodTemplateSpec{Spec: podSpec()}}}}}
		good.Spec.JobTemplate.Spec.Template.Spec.RestartPolicy = "Never"
		refused(t, good)
	}
}

func TestOthers(t *testing.T) {
	for name, test := range map[string]struct {
		obj  runtime.Object
		want []string
	}{
		"ConfigMap": {&corev1.ConfigMap{Data: map[string]string{"a b": "", "k": ""}, BinaryData: map[string][]byte{"k": nil, "..": nil}}, []string{"data[a b]: Invalid value", "data[k]: Invalid value", "binaryData[..]: Invalid value"}},
		"large":     {&corev1.ConfigMap{Data: map[string]string{"k": strings.Repeat("x", 1<<20+1)}}, []string{"[]: Too long"}},
		"Secret":    {&corev1.Secret{Data: map[string][]byte{"a/b": nil}}, []string{"data[a/b]: Invalid value"}},
		"TLS":       {&corev1.Secret{Type: corev1.SecretTypeTLS}, []string{"data[tls.crt]: Required value", "data[tls.key]: Required value"}},
		"docker":    {&corev1.Secret{Type: corev1.SecretTypeDockerConfigJson, StringData: map[string]string{".dockerconfigjson": "{"}}, []string{"data[.dockerconfigjson]: Invalid value"}},
		"password":  {&corev1.Secret{Type: corev1.SecretTypeBasicAuth, StringData: map[string]string{"username": ""}}, nil},
		"nobody":    {&corev1.Secret{Type: corev1.SecretTypeBasicAuth}, []string{"data[username]: Required value", "data[password]: Required value"}},
		"token":     {&corev1.Secret{Type: corev1.SecretTypeServiceAccountToken}, []string{"metadata.annotations[kubernetes.io/service-account.name]: Required value"}},
		"Node": {&corev1.Node{Spec: corev1.NodeSpec{PodCIDRs: []string{"x"}, Taints: []corev1.Taint{{Key: "a b", Effect: "NoSchedule"}, {Key: "k"}, {Key: "t", Effect: "NoExecute"}, {Key: "t", Effect: "NoExecute"}}}},
			[]string{"spec.podCIDRs[0]: Invalid value", "spec.taints[0].key: Invalid value", "spec.taints[1].effect: Required value", "spec.taints[3]: Duplicate value"}},
		"a Node of two families": {&corev1.Node{Spec: corev1.NodeSpec{PodCIDRs: []string{"fd00::/64", "10.0.0.0/24"}}}, nil},
		"a Node of one twice":    {&corev1.Node{Spec: corev1.NodeSpec{PodCIDRs: []string{"10.0.0.0/24", "10.0.1.0/24"}}}, []string{"spec.podCIDRs: Invalid value"}},
		"a Node of three":        {&corev1.Node{Spec: corev1.NodeSpec{PodCIDRs: []string{"10.0.0.0/24", "fd00::/64", "fd01::/64"}}}, []string{"spec.podCIDRs: Invalid value"}},
		"EndpointSlice": {&discoveryv1.EndpointSlice{AddressType: "IPv4", Endpoints: []discoveryv1.Endpoint{{}, {Addresses: []string{"x", "10.0.0.1"}}}},
			[]string{"endpoints[0].addresses: Required value", "endpoints[1].addresses[0]: Invalid value"}},
		"ports of a slice": {&discoveryv1.EndpointSlice{AddressType: "IPv4", Ports: []discoveryv1.EndpointPort{{Name: ptr("A"), Port: ptr(int32(0))}, {}, {Protocol: ptr(corev1.Protocol("X"))}}},
			[]string{"ports[0].name: Invalid value", "ports[0].port: Invalid value", "ports[2].name: Duplicate value", "ports[2].protocol: Unsupported value"}},
		"hints": {&discoveryv1.EndpointSlice{AddressType: "IPv4", Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"10.0.0.1"}, NodeName: ptr("A"), Hints: &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: "a"}, {Name: "a"}, {Name: "b c"}}, ForNodes: []discoveryv1.ForNode{{Name: "N"}}}},
			{Addresses: []string{"10.0.0.2"}, Hints: &discoveryv1.EndpointHints{ForZones: make([]discoveryv1.ForZone, 9)}},
		}}, []string{
			"endpoints[0].nodeName: Invalid value", "endpoints[0].hints.forZones[1].name: Duplicate value", "endpoints[0].hints.forZones[2].name: Invalid value", "endpoints[0].hints.forNodes[0].name: Invalid value",
			"endpoints[1].hints.forZones: Too many",
		}},
		"addresses that lead nowhere": {&discoveryv1.EndpointSlice{AddressType: "IPv4", Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"127.0.0.1"}}, {Addresses: []string{"fd00::1"}}, {Addresses: []string{"10.0.0.1"}, Hostname: ptr("A.b")}}},
			[]string{"endpoints[0].addresses[0]: Invalid value", "endpoints[1].addresses[0]: Invalid value", "endpoints[2].hostname: Invalid value"}},
		"Endpoints": {&corev1.Endpoints{Subsets: []corev1.EndpointSubset{{}, {NotReadyAddresses: []corev1.EndpointAddress{{IP: "x"}, {IP: "169.254.1.1"}}, Ports: []corev1.EndpointPort{{}, {Name: "a", Port: 1, Protocol: "X"}}}}}, //nolint:staticcheck // still served
			[]string{"subsets[0]: Required value", "subsets[1].notReadyAddresses[0].ip: Invalid value", "subsets[1].notReadyAddresses[1].ip: Invalid value", "subsets[1].ports[0].name: Required value", "subsets[1].ports[0].port: Invalid value", "subsets[1].ports[1].protocol: Unsupported value"}},
		"an empty Ingress": {&networkingv1.Ingress{}, []string{"spec: Invalid value"}},
		"Ingress": {&networkingv1.Ingress{Spec: networkingv1.IngressSpec{
			IngressClassName: ptr("A"), DefaultBackend: &networkingv1.IngressBackend{}, TLS: []networkingv1.IngressTLS{{Hosts: []string{"a_b"}}},
			Rules: []networkingv1.IngressRule{{Host: "*.*.org", IngressRuleValue: networkingv1.IngressRuleValue{HTTP: &networkingv1.HTTPIngressRuleValue{}}}, {IngressRuleValue: networkingv1.IngressRuleValue{HTTP: &networkingv1.HTTPIngressRuleValue{Paths: []networkingv1.HTTPIngressPath{
				{}, {PathType: ptr(networkingv1.PathTypePrefix), Path: "a", Backend: networkingv1.IngressBackend{Service: &networkingv1.IngressServiceBackend{}}},
				{PathType: ptr(networkingv1.PathTypeExact), Path: "/a//b", Backend: networkingv1.IngressBackend{Service: &networkingv1.IngressServiceBackend{Name: "s", Port: networkingv1.ServiceBackendPort{Name: "http", Number: 1}}}},
			}}}}},
		}}, []string{
			"spec.ingressClassName: Invalid value", "spec.defaultBackend: Required value", "spec.tls[0].hosts[0]: Invalid value", "spec.rules[0].host: Invalid value", "spec.rules[0].http.paths: Required value",
			"spec.rules[1].http.paths[0].pathType: Required value", "spec.rules[1].http.paths[1].path: Invalid value", "spec.rules[1].http.paths[1].backend.service.name: Required value",
			"spec.rules[1].http.paths[1].backend.service.port: Required value", "spec.rules[1].http.paths[2].path: Invalid value", "spec.rules[1].http.paths[2].backend.service.port: Invalid value",
		}},
		"IngressClass": {&networkingv1.IngressClass{}, []string{"spec.controller: Required value"}},
		"PodDisruptionBudget": {&policyv1.PodDisruptionBudget{Spec: policyv1.PodDisruptionBudgetSpec{MinAvailable: ptr(intstr.FromString("x")), MaxUnavailable: ptr(intstr.FromInt32(-1)), UnhealthyPodEvictionPolicy: ptr(policyv1.UnhealthyPodEvictionPolicyType("x"))}},
			[]string{"spec: Invalid value", "spec.minAvailable: Invalid value", "spec.maxUnavailable: Invalid value", "spec.unhealthyPodEvictionPolicy: Unsupported value"}},
		"StatefulSet": {&appsv1.StatefulSet{Spec: appsv1.StatefulSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}, Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"a": "b"}}, Spec: podSpec()},
			PodManagementPolicy: "x", UpdateStrategy: appsv1.StatefulSetUpdateStrategy{Type: "OnDelete", RollingUpdate: &appsv1.RollingUpdateStatefulSetStrategy{Partition: ptr(int32(-1))}}, Ordinals: &appsv1.StatefulSetOrdinals{Start: -1},
		}}, []string{"spec.podManagementPolicy: Unsupported value", "spec.updateStrategy.rollingUpdate: Invalid value", "spec.updateStrategy.rollingUpdate.partition: Invalid value", "spec.ordinals.start: Invalid value"}},
		"DaemonSet": {&appsv1.DaemonSet{Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}, Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"a": "b"}}, Spec: podSpec()},
			UpdateStrategy: appsv1.DaemonSetUpdateStrategy{RollingUpdate: &appsv1.RollingUpdateDaemonSet{MaxSurge: ptr(intstr.FromInt32(1))}},
		}}, []string{"spec.updateStrategy.rollingUpdate.maxSurge: Invalid value"}},
		"a gated pod on a node": {&corev1.Pod{Spec: func() corev1.PodSpec {
			s := podSpec()
			s.NodeName, s.SchedulingGates = "n", []corev1.PodSchedulingGate{{Name: "g"}}
			return s
		}()}, []string{"spec.nodeName: Forbidden"}},
		"no type": {&discoveryv1.EndpointSlice{}, []string{"addressType: Required value"}},
		"Role": {&rbacv1.Role{Rules: []rbacv1.PolicyRule{{}, {Verbs: []string{"get"}, NonResourceURLs: []string{"/"}}}},
			[]string{"rules[0].verbs: Required value", "rules[0].apiGroups: Required value", "rules[0].resources: Required value", "rules[1].nonResourceURLs: Invalid value"}},
		"RoleBinding":        {&rbacv1.RoleBinding{RoleRef: rbacv1.RoleRef{Kind: "Hat"}, Subjects: []rbacv1.Subject{{Kind: "User"}, {Kind: "Robot", Name: "x"}}}, []string{"roleRef.kind: Unsupported value", "roleRef.name: Required value", "subjects[0].name: Required value", "subjects[1].kind: Unsupported value"}},
		"ClusterRoleBinding": {&rbacv1.ClusterRoleBinding{RoleRef: rbacv1.RoleRef{Kind: "Role", Name: "r"}, Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Name: "x"}}}, []string{"roleRef.kind: Unsupported value", "subjects[0].namespace: Required value"}},
		"Lease":              {&coordinationv1.Lease{Spec: coordinationv1.LeaseSpec{LeaseDurationSeconds: ptr(int32(0)), LeaseTransitions: ptr(int32(-1))}}, []string{"spec.leaseDurationSeconds: Invalid value", "spec.leaseTransitions: Invalid value"}},
		"PriorityClass":      {&schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "mine"}, Value: 1_000_000_001}, []string{"value: Forbidden"}},
		"Event":              {&corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "a"}, InvolvedObject: corev1.ObjectReference{Namespace: "b"}}, []string{"involvedObject.namespace: Invalid value"}},
	} {
		t.Run(name, func(t *testing.T) { refused(t, test.obj, test.want...) })
	}
}
