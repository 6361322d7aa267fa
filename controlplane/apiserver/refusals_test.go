package apiserver_test

import (
	"context"
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func testRefusals(a *api) {
	ctx := a.Context()
	post := func(body string, validation string) error {
		return a.client.CoreV1().RESTClient().Post().Namespace(a.ns).Resource("pods").Param("fieldValidation", validation).
			SetHeader("Content-Type", "application/json").Body([]byte(body)).Do(ctx).Error()
	}
	const head = `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"containers":[{"name":"c","image":"i"`
	for _, test := range []struct {
		name, body string
		code       int32
		says       string
		fields     []string
	}{
		{"a field that does not exist", head + `,"imagee":"x"}]}}`, 400, `unknown field "spec.containers[0].imagee"`, nil},
		{"a field twice", head + `,"image":"x"}]}}`, 400, `duplicate field "spec.containers[0].image"`, nil},
		{"a word for a number", head + `,"ports":[{"containerPort":"x"}]}]}}`, 400, "containerPort", nil},
		{"a list for an object", `{"apiVersion":"v1","kind":"Pod","metadata":[]}`, 400, "metadata", nil},
		{"no JSON", `{"apiVersion":`, 400, "", nil},
		{"another kind", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"p"}}`, 400, "ConfigMap", nil},
		{"a number out of range", head + `,"ports":[{"containerPort":99999}]}]}}`, 422, "", []string{"spec.containers[0].ports[0].containerPort"}},
		{"several at once", head + `},{"name":"C"}],"restartPolicy":"Perhaps"}}`, 422, "", []string{"spec.containers[1].name", "spec.containers[1].image", "spec.restartPolicy"}},
		{"a name", strings.Replace(head, `"p"`, `"P!"`, 1) + `}]}}`, 422, "", []string{"metadata.name"}},
		{"a label", strings.Replace(head, `"name":"p"`, `"name":"p","labels":{"a b":"c"}`, 1) + `}]}}`, 422, "", []string{"metadata.labels"}},
		{"no container", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{}}`, 422, "", []string{"spec.containers"}},
		{"another namespace", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"p","namespace":"elsewhere"}}`, 400, "", nil},
	} {
		a.Run(test.name, func(t *testing.T) {
			err := post(test.body, metav1.FieldValidationStrict)
			a.in(t).refused(err, test.code, test.fields...)
			if err != nil && !strings.Contains(err.Error(), test.says) {
				t.Errorf("error %v, want it to say %q", err, test.says)
			}
		})
	}
	a.eventually("ignored", func(context.Context) error {
		return post(head+`,"imagee":"x"}]}}`, metav1.FieldValidationIgnore)
	})
	_, err := a.client.CoreV1().ConfigMaps("nosuch").Create(ctx, configMap("a", nil), metav1.CreateOptions{})
	a.refused(err, 404)
}

func testImmutable(a *api) {
	ctx, create := a.Context(), metav1.CreateOptions{}
	yes := true
	fixed := configMap("fixed", nil)
	fixed.Immutable = &yes
	must(a.client.CoreV1().ConfigMaps(a.ns).Create(ctx, fixed, create))(a)
	must(a.client.CoreV1().Secrets(a.ns).Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s"}}, create))(a)
	must(a.client.AppsV1().Deployments(a.ns).Create(ctx, deployment("d"), create))(a)
	must(a.client.RbacV1().RoleBindings(a.ns).Create(ctx, &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "b"}, RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: "view"}}, create))(a)
	must(a.client.BatchV1().Jobs(a.ns).Create(ctx, &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "j"}, Spec: batchv1.JobSpec{
		Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "c", Image: "i"}}}},
	}}, create))(a)
	for _, test := range []struct {
		group, object, patch string
		fields               []string
	}{
		{"api/v1", "configmaps/fixed", `{"data":{"k":"w"}}`, []string{"data"}},
		{"api/v1", "configmaps/fixed", `{"immutable":false}`, []string{"immutable"}},
		{"api/v1", "configmaps/fixed", `{"metadata":{"labels":{"may":"change"}}}`, nil},
		{"api/v1", "secrets/s", `{"type":"kubernetes.io/basic-auth"}`, []string{"data[password]", "data[username]", "type"}},
		{"apis/apps/v1", "deployments/d", `{"spec":{"selector":{"matchLabels":{"app":"e"}},"template":{"metadata":{"labels":{"app":"e"}}}}}`, []string{"spec.selector"}},
		{"apis/apps/v1", "deployments/d", `{"spec":{"template":{"metadata":{"labels":{"app":"e"}}}}}`, []string{"spec.template.metadata.labels"}},
		{"apis/rbac.authorization.k8s.io/v1", "rolebindings/b", `{"roleRef":{"name":"edit"}}`, []string{"roleRef"}},
		{"apis/batch/v1", "jobs/j", `{"spec":{"template":{"spec":{"restartPolicy":"OnFailure"}}}}`, []string{"spec.template"}},
		{"apis/batch/v1", "jobs/j", `{"spec":{"completions":5}}`, []string{"spec.completions"}},
		{"api/v1", "configmaps/fixed", `{"metadata":{"name":"other"}}`, []string{"400"}},
	} {
		a.Run(test.object+" "+test.patch, func(t *testing.T) {
			err := a.client.CoreV1().RESTClient().Patch(types.MergePatchType).AbsPath("/" + test.group + "/namespaces/" + a.ns + "/" + test.object).Body([]byte(test.patch)).Do(t.Context()).Error()
			switch {
			case test.fields == nil:
				if err != nil {
					t.Error(err)
				}
			case test.fields[0] == "400":
				a.in(t).refused(err, 400)
			default:
				a.in(t).refused(err, 422, test.fields...)
			}
		})
	}
}
