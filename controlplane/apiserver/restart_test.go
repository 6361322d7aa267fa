package apiserver_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"github.com/strake-io/strake/controlplane/apiserver/apiservertest"
)

// TestRestart ends the server and starts another on the same store.
func TestRestart(t *testing.T) {
	s := apiservertest.Start(t)
	a := newAPI(t, s)
	ctx, create, get := t.Context(), metav1.CreateOptions{}, metav1.GetOptions{}
	services, maps := a.client.CoreV1().Services(a.ns), a.client.CoreV1().ConfigMaps(a.ns)

	made := must(services.Create(ctx, service("web", withIP("10.96.0.50"), func(s *corev1.ServiceSpec) {
		s.Type, s.Ports[0].NodePort = corev1.ServiceTypeNodePort, 30005
	}), create))(t)
	lost := must(services.Create(ctx, service("lost", withIP("10.96.0.51")), create))(t)
	for i := range 3 {
		must(maps.Create(ctx, configMap(fmt.Sprint("m", i), nil), create))(t)
	}
	page := must(maps.List(ctx, metav1.ListOptions{Limit: 1}))(t)
	token := must(a.client.CoreV1().ServiceAccounts(a.ns).CreateToken(ctx, "default", &authenticationv1.TokenRequest{}, create))(t).Status.Token
	crd := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(boats), &crd.Object); err != nil {
		t.Fatal(err)
	}
	must(a.dynamic.Resource(crdResource).Create(ctx, crd, create))(t)
	boat := a.dynamic.Resource(schema.GroupVersionResource{Group: "test.strake.io", Version: "v1", Resource: "boats"}).Namespace(a.ns)
	a.eventually("a custom object", func(ctx context.Context) error {
		_, err := boat.Create(ctx, &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "test.strake.io/v1", "kind": "Boat", "metadata": map[string]any{"name": "one"}, "spec": map[string]any{"length": int64(3)},
		}}, create)
		return err
	})

	// What every cluster has is put back.
	for what, err := range map[string]error{
		"Service":       a.client.CoreV1().Services("default").Delete(ctx, "kubernetes", metav1.DeleteOptions{}),
		"EndpointSlice": a.client.DiscoveryV1().EndpointSlices("default").Delete(ctx, "kubernetes", metav1.DeleteOptions{}),
		"ConfigMap":     a.client.CoreV1().ConfigMaps("kube-system").Delete(ctx, "extension-apiserver-authentication", metav1.DeleteOptions{}),
		"ClusterRole":   a.client.RbacV1().ClusterRoles().Delete(ctx, "system:node-proxier", metav1.DeleteOptions{}),
		"PriorityClass": a.client.SchedulingV1().PriorityClasses().Delete(ctx, "system-node-critical", metav1.DeleteOptions{}),
	} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}

	s.Stop(t)
	etcd := must(clientv3.New(clientv3.Config{Endpoints: []string{s.EtcdURL}}))(t)
	defer etcd.Close()
	// A claim that the store lost, as from a backup of another time, and history that it forgot.
	if r := must(etcd.Delete(ctx, "/registry/ipaddresses/"+lost.Spec.ClusterIP))(t); r.Deleted != 1 {
		t.Fatal("the claim is not where it is expected")
	}
	now := must(etcd.Get(ctx, "/registry"))(t).Header.Revision
	must(etcd.Compact(ctx, now))(t)
	s.Run(t)

	testSystem(a)
	must(a.client.RbacV1().ClusterRoles().Get(ctx, "system:node-proxier", get))(t)
	kept := must(services.Get(ctx, "web", get))(t)
	if kept.UID != made.UID || kept.ResourceVersion != made.ResourceVersion || kept.Spec.ClusterIP != "10.96.0.50" {
		t.Errorf("Service %+v", kept)
	}
	must(boat.Get(ctx, "one", get))(t)
	for _, taken := range []*corev1.Service{
		service("x", withIP("10.96.0.50")), service("x", withIP("10.96.0.51")), nodePortService("x", 30005), service("x", withIP("10.96.0.1")),
	} {
		if _, err := services.Create(ctx, taken, create); !apierrors.IsInvalid(err) {
			t.Errorf("Service with %s and port %d: %v", taken.Spec.ClusterIP, taken.Spec.Ports[0].NodePort, err)
		}
	}
	if me := must(a.bearer(token).AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, create))(t); me.Status.UserInfo.Username != "system:serviceaccount:"+a.ns+":default" {
		t.Errorf("a token of before: %+v", me.Status)
	}

	// Clients that come back with what they knew learn that they must list again.
	_, err := maps.List(ctx, metav1.ListOptions{Limit: 1, Continue: page.Continue})
	if !apierrors.IsResourceExpired(err) {
		t.Errorf("a page of before: %v", err)
	}
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		rest := must(maps.List(ctx, metav1.ListOptions{Continue: status.Status().ListMeta.Continue}))(t)
		if len(rest.Items) == 0 {
			t.Error("the error's own token, for who can bear a gap, leads nowhere")
		}
	}
	w, err := maps.Watch(ctx, metav1.ListOptions{ResourceVersion: page.ResourceVersion})
	if err == nil {
		defer w.Stop()
		e := <-w.ResultChan()
		err = apierrors.FromObject(e.Object)
	}
	if !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) {
		t.Errorf("a watch of before: %v", err)
	}
	list := must(maps.List(ctx, metav1.ListOptions{}))(t)
	again := must(maps.Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion}))(t)
	defer again.Stop()
	must(maps.Create(ctx, configMap("after", nil), create))(t)
	if e := <-again.ResultChan(); e.Object.(*corev1.ConfigMap).Name != "after" {
		t.Errorf("event %+v", e)
	}
}
