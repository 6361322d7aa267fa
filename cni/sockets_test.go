package cni

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cni/plugin"
)

func TestLeavesSockets(t *testing.T) {
	for name, c := range map[string]struct {
		annotations, labels map[string]string
		want                bool
	}{
		"an ordinary pod":        {nil, map[string]string{"app": "web"}, false},
		"by annotation":          {map[string]string{AnnotationSockets: "false"}, nil, true},
		"Istio's sidecar":        {map[string]string{"sidecar.istio.io/status": "{}"}, nil, true},
		"a virtual machine":      {nil, map[string]string{"kubevirt.io": "virt-launcher"}, true},
		"detected, but told":     {map[string]string{AnnotationSockets: "true"}, map[string]string{"kubevirt.io": "virt-launcher"}, false},
		"an annotation amiss":    {map[string]string{AnnotationSockets: "no"}, nil, false},
		"amiss, and a sidecar's": {map[string]string{AnnotationSockets: "", "sidecar.istio.io/status": "{}"}, nil, true},
	} {
		if got := LeavesSockets(&metav1.ObjectMeta{Annotations: c.annotations, Labels: c.labels}); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// The switch goes with the pod: it is set before ADD answers where the pod is known, follows the pod's annotations, survives the agent, and
// goes with DEL. While nothing is known of a pod, nothing is changed.
func TestSocketsAreSwitched(t *testing.T) {
	n := newNode(t, "10.244.0.0/24")
	off, known := true, true
	n.cfg.LeavesSockets = func(pod string) (bool, bool) { return off && pod == "ns/vm", known }
	n.restart(t)
	for id, args := range map[string]string{
		"a": "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=vm;K8S_POD_UID=1", "b": "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web", "c": "",
	} {
		if _, err := n.Handle(plugin.Request{Verb: "ADD", ContainerID: id, Netns: newNetns(t), Ifname: "eth0", Args: args}); err != nil {
			t.Fatal(err)
		}
	}
	want := func(when string, has bool) {
		t.Helper()
		if rows := n.fake.off.rows; len(rows) > 1 || (len(rows[socketsOwner("a")]) == 1) != has {
			t.Errorf("%s: %v", when, rows)
		}
	}
	want("after ADD", true)
	known = false
	n.PodSeen("ns/vm")
	want("unknown", true)
	n.restart(t)
	want("after a restart", true)
	known, off = true, false
	n.PodSeen("ns/web")
	want("another pod is seen", true)
	n.PodSeen("ns/vm")
	want("the annotation is gone", false)
	off = true
	n.PodSeen("ns/vm")
	want("and comes again", true)
	if _, err := n.fake.off.Replace("of a pod that is gone", []bpf.SocketsOff{{Netns: 7}}); err != nil {
		t.Fatal(err)
	}
	n.restart(t)
	want("with a row of a pod that is gone", true)
	if _, err := n.Handle(plugin.Request{Verb: "DEL", ContainerID: "a", Ifname: "eth0"}); err != nil {
		t.Fatal(err)
	}
	want("after DEL", false)
}
