package mirror

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
)

// answers is a mirror of an API server that answers each list with the same bytes.
func answers(t *testing.T, body []byte) *Mirror {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("watch") != "" {
			http.Error(w, "nobody watches", http.StatusForbidden)
			return
		}
		if r.URL.RawQuery != "" || r.Header.Get("Accept") != runtime.ContentTypeProtobuf {
			t.Errorf("asked for %s as %s", r.URL, r.Header.Get("Accept"))
		}
		w.Header().Set("Content-Type", runtime.ContentTypeProtobuf)
		w.Write(body)
	}))
	t.Cleanup(s.Close)
	client, err := kubernetes.NewForConfig(&rest.Config{Host: s.URL})
	must(t, err)
	m := New(client, "n1")
	m.Keep("weight", corev1.IsHeadlessService)
	return m
}

// onWire is an object as an API server sends it.
func onWire(t *testing.T, obj runtime.Object) []byte {
	t.Helper()
	var b bytes.Buffer
	must(t, protobuf.NewSerializer(scheme.Scheme, scheme.Scheme).Encode(obj, &b))
	return b.Bytes()
}

// decorated is metadata of all that API servers add, of which nothing is asked for but what labels and annotations say.
func decorated(name string, r *rand.Rand) metav1.ObjectMeta {
	seven := int64(7)
	o := metav1.ObjectMeta{
		Namespace: "ns", Name: name, GenerateName: "x-", UID: "1", ResourceVersion: "12", Generation: 1 << 40, CreationTimestamp: metav1.Unix(1767225600, 0), DeletionGracePeriodSeconds: &seven,
		Labels: map[string]string{"app": "x"}, Annotations: map[string]string{"long": strings.Repeat("x", 1000)}, Finalizers: []string{"x"},
		OwnerReferences: []metav1.OwnerReference{{Kind: "Service", Name: "x"}},
		ManagedFields:   []metav1.ManagedFieldsEntry{{Manager: "x", FieldsV1: metav1.NewFieldsV1(`{"f:metadata":{}}`)}},
	}
	for _, name := range []string{discoveryv1.LabelServiceName, corev1.IsHeadlessService} {
		if r.IntN(2) == 0 {
			o.Labels[name] = fmt.Sprint("v", r.IntN(9))
		}
	}
	if r.IntN(2) == 0 {
		o.Annotations["weight"] = "2"
	}
	if r.IntN(2) == 0 { // says nothing there
		o.Annotations[discoveryv1.LabelServiceName] = "other"
	}
	return o
}

func kept(o metav1.ObjectMeta) metav1.ObjectMeta {
	out := metav1.ObjectMeta{Namespace: o.Namespace, Name: o.Name, UID: o.UID}
	for from, to := range map[*map[string]string]*map[string]string{&o.Labels: &out.Labels, &o.Annotations: &out.Annotations} {
		for _, name := range []string{discoveryv1.LabelServiceName, corev1.IsHeadlessService, "weight"} {
			if v, ok := (*from)[name]; ok {
				if *to == nil {
					*to = map[string]string{}
				}
				(*to)[name] = v
			}
		}
	}
	return out
}

