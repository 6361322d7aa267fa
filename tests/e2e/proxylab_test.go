package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/kubelet/cgroups"
	"github.com/strake-io/strake/tests/lab"
	"github.com/strake-io/strake/tests/lab/labtest"
	"github.com/strake-io/strake/tests/podnet"
)

// proxyLab is an API server and two nodes whose pods have the network of another CNI plugin. Pods are namespaces with a process or none;
// the test is their kubelet. Node 1 is where the API server runs; the nodes know each other's pod ranges by routes over the outside.
type proxyLab struct {
	*lab.Cluster
	t          *testing.T
	client     kubernetes.Interface
	kubeconfig string // of the ServiceAccount of deploy/kube-proxy
	nodes      []*proxyNode
}

// proxyNode is one node.
type proxyNode struct {
	lab    *proxyLab
	name   string
	space  podnet.Space
	addrs  [2]string // IPv4, IPv6
	data   string    // of its agent
	cgroup string    // its folder, below the mount of cgroup2
	plugin string    // ptp or bridge
	conf   string    // of the plugin
	agent  *exec.Cmd
	ended  chan error
	log    journal
}

// journal collects what a process writes, while it is read.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(b)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

// proxyPod is a namespace that the plugin has given an interface.
type proxyPod struct {
	name  string
	node  *proxyNode
	space podnet.Space
	addrs [2]string
}

// startProxyLab makes all but the pods and the agents.
func startProxyLab(t *testing.T) *proxyLab {
	t.Helper()
	dir := t.TempDir()
	c := labtest.New(t, "strake-e2e", binary)
	l := &proxyLab{Cluster: c, t: t}
	second, err := c.Machine(1, filepath.Join(dir, "proxy-2"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := second.Close(); err != nil {
			t.Error(err)
		}
	})
	for i, n := range []*proxyNode{
		{space: podnet.Space("/run/netns/" + c.Net), addrs: [2]string{lab.NodeIP, lab.NodeIP6}, plugin: "ptp"},
		{space: podnet.Space("/run/netns/" + second.Net), addrs: [2]string{"198.18.1.2", "2001:db8:1::2"}, plugin: "bridge"},
	} {
		n.lab, n.name, n.data = l, fmt.Sprint("node-", i+1), filepath.Join(dir, fmt.Sprint("proxy-", i+1))
		n.cgroup = "/" + c.Net + "-" + n.name
		l.nodes = append(l.nodes, n)
	}
	for _, cmd := range []string{
		"-n " + second.Net + " addr add 2001:db8:1::2/64 dev up0 nodad", "-n " + c.Outside + " addr add 2001:db8:1::1/64 dev out1 nodad",
		"-n " + second.Net + " route add default via 2001:db8:1::1",
		"-n " + c.Outside + " route add 10.210.1.0/24 via " + l.nodes[0].addrs[0], "-n " + c.Outside + " route add 10.210.2.0/24 via " + l.nodes[1].addrs[0],
		"-n " + c.Outside + " route add fd00:210:1::/64 via " + l.nodes[0].addrs[1], "-n " + c.Outside + " route add fd00:210:2::/64 via " + l.nodes[1].addrs[1],
	} {
		run(t, "ip "+cmd)
	}
	for _, ns := range []string{c.Net, second.Net, c.Outside} {
		run(t, "ip netns exec "+ns+" sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
	}
	for i, n := range l.nodes {
		_, dir := cgroups.UnifiedPath(n.cgroup)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.Remove(dir); err != nil {
				t.Error(err)
			}
		})
		conf := map[string]any{"cniVersion": "1.0.0", "name": "other", "type": n.plugin, "ipam": map[string]any{
			"type": "host-local", "dataDir": filepath.Join(t.TempDir(), "ipam"),
			"ranges": [][]map[string]string{{{"subnet": fmt.Sprintf("10.210.%d.0/24", i+1)}}, {{"subnet": fmt.Sprintf("fd00:210:%d::/64", i+1)}}},
			"routes": []map[string]string{{"dst": "0.0.0.0/0"}, {"dst": "::/0"}},
		}}
		if n.plugin == "bridge" {
			conf["bridge"], conf["isGateway"], conf["hairpinMode"] = "cni0", true, true
		}
		data, err := json.Marshal(conf)
		if err != nil {
			t.Fatal(err)
		}
		n.conf = string(data)
	}
	l.startServer()
	return l
}

