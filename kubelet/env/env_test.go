package env

import (
	"errors"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestExpand(t *testing.T) {
	values := map[string]string{"A": "1", "B": "two", "EMPTY": "", "NESTED": "$(A)"}
	for in, want := range map[string]string{
		"": "", "plain": "plain", "$(A)": "1", "x$(A)y$(B)z": "x1ytwoz", "$(NOPE)": "$(NOPE)", "$$(A)": "$(A)", "$$$(A)": "$1", "$$$$(A)": "$$(A)",
		"$(A": "$(A", "$": "$", "$A": "$A", "$()": "$()", "a$": "a$", "$$": "$", "$(EMPTY)|": "|", "$(NESTED)": "$(A)", "$( A)": "$( A)", "$((A))": "$((A))",
	} {
		if got := Expand(in, values); got != want {
			t.Errorf("Expand(%q) = %q, want %q", in, got, want)
		}
	}
	if _, err := ExpandAll("$(A)/$(NOPE)", values); err == nil || !strings.Contains(err.Error(), `missing value for "NOPE"`) {
		t.Errorf("ExpandAll: %v", err)
	}
	if got, err := ExpandAll("$(A)/$$(NOPE)", values); err != nil || got != "1/$(NOPE)" {
		t.Errorf("ExpandAll: %q, %v", got, err)
	}
}

func FuzzExpand(f *testing.F) {
	for _, s := range []string{"$(A)", "$$(A)", "$(", "$$$", "$(A)$(NOPE)", "a$b$(c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := Expand(s, map[string]string{"A": "1"})
		if !strings.Contains(s, "$") && got != s {
			t.Errorf("Expand(%q) = %q, though nothing is named", s, got)
		}
		// Escaped altogether, a text stands for itself.
		if back := Expand(strings.ReplaceAll(s, "$", "$$"), map[string]string{"A": "1"}); back != s {
			t.Errorf("%q came back as %q", s, back)
		}
	})
}

func service(ns, name, ip string, ports ...corev1.ServicePort) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: corev1.ServiceSpec{ClusterIP: ip, Ports: ports}}
}

func sources() Sources {
	absent := func(kind, name string) error {
		if name == "broken" {
			return errors.New("the API server did not answer")
		}
		return apierrors.NewNotFound(corev1.Resource(kind), name)
	}
	return Sources{
		ConfigMap: func(name string) (*corev1.ConfigMap, error) {
			if name != "cm" {
				return nil, absent("configmaps", name)
			}
			return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "cm"}, Data: map[string]string{"k": "v", "bad=key": "x", "with.dot": "y"}}, nil
		},
		Secret: func(name string) (*corev1.Secret, error) {
			if name != "s" {
				return nil, absent("secrets", name)
			}
			return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s"}, Data: map[string][]byte{"p": []byte("word")}}, nil
		},
		PodIPs: []string{"10.0.0.1", "fd00::1"}, HostIPs: []string{"192.0.2.1"},
		Node: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourceMemory: resource.MustParse("8Gi")},
	}
}

func names(vars []Var) (out []string) {
	for _, v := range vars {
		out = append(out, v.Name+"="+v.Value)
	}
	return out
}

