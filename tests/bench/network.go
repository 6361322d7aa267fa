package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/strake-io/strake/cmd/strake/ociimage"
	"github.com/strake-io/strake/tests/bench/turns"
)

const (
	loadImage = "strake.io/bench-load:1"
	loadPort  = 8080
	clientPod = "bench-client"
	serverPod = "bench-server"
	service   = "bench"
)

// importLoad makes an image of the load program and loads it into the node.
func (b *bench) importLoad(ctx context.Context) error {
	file := filepath.Join(filepath.Dir(b.cluster.Data), "load.tar")
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := ociimage.Write(f, ociimage.Image{Name: loadImage, Files: map[string]string{"/load": b.load}, Entrypoint: []string{"/load"}}); err != nil {
		return fmt.Errorf("%w (run `make bench`)", err)
	}
	if out, err := b.cluster.StrakeCommand(ctx, "image", "import", file).CombinedOutput(); err != nil {
		return fmt.Errorf("image import: %w\n%s", err, out)
	}
	return nil
}

// deployLoad starts a server, a Service before it, and a client. Repeating it is fine.
func (b *bench) deployLoad(ctx context.Context) (pod, clusterIP string, err error) {
	if err := b.importLoad(ctx); err != nil {
		return "", "", err
	}
	pods := b.client.CoreV1().Pods(namespace)
	w, err := pods.Watch(ctx, metav1.ListOptions{LabelSelector: "bench in (client,server)"})
	if err != nil {
		return "", "", err
	}
	defer w.Stop()
	for _, p := range []*corev1.Pod{loadPod(serverPod, "server", "serve"), loadPod(clientPod, "client", "serve")} {
		if _, err := pods.Create(ctx, p, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
			return "", "", err
		}
	}
	svc, err := b.client.CoreV1().Services(namespace).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: service},
		Spec: corev1.ServiceSpec{Selector: map[string]string{"bench": "server"}, Ports: []corev1.ServicePort{
			{Name: "tcp", Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(loadPort)},
			{Name: "udp", Port: 80, Protocol: corev1.ProtocolUDP, TargetPort: intstr.FromInt32(loadPort)},
		}},
	}, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		svc, err = b.client.CoreV1().Services(namespace).Get(ctx, service, metav1.GetOptions{})
	}
	if err != nil {
		return "", "", err
	}
	isReady := map[string]bool{}
	err = await(ctx, w, func(_ watch.Event, p *corev1.Pod) (bool, error) {
		var err error
		isReady[p.Name], err = ready(p)
		if p.Name == serverPod {
			pod = p.Status.PodIP
		}
		return isReady[serverPod] && isReady[clientPod], err
	})
	if err != nil {
		return "", "", fmt.Errorf("pods of the load: %w", err)
	}
	return pod, svc.Spec.ClusterIP, nil
}

// compare runs the load program in the client's pod.
func (b *bench) compare(ctx context.Context, mode, a, rival string, workers, rounds int, more ...string) (c turns.Result, err error) {
	args := append([]string{"kubectl", "exec", "-n", namespace, clientPod, "--", "/load", "client", "-mode", mode, "-a", a, "-b", rival,
		"-workers", strconv.Itoa(workers), "-turn", "10ms", "-turns", strconv.Itoa(b.times(rounds))}, more...)
	out, err := b.cluster.StrakeCommand(ctx, args...).Output()
	if err != nil {
		return c, fmt.Errorf("load %s of %s against %s: %w%s", mode, a, rival, err, stderrOf(err))
	}
	if err := json.Unmarshal(out, &c); err != nil {
		return c, fmt.Errorf("load %s: %w: %s", mode, err, out)
	}
	return c, nil
}

// services compares pod → ClusterIP with pod → pod.
func (b *bench) services(ctx context.Context) error {
	pod, clusterIP, err := b.deployLoad(ctx)
	if err != nil {
		return err
	}
	direct, via := fmt.Sprintf("%s:%d", pod, loadPort), clusterIP+":80"
	// The load balancer follows the Service: wait until it answers.
	for late := time.Now().Add(30 * time.Second); ; {
		if _, err = b.compare(ctx, "keepalive", via, via, 1, 1); err == nil {
			break
		}
		if time.Now().After(late) || ctx.Err() != nil {
			return err
		}
	}
	const turns = 600
	for _, m := range []struct {
		what, mode string
		workers    int
		target     float64
	}{
		{"TCP connect+request", "connect", 1, 0.97},
		{"TCP connect+request, 8 at a time", "connect", 8, 0.97},
		{"TCP request, kept alive", "keepalive", 1, 0.97},
		{"TCP request, kept alive, 8 at a time", "keepalive", 8, 0.97},
		{"UDP request, a connected socket", "udp-connected", 1, 0.97},
		{"UDP request, sendto and recvfrom", "udp", 1, 0},
	} {
		c, err := b.compare(ctx, m.mode, via, direct, m.workers, turns)
		if err != nil {
			return err
		}
		b.report.rates(m.what+", rate", c, "1/s", 1, m.target)
		if m.workers == 1 {
			b.report.latencies(m.what, c)
		}
	}
	c, err := b.compare(ctx, "stream", via, direct, 1, turns)
	if err != nil {
		return err
	}
	const gbit = 8 * (1 << 20) / 1e9 // of a block, load's unit
	b.report.rates("TCP stream", c, "Gbit/s", gbit, 0.97)
	return nil
}

// dns compares the kernel's answers with those of the user-space server, to the same question at the same address: a
// header bit that servers ignore makes the kernel pass the question on. The kernel's counter tells who answered.
func (b *bench) dns(ctx context.Context) error {
	if _, _, err := b.deployLoad(ctx); err != nil {
		return err
	}
	var s struct {
		Datapath struct {
			Counters map[string]int `json:"counters"`
		} `json:"datapath"`
	}
	const server = "10.96.0.10:53"
	name := service + "." + namespace + ".svc.cluster.local"
	for _, workers := range []int{1, 8} {
		if err := b.status(ctx, &s); err != nil {
			return err
		}
		before := s.Datapath.Counters["dns_answered"]
		c, err := b.compare(ctx, "dns", server, server, workers, 600, "-name", name)
		if err != nil {
			return err
		}
		if err := b.status(ctx, &s); err != nil {
			return err
		}
		// The demo's client asks as well, now and then.
		if n := s.Datapath.Counters["dns_answered"] - before; n < c.A.Asked || n > c.A.Asked+100 {
			return fmt.Errorf("the kernel answered %d queries, but %d were for it and %d for the user-space server", n, c.A.Asked, c.B.Asked)
		}
		what := "DNS in the kernel"
		if workers > 1 {
			what += fmt.Sprintf(", %d at a time", workers)
		}
		b.report.rates(what+", answers", c, "1/s", 1, 3)
		b.report.latencies(what, c)
	}
	return nil
}