func run(t *testing.T, command string) {
	t.Helper()
	f := strings.Fields(command)
	if out, err := exec.Command(f[0], f[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
}

// startServer brings up the API server of both families, with Node objects and the ServiceAccount of the manifest.
func (l *proxyLab) startServer() {
	l.t.Helper()
	settings := `{"nodeName": "node-1", "nodeAddrs": ["` + lab.NodeIP + `", "` + lab.NodeIP6 + `"], "podCIDRs": ["10.210.0.0/16", "fd00:210::/48"], "serviceCIDRs": ["10.96.0.0/16", "fd00:10:96::/112"], "port": 6443, "etcdPort": 2379}`
	if err := os.Mkdir(l.Data, 0o700); err != nil {
		l.t.Fatal(err)
	}
	for name, text := range map[string]string{"layout.json": `{"version": 1}`, "settings.json": settings} {
		if err := os.WriteFile(filepath.Join(l.Data, name), []byte(text), 0o600); err != nil {
			l.t.Fatal(err)
		}
	}
	labtest.Background(l.t, "server", l.StrakeCommand(context.Background(), "server"))
	eventually(l.t, 6*time.Minute, func() string {
		if out, err := l.Strake("kubectl", "get", "--raw", "/readyz"); err != nil {
			return out
		}
		return ""
	})
	rc, err := l.REST()
	if err == nil {
		l.client, err = kubernetes.NewForConfig(rc)
	}
	if err != nil {
		l.t.Fatal(err)
	}
	for _, n := range l.nodes {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.name}}
		for _, a := range n.addrs {
			node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
		}
		status, err := json.Marshal(map[string]any{"status": map[string]any{"addresses": node.Status.Addresses}})
		if err == nil {
			_, err = l.client.CoreV1().Nodes().Create(l.t.Context(), node, metav1.CreateOptions{})
		}
		if err == nil { // controllers write to it, too
			_, err = l.client.CoreV1().Nodes().Patch(l.t.Context(), n.name, types.MergePatchType, status, metav1.PatchOptions{}, "status")
		}
		if err != nil {
			l.t.Fatal(err)
		}
	}
	manifest, err := filepath.Abs("../../deploy/kube-proxy/strake-proxy.yaml")
	if err != nil {
		l.t.Fatal(err)
	}
	if out, err := l.Strake("kubectl", "apply", "--server-side", "-f", manifest); err != nil {
		l.t.Fatalf("the manifest: %v\n%s", err, out)
	}
	token, err := l.client.CoreV1().ServiceAccounts("kube-system").CreateToken(l.t.Context(), "strake-proxy", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		l.t.Fatal(err)
	}
	admin, err := clientcmd.LoadFromFile(filepath.Join(l.Data, "admin.kubeconfig"))
	if err != nil {
		l.t.Fatal(err)
	}
	for name := range admin.AuthInfos {
		admin.AuthInfos[name] = &clientcmdapi.AuthInfo{Token: token.Status.Token}
	}
	l.kubeconfig = filepath.Join(l.t.TempDir(), "proxy.kubeconfig")
	if err := clientcmd.WriteToFile(*admin, l.kubeconfig); err != nil {
		l.t.Fatal(err)
	}
}

