package connectivity

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/apimachinery/pkg/util/intstr"
	utilrand "k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
)

// label is on all that the test makes.
const label = "strake.io/connectivity-test"

// deployment is what a test has in the cluster.
type deployment struct {
	client    kubernetes.Interface
	image     string
	namespace string
	notReady  []string
	say       func(format string, args ...any)
}

// ports is where the pods of the nodes' own networks look for two free ports: below what kernels choose for clients, and below NodePorts.
const (
	firstPort = 20000
	lastPort  = 29000
)

// deploy makes the namespace, pods and Services, and waits until the pods are ready.
func (d *deployment) deploy(ctx context.Context, families []string) (Scene, error) {
	s := Scene{Port: firstPort + 2*rand.IntN((lastPort-firstPort)/2)}
	nodes, err := d.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return s, fmt.Errorf("nodes: %w", err)
	}
	for _, n := range nodes.Items {
		if slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
		}) {
			s.Nodes = append(s.Nodes, n.Name)
		} else {
			d.notReady = append(d.notReady, n.Name)
		}
	}
	slices.Sort(s.Nodes)
	if len(s.Nodes) == 0 {
		return s, errors.New("no node is Ready: `strake status` tells why")
	}
	if old, err := d.client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{LabelSelector: label}); err == nil && len(old.Items) > 0 {
		d.say("a former test left %d namespaces; remove them with `strake kubectl delete namespace -l %s`", len(old.Items), label)
	}
	ns, err := d.client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "strake-connectivity-" + utilrand.String(5), Labels: map[string]string{label: ""}}}, metav1.CreateOptions{})
	if err != nil {
		return s, fmt.Errorf("namespace: %w", err)
	}
	d.namespace, s.Namespace = ns.Name, ns.Name
	d.say("namespace %s", ns.Name)
	var pods []*corev1.Pod
	for _, node := range s.Nodes {
		for i := range podsPerNode {
			pods = append(pods, d.pod(podName(node, i), node, false, s.Port))
		}
		pods = append(pods, d.pod(hostPodName(node), node, true, s.Port))
	}
	for _, p := range pods {
		if err := d.create(ctx, p); err != nil {
			return s, err
		}
	}
	for _, p := range pods {
		ready, err := d.await(ctx, p.Name)
		if err != nil {
			return s, err
		}
		found := Pod{Name: p.Name, Node: p.Spec.NodeName, Host: p.Spec.HostNetwork}
		for _, ip := range ready.Status.PodIPs {
			if a, err := netip.ParseAddr(ip.IP); err == nil {
				found.Addrs = append(found.Addrs, a.Unmap())
			}
		}
		s.Pods = append(s.Pods, found)
	}
	if s.Families, err = familiesOf(s.Pods, families); err != nil {
		return s, err
	}
	return s, d.services(ctx, &s)
}

// familiesOf are those that every pod has, in the order of the first one's addresses; of them those that are wanted.
func familiesOf(pods []Pod, wanted []string) ([]string, error) {
	var out []string
	for _, a := range pods[0].Addrs {
		f := familyOf(a)
		if !slices.ContainsFunc(pods, func(p Pod) bool { _, ok := p.addr(f); return !ok }) {
			out = append(out, f)
		}
	}
	for _, w := range wanted {
		if !slices.Contains(out, w) {
			return nil, fmt.Errorf("not every pod has an address of %s: they all have %v", w, out)
		}
	}
	if len(wanted) > 0 {
		out = slices.DeleteFunc(out, func(f string) bool { return !slices.Contains(wanted, f) })
	}
	if len(out) == 0 {
		return nil, errors.New("there is no family that all pods have an address of")
	}
	return out, nil
}

func (d *deployment) pod(name, node string, host bool, port int) *corev1.Pod {
	no, yes, grace := false, true, int64(1)
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: d.namespace, Labels: map[string]string{label: "", "pod": name}},
		Spec: corev1.PodSpec{
			NodeName: node, HostNetwork: host, DNSPolicy: corev1.DNSClusterFirst, TerminationGracePeriodSeconds: &grace, AutomountServiceAccountToken: &no,
			Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			Containers: []corev1.Container{{
				Name: "c", Image: d.image, ImagePullPolicy: corev1.PullNever, Args: []string{"connectivity", "serve", "--pod", name, "--port", strconv.Itoa(port)},
				Ports:           []corev1.ContainerPort{{ContainerPort: int32(port), Protocol: corev1.ProtocolTCP}, {ContainerPort: int32(port), Protocol: corev1.ProtocolUDP}},
				ReadinessProbe:  &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromInt(port)}}, PeriodSeconds: 1},
				SecurityContext: &corev1.SecurityContext{AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes, RunAsNonRoot: &yes, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}},
			}},
		},
	}
	if host {
		p.Spec.DNSPolicy = corev1.DNSClusterFirstWithHostNet
	} else {
		p.Labels["behind"] = "services"
	}
	return p
}

