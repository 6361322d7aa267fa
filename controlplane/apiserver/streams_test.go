package apiserver_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	criportforward "k8s.io/cri-streaming/pkg/streaming/portforward"
	criremote "k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	utilexec "k8s.io/utils/exec"
)

// kubelet answers as a node's kubelet would, and remembers what it was asked.
type kubelet struct {
	*httptest.Server
	mu    sync.Mutex
	asked []string
}

func (k *kubelet) note(r *http.Request) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked = append(k.asked, r.URL.RequestURI())
}

func (k *kubelet) requests() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.asked)
}

// ExecInContainer writes the command and its input to out, a word to err, and ends with 7 if the command is "fail".
func (k *kubelet) ExecInContainer(_ context.Context, pod, _, container string, cmd []string, in io.Reader, out, errOut io.WriteCloser, tty bool, _ <-chan criremote.TerminalSize, _ time.Duration) error {
	fmt.Fprintf(out, "%s/%s %q tty=%v\n", pod, container, cmd, tty)
	if in != nil {
		if _, err := io.Copy(out, in); err != nil {
			return err
		}
	}
	if errOut != nil {
		fmt.Fprint(errOut, "oops")
	}
	if slices.Contains(cmd, "fail") {
		return utilexec.CodeExitError{Err: fmt.Errorf("exit 7"), Code: 7}
	}
	return nil
}

// AttachContainer says to whom the client is attached, and repeats what it says.
func (k *kubelet) AttachContainer(_ context.Context, pod, _, container string, in io.Reader, out, _ io.WriteCloser, tty bool, _ <-chan criremote.TerminalSize) error {
	fmt.Fprintf(out, "attached to %s/%s tty=%v\n", pod, container, tty)
	_, err := io.Copy(out, in)
	return err
}

// PortForward answers with the port and what it read.
func (k *kubelet) PortForward(_ context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	line := make([]byte, 5)
	if _, err := io.ReadFull(stream, line); err != nil {
		return err
	}
	_, err := fmt.Fprintf(stream, "%d heard %s", port, line)
	return err
}

func (k *kubelet) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	k.note(r)
	if len(r.TLS.PeerCertificates) == 0 {
		http.Error(w, "who are you?", http.StatusUnauthorized)
		return
	}
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	const protocolTimeout = time.Minute
	switch {
	case parts[0] == "containerLogs" && parts[3] == "c":
		fmt.Fprint(w, "a line\n")
		if r.URL.Query().Get("follow") == "true" {
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}
	case parts[0] == "containerLogs":
		http.Error(w, "container not started", http.StatusBadRequest)
	case parts[0] == "exec" || parts[0] == "attach":
		options, err := criremote.NewOptions(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if parts[0] == "attach" {
			criremote.ServeAttach(w, r, k, parts[2], "", parts[3], options, protocolTimeout, protocolTimeout, criremote.SupportedStreamingProtocols)
			return
		}
		criremote.ServeExec(w, r, k, parts[2], "", parts[3], r.URL.Query()["command"], options, protocolTimeout, protocolTimeout, criremote.SupportedStreamingProtocols)
	case parts[0] == "portForward":
		options, err := criportforward.NewV4Options(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		criportforward.ServePortForward(w, r, k, parts[2], "", options, protocolTimeout, protocolTimeout, criportforward.SupportedProtocols)
	default:
		fmt.Fprintf(w, "%s %s", r.Method, r.URL.RequestURI())
	}
}

// node makes a Node whose kubelet is k, and a pod on it.
func (a *api) node() *kubelet {
	a.Helper()
	k := &kubelet{}
	k.Server = httptest.NewUnstartedServer(k)
	k.TLS = a.server.ServerTLS(a)
	k.TLS.ClientAuth = tls.RequestClientCert
	k.StartTLS()
	a.Cleanup(func() {
		k.CloseClientConnections()
		k.Close()
	})
	name := "n-" + a.ns
	made := must(a.client.CoreV1().Nodes().Create(a.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}))(a)
	made.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: "nowhere.invalid"}, {Type: corev1.NodeInternalIP, Address: "127.0.0.1"}}
	made.Status.DaemonEndpoints.KubeletEndpoint.Port = int32(k.Listener.Addr().(*net.TCPAddr).Port)
	must(a.client.CoreV1().Nodes().UpdateStatus(a.Context(), made, metav1.UpdateOptions{}))(a)
	a.makePod("p", func(p *corev1.Pod) {
		p.Spec.NodeName = name
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "d", Image: "i"})
	})
	return k
}