// start runs the node's agent as the manifest does, but for SYS_ADMIN: with these capabilities alone, and a bpffs that is there already.
func (n *proxyNode) start(flags ...string) {
	t := n.lab.t
	t.Helper()
	pins := filepath.Join(n.data, "bpf")
	if err := bpf.MountBPFFS(pins); err != nil {
		t.Fatal(err)
	}
	const caps = "-all,+bpf,+perfmon,+net_admin,+sys_resource"
	n.agent = exec.Command("nsenter", append([]string{"--net=" + string(n.space), "setpriv", "--bounding-set=" + caps,
		n.lab.Binary, "--data-dir", n.data, "agent", "--only=proxy", "--kubeconfig", n.lab.kubeconfig, "--hostname-override", n.name, "--cgroup", n.cgroup}, flags...)...)
	n.agent.Stdout, n.agent.Stderr = &n.log, &n.log
	if err := n.agent.Start(); err != nil {
		t.Fatal(err)
	}
	n.ended = make(chan error, 1)
	cmd, ended := n.agent, n.ended
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { n.stop(syscall.SIGTERM) })
}

// stop ends the agent with a signal.
func (n *proxyNode) stop(s syscall.Signal) {
	if n.agent == nil {
		return
	}
	n.agent.Process.Signal(s)
	<-n.ended
	n.agent = nil
	if n.lab.t.Failed() {
		n.lab.t.Logf("agent of %s:\n%s", n.name, n.log.String())
	}
}

// strake runs a command that looks at the node.
func (n *proxyNode) strake(args ...string) (string, error) {
	out, err := exec.Command("nsenter", append([]string{"--net=" + string(n.space), n.lab.Binary, "--data-dir", n.data}, args...)...).CombinedOutput()
	return string(out), err
}

// pod makes one that serves HTTP and UDP on port 8080: who answers, and as whom it sees the client.
func (n *proxyNode) pod(name string) *proxyPod {
	n.lab.t.Helper()
	p := n.bare(name)
	answerIn(n.lab.t, p.space, p.name, ":8080")
	return p
}

// bare makes one that serves nothing.
func (n *proxyNode) bare(name string) *proxyPod {
	t := n.lab.t
	t.Helper()
	space, err := podnet.NewSpace(filepath.Join(t.TempDir(), name+".net"))
	if err != nil {
		t.Fatal(err)
	}
	p := &proxyPod{name: name, node: n, space: space}
	call := func(verb string) ([]byte, error) {
		cmd := exec.Command("nsenter", "--net="+string(n.space), "/usr/lib/cni/"+n.plugin)
		cmd.Env = append(os.Environ(), "CNI_COMMAND="+verb, "CNI_CONTAINERID="+name, "CNI_NETNS="+string(space), "CNI_IFNAME=eth0", "CNI_PATH=/usr/lib/cni")
		cmd.Stdin = strings.NewReader(n.conf)
		return cmd.CombinedOutput()
	}
	out, err := call("ADD")
	if err != nil {
		t.Fatalf("%s: %v\n%s", n.plugin, err, out)
	}
	t.Cleanup(func() {
		if out, err := call("DEL"); err != nil {
			t.Errorf("%s DEL: %v\n%s", n.plugin, err, out)
		}
		if err := space.Remove(); err != nil {
			t.Error(err)
		}
	})
	var result struct {
		IPs []struct{ Address netip.Prefix }
	}
	if err := json.Unmarshal(out, &result); err != nil || len(result.IPs) != 2 {
		t.Fatalf("%v: %s", err, out)
	}
	for i, ip := range result.IPs {
		p.addrs[i] = ip.Address.Addr().String()
	}
	// Not before its addresses are settled can it be reached.
	eventually(t, 80*time.Second, func() string {
		out, err := n.lab.runIn(space, "", "ip", "-6", "addr", "show", "tentative")
		return strings.TrimSpace(out) + errorText(err)
	})
	return p
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// answerIn serves HTTP and UDP at an address in a namespace, as long as the test runs: who answers, and as whom it sees the client.
func answerIn(t *testing.T, space podnet.Space, name, at string) {
	t.Helper()
	var web net.Listener
	var datagrams net.PacketConn
	if err := space.In(func() (err error) {
		if web, err = net.Listen("tcp", at); err == nil {
			datagrams, err = net.ListenPacket("udp", at)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { web.Close(); datagrams.Close() })
	answer := func(from string) string {
		return fmt.Sprintf("%s answers %s\n", name, netip.MustParseAddrPort(from).Addr().Unmap())
	}
	go http.Serve(web, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, answer(r.RemoteAddr)) }))
	go func() {
		b := make([]byte, 2000)
		for {
			_, from, err := datagrams.ReadFrom(b)
			if err != nil {
				return
			}
			datagrams.WriteTo([]byte(answer(from.String())), from)
		}
	}()
}

