package admission

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/warning"
)

func TestTolerations(t *testing.T) {
	for _, tc := range []struct {
		name string
		have []corev1.Toleration
		want int // tolerations afterwards
	}{
		{"none", nil, 2},
		{"of something else", []corev1.Toleration{{Key: "gpu", Operator: corev1.TolerationOpExists}}, 3},
		{"of all", []corev1.Toleration{{Operator: corev1.TolerationOpExists}}, 1},
		{"of not-ready, NoExecute", []corev1.Toleration{{Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoExecute}}, 2},
		{"of not-ready, NoSchedule", []corev1.Toleration{{Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoSchedule}}, 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := pod()
			p.Spec.Tolerations = tc.have
			if err := run(t, started(t, "DefaultTolerationSeconds"), request{obj: p}); err != nil {
				t.Fatal(err)
			}
			if len(p.Spec.Tolerations) != tc.want {
				t.Fatalf("%d tolerations, want %d: %v", len(p.Spec.Tolerations), tc.want, p.Spec.Tolerations)
			}
			for _, x := range p.Spec.Tolerations[len(tc.have):] {
				if x.Effect != corev1.TaintEffectNoExecute || *x.TolerationSeconds != 300 {
					t.Errorf("added %+v", x)
				}
			}
		})
	}
}

func TestPriority(t *testing.T) {
	never := corev1.PreemptNever
	class := func(name string, value int32, global bool) *schedulingv1.PriorityClass {
		return &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Value: value, GlobalDefault: global}
	}
	polite := class("polite", 7, false)
	polite.PreemptionPolicy = &never
	own := int32(5)
	for _, tc := range []struct {
		name, class string
		set         *int32
		classes     []runtime.Object
		want        int32
		wantClass   string
		policy      corev1.PreemptionPolicy
		refused     string
	}{
		{name: "none, no default", want: 0, policy: corev1.PreemptLowerPriority},
		{name: "none, lowest default", classes: []runtime.Object{class("a", 9, true), class("b", 4, true), class("c", 1, false)}, want: 4, wantClass: "b", policy: corev1.PreemptLowerPriority},
		{name: "named", class: "polite", classes: []runtime.Object{polite}, want: 7, wantClass: "polite", policy: never},
		{name: "system's", class: "system-node-critical", want: 2_000_001_000, wantClass: "system-node-critical", policy: corev1.PreemptLowerPriority},
		{name: "missing", class: "gone", refused: "no PriorityClass with name gone was found"},
		{name: "own value", set: &own, refused: "must not be provided in pod spec"},
		{name: "own value that agrees", class: "five", set: &own, classes: []runtime.Object{class("five", 5, false)}, want: 5, wantClass: "five", policy: corev1.PreemptLowerPriority},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := pod()
			p.Spec.PriorityClassName, p.Spec.Priority = tc.class, tc.set
			err := run(t, started(t, "Priority", tc.classes...), request{obj: p})
			if tc.refused != "" {
				if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), tc.refused) {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if *p.Spec.Priority != tc.want || p.Spec.PriorityClassName != tc.wantClass || *p.Spec.PreemptionPolicy != tc.policy {
				t.Errorf("priority %d class %q policy %s", *p.Spec.Priority, p.Spec.PriorityClassName, *p.Spec.PreemptionPolicy)
			}
		})
	}
}

func TestTaintNodes(t *testing.T) {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: "own", Effect: corev1.TaintEffectNoSchedule}}}}
	p := started(t, "TaintNodesByCondition")
	for range 2 { // the second time nothing is left to do
		if err := run(t, p, request{obj: n}); err != nil {
			t.Fatal(err)
		}
		if len(n.Spec.Taints) != 2 || n.Spec.Taints[1].Key != corev1.TaintNodeNotReady || n.Spec.Taints[1].Effect != corev1.TaintEffectNoSchedule {
			t.Errorf("taints %v", n.Spec.Taints)
		}
	}
}

func quantities(kv ...string) corev1.ResourceList {
	l := corev1.ResourceList{}
	for i := 0; i < len(kv); i += 2 {
		l[corev1.ResourceName(kv[i])] = resource.MustParse(kv[i+1])
	}
	return l
}

func TestRuntimeClass(t *testing.T) {
	class := &nodev1.RuntimeClass{
		ObjectMeta: metav1.ObjectMeta{Name: "vm"}, Handler: "vm", Overhead: &nodev1.Overhead{PodFixed: quantities("memory", "64Mi")},
		Scheduling: &nodev1.Scheduling{NodeSelector: map[string]string{"vm": "yes"}, Tolerations: []corev1.Toleration{{Key: "vm", Operator: corev1.TolerationOpExists}}},
	}
	vm, gone := "vm", "gone"
	for _, tc := range []struct {
		name    string
		change  func(*corev1.PodSpec)
		refused string
		want    bool // class applied
	}{
		{name: "none", change: func(*corev1.PodSpec) {}},
		{name: "applied", change: func(s *corev1.PodSpec) { s.RuntimeClassName = &vm }, want: true},
		{name: "missing", change: func(s *corev1.PodSpec) { s.RuntimeClassName = &gone }, refused: `RuntimeClass "gone" not found`},
		{name: "overhead out of thin air", change: func(s *corev1.PodSpec) { s.Overhead = quantities("cpu", "1") }, refused: "Overhead doesn't match"},
		{name: "other overhead", change: func(s *corev1.PodSpec) { s.RuntimeClassName, s.Overhead = &vm, quantities("memory", "1Mi") }, refused: "Overhead doesn't match"},
		{name: "selector at odds", change: func(s *corev1.PodSpec) {
			s.RuntimeClassName, s.NodeSelector = &vm, map[string]string{"vm": "no"}
		}, refused: "conflict"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := pod()
			tc.change(&p.Spec)
			err := run(t, started(t, "RuntimeClass", class), request{obj: p})
			if tc.refused != "" {
				if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), tc.refused) {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := p.Spec.NodeSelector["vm"] == "yes" && len(p.Spec.Tolerations) == 1 && p.Spec.Overhead.Memory().Value() == 64<<20; got != tc.want {
				t.Errorf("applied = %v: %+v", got, p.Spec)
			}
		})
	}
}

