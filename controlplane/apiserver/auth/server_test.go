package auth_test

import (
	"context"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/strake-io/strake/controlplane/apiserver/apiservertest"
)

// eventually waits for what the server's caches and hooks bring about.
func eventually(t *testing.T, what string, f func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	for {
		err := f(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestServer(t *testing.T) {
	s := apiservertest.Start(t)
	admin := kubernetes.NewForConfigOrDie(s.Admin)
	node := func(name string) kubernetes.Interface {
		return kubernetes.NewForConfigOrDie(s.As(t, "system:node:"+name, "system:nodes"))
	}
	n1, n2 := node("n1"), node("n2")
	ctx, create := t.Context(), metav1.CreateOptions{}

	eventually(t, "namespace default", func(ctx context.Context) error {
		_, err := admin.CoreV1().Namespaces().Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	for _, n := range []string{"default", "robot"} {
		must[*corev1.ServiceAccount](t)(admin.CoreV1().ServiceAccounts("default").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: n}}, create))
	}
	must[*corev1.Secret](t)(admin.CoreV1().Secrets("default").Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "loot"}, StringData: map[string]string{"k": "v"}}, create))
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{
		NodeName: "n1", ServiceAccountName: "robot", Containers: []corev1.Container{{Name: "c", Image: "i"}},
		Volumes: []corev1.Volume{{Name: "s", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "loot"}}}},
	}}
	eventually(t, "pod", func(ctx context.Context) error {
		made, err := admin.CoreV1().Pods("default").Create(ctx, pod, create)
		if err == nil {
			pod = made
		}
		return err
	})

	t.Run("admission fills the pod in", func(t *testing.T) {
		if v := pod.Spec.Volumes; len(v) != 2 || !strings.HasPrefix(v[1].Name, "kube-api-access-") {
			t.Errorf("volumes %v", v)
		}
		if pod.Spec.Priority == nil || len(pod.Spec.Tolerations) != 2 {
			t.Errorf("priority %v, tolerations %v", pod.Spec.Priority, pod.Spec.Tolerations)
		}
	})

	t.Run("a kubelet registers and beats", func(t *testing.T) {
		n := must[*corev1.Node](t)(n1.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}, create))
		if len(n.Spec.Taints) != 1 || n.Spec.Taints[0].Key != corev1.TaintNodeNotReady {
			t.Errorf("taints %v", n.Spec.Taints)
		}
		n.Status.Phase = corev1.NodeRunning
		must[*corev1.Node](t)(n1.CoreV1().Nodes().UpdateStatus(ctx, n, metav1.UpdateOptions{}))
		must[*coordinationv1.Lease](t)(n1.CoordinationV1().Leases("kube-node-lease").Create(ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}, create))
		for what, err := range map[string]error{
			"another node": func() error {
				_, err := n2.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n3"}}, create)
				return err
			}(),
			"another's lease": func() error {
				_, err := n2.CoordinationV1().Leases("kube-node-lease").Create(ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}, create)
				return err
			}(),
			"another's status": func() error {
				_, err := n2.CoreV1().Nodes().UpdateStatus(ctx, n, metav1.UpdateOptions{})
				return err
			}(),
		} {
			if !apierrors.IsForbidden(err) {
				t.Errorf("%s: %v, want forbidden", what, err)
			}
		}
	})

	t.Run("a kubelet reads what its pods name", func(t *testing.T) {
		eventually(t, "secret of its pod", func(ctx context.Context) error {
			_, err := n1.CoreV1().Secrets("default").Get(ctx, "loot", metav1.GetOptions{})
			return err
		})
		list := must[*corev1.PodList](t)(n1.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=n1"}))
		if len(list.Items) != 1 {
			t.Errorf("%d pods", len(list.Items))
		}
		if _, err := n1.CoreV1().Secrets("default").List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=loot"}); err != nil {
			t.Errorf("list of the one secret: %v", err)
		}
		for what, err := range map[string]error{
			"secret of another's pod": func() error {
				_, err := n2.CoreV1().Secrets("default").Get(ctx, "loot", metav1.GetOptions{})
				return err
			}(),
			"all secrets": func() error {
				_, err := n1.CoreV1().Secrets("default").List(ctx, metav1.ListOptions{})
				return err
			}(),
			"all pods": func() error {
				_, err := n1.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
				return err
			}(),
		} {
			if !apierrors.IsForbidden(err) {
				t.Errorf("%s: %v, want forbidden", what, err)
			}
		}
	})

	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: "p", UID: pod.UID},
	}}
	t.Run("a pod's token", func(t *testing.T) {
		tr := must[*authenticationv1.TokenRequest](t)(n1.CoreV1().ServiceAccounts("default").CreateToken(ctx, "robot", request, create))
		if tr.Status.Token == "" || len(tr.Spec.Audiences) != 1 {
			t.Errorf("answer %+v", tr)
		}
		if _, err := n2.CoreV1().ServiceAccounts("default").CreateToken(ctx, "robot", request, create); !apierrors.IsForbidden(err) {
			t.Errorf("token of another's pod: %v", err)
		}
		if _, err := n1.CoreV1().ServiceAccounts("default").CreateToken(ctx, "robot", &authenticationv1.TokenRequest{}, create); !apierrors.IsForbidden(err) {
			t.Errorf("token of no pod: %v", err)
		}
	})

	t.Run("a review of rubbish", func(t *testing.T) {
		review := must[*authenticationv1.TokenReview](t)(admin.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: "rub\x00bish"}}, create))
		if review.Status.Authenticated {
			t.Errorf("review %+v", review.Status)
		}
	})

	t.Run("roles", func(t *testing.T) {
		subject := []rbacv1.Subject{{Kind: "User", Name: "ann"}}
		eventually(t, "ClusterRole admin is summed up", func(ctx context.Context) error {
			r, err := admin.RbacV1().ClusterRoles().Get(ctx, "admin", metav1.GetOptions{})
			if err == nil && len(r.Rules) == 0 {
				return apierrors.NewNotFound(rbacv1.Resource("rules"), "admin")
			}
			return err
		})
		must[*rbacv1.RoleBinding](t)(admin.RbacV1().RoleBindings("default").Create(ctx, &rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: "ann"}, RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: "admin"}, Subjects: subject,
		}, create))
		ann := kubernetes.NewForConfigOrDie(s.As(t, "ann"))
		role := func(rules ...rbacv1.PolicyRule) *rbacv1.Role {
			return &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{GenerateName: "r-"}, Rules: rules}
		}
		eventually(t, "an admin grants what she holds", func(ctx context.Context) error {
			_, err := ann.RbacV1().Roles("default").Create(ctx, role(rbacv1.PolicyRule{Verbs: []string{"get"}, APIGroups: []string{""}, Resources: []string{"pods"}}), create)
			return err
		})
		_, err := ann.RbacV1().Roles("default").Create(ctx, role(rbacv1.PolicyRule{Verbs: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}}), create)
		if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "not currently held") {
			t.Errorf("an admin grants everything: %v", err)
		}
		_, err = ann.RbacV1().RoleBindings("default").Create(ctx, &rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: "root"}, RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: "cluster-admin"}, Subjects: subject,
		}, create)
		if !apierrors.IsForbidden(err) {
			t.Errorf("an admin makes herself root: %v", err)
		}
	})

	t.Run("pod security", func(t *testing.T) {
		labels := map[string]string{"pod-security.kubernetes.io/enforce": "restricted"}
		must[*corev1.Namespace](t)(admin.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "strict", Labels: labels}}, create))
		must[*corev1.ServiceAccount](t)(admin.CoreV1().ServiceAccounts("strict").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, create))
		_, err := admin.CoreV1().Pods("strict").Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}, create)
		if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), `violates PodSecurity "restricted:latest"`) {
			t.Errorf("got %v", err)
		}
	})
}
