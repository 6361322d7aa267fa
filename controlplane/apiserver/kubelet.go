package apiserver

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilproxy "k8s.io/apimachinery/pkg/util/proxy"
	"k8s.io/apimachinery/pkg/util/validation/field"
	genericrest "k8s.io/apiserver/pkg/registry/generic/rest"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/util/proxy"
	"k8s.io/client-go/transport"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
)

// kubeletPort is used for a node that has not told its own (status.daemonEndpoints).
const kubeletPort = 10250

// kubelets reaches the kubelets' HTTPS APIs on behalf of clients.
type kubelets struct {
	pods, nodes *descriptor.Store
	transport   http.RoundTripper
}

func newKubelets(cfg Config) (*kubelets, error) {
	rt, err := transport.New(&transport.Config{TLS: transport.TLSConfig{
		CAFile: cfg.KubeletCAFile, CertFile: cfg.KubeletClientCertFile, KeyFile: cfg.KubeletClientKeyFile,
		// Streams are upgraded connections, which HTTP/2 does not have.
		NextProtos: []string{"http/1.1"},
	}})
	if err != nil {
		return nil, fmt.Errorf("client of the kubelets: %w", err)
	}
	return &kubelets{transport: rt}, nil
}

// address is where a node's kubelet serves.
func (k *kubelets) address(ctx context.Context, node string) (string, error) {
	obj, err := k.nodes.Get(ctx, node, &metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	n := obj.(*corev1.Node)
	port := n.Status.DaemonEndpoints.KubeletEndpoint.Port
	if port == 0 {
		port = kubeletPort
	}
	for _, t := range []corev1.NodeAddressType{corev1.NodeInternalIP, corev1.NodeHostName} {
		for _, a := range n.Status.Addresses {
			if a.Type == t {
				return net.JoinHostPort(a.Address, strconv.Itoa(int(port))), nil
			}
		}
	}
	return "", apierrors.NewServiceUnavailable(fmt.Sprintf("node %s has not told its address yet", node))
}

// podURL names a path of the kubelet that runs the pod, and the container: the one asked for, or the pod's only one,
// or the one that an annotation makes the default.
func (k *kubelets) podURL(ctx context.Context, name, path, container string, perContainer bool) (*url.URL, error) {
	obj, err := k.pods.Get(ctx, name, &metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	pod := obj.(*corev1.Pod)
	if pod.Spec.NodeName == "" {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("pod %s does not have a host assigned", name))
	}
	host, err := k.address(ctx, pod.Spec.NodeName)
	if err != nil {
		return nil, err
	}
	parts := []string{path, pod.Namespace, pod.Name}
	if perContainer {
		c, err := chooseContainer(pod, container)
		if err != nil {
			return nil, err
		}
		parts = append(parts, c)
	}
	return &url.URL{Scheme: "https", Host: host, Path: "/" + strings.Join(parts, "/")}, nil
}

func chooseContainer(pod *corev1.Pod, asked string) (string, error) {
	var names []string
	for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for _, c := range list {
			if c.Name == asked {
				return asked, nil
			}
			names = append(names, c.Name)
		}
	}
	for _, c := range pod.Spec.EphemeralContainers {
		if c.Name == asked {
			return asked, nil
		}
	}
	switch {
	case asked != "":
		return "", apierrors.NewBadRequest(fmt.Sprintf("container %s is not valid for pod %s", asked, pod.Name))
	case len(pod.Spec.Containers) == 1:
		return pod.Spec.Containers[0].Name, nil
	}
	return "", apierrors.NewBadRequest(fmt.Sprintf("a container name must be specified for pod %s, choose one of: %v", pod.Name, names))
}

// logREST streams a container's log.
type logREST struct{ k *kubelets }

var _ rest.GetterWithOptions = (*logREST)(nil)

func (r *logREST) New() runtime.Object { return &corev1.Pod{} }
func (r *logREST) Destroy()            {}