func TestMake(t *testing.T) {
	on, off := true, false
	cm := func(name string, optional *bool) *corev1.EnvVarSource {
		return &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: name}, Key: "k", Optional: optional}}
	}
	key := func(key string, optional *bool) *corev1.EnvVarSource {
		return &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "s"}, Key: key, Optional: optional}}
	}
	field := func(path string) *corev1.EnvVarSource {
		return &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}
	}
	for name, c := range map[string]struct {
		from    []corev1.EnvFromSource
		env     []corev1.EnvVar
		want    []string
		skipped []string
		err     string
	}{
		"order and references":  {env: []corev1.EnvVar{{Name: "B", Value: "$(A)"}, {Name: "A", Value: "1"}, {Name: "C", Value: "$(A)$(B)"}}, want: []string{"B=$(A)", "A=1", "C=1$(A)"}},
		"the last one counts":   {env: []corev1.EnvVar{{Name: "A", Value: "1"}, {Name: "A", Value: "2$(A)"}}, want: []string{"A=21"}},
		"envFrom, overridden":   {from: []corev1.EnvFromSource{{Prefix: "P_", SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "s"}}}}, env: []corev1.EnvVar{{Name: "P_p", Value: "own"}}, want: []string{"P_p=own"}},
		"envFrom, invalid key":  {from: []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "cm"}}}}, want: []string{"k=v", "with.dot=y"}, skipped: []string{"bad=key"}},
		"envFrom, absent":       {from: []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "x"}}}}, err: `configmaps "x" not found`},
		"envFrom, optional":     {from: []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "x"}, Optional: &on}}}},
		"envFrom, not answered": {from: []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "broken"}, Optional: &on}}}, err: "did not answer"},
		"config map":            {env: []corev1.EnvVar{{Name: "A", ValueFrom: cm("cm", nil)}}, want: []string{"A=v"}},
		"config map, absent":    {env: []corev1.EnvVar{{Name: "A", ValueFrom: cm("x", &off)}}, err: `configmaps "x" not found`},
		"config map, optional":  {env: []corev1.EnvVar{{Name: "A", ValueFrom: cm("x", &on)}, {Name: "B", Value: "1"}}, want: []string{"B=1"}},
		"optional, no answer":   {env: []corev1.EnvVar{{Name: "A", ValueFrom: cm("broken", &on)}}, err: "did not answer"},
		"secret":                {env: []corev1.EnvVar{{Name: "A", ValueFrom: key("p", nil)}}, want: []string{"A=word"}},
		"secret, absent key":    {env: []corev1.EnvVar{{Name: "A", ValueFrom: key("q", nil)}}, err: "couldn't find key q in Secret ns/s"},
		"secret, optional key":  {env: []corev1.EnvVar{{Name: "A", ValueFrom: key("q", &on)}}},
		"addresses":             {env: []corev1.EnvVar{{Name: "A", ValueFrom: field("status.podIP")}, {Name: "B", ValueFrom: field("status.podIPs")}, {Name: "C", ValueFrom: field("status.hostIP")}}, want: []string{"A=10.0.0.1", "B=10.0.0.1,fd00::1", "C=192.0.2.1"}},
		"no such field":         {env: []corev1.EnvVar{{Name: "A", ValueFrom: field("spec.nope")}}, err: "unsupported fieldPath: spec.nope"},
		"no source":             {env: []corev1.EnvVar{{Name: "A", ValueFrom: &corev1.EnvVarSource{}}}, err: "env A: "},
	} {
		t.Run(name, func(t *testing.T) {
			no := false
			p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns"}, Spec: corev1.PodSpec{EnableServiceLinks: &no}}
			vars, skipped, err := Make(p, &corev1.Container{Name: "c", EnvFrom: c.from, Env: c.env}, sources())
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("error %v, want %q", err, c.err)
				}
				return
			}
			if err != nil || !slices.Equal(names(vars), c.want) || !slices.Equal(skipped, c.skipped) {
				t.Errorf("%q, skipped %q, %v; want %q, skipped %q", names(vars), skipped, err, c.want, c.skipped)
			}
		})
	}
}

