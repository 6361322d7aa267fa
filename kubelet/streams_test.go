package kubelet_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
)

func (m *machine) restConfig() *rest.Config {
	return &rest.Config{Host: m.srv.URL, BearerToken: "token", TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
}

func (m *machine) stream(ctx context.Context, path string, q url.Values, o remotecommand.StreamOptions) error {
	ex, err := remotecommand.NewSPDYExecutor(m.restConfig(), "POST", m.url(path, q))
	if err != nil {
		m.t.Fatal(err)
	}
	return ex.StreamWithContext(ctx, o)
}

func execScenario(m *machine) {
	m.create("exec", "sleep 1000", nil, ready)
	defer m.remove("exec", 0)
	var out, errOut bytes.Buffer
	q := url.Values{"command": {"sh", "-c", "cat; echo bad >&2; exit 3"}, "input": {"1"}, "output": {"1"}, "error": {"1"}}
	err := m.stream(m.t.Context(), "/exec/default/exec/c", q, remotecommand.StreamOptions{Stdin: strings.NewReader("hello"), Stdout: &out, Stderr: &errOut})
	if err == nil || !strings.Contains(err.Error(), "exit code 3") || out.String() != "hello" || errOut.String() != "bad\n" {
		m.t.Errorf("%q, %q, %v", out.String(), errOut.String(), err)
	}
}

type sizes struct {
	ch chan remotecommand.TerminalSize
}

func (s sizes) Next() *remotecommand.TerminalSize {
	if x, ok := <-s.ch; ok {
		return &x
	}
	return nil
}

func terminalScenario(m *machine) {
	m.create("tty", "sleep 1000", nil, ready)
	defer m.remove("tty", 0)
	size := sizes{make(chan remotecommand.TerminalSize, 2)}
	size.ch <- remotecommand.TerminalSize{Width: 99, Height: 33}
	var out bytes.Buffer
	script := `until stty size | grep -q '^33 99'; do sleep 0.02; done; echo first; until stty size | grep -q '^44 111'; do sleep 0.02; done; echo second`
	pr, pw := io.Pipe()
	go func() {
		r := bufio.NewScanner(pr)
		for r.Scan() {
			if strings.HasPrefix(r.Text(), "first") {
				size.ch <- remotecommand.TerminalSize{Width: 111, Height: 44}
			}
		}
	}()
	q := url.Values{"command": {"sh", "-c", script}, "input": {"1"}, "output": {"1"}, "tty": {"1"}}
	in, inEnd := io.Pipe()
	defer inEnd.Close()
	err := m.stream(m.t.Context(), "/exec/default/tty/c", q, remotecommand.StreamOptions{Stdin: in, Stdout: io.MultiWriter(&out, pw), Tty: true, TerminalSizeQueue: size})
	pw.Close()
	if err != nil || !strings.Contains(out.String(), "second") {
		m.t.Errorf("%q, %v", out.String(), err)
	}
}

func attachScenario(m *machine) {
	m.create("attach", "while read x; do echo got $x; done; sleep 1000", func(p *corev1.Pod) { p.Spec.Containers[0].Stdin, p.Spec.Containers[0].StdinOnce = true, true }, ready)
	defer m.remove("attach", 0)
	in, inEnd := io.Pipe()
	pr, pw := io.Pipe()
	ctx, cancel := context.WithCancel(m.t.Context())
	done := make(chan error, 1)
	go func() {
		done <- m.stream(ctx, "/attach/default/attach/c", url.Values{"input": {"1"}, "output": {"1"}}, remotecommand.StreamOptions{Stdin: in, Stdout: pw})
		pw.Close()
	}()
	fmt.Fprintln(inEnd, "one")
	r := bufio.NewReader(pr)
	if line, err := r.ReadString('\n'); err != nil || line != "got one\n" {
		m.t.Errorf("%q, %v", line, err)
	}
	cancel()
	inEnd.Close()
	go io.Copy(io.Discard, r)
	<-done
}

func portForwardScenario(m *machine) {
	m.create("forward", "echo ping > /tmp/index.html; exec busybox httpd -f -p 7000 -h /tmp", func(p *corev1.Pod) {
		// A connection that is refused ends the whole forwarding.
		p.Spec.Containers[0].ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:7000/"}}}, PeriodSeconds: 1, TimeoutSeconds: 5, SuccessThreshold: 1, FailureThreshold: 3}
	}, ready)
	defer m.remove("forward", 0)
	transport, upgrader, err := spdy.RoundTripperFor(m.restConfig())
	if err != nil {
		m.t.Fatal(err)
	}
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, "POST", m.url("/portForward/default/forward", nil))
	stop, up := make(chan struct{}), make(chan struct{})
	f, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{"0:7000"}, stop, up, io.Discard, io.Discard)
	if err != nil {
		m.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- f.ForwardPorts() }()
	defer func() { close(stop); <-done }()
	select {
	case <-up:
	case err := <-done:
		done <- err
		m.t.Fatal(err)
	}
	ports, err := f.GetPorts()
	if err != nil {
		m.t.Fatal(err)
	}
	m.eventually("the pod's server answers", func() bool {
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", ports[0].Local))
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return err == nil && string(body) == "ping\n"
	})
}
