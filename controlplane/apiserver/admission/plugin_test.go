package admission

import (
	"context"
	"flag"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/initializer"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write the golden files")

// started returns a plugin as the API server would set it up, over these objects.
func started(t *testing.T, name string, objects ...runtime.Object) admission.Interface {
	t.Helper()
	return configured(t, name, "", objects...)
}

// configured does so with a configuration of the plugin's own.
func configured(t *testing.T, name, config string, objects ...runtime.Object) admission.Interface {
	t.Helper()
	i := slices.IndexFunc(plugins, func(p struct {
		name string
		new  admission.Factory
	}) bool {
		return p.name == name
	})
	if i < 0 {
		t.Fatalf("no plugin %s", name)
	}
	var file io.Reader
	if config != "" {
		file = strings.NewReader(config)
	}
	p, err := plugins[i].new(file)
	if err != nil {
		t.Fatal(err)
	}
	client := fake.NewClientset(objects...)
	f := informers.NewSharedInformerFactory(client, 0)
	if w, ok := p.(initializer.WantsExternalKubeClientSet); ok {
		w.SetExternalKubeClientSet(client)
	}
	if w, ok := p.(initializer.WantsExternalKubeInformerFactory); ok {
		w.SetExternalKubeInformerFactory(f)
	}
	if w, ok := p.(initializer.WantsRESTMapper); ok {
		w.SetRESTMapper(meta.NewDefaultRESTMapper(nil))
	}
	if w, ok := p.(initializer.WantsAuthorizer); ok {
		w.SetAuthorizer(authorizerfactory.NewAlwaysDenyAuthorizer())
	}
	if v, ok := p.(admission.InitializationValidator); ok {
		if err := v.ValidateInitialization(); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { cancel(); f.Shutdown() })
	f.Start(ctx.Done())
	f.WaitForCacheSync(ctx.Done())
	return p
}

// request describes what is asked of the plugins; Object decides the resource unless Resource is set.
type request struct {
	op          admission.Operation
	obj, old    runtime.Object
	resource    schema.GroupVersionResource
	subresource string
	name        string // overrides the object's
	user        user.Info
	ctx         context.Context // nil: the test's
}

// run does what the API server does for a request: mutation, then validation.
func run(t *testing.T, p admission.Interface, r request) error {
	t.Helper()
	var kind schema.GroupVersionKind
	switch r.obj.(type) {
	case *corev1.Pod:
		kind = corev1.SchemeGroupVersion.WithKind("Pod")
	case *corev1.Node:
		kind = corev1.SchemeGroupVersion.WithKind("Node")
	case *corev1.PersistentVolumeClaim:
		kind = corev1.SchemeGroupVersion.WithKind("PersistentVolumeClaim")
	case *corev1.Namespace:
		kind = corev1.SchemeGroupVersion.WithKind("Namespace")
	}
	if r.resource.Resource == "" {
		r.resource = corev1.SchemeGroupVersion.WithResource(map[string]string{"Pod": "pods", "Node": "nodes", "PersistentVolumeClaim": "persistentvolumeclaims", "Namespace": "namespaces"}[kind.Kind])
	}
	if r.op == "" {
		r.op = admission.Create
	}
	if r.user == nil {
		r.user = &user.DefaultInfo{Name: "someone"}
	}
	namespace := "ns"
	for _, o := range []runtime.Object{r.obj, r.old} {
		if m, ok := o.(metav1.Object); ok && r.name == "" && o != nil {
			r.name = m.GetName()
		}
	}
	if r.resource.Resource == "nodes" {
		namespace = ""
	}
	if r.resource.Resource == "namespaces" {
		namespace = r.name
	}
	if m, ok := r.obj.(metav1.Object); ok && m.GetNamespace() != "" {
		namespace = m.GetNamespace()
	}
	a := admission.NewAttributesRecord(r.obj, r.old, kind, namespace, r.name, r.resource, r.subresource, r.op, nil, false, r.user)
	if !p.Handles(r.op) {
		return nil
	}
	if r.ctx == nil {
		r.ctx = t.Context()
	}
	if m, ok := p.(admission.MutationInterface); ok {
		if err := m.Admit(r.ctx, a, nil); err != nil {
			return err
		}
	}
	if v, ok := p.(admission.ValidationInterface); ok {
		return v.Validate(r.ctx, a, nil)
	}
	return nil
}

// golden compares an object with testdata/NAME.yaml; -update writes it.
func golden(t *testing.T, name string, obj any) {
	t.Helper()
	got, err := yaml.Marshal(obj)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("testdata", name+".yaml")
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("%s differs, got:\n%s", path, got)
	}
}

func pod(containers ...corev1.Container) *corev1.Pod {
	if len(containers) == 0 {
		containers = []corev1.Container{{Name: "main", Image: "i"}}
	}
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p"}, Spec: corev1.PodSpec{Containers: containers}}
}

func TestRegister(t *testing.T) {
	p := admission.NewPlugins()
	names := Register(p)
	if !slices.Equal(slices.Sorted(slices.Values(names)), p.Registered()) {
		t.Errorf("returned %v, registered %v", names, p.Registered())
	}
	if i, j := slices.Index(names, "RuntimeClass"), slices.Index(names, "PodSecurity"); i > j {
		t.Error("a plugin that fills in must run before one that judges")
	}
}

func TestOtherRequestsPass(t *testing.T) {
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "c"}}
	for _, plugin := range plugins {
		t.Run(plugin.name, func(t *testing.T) {
			p := started(t, plugin.name)
			if err := run(t, p, request{obj: cm, resource: corev1.SchemeGroupVersion.WithResource("configmaps")}); err != nil {
				t.Error(err)
			}
			eviction := request{obj: cm, name: "p", resource: corev1.SchemeGroupVersion.WithResource("pods"), subresource: "eviction"}
			if err := run(t, p, eviction); err != nil {
				t.Error(err)
			}
		})
	}
}