// What comes in one answer is held as what comes object by object is, and both are what is to be kept of them.
func TestStream(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	list := &discoveryv1.EndpointSliceList{TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSliceList"}, ListMeta: metav1.ListMeta{ResourceVersion: "7"}}
	want := map[string]*discoveryv1.EndpointSlice{}
	for i := range 200 {
		s := slice(fmt.Sprint("web-", i), "", "http")
		s.ObjectMeta = decorated(s.Name, r)
		k := s.DeepCopy()
		k.ObjectMeta = kept(s.ObjectMeta)
		k.UID = ""
		for e := range r.IntN(100) {
			at := discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.0.%d.%d", i, e)}, Conditions: discoveryv1.EndpointConditions{Ready: ptr(r.IntN(2) == 0), Terminating: ptr(false)}}
			if r.IntN(3) == 0 {
				at.Hints = &discoveryv1.EndpointHints{ForNodes: []discoveryv1.ForNode{{Name: "n1"}}}
			}
			if r.IntN(3) == 0 {
				at.Hostname = ptr("db-0")
			}
			node := fmt.Sprint("n", r.IntN(3))
			if node == "n1" {
				at.NodeName = &node
			}
			k.Endpoints = append(k.Endpoints, at)
			at.NodeName, at.Zone, at.TargetRef = &node, ptr("z"), &corev1.ObjectReference{Kind: "Pod", Name: "p"}
			s.Endpoints = append(s.Endpoints, at)
		}
		list.Items, want["ns/"+s.Name] = append(list.Items, *s), k
	}
	m := answers(t, onWire(t, list))
	weighty := map[string]bool{}
	m.Slices().Follow(Follower[*discoveryv1.EndpointSlice]{Changed: func(_, now *discoveryv1.EndpointSlice) {}, Having: "weight", Listed: func(s *discoveryv1.EndpointSlice) {
		if weighty[s.Name] = true; s.UID != "1" {
			t.Errorf("told of a %s that did not come so: %+v", s.Name, s)
		}
	}})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go m.Run(ctx)
	if !m.Wait(ctx) {
		t.Fatal("not seen")
	}
	if n := len(m.Slices().Keys()); n != len(want) {
		t.Fatalf("%d are held of %d", n, len(want))
	}
	one := New(nil, "n1")
	one.Keep("weight", corev1.IsHeadlessService)
	alone := newSet[discoveryv1.EndpointSlice](one, keptSlice)
	alone.service, alone.belong = ServiceOf, true
	for i := range list.Items {
		s := &list.Items[i]
		key := KeyOf(s)
		if back := m.Slices().Get(key); !reflect.DeepEqual(back, want[key]) {
			t.Errorf("%s is held as\n%+v, not as\n%+v", key, back, want[key])
		}
		p, err := alone.pack(s)
		must(t, err)
		if p.data != m.slices.objects[key] {
			t.Errorf("%s is packed in two ways", key)
		}
		if p.service != ServiceOf(s) || p.named != m.slices.named[key] {
			t.Errorf("%s is of %q, named %t", key, p.service, p.named)
		}
		if _, has := s.Annotations["weight"]; has != weighty[s.Name] {
			t.Errorf("%s has a weight: %t, and somebody was told: %t", key, has, weighty[s.Name])
		}
	}
}

// An answer that is not whole, or none of a list, is an error, and nothing is held for it.
func TestStreamEnds(t *testing.T) {
	list := &corev1.ServiceList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceList"}, ListMeta: metav1.ListMeta{ResourceVersion: "7"}, Items: []corev1.Service{{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web"}}}}
	whole := onWire(t, list)
	read := func(body []byte) (string, error) {
		m := answers(t, body)
		return (&stream{client: m.client.CoreV1().RESTClient(), resource: "services"}).list(t.Context(), func(b []byte) error { return new(corev1.Service).Unmarshal(b) })
	}
	if version, err := read(whole); version != "7" || err != nil {
		t.Fatal(version, err)
	}
	const after = 4 // what follows the list is contentEncoding and contentType, both empty
	for n := range len(whole) - after {
		if version, err := read(whole[:n]); err == nil {
			t.Errorf("%d of %d bytes are a list of version %q", n, len(whole), version)
		}
	}
	if _, err := read([]byte(`{"kind":"ServiceList"}`)); err == nil || !strings.Contains(err.Error(), "the answer begins with") {
		t.Error("JSON:", err)
	}
}

// A server that can't send a list in the time that it gives a request is asked for pages, from the first one again if what follows is no longer there.
func TestCutLists(t *testing.T) {
	const pages = 3
	cut := map[string]func(w http.ResponseWriter, whole []byte){
		"in its middle": func(w http.ResponseWriter, whole []byte) {
			w.Write(whole[:len(whole)/2])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		},
		"before it began": func(w http.ResponseWriter, _ []byte) { http.Error(w, "timeout", http.StatusGatewayTimeout) },
	}
	for when, end := range cut {
		var mu sync.Mutex
		var asked []string
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			q := r.URL.Query()
			if q.Get("watch") != "" {
				http.Error(w, "nobody watches", http.StatusForbidden)
				return
			}
			mu.Lock()
			asked = append(asked, r.URL.RawQuery)
			n := len(asked)
			mu.Unlock()
			page, _ := strconv.Atoi(q.Get("continue")) // the first has none
			list := &corev1.ServiceList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceList"}, ListMeta: metav1.ListMeta{ResourceVersion: "7"}}
			list.Items = []corev1.Service{{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprint("web-", page)}}}
			if page < pages-1 {
				list.Continue = strconv.Itoa(page + 1)
			}
			w.Header().Set("Content-Type", runtime.ContentTypeProtobuf)
			switch {
			case q.Get("limit") == "":
				end(w, onWire(t, list))
			case n == 3: // the second page
				w.WriteHeader(http.StatusGone)
				gone := apierrors.NewResourceExpired("compacted").ErrStatus
				gone.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}
				w.Write(onWire(t, &gone))
			default:
				w.Write(onWire(t, list))
			}
		}))
		client, err := kubernetes.NewForConfig(&rest.Config{Host: s.URL})
		must(t, err)
		m := New(client, "n1")
		services := m.Services()
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { m.Run(ctx) })
		m.Wait(ctx)
		cancel()
		running.Wait()
		s.Close()
		keys := services.Keys()
		slices.Sort(keys)
		if want := []string{"ns/web-0", "ns/web-1", "ns/web-2"}; !slices.Equal(keys, want) {
			t.Errorf("cut %s: %v are held", when, keys)
		}
		want := []string{"", "limit=500", "continue=1&limit=500", "limit=500", "continue=1&limit=500", "continue=2&limit=500"}
		if len(asked) < len(want) || !slices.Equal(asked[:len(want)], want) { // what follows is after the watch that there isn't
			t.Errorf("cut %s: asked for %q", when, asked)
		}
	}
}