func testLogs(a *api) {
	k, api := a.node(), a.client.CoreV1().Pods(a.ns)
	lines, since := int64(3), metav1.Now()
	raw, err := api.GetLogs("p", &corev1.PodLogOptions{Container: "c", TailLines: &lines, Timestamps: true, Previous: true, SinceTime: &since}).DoRaw(a.Context())
	if err != nil || string(raw) != "a line\n" {
		a.Errorf("log %q, %v", raw, err)
	}
	asked := k.requests()[0]
	if !strings.HasPrefix(asked, "/containerLogs/"+a.ns+"/p/c?") || !strings.Contains(asked, "tailLines=3") || !strings.Contains(asked, "timestamps=true") ||
		!strings.Contains(asked, "previous=true") || !strings.Contains(asked, "sinceTime=") {
		a.Errorf("asked for %s", asked)
	}
	// A line comes when it is written, not when the log ends.
	ctx, cancel := context.WithCancel(a.Context())
	stream := must(api.GetLogs("p", &corev1.PodLogOptions{Container: "c", Follow: true}).Stream(ctx))(a)
	got := make([]byte, len("a line\n"))
	if _, err := io.ReadFull(stream, got); err != nil || string(got) != "a line\n" {
		a.Errorf("followed %q, %v", got, err)
	}
	cancel()
	stream.Close()
	if asked := k.requests(); !strings.HasSuffix(asked[len(asked)-1], "?follow=true") {
		a.Errorf("asked for %s", asked[len(asked)-1])
	}
	minus := int64(-1)
	for _, test := range []struct {
		name    string
		pod     string
		options corev1.PodLogOptions
		code    int32
		fields  []string
	}{
		{"no container named", "p", corev1.PodLogOptions{}, 400, nil},
		{"another container", "p", corev1.PodLogOptions{Container: "x"}, 400, nil},
		{"what the kubelet refuses", "p", corev1.PodLogOptions{Container: "d"}, 400, nil},
		{"no such pod", "x", corev1.PodLogOptions{}, 404, nil},
		{"minus one line", "p", corev1.PodLogOptions{Container: "c", TailLines: &minus}, 422, []string{"tailLines"}},
		{"too much at once", "p", corev1.PodLogOptions{Container: "c", LimitBytes: &minus, SinceSeconds: &minus, SinceTime: &since}, 422, []string{"limitBytes", "sinceSeconds", "sinceTime"}},
	} {
		a.Run(test.name, func(t *testing.T) {
			a.in(t).refused(api.GetLogs(test.pod, &test.options).Do(t.Context()).Error(), test.code, test.fields...)
		})
	}
	a.makePod("unbound")
	a.refused(api.GetLogs("unbound", &corev1.PodLogOptions{}).Do(a.Context()).Error(), 400)
}

// testStreams runs commands over both protocols that clients speak.
func testStreams(a *api) {
	k := a.node()
	url := func(command string, stdin, tty bool) *http.Request {
		r := a.client.CoreV1().RESTClient().Post().Namespace(a.ns).Resource("pods").Name("p").SubResource("exec").
			Param("container", "c").Param("stdout", "true").Param("stderr", fmt.Sprint(!tty)).Param("stdin", fmt.Sprint(stdin)).Param("tty", fmt.Sprint(tty)).
			Param("command", command).Param("command", "two words")
		return &http.Request{URL: r.URL()}
	}
	for _, protocol := range []string{"SPDY", "WebSocket"} {
		executor := func(r *http.Request) remotecommand.Executor {
			if protocol == "SPDY" {
				return must(remotecommand.NewSPDYExecutor(a.server.Admin, "POST", r.URL))(a)
			}
			return must(remotecommand.NewWebSocketExecutor(a.server.Admin, "GET", r.URL.String()))(a)
		}
		a.Run(protocol, func(t *testing.T) {
			var out, errOut bytes.Buffer
			err := executor(url("cat", true, false)).StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: strings.NewReader("input"), Stdout: &out, Stderr: &errOut})
			if want := "p/c [\"cat\" \"two words\"] tty=false\ninput"; err != nil || out.String() != want || errOut.String() != "oops" {
				t.Errorf("out %q, err %q, %v", out.String(), errOut.String(), err)
			}
			out.Reset()
			err = executor(url("top", true, true)).StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: strings.NewReader("q"), Stdout: &out, Tty: true})
			if want := "p/c [\"top\" \"two words\"] tty=true\nq"; err != nil || out.String() != want {
				t.Errorf("terminal %q, %v", out.String(), err)
			}
			out.Reset()
			attach := a.client.CoreV1().RESTClient().Post().Namespace(a.ns).Resource("pods").Name("p").SubResource("attach").
				Param("container", "d").Param("stdin", "true").Param("stdout", "true")
			err = executor(&http.Request{URL: attach.URL()}).StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: strings.NewReader("hello"), Stdout: &out})
			if want := "attached to p/d tty=false\nhello"; err != nil || out.String() != want {
				t.Errorf("attached %q, %v", out.String(), err)
			}
			err = executor(url("fail", false, false)).StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: io.Discard, Stderr: io.Discard})
			if exit, ok := err.(utilexec.ExitError); !ok || exit.ExitStatus() != 7 {
				t.Errorf("a command that fails: %v", err)
			}
		})
	}
	for _, asked := range k.requests() {
		if !strings.HasPrefix(asked, "/exec/"+a.ns+"/p/c?") && !strings.HasPrefix(asked, "/attach/"+a.ns+"/p/d?") {
			a.Errorf("asked for %s", asked)
		}
	}
}

