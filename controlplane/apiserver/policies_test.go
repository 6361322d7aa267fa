package apiserver_test

import (
	"context"
	"fmt"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"
)

// warned is a client whose warnings the test sees.
func (a *api) warned() (kubernetes.Interface, *warnings) {
	w, c := &warnings{}, rest.CopyConfig(a.server.Admin)
	c.WarningHandler = w
	return must(kubernetes.NewForConfig(c))(a), w
}

// create makes an object of YAML, with @NS@ for the test's namespace, and deletes it when the test ends.
func (a *api) create(gvr schema.GroupVersionResource, text string) *unstructured.Unstructured {
	a.Helper()
	o := &unstructured.Unstructured{}
	if err := yaml.UnmarshalStrict([]byte(strings.ReplaceAll(text, "@NS@", a.ns)), &o.Object); err != nil {
		a.Fatal(err)
	}
	o.SetAPIVersion(gvr.GroupVersion().String())
	var client dynamic.ResourceInterface = a.dynamic.Resource(gvr)
	if o.GetNamespace() != "" {
		client = a.dynamic.Resource(gvr).Namespace(o.GetNamespace())
	}
	made := must(client.Create(a.Context(), o, metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict}))(a)
	a.Cleanup(func() { _ = client.Delete(context.Background(), o.GetName(), metav1.DeleteOptions{}) })
	return made
}

func admission(resource string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: resource}
}

// testValidatingPolicies has policies judge by parameters, by bindings, and by what they know of the request.
func testValidatingPolicies(a *api) {
	ctx, create := a.Context(), metav1.CreateOptions{}
	a.create(admission("validatingadmissionpolicies"), `
kind: ValidatingAdmissionPolicy
metadata: {name: few-@NS@}
spec:
  paramKind: {apiVersion: v1, kind: ConfigMap}
  matchConstraints: {resourceRules: [{operations: [CREATE, UPDATE], apiGroups: [""], apiVersions: [v1], resources: [configmaps]}]}
  matchConditions: [{name: not-exempt, expression: "!has(object.metadata.labels) || !('exempt' in object.metadata.labels)"}]
  variables: [{name: most, expression: "int(params.data.most)"}]
  validations:
  - {expression: "size(object.data) <= variables.most", messageExpression: "'at most ' + string(variables.most) + ' keys'", reason: Forbidden}
  - {expression: "authorizer.group('').resource('secrets').namespace(object.metadata.namespace).check('list').allowed()", message: who may not list Secrets}
`)
	bind := func(name, actions, param string) {
		a.create(admission("validatingadmissionpolicybindings"), `
kind: ValidatingAdmissionPolicyBinding
metadata: {name: `+name+`-@NS@}
spec:
  policyName: few-@NS@
  validationActions: [`+actions+`]
  paramRef: {name: `+param+`, namespace: @NS@, parameterNotFoundAction: Deny}
  matchResources: {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: @NS@}}, objectSelector: {matchLabels: {judged: `+name+`}}}
`)
	}
	client, warned := a.warned()
	maps := client.CoreV1().ConfigMaps(a.ns)
	limits := configMap("limits", nil)
	limits.Data = map[string]string{"most": "1"}
	must(maps.Create(ctx, limits, create))(a)
	bind("denied", "Deny", "limits")
	bind("warned", "Warn, Audit", "limits")
	bind("lost", "Deny", "nowhere")
	two := func(name, judged string) error {
		m := configMap(name, map[string]string{"judged": judged})
		m.Data["l"] = "v"
		_, err := maps.Create(ctx, m, create)
		return err
	}
	n := 0
	a.eventually("the policy holds", func(context.Context) error {
		n++
		err := two(fmt.Sprint("two-", n), "denied")
		if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "at most 1 keys") {
			return fmt.Errorf("two keys: %w", err)
		}
		return nil
	})
	a.eventually("a lost parameter", func(context.Context) error {
		n++
		if err := two(fmt.Sprint("two-", n), "lost"); err == nil || !strings.Contains(err.Error(), "no params found") {
			return fmt.Errorf("got %w", err)
		}
		return nil
	})
	a.eventually("a warning", func(context.Context) error {
		n++
		*warned = nil
		if err := two(fmt.Sprint("two-", n), "warned"); err != nil {
			return err
		}
		if got := strings.Join(*warned, "; "); !strings.Contains(got, "at most 1 keys") {
			return fmt.Errorf("warned of %q", got)
		}
		return nil
	})
	must(maps.Create(ctx, configMap("one", map[string]string{"judged": "denied"}), create))(a)
	if _, err := maps.Patch(ctx, "one", types.MergePatchType, []byte(`{"data":{"l":"v"}}`), metav1.PatchOptions{}); !apierrors.IsForbidden(err) {
		a.Errorf("an update: %v", err)
	}
	exempt := configMap("exempt", map[string]string{"judged": "denied", "exempt": ""})
	exempt.Data["l"] = "v"
	must(maps.Create(ctx, exempt, create))(a)
	if err := two("unbound", "nobody"); err != nil {
		a.Errorf("what no binding is about: %v", err)
	}
	// The policy asks what the user may do.
	must(a.client.RbacV1().Roles(a.ns).Create(ctx, &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "publisher"}, Rules: []rbacv1.PolicyRule{
		{Verbs: []string{"create"}, APIGroups: []string{""}, Resources: []string{"configmaps"}},
	}}, create))(a)
	must(a.client.RbacV1().RoleBindings(a.ns).Create(ctx, &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "publisher"},
		RoleRef: rbacv1.RoleRef{Kind: "Role", Name: "publisher"}, Subjects: []rbacv1.Subject{{Kind: "User", Name: "viewer-" + a.ns}},
	}, create))(a)
	viewer := must(kubernetes.NewForConfig(a.server.As(a, "viewer-"+a.ns)))(a)
	a.eventually("a user without Secrets", func(ctx context.Context) error {
		_, err := viewer.CoreV1().ConfigMaps(a.ns).Create(ctx, configMap("of-viewer", map[string]string{"judged": "denied"}), create)
		if err == nil || !strings.Contains(err.Error(), "who may not list Secrets") {
			return fmt.Errorf("got %w", err)
		}
		return nil
	})
	// Another parameter is another verdict.
	must(maps.Patch(ctx, "limits", types.MergePatchType, []byte(`{"data":{"most":"2"}}`), metav1.PatchOptions{}))(a)
	a.eventually("two are allowed", func(context.Context) error { return two("two", "denied") })
}

