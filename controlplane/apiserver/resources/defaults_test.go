package resources

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"
)

// TestDefaults compares what little a user writes, defaulted, with testdata/defaults/NAME.yaml. Every value in those
// files is what the API's documentation promises; UPDATE=1 writes them anew.
func TestDefaults(t *testing.T) {
	template := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"a": "b"}}, Spec: podSpec()}
	everything := podSpec()
	everything.HostNetwork = true
	everything.DeprecatedServiceAccount = "robot"
	everything.Volumes = []corev1.Volume{
		{Name: "none"}, {Name: "secret", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s"}}},
		{Name: "map", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{}}},
		{Name: "host", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/x"}}},
		{Name: "self", VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{{Path: "l", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}}}}}},
		{Name: "all", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "t"}}}}}},
	}
	everything.InitContainers = []corev1.Container{{Name: "init", Image: "example.org:5000/i:v1"}}
	everything.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{MaxSkew: 1, TopologyKey: "zone", WhenUnsatisfiable: "DoNotSchedule"}}
	c := &everything.Containers[0]
	c.Ports = []corev1.ContainerPort{{ContainerPort: 80}}
	c.Env = []corev1.EnvVar{{Name: "IP", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.podIP"}}}}
	c.LivenessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{}}}
	c.StartupProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 1}}}
	c.Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{HTTPGet: &corev1.HTTPGetAction{Scheme: "HTTPS"}}}
	c.Resources.Limits = corev1.ResourceList{"cpu": resource.MustParse("1")}
	templated := everything.DeepCopy()
	ports := []networkingv1.NetworkPolicyPort{{}}

	for name, obj := range map[string]runtime.Object{
		"pod": &corev1.Pod{Spec: *everything.DeepCopy()}, "template": &corev1.PodTemplate{Template: corev1.PodTemplateSpec{Spec: *templated}},
		"deployment":  &appsv1.Deployment{Spec: appsv1.DeploymentSpec{Template: template}},
		"recreate":    &appsv1.Deployment{Spec: appsv1.DeploymentSpec{Template: template, Strategy: appsv1.DeploymentStrategy{Type: "Recreate"}}},
		"replicaset":  &appsv1.ReplicaSet{Spec: appsv1.ReplicaSetSpec{Template: template}},
		"statefulset": &appsv1.StatefulSet{Spec: appsv1.StatefulSetSpec{Template: template, VolumeClaimTemplates: []corev1.PersistentVolumeClaim{{}}}},
		"daemonset":   &appsv1.DaemonSet{Spec: appsv1.DaemonSetSpec{Template: template}},
		"job":         &batchv1.Job{Spec: batchv1.JobSpec{Template: template}},
		"queue":       &batchv1.Job{Spec: batchv1.JobSpec{Template: template, Parallelism: ptr(int32(3)), BackoffLimitPerIndex: ptr(int32(1)), PodFailurePolicy: &batchv1.PodFailurePolicy{}}},
		"cronjob":     &batchv1.CronJob{Spec: batchv1.CronJobSpec{Schedule: "@daily", JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{Template: template}}}},
		"service":     &corev1.Service{Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}},
		"balancer":    &corev1.Service{Spec: corev1.ServiceSpec{Type: "LoadBalancer", SessionAffinity: "ClientIP"}},
		"external":    &corev1.Service{Spec: corev1.ServiceSpec{Type: "ExternalName", ExternalName: "x", SessionAffinityConfig: &corev1.SessionAffinityConfig{}}},
		"addresses":   &corev1.Pod{Spec: podSpec(), Status: corev1.PodStatus{PodIP: "10.0.0.1", PodIPs: []corev1.PodIP{{IP: "10.0.0.9"}}, HostIPs: []corev1.HostIP{{IP: "10.1.0.1"}, {IP: "fd00::1"}}}},
		"node":        &corev1.Node{Spec: corev1.NodeSpec{PodCIDR: "10.0.0.0/24"}},
		"namespace":   &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "n"}},
		"secret":      &corev1.Secret{StringData: map[string]string{"k": "v"}, Data: map[string][]byte{"k": []byte("old")}},
		"slice":       &discoveryv1.EndpointSlice{Ports: []discoveryv1.EndpointPort{{}}},
		"endpoints":   &corev1.Endpoints{Subsets: []corev1.EndpointSubset{{Ports: []corev1.EndpointPort{{Port: 1}}}}}, //nolint:staticcheck // still served
		"policy":      &networkingv1.NetworkPolicy{Spec: networkingv1.NetworkPolicySpec{Egress: []networkingv1.NetworkPolicyEgressRule{{Ports: ports}}}},
		"binding":     &rbacv1.RoleBinding{RoleRef: rbacv1.RoleRef{Kind: "Role", Name: "r"}, Subjects: []rbacv1.Subject{{Kind: "User", Name: "u"}, {Kind: "ServiceAccount", Name: "s"}}},
		"class":       &storagev1.StorageClass{Provisioner: "p"},
		"claim":       &corev1.PersistentVolumeClaim{},
	} {
		t.Run(name, func(t *testing.T) {
			r := of(t, obj)
			r.Default(obj)
			once, err := yaml.Marshal(obj)
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join("testdata", "defaults", name+".yaml")
			if os.Getenv("UPDATE") != "" {
				if err := os.WriteFile(path, once, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if string(once) != string(want) {
				t.Errorf("%s differs, got\n%s", path, once)
			}
			// Objects are defaulted whenever they are read.
			r.Default(obj)
			if twice, _ := yaml.Marshal(obj); string(twice) != string(once) {
				t.Errorf("defaulted twice\n%s", twice)
			}
		})
	}
}

func TestImagePullPolicy(t *testing.T) {
	for image, want := range map[string]corev1.PullPolicy{
		"i": "Always", "i:latest": "Always", "i:1": "IfNotPresent", "example.org:5000/i": "Always", "example.org:5000/i:1": "IfNotPresent",
		"i@sha256:0000000000000000000000000000000000000000000000000000000000000000": "IfNotPresent", "i:latest@sha256:00": "IfNotPresent", "": "Always",
	} {
		c := corev1.Container{Image: image}
		if defaultContainer(&c); c.ImagePullPolicy != want {
			t.Errorf("%s: %s, want %s", image, c.ImagePullPolicy, want)
		}
	}
}

func TestQOSClass(t *testing.T) {
	list := func(s string) corev1.ResourceList {
		l := corev1.ResourceList{}
		for _, kv := range strings.Fields(s) {
			k, v, _ := strings.Cut(kv, "=")
			l[corev1.ResourceName(k)] = resource.MustParse(v)
		}
		return l
	}
	for _, test := range []struct {
		requests, limits string
		want             corev1.PodQOSClass
	}{
		{"", "", "BestEffort"}, {"cpu=0", "", "BestEffort"}, {"example.org/gpu=1", "example.org/gpu=1", "BestEffort"},
		{"cpu=1", "", "Burstable"}, {"", "memory=1Gi", "Burstable"}, {"cpu=1 memory=1Gi", "cpu=2 memory=1Gi", "Burstable"},
		{"cpu=1 memory=1Gi", "cpu=1 memory=1Gi", "Guaranteed"}, {"", "cpu=1 memory=1Gi", "Guaranteed"}, {"cpu=1000m memory=1Gi", "cpu=1 memory=1024Mi", "Guaranteed"},
	} {
		s := podSpec()
		s.Containers[0].Resources = corev1.ResourceRequirements{Requests: list(test.requests), Limits: list(test.limits)}
		if got := qosClass(&s); got != test.want {
			t.Errorf("requests %q, limits %q: %s, want %s", test.requests, test.limits, got, test.want)
		}
		s.InitContainers = []corev1.Container{{}}
		if got := qosClass(&s); got == "Guaranteed" {
			t.Errorf("requests %q, limits %q, beside a container without: %s", test.requests, test.limits, got)
		}
	}
}