// ask calls a URL so many times, each over a socket of its own, as a process of the pod.
func (p *proxyPod) ask(url string, times int) (string, error) {
	_, dir := cgroups.UnifiedPath(p.node.cgroup)
	return p.node.lab.askIn(p.space, dir, url, times)
}

// ask does so as a process of the node.
func (n *proxyNode) ask(url string, times int) (string, error) {
	return n.lab.askIn(n.space, "", url, times)
}

// askOutside does so from outside.
func (l *proxyLab) askOutside(url string, times int) (string, error) {
	return l.askIn(podnet.Space("/run/netns/"+l.Outside), "", url, times)
}

// askIn does so from a namespace, as a process of a cgroup if its folder is given.
func (l *proxyLab) askIn(space podnet.Space, cgroup, url string, times int) (string, error) {
	return l.runIn(space, cgroup, l.Binary, "demo", "client", "--interval", "1ms", "--count", fmt.Sprint(times), "--url", url)
}

func (l *proxyLab) runIn(space podnet.Space, cgroup string, argv ...string) (string, error) {
	var out []byte
	var failed error
	err := space.In(func() error {
		c := exec.CommandContext(l.t.Context(), argv[0], argv[1:]...)
		if cgroup != "" {
			dir, err := os.Open(cgroup)
			if err != nil {
				return err
			}
			defer dir.Close()
			c.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
		}
		out, failed = c.CombinedOutput()
		return nil
	})
	return string(out), errors.Join(err, failed)
}

// answeredBy counts answers by the pod that gave them, and collects whom they saw.
func answeredBy(out string) (pods map[string]int, clients map[string]bool) {
	pods, clients = map[string]int{}, map[string]bool{}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) == 5 && f[3] == "answers" {
			pods[f[2]]++
			clients[f[4]] = true
		}
	}
	return pods, clients
}

// service makes a Service of both families without a selector, and slices that name the pods.
func (l *proxyLab) service(name string, nodePort int32, change func(*corev1.Service), pods ...*proxyPod) *corev1.Service {
	l.t.Helper()
	dual := corev1.IPFamilyPolicyRequireDualStack
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeNodePort, IPFamilyPolicy: &dual,
		Ports: []corev1.ServicePort{
			{Name: "http", Port: 80, NodePort: nodePort, Protocol: corev1.ProtocolTCP}, {Name: "packets", Port: 80, NodePort: nodePort, Protocol: corev1.ProtocolUDP},
		},
	}}
	if change != nil {
		change(s)
	}
	s, err := l.client.CoreV1().Services("default").Create(l.t.Context(), s, metav1.CreateOptions{})
	if err != nil {
		l.t.Fatal(err)
	}
	for i, kind := range []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6} {
		slice := &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", name, i), Labels: map[string]string{discoveryv1.LabelServiceName: name}},
			AddressType: kind,
			Ports: []discoveryv1.EndpointPort{
				{Name: new("http"), Port: new(int32(8080)), Protocol: new(corev1.ProtocolTCP)}, {Name: new("packets"), Port: new(int32(8080)), Protocol: new(corev1.ProtocolUDP)},
			},
		}
		for _, p := range pods {
			slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{p.addrs[i]}, NodeName: &p.node.name, Conditions: discoveryv1.EndpointConditions{Ready: new(true)}})
		}
		if _, err := l.client.DiscoveryV1().EndpointSlices("default").Create(l.t.Context(), slice, metav1.CreateOptions{}); err != nil {
			l.t.Fatal(err)
		}
	}
	return s
}