func testPortForward(a *api) {
	a.node()
	url := a.client.CoreV1().RESTClient().Post().Namespace(a.ns).Resource("pods").Name("p").SubResource("portforward").URL()
	for _, protocol := range []string{"SPDY", "WebSocket"} {
		a.Run(protocol, func(t *testing.T) {
			stop, ready, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
			var dialer httpstream.Dialer
			if protocol == "SPDY" {
				transport, upgrader, err := spdy.RoundTripperFor(a.server.Admin)
				if err != nil {
					t.Fatal(err)
				}
				dialer = spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, "POST", url)
			} else {
				dialer = must(portforward.NewSPDYOverWebsocketDialerForStreaming(url, a.server.Admin))(t)
			}
			f := must(portforward.NewOnAddressesForStreaming(dialer, []string{"127.0.0.1"}, []string{"0:8080"}, stop, ready, io.Discard, io.Discard))(t)
			go func() { done <- f.ForwardPorts() }()
			select {
			case <-ready:
			case err := <-done:
				t.Fatal(err)
			}
			ports := must(f.GetPorts())(t)
			for range 2 { // connections share the upgraded one
				c := must(net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[0].Local)))(t)
				fmt.Fprint(c, "hello")
				answer := make([]byte, len("8080 heard hello"))
				if _, err := io.ReadFull(c, answer); err != nil || string(answer) != "8080 heard hello" {
					t.Errorf("answer %q, %v", answer, err)
				}
				c.Close()
			}
			close(stop)
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

func testNodeProxy(a *api) {
	a.node()
	rest, ctx := a.client.CoreV1().RESTClient(), a.Context()
	raw := must(rest.Get().Resource("nodes").Name("n-"+a.ns).SubResource("proxy").Suffix("stats/summary").Param("x", "y").DoRaw(ctx))(a)
	if string(raw) != "GET /stats/summary?x=y" {
		a.Errorf("node: %s", raw)
	}
	a.refused(rest.Get().Resource("nodes").Name("nosuch").SubResource("proxy").Do(ctx).Error(), 404)

	// Pods and Services are reached at their addresses, but never this host itself.
	ip := outsideAddress(a)
	backend := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %s", r.Method, r.URL.RequestURI(), r.Header.Get("Authorization"))
	}))
	backend.Listener.Close()
	backend.Listener = must(net.Listen("tcp", net.JoinHostPort(ip, "0")))(a)
	backend.Start()
	a.Cleanup(backend.Close)
	port := int32(backend.Listener.Addr().(*net.TCPAddr).Port)
	at := func(name, ip string) {
		p := a.makePod(name, func(p *corev1.Pod) { p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: port}} })
		p.Status.PodIP, p.Status.PodIPs = ip, []corev1.PodIP{{IP: ip}}
		must(a.client.CoreV1().Pods(a.ns).UpdateStatus(ctx, p, metav1.UpdateOptions{}))(a)
	}
	at("web", ip)
	at("sly", "127.0.0.1")
	must(a.client.CoreV1().Services(a.ns).Create(ctx, service("web", func(s *corev1.ServiceSpec) { s.Ports[0].Name = "http" }), metav1.CreateOptions{}))(a)
	name, yes := "http", true
	must(a.client.DiscoveryV1().EndpointSlices(a.ns).Create(ctx, &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}}, AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{ip}, Conditions: discoveryv1.EndpointConditions{Ready: &yes}}},
		Ports:     []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
	}, metav1.CreateOptions{}))(a)
	for resource, names := range map[string][]string{"pods": {"web", fmt.Sprintf("web:%d", port), fmt.Sprintf("http:web:%d", port)}, "services": {"web", "web:http", "web:80", "http:web:http"}} {
		for _, name := range names {
			raw, err := rest.Get().Namespace(a.ns).Resource(resource).Name(name).SubResource("proxy").Suffix("a/b").DoRaw(ctx)
			if err != nil || string(raw) != "GET /a/b " {
				a.Errorf("%s %s: %q, %v", resource, name, raw, err)
			}
		}
	}
	for what, code := range map[string]int32{"pods/sly": 400, "pods/nosuch": 404, "services/nosuch": 404, "services/web:smtp": 503} {
		resource, name, _ := strings.Cut(what, "/")
		a.refused(rest.Get().Namespace(a.ns).Resource(resource).Name(name).SubResource("proxy").Do(ctx).Error(), code)
	}
}

// outsideAddress is one of this machine's that is not loopback, as TestMain sees to.
func outsideAddress(t testing.TB) string {
	t.Helper()
	ip := firstAddress(t)
	if ip == "" {
		t.Fatal("no address but loopback")
	}
	return ip
}
