package node

import (
	"errors"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A node shows its addresses in the order in which it has them, and those of a restart with others.
func TestAddresses(t *testing.T) {
	client := fake.NewClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}})
	for _, ips := range [][]string{{"192.0.2.1"}, {"2001:db8::1", "192.0.2.1"}} {
		cfg := Config{Name: "n", IPs: ips, Client: client, Pressure: func(corev1.NodeConditionType) (string, bool) { return "", false }}
		reported := time.Now()
		n, err := report(t.Context(), cfg, Machine{}, &runtimeapi.RuntimeStatus{}, nil, &reported)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, a := range n.Status.Addresses {
			got = append(got, string(a.Type)+" "+a.Address)
		}
		var want []string
		for _, ip := range ips {
			want = append(want, "InternalIP "+ip)
		}
		if want = append(want, "Hostname n"); !slices.Equal(got, want) {
			t.Errorf("addresses %q, want %q", got, want)
		}
	}
}

func TestConditions(t *testing.T) {
	short := map[corev1.NodeConditionType]string{}
	cfg := Config{Pressure: func(c corev1.NodeConditionType) (string, bool) { d, ok := short[c]; return d, ok }}
	up := &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{{Type: "RuntimeReady", Status: true}, {Type: "NetworkReady", Status: true}}}
	noNet := &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{{Type: "NetworkReady", Reason: "NetworkPluginNotReady", Message: "no conf"}}}
	get := func(have []corev1.NodeCondition, at int64, rt *runtimeapi.RuntimeStatus, err error) map[corev1.NodeConditionType]corev1.NodeCondition {
		out := map[corev1.NodeConditionType]corev1.NodeCondition{}
		for _, c := range conditions(have, checks(cfg, rt, err), metav1.Unix(at, 0)) {
			out[c.Type] = c
		}
		return out
	}
	fine := get(nil, 1, up, nil)
	for kind, want := range map[corev1.NodeConditionType]corev1.ConditionStatus{corev1.NodeReady: "True", corev1.NodeMemoryPressure: "False", corev1.NodeDiskPressure: "False", corev1.NodePIDPressure: "False"} {
		if fine[kind].Status != want {
			t.Errorf("%s is %s", kind, fine[kind].Status)
		}
	}
	if c := get(nil, 1, noNet, nil)[corev1.NodeReady]; c.Status != "False" || c.Message != "container runtime NetworkReady: NetworkPluginNotReady: no conf" {
		t.Errorf("%+v", c)
	}
	if c := get(nil, 1, nil, errors.New("gone"))[corev1.NodeReady]; c.Status != "False" || c.Message != "container runtime is down: gone" {
		t.Errorf("%+v", c)
	}
	short[corev1.NodeDiskPressure] = "nodefs.available is 5Gi, below 10Gi"
	have := []corev1.NodeCondition{fine[corev1.NodeReady], fine[corev1.NodeDiskPressure], {Type: "NetworkUnavailable", Status: "False"}}
	next := get(have, 60, up, nil)
	if c := next[corev1.NodeDiskPressure]; c.Status != "True" || c.Reason != "KubeletHasDiskPressure" || c.Message != "kubelet has disk pressure: nodefs.available is 5Gi, below 10Gi" || c.LastTransitionTime.Unix() != 60 {
		t.Errorf("%+v", c)
	}
	if c := next[corev1.NodeReady]; c.LastTransitionTime.Unix() != 1 || c.LastHeartbeatTime.Unix() != 60 {
		t.Errorf("what did not change: %+v", c)
	}
	if c := next["NetworkUnavailable"]; c.Status != "False" {
		t.Errorf("another's condition: %+v", c)
	}
}

// The Lease belongs to the Node that there is, also after that was deleted and made anew.
func TestLeaseOfANewNode(t *testing.T) {
	client := fake.NewClientset()
	cfg := Config{Name: "n", Client: client}
	if err := renew(t.Context(), cfg); err == nil {
		t.Error("a Lease of no Node")
	}
	leases := client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	for _, uid := range []types.UID{"first", "second"} {
		if _, err := client.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", UID: uid}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		var renewed metav1.MicroTime
		for range 2 {
			if err := renew(t.Context(), cfg); err != nil {
				t.Fatal(err)
			}
			l, err := leases.Get(t.Context(), "n", metav1.GetOptions{})
			if err != nil || l.OwnerReferences[0].UID != uid || *l.Spec.HolderIdentity != "n" || !renewed.Before(l.Spec.RenewTime) {
				t.Fatalf("Lease %+v, %v", l, err)
			}
			renewed = *l.Spec.RenewTime
		}
		// The garbage collector takes it with its Node.
		if err := errors.Join(client.CoreV1().Nodes().Delete(t.Context(), "n", metav1.DeleteOptions{}), leases.Delete(t.Context(), "n", metav1.DeleteOptions{})); err != nil {
			t.Fatal(err)
		}
	}
}

func TestBootTime(t *testing.T) {
	if b := BootTime(); b.After(time.Now()) || b.IsZero() {
		t.Errorf("%s", b)
	}
}