// testMutatingPolicies has policies change objects: by a patch and by an apply configuration, with parameters, and each seeing what the other did.
func testMutatingPolicies(a *api) {
	ctx, create := a.Context(), metav1.CreateOptions{}
	const match = `
  paramKind: {apiVersion: v1, kind: ConfigMap}
  failurePolicy: Fail
  matchConstraints: {resourceRules: [{operations: [CREATE], apiGroups: [apps], apiVersions: [v1], resources: [deployments]}]}
  matchConditions: [{name: here, expression: "object.metadata.namespace == '@NS@'"}]
`
	a.create(admission("mutatingadmissionpolicies"), `
kind: MutatingAdmissionPolicy
metadata: {name: a-count-@NS@}
spec:`+match+`
  reinvocationPolicy: IfNeeded
  mutations:
  - patchType: JSONPatch
    jsonPatch: {expression: "[JSONPatch{op: 'add', path: '/metadata/labels/containers', value: string(size(object.spec.template.spec.containers))}]"}
`)
	a.create(admission("mutatingadmissionpolicies"), `
kind: MutatingAdmissionPolicy
metadata: {name: b-sidecar-@NS@}
spec:`+match+`
  reinvocationPolicy: Never
  mutations:
  - patchType: ApplyConfiguration
    applyConfiguration:
      expression: |
        Object{spec: Object.spec{template: Object.spec.template{spec: Object.spec.template.spec{containers: [Object.spec.template.spec.containers{name: params.data.name, image: params.data.image}]}}}}
`)
	for _, name := range []string{"a-count", "b-sidecar"} {
		a.create(admission("mutatingadmissionpolicybindings"), `
kind: MutatingAdmissionPolicyBinding
metadata: {name: `+name+`-@NS@}
spec: {policyName: `+name+`-@NS@, paramRef: {name: sidecar, namespace: @NS@, parameterNotFoundAction: Deny}}
`)
	}
	param := configMap("sidecar", nil)
	param.Data = map[string]string{"name": "proxy", "image": "proxy:1"}
	must(a.client.CoreV1().ConfigMaps(a.ns).Create(ctx, param, create))(a)
	n := 0
	a.eventually("a Deployment with a sidecar, that is counted", func(ctx context.Context) error {
		n++
		d := deployment(fmt.Sprint("d", n))
		d.Labels = map[string]string{"app": "d"}
		made, err := a.client.AppsV1().Deployments(a.ns).Create(ctx, d, create)
		if err != nil {
			return err
		}
		if c := made.Spec.Template.Spec.Containers; len(c) != 2 || c[1].Name != "proxy" || c[1].Image != "proxy:1" || c[0].Env == nil || made.Labels["containers"] != "2" {
			return fmt.Errorf("labels %v, containers %+v", made.Labels, c)
		}
		return nil
	})
}
