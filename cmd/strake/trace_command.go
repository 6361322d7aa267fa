package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"github.com/vishvananda/netlink"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cmd/strake/doctor"
	"github.com/strake-io/strake/cmd/strake/trace"
	"github.com/strake-io/strake/cni"
	"github.com/strake-io/strake/dns"
	"github.com/strake-io/strake/kubelet/cgroups"
	"github.com/strake-io/strake/netpol/compiler"
)

// protocols that Services have.
var protocols = map[string]uint8{"tcp": 6, "udp": 17, "sctp": 132}

// usualZone is where names of Services are, unless we serve them ourselves and know.
const usualZone = "cluster.local"

func traceCommand(place places) *cobra.Command {
	var from, to, proto, namespace, output string
	cmd := &cobra.Command{
		Use:   "trace --from POD|IP|node --to HOST:PORT",
		Short: "Tell what would happen to a connection on this node, and why",
		Long: `Tells what this node would do with a new connection, from the tables in its kernel: which Service is asked, which backends can be chosen
and by which rule, how the packets go and as whom the backend sees the client. Nothing is sent. The client is a pod of this node (the name
of a Deployment means one of its pods), the node itself ("node"), or an address outside of the cluster. With a port of that (198.51.100.7:40000) the one backend is told that it gets,
where consistent hashing chooses.

Names of Services are resolved as cluster DNS does. What network policies say is told as this node's tables have it, for pods of this node:
"strake policy eval" tells it of the whole cluster.`,
		Example: "  strake trace --from demo/client --to echo:80\n  strake trace --from 198.51.100.7 --to 192.0.2.10:30080 --proto udp\n  strake trace --from '[2001:db8::7]:40000' --to '[2001:db8::10]:30080'\n  strake trace --from node --to kubernetes.default:443 -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			number, ok := protocols[strings.ToLower(proto)]
			if !ok {
				return fmt.Errorf("--proto %s is none of tcp, udp and sctp", proto)
			}
			if os.Geteuid() != 0 {
				return errors.New("strake trace needs root: run it with sudo")
			}
			node, err := entered(place)
			if err != nil {
				return err
			}
			answers, err := traceAll(cmd.Context(), cmd.ErrOrStderr(), node, from, namespace, to, number)
			if err != nil {
				return err
			}
			return show(cmd.OutOrStdout(), output, answers, func(w io.Writer) {
				for _, a := range answers {
					printTrace(w, a, proto)
				}
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&from, "from", "", "who connects: [NAMESPACE/]POD, or a workload's name for one of its pods, an IP address with or without a port, or node")
	f.StringVar(&to, "to", "", "to where: a name or an address, and a port")
	f.StringVar(&proto, "proto", "tcp", "tcp, udp or sctp")
	f.StringVarP(&namespace, "namespace", "n", "default", "of the pod, and of short names that the node or an address asks for")
	_ = cmd.MarkFlagRequired("from") // fails for unknown flags only
	_ = cmd.MarkFlagRequired("to")
	fixed(cmd, "proto", "tcp", "udp", "sctp")
	completed(cmd, "from", podNames(place))
	outputFlag(cmd, &output)
	return cmd
}

// traceAll answers for each address that the name has. What is uncertain it says to notes.
func traceAll(ctx context.Context, notes io.Writer, node doctor.Node, from, namespace, to string, proto uint8) ([]trace.Answer, error) {
	host, portText, err := net.SplitHostPort(to)
	if err != nil {
		return nil, fmt.Errorf("--to %s: %w", to, err)
	}
	port, err := net.LookupPort("tcp", portText)
	if err != nil || port == 0 {
		return nil, fmt.Errorf("--to %s has no port", to)
	}
	api, apart := node.Services(ctx)
	if apart != nil {
		fmt.Fprintf(notes, "%v: names of pods and nodes are left out, and whether an address is of another node's pod is not known\n", apart)
	}
	s, names, err := traceState(node, api)
	if err != nil {
		return nil, err
	}
	if p, rest, ok := strings.Cut(from, "/"); ok {
		namespace, from = p, rest
	}
	clients, err := clientsOf(node, api, s, from, namespace)
	if err != nil {
		return nil, err
	}
	if apart == nil && api.Pods == nil && clients[0].Kind == trace.Outside {
		fmt.Fprintf(notes, "This node may not list pods: whether %s is a pod's is not known, it is taken for an address outside of the cluster\n", from)
	}
	zone := node.Zone
	if node.ProxyOnly {
		zone = usualZone
	}
	addrs, err := trace.Resolve(host, namespace, zone, names)
	if err != nil && apart != nil && node.ProxyOnly {
		return nil, fmt.Errorf("names of Services are the API server's to tell on this node, and it does not answer: give --to an address (%w)", err)
	}
	if err != nil {
		return nil, err
	}
	var out []trace.Answer
	for _, a := range addrs {
		i := slices.IndexFunc(clients, func(c trace.Client) bool { return c.Addr.Is4() == a.Is4() })
		if i < 0 {
			continue // the client has no address of this family
		}
		out = append(out, trace.Decide(trace.Question{From: clients[i], To: netip.AddrPortFrom(a, uint16(port)), Protocol: proto}, s))
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s has no address of a family of the client's: %v", host, addrs)
	}
	return out, nil
}

func traceState(node doctor.Node, api doctor.Services) (trace.State, []bpf.Name, error) {
	s := trace.State{NodeAddrs: node.Addrs, OtherPods: node.ProxyOnly, Exempt: node.NoMasquerade, DSR: node.DSR}
	pins := node.Layout.BPF()
	var err error
	if s.Services, err = bpf.ReadServices(pins); err != nil {
		return s, nil, err
	}
	if s.Affinity, err = bpf.ReadAffinity(pins); err != nil {
		return s, nil, err
	}
	if s.SocketsOff, err = bpf.ReadSocketsOff(pins); err != nil {
		return s, nil, err
	}
	rows, err := bpf.ReadRows(pins)
	if err != nil {
		return s, nil, err
	}
	s.Endpoints, s.Remotes = rows.Endpoints, rows.Remotes
	names := rows.Names
	if !node.ProxyOnly {
		policies, err := bpf.ReadPolicies(pins)
		if err != nil {
			return s, nil, err
		}
		s.Policies = compiler.Interpret(policies)
	}
	if node.ProxyOnly {
		if s.Behind, err = devices(pins); err != nil {
			return s, nil, err
		}
		// The kernel answers no names here.
		slicesOf := map[string][]*discoveryv1.EndpointSlice{}
		for i := range api.Slices {
			key := api.Slices[i].Namespace + "/" + api.Slices[i].Labels[discoveryv1.LabelServiceName]
			slicesOf[key] = append(slicesOf[key], &api.Slices[i])
		}
		for i := range api.Services {
			svc := &api.Services[i]
			names = append(names, dns.Desired(svc, slicesOf[svc.Namespace+"/"+svc.Name], usualZone)...)
		}
	}
	who := map[netip.Addr]string{}
	for _, p := range api.Pods {
		for _, ip := range p.Status.PodIPs {
			if a, err := netip.ParseAddr(ip.IP); err == nil && !p.Spec.HostNetwork {
				who[a] = p.Namespace + "/" + p.Name
			}
		}
	}
	for _, n := range api.Nodes {
		for _, v := range n.Status.Addresses {
			if a, err := netip.ParseAddr(v.Address); err == nil {
				who[a] = "node " + n.Name
			}
		}
	}
	s.Who = func(a netip.Addr) string { return who[a] }
	return s, names, nil
}

// clientsOf are the client's addresses, of each family one.
func clientsOf(node doctor.Node, api doctor.Services, s trace.State, from, namespace string) ([]trace.Client, error) {
	if from == trace.Node {
		var out []trace.Client
		for _, a := range node.Addrs {
			out = append(out, trace.Client{Kind: trace.Node, Name: node.Name, Addr: a})
		}
		return out, nil
	}
	addr, _ := netip.ParseAddr(from)
	var port uint16
	if p, err := netip.ParseAddrPort(from); err == nil {
		addr, port = p.Addr(), p.Port()
	}
	if slices.Contains(node.Addrs, addr) {
		return []trace.Client{{Kind: trace.Node, Name: node.Name, Addr: addr}}, nil
	}
	i := slices.IndexFunc(api.Pods, func(p corev1.Pod) bool {
		if addr.IsValid() {
			return !p.Spec.HostNetwork && slices.ContainsFunc(p.Status.PodIPs, func(ip corev1.PodIP) bool { return ip.IP == addr.String() })
		}
		return p.Namespace == namespace && p.Name == from
	})
	if i < 0 && !addr.IsValid() {
		i = podOfWorkload(api.Pods, namespace, from, node.Name)
	}
	here := func() bool {
		return slices.ContainsFunc(s.Endpoints, func(e bpf.Endpoint) bool { return e.Addr == addr }) || s.Behind != nil && s.Behind(addr).Own
	}
	if i < 0 && addr.IsValid() && here() {
		return []trace.Client{podClient(node, addr.String(), addr)}, nil // of a pod that the API has not told
	}
	if i < 0 && addr.IsValid() {
		return []trace.Client{{Kind: trace.Outside, Addr: addr, Port: port}}, nil
	}
	if i < 0 && api.Want == nil {
		return nil, fmt.Errorf("where pod %s/%s is only the API server knows: ask for its address", namespace, from)
	}
	if i < 0 {
		return nil, fmt.Errorf("there is no pod %s/%s, nor one of a workload of that name, that this node may read", namespace, from)
	}
	p := &api.Pods[i]
	if p.Spec.NodeName != node.Name {
		return nil, fmt.Errorf("pod %s/%s is on node %s, which decides for it: ask there", p.Namespace, p.Name, p.Spec.NodeName)
	}
	var out []trace.Client
	for _, ip := range p.Status.PodIPs {
		a, err := netip.ParseAddr(ip.IP)
		if err != nil {
			continue
		}
		c := trace.Client{Kind: trace.Node, Name: p.Namespace + "/" + p.Name, Addr: a}
		if !p.Spec.HostNetwork {
			c = podClient(node, c.Name, a)
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("pod %s/%s has no address yet", p.Namespace, p.Name)
	}
	return out, nil
}

// devices tells behind which one addresses are that another plugin's pods have.
func devices(pins string) (func(netip.Addr) trace.Device, error) {
	own, err := bpf.ReadBesideAt(pins)
	if err != nil {
		return nil, err
	}
	return func(a netip.Addr) trace.Device {
		routes, err := netlink.RouteGet(a.AsSlice())
		if err != nil || len(routes) == 0 {
			return trace.Device{} // nobody gets there
		}
		i := routes[0].LinkIndex
		return trace.Device{Ifindex: i, Own: slices.Contains(own, i)}
	}, nil
}

func podClient(node doctor.Node, name string, a netip.Addr) trace.Client {
	c := trace.Client{Kind: trace.Pod, Name: name, Addr: a}
	if path, ok := cni.NetnsOf(node.Layout.CNIState(), a); ok {
		root, _ := cgroups.UnifiedPath("/")
		if cookie, err := bpf.NetnsCookie(path, root); err == nil { // else a pod of which this is not known
			c.Netns = cookie
		}
	}
	return c
}

// podOfWorkload finds a pod of a workload, one of this node if there is any; -1 if there is none.
func podOfWorkload(pods []corev1.Pod, namespace, workload, node string) int {
	found := -1
	for i, p := range pods {
		if p.Namespace != namespace || !isOf(&p, workload) || p.Status.Phase != corev1.PodRunning {
			continue
		}
		if p.Spec.NodeName == node {
			return i
		}
		found = i
	}
	return found
}

// isOf tells whether a pod is a workload's: its controller is of that name, or a Deployment or a CronJob of that name has the controller.
func isOf(p *corev1.Pod, workload string) bool {
	owner := metav1.GetControllerOf(p)
	if owner == nil {
		return p.GenerateName == workload+"-"
	}
	rest, longer := strings.CutPrefix(owner.Name, workload+"-")
	switch {
	case owner.Name == workload:
		return true
	case longer && owner.Kind == "ReplicaSet":
		return rest == p.Labels[appsv1.DefaultDeploymentUniqueLabelKey]
	case longer && owner.Kind == "Job":
		_, err := strconv.ParseUint(rest, 10, 64) // the minute that it is of
		return err == nil
	}
	return false
}

func printTrace(w io.Writer, a trace.Answer, proto string) {
	from := a.From.Addr.String()
	if a.From.Name != "" {
		from = a.From.Name + " (" + from + ")"
	}
	fmt.Fprintf(w, "%s %s → %s, %s\n", a.From.Kind, from, a.To, proto)
	if a.Service != "" {
		fmt.Fprintf(w, "  service   %s\n  frontend  %s\n  decided   at the %s\n", a.Service, a.Frontend, a.Place)
	}
	fmt.Fprintf(w, "  rule      %s\n  verdict   %s\n", a.Rule, a.Verdict)
	if a.Reason != "" {
		fmt.Fprintf(w, "  reason    %s\n", a.Reason)
	}
	if len(a.Backends) > 0 {
		t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		fmt.Fprintln(t, "  TO\tWHO\tCHANCE\tPATH\tSEES THE CLIENT AS")
		for _, b := range a.Backends {
			name := b.Name
			if name == "" {
				name = "-"
			}
			fmt.Fprintf(t, "  %s\t%s\t%.1f %%\t%s\t%s\n", b.Address, name, b.Chance*100, b.Path, b.Source)
		}
		t.Flush()
	}
	for _, b := range a.Backends {
		if b.Policy != nil {
			fmt.Fprintf(w, "  policy    to %s: egress %s; ingress %s\n", b.Address, b.Policy.Egress, b.Policy.Ingress)
		}
	}
}