func TestDefaultStorageClass(t *testing.T) {
	now := time.Now()
	class := func(name string, age time.Duration, isDefault string) runtime.Object {
		return &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.NewTime(now.Add(-age)), Annotations: map[string]string{defaultClassAnnotation: isDefault}}}
	}
	empty := ""
	for _, tc := range []struct {
		name    string
		classes []runtime.Object
		have    *string
		want    string
	}{
		{name: "no default", classes: []runtime.Object{class("a", 0, "false")}, want: "<nil>"},
		{name: "newest of several", classes: []runtime.Object{class("old", time.Hour, "true"), class("new", time.Minute, "true"), class("no", 0, "")}, want: "new"},
		{name: "first by name of twins", classes: []runtime.Object{class("b", 0, "true"), class("a", 0, "true")}, want: "a"},
		{name: "none wished", classes: []runtime.Object{class("a", 0, "true")}, have: &empty, want: ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "c"}, Spec: corev1.PersistentVolumeClaimSpec{StorageClassName: tc.have}}
			if err := run(t, started(t, "DefaultStorageClass", tc.classes...), request{obj: c}); err != nil {
				t.Fatal(err)
			}
			got := "<nil>"
			if c.Spec.StorageClassName != nil {
				got = *c.Spec.StorageClassName
			}
			if got != tc.want {
				t.Errorf("class %q, want %q", got, tc.want)
			}
		})
	}
}

func TestPodSecurity(t *testing.T) {
	namespace := func(level string) *corev1.Namespace {
		n := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns", Labels: map[string]string{}}}
		if level != "" {
			n.Labels["pod-security.kubernetes.io/enforce"] = level
		}
		return n
	}
	yes := true
	privileged := func() *corev1.Pod {
		return pod(corev1.Container{Name: "main", SecurityContext: &corev1.SecurityContext{Privileged: &yes}})
	}
	for _, tc := range []struct {
		level   string
		pod     *corev1.Pod
		refused bool
	}{
		{"", privileged(), false},
		{"privileged", privileged(), false},
		{"baseline", privileged(), true},
		{"baseline", pod(), false},
		{"restricted", pod(), true},
	} {
		err := run(t, started(t, "PodSecurity", namespace(tc.level)), request{obj: tc.pod})
		if apierrors.IsForbidden(err) != tc.refused || (err != nil) != tc.refused {
			t.Errorf("level %q: %v, want refused=%v", tc.level, err, tc.refused)
		}
		if tc.refused && !strings.Contains(err.Error(), "violates PodSecurity") {
			t.Errorf("level %q: %v does not say which rules are violated", tc.level, err)
		}
	}
	// A configuration has defaults for namespaces without labels, and whom nothing is held to.
	const config = "apiVersion: pod-security.admission.config.k8s.io/v1\nkind: PodSecurityConfiguration\ndefaults: {enforce: baseline}\nexemptions: {usernames: [root]}\n"
	strict := configured(t, "PodSecurity", config, namespace(""))
	if err := run(t, strict, request{obj: privileged()}); !apierrors.IsForbidden(err) {
		t.Errorf("by default: %v", err)
	}
	if err := run(t, strict, request{obj: privileged(), user: &user.DefaultInfo{Name: "root"}}); err != nil {
		t.Errorf("of who is exempt: %v", err)
	}
	// What is only warned of is let in, and the version of the standard decides what there is to warn of.
	for version, warned := range map[string]bool{"v1.28": false, "latest": true} {
		n, said := namespace(""), &recorder{}
		n.Labels["pod-security.kubernetes.io/warn"], n.Labels["pod-security.kubernetes.io/warn-version"] = "baseline", version
		n.Labels["pod-security.kubernetes.io/audit"] = "restricted"
		p := pod()
		p.Spec.Containers[0].LivenessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Host: "10.0.0.1"}}}
		if err := run(t, started(t, "PodSecurity", n), request{obj: p, ctx: warning.WithWarningRecorder(t.Context(), said)}); err != nil {
			t.Errorf("%s: %v", version, err)
		}
		if (len(said.all) > 0) != warned {
			t.Errorf("%s: warnings %q", version, said.all)
		}
	}
	err := run(t, started(t, "PodSecurity"), request{obj: namespace("nonsense"), op: admission.Create})
	if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("a label that is no level: %v", err)
	}
}

// recorder keeps warnings.
type recorder struct{ all []string }

func (r *recorder) AddWarning(_, text string) { r.all = append(r.all, text) }