// ProducesMIMETypes implements rest.StorageMetadata.
func (r *logREST) ProducesMIMETypes(string) []string { return []string{"text/plain"} }

// ProducesObject implements rest.StorageMetadata.
func (r *logREST) ProducesObject(string) any { return "" }

func (r *logREST) NewGetOptions() (runtime.Object, bool, string) {
	return &corev1.PodLogOptions{}, false, ""
}

func (r *logREST) Get(ctx context.Context, name string, obj runtime.Object) (runtime.Object, error) {
	o, ok := obj.(*corev1.PodLogOptions)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("expected PodLogOptions, got %T", obj))
	}
	if errs := validateLogOptions(o); len(errs) > 0 {
		return nil, apierrors.NewInvalid(corev1.SchemeGroupVersion.WithKind("PodLogOptions").GroupKind(), name, errs)
	}
	loc, err := r.k.podURL(ctx, name, "containerLogs", o.Container, true)
	if err != nil {
		return nil, err
	}
	q := url.Values{}
	flag := func(key string, v bool) {
		if v {
			q.Set(key, "true")
		}
	}
	num := func(key string, v *int64) {
		if v != nil {
			q.Set(key, strconv.FormatInt(*v, 10))
		}
	}
	flag("follow", o.Follow)
	flag("previous", o.Previous)
	flag("timestamps", o.Timestamps)
	num("sinceSeconds", o.SinceSeconds)
	num("tailLines", o.TailLines)
	num("limitBytes", o.LimitBytes)
	if o.SinceTime != nil {
		q.Set("sinceTime", o.SinceTime.Format(metaTimeFormat))
	}
	loc.RawQuery = q.Encode()
	return &genericrest.LocationStreamer{
		Location: loc, Transport: r.k.transport, ContentType: "text/plain", Flush: o.Follow,
		ResponseChecker: genericrest.NewGenericHttpResponseChecker(corev1.Resource("pods/log"), name),
	}, nil
}

func validateLogOptions(o *corev1.PodLogOptions) field.ErrorList {
	var errs field.ErrorList
	if o.TailLines != nil {
		errs = apivalidation.ValidateNonnegativeField(*o.TailLines, field.NewPath("tailLines"))
	}
	for name, v := range map[string]*int64{"limitBytes": o.LimitBytes, "sinceSeconds": o.SinceSeconds} {
		if v != nil && *v < 1 {
			errs = append(errs, field.Invalid(field.NewPath(name), *v, "must be greater than 0"))
		}
	}
	if o.SinceSeconds != nil && o.SinceTime != nil {
		errs = append(errs, field.Forbidden(field.NewPath("sinceTime"), "at most one of `sinceTime` or `sinceSeconds` may be specified"))
	}
	return errs
}

const metaTimeFormat = "2006-01-02T15:04:05.999999999Z07:00"

// streamREST is exec, attach and portforward: an upgraded connection through to the kubelet. Clients that
// speak WebSocket are translated to SPDY, which every container runtime's streaming server speaks.
type streamREST struct {
	k          *kubelets
	path       string
	newOptions func() runtime.Object
	// params turns the options into the kubelet's query, and names the container asked for.
	params       func(runtime.Object) (q url.Values, container string)
	perContainer bool
	tunnel       bool
}

var _ rest.Connecter = (*streamREST)(nil)

func (r *streamREST) New() runtime.Object { return r.newOptions() }
func (r *streamREST) Destroy()            {}
func (r *streamREST) ConnectMethods() []string {
	return []string{http.MethodGet, http.MethodPost}
}
func (r *streamREST) NewConnectOptions() (runtime.Object, bool, string) {
	return r.newOptions(), false, ""
}