// create repeats what is refused until the namespace has its ServiceAccount.
func (d *deployment) create(ctx context.Context, p *corev1.Pod) error {
	for deadline := time.Now().Add(20 * time.Second); ; {
		_, err := d.client.CoreV1().Pods(d.namespace).Create(ctx, p, metav1.CreateOptions{})
		if err == nil {
			return nil
		}
		if !apierrors.IsForbidden(err) || time.Now().After(deadline) || ctx.Err() != nil {
			return fmt.Errorf("pod %s: %w", p.Name, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// await waits until a pod is ready. What will not become so by waiting is told at once.
func (d *deployment) await(ctx context.Context, name string) (*corev1.Pod, error) {
	last := ""
	for {
		p, err := d.client.CoreV1().Pods(d.namespace).Get(ctx, name, metav1.GetOptions{})
		if err == nil {
			if slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue }) {
				return p, nil
			}
			if last, err = unready(p, d.image); err != nil {
				return nil, err
			}
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("pod %s did not become ready (%s): %w", name, last, errors.Join(ctx.Err(), err))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// unready says what a pod waits for; an error is what it waits for in vain.
func unready(p *corev1.Pod, image string) (string, error) {
	for _, c := range p.Status.ContainerStatuses {
		if w := c.State.Waiting; w != nil {
			switch w.Reason {
			case "ErrImageNeverPull", "ErrImagePull", "ImagePullBackOff":
				return "", fmt.Errorf("node %s lacks the image %s; `strake up` there makes it, or import it with `strake image import FILE.tar`", p.Spec.NodeName, image)
			case "CrashLoopBackOff":
				return "", fmt.Errorf("pod %s on node %s ends at once; is the image %s there of another release? `strake kubectl logs -n %s %[1]s`", p.Name, p.Spec.NodeName, image, p.Namespace)
			}
			return strings.TrimSpace(w.Reason + " " + w.Message), nil
		}
	}
	return string(p.Status.Phase), nil
}

// services makes the Services and notes where they are.
func (d *deployment) services(ctx context.Context, s *Scene) error {
	dual := corev1.IPFamilyPolicyPreferDualStack
	make := func(name string, change func(*corev1.ServiceSpec)) (*corev1.Service, error) {
		svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: d.namespace, Labels: map[string]string{label: ""}}, Spec: corev1.ServiceSpec{
			IPFamilyPolicy: &dual, Selector: map[string]string{"behind": "services"},
			Ports: []corev1.ServicePort{
				{Name: "tcp", Protocol: corev1.ProtocolTCP, Port: 80, TargetPort: intstr.FromInt(s.Port)},
				{Name: "udp", Protocol: corev1.ProtocolUDP, Port: 80, TargetPort: intstr.FromInt(s.Port)},
			},
		}}
		change(&svc.Spec)
		out, err := d.client.CoreV1().Services(d.namespace).Create(ctx, svc, metav1.CreateOptions{})
		if err != nil {
			return nil, fmt.Errorf("service %s: %w", name, err)
		}
		return out, nil
	}
	all, err := make(serviceAll, func(spec *corev1.ServiceSpec) { spec.Type = corev1.ServiceTypeNodePort })
	if err != nil {
		return err
	}
	for _, text := range all.Spec.ClusterIPs {
		if a, err := netip.ParseAddr(text); err == nil {
			s.ClusterIPs = append(s.ClusterIPs, a)
		}
	}
	s.NodePort, s.NodePortUDP = int(all.Spec.Ports[0].NodePort), int(all.Spec.Ports[1].NodePort)
	if _, err := make(serviceHeadless, func(spec *corev1.ServiceSpec) { spec.ClusterIP = corev1.ClusterIPNone }); err != nil {
		return err
	}
	for _, node := range s.Nodes {
		name := podName(node, 0)
		if _, err := make(serviceOwn(name), func(spec *corev1.ServiceSpec) { spec.Selector = map[string]string{"pod": name} }); err != nil {
			return err
		}
	}
	return nil
}

// remove deletes the namespace and waits until it has gone.
func (d *deployment) remove(ctx context.Context) error {
	d.say("removing namespace %s", d.namespace)
	namespaces := d.client.CoreV1().Namespaces()
	if err := namespaces.Delete(ctx, d.namespace, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("remove namespace %s: %w", d.namespace, err)
	}
	for {
		_, err := namespaces.Get(ctx, d.namespace, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("namespace %s is still being removed: %w", d.namespace, errors.Join(ctx.Err(), err))
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// sessions starts an Answer in every pod that asks.
func (d *deployment) sessions(ctx context.Context, rc *rest.Config, s Scene) (map[string]*session, func(), error) {
	ctx, cancel := context.WithCancel(ctx)
	out := map[string]*session{}
	var inputs []io.Closer
	var running sync.WaitGroup
	// An Answer ends with its input; what does not is cut off.
	end := func() {
		for _, in := range inputs {
			in.Close()
		}
		late := time.AfterFunc(3*time.Second, cancel)
		running.Wait()
		late.Stop()
		cancel()
	}
	for _, p := range s.Pods {
		url := d.client.CoreV1().RESTClient().Post().Resource("pods").Namespace(d.namespace).Name(p.Name).SubResource("exec").VersionedParams(&corev1.PodExecOptions{
			Container: "c", Command: []string{"/strake", "connectivity", "answer"}, Stdin: true, Stdout: true, Stderr: true,
		}, scheme.ParameterCodec).URL()
		exec, err := remotecommand.NewSPDYExecutor(rc, "POST", url)
		if err == nil {
			var ws remotecommand.Executor
			if ws, err = remotecommand.NewWebSocketExecutor(rc, "GET", url.String()); err == nil {
				exec, err = remotecommand.NewFallbackExecutor(ws, exec, func(err error) bool { return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err) })
			}
		}
		if err != nil {
			end()
			return nil, nil, fmt.Errorf("exec in pod %s: %w", p.Name, err)
		}
		inR, inW := io.Pipe()
		outR, outW := io.Pipe()
		inputs = append(inputs, inW)
		running.Go(func() {
			var stderr strings.Builder
			err := exec.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: inR, Stdout: outW, Stderr: &stderr})
			if err == nil {
				err = errors.New("the command ended")
			}
			if text := strings.TrimSpace(stderr.String()); text != "" {
				err = fmt.Errorf("%w: %s", err, text)
			}
			outW.CloseWithError(err)
			inR.CloseWithError(err)
		})
		out[p.Name] = newSession(p.Name, inW, outR)
	}
	return out, end, nil
}
