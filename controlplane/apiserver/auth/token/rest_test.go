package token

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
)

// objects is a store of one resource.
type objects map[string]runtime.Object

func (o objects) Get(_ context.Context, name string, _ *metav1.GetOptions) (runtime.Object, error) {
	if obj, ok := o[name]; ok {
		return obj, nil
	}
	return nil, apierrors.NewNotFound(corev1.Resource("things"), name)
}

func TestTokenRequest(t *testing.T) {
	seconds := func(n int64) *int64 { return &n }
	foreign := thePod.DeepCopy()
	foreign.Spec.ServiceAccountName = "other"
	ref := func(kind, name string, uid types.UID) *authenticationv1.BoundObjectReference {
		return &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: kind, Name: name, UID: uid}
	}
	for _, tc := range []struct {
		name    string
		account string // default sa
		req     authenticationv1.TokenRequest
		refused func(error) bool
		says    string
		lives   int64 // seconds; 0: 3600
	}{
		{name: "defaults"},
		{name: "shortest", req: authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: seconds(600)}}, lives: 600},
		{name: "longest", req: authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: seconds(1 << 32)}}, lives: 1 << 32},
		{name: "too short", req: authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: seconds(599)}}, refused: apierrors.IsInvalid, says: "spec.expirationSeconds"},
		{name: "too long", req: authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: seconds(1<<32 + 1)}}, refused: apierrors.IsInvalid, says: "spec.expirationSeconds"},
		{name: "overflow", req: authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: seconds(math.MaxInt64)}}, refused: apierrors.IsInvalid, says: "spec.expirationSeconds"},
		{name: "negative", req: authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: seconds(-1)}}, refused: apierrors.IsInvalid, says: "spec.expirationSeconds"},
		{name: "no such account", account: "nobody", refused: apierrors.IsNotFound},
		{name: "of another name", req: authenticationv1.TokenRequest{ObjectMeta: metav1.ObjectMeta{Name: "root"}}, refused: apierrors.IsBadRequest, says: "ns/root"},
		{name: "of another namespace", req: authenticationv1.TokenRequest{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system"}}, refused: apierrors.IsBadRequest, says: "kube-system/sa"},
		{name: "bound to a pod", req: authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: ref("Pod", "pod", "uid-of-pod")}}},
		{name: "bound to a secret", req: authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: ref("Secret", "secret", "")}}},
		{name: "bound to a node", req: authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: ref("Node", "node", "uid-of-node")}}},
		{name: "bound to a pod of old", req: authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: ref("Pod", "pod", "old")}}, refused: apierrors.IsConflict, says: "UID"},
		{name: "bound to another's pod", req: authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: ref("Pod", "foreign", "")}}, refused: apierrors.IsForbidden, says: "different serviceaccount"},
		{name: "bound to no pod", req: authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: ref("Pod", "gone", "")}}, refused: apierrors.IsNotFound},
		{name: "bound to a kind that can't be", req: authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: ref("ConfigMap", "c", "")}}, refused: apierrors.IsBadRequest, says: "ConfigMap"},
		{name: "bound to a pod of another group", req: authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "example.com/v1", Kind: "Pod", Name: "pod"}}}, refused: apierrors.IsBadRequest},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, sa, thePod, secret, node)
			r := &REST{Issuer: w.Issuer, ServiceAccounts: objects{"sa": sa}, Pods: objects{"pod": thePod, "foreign": foreign}, Secrets: objects{"secret": secret}, Nodes: objects{"node": node}}
			if tc.account == "" {
				tc.account = "sa"
			}
			ctx := genericapirequest.WithNamespace(t.Context(), "ns")
			out, err := r.Create(ctx, tc.account, &tc.req, nil, &metav1.CreateOptions{})
			if tc.refused != nil {
				if !tc.refused(err) || !strings.Contains(err.Error(), tc.says) {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got := out.(*authenticationv1.TokenRequest)
			if tc.lives == 0 {
				tc.lives = 3600
			}
			if d := got.Status.ExpirationTimestamp.Sub(time.Now().Add(time.Duration(tc.lives) * time.Second)).Abs(); d > time.Minute {
				t.Errorf("lives until %s, want in %d s", got.Status.ExpirationTimestamp, tc.lives)
			}
			if tc.req.Status.Token != "" {
				t.Error("the request itself was written to")
			}
			resp, ok, err := w.AuthenticateToken(t.Context(), got.Status.Token)
			if !ok {
				t.Fatal(err)
			}
			if b := got.Spec.BoundObjectRef; b != nil && b.Kind == "Pod" && resp.User.GetExtra()["authentication.kubernetes.io/pod-name"][0] != b.Name {
				t.Errorf("extras %v", resp.User.GetExtra())
			}
		})
	}
}

func TestTokenRequestAsksAdmission(t *testing.T) {
	w := newWorld(t, sa)
	r := &REST{Issuer: w.Issuer, ServiceAccounts: objects{"sa": sa}}
	refused := errors.New("no")
	_, err := r.Create(genericapirequest.WithNamespace(t.Context(), "ns"), "sa", &authenticationv1.TokenRequest{}, func(context.Context, runtime.Object) error { return refused }, nil)
	if !errors.Is(err, refused) {
		t.Errorf("got %v", err)
	}
}