func (r *streamREST) Connect(ctx context.Context, name string, obj runtime.Object, responder rest.Responder) (http.Handler, error) {
	q, container := r.params(obj)
	loc, err := r.k.podURL(ctx, name, r.path, container, r.perContainer)
	if err != nil {
		return nil, err
	}
	loc.RawQuery = q.Encode()
	upgrade := utilproxy.NewUpgradeAwareHandler(loc, r.k.transport, false, true, utilproxy.NewErrorResponder(responder))
	upgrade.UseLocationHost = true
	if r.tunnel {
		return proxy.NewTranslatingHandler(upgrade, proxy.NewTunnelingHandler(upgrade), wsstream.IsWebSocketRequestWithTunnelingProtocol), nil
	}
	translate := proxy.NewStreamTranslatorHandler(loc, r.k.transport, 0, proxy.Options{
		Stdin: q.Get("input") != "", Stdout: q.Get("output") != "", Stderr: q.Get("error") != "", Tty: q.Get("tty") != "",
	})
	return proxy.NewTranslatingHandler(upgrade, translate, wsstream.IsWebSocketRequestWithStreamCloseProtocol), nil
}

// streamParams are the kubelet's names of the streams.
func streamParams(stdin, stdout, stderr, tty bool, command []string) url.Values {
	q := url.Values{}
	for name, on := range map[string]bool{"input": stdin, "output": stdout, "error": stderr && !tty, "tty": tty} {
		if on {
			q.Set(name, "1")
		}
	}
	for _, c := range command {
		q.Add("command", c)
	}
	return q
}

func (k *kubelets) podStorages() map[string]rest.Storage {
	return map[string]rest.Storage{
		"pods/log": &logREST{k},
		"pods/exec": &streamREST{k: k, path: "exec", perContainer: true, newOptions: func() runtime.Object { return &corev1.PodExecOptions{} }, params: func(obj runtime.Object) (url.Values, string) {
			o := obj.(*corev1.PodExecOptions)
			return streamParams(o.Stdin, o.Stdout, o.Stderr, o.TTY, o.Command), o.Container
		}},
		"pods/attach": &streamREST{k: k, path: "attach", perContainer: true, newOptions: func() runtime.Object { return &corev1.PodAttachOptions{} }, params: func(obj runtime.Object) (url.Values, string) {
			o := obj.(*corev1.PodAttachOptions)
			return streamParams(o.Stdin, o.Stdout, o.Stderr, o.TTY, nil), o.Container
		}},
		"pods/portforward": &streamREST{k: k, path: "portForward", tunnel: true, newOptions: func() runtime.Object { return &corev1.PodPortForwardOptions{} }, params: func(obj runtime.Object) (url.Values, string) {
			q := url.Values{}
			for _, p := range obj.(*corev1.PodPortForwardOptions).Ports {
				q.Add("port", strconv.Itoa(int(p)))
			}
			return q, ""
		}},
		"nodes/proxy": &nodeProxyREST{k},
	}
}

// nodeProxyREST passes any request on to a node's kubelet.
type nodeProxyREST struct{ k *kubelets }

var _ rest.Connecter = (*nodeProxyREST)(nil)

func (r *nodeProxyREST) New() runtime.Object { return &corev1.NodeProxyOptions{} }
func (r *nodeProxyREST) Destroy()            {}
func (r *nodeProxyREST) ConnectMethods() []string {
	return []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodHead, http.MethodOptions}
}
func (r *nodeProxyREST) NewConnectOptions() (runtime.Object, bool, string) {
	return &corev1.NodeProxyOptions{}, true, "path"
}

func (r *nodeProxyREST) Connect(ctx context.Context, name string, obj runtime.Object, responder rest.Responder) (http.Handler, error) {
	host, err := r.k.address(ctx, name)
	if err != nil {
		return nil, err
	}
	path := obj.(*corev1.NodeProxyOptions).Path
	if !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	loc := &url.URL{Scheme: "https", Host: host, Path: path}
	h := utilproxy.NewUpgradeAwareHandler(loc, r.k.transport, false, false, utilproxy.NewErrorResponder(responder))
	h.UseLocationHost = true
	return h, nil
}
