package apiserver

import (
	"bytes"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/runtime/serializer/cbor"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"

	"github.com/strake-io/strake/controlplane/apiserver"
)

// TestCBOR switches the format on that is off by default, in a process of its own, as features are of a whole process: objects are written, applied, read, listed
// and watched in it.
func TestCBOR(t *testing.T) {
	t.Parallel()
	s := serve(t, func(*apiserver.Config) {})
	s.Stop(t)
	p := newProcess(t, s, time.Minute, "CBORServingAndStorage")
	p.start(t)
	p.ready(t)
	codecs := serializer.NewCodecFactory(clientscheme.Scheme, serializer.WithSerializer(cbor.NewSerializerInfo))
	info, ok := runtime.SerializerInfoForMediaType(codecs.SupportedMediaTypes(), runtime.ContentTypeCBOR)
	if !ok {
		t.Fatal("the library has no CBOR")
	}
	encode := func(m *corev1.ConfigMap) []byte {
		t.Helper()
		data, err := runtime.Encode(codecs.EncoderForVersion(info.Serializer, corev1.SchemeGroupVersion), m)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	// ask sends a request to ConfigMaps and reads the answer, which must be CBOR.
	ask := func(r *rest.Request, into runtime.Object) {
		t.Helper()
		data, err := r.Namespace(metav1.NamespaceDefault).Resource("configmaps").SetHeader("Accept", runtime.ContentTypeCBOR).DoRaw(t.Context())
		if err != nil || !bytes.HasPrefix(data, []byte{0xd9, 0xd9, 0xf7}) {
			t.Fatalf("%.100q, %v", data, err)
		}
		if _, _, err := info.Serializer.Decode(data, nil, into); err != nil {
			t.Fatal(err)
		}
	}
	client := p.client.CoreV1().RESTClient()
	m := configMap("in-cbor")
	m.BinaryData = map[string][]byte{"bytes": {0, 255, 10}}
	var made, applied corev1.ConfigMap
	ask(client.Post().SetHeader("Content-Type", runtime.ContentTypeCBOR).Body(encode(m)), &made)
	if made.UID == "" || !bytes.Equal(made.BinaryData["bytes"], m.BinaryData["bytes"]) {
		t.Errorf("made %+v", &made)
	}
	m.BinaryData, m.Data = nil, map[string]string{"applied": "yes"}
	ask(client.Patch("application/apply-patch+cbor").Name("in-cbor").Param("fieldManager", "test").Body(encode(m)), &applied)
	if applied.Data["applied"] != "yes" || len(applied.BinaryData) != 1 || applied.UID != made.UID {
		t.Errorf("applied %+v", &applied)
	}
	var list corev1.ConfigMapList
	ask(client.Get().Param("fieldSelector", "metadata.name=in-cbor"), &list)
	if len(list.Items) != 1 || list.Items[0].UID != made.UID || list.ResourceVersion == "" {
		t.Errorf("list %+v", &list)
	}
	watch, err := client.Get().Namespace(metav1.NamespaceDefault).Resource("configmaps").Param("watch", "1").Param("fieldSelector", "metadata.name=in-cbor").SetHeader("Accept", runtime.ContentTypeCBOR).Stream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Close()
	frame := make([]byte, 1<<16)
	n, err := info.StreamSerializer.NewFrameReader(watch).Read(frame)
	if err != nil {
		t.Fatal(err)
	}
	var e metav1.WatchEvent
	if _, _, err := info.StreamSerializer.Decode(frame[:n], nil, &e); err != nil {
		t.Fatal(err)
	}
	seen, err := runtime.Decode(codecs.UniversalDeserializer(), e.Object.Raw)
	if err != nil || e.Type != "ADDED" || seen.(*corev1.ConfigMap).UID != made.UID {
		t.Errorf("watched %s %+v, %v", e.Type, seen, err)
	}
	// Broken bytes are told as what they are.
	for name, body := range map[string]string{"cut off": string(encode(m)[:20]), "a bomb": "\xd9\xd9\xf7\xbb\xff\xff\xff\xff\xff\xff\xff\xff", "deep": "\xd9\xd9\xf7" + strings.Repeat("\x81", 1<<20)} {
		err := client.Post().Namespace(metav1.NamespaceDefault).Resource("configmaps").SetHeader("Content-Type", runtime.ContentTypeCBOR).Body([]byte(body)).Do(t.Context()).Error()
		if !apierrors.IsBadRequest(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
