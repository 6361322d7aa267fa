package doctor

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/cni"
	"github.com/strake-io/strake/kubelet/cgroups"
)

// Node says which node is to be examined. Examine is called in its network namespace.
type Node struct {
	Layout       layout.Layout
	Name         string
	Addrs        []netip.Addr   // InternalIPs
	NodePorts    []netip.Prefix // ranges of the addresses where NodePorts answer; none: Addrs
	DNSAddrs     []netip.Addr   // cluster DNS
	Zone         string
	Native       bool // no tunnel between the nodes
	Relay        cni.Relay
	TunnelPort   int
	Uplinks      []string                   // interfaces that lead to other nodes besides those that have the node's addresses
	Kubeconfigs  []string                   // ways to the API, the first that is there is used
	Certificates []string                   // folders and files that hold the node's certificates
	Datapath     func() (bpf.Config, error) // with what the programs are to be loaded; unless ProxyOnly
	ProxyOnly    bool                       // Services are all that Strake serves here: pods, names and ways to other nodes are somebody else's
	// NoMasquerade are destinations that get pods' packets with the pods' own addresses.
	NoMasquerade []netip.Prefix
	DSR          bool   // pods of other nodes answer clients outside by themselves
	Cgroup       string // folder of the cgroup2 tree whose processes are the node's, if it isn't the Layout's
}

// examination is what the checks share.
type examination struct {
	Node
	report     *Report
	cgroupRoot string
	client     kubernetes.Interface
	transport  http.RoundTripper
	url        string
	before     map[string]uint64 // counters, when the examination began
	began      time.Time
}

// Examine looks at everything. What can't be looked at is told in the report.
func Examine(ctx context.Context, n Node) Report {
	r := Report{Node: n.Name, OK: true}
	e := &examination{Node: n, report: &r, began: time.Now()}
	e.Cgroup = cmp.Or(n.Cgroup, n.Layout.Cgroup())
	e.cgroupRoot, _ = cgroups.UnifiedPath(e.Cgroup)
	if s, err := bpf.ReadStatus(n.Layout.BPF()); err == nil {
		e.before = s.Counters
	}
	apiErr := e.connect()
	e.kernel(e.in(groupKernel))
	e.mounts(e.in(groupMounts))
	if !e.ProxyOnly {
		e.sysctls(e.in(groupSysctls))
	}
	objects, err := e.list(ctx, apiErr)
	if !e.ProxyOnly {
		e.uplink(ctx, e.in(groupUplink), objects)
	}
	e.clock(ctx, e.in(groupClock), apiErr)
	e.leftovers(e.in(groupLeftovers))
	e.network(ctx, e.in(groupNetwork), objects)
	e.api(ctx, e.in(groupAPI), objects, err)
	return r
}

func (e *examination) in(name string) group { return group{name, e.report} }

// connect finds a way to the API.
func (e *examination) connect() error {
	rc, err := e.REST()
	if err != nil {
		return err
	}
	rc.Timeout = 10 * time.Second
	e.url = rc.Host
	if e.transport, err = rest.TransportFor(rc); err != nil {
		return err
	}
	e.client, err = kubernetes.NewForConfig(rc)
	return err
}

// REST is the way to the API server.
func (n Node) REST() (*rest.Config, error) {
	if n.ProxyOnly && len(n.Kubeconfigs) == 0 {
		rc, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("the agent asks the API server as a pod does, which this process can't: run the command in its container: %w", err)
		}
		return rc, nil
	}
	path, err := Kubeconfig(n.Kubeconfigs)
	if err != nil {
		return nil, err
	}
	rc, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", path, err)
	}
	return rc, nil
}

// Kubeconfig is the first of several that is there.
func Kubeconfig(paths []string) (string, error) {
	for _, p := range paths {
		if _, err := os.Stat(p); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("there is no cluster here: none of %q is there; run `strake up`, or name the node's folder with --data-dir", paths)
}

// objects are what the API says that the node network should do.
type objects struct {
	services   []corev1.Service
	slices     []discoveryv1.EndpointSlice
	namespaces []corev1.Namespace // none where only Services are served
	nodes      []corev1.Node
	pods       []corev1.Pod // nil if this node may not list them
}

func (e *examination) list(ctx context.Context, connectErr error) (*objects, error) {
	if connectErr != nil {
		return nil, connectErr
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	var o objects
	svcs, err := e.client.CoreV1().Services("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	eps, err := e.client.DiscoveryV1().EndpointSlices("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	nodes, err := e.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	o.services, o.slices, o.nodes = svcs.Items, eps.Items, nodes.Items
	if !e.ProxyOnly {
		namespaces, err := e.client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil, err
		}
		o.namespaces = namespaces.Items
	}
	if pods, err := e.client.CoreV1().Pods("").List(ctx, metav1.ListOptions{}); err == nil {
		o.pods = append([]corev1.Pod{}, pods.Items...) // not nil if there are none
	}
	return &o, nil
}
