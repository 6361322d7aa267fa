package coredns

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
)

// API is as much of an API server as informers ask for: lists and watches of objects that it is given.
type API struct {
	URL string

	mu       sync.Mutex
	server   *http.Server
	version  int
	objects  map[string]map[string]metav1.Object // by resource and key
	watchers map[chan event]string
}

type event struct {
	Type   string `json:"type"`
	Object any    `json:"object"`
}

// resources are those that cluster DNS reads.
var resources = map[string]metav1.TypeMeta{
	"services":       {APIVersion: "v1", Kind: "Service"},
	"namespaces":     {APIVersion: "v1", Kind: "Namespace"},
	"pods":           {APIVersion: "v1", Kind: "Pod"},
	"endpointslices": {APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
}

func resourceOf(obj runtime.Object) string {
	switch o := obj.(type) {
	case *corev1.Service:
		o.TypeMeta = resources["services"]
		return "services"
	case *corev1.Namespace:
		o.TypeMeta = resources["namespaces"]
		return "namespaces"
	case *corev1.Pod:
		o.TypeMeta = resources["pods"]
		return "pods"
	case *discoveryv1.EndpointSlice:
		o.TypeMeta = resources["endpointslices"]
		return "endpointslices"
	}
	panic(fmt.Sprintf("%T is nothing that cluster DNS reads", obj))
}

// StartAPI serves objects on a port of loopback.
func StartAPI(objs ...runtime.Object) (*API, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	a := &API{URL: "http://" + l.Addr().String(), objects: map[string]map[string]metav1.Object{}, watchers: map[chan event]string{}}
	for _, obj := range objs {
		a.Set(obj)
	}
	a.server = &http.Server{Handler: a}
	go a.server.Serve(l) // ends with Close
	return a, nil
}

// Close ends all connections.
func (a *API) Close() error { return a.server.Close() }

// Set creates or changes an object.
func (a *API) Set(obj runtime.Object) {
	resource := resourceOf(obj)
	m := obj.(metav1.Object)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.version++
	m.SetResourceVersion(strconv.Itoa(a.version))
	if m.GetUID() == "" {
		m.SetUID(types.UID("uid-" + m.GetNamespace() + "-" + m.GetName()))
	}
	if a.objects[resource] == nil {
		a.objects[resource] = map[string]metav1.Object{}
	}
	key := m.GetNamespace() + "/" + m.GetName()
	kind := "ADDED"
	if a.objects[resource][key] != nil {
		kind = "MODIFIED"
	}
	a.objects[resource][key] = m
	a.tell(resource, event{kind, m})
}

// Delete takes an object away.
func (a *API) Delete(obj runtime.Object) {
	resource := resourceOf(obj)
	m := obj.(metav1.Object)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.version++
	m.SetResourceVersion(strconv.Itoa(a.version))
	delete(a.objects[resource], m.GetNamespace()+"/"+m.GetName())
	a.tell(resource, event{"DELETED", m})
}

func (a *API) tell(resource string, e event) {
	for w, of := range a.watchers {
		if of == resource {
			w <- e
		}
	}
}

// ServeHTTP implements http.Handler.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	resource := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	meta, ok := resources[resource]
	if !ok || r.URL.Query().Get("sendInitialEvents") == "true" { // a client that hears no lists asks for one
		http.Error(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Invalid","code":422}`, http.StatusUnprocessableEntity)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	to := json.NewEncoder(w)
	if r.URL.Query().Get("watch") == "" {
		a.mu.Lock()
		defer a.mu.Unlock()
		list := struct {
			metav1.TypeMeta `json:",inline"`
			metav1.ListMeta `json:"metadata"`
			Items           []metav1.Object `json:"items"`
		}{metav1.TypeMeta{APIVersion: meta.APIVersion, Kind: meta.Kind + "List"}, metav1.ListMeta{ResourceVersion: strconv.Itoa(a.version)}, []metav1.Object{}}
		for _, o := range a.objects[resource] {
			list.Items = append(list.Items, o)
		}
		_ = to.Encode(list) // the client is gone
		return
	}
	events := make(chan event, 100_000)
	a.mu.Lock()
	a.watchers[events] = resource
	since, _ := strconv.Atoi(r.URL.Query().Get("resourceVersion")) // of none: all
	var missed []metav1.Object
	for _, o := range a.objects[resource] {
		if v, _ := strconv.Atoi(o.GetResourceVersion()); v > since {
			missed = append(missed, o)
		}
	}
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		delete(a.watchers, events)
		a.mu.Unlock()
	}()
	flush := w.(http.Flusher)
	for _, o := range missed {
		if to.Encode(event{"ADDED", o}) != nil {
			return
		}
	}
	flush.Flush()
	for {
		select {
		case e := <-events:
			if to.Encode(e) != nil {
				return
			}
			flush.Flush()
		case <-r.Context().Done():
			return
		}
	}
}