func TestServices(t *testing.T) {
	src := sources()
	src.Services = []*corev1.Service{
		service("default", "kubernetes", "10.96.0.1", corev1.ServicePort{Name: "https", Port: 443, Protocol: corev1.ProtocolTCP}),
		service("ns", "my-db", "10.96.0.9", corev1.ServicePort{Port: 5432, Protocol: corev1.ProtocolTCP}, corev1.ServicePort{Name: "stat-s", Port: 53, Protocol: corev1.ProtocolUDP}),
		service("ns", "headless", corev1.ClusterIPNone, corev1.ServicePort{Port: 1}), service("other", "x", "10.96.0.8", corev1.ServicePort{Port: 1, Protocol: corev1.ProtocolTCP}),
	}
	kubernetes := []string{
		"KUBERNETES_SERVICE_HOST=10.96.0.1", "KUBERNETES_SERVICE_PORT=443", "KUBERNETES_SERVICE_PORT_HTTPS=443", "KUBERNETES_PORT=tcp://10.96.0.1:443",
		"KUBERNETES_PORT_443_TCP=tcp://10.96.0.1:443", "KUBERNETES_PORT_443_TCP_PROTO=tcp", "KUBERNETES_PORT_443_TCP_PORT=443", "KUBERNETES_PORT_443_TCP_ADDR=10.96.0.1",
	}
	db := []string{
		"MY_DB_SERVICE_HOST=10.96.0.9", "MY_DB_SERVICE_PORT=5432", "MY_DB_PORT=tcp://10.96.0.9:5432", "MY_DB_PORT_5432_TCP=tcp://10.96.0.9:5432", "MY_DB_PORT_5432_TCP_PROTO=tcp",
		"MY_DB_PORT_5432_TCP_PORT=5432", "MY_DB_PORT_5432_TCP_ADDR=10.96.0.9", "MY_DB_SERVICE_PORT_STAT_S=53", "MY_DB_PORT_53_UDP=udp://10.96.0.9:53", "MY_DB_PORT_53_UDP_PROTO=udp",
		"MY_DB_PORT_53_UDP_PORT=53", "MY_DB_PORT_53_UDP_ADDR=10.96.0.9",
	}
	off := false
	for name, c := range map[string]struct {
		links *bool
		want  []string
	}{"with links": {nil, append(slices.Clone(kubernetes), db...)}, "without": {&off, kubernetes}} {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns"}, Spec: corev1.PodSpec{EnableServiceLinks: c.links}}
		vars, _, err := Make(p, &corev1.Container{}, src)
		if err != nil || !slices.Equal(names(vars), c.want) {
			t.Errorf("%s: %q, %v\nwant %q", name, names(vars), err, c.want)
		}
	}
}

func TestField(t *testing.T) {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "n", Namespace: "ns", UID: "u", Labels: map[string]string{"b": "2", "a": "1\"x\n"}, Annotations: map[string]string{"k/y": "z"}},
		Spec:       corev1.PodSpec{NodeName: "node", ServiceAccountName: "sa"},
	}
	for path, want := range map[string]string{
		"metadata.name": "n", "metadata.namespace": "ns", "metadata.uid": "u", "spec.nodeName": "node", "spec.serviceAccountName": "sa", "metadata.labels": "a=\"1\\\"x\\n\"\nb=\"2\"",
		"metadata.labels['b']": "2", "metadata.annotations['k/y']": "z", "metadata.annotations['none']": "", "metadata.annotations": "k/y=\"z\"", "status.podIP": "",
	} {
		if got, err := Field(p, path, nil, nil); err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", path, got, err, want)
		}
	}
	for _, path := range []string{"", "metadata", "metadata.labels['", "spec.x['y']", "status.phase['x']"} {
		if got, err := Field(p, path, nil, nil); err == nil && path != "metadata.labels['" {
			t.Errorf("%q gave %q", path, got)
		}
	}
}

func TestResource(t *testing.T) {
	c := corev1.Container{Name: "c", Resources: corev1.ResourceRequirements{
		Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("250m"), corev1.ResourceMemory: resource.MustParse("100Mi")},
		Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1025Ki")},
	}}
	p := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{c}, InitContainers: []corev1.Container{{Name: "i"}}}}
	for _, x := range []struct{ container, resource, divisor, want string }{
		{"", "requests.cpu", "", "1"}, {"", "requests.cpu", "1m", "250"}, {"", "requests.memory", "1Mi", "100"}, {"", "limits.memory", "1Mi", "2"}, {"", "limits.memory", "", "1049600"},
		{"", "limits.cpu", "", "4"}, {"i", "limits.memory", "1Gi", "8"}, {"", "requests.ephemeral-storage", "", "0"},
	} {
		sel := &corev1.ResourceFieldSelector{ContainerName: x.container, Resource: x.resource}
		if x.divisor != "" {
			sel.Divisor = resource.MustParse(x.divisor)
		}
		if got, err := Resource(p, &c, sel, sources().Node); err != nil || got != x.want {
			t.Errorf("%+v: %q, %v", x, got, err)
		}
	}
	for _, sel := range []corev1.ResourceFieldSelector{{ContainerName: "none", Resource: "limits.cpu"}, {Resource: "nope"}, {Resource: ""}} {
		if got, err := Resource(p, &c, &sel, nil); err == nil {
			t.Errorf("%+v gave %q", sel, got)
		}
	}
	if _, err := Resource(p, nil, &corev1.ResourceFieldSelector{Resource: "limits.cpu"}, nil); err == nil {
		t.Error("no container gave no error")
	}
}
