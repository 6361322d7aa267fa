package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"reflect"
	"time"

	"github.com/miekg/dns"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/utils/ptr"

	"github.com/strake-io/strake/cmd/strake/demo"
	"github.com/strake-io/strake/cmd/strake/layout"
)

// Up brings the cluster up, or what of it does not run, and returns when the demo is served. flags are the settings of a new
// cluster, given tells which of them the user named, and nodes is how many it shall have on this machine (0: those it has, or
// one). Steps are told on out. A first start that fails leaves nothing but its logs, a later one that fails leaves the cluster
// stopped, with its data; nodes that it was to add are gone. In the folder of a node that has joined a cluster, it starts the node.
func Up(ctx context.Context, l layout.Layout, flags Settings, given func(flag string) bool, nodes int, out io.Writer) error {
	if os.Geteuid() != 0 {
		return errors.New("strake up needs root: run it with sudo")
	}
	if s, saved, err := Load(l); err == nil && saved && s.Joined() {
		if nodes > 0 {
			return fmt.Errorf("%s is the folder of a node that has joined %s: it has no nodes of its own, leave --nodes out", l.Data, s.APIServer)
		}
		return Join(ctx, l, flags, given, Ticket{}, out)
	}
	release, err := exclusive(l)
	if err != nil {
		return err
	}
	defer release()
	u := &upStart{start: newStart(l)}
	deploy := step{"deploy the demo", func(ctx context.Context) error {
		return u.poll(ctx, func() error { return demo.Deploy(ctx, u.admin, u.s.DemoPort()) })
	}}
	ready := step{"node Ready", func(ctx context.Context) error { return u.poll(ctx, func() error { return u.nodeReady(ctx) }) }}
	steps := []step{
		{"check the machine", func(context.Context) error { return u.check(flags, given, nodes) }},
		{"certificates and settings", u.prepare},
		{"start containerd, server and agent", u.supervise},
		{"load the demo's image", u.loadImage},
		{"API server ready", u.apiReady},
	}
	if existing, err := l.LabNodes(); err == nil && len(existing) == 0 && nodes < 2 {
		steps = append(steps, deploy, ready) // its pods wait for the node
	} else {
		steps = append(steps, ready, step{"further nodes Ready", func(ctx context.Context) error { return u.labNodes(ctx, out) }}, deploy)
	}
	return u.run(ctx, append(steps,
		step{"DNS answers", func(ctx context.Context) error { return u.poll(ctx, func() error { return dnsAnswers(ctx, u.s) }) }},
		step{"demo served", func(ctx context.Context) error { return u.poll(ctx, func() error { return u.demoServed(ctx) }) }},
	), u.undo, out)
}

// upStart is one `up`.
type upStart struct {
	start
	admin *rest.Config
	lab   labStart
}

func (u *upStart) prepare(context.Context) error {
	u.touched = true
	if err := u.l.Prepare(); err != nil {
		return err
	}
	was, saved, err := Load(u.l)
	if err != nil {
		return err
	}
	u.changed = saved && !reflect.DeepEqual(was, u.s)
	if err := u.s.Save(u.l); err != nil {
		return err
	}
	if _, err := u.s.certificates(u.l); err != nil {
		return err
	}
	return u.labNetwork()
}

func (u *upStart) undo(ctx context.Context, cause error) error {
	return errors.Join(u.undoLab(ctx), u.start.undo(ctx, cause))
}

func (u *upStart) apiReady(ctx context.Context) error {
	var err error
	if u.admin, err = clientcmd.BuildConfigFromFlags("", u.l.AdminKubeconfig()); err != nil {
		return err
	}
	u.admin.QPS, u.admin.Burst = -1, -1
	if u.client, err = kubernetes.NewForConfig(u.admin); err != nil {
		return err
	}
	return u.poll(ctx, func() error {
		_, err := u.client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		return err
	})
}

// dnsAnswers asks the cluster DNS for the API server's name.
func dnsAnswers(ctx context.Context, s Settings) error {
	q := new(dns.Msg)
	address := dns.TypeA
	if s.DNSAddrs[0].Is6() {
		address = dns.TypeAAAA
	}
	q.SetQuestion("kubernetes.default.svc."+s.Zone+".", address)
	c := &dns.Client{Timeout: 200 * time.Millisecond} // before the address is there, a query gets no answer and no error
	m, _, err := c.ExchangeContext(ctx, q, netip.AddrPortFrom(s.DNSAddrs[0], 53).String())
	if err != nil {
		return err
	}
	if len(m.Answer) == 0 {
		return fmt.Errorf("the cluster DNS has no answer for %s (%s)", q.Question[0].Name, dns.RcodeToString[m.Rcode])
	}
	return nil
}

// demoServed asks the demo by its NodePort, and wants all of its pods to be available.
func (u *upStart) demoServed(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	deployments, err := u.client.AppsV1().Deployments(demo.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, d := range deployments.Items {
		if want := ptr.Deref(d.Spec.Replicas, 1); d.Status.AvailableReplicas < want {
			return fmt.Errorf("%d of %d pods of Deployment %s/%s are available", d.Status.AvailableReplicas, want, d.Namespace, d.Name)
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s/", netip.AddrPortFrom(u.s.NodeAddrs[0], uint16(u.s.DemoPort()))), nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the demo answers %s", resp.Status)
	}
	return nil
}
