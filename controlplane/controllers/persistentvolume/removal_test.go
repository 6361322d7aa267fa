package persistentvolume

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"
	"k8s.io/component-helpers/storage/volume"
)

// proxied is a client whose own requests, those to nodes, go to a server.
type proxied struct {
	kubernetes.Interface
	nodes rest.Interface
}

type proxiedCore struct {
	typedcorev1.CoreV1Interface
	nodes rest.Interface
}

func (p proxied) CoreV1() typedcorev1.CoreV1Interface {
	return proxiedCore{p.Interface.CoreV1(), p.nodes}
}
func (p proxiedCore) RESTClient() rest.Interface { return p.nodes }

// A node that does not answer holds up neither other volumes, nor what was deleted before anybody claimed it.
func TestRemovalsOfADeadNode(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	asked := make(chan string, 100)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked <- r.URL.Path
		<-ctx.Done()
	}))
	defer server.Close()
	defer cancel()
	nodes, err := kubernetes.NewForConfig(&rest.Config{Host: server.URL, QPS: -1})
	if err != nil {
		t.Fatal(err)
	}
	objects := fake.NewClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "dead"}})
	client := proxied{objects, nodes.CoreV1().RESTClient()}
	create := func(name, node string) {
		v := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{
			Name: name, DeletionTimestamp: new(metav1.Now()), Finalizers: []string{volume.PVDeletionInTreeProtectionFinalizer},
			Annotations: map[string]string{volume.AnnDynamicallyProvisioned: localProvisioner, localNode: node},
		}, Spec: corev1.PersistentVolumeSpec{PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete}}
		if node == "" {
			v = &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}}
		}
		if _, err := client.CoreV1().PersistentVolumes().Create(ctx, v, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	factory := informers.NewSharedInformerFactory(objects, 0)
	run, err := Setup(client, client, factory, record.NewFakeRecorder(1000))
	if err != nil {
		t.Fatal(err)
	}
	factory.Start(ctx.Done())
	ended := make(chan struct{})
	go func() { run(ctx); close(ended) }()
	defer func() { cancel(); <-ended }()
	deadline := time.After(time.Minute)
	for i := range 6 {
		create(fmt.Sprint("dead-", i), "dead")
	}
	for range 6 {
		select {
		case <-asked:
		case <-deadline:
			t.Fatal("the node was not asked for volumes that nobody has")
		}
	}
	create("other", "")
	for {
		v, err := client.CoreV1().PersistentVolumes().Get(ctx, "other", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if v.Status.Phase == corev1.VolumeAvailable {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("phase %q while a node does not answer", v.Status.Phase)
		case <-time.After(10 * time.Millisecond):
		}
	}
}