// Only what cuts an answer has lists come in pages: not an object that can't be held, nor a server that is away.
func TestListsStayWhole(t *testing.T) {
	list := &corev1.ServiceList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceList"}, Items: make([]corev1.Service, 1)}
	s := &stream{client: answers(t, onWire(t, list)).client.CoreV1().RESTClient(), resource: "services"}
	if _, err := s.list(t.Context(), func([]byte) error { return errWire }); !errors.Is(err, errWire) || s.paged {
		t.Errorf("%v, paged: %t", err, s.paged)
	}
	client, err := kubernetes.NewForConfig(&rest.Config{Host: "http://127.0.0.1:1"})
	must(t, err)
	s.client = client.CoreV1().RESTClient()
	if _, err := s.list(t.Context(), func([]byte) error { return nil }); err == nil || s.paged {
		t.Errorf("%v, paged: %t", err, s.paged)
	}
}

// broken are slices ns/web-1 that are fields of protobuf, but hold in one of them what is none.
func broken(t testing.TB) map[string][]byte {
	begin, err := slice("web-1", "web", "http", "10.0.0.1").Marshal()
	if err != nil {
		t.Fatal(err)
	}
	with := func(field ...byte) []byte { return append(bytes.Clone(begin), field...) }
	return map[string][]byte{
		"a port of a field without type":        with(3<<3|lengthDelimited, 1, 7),
		"an endpoint whose hints are cut":       with(2<<3|lengthDelimited, 4, 8<<3|lengthDelimited, 2, 1<<3|lengthDelimited, 9),
		"a field of number 0":                   with(lengthDelimited, 1, 7),
		"metadata that are cut after its names": with(1<<3|lengthDelimited, 2, 11<<3|lengthDelimited, 9),
	}
}

// An object that can't be read ends its list with an error that names it. It must not be held: whoever asks for it would panic.
func TestBrokenObjects(t *testing.T) {
	for of, b := range broken(t) {
		_, s := newTold()
		if p, err := s.listedBytes(b); err == nil || !strings.HasPrefix(err.Error(), "ns/web-1: ") {
			t.Errorf("%s: %+v, %v", of, p, err)
		}
	}
	services := newSet[corev1.Service](New(nil, "n1"), keptService)
	for number := range len(message{}) { // of a spec, most of whose fields are kept as they are
		inner := append(binary.AppendUvarint(nil, uint64(number)<<3|lengthDelimited), 1, 7)
		if p, err := services.packBytes(append([]byte{2<<3 | lengthDelimited, byte(len(inner))}, inner...)); err == nil {
			services.unpack("ns/web", p.data) // must not panic
		}
	}
}

// Bytes that are no object are an error at most.
func FuzzKeep(f *testing.F) {
	s := slice("web-1", "web", "http", "10.0.0.1")
	s.ObjectMeta = decorated("web-1", rand.New(rand.NewPCG(1, 2)))
	b, err := s.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	for i := range b {
		f.Add(b[:i])
	}
	for _, b := range broken(f) {
		f.Add(b)
	}
	m := New(nil, "n1")
	set := newSet[discoveryv1.EndpointSlice](m, keptSlice)
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := set.packBytes(b); err == nil {
			set.unpack(p.key, p.data) // must not panic
		}
	})
}
