package apiserver

import (
	"context"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	utilproxy "k8s.io/apimachinery/pkg/util/proxy"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
)

// proxyREST passes requests on to a pod or to a backend of a Service. The name in the URL is [scheme:]name[:port].
type proxyREST struct {
	newOptions func() runtime.Object
	path       func(options runtime.Object) string
	// backend finds the host and port that a name and a port's name or number lead to.
	backend   func(ctx context.Context, name, port string) (string, error)
	transport http.RoundTripper
}

var _ rest.Connecter = (*proxyREST)(nil)

// New is the kind that OpenAPI tells of the operations. It is not the pod's or the Service's: clients take what they read of a
// kind's PATCH for the resource's own.
func (r *proxyREST) New() runtime.Object { return r.newOptions() }
func (r *proxyREST) Destroy()            {}
func (r *proxyREST) ConnectMethods() []string {
	return []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodHead, http.MethodOptions}
}
func (r *proxyREST) NewConnectOptions() (runtime.Object, bool, string) {
	return r.newOptions(), true, "path"
}

func (r *proxyREST) Connect(ctx context.Context, id string, options runtime.Object, responder rest.Responder) (http.Handler, error) {
	scheme, name, port, ok := utilnet.SplitSchemeNamePort(id)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("invalid request %q: want name, name:port or scheme:name:port", id))
	}
	if scheme == "" {
		scheme = "http"
	}
	host, err := r.backend(ctx, name, port)
	if err != nil {
		return nil, err
	}
	loc := &url.URL{Scheme: scheme, Host: host, Path: "/" + strings.TrimPrefix(r.path(options), "/")}
	return utilproxy.NewUpgradeAwareHandler(loc, r.transport, true, false, utilproxy.NewErrorResponder(responder)), nil
}

// newProxyTransport reaches pods. Their certificates are nobody's that the server knows.
func newProxyTransport() http.RoundTripper {
	dialer := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}
	return utilnet.SetTransportDefaults(&http.Transport{
		DialContext: dialer.DialContext, Proxy: func(*http.Request) (*url.URL, error) { return nil, nil },
		TLSClientConfig:     &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // as the reference: the user's own traffic, to an address of the cluster's
		MaxIdleConnsPerHost: 4, IdleConnTimeout: time.Minute, TLSHandshakeTimeout: 10 * time.Second,
	})
}

// proxyable refuses addresses by which a user would reach this host's own services through a pod of his making.
func proxyable(ip string) error {
	a, err := netip.ParseAddr(ip)
	if err != nil || a.IsUnspecified() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() {
		return apierrors.NewBadRequest(fmt.Sprintf("address not allowed: %q", ip))
	}
	return nil
}

func newPodProxyREST(pods *descriptor.Store, transport http.RoundTripper) *proxyREST {
	return &proxyREST{
		newOptions: func() runtime.Object { return &corev1.PodProxyOptions{} },
		path:       func(o runtime.Object) string { return o.(*corev1.PodProxyOptions).Path },
		transport:  transport,
		backend: func(ctx context.Context, name, port string) (string, error) {
			obj, err := pods.Get(ctx, name, &metav1.GetOptions{})
			if err != nil {
				return "", err
			}
			pod := obj.(*corev1.Pod)
			if port == "" {
				port = firstPort(pod)
			}
			if err := proxyable(pod.Status.PodIP); err != nil {
				return "", err
			}
			if port == "" {
				return bracketed(pod.Status.PodIP), nil
			}
			return net.JoinHostPort(pod.Status.PodIP, port), nil
		},
	}
}

// bracketed is an address as a URL's host without a port has it (RFC 3986 3.2.2).
func bracketed(ip string) string {
	if strings.Contains(ip, ":") {
		return "[" + ip + "]"
	}
	return ip
}

// firstPort is where a pod is taken to serve if nobody says.
func firstPort(pod *corev1.Pod) string {
	for _, c := range pod.Spec.Containers {
		for _, p := range c.Ports {
			if p.Protocol == corev1.ProtocolTCP {
				return strconv.Itoa(int(p.ContainerPort))
			}
		}
	}
	return ""
}

func newServiceProxyREST(services, slices *descriptor.Store, transport http.RoundTripper) *proxyREST {
	return &proxyREST{
		newOptions: func() runtime.Object { return &corev1.ServiceProxyOptions{} },
		path:       func(o runtime.Object) string { return o.(*corev1.ServiceProxyOptions).Path },
		transport:  transport,
		backend: func(ctx context.Context, name, port string) (string, error) {
			obj, err := services.Get(ctx, name, &metav1.GetOptions{})
			if err != nil {
				return "", err
			}
			p := servicePort(obj.(*corev1.Service), port)
			if p == nil {
				return "", apierrors.NewServiceUnavailable(fmt.Sprintf("no service port %q found for service %q", port, name))
			}
			list, err := slices.List(ctx, &metainternalversion.ListOptions{LabelSelector: labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: name})})
			if err != nil {
				return "", err
			}
			backends := readyBackends(list.(*discoveryv1.EndpointSliceList).Items, p.Name)
			if len(backends) == 0 {
				return "", apierrors.NewServiceUnavailable(fmt.Sprintf("no endpoints available for service %q", name))
			}
			b := backends[rand.IntN(len(backends))]
			return b.String(), proxyable(b.Addr().String())
		},
	}
}

// servicePort finds a Service's port by its name or number; the empty string finds the only, or the nameless, one.
func servicePort(s *corev1.Service, id string) *corev1.ServicePort {
	for i := range s.Spec.Ports {
		p := &s.Spec.Ports[i]
		if p.Name == id || strconv.Itoa(int(p.Port)) == id || id == "" && len(s.Spec.Ports) == 1 {
			return p
		}
	}
	return nil
}

func readyBackends(slices []discoveryv1.EndpointSlice, port string) []netip.AddrPort {
	var all []netip.AddrPort
	for _, s := range slices {
		for _, p := range s.Ports {
			if p.Port == nil || p.Name == nil || *p.Name != port {
				continue
			}
			for _, e := range s.Endpoints {
				if e.Conditions.Ready != nil && !*e.Conditions.Ready || len(e.Addresses) == 0 {
					continue
				}
				if a, err := netip.ParseAddr(e.Addresses[0]); err == nil {
					all = append(all, netip.AddrPortFrom(a, uint16(*p.Port)))
				}
			}
		}
	}
	return all
}
