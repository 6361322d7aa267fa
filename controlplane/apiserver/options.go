package apiserver

import (
	"net/url"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/conversion"
	"k8s.io/apimachinery/pkg/runtime"
)

// addOptionConversions teaches the scheme to read the options of the streaming subresources from a
// request's query; the names are the JSON names of the types' fields.
func addOptionConversions(s *runtime.Scheme) error {
	for _, add := range []func() error{
		queryOptions(s, func(q query, o *corev1.PodLogOptions) {
			o.Container, o.Follow, o.Previous, o.Timestamps = q.str("container"), q.yes("follow"), q.yes("previous"), q.yes("timestamps")
			o.SinceSeconds, o.TailLines, o.LimitBytes = q.number("sinceSeconds"), q.number("tailLines"), q.number("limitBytes")
			o.InsecureSkipTLSVerifyBackend = q.yes("insecureSkipTLSVerifyBackend")
			if t, err := time.Parse(time.RFC3339Nano, q.str("sinceTime")); err == nil {
				mt := metav1.NewTime(t)
				o.SinceTime = &mt
			}
		}),
		queryOptions(s, func(q query, o *corev1.PodExecOptions) {
			o.Container, o.Command = q.str("container"), url.Values(q)["command"]
			o.Stdin, o.Stdout, o.Stderr, o.TTY = q.yes("stdin"), q.yes("stdout"), q.yes("stderr"), q.yes("tty")
		}),
		queryOptions(s, func(q query, o *corev1.PodAttachOptions) {
			o.Container = q.str("container")
			o.Stdin, o.Stdout, o.Stderr, o.TTY = q.yes("stdin"), q.yes("stdout"), q.yes("stderr"), q.yes("tty")
		}),
		queryOptions(s, func(q query, o *corev1.PodPortForwardOptions) {
			for _, p := range url.Values(q)["ports"] {
				if n, err := strconv.ParseInt(p, 10, 32); err == nil {
					o.Ports = append(o.Ports, int32(n))
				}
			}
		}),
		queryOptions(s, func(q query, o *corev1.PodProxyOptions) { o.Path = q.str("path") }),
		queryOptions(s, func(q query, o *corev1.NodeProxyOptions) { o.Path = q.str("path") }),
		queryOptions(s, func(q query, o *corev1.ServiceProxyOptions) { o.Path = q.str("path") }),
	} {
		if err := add(); err != nil {
			return err
		}
	}
	return nil
}

func queryOptions[T any](s *runtime.Scheme, read func(query, *T)) func() error {
	return func() error {
		return s.AddConversionFunc((*url.Values)(nil), (*T)(nil), func(in, out any, _ conversion.Scope) error {
			read(query(*in.(*url.Values)), out.(*T))
			return nil
		})
	}
}

// query reads single values of a request's query.
type query url.Values

func (q query) str(name string) string { return url.Values(q).Get(name) }

// yes follows the API machinery: present and empty means true, "0" and "false" mean false.
func (q query) yes(name string) bool {
	v, ok := q[name]
	return ok && len(v) > 0 && v[0] != "0" && v[0] != "false"
}

func (q query) number(name string) *int64 {
	n, err := strconv.ParseInt(q.str(name), 10, 64)
	if err != nil {
		return nil
	}
	return &n
}
